"""Class means and within-class scatter, at once or streamed, of all ranks: what all metrics are functions of."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

Covariance = Literal["full", "lowrank", "trace"]


@dataclass(frozen=True)
class Stats:
    """What the collapse metrics are functions of.

    With class means `m_k`, their mean `m` (not the sample mean) and classes of equal weight whatever
    their size, as in Section 2 of Tirer, Huang and Niles-Weed (2023):
    `Sigma_W = (1/K) sum_k Cov_k` and `Sigma_B = (1/K) sum_k (m_k - m)(m_k - m)^T`.

    Attributes:
        mean: Class means `[K, d]`.
        count: Samples of each class `[K]`, int64.
        within_trace: Mean squared distance to the class mean, `Tr Cov_k`, `[K]`.
        classes: The label of each row `[K]`, int64; shorter than the label set if empty classes were skipped.
        within_cov: `Sigma_W` `[d, d]`, if it was asked for.
        within_gram: `M^T Sigma_W M` `[K, K]`, `M = [m_1 - m, ..., m_K - m]`: all that NC1 needs of
            `Sigma_W`, if it was asked for.
    """

    mean: Tensor
    count: Tensor
    within_trace: Tensor
    classes: Tensor
    within_cov: Tensor | None = None
    within_gram: Tensor | None = None

    @property
    def centred_mean(self) -> Tensor:
        """`m_k - m` `[K, d]`."""
        return self.mean - self.mean.mean(0)


def check_batch(features: Tensor, labels: Tensor, num_classes: int, dim: int | None = None) -> None:
    """Raise if these are not the features and labels of one batch."""
    if not features.is_floating_point():
        raise TypeError(f"features must be floating point, got {features.dtype}")
    if features.dim() != 2:
        raise ValueError(f"features must be [num_samples, dim], got shape {tuple(features.shape)}")
    if dim is not None and features.shape[1] != dim:
        raise ValueError(f"features must have {dim} columns, got {features.shape[1]}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels must be integers, got {labels.dtype}")
    if labels.shape != features.shape[:1]:
        raise ValueError(
            f"labels must be [{len(features)}], one for each row of features, got {tuple(labels.shape)}"
        )
    if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) >= num_classes):
        raise ValueError(
            f"labels must lie in [0, {num_classes}), got {int(labels.min())} to {int(labels.max())}"
        )
    if not bool(torch.isfinite(features).all()):
        raise ValueError("features must be finite, got NaN or infinity")


def check_num_classes(num_classes: int) -> None:
    """Raise if there is nothing to collapse between."""
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")


def present_classes(count: Tensor, skip_empty: bool) -> Tensor:
    """Labels that have samples; raise, naming them, if others may not be missing."""
    empty = (count == 0).nonzero().flatten().tolist()
    if empty and not skip_empty:
        raise ValueError(
            f"every class must have samples, got none of {empty} (skip_empty=True leaves them out)"
        )
    if len(count) - len(empty) < 2:
        raise ValueError(f"at least two classes must have samples, got {len(count) - len(empty)}")
    return count.nonzero().flatten()


def working_dtype(features: Tensor) -> torch.dtype:
    """The features' own type, but never half precision."""
    return torch.promote_types(features.dtype, torch.float32)


def inner_products(first: Tensor, second: Tensor) -> Tensor:
    """`first second^T`, in the type of the factors whatever autocast says."""
    with torch.autocast(first.device.type, enabled=False):
        return first @ second.mT


def distributed() -> bool:
    """Whether there are other ranks to reduce over."""
    return dist.is_available() and dist.is_initialized()


def _scatter(rows: Tensor, weight: Tensor) -> Tensor:
    """`sum_i weight_i rows_i rows_i^T`."""
    return inner_products(rows.mT, weight * rows.mT)


def class_stats(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    cov: Covariance = "full",
    skip_empty: bool = False,
) -> Stats:
    """Class means and within-class scatter of features at hand, differentiable in the features.

    Two passes, so that a scatter many orders below the means is right; half precision is promoted to float32,
    autocast does not apply. Deep collapse (NC1 under about 1e-6) wants float64 features.

    Args:
        features: `[N, d]`, floating point.
        labels: `[N]`, integers in `[0, num_classes)`.
        num_classes: Number of classes, at least 2.
        cov: `"full"` keeps `Sigma_W` `[d, d]`; `"lowrank"` keeps `[K, K]` numbers from which NC1 follows
            all the same (cheaper for `K < d`); `"trace"` keeps neither.
        skip_empty: Leave classes without samples out instead of raising.

    Returns:
        The statistics, in the features' type and on their device.

    Raises:
        TypeError: If features are not floating point or labels not integers.
        ValueError: If shapes or labels do not fit, features are not finite, or a class is empty.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0], [0.0, 5.0]])
        >>> stats = class_stats(features, torch.tensor([0, 0, 1, 1]), num_classes=2)
        >>> stats.mean.tolist(), stats.within_trace.tolist()
        ([[2.0, 0.0], [0.0, 5.0]], [1.0, 0.0])
    """
    check_num_classes(num_classes)
    check_batch(features, labels, num_classes)
    if cov not in ("full", "lowrank", "trace"):
        raise ValueError(f"cov must be 'full', 'lowrank' or 'trace', got {cov!r}")
    labels = labels.long()
    count = torch.bincount(labels, minlength=num_classes)
    classes = present_classes(count, skip_empty)
    features = features.to(working_dtype(features))
    size = count.clamp(min=1).to(features.dtype)
    mean = features.new_zeros(num_classes, features.shape[1]).index_add(0, labels, features) / size[:, None]
    centred = features - mean[labels]
    trace = features.new_zeros(num_classes).index_add(0, labels, centred.square().sum(1)) / size
    stats = Stats(mean[classes], count[classes], trace[classes], classes)
    weight = 1 / (len(classes) * size[labels])
    if cov == "full":
        return replace(stats, within_cov=_scatter(centred, weight))
    if cov == "lowrank":
        return replace(stats, within_gram=_scatter(inner_products(centred, stats.centred_mean), weight))
    return stats


class StreamingStats:
    """`class_stats` of data that come in batches, on several ranks, in any order.

    Scatter is kept centred and joined by the rule of Chan, Golub and LeVeque (1983),
    `S = S_a + S_b + n_a n_b / (n_a + n_b) (m_a - m_b)(m_a - m_b)^T`, never as a difference of large
    second moments: the NC1 of deeply collapsed features comes out right.

    With `cov="full"` one `[d, d]` matrix is kept for all classes together. Its classes can have equal
    weight in one pass only if their sizes are known beforehand (`class_counts`) or come out equal;
    otherwise they weigh by their sizes and `compute` warns. `second_pass` needs neither, nor the
    `[d, d]` matrix. All other numbers weigh classes equally in any case.

    Args:
        num_classes: Number of classes `K`, at least 2.
        dim: Feature dimension `d`.
        cov: `"full"` (memory `K d + d^2`) or `"trace"` (`K d`).
        class_counts: Samples `[K]` each class will have had at the end, over all ranks; only for `"full"`.
        dtype: Type of the accumulators; batches of any floating type are accepted.
        device: Device of the accumulators; batches must be there.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> stream = StreamingStats(num_classes=2, dim=3)
        >>> for features in torch.eye(6, 3).split(2):
        ...     stream.update(features, torch.tensor([0, 1]))
        >>> stream.compute().count.tolist()
        [3, 3]
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        cov: Literal["full", "trace"] = "full",
        *,
        class_counts: Tensor | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> None:
        check_num_classes(num_classes)
        if dim < 1:
            raise ValueError(f"dim must be positive, got {dim}")
        if cov not in ("full", "trace"):
            raise ValueError(
                f"cov must be 'full' or 'trace', got {cov!r} (low rank: StreamingStats.second_pass)"
            )
        if not dtype.is_floating_point:
            raise TypeError(f"dtype must be floating point, got {dtype}")
        if class_counts is not None and (class_counts.shape != (num_classes,) or int(class_counts.min()) < 0):
            raise ValueError(f"class_counts must be {num_classes} sizes, got {class_counts}")
        self.count = torch.zeros(num_classes, dtype=torch.int64, device=device)
        self.mean = torch.zeros(num_classes, dim, dtype=dtype, device=device)
        self.scatter_trace = torch.zeros(num_classes, dtype=dtype, device=device)
        self.scatter = torch.zeros(dim, dim, dtype=dtype, device=device) if cov == "full" else None
        self.class_counts = class_counts
        size = torch.ones(num_classes) if class_counts is None else class_counts.clamp(min=1)
        self._weight = size.to(self.mean).reciprocal()

    @property
    def num_classes(self) -> int:
        """Number of classes `K`."""
        return self.mean.shape[0]

    @property
    def dim(self) -> int:
        """Feature dimension `d`."""
        return self.mean.shape[1]

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        """Take in one batch, at the cost of one `[d, B] x [B, d]` product for `"full"`.

        Args:
            features: `[B, d]`, floating point.
            labels: `[B]`, integers.

        Raises:
            TypeError: If features are not floating point or labels not integers.
            ValueError: If shapes or labels do not fit, or features are not finite.
        """
        check_batch(features, labels, self.num_classes, self.dim)
        if not len(labels):
            return
        labels = labels.long()
        present, inverse, count = labels.unique(return_inverse=True, return_counts=True)
        features = features.to(self.mean.dtype)
        mean = features.new_zeros(len(present), self.dim).index_add_(0, inverse, features)
        mean /= count[:, None]
        centred = features - mean[inverse]
        trace = features.new_zeros(len(present)).index_add_(0, inverse, centred.square().sum(1))
        scatter = None if self.scatter is None else _scatter(centred, self._weight[labels])
        self._join(present, count, mean, trace, scatter)

    @torch.no_grad()
    def merge(self, other: StreamingStats) -> StreamingStats:
        """Take in what another one has seen, which stays as it is.

        Args:
            other: Statistics of the same classes, dimension, covariance and class counts.

        Returns:
            This object.

        Raises:
            ValueError: If the two do not fit together.
        """
        if self._signature() != other._signature() or not torch.equal(self._weight, other._weight):
            raise ValueError(
                "other must have the same num_classes, dim, cov, dtype and class_counts, "
                f"got {other._signature()} instead of {self._signature()}"
            )
        classes = torch.arange(self.num_classes, device=self.mean.device)
        self._join(classes, other.count, other.mean, other.scatter_trace, other.scatter)
        return self

    @torch.no_grad()
    def reduce_ddp(self, group: dist.ProcessGroup | None = None) -> StreamingStats:
        """The statistics of all ranks together; what this rank has seen stays as it is.

        Every rank of the group must call it. It may be called as often as wanted: nothing counts twice.
        Three rounds of `all_reduce`, of the means, then of the scatter about the common means. Without
        an initialised process group it copies.

        Args:
            group: The process group, the default one if `None`.

        Returns:
            New statistics, equal on all ranks.

        Raises:
            ValueError: On every rank, if ranks differ in classes, dimension, covariance or class counts.
        """
        total = StreamingStats(
            self.num_classes,
            self.dim,
            "trace" if self.scatter is None else "full",
            class_counts=self.class_counts,
            dtype=self.mean.dtype,
            device=self.mean.device,
        )
        if not distributed():
            return total.merge(self)
        self._check_ranks_agree(group)
        sums = self.mean * self.count[:, None]
        total.count.copy_(self.count)
        dist.all_reduce(total.count, group=group)
        dist.all_reduce(sums, group=group)
        total.mean = sums / total.count.clamp(min=1)[:, None]
        shift = self.mean - total.mean
        total.scatter_trace = self.scatter_trace + self.count * shift.square().sum(1)
        dist.all_reduce(total.scatter_trace, group=group)
        if self.scatter is not None:
            total.scatter = self.scatter + _scatter(shift, self.count * self._weight)
            dist.all_reduce(total.scatter, group=group)
        return total

    def compute(self, *, skip_empty: bool = False) -> Stats:
        """The statistics of all that was taken in.

        Args:
            skip_empty: Leave classes without samples out instead of raising.

        Returns:
            The statistics, which later updates do not change.

        Raises:
            ValueError: If a class is empty, or `class_counts` are not what came.
        """
        stats = self._means_and_traces(skip_empty)
        return replace(stats, within_cov=self._within_cov(stats.count))

    def second_pass(self, *, skip_empty: bool = False) -> SecondPass:
        """Start a second pass over the same data that gives NC1 with `[K, K]` numbers instead of `[d, d]`.

        Under several ranks: `stream.reduce_ddp().second_pass()`, so that all of them use the common means.

        Args:
            skip_empty: Leave classes without samples out instead of raising.

        Returns:
            The accumulator of that pass.

        Raises:
            ValueError: If a class is empty.
        """
        return SecondPass(self._means_and_traces(skip_empty), self.num_classes)

    def _means_and_traces(self, skip_empty: bool) -> Stats:
        classes = present_classes(self.count, skip_empty)
        count = self.count[classes]
        return Stats(self.mean[classes], count, self.scatter_trace[classes] / count, classes)

    def _within_cov(self, count: Tensor) -> Tensor | None:
        if self.scatter is None:
            return None
        if self.class_counts is not None:
            if not torch.equal(self.class_counts.to(self.count), self.count):
                raise ValueError(
                    f"class_counts must be the sizes that came, {self.count.tolist()}, got {self.class_counts.tolist()}"
                )
            return self.scatter / len(count)
        if bool((count != count[0]).any()):
            warnings.warn(
                "classes of unequal size weigh by their sizes in within_cov: give class_counts, or use second_pass",
                stacklevel=3,
            )
        return self.scatter / count.sum()

    def _join(self, rows: Tensor, count: Tensor, mean: Tensor, trace: Tensor, scatter: Tensor | None) -> None:
        total = (self.count[rows] + count).clamp(min=1)
        share = count.to(mean.dtype) / total
        delta = mean - self.mean[rows]
        between = self.count[rows] * share
        self.mean.index_add_(0, rows, delta * share[:, None])
        self.scatter_trace.index_add_(0, rows, trace + between * delta.square().sum(1))
        self.count.index_add_(0, rows, count)
        if self.scatter is not None and scatter is not None:
            self.scatter += scatter + _scatter(delta, between * self._weight[rows])

    def _signature(self) -> tuple[int, ...]:
        return (self.num_classes, self.dim, int(self.scatter is not None), self.mean.element_size())

    def _check_ranks_agree(self, group: dist.ProcessGroup | None) -> None:
        def same(value: Tensor) -> Tensor:
            extremes = torch.stack([value, -value])
            dist.all_reduce(extremes, dist.ReduceOp.MAX, group=group)
            return extremes[0] == -extremes[1]

        signature = torch.tensor(self._signature(), device=self.mean.device)
        for name, agrees in zip(
            ("num_classes", "dim", "cov", "dtype"), same(signature).tolist(), strict=True
        ):
            if not agrees:
                raise ValueError(f"StreamingStats of all ranks must have the same {name}")
        if not bool(same(self._weight).all()):
            raise ValueError("StreamingStats of all ranks must have the same class_counts")


class SecondPass:
    """`M^T Sigma_W M` of data that come a second time, with the class means known.

    `Tr(Sigma_W Sigma_B^+)` depends on `Sigma_W` through the span of the centred means alone, so `[K, K]`
    numbers replace `[d, d]`, classes weigh equally whatever their sizes, and a batch of `B` samples costs
    `O(B d K)`. Made by `StreamingStats.second_pass`.

    Attributes:
        stats: What the first pass has found.

    Example:
        >>> features, labels = torch.eye(6, 3), torch.tensor([0, 0, 1, 1, 1, 1])
        >>> stream = StreamingStats(num_classes=2, dim=3, cov="trace")
        >>> stream.update(features, labels)
        >>> second = stream.second_pass()
        >>> second.update(features, labels)
        >>> second.compute().within_gram.shape
        torch.Size([2, 2])
    """

    def __init__(self, stats: Stats, num_classes: int) -> None:
        self.stats = stats
        num_present = len(stats.count)
        self.count = torch.zeros_like(stats.count)
        self.gram = stats.mean.new_zeros(num_present, num_present)
        self._row = torch.full((num_classes,), -1, device=stats.mean.device)
        self._row[stats.classes] = torch.arange(num_present, device=stats.mean.device)

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        """Take in one batch.

        Args:
            features: `[B, d]`, floating point.
            labels: `[B]`, integers.

        Raises:
            TypeError: If features are not floating point or labels not integers.
            ValueError: If shapes or labels do not fit, features are not finite, or a class is new.
        """
        check_batch(features, labels, len(self._row), self.stats.mean.shape[1])
        rows = self._row[labels.long()]
        if bool((rows < 0).any()):
            raise ValueError("labels must be of classes that the first pass has seen")
        centred = features.to(self.gram.dtype) - self.stats.mean[rows]
        weight = 1 / (len(self.count) * self.stats.count[rows].to(centred.dtype))
        self.gram += _scatter(inner_products(centred, self.stats.centred_mean), weight)
        self.count += torch.bincount(rows, minlength=len(self.count))

    @torch.no_grad()
    def reduce_ddp(self, group: dist.ProcessGroup | None = None) -> SecondPass:
        """The second pass of all ranks together; this rank's stays as it is.

        Args:
            group: The process group, the default one if `None`.

        Returns:
            A new accumulator, equal on all ranks.
        """
        total = SecondPass(self.stats, len(self._row))
        total.gram += self.gram
        total.count += self.count
        if distributed():
            dist.all_reduce(total.gram, group=group)
            dist.all_reduce(total.count, group=group)
        return total

    def compute(self) -> Stats:
        """The first pass's statistics with `within_gram`.

        Returns:
            The statistics.

        Raises:
            ValueError: If the second pass has not seen as many samples of each class as the first.
        """
        if not torch.equal(self.count, self.stats.count):
            raise ValueError(
                f"the second pass must see the samples of the first, {self.stats.count.tolist()} of each class, "
                f"got {self.count.tolist()} (an iterator cannot be gone over twice)"
            )
        return replace(self.stats, within_gram=self.gram.clone())
