"""Who caused a take-over: the reward of RLIF, offline over whole logs and streaming into a replay buffer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlif._checks import checked_choice, checked_flags, checked_float, checked_integer, checked_positive
from rlif.supervisors import tree_map


def relabel(intervened: Any, dones: Any, *, penalty: float = 1.0) -> Any:
    """Reward a log of take-over flags: -penalty for the step before each take-over, 0 for every other.

    r_t = -penalty if i_t = 0, i_{t+1} = 1 and step t does not end its episode, else 0 (the paper's section 4). One
    shift and one mask over all steps and environments.

    Args:
        intervened: i_t, whether the supervisor controlled step t: (T,) or (T, N), time first, boolean.
        dones: Whether an episode ended with step t, terminated or truncated, same shape.
        penalty: Size of the reward, above 0.

    Returns:
        Rewards of the same shape, float32: an array if `intervened` is one, else a tensor.

    Raises:
        ValueError: If the flags are not boolean, their shapes differ, or `penalty` is not above 0.

    Examples:
        >>> import torch
        >>> flags = torch.tensor([False, False, True, True, False, True])
        >>> ends = torch.tensor([False, False, False, False, True, False])
        >>> relabel(flags, ends).tolist()
        [0.0, -1.0, 0.0, 0.0, 0.0, 0.0]
    """
    flags, ends, size = _log(intervened, dones, penalty)
    rewards = torch.zeros(flags.shape, device=flags.device)
    rewards[:-1].masked_fill_(_causes(flags, ends), -size)
    return rewards.numpy() if isinstance(intervened, np.ndarray) else rewards


def official_mask(intervened: Any, dones: Any) -> Any:
    """Mark the transitions that the official code inserts into its buffer.

    It inserts step t once step t+1 is decided: not if both are the supervisor's, and never the last step of an
    episode, be it a true terminal [code, `train_rlif_main.py`].

    Args:
        intervened: Whether the supervisor controlled step t: (T,) or (T, N), time first, boolean.
        dones: Whether an episode ended with step t, same shape.

    Returns:
        Boolean, same shape: an array if `intervened` is one, else a tensor.

    Raises:
        ValueError: If the flags are not boolean or their shapes differ.

    Examples:
        >>> import torch
        >>> flags = torch.tensor([False, True, True, False, False])
        >>> official_mask(flags, torch.tensor([False, False, False, False, True])).tolist()
        [True, False, True, True, False]
    """
    flags, ends, _ = _log(intervened, dones, 1.0)
    mask = torch.zeros_like(flags)
    mask[:-1] = ~ends[:-1] & ~(flags[:-1] & flags[1:])
    return mask.numpy() if isinstance(intervened, np.ndarray) else mask


class Transition(NamedTuple):
    """One transition, or the rows of several environments; unpack it into any buffer.

    Attributes:
        observation: s_t.
        action: What was executed, by whom ever.
        reward: -penalty or 0.
        next_observation: s_{t+1}, the last observation of the old episode if it ended here.
        terminated: Whether the episode truly ended; only this stops bootstrapping. A take-over does not.
        truncated: Whether it was cut off.
        intervened: Whether the supervisor controlled this step.
        env_index: The environments of the rows (M,), `None` for a single one.
    """

    observation: Any
    action: Any
    reward: Any
    next_observation: Any
    terminated: Any
    truncated: Any
    intervened: Any
    env_index: Any = None


class InterventionRelabeler:
    """Hands out transitions with RLIF's reward as soon as it is known, which is one step later.

    A transition is held back until the flag of the next step is known, or its episode ends; its reward is that of
    `relabel`. Equal to `relabel` on the whole log for any way of cutting the stream.

    Args:
        store: `"all"` hands out every transition (the paper). `"official"` drops what the official code drops; see
            `official_mask`.
        penalty: Size of the reward, above 0.
        num_envs: `None` for one environment, whose transitions pass through as they are; N for batches whose every
            leaf has N rows, arrays or tensors.

    Raises:
        ValueError: If an argument is outside its range.

    Examples:
        >>> relabeler, buffer = InterventionRelabeler(), []
        >>> for t, flag in enumerate([False, True, False]):
        ...     buffer += relabeler.push(t, "a", t + 1, flag, terminated=t == 2, truncated=False)
        >>> [(transition.observation, transition.reward) for transition in buffer]
        [(0, -1.0), (1, 0.0), (2, 0.0)]
    """

    def __init__(self, store: str = "all", penalty: float = 1.0, num_envs: int | None = None) -> None:
        self.store = checked_choice("store", store, ("all", "official"))
        self.penalty = checked_positive("penalty", penalty)
        self.num_envs = None if num_envs is None else checked_integer("num_envs", num_envs, 1)
        self._pending: Transition | None = None
        self._live = torch.zeros(self._count, dtype=torch.bool)
        self._flags = self._live.clone()
        self._flushed = False

    @property
    def _count(self) -> int:
        return 1 if self.num_envs is None else self.num_envs

    def push(
        self,
        observation: Any,
        action: Any,
        next_observation: Any,
        intervened: Any,
        terminated: Any,
        truncated: Any,
        *,
        valid: Any = None,
    ) -> list[Transition]:
        """Take one step in and give back what is complete.

        Args:
            observation: s_t, or N rows.
            action: The *executed* action, `info["executed_action"]`, or N rows.
            next_observation: s_{t+1}; where an episode ended, its last observation and not that of a reset.
            intervened: Whether the supervisor controlled this step, boolean or (N,).
            terminated: Whether the episode truly ended, boolean or (N,).
            truncated: Whether it was cut off, boolean or (N,).
            valid: Where this is a step of an episode at all (N,), boolean: `info["valid"]` of `InterventionVectorEnv`.
                Everywhere if `None`.

        Returns:
            At most two transitions (batches of rows, if `num_envs` is given): the step before, and this one where its
            episode ended. `for transition in push(...): buffer.add(*transition)` is all there is to do.

        Raises:
            ValueError: If flags are not boolean or have another shape, or something does not have N rows.
            RuntimeError: After `flush` without `reset`.
        """
        if self._flushed:
            raise RuntimeError("push() after flush(): call reset() first, the next step begins new episodes")
        flags = self._vector("intervened", intervened)
        ends = self._vector("terminated", terminated) | self._vector("truncated", truncated)
        here = torch.ones_like(flags) if valid is None else self._vector("valid", valid)
        flags, ends = flags & here, ends & here
        self._live, self._flags = self._live.to(flags.device), self._flags.to(flags.device)
        found = self._complete(flags, here)
        self._pending = Transition(
            self._held("observation", observation),
            self._held("action", action),
            None,
            self._held("next_observation", next_observation),
            *(self._held_flags(part) for part in (terminated, truncated, intervened)),
        )
        self._live, self._flags = here, flags
        if self.store == "all":
            found += self._rows(ends, torch.zeros_like(ends))
        self._live = here & ~ends
        return found

    def flush(self, terminated: Any = False, truncated: Any = True) -> list[Transition]:
        """Close episodes that the caller cuts off, and give back what was held.

        Args:
            terminated: What to say of the held transitions, boolean or (N,).
            truncated: The same.

        Returns:
            At most one transition (or batch of rows), with reward 0; none with `store="official"`.
        """
        self._flushed = True
        if self._pending is None:
            return []
        ends = [self._vector(*named) for named in (("terminated", terminated), ("truncated", truncated))]
        shown: list[Any] = [bool(end[0]) for end in ends] if self.num_envs is None else list(ends)
        if isinstance(self._pending.terminated, np.ndarray):
            shown = [end.cpu().numpy() for end in shown]
        self._pending = self._pending._replace(terminated=shown[0], truncated=shown[1])
        kept = self._live if self.store == "all" else torch.zeros_like(self._live)
        found = self._rows(kept, torch.zeros_like(kept))
        self._live = torch.zeros_like(self._live)
        return found

    def reset(self) -> None:
        """Begin new episodes everywhere; what is still held is dropped."""
        self._pending, self._flushed = None, False
        self._live, self._flags = torch.zeros_like(self._live), torch.zeros_like(self._flags)

    def _complete(self, flags: Tensor, here: Tensor) -> list[Transition]:
        """The step before, now that the flag of this one is known."""
        kept = self._live & here
        if self.store == "official":
            kept = kept & ~(flags & self._flags)
        return self._rows(kept, flags & ~self._flags)

    def _rows(self, kept: Tensor, caused: Tensor) -> list[Transition]:
        if self._pending is None or not bool(kept.any()):
            return []
        if self.num_envs is None:
            return [self._pending._replace(reward=-self.penalty if bool(caused[0]) else 0.0)]
        index = kept.nonzero()[:, 0]
        rewards: Any = torch.where(caused, -self.penalty, 0.0).to(torch.float32)[index]
        numbers: Any = index
        if isinstance(self._pending.terminated, np.ndarray):
            rewards, numbers = rewards.cpu().numpy(), index.cpu().numpy()
        found = self._pending
        if len(index) < len(kept) or not _all_rows(found):
            found = Transition(*(tree_map(lambda leaf: _picked(leaf, index), part) for part in found))
        return [found._replace(reward=rewards, env_index=numbers)]

    def _held(self, name: str, value: Any) -> Any:
        """A copy of one part of the step, with N rows if there are several environments."""
        if self.num_envs is None:
            return tree_map(_copied, value)
        return tree_map(lambda leaf: self._with_rows(name, leaf), value)

    def _with_rows(self, name: str, leaf: Any) -> Any:
        found = np.array(leaf) if isinstance(leaf, list) else _copied(leaf)
        if isinstance(found, Tensor | np.ndarray) and found.ndim and len(found) != self.num_envs:
            raise ValueError(f"{name} must have {self.num_envs} rows, got the shape {tuple(found.shape)}")
        return found

    def _held_flags(self, value: Any) -> Any:
        found = np.array(value) if isinstance(value, list) else _copied(value)
        return found if self.num_envs is None or np.ndim(found) < 2 else found[:, 0]

    def _vector(self, name: str, value: Any) -> Tensor:
        flags = checked_flags(name, value)
        if self.num_envs is None:
            if flags.numel() != 1:
                raise ValueError(
                    f"{name} must be one boolean (give num_envs for several), got {tuple(flags.shape)}"
                )
            return flags.reshape(1)
        if flags.shape == (self.num_envs, 1):
            flags = flags[:, 0]
        if flags.ndim == 0:
            return flags.expand(self.num_envs)
        if flags.shape != (self.num_envs,):
            raise ValueError(f"{name} must have the shape ({self.num_envs},), got {tuple(flags.shape)}")
        return flags


@dataclass(frozen=True)
class InterventionStats:
    """How much supervision a log took.

    Args:
        rate: Share of steps that the supervisor controlled.
        takeovers: Number of take-overs.
        episodes: Number of episodes, the last one included if it was cut off.
        takeovers_per_episode: Their ratio.
        mean_length: Steps per take-over; 0 without any.
    """

    rate: float
    takeovers: int
    episodes: int
    takeovers_per_episode: float
    mean_length: float


def intervention_stats(intervened: Any, dones: Any) -> InterventionStats:
    """Count take-overs: the other half of the cost, beside the return.

    Args:
        intervened: Whether the supervisor controlled step t: (T,) or (T, N), time first, boolean.
        dones: Whether an episode ended with step t, same shape.

    Returns:
        The counts, over all environments.

    Raises:
        ValueError: If the flags are not boolean, their shapes differ, or there is no step.

    Examples:
        >>> stats = intervention_stats([False, True, True, False, True], [False, False, True, False, False])
        >>> stats.rate, stats.takeovers, stats.episodes, stats.mean_length
        (0.6, 2, 2, 1.5)
    """
    flags, ends, _ = _log(intervened, dones, 1.0)
    if flags.numel() == 0:
        raise ValueError("intervened must hold at least one step, got none")
    begins = flags.clone()
    begins[1:] &= ~flags[:-1] | ends[:-1]
    steps, takeovers = int(flags.sum()), int(begins.sum())
    episodes = int(ends[:-1].sum()) + ends[-1].numel()
    return InterventionStats(
        rate=steps / flags.numel(),
        takeovers=takeovers,
        episodes=episodes,
        takeovers_per_episode=takeovers / episodes,
        mean_length=steps / takeovers if takeovers else 0.0,
    )


def expected_penalty(intervened: Any, dones: Any, *, discount: float, penalty: float = 1.0) -> Tensor:
    """Estimate V of the intervention reward from rollouts: the mean over episodes of sum_t gamma^t r_t.

    It is 0 exactly if no step of the policy was ever interrupted (the paper's section 6).

    Args:
        intervened: Whether the supervisor controlled step t: (T,) or (T, N), time first, boolean.
        dones: Whether an episode ended with step t, same shape.
        discount: gamma in [0, 1].
        penalty: Size of the reward, above 0.

    Returns:
        A scalar, float64.

    Raises:
        ValueError: If the flags are not boolean, their shapes differ, there is no step, or a number is out of range.

    Examples:
        >>> float(expected_penalty([False, False, True, False], [False, False, True, True], discount=0.5))
        -0.25
    """
    discount = checked_float("discount", discount, 0, 1)
    rewards = torch.as_tensor(relabel(intervened, dones, penalty=penalty)).double()
    if rewards.numel() == 0:
        raise ValueError("intervened must hold at least one step, got none")
    ends = checked_flags("dones", dones).to(rewards.device)
    steps = torch.arange(len(rewards), device=rewards.device).view(-1, *[1] * (rewards.ndim - 1))
    starts = torch.zeros_like(ends)
    starts[1:] = ends[:-1]
    first = torch.where(starts, steps, 0).cummax(0).values
    episodes = starts.sum() + starts[0].numel()
    return (discount ** (steps - first).double() * rewards).sum() / episodes


def _log(intervened: Any, dones: Any, penalty: float) -> tuple[Tensor, Tensor, float]:
    size = checked_positive("penalty", penalty)
    flags = checked_flags("intervened", intervened)
    if flags.ndim not in (1, 2):
        raise ValueError(f"intervened must have the shape (T,) or (T, N), got {tuple(flags.shape)}")
    return flags, checked_flags("dones", dones, tuple(flags.shape)).to(flags.device), size


def _causes(flags: Tensor, ends: Tensor) -> Tensor:
    """Whether step t, of the policy, is followed by a take-over in its own episode; without the last step."""
    return ~flags[:-1] & flags[1:] & ~ends[:-1]


def _picked(leaf: Any, index: Tensor) -> Any:
    """Rows of an array or a tensor; one value for all rows stands for each."""
    if isinstance(leaf, np.ndarray):
        return leaf[index.cpu().numpy()]
    if isinstance(leaf, Tensor):
        return leaf[index.to(leaf.device)] if leaf.ndim else leaf.expand(len(index))
    return None if leaf is None else np.full(len(index), leaf)


def _all_rows(transition: Transition) -> bool:
    """Whether the flags have a row for each environment; one value for all is yet to be spread."""
    flags = (transition.terminated, transition.truncated, transition.intervened)
    return all(isinstance(flag, Tensor | np.ndarray) and flag.ndim for flag in flags)


def _copied(leaf: Any) -> Any:
    """A copy of what the caller may overwrite before the reward is known."""
    if isinstance(leaf, Tensor):
        return leaf.detach().clone()
    return leaf.copy() if isinstance(leaf, np.ndarray) else leaf
