"""The classifiers that the demo explains: the paper's small transformer, and a convolutional network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from timex_explain.masks import encode_positions


class Transformer(nn.Module):
    """The paper's transformer: states of D + 16 channels, one head, and a mask on its attention.

    As in the official code there is no residual connection around attention, so that a point whose
    attention is masked leaks nothing; z is the mean of the states over time, and `head` reads it.
    """

    def __init__(
        self,
        num_features: int,
        length: int,
        num_classes: int,
        feedforward_size: int = 16,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        size = num_features + 16
        self.length = length
        self.project, self.mix = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.norm, self.output_norm = nn.LayerNorm(size), nn.LayerNorm(size)
        self.feedforward = nn.Sequential(
            nn.Linear(size, feedforward_size),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(feedforward_size, size),
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, num_classes))

    def forward(self, x: Tensor, attention: Tensor | None = None) -> Tensor:
        """Classify series (batch, T, D); `attention` (batch, T, T) multiplies the attention weights."""
        times = torch.arange(1, self.length + 1, dtype=x.dtype, device=x.device).expand(len(x), -1)
        states = torch.cat([encode_positions(times, 16, float(self.length)), x], dim=-1)
        query, key, value = self.project(states).chunk(3, dim=-1)
        weights = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
        if attention is not None:
            weights = weights * attention
        states = self.norm(self.dropout(self.mix(weights @ value)))
        states = self.output_norm(states + self.dropout(self.feedforward(states)))
        logits: Tensor = self.head(states.mean(1))
        return logits


class ConvNet(nn.Module):
    """A convolutional network with pooling over time: any architecture will do."""

    def __init__(self, num_features: int, num_classes: int, channels: int = 32) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv1d(num_features, channels, 5, padding=2),
            nn.ReLU(),
            nn.Conv1d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv1d(channels, channels, 3, padding=1),
            nn.ReLU(),
        )
        self.head = nn.Linear(2 * channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify series (batch, T, D)."""
        states = self.features(x.mT)
        logits: Tensor = self.head(torch.cat([states.mean(-1), states.amax(-1)], dim=-1))
        return logits
