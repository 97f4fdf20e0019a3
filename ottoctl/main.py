"""Where the command line begins: ready for Ctrl-C and for any streams before anything else is imported."""

from __future__ import annotations

import signal

from ottoctl.streams import prepare_streams


def main() -> None:
    """The console script. Never returns."""
    # While modules are still being imported Ctrl-C just ends the process; a command's body has its own answer.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    prepare_streams()
    from ottoctl.application import run

    run()


if __name__ == "__main__":
    main()
