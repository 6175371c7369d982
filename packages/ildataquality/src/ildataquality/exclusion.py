"""Which pairs of samples do not count as neighbours: the same episode, or close in time within it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ildataquality._checks import check_count


@dataclass(frozen=True)
class Excluded:
    """Pairs that do not count.

    Args:
        episode_id: (N,), or None where every pair counts.
        step: (N,) time within the episode; None where all of the same episode are excluded.
        window: How many steps apart still are excluded.
        most: How many samples a sample may lose at most.
        bounds: First row and end of whole episodes that stand in one piece each, if they do.
    """

    episode_id: Tensor | None
    step: Tensor | None
    window: int
    most: int
    bounds: list[tuple[int, int]] | None = None

    @staticmethod
    def of(
        states: Tensor,
        episode_id: Tensor | None,
        step: Tensor | None,
        window: int | None,
        cross_episode: bool,
    ) -> Excluded:
        """What the options of `neighbours` exclude, checked."""
        for name, value in (("episode_id", episode_id), ("step", step)):
            if value is not None and value.shape != states.shape[:1]:
                raise ValueError(
                    f"{name} must be ({len(states)},) as states has rows, got {tuple(value.shape)}"
                )
        if window is not None and window < 0:
            raise ValueError(f"exclude_window must be at least 0 or None, got {window}")
        if episode_id is None or (window is None and not cross_episode):
            return Excluded(None, None, 0, 0)
        _, counts = torch.unique(episode_id, return_counts=True)
        if cross_episode:
            if len(counts) < 2:
                raise ValueError(
                    "episode_id must name at least two episodes with cross_episode_only=True, got one; "
                    "use cross_episode_only=False"
                )
            return Excluded(episode_id, None, 0, int(counts.max()), _bounds(episode_id, len(counts)))
        window = check_count("exclude_window", 0 if window is None else window, least=0)
        when = _positions(episode_id) if step is None else step
        return Excluded(episode_id, when, window, min(2 * window + 1, int(counts.max())))

    def pairs(self, rows: Tensor, columns: Tensor | None = None) -> Tensor:
        """(R, C) bool: which columns do not count for each row; all samples, or the (R, C) `columns`."""
        assert self.episode_id is not None
        others = self.episode_id if columns is None else self.episode_id[columns]
        same = self.episode_id[rows, None] == others
        if self.step is not None:
            when = self.step if columns is None else self.step[columns]
            same &= (self.step[rows, None] - when).abs() <= self.window
        return same

    def fill(self, pairs: Tensor, rows: Tensor, value: float | bool) -> None:
        """Set what does not count to a value, in an (R, N) tensor of some rows."""
        if self.episode_id is None:
            return
        first, last = int(rows[0]), int(rows[-1]) + 1
        if self.bounds is None or last - first != len(rows):  # pieces, or rows that are not consecutive
            pairs.masked_fill_(self.pairs(rows), value)
            return
        for start, end in self.bounds:
            if start < last and end > first:
                pairs[max(start, first) - first : min(end, last) - first, start:end] = value


def _bounds(episode_id: Tensor, num_episodes: int) -> list[tuple[int, int]] | None:
    """First row and end of every episode, or None if one of them is in several pieces."""
    _, lengths = torch.unique_consecutive(episode_id, return_counts=True)
    if len(lengths) != num_episodes:
        return None
    ends = lengths.cumsum(0)
    return list(zip((ends - lengths).tolist(), ends.tolist(), strict=True))


def _positions(episode_id: Tensor) -> Tensor:
    """How many samples of the same episode stand before each."""
    order = torch.argsort(episode_id, stable=True)
    _, counts = torch.unique(episode_id[order], return_counts=True)
    start = torch.repeat_interleave(torch.cumsum(counts, 0) - counts, counts)
    steps = torch.empty_like(order)
    steps[order] = torch.arange(len(order), device=order.device) - start
    return steps
