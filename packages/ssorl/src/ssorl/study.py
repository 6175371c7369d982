"""What a study of missing actions needs: who is labelled, how good the labels are, how much return they cost."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ssorl._checks import (
    Array,
    as_array,
    checked_choice,
    checked_count,
    checked_finite,
    checked_positions,
    checked_share,
)
from ssorl.episodes import Episode
from ssorl.labelling import LabelledEpisode, proxies_of

TIERS = ("low", "medium", "high")


@dataclass(frozen=True)
class Split:
    """Positions of episodes, each in increasing order.

    Args:
        labelled: Those that keep their actions.
        unlabelled_in: Those without, from the returns that labelled ones were drawn from.
        unlabelled_out: Those without, from other returns.
    """

    labelled: tuple[int, ...]
    unlabelled_in: tuple[int, ...]
    unlabelled_out: tuple[int, ...]

    @property
    def unlabelled(self) -> tuple[int, ...]:
        """All that lose their actions."""
        return tuple(sorted(self.unlabelled_in + self.unlabelled_out))


def coupled_split(
    returns: Any, perc: float = 0.1, threshold: float = 0.5, generator: torch.Generator | None = None
) -> Split:
    """Draw the labelled episodes uniformly from the lowest returns (section 4.1 of the paper).

    The pool is the floor(N * threshold) episodes of lowest return; min(floor(N * perc), size of the pool) are labelled.
    The official loader drops at least the worst trajectory beforehand; here all are kept.

    Args:
        returns: Undiscounted returns (N,).
        perc: Share of all episodes that are labelled.
        threshold: Share of all episodes that the pool is.
        generator: On the CPU.

    Returns:
        The split; it covers all episodes.

    Raises:
        ValueError: If a share is outside (0, 1], returns are not finite, or nothing would be labelled.

    Examples:
        >>> split = coupled_split([5.0, 1.0, 4.0, 2.0, 3.0], perc=0.2, threshold=0.6)
        >>> len(split.labelled), sorted(split.labelled + split.unlabelled_in), split.unlabelled_out
        (1, [1, 3, 4], (0, 2))
    """
    order = _order(returns)
    num = len(order)
    pool = order[: _floor(num * checked_share("threshold", threshold))]
    size = min(_floor(num * checked_share("perc", perc)), len(pool))
    if size == 0:
        raise ValueError(
            f"perc and threshold must label at least one of {num} episodes, got {perc!r}, {threshold!r}"
        )
    chosen = _draw(pool, size, generator)
    rest = sorted(set(pool) - set(chosen))
    return Split(chosen, tuple(rest), tuple(sorted(set(order) - set(pool))))


def decoupled_split(
    returns: Any,
    labelled_tier: str,
    unlabelled_tier: str,
    n_labelled: int,
    n_unlabelled: int,
    generator: torch.Generator | None = None,
) -> Split:
    """Choose the quality of labelled and of unlabelled episodes apart (section 4.2 of the paper).

    Episodes are cut into thirds by return; from one third the labelled are drawn, from another, or the rest of the
    same, the unlabelled. All others are left out of the split, so that one size can be varied while the other stays.

    Args:
        returns: Undiscounted returns (N,).
        labelled_tier: `"low"`, `"medium"` or `"high"`.
        unlabelled_tier: Likewise.
        n_labelled: Episodes that keep their actions, at least 1.
        n_unlabelled: Episodes that lose them.
        generator: On the CPU.

    Returns:
        The split; `unlabelled_in` holds them if the tiers are one, else `unlabelled_out`.

    Raises:
        ValueError: If a tier is unknown or too small.
    """
    order = _order(returns)
    thirds = dict(zip(TIERS, (part.tolist() for part in np.array_split(np.array(order), 3)), strict=True))
    n_labelled, n_unlabelled = (
        checked_count("n_labelled", n_labelled),
        checked_count("n_unlabelled", n_unlabelled, 0),
    )
    pool = thirds[checked_choice("labelled_tier", labelled_tier, TIERS)]
    if n_labelled > len(pool):
        raise ValueError(f"n_labelled must be at most {len(pool)}, the size of the tier, got {n_labelled}")
    labelled = _draw(pool, n_labelled, generator)
    others = [
        index
        for index in thirds[checked_choice("unlabelled_tier", unlabelled_tier, TIERS)]
        if index not in set(labelled)
    ]
    if n_unlabelled > len(others):
        raise ValueError(
            f"n_unlabelled must be at most {len(others)}, what the tier has left, got {n_unlabelled}"
        )
    unlabelled = _draw(others, n_unlabelled, generator)
    return (
        Split(labelled, unlabelled, ())
        if labelled_tier == unlabelled_tier
        else Split(labelled, (), unlabelled)
    )


def hide_actions(episodes: Sequence[Episode], keep: Collection[int]) -> list[Episode]:
    """Return all episodes, those at other positions than `keep` without their actions.

    Args:
        episodes: Episodes.
        keep: Positions, for instance `split.labelled`.

    Returns:
        The episodes in order.

    Raises:
        ValueError: If `keep` names no such position.
        TypeError: If `keep` is a mask.
    """
    kept = set(checked_positions("keep", keep, len(episodes)))
    return [
        episode if position in kept else episode.without_actions()
        for position, episode in enumerate(episodes)
    ]


@dataclass(frozen=True)
class LabelQuality:
    """How good proxy actions are.

    Args:
        count: Steps compared.
        mse: Mean squared error over steps and dimensions; None for discrete actions.
        mse_per_dimension: The same for each dimension.
        accuracy: Share of equal actions; None for continuous ones.
        rank_correlation: Spearman's correlation of a step's uncertainty with its error; None without uncertainty or
            where one of them does not vary.
    """

    count: int
    mse: float | None
    mse_per_dimension: tuple[float, ...] | None
    accuracy: float | None
    rank_correlation: float | None


def label_quality(pred: Any, truth: Any, *, uncertainty: Any = None) -> LabelQuality:
    """Compare proxy actions with the true ones.

    Args:
        pred: Labelled episodes, of which the proxies count; or actions (M, A), or indices (M,).
        truth: The same episodes with their true actions, in the same order; or actions.
        uncertainty: (M,) beside arrays; episodes have their own.

    Returns:
        The figures.

    Raises:
        ValueError: If ids, lengths or shapes disagree, or there is nothing to compare.

    Examples:
        >>> quality = label_quality([[0.5], [1.0], [0.0]], [[0.0], [1.0], [0.5]], uncertainty=[0.3, 0.1, 0.2])
        >>> round(quality.mse, 4), round(quality.rank_correlation, 3)
        (0.1667, 0.866)
    """
    if len(pred) and isinstance(pred[0], Episode):
        pred, truth, uncertainty = _proxies(pred, truth)
    found = checked_finite("pred", as_array("pred", pred))
    true = checked_finite("truth", as_array("truth", truth))
    if found.shape != true.shape or found.ndim not in (1, 2):
        raise ValueError(
            f"pred and truth must have one shape (M, A) or (M,), got {found.shape} and {true.shape}"
        )
    if len(found) == 0:
        raise ValueError("pred must have at least one proxy action to compare, got none")
    discrete = found.dtype.kind in "iu" and true.dtype.kind in "iu"
    error = (found != true).astype(float) if discrete else np.square(found.astype(np.float64) - true)
    by_step = error if error.ndim == 1 else error.mean(1)
    doubt = None if uncertainty is None else as_array("uncertainty", uncertainty)
    if doubt is not None and (doubt.shape != by_step.shape or np.isnan(doubt).any()):
        raise ValueError(f"uncertainty must be {by_step.shape}, one a step and not NaN, got {doubt.shape}")
    return LabelQuality(
        count=len(found),
        mse=None if discrete else float(by_step.mean()),
        mse_per_dimension=None if discrete else tuple(np.atleast_1d(error.mean(0)).tolist()),
        accuracy=float(1 - by_step.mean()) if discrete else None,
        rank_correlation=None if doubt is None else _spearman(doubt, by_step),
    )


def normalised_return(value: float, random: float, expert: float) -> float:
    """Return 100 (value - random) / (expert - random), as D4RL reports it.

    Args:
        value: A return.
        random: The return of a random policy.
        expert: The return of an expert.

    Returns:
        0 for the one, 100 for the other.

    Raises:
        ValueError: If the two are equal.
    """
    if random == expert:
        raise ValueError(f"expert must differ from random, got {expert!r} for both")
    return 100 * (value - random) / (expert - random)


def relative_gap(full: float, semi_supervised: float) -> float:
    """Return (J_full - J_ss) / J_full, what missing actions cost (section 4 of the paper).

    Args:
        full: Normalised return with all actions.
        semi_supervised: Normalised return with proxies.

    Returns:
        0 where nothing is lost.

    Raises:
        ValueError: If `full` is not positive, where the quotient means nothing: take `normalised_return` first.
    """
    if not full > 0:
        raise ValueError(f"full must be positive, got {full!r}: normalised_return first")
    return (full - semi_supervised) / full


def _order(returns: Any) -> list[int]:
    array = checked_finite("returns", as_array("returns", returns))
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(f"returns must be (N,), one an episode, got {array.shape}")
    order: list[int] = np.argsort(array, kind="stable").tolist()
    return order


def _floor(value: float) -> int:
    """Floor, where 0.3 * 10 is 3."""
    return int(np.floor(value + 1e-9))


def _draw(pool: Sequence[int], size: int, generator: torch.Generator | None) -> tuple[int, ...]:
    return tuple(
        sorted(pool[place] for place in torch.randperm(len(pool), generator=generator)[:size].tolist())
    )


def _proxies(pred: Sequence[Episode], truth: Sequence[Episode]) -> tuple[Array, Array, Array]:
    if len(pred) != len(truth):
        raise ValueError(f"truth must have {len(pred)} episodes, as pred, got {len(truth)}")
    parts: list[tuple[Array, Array, Array]] = []
    for found, true in zip(pred, truth, strict=True):
        if not isinstance(found, LabelledEpisode) or found.actions is None:
            raise ValueError(f"pred must be labelled episodes, got {type(found).__name__}")
        if found.id != true.id or len(found) != len(true):
            raise ValueError(f"truth must be the same episodes, got {true!r} beside {found!r}")
        mask = found.proxy_mask
        if true.actions is None:
            if mask.any():
                raise ValueError(f"truth must have actions, got none in episode {true.id!r}")
            continue
        mask = mask & true.known & ~proxies_of([true])
        parts.append((found.actions[mask], true.actions[mask], found.uncertainty[mask]))
    if not parts:
        raise ValueError("pred must have at least one proxy action to compare, got none")
    pred_actions, true_actions, doubt = (np.concatenate(column) for column in zip(*parts, strict=True))
    return pred_actions, true_actions, doubt


def _spearman(first: Array, second: Array) -> float | None:
    ranks = np.stack([_ranks(first), _ranks(second)])
    if (ranks == ranks[:, :1]).all(1).any():
        return None
    return float(np.corrcoef(ranks)[0, 1])


def _ranks(values: Array) -> Array:
    """Ranks from 0, equal values sharing their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts + 1) / 2)[inverse]
