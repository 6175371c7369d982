"""The evidence: the method against its baseline (contract: docs/pages/guides/demo-contract.md)."""

from __future__ import annotations

from collections.abc import Callable
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
    return {
        "claim": "Nothing is claimed yet.",
        "setting": {"data": "none", "model": "none", "budget": "none"},
        "metrics": {"score": {"unit": "", "better": "higher"}},
        "rows": [
            {"name": "baseline", "role": "baseline", "score": 0.0},
            {"name": "ildataquality", "role": "method", "score": 0.0},
        ],
        "criterion": "ildataquality beats the baseline",
        "holds": False,
        "curves": [],
    }
