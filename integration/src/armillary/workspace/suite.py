"""Run pytest and tell what a suite costs: `python suite.py REPORT PYTEST_ARGUMENT...`.

It is run by its path inside environments that hold nothing of this repository but one package, so it needs
nothing but pytest. REPORT becomes `{"suite": ..., "imports": ..., "status": ...}`, in CPU seconds: what the
interpreter spent in import statements, torch's late ones included, and all the rest with every process that a
test started.
"""

from __future__ import annotations

import builtins
import importlib
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BUDGET = 15.0  # CPU seconds of a suite beyond its imports


class ImportClock:
    """CPU seconds inside import statements; while it runs, `__import__` and `import_module` are its own."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._inside = False

    def start(self) -> None:
        """Count from now on."""
        builtins.__import__ = self._timed(builtins.__import__)
        importlib.import_module = self._timed(importlib.import_module)

    def _timed(self, load: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            if self._inside:
                return load(*args, **options)
            self._inside, start = True, time.process_time()
            try:
                return load(*args, **options)
            finally:
                self._inside = False
                self.seconds += time.process_time() - start

        return timed


def cpu_seconds() -> float:
    """CPU seconds of this process and of those it has started and waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def main(report: str, *arguments: str) -> int:
    """Run the suite, write the report, print one line of it and return pytest's status."""
    clock = ImportClock()
    clock.start()
    status = int(pytest.main(list(arguments)))
    suite = cpu_seconds() - clock.seconds
    found = {"suite": round(suite, 1), "imports": round(clock.seconds, 1), "status": status}
    Path(report).write_text(json.dumps(found) + "\n")
    over = f": OVER the {BUDGET:.0f} s that a suite may cost" if suite > BUDGET else ""
    print(f"CPU: suite {suite:.1f} s, imports {clock.seconds:.1f} s{over}", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
