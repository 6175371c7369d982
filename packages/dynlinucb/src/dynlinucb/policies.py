"""DynLin-UCB and the schedule of its holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dynlinucb._convert import as_count
from dynlinucb._policy import Bounds, Generators, RandomNumbers
from dynlinucb._ridge import LinearPolicy, fixed
from dynlinucb.actions import Ellipsoid, FiniteActions
from dynlinucb.system import NO_MEMORY

_TOLERANCE = 1e-9  # keeps log(8) / log(2) from falling below 3


def epoch_lengths(spectral_radius: float, num_epochs: int) -> Tensor:
    """How many rounds DynLin-UCB holds its action in each epoch: `1 + floor(log m / log(1 / rho))`.

    After H further rounds at most `rho^H`, about 1 / m in epoch m, is left of the past (paper, algorithm 1).

    Args:
        spectral_radius: Bound rho on the spectral radius, in [0, 1).
        num_epochs: Number of epochs.

    Returns:
        Shape (num_epochs,), int64, for m = 1, 2, ...

    Raises:
        ValueError: If an argument is outside its range.

    Examples:
        >>> epoch_lengths(0.5, 8)
        tensor([1, 2, 2, 3, 3, 3, 3, 4])
    """
    if not 0 <= spectral_radius < 1:
        raise ValueError(f"spectral_radius must be in [0, 1), got {spectral_radius}")
    num_epochs = as_count("num_epochs", num_epochs, least=0)
    epochs = torch.arange(1, num_epochs + 1, dtype=torch.float64)
    if spectral_radius < NO_MEMORY:
        return torch.ones(num_epochs, dtype=torch.int64)
    return 1 + (epochs.log() / -math.log(spectral_radius) + _TOLERANCE).floor().long()


class DynLinUCB(LinearPolicy):
    """DynLin-UCB: optimism for rewards with a memory (paper, algorithm 1).

    Epoch m chooses `argmax <h_hat, u> + beta_{t-1} ||u||_{V^{-1}}` and holds it for
    `1 + floor(log m / log(1 / rho))` rounds, until next to nothing is left of what was done before. Only the
    last reward of a hold, nearly the steady-state one, enters the ridge regression. The radius counts rounds:

    `beta_t = c1 / sqrt(lambda) log(e (t + 1)) + c2 sqrt(lambda) + sqrt(2 sigma_tilde^2 (log(1 / delta)
    + d / 2 log(1 + t U^2 / (d lambda))))`.

    A decision costs O(K d^2), an update O(d^2); memory is O(S d^2 + K d^2).

    Args:
        actions: Candidates of shape (K, d), or an `Ellipsoid`.
        bounds: Bounds on the hidden system; a sequence gives every replica its own, all with the same
            `spectral_radius` (replicas hold in lock-step).
        horizon: Number of rounds T planned; None for anytime use.
        regularization: lambda: positive, one per replica, or "log" for log T (the paper's main version).
        delta: Probability of failure; None takes 1 / T, or 1 / (t + 1)^2 without a horizon.
        beta_scale: Factor on beta, or one per replica; 1 is the paper. The theory's constants are very careful.
        use: "last" feeds the last reward of a hold (the paper); "tail_mean" the mean of those after the first
            ceil(H / 2) rounds of it.
        first: "ucb" starts as the paper does; "random" with a random action held for 2 rounds, as the
            official code does.
        replicas: Number S of replicas in lock-step; None for one, without a leading dimension.
        generator: Randomness of `first="random"`, one or one per replica.
        dtype: Of all computations.
        device: Of all computations; None takes that of `actions`.

    Raises:
        TypeError: If actions or dtype are not floating-point.
        ValueError: If an argument is outside its range.

    Examples:
        >>> from dynlinucb import SystemBounds
        >>> actions = torch.eye(2, dtype=torch.float64)
        >>> bounds = SystemBounds(0.5, 1.0, 1.0, 1.0, 1.0, 2.0, 1.0, 0.1)
        >>> policy = DynLinUCB(actions, bounds, horizon=1000)
        >>> for _ in range(100):
        ...     action = policy.act()  # play it in your system ...
        ...     policy.update(reward=float(action[1]))
        >>> policy.estimate.argmax()
        tensor(1)
    """

    _state: tuple[str, ...] = ("_packed", "_tail")
    _numpy_path = True
    _counters = (*LinearPolicy._counters, "_epoch", "_came")
    _settings = (*LinearPolicy._settings, "_spectral_radius", "_use_last")

    spectral_radius = fixed("spectral_radius", "Bound on the spectral radius: how long actions are held.")
    use = fixed("use", 'What is learned from: "last" or "tail_mean".')
    first = fixed("first", 'How it starts: "ucb" or "random".')

    def __init__(
        self,
        actions: Any,
        bounds: Bounds,
        *,
        horizon: int | None = None,
        regularization: Any = "log",
        delta: float | None = None,
        beta_scale: float | Sequence[float] = 1.0,
        use: str = "last",
        first: str = "ucb",
        replicas: int | None = None,
        generator: Generators = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(
            actions,
            bounds,
            horizon=horizon,
            regularization=regularization,
            delta=delta,
            beta_scale=beta_scale,
            replicas=replicas,
            dtype=dtype,
            device=device,
        )
        if use not in ("last", "tail_mean"):
            raise ValueError(f"use must be 'last' or 'tail_mean', got {use!r}")
        if first not in ("ucb", "random"):
            raise ValueError(f"first must be 'ucb' or 'random', got {first!r}")
        radii = {one.spectral_radius for one in self._bounds}
        if len(radii) > 1:
            raise ValueError(f"bounds must share one spectral_radius (lock-step), got {sorted(radii)}")
        if first == "random" and isinstance(self.actions, Ellipsoid):
            raise ValueError("first must be 'ucb' for an Ellipsoid, got 'random'")
        self._use, self._first = use, first
        self._pace(radii.pop())
        self._use_last = use == "last"
        self._hears_last_only = self._use_last and type(self) is DynLinUCB  # who inherits may want more
        if first == "random":
            self._random = RandomNumbers(self.num_replicas, generator, self.device)
        self._epoch = 0  # of the present hold; 0 before the first
        self._tail = self._zeros(1)  # sum of the tail's rewards
        self._came = 0  # how many of them

    def _pace(self, spectral_radius: float) -> None:
        self._spectral_radius = spectral_radius
        self._log_decay = -math.log(spectral_radius) if spectral_radius >= NO_MEMORY else math.inf

    @property
    def epoch(self) -> int:
        """Index m of the present epoch, from 1; 0 before the first."""
        return self._epoch

    def _beta(self, rounds: Tensor) -> Tensor:
        transient = self._told["transient_constant"] / self._regularization.mT.sqrt()
        return transient * (1 + rounds.log1p().unsqueeze(-1)) + self._dynamical_beta(rounds)

    def _decide(self) -> tuple[Tensor, Tensor]:
        self._epoch += 1
        if self._random and self.round == 0 and isinstance(self.actions, FiniteActions):
            choice = (self._random.draw().squeeze(-1) * self.actions.num_actions).long()
            return choice, self.actions.vectors(choice)
        return super()._decide()

    def _hold_length(self) -> int:
        extra = self._first == "random" and self.round == 0
        return 1 + int(math.log(self._epoch) / self._log_decay + _TOLERANCE) + extra

    def _learn(self, rewards: Tensor) -> None:
        if self._use_last:
            if self.rounds_left == 0:
                self._regress(rewards[:, -1:])
            return
        burn_in = self.hold_length // 2  # ceil(H / 2) with H = hold_length - 1
        played = self.hold_length - self.rounds_left - rewards.shape[1]
        tail = rewards[:, max(burn_in - played, 0) :]
        self._tail += tail.sum(1, keepdim=True)
        self._came += tail.shape[1]
        self._end_tail()

    def _learn_number(self, reward: float) -> None:
        if self._alone is None or not self._use_last:
            super()._learn_number(reward)
        elif self.rounds_left == 0:
            self._alone.learn(self._action, reward)

    def _miss(self) -> None:
        self._end_tail()

    def _learn_late(self, action: Tensor, rewards: Tensor, settled: bool) -> None:
        if not self._use_last:
            raise TypeError(
                "DynLinUCB cannot learn from late rewards with use='tail_mean', of what came in time"
            )
        if settled:
            self._regress(rewards[:, -1:], action)

    def _end_tail(self) -> None:
        if self.rounds_left == 0 and self._came:
            self._regress(self._tail / self._came)
            self._tail.zero_()
            self._came = 0

    def _learn_run(self, rewards: Tensor) -> None:
        self._epoch += 1
        self.hold_length = self._hold_length()
        if rewards.shape[1] < self.hold_length:
            self._epoch -= 1
            return
        self.rounds_left = 0
        self._learn(rewards[:, -self.hold_length :])
