"""What the linear policies share: ridge regression, a confidence radius and an optimistic choice."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from dynlinucb._alone import RidgeAlone, alone_or_none
from dynlinucb._convert import as_count, as_real
from dynlinucb._policy import Bounds, Policy, as_bounds, outside_inference_mode
from dynlinucb.actions import FiniteActions
from dynlinucb.system import SystemBounds

# The bounds that a radius is made of.
_TOLD = ("action_norm", "theta_norm", "sigma", "transient_constant", "parameter_constant", "reward_sigma")
_BLOCK = 1024  # rounds whose confidence radii are made in one go


def fixed(name: str, says: str) -> Any:
    """A public attribute that cannot be set: what was computed from it would not follow."""
    return property(attrgetter(f"_{name}"), doc=says)


class LinearPolicy(Policy):
    """What the linear policies share: ridge regression and an optimistic choice.

    The inverse of the design V and the estimate are kept side by side as [V^{-1} | estimate]; Sherman and
    Morrison's formula updates both at once.
    """

    _state: tuple[str, ...] = ("_packed",)
    _settings: tuple[str, ...] = ("_regularization",)

    bounds = fixed("bounds", "What the policy was told: one set of bounds, or one per replica, as a list.")
    horizon = fixed("horizon", "Number of rounds planned, or None.")
    delta = fixed("delta", "Probability of failure as given, or None.")
    regularization = fixed("regularization", "lambda, shape (1, 1), or (S, 1) where replicas differ in it.")

    def __init__(
        self,
        actions: Any,
        bounds: Bounds,
        *,
        horizon: int | None = None,
        regularization: Any = "log",
        delta: float | None = None,
        beta_scale: float | Sequence[float] = 1.0,
        replicas: int | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(actions, replicas=replicas, dtype=dtype, device=device)
        horizon = None if horizon is None else as_count("horizon", horizon)
        if isinstance(regularization, str):
            if regularization != "log":
                raise ValueError(f"regularization must be 'log' or positive, got {regularization!r}")
            if horizon is None or horizon < 2:
                raise ValueError(f"horizon must be at least 2 with regularization='log', got {horizon}")
            regularization = math.log(horizon)
        if delta is not None and not 0 < delta < 1:
            raise ValueError(f"delta must be in (0, 1) or None, got {delta}")
        self._bounds, self._horizon, self._delta = as_bounds(bounds), horizon, delta
        self._radii_alone: list[float] = []
        self._tell(self._bounds)
        self._regularization = self._per_replica("regularization", regularization)
        if not bool(((self._regularization > 0) & self._regularization.isfinite()).all()):
            raise ValueError(f"regularization must be 'log' or positive, got {regularization}")
        norms = self._told["action_norm"]
        if self.actions.norm > float(norms.min()) * (1 + 1e-6):
            raise ValueError(
                f"bounds must have an action_norm of at least {self.actions.norm:.6g} (the longest action), "
                f"got {float(norms.min()):.6g}"
            )
        dimension = self.actions.dimension
        self._packed = self._zeros(dimension, dimension + 1)
        identity = torch.eye(dimension, dtype=dtype, device=self.device)
        self._packed[:, :, :-1] = identity / self._regularization.unsqueeze(-1)
        self._one = self._packed.new_ones(())
        # Made ahead, from round _radii_start on: (R, S or 1, 1), and those of the first replica as numbers.
        self._radii, self._radii_start = self._packed.new_empty(0), 0
        self.beta_scale = beta_scale
        self._alone: RidgeAlone | None = None
        self._go_alone()

    def _tell(self, bounds: list[SystemBounds]) -> None:
        told = torch.tensor([[getattr(one, name) for one in bounds] for name in _TOLD], **self.options)
        self._per_replica("bounds", told[0])
        self._told = dict(zip(_TOLD, told.unsqueeze(1), strict=True))  # each (1, 1) or (1, S)
        self._radii_alone = []  # those made ahead were of other bounds

    @property
    def beta_scale(self) -> float | list[float]:
        """Factor on beta, one for all or one per replica; a new one counts from the next decision on."""
        found: list[float] = self._scale.squeeze(1).tolist()
        return found if len(found) > 1 else found[0]

    @beta_scale.setter
    def beta_scale(self, value: float | Sequence[float]) -> None:
        scale = self._per_replica("beta_scale", value)
        if not bool(((scale >= 0) & scale.isfinite()).all()):
            raise ValueError(f"beta_scale must be finite and not negative, got {value}")
        self._scale = scale
        self._radii_alone = []  # those made ahead had the old one

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
        rounds = as_real("rounds", rounds, torch.float64, self.device).reshape(-1)
        found = self._scaled_beta(rounds)
        return found.expand(-1, self.num_replicas).clone() if self.replicas else found[:, 0].clone()

    def confidence(self, actions: Any) -> Tensor:
        """How far off the estimated value of actions may be now, `beta ||u||_{V^{-1}}`.

        Args:
            actions: Shape (..., d).

        Returns:
            Shape (...), or (S, ...) with replicas.

        Raises:
            ValueError: If actions have another number of components.
        """
        actions = as_real("actions", actions, **self.options)
        if actions.shape[-1:] != (self.actions.dimension,):
            raise ValueError(
                f"actions must have {self.actions.dimension} components, got the shape {tuple(actions.shape)}"
            )
        width = torch.einsum("...i,sij,...j->s...", actions, self._packed[:, :, :-1], actions)
        radius = self._scaled_beta(self._rounds(1))[0].to(self.dtype)
        found = radius.reshape(-1, *(1,) * (width.dim() - 1)) * width.clamp_min(0).sqrt()
        return found if self.replicas else found[0]

    @outside_inference_mode
    def observe_log(self, actions: Any, rewards: Any) -> None:
        """Start warm: learn from rounds that were played before, by whatever rule.

        Rounds of the log count as played. DynLin-UCB learns from the last reward of each run of one action that is
        at least as long as its next hold, since only then the past has settled; the others learn from every reward.

        Args:
            actions: What was played: indices of finite actions, shape (T,), integers; or vectors (T, d).
            rewards: What came back, shape (T,); with replicas each learns the same.

        Raises:
            RuntimeError: If an action is being held.
            ValueError: If shapes do not fit, an index is out of range or a number is not finite.
        """
        if self.rounds_left:
            raise RuntimeError("observe_log must come between holds, the present action is still being held")
        played = as_real("actions", actions, device=self.device).detach()
        rewards = as_real("rewards", rewards, **self.options).detach()
        if not played.numel() and not rewards.numel():
            return
        vectors = self._vectors_of_log(played, rewards)
        changes = (vectors[1:] != vectors[:-1]).any(1).nonzero().squeeze(1) + 1
        for run, values in zip(
            vectors.tensor_split(changes.cpu()), rewards.tensor_split(changes.cpu()), strict=True
        ):
            self._action = run[:1].expand(self.num_replicas, -1).contiguous()
            self._learn_run(values.expand(self.num_replicas, -1))
        self.round += len(rewards)

    def _learn_run(self, rewards: Tensor) -> None:
        """Learn from the rewards (S, k) of one action that was played k times in a row."""
        for reward in rewards.split(1, dim=1):
            self._learn(reward)

    def _vectors_of_log(self, played: Tensor, rewards: Tensor) -> Tensor:
        if not played.is_floating_point() and isinstance(self.actions, FiniteActions):
            if (
                played.dim() != 1
                or played.dtype is torch.bool
                or bool(((played < 0) | (played >= self.actions.num_actions)).any())
            ):
                raise ValueError(
                    f"actions must be indices in [0, {self.actions.num_actions}) of shape (T,), or vectors"
                )
            played = self.actions.vectors(played.long())
        vectors = played.to(self.dtype)
        if (
            vectors.dim() != 2
            or vectors.shape[1] != self.actions.dimension
            or rewards.shape != vectors.shape[:1]
        ):
            raise ValueError(
                f"actions and rewards must have the shapes (T, {self.actions.dimension}) and (T,), "
                f"got {tuple(vectors.shape)} and {tuple(rewards.shape)}"
            )
        if not bool(vectors.isfinite().all() & rewards.isfinite().all()):
            raise ValueError("actions and rewards must be finite, got nan or inf")
        return vectors

    @abstractmethod
    def _beta(self, rounds: Tensor) -> Tensor:
        """The unscaled radius after `rounds` (R,) rounds: shape (R, 1) or (R, S)."""

    def _scaled_beta(self, rounds: Tensor) -> Tensor:
        return self._scale.mT * self._beta(rounds)

    def _decide(self) -> tuple[Tensor, Tensor]:
        if self._alone is None:
            return super()._decide()
        return self._alone.choose(self._radius_number())

    def _copy_of_action(self) -> Tensor:
        if self._alone is None or self.replicas:
            return super()._copy_of_action()
        return self._alone.copy_of(self._action)

    def _choose(self) -> Tensor:
        return self.actions.optimistic(self._packed, self._radius())

    def _radius(self) -> Tensor:
        """The radius now, (1, 1) or (S, 1)."""
        ahead = self._made_ahead()  # before `_radii` is looked at: another block may take its place
        return self._radii[ahead]

    def _radius_number(self) -> float:
        """The same of one policy."""
        ahead = self._made_ahead()
        return self._radii_alone[ahead]

    def _made_ahead(self) -> int:
        """Where in the block of radii that of the present round is; another block is made if it is in none."""
        ahead = self.round - self._radii_start
        if 0 <= ahead < len(self._radii_alone):
            return ahead
        block = _BLOCK if self.num_replicas > 1 else 4 * _BLOCK  # one policy: the calls are all that costs
        self._radii = self._scaled_beta(self._rounds(block)).to(self.dtype).unsqueeze(-1)
        if not math.isfinite(float(self._radii.max()) * self.actions.norm):
            raise ValueError("actions and bounds must give a finite radius: scale the actions")
        self._radii_alone, self._radii_start = self._radii[:, 0, 0].tolist(), self.round
        return 0

    def _rounds(self, count: int) -> Tensor:
        """Numbers of rounds from now on, shape (count,)."""
        return torch.arange(self.round, self.round + count, dtype=torch.float64, device=self.device)

    def _log_inverse_delta(self, rounds: Tensor) -> Tensor:
        """log(1 / delta): as given, 1 / T, or 1 / (t + 1)^2 without a horizon. Shape (R, 1) or (1, 1)."""
        if self._delta is not None:
            return rounds.new_tensor([[-math.log(self._delta)]])
        if self._horizon is not None:
            return rounds.new_tensor([[math.log(self._horizon)]])
        return 2 * rounds.add(1).log().unsqueeze(-1)

    def _dynamical_beta(self, rounds: Tensor) -> Tensor:
        """`c2 sqrt(lambda) + sigma_tilde sqrt(2 log(1/delta) + d log(1 + t U^2 / (d lambda)))`."""
        dimension, ridge = self.actions.dimension, self._regularization.mT
        sizes = self._told["action_norm"].square() / (dimension * ridge)
        spread = 2 * self._log_inverse_delta(rounds) + dimension * (rounds.unsqueeze(-1) * sizes).log1p()
        bias = self._told["parameter_constant"] * ridge.sqrt()
        return bias + self._told["reward_sigma"] * spread.sqrt()

    def _regress(self, reward: Tensor, action: Tensor | None = None) -> None:
        """One step of ridge regression on an action (S, d), the present one if None, and a reward (S, 1)."""
        action = self._action if action is None else action
        if self._alone is not None:
            self._alone.learn(action, reward.item())
            return
        action = action.unsqueeze(1)
        row = torch.bmm(action, self._packed)  # [u^T V^-1 | <estimate, u>]
        gain = row[:, :, :-1].mT
        scale = torch.baddbmm(self._one, action, gain)  # 1 + u^T V^-1 u
        row[:, :, -1].sub_(reward)
        self._packed.baddbmm_(gain, row / scale, alpha=-1)

    # --- one policy by itself -------------------------------------------------------------------------

    _numpy_path = False

    def _go_alone(self) -> None:
        """Go on in numpy if this is one policy over finite actions, in float64, on the CPU.

        Only in a class that says so itself: one that inherits may choose or learn otherwise.
        """
        fits = self.num_replicas == 1 and self.dtype is torch.float64 and self.device.type == "cpu"
        if fits and vars(type(self)).get("_numpy_path") and isinstance(self.actions, FiniteActions):
            self._alone = alone_or_none(self._packed, self.actions)

    def _after_load(self) -> None:
        self._go_alone()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_alone": None}  # a copy has memory of its own

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._go_alone()
