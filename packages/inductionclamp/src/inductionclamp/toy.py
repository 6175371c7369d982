"""The toy model of interacting sub-circuits: a rank-one tensor fitted by gradient descent."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from inductionclamp._checks import checked_float, checked_integer

VECTORS = ("a", "b", "c")


@dataclass(frozen=True)
class ToyRun:
    """A run of the toy model.

    Attributes:
        loss: The loss before each step and after the last, [steps + 1].
        angle: Progress measure 1 - cos(v, truth)^2 of each vector, [steps + 1, 3].
        alone: Progress measure of each vector: the loss with the other two at their truth, the sign of the vector
            being the better one, [steps + 1, 3].
        truth: The true vectors.
        vectors: The vectors after the last step.
    """

    loss: Tensor
    angle: Tensor
    alone: Tensor
    truth: tuple[Tensor, ...]
    vectors: tuple[Tensor, ...]


def tensor_toy(
    dims: tuple[int, int, int] = (20, 20, 20),
    clamp: Iterable[str] | Mapping[str, int] = (),
    steps: int = 1000,
    lr: float = 1.0,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
) -> ToyRun:
    """Fit a o b o c to a true rank-one tensor, some vectors clamped to their truth (section 4.3, Fig. 5).

    L = 1/2 mean((a* o b* o c* - a o b o c)^2), truth and start from N(0, 1). With all three free there is
    a plateau and a sudden drop; with two clamped the problem is linear, and
    L_t = L_0 (1 - lr |b|^2 |c|^2 / (d_a d_b d_c))^(2 t).

    Args:
        dims: Lengths of a, b and c.
        clamp: Names of the vectors held at their truth throughout, or for each how many leading entries of it.
        steps: Steps of gradient descent.
        lr: Learning rate.
        generator: Draws truth and start.
        dtype: Type of the numbers.

    Returns:
        The run.

    Raises:
        ValueError: If a name is none of a, b, c, a size is not positive, or the run diverges.

    Examples:
        >>> import torch
        >>> from inductionclamp import tensor_toy
        >>> run = tensor_toy(clamp=("b", "c"), generator=torch.Generator().manual_seed(1))
        >>> size = float(run.truth[1].square().sum() * run.truth[2].square().sum() / 20**3)
        >>> bool(torch.isclose(run.loss[10], run.loss[0] * (1 - size) ** 20))
        True
    """
    sizes = [checked_integer(f"dims[{place}]", size, 1) for place, size in enumerate(dims)]
    if len(sizes) != 3:
        raise ValueError(f"dims must be three lengths, got {len(sizes)}")
    masks = _masks(clamp, sizes)
    steps, lr = checked_integer("steps", steps, 0), checked_float("lr", lr, 0)
    device = torch.device("cpu") if generator is None else generator.device
    truth = [torch.randn(size, generator=generator, dtype=dtype, device=device) for size in sizes]
    start = [torch.randn(size, generator=generator, dtype=dtype, device=device) for size in sizes]
    masks = [mask.to(device) for mask in masks]
    vectors = [torch.where(mask, true, v) for mask, true, v in zip(masks, truth, start, strict=True)]
    path = [vectors]
    for _ in range(steps):
        moved = _descended(vectors, truth, lr)
        vectors = [torch.where(mask, true, v) for mask, true, v in zip(masks, truth, moved, strict=True)]
        path.append(vectors)
    stacked = [torch.stack([point[place] for point in path]) for place in range(3)]
    loss = _losses(stacked, truth)
    if not bool(loss.isfinite().all()):
        raise ValueError(f"lr must be small enough to converge, diverged with {lr:g}")
    angle = torch.stack([_angle(v, true) for v, true in zip(stacked, truth, strict=True)], 1)
    alone = torch.stack([_alone(place, stacked, truth) for place in range(3)], 1)
    return ToyRun(loss, angle, alone, tuple(truth), tuple(vectors))


def _masks(clamp: Iterable[str] | Mapping[str, int], sizes: list[int]) -> list[Tensor]:
    wanted = dict(clamp) if isinstance(clamp, Mapping) else {name: None for name in clamp}
    if unknown := sorted(set(wanted) - set(VECTORS)):
        raise ValueError(f"clamp must be of a, b and c, got {unknown}")
    masks = []
    for name, size in zip(VECTORS, sizes, strict=True):
        given = wanted.get(name, 0)
        count = size if given is None else checked_integer(f"clamp[{name!r}]", given)
        if count > size:
            raise ValueError(f"clamp[{name!r}] must be at most {size}, got {count}")
        masks.append(torch.arange(size) < count)
    return masks


def _descended(vectors: list[Tensor], truth: list[Tensor], lr: float) -> list[Tensor]:
    """One step: dL/da = (a |b|^2 |c|^2 - a* (b . b*) (c . c*)) / (d_a d_b d_c), and so on."""
    rate = lr / math.prod(len(v) for v in vectors)
    squares = [v @ v for v in vectors]
    overlaps = [v @ true for v, true in zip(vectors, truth, strict=True)]
    moved = []
    for place, (v, true) in enumerate(zip(vectors, truth, strict=True)):
        i, j = (other for other in range(3) if other != place)
        moved.append(v - rate * (v * (squares[i] * squares[j]) - true * (overlaps[i] * overlaps[j])))
    return moved


def _losses(paths: list[Tensor], truth: list[Tensor]) -> Tensor:
    """The loss at each point of a path, a chunk of points at a time: the tensor itself, since norms would cancel."""
    target = torch.einsum("i,j,k->ijk", *truth)
    chunk = max(1, 2**20 // target.numel())
    pieces = zip(*(path.split(chunk) for path in paths), strict=True)
    losses = [
        (torch.einsum("ti,tj,tk->tijk", *piece) - target).square().mean((1, 2, 3)) / 2 for piece in pieces
    ]
    return torch.cat(losses)


def _angle(path: Tensor, true: Tensor) -> Tensor:
    return 1 - torch.nn.functional.cosine_similarity(path, true[None], dim=1).square()


def _alone(place: int, paths: list[Tensor], truth: list[Tensor]) -> Tensor:
    """Loss of one vector, up to its sign, with the others at their truth: |v - v*|^2 times the others' mean squares."""
    others = math.prod(float(true.square().mean()) for other, true in enumerate(truth) if other != place)
    path, true = paths[place], truth[place]
    distance = torch.minimum((path - true).square().mean(1), (path + true).square().mean(1))
    return others * distance / 2
