"""The reward: for each step a Gaussian on its selected features, and their sum with weights that double."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from perceptualreward._checks import as_choice, as_count, as_demos
from perceptualreward.selection import scores_of, select_features, step_moments
from perceptualreward.steps import checked_cuts, discover_steps_batch, step_labels

Form = Literal["logprob", "v1"]
FORMS = ("logprob", "v1")
DEAD = 1e-6  # the deviation, relative to the largest, below which a feature says nothing
LEAST_STD = 1e-2  # of a selected feature within its step, in units of its deviation over all frames


class StepReward(nn.Module):
    """What rewards of steps have in common: normalised frames in, weights that double, progress between 0 and 1."""

    mean: Tensor
    std: Tensor

    def __init__(self, n_features: int, n_steps: int) -> None:
        super().__init__()
        self.n_features = as_count("n_features", n_features)
        self.n_steps = as_count("n_steps", n_steps, least=2)
        self.register_buffer("mean", torch.zeros(self.n_features))
        self.register_buffer("std", torch.ones(self.n_features))

    def step_rewards(self, x: Tensor, *, squashed: bool = False) -> Tensor:
        """The reward of each step for each frame.

        Args:
            x: (..., F) features.
            squashed: Mapped to [0, 1].

        Returns:
            (..., n).
        """
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """The combined reward of each frame, sum over g of 2^(g-1) R_g, the first step left out.

        It depends on the frame alone, not on time (arXiv 1612.06699, section 3.3).

        Args:
            x: (..., F) features.

        Returns:
            (...,).

        Raises:
            TypeError: If x is not floating point.
            ValueError: If x has another number of features.
        """
        return self._weighted(self.step_rewards(x))

    def progress(self, x: Tensor) -> Tensor:
        """How far along each frame is, as a share of the way.

        The squashed rewards are weighted alike, and a frame counts as at a step where it looks like that one or a
        later one; so a frame of the last step is at 1, even where it looks like none before.

        Args:
            x: (..., F) features.

        Returns:
            (...,) in [0, 1].

        Raises:
            TypeError: If x is not floating point.
            ValueError: If x has another number of features.
        """
        reached = self.step_rewards(x, squashed=True).flip(-1).cummax(-1).values.flip(-1)
        return self._weighted(reached) / (2**self.n_steps - 2)

    def _weighted(self, rewards: Tensor) -> Tensor:
        weights = 2.0 ** torch.arange(1, self.n_steps, dtype=rewards.dtype, device=rewards.device)
        return rewards[..., 1:] @ weights

    def _checked(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(f"x must be a floating point tensor, got {getattr(x, 'dtype', type(x).__name__)}")
        if x.dim() == 0 or x.shape[-1] != self.n_features:
            raise ValueError(f"x must be (..., {self.n_features}), got {tuple(x.shape)}")
        return x.to(self.mean.dtype)


class PerceptualReward(StepReward):
    """Dense reward from a few demonstrations and features of a frozen network (arXiv 1612.06699).

    R_g(a) = -1/M sum_i (a_i - mu_i)^2 / (sigma_i^2 + eps) over the M features selected for step g, in units of each
    feature's deviation over all training frames. `fit` makes one; made by hand it is empty until a state is loaded.

    Args:
        n_features: F.
        n_steps: n, two at least.
        m: M, the features selected for a step.
        form: `"logprob"` as above; `"v1"` divides by sigma in place of its square, as the first version prints.
        eps: Added to sigma^2.
        include_logdet: Whether raw step rewards have the Gaussian's normaliser, -1/M sum_i log(sigma_i^2 + eps) / 2.

    Raises:
        TypeError: If a count is not an integer.
        ValueError: If a count is too small, `form` unknown or eps not positive.

    Examples:
        >>> demos = [torch.tensor([[0.0], [0.1], [5.0], [5.1]]), torch.tensor([[0.1], [0.0], [0.1], [5.1], [5.0]])]
        >>> reward = PerceptualReward.fit(demos, n_steps=2, m=1, min_size=2)
        >>> reward.progress(torch.tensor([[0.05], [5.05]])).round().tolist()
        [0.0, 1.0]
    """

    index: Tensor
    mu: Tensor
    sigma: Tensor
    level: Tensor
    scale: Tensor

    def __init__(
        self,
        n_features: int,
        n_steps: int,
        m: int = 32,
        *,
        form: Form = "logprob",
        eps: float = 1e-6,
        include_logdet: bool = False,
    ) -> None:
        super().__init__(n_features, n_steps)
        as_choice("form", form, FORMS)
        if not 0 < eps < math.inf:
            raise ValueError(f"eps must be positive and finite, got {eps}")
        self.form, self.eps, self.include_logdet = form, float(eps), bool(include_logdet)
        shape = (self.n_steps, as_count("m", m))
        self.register_buffer("index", torch.zeros(shape, dtype=torch.long))
        self.register_buffer("mu", torch.zeros(shape))
        self.register_buffer("sigma", torch.ones(shape))
        self.register_buffer("level", torch.zeros(self.n_steps))
        self.register_buffer("scale", torch.ones(self.n_steps))

    @classmethod
    def fit(
        cls,
        demos: Sequence[Tensor],
        n_steps: int,
        m: int = 32,
        alpha: float = 5.0,
        *,
        cuts: Sequence[Tensor] | None = None,
        min_size: int = 3,
        form: Form = "logprob",
        eps: float = 1e-6,
        include_logdet: bool = False,
        **discovery: Any,
    ) -> PerceptualReward:
        """Discover the steps of demonstrations, select features for each, and fit its Gaussian.

        Args:
            demos: (T_d, F) features each, of any lengths.
            n_steps: n, two at least.
            m: Features selected for a step.
            alpha: See `feature_scores`.
            cuts: (n - 1,) for each demonstration, where they are known; discovered if None.
            min_size: See `discover_steps`.
            form: See the class.
            eps: See the class.
            include_logdet: See the class.
            **discovery: `method` and `weighting` of `discover_steps`.

        Returns:
            The reward, on the device of the demonstrations, in their dtype but float32 at least.

        Raises:
            TypeError: If a demonstration is not floating point.
            ValueError: If demonstrations differ in their number of features, are too short or not finite; if no
                feature varies; if an option is out of range.
        """
        demos = as_demos("demos", demos)
        as_count("n_steps", n_steps, least=2)
        frames, labels = labelled_frames(demos, n_steps, cuts, min_size, **discovery)
        mean, std, alive = normalisation(frames)
        normal = (frames - mean) / std
        moments = step_moments(normal, labels, n_steps)
        if not 0 <= alpha < math.inf:
            raise ValueError(f"alpha must be non-negative and finite, got {alpha}")
        scores = scores_of(moments, alpha).masked_fill(~alive, -math.inf)
        index = select_features(scores, m)
        reward = cls(
            frames.shape[1], n_steps, index.shape[1], form=form, eps=eps, include_logdet=include_logdet
        ).to(frames.device, frames.dtype)
        reward.mean.copy_(mean)
        reward.std.copy_(std)
        reward.index.copy_(index)
        reward.mu.copy_(moments.mean.gather(1, index))
        reward.sigma.copy_(moments.std.gather(1, index).clamp_min(LEAST_STD))
        rewards = reward._quadratic(frames)
        for step in range(n_steps):
            own = rewards[labels == step, step].double()
            reward.level[step] = own.quantile(0.5)
            reward.scale[step] = (own.quantile(0.5) - own.quantile(0.05)).clamp_min(1e-6)
        return reward

    def step_rewards(self, x: Tensor, *, squashed: bool = False) -> Tensor:
        """The reward of each step for each frame.

        Args:
            x: (..., F) features.
            squashed: exp(min(R_g - a_g, 0) / tau_g) in [0, 1], with a_g the median of R_g over the step's own training
                frames and a_g - tau_g their 5th percentile: half of these are at 1, and most above 1 / e.

        Returns:
            (..., n), in the dtype of the module's buffers; at most zero, unless `include_logdet`.

        Raises:
            TypeError: If x is not floating point.
            ValueError: If x has another number of features.
        """
        rewards = self._quadratic(self._checked(x))
        if squashed:
            return ((rewards - self.level) / self.scale).clamp_max(0).exp()
        if self.include_logdet:
            rewards = rewards - (self.sigma.square() + self.eps).log().mean(1) / 2
        return rewards

    def _quadratic(self, x: Tensor) -> Tensor:
        chosen = (x[..., self.index] - self.mean[self.index]) / self.std[self.index] - self.mu
        spread = self.sigma.square() + self.eps if self.form == "logprob" else self.sigma
        return -(chosen.square() / spread).mean(-1)

    def get_extra_state(self) -> dict[str, Any]:
        """What the buffers do not tell."""
        return {"form": self.form, "eps": self.eps, "include_logdet": self.include_logdet}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take form, eps and include_logdet from a state."""
        self.form, self.eps, self.include_logdet = state["form"], state["eps"], state["include_logdet"]

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> PerceptualReward:
        """The reward of a state, whatever its sizes.

        Args:
            state: Of another one's `state_dict()`.

        Returns:
            The reward.
        """
        reward = cls(len(state["mean"]), *state["index"].shape)
        reward.to(state["mean"].device, state["mean"].dtype).load_state_dict(state)
        return reward


def labelled_frames(
    demos: list[Tensor], n_steps: int, cuts: Sequence[Tensor] | None, min_size: int, **discovery: Any
) -> tuple[Tensor, Tensor]:
    """All frames (N, F) of demonstrations, in float32 at least, and the step of each (N,)."""
    if cuts is None:
        cuts = discover_steps_batch(demos, n_steps, min_size=min_size, **discovery)
    elif len(cuts) != len(demos):
        raise ValueError(f"cuts must be as many as demos, {len(demos)}, got {len(cuts)}")
    else:
        cuts = [
            checked_cuts(f"cuts[{i}]", one, len(X))
            for i, (one, X) in enumerate(zip(cuts, demos, strict=True))
        ]
        for number, one in enumerate(cuts):
            if len(one) != n_steps - 1:
                raise ValueError(f"cuts[{number}] must have {n_steps - 1} cuts, got {len(one)}")
    labels = torch.cat([step_labels(one, len(X)).to(X.device) for one, X in zip(cuts, demos, strict=True)])
    frames = torch.cat(demos)
    return frames.to(torch.promote_types(frames.dtype, torch.float32)), labels


def normalisation(frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and deviation (F,) of each feature over all frames, and whether it varies at all."""
    exact = frames.double()
    mean, std = exact.mean(0), exact.std(0, correction=0)
    size = torch.maximum(mean.abs() * torch.finfo(frames.dtype).eps * 4, DEAD * std.max())
    alive = (std > size) & (std > 0)
    if not bool(alive.any()):
        raise ValueError("demos must have a feature that varies, got constant ones only")
    std = torch.where(alive, std, 1.0)
    return mean.to(frames.dtype), std.to(frames.dtype), alive
