"""A compact ensemble of Gaussian dynamics models with stacked weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from morec.filtering import candidates_from_gaussian

__all__ = ["GaussianEnsemble", "fit_ensemble"]

# Weight decay of MOPO's five layers (official launch scripts).
OFFICIAL_WEIGHT_DECAY = (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4)


class GaussianEnsemble(nn.Module):
    """E Gaussian models of next state and reward, trained together.

    Predicts the scaled state difference and reward; `forward` answers in the data's own units.

    Args:
        obs_dim: Number of state dimensions S.
        act_dim: Number of action dimensions A.
        num_members: E.
        num_elites: Members that are sampled: those with the lowest error on held-out data.
        hidden_sizes: Widths of the hidden layers.
        generator: Randomness of the initial weights; the model is built on its device.
    """

    input_mean: Tensor
    input_std: Tensor
    target_mean: Tensor
    target_std: Tensor
    elites: Tensor

    def __init__(
        self,
        obs_dim: int,
        act_dim: int,
        *,
        num_members: int = 7,
        num_elites: int = 5,
        hidden_sizes: Sequence[int] = (200, 200, 200, 200),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        sizes = [obs_dim + act_dim, *hidden_sizes, 2 * (obs_dim + 1)]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for inputs, outputs in pairwise(sizes):
            weight = torch.empty(
                num_members, inputs, outputs, device=None if generator is None else generator.device
            )
            nn.init.trunc_normal_(weight, std=0.5 * inputs**-0.5, generator=generator)
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(torch.zeros(num_members, 1, outputs)))
        self.max_log_var = nn.Parameter(torch.full((obs_dim + 1,), 0.5))
        self.min_log_var = nn.Parameter(torch.full((obs_dim + 1,), -10.0))
        self.register_buffer("input_mean", torch.zeros(obs_dim + act_dim))
        self.register_buffer("input_std", torch.ones(obs_dim + act_dim))
        self.register_buffer("target_mean", torch.zeros(obs_dim + 1))
        self.register_buffer("target_std", torch.ones(obs_dim + 1))
        self.register_buffer("elites", torch.arange(num_elites))
        self.to(self.weights[0].device)

    def scaled(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled inputs, (E, B, S + A) or (B, S + A), to scaled mean and log variance, (E, B, S + 1)."""
        hidden = inputs if inputs.ndim == 3 else inputs.expand(len(self.weights[0]), -1, -1)
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.baddbmm(bias, hidden if index == 0 else silu(hidden), weight)
        mean, log_var = hidden.chunk(2, dim=-1)
        log_var = self.max_log_var - softplus(self.max_log_var - log_var)
        return mean, self.min_log_var + softplus(log_var - self.min_log_var)

    def forward(self, obs: Tensor, act: Tensor) -> tuple[Tensor, Tensor]:
        """Predict next state and reward.

        Args:
            obs: States, shape (B, S).
            act: Actions, shape (B, A).

        Returns:
            Mean and standard deviation of (next state, reward), each (E, B, S + 1).
        """
        inputs = (torch.cat([obs, act], dim=-1) - self.input_mean) / self.input_std
        mean, log_var = self.scaled(inputs)
        mean = mean * self.target_std + self.target_mean
        mean = torch.cat([mean[..., :-1] + obs, mean[..., -1:]], dim=-1)
        return mean, (0.5 * log_var).exp() * self.target_std

    @torch.no_grad()
    def candidates(
        self, obs: Tensor, act: Tensor, *, resample: int = 2, generator: torch.Generator | None = None
    ) -> Tensor:
        """Sample every elite `resample` times: (elites * resample, B, S + 1)."""
        mean, std = self(obs, act)
        return candidates_from_gaussian(mean, std, self.elites, resample, generator)


def fit_ensemble(
    model: GaussianEnsemble,
    obs: Tensor,
    act: Tensor,
    reward: Tensor,
    next_obs: Tensor,
    *,
    num_steps: int = 1500,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    weight_decay: Sequence[float] | None = None,
    holdout: float = 0.1,
    generator: torch.Generator | None = None,
    progress: Callable[[float], None] | None = None,
) -> Tensor:
    """Train by maximum likelihood, each member on batches of its own, and choose the elites.

    Args:
        model: The ensemble; trained in place.
        obs: States, shape (N, S).
        act: Actions, shape (N, A).
        reward: Rewards, shape (N,).
        next_obs: Next states, shape (N, S).
        num_steps: Adam steps.
        batch_size: Batch of each member.
        learning_rate: Adam's learning rate.
        weight_decay: One value per layer; None for the official ones, repeated to the depth.
        holdout: Share of the data that chooses the elites.
        generator: Randomness of the batches.
        progress: Called with the share of steps done.

    Returns:
        Held-out mean squared error of the members, in scaled units, shape (E,).
    """
    inputs, targets = torch.cat([obs, act], -1), torch.cat([next_obs - obs, reward.unsqueeze(-1)], -1)
    model.input_mean.copy_(inputs.mean(0))
    model.input_std.copy_(inputs.std(0).clamp(min=1e-6))
    model.target_mean.copy_(targets.mean(0))
    model.target_std.copy_(targets.std(0).clamp(min=1e-6))
    inputs = (inputs - model.input_mean) / model.input_std
    targets = (targets - model.target_mean) / model.target_std
    order = torch.randperm(len(inputs), generator=generator, device=inputs.device)
    num_held = max(1, int(holdout * len(inputs)))
    held, train = order[:num_held], order[num_held:]
    members, depth = len(model.weights[0]), len(model.weights)
    decay = weight_decay or [
        OFFICIAL_WEIGHT_DECAY[math.ceil(index * 4 / max(1, depth - 1))] for index in range(depth)
    ]
    groups: list[dict[str, Any]] = [
        {"params": [weight], "weight_decay": value}
        for weight, value in zip(model.weights, decay, strict=True)
    ]
    rest = [*model.biases, model.max_log_var, model.min_log_var]
    optimizer = torch.optim.Adam([*groups, {"params": rest}], lr=learning_rate)
    for step in range(num_steps):
        shape = (members, min(batch_size, len(train)))
        rows = train[torch.randint(len(train), shape, generator=generator, device=train.device)]
        mean, log_var = model.scaled(inputs[rows])
        nll = ((mean - targets[rows]).square() * (-log_var).exp() + log_var).mean(dim=(1, 2)).sum()
        bounds = 0.01 * (model.max_log_var.sum() - model.min_log_var.sum())
        optimizer.zero_grad()
        (nll + bounds).backward()
        optimizer.step()
        if progress is not None and step % 100 == 0:
            progress(step / num_steps)
    with torch.no_grad():
        error = (model.scaled(inputs[held])[0] - targets[held]).square().mean(dim=(1, 2))
    model.elites.copy_(error.argsort()[: len(model.elites)])
    return error
