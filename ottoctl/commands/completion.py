"""`ottoctl completion`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from ottoctl.commands.frame import command
from ottoctl.console import Console

VARIABLE = "_OTTOCTL_COMPLETE"


@command
def completion(
    console: Console, shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(help="Which shell")]
) -> int | None:
    """Print the script that teaches a shell to complete commands, session ids and agents

    Example: `ottoctl completion bash > ~/.local/share/bash-completion/completions/ottoctl`
    """
    import os

    from ottoctl.application import build_app

    # The shells' scripts ask `ottoctl` itself through this variable; the first question is for the script.
    os.environ[VARIABLE] = f"source_{shell}"
    build_app(completing=True)(args=[], prog_name="ottoctl")
    return None
