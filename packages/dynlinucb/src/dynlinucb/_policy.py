"""What every policy is: the loop's protocol, replicas in lock-step, keeping; and random numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from math import isfinite
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from dynlinucb._convert import as_count, as_real
from dynlinucb.actions import Ellipsoid, FiniteActions, as_action_set
from dynlinucb.system import SystemBounds

Bounds = SystemBounds | Sequence[SystemBounds]
Generators = torch.Generator | Sequence[torch.Generator] | None

_BLOCK = 1024  # random numbers made in one go


_P = ParamSpec("_P")
_R = TypeVar("_R")


def outside_inference_mode(method: Callable[_P, _R]) -> Callable[_P, _R]:
    """For what makes tensors that are kept: those made in inference mode could not be changed outside of it."""

    @wraps(method)
    def outside(*args: _P.args, **options: _P.kwargs) -> _R:
        if not torch.is_inference_mode_enabled():
            return method(*args, **options)
        with torch.inference_mode(False):
            return method(*args, **options)

    return outside


@dataclass(frozen=True)
class Late:
    """Rounds of one action whose rewards have not come: what `skip` gives and `settle` takes.

    Attributes:
        action: What was played, shape (d,), or (S, d) with replicas.
        rounds: How many rounds of it.
        settled: Whether the last of them was the last of its hold, where the reward of DynLin-UCB has settled.
    """

    action: Tensor
    rounds: int
    settled: bool


class Policy(ABC):
    """A decision rule, alone or as many independent replicas in lock-step.

    Subclasses say what to choose (`_choose`) and what to make of rewards (`_learn`); whoever writes one can
    run it in `simulate` too. `_state` names the tensors that `state_dict` keeps, `_counters` the whole numbers, and
    `_settings` what the kept numbers were made with, which a policy that loads them must share.

    Args:
        actions: Candidates of shape (K, d), or an `Ellipsoid`.
        replicas: Number S of replicas in lock-step; None for one, without a leading dimension.
        dtype: Of all computations, float64 or float32. In float32 the ridge is lost after about 10^6 rounds.
        device: Of all computations; None takes that of `actions`.
    """

    _state: tuple[str, ...] = ()
    _counters: tuple[str, ...] = ("round", "hold_length", "rounds_left")
    _settings: tuple[str, ...] = ()
    _hears_last_only = False  # of a hold, `_learn_number` need not be told the rewards before the last
    _random: RandomNumbers | None = None

    def __init__(
        self,
        actions: Any,
        *,
        replicas: int | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> None:
        if replicas is not None:
            replicas = as_count("replicas", replicas)
        if dtype not in (torch.float32, torch.float64):  # half precision would not learn
            raise TypeError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
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
        self._given: Tensor | None = None  # the action as `act` gave it
        self._takes_numbers = replicas is None and dtype is torch.float64

    # --- the loop -------------------------------------------------------------------------------------

    def act(self) -> Tensor:
        """The action to play now; the same one again while it is being held.

        Returns:
            Shape (d,), or (S, d) with replicas; the same tensor all through a hold. `rounds_left` says for how
            many rounds, this one included, it will be held.
        """
        if not self.rounds_left:
            self.begin()
        given = self._given
        if given is None or given._version or given.requires_grad:  # none yet, or someone wrote on it
            given = self._copy_of_action()
            self._given = None if given.is_inference() else given  # such a tensor counts no writes
        return given

    def _copy_of_action(self) -> Tensor:
        return self._action.clone() if self.replicas else self._action[0].clone()

    def update(self, reward: Any) -> None:
        """Take the reward of one round.

        Args:
            reward: A number, or shape (S,) with replicas; None if it is lost, see `skip`.

        Raises:
            RuntimeError: If no action is being played: `act` comes first.
            ValueError: If the reward is not finite or has another shape.
        """
        if type(reward) is not float or not self._takes_numbers:
            self._update_other(reward)
            return
        left = self.rounds_left - 1
        if left < 0:
            self._check_held(1)
        if not isfinite(reward):
            raise ValueError("reward must be finite, got nan or inf")
        self.round += 1
        self.rounds_left = left
        if left == 0 or not self._hears_last_only:
            self._learn_number(reward)

    def _update_other(self, reward: Any) -> None:
        if reward is None:
            self.skip()
        elif self._takes_numbers:
            self.update(self._number(reward))
        else:
            self.update_hold(as_real("reward", reward, **self.options).unsqueeze(-1))

    def _number(self, reward: Any) -> float:
        if isinstance(reward, float) or (isinstance(reward, int) and abs(reward) < 2**53):
            return float(reward)
        if isinstance(reward, Tensor) and reward.dim() == 0 and reward.is_floating_point():
            return float(reward.item())
        found = as_real("reward", reward, **self.options)
        if found.dim():
            raise ValueError(f"reward must have the shape () for each round, got {tuple(found.shape)}")
        return float(found.item())

    @outside_inference_mode
    def skip(self, rounds: int = 1) -> Late:
        """Go on without the rewards of some rounds, which were played and come late, or never.

        A policy that learns from the last reward of a hold learns nothing of a hold whose last reward is lost;
        one that takes means takes those of what came.

        Args:
            rounds: How many, at most `rounds_left`.

        Returns:
            What `settle` wants to know if the rewards come after all.

        Raises:
            RuntimeError: If no action is being played, or not for so many rounds more.
            ValueError: If `rounds` is below 1.
        """
        rounds = as_count("rounds", rounds)
        self._check_held(rounds)
        self.round += rounds
        self.rounds_left -= rounds
        self._miss()
        return Late(self._copy_of_action(), rounds, self.rounds_left == 0)

    @outside_inference_mode
    def settle(self, late: Late, reward: Any) -> None:
        """Take rewards that come late, of rounds that were skipped: for the ridge regression any order is right.

        A policy that learns from the last reward of a hold learns from those that were the last of theirs
        (`late.settled`), and of the others nothing. Each may be settled once.

        Args:
            late: What `skip` gave.
            reward: As `update` takes it, of one round; or shape (k,), or (S, k) with replicas, of all k.

        Raises:
            TypeError: If `late` is something else, or the policy cannot learn late: it weighs rewards by age, takes
                means, or is not linear.
            ValueError: If `late` is of another kind of policy, a reward is not finite or the shape does not fit.
        """
        if not isinstance(late, Late):
            raise TypeError(f"late must be what skip gave, got {type(late).__name__}")
        rewards = as_real("reward", reward, **self.options).detach()
        leading = (self.num_replicas,) if self.replicas else ()
        if late.action.shape != (*leading, self.actions.dimension):
            raise ValueError(
                f"late must be of a policy with actions {(*leading, self.actions.dimension)}, "
                f"got one of {tuple(late.action.shape)}"
            )
        if late.rounds == 1 and rewards.shape == leading:
            rewards = rewards.unsqueeze(-1)
        if rewards.shape != (*leading, late.rounds):
            raise ValueError(
                f"reward must have the shape {(*leading, late.rounds)}, got {tuple(rewards.shape)}"
            )
        if not bool(rewards.isfinite().all()):
            raise ValueError("reward must be finite, got nan or inf")
        action = late.action.to(self._action).reshape(self.num_replicas, -1)
        self._learn_late(action, rewards.reshape(self.num_replicas, -1), late.settled)

    def _learn_late(self, action: Tensor, rewards: Tensor, settled: bool) -> None:
        """Learn from rewards (S, k) of an action (S, d) of the past."""
        raise TypeError(f"{type(self).__name__} cannot learn from late rewards")

    def update_hold(self, rewards: Any) -> None:
        """Take the rewards of several rounds of one hold at once.

        Args:
            rewards: Shape (k,), or (S, k) with replicas; k is at most `rounds_left`.

        Raises:
            RuntimeError: If no action is being played, or not for k rounds more.
            ValueError: If a reward is not finite or the shape does not fit.
        """
        rewards = as_real("reward", rewards, **self.options).detach()
        leading = (self.num_replicas,) if self.replicas else ()
        if rewards.shape[:-1] != leading or rewards.dim() != len(leading) + 1 or rewards.shape[-1] == 0:
            raise ValueError(
                f"reward must have the shape {leading} for each round, got {tuple(rewards.shape[:-1])}"
            )
        if not torch.isfinite(rewards).all():
            raise ValueError("reward must be finite, got nan or inf")
        self._check_held(rewards.shape[-1])
        self.observe(rewards.reshape(self.num_replicas, -1))

    @property
    def action_index(self) -> Tensor:
        """Index of the present action, shape () or (S,). Of finite sets only."""
        if not isinstance(self.actions, FiniteActions):
            raise TypeError("action_index must be asked of finite actions, got an Ellipsoid")
        return self._choice.clone() if self.replicas else self._choice[0].clone()

    # --- the same without checks, for loops that made the rewards themselves --------------------------

    @outside_inference_mode
    def begin(self) -> tuple[Tensor, Tensor]:
        """Choose if nothing is being held. Returns the choice, (S,) or (S, d), and the actions (S, d)."""
        if self.rounds_left == 0:
            self._choice, self._action = self._decide()
            self._given = None
            self.rounds_left = self.hold_length = self._hold_length()
        return self._choice, self._action

    @outside_inference_mode
    def observe(self, rewards: Tensor) -> None:
        """Take rewards of shape (S, k) in the policy's dtype."""
        self.round += rewards.shape[1]
        self.rounds_left -= rewards.shape[1]
        self._learn(rewards)

    def _decide(self) -> tuple[Tensor, Tensor]:
        """The choice, and the actions (S, d)."""
        choice = self._choose()
        return choice, self.actions.vectors(choice)

    @abstractmethod
    def _choose(self) -> Tensor:
        """An index for each replica, or a vector from an `Ellipsoid`."""

    @abstractmethod
    def _learn(self, rewards: Tensor) -> None:
        """Learn from rewards (S, k) of the action `self._action`; `self.rounds_left` are still to come."""

    @outside_inference_mode
    def _learn_number(self, reward: float) -> None:
        """The same of one reward of one policy."""
        self._learn(torch.full((1, 1), reward, **self.options))

    def _miss(self) -> None:  # noqa: B027  (most policies have nothing to do)
        """A reward is lost; `self.rounds_left` are still to come."""

    def _hold_length(self) -> int:
        return 1

    def _check_held(self, rounds: int) -> None:
        if rounds > self.rounds_left:
            raise RuntimeError(
                f"act() must be called before update(): {rounds} rewards came, "
                f"the present action is held for {self.rounds_left} rounds more"
            )

    # --- keeping --------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """All that has been learned, as tensors (ready for safetensors).

        Returns:
            Copies, by name.
        """
        state = {name.lstrip("_"): torch.tensor(getattr(self, name)) for name in self._counters}
        state |= {name.lstrip("_"): getattr(self, name).clone() for name in self._tensors()}
        state |= self._made_with()
        return state | (self._random.state_dict() if self._random else {})

    @outside_inference_mode
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a `state_dict` of a policy made with the same arguments.

        What shaped the numbers that are kept must be the same: the actions, lambda, a discount and the like. Bounds,
        `horizon`, `delta` and `beta_scale`, which only set the radius of decisions to come, are this policy's own.

        Args:
            state: What `state_dict` returned.

        Raises:
            ValueError: If names or shapes are not this policy's, or it was made with other settings or actions.
        """
        own, made_with = self.state_dict(), self._made_with()
        # 0.1.0 did not keep these.
        state = {name: own[name] for name in ("came", *made_with) if name in own} | state
        if state.keys() != own.keys():
            raise ValueError(f"state must have the keys {sorted(own)}, got {sorted(state)}")
        for name, tensor in own.items():
            if state[name].shape != tensor.shape:
                raise ValueError(
                    f"state[{name!r}] must have the shape {tuple(tensor.shape)}, "
                    f"got {tuple(state[name].shape)}"
                )
            if bool(state[name].isnan().any()):
                raise ValueError(f"state[{name!r}] must not be nan")
        for name, tensor in made_with.items():
            if not _same(state[name], tensor):
                raise ValueError(f"state must be of a policy with the same {name}, got another")
        for name in self._counters:
            setattr(self, name, int(state[name.lstrip("_")]))
        if self._random:
            self._random.load_state_dict(state)
        for name in self._tensors():
            setattr(self, name, state[name.lstrip("_")].to(getattr(self, name), copy=True))
        self._given = None
        self._after_load()

    def _after_load(self) -> None:  # noqa: B027  (most policies have nothing to do)
        """What follows from the state has to be made anew."""

    def _tensors(self) -> tuple[str, ...]:
        return ("_choice", "_action", *self._state)

    def _made_with(self) -> dict[str, Tensor]:
        settings = {name.lstrip("_"): as_real(name, getattr(self, name)).clone() for name in self._settings}
        return {"actions": self.actions.identity.clone(), **settings}

    @property
    def options(self) -> dict[str, Any]:
        """`dtype` and `device` of all computations, as torch's constructors take them."""
        return {"dtype": self.dtype, "device": self.device}

    # --- helpers of subclasses ------------------------------------------------------------------------

    @outside_inference_mode
    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(self.num_replicas, *shape, **self.options)

    def _per_replica(self, name: str, values: Any) -> Tensor:
        """One number, or one per replica, as a column (1, 1) or (S, 1)."""
        column = as_real(name, values, **self.options).reshape(-1, 1)
        if len(column) not in (1, self.num_replicas):
            raise ValueError(
                f"{name} must be one value or one per replica ({self.num_replicas}), got {len(column)}"
            )
        return column

    def _bound(self, bounds: Bounds, name: str) -> Tensor:
        """One of the bounds as a column, (1, 1) or (S, 1)."""
        return self._per_replica("bounds", [getattr(one, name) for one in as_bounds(bounds)])


def as_bounds(bounds: Bounds) -> list[SystemBounds]:
    """One set of bounds, or one per replica, as a list."""
    found = [bounds] if isinstance(bounds, SystemBounds) else bounds
    found = list(found) if isinstance(found, Sequence) else []
    if not found or not all(isinstance(one, SystemBounds) for one in found):
        raise TypeError(f"bounds must be SystemBounds or a sequence of them, got {type(bounds).__name__}")
    return found


def _same(one: Tensor, other: Tensor) -> bool:
    """Equal in the coarser of their dtypes."""
    one = one.to(other.device)
    return torch.equal(one.to(other.dtype), other) or torch.equal(one, other.to(one.dtype))


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
