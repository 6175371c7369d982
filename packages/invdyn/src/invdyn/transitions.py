"""Demonstrations as flat buffers, and the integers that make transitions and batches of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from invdyn._checks import check_tensor, checked_count, is_integer
from invdyn.views import Observation, gather_frames, map_views, num_rows, view_tensors


class Batch(NamedTuple):
    """Transitions, as every objective takes them; make it from your own loader, or with `iterate_batches`.

    Attributes:
        obs: o_t, (B, ...) or a mapping of views.
        action: a_t, the action *after* o_t: (B, A) real numbers, or (B,) integers.
        next_obs: o_{t+n}, as `obs`. Behaviour cloning does without.
        action_seq: a_t .. a_{t+n-1}: (B, A, n), or (B, n) integers. Only needed where n > 1.
        task: (B,) integers; only for `MultiHeadBC`.
        goal: Last observation of the episode, as `obs`; only for `GoalBC`.
    """

    obs: Observation
    action: Tensor
    next_obs: Observation | None = None
    action_seq: Tensor | None = None
    task: Tensor | None = None
    goal: Observation | None = None


class SequenceBatch(NamedTuple):
    """Whole episodes, padded with their last frame: what `Objective.loss_sequence` takes, in its order.

    Attributes:
        obs: (B, T + 1, ...) or a mapping of views.
        action: (B, T, A) real numbers, or (B, T) integers.
        lengths: (B,) number of actions of each episode, at most T.
        task: (B,) integers, or None.
    """

    obs: Observation
    action: Tensor
    lengths: Tensor
    task: Tensor | None = None


@dataclass(frozen=True)
class TransitionIndex:
    """Where the transitions of many episodes lie in flat buffers.

    Attributes:
        obs_idx: (N, h) rows of the observations that make o_t, the oldest first.
        next_idx: (N, h) the same for o_{t+n}.
        act_idx: (N, max(n, 1)) rows of a_t .. a_{t+n-1}.
        goal_idx: (N, h) the last frames of the episode.
        episode: (N,) which episode a transition is from.
        step: (N,) its t.
        num_observations: Rows that the buffer of observations must have.
        num_actions: Rows that the buffer of actions must have.
    """

    obs_idx: Tensor
    next_idx: Tensor
    act_idx: Tensor
    goal_idx: Tensor
    episode: Tensor
    step: Tensor
    num_observations: int
    num_actions: int

    def __len__(self) -> int:
        return len(self.obs_idx)


def _checked_lengths(lengths: Any) -> Tensor:
    counts = torch.as_tensor(lengths)
    if counts.ndim != 1 or len(counts) == 0:
        raise ValueError(f"lengths must be (E,) with at least one episode, got shape {tuple(counts.shape)}")
    if not is_integer(counts):
        raise TypeError(f"lengths must be integers, got {counts.dtype}")
    if int(counts.min()) < 1:
        short = int(counts.argmin())
        raise ValueError(f"lengths must be at least 1 action, got {int(counts[short])} in episode {short}")
    return counts.long()


def transition_index(lengths: Tensor | Sequence[int], nstep: int = 1, history: int = 1) -> TransitionIndex:
    """All pairs (o_t, a_t, o_{t+n}) of episodes that lie one after the other, T + 1 observations for T actions.

    At the end of an episode o_{t+n} is its last observation and a_{t+n-1} its last action; at its beginning
    a history repeats the first frame. No pair straddles two episodes.

    Args:
        lengths: (E,) number of actions T of each episode.
        nstep: n; 0 pairs each observation with itself, for static methods.
        history: How many frames, up to and with o_t, make one observation.

    Returns:
        The index of sum(lengths) transitions, on the device of `lengths`.

    Raises:
        ValueError: If there is no episode, one without actions, `nstep` < 0 or `history` < 1.
        TypeError: If something is not an integer.

    Examples:
        >>> index = transition_index([2, 1])
        >>> index.obs_idx.flatten().tolist(), index.next_idx.flatten().tolist()
        ([0, 1, 3], [1, 2, 4])
    """
    counts = _checked_lengths(lengths)
    ahead, frames = checked_count("nstep", nstep, 0), checked_count("history", history)
    device = counts.device
    episode = torch.repeat_interleave(torch.arange(len(counts), device=device), counts)
    first_action = (counts.cumsum(0) - counts)[episode]
    step = torch.arange(len(episode), device=device) - first_action
    last = counts[episode]
    first_obs = first_action + episode  # one observation more than actions in every episode before
    back = torch.arange(frames - 1, -1, -1, device=device)

    def stack(time: Tensor) -> Tensor:
        return first_obs[:, None] + (time[:, None] - back).clamp(min=0)

    later = step[:, None] + torch.arange(max(ahead, 1), device=device)
    return TransitionIndex(
        obs_idx=stack(step),
        next_idx=stack(torch.minimum(step + ahead, last)),
        act_idx=first_action[:, None] + torch.minimum(later, last[:, None] - 1),
        goal_idx=stack(last),
        episode=episode,
        step=step,
        num_observations=int(counts.sum()) + len(counts),
        num_actions=int(counts.sum()),
    )


def iterate_batches(
    buffer: Mapping[str, Any],
    index: TransitionIndex,
    batch_size: int,
    *,
    generator: torch.Generator | None = None,
    shuffle: bool = True,
    drop_last: bool = True,
    channel_dim: int = 0,
    with_goal: bool = False,
) -> Iterator[Batch]:
    """One epoch of transitions, gathered on the buffer's device by indexing alone.

    Args:
        buffer: "obs" (sum(T + 1), ...) or a mapping of views, "action" (sum(T), A) or (sum(T),) integers, and
            perhaps "task", (E,) one integer an episode or (sum(T),) one an action. `from_episodes` makes it.
        index: From `transition_index`.
        batch_size: B.
        generator: Of the order; on any device.
        shuffle: Whether to draw an order.
        drop_last: Whether to leave out a last batch that is smaller.
        channel_dim: Dimension of one frame along which a history is stacked (see `gather_frames`).
        with_goal: Whether to gather the last frames of the episodes too, for `GoalBC`.

    Returns:
        An iterator of batches. Bytes stay bytes: the objectives make them floats.

    Raises:
        ValueError: If the buffers do not fit the index, or no batch would be full.
    """
    obs, action = _checked_buffer(buffer, index.num_observations, index.num_actions)
    size = checked_count("batch_size", batch_size)
    if drop_last and size > len(index):
        raise ValueError(
            f"batch_size must be at most {len(index)} (transitions) with drop_last=True, got {size}"
        )
    device = action.device
    task = _task_of_actions(buffer.get("task"), index.episode, index.num_actions, device)
    obs_idx, next_idx, goal_idx = (one.to(device) for one in (index.obs_idx, index.next_idx, index.goal_idx))
    act_idx = index.act_idx.to(device)

    def gather(rows: Tensor) -> Observation:
        return gather_frames(obs, rows, channel_dim=channel_dim)

    def batches() -> Iterator[Batch]:
        for chosen in _order(len(index), size, shuffle, drop_last, generator, device):
            acts = action[act_idx[chosen]]  # (B, n, A), or (B, n)
            yield Batch(
                obs=gather(obs_idx[chosen]),
                action=acts[:, 0],
                next_obs=gather(next_idx[chosen]),
                action_seq=acts.transpose(1, 2) if acts.ndim == 3 else acts,
                task=None if task is None else task[chosen],
                goal=gather(goal_idx[chosen]) if with_goal else None,
            )

    return batches()


def iterate_sequences(
    buffer: Mapping[str, Any],
    batch_size: int,
    *,
    generator: torch.Generator | None = None,
    shuffle: bool = True,
    drop_last: bool = False,
) -> Iterator[SequenceBatch]:
    """One epoch of whole episodes, for `Objective.loss_sequence`, which encodes every frame once.

    Args:
        buffer: As for `iterate_batches`, with "lengths".
        batch_size: Episodes a batch; each is padded to the longest of its batch.
        generator: Of the order; on any device.
        shuffle: Whether to draw an order.
        drop_last: Whether to leave out a last batch that is smaller.

    Returns:
        An iterator of padded sequences.

    Raises:
        ValueError: If the buffers do not fit their lengths, or no batch would be full.
    """
    if "lengths" not in buffer:
        raise ValueError(f"buffer must have 'lengths', got {sorted(buffer)}")
    lengths = _checked_lengths(buffer["lengths"])
    obs, action = _checked_buffer(buffer, int(lengths.sum()) + len(lengths), int(lengths.sum()))
    size = checked_count("batch_size", batch_size)
    if drop_last and size > len(lengths):
        raise ValueError(
            f"batch_size must be at most {len(lengths)} (episodes) with drop_last=True, got {size}"
        )
    lengths = lengths.to(action.device)
    starts = lengths.cumsum(0) - lengths
    first_frames = starts + torch.arange(len(starts), device=starts.device)
    task = buffer.get("task")
    if task is not None and len(task) != len(lengths):
        raise ValueError(f"task must be ({len(lengths)},), one integer an episode, got {tuple(task.shape)}")

    def batches() -> Iterator[SequenceBatch]:
        for chosen in _order(len(lengths), size, shuffle, drop_last, generator, action.device):
            counts = lengths[chosen]
            steps = torch.arange(int(counts.max()) + 1, device=action.device).expand(len(chosen), -1)
            frames = torch.minimum(steps, counts[:, None]) + first_frames[chosen, None]
            acts = torch.minimum(steps[:, :-1], counts[:, None] - 1) + starts[chosen, None]
            yield SequenceBatch(
                obs=map_views(lambda view, rows=frames: view[rows], obs),
                action=action[acts],
                lengths=counts,
                task=None if task is None else task.to(action.device)[chosen],
            )

    return batches()


def _order(
    count: int,
    size: int,
    shuffle: bool,
    drop_last: bool,
    generator: torch.Generator | None,
    device: torch.device,
) -> Iterator[Tensor]:
    """Rows of each batch of an epoch. A generator draws on its own device, so that any kind will do."""
    if shuffle:
        own = generator.device if generator is not None else None
        order = torch.randperm(count, generator=generator, device=own).to(device)
    else:
        order = torch.arange(count, device=device)
    stop = count - count % size if drop_last else count
    return iter(order[:stop].split(size))


def _checked_buffer(
    buffer: Mapping[str, Any], num_observations: int, num_actions: int
) -> tuple[Observation, Tensor]:
    missing = [name for name in ("obs", "action") if name not in buffer]
    if missing:
        raise ValueError(f"buffer must have 'obs' and 'action', got {sorted(buffer)}")
    obs, action = buffer["obs"], check_tensor("buffer['action']", buffer["action"])
    found = num_rows("buffer['obs']", obs)
    if found != num_observations:
        raise ValueError(
            f"buffer['obs'] must have {num_observations} rows (T + 1 for every episode), got {found}"
        )
    if action.ndim not in (1, 2) or len(action) != num_actions:
        raise ValueError(
            f"buffer['action'] must be ({num_actions}, A), or ({num_actions},) integers, got {tuple(action.shape)}"
        )
    if action.ndim == 1 and not is_integer(action):
        raise ValueError("buffer['action'] must be (N, A) for real numbers, got (N,): use action[:, None]")
    if any(view.device != action.device for view in view_tensors("buffer['obs']", obs)):
        raise ValueError("buffer['obs'] and buffer['action'] must be on one device")
    return obs, action


def _task_of_actions(task: Any, episode: Tensor, num_actions: int, device: torch.device) -> Tensor | None:
    """(N,) tasks, from one an episode or one an action."""
    if task is None:
        return None
    tasks = check_tensor("buffer['task']", task)
    if not is_integer(tasks):
        raise TypeError(f"buffer['task'] must be integers, got {tasks.dtype}")
    num_episodes = int(episode[-1]) + 1
    if tasks.shape == (num_episodes,):
        return tasks.to(device)[episode.to(device)]
    if tasks.shape == (num_actions,):
        return tasks.to(device)
    raise ValueError(
        f"buffer['task'] must be ({num_episodes},) or ({num_actions},), got {tuple(tasks.shape)}"
    )
