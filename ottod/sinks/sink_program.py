"""Runs in a sandbox, in a process of its own: loads a sink's file and lets it deliver one parcel.

    python -I sink_program.py        an order in JSON on standard input: {"mark", "path", "source", "parcel"}

        → MARK {"place": "…"}                           what `deliver(parcel)` returned
        → MARK {"error": "…", "line": N, "final": …}    what it raised; `SystemExit` is final

The answer is the last line that begins with MARK; whatever else is printed goes nowhere.
"""

from __future__ import annotations

import json
import linecache
import os
import sys
import traceback
from typing import Any

MAX_ERROR_CHARS = 1000


def main() -> None:
    """Reads the order, answers it."""
    order = json.loads(sys.stdin.buffer.read())
    try:
        answer = {"place": _deliver(order)}
    except BaseException as error:  # noqa: BLE001 - whatever a sink raises, SystemExit included, is its answer
        answer = _explained(error, order["path"])
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(1, f"\n{order['mark']} {json.dumps(answer)}\n".encode())
    # Threads that it left behind do not keep it from ending.
    os._exit(0)


def _deliver(order: dict[str, Any]) -> str:
    path, source = order["path"], order["source"]
    linecache.cache[path] = (len(source), None, source.splitlines(keepends=True), path)
    names: dict[str, Any] = {"__name__": "otto_sink", "__file__": path}
    exec(compile(source, path, "exec", dont_inherit=True), names)
    deliver = names.get("deliver")
    if not callable(deliver):
        raise SystemExit("it has no function `deliver`")
    place = deliver(order["parcel"])
    return "" if place is None else str(place)


def _explained(error: BaseException, path: str) -> dict[str, Any]:
    """What happened, and at which line of the file."""
    if isinstance(error, SystemExit):
        return {"error": str(error.code)[:MAX_ERROR_CHARS], "final": True}
    if isinstance(error, SyntaxError) and error.filename == path:
        return {"error": f"not Python: {error.msg}", "line": error.lineno or 0, "final": True}
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return {"error": text[:MAX_ERROR_CHARS], "line": (frames[-1].lineno or 0) if frames else 0}


if __name__ == "__main__":
    main()
