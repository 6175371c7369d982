"""How much similar samples differ: variance of actions and of transitions, its kind, and each episode's share of it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from ildataquality._checks import check_matrix, check_reduce
from ildataquality.neighbours import Neighbours

_ROWS = 4096


def action_variance(
    actions: Tensor,
    neighbours: Neighbours,
    *,
    normalize: bool | str = True,
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

    Example:
        >>> import torch
        >>> from ildataquality import action_variance, neighbours
        >>> near = neighbours(torch.tensor([[0.0], [1.0], [5.0], [6.0]]), k=2)
        >>> action_variance(torch.tensor([[1.0], [3.0], [5.0], [5.0]]), near, normalize=False, reduce=None)
        tensor([1., 1., 0., 0.])
    """
    _check_rows("actions", actions, neighbours)
    check_reduce(reduce)
    if normalize not in (True, False, "per_dim"):
        raise ValueError(f"normalize must be True, False or 'per_dim', got {normalize!r}")
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    constant = _constant(actions)
    if normalize is False and constant.any():
        warnings.warn(
            f"dimensions {constant.nonzero()[:, 0].tolist()} of actions never change; they count nothing in an "
            "unnormalised variance",
            UserWarning,
            stacklevel=2,
        )
    values = actions
    if normalize == "per_dim":
        std = torch.where(constant, 1, actions.std(0, correction=0))
        values = actions / std / max(int((~constant).sum()), 1) ** 0.5
    if chunk > 1:
        if neighbours.episode_id is None:
            raise ValueError("chunk > 1 needs neighbours with episode_id, got None")
        values = action_chunks(values, neighbours.episode_id, chunk) / chunk**0.5
    variance = local_variance(values, neighbours, states=states)
    if normalize is True:
        variance = variance / _total_variance(actions)
    return _reduced(variance, reduce)


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

    Example:
        >>> import torch
        >>> from ildataquality import neighbours, transition_variance
        >>> states = torch.tensor([[0.0], [1.0], [5.0], [6.0]])
        >>> moved = torch.tensor([[1.0], [2.0], [6.0], [9.0]])
        >>> transition_variance(states, moved, neighbours(states, k=2), reduce=None)
        tensor([0., 0., 1., 1.])
    """
    _check_rows("states", states, neighbours)
    _check_rows("next_states", next_states, neighbours)
    if states.shape != next_states.shape:
        raise ValueError(
            f"next_states must have the shape of states {tuple(states.shape)}, got {tuple(next_states.shape)}"
        )
    check_reduce(reduce)
    return _reduced(local_variance(next_states - states, neighbours, states=inputs), reduce)


def divergence_from_others(actions: Tensor, neighbours: Neighbours, *, normalize: bool = True) -> Tensor:
    """||a_i - abar_i||^2: how far a sample's action is from the mean of its neighbours'.

    With neighbours of other episodes only, its mean over an episode says how far the operator is from the others.

    Args:
        actions: (N, A).
        neighbours: The C_i, without the sample itself.
        normalize: Over the global variance of the actions.

    Returns:
        (N,) with NaN where a sample has no neighbour.

    Raises:
        ValueError: If shapes do not fit or a number is not finite.

    Example:
        >>> import torch
        >>> from ildataquality import divergence_from_others, neighbours
        >>> near = neighbours(torch.tensor([[0.0], [1.0], [2.0]]), k=2, episode_id=torch.tensor([0, 1, 2]))
        >>> divergence_from_others(torch.tensor([[0.0], [0.0], [3.0]]), near, normalize=False)
        tensor([2.2500, 2.2500, 9.0000])
    """
    _check_rows("actions", actions, neighbours)
    found = []
    for rows in torch.arange(len(actions), device=actions.device).split(_ROWS):
        mask = neighbours.mask[rows]
        mean = _masked_mean(actions[neighbours.index[rows]], mask)
        found.append((actions[rows] - mean).square().sum(1).masked_fill(~mask.any(1), torch.nan))
    divergence = torch.cat(found)
    return divergence / _total_variance(actions) if normalize else divergence


def multimodality(actions: Tensor, neighbours: Neighbours, *, reduce: str | None = "mean") -> Tensor:
    """Share of the neighbours' action variance that two clusters explain: between / total, along the main direction.

    The neighbours' actions are projected on their first principal direction and split in two where the variance
    between the halves is largest. Two tight modes give 1; one Gaussian gives 2/pi = 0.64 and a uniform one 0.75 (for
    many neighbours; few give more). Multimodal choices look like noise to a unimodal policy, not to a generative one.

    Args:
        actions: (N, A).
        neighbours: The C_i.
        reduce: `"mean"`, weighted by the variance along the direction, so that samples without any count nothing; or
            None for all.

    Returns:
        A scalar, or (N,) with NaN where a sample has fewer than two neighbours or no variance.

    Raises:
        ValueError: If shapes do not fit or a number is not finite.

    Example:
        >>> import torch
        >>> from ildataquality import multimodality, neighbours
        >>> near = neighbours(torch.arange(8.0)[:, None] / 100, k=7)
        >>> left_or_right = torch.tensor([[-1.0], [1.0]]).repeat(4, 1)
        >>> multimodality(left_or_right, near)
        tensor(1.)
    """
    _check_rows("actions", actions, neighbours)
    check_reduce(reduce)
    ratios, weights = [], []
    for values, mask in _gathered(actions, neighbours):
        count = mask.sum(1)
        centred = (values - _masked_mean(values, mask)[:, None]) * mask[:, :, None]
        scatter = centred.mT @ centred
        direction = torch.linalg.eigh(scatter).eigenvectors[:, :, -1]
        projected = (centred @ direction[:, :, None])[:, :, 0].masked_fill(~mask, torch.inf).sort(1).values
        projected = projected.masked_fill(torch.isinf(projected), 0)
        total = projected.square().sum(1)
        # Centred values: a left part of n with sum s leaves -s on the right, so between = s^2 (1/n + 1/(count - n)).
        left = torch.arange(1, mask.shape[1] + 1, device=mask.device)
        right = (count[:, None] - left).clamp_min(0)
        between = projected.cumsum(1).square() * (1 / left + 1 / right)
        between = between.masked_fill(right == 0, 0).amax(1)
        flat = (count < 2) | (total <= 1e-10 * actions.square().sum(1).amax() * count)
        ratios.append((between / total).clamp(max=1).masked_fill(flat, torch.nan))
        weights.append(torch.where(flat, 0, total / count))
    ratio, weight = torch.cat(ratios), torch.cat(weights)
    if reduce is None:
        return ratio
    return (ratio.nan_to_num(0) * weight).sum() / weight.sum()


def leave_one_out(
    actions: Tensor, neighbours: Neighbours, *, episode_id: Tensor | None = None, normalize: bool = True
) -> Tensor:
    """Delta_e = V(D) - V(D - e) for every episode: positive where the set is more consistent without it.

    From sums over each neighbourhood's samples of each episode, in O(N k A) for all episodes together: the
    neighbour lists are searched once, and an episode is struck from them. With neighbours by radius this
    equals a fresh search.

    Args:
        actions: (N, A).
        neighbours: The C_i.
        episode_id: (N,) in 0..E-1; by default the neighbours' own.
        normalize: Both V over the global action variance of D.

    Returns:
        (E,). A V of no sample with neighbours is taken as 0.

    Raises:
        ValueError: If shapes do not fit, a number is not finite, or no `episode_id` is known.

    Example:
        >>> import torch
        >>> from ildataquality import leave_one_out, neighbours
        >>> near = neighbours(torch.zeros(4, 1), radius=1.0, episode_id=torch.tensor([0, 1, 2, 3]))
        >>> leave_one_out(torch.tensor([[0.0], [0.0], [0.0], [3.0]]), near, normalize=False)
        tensor([0.0000, 0.0000, 0.0000, 1.5000])
    """
    _check_rows("actions", actions, neighbours)
    episode_id = neighbours.episode_id if episode_id is None else episode_id
    if episode_id is None:
        raise ValueError("episode_id must be given, for the neighbours were found without, got None")
    if episode_id.shape != actions.shape[:1]:
        raise ValueError(
            f"episode_id must be ({len(actions)},) as actions has rows, got {tuple(episode_id.shape)}"
        )
    num_episodes = int(episode_id.max()) + 1
    # Of what V(D - e) is the mean: a sum and a count, starting from V(D)'s and changed by what e takes away.
    change = actions.new_zeros(2, num_episodes)
    total = actions.new_zeros(2)
    for rows in torch.arange(len(actions), device=actions.device).split(_ROWS):
        before, struck, owner = _struck(actions, neighbours, episode_id, rows)
        own = episode_id[rows]
        total += before.sum(1)
        change.index_add_(1, own, -before)
        differs = owner != own[:, None]
        change.index_add_(1, owner[differs], (struck - before[:, :, None])[:, differs])
    rest = total[:, None] + change
    delta = total[0] / total[1] - torch.where(rest[1] > 0, rest[0] / rest[1].clamp_min(1), 0)
    return delta / _total_variance(actions) if normalize else delta


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

    Example:
        >>> import torch
        >>> from ildataquality import action_chunks
        >>> action_chunks(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([0, 0, 1]), 2).tolist()
        [[1.0, 2.0], [2.0, 2.0], [3.0, 3.0]]
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    if episode_id.shape != actions.shape[:1]:
        raise ValueError(
            f"episode_id must be ({len(actions)},) as actions has rows, got {tuple(episode_id.shape)}"
        )
    names, lengths = torch.unique_consecutive(episode_id, return_counts=True)
    if len(names) != len(torch.unique(episode_id)):
        raise ValueError("episode_id must hold every episode in one piece, got an episode in several")
    last = torch.repeat_interleave(torch.cumsum(lengths, 0) - 1, lengths)
    ahead = torch.arange(len(actions), device=actions.device)[:, None] + torch.arange(
        chunk, device=actions.device
    )
    return actions[torch.minimum(ahead, last[:, None])].flatten(1)


# --- sums over neighbourhoods ----------------------------------------------------------------------


def local_variance(values: Tensor, neighbours: Neighbours, *, states: Tensor | None = None) -> Tensor:
    """(N,) mean_{j in C_i} ||v_j - vbar_i||^2, around the mean or around a linear fit in `states`."""
    if states is not None:
        _check_rows("states", states, neighbours)
        covariance = local_covariance(values, neighbours, states)
        return covariance.diagonal(dim1=1, dim2=2).sum(1)
    found = []
    for gathered, mask in _gathered(values, neighbours):
        centred = gathered - _masked_mean(gathered, mask)[:, None]
        squares = centred.square().sum(2) * mask
        found.append(squares.sum(1) / mask.sum(1))  # 0 / 0 is the NaN of an empty neighbourhood
    return torch.cat(found)


def local_covariance(values: Tensor, neighbours: Neighbours, states: Tensor) -> Tensor:
    """(N, V, V) covariance of the residuals of a local linear fit of `values` in `states`, per degree left."""
    found = []
    for rows in torch.arange(len(values), device=values.device).split(_ROWS):
        index, mask = neighbours.index[rows], neighbours.mask[rows, :, None]
        offsets = states[index] - states[rows, None]
        design = torch.cat([torch.ones_like(offsets[:, :, :1]), offsets], dim=2) * mask
        target = (values[index] - values[rows, None]) * mask
        # Coinciding states leave directions without data: through eigenvalues they cost no degree of freedom.
        eigenvalues, directions = torch.linalg.eigh(design.mT @ design)
        used = eigenvalues > 1e3 * torch.finfo(values.dtype).eps * eigenvalues[:, -1:]
        inverse = torch.where(used, eigenvalues, torch.inf).reciprocal()
        fit = directions @ (inverse[:, :, None] * (directions.mT @ (design.mT @ target)))
        residual = target - design @ fit
        left = mask.sum((1, 2)) - used.sum(1)
        covariance = residual.mT @ residual / left.clamp_min(1)[:, None, None]
        found.append(covariance.masked_fill((left < 1)[:, None, None], torch.nan))
    return torch.cat(found)


def _gathered(values: Tensor, neighbours: Neighbours) -> Iterator[tuple[Tensor, Tensor]]:
    """(R, k, A) values of the neighbours of some rows at a time, and (R, k) which are."""
    for rows in torch.arange(len(values), device=values.device).split(_ROWS):
        index = neighbours.index[rows]
        yield values[index.flatten()].view(*index.shape, values.shape[1]), neighbours.mask[rows]


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """(R, A) mean over the second dimension; 0 where the mask is empty."""
    weights = mask.to(values.dtype) / mask.sum(1, keepdim=True).clamp_min(1)
    return (weights[:, None] @ values)[:, 0]


def _struck(
    actions: Tensor, neighbours: Neighbours, episode_id: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """V_i of some rows, V_i without each episode among the neighbours, and whose that is.

    Returns:
        (2, R) V_i and 1, or 0 and 0 for an empty neighbourhood; (2, R, k) the same without the episode of the
        segment; (R, k) that episode. Segments that do not exist leave V_i as it is.
    """
    owner = episode_id[neighbours.index[rows]].masked_fill(~neighbours.mask[rows], -1)
    owner, order = owner.sort(1, descending=True)  # what is masked goes to the end
    mask = owner >= 0
    values = actions[neighbours.index[rows].gather(1, order)]
    # Centred on the full mean, sums of the rest are minus the sums of the segment; nothing large cancels.
    centred = (values - _masked_mean(values, mask)[:, None]) * mask[:, :, None]
    starts = torch.cat([torch.ones_like(mask[:, :1]), owner[:, 1:] != owner[:, :-1]], dim=1)
    segment = starts.cumsum(1) - 1
    moments = torch.cat([mask[:, :, None], centred.square().sum(2, keepdim=True), centred], dim=2)
    sums = torch.zeros_like(moments).scatter_add_(1, segment[:, :, None].expand_as(moments), moments)
    count, squares = mask.sum(1), moments[:, :, 1].sum(1)
    before = torch.stack([squares / count.clamp_min(1), (count > 0).to(actions.dtype)])
    rest = count[:, None] - sums[:, :, 0]
    remaining = (
        squares[:, None] - sums[:, :, 1] - sums[:, :, 2:].square().sum(2) / rest.clamp_min(1)
    ).clamp_min(0)
    struck = torch.stack([remaining / rest.clamp_min(1), (rest > 0).to(actions.dtype)])
    owners = torch.zeros_like(owner).scatter_(1, segment, owner).clamp_min(0)
    nothing = sums[:, :, 0] == 0
    return before, torch.where(nothing, before[:, :, None], struck), owners


# --- small parts -----------------------------------------------------------------------------------


def _check_rows(name: str, value: Tensor, neighbours: Neighbours) -> None:
    check_matrix(name, value)
    if len(value) != len(neighbours.index):
        raise ValueError(f"{name} must have {len(neighbours.index)} rows as neighbours has, got {len(value)}")


def _constant(actions: Tensor) -> Tensor:
    return actions.amax(0) == actions.amin(0)


def _total_variance(actions: Tensor) -> Tensor:
    """Sum of the variances of all dimensions; 1 where nothing varies, for then every local variance is 0."""
    total = actions.var(0, correction=0)[~_constant(actions)].sum()
    return torch.where(total > 0, total, torch.ones_like(total))


def _reduced(values: Tensor, reduce: str | None) -> Tensor:
    return values.nanmean() if reduce == "mean" else values
