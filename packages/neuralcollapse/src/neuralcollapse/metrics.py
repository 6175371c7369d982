"""The neural-collapse metrics NC1 to NC4 and CDNV, each a differentiable function of the statistics."""

from __future__ import annotations

import math
import warnings
from typing import Literal

import torch
from torch import Tensor

from neuralcollapse.statistics import Stats, check_batch, inner_products


def nc1(stats: Stats, kind: Literal["pinv", "trace"] = "pinv") -> Tensor:
    """Within-class variability: how far samples still are from their class means.

    `"pinv"`: `NC1 = (1/K) Tr(Sigma_W Sigma_B^+)` (Papyan, Han and Donoho 2020).
    `"trace"`: `NC1~ = Tr(Sigma_W) / Tr(Sigma_B)`, which Tirer, Huang and Niles-Weed (2023, Section 2)
    prefer and their theorems are about.

    `Sigma_B` has the rank `K - 1` at most; exactly the directions that exact arithmetic allows are inverted,
    through the `K x K` Gram matrix `G` of the centred means: `NC1 = Tr(M^T Sigma_W M (G^+)^2)`.

    Args:
        stats: Statistics with at least two samples in each class, and for `"pinv"` with `within_cov` or
            `within_gram`.
        kind: `"pinv"` or `"trace"`.

    Returns:
        A 0-d tensor.

    Raises:
        ValueError: If a class has one sample only, the statistics lack what `"pinv"` needs, or `kind` is unknown.

    Example:
        >>> from neuralcollapse import class_stats
        >>> features = torch.tensor([[1.0], [3.0], [-1.0], [-3.0]])
        >>> float(nc1(class_stats(features, torch.tensor([0, 0, 1, 1]), 2), kind="trace"))
        0.25
    """
    if int(stats.count.min()) < 2:
        lonely = stats.classes[stats.count < 2].tolist()
        raise ValueError(f"stats must have at least 2 samples of each class for NC1, got 1 of {lonely}")
    if kind == "trace":
        return stats.within_trace.mean() / stats.centred_mean.square().sum(1).mean()
    if kind != "pinv":
        raise ValueError(f"kind must be 'pinv' or 'trace', got {kind!r}")
    centred, within = stats.centred_mean, stats.within_gram
    if within is None:
        if stats.within_cov is None:
            raise ValueError("stats must have within_cov or within_gram for kind='pinv', got neither")
        within = inner_products(inner_products(centred, stats.within_cov), centred)
    return _trace_of_quotient(within, inner_products(centred, centred), centred.shape[1])


def _trace_of_quotient(within: Tensor, gram: Tensor, dim: int) -> Tensor:
    """`Tr(within (gram^+)^2)`, the pseudo-inverse taken on as many directions as centred means can span."""
    num_classes = len(gram)
    spectrum, vectors = torch.linalg.eigh(gram.detach())
    rank = int((spectrum > spectrum[-1] * num_classes * torch.finfo(gram.dtype).eps).sum())
    if rank < min(num_classes - 1, dim):
        warnings.warn(
            f"the class means span {rank} directions instead of {min(num_classes - 1, dim)}: "
            "NC1 ignores scatter along the missing ones",
            stacklevel=3,
        )
    if rank == 0:
        return within.new_tensor(math.inf)
    # Filling in the kernel, which both matrices share, leaves the trace as it is and, unlike eigenvectors, has
    # derivatives where eigenvalues coincide, as they do at collapse.
    kernel = vectors[:, : num_classes - rank]
    filled = gram + spectrum.sum() / rank * kernel @ kernel.mT
    return torch.linalg.solve(filled, torch.linalg.solve(filled, within).mT).diagonal().sum()


def nc2(stats: Stats, frame: Literal["etf", "orthogonal"] = "etf") -> Tensor:
    """Distance of the class means from an equal-norm, maximally separated frame.

    `"etf"`: `|| G/||G||_F - (I - 11^T/K)/sqrt(K-1) ||_F`, `G` the Gram matrix of the centred means.
    `"orthogonal"`: `|| G/||G||_F - I/sqrt(K) ||_F`, `G` that of the means as they are: the frame to which a
    classifier without bias under squared loss collapses (centred, it is the simplex frame again).

    Args:
        stats: The statistics.
        frame: `"etf"` or `"orthogonal"`.

    Returns:
        A 0-d tensor.

    Raises:
        ValueError: If `frame` is unknown.

    Example:
        >>> from neuralcollapse import class_stats
        >>> stats = class_stats(torch.eye(3), torch.arange(3), 3)  # an orthogonal frame; centred, a simplex
        >>> round(float(nc2(stats)), 6), round(float(nc2(stats, "orthogonal")), 6)
        (0.0, 0.0)
    """
    if frame not in ("etf", "orthogonal"):
        raise ValueError(f"frame must be 'etf' or 'orthogonal', got {frame!r}")
    mean = stats.centred_mean if frame == "etf" else stats.mean
    gram = inner_products(mean, mean)
    return torch.linalg.norm(_unit(gram) - (_simplex(gram) if frame == "etf" else _unit(_eye(gram))))


def nc3(stats: Stats, weight: Tensor, kind: Literal["alignment", "papyan"] = "alignment") -> Tensor:
    """Distance of the classifier from the class means it should have turned into.

    With centred means `M`: `"alignment"`, `|| WM/||WM||_F - (I - 11^T/K)/sqrt(K-1) ||_F` (Zhu et al. 2021);
    `"papyan"`, the self-duality `|| W/||W||_F - M^T/||M||_F ||_F^2` (Papyan, Han and Donoho 2020).

    Args:
        stats: Statistics of the features that enter the classifier.
        weight: The classifier's weight `[num_classes, d]`.
        kind: `"alignment"` or `"papyan"`.

    Returns:
        A 0-d tensor.

    Raises:
        ValueError: If `weight` has another shape, or `kind` is unknown.

    Example:
        >>> from neuralcollapse import class_stats
        >>> stats = class_stats(torch.eye(3), torch.arange(3), 3)
        >>> round(float(nc3(stats, weight=5 * stats.centred_mean, kind="papyan")), 6)
        0.0
    """
    if kind not in ("alignment", "papyan"):
        raise ValueError(f"kind must be 'alignment' or 'papyan', got {kind!r}")
    if weight.dim() != 2 or weight.shape[1] != stats.mean.shape[1] or len(weight) <= int(stats.classes.max()):
        raise ValueError(
            f"weight must be [num_classes, {stats.mean.shape[1]}] with a row for class {int(stats.classes.max())}, "
            f"got {tuple(weight.shape)}"
        )
    centred = stats.centred_mean
    weight = weight[stats.classes].to(centred.dtype)
    if kind == "papyan":
        return (_unit(weight) - _unit(centred)).square().sum()
    alignment = inner_products(weight, centred)
    return torch.linalg.norm(_unit(alignment) - _simplex(alignment))


def nc4(stats: Stats, features: Tensor, predictions: Tensor) -> Tensor:
    """Fraction of samples on which the network and the nearest-class-mean rule disagree.

    Args:
        stats: Statistics that give the class means.
        features: `[N, d]`, floating point.
        predictions: The network's logits `[N, num_classes]` or labels `[N]`.

    Returns:
        A 0-d tensor in `[0, 1]`, in the features' type.

    Raises:
        TypeError: If features are not floating point, or predicted labels not integers.
        ValueError: If shapes do not fit, there are no features, or they are not finite.

    Example:
        >>> from neuralcollapse import class_stats
        >>> features = torch.tensor([[1.0], [3.0], [-1.0], [-3.0]])
        >>> stats = class_stats(features, torch.tensor([0, 0, 1, 1]), 2)
        >>> float(nc4(stats, features, predictions=torch.tensor([0, 0, 0, 1])))
        0.25
    """
    if predictions.dim() not in (1, 2) or predictions.shape[:1] != features.shape[:1]:
        raise ValueError(
            f"predictions must be labels [{len(features)}] or logits [{len(features)}, num_classes], "
            f"got {tuple(predictions.shape)}"
        )
    if predictions.dim() == 1 and predictions.is_floating_point():
        raise TypeError(f"predictions must be integers unless they are logits, got {predictions.dtype}")
    if not len(features):
        raise ValueError("features must not be empty")
    predicted = predictions.argmax(1) if predictions.dim() == 2 else predictions
    check_batch(features, torch.zeros_like(predicted), 1, stats.mean.shape[1])
    return (nearest_class(stats, features) != predicted).to(features.dtype).mean()


def nearest_class(stats: Stats, features: Tensor) -> Tensor:
    """Label of the class mean nearest to each of the features `[N, d]`, as `[N]`."""
    mean = stats.mean.detach()
    # Distances to shifted means: |x - m|^2 loses its digits where all means share a large offset.
    offset = mean.mean(0)
    score = inner_products(features.detach().to(mean.dtype) - offset, mean - offset)
    return stats.classes[(score - (mean - offset).square().sum(1) / 2).argmax(1)]


def cdnv(stats: Stats) -> Tensor:
    """Class-distance normalised variance, the mean over pairs of `(v_k + v_l) / (2 ||m_k - m_l||^2)`.

    `v_k` is the mean squared distance to the class mean (Galanti, Gyorgy and Hutter 2022, Section 3).

    Args:
        stats: The statistics.

    Returns:
        A 0-d tensor.

    Example:
        >>> from neuralcollapse import class_stats
        >>> features = torch.tensor([[1.0], [3.0], [-1.0], [-3.0]])
        >>> float(cdnv(class_stats(features, torch.tensor([0, 0, 1, 1]), 2)))
        0.0625
    """
    # The order of pairs is that of triu_indices.
    squared_distance = torch.pdist(stats.centred_mean).square()
    pairs = torch.triu_indices(len(stats.mean), len(stats.mean), 1, device=stats.mean.device)
    return (stats.within_trace[pairs].sum(0) / (2 * squared_distance)).mean()


def _unit(matrix: Tensor) -> Tensor:
    return matrix / torch.linalg.norm(matrix)


def _simplex(like: Tensor) -> Tensor:
    """`(I - 11^T/K)/sqrt(K-1)`, the Gram matrix of a simplex equiangular tight frame at unit norm."""
    num_classes = len(like)
    return (_eye(like) - 1 / num_classes) / (num_classes - 1) ** 0.5


def _eye(like: Tensor) -> Tensor:
    return torch.eye(len(like), dtype=like.dtype, device=like.device)
