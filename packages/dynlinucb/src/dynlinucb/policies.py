"""Policies with a linear model: DynLin-UCB and the linear bandits that it is held against."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dynlinucb._policy import Bounds, Generators, Policy, RandomNumbers, as_bounds
from dynlinucb.actions import Ellipsoid, FiniteActions
from dynlinucb.system import NO_MEMORY

_BLOCK = 1024  # rounds whose confidence radii are made in one go


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

    Example:
        >>> epoch_lengths(0.5, 8)
        tensor([1, 2, 2, 3, 3, 3, 3, 4])
    """
    if not 0 <= spectral_radius < 1:
        raise ValueError(f"spectral_radius must be in [0, 1), got {spectral_radius}")
    if num_epochs < 0:
        raise ValueError(f"num_epochs must not be negative, got {num_epochs}")
    epochs = torch.arange(1, num_epochs + 1, dtype=torch.float64)
    if spectral_radius < NO_MEMORY:
        return torch.ones(num_epochs, dtype=torch.int64)
    # The tolerance keeps log(8) / log(2) from falling below 3.
    return 1 + (epochs.log() / -math.log(spectral_radius) + 1e-9).floor().long()


class LinearPolicy(Policy):
    """What the linear policies share: ridge regression and an optimistic choice.

    The inverse of the design V and the estimate are kept side by side as [V^{-1} | estimate]; Sherman and
    Morrison's formula updates both at once.
    """

    _state: tuple[str, ...] = ("_packed",)

    def __init__(
        self,
        actions: Any,
        bounds: Bounds,
        *,
        horizon: int | None = None,
        regularization: Any = "log",
        delta: float | None = None,
        beta_scale: float = 1.0,
        replicas: int | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(actions, replicas=replicas, dtype=dtype, device=device)
        if horizon is not None and horizon < 1:
            raise ValueError(f"horizon must be at least 1, got {horizon}")
        if isinstance(regularization, str):
            if regularization != "log":
                raise ValueError(f"regularization must be 'log' or positive, got {regularization!r}")
            if horizon is None or horizon < 2:
                raise ValueError(f"horizon must be at least 2 with regularization='log', got {horizon}")
            regularization = math.log(horizon)
        if delta is not None and not 0 < delta < 1:
            raise ValueError(f"delta must be in (0, 1) or None, got {delta}")
        if not 0 <= beta_scale < math.inf:
            raise ValueError(f"beta_scale must be finite and not negative, got {beta_scale}")
        self.bounds, self.horizon = as_bounds(bounds), horizon
        self.regularization = self._per_replica("regularization", regularization)
        if not bool(((self.regularization > 0) & self.regularization.isfinite()).all()):
            raise ValueError(f"regularization must be 'log' or positive, got {regularization}")
        self.delta, self.beta_scale = delta, beta_scale
        norms = self._bound(bounds, "action_norm")
        if self.actions.norm > float(norms.min()) * (1 + 1e-6):
            raise ValueError(
                f"bounds must have an action_norm of at least {self.actions.norm:.6g} (the longest action), "
                f"got {float(norms.min()):.6g}"
            )
        dimension = self.actions.dimension
        self._packed = self._zeros(dimension, dimension + 1)
        identity = torch.eye(dimension, dtype=dtype, device=self.device)
        self._packed[:, :, :-1] = identity / self.regularization.unsqueeze(-1)
        self._radii = self._packed.new_empty(0)
        self._radii_start = 0
        self._one = self._packed.new_ones(())

    @property
    def estimate(self) -> Tensor:
        """The ridge solution, shape (d,) or (S, d). Of DynLin-UCB: of the cumulative Markov parameter h."""
        found = self._packed[:, :, -1].clone()
        return found if self.replicas else found[0]

    @property
    def inverse_design(self) -> Tensor:
        """V^{-1}, shape (d, d) or (S, d, d)."""
        found = self._packed[:, :, :-1].clone()
        return found if self.replicas else found[0]

    def beta(self, rounds: Any) -> Tensor:
        """The confidence radius after some numbers of rounds.

        Args:
            rounds: Numbers of rounds played so far, shape (R,).

        Returns:
            Shape (R,), or (R, S) with replicas.
        """
        rounds = torch.as_tensor(rounds, dtype=torch.float64, device=self.device).reshape(-1)
        found = self.beta_scale * self._beta(rounds)
        return found.expand(-1, self.num_replicas).clone() if self.replicas else found[:, 0].clone()

    def confidence(self, actions: Any) -> Tensor:
        """How far off the estimated value of actions may be now, `beta ||u||_{V^{-1}}`.

        Args:
            actions: Shape (..., d).

        Returns:
            Shape (...), or (S, ...) with replicas.
        """
        actions = torch.as_tensor(actions, dtype=self.dtype, device=self.device)
        width = torch.einsum("...i,sij,...j->s...", actions, self._packed[:, :, :-1], actions)
        radius = (self.beta_scale * self._beta(self._rounds(self.round, 1)))[0].to(self.dtype)
        found = radius.reshape(-1, *(1,) * (width.dim() - 1)) * width.clamp_min(0).sqrt()
        return found if self.replicas else found[0]

    @abstractmethod
    def _beta(self, rounds: Tensor) -> Tensor:
        """The unscaled radius after `rounds` (R,) rounds: shape (R, 1) or (R, S)."""

    def _choose(self) -> Tensor:
        return self.actions.optimistic(self._packed, self._radius())

    def _radius(self) -> Tensor:
        """The radius now, (1, 1) or (S, 1), from a block made ahead."""
        ahead = self.round - self._radii_start
        if not 0 <= ahead < len(self._radii):
            block = self.beta_scale * self._beta(self._rounds(self.round, _BLOCK))
            self._radii = block.to(self.dtype).unsqueeze(-1)
            self._radii_start, ahead = self.round, 0
        return self._radii[ahead]

    def _rounds(self, start: int, count: int) -> Tensor:
        return torch.arange(start, start + count, dtype=torch.float64, device=self.device)

    def _log_inverse_delta(self, rounds: Tensor) -> Tensor:
        """log(1 / delta): as given, 1 / T, or 1 / (t + 1)^2 without a horizon. Shape (R, 1) or (1, 1)."""
        if self.delta is not None:
            return rounds.new_tensor([[-math.log(self.delta)]])
        if self.horizon is not None:
            return rounds.new_tensor([[math.log(self.horizon)]])
        return 2 * rounds.add(1).log().unsqueeze(-1)

    def _dynamical_beta(self, rounds: Tensor) -> Tensor:
        """`c2 sqrt(lambda) + sigma_tilde sqrt(2 log(1/delta) + d log(1 + t U^2 / (d lambda)))`."""
        dimension, ridge = self.actions.dimension, self.regularization.mT
        sizes = self._bound(self.bounds, "action_norm").mT.square() / (dimension * ridge)
        spread = 2 * self._log_inverse_delta(rounds) + dimension * (rounds.unsqueeze(-1) * sizes).log1p()
        bias = self._bound(self.bounds, "parameter_constant").mT * ridge.sqrt()
        return bias + self._bound(self.bounds, "reward_sigma").mT * spread.sqrt()

    def _regress(self, reward: Tensor) -> None:
        """One step of ridge regression on the present action and a reward (S, 1)."""
        action = self._action.unsqueeze(1)
        row = torch.bmm(action, self._packed)  # [u^T V^-1 | <estimate, u>]
        gain = row[:, :, :-1].mT
        scale = torch.baddbmm(self._one, action, gain)  # 1 + u^T V^-1 u
        row[:, :, -1].sub_(reward)
        self._packed.baddbmm_(gain, row / scale, alpha=-1)


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
        beta_scale: Factor on beta; 1 is the paper. The theory's constants are very careful.
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

    Example:
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

    _state = ("_packed", "_epoch", "_tail")

    def __init__(
        self,
        actions: Any,
        bounds: Bounds,
        *,
        horizon: int | None = None,
        regularization: Any = "log",
        delta: float | None = None,
        beta_scale: float = 1.0,
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
        radii = {one.spectral_radius for one in self.bounds}
        if len(radii) > 1:
            raise ValueError(f"bounds must share one spectral_radius (lock-step), got {sorted(radii)}")
        if first == "random" and isinstance(self.actions, Ellipsoid):
            raise ValueError("first must be 'ucb' for an Ellipsoid, got 'random'")
        self.spectral_radius, self.use, self.first = radii.pop(), use, first
        self._log_decay = -math.log(self.spectral_radius) if self.spectral_radius >= NO_MEMORY else math.inf
        if first == "random":
            self._random = RandomNumbers(self.num_replicas, generator, self.device)
        self._epoch = torch.zeros((), dtype=torch.int64)  # of the present hold; 0 before the first
        self._tail = self._zeros(1)  # sum of the tail's rewards

    @property
    def epoch(self) -> int:
        """Index m of the present epoch, from 1; 0 before the first."""
        return int(self._epoch)

    def _beta(self, rounds: Tensor) -> Tensor:
        transient = self._bound(self.bounds, "transient_constant").mT / self.regularization.mT.sqrt()
        return transient * (1 + rounds.log1p().unsqueeze(-1)) + self._dynamical_beta(rounds)

    def _choose(self) -> Tensor:
        self._epoch += 1
        if self._random and self.round == 0 and isinstance(self.actions, FiniteActions):
            return (self._random.draw().squeeze(-1) * self.actions.num_actions).long()
        return super()._choose()

    def _hold_length(self) -> int:
        extra = self.first == "random" and self.round == 0
        return 1 + int(math.log(int(self._epoch)) / self._log_decay + 1e-9) + extra

    def _learn(self, rewards: Tensor) -> None:
        if self.use == "last":
            if self.rounds_left == 0:
                self._regress(rewards[:, -1:])
            return
        burn_in = self.hold_length // 2  # ceil(H / 2) with H = hold_length - 1
        played = self.hold_length - self.rounds_left - rewards.shape[1]
        self._tail += rewards[:, max(burn_in - played, 0) :].sum(1, keepdim=True)
        if self.rounds_left == 0:
            self._regress(self._tail / (self.hold_length - burn_in))
            self._tail.zero_()


class LinUCB(LinearPolicy):
    """LinUCB: a decision every round, and every reward taken for the action's own (Abbasi-Yadkori et al. 2011).

    Args:
        actions: Candidates of shape (K, d), or an `Ellipsoid`.
        bounds: Bounds on the hidden system, or one per replica.
        horizon: Number of rounds T planned; None for anytime use.
        regularization: lambda: positive, one per replica, or "log" for log T.
        delta: Probability of failure; None takes 1 / T, or 1 / (t + 1)^2 without a horizon.
        beta_scale: Factor on beta.
        constants: "dynamical" takes DynLin-UCB's radius without its c1 term; "static" LinUCB's own
            `Theta sqrt(lambda) + sqrt(2 log(1/delta) + d log(1 + T U^2 / (d lambda)))` with noise of scale 1,
            as in the official code.
        replicas: Number S of replicas in lock-step; None for one, without a leading dimension.
        dtype: Of all computations.
        device: Of all computations; None takes that of `actions`.

    Raises:
        TypeError: If actions or dtype are not floating-point.
        ValueError: If an argument is outside its range.

    Example:
        >>> from dynlinucb import SystemBounds
        >>> bounds = SystemBounds(0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.1)
        >>> LinUCB(torch.eye(2), bounds, regularization=1.0).act()
        tensor([1., 0.], dtype=torch.float64)
    """

    def __init__(
        self,
        actions: Any,
        bounds: Bounds,
        *,
        horizon: int | None = None,
        regularization: Any = "log",
        delta: float | None = None,
        beta_scale: float = 1.0,
        constants: str | Sequence[str] = "dynamical",
        replicas: int | None = None,
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
        kinds = [constants] if isinstance(constants, str) else list(constants)
        for kind in kinds:
            if kind not in ("dynamical", "static"):
                raise ValueError(f"constants must be 'dynamical' or 'static', got {kind!r}")
        self._static = self._per_replica("constants", [float(kind == "static") for kind in kinds]).mT.bool()

    def _beta(self, rounds: Tensor) -> Tensor:
        return torch.where(self._static, self._static_beta(rounds), self._dynamical_beta(rounds))

    def _static_beta(self, rounds: Tensor) -> Tensor:
        dimension, ridge = self.actions.dimension, self.regularization.mT
        sizes = self._bound(self.bounds, "action_norm").mT.square() / (dimension * ridge)
        horizon = rounds if self.horizon is None else torch.full_like(rounds, self.horizon)
        spread = 2 * self._log_inverse_delta(rounds) + dimension * (horizon.unsqueeze(-1) * sizes).log1p()
        return self._bound(self.bounds, "theta_norm").mT * ridge.sqrt() + spread.sqrt()

    def _learn(self, rewards: Tensor) -> None:
        self._regress(rewards)


class DLinUCB(LinUCB):
    """D-LinUCB: LinUCB that forgets, for effects that drift (Russac, Vernade, Cappe, NeurIPS 2019).

    With a discount gamma it keeps `V <- gamma V + u u^T + (1 - gamma) lambda I`, the same with gamma^2 as V~,
    and `b <- gamma b + u y`; the width of an action is its norm under `V^{-1} V~ V^{-1}`. Every decision inverts
    V: O(d^3).

    Args:
        actions: Candidates of shape (K, d), or an `Ellipsoid`.
        bounds: Bounds on the hidden system, or one per replica.
        discount: gamma, in (0, 1).
        horizon: Number of rounds T planned; None for anytime use.
        regularization: lambda: positive, one per replica, or "log" for log T.
        delta: Probability of failure; None takes 1 / T, or 1 / (t + 1)^2 without a horizon.
        beta_scale: Factor on beta.
        constants: "dynamical" takes c2 and sigma tilde of the hidden system; "static" Theta and sigma.
        replicas: Number S of replicas in lock-step; None for one, without a leading dimension.
        dtype: Of all computations.
        device: Of all computations; None takes that of `actions`.

    Raises:
        TypeError: If actions or dtype are not floating-point.
        ValueError: If an argument is outside its range.

    Example:
        >>> from dynlinucb import SystemBounds
        >>> bounds = SystemBounds(0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.1)
        >>> DLinUCB(torch.eye(2), bounds, discount=0.99, regularization=1.0).act()
        tensor([1., 0.], dtype=torch.float64)
    """

    _state = ("_packed", "_design", "_design_squared")

    def __init__(
        self,
        actions: Any,
        bounds: Bounds,
        *,
        discount: float = 0.999999,
        horizon: int | None = None,
        regularization: Any = "log",
        delta: float | None = None,
        beta_scale: float = 1.0,
        constants: str | Sequence[str] = "dynamical",
        replicas: int | None = None,
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
            constants=constants,
            replicas=replicas,
            dtype=dtype,
            device=device,
        )
        if not 0 < discount < 1:
            raise ValueError(f"discount must be in (0, 1), got {discount}")
        self.discount = discount
        dimension = self.actions.dimension
        self._design = self._zeros(dimension, dimension + 1)  # [V - lambda I | b]
        self._design_squared = self._zeros(dimension, dimension)  # V~ - lambda I
        identity = torch.eye(dimension, dtype=dtype, device=self.device)
        self._ridge = identity * self.regularization.unsqueeze(-1)
        self._inverse = self._packed[:, :, :-1].clone()  # V^{-1}; _packed holds the width's matrix

    def _beta(self, rounds: Tensor) -> Tensor:
        dimension, ridge = self.actions.dimension, self.regularization.mT
        weight = -torch.expm1(2 * math.log(self.discount) * rounds) / (1 - self.discount**2)
        sizes = self._bound(self.bounds, "action_norm").mT.square() / (dimension * ridge)
        spread = 2 * self._log_inverse_delta(rounds) + dimension * (weight.unsqueeze(-1) * sizes).log1p()
        norm = {name: self._bound(self.bounds, name).mT for name in _D_LINUCB_BOUNDS}
        size = torch.where(self._static, norm["theta_norm"], norm["parameter_constant"])
        noise = torch.where(self._static, norm["sigma"], norm["reward_sigma"])
        return size * ridge.sqrt() + noise * spread.sqrt()

    def _learn(self, rewards: Tensor) -> None:
        row = torch.cat([self._action, rewards], 1).unsqueeze(1)
        column = self._action.unsqueeze(2)
        self._design.baddbmm_(column, row, beta=self.discount)
        self._design_squared.baddbmm_(column, row[:, :, :-1], beta=self.discount**2)
        self._inverse = torch.linalg.inv_ex(self._design[:, :, :-1] + self._ridge)[0]
        middle = torch.bmm(self._design_squared + self._ridge, self._inverse)
        self._packed = torch.bmm(self._inverse, torch.cat([middle, self._design[:, :, -1:]], 2))

    @property
    def inverse_design(self) -> Tensor:
        """V^{-1}, shape (d, d) or (S, d, d)."""
        return self._inverse.clone() if self.replicas else self._inverse[0].clone()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a `state_dict` of a policy made with the same arguments.

        Args:
            state: What `state_dict` returned.

        Raises:
            ValueError: If names or shapes are not this policy's.
        """
        super().load_state_dict(state)
        self._inverse = torch.linalg.inv_ex(self._design[:, :, :-1] + self._ridge)[0]


_D_LINUCB_BOUNDS = ("theta_norm", "parameter_constant", "sigma", "reward_sigma")
