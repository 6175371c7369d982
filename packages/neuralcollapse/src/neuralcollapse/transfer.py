"""How the near-features minimiser answers to a perturbation of the given features, to first order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from neuralcollapse.checks import check_count, check_finite, check_positive, check_tensor, warn_caller
from neuralcollapse.model import Solution, check_penalties, check_sizes

Order = Literal["exact", "first"]


@dataclass(frozen=True)
class BlockSpectrum:
    """Singular values of two blocks of the transfer operator, each `[d n]`, largest first.

    Attributes:
        diagonal: Of `F_kk`: how a class answers to its own perturbation.
        off_diagonal: Of `F_kl`, `k != l`: how it answers to that of another class.
    """

    diagonal: Tensor
    off_diagonal: Tensor


@torch.no_grad()
def transfer(
    dH0: Tensor,
    solution: Solution,
    *,
    order: Order = "exact",
    tol: float = 1e-12,
    max_iter: int = 1000,
) -> Tensor:
    """The change of the minimiser's features for a small change of the given ones, `dH = F dH0`.

    Section 5 of Tirer, Huang and Niles-Weed (2023): `F = (beta/N) S^{-1}`, `S` the Schur complement
    `f_HH - f_HW f_WW^{-1} f_WH` of the Hessian. No matrix of that size is formed: conjugate gradients on

    `N S[V] = W^T W V + (lam_h + beta) V - W^T D H - D^T E`, `E = W H - Y`,
    `D = (W V H^T + E V^T) (H H^T + n lam_w I)^{-1}`,

    at `O(d K N)` operations and `O(d N)` memory an iteration. `order="first"` is the paper's expansion for
    large `beta`, `F = I - (N S - beta I) / beta`, without solving anything.

    Args:
        dH0: Perturbations `[..., d, N]`, any number of them at once.
        solution: What `near_features` returned.
        order: `"exact"` or `"first"` in `1/beta`.
        tol: Relative residual at which conjugate gradients stop (never less than the type resolves).
        max_iter: Most iterations.

    Returns:
        `[..., d, N]`.

    Raises:
        TypeError: If `dH0` is not floating point.
        ValueError: If the shape does not fit, `dH0` is not finite, or `order`, `tol` or `max_iter` is out of range.
        RuntimeError: If the solution is not a strict minimum, or conjugate gradients do not converge.

    Examples:
        >>> from neuralcollapse import near_features, ufm_minimizer
        >>> _, H = ufm_minimizer(2, 3, samples_per_class=2, lam_w=0.1, lam_h=0.1)
        >>> Y = torch.eye(2).repeat_interleave(2, dim=1)
        >>> solution = near_features(H, Y, lam_w=0.1, lam_h=0.1, beta=10.0)
        >>> within = torch.tensor([1.0, -1.0, 0.0, 0.0]) * torch.ones(3, 1)  # moves no class mean
        >>> bool(transfer(within, solution).norm() < within.norm())
        True
    """
    check_tensor("dH0", dH0)
    if not dH0.is_floating_point():
        raise TypeError(f"dH0 must be floating point, got {dH0.dtype}")
    if dH0.shape[-2:] != solution.H.shape:
        raise ValueError(
            f"dH0 must be [..., {solution.H.shape[0]}, {solution.H.shape[1]}], got {tuple(dH0.shape)}"
        )
    check_finite("dH0", dH0)
    if order not in ("exact", "first"):
        raise ValueError(f"order must be 'exact' or 'first', got {order!r}")
    check_positive("tol", tol)
    max_iter = check_count("max_iter", max_iter)
    if not solution.converged:
        warn_caller("the solution has not converged: its transfer operator is that of another point")
    with torch.autocast(dH0.device.type, enabled=False):
        hessian = _ReducedHessian(solution)
        dH0 = dH0.to(solution.H.dtype)
        if order == "first":
            return 2 * dH0 - hessian.apply(dH0) / solution.beta
        # The operator has no scale, and squares of perturbations would leave the type where they do not.
        size = dH0.abs().amax((-2, -1), keepdim=True)
        size = torch.where(size > 0, size, 1.0)
        return size * hessian.solve(solution.beta * (dH0 / size), tol, max_iter)


def transfer_spectrum(
    solution: Solution,
    classes: tuple[int, int] = (0, 1),
    *,
    order: Order = "exact",
    max_size: int = 4096,
) -> BlockSpectrum:
    """Singular values of the transfer operator's blocks between two classes.

    Column by column, through `transfer`, then dense: time `O((d n)^3)` and memory `O((d n)^2)`.

    Args:
        solution: What `near_features` returned.
        classes: `k` and `l` of `F_kk` and `F_kl`, different.
        order: See `transfer`.
        max_size: Largest `d n` to accept.

    Returns:
        The spectrum.

    Raises:
        ValueError: If classes do not fit, or a block is larger than `max_size`.
        RuntimeError: As `transfer` does.

    Examples:
        >>> from neuralcollapse import near_features, ufm_minimizer
        >>> _, H = ufm_minimizer(3, 5, samples_per_class=4, lam_w=0.6, lam_h=0.3)
        >>> Y = torch.eye(3).repeat_interleave(4, dim=1)
        >>> spectrum = transfer_spectrum(near_features(H, Y, lam_w=0.6, lam_h=0.3, beta=200.0))
        >>> [round(float(value), 6) for value in (spectrum.diagonal[-1], spectrum.off_diagonal[0])]
        [0.996477, 0.001721]
    """
    num_classes, num_samples = solution.Y.shape
    first, second = classes
    if first == second or not all(0 <= label < num_classes for label in classes):
        raise ValueError(f"classes must be two different labels in [0, {num_classes}), got {classes}")
    dim = len(solution.H)
    size = dim * num_samples // num_classes
    if size > max_size:
        raise ValueError(f"max_size must be at least d n = {size} for these blocks, got {max_size}")
    columns = [solution.Y[label].nonzero().flatten() for label in classes]
    blocks: list[list[Tensor]] = [[], []]
    basis = torch.eye(size, dtype=solution.H.dtype, device=solution.H.device).view(size, dim, -1)
    # As many columns at a time as make a tensor of some 2^22 numbers.
    for part in basis.split(max(1, 2**22 // (dim * num_samples))):
        impulse = part.new_zeros(len(part), dim, num_samples)
        impulse[..., columns[1]] = part
        answers = transfer(impulse, solution, order=order)
        blocks[1].append(answers[..., columns[0]].flatten(1))
        impulse = part.new_zeros(len(part), dim, num_samples)
        impulse[..., columns[0]] = part
        blocks[0].append(transfer(impulse, solution, order=order)[..., columns[0]].flatten(1))
    diagonal, off_diagonal = (torch.linalg.svdvals(torch.cat(block)) for block in blocks)
    return BlockSpectrum(diagonal, off_diagonal)


def predicted_spectrum(
    num_classes: int,
    dim: int,
    samples_per_class: int,
    lam_w: float,
    lam_h: float,
    beta: float,
    *,
    order: Order = "first",
) -> BlockSpectrum:
    """The transfer operator's spectrum at collapse, in closed form.

    For `H0` a minimiser of the unconstrained-features model, with `c = sqrt(lam_w lam_h)`,
    `F_kk` has the eigenvalues `1 - x/beta` to first order in `1/beta`, and `beta / (beta + x)` exactly on
    within-class perturbations, for

    | x | how many |
    | --- | --- |
    | 0 | `d - K` |
    | `lam_h` | `(d - K)(n - 1)` |
    | `2 lam_h (1 - c)` | `K - 1` |
    | `4 lam_h (1 - c)` | 1 |
    | `sqrt(lam_h / lam_w)` | `K (n - 1)` |

    and `F_kl` has rank one with the singular value `2 lam_h (1 - c) / beta`. The extremes are those of Section 5
    of Tirer, Huang and Niles-Weed (2023); the steps between follow in the same way.

    Args:
        num_classes: `K`, at least 2.
        dim: Feature dimension `d`, at least `K`.
        samples_per_class: `n`.
        lam_w: Penalty of the classifier, positive.
        lam_h: Penalty of the features, positive; `lam_w lam_h < 1`.
        beta: Pull towards `H0`, positive.
        order: `"exact"` or `"first"` in `1/beta`.

    Returns:
        The spectrum, in float64.

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> spectrum = predicted_spectrum(3, 5, 4, lam_w=0.6, lam_h=0.3, beta=200.0)
        >>> [round(float(value), 6) for value in (spectrum.diagonal[-1], spectrum.off_diagonal[0])]
        [0.996464, 0.001727]
    """
    check_penalties(lam_w, lam_h)
    num_classes, dim, samples_per_class = check_sizes(num_classes, dim, samples_per_class)
    check_positive("beta", beta)
    if not 0 < lam_w * lam_h < 1:
        raise ValueError(f"lam_w * lam_h must lie in (0, 1), or nothing collapses, got {lam_w * lam_h}")
    if order not in ("exact", "first"):
        raise ValueError(f"order must be 'exact' or 'first', got {order!r}")
    symmetric = 4 * lam_h * (1 - (lam_w * lam_h) ** 0.5)

    def loss(rate: float) -> float:
        return rate / beta if order == "first" else rate / (beta + rate)

    spare, others = dim - num_classes, samples_per_class - 1
    # On class means F takes away the share `loss(symmetric)` of the symmetric part of R^T dH0: a class alone has
    # half of each of its off-diagonal entries in it, and the whole of the diagonal one.
    levels = [
        (0.0, spare),
        (loss(lam_h), spare * others),
        (loss(symmetric) / 2, num_classes - 1),
        (loss(symmetric), 1),
        (loss((lam_h / lam_w) ** 0.5), num_classes * others),
    ]
    diagonal = torch.cat([torch.full((count,), 1 - shift, dtype=torch.float64) for shift, count in levels])
    off_diagonal = torch.zeros(dim * samples_per_class, dtype=torch.float64)
    off_diagonal[0] = loss(symmetric) / 2
    return BlockSpectrum(diagonal.abs().sort(descending=True).values, off_diagonal)


class _ReducedHessian:
    """`N S`, as products with it and with its inverse."""

    def __init__(self, solution: Solution) -> None:
        weight, features = solution.W, solution.H
        num_classes, num_samples = solution.Y.shape
        self.weight = weight
        self.features = features
        self.error = weight @ features - solution.Y
        self.shift = solution.lam_h + solution.beta
        ridge = solution.lam_w * num_samples / num_classes
        gram = features @ features.mT
        self.gram_inverse = torch.linalg.inv(gram + ridge * torch.eye(len(gram)).to(gram))
        outer = weight @ weight.mT
        self.outer_inverse = torch.linalg.inv(outer + self.shift * torch.eye(num_classes).to(outer))

    def apply(self, V: Tensor) -> Tensor:
        weight, features, error = self.weight, self.features, self.error
        logits = weight @ V
        change = (logits @ features.mT + error @ V.mT) @ self.gram_inverse
        return weight.mT @ (logits - change @ features) + self.shift * V - change.mT @ error

    def precondition(self, V: Tensor) -> Tensor:
        """`(W^T W + (lam_h + beta) I)^{-1} V`, by Woodbury's identity on `K x K`."""
        return (V - self.weight.mT @ (self.outer_inverse @ (self.weight @ V))) / self.shift

    def solve(self, right: Tensor, tol: float, max_iter: int) -> Tensor:
        """Preconditioned conjugate gradients, for all right-hand sides at once."""
        tol = max(tol, 10 * torch.finfo(right.dtype).eps)
        target = tol * torch.linalg.norm(right, dim=(-2, -1))
        residual, solved = right, torch.zeros_like(right)
        direction = ahead = self.precondition(residual)
        slope = _inner(residual, ahead)
        for _ in range(max_iter):
            active = torch.linalg.norm(residual, dim=(-2, -1)) > target
            if not bool(active.any()):
                return solved
            image = self.apply(direction)
            curvature = _inner(direction, image)
            if bool((curvature <= 0)[active].any()):
                raise RuntimeError(
                    "solution must be a strict minimum, got a direction of no or negative curvature"
                )
            step = torch.where(active, slope / curvature, 0)[..., None, None]
            solved = solved + step * direction
            residual = residual - step * image
            ahead = self.precondition(residual)
            before, slope = slope, _inner(residual, ahead)
            direction = ahead + torch.where(active, slope / before, 0)[..., None, None] * direction
        raise RuntimeError(f"conjugate gradients did not reach tol={tol} in {max_iter} iterations")


def _inner(first: Tensor, second: Tensor) -> Tensor:
    return (first * second).sum((-2, -1))
