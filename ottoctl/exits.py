"""Exit statuses: one table from a session's cause, and from a failure's code, to the status of a command."""

from __future__ import annotations

from typing import Final

from ottod.protocol.cause import Cause, CauseKind

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3
NO_SUCH_SESSION: Final = 4
REFUSED: Final = 5
CANCELLED: Final = 6
BUDGET: Final = 7
CRASHED: Final = 8
INTERRUPTED: Final = 130
TERMINATED: Final = 143

MEANINGS: dict[int, str] = {
    OK: "completed: the task or the command was carried out",
    FAILED: "failed: the agent gave up, or the command met an error without a status of its own",
    USAGE: "usage: the command line, a configuration file or an agent definition is wrong",
    UNREACHABLE: "no daemon answers, or it speaks another protocol",
    NO_SUCH_SESSION: "no session has that id",
    REFUSED: "refused: understood, and not allowed or not possible now",
    CANCELLED: "cancelled: somebody stopped the session, or the daemon did",
    BUDGET: "budget: a limit on time, tokens or money was reached",
    CRASHED: "crashed: the session's process died, hung or outgrew its memory, or the session is parked",
    INTERRUPTED: "interrupted: Ctrl-C",
    TERMINATED: "terminated: SIGTERM, as a CI system sends it to cancel a job",
}

OF_CAUSE: dict[CauseKind, int] = {
    "completed": OK,
    "failed": FAILED,
    "crashed": CRASHED,
    "memory": CRASHED,
    "hung": CRASHED,
    "start_failed": CRASHED,
    "cancelled": CANCELLED,
    "budget": BUDGET,
    "auth": FAILED,
    "bad_spec": USAGE,
    "workdir_gone": FAILED,
    "daemon_stop": CANCELLED,
    "time_slice": CANCELLED,
}

OF_CODE: dict[str, int] = {
    "usage": USAGE,
    "bad_config": USAGE,
    "bad_spec": USAGE,
    "bad_cwd": USAGE,
    "unknown_agent": USAGE,
    "unknown_workflow": USAGE,
    "no_route": USAGE,
    "unknown_model": USAGE,
    "unknown_tool": USAGE,
    "alias_cycle": USAGE,
    "no_script": USAGE,
    "ambiguous_session": USAGE,
    "too_large": USAGE,
    "unreachable": UNREACHABLE,
    "protocol_mismatch": UNREACHABLE,
    "no_such_session": NO_SUCH_SESSION,
    "bad_session_id": NO_SUCH_SESSION,
    "refused": REFUSED,
    "session_ended": REFUSED,
    "session_live": REFUSED,
    "session_parked": REFUSED,
    "not_parked": REFUSED,
    "no_handoff": REFUSED,
    "no_turn": REFUSED,
    "turn_open": REFUSED,
    "has_children": REFUSED,
    "no_such_turn": USAGE,
    "no_such_checkpoint": USAGE,
    "nothing_to_resume": REFUSED,
    "no_plan": REFUSED,
    "no_repository": REFUSED,
    "too_many_children": REFUSED,
    "too_many_of_role": REFUSED,
    "name_taken": REFUSED,
    "bad_name": USAGE,
    "env_refused": REFUSED,
    "too_deep": REFUSED,
    "bad_arguments": USAGE,
    "denied": REFUSED,
    "deadlock": REFUSED,
    "would_not_end": REFUSED,
    "rate_limited": REFUSED,
    "bad_upgrade": REFUSED,
    "already_resolved": REFUSED,
    "no_such_approval": REFUSED,
    "ambiguous_approval": USAGE,
    "no_such_artifact": REFUSED,
    "ambiguous_artifact": USAGE,
    "bad_scope": REFUSED,
    "no_such_definition": REFUSED,
    "ambiguous_definition": USAGE,
    "no_such_grant": REFUSED,
    "ambiguous_grant": USAGE,
    "too_many_grants": REFUSED,
    "bad_artifact": REFUSED,
    "no_such_node": REFUSED,
    "ambiguous_node": USAGE,
    "bad_node": REFUSED,
    "bad_edge": REFUSED,
    "bad_status": REFUSED,
    "too_many_decisions": REFUSED,
    "breaker_open": REFUSED,
    "budget": REFUSED,
    "price_unknown": REFUSED,
    "withdrawn": REFUSED,
    "not_ready": REFUSED,
    "stopping": REFUSED,
    "already_running": REFUSED,
    "unsupported_kind": REFUSED,
    "isolation_unavailable": REFUSED,
    "bad_token": REFUSED,
    "offset_ahead": REFUSED,
    "too_many_clients": REFUSED,
    "too_many_requests": REFUSED,
    "too_many_sessions": REFUSED,
    "too_many_subscriptions": REFUSED,
    "interrupted": INTERRUPTED,
}
"""By the stable code of a failure. A code that is not here means 1."""

REFUSED_CODES: frozenset[str] = frozenset(code for code, status in OF_CODE.items() if status == REFUSED)


def status_of_cause(cause: Cause | None) -> int:
    """The status of a command that waited for a session. Without a cause the session is parked."""
    return CRASHED if cause is None else OF_CAUSE[cause.kind]


def status_of_code(code: str) -> int:
    """The status of a command that met an error with this code."""
    return OF_CODE.get(code, FAILED)


def worst(statuses: list[int]) -> int:
    """The status of a command about several sessions: that of the first one that is not 0."""
    return next((status for status in statuses if status), OK)


def exit_page() -> str:
    """The reference page."""
    causes: dict[int, list[str]] = {status: [] for status in MEANINGS}
    codes: dict[int, list[str]] = {status: [] for status in MEANINGS}
    for kind, status in OF_CAUSE.items():
        causes[status].append(f"`{kind}`")
    for code, status in OF_CODE.items():
        codes[status].append(f"`{code}`")
    causes[CRASHED].append("parked (a state, not an end)")
    rows = [
        f"| {status} | {meaning} | {', '.join(causes[status])} | {', '.join(codes[status])} |"
        for status, meaning in MEANINGS.items()
    ]
    return "\n".join(
        [
            "# Exit statuses",
            "",
            "`ottoctl run`, `wait` and `attach` exit with the outcome of the session; every command exits with the",
            "status of the error it met. A command about several sessions exits with that of the first that went",
            "wrong. A closed pipe (`| head`) ends a command quietly with 0.",
            "",
            "| status | meaning | session ended with cause | error code |",
            "|---|---|---|---|",
            *rows,
            "",
            "An error code that is not listed means 1. `ottoctl` prints the message and the mend on stderr; with",
            "`-o json` the data on stdout stays valid JSON.",
            "",
            "This page is generated: `python -m ottoctl.exits > docs/reference/exit-statuses.md`.",
            "",
        ]
    )


if __name__ == "__main__":
    print(exit_page(), end="")
