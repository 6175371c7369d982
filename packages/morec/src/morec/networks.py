"""The two players of the adversarial game: a transition discriminator and a transition generator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["TransitionDiscriminator", "TransitionGenerator"]


class _MLP(nn.Module):
    """Linear layers with ReLU between them, initialised from a generator of the caller's."""

    def __init__(self, sizes: Sequence[int], generator: torch.Generator | None) -> None:
        super().__init__()
        if min(sizes) < 1:
            raise ValueError(f"every layer must have at least one unit, got sizes {tuple(sizes)}")
        self.layers = nn.ModuleList(
            nn.utils.skip_init(nn.Linear, inputs, outputs)
            for inputs, outputs in zip(sizes[:-1], sizes[1:], strict=True)
        )
        for layer in self.layers:
            bound = layer.in_features**-0.5
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def forward(self, inputs: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            inputs = layer(inputs).relu()
        return self.layers[-1](inputs)


class TransitionDiscriminator(_MLP):
    """Logit that an encoded transition is real: $f_\\phi(s, a, s')$, $D = \\sigma(f)$.

    Args:
        obs_dim: Number of state dimensions S.
        act_dim: Number of action dimensions A.
        hidden_sizes: Widths of the hidden layers.
        generator: Randomness of the initial weights.
    """

    def __init__(
        self,
        obs_dim: int,
        act_dim: int,
        hidden_sizes: Sequence[int] = (128, 128),
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__([2 * obs_dim + act_dim, *hidden_sizes, 1], generator)

    def forward(self, encoded: Tensor) -> Tensor:
        """Judge encoded transitions, shape (..., 2S + A), as `TransitionNormalizer.encode` lays them out.

        Args:
            encoded: Encoded transitions.

        Returns:
            Logits, shape (...).
        """
        return super().forward(encoded).squeeze(-1)


class TransitionGenerator(_MLP):
    """Gaussian imitation of the environment, $P_\\theta(s' | s, a)$, in scaled coordinates.

    Args:
        obs_dim: Number of state dimensions S.
        act_dim: Number of action dimensions A.
        hidden_sizes: Widths of the hidden layers.
        log_std_range: Bounds of the log standard deviation of the scaled state difference.
        generator: Randomness of the initial weights.
    """

    def __init__(
        self,
        obs_dim: int,
        act_dim: int,
        hidden_sizes: Sequence[int] = (128, 128),
        *,
        log_std_range: tuple[float, float] = (-6.0, 0.0),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__([obs_dim + act_dim, *hidden_sizes, 2 * obs_dim], generator)
        self.log_std_range = log_std_range

    def forward(self, state_action: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Predict the scaled state difference.

        Args:
            state_action: Scaled states and actions side by side, shape (..., S + A).

        Returns:
            Mean and log standard deviation of the difference, each (..., S).
        """
        mean, raw = super().forward(state_action).chunk(2, dim=-1)
        low, high = self.log_std_range
        # A sigmoid, not a clamp: a clamped generator could never again widen its noise.
        return mean, low + (high - low) * torch.sigmoid(raw)
