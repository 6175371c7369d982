"""The near-features model as a forecast: what a layer's features say about the next layer's NC1~."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from neuralcollapse.metrics import nc1
from neuralcollapse.model import Moments, class_columns, proximal_step
from neuralcollapse.statistics import class_stats

_MODEL, _PREFIX = "near-features model", "NC1~ of the next layer: "


@dataclass(frozen=True)
class Forecast:
    """`log NC1~` of the second layer and those after it, as measured and by each rule."""

    measured: list[float]
    predicted: dict[str, list[float]]

    @property
    def error(self) -> dict[str, float]:
        """Mean absolute error of each rule."""
        return {
            rule: sum(abs(a - b) for a, b in zip(values, self.measured, strict=True)) / len(values)
            for rule, values in self.predicted.items()
        }

    def rows(self) -> list[dict[str, Any]]:
        """One line for each rule."""
        return [
            {
                "name": _PREFIX + rule,
                "role": "method" if rule == _MODEL else "baseline",
                "error of log NC1~": error,
            }
            for rule, error in self.error.items()
        ]

    def curve(self) -> dict[str, Any]:
        """NC1~ over the layers, under the names of the rows."""
        depth = list(range(2, len(self.measured) + 2))
        series = {"measured": self.measured} | {
            _PREFIX + rule: values for rule, values in self.predicted.items()
        }
        return {
            "title": "NC1~ of a layer, from the features of the layer before",
            "x_label": "layer",
            "y_label": "NC1~",
            "y_scale": "log",
            "series": {
                name: {"x": depth, "y": [math.exp(value) for value in values]}
                for name, values in series.items()
            },
        }


def forecast_next_layer(
    layers: list[Tensor],
    labels: Tensor,
    num_classes: int,
    lam: float,
    betas: list[float],
    report: Callable[[float, str], None],
) -> Forecast:
    """Predict each layer's NC1~ from the layer before, the rule's one number fitted on the other transitions."""
    actual = [
        math.log(nc1(class_stats(layer, labels, num_classes, cov="trace"), "trace")) for layer in layers
    ]
    modelled = _modelled(layers[:-1], labels, num_classes, lam, betas, report)
    ratios, models = [], []
    for left_out in range(len(layers) - 1):
        others = [other for other in range(len(layers) - 1) if other != left_out]
        # The median step minimises the mean absolute error, which beta is chosen by, too.
        ratios.append(actual[left_out] + median(actual[other + 1] - actual[other] for other in others))

        def fit(index: int, others: list[int] = others) -> float:
            return sum(abs(modelled[other][index] - actual[other + 1]) for other in others)

        models.append(modelled[left_out][min(range(len(modelled[0])), key=fit)])
    return Forecast(actual[1:], {"no change": actual[:-1], "constant ratio": ratios, _MODEL: models})


def _modelled(
    layers: list[Tensor],
    labels: Tensor,
    num_classes: int,
    lam: float,
    betas: list[float],
    report: Callable[[float, str], None],
) -> list[list[float]]:
    """`log NC1~` that the model expects after each layer, for many betas."""
    coarse = []
    for number, layer in enumerate(layers):
        start = Moments.of(*class_columns(_at_model_scale(layer, labels, num_classes), labels, num_classes))
        coarse.append([_log_nc1(start, lam, beta) for beta in betas])
        report((number + 1) / len(layers), f"predicting layer {number + 2}")
    # Linear in log beta between the values tried, so that their spacing does not limit the fit.
    return interpolate(
        torch.tensor(coarse, dtype=torch.float64)[None],
        size=16 * (len(betas) - 1) + 1,
        mode="linear",
        align_corners=True,
    )[0].tolist()


def _at_model_scale(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Features whose class means have unit length in the mean square, as those of the model nearly have."""
    stats = class_stats(features, labels, num_classes, cov="trace")
    return features / stats.mean.square().sum(1).mean().sqrt()


def _log_nc1(start: Moments, lam: float, beta: float) -> float:
    end = start.moved(proximal_step(start, lam, lam, beta, tol=1e-4, max_iter=1000).gain)
    centred = end.mean - end.mean.mean(1, keepdim=True)
    return math.log(end.within.diagonal().sum() * start.mean.shape[1] / centred.square().sum())
