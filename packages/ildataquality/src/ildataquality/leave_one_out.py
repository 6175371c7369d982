"""What the action divergence of a set would be without each of its episodes."""

from __future__ import annotations

import torch
from torch import Tensor

from ildataquality._checks import count_episodes
from ildataquality.local import ROWS, check_rows, in_unit_variance, masked_mean
from ildataquality.neighbours import Neighbours


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

    Examples:
        >>> import torch
        >>> from ildataquality import leave_one_out, neighbours
        >>> near = neighbours(torch.zeros(4, 1), radius=1.0, episode_id=torch.tensor([0, 1, 2, 3]))
        >>> leave_one_out(torch.tensor([[0.0], [0.0], [0.0], [3.0]]), near, normalize=False)
        tensor([0.0000, 0.0000, 0.0000, 1.5000])
    """
    actions = check_rows("actions", actions, neighbours)
    episode_id = neighbours.episode_id if episode_id is None else episode_id
    if episode_id is None:
        raise ValueError("episode_id must be given, for the neighbours were found without, got None")
    num_episodes = count_episodes(episode_id, len(actions))
    values = in_unit_variance(actions) if normalize else actions - actions.mean(0)
    # Of what V(D - e) is the mean: a sum and a count, starting from V(D)'s and changed by what e takes away.
    change = values.new_zeros(2, num_episodes)
    total = values.new_zeros(2)
    for rows in torch.arange(len(values), device=values.device).split(ROWS):
        before, struck, owner = _struck(values, neighbours, episode_id, rows)
        own = episode_id[rows]
        total += before.sum(1)
        change.index_add_(1, own, -before)
        differs = owner != own[:, None]
        change.index_add_(1, owner[differs], (struck - before[:, :, None])[:, differs])
    rest = total[:, None] + change
    return total[0] / total[1] - torch.where(rest[1] > 0, rest[0] / rest[1].clamp_min(1), 0)


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
    centred = (values - masked_mean(values, mask)[:, None]) * mask[:, :, None]
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
