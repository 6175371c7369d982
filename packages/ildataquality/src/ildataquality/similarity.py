"""How dense the states lie, and which further states they cover."""

from __future__ import annotations

import torch
from torch import Tensor

from ildataquality._checks import check_count, check_matrix, check_positive, check_reduce
from ildataquality.exclusion import Excluded
from ildataquality.search import Points, count_true, within


def state_similarity(
    states: Tensor,
    radius: float,
    *,
    episode_id: Tensor | None = None,
    step: Tensor | None = None,
    exclude_window: int | None = 10,
    cross_episode_only: bool = True,
    chunk: int = 512,
    reduce: str | None = "mean",
) -> Tensor:
    """S = 1/N sum_i |{j : ||s_i - s_j|| <= eps}| / N, the expected share of the data close to a sample.

    High similarity is low state diversity. With `episode_id` the excluded samples (see `neighbours`) count neither
    above nor below the line.

    Args:
        states: (N, S), standardised with the same normaliser for all data sets compared.
        radius: eps.
        episode_id: (N,) or None, which excludes nothing: each sample is close to itself and S >= 1/N.
        step: As in `neighbours`.
        exclude_window: As in `neighbours`.
        cross_episode_only: As in `neighbours`.
        chunk: Rows at a time; chunk * N floats of memory.
        reduce: `"mean"`, or None for the (N,) shares of the samples.

    Returns:
        A scalar in [0, 1], or (N,).

    Raises:
        TypeError: As `neighbours`.
        ValueError: As `neighbours`, or if `reduce` is neither.

    Examples:
        >>> import torch
        >>> from ildataquality import state_similarity
        >>> state_similarity(torch.tensor([[0.0], [1.0], [5.0], [6.0]]), radius=2.0)
        tensor(0.5000)
    """
    states = check_matrix("states", states)
    check_positive("radius", radius)
    check_reduce(reduce)
    excluded = Excluded.of(states, episode_id, step, exclude_window, cross_episode_only)
    whole, across = similarities(states, radius, excluded, chunk=check_count("chunk", chunk))
    share = whole if episode_id is None else across
    return share.mean() if reduce == "mean" else share


def similarities(
    states: Tensor, radius: float, excluded: Excluded, *, chunk: int = 512
) -> tuple[Tensor, Tensor]:
    """(N,) shares of all samples close to each, and (N,) of those that are not excluded, in one pass."""
    points, shares = Points.of(states), []
    for rows in torch.arange(len(states), device=states.device).split(chunk):
        close = within(points, points.centred[rows], radius)
        counted = torch.ones_like(close)
        excluded.fill(counted, rows, False)
        near = torch.stack([count_true(close), count_true(close & counted)]).to(states.dtype)
        shares.append(
            near / torch.stack([torch.full_like(rows, len(states)), count_true(counted).clamp_min(1)])
        )
    whole, across = torch.cat(shares, dim=1)
    return whole, across


def tube_coverage(states: Tensor, queries: Tensor, radius: float, *, chunk: int = 512) -> Tensor:
    """Which of some states the data cover: whether a sample lies within eps of each.

    Args:
        states: (N, S) the data, standardised.
        queries: (M, S) the states that a policy might meet, in the same units.
        radius: eps.
        chunk: Queries at a time; chunk * N floats of memory.

    Returns:
        (M,) bool; its mean is the covered share.

    Raises:
        TypeError: As `neighbours`.
        ValueError: If shapes differ or `radius` is not positive.

    Examples:
        >>> import torch
        >>> from ildataquality import tube_coverage
        >>> tube_coverage(torch.tensor([[0.0], [1.0]]), torch.tensor([[1.2], [3.0]]), radius=0.5)
        tensor([ True, False])
    """
    states, queries = check_matrix("states", states), check_matrix("queries", queries)
    check_positive("radius", radius)
    if queries.shape[1] != states.shape[1]:
        raise ValueError(f"queries must be (M, {states.shape[1]}) as states are, got {tuple(queries.shape)}")
    wide = torch.promote_types(states.dtype, queries.dtype)
    points = Points.of(states.to(wide))
    asked = (queries.to(wide) - points.centre).split(check_count("chunk", chunk))
    return torch.cat([within(points, part, radius).any(1) for part in asked])
