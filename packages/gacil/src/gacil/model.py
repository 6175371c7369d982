"""The whole of it: a frozen backbone, one fixed random layer, the analytic classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gacil.classifier import AnalyticClassifier


class RandomBuffer(nn.Module):
    """One fixed random layer, h = activation(z W), which gives a linear classifier more to work with.

    W is drawn from U(-1 / sqrt(d), 1 / sqrt(d)), as `torch.nn.Linear` is, and never trained (arXiv
    2403.15706, section 3.1; the official code's buffer layer). It is a buffer of the module: it travels in
    `state_dict`, and features made with another W are worthless to a classifier.

    Args:
        in_features: d, width of the backbone's features.
        out_features: M, width of the expansion; thousands.
        activation: Elementwise function.
        generator: Draws W, on its own device.
        dtype: Of W; the default dtype if None.

    Raises:
        ValueError: If a size is below 1.

    Example:
        >>> buffer = RandomBuffer(4, 6, generator=torch.Generator().manual_seed(0))
        >>> buffer(torch.ones(2, 4)).shape, [*buffer.parameters()]
        (torch.Size([2, 6]), [])
    """

    weight: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        activation: Callable[[Tensor], Tensor] = torch.relu,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("in_features", in_features), ("out_features", out_features)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        device = None if generator is None else generator.device
        uniform = torch.rand(in_features, out_features, generator=generator, dtype=dtype, device=device)
        self.activation = activation
        self.register_buffer("weight", (2 * uniform - 1) / in_features**0.5)

    def forward(self, features: Tensor) -> Tensor:
        """Expand features (n, d) to (n, M), in the dtype of the layer."""
        return self.activation(features.to(self.weight.dtype) @ self.weight)

    def checksum(self) -> int:
        """Number that two layers share only if their weights are equal bit by bit (almost surely)."""
        bits = self.weight.detach().double().contiguous().view(torch.int64).flatten()
        odd = 2 * torch.arange(bits.numel(), device=bits.device) + 1
        return int(((bits ^ (bits >> 29)) * odd).sum())

    def extra_repr(self) -> str:
        """Sizes, for `repr`."""
        return f"in_features={self.weight.shape[0]}, out_features={self.weight.shape[1]}"


class GACIL(nn.Module):
    """A pre-trained backbone that learns new classes from a stream, without gradients or stored samples.

    backbone -> `RandomBuffer` -> `AnalyticClassifier`. The backbone is put in eval mode and stays in it.

    Args:
        backbone: Maps inputs to features (n, d); a further output shape is flattened.
        feature_dim: d.
        buffer_size: M.
        activation: Of the random layer.
        generator: Draws the random layer.
        buffer_dtype: Of the random layer; the default dtype if None.
        **classifier_options: For `AnalyticClassifier`: `gamma`, `engine`, `bias`, `dtype`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
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
        activation: Callable[[Tensor], Tensor] = torch.relu,
        generator: torch.Generator | None = None,
        buffer_dtype: torch.dtype | None = None,
        **classifier_options: Any,
    ) -> None:
        super().__init__()
        self.backbone = backbone
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
        """
        for inputs, labels in batch_iterable:
            self.partial_fit(inputs, labels)
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
        """Map inputs to expanded features (n, M), without gradient."""
        return self.buffer(self.backbone(inputs).flatten(1))

    def forward(self, inputs: Any, mask_unseen: bool = True) -> Tensor:
        """Scores (n, C); see `AnalyticClassifier.forward`."""
        return self.classifier(self.features(inputs), mask_unseen)

    def predict(self, inputs: Any) -> Tensor:
        """Labels (n,) int64; see `AnalyticClassifier.predict`."""
        return self.classifier.predict(self.features(inputs))

    def merge(self, *others: GACIL) -> Self:
        """Add what models with the same backbone and random layer have learnt elsewhere.

        Raises:
            ValueError: If the random layers or the classifiers' settings differ.
        """
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
