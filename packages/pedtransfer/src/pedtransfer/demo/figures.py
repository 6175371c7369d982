"""The plots: tau against the radius of the classes, accuracy in the order of the scores, energy, class clouds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pedtransfer.demo.cases import Case
from pedtransfer.demo.measures import FAST, Measured, measure, moved, taus, truth, with_settings
from pedtransfer.energy import PEDResult, ped

_RADII = (0.0, 0.15, 0.3, 0.45, 0.6, 0.9, 1.2, 2.0)
_PIXELS = 40


def curves(cases: Sequence[Case], plain: Measured, after: Measured) -> list[dict[str, Any]]:
    """Draw the lines.

    Args:
        cases: The targets.
        plain: Scores without PED.
        after: Scores with it.

    Returns:
        Curves of the demo contract.
    """
    return [
        _curve(
            "Ranking quality against the radius of the classes",
            "nsigma (0: without PED)",
            "weighted Kendall tau, mean over targets",
            _by_radius(cases),
        ),
        *(_in_order(case, index, plain, after) for index, case in enumerate(cases)),
        _curve(
            f"Potential energy during the descent, {cases[-1].name}",
            "step",
            "energy (share of the first)",
            {name: _energy(result) for name, result in _descents(cases[-1]).items()},
        ),
    ]


def images(case: Case) -> list[dict[str, Any]]:
    """Draw the classes of one model's features before and after the descent, in its two principal components.

    Args:
        case: The target.

    Returns:
        Images of the demo contract.
    """
    name = next(iter(case.features))
    before = case.features[name].double()
    after = ped(before, case.labels, case.references[name]).features
    centre = before.mean(0)
    axes = torch.linalg.svd(before - centre, full_matrices=False).Vh[:2].T
    flat = [(x - centre) @ axes for x in (before, after)]
    low, high = torch.cat(flat).amin(0), torch.cat(flat).amax(0)
    return [
        {
            "title": f"Classes {when} the descent: {name}, {case.name}",
            "values": _cloud((points - low) / (high - low), case.labels),
            "caption": "Two principal components of the features; the colour is the most frequent class, 0 is empty.",
        }
        for when, points in zip(("before", "after"), flat, strict=True)
    ]


def _by_radius(cases: Sequence[Case]) -> dict[str, Any]:
    accuracies, found = truth(cases), []
    for radius in _RADII:
        measured = measure(cases, with_settings(moved, [(radius,)] * len(cases)), FAST)
        found.append(taus(measured.scores, accuracies).mean(1))
    lines = torch.stack(found, 1)
    return {f"{score} + PED": _series(_RADII, line.tolist()) for score, line in zip(FAST, lines, strict=True)}


def _in_order(case: Case, index: int, plain: Measured, after: Measured) -> dict[str, Any]:
    accuracies = torch.tensor(list(case.accuracies.values()), dtype=torch.float64)
    ranks = list(range(1, len(accuracies) + 1))

    def line(scores: Tensor) -> dict[str, Any]:
        return _series(ranks, accuracies[scores.argsort(descending=True)].tolist())

    lines = {"by the truth": line(accuracies), "SFDA": line(plain.scores["SFDA"][index])}
    lines["SFDA + PED"] = line(after.scores["SFDA"][index])
    return _curve(
        f"Accuracy of the models in the order of a score, {case.name}", "rank", "test accuracy (%)", lines
    )


def _descents(case: Case) -> dict[str, PEDResult]:
    return {name: ped(x, case.labels, case.references[name]) for name, x in case.features.items()}


def _energy(result: PEDResult) -> dict[str, Any]:
    first = result.energies[0] or 1.0
    return _series(range(len(result.energies)), [energy / first for energy in result.energies])


def _cloud(points: Tensor, labels: Tensor) -> list[list[int]]:
    cells = (points * (_PIXELS - 1)).round().long()
    flat = cells[:, 1] * _PIXELS + cells[:, 0]
    counts = torch.zeros(_PIXELS**2, int(labels.max()) + 1)
    counts.index_put_((flat, labels), torch.ones(len(labels)), accumulate=True)
    most = torch.where(counts.sum(1) > 0, counts.argmax(1) + 1, 0)
    return most.view(_PIXELS, _PIXELS).flip(0).tolist()


def _curve(title: str, x_label: str, y_label: str, series: dict[str, Any]) -> dict[str, Any]:
    return {"title": title, "x_label": x_label, "y_label": y_label, "series": series}


def _series(x: Sequence[Any], y: Sequence[Any]) -> dict[str, list[Any]]:
    return {"x": list(x), "y": list(y)}
