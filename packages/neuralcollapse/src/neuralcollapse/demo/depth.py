"""How collapse grows with depth: the lines of the layers that were trained one after another."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import Tensor

from neuralcollapse.demo.judgement import LAYERWISE
from neuralcollapse.metrics import cdnv, nc1
from neuralcollapse.statistics import class_stats


def depth_lines(
    layers: list[Tensor], labels: Tensor, num_classes: int, accuracy: list[float]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The row of the last layer, with how many layers lowered NC1~, and the metrics' curve over depth."""
    stats = [class_stats(layer.double(), labels, num_classes) for layer in layers]
    series = {
        "NC1": [float(nc1(one)) for one in stats],
        "NC1~": [float(nc1(one, "trace")) for one in stats],
        "CDNV": [float(cdnv(one)) for one in stats],
    }
    values = series["NC1~"]
    row = {
        "name": LAYERWISE,
        "role": "method",
        "layers added": len(values) - 1,
        "of them with lower NC1~": sum(after < before for before, after in pairwise(values)),
        "NC1": series["NC1"][-1],
        "NC1~": values[-1],
        "train accuracy": min(accuracy),
    }
    depth = list(range(1, len(layers) + 1))
    curve = {
        "title": "Collapse of each layer, trained on the frozen ones before",
        "x_label": "layer",
        "y_label": "value",
        "y_scale": "log",
        "series": {name: {"x": depth, "y": values} for name, values in series.items()},
    }
    return row, curve
