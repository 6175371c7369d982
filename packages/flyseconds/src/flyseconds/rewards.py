"""The reward of a step, and how it changes in the course of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from flyseconds._checks import count
from flyseconds.parameters import QuadrotorParams
from flyseconds.state import ANGULAR_VELOCITY, POSITION, VELOCITY, QuadState

# Columns of an observation.
_POSITION, _VELOCITY, _ANGULAR_VELOCITY = slice(0, 3), slice(12, 15), slice(15, 18)


@dataclass(frozen=True)
class RewardWeights:
    """The weights of the reward; `initial()` and `target()` are the two ends of the paper's curriculum.

    Args:
        position: Of ||p||^2 (m^2).
        orientation: Of 1 - q_w^2.
        velocity: Of ||v||^2 (m^2/s^2).
        angular_velocity: Of ||omega||^2.
        linear_acceleration: Of ||dv / dt||^2.
        angular_acceleration: Of ||domega / dt||^2.
        action: Of ||a - baseline||^2.
        action_baseline: The action that costs nothing. None stands for the action at which the vehicle hovers;
            environments, `evaluate` and `train` know the vehicle and fill it in, `reward` needs `for_params`.
        scale: Factor of the sum of costs.
        constant: Reward without any cost.

    Each may be a number or a tensor (B,), one value per vehicle.

    Examples:
        >>> RewardWeights.initial().position, RewardWeights.target().position
        (5.0, 40.0)
    """

    position: float | Tensor = 5.0
    orientation: float | Tensor = 5.0
    velocity: float | Tensor = 0.01
    angular_velocity: float | Tensor = 0.0
    linear_acceleration: float | Tensor = 0.0
    angular_acceleration: float | Tensor = 0.0
    action: float | Tensor = 0.01
    action_baseline: float | Tensor | None = None
    scale: float | Tensor = 0.5
    constant: float | Tensor = 2.0

    @classmethod
    def initial(cls) -> RewardWeights:
        """The weights training begins with: survive first."""
        return cls()

    @classmethod
    def target(cls) -> RewardWeights:
        """The weights the curriculum ends with, and policies are evaluated with: hover exactly and calmly."""
        return cls(position=40.0, velocity=1.0, action=1.0)

    def for_params(self, params: QuadrotorParams) -> RewardWeights:
        """These weights with the action at which `params` hover as baseline, unless they have one.

        Examples:
            >>> weights = RewardWeights.target().for_params(QuadrotorParams.crazyflie_paper())
            >>> round(float(weights.action_baseline), 3)
            0.334
        """
        return (
            self if self.action_baseline is not None else replace(self, action_baseline=params.hover_action)
        )

    @classmethod
    def stack(cls, weights: Sequence[RewardWeights], repeats: int, like: Tensor) -> RewardWeights:
        """Weights of several groups of vehicles as one: `repeats` vehicles for each entry of `weights`."""
        columns = {}
        for entry in fields(cls):
            values = [getattr(each, entry.name) for each in weights]
            if None in values and any(value is not None for value in values):
                raise ValueError(f"{entry.name} must be given in all weights or in none")
            if None not in values:
                column = torch.tensor(values, dtype=like.dtype, device=like.device)
                columns[entry.name] = column.repeat_interleave(repeats)
        return cls(**columns)


def reward(
    state: QuadState,
    action: Tensor,
    next_state: QuadState,
    weights: RewardWeights,
    terminated: Tensor,
    *,
    dt: float = 0.01,
) -> Tensor:
    """The reward of a step: a constant minus weighted squares, or 0 if the episode terminates.

    r = c - s (w_p ||p||^2 + w_q (1 - q_w^2) + w_v ||v||^2 + w_o ||omega||^2 + w_la ||dv/dt||^2
    + w_aa ||domega/dt||^2 + w_a ||a - a_0||^2), on the state before the step (the paper's equation 1).

    Args:
        state: State of B vehicles before the step.
        action: (B, 4), the policy's action.
        next_state: State after the step; looked at for the accelerations.
        weights: The weights, with an action baseline.
        terminated: (B,), whether the next state is terminal.
        dt: Time step, in s.

    Returns:
        (B,).

    Raises:
        ValueError: If the weights have no action baseline or a shape does not fit.

    Examples:
        >>> params = QuadrotorParams.crazyflie_paper()
        >>> weights = RewardWeights.target().for_params(params)
        >>> state, hover = QuadState.create(), params.hover_action.expand(1, 4)
        >>> reward(state, hover, state, weights, torch.tensor([False])).item()
        2.0
    """
    motion, following = state.motion, next_state.motion
    return _reward(
        motion[POSITION],
        1 - motion[3].square(),
        motion[VELOCITY],
        motion[ANGULAR_VELOCITY],
        following[VELOCITY],
        following[ANGULAR_VELOCITY],
        action.mT,
        weights,
        terminated,
        dt,
    )


def reward_from_observations(
    privileged: Tensor,
    action: Tensor,
    next_privileged: Tensor,
    weights: RewardWeights,
    terminated: Tensor,
    *,
    dt: float = 0.01,
) -> Tensor:
    """`reward` from what the critic sees: how the rewards of a replay buffer are computed anew.

    Args:
        privileged: (..., 28) of `observe_privileged` before the step; the first 18 columns are enough.
        action: (..., 4).
        next_privileged: (..., 28) after the step.
        weights: The weights, with an action baseline.
        terminated: (...,).
        dt: Time step, in s.

    Returns:
        (...,).

    Raises:
        ValueError: If the weights have no action baseline or a shape does not fit.
    """
    now, following, action = (value.movedim(-1, 0) for value in (privileged, next_privileged, action))
    trace = now[3] + now[7] + now[11]
    return _reward(
        now[_POSITION],
        (3 - trace) / 4,  # 1 - q_w^2
        now[_VELOCITY],
        now[_ANGULAR_VELOCITY],
        following[_VELOCITY],
        following[_ANGULAR_VELOCITY],
        action,
        weights,
        terminated,
        dt,
    )


def _reward(
    position: Tensor,
    orientation_cost: Tensor,
    velocity: Tensor,
    angular_velocity: Tensor,
    next_velocity: Tensor,
    next_angular_velocity: Tensor,
    action: Tensor,
    weights: RewardWeights,
    terminated: Tensor,
    dt: float,
) -> Tensor:
    batch = orientation_cost.shape
    if action.shape[1:] != batch or terminated.shape != batch:
        shapes = f"{tuple(action.movedim(0, -1).shape)} and {tuple(terminated.shape)}"
        raise ValueError(f"action and terminated must be of the batch {tuple(batch)}, got shapes {shapes}")
    if weights.action_baseline is None:
        raise ValueError("weights.action_baseline must be given here, such as by weights.for_params(params)")
    cost = weights.position * position.square().sum(0) + weights.orientation * orientation_cost
    cost = cost + weights.velocity * velocity.square().sum(0)
    action = action.to(position.dtype)
    cost = cost + weights.action * (action - weights.action_baseline).square().sum(0)
    # These three are 0 in the paper.
    for weight, value, following in (
        (weights.angular_velocity, angular_velocity, None),
        (weights.linear_acceleration, velocity, next_velocity),
        (weights.angular_acceleration, angular_velocity, next_angular_velocity),
    ):
        if isinstance(weight, Tensor) or weight != 0:
            value = value if following is None else (following - value) / dt
            cost = cost + weight * value.square().sum(0)
    total = weights.constant - weights.scale * cost
    if total.shape != batch:
        raise ValueError(
            f"weights must be numbers or of the batch {tuple(batch)}, rewards are {tuple(total.shape)}"
        )
    return torch.where(terminated.bool(), 0.0, total)


@dataclass(frozen=True)
class RewardCurriculum:
    """Reward weights that grow from `initial` towards `target` in the course of training.

    Every `every` environment steps each weight named in `factors` is multiplied by its factor, but goes no
    further than its target (section IV-B of the paper; factors and interval from its code). When the weights
    change, the rewards in the replay buffer must be computed anew: `train` does it.

    Args:
        initial: Weights at step 0.
        target: Where they stop.
        factors: Name of a weight -> its factor, above 1 if the weight grows.
        every: Environment steps between changes.

    Raises:
        TypeError: If a weight that changes is not a number.
        ValueError: If `every` < 1, or a factor is not positive, does not lead to its target or names no weight,
            or a weight changes without a factor.

    Examples:
        >>> curriculum = RewardCurriculum()
        >>> [round(curriculum.at(step).position, 2) for step in (0, 99_999, 100_000, 10_000_000)]
        [5.0, 5.0, 6.0, 40.0]
    """

    initial: RewardWeights = field(default_factory=RewardWeights.initial)
    target: RewardWeights = field(default_factory=RewardWeights.target)
    factors: Mapping[str, float] = field(
        default_factory=lambda: {"position": 1.2, "velocity": 1.4, "action": 1.4}
    )
    every: int = 100_000

    def __post_init__(self) -> None:
        count("every", self.every)
        names = [entry.name for entry in fields(RewardWeights)]
        for name, factor in self.factors.items():
            if name not in names:
                raise ValueError(f"factors must name weights of the reward, got {name!r}")
            if not factor > 0:
                raise ValueError(f"factors must be positive, got {factor} for {name}")
            first, last = getattr(self.initial, name), getattr(self.target, name)
            if not all(isinstance(value, int | float) for value in (first, last)):
                raise TypeError(f"factors must name weights that are numbers, {name} is {first} to {last}")
            leads = first * (factor - 1) * (last - first) > 0
            if not leads and first != last:
                raise ValueError(
                    f"factors must lead to the target, got {factor} for {name}: {first} to {last}"
                )
        for name in names:
            first, last = getattr(self.initial, name), getattr(self.target, name)
            if name not in self.factors and not _same(first, last):
                raise ValueError(f"factors must name every weight that changes, {name} is {first} to {last}")

    @classmethod
    def constant(cls, weights: RewardWeights) -> RewardCurriculum:
        """No curriculum: the same weights at all times."""
        return cls(weights, weights, {})

    def at(self, step: int) -> RewardWeights:
        """The weights after `step` environment steps."""
        changes = step // self.every
        grown = {}
        for name, factor in self.factors.items():
            value, target = getattr(self.initial, name) * factor**changes, getattr(self.target, name)
            grown[name] = min(value, target) if factor >= 1 else max(value, target)
        return replace(self.initial, **grown)


def _same(first: float | Tensor | None, last: float | Tensor | None) -> bool:
    if isinstance(first, Tensor) or isinstance(last, Tensor):
        return first is last or torch.equal(torch.as_tensor(first), torch.as_tensor(last))
    return first == last
