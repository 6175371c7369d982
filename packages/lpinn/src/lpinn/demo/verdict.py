"""The verdict: what must hold of the rows, each clause with its figure."""

from __future__ import annotations

import operator
from typing import Any

FAST = 20.0  # the speed from which ordinary PINNs fail
SHEARED = "shear flow"

_SIGNS = {">=": operator.ge, "<=": operator.le}


def conditions(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the evidence must show, judged from the rows alone.

    On every wave: LPINN's relative L2 error is at most 0.3. From `c = 20` on, the plain PINN's is at least 0.8 and
    LPINN's is at most half of that of the best baseline; in a shear flow, where part of the wave is slow for any
    network, the latter alone. Where waves steepen, LPINN's is at most half of that of the initial wave carried along
    unchanged; a second LPINN there, in the frame of the mean speed, must be so too.

    Args:
        rows: The rows of `demo`, as they are or as JSON gives them.

    Returns:
        One dictionary per clause and wave: `says`, `figure`, `needs` and `holds`.
    """
    found = []
    for wave, methods in _by_wave(rows).items():
        if "PINN" not in methods or "LPINN" not in methods:
            continue
        ours, plain = _error(methods["LPINN"]), _error(methods["PINN"])
        fast = float(wave.rpartition("c=")[2]) >= FAST
        found.append(_clause(f"LPINN's relative L2 error on {wave}", ours, "<=", 0.3))
        if fast and not wave.startswith(SHEARED):
            found.append(_clause(f"plain PINN's relative L2 error on {wave}", plain, ">=", 0.8))
        if fast:
            best = _best(row for row in methods.values() if row["role"] == "baseline")
            found.append(
                _clause(
                    f"LPINN's error over that of the best baseline on {wave}", _ratio(ours, best), "<=", 0.5
                )
            )
        for method in ("LPINN", "LPINN in the mean frame"):
            if method in methods and "u0 carried at c" in methods:
                share = _ratio(_error(methods[method]), _error(methods["u0 carried at c"]))
                says = f"{method}'s error over that of the initial wave carried along on {wave}"
                found.append(_clause(says, share, "<=", 0.5))
    return found


def _by_wave(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    waves: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        method, _, wave = row["name"].partition(" on ")
        waves.setdefault(wave, {})[method] = row
    return waves


def _error(row: dict[str, Any]) -> float | None:
    error: float | None = row.get("relative_l2")
    return error


def _best(rows: Any) -> float | None:
    """The smallest error; unknown as soon as one is, for that one might be the best."""
    errors = [_error(row) for row in rows]
    known = [error for error in errors if error is not None]
    return min(known) if known and len(known) == len(errors) else None


def _ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or not b else a / b


def _clause(says: str, figure: float | None, sign: str, bound: float) -> dict[str, Any]:
    holds = figure is not None and _SIGNS[sign](figure, bound)
    return {"says": says, "figure": figure, "needs": f"{sign} {bound:g}", "holds": holds}
