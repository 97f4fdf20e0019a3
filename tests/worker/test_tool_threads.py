"""The threads of file tools."""

from __future__ import annotations

import asyncio
import contextvars

from ottod.worker.tool_threads import ToolThreads

JUDGED: contextvars.ContextVar[str] = contextvars.ContextVar("JUDGED", default="nothing")


def test_a_thread_knows_for_which_call_it_works() -> None:
    """What was judged of a call is in its task's context: in a thread without it, every path would pass."""

    async def call(name: str, threads: ToolThreads) -> str:
        JUDGED.set(name)
        return await threads.run(JUDGED.get)

    async def main() -> list[str]:
        threads = ToolThreads()
        try:
            return await asyncio.gather(call("one", threads), call("two", threads))
        finally:
            threads.close()

    assert asyncio.run(main()) == ["one", "two"]
