"""The evidence: the method against its baseline (contract: docs/pages/guides/demo-contract.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def demo(
    preset: str = "laptop",
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[float, str], None] | None = None,
) -> dict[str, Any]:
    """Hold the method against its baseline.

    Args:
        preset: `"smoke"`, `"laptop"` or `"paper"`.
        seed: Seed of every random number used.
        device: A torch device.
        progress: Called as `progress(fraction, message)`.

    Returns:
        The demo contract's dictionary.

    Raises:
        ValueError: If `preset` is not one of the three.
    """
    if preset not in ("smoke", "laptop", "paper"):
        raise ValueError(f"preset must be 'smoke', 'laptop' or 'paper', got {preset!r}")
    if progress is not None:
        progress(1.0, "nothing to prove yet")
    rows = [
        {"name": "baseline", "role": "baseline", "score": 0.0},
        {"name": "invdyn", "role": "method", "score": 0.0},
    ]
    found = conditions(rows)
    return {
        "claim": "Nothing is claimed yet.",
        "setting": {"data": "none", "model": "none", "budget": "none"},
        "metrics": {"score": {"unit": "", "better": "higher"}},
        "rows": rows,
        "conditions": found,
        "holds": all(condition["holds"] for condition in found),
        "curves": [],
    }


def conditions(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Judge the rows, clause by clause; committed evidence is judged by it again.

    Args:
        rows: The table of the result.

    Returns:
        What each condition says, its figure, what it needs, and whether it holds.
    """
    score = {row["name"]: row["score"] for row in rows}
    ahead = score["invdyn"] - score["baseline"]
    return [{"says": "invdyn is ahead of the baseline", "figure": ahead, "needs": "> 0", "holds": ahead > 0}]
