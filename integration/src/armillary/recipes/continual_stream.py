"""New classes, then new conditions: `gacil` learns, `neuralcollapse` watches, `robustmeanteacher` adapts.

pip install armillary gacil neuralcollapse robustmeanteacher
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from armillary.recipes._packages import joined

with joined("gacil", "neuralcollapse", "robustmeanteacher"):
    from gacil import AnalyticClassifier, RandomBuffer
    from neuralcollapse import Stats, StreamingStats, cdnv, nc1
    from robustmeanteacher import RobustMeanTeacher, RobustMeanTeacherConfig


class ContinualStream:
    """A classifier that learns classes as they come and is deployed where conditions keep shifting.

    - `learn` takes labelled batches in any order. The classifier on top of your frozen network is ridge regression
      in closed form: it forgets nothing and keeps no sample.
    - `collapse` says how well the network separates the classes so far, from streamed statistics.
    - `deploy` hands all of it to test-time adaptation: a copy of the network under the classifier learned so far,
      anchored at the class means that the statistics hold anyway. No sample of the past is needed.

    Args:
        backbone: Your network, images (N, ...) -> features (N, `feature_dim`); put into evaluation mode.
        feature_dim: D, the width of the features.
        max_classes: How many classes may come at most.
        buffer_size: Width of the random layer under the classifier.
        gamma: Regularisation of the classifier.
        generator: Draws the random layer.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        *,
        max_classes: int,
        buffer_size: int = 1024,
        gamma: float = 0.1,
        generator: torch.Generator | None = None,
    ) -> None:
        self.backbone = backbone.eval()
        self.expand = RandomBuffer(feature_dim, buffer_size, generator=generator)
        self.classifier = AnalyticClassifier(buffer_size, gamma=gamma)
        self.statistics = StreamingStats(max_classes, feature_dim, "trace")

    @torch.no_grad()
    def learn(self, images: Tensor, labels: Tensor) -> None:
        """Learn one labelled batch, once and for good.

        Args:
            images: (N, ...).
            labels: (N,) integers below `max_classes`, any mixture of old and new classes.

        Raises:
            ValueError: If a label or shape is out of range; nothing is learned then.
            TypeError: If labels are not integers.
        """
        features = self.backbone(images)
        self.statistics.update(features, labels)
        self.classifier.partial_fit(self.expand(features), labels)

    def collapse(self) -> dict[str, float]:
        """How separable the classes so far are: `nc1` (Tr Sigma_W / Tr Sigma_B) and `cdnv`, smaller is better.

        Raises:
            ValueError: If fewer than two classes were seen.
        """
        stats = self._class_stats()
        return {"nc1": float(nc1(stats, "trace")), "cdnv": float(cdnv(stats))}

    def deploy(
        self,
        make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
        *,
        temperature: float = 0.1,
        config: RobustMeanTeacherConfig | None = None,
        **options: Any,
    ) -> RobustMeanTeacher:
        """Make a classifier of what was learned so far that adapts to what it is asked.

        Its calls answer images (N, ...) with logits (N, K) and adapt on the way; neither the backbone nor the
        classifier of this stream changes, so that learning goes on and a later `deploy` knows more.

        Args:
            make_optimizer: Parameters -> optimizer, e.g. `functools.partial(torch.optim.Adam, lr=1e-3)`.
            temperature: Divides the scores of ridge regression, which lie about 0 and 1, into logits.
            config: Of the adaptation; source-free unless given, as there are no samples to replay.
            **options: Further arguments of `RobustMeanTeacher`.

        Raises:
            ValueError: If a class below the largest label seen has no sample, or the temperature is not positive.
        """
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        missing = (~self.classifier.seen).nonzero().flatten().tolist()
        if missing:
            raise ValueError(f"every class up to the largest label must have samples, got none of {missing}")
        backbone = copy.deepcopy(self.backbone)
        head = _Head(copy.deepcopy(self.expand), self.classifier.weight / temperature)
        return RobustMeanTeacher(
            nn.Sequential(backbone, head),
            split="1",
            make_optimizer=make_optimizer,
            prototypes=self._class_stats().mean.to(self.expand.weight),
            config=config or RobustMeanTeacherConfig(source_weight=0.0),
            **options,
        )

    def _class_stats(self) -> Stats:
        return self.statistics.compute(skip_empty=True)


class _Head(nn.Module):
    """The classifier of one moment as a layer."""

    weight: Tensor

    def __init__(self, expand: nn.Module, weight: Tensor) -> None:
        super().__init__()
        self.expand = expand
        self.register_buffer("weight", weight)

    def forward(self, features: Tensor) -> Tensor:
        expanded = self.expand(features)
        return expanded @ self.weight.to(expanded.dtype)
