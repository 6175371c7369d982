"""Windows of states around each step, gathered from one table without crossing an episode's ends."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ssorl._checks import Array, checked_choice, checked_count
from ssorl.episodes import Episode, checked_episodes

PADS = ("edge", "zero-raw")
_ROWS = 65536  # rows of a pass that would otherwise copy the table


def windows(
    episodes: Sequence[Episode], k: int = 1, *, pad: str = "edge", parity: bool = False
) -> tuple[Tensor, Tensor]:
    """Return s_{t-k}, ..., s_t, s_{t+1} for every step t of every episode (section 3 of the paper).

    Args:
        episodes: Episodes of any lengths, labelled or not.
        k: Past transitions; 0 gives (s_t, s_{t+1}).
        pad: What stands before an episode's first state: `"edge"` repeats that state, `"zero-raw"` has zeros in the raw
            units, as the official code, whose padding therefore depends on the standardiser.
        parity: Whether to reproduce the official windows for k >= 1: zeros before the start, and at the last step,
            where that code has no s_{t+1}, (0, s_{t-k}, ..., s_t), every state one place too late.

    Returns:
        Windows (M, k + 2, S), M the number of all steps, and an index (M, 2) of episode and step. All windows take
        (k + 2) times the memory of the states; `fit_idm` and `label_episodes` gather a batch at a time instead.
        Where the last step has no known successor, its own state stands there again.

    Raises:
        ValueError: If `k` is negative, `pad` unknown, or the episodes disagree in size.

    Examples:
        >>> import numpy as np
        >>> episode = Episode(np.array([[1.0], [2.0], [3.0]]), rewards=[0, 0], terminals=False)
        >>> x, index = windows([episode], k=1)
        >>> x[..., 0].tolist(), index.tolist()
        ([[1.0, 1.0, 2.0], [1.0, 2.0, 3.0]], [[0, 0], [0, 1]])
    """
    table = StateTable(episodes)
    rows = torch.arange(table.num_steps)
    found = table.windows(rows, checked_count("k", k, 0), pad=checked_choice("pad", pad, PADS), parity=parity)
    return found, torch.stack([table.episode, table.step], dim=1)


class StateTable:
    """All states of all episodes in one tensor (sum T + N, S): the states of each, then its final one.

    Args:
        episodes: The episodes. Their arrays are copied once, as float32, or as float64 where their dtype is
            float64 or an integer of 32 bits or more.
    """

    def __init__(self, episodes: Sequence[Episode]) -> None:
        self.episodes = checked_episodes(episodes)
        lengths = np.array([len(episode) for episode in self.episodes])
        starts = np.concatenate([[0], np.cumsum(lengths + 1)[:-1]])
        kinds = {array.dtype for episode in self.episodes for array in _both(episode)}
        states = np.empty(
            (int(lengths.sum()) + len(lengths), self.episodes[0].observations.shape[1]),
            dtype=np.result_type(np.float32, *kinds),
        )
        for start, length, episode in zip(starts, lengths, self.episodes, strict=True):
            states[start : start + length] = episode.observations
            states[start + length] = _both(episode)[-1][-1]
        self.states = torch.from_numpy(states)
        self.start = torch.from_numpy(starts)
        self.length = torch.from_numpy(lengths)
        self.episode = torch.arange(len(lengths)).repeat_interleave(self.length)
        self.num_steps = len(self.episode)
        self.step = torch.arange(self.num_steps) - (self.start - torch.arange(len(lengths)))[self.episode]

    def windows(self, rows: Tensor, k: int, *, pad: str = "edge", parity: bool = False) -> Tensor:
        """Gather the windows (..., k + 2, S) of some steps, counted over all episodes."""
        episode, step = self.episode[rows], self.step[rows]
        start = self.start[episode]
        index = (start + step)[..., None] + torch.arange(-k, 2)
        before = index < start[..., None]
        if parity and k >= 1:  # the slice ends with the stored observations, and is filled up from the left
            last = (step == self.length[episode] - 1)[..., None]
            index = index - last.long()
            before = (index < start[..., None]) | (last & (torch.arange(-k, 2) == -k))
        found = self.states[torch.maximum(index, start[..., None])]
        if pad == "zero-raw" or (parity and k >= 1):
            found.masked_fill_(before[..., None], 0)
        return found

    def known(self) -> Tensor:
        """Which steps have an action, (M,)."""
        return _joined([episode.known for episode in self.episodes])

    def followed(self) -> Tensor:
        """Which steps have a known successor, (M,): all but the last of an episode without a final observation."""
        last = self.step == self.length[self.episode] - 1
        cut = torch.tensor([episode.next_observations is None for episode in self.episodes])
        return ~(last & cut[self.episode])

    def moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and deviation of all observations, and the root mean square of steps between them, (S,) in float64.

        Final observations count in the steps alone, as in the official code.
        """
        total, squares, moved = (torch.zeros(self.states.shape[1], dtype=torch.float64) for _ in range(3))
        pieces = [rows + self.episode[rows] for rows in torch.arange(self.num_steps).split(_ROWS)]
        for place in pieces:
            total += self.states[place].double().sum(0)
        mean = total / self.num_steps
        for place in pieces:
            now = self.states[place].double()
            squares += (now - mean).square().sum(0)
            moved += (self.states[place + 1].double() - now).square().sum(0)
        followed = max(int(self.followed().sum()), 1)
        return mean, (squares / self.num_steps).sqrt(), (moved / followed).sqrt()


def _both(episode: Episode) -> list[Array]:
    """Return observations and, where there are any, their successors."""
    return [array for array in (episode.observations, episode.next_observations) if array is not None]


def _joined(parts: Sequence[Array]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts))
