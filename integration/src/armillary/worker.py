"""One demo in a process of its own: `python -m armillary.worker TARGET PRESET SEED DEVICE`.

The original standard output carries one JSON object a line for the parent: `{"progress": [fraction, message]}`,
then `{"result": ...}` or `{"error": reason, "detail": traceback}`. What the demo itself prints goes to standard
error. When the parent is gone, standard input closes and the process ends.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from importlib.metadata import EntryPoint
from typing import Any, TextIO


def _die_with_the_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


def _protocol() -> TextIO:
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return channel


def main(target: str, preset: str, seed: str, device: str) -> None:
    """Run one demo and report to the parent."""
    channel = _protocol()
    threading.Thread(target=_die_with_the_parent, daemon=True).start()

    def send(message: dict[str, Any]) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    def progress(fraction: float, message: str) -> None:
        send({"progress": [float(fraction), str(message)]})

    try:
        demo = EntryPoint("demo", target, "armillary.demos").load()
        progress(0.0, "running")
        start = time.perf_counter()
        result = demo(preset, seed=int(seed), device=device, progress=progress)
        seconds = time.perf_counter() - start
        send({"result": result, "seconds": seconds})
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        send({"error": reason, "detail": traceback.format_exc()})
    channel.close()
    sys.stderr.flush()
    os._exit(0)  # neither a stray thread nor a slow interpreter shutdown holds up the run


if __name__ == "__main__":
    main(*sys.argv[1:])
