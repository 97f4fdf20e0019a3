"""The daemon's settings in a simulation: short periods, so that much happens in little time."""

from __future__ import annotations

from ottod.settings.daemon import DaemonSettings
from ottod.settings.sections import SessionSettings, SupervisionSettings

SETTINGS = DaemonSettings(
    sessions=SessionSettings(
        max_live=200,
        start_timeout_s=5.0,
        orphan_grace_s=4.0,
        heartbeat_s=0.5,
        hung_after_s=3.0,
        stop_grace_s=1.0,
        retain_ended=1000,
    ),
    supervision=SupervisionSettings(max_restarts=3, period_s=20.0),
)
