"""What the service manager hears when root goes, and when root may not go without its sessions."""

from __future__ import annotations

import pytest

from ottoctl.service_unit import units
from ottod.errors import RefusedError
from ottod.root.departure import BROKEN, LEFT, Departure, exit_status, refuse_to_leave

USER, SYSTEM = "otto-sessions.service", "otto-sessions@1000.service"


@pytest.mark.parametrize(
    ("departure", "unit", "status"),
    [
        ("stop", "", 0),
        ("stop", USER, 0),
        ("leave", "", 0),
        ("leave", USER, LEFT),
        ("break", "", BROKEN),
        ("break", SYSTEM, BROKEN),
    ],
)
def test_the_exit_status(departure: Departure, unit: str, status: int) -> None:
    """0 only if nobody need start another: a service's sessions would end, and a failure is one."""
    assert exit_status(departure, unit=unit) == status


@pytest.mark.parametrize("scope", ["user", "system"])
def test_systemd_starts_another_for_sessions_that_were_left(scope: str) -> None:
    """Whoever sent the signal; `systemctl stop` is still a success, and a stop by Otto itself starts nothing."""
    lines = units("user" if scope == "user" else "system")[0].text.splitlines()
    assert {f"SuccessExitStatus={LEFT}", f"RestartForceExitStatus={LEFT}", "Restart=on-failure"} <= set(lines)


def test_a_service_does_not_leave_its_sessions() -> None:
    """systemd would end them, so it is refused, with what does what was meant; without systemd nobody minds."""
    refuse_to_leave("", can_be_restarted=False)
    for unit, command in ((USER, "systemctl --user restart ottod"), (SYSTEM, "systemctl restart ottod@1000")):
        with pytest.raises(RefusedError) as refused:
            refuse_to_leave(unit, can_be_restarted=True)
        assert refused.value.mend is not None and f"`{command}`" in refused.value.mend
    with pytest.raises(RefusedError) as refused:
        refuse_to_leave(USER, can_be_restarted=False)
    assert refused.value.mend is not None and "restart" not in refused.value.mend
