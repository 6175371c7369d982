"""The evidence: metrics of demonstrations against what cloning makes of them, and curation by these metrics."""

from __future__ import annotations

import os
from typing import Any

import torch

from ildataquality.demo.grid import grid_scores, run_grid
from ildataquality.demo.judgement import SCORE, conditions
from ildataquality.demo.mixes import run_mixes
from ildataquality.demo.plots import curves, images
from ildataquality.demo.robomimic import robomimic
from ildataquality.demo.size import SIZES, Progress, setting, stage
from ildataquality.demo.table import METRICS, curation_rows, grid_rows

__all__ = ["conditions", "demo"]


def demo(
    preset: str = "laptop",
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Hold the metrics against success of behaviour cloning, and curation by them against all data and random halves.

    `smoke` and `laptop` clone a scripted expert in PMObstacle and in gymnasium's Pendulum-v1 (extra `demo`). `paper`
    measures the operators of a robomimic multi-human file named by the environment variable ILDATAQUALITY_ROBOMIMIC
    (extra `hdf5`); it trains nothing.

    Args:
        preset: `"smoke"`, `"laptop"` or `"paper"`.
        seed: Seed of every random number used.
        device: A torch device.
        progress: Called as `progress(fraction, message)`.

    Returns:
        The demo contract's dictionary.

    Raises:
        ValueError: If `preset` is not one of the three, or `paper` misses its file.
        ImportError: If an extra is missing.
    """
    if preset not in ("smoke", "laptop", "paper"):
        raise ValueError(f"preset must be 'smoke', 'laptop' or 'paper', got {preset!r}")
    report = progress or (lambda fraction, message: None)
    if preset == "paper":
        path = os.environ.get("ILDATAQUALITY_ROBOMIMIC")
        if path is None:
            raise ValueError(
                "preset 'paper' needs ILDATAQUALITY_ROBOMIMIC to name a multi-human file, got nothing"
            )
        return robomimic(path, seed, report, conditions)
    size, generator = SIZES[preset], torch.Generator().manual_seed(seed)
    cells = run_grid(size.grid, generator, device, stage(report, 0.0, 0.6, "grid"))
    scores = grid_scores(cells, size.grid)
    curated = run_mixes(size, generator, device, stage(report, 0.6, 0.4, "curation"))
    rows = grid_rows(scores, cells["success"])
    for task, found in curated.items():
        rows += curation_rows(task, found)
    judged = conditions(rows)
    report(1.0, "done")
    return {
        "claim": "What is measured on demonstrations before any training, coverage less action variance, foretells the "
        "success of cloning them, which state diversity alone does not; and cloning the half that these metrics keep "
        "of a mixed data set beats cloning all of it.",
        "setting": setting(size),
        "metrics": METRICS,
        "rows": rows,
        "conditions": judged,
        "holds": all(condition["holds"] for condition in judged),
        "curves": curves(cells["success"], size.grid),
        "images": images(cells | {"score": scores[SCORE]}, size.grid),
    }
