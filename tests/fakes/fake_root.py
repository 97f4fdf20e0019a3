"""A root for one worker: a real socket, a real process, and a test that decides what root says and when it kills."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
import zmq
from msgspec.structs import replace

from ottod.errors import Failure
from ottod.ids import session_id
from ottod.isolation.processes import ProcessId, identify, is_alive, kill_survivors
from ottod.protocol import PROTOCOL_VERSION
from ottod.protocol.birth import Birth, ChildNotice, births
from ottod.protocol.cause import CauseKind
from ottod.protocol.events import Event, Unknown
from ottod.protocol.journal import JournalEntry
from ottod.protocol.records import HEADER_BYTES, decode_payload, parse_unsealed
from ottod.protocol.specs import AgentSpec, ModelTarget
from ottod.protocol.worker import (
    KIND_BATCH,
    KIND_MESSAGE,
    Ack,
    Command,
    CommandBody,
    CommandReply,
    ExitAck,
    Exiting,
    RootToWorker,
    WorkerHello,
    WorkerWelcome,
    root_to_worker,
    worker_messages,
)
from ottod.protocol.worker_requests import (
    AskPermit,
    Permit,
    RecallResearch,
    RequestReply,
    SettlePermit,
    WorkerRequest,
    WorkerRequestBody,
)
from ottod.protocol.workflows import ResolvedWorkflow
from ottod.storage.journal import read_journal

DEADLINE_S = 60.0
E = TypeVar("E")


class FakeRoot:
    """Bears one session's incarnations, one after another. Nothing happens but in `until`, on the test's thread."""

    def __init__(self, base: Path, *, answer: Callable[[WorkerRequestBody], str | Failure] | None = None) -> None:
        self.session = session_id(random.SystemRandom().getrandbits(50))
        self.workdir = base / "work"
        self.session_dir = base / "session"
        for directory in (self.workdir, self.session_dir):
            directory.mkdir(exist_ok=True)
        self.endpoint = f"ipc://{base}/worker.sock"
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(self.endpoint)
        self._answer = answer
        self._identity = b""
        self._next_command = 1
        self._replies: dict[int, Failure | None] = {}
        self.prelude = ""
        """What a worker's process does first: Python."""
        self.context_tokens: int | None = None
        """What the model's context holds."""
        self.next_seq = 2
        self.incarnation = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.worker: ProcessId | None = None
        self._channel: socket.socket | None = None
        self.events: list[Event | Unknown] = []
        """Of all incarnations, in the order of their seqs."""
        self.requests: list[WorkerRequestBody] = []
        """For children. Permits are granted, unless `on_ask` gives another answer."""
        self.asked: list[AskPermit] = []
        self.settled: list[SettlePermit] = []
        self.on_ask: Callable[[AskPermit], RequestReply | None] = lambda ask: None
        self.last_word: Exiting | None = None

    # ------------------------------------------------------------ the worker

    def script(self, *turns: Mapping[str, object], **top: object) -> None:
        """What the model says."""
        (self.workdir / "model.yml").write_text(yaml.safe_dump({"turns": list(turns), **top}))

    def bear(
        self,
        *tools: str,
        task: str = "the task",
        mode: str = "oneshot",
        after: CauseKind | None = None,
        children: tuple[ChildNotice, ...] = (),
        orphan_grace_s: float = 1.0,
        run_mode: str = "interactive",
        env: Mapping[str, str] | None = None,
        journal_file_bytes: int = 16 * 1024 * 1024,
        project_notes: bool = False,
        has_begun: bool = False,
        workflow: ResolvedWorkflow | None = None,
        **spec: Any,
    ) -> None:
        """Starts the next incarnation. `after` is what the one before ended of."""
        self.incarnation += 1
        self.last_word, self._identity = None, b""
        ours, theirs = socket.socketpair()
        code = f"{self.prelude}\nfrom ottod.worker.main import run; run({theirs.fileno()}, {self.endpoint!r})"
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code], pass_fds=(theirs.fileno(),), process_group=0
        )
        theirs.close()
        self.worker = identify(self.process.pid)
        self._channel = ours
        birth = Birth(
            session=self.session,
            incarnation=self.incarnation,
            secret=bytes(32),
            next_seq=self.next_seq,
            endpoint=self.endpoint,
            spec=AgentSpec(name="tester", tools=tools, **spec),
            models=(
                ModelTarget(
                    provider="scripted",
                    adapter="scripted",
                    model=str(self.workdir / "model.yml"),
                    price_input_usd=1.0,
                    price_output_usd=1.0,
                    context_tokens=self.context_tokens,
                ),
            ),
            task=task,
            mode=mode,  # type: ignore[arg-type]
            run_mode=run_mode,  # type: ignore[arg-type]
            cwd=str(self.workdir),
            env={"PATH": os.environ["PATH"], **(env or {})},
            journal_file_bytes=journal_file_bytes,
            project_notes=project_notes,
            has_begun=has_begun,
            workflow=workflow,
            session_dir=str(self.session_dir),
            priority="normal",
            orphan_grace_s=orphan_grace_s,
            resumes_after=after if after is not None or self.incarnation == 1 else "crashed",
            children=children,
        )
        data = births.encode(birth)
        ours.sendall(len(data).to_bytes(4, "big") + data)

    def kill(self) -> None:
        """SIGKILL of the worker; returns when nothing of the session is left."""
        assert self.process is not None
        self.process.kill()
        self._bury()

    def finish(self) -> Exiting:
        """Waits for the last word and for the worker's end."""
        self.until("the last word", lambda: self.last_word)
        assert self.last_word is not None and self.process is not None
        self.process.wait(DEADLINE_S)
        self._bury()
        return self.last_word

    def _bury(self) -> None:
        assert self.process is not None and self._channel is not None
        self.process.wait(DEADLINE_S)
        self._channel.close()
        while self._pump(0.05):
            pass
        assert kill_survivors(self.session, deadline_s=10.0) == []

    def close(self) -> None:
        """Ends whatever is left and proves it."""
        if self.process is not None and self.process.poll() is None:
            self.kill()
        if self._channel is not None:
            self._channel.close()
        self._context.destroy(linger=0)
        assert self.worker is None or not is_alive(self.worker)

    # ------------------------------------------------------------ talking

    def until(self, what: str, probe: Callable[[], E], deadline_s: float = DEADLINE_S) -> E:
        """Hears the worker until `probe` gives something true; fails with `what` when the deadline has passed."""
        deadline = time.monotonic() + deadline_s
        while not (found := probe()):
            assert time.monotonic() < deadline, f"{what}: not within {deadline_s} s; {self.events}"
            assert self.process is not None
            # What it said last may still be on its way when it is gone.
            if not self._pump(0.05) and self.process.poll() is not None and not self._pump(0.5):
                assert probe(), f"{what}: the worker left with {self.process.returncode}; {self.events}"
        return found

    def until_event(self, kind: type[E], deadline_s: float = DEADLINE_S, **fields: object) -> E:
        """Waits for a new event of that kind with these fields."""
        known = len(self.events)

        def find() -> E | None:
            fitting = (e for e in self.events[known:] if isinstance(e, kind))
            return next((e for e in fitting if all(getattr(e, k) == v for k, v in fields.items())), None)

        found = self.until(f"{kind.__name__} {fields}", find, deadline_s)
        assert found is not None
        return found

    def command(self, body: CommandBody) -> Failure | None:
        """Gives an order and waits for the answer."""
        return self.answer_to(self.order(body))

    def order(self, body: CommandBody) -> int:
        """Gives an order, and a number to know its answer by. Waits for the worker: before its hello nobody hears."""
        self.until("its hello", lambda: self._identity)
        number, self._next_command = self._next_command, self._next_command + 1
        self._send(Command(id=number, body=body))
        return number

    def answer_to(self, number: int) -> Failure | None:
        """Waits for the answer to an order."""
        self.until("a reply", lambda: number in self._replies)
        return self._replies[number]

    def of(self, *kinds: type[E]) -> list[E]:
        """The events of these kinds."""
        return [event for event in self.events if isinstance(event, kinds)]

    def journal(self) -> list[JournalEntry]:
        """What the session's journal holds now."""
        return read_journal(self.session_dir / "journal")

    def _send(self, message: RootToWorker) -> None:
        self._socket.send_multipart([self._identity, KIND_MESSAGE + root_to_worker.encode(message)])

    def _pump(self, timeout_s: float) -> bool:
        """Hears one message, if one comes in time."""
        if not self._socket.poll(int(timeout_s * 1000)):
            return False
        identity, frame = self._socket.recv_multipart()
        if frame[:1] == KIND_BATCH:
            self._batch(frame[1:])
            return True
        match worker_messages.decode(frame[1:]):
            case WorkerHello() as hello:
                if hello.incarnation == self.incarnation:
                    self._identity = identity
                    self._send(WorkerWelcome(protocol=PROTOCOL_VERSION, acked_seq=self.next_seq - 1))
            case CommandReply() as reply:
                self._replies[reply.id] = reply.failure
            case WorkerRequest(body=AskPermit() as ask) as request:
                self.asked.append(ask)
                permit = Permit(permit=ask.permit, target=ask.target, max_output_tokens=ask.max_output_tokens)
                reply = self.on_ask(ask) or RequestReply(id=0, permit=permit)
                self._send(replace(reply, id=request.id))
            case WorkerRequest(body=SettlePermit() as settlement) as request:
                self.settled.append(settlement)
                self._send(RequestReply(id=request.id))
            case WorkerRequest(body=RecallResearch()) as request:
                self._send(RequestReply(id=request.id))  # Nothing is known of anybody.
            case WorkerRequest() as request:
                self.requests.append(request.body)
                self._reply(request)
            case Exiting() as exiting:
                assert exiting.last_seq == self.next_seq - 1, "an event was lost or never sent"
                self.last_word = exiting
                self._send(ExitAck())
        return True

    def _reply(self, request: WorkerRequest) -> None:
        if self._answer is None:
            return
        answer = self._answer(request.body)
        if isinstance(answer, Failure):
            self._send(RequestReply(id=request.id, failure=answer))
        else:
            self._send(RequestReply(id=request.id, child=answer))

    def _batch(self, record: bytes) -> None:
        header = parse_unsealed(record)
        assert header.first_seq == self.next_seq, "a hole in the seqs"
        self.next_seq = header.last_seq + 1
        self.events += [event for _, event in decode_payload(record[HEADER_BYTES:])]
        self._send(Ack(seq=header.last_seq))
