"""A process of its own that tells whether two trees of `tulu3.verifiers.latex` are equal; run as a script.

It reads one JSON pair of trees a line and answers `true` or `false`. It imports nothing of this package, so that it
starts without torch; whoever started it ends it when an answer takes too long.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

_MEMORY = 4 << 30  # bytes of address space


def main() -> None:
    """Answer until the input ends."""
    import resource

    sympy: Any = importlib.import_module("sympy")

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = _MEMORY if hard == resource.RLIM_INFINITY else min(_MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    sys.setrecursionlimit(3000)
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            left, right = (build(tree, sympy) for tree in json.loads(line))
            equal = bool(sympy.simplify(left - right) == 0)
        except Exception:  # whatever sympy trips over is not shown to be equal
            equal = False
        print(json.dumps(equal), flush=True)


def build(tree: list[Any], sympy: Any) -> Any:
    """Make a sympy expression of a tree."""
    kind, *rest = tree
    if kind == "rat":
        return sympy.Rational(rest[0], rest[1])
    if kind == "sym":
        return sympy.Symbol(rest[0])
    if kind == "const":
        return {"pi": sympy.pi, "e": sympy.E, "i": sympy.I}[rest[0]]
    if kind == "fn":
        return _function(rest[0], [build(item, sympy) for item in rest[1:]], sympy)
    items = [build(item, sympy) for item in rest]
    return {"add": sympy.Add, "mul": sympy.Mul, "pow": sympy.Pow}[kind](*items)


def _function(name: str, arguments: list[Any], sympy: Any) -> Any:
    if name == "log":
        return sympy.log(arguments[0], 10)
    if name == "logbase":
        return sympy.log(*arguments)
    renamed = {"arcsin": "asin", "arccos": "acos", "arctan": "atan", "ln": "log", "abs": "Abs"}
    return getattr(sympy, renamed.get(name, name))(*arguments)


if __name__ == "__main__":
    main()
