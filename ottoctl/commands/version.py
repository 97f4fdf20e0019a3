"""`ottoctl version`."""

from __future__ import annotations

from ottoctl.commands.frame import command
from ottoctl.console import Console, encode_json


@command
def version(console: Console) -> int | None:
    """Show the versions of the client and, if one runs, of the daemon

    Example: `ottoctl version -o json`
    """
    import platform

    import ottod
    from ottod.errors import OttoError
    from ottod.protocol import PROTOCOL_VERSION

    found: dict[str, object] = {
        "client": ottod.__version__,
        "protocol": PROTOCOL_VERSION,
        "python": platform.python_version(),
        "daemon": None,
    }
    note = "not running"
    try:
        with console.connect() as otto:
            found["daemon"] = otto.daemon.version
            found["daemon_protocol"] = otto.daemon.protocol
    except OttoError as error:
        if error.code != "unreachable":
            note = error.message
    if console.output == "text":
        console.write(f"ottoctl {ottod.__version__} (protocol {PROTOCOL_VERSION}, Python {found['python']})\n")
        console.write(f"ottod   {found['daemon'] or note}\n")
    else:
        console.write(encode_json(found, indent=0 if console.output == "jsonl" else 2) + "\n")
    return None
