"""Who makes the curvature: shares of single examples and groups in the sharpness, with error bars."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from opposingsignals._checks import checked_count, checked_finite, checked_indices
from opposingsignals.hessian import explained, refuse_dead_ends, top_eigs
from opposingsignals.losses import (
    LossFunction,
    accurate,
    group_gradient,
    losses_of,
    measuring,
    num_examples,
    parts,
    trainable,
    without_reduction,
)


@dataclass(frozen=True)
class CurvatureShare:
    """A group's part of the curvature along one direction.

    Attributes:
        share: Σ_{i in G} v·H_i v / Σ_i v·H_i v. Shares of a partition add to 1; one can be negative or above 1.
        error: Its standard error over the examples.
        data_share: |G| / n, what a group of ordinary examples would have.
    """

    share: float
    error: float
    data_share: float

    @property
    def ratio(self) -> float:
        """The share in multiples of the share of the data."""
        return self.share / self.data_share

    @property
    def ratio_error(self) -> float:
        """Standard error of `ratio`."""
        return self.error / self.data_share


@dataclass(frozen=True, eq=False)
class PairScore:
    """How opposed two groups are, and how much of the curvature they make.

    Attributes:
        cosine: cos(g_A, g_B) of the groups' mean gradients.
        null_cosines: The same for random disjoint pairs of the same sizes, (null,).
        gradient_ratio_a: ||g_A|| in multiples of the median over random groups of its size.
        gradient_ratio_b: The same for B.
        curvature: Share of both groups together in v·H v.
        curvature_a: Share of A.
        curvature_b: Share of B.
        null_shares: Shares of the random pairs, (null,).
        sharpness: v·H v, the largest eigenvalue if v is its vector.
        vector: v at unit length, (P,): keep it as the next warm start.
    """

    cosine: float
    null_cosines: Tensor
    gradient_ratio_a: float
    gradient_ratio_b: float
    curvature: CurvatureShare
    curvature_a: CurvatureShare
    curvature_b: CurvatureShare
    null_shares: Tensor
    sharpness: float
    vector: Tensor

    @property
    def cosine_z(self) -> float:
        """Standard deviations of the random pairs that the cosine is away from their mean."""
        return _z(self.cosine, self.null_cosines)

    @property
    def share_z(self) -> float:
        """The same of the curvature share."""
        return _z(self.curvature.share, self.null_shares)


def per_example_curvature(
    model: nn.Module,
    loss_fn: LossFunction,
    x: Any,
    y: Any,
    vector: Tensor,
    *,
    batch: int | None = None,
    per_token: bool = False,
    evaluate: bool = True,
) -> Tensor:
    """Curvature of every example's own loss along one direction, c_i = v·H_i v, all in one go.

    With weights u = 1 on the losses, c = ∇_u (v·∇_θ (v·∇_θ Σ u_i l_i)): three backward passes whatever n is, through
    any layer that can be differentiated so often. The mean of c is v·H v.

    Args:
        model: See `per_example_loss`.
        loss_fn: See `per_example_loss`.
        x: Inputs.
        y: Targets, or `None`.
        vector: v over the trainable parameters, (P,).
        batch: Examples at a time; they bound the memory.
        per_token: The losses are (n, T).
        evaluate: Measure in evaluation mode; `False` keeps the model's modes (batch statistics are then each batch's).

    Returns:
        Curvatures, (n,), or (n, T) with `per_token`; float32 where the model computes in half precision.

    Raises:
        ValueError: If the vector does not fit.

    Examples:
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> x = torch.tensor([[1.0], [2.0]])
        >>> per_example_curvature(model, lambda output: output[:, 0].square(), x, None, torch.ones(1))
        tensor([2., 8.])
    """
    unreduced = without_reduction(loss_fn)
    trained = trainable(model)
    sizes = [parameter.numel() for parameter in trained]
    if vector.shape != (sum(sizes),):
        raise ValueError(
            f"vector must be of shape ({sum(sizes)},), the trainable parameters, got {tuple(vector.shape)}"
        )
    direction = checked_finite("vector", vector.detach())

    def along(value: Tensor) -> Tensor:
        found = torch.autograd.grad(
            value, trained, create_graph=True, allow_unused=True, materialize_grads=True
        )
        return torch.stack(
            [(g.to(piece) * piece).sum() for g, piece in zip(found, pieces, strict=True)]
        ).sum()

    def of_batch(x: Any, y: Any) -> Tensor:
        losses = losses_of(model, unreduced, x, y, per_token)
        losses = losses.to(accurate(losses.dtype))
        weights = torch.ones_like(losses, requires_grad=True)
        slope = along((weights * losses).sum())
        refuse_dead_ends([slope])
        bend = along(slope) if slope.requires_grad else slope
        if not bend.requires_grad:
            return torch.zeros_like(losses)
        (found,) = torch.autograd.grad(bend, weights, allow_unused=True, materialize_grads=True)
        return found

    with measuring(model, evaluate), torch.enable_grad(), explained():
        # a copy, as a vector made in inference mode enters no graph
        split = direction.clone().split(sizes)
        pieces = [
            piece.view_as(p).to(p.device, accurate(p.dtype)) for piece, p in zip(split, trained, strict=True)
        ]
        return torch.cat([of_batch(*part).detach() for part in parts(x, y, batch)])


def curvature_share(curvatures: Tensor, group: Any, *, among: Any = None) -> CurvatureShare:
    """Share of a group in the curvature, R = Σ_{i in G} c_i / Σ_i c_i, with its standard error.

    The error is that of a ratio over resampled examples, by the delta method:
    n / (n - 1) Σ_i (1[i in G] c_i - R c_i)² / (Σ_i c_i)². R is also the first-order slope of ln λ_1 in the weight of
    the group, so a group at weight 1 - w has λ_1 (1 - w R).

    Args:
        curvatures: c_i = v·H_i v, (n,) or (n, T), see `per_example_curvature`.
        group: Indices of the group in the flattened curvatures.
        among: Indices of the examples that count, such as the tokens that are no padding; all by default.

    Returns:
        Share, standard error and |G| / n.

    Raises:
        ValueError: If the total curvature is not positive, so that a share says nothing, or the group is not `among`.

    Examples:
        >>> found = curvature_share(torch.tensor([3.0, 3.0, 1.0, 1.0]), [0, 1])
        >>> found.share, found.data_share, found.ratio
        (0.75, 0.5, 1.5)
    """
    values = checked_finite("curvatures", curvatures.detach()).flatten().double()
    chosen = checked_indices("group", group, len(values), values.device)
    if among is not None:
        counted = checked_indices("among", among, len(values), values.device)
        _refuse_outsiders("group", chosen, counted)
        inside = torch.isin(counted, chosen).to(values)
        values = values[counted]
    else:
        inside = torch.zeros_like(values)
        inside[chosen] = 1
    total = values.sum()
    if not total > 0:
        raise ValueError(f"curvatures must have a positive sum for shares of it, got {total.item()}")
    share = (inside * values).sum() / total
    count = len(values)
    spread = ((inside - share) * values).square().sum() * count / max(count - 1, 1)
    return CurvatureShare(float(share), float(spread.sqrt() / total), len(chosen) / count)


def score_pair(
    model: nn.Module,
    loss_fn: LossFunction,
    x: Any,
    y: Any,
    a: Any,
    b: Any,
    *,
    vector: Tensor | None = None,
    null: int = 32,
    generator: torch.Generator | None = None,
    batch: int | None = None,
    per_token: bool = False,
    among: Any = None,
) -> PairScore:
    """Measure two groups against random pairs of the same sizes: gradients, and shares of the sharpness.

    Everything is measured in evaluation mode on the mean loss over `x`, or over what of it is `among`. The cost is one
    backward pass a group, 2 `null` small ones, the top eigenvector where it is not given, and one
    `per_example_curvature`.

    Args:
        model: See `per_example_loss`.
        loss_fn: See `per_example_loss`.
        x: All inputs.
        y: All targets, or `None`.
        a: Indices of one group, such as `pair.a`.
        b: Indices of the other, disjoint from `a`.
        vector: Direction of the curvature, (P,), of any length but 0; by default the top eigenvector of the Hessian.
        null: Random pairs, at least 2.
        generator: Draws them.
        batch: Examples at a time.
        per_token: The losses are (n, T), and the groups are tokens of the flattened losses.
        among: Indices of the examples or tokens that count, by default all: random pairs, shares and the mean loss are
            over these. For padded texts `mask.flatten().nonzero()[:, 0]`.

    Returns:
        Cosine, curvature shares, and what random pairs have.

    Raises:
        ValueError: If a group is empty or not `among`, the groups overlap, `vector` is zero, or `null` is below 2.

    Examples:
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> def squared(output, target):
        ...     return (output - target)[:, 0].square()
        >>> x, y = torch.tensor([[9.0], [9.0], [1.0], [1.0]]), torch.tensor([[99.0], [-99.0], [1.0], [1.0]])
        >>> score = score_pair(model, squared, x, y, [0], [1], null=4)
        >>> round(score.cosine, 3), round(score.curvature.share, 3), score.curvature.data_share
        (-1.0, 0.988, 0.5)
    """
    pairs = checked_count("null", null, 2)
    if vector is not None:
        vector = _unit(vector)
    else:
        closures = mean_closures(model, loss_fn, x, y, batch, per_token, among)
        vector = top_eigs(model, closures, generator=generator).vectors[0]
    curvatures = per_example_curvature(
        model, loss_fn, x, y, vector, batch=batch, per_token=per_token
    ).flatten()
    size, device = len(curvatures), curvatures.device
    groups = [checked_indices(name, value, size, device) for name, value in (("a", a), ("b", b))]
    counted = (
        torch.arange(size, device=device) if among is None else checked_indices("among", among, size, device)
    )
    for name, group in zip("ab", groups, strict=True):
        _refuse_outsiders(name, group, counted)
    both = torch.cat(groups)
    if len(both.unique()) < len(both):
        raise ValueError("a and b must be disjoint, they share examples")

    def gradient(group: Tensor) -> Tensor:
        return group_gradient(model, loss_fn, x, y, group, batch=batch, per_token=per_token)

    own = [gradient(group) for group in groups]
    cosines, norms, shares = [], [], []
    source = generator.device if generator is not None else "cpu"
    for _ in range(pairs):
        order = torch.randperm(len(counted), generator=generator, device=source)
        drawn = counted[order[: len(both)].to(device)]
        random = [gradient(group) for group in drawn.split([len(group) for group in groups])]
        cosines.append(_cosine(*random))
        norms.append([float(value.norm()) for value in random])
        shares.append(curvature_share(curvatures, drawn, among=counted).share)
    usual = torch.tensor(norms).median(dim=0).values.clamp_min(1e-30)
    shares_of = [curvature_share(curvatures, group, among=counted) for group in (both, *groups)]
    return PairScore(
        cosine=_cosine(*own),
        null_cosines=torch.tensor(cosines),
        gradient_ratio_a=float(own[0].norm() / usual[0]),
        gradient_ratio_b=float(own[1].norm() / usual[1]),
        curvature=shares_of[0],
        curvature_a=shares_of[1],
        curvature_b=shares_of[2],
        null_shares=torch.tensor(shares),
        sharpness=float(curvatures[counted].double().mean()),
        vector=vector,
    )


def mean_closures(
    model: nn.Module,
    loss_fn: LossFunction,
    x: Any,
    y: Any,
    batch: int | None,
    per_token: bool,
    among: Any = None,
) -> Sequence[Callable[[], Tensor]]:
    """Closures whose losses add to the mean loss, over the examples `among` if given, in evaluation mode."""
    unreduced = without_reduction(loss_fn)
    batches = list(parts(x, y, batch))
    count = num_examples(x)

    def closure(start: int, x: Any, y: Any) -> Callable[[], Tensor]:
        def loss() -> Tensor:
            with measuring(model):
                losses = losses_of(model, unreduced, x, y, per_token)
            length = losses.shape[1] if per_token else 1
            if among is None:
                return losses.sum() / (count * length)
            counted = checked_indices("among", among, count * length, losses.device)
            here = counted - start * length
            return losses.flatten()[here[(here >= 0) & (here < losses.numel())]].sum() / len(counted)

        return loss

    starts = itertools.accumulate((num_examples(x) for x, _ in batches), initial=0)
    return [closure(start, *part) for start, part in zip(starts, batches, strict=False)]


def _refuse_outsiders(name: str, group: Tensor, counted: Tensor) -> None:
    outside = group[~torch.isin(group, counted)]
    if len(outside):
        raise ValueError(f"{name} must lie among the examples that count, {int(outside[0])} does not")


def _unit(vector: Tensor) -> Tensor:
    direction = checked_finite("vector", vector.detach())
    size = direction.double().norm()
    if not size > 0:
        raise ValueError("vector must not be zero, it is a direction")
    return (direction / size).to(direction.dtype)


def _cosine(one: Tensor, other: Tensor) -> float:
    one, other = one.double(), other.double()
    return float(one.dot(other) / (one.norm() * other.norm()).clamp_min(1e-300))


def _z(value: float, null: Tensor) -> float:
    deviation = float(null.double().std())
    return (value - float(null.double().mean())) / deviation if deviation > 0 else math.nan
