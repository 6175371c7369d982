"""The table and the curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from h2orl.demo.arms import Arm
from h2orl.demo.diagnosis import Diagnosis, spearman
from h2orl.demo.training import Outcome, Sizes

METRICS = {
    "real_return": {"unit": "", "better": "higher"},
    "return_low": {"unit": "", "better": "neither"},
    "return_high": {"unit": "", "better": "neither"},
    "spearman": {"unit": "", "better": "higher"},
    "spearman_inside": {"unit": "", "better": "higher"},
    "mean_weight": {"unit": "", "better": "neither"},
    "divergence": {"unit": "nats", "better": "neither"},
    "information_errors": {"unit": "standard errors", "better": "neither"},
}


def chosen(arms: Sequence[Arm], outcome: Outcome) -> dict[tuple[str, str], int]:
    """For each gap and name the agent of the best validation return."""
    best: dict[tuple[str, str], int] = {}
    score = outcome.validation.mean(1).tolist()
    for index, arm in enumerate(arms):
        key = arm.gap, arm.name
        if key not in best or score[index] > score[best[key]]:
            best[key] = index
    return best


def return_rows(
    arms: Sequence[Arm], outcome: Outcome, best: Mapping[tuple[str, str], int], generator: torch.Generator
) -> list[dict[str, Any]]:
    """Mean test returns with 95 % bootstrap intervals over episodes."""
    found = {f"{gap}: {name}": (arms[index].role, outcome.test[index]) for (gap, name), index in best.items()}
    found["all gaps: no torque"] = "baseline", outcome.idle
    found["all gaps: the log's own agent"] = "baseline", outcome.behaviour
    rows = []
    for name, (role, values) in found.items():
        draws = torch.randint(len(values), (1000, len(values)), generator=generator)
        low, high = values[draws].mean(1).quantile(torch.tensor([0.025, 0.975])).tolist()
        rows.append(
            {
                "name": name,
                "role": role,
                "real_return": float(values.mean()),
                "return_low": low,
                "return_high": high,
            }
        )
    return rows


def diagnosis_rows(diagnoses: Mapping[str, Diagnosis]) -> list[dict[str, Any]]:
    """How well each score follows the true gap, and what the classifiers say of the simulator as a whole."""
    rows = []
    for gap, found in diagnoses.items():
        trust = found.trust
        errors = float(trust.information / trust.information_error)
        whole = {
            "mean_weight": float(trust.mean_weight),
            "divergence": float(trust.divergence),
            "information_errors": errors,
        }
        scores = {
            "classifiers": ("method", trust.gap, whole),
            "residual of a learned model": ("baseline", found.residual, {}),
            "distance from the real visits": ("baseline", -trust.familiar, {}),
        }
        for name, (role, score, more) in scores.items():
            ranks: dict[str, float] = {}
            if gap != "no gap":  # where nothing is wrong there is nothing to follow
                inside = found.inside
                ranks = {"spearman": spearman(score, found.truth)}
                if int(inside.sum()) > 10:
                    ranks["spearman_inside"] = spearman(score[inside], found.truth[inside])
            elif role == "baseline":
                continue
            rows.append({"name": f"{gap}: gap by {name}", "role": role, **ranks, **more})
    return rows


def curves(
    arms: Sequence[Arm], outcome: Outcome, best: Mapping[tuple[str, str], int], sizes: Sizes
) -> list[dict[str, Any]]:
    """Validation returns along training, one plot a gap, and how evenly H2O's omega is spread."""
    drawn = []
    for gap in sizes.gaps:
        series = {
            f"{place}: {name}": {"x": outcome.updates, "y": outcome.along[:, index].tolist()}
            for (place, name), index in best.items()
            if place in (gap, "all gaps")
        }
        drawn.append({"title": gap, "x_label": "updates", "y_label": "return in reality", "series": series})
    series = {
        f"{place}: {name}": {"x": outcome.updates, "y": outcome.spread[:, index].tolist()}
        for (place, name), index in best.items()
        if name == "H2O"
    }
    drawn.append(
        {
            "title": "spread of omega",
            "x_label": "updates",
            "y_label": "share of the greatest entropy",
            "series": series,
        }
    )
    return drawn
