"""Policies that know nothing of linear effects: Exp3 in two forms, AR2, and a fixed action."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dynlinucb._convert import as_count
from dynlinucb._policy import Bounds, Generators, Policy, RandomNumbers, as_bounds
from dynlinucb.actions import FiniteActions
from dynlinucb.policies import epoch_lengths
from dynlinucb.system import NO_MEMORY


class FixedAction(Policy):
    """The same action for ever: an expert, or the clairvoyant with `system.optimal(actions)[0]`.

    Args:
        actions: Candidates of shape (K, d).
        index: Which of them.
        replicas: Number S of replicas; None for one, without a leading dimension.
        dtype: Of all computations.
        device: Of all computations; None takes that of `actions`.

    Raises:
        ValueError: If `index` is outside 0..K-1.

    Examples:
        >>> FixedAction(torch.eye(2), 1).act()
        tensor([0., 1.], dtype=torch.float64)
    """

    def __init__(
        self,
        actions: Any,
        index: int,
        *,
        replicas: int | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(actions, replicas=replicas, dtype=dtype, device=device)
        count, index = _finite(self.actions).num_actions, as_count("index", index, least=0)
        if index >= count:
            raise ValueError(f"index must be in 0..{count - 1}, got {index}")
        self.index = index

    def _choose(self) -> Tensor:
        return torch.full_like(self._choice, self.index)

    def _hold_length(self) -> int:
        return 2**62

    def _learn(self, rewards: Tensor) -> None:
        pass


class Exp3(Policy):
    """Exp3: exponential weights for adversarial rewards (Auer et al. 2002), with the official settings.

    Probabilities are `(1 - gamma) softmax(eta G) + gamma / K` with `gamma = min(1, sqrt(K log K /
    ((e - 1) 2 T / 3)))` and `eta = gamma / K`; G sums `reward / probability`, the reward mapped into [0, 1] by
    `(y + 2 M) / (4 M)`, M = `bounds.reward_norm`.

    Args:
        actions: Candidates of shape (K, d).
        bounds: Bounds on the hidden system, or one per replica.
        horizon: Number of rounds T planned.
        replicas: Number S of replicas; None for one, without a leading dimension.
        generator: Randomness of the choices, one or one per replica; None takes torch's global one, whose
            state `state_dict` does not keep.
        dtype: Of all computations.
        device: Of all computations; None takes that of `actions`.

    Raises:
        TypeError: If `actions` is an `Ellipsoid`.
        ValueError: If an argument is outside its range.

    Examples:
        >>> from dynlinucb import SystemBounds
        >>> bounds = SystemBounds(0.5, 1.0, 1.0, 1.0, 1.0, 2.0, 1.0, 0.1)
        >>> policy = Exp3(torch.eye(2), bounds, horizon=100, generator=torch.Generator().manual_seed(0))
        >>> policy.probabilities
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """

    _state: tuple[str, ...] = ("_gains", "_probabilities")
    _settings: tuple[str, ...] = ("exploration", "_scale")

    def __init__(
        self,
        actions: Any,
        bounds: Bounds,
        *,
        horizon: int,
        replicas: int | None = None,
        generator: Generators = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(actions, replicas=replicas, dtype=dtype, device=device)
        horizon = as_count("horizon", horizon)
        self.bounds, self.horizon = as_bounds(bounds), horizon
        count = _finite(self.actions).num_actions
        self._set_rate(horizon)
        self._scale = 4 * self._bound(bounds, "reward_norm")
        if not bool((self._scale > 0).all()):
            raise ValueError("bounds must have a positive reward_norm, got 0")
        self._gains = self._zeros(count)
        self._probabilities = torch.full_like(self._gains, 1 / count)
        self._random = RandomNumbers(self.num_replicas, generator, self.device)

    def _set_rate(self, num_decisions: float) -> None:
        count = _finite(self.actions).num_actions
        rate = math.sqrt(count * math.log(count) / ((math.e - 1) * 2 * num_decisions / 3))
        self.exploration = min(1.0, rate)  # gamma
        self.learning_rate = self.exploration / count  # eta

    @property
    def probabilities(self) -> Tensor:
        """Of each action, shape (K,) or (S, K)."""
        return self._probabilities.clone() if self.replicas else self._probabilities[0].clone()

    def _choose(self) -> Tensor:
        assert self._random is not None
        thresholds = self._probabilities.cumsum(1)
        # Rounding may leave the last threshold just below 1.
        return (thresholds[:, :-1] <= self._random.draw()).sum(1)

    def _learn(self, rewards: Tensor) -> None:
        self._reinforce(rewards)

    def _reinforce(self, reward: Tensor) -> None:
        chosen = self._choice.unsqueeze(1)
        gain = (reward / self._scale + 0.5) / self._probabilities.gather(1, chosen)
        self._gains.scatter_add_(1, chosen, gain)
        weights = (self.learning_rate * self._gains).softmax(1)
        self._probabilities = weights.mul_(1 - self.exploration).add_(self.learning_rate)


class BatchExp3(Exp3):
    """Exp3 that holds each action for a fixed number of rounds and learns from their mean reward.

    The official baseline holds `ceil(log M / log(1 / rho))` rounds, M the number of DynLin-UCB's epochs.

    Args:
        actions: Candidates of shape (K, d).
        bounds: Bounds on the hidden system, or one per replica (of one `spectral_radius`).
        horizon: Number of rounds T planned.
        batch_size: Rounds to hold; None takes the official number.
        replicas: Number S of replicas; None for one, without a leading dimension.
        generator: Randomness of the choices, one or one per replica.
        dtype: Of all computations.
        device: Of all computations; None takes that of `actions`.

    Raises:
        TypeError: If `actions` is an `Ellipsoid`.
        ValueError: If an argument is outside its range.

    Examples:
        >>> from dynlinucb import SystemBounds
        >>> bounds = SystemBounds(0.5, 1.0, 1.0, 1.0, 1.0, 2.0, 1.0, 0.1)
        >>> BatchExp3(torch.eye(2), bounds, horizon=100).batch_size
        5
    """

    _state = ("_gains", "_probabilities", "_sum")
    _counters = (*Exp3._counters, "_came")
    _settings = (*Exp3._settings, "batch_size")

    def __init__(
        self,
        actions: Any,
        bounds: Bounds,
        *,
        horizon: int,
        batch_size: int | None = None,
        replicas: int | None = None,
        generator: Generators = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(
            actions,
            bounds,
            horizon=horizon,
            replicas=replicas,
            generator=generator,
            dtype=dtype,
            device=device,
        )
        if batch_size is None:
            radii = {one.spectral_radius for one in self.bounds}
            if len(radii) > 1:
                raise ValueError(f"bounds must share one spectral_radius (lock-step), got {sorted(radii)}")
            batch_size = _official_batch_size(radii.pop(), self.horizon)
        self.batch_size = as_count("batch_size", batch_size)
        self._set_rate(self.horizon / self.batch_size)
        self._sum = self._zeros(1)
        self._came = 0  # rewards in it

    def _hold_length(self) -> int:
        return self.batch_size

    def _learn(self, rewards: Tensor) -> None:
        self._sum += rewards.sum(1, keepdim=True)
        self._came += rewards.shape[1]
        self._miss()

    def _miss(self) -> None:
        if self.rounds_left == 0 and self._came:
            self._reinforce(self._sum / self._came)
            self._sum.zero_()
            self._came = 0


class AR2(Policy):
    """AR2: alternating and restarting, for rewards that are auto-regressive processes (Chen et al. 2021).

    Taking each action's reward for an AR(1) process of coefficient alpha (here the spectral radius), AR2 plays
    the better of the last two actions, and every second round the one that has waited longest since it was
    triggered: since its discounted estimate came within
    `24 c0 sigma sqrt((alpha^2 - alpha^{2 (t - tau + 1)}) / (1 - alpha^2))` of that. All is forgotten every
    `ceil(K alpha^-3 sigma^-3)` rounds; `c0 = sqrt(4 log(1 / (alpha sigma)) + 4 log(epoch) + 2 log(4 K))`.

    Args:
        actions: Candidates of shape (K, d).
        bounds: Bounds on the hidden system, or one per replica; only `spectral_radius` and `sigma` are used.
        replicas: Number S of replicas; None for one, without a leading dimension.
        dtype: Of all computations.
        device: Of all computations; None takes that of `actions`.

    Raises:
        TypeError: If `actions` is an `Ellipsoid`.
        ValueError: If a `spectral_radius` or `sigma` is 0.

    Examples:
        >>> from dynlinucb import SystemBounds
        >>> bounds = SystemBounds(0.5, 1.0, 1.0, 1.0, 1.0, 2.0, 1.0, 0.1)
        >>> AR2(torch.eye(2), bounds).restart_every
        tensor([16000])
    """

    _state = ("_estimates", "_pulled", "_triggered", "_last", "_before")
    _settings = ("_alpha", "_length")

    def __init__(
        self,
        actions: Any,
        bounds: Bounds,
        *,
        replicas: int | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(actions, replicas=replicas, dtype=dtype, device=device)
        self.bounds = as_bounds(bounds)
        if any(one.spectral_radius < NO_MEMORY or one.sigma <= 0 for one in self.bounds):
            raise ValueError("bounds must have a positive spectral_radius and sigma for AR2, got 0")
        count = _finite(self.actions).num_actions
        alpha, sigma = self._bound(bounds, "spectral_radius"), self._bound(bounds, "sigma")
        length = (count / (alpha * sigma) ** 3 * (1 - 1e-12)).ceil()
        level = (4 * (length / (alpha * sigma)).log() + 2 * math.log(4 * count)).sqrt()
        self.restart_every = length.long().squeeze(1)
        self._alpha, self._length = alpha, length.long()
        # The squared width of an action is ceiling - alpha^(2 (t - tau + 1)) factor.
        self._factor = (24 * level * sigma).square() / (1 - alpha.square())
        self._ceiling, self._log_square = alpha.square() * self._factor, 2 * alpha.log()
        self._estimates, self._pulled = self._zeros(count), self._zeros(count)
        self._triggered = self._zeros(count).fill_(math.inf)
        self._last = torch.zeros_like(self._choice)
        self._before = torch.zeros_like(self._choice)

    def _choose(self) -> Tensor:
        count = self._estimates.shape[1]
        position = self.round % self._length  # rounds since the restart, (S, 1) or (1, 1)
        start = position == 0
        self._triggered = torch.where(start, math.inf, self._triggered)
        pair = torch.stack([self._last, self._before], 1)
        values = self._estimates.gather(1, pair)
        better = torch.where(values[:, :1] >= values[:, 1:], pair[:, :1], pair[:, 1:])
        gap = values.amax(1, keepdim=True) - self._estimates
        age = self.round - self._pulled + 1
        width = (self._ceiling - (age * self._log_square).exp() * self._factor).clamp_min(0).sqrt()
        new = (gap <= width) & self._triggered.isinf() & (position >= count)
        new.scatter_(1, better, False)
        self._triggered = torch.where(new, float(self.round), self._triggered)
        if self.round % 2 == 0:  # odd rounds, counted from 1
            oldest, waiting = self._triggered.min(1, keepdim=True)
            better = torch.where(oldest.isinf(), better, waiting)
        return torch.where(position < count, position.clamp_max(count - 1), better).squeeze(1)

    def _learn(self, rewards: Tensor) -> None:
        self._estimates.scatter_(1, self._choice.unsqueeze(1), rewards)
        self._miss()

    def _miss(self) -> None:
        chosen = self._choice.unsqueeze(1)
        self._estimates.mul_(self._alpha)
        self._pulled.scatter_(1, chosen, float(self.round - 1))
        self._triggered.scatter_(1, chosen, math.inf)
        self._before, self._last = self._last, self._choice


def _finite(actions: Any) -> FiniteActions:
    if not isinstance(actions, FiniteActions):
        raise TypeError(f"actions must be a table of shape (K, d), got {type(actions).__name__}")
    return actions


def _official_batch_size(spectral_radius: float, horizon: int) -> int:
    if spectral_radius < NO_MEMORY:
        return 1
    total = epoch_lengths(spectral_radius, horizon).cumsum(0)
    num_epochs = int((total < horizon).sum()) + 1
    return max(1, math.ceil(math.log(num_epochs) / -math.log(spectral_radius)))
