"""The rows of the table and its columns."""

from __future__ import annotations

from torch import Tensor

from ildataquality.demo.curation import ARMS, Curated
from ildataquality.demo.grid import spearman
from ildataquality.demo.judgement import DIVERSITY, SCORE, SHORT, Row

METRICS = {
    "spearman": {"unit": "", "better": "higher"},
    "precision": {"unit": "% of dropped are noisy", "better": "higher"},
    "success": {"unit": "%", "better": "higher"},
    "return": {"unit": "", "better": "higher"},
}


def grid_rows(scores: dict[str, Tensor], success: Tensor) -> list[Row]:
    """Rank correlation of every score with success over the cells."""
    roles = {SCORE: "method", DIVERSITY: "baseline", SHORT: "baseline"}
    return [
        {"name": f"grid: {name}", "role": roles.get(name, "ablation"), "spearman": spearman(score, success)}
        for name, score in scores.items()
    ]


def curation_rows(task: str, found: Curated) -> list[Row]:
    """What each way to curate drops, and how its clones do."""
    rows = []
    for arm, name in enumerate(ARMS):
        row: Row = {"name": f"{task}: {name}", "role": "baseline" if arm else "method"}
        if task == "still Pendulum":
            row["role"] = "ablation"
        if name != "all":
            row["precision"] = 100 * float(found.precision[:, arm].mean())
        row["success" if task == "PMObstacle" else "return"] = float(found.score[:, arm].mean())
        rows.append(row)
    return rows
