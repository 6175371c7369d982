"""Ridge regression in closed form: the joint solution, one step of the theorem, and the choice of gamma."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GacilStep:
    """One step of the recursion, with the three parts of its weight.

    Args:
        weight: (M, C) the new weight; columns are in the order of the targets.
        inverse: (M, M) the new inverse regularised autocorrelation R_k.
        memory: (M, exposed classes) what the old weight becomes.
        eclg: (M, exposed classes) exposed class label gain: what new samples of old classes add.
        unexposed: (M, new classes) the columns of classes met for the first time.
    """

    weight: Tensor
    inverse: Tensor
    memory: Tensor
    eclg: Tensor
    unexposed: Tensor


def gacil_update(weight: Tensor, inverse: Tensor, x: Tensor, y_onehot: Tensor, exposed: Tensor) -> GacilStep:
    """One step of generalised analytic continual learning, as a pure function.

    With R_k = R_{k-1} - R_{k-1} X' (I + X R_{k-1} X')^{-1} X R_{k-1} and Y = [Y_exposed | Y_new],

        W_k = [ W_{k-1} - R_k X' X W_{k-1} + R_k X' Y_exposed  |  R_k X' Y_new ],

    the theorem of arXiv 2403.15706, section 3.3. `AnalyticClassifier` does the same faster; this one is
    for reading, checking and taking the parts apart. It costs O(n M^2) and allocates one M x M matrix.

    Args:
        weight: (M, exposed classes) the weight before the step.
        inverse: (M, M) R_{k-1}; I / gamma before the first step.
        x: (n, M) features.
        y_onehot: (n, C) targets of all classes, old and new.
        exposed: (C,) bool, true for the classes that already have a column in `weight`.

    Returns:
        The new weight with all C columns, the new inverse, and the three parts.

    Raises:
        ValueError: If the shapes do not fit together.
        TypeError: If `exposed` is not boolean.

    Example:
        >>> first, second = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]])
        >>> step = gacil_update(torch.zeros(2, 0), torch.eye(2), first, torch.ones(1, 1), torch.tensor([False]))
        >>> exposed = torch.tensor([True, False])
        >>> step = gacil_update(step.weight, step.inverse, second, torch.tensor([[0.0, 1.0]]), exposed)
        >>> step.weight.round(decimals=4)
        tensor([[ 0.4000,  0.2000],
                [-0.2000,  0.4000]])
    """
    if exposed.dtype != torch.bool:
        raise TypeError(f"exposed must be a bool tensor, got {exposed.dtype}")
    if x.ndim != 2 or inverse.shape != (x.shape[1], x.shape[1]):
        raise ValueError(
            f"x must be (n, M) and inverse (M, M), got {tuple(x.shape)} and {tuple(inverse.shape)}"
        )
    if y_onehot.shape != (x.shape[0], exposed.shape[0]):
        raise ValueError(
            f"y_onehot must be (n, C) = {(x.shape[0], exposed.shape[0])}, got {tuple(y_onehot.shape)}"
        )
    if weight.shape != (x.shape[1], int(exposed.sum())):
        raise ValueError(
            f"weight must be (M, exposed classes) = {(x.shape[1], int(exposed.sum()))}, "
            f"got {tuple(weight.shape)}"
        )
    with exact_arithmetic(x):
        targets = y_onehot.to(x.dtype)
        projected = inverse @ x.mT
        capacitance = x @ projected
        capacitance.diagonal().add_(1)
        factor = torch.linalg.cholesky(capacitance)
        gain = torch.cholesky_solve(projected.mT, factor).mT  # = R_k X', so R_k itself is not needed for W_k

        memory = weight - gain @ (x @ weight)
        label_gain = gain @ targets
        new_weight = label_gain.clone()
        new_weight[:, exposed] += memory
        new_inverse = inverse - gain @ projected.mT
        return GacilStep(new_weight, new_inverse, memory, label_gain[:, exposed], label_gain[:, ~exposed])


def joint_solution(x: Tensor, y: Tensor, gamma: float) -> Tensor:
    """Ridge regression on all data at once: what every stream of the same data must lead to.

    W = argmin ||Y - X W||^2 + gamma ||W||^2 = (X'X + gamma I)^{-1} X'Y (arXiv 2403.15706, section 3.2),
    in the dual form X'(XX' + gamma I)^{-1} Y where that is smaller.

    Args:
        x: (N, M) features, float32 or float64.
        y: (N,) integer labels, or (N, C) targets.
        gamma: Regularisation, above 0.

    Returns:
        (M, C) weight in the dtype of `x`.

    Raises:
        ValueError: If a shape or value is out of range.
        TypeError: If labels are not integers, or features neither float32 nor float64.
        RuntimeError: If the system is too ill-conditioned for the dtype.

    Example:
        >>> joint_solution(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([0, 1]), gamma=1.0)
        tensor([[ 0.4000,  0.2000],
                [-0.2000,  0.4000]])
    """
    check_gamma(gamma)
    check_features(x)
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"x must be torch.float32 or torch.float64, got {x.dtype}")
    with exact_arithmetic(x):
        targets = as_targets(y, x.shape[0]).to(x)
        if x.shape[0] < x.shape[1]:
            return x.mT @ solve_regularised(x @ x.mT, targets, gamma)
        return solve_regularised(x.mT @ x, x.mT @ targets, gamma)


@dataclass(frozen=True)
class GammaChoice:
    """The gamma that predicts held-out samples best, and how each candidate did.

    Args:
        gamma: The candidate with the highest accuracy; among equals, the one with the lowest squared error.
        grid: (G,) the candidates.
        accuracy: (G,) share of held-out samples whose largest prediction is at their largest target.
        squared_error: (G,) mean over held-out samples of ||y - prediction||^2.
    """

    gamma: float
    grid: Tensor
    accuracy: Tensor
    squared_error: Tensor


def suggest_gamma(
    x: Tensor,
    y: Tensor,
    grid: Sequence[float],
    *,
    folds: int | None = 5,
    generator: torch.Generator | None = None,
) -> GammaChoice:
    """Choose gamma by exact cross-validation, from one eigendecomposition for the whole grid.

    With H = X (X'X + gamma I)^{-1} X', the residual of ridge regression fitted without the samples F is
    (I - H_FF)^{-1} (Y - H Y)_F on F, so no candidate and no fold is ever fitted. The paper fixes gamma by
    hand; near N = M a small one costs dearly (the interpolation peak). Costs one min(N, M)^3
    eigendecomposition and, per candidate and fold, a solve of the fold's size. Computed in float64.

    Args:
        x: (N, M) features, such as those of the first batches.
        y: (N,) integer labels, or (N, C) targets.
        grid: Candidates, all above 0.
        folds: Number of random folds, 2..N; None leaves one sample out at a time.
        generator: Draws the folds.

    Returns:
        The best candidate and the scores of all.

    Raises:
        ValueError: If a shape or value is out of range.
        TypeError: If labels are not integers.
    """
    check_features(x)
    for gamma in grid:
        check_gamma(gamma, "grid")
    if not len(grid):
        raise ValueError("grid must hold at least one candidate, got none")
    num_samples = x.shape[0]
    if folds is not None and not 2 <= folds <= num_samples:
        raise ValueError(f"folds must be in 2..N = 2..{num_samples} or None, got {folds}")
    with exact_arithmetic(x):
        targets = as_targets(y, num_samples).to(x.device, torch.float64)
        order = _permutation(num_samples, generator).to(x.device)
        residuals = _held_out_residuals(x.double()[order], targets[order], grid, folds)
        hits = (targets[order] - residuals).argmax(2) == targets[order].argmax(1)
        accuracy, squared_error = hits.double().mean(1), residuals.square().sum(2).mean(1)
    ranking = sorted(
        range(len(grid)), key=lambda index: (-float(accuracy[index]), float(squared_error[index]))
    )
    return GammaChoice(
        float(grid[ranking[0]]), torch.tensor(grid, dtype=torch.float64), accuracy, squared_error
    )


def _left_basis(x: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal (N, r) basis of the columns of x, and the r eigenvalues of X X' that go with it."""
    tolerance = max(x.shape) * torch.finfo(x.dtype).eps
    if x.shape[0] <= x.shape[1]:
        eigenvalues, basis = torch.linalg.eigh(x @ x.mT)
        kept = eigenvalues > tolerance * eigenvalues[-1]
        return basis[:, kept], eigenvalues[kept]
    eigenvalues, right = torch.linalg.eigh(x.mT @ x)
    kept = eigenvalues > tolerance * eigenvalues[-1]
    return (x @ right[:, kept]) / eigenvalues[kept].sqrt(), eigenvalues[kept]


def _held_out_residuals(x: Tensor, y: Tensor, grid: Sequence[float], folds: int | None) -> Tensor:
    """Residuals (G, N, C) of every sample in models fitted without its fold, consecutive rows; None: alone."""
    basis, eigenvalues = _left_basis(x)
    projected = basis.mT @ y
    residuals = []
    for gamma in grid:
        scaled = basis * (eigenvalues / (eigenvalues + gamma))
        fitted = y - scaled @ projected
        if folds is None:
            residuals.append(fitted / (1 - (scaled * basis).sum(1, keepdim=True)))
            continue
        parts = zip(*(tensor.tensor_split(folds) for tensor in (scaled, basis, fitted)), strict=True)
        residuals.append(torch.cat([_left_out(part @ rows.mT, rest) for part, rows, rest in parts]))
    return torch.stack(residuals)


def _left_out(hat: Tensor, residual: Tensor) -> Tensor:
    remaining = torch.eye(len(hat), dtype=hat.dtype, device=hat.device) - hat
    return torch.linalg.solve(remaining, residual)


@contextmanager
def exact_arithmetic(like: Tensor) -> Iterator[None]:
    """No graph, no half precision, and results that stay usable outside of inference mode."""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(like.device.type, enabled=False):
        yield


def solve_regularised(matrix: Tensor, right: Tensor, gamma: float) -> Tensor:
    """Solve (matrix + gamma I) W = right; `matrix` is overwritten, symmetric and positive semi-definite."""
    matrix.diagonal().add_(gamma)
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info) != 0:
        raise RuntimeError(
            f"the regularised autocorrelation is not positive definite in {matrix.dtype} at gamma = {gamma}; "
            f"raise gamma (suggest_gamma finds one) or use torch.float64"
        )
    return torch.cholesky_solve(right, factor)


def check_gamma(gamma: float, name: str = "gamma") -> None:
    """Raise unless gamma is a positive finite number."""
    if not 0 < gamma < float("inf"):
        raise ValueError(f"{name} must be above 0 and finite, got {gamma}")


def check_features(x: Tensor, width: int | None = None) -> None:
    """Raise unless x is a finite floating-point matrix (of the given width)."""
    if x.ndim != 2 or (width is not None and x.shape[1] != width):
        expected = "(n, M)" if width is None else f"(n, {width})"
        raise ValueError(f"x must have shape {expected}, got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"x must be floating-point features, got {x.dtype}")
    count = int((~x.isfinite()).sum())
    if count:
        raise ValueError(f"x must be finite, got {count} values that are not")


def as_targets(y: Tensor, num_samples: int) -> Tensor:
    """Turn labels (n,) into one-hot rows, let targets (n, C) through, and check either."""
    if y.shape[:1] != (num_samples,):
        raise ValueError(f"y must have {num_samples} rows, as many as x, got shape {tuple(y.shape)}")
    if y.ndim == 2:
        if y.is_floating_point() and not bool(y.isfinite().all()):
            raise ValueError("y must hold finite targets, got NaN or infinity")
        return y
    if y.ndim != 1:
        raise ValueError(f"y must be labels (n,) or targets (n, C), got shape {tuple(y.shape)}")
    if y.dtype == torch.bool or y.is_floating_point() or y.is_complex():
        raise TypeError(f"y must hold integer labels, got {y.dtype}; pass soft targets as (n, C)")
    if num_samples == 0:
        return y.new_zeros((0, 0))
    if int(y.min()) < 0:
        raise ValueError(f"y must hold labels >= 0, got {int(y.min())}")
    return torch.nn.functional.one_hot(y.long())


def _permutation(length: int, generator: torch.Generator | None) -> Tensor:
    device = "cpu" if generator is None else generator.device
    return torch.randperm(length, generator=generator, device=device)
