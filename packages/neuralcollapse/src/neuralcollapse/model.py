"""The unconstrained-features and near-features models: objective, closed forms and solver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from neuralcollapse.checks import (
    check_batch,
    check_count,
    check_finite,
    check_not_negative,
    check_num_classes,
    check_positive,
    check_tensor,
    present_classes,
    working_dtype,
)


@dataclass(frozen=True)
class Solution:
    """A stationary point of the near-features model, with the problem it solves.

    Attributes:
        W: Classifier `[K, d]`, the best one for `H`.
        H: Features `[d, N]`.
        objective: Value of the objective, 0-d.
        objectives: Its value before the first and after each iteration `[num_iterations + 1]`.
        num_iterations: Iterations done.
        converged: Whether the last one moved `W` by less than the tolerance.
        gradient_norm: Frobenius norm of `N` times the objective's gradient in `H`, 0-d.
        H0: The features it started from `[d, N]`.
        Y: One-hot labels `[K, N]`.
        lam_w: Penalty of the classifier.
        lam_h: Penalty of the features.
        beta: Strength of the pull towards `H0`.
    """

    W: Tensor
    H: Tensor
    objective: Tensor
    objectives: Tensor
    num_iterations: int
    converged: bool
    gradient_norm: Tensor
    H0: Tensor
    Y: Tensor
    lam_w: float
    lam_h: float
    beta: float


def class_columns(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    balance: Literal["subsample"] | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Features as the models want them: in columns, sorted by class, equally many of each.

    Args:
        features: `[N, d]`, floating point.
        labels: `[N]`, integers in `[0, num_classes)`.
        num_classes: Number of classes `K`.
        balance: `"subsample"` keeps as many samples of each class as the smallest has, drawn at random.
        generator: Draws them, on the features' device.

    Returns:
        `H` `[d, N']` and one-hot `Y` `[K, N']`, both in the features' type.

    Raises:
        TypeError: If features are not floating point or labels not integers.
        ValueError: If shapes or labels do not fit, features are not finite, a class is empty, or classes differ
            in size and `balance` is `None`.

    Examples:
        >>> H, Y = class_columns(torch.arange(4.0)[:, None], torch.tensor([1, 0, 0, 1]), 2)
        >>> H.tolist(), Y.tolist()
        ([[1.0, 2.0, 0.0, 3.0]], [[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
    """
    num_classes = check_num_classes(num_classes)
    check_batch(features, labels, num_classes)
    if balance not in (None, "subsample"):
        raise ValueError(f"balance must be 'subsample' or None, got {balance!r}")
    labels = labels.long()
    count = torch.bincount(labels, minlength=num_classes)
    present_classes(count, skip_empty=False)
    if balance is None:
        if bool((count != count[0]).any()):
            raise ValueError(
                f"classes must be of equal size without balance='subsample', got {count.tolist()}"
            )
        chosen = labels.argsort(stable=True)
    else:
        order = torch.randperm(len(labels), generator=generator, device=labels.device)
        order = order[labels[order].argsort(stable=True)]
        rank = torch.arange(len(order), device=labels.device) - (count.cumsum(0) - count)[labels[order]]
        chosen = order[rank < count.min()]
    return features[chosen].mT, one_hot(labels[chosen], num_classes).to(features.dtype).mT


def objective(
    W: Tensor,
    H: Tensor,
    Y: Tensor,
    lam_w: float,
    lam_h: float,
    beta: float = 0.0,
    H0: Tensor | None = None,
) -> Tensor:
    """The regularised squared loss over classifier and features, differentiable in both.

    `1/(2N) ||WH - Y||^2 + lam_w/(2K) ||W||^2 + lam_h/(2N) ||H||^2 + beta/(2N) ||H - H0||^2`:
    Equation 1 of Tirer, Huang and Niles-Weed (2023), and with `beta` their Equation 2.

    Args:
        W: Classifier `[K, d]`.
        H: Features `[d, N]`.
        Y: One-hot labels `[K, N]`, classes of equal size.
        lam_w: Penalty of the classifier, positive.
        lam_h: Penalty of the features, not negative.
        beta: Strength of the pull towards `H0`, not negative.
        H0: Features to stay near to `[d, N]`; needed where `beta` is not 0.

    Returns:
        A 0-d tensor.

    Raises:
        TypeError: If `H` is not floating point.
        ValueError: If shapes, labels or penalties do not fit.

    Examples:
        >>> W = H = Y = torch.eye(2)  # no error: the penalties are left
        >>> float(objective(W, H, Y, lam_w=0.5, lam_h=0.5))
        0.5
    """
    Y = check_columns(H, Y)
    check_penalties(lam_w, lam_h)
    check_not_negative("beta", beta)
    check_tensor("W", W)
    num_classes, num_samples = Y.shape
    if W.shape != (num_classes, H.shape[0]):
        raise ValueError(f"W must be [{num_classes}, {H.shape[0]}], got {tuple(W.shape)}")
    W, H = W.to(Y.dtype), H.to(Y.dtype)
    with torch.autocast(H.device.type, enabled=False):
        value = (W @ H - Y).square().sum() + lam_h * H.square().sum()
    if beta:
        if H0 is None or H0.shape != H.shape:
            raise ValueError(
                f"H0 must be {tuple(H.shape)} where beta is not 0, got {H0 if H0 is None else H0.shape}"
            )
        value = value + beta * (H - H0).square().sum()
    return value / (2 * num_samples) + lam_w / (2 * num_classes) * W.square().sum()


def closed_form_w(H: Tensor, Y: Tensor, lam_w: float) -> Tensor:
    """The best classifier for given features, differentiable in them.

    `W*(H) = Y H^T (H H^T + n lam_w I)^{-1}` (Section 4 of Tirer, Huang and Niles-Weed, 2023), `n` samples of
    each class.

    Args:
        H: Features `[d, N]`.
        Y: One-hot labels `[K, N]`, classes of equal size.
        lam_w: Penalty of the classifier, positive.

    Returns:
        `[K, d]`.

    Raises:
        TypeError: If `H` is not floating point.
        ValueError: If shapes, labels or the penalty do not fit.

    Examples:
        >>> closed_form_w(torch.eye(2), torch.eye(2), lam_w=1.0)
        tensor([[0.5000, 0.0000],
                [0.0000, 0.5000]])
    """
    Y = check_columns(H, Y)
    check_penalties(lam_w, 0.0)
    with torch.autocast(H.device.type, enabled=False):
        H = H.to(Y.dtype)
        gram = _add_to_diagonal(H @ H.mT, lam_w * Y.shape[1] / Y.shape[0])
        return torch.linalg.solve(gram, H @ Y.mT).mT


def ufm_minimizer(
    num_classes: int,
    dim: int,
    samples_per_class: int,
    lam_w: float,
    lam_h: float,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """One of the minimisers of the unconstrained-features model: collapse in closed form.

    With `c = sqrt(lam_h lam_w) < 1`: `H = sqrt(rho) R kron 1_n^T` and `W = sqrt(lam_h / lam_w) sqrt(rho) R^T`,
    `rho = (1 - c) sqrt(lam_w / lam_h)`, for any `R` `[d, K]` with orthonormal columns (Tirer and Bruna 2022;
    Section 3 of Tirer, Huang and Niles-Weed, 2023). With `c >= 1` the minimiser is 0.

    Args:
        num_classes: `K`, at least 2.
        dim: Feature dimension `d`, at least `K`.
        samples_per_class: `n`.
        lam_w: Penalty of the classifier, positive.
        lam_h: Penalty of the features, positive.
        generator: Draws `R`, uniformly; on `device`.
        dtype: Type of the result.
        device: Device of the result.

    Returns:
        `W` `[K, d]` and `H` `[d, K n]`, columns sorted by class.

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> W, H = ufm_minimizer(3, 5, samples_per_class=4, lam_w=0.5, lam_h=0.5)
        >>> torch.allclose(W @ H, 0.5 * torch.eye(3, dtype=torch.float64).repeat_interleave(4, dim=1))
        True
    """
    check_penalties(lam_w, lam_h)
    num_classes, dim, samples_per_class = check_sizes(num_classes, dim, samples_per_class)
    if lam_h == 0:
        raise ValueError("lam_h must be positive, or the features grow without bound, got 0")
    product = (lam_w * lam_h) ** 0.5
    norm = max(1 - product, 0.0) ** 0.5 * (lam_w / lam_h) ** 0.25
    gaussian = torch.randn(dim, num_classes, generator=generator, dtype=dtype, device=device)
    mean = norm * torch.linalg.qr(gaussian).Q
    return (lam_h / lam_w) ** 0.5 * mean.mT, mean.repeat_interleave(samples_per_class, dim=1)


@torch.no_grad()
def near_features(
    H0: Tensor,
    Y: Tensor,
    lam_w: float,
    lam_h: float,
    beta: float,
    *,
    tol: float = 1e-10,
    max_iter: int = 10_000,
) -> Solution:
    """Solve the near-features model: what one more stage of optimisation makes of given features.

    Minimises Equation 2 of Tirer, Huang and Niles-Weed (2023), see `objective`, by exact minimisation over
    `W` and `H` in turn, from `H0`; the objective never rises. The minimum is unique for large `beta` and
    near collapsed `H0`; elsewhere the result is a stationary point. (`H0 = 0` is one.)

    Every iterate is `H = P H0 + Q Y`, so an iteration works with the class means and the within-class
    covariance of `H0` alone and costs `O(d^3)`, whatever the number of samples.

    Args:
        H0: Given features `[d, N]`, best in float64.
        Y: One-hot labels `[K, N]`, classes of equal size, in any order.
        lam_w: Penalty of the classifier, positive.
        lam_h: Penalty of the features, not negative.
        beta: Pull towards `H0`, positive; `1/beta` is how flexible the layers in between are.
        tol: Stop when an iteration changes `W` by less, relative to its norm (never less than the type resolves).
        max_iter: Most iterations.

    Returns:
        The solution.

    Raises:
        TypeError: If `H0` is not floating point.
        ValueError: If shapes, labels or parameters do not fit.

    Examples:
        >>> W, H = ufm_minimizer(2, 3, samples_per_class=2, lam_w=0.1, lam_h=0.1)
        >>> Y = torch.eye(2).repeat_interleave(2, dim=1)
        >>> torch.allclose(near_features(H, Y, lam_w=0.1, lam_h=0.1, beta=1.0).H, H)
        True
    """
    Y = check_columns(H0, Y, "H0")
    check_penalties(lam_w, lam_h)
    check_positive("beta", beta)
    check_positive("tol", tol)
    max_iter = check_count("max_iter", max_iter)
    with torch.autocast(H0.device.type, enabled=False):
        H0 = H0.to(Y.dtype)
        step = proximal_step(Moments.of(H0, Y), lam_w, lam_h, beta, tol, max_iter)
        H = step.gain @ torch.cat([H0, Y])
        gradient = step.weight.mT @ (step.weight @ H - Y) + lam_h * H + beta * (H - H0)
    return Solution(
        W=step.weight,
        H=H,
        objective=step.objectives[-1],
        objectives=step.objectives,
        num_iterations=len(step.objectives) - 1,
        converged=step.converged,
        gradient_norm=torch.linalg.norm(gradient),
        H0=H0,
        Y=Y,
        lam_w=lam_w,
        lam_h=lam_h,
        beta=beta,
    )


@dataclass(frozen=True)
class Moments:
    """All that the models need of features: class means `[d, K]` and `Sigma_W` `[d, d]`."""

    mean: Tensor
    within: Tensor

    @classmethod
    def of(cls, H: Tensor, Y: Tensor) -> Moments:
        """The moments of features in columns."""
        mean = H @ Y.mT * (Y.shape[0] / Y.shape[1])
        centred = H - mean @ Y
        left = centred @ Y.mT * (Y.shape[0] / Y.shape[1])  # what rounding left of the means
        centred = centred - left @ Y
        return cls(mean + left, centred @ centred.mT / Y.shape[1])

    def moved(self, gain: Tensor) -> Moments:
        """The moments of `gain [H; Y]`, `gain` `[d, d + K]`: exact however deep the collapse."""
        dim = len(gain)
        return Moments(
            gain[:, :dim] @ self.mean + gain[:, dim:], gain[:, :dim] @ self.within @ gain[:, :dim].mT
        )

    def best_weight(self, lam_w: float) -> Tensor:
        """`closed_form_w` `[K, d]`; the number of samples cancels."""
        gram = self.mean @ self.mean.mT + self.mean.shape[1] * self.within
        factor = torch.linalg.cholesky(_add_to_diagonal(gram, lam_w))
        return torch.cholesky_solve(self.mean, factor).mT


@dataclass(frozen=True)
class ProximalStep:
    """Where `near_features` leads: `H = gain [H0; Y]` and the classifier."""

    gain: Tensor
    weight: Tensor
    objectives: Tensor
    converged: bool


def proximal_step(
    start: Moments, lam_w: float, lam_h: float, beta: float, tol: float, max_iter: int
) -> ProximalStep:
    """`near_features` on moments."""
    tol = max(tol, 100 * torch.finfo(start.mean.dtype).eps)
    dim, num_classes = start.mean.shape
    gain = torch.eye(dim, dim + num_classes, dtype=start.mean.dtype, device=start.mean.device)
    weight = start.best_weight(lam_w)
    objectives = [_moment_objective(weight, gain, start, lam_w, lam_h, beta)]
    converged = False
    while not converged and len(objectives) <= max_iter:
        factor = torch.linalg.cholesky(_add_to_diagonal(weight.mT @ weight, lam_h + beta))
        # H = (W'W + (lam_h + beta) I)^-1 (beta H0 + W'Y)
        pull = beta * torch.eye(dim, dtype=weight.dtype, device=weight.device)
        gain = torch.cholesky_solve(torch.cat([pull, weight.mT], 1), factor)
        previous, weight = weight, start.moved(gain).best_weight(lam_w)
        objectives.append(_moment_objective(weight, gain, start, lam_w, lam_h, beta))
        converged = bool(torch.linalg.norm(weight - previous) <= tol * torch.linalg.norm(weight))
    return ProximalStep(gain, weight, torch.stack(objectives), converged)


def _moment_objective(
    weight: Tensor, gain: Tensor, start: Moments, lam_w: float, lam_h: float, beta: float
) -> Tensor:
    point = start.moved(gain)
    num_classes = len(weight)
    moved_by = _add_to_diagonal(gain[:, : len(gain)], -1.0)
    error = _add_to_diagonal(weight @ point.mean, -1.0)
    loss = ((weight @ point.within) * weight).sum() + error.square().sum() / num_classes
    size = point.within.diagonal().sum() + point.mean.square().sum() / num_classes
    distance = ((moved_by @ start.within) * moved_by).sum()
    distance = distance + (point.mean - start.mean).square().sum() / num_classes
    return (loss + lam_w / num_classes * weight.square().sum() + lam_h * size + beta * distance) / 2


def check_columns(H: Tensor, Y: Tensor, name: str = "H") -> Tensor:
    """Raise unless these are features in columns with balanced one-hot labels, which return in the working type."""
    check_tensor(name, H)
    check_tensor("Y", Y)
    if not H.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {H.dtype}")
    if H.dim() != 2 or Y.dim() != 2 or Y.shape[1] != H.shape[1]:
        raise ValueError(f"{name} must be [d, N] and Y [K, N], got {tuple(H.shape)} and {tuple(Y.shape)}")
    check_num_classes(len(Y))
    check_finite(name, H)
    if not bool((((Y == 0) | (Y == 1)).all(0) & (Y.sum(0) == 1)).all()):
        raise ValueError("Y must be one-hot in each column, got other values")
    count = Y.sum(1)
    if bool((count != count[0]).any()):
        raise ValueError(
            "Y must have equally many samples of each class (class_columns(..., balance='subsample') sees to it), "
            f"got {count.int().tolist()}"
        )
    return Y.to(working_dtype(H))


def check_penalties(lam_w: float, lam_h: float) -> None:
    """Raise if the penalties are out of range."""
    check_positive("lam_w", lam_w)
    check_not_negative("lam_h", lam_h)


def check_sizes(num_classes: int, dim: int, samples_per_class: int) -> tuple[int, int, int]:
    """The sizes of a collapsed solution; raise if they allow none."""
    num_classes, dim = check_num_classes(num_classes), check_count("dim", dim)
    if dim < num_classes:
        raise ValueError(f"dim must be at least num_classes = {num_classes}, got {dim}")
    return num_classes, dim, check_count("samples_per_class", samples_per_class)


def _add_to_diagonal(matrix: Tensor, value: float) -> Tensor:
    return matrix + value * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
