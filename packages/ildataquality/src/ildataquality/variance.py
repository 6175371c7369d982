"""How much similar samples differ: local variance of actions, of action chunks and of transitions."""

from __future__ import annotations

import warnings
from typing import Literal

import torch
from torch import Tensor

from ildataquality._checks import check_count, check_reduce, constant_columns, episode_lengths
from ildataquality.local import check_rows, in_unit_variance, local_variance, prediction_errors
from ildataquality.neighbours import Neighbours


def action_variance(
    actions: Tensor,
    neighbours: Neighbours,
    *,
    normalize: bool | Literal["per_dim"] = True,
    chunk: int = 1,
    states: Tensor | None = None,
    reduce: str | None = "mean",
) -> Tensor:
    """V_i = mean_{j in C_i} ||a_j - abar_i||^2, how differently the operators act where the states are similar.

    What a unimodal policy cannot fit there, the action divergence of section 4 of the paper, whose exact
    estimator is not known; the options are ours. Memory: 4096 k A floats.

    Args:
        actions: (N, A).
        neighbours: The C_i.
        normalize: False: in squared units of the actions. True: over the global variance sum_d Var a_d, so that V is
            1 - R^2 of the local mean. `"per_dim"`: each dimension over its own global variance, then their mean.
        chunk: h; compare the next h actions, as policies with action chunks clone them. Past the end of an
            episode the last action counts on. V stays per action: the mean over the h.
        states: (N, S) the states that the neighbours were found in; given, abar_i is a local *linear* fit at the C_i
            instead of a mean, so that a slope of the expert's actions is not mistaken for noise, and the mean
            is over the degrees of freedom left. Needs more than S + 1 neighbours.
        reduce: `"mean"` over the samples with neighbours, or None for all.

    Returns:
        A scalar, or (N,) with NaN where a sample has no neighbour (with `states`: too few).

    Raises:
        ValueError: If shapes do not fit, a number is not finite, an option is unknown, or `chunk` > 1 without the
            neighbours' `episode_id`.

    Warns:
        UserWarning: If `normalize=False` and a dimension of the actions never changes.

    Examples:
        >>> import torch
        >>> from ildataquality import action_variance, neighbours
        >>> near = neighbours(torch.tensor([[0.0], [1.0], [5.0], [6.0]]), k=2)
        >>> action_variance(torch.tensor([[1.0], [3.0], [5.0], [5.0]]), near, normalize=False, reduce=None)
        tensor([1., 1., 0., 0.])
    """
    actions = check_rows("actions", actions, neighbours)
    check_reduce(reduce)
    if normalize not in (True, False, "per_dim"):
        raise ValueError(f"normalize must be True, False or 'per_dim', got {normalize!r}")
    constant = constant_columns(actions)
    if normalize is False and constant.any():
        warnings.warn(
            f"dimensions {constant.nonzero()[:, 0].tolist()} of actions never change; they count nothing in an "
            "unnormalised variance",
            UserWarning,
            stacklevel=2,
        )
    if normalize == "per_dim":
        columns = [in_unit_variance(column[:, None]) for column in actions.T]
        values = torch.cat(columns, dim=1) / max(int((~constant).sum()), 1) ** 0.5
    else:
        values = in_unit_variance(actions) if normalize else actions
    return _reduced(chunk_variance(values, neighbours, chunk, states), reduce)


def chunk_variance(
    values: Tensor, neighbours: Neighbours, chunk: int, states: Tensor | None = None
) -> Tensor:
    """(N,) local variance of the next `chunk` values, per value."""
    chunk = check_count("chunk", chunk)
    if states is not None:
        states = check_rows("states", states, neighbours)
    if chunk > 1:
        if neighbours.episode_id is None:
            raise ValueError("chunk > 1 needs neighbours with episode_id, got None")
        values = action_chunks(values, neighbours.episode_id, chunk) / chunk**0.5
    return local_variance(values, neighbours, states)


def transition_variance(
    states: Tensor,
    next_states: Tensor,
    neighbours: Neighbours,
    *,
    inputs: Tensor | None = None,
    reduce: str | None = "mean",
) -> Tensor:
    """Mean over neighbours in (s, a) of ||delta_j - deltabar_i||^2 with delta = s' - s: an estimate of tr Sigma(s, a).

    Section 4 of the paper calls the spread of next states that the system's noise makes transition diversity.

    Args:
        states: (N, S).
        next_states: (N, S) in the same units.
        neighbours: Neighbours found in the concatenation of standardised states and actions.
        inputs: (N, S + A) that concatenation; given, a local linear fit is taken out instead of the mean (see
            `states` of `action_variance`), so that smooth dynamics are not mistaken for noise.
        reduce: `"mean"` over the samples with neighbours, or None for all.

    Returns:
        A scalar, or (N,) with NaN where a sample has no neighbour.

    Raises:
        ValueError: If shapes do not fit or a number is not finite.

    Examples:
        >>> import torch
        >>> from ildataquality import neighbours, transition_variance
        >>> states = torch.tensor([[0.0], [1.0], [5.0], [6.0]])
        >>> moved = torch.tensor([[1.0], [2.0], [6.0], [9.0]])
        >>> transition_variance(states, moved, neighbours(states, k=2), reduce=None)
        tensor([0., 0., 1., 1.])
    """
    states = check_rows("states", states, neighbours)
    next_states = check_rows("next_states", next_states, neighbours)
    if states.shape != next_states.shape:
        raise ValueError(
            f"next_states must have the shape of states {tuple(states.shape)}, got {tuple(next_states.shape)}"
        )
    check_reduce(reduce)
    inputs = None if inputs is None else check_rows("inputs", inputs, neighbours)
    return _reduced(local_variance(next_states - states, neighbours, inputs), reduce)


def divergence_from_others(
    actions: Tensor, neighbours: Neighbours, *, normalize: bool = True, states: Tensor | None = None
) -> Tensor:
    """||a_i - abar_i||^2: how far a sample's action is from what its neighbours did.

    With neighbours of other episodes only, its mean over an episode says how far the operator is from the others.

    Args:
        actions: (N, A).
        neighbours: The C_i, without the sample itself.
        normalize: Over the global variance of the actions.
        states: (N, S) the states that the neighbours were found in; given, abar_i is a local linear fit at s_i instead
            of a mean, and the distance is over 1 + h_i, h_i the leverage of s_i, so that its mean is the
            variance of noise there.

    Returns:
        (N,) with NaN where a sample has no neighbour (with `states`: too few).

    Raises:
        ValueError: If shapes do not fit or a number is not finite.

    Examples:
        >>> import torch
        >>> from ildataquality import divergence_from_others, neighbours
        >>> near = neighbours(torch.tensor([[0.0], [1.0], [2.0]]), k=2, episode_id=torch.tensor([0, 1, 2]))
        >>> divergence_from_others(torch.tensor([[0.0], [0.0], [3.0]]), near, normalize=False)
        tensor([2.2500, 2.2500, 9.0000])
    """
    actions = check_rows("actions", actions, neighbours)
    states = None if states is None else check_rows("states", states, neighbours)
    error, leverage = prediction_errors(
        in_unit_variance(actions) if normalize else actions, neighbours, states
    )
    distance = error.square().sum(1)
    return distance if states is None else distance / (1 + leverage)


def action_chunks(actions: Tensor, episode_id: Tensor, chunk: int) -> Tensor:
    """The next `chunk` actions of every sample; past the end of the episode its last action is repeated.

    Args:
        actions: (N, A), the episodes one after the other and in time order.
        episode_id: (N,) of each.
        chunk: h.

    Returns:
        (N, h A).

    Raises:
        ValueError: If `chunk` < 1, lengths differ, or an episode is in several pieces.

    Examples:
        >>> import torch
        >>> from ildataquality import action_chunks
        >>> action_chunks(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([0, 0, 1]), 2).tolist()
        [[1.0, 2.0], [2.0, 2.0], [3.0, 3.0]]
    """
    chunk, lengths = check_count("chunk", chunk), episode_lengths(episode_id, len(actions))
    last = torch.repeat_interleave(torch.cumsum(lengths, 0) - 1, lengths)
    ahead = torch.arange(len(actions), device=actions.device)[:, None] + torch.arange(
        chunk, device=actions.device
    )
    return actions[torch.minimum(ahead, last[:, None])].flatten(1)


def _reduced(values: Tensor, reduce: str | None) -> Tensor:
    return values.nanmean() if reduce == "mean" else values
