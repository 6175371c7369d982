"""The methods without gradients: the package's, the joint solution, and the nearest class mean."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gacil.classifier import AnalyticClassifier
from gacil.demo.features import Data
from gacil.demo.streaming import Step, Trace, follow
from gacil.ridge import joint_solution


def analytic(data: Data, steps: list[Step], gamma: float) -> Trace:
    """The package's classifier."""
    classifier = AnalyticClassifier(data.train_x.shape[1], gamma=gamma).to(data.train_x.device)

    def scores(x: Tensor) -> Tensor:
        found = classifier(x)
        return nn.functional.pad(found, (0, data.num_classes - found.shape[1]))

    return follow(
        data, steps, lambda rows: classifier.partial_fit(data.train_x[rows], data.train_y[rows]), scores
    )


def joint(data: Data, steps: list[Step], gamma: float) -> Trace:
    """Solve anew from all data so far at every measurement: what is not allowed on a stream."""
    kept: list[Tensor] = []

    def scores(x: Tensor) -> Tensor:
        rows = torch.cat(kept)
        targets = nn.functional.one_hot(data.train_y[rows], data.num_classes)
        return x.double() @ joint_solution(data.train_x[rows].double(), targets, gamma)

    return follow(data, steps, kept.append, scores)


def nearest_class_mean(data: Data, steps: list[Step]) -> Trace:
    """Running means of the features of each class."""
    sums = data.train_x.new_zeros(data.num_classes, data.train_x.shape[1])
    counts = data.train_x.new_zeros(data.num_classes)

    def learn(rows: Tensor) -> None:
        sums.index_add_(0, data.train_y[rows], data.train_x[rows])
        counts.index_add_(0, data.train_y[rows], counts.new_ones(len(rows)))

    def scores(x: Tensor) -> Tensor:
        return -torch.cdist(x, sums / counts.clamp_min(1).unsqueeze(1))

    return follow(data, steps, learn, scores)
