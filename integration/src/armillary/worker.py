"""One demo in a process of its own: `python -m armillary.worker TARGET PRESET SEED DEVICE`.

The original standard output carries one JSON object a line for the parent: `{"progress": [fraction, message]}`,
then `{"result": ..., "seconds": ..., "accelerator": ...}` or `{"error": reason, "detail": traceback}`. What the demo
itself prints goes to standard error. When the parent is gone, standard input closes and the process ends.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import resource
import sys
import threading
import time
import traceback
from importlib.metadata import EntryPoint
from typing import Any, TextIO

MEMORY = "ARMILLARY_MEMORY"  # the environment's name for the bytes that a demo may take


def main(target: str, preset: str, seed: str, device: str) -> None:
    """Run one demo and report to the parent."""
    channel = _protocol()
    faulthandler.enable()  # a crash in native code leaves the Python traceback on standard error
    threading.Thread(target=_die_with_the_parent, daemon=True).start()

    def send(message: dict[str, Any]) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    def progress(fraction: float, message: str) -> None:
        send({"progress": [float(fraction), str(message)]})

    try:
        _limit_memory()
        demo = EntryPoint("demo", target, "armillary.demos").load()
        progress(0.0, "running")
        start = time.perf_counter()
        result = demo(preset, seed=int(seed), device=device, progress=progress)
        seconds = time.perf_counter() - start
        send({"result": result, "seconds": seconds, "accelerator": _accelerator(device)})
    except (
        BaseException
    ) as error:  # SystemExit and KeyboardInterrupt too: whatever a demo raises is its failure
        send({"error": describe(error), "detail": traceback.format_exc()})
    channel.close()
    with contextlib.suppress(Exception):  # the demo may have closed or replaced it
        sys.stderr.flush()
    os._exit(0)  # neither a stray thread nor a slow interpreter shutdown holds up the run


def describe(error: BaseException) -> str:
    """An exception in one line: its type and the first line that it says, if it can.

    Args:
        error: What was raised.
    """
    try:
        said = str(error).strip().splitlines()
    except Exception:
        said = ["its message cannot be shown"]
    return f"{type(error).__name__}: {said[0][:500]}" if said else type(error).__name__


def _die_with_the_parent() -> None:
    os.read(0, 1)  # not through `sys.stdin`, whose lock would be held when the interpreter ends
    os._exit(1)


def _limit_memory() -> None:
    """Where the system counts what a process may write to, an allocation beyond the limit is the demo's own error."""
    if allowed := os.environ.get(MEMORY):
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (int(allowed), most))


def _protocol() -> TextIO:
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return channel


def _accelerator(device: str) -> str | None:
    torch = sys.modules.get("torch")
    if torch is None or not device.startswith("cuda"):
        return None
    name: str = torch.cuda.get_device_name(device)
    return name


if __name__ == "__main__":
    main(*sys.argv[1:])
