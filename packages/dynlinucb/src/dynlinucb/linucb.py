"""The linear bandits that DynLin-UCB is held against: LinUCB and D-LinUCB."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dynlinucb._policy import Bounds
from dynlinucb._ridge import LinearPolicy, fixed


class LinUCB(LinearPolicy):
    """LinUCB: a decision every round, and every reward taken for the action's own (Abbasi-Yadkori et al. 2011).

    Args:
        actions: Candidates of shape (K, d), or an `Ellipsoid`.
        bounds: Bounds on the hidden system, or one per replica.
        horizon: Number of rounds T planned; None for anytime use.
        regularization: lambda: positive, one per replica, or "log" for log T.
        delta: Probability of failure; None takes 1 / T, or 1 / (t + 1)^2 without a horizon.
        beta_scale: Factor on beta, or one per replica.
        constants: "dynamical" takes DynLin-UCB's radius without its c1 term; "static" LinUCB's own
            `Theta sqrt(lambda) + sqrt(2 log(1/delta) + d log(1 + T U^2 / (d lambda)))` with noise of scale 1,
            as in the official code.
        replicas: Number S of replicas in lock-step; None for one, without a leading dimension.
        dtype: Of all computations.
        device: Of all computations; None takes that of `actions`.

    Raises:
        TypeError: If actions or dtype are not floating-point.
        ValueError: If an argument is outside its range.

    Examples:
        >>> from dynlinucb import SystemBounds
        >>> bounds = SystemBounds(0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.1)
        >>> LinUCB(torch.eye(2), bounds, regularization=1.0).act()
        tensor([1., 0.], dtype=torch.float64)
    """

    _numpy_path = True

    def __init__(
        self,
        actions: Any,
        bounds: Bounds,
        *,
        horizon: int | None = None,
        regularization: Any = "log",
        delta: float | None = None,
        beta_scale: float | Sequence[float] = 1.0,
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
        dimension, ridge = self.actions.dimension, self._regularization.mT
        sizes = self._told["action_norm"].square() / (dimension * ridge)
        horizon = rounds if self._horizon is None else torch.full_like(rounds, self._horizon)
        spread = 2 * self._log_inverse_delta(rounds) + dimension * (horizon.unsqueeze(-1) * sizes).log1p()
        return self._told["theta_norm"] * ridge.sqrt() + spread.sqrt()

    def _learn(self, rewards: Tensor) -> None:
        self._regress(rewards)

    def _learn_late(self, action: Tensor, rewards: Tensor, settled: bool) -> None:
        for reward in rewards.split(1, dim=1):
            self._regress(reward, action)

    def _learn_number(self, reward: float) -> None:
        if self._alone is None:
            super()._learn_number(reward)
        else:
            self._alone.learn(self._action, reward)


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
        beta_scale: Factor on beta, or one per replica.
        constants: "dynamical" takes c2 and sigma tilde of the hidden system; "static" Theta and sigma.
        replicas: Number S of replicas in lock-step; None for one, without a leading dimension.
        dtype: Of all computations.
        device: Of all computations; None takes that of `actions`.

    Raises:
        TypeError: If actions or dtype are not floating-point.
        ValueError: If an argument is outside its range.

    Examples:
        >>> from dynlinucb import SystemBounds
        >>> bounds = SystemBounds(0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.1)
        >>> DLinUCB(torch.eye(2), bounds, discount=0.99, regularization=1.0).act()
        tensor([1., 0.], dtype=torch.float64)
    """

    _state = ("_packed", "_design", "_design_squared")
    _settings = (*LinUCB._settings, "_discount")

    discount = fixed("discount", "gamma.")

    def __init__(
        self,
        actions: Any,
        bounds: Bounds,
        *,
        discount: float = 0.999999,
        horizon: int | None = None,
        regularization: Any = "log",
        delta: float | None = None,
        beta_scale: float | Sequence[float] = 1.0,
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
        self._discount = discount
        dimension = self.actions.dimension
        self._design = self._zeros(dimension, dimension + 1)  # [V - lambda I | b]
        self._design_squared = self._zeros(dimension, dimension)  # V~ - lambda I
        identity = torch.eye(dimension, dtype=dtype, device=self.device)
        self._ridge = identity * self._regularization.unsqueeze(-1)
        self._inverse = self._packed[:, :, :-1].clone()  # V^{-1}; _packed holds the width's matrix

    def _beta(self, rounds: Tensor) -> Tensor:
        dimension, ridge = self.actions.dimension, self._regularization.mT
        weight = -torch.expm1(2 * math.log(self._discount) * rounds) / (1 - self._discount**2)
        sizes = self._told["action_norm"].square() / (dimension * ridge)
        spread = 2 * self._log_inverse_delta(rounds) + dimension * (weight.unsqueeze(-1) * sizes).log1p()
        told = self._told
        size = torch.where(self._static, told["theta_norm"], told["parameter_constant"])
        noise = torch.where(self._static, told["sigma"], told["reward_sigma"])
        return size * ridge.sqrt() + noise * spread.sqrt()

    def _learn(self, rewards: Tensor) -> None:
        row = torch.cat([self._action, rewards], 1).unsqueeze(1)
        column = self._action.unsqueeze(2)
        self._design.baddbmm_(column, row, beta=self._discount)
        self._design_squared.baddbmm_(column, row[:, :, :-1], beta=self._discount**2)
        self._inverse = torch.linalg.inv_ex(self._design[:, :, :-1] + self._ridge)[0]
        middle = torch.bmm(self._design_squared + self._ridge, self._inverse)
        self._packed = torch.bmm(self._inverse, torch.cat([middle, self._design[:, :, -1:]], 2))

    def _learn_late(self, action: Tensor, rewards: Tensor, settled: bool) -> None:
        raise TypeError("DLinUCB cannot learn from late rewards: it weighs them by their age")

    @property
    def inverse_design(self) -> Tensor:
        """V^{-1}, shape (d, d) or (S, d, d)."""
        return self._inverse.clone() if self.replicas else self._inverse[0].clone()

    def _after_load(self) -> None:
        self._inverse = torch.linalg.inv_ex(self._design[:, :, :-1] + self._ridge)[0]
