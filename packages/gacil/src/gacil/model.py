"""The whole of it: a frozen backbone, one fixed random layer, the analytic classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gacil.buffer import RandomBuffer
from gacil.checks import as_size
from gacil.classifier import AnalyticClassifier


class GACIL(nn.Module):
    """A pre-trained backbone that learns new classes from a stream, without gradients or stored samples.

    backbone -> `readout` -> `RandomBuffer` -> `AnalyticClassifier`. The backbone is put in eval mode and stays
    in it. A mapping of inputs, such as a tokenizer's batch, reaches it as keyword arguments.

    Args:
        backbone: Maps inputs to features.
        feature_dim: d.
        buffer_size: M.
        readout: Makes features (n, d) of what the backbone returns, e.g.
            `lambda output: output.last_hidden_state[:, 0]`. If None, that must be a tensor (n, ...), which is
            flattened to (n, d).
        activation: Of the random layer.
        generator: Draws the random layer.
        buffer_dtype: Of the random layer; the default dtype if None.
        **classifier_options: For `AnalyticClassifier`: `gamma`, `engine`, `bias`, `dtype`, `max_classes`.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If a size is not an integer, or `backbone` not a module.

    Examples:
        >>> generator = torch.Generator().manual_seed(0)
        >>> images, labels = torch.randn(8, 1, 4, 4, generator=generator), torch.arange(8) % 2
        >>> model = GACIL(nn.Flatten(), 16, buffer_size=32, generator=generator)
        >>> model = model.learn([(images[:4], labels[:4]), (images[4:], labels[4:])])
        >>> model.predict(images).equal(labels)
        True
    """

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        buffer_size: int = 8192,
        *,
        readout: Callable[[Any], Tensor] | None = None,
        activation: Callable[[Tensor], Tensor] = torch.relu,
        generator: torch.Generator | None = None,
        buffer_dtype: torch.dtype | None = None,
        **classifier_options: Any,
    ) -> None:
        super().__init__()
        if not isinstance(backbone, nn.Module):
            raise TypeError(f"backbone must be a torch.nn.Module, got {type(backbone).__name__}")
        self.backbone = backbone
        self.readout = readout
        self.feature_dim = as_size("feature_dim", feature_dim)
        buffer_size = as_size("buffer_size", buffer_size)
        self.buffer = RandomBuffer(
            feature_dim, buffer_size, activation=activation, generator=generator, dtype=buffer_dtype
        )
        self.classifier = AnalyticClassifier(
            buffer_size, feature_checksum=self.buffer.checksum(), **classifier_options
        )
        self.train(self.training)

    def learn(self, batch_iterable: Iterable[tuple[Any, Tensor]]) -> Self:
        """Learn from every (inputs, labels) of a loader, in one pass.

        Args:
            batch_iterable: Inputs as the backbone takes them, labels (n,) or targets (n, C), on the
                model's device.

        Returns:
            The model itself.

        Raises:
            TypeError: If a batch is not a pair; then call `partial_fit` in a loop of your own.
        """
        for batch in batch_iterable:
            if not isinstance(batch, (tuple, list)) or len(batch) != 2:
                raise TypeError(f"batch_iterable must give pairs (inputs, labels), got {_described(batch)}")
            self.partial_fit(*batch)
        return self

    def partial_fit(self, inputs: Any, y: Tensor, sample_weight: Tensor | None = None) -> Self:
        """Learn from one batch; see `AnalyticClassifier.partial_fit`."""
        self.classifier.partial_fit(self.features(inputs), y, sample_weight)
        return self

    def forget(self, inputs: Any, y: Tensor, sample_weight: Tensor | None = None) -> Self:
        """Unlearn one batch; see `AnalyticClassifier.forget`."""
        self.classifier.forget(self.features(inputs), y, sample_weight)
        return self

    @torch.no_grad()
    def features(self, inputs: Any) -> Tensor:
        """Map inputs to expanded features (n, M), without gradient.

        Raises:
            TypeError: If what comes out of the backbone is no tensor and there is no `readout`.
            ValueError: If the features are not `feature_dim` wide.
        """
        self.backbone.eval()  # somebody may have put a model that holds it in training mode
        output = self.backbone(**inputs) if isinstance(inputs, Mapping) else self.backbone(inputs)
        features = output if self.readout is None else self.readout(output)
        if not isinstance(features, Tensor):
            source = "backbone" if self.readout is None else "readout"
            raise TypeError(
                f"{source} must return a tensor, got {_described(features)}; pass readout=, which makes features "
                f"(n, d) of the backbone's output"
            )
        if features.ndim < 2 or features[0:1].numel() != self.feature_dim * min(len(features), 1):
            raise ValueError(
                f"backbone must give features of shape (n, feature_dim = {self.feature_dim}), got "
                f"{tuple(features.shape)}; pass readout= to pool or select them"
            )
        return self.buffer(features.reshape(len(features), self.feature_dim))

    def forward(self, inputs: Any, mask_unseen: bool = True) -> Tensor:
        """Scores (n, C); see `AnalyticClassifier.forward`."""
        return self.classifier(self.features(inputs), mask_unseen)

    def predict(self, inputs: Any) -> Tensor:
        """Labels (n,) int64; see `AnalyticClassifier.predict`."""
        return self.classifier.predict(self.features(inputs))

    def score(self, inputs: Any, y: Tensor) -> float:
        """Share of the inputs predicted as their labels y (n,); see `AnalyticClassifier.score`."""
        return self.classifier.score(self.features(inputs), y)

    def merge(self, *others: GACIL) -> Self:
        """Add what models with the same backbone and random layer have learnt elsewhere.

        Raises:
            ValueError: If the random layers or the classifiers' settings differ.
            TypeError: If one is not a `GACIL`.
        """
        for other in others:
            if not isinstance(other, GACIL):
                raise TypeError(f"others must be GACIL models, got {type(other).__name__}")
        self.classifier.merge(*(other.classifier for other in others))
        return self

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> Self:
        """Add up over ranks; see `AnalyticClassifier.all_reduce`."""
        self.classifier.all_reduce(group)
        return self

    def train(self, mode: bool = True) -> Self:
        """Set the mode of everything but the backbone, whose statistics must not move."""
        super().train(mode)
        self.backbone.eval()
        return self


def _described(value: Any) -> str:
    kind = type(value).__name__
    if isinstance(value, Mapping):
        return f"{kind} with the keys {', '.join(map(repr, value))}"
    return f"{kind} of {len(value)}" if isinstance(value, (tuple, list)) else kind
