"""Ridge regression in closed form: the joint solution, and one step of the theorem."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from gacil.checks import as_gamma, as_targets, check_features, check_scale, check_tensor, finite_features
from gacil.diagnosis import warn_of_rounding


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
        TypeError: If an argument is not a tensor, weight, inverse and x are not all float32 or all float64,
            or `exposed` is not boolean.
        RuntimeError: If I + X R X' is not positive definite, so that `inverse` cannot be one.

    Examples:
        >>> first, second = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]])
        >>> step = gacil_update(torch.zeros(2, 0), torch.eye(2), first, torch.ones(1, 1), torch.tensor([False]))
        >>> exposed = torch.tensor([True, False])
        >>> step = gacil_update(step.weight, step.inverse, second, torch.tensor([[0.0, 1.0]]), exposed)
        >>> step.weight.round(decimals=4)
        tensor([[ 0.4000,  0.2000],
                [-0.2000,  0.4000]])
    """
    arguments = (weight, inverse, x, y_onehot, exposed)
    for name, value in zip(("weight", "inverse", "x", "y_onehot", "exposed"), arguments, strict=True):
        check_tensor(name, value)
    if exposed.dtype != torch.bool:
        raise TypeError(f"exposed must be a bool tensor, got {exposed.dtype}")
    dtypes = [tensor.dtype for tensor in (weight, inverse, x)]
    if dtypes not in ([torch.float32] * 3, [torch.float64] * 3):
        raise TypeError(f"weight, inverse and x must all be torch.float32 or all torch.float64, got {dtypes}")
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
        factor, info = torch.linalg.cholesky_ex(capacitance)
        if int(info) != 0:
            raise RuntimeError(
                "inverse must be positive definite: I + X R X' is not; raise gamma or use torch.float64"
            )
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
        (M, C) weight in the dtype of `x`; C is one more than the largest label.

    Raises:
        ValueError: If a shape or value is out of range.
        TypeError: If labels are not integers, or features neither float32 nor float64.
        RuntimeError: If the system is too ill-conditioned for the dtype.

    Examples:
        >>> joint_solution(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([0, 1]), gamma=1.0)
        tensor([[ 0.4000,  0.2000],
                [-0.2000,  0.4000]])
    """
    gamma = as_gamma(gamma)
    check_features(x)
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"x must be torch.float32 or torch.float64, got {x.dtype}")
    with exact_arithmetic(x):
        x = finite_features(x, x.dtype)
        check_scale(x)
        targets = as_targets(y, x.shape[0], one_column=True).to(x)
        if x.shape[0] < x.shape[1]:
            return x.mT @ torch.cholesky_solve(targets, factor_regularised(x @ x.mT, gamma))
        return torch.cholesky_solve(x.mT @ targets, factor_regularised(x.mT @ x, gamma))


@contextmanager
def exact_arithmetic(like: Tensor) -> Iterator[None]:
    """No graph, no half precision, and results that stay usable outside of inference mode."""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(like.device.type, enabled=False):
        yield


def factor_regularised(matrix: Tensor, gamma: float) -> Tensor:
    """Cholesky factor of matrix + gamma I; `matrix` is overwritten, symmetric and positive semi-definite."""
    matrix.diagonal().add_(gamma)
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info) != 0:
        raise RuntimeError(
            f"the regularised autocorrelation is not positive definite in {matrix.dtype} at gamma = {gamma}; "
            f"raise gamma (suggest_gamma finds one) or use torch.float64"
        )
    if not bool(factor.diagonal().isfinite().all()):
        raise RuntimeError(f"the autocorrelation overflows in {matrix.dtype}; scale the features")
    warn_of_rounding(factor, matrix.diagonal())
    return factor
