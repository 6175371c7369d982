"""The grid as curves and maps."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ildataquality.demo.grid import Grid
from ildataquality.demo.judgement import SCORE


def curves(success: Tensor, grid: Grid) -> list[dict[str, Any]]:
    """Success along the edges of the grid, where only one of the two noises is on."""
    edges = (
        ("system noise", grid.system_noise, success[:, :, 0]),
        ("policy noise", grid.policy_noise, success[:, 0, :]),
    )
    return [
        {
            "title": f"Success of cloning by {name} at collection",
            "x_label": f"{name} (the other is 0)",
            "y_label": "success (%)",
            "series": {
                f"{size} episodes": {"x": list(levels), "y": (100 * line).tolist()}
                for size, line in zip(grid.sizes, lines, strict=True)
            },
        }
        for name, levels, lines in edges
    ]


def images(cells: dict[str, Tensor], grid: Grid) -> list[dict[str, Any]]:
    """One map a quantity: the sizes side by side."""
    caption = (
        f"Rows: system noise {grid.system_noise}. Columns: policy noise {grid.policy_noise}, once for each of "
        f"{grid.sizes} episodes."
    )
    titles = {"score": f"Score: {SCORE}", "state diversity": "State diversity (minus similarity)"}
    return [
        {
            "title": titles.get(name, name.capitalize()),
            "values": values.permute(1, 0, 2).flatten(1).tolist(),
            "caption": caption,
        }
        for name, values in cells.items()
    ]
