"""The neural-collapse metrics NC1 to NC4 and CDNV, each a differentiable function of the statistics."""

from __future__ import annotations

import warnings
from typing import Literal

import torch
from torch import Tensor

from neuralcollapse.statistics import Stats, check_batch


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
    centred = stats.centred_mean
    with torch.autocast(centred.device.type, enabled=False):
        within = stats.within_gram
        if within is None:
            if stats.within_cov is None:
                raise ValueError("stats must have within_cov or within_gram for kind='pinv', got neither")
            within = centred @ stats.within_cov @ centred.mT
        return _trace_of_quotient(within, centred @ centred.mT, centred.shape[1])


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
    """
    if frame not in ("etf", "orthogonal"):
        raise ValueError(f"frame must be 'etf' or 'orthogonal', got {frame!r}")
    mean = stats.centred_mean if frame == "etf" else stats.mean
    with torch.autocast(mean.device.type, enabled=False):
        gram = mean @ mean.mT
    target = (
        _simplex(gram)
        if frame == "etf"
        else _unit(torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
    )
    return torch.linalg.norm(_unit(gram) - target)


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
    with torch.autocast(centred.device.type, enabled=False):
        alignment = weight @ centred.mT
    return torch.linalg.norm(_unit(alignment) - _simplex(alignment))


def nc4(stats: Stats, features: Tensor, predictions: Tensor) -> Tensor:
    """Fraction of samples on which the network and the nearest-class-mean rule disagree.

    Args:
        stats: Statistics that give the class means.
        features: `[N, d]`.
        predictions: The network's logits `[N, num_classes]` or labels `[N]`.

    Returns:
        A 0-d tensor in `[0, 1]`, in the features' type.

    Raises:
        TypeError: If features are not floating point.
        ValueError: If shapes do not fit, there are no features, or they are not finite.
    """
    if predictions.dim() == 2:
        predictions = predictions.argmax(1)
    check_batch(features, predictions, torch.iinfo(torch.int64).max)
    if not len(features) or features.shape[1] != stats.mean.shape[1]:
        raise ValueError(f"features must be [N > 0, {stats.mean.shape[1]}], got {tuple(features.shape)}")
    return (nearest_class(stats, features) != predictions).to(features.dtype).mean()


def nearest_class(stats: Stats, features: Tensor) -> Tensor:
    """Label of the class mean nearest to each of the features `[N, d]`, as `[N]`."""
    mean = stats.mean.detach()
    # Distances to shifted means: |x - m|^2 loses its digits where all means share a large offset.
    offset = mean.mean(0)
    with torch.autocast(features.device.type, enabled=False):
        score = (features.detach().to(mean.dtype) - offset) @ (mean - offset).mT
    return stats.classes[(score - (mean - offset).square().sum(1) / 2).argmax(1)]


def cdnv(stats: Stats) -> Tensor:
    """Class-distance normalised variance, the mean over pairs of `(v_k + v_l) / (2 ||m_k - m_l||^2)`.

    `v_k` is the mean squared distance to the class mean (Galanti, Gyorgy and Hutter 2022, Section 3).

    Args:
        stats: The statistics.

    Returns:
        A 0-d tensor.
    """
    centred = stats.centred_mean
    first, second = torch.triu_indices(len(centred), len(centred), 1, device=centred.device)
    if len(first) * centred.shape[1] <= 2**24:
        distance = (centred[first] - centred[second]).square().sum(1)
    else:
        with torch.autocast(centred.device.type, enabled=False):
            gram = centred @ centred.mT
        norm = gram.diagonal()
        distance = norm[first] + norm[second] - 2 * gram[first, second]
    return ((stats.within_trace[first] + stats.within_trace[second]) / (2 * distance)).mean()


def _unit(matrix: Tensor) -> Tensor:
    return matrix / torch.linalg.norm(matrix)


def _simplex(like: Tensor) -> Tensor:
    """`(I - 11^T/K)/sqrt(K-1)`, the Gram matrix of a simplex equiangular tight frame at unit norm."""
    num_classes = len(like)
    eye = torch.eye(num_classes, dtype=like.dtype, device=like.device)
    return (eye - 1 / num_classes) / (num_classes - 1) ** 0.5
