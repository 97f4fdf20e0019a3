"""The worker's line to root at its end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ottod.errors import Failure
from ottod.protocol.worker import KIND_MESSAGE, Command, CommandBody, StopTurn, root_to_worker
from ottod.worker.link import Link


@pytest.mark.parametrize("failure", [None, Failure(code="no_turn", message="there is none")])
def test_an_order_that_outlasts_the_line_is_not_answered(tmp_path: Path, failure: Failure | None) -> None:
    """A worker that has said its last word and closed does not stumble over an order that it was still obeying."""
    wrong: list[dict[str, object]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: wrong.append(context))
        link = Link(loop, f"ipc://{tmp_path}/worker.sock")
        is_over = asyncio.Event()

        async def obey(_order: CommandBody) -> Failure | None:
            await is_over.wait()
            return failure

        link.on_command = obey
        link._handle([KIND_MESSAGE + root_to_worker.encode(Command(id=1, body=StopTurn(reason="enough")))])
        (obeying,) = asyncio.all_tasks() - {asyncio.current_task()}
        link.close()
        is_over.set()
        await obeying

    asyncio.run(main())
    assert not wrong
