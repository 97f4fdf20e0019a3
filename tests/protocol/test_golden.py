"""Golden bytes: what version 1 of the protocol looks like on the wire can only be added to.

`python -m tests.protocol.test_golden` writes samples that are not yet in the file; it never changes those that are.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from ottod.errors import Failure
from ottod.protocol import PROTOCOL_VERSION, control, events, requests, results, worker, worker_requests
from ottod.protocol.artifacts import ArtifactInfo, SinkDelivery
from ottod.protocol.cause import Cause
from ottod.protocol.definitions import KeptDefinition
from ottod.protocol.specs import AgentSpec, ModelTarget
from ottod.protocol.usage import Usage

GOLDEN = Path(__file__).parent / f"golden_v{PROTOCOL_VERSION}.json"
FAILURE = Failure(code="rate_limited", message="slow down", retryable=True, mend="wait", retry_after_s=1.5)
CAUSE = Cause(kind="crashed", message="gone", signal="SIGKILL")
USAGE = Usage(input_tokens=10, output_tokens=20, cache_read_tokens=3, usd_micros=42, calls=1)
UNIONS = {
    "event": events.Event,
    "client": control.ClientMessage,
    "request": requests.RequestBody,
    "server": control.ServerMessage,
    "result": results.Result,
    "worker": worker.WorkerMessage,
    "root_to_worker": worker.RootToWorker,
    "command": worker.CommandBody,
    "worker_request": worker_requests.WorkerRequestBody,
}


def value_for(annotation: Any, name: str) -> Any:
    """A telling value for a field: required ones get one by type, so that each message is non-trivial."""
    fixed: dict[Any, Any] = {
        str: f"<{name}>", int: 7, float: 1.5, bool: True, bytes: b"\x01\x02", Failure: FAILURE, Cause: CAUSE,
        Usage: USAGE, AgentSpec: AgentSpec(name="coder", tools=("shell",)),
        ModelTarget: ModelTarget(provider="scripted", adapter="scripted", model="/s.yml"),
        requests.RequestBody: requests.Ping(), worker.CommandBody: worker.StopTurn(reason="r"),
        worker_requests.WorkerRequestBody: worker_requests.StopChild(child="s-0123456789"),
        ArtifactInfo: ArtifactInfo(artifact="art-0123456789", name="design.md", digest="00" * 32, size_bytes=5),
        KeptDefinition: KeptDefinition(kind="agent", name="coder", digest="00" * 32, sessions=2),
        SinkDelivery: SinkDelivery(sink="filesystem", place="/project/docs/design.md"),
        events.Gap: events.Gap(first=1, last=9, reason="evicted", session="s-0123456789"),
    }  # fmt: skip
    info = msgspec.inspect.type_info(annotation)
    if annotation in fixed:
        return fixed[annotation]
    if isinstance(info, msgspec.inspect.LiteralType):
        return info.values[0]
    if isinstance(info, msgspec.inspect.StrType):
        return f"<{name}>"
    if isinstance(info, msgspec.inspect.IntType):
        return 7
    if isinstance(info, msgspec.inspect.VarTupleType):
        return ()
    if isinstance(info, msgspec.inspect.DictType):
        return {"running": 1}
    raise AssertionError(f"no sample for field {name}: {annotation}")


def samples() -> dict[str, msgspec.Struct]:
    """One message of every kind of every union, by `union/tag`."""
    out: dict[str, msgspec.Struct] = {}
    for union, types in UNIONS.items():
        for kind in get_args(types):
            fields = {f.name: value_for(f.type, f.name) for f in msgspec.structs.fields(kind) if f.required}
            out[f"{union}/{kind.__struct_config__.tag}"] = kind(**fields)
    return out


SAMPLES = samples()


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_bytes_are_as_recorded(name: str) -> None:
    """Encoding gives the recorded bytes, and the recorded bytes decode to the same message."""
    recorded = json.loads(GOLDEN.read_text())
    assert name in recorded, "add it: python -m tests.protocol.test_golden"
    data = bytes.fromhex(recorded[name])
    assert msgspec.msgpack.encode(SAMPLES[name]) == data
    assert msgspec.msgpack.decode(data, type=UNIONS[name.split("/")[0]]) == SAMPLES[name]


def test_nothing_recorded_is_gone() -> None:
    """A message kind, once recorded, stays in the protocol for as long as the version does."""
    assert set(json.loads(GOLDEN.read_text())) <= set(SAMPLES)


def write() -> None:
    """Adds what is missing; refuses to change what is there."""
    recorded = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    for name, message in SAMPLES.items():
        recorded.setdefault(name, msgspec.msgpack.encode(message).hex())
    GOLDEN.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    write()
