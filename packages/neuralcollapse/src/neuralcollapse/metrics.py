"""The metrics NC1 to NC5, CDNV and equal norms, each a differentiable function of the statistics."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from neuralcollapse.checks import check_batch, check_finite, check_tensor, warn_caller, working_dtype
from neuralcollapse.statistics import Stats, inner_products


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

    Examples:
        >>> from neuralcollapse import class_stats
        >>> features = torch.tensor([[1.0], [3.0], [-1.0], [-3.0]])
        >>> float(nc1(class_stats(features, torch.tensor([0, 0, 1, 1]), 2), kind="trace"))
        0.25
    """
    _check_stats(stats)
    if int(stats.count.min()) < 2:
        lonely = stats.classes[stats.count < 2].tolist()
        raise ValueError(f"stats must have at least 2 samples of each class for NC1, got 1 of {lonely}")
    if kind == "trace":
        return stats.within_trace.mean() / stats.centred_mean.square().sum(1).mean()
    if kind != "pinv":
        raise ValueError(f"kind must be 'pinv' or 'trace', got {kind!r}")
    if stats.within_cov is None and stats.within_gram is None:
        raise ValueError("stats must have within_cov or within_gram for kind='pinv', got neither")
    # NC1 has no scale, and fourth powers of features would leave the type where their squares do not.
    scale = _largest(stats.centred_mean)
    centred = stats.centred_mean / scale
    if stats.within_gram is not None:
        within = stats.within_gram / scale**2 / scale**2
    else:
        assert stats.within_cov is not None
        within = inner_products(inner_products(centred, stats.within_cov / scale**2), centred)
    return _trace_of_quotient(within, inner_products(centred, centred), centred.shape[1])


def _trace_of_quotient(within: Tensor, gram: Tensor, dim: int) -> Tensor:
    """`Tr(within (gram^+)^2)`, the pseudo-inverse taken on as many directions as centred means can span."""
    num_classes = len(gram)
    spectrum, vectors = torch.linalg.eigh(gram.detach())
    rank = int((spectrum > spectrum[-1] * num_classes * torch.finfo(gram.dtype).eps).sum())
    if rank < min(num_classes - 1, dim):
        warn_caller(
            f"the class means span {rank} directions instead of {min(num_classes - 1, dim)}: "
            "NC1 ignores scatter along the missing ones"
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

    Examples:
        >>> from neuralcollapse import class_stats
        >>> stats = class_stats(torch.eye(3), torch.arange(3), 3)  # an orthogonal frame; centred, a simplex
        >>> round(float(nc2(stats)), 6), round(float(nc2(stats, "orthogonal")), 6)
        (0.0, 0.0)
    """
    _check_stats(stats)
    if frame not in ("etf", "orthogonal"):
        raise ValueError(f"frame must be 'etf' or 'orthogonal', got {frame!r}")
    mean = stats.centred_mean if frame == "etf" else stats.mean
    mean = mean / _largest(mean)
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
        TypeError: If `weight` is no tensor of floating point.
        ValueError: If `weight` has another shape or is not finite, or `kind` is unknown.

    Examples:
        >>> from neuralcollapse import class_stats
        >>> stats = class_stats(torch.eye(3), torch.arange(3), 3)
        >>> round(float(nc3(stats, weight=5 * stats.centred_mean, kind="papyan")), 6)
        0.0
    """
    _check_stats(stats)
    if kind not in ("alignment", "papyan"):
        raise ValueError(f"kind must be 'alignment' or 'papyan', got {kind!r}")
    _check_weight(stats, weight)
    centred = stats.centred_mean / _largest(stats.centred_mean)
    weight = weight[stats.classes].to(centred.dtype)
    weight = weight / _largest(weight)
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
        A 0-d tensor in `[0, 1]`, in the features' type, but never half precision.

    Raises:
        TypeError: If features are not floating point, or predicted labels not integers.
        ValueError: If shapes do not fit, there are no features, they are not finite, or logits are NaN.

    Examples:
        >>> from neuralcollapse import class_stats
        >>> features = torch.tensor([[1.0], [3.0], [-1.0], [-3.0]])
        >>> stats = class_stats(features, torch.tensor([0, 0, 1, 1]), 2)
        >>> float(nc4(stats, features, predictions=torch.tensor([0, 0, 0, 1])))
        0.25
    """
    _check_stats(stats)
    check_tensor("features", features)
    check_tensor("predictions", predictions)
    if predictions.dim() not in (1, 2) or predictions.shape[:1] != features.shape[:1]:
        raise ValueError(
            f"predictions must be labels [{len(features)}] or logits [{len(features)}, num_classes], "
            f"got {tuple(predictions.shape)}"
        )
    if predictions.dim() == 1 and (predictions.is_floating_point() or predictions.dtype == torch.bool):
        raise TypeError(f"predictions must be integers unless they are logits, got {predictions.dtype}")
    if predictions.dim() == 2 and predictions.shape[1] <= int(stats.classes.max()):
        raise ValueError(
            f"predictions must have a column for class {int(stats.classes.max())}, or be labels "
            f"[{len(features)}], got {tuple(predictions.shape)}"
        )
    if not len(features):
        raise ValueError("features must not be empty")
    if bool(predictions.isnan().any()):
        raise ValueError("predictions must not be NaN")
    predicted = predictions.argmax(1) if predictions.dim() == 2 else predictions
    check_batch(features, torch.zeros_like(predicted, dtype=torch.int64), 1, stats.mean.shape[1])
    return (nearest_class(stats, features) != predicted).to(working_dtype(features)).mean()


def nc5(stats: Stats, outliers: Tensor) -> Tensor:
    """How far data of no class are from orthogonal to the class means, `(1/K) sum_k |cos(m_k, m_o)|`.

    `m_o` is the mean of their features; both are taken as they are, not centred (Ben Ammar, Belkhir, Popescu,
    Manzanera and Franchi 2024, Section 4).

    Args:
        stats: Statistics of the classes.
        outliers: Features `[N, d]` of the same layer for data out of the distribution, floating point.

    Returns:
        A 0-d tensor in `[0, 1]`.

    Raises:
        TypeError: If `outliers` are not floating point.
        ValueError: If they have another shape, are none, or are not finite.

    Examples:
        >>> from neuralcollapse import class_stats
        >>> stats = class_stats(torch.eye(3)[:2], torch.arange(2), 2)
        >>> float(nc5(stats, torch.tensor([[0.0, 0.0, 2.0]])))
        0.0
    """
    _check_stats(stats)
    check_tensor("outliers", outliers)
    if not outliers.is_floating_point():
        raise TypeError(f"outliers must be floating point, got {outliers.dtype}")
    if outliers.dim() != 2 or outliers.shape[1] != stats.mean.shape[1] or not len(outliers):
        raise ValueError(
            f"outliers must be [num_samples, {stats.mean.shape[1]}] and not empty, got {tuple(outliers.shape)}"
        )
    check_finite("outliers", outliers)
    mean = stats.mean / _largest(stats.mean)
    outlying = outliers.to(mean.dtype).mean(0)
    outlying = outlying / _largest(outlying)
    return torch.nn.functional.cosine_similarity(mean, outlying[None], eps=0).abs().mean()


def norm_variation(stats: Stats, weight: Tensor | None = None) -> Tensor:
    """How unequal the norms of the centred class means are: their standard deviation over their mean.

    With `weight`, of the classifier's rows instead: the equal norms of Papyan, Han and Donoho (2020), who divide
    by `K - 1` in the deviation.

    Args:
        stats: The statistics.
        weight: A classifier's weight `[num_classes, d]`.

    Returns:
        A 0-d tensor.

    Raises:
        TypeError: If `weight` is no tensor of floating point.
        ValueError: If `weight` has another shape or is not finite.

    Examples:
        >>> from neuralcollapse import class_stats
        >>> round(float(norm_variation(class_stats(torch.eye(3), torch.arange(3), 3))), 6)
        0.0
    """
    _check_stats(stats)
    if weight is not None:
        _check_weight(stats, weight)
    rows = stats.centred_mean if weight is None else weight[stats.classes].to(stats.mean.dtype)
    norms = torch.linalg.vector_norm(rows / _largest(rows), dim=1)
    return norms.std() / norms.mean()


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

    Examples:
        >>> from neuralcollapse import class_stats
        >>> features = torch.tensor([[1.0], [3.0], [-1.0], [-3.0]])
        >>> float(cdnv(class_stats(features, torch.tensor([0, 0, 1, 1]), 2)))
        0.0625
    """
    _check_stats(stats)
    # The order of pairs is that of triu_indices.
    squared_distance = torch.pdist(stats.centred_mean).square()
    pairs = torch.triu_indices(len(stats.mean), len(stats.mean), 1, device=stats.mean.device)
    return (stats.within_trace[pairs].sum(0) / (2 * squared_distance)).mean()


def class_cdnv(stats: Stats) -> Tensor:
    """The mean over a class's pairs with all others, `[K]`; the mean of these is `cdnv`."""
    squared_distance = torch.cdist(
        stats.centred_mean, stats.centred_mean, compute_mode="donot_use_mm_for_euclid_dist"
    ).square()
    pairs = (stats.within_trace[:, None] + stats.within_trace) / (2 * squared_distance)
    return pairs.fill_diagonal_(0.0).sum(1) / (len(pairs) - 1)


def _check_stats(stats: object) -> None:
    """Raise unless these are statistics, which features themselves are not."""
    if not isinstance(stats, Stats):
        raise TypeError(f"stats must be Stats, such as class_stats returns, got {type(stats).__name__}")


def _check_weight(stats: Stats, weight: Tensor) -> None:
    check_tensor("weight", weight)
    if not weight.is_floating_point():
        raise TypeError(f"weight must be floating point, got {weight.dtype}")
    if weight.dim() != 2 or weight.shape[1] != stats.mean.shape[1] or len(weight) <= int(stats.classes.max()):
        raise ValueError(
            f"weight must be [num_classes, {stats.mean.shape[1]}] with a row for class {int(stats.classes.max())}, "
            f"got {tuple(weight.shape)}"
        )
    check_finite("weight", weight)


def _largest(values: Tensor) -> Tensor:
    """The largest magnitude, by which metrics without a scale divide before they square; 1 where all are 0."""
    largest = values.detach().abs().max()
    return torch.where(largest > 0, largest, 1.0)


def _unit(matrix: Tensor) -> Tensor:
    return matrix / torch.linalg.norm(matrix)


def _simplex(like: Tensor) -> Tensor:
    """`(I - 11^T/K)/sqrt(K-1)`, the Gram matrix of a simplex equiangular tight frame at unit norm."""
    num_classes = len(like)
    return (_eye(like) - 1 / num_classes) / (num_classes - 1) ** 0.5


def _eye(like: Tensor) -> Tensor:
    return torch.eye(len(like), dtype=like.dtype, device=like.device)
