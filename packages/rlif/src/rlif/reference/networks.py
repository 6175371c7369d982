"""Stacks of networks of one shape: every layer is one batched product for all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

LOG_STD = (-5.0, 2.0)


class GroupedMLP(nn.Module):
    """Members of one shape with weights of their own, as one `baddbmm` a layer.

    Weights are drawn uniformly in +-1/sqrt(fan in), biases too.

    Args:
        sizes: Widths, input and output included.
        generators: One source of initial weights for each group of `members`.
        members: Networks in each group.
        layer_norm: Whether LayerNorm with weights of its own precedes each ReLU.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        generators: Sequence[torch.Generator],
        members: int = 1,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        self.scales, self.shifts = nn.ParameterList(), nn.ParameterList()
        stack = len(generators) * members
        for wide, out in pairwise(sizes):
            self.weights.append(_uniform(generators, (members, wide, out), wide))
            self.biases.append(_uniform(generators, (members, 1, out), wide))
        for width in sizes[1:-1] if layer_norm else ():
            self.scales.append(torch.ones(stack, 1, width, device=generators[0].device))
            self.shifts.append(torch.zeros(stack, 1, width, device=generators[0].device))

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply every network to its rows.

        Args:
            inputs: (stack, B, in), `stack` being groups x members.

        Returns:
            (stack, B, out).
        """
        hidden = inputs
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.baddbmm(bias, hidden, weight)
            if layer < len(self.weights) - 1:
                if len(self.scales):
                    hidden = functional.layer_norm(hidden, hidden.shape[-1:])
                    hidden = torch.addcmul(self.shifts[layer], hidden, self.scales[layer])
                hidden = hidden.relu()
        return hidden


class SquashedActor(nn.Module):
    """G Gaussian policies squashed by tanh, with log standard deviations in [-5, 2].

    Args:
        observation_size: S.
        action_size: A.
        hidden: Widths of the hidden layers.
        generators: One source of initial weights for each group.
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        hidden: Sequence[int],
        generators: Sequence[torch.Generator],
    ) -> None:
        super().__init__()
        self.body = GroupedMLP([observation_size, *hidden, 2 * action_size], generators)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Give mean and log standard deviation before the squashing.

        Args:
            observation: (G, B, S).

        Returns:
            Both (G, B, A).
        """
        mean, log_std = self.body(observation).chunk(2, -1)
        return mean, log_std.clamp(*LOG_STD)

    def act(self, observation: Tensor) -> Tensor:
        """Give the mode of each policy, tanh of the mean (G, B, A), for observations (G, B, S)."""
        with torch.no_grad():
            return self(observation)[0].tanh()

    def sample(self, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Draw actions with their log-probabilities.

        Args:
            observation: (G, B, S).
            noise: Standard normal (G, B, A).

        Returns:
            Actions (G, B, A) and log-probabilities (G, B).
        """
        mean, log_std = self(observation)
        raw = mean + log_std.exp() * noise
        # log(1 - tanh(x)^2) = 2 (log 2 - x - softplus(-2x))
        squash = 2 * (math.log(2) - raw - functional.softplus(-2 * raw))
        log_prob = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi) - squash
        return raw.tanh(), log_prob.sum(-1)


def normal(generators: Sequence[torch.Generator], *shape: int) -> Tensor:
    """Draw standard normal numbers (G, *shape), each group from its own generator."""
    return torch.stack([torch.randn(shape, generator=one, device=one.device) for one in generators])


def _uniform(generators: Sequence[torch.Generator], shape: tuple[int, ...], fan_in: int) -> nn.Parameter:
    drawn = torch.cat([torch.rand(shape, generator=one, device=one.device) for one in generators])
    return nn.Parameter((2 * drawn - 1) / math.sqrt(fan_in))
