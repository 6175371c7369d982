"""What every policy is: the loop's protocol, replicas in lock-step, keeping; and random numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dynlinucb.actions import Ellipsoid, FiniteActions, as_action_set
from dynlinucb.system import SystemBounds

Bounds = SystemBounds | Sequence[SystemBounds]
Generators = torch.Generator | Sequence[torch.Generator] | None

_COUNTERS = ("round", "hold_length", "rounds_left")
_BLOCK = 1024  # random numbers made in one go


class Policy(ABC):
    """A decision rule, alone or as many independent replicas in lock-step.

    Subclasses say what to choose (`_choose`) and what to make of rewards (`_learn`); whoever writes one can
    run it in `simulate` too. `_state` names the tensors that `state_dict` keeps.

    Args:
        actions: Candidates of shape (K, d), or an `Ellipsoid`.
        replicas: Number S of replicas in lock-step; None for one, without a leading dimension.
        dtype: Of all computations. In float32 the ridge is lost after about 10^6 rounds.
        device: Of all computations; None takes that of `actions`.
    """

    _state: tuple[str, ...] = ()
    _random: RandomNumbers | None = None

    def __init__(
        self,
        actions: Any,
        *,
        replicas: int | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> None:
        if replicas is not None and replicas < 1:
            raise ValueError(f"replicas must be at least 1 or None, got {replicas}")
        if not dtype.is_floating_point:
            raise TypeError(f"dtype must be floating-point, got {dtype}")
        self.actions: FiniteActions | Ellipsoid = as_action_set(actions, dtype, device)
        self.replicas, self.num_replicas = replicas, replicas or 1
        self.dtype = dtype
        self.device = (
            self.actions.table.device
            if isinstance(self.actions, FiniteActions)
            else self.actions.matrix.device
        )
        self.round = 0  # rounds whose rewards have come
        self.hold_length = 0  # of the present hold
        self.rounds_left = 0  # of it
        self._action = self._zeros(self.actions.dimension)
        self._choice = self._zeros().long() if isinstance(self.actions, FiniteActions) else self._action

    # --- the loop -------------------------------------------------------------------------------------

    def act(self) -> Tensor:
        """The action to play now; the same one again while it is being held.

        Returns:
            Shape (d,), or (S, d) with replicas. `rounds_left` says for how many rounds, this one
            included, it will be held.
        """
        self.begin()
        return self._action.clone() if self.replicas else self._action[0].clone()

    def update(self, reward: Any) -> None:
        """Take the reward of one round.

        Args:
            reward: A number, or shape (S,) with replicas.

        Raises:
            RuntimeError: If no action is being played: `act` comes first.
            ValueError: If the reward is not finite or has another shape.
        """
        rewards = torch.as_tensor(reward, **self.options).detach()
        self.update_hold(rewards.unsqueeze(-1))

    def update_hold(self, rewards: Any) -> None:
        """Take the rewards of several rounds of one hold at once.

        Args:
            rewards: Shape (k,), or (S, k) with replicas; k is at most `rounds_left`.

        Raises:
            RuntimeError: If no action is being played, or not for k rounds more.
            ValueError: If a reward is not finite or the shape does not fit.
        """
        rewards = torch.as_tensor(rewards, **self.options).detach()
        leading = (self.num_replicas,) if self.replicas else ()
        if rewards.shape[:-1] != leading or rewards.dim() != len(leading) + 1 or rewards.shape[-1] == 0:
            raise ValueError(
                f"reward must have the shape {leading} for each round, got {tuple(rewards.shape[:-1])}"
            )
        if not torch.isfinite(rewards).all():
            raise ValueError("reward must be finite, got nan or inf")
        if rewards.shape[-1] > self.rounds_left:
            raise RuntimeError(
                f"act() must be called before update(): {rewards.shape[-1]} rewards came, "
                f"the present action is held for {self.rounds_left} rounds more"
            )
        self.observe(rewards.reshape(self.num_replicas, -1))

    @property
    def action_index(self) -> Tensor:
        """Index of the present action, shape () or (S,). Of finite sets only."""
        if not isinstance(self.actions, FiniteActions):
            raise TypeError("action_index must be asked of finite actions, got an Ellipsoid")
        return self._choice.clone() if self.replicas else self._choice[0].clone()

    # --- the same without checks, for loops that made the rewards themselves --------------------------

    def begin(self) -> tuple[Tensor, Tensor]:
        """Choose if nothing is being held. Returns the choice, (S,) or (S, d), and the actions (S, d)."""
        if self.rounds_left == 0:
            self._choice = self._choose()
            self._action = self.actions.vectors(self._choice)
            self.rounds_left = self.hold_length = self._hold_length()
        return self._choice, self._action

    def observe(self, rewards: Tensor) -> None:
        """Take rewards of shape (S, k) in the policy's dtype."""
        self.round += rewards.shape[1]
        self.rounds_left -= rewards.shape[1]
        self._learn(rewards)

    @abstractmethod
    def _choose(self) -> Tensor:
        """An index for each replica, or a vector from an `Ellipsoid`."""

    @abstractmethod
    def _learn(self, rewards: Tensor) -> None:
        """Learn from rewards (S, k) of the action `self._action`; `self.rounds_left` are still to come."""

    def _hold_length(self) -> int:
        return 1

    # --- keeping --------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """All that has been learned, as tensors (ready for safetensors).

        Returns:
            Copies, by name.
        """
        state = {name: torch.tensor(getattr(self, name)) for name in _COUNTERS}
        state |= {
            name.lstrip("_"): getattr(self, name).clone() for name in ("_choice", "_action", *self._state)
        }
        return state | (self._random.state_dict() if self._random else {})

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a `state_dict` of a policy made with the same arguments.

        Args:
            state: What `state_dict` returned.

        Raises:
            ValueError: If names or shapes are not this policy's.
        """
        own = self.state_dict()
        if state.keys() != own.keys():
            raise ValueError(f"state must have the keys {sorted(own)}, got {sorted(state)}")
        for name, tensor in own.items():
            if state[name].shape != tensor.shape:
                raise ValueError(
                    f"state[{name!r}] must have the shape {tuple(tensor.shape)}, "
                    f"got {tuple(state[name].shape)}"
                )
        for name in _COUNTERS:
            setattr(self, name, int(state[name]))
        if self._random:
            self._random.load_state_dict(state)
        for name in ("_choice", "_action", *self._state):
            setattr(self, name, state[name.lstrip("_")].to(getattr(self, name), copy=True))

    @property
    def options(self) -> dict[str, Any]:
        """`dtype` and `device` of all computations, as torch's constructors take them."""
        return {"dtype": self.dtype, "device": self.device}

    # --- helpers of subclasses ------------------------------------------------------------------------

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(self.num_replicas, *shape, **self.options)

    def _per_replica(self, name: str, values: Any) -> Tensor:
        """One number, or one per replica, as a column (1, 1) or (S, 1)."""
        column = torch.as_tensor(values, **self.options).reshape(-1, 1)
        if len(column) not in (1, self.num_replicas):
            raise ValueError(
                f"{name} must be one value or one per replica ({self.num_replicas}), got {len(column)}"
            )
        return column

    def _bound(self, bounds: Bounds, name: str) -> Tensor:
        return self._per_replica("bounds", [getattr(one, name) for one in as_bounds(bounds)])


def as_bounds(bounds: Bounds) -> list[SystemBounds]:
    """One set of bounds, or one per replica, as a list."""
    found = [bounds] if isinstance(bounds, SystemBounds) else bounds
    found = list(found) if isinstance(found, Sequence) else []
    if not found or not all(isinstance(one, SystemBounds) for one in found):
        raise TypeError(f"bounds must be SystemBounds or a sequence of them, got {type(bounds).__name__}")
    return found


class RandomNumbers:
    """Uniform random numbers, one stream per replica, made in blocks."""

    def __init__(self, num_replicas: int, generator: Generators, device: torch.device) -> None:
        self._generators: list[torch.Generator | None] = (
            list(generator) if isinstance(generator, Sequence) else [generator]
        )
        if len(self._generators) not in (1, num_replicas):
            raise ValueError(
                f"generator must be one or one per replica ({num_replicas}), got {len(self._generators)}"
            )
        self._size = (num_replicas // len(self._generators), _BLOCK)
        self._block = torch.zeros(num_replicas, _BLOCK, dtype=torch.float64, device=device)
        self._used = _BLOCK

    def draw(self) -> Tensor:
        """Shape (S, 1), in [0, 1)."""
        if self._used == _BLOCK:
            options: dict[str, Any] = {"dtype": torch.float64, "device": self._block.device}
            parts = [torch.rand(self._size, generator=one, **options) for one in self._generators]
            self._block, self._used = torch.cat(parts), 0
        self._used += 1
        return self._block[:, self._used - 1 : self._used]

    def state_dict(self) -> dict[str, Tensor]:
        """The numbers made ahead, and where the generators stand (not torch's global one)."""
        states = {f"generator_{index}": one.get_state() for index, one in enumerate(self._generators) if one}
        return {"random_block": self._block.clone(), "random_used": torch.tensor(self._used), **states}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from there."""
        self._block, self._used = state["random_block"].clone(), int(state["random_used"])
        for index, one in enumerate(self._generators):
            if one:
                one.set_state(state[f"generator_{index}"])
