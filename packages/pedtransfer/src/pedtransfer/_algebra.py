"""What several scores compute of features: class moments, singular values, principal components."""

from __future__ import annotations

import torch
from torch import Tensor

# A Gram matrix squares the condition number: below this ratio of eigenvalues it costs more than 1e-9 of the smallest.
_TRUSTED = 1e-7


def one_hot(y: Tensor, num_classes: int) -> Tensor:
    """Return the (N, C) indicators in float64."""
    return torch.nn.functional.one_hot(y, num_classes).to(torch.float64)


def centred(x: Tensor) -> Tensor:
    """Return `x` less its mean; what is constant becomes exactly 0, whatever the rounding of its mean."""
    x = x - x[0]
    return x - x.mean(0)


def within_classes(x: Tensor, y: Tensor, num_classes: int) -> Tensor:
    """Return `x` less the means of the classes; what is constant in a class becomes exactly 0 there."""
    order = y.argsort(stable=True)
    counts = torch.bincount(y, minlength=num_classes)
    x = x - x[order[counts.cumsum(0) - counts]][y]
    return x - class_means(x, y, num_classes)[0][y]


def class_means(x: Tensor, y: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return the means (C, D) and counts (C,). Exact enough where `x` is centred."""
    counts = torch.bincount(y, minlength=num_classes).to(x.dtype)
    sums = x.new_zeros(num_classes, x.shape[1]).index_add_(0, y, x)
    return sums / counts[:, None], counts


def class_moments(x: Tensor, y: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return means and biased variances (C, D), free of cancellation under large offsets."""
    centre = x.mean(0)
    means, counts = class_means(x - centre, y, num_classes)
    squares = (x - centre - means[y]).square()
    variances = squares.new_zeros(means.shape).index_add_(0, y, squares) / counts[:, None]
    return means + centre, variances


def spectrum(x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the squared singular values (k,) of `x` (N, D) and U^T targets (k, C), k the numerical rank.

    By the eigenvectors of the smaller Gram matrix where that is accurate, by the decomposition of `x` where not.
    """
    x = x[:, (x != 0).any(0)]
    tall = x.shape[0] > x.shape[1]
    gram = x.T @ x if tall else x @ x.T
    if gram.numel() and torch.isfinite(gram).all():
        values, vectors = torch.linalg.eigh(gram)
        if values[0] > _TRUSTED * values[-1]:
            if tall:
                return values, vectors.T @ (x.T @ targets) / values.sqrt()[:, None]
            return values, vectors.T @ targets
    u, s, _ = torch.linalg.svd(x, full_matrices=False)
    kept = s > max(x.shape) * torch.finfo(x.dtype).eps * s.amax() if len(s) else s > 0
    return s[kept].square(), u[:, kept].T @ targets


def principal_components(x: Tensor, num_components: int | float) -> Tensor:
    """Return the scores (N, k) of centred `x`, for a number of components or a share of the variance to exceed.

    Never more than the numerical rank, but one at least. The largest loading of each is positive, as in scikit-learn.
    """
    x = centred(x)
    scale = x.abs().amax()
    x = x / torch.where(scale > 0, scale, 1)  # so that no square leaves float64
    tall = x.shape[0] > x.shape[1]
    values, vectors = torch.linalg.eigh(x.T @ x if tall else x @ x.T)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    if isinstance(num_components, float):
        shares = values.cumsum(0) / values.sum()
        num_components = int((shares <= num_components).sum()) + 1
    rank = int((values > max(x.shape) * torch.finfo(x.dtype).eps * values[0]).sum())
    kept = vectors[:, : min(num_components, max(rank, 1))]
    loadings = kept if tall else x.T @ kept
    signs = loadings.gather(0, loadings.abs().argmax(0, keepdim=True)).sign()
    return scale * signs * (x @ kept if tall else kept * values[: kept.shape[1]].sqrt())
