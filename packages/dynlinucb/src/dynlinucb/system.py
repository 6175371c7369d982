"""The hidden linear system behind the reward, and what a policy must know of it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from dynlinucb._convert import as_count, as_real
from dynlinucb.actions import as_action_set

# Below this a system is taken for one without memory (as in the official code).
NO_MEMORY = 1e-6


@dataclass(frozen=True)
class SystemBounds:
    """What a policy is told: upper bounds on a hidden system and on the actions (paper, section 2).

    Attributes:
        spectral_radius: Bound on the spectral radius of A, in [0, 1). How slowly the past is forgotten.
        theta_norm: Bound on the norm of theta (the immediate effect).
        omega_norm: Bound on the norm of omega (how the state enters the reward).
        input_norm: Bound on the spectral norm of B (how actions enter the state).
        transient_growth: Bound on `sup_k ||A^k|| / spectral_radius^k`, at least 1.
        state_norm: Bound on the norm of the noise-free state.
        action_norm: Bound on the norm of the actions.
        sigma: Sub-Gaussian scale of the noise, in units of the reward.

    Raises:
        ValueError: If a bound is not finite or outside its range.

    Examples:
        >>> SystemBounds(0.5, 1.0, 1.0, 1.0, 1.0, 2.0, 1.0, 0.1).parameter_constant
        3.0
    """

    spectral_radius: float
    theta_norm: float
    omega_norm: float
    input_norm: float
    transient_growth: float
    state_norm: float
    action_norm: float
    sigma: float

    def __post_init__(self) -> None:
        for one in fields(self):
            value = as_real(one.name, getattr(self, one.name))
            if value.dim():
                raise ValueError(f"{one.name} must be one number, got the shape {tuple(value.shape)}")
            object.__setattr__(self, one.name, float(value.detach()))
        if not 0 <= self.spectral_radius < 1:
            raise ValueError(f"spectral_radius must be in [0, 1), got {self.spectral_radius}")
        if not 1 <= self.transient_growth < math.inf:
            raise ValueError(f"transient_growth must be finite and at least 1, got {self.transient_growth}")
        if not 0 < self.action_norm < math.inf:
            raise ValueError(f"action_norm must be finite and positive, got {self.action_norm}")
        for name in ("theta_norm", "omega_norm", "input_norm", "state_norm", "sigma"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and not negative, got {getattr(self, name)}")

    @property
    def transient_constant(self) -> float:
        """The paper's c1: how far a held action's reward starts from its steady state."""
        settled = self.action_norm * self.input_norm / (1 - self.spectral_radius) + self.state_norm
        return self.action_norm * self.omega_norm * self.transient_growth * settled

    @property
    def parameter_constant(self) -> float:
        """The paper's c2: a bound on the norm of the cumulative Markov parameter."""
        delayed = self.omega_norm * self.input_norm * self.transient_growth / (1 - self.spectral_radius)
        return self.theta_norm + delayed

    @property
    def reward_sigma(self) -> float:
        """The paper's sigma tilde: scale of the reward's noise, that of the state included."""
        through_state = (self.omega_norm * self.transient_growth) ** 2 / (1 - self.spectral_radius**2)
        return self.sigma * math.sqrt(1 + through_state)

    @property
    def reward_norm(self) -> float:
        """A bound on the noise-free reward: (theta_norm + omega_norm input_norm / (1 - rho)) action_norm."""
        delayed = self.omega_norm * self.input_norm / (1 - self.spectral_radius)
        return (self.theta_norm + delayed) * self.action_norm


@dataclass(frozen=True, eq=False)
class DynamicalLinearBandit:
    """A bandit whose reward comes from a hidden linear system driven by the actions (paper, section 2).

    The state starts at 0. With action u_t the reward is `<omega, x_t> + <theta, u_t> + noise` and the
    state becomes `x_{t+1} = A x_t + B u_t + noise`: the reward sees the state before the action moves it.

    Attributes:
        A: How the state moves, shape (n, n), spectral radius below 1.
        B: How actions enter the state, shape (n, d).
        omega: How the state enters the reward, shape (n,).
        theta: The immediate effect of actions, shape (d,).
        noise_state: Standard deviation of the noise on each component of the state.
        noise_reward: Standard deviation of the noise on the reward.

    Raises:
        TypeError: If a matrix is not floating-point.
        ValueError: If shapes do not fit, a value is not finite or A is not stable.

    Examples:
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> system = DynamicalLinearBandit(0.5 * one[None], one[None], omega=one, theta=one)
        >>> system.cumulative_markov()  # theta + omega B / (1 - A)
        tensor([3.], dtype=torch.float64)
    """

    A: Tensor
    B: Tensor
    omega: Tensor
    theta: Tensor
    noise_state: float = 0.01
    noise_reward: float = 0.01
    spectral_radius: float = field(init=False)

    def __post_init__(self) -> None:
        matrices = {
            # Copies, since theirs may change.
            name: as_real(name, getattr(self, name)).detach().clone()
            for name in ("A", "B", "omega", "theta")
        }
        for name, matrix in matrices.items():
            if not matrix.is_floating_point():
                raise TypeError(f"{name} must be floating-point, got {matrix.dtype}")
            if not torch.isfinite(matrix).all():
                raise ValueError(f"{name} must be finite, got {matrix.tolist()}")
            object.__setattr__(self, name, matrix)
        _check_shapes(**matrices)
        for name in ("noise_state", "noise_reward"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and not negative, got {getattr(self, name)}")
        radius = float(torch.linalg.eigvals(self.A).abs().max())
        if radius >= 1:
            raise ValueError(f"A must have a spectral radius below 1, got {radius:.6g}")
        object.__setattr__(self, "spectral_radius", radius)

    @classmethod
    def from_multi_output(
        cls,
        A: Any,
        B: Any,
        C: Any,
        D: Any,
        weights: Any,
        noise_state: float = 0.01,
        noise_output: float = 0.01,
    ) -> DynamicalLinearBandit:
        """Make the bandit whose reward is a weighted sum of the outputs `C x + D u` of a system.

        Args:
            A: Shape (n, n).
            B: Shape (n, d).
            C: Shape (m, n).
            D: Shape (m, d).
            weights: Weight of each output in the reward, shape (m,).
            noise_state: Standard deviation of the noise on each component of the state.
            noise_output: Standard deviation of the noise on each output, independent.

        Returns:
            The system with `omega = C^T weights`, `theta = D^T weights`.
        """
        C, D, weights = as_real("C", C), as_real("D", D), as_real("weights", weights)
        if C.dim() != 2 or D.dim() != 2 or weights.shape != C.shape[:1] or D.shape[0] != C.shape[0]:
            raise ValueError(
                "C, D and weights must have the shapes (m, n), (m, d) and (m,), "
                f"got {tuple(C.shape)}, {tuple(D.shape)} and {tuple(weights.shape)}"
            )
        noise_reward = noise_output * float(torch.linalg.vector_norm(weights))
        return cls(A, B, weights @ C, weights @ D, noise_state, noise_reward)

    @property
    def state_dimension(self) -> int:
        """Size n of the hidden state."""
        return self.B.shape[0]

    @property
    def action_dimension(self) -> int:
        """Size d of an action."""
        return self.B.shape[1]

    def cumulative_markov(self) -> Tensor:
        """The long-run effect of a unit of action, `h = theta + B^T (I - A)^{-T} omega` (paper, section 2).

        Returns:
            h of shape (d,): a constant action u earns `<h, u>` a round in the long run.
        """
        identity = torch.eye(self.state_dimension, dtype=self.A.dtype, device=self.A.device)
        return self.theta + self.B.mT @ torch.linalg.solve((identity - self.A).mT, self.omega)

    def markov_parameters(self, num_parameters: int) -> Tensor:
        """The effect of an action s rounds later: theta for s = 0, then `B^T (A^{s-1})^T omega`.

        Args:
            num_parameters: How many, at least 1.

        Returns:
            Shape (num_parameters, d).
        """
        rows, row = [self.theta], self.omega
        for _ in range(as_count("num_parameters", num_parameters) - 1):
            rows.append(row @ self.B)
            row = row @ self.A
        return torch.stack(rows)

    def optimal(self, actions: Any) -> tuple[int | None, float]:
        """The best constant action, which no policy can beat in the long run (paper, theorem 2.1).

        Args:
            actions: Candidates of shape (K, d), or an `Ellipsoid`.

        Returns:
            Its index (None for an `Ellipsoid`) and its average reward.
        """
        action_set = as_action_set(actions, self.A.dtype, self.A.device)
        _check_dimension(action_set.dimension, self.action_dimension)
        index, value = action_set.best(self.cumulative_markov())
        return index, float(value)

    def transient_growth(self, spectral_radius: float | None = None, max_power: int = 1000) -> float:
        """`max_k ||A^k|| / rho^k` over k = 0..max_power, the paper's Phi(A).

        Args:
            spectral_radius: rho; None takes that of A.
            max_power: The largest power looked at. Phi is infinite if A cannot be diagonalised; this
                is then what it grows to.

        Returns:
            At least 1. Infinite if rho is 0 and A is not.
        """
        radius = self.spectral_radius if spectral_radius is None else spectral_radius
        if not bool(self.A.any()):
            return 1.0
        if radius == 0:
            return math.inf
        powers, max_power = (self.A / radius).unsqueeze(0), as_count("max_power", max_power)
        while len(powers) < max_power:
            powers = torch.cat([powers, powers @ powers[-1]])
        norms = torch.linalg.matrix_norm(powers[:max_power].nan_to_num(), ord=2)
        return max(1.0, float(norms.max()))

    def bounds(
        self,
        actions: Any,
        *,
        spectral_radius: float | None = None,
        state_norm: float | None = None,
        sigma: float | None = None,
    ) -> SystemBounds:
        """The tightest bounds on this system: what a policy is told in simulations.

        Args:
            actions: Candidates of shape (K, d), or an `Ellipsoid`.
            spectral_radius: A looser bound than the true one.
            state_norm: Bound on the noise-free state; None takes `Phi ||B|| U / (1 - rho)`.
            sigma: Scale of the noise; None takes the larger of the system's two.

        Returns:
            The bounds.

        Warns:
            UserWarning: If the given `spectral_radius` is below the true one.
        """
        action_set = as_action_set(actions, self.A.dtype, self.A.device)
        _check_dimension(action_set.dimension, self.action_dimension)
        radius = self.spectral_radius if spectral_radius is None else spectral_radius
        if not 0 <= radius < 1:
            raise ValueError(f"spectral_radius must be in [0, 1), got {radius}")
        warn_if_too_small(radius, self.spectral_radius, stacklevel=2)
        growth, input_norm = self.transient_growth(radius), float(torch.linalg.matrix_norm(self.B, ord=2))
        if state_norm is None:
            state_norm = growth * input_norm * action_set.norm / (1 - radius)
        return SystemBounds(
            spectral_radius=radius,
            theta_norm=float(torch.linalg.vector_norm(self.theta)),
            omega_norm=float(torch.linalg.vector_norm(self.omega)),
            input_norm=input_norm,
            transient_growth=growth,
            state_norm=state_norm,
            action_norm=action_set.norm,
            sigma=max(self.noise_state, self.noise_reward) if sigma is None else sigma,
        )


def regret_upper_rate(bounds: SystemBounds, horizon: int, dimension: int) -> float:
    """How DynLin-UCB's expected regret grows at most (paper, theorem 5.2), every constant set to 1.

    `d sigma sqrt(T) (log T)^{3/2} / (1-rho) + sqrt(d T) (log T)^2 / (1-rho)^{3/2} + 1 / (1-rho)^2`.

    Args:
        bounds: The bounds told to the policy.
        horizon: Number of rounds T.
        dimension: Size d of an action.

    Returns:
        A rate to compare settings by, not a bound.

    Examples:
        >>> slow, fast = (SystemBounds(rho, 1, 1, 1, 1, 1, 1, 0.1) for rho in (0.9, 0.1))
        >>> regret_upper_rate(slow, 1000, 3) > regret_upper_rate(fast, 1000, 3)
        True
    """
    _check_rate(horizon, dimension)
    gap, log = 1 - bounds.spectral_radius, math.log(horizon)
    noise = dimension * bounds.sigma * math.sqrt(horizon) * log**1.5 / gap
    return noise + math.sqrt(dimension * horizon) * log**2 / gap**1.5 + 1 / gap**2


def regret_lower_rate(bounds: SystemBounds, horizon: int, dimension: int) -> float:
    """How every policy's expected regret grows at least (paper, theorem 3.2), the constant set to 1.

    `d sqrt(T) / (1-rho)^{1/2}`.

    Args:
        bounds: The bounds told to the policy.
        horizon: Number of rounds T.
        dimension: Size d of an action.

    Returns:
        A rate to compare settings by, not a bound.
    """
    _check_rate(horizon, dimension)
    return dimension * math.sqrt(horizon / (1 - bounds.spectral_radius))


def warn_if_too_small(bound: float, radius: float, stacklevel: int) -> None:
    """Warn when a bound on the spectral radius lies below a system's own."""
    if bound < radius * (1 - 1e-9):
        warnings.warn(
            f"spectral_radius is {bound:.6g}, below the system's {radius:.6g}: actions are held too briefly",
            stacklevel=stacklevel + 1,
        )


def as_systems(
    system: DynamicalLinearBandit | Sequence[DynamicalLinearBandit],
) -> list[DynamicalLinearBandit]:
    """One system, or one per replica, as a list; all of the same sizes."""
    found = [system] if isinstance(system, DynamicalLinearBandit) else system
    systems = list(found) if isinstance(found, Sequence) else []
    if not systems or not all(isinstance(one, DynamicalLinearBandit) for one in systems):
        raise TypeError(
            "system must be a DynamicalLinearBandit or a sequence of them, one per replica, "
            f"got {type(system).__name__}"
        )
    sizes = sorted({tuple(one.B.shape) for one in systems})
    if len(sizes) > 1:
        raise ValueError(f"system must have equal sizes (n, d) for every replica, got {sizes}")
    return systems


def _check_shapes(A: Tensor, B: Tensor, omega: Tensor, theta: Tensor) -> None:
    if A.dim() != 2 or A.shape[0] != A.shape[1] or A.numel() == 0:
        raise ValueError(f"A must be square, of shape (n, n), got {tuple(A.shape)}")
    if B.dim() != 2 or B.shape[0] != A.shape[0] or B.numel() == 0:
        raise ValueError(f"B must have the shape ({A.shape[0]}, d), got {tuple(B.shape)}")
    if omega.shape != A.shape[:1]:
        raise ValueError(f"omega must have the shape ({A.shape[0]},), got {tuple(omega.shape)}")
    if theta.shape != B.shape[1:]:
        raise ValueError(f"theta must have the shape ({B.shape[1]},), got {tuple(theta.shape)}")
    dtypes, devices = {x.dtype for x in (A, B, omega, theta)}, {x.device for x in (A, B, omega, theta)}
    if len(dtypes) > 1 or len(devices) > 1:
        raise ValueError(
            f"A, B, omega and theta must share dtype and device, got {sorted(map(str, dtypes | devices))}"
        )


def _check_dimension(got: int, expected: int) -> None:
    if got != expected:
        raise ValueError(f"actions must have {expected} components as the system's, got {got}")


def _check_rate(horizon: int, dimension: int) -> None:
    if horizon < 1 or dimension < 1:
        raise ValueError(f"horizon and dimension must be at least 1, got {horizon} and {dimension}")
