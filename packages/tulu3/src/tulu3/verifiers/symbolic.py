"""Are two answers the same mathematics? Exactly where numbers suffice, else by sympy in a process with a time limit."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import selectors
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

from tulu3.verifiers.latex import Tree, approximate, rational

_SECONDS_TO_START = 300.0


class Comparer:
    """Compare parsed answers; symbolic ones by sympy (extra `math`), if `symbolic`.

    Args:
        symbolic: Whether to ask sympy where exact arithmetic and strings do not decide.
        timeout: Seconds that sympy has for one answer; what takes longer is not equal.

    Raises:
        ImportError: If `symbolic` and sympy is not installed.
    """

    def __init__(self, *, symbolic: bool, timeout: float) -> None:
        if symbolic and importlib.util.find_spec("sympy") is None:
            raise ImportError("symbolic=True needs sympy: pip install 'tulu3[math]' (or give symbolic=False)")
        self.symbolic, self.timeout = symbolic, timeout
        self._lock = threading.Lock()
        self._worker: _Worker | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"symbolic": self.symbolic, "timeout": self.timeout}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def equal(self, left: Tree, right: Tree) -> bool:
        """Whether two trees mean the same."""
        kinds = left[0], right[0]
        if "eq" in kinds:
            return self._equal_equations(left, right)
        if "seq" in kinds:
            return kinds == ("seq", "seq") and self._equal_sequences(left, right)
        if "matrix" in kinds:
            return kinds == ("matrix", "matrix") and self._all_equal(left[1:], right[1:])
        if "pm" in kinds:
            return kinds == ("pm", "pm") and self._equal_spreads(left, right)
        if _has(left, ("word", "infinity")) or _has(right, ("word", "infinity")):
            return left == right
        return self._equal_values(left, right)

    def _equal_values(self, left: Tree, right: Tree) -> bool:
        exact = rational(left), rational(right)
        if None not in exact:
            return exact[0] == exact[1]
        if left == right:
            return True
        near = approximate(left), approximate(right)
        if near[0] is None or near[1] is None:
            return False  # too large, or singular: sympy would only hang on it
        # Most answers are wrong, and at fixed values of the symbols a wrong one shows without sympy.
        if abs(near[0] - near[1]) > 1e-6 * max(1.0, abs(near[0]), abs(near[1])):
            return False
        return self.symbolic and self._ask(left, right)

    def _equal_equations(self, left: Tree, right: Tree) -> bool:
        if left[0] == right[0]:
            sides = [["add", tree[1], ["mul", ["rat", -1, 1], tree[2]]] for tree in (left, right)]
            return (self.equal(left[1], right[1]) and self.equal(left[2], right[2])) or (
                not any(_has(side, ("word", "seq", "pm", "matrix", "infinity")) for side in sides)
                and (
                    self._equal_values(sides[0], sides[1])
                    or self._equal_values(sides[0], ["mul", ["rat", -1, 1], sides[1]])
                )
            )
        equation, value = (left, right) if left[0] == "eq" else (right, left)
        return bool(equation[1][0] == "sym") and self.equal(equation[2], value)  # x = 5 is 5

    def _equal_sequences(self, left: Tree, right: Tree) -> bool:
        if left[1:3] != right[1:3] or len(left) != len(right):
            return False
        if left[1] != "{":
            return self._all_equal(left[3:], right[3:])
        rest = list(right[3:])  # a set has no order
        for item in left[3:]:
            match = next((index for index, other in enumerate(rest) if self.equal(item, other)), None)
            if match is None:
                return False
            del rest[match]
        return True

    def _all_equal(self, left: list[Tree], right: list[Tree]) -> bool:
        return len(left) == len(right) and all(self.equal(a, b) for a, b in zip(left, right, strict=True))

    def _equal_spreads(self, left: Tree, right: Tree) -> bool:
        opposite = ["mul", ["rat", -1, 1], right[2]]
        return self.equal(left[1], right[1]) and (
            self.equal(left[2], right[2]) or self.equal(left[2], opposite)
        )

    def _ask(self, left: Tree, right: Tree) -> bool:
        with self._lock:
            if self._worker is None or not self._worker.usable:
                self._worker = _Worker()
            return self._worker.ask([left, right], self.timeout)


class _Worker:
    """sympy in a process of its own: it can be ended, from any thread."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("sympy_worker.py")
        self._process = subprocess.Popen(
            # -P: the script's folder is no place to import from.
            [sys.executable, "-P", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
        )
        self._owner = os.getpid()
        self._end = weakref.finalize(self, _end, self._process, self._owner)
        if self._line(_SECONDS_TO_START) != "ready":
            self._end()
            raise RuntimeError(
                f"sympy could not be started in a process of its own: {sys.executable} {script}"
            )

    @property
    def usable(self) -> bool:
        """Whether it still runs, and was not inherited by a forked process, which would share its pipes."""
        return self._owner == os.getpid() and self._process.poll() is None

    def ask(self, trees: list[Tree], timeout: float) -> bool:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(trees) + "\n")
            answer = self._line(timeout)
        except BrokenPipeError:
            answer = ""
        if answer not in ("true", "false"):
            self._end()
        return answer == "true"

    def _line(self, timeout: float) -> str:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            return self._process.stdout.readline().strip() if selector.select(timeout) else ""


def _end(process: subprocess.Popen[str], owner: int) -> None:
    if owner == os.getpid():
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # what was not yet written has no reader
                pipe.close()


def _has(tree: Any, names: tuple[str, ...]) -> bool:
    if not isinstance(tree, list):
        return tree in names
    return any(_has(item, names) for item in tree)
