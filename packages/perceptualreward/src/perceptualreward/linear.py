"""The paper's alternative to selected features: logistic regression on all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from perceptualreward._checks import as_count, as_demos
from perceptualreward.reward import StepReward, labelled_frames, normalisation


class LinearStepReward(StepReward):
    """For every step a logistic regression on all features, its frames against all others.

    The reward of a step is the log-probability of its class. With few demonstrations and many features it overfits
    (arXiv 1612.06699, section 4).

    Args:
        n_features: F.
        n_steps: n, two at least.

    Raises:
        TypeError: If a count is not an integer.
        ValueError: If a count is too small.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, n_features: int, n_steps: int) -> None:
        super().__init__(n_features, n_steps)
        self.register_buffer("weight", torch.zeros(n_steps, n_features))
        self.register_buffer("bias", torch.zeros(n_steps))

    @classmethod
    def fit(
        cls,
        demos: Sequence[Tensor],
        n_steps: int,
        *,
        penalty: float = 1e-3,
        cuts: Sequence[Tensor] | None = None,
        min_size: int = 3,
        max_iterations: int = 100,
        **discovery: Any,
    ) -> LinearStepReward:
        """Discover the steps and fit the regressions, by L-BFGS to convergence.

        Args:
            demos: (T_d, F) features each.
            n_steps: n, two at least.
            penalty: On the squared weights, half of it, beside the mean loss of a frame; above zero.
            cuts: See `PerceptualReward.fit`.
            min_size: See `discover_steps`.
            max_iterations: Of L-BFGS.
            **discovery: `method` and `weighting` of `discover_steps`.

        Returns:
            The reward, on the device of the demonstrations, in their dtype but float32 at least.

        Raises:
            TypeError: If a demonstration is not floating point.
            ValueError: As `PerceptualReward.fit`, or if `penalty` is not positive.
        """
        demos = as_demos("demos", demos)
        as_count("n_steps", n_steps, least=2)
        if not 0 < penalty < math.inf:
            raise ValueError(f"penalty must be positive and finite, got {penalty}")
        frames, labels = labelled_frames(demos, n_steps, cuts, min_size, **discovery)
        mean, std, alive = normalisation(frames)
        normal = ((frames - mean) / std * alive).double()
        targets = F.one_hot(labels, n_steps).double()
        weight = normal.new_zeros(n_steps, normal.shape[1], requires_grad=True)
        bias = normal.new_zeros(n_steps, requires_grad=True)
        solver = torch.optim.LBFGS([weight, bias], max_iter=max_iterations, line_search_fn="strong_wolfe")

        @torch.enable_grad()
        def loss() -> Tensor:
            solver.zero_grad()
            fit = F.binary_cross_entropy_with_logits(normal @ weight.T + bias, targets) * n_steps
            total = fit + penalty / 2 * weight.square().sum()
            total.backward()
            return total

        solver.step(loss)
        reward = cls(frames.shape[1], n_steps).to(frames.device, frames.dtype)
        for buffer, value in (
            (reward.mean, mean),
            (reward.std, std),
            (reward.weight, weight),
            (reward.bias, bias),
        ):
            buffer.copy_(value.detach())
        return reward

    def step_rewards(self, x: Tensor, *, squashed: bool = False) -> Tensor:
        """The reward of each step for each frame.

        Args:
            x: (..., F) features.
            squashed: The probability in place of its logarithm.

        Returns:
            (..., n), in the dtype of the module's buffers; at most zero.

        Raises:
            TypeError: If x is not floating point.
            ValueError: If x has another number of features.
        """
        logits = (self._checked(x) - self.mean) / self.std @ self.weight.T + self.bias
        return logits.sigmoid() if squashed else F.logsigmoid(logits)
