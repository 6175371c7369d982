"""A learned model as of MOPO: an ensemble of networks with a mean and a variance each."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from ravl.critics import StackedLinear


class GaussianEnsemble(nn.Module):
    """N networks that predict the change of the state and the reward as a Gaussian each (MOPO, section 4.1).

    Args:
        observation_dim: S.
        action_dim: A.
        num_members: N.
        hidden: Width of the two SiLU layers.
        generator: Draws the initial weights and the training batches.

    Examples:
        >>> model = GaussianEnsemble(3, 1, 2, 16, generator=torch.Generator().manual_seed(0))
        >>> model.predict(torch.zeros(5, 3), torch.zeros(5, 1))[0].shape
        torch.Size([2, 5, 4])
    """

    mean_in: Tensor
    std_in: Tensor
    mean_out: Tensor
    std_out: Tensor

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        num_members: int = 5,
        hidden: int = 64,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.num_members = num_members
        self.generator = generator
        widths = (observation_dim + action_dim, hidden, hidden, 2 * (observation_dim + 1))
        self.layers = nn.ModuleList(
            StackedLinear(before, after, num_members, generator=generator)
            for before, after in pairwise(widths)
        )
        for name, width in (("in", widths[0]), ("out", observation_dim + 1)):
            self.register_buffer(f"mean_{name}", torch.zeros(width))
            self.register_buffer(f"std_{name}", torch.ones(width))

    def predict(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return means and standard deviations of next state and reward, `(N, B, S + 1)` each.

        Args:
            observation: `(B, S)`.
            action: `(B, A)`.
        """
        inputs = (torch.cat([observation, action], -1) - self.mean_in) / self.std_in
        mean, log_std = self._normalised(inputs.expand(self.num_members, *inputs.shape))
        offset = torch.cat([observation, torch.zeros_like(observation[:, :1])], -1)
        return mean * self.std_out + self.mean_out + offset, log_std.exp() * self.std_out

    def fit(
        self,
        observation: Tensor,
        action: Tensor,
        reward: Tensor,
        next_observation: Tensor,
        *,
        num_updates: int = 1000,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
    ) -> float:
        """Fit by the Gaussian likelihood, each member on batches of its own.

        Args:
            observation: `(n, S)`.
            action: `(n, A)`.
            reward: `(n,)`.
            next_observation: `(n, S)`.
            num_updates: Steps of Adam.
            batch_size: Of each member.
            learning_rate: Adam's.

        Returns:
            Mean negative log-likelihood of the last batches.
        """
        inputs = torch.cat([observation, action], -1)
        outputs = torch.cat([next_observation - observation, reward[:, None]], -1)
        for name, part in (("in", inputs), ("out", outputs)):
            getattr(self, f"mean_{name}").copy_(part.mean(0))
            getattr(self, f"std_{name}").copy_(part.std(0).clamp_min(1e-6))
        inputs, outputs = (inputs - self.mean_in) / self.std_in, (outputs - self.mean_out) / self.std_out
        optimizer = torch.optim.Adam(self.parameters(), lr=learning_rate, foreach=True)
        loss = torch.zeros(())
        shape = (num_updates, self.num_members, batch_size)
        for rows in torch.randint(len(inputs), shape, generator=self.generator).to(inputs.device):
            mean, log_std = self._normalised(inputs[rows])
            loss = (0.5 * ((outputs[rows] - mean) / log_std.exp()).square() + log_std).mean((1, 2)).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return float(loss.detach()) / self.num_members

    def step(
        self, penalty: float = 0.0, generator: torch.Generator | None = None
    ) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return the model as a function of observation and action: one member, at random, for each row.

        Args:
            penalty: lambda of MOPO: taken off the reward is lambda times the largest standard deviation (its norm) of
                all members.
            generator: Draws members and noise; the model's own if None.

        Returns:
            A function to be given to `truncated_rollouts`.
        """
        drawn = generator or self.generator

        @torch.no_grad()
        def function(observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
            mean, std = self.predict(observation, action)
            rows = torch.arange(len(observation), device=mean.device)
            member = torch.randint(self.num_members, rows.shape, generator=drawn).to(mean.device)
            noise = torch.randn(mean[0].shape, generator=drawn, dtype=mean.dtype).to(mean.device)
            sample = mean[member, rows] + noise * std[member, rows]
            reward = sample[:, -1]
            if penalty:
                reward = reward - penalty * std.norm(dim=-1).amax(0)
            return sample[:, :-1], reward

        return function

    def _normalised(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        for layer in list(self.layers)[:-1]:
            inputs = nn.functional.silu(layer(inputs))
        mean, log_std = self.layers[-1](inputs).chunk(2, -1)
        log_std = 0.5 - nn.functional.softplus(0.5 - log_std)
        return mean, nn.functional.softplus(log_std + 6) - 6
