"""`ottoctl run`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ottoctl.commands.arguments import NewName, complete_agents, complete_sessions
from ottoctl.commands.frame import command
from ottoctl.console import Console
from ottoctl.exits import CRASHED, FAILED, INTERRUPTED, OK, TERMINATED, status_of_cause
from ottoctl.streams import OutputError
from ottod.errors import OttoError, UnreachableError

if TYPE_CHECKING:
    from ottoctl.client import Otto
    from ottoctl.commands.view import View
    from ottoctl.session import Session
    from ottod.protocol.requests import StartSession

GONE_S = 30.0
"""For a daemon that nobody asked for to be gone."""
LAST_EVENTS_S = 2.0
MAX_FORGOTTEN = 10_000


@command
def run(
    console: Console,
    agent: Annotated[
        str,
        typer.Argument(
            metavar="AGENT",
            help="An agent's name; left out, the one that fits the task",
            autocompletion=complete_agents,
        ),
    ],
    task: Annotated[str, typer.Argument(metavar="TASK", help="What to do")] = "",
    cwd: Annotated[Path | None, typer.Option("--cwd", metavar="DIR", help="Where to work (here)")] = None,
    detach: Annotated[bool, typer.Option("-d", "--detach", help="Print the id and leave it running")] = False,
    input: Annotated[
        str, typer.Option("--input", metavar="FILE|-", help="Add a file's text, or stdin's, to the task")
    ] = "",
    model: Annotated[str, typer.Option("-m", "--model", help="Another model than the agent's")] = "",
    mode: Annotated[
        Literal["oneshot", "conversation"], typer.Option("--mode", help="Whether it stays for more after the task")
    ] = "oneshot",
    headless: Annotated[bool, typer.Option("--headless", help="Nobody can answer questions: refuse at once")] = False,
    title: Annotated[str, typer.Option("--title", help="A name for lists")] = "",
    name: NewName = "",
    remove: Annotated[
        bool,
        typer.Option(
            "--rm",
            help="When it has ended, forget it and delete its files, with all below it; this command does that, so if"
            " it is killed they stay",
        ),
    ] = False,
    env: Annotated[
        list[str] | None,
        typer.Option(
            "-e",
            "--env",
            metavar="NAME[=VALUE]",
            help="A variable for the programs of its tools, which its agent must take (`env`); repeatable",
        ),
    ] = None,
    parent: Annotated[
        str,
        typer.Option("--parent", metavar="ID", help="Run below this live session", autocompletion=complete_sessions),
    ] = "",
    route: Annotated[
        bool, typer.Option("--route", help="Give only the task, which may be one word: the agent is found by it")
    ] = False,
) -> int | None:
    """Run an agent on a task and watch it; starts the daemon if none is running

    The agent's words go to stdout, the rest to stderr. The exit status is the outcome. Ctrl-C stops the session;
    pressed again, it leaves at once. SIGTERM does the same. A single argument of several words is a task: it goes to
    the agent that fits it best, as `ottoctl route` explains.

    Example: `ottoctl run coder "make the failing test pass"`
    """
    from ottoctl.environment import environment_with
    from ottoctl.results import start_request

    if route or (not task and len(agent.split()) > 1):
        # No agent's name has a blank.
        agent, task = "", " ".join(part for part in (agent, task) if part)
    whole = "\n\n".join(part for part in (task, _read_input(input)) if part)
    if not whole.strip() and mode == "oneshot":
        raise OttoError("no task given", mend='ottoctl run AGENT "what to do", or --input FILE', code="usage")
    if cwd is not None and not os.path.isdir(cwd):
        raise OttoError(f"no such directory: {cwd}", mend="create it, or name another with --cwd", code="bad_cwd")
    if remove and (detach or mode == "conversation"):
        raise OttoError(
            f"--rm waits for the end, and {'--detach' if detach else '--mode conversation'} does not",
            mend="leave out one of them, and forget the session later: `ottoctl rm`",
            code="usage",
        )
    request = start_request(
        agent,
        whole,
        cwd=cwd,
        model=model,
        mode=mode,
        env=environment_with(env, os.environ) if env else None,
        title=title,
        name=name,
        parent=parent,
        headless=headless,
    )
    return asyncio.run(_run(console, request, detach=detach, remove=remove))


def _read_input(name: str) -> str:
    try:
        if name == "-":
            return sys.stdin.read()
        return Path(name).read_text(encoding="utf-8") if name else ""
    except (OSError, UnicodeDecodeError) as error:
        raise OttoError(
            f"cannot read {name}: {_why(error)}", mend="name a text file, or - for stdin", code="usage"
        ) from error


def _why(error: OSError | UnicodeDecodeError) -> str:
    if isinstance(error, OSError):
        return (error.strerror or str(error)).lower()
    return "it is not UTF-8 text"


async def _run(console: Console, request: StartSession, *, detach: bool, remove: bool) -> int:
    # A parent is live, so its daemon is: a new one could not know it.
    otto = await (console.connect_async() if request.parent else connect_or_start(console))
    try:
        session = await start_session(console, otto, request)
        if not request.agent:
            chosen = await session.info()
            console.message(f"{chosen.agent} gets it: {chosen.routed}")
        if detach:
            if console.output == "text":
                console.write(f"{session.id}\n")
            else:
                from ottoctl.results import info_record

                console.record(info_record(await session.info()))
            return OK
        status = await watch_to_end(console, session, request)
        return await _forget_until(Interrupts(), console, otto, session, status) if remove else status
    finally:
        await otto.close()


async def _forget_until(interrupts: Interrupts, console: Console, otto: Otto, session: Session, status: int) -> int:
    """The exit status once nothing is on record of what ran: its own, unless something stays. Ctrl-C leaves."""
    with interrupts.heeded():
        forgetting = asyncio.create_task(_forget(console, otto, session))
        interrupted = asyncio.create_task(interrupts.next())
        try:
            await asyncio.wait({forgetting, interrupted}, return_when=asyncio.FIRST_COMPLETED)
            if forgetting.done():
                is_gone = forgetting.result()
                return status if is_gone or status != OK else FAILED
            console.message(f"left; {session.id} may still be on record: `ottoctl rm {session.id}`")
            return INTERRUPTED if interrupted.result() == signal.SIGINT else TERMINATED
        finally:
            forgetting.cancel()
            interrupted.cancel()
            await asyncio.gather(forgetting, interrupted, return_exceptions=True)


async def _forget(console: Console, otto: Otto, session: Session) -> bool:
    """Removes what is on record of a session and of those below it, and whether nothing stays; what does is said."""
    is_gone = True
    for info in await otto.list(all=True, tree=session.id, limit=MAX_FORGOTTEN):
        if info.state != "ended":
            console.message(f"{info.session} has not ended, and stays on record: it is {info.state}")
            is_gone = False
            continue
        try:
            await (await otto.session(info.session)).remove()
        except OttoError as error:
            console.error(error)
            is_gone = False
    return is_gone


async def start_session(console: Console, otto: Otto, request: StartSession) -> Session:
    """Starts the session. A daemon that was started only for it is gone again when it is refused."""
    try:
        session = await otto.start_with(request)
    except OttoError:
        if otto.started_daemon and not await otto.list():
            from ottoctl.daemon import descriptor_of, wait_gone
            from ottoctl.endpoint import resolve_endpoint

            pidfd = descriptor_of(otto.daemon.pid)
            await otto.stop_daemon(0.0)
            await asyncio.to_thread(wait_gone, pidfd, resolve_endpoint(console.endpoint), timeout_s=GONE_S)
        raise
    if otto.started_daemon:
        console.message(f"started ottod (pid {otto.daemon.pid})")
    return session


async def connect_or_start(console: Console) -> Otto:
    """The daemon that runs, or a new one (`started_daemon`)."""
    otto = console.connect_async()
    try:
        return await otto
    except UnreachableError:
        from ottoctl.daemon import can_start, start_daemon
        from ottoctl.endpoint import resolve_endpoint

        if not can_start(resolve_endpoint(console.endpoint)):
            raise
    is_mine = await asyncio.to_thread(start_daemon)
    await otto
    otto.started_daemon = is_mine
    return otto


async def watch_to_end(console: Console, session: Session, request: StartSession) -> int:
    """Shows the session to its end, and sees to Ctrl-C and SIGTERM."""
    from ottoctl.commands.view import View

    conversation = request.mode == "conversation"
    view = View(console, live=True, show_input=False, show_turns=conversation)
    interrupts = Interrupts()
    with interrupts.heeded():
        return await _watch_to_end(console, session, view, interrupts, conversation=conversation)


async def _watch_to_end(
    console: Console, session: Session, view: View, interrupts: Interrupts, *, conversation: bool
) -> int:
    from ottoctl.commands.view import watch

    watching = asyncio.create_task(watch(view, session.events(session.from_offset), until_idle=conversation))
    interrupting = asyncio.create_task(_interrupted(view, session, interrupts, watching))
    try:
        await asyncio.wait({watching, interrupting}, return_when=asyncio.FIRST_COMPLETED)
        # The end that a Ctrl-C brought about is not an outcome of the task.
        if interrupts.count:
            return await interrupting
        return await _outcome(console, session, watching.result())
    except OutputError:
        console.message(f"{session.id} goes on unseen: `ottoctl attach {session.id}`, or `ottoctl stop`")
        raise
    finally:
        for task in (watching, interrupting):
            task.cancel()
        await asyncio.gather(watching, interrupting, return_exceptions=True)


class Interrupts:
    """Counts Ctrl-C and SIGTERM, and lets a task wait for each."""

    def __init__(self) -> None:
        self.count = 0
        self._waiting: asyncio.Queue[signal.Signals] = asyncio.Queue()

    def add(self, number: signal.Signals) -> None:
        self.count += 1
        self._waiting.put_nowait(number)

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """They are counted; afterwards they do again what they did before."""
        loop, numbers = asyncio.get_running_loop(), (signal.SIGINT, signal.SIGTERM)
        before = [(number, signal.getsignal(number)) for number in numbers]
        for number in numbers:
            loop.add_signal_handler(number, self.add, number)
        try:
            yield
        finally:
            for number, handler in before:
                loop.remove_signal_handler(number)
                if handler is not None:
                    signal.signal(number, handler)

    async def next(self) -> signal.Signals:
        return await self._waiting.get()


async def _interrupted(view: View, session: Session, interrupts: Interrupts, watching: asyncio.Task[str]) -> int:
    """The first one stops the session and waits for the proof; the second leaves."""
    from ottoctl.rendering.stops import stop_line

    first = await interrupts.next()
    word, status = ("Ctrl-C", INTERRUPTED) if first == signal.SIGINT else ("SIGTERM", TERMINATED)
    view.say(f"stopping {session.id} ({word} again to leave at once)")
    stopping = asyncio.create_task(session.stop(reason=word))
    again = asyncio.create_task(interrupts.next())
    await asyncio.wait({stopping, again}, return_when=asyncio.FIRST_COMPLETED)
    if not stopping.done():
        stopping.cancel()
        view.say(f"left; {session.id} may still be running: `ottoctl ps`")
        return status
    again.cancel()
    # The last events are on their way, the summary among them.
    await asyncio.wait({watching}, timeout=LAST_EVENTS_S)
    result = stopping.result()
    view.say(stop_line(result))
    return status


async def _outcome(console: Console, session: Session, how: str) -> int:
    if how == "idle":
        console.message(f"{session.id} waits for input: `ottoctl attach {session.id}`, or `ottoctl send`")
        return OK
    if how == "cut":
        raise UnreachableError(
            f"the daemon stopped while {session.id} was watched", mend=f"`ottoctl inspect {session.id}` later"
        )
    info = await session.info()
    if console.output == "json":
        from ottoctl.results import info_record

        console.record(info_record(info))
    return CRASHED if how == "parked" else status_of_cause(info.cause)
