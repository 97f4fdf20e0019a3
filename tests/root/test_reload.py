"""What a reload changes at once, and what it says must wait."""

from __future__ import annotations

from msgspec.structs import replace

from ottod.root.reload import compare, merge
from ottod.settings.daemon import DaemonSettings
from ottod.settings.sections import LoggingSettings, PoolSettings, RingSettings, SessionSettings

OLD = DaemonSettings()
NEW = replace(
    OLD,
    ring=RingSettings(size_bytes=32 * 1024 * 1024),
    sessions=SessionSettings(max_live=7),
    pool=PoolSettings(warm=0),
    models={"fast": "scripted:x"},
    logging=LoggingSettings(level="debug", format="json"),
)


def test_nothing_changes_nothing() -> None:
    """The same settings give two empty lists."""
    assert compare(OLD, DaemonSettings()) == compare(OLD, OLD)
    assert not compare(OLD, OLD).changed and not compare(OLD, OLD).needs_restart


def test_each_change_is_named_once_and_on_its_side() -> None:
    """Dotted names; what lives as long as root waits for a restart."""
    result = compare(OLD, NEW)
    assert result.changed == ("logging.level", "models.fast", "pool.warm", "sessions.max_live")
    assert result.needs_restart == ("logging.format", "ring.size_bytes")


def test_what_waits_does_not_hold() -> None:
    """After the merge the settings are new, but for those that were said to wait."""
    merged = merge(OLD, NEW)
    assert compare(OLD, merged).changed == compare(OLD, NEW).changed
    assert not compare(OLD, merged).needs_restart
    assert compare(merged, NEW).needs_restart == compare(OLD, NEW).needs_restart
