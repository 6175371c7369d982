"""The statistics of batches that come one after another, on several ranks, once or twice."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from neuralcollapse.checks import (
    as_size,
    check_batch,
    check_num_classes,
    check_scale,
    present_classes,
    warn_caller,
)
from neuralcollapse.statistics import Stats, inner_products, weighted_scatter


def distributed() -> bool:
    """Whether there are other ranks to reduce over."""
    return dist.is_available() and dist.is_initialized()


class StreamingStats:
    """`class_stats` of data that come in batches, on several ranks, in any order.

    Scatter is kept centred and joined by the rule of Chan, Golub and LeVeque (1983),
    `S = S_a + S_b + n_a n_b / (n_a + n_b) (m_a - m_b)(m_a - m_b)^T`, never as a difference of large
    second moments, and means are kept relative to the first batch's: the NC1 of deeply collapsed features comes out
    right, wherever their origin is.

    With `cov="full"` one `[d, d]` matrix is kept for all classes together. Its classes can have equal
    weight in one pass only if their sizes are known beforehand (`class_counts`) or come out equal;
    otherwise they weigh by their sizes and `compute` warns. `second_pass` needs neither, nor the
    `[d, d]` matrix. All other numbers weigh classes equally in any case.

    Args:
        num_classes: Number of classes `K`, at least 2.
        dim: Feature dimension `d`.
        cov: `"full"` (memory `K d + d^2`) or `"trace"` (`K d`).
        class_counts: Samples `[K]` each class will have had at the end, over all ranks, such as
            `torch.bincount(targets)` of a data set; only for `"full"`.
        dtype: Type of the accumulators, float64 or, where a device lacks it, float32; batches of any floating type
            are accepted.
        device: Device of the accumulators; batches must be there.

    Raises:
        TypeError: If a size is not an integer, or `dtype` neither float64 nor float32.
        ValueError: If an argument is out of range.

    Examples:
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
        num_classes, dim = check_num_classes(num_classes), as_size("dim", dim)
        if dim < 1:
            raise ValueError(f"dim must be positive, got {dim}")
        if cov not in ("full", "trace"):
            raise ValueError(
                f"cov must be 'full' or 'trace', got {cov!r} (low rank: StreamingStats.second_pass)"
            )
        if dtype not in (torch.float64, torch.float32):
            raise TypeError(f"dtype must be float64 or float32, got {dtype}")
        counts = None if class_counts is None else _class_counts(class_counts, num_classes)
        # Accumulators that a caller's inference mode made could not be added to outside of it.
        with torch.inference_mode(False):
            self.count = torch.zeros(num_classes, dtype=torch.int64, device=device)
            self.origin = torch.zeros(dim, dtype=dtype, device=device)
            self._relative = torch.zeros(num_classes, dim, dtype=dtype, device=device)
            self.scatter_trace = torch.zeros(num_classes, dtype=dtype, device=device)
            self.scatter = torch.zeros(dim, dim, dtype=dtype, device=device) if cov == "full" else None
            size = torch.ones(num_classes) if counts is None else counts.clamp(min=1)
            self._weight = size.to(self._relative).reciprocal()
        self.class_counts = counts

    @property
    def mean(self) -> Tensor:
        """Class means so far `[K, d]`."""
        return self.origin + self._relative

    @property
    def num_classes(self) -> int:
        """Number of classes `K`."""
        return self._relative.shape[0]

    @property
    def dim(self) -> int:
        """Feature dimension `d`."""
        return self._relative.shape[1]

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
        features = features.to(self._relative.dtype)
        if not self.count.any():
            self.origin.copy_(features.mean(0))
        features = features - self.origin
        mean = features.new_zeros(len(present), self.dim).index_add_(0, inverse, features)
        mean /= count[:, None]
        centred = features - mean[inverse]
        trace = features.new_zeros(len(present)).index_add_(0, inverse, centred.square().sum(1))
        scatter = None if self.scatter is None else weighted_scatter(centred, self._weight[labels])
        self._join(present, count, mean, trace, scatter)

    @torch.no_grad()
    def merge(self, other: StreamingStats) -> StreamingStats:
        """Take in what another one has seen, which stays as it is.

        Args:
            other: Statistics of the same classes, dimension, covariance and class counts.

        Returns:
            This object.

        Raises:
            TypeError: If the other is no `StreamingStats`.
            ValueError: If the two do not fit together, or are one.
        """
        if not isinstance(other, StreamingStats):
            raise TypeError(f"other must be a StreamingStats, got {type(other).__name__}")
        if other is self:
            raise ValueError("other must not be this object itself, whose samples would count twice")
        if self._signature() != other._signature() or not torch.equal(self._weight, other._weight):
            raise ValueError(
                "other must have the same num_classes, dim, cov, dtype and class_counts, "
                f"got {other._signature()} instead of {self._signature()}"
            )
        if not self.count.any():
            self.origin.copy_(other.origin)
        classes = torch.arange(self.num_classes, device=self.count.device)
        relative = other._relative + (other.origin - self.origin)
        self._join(classes, other.count, relative, other.scatter_trace, other.scatter)
        return self

    @torch.no_grad()
    def reduce_ddp(self, group: dist.ProcessGroup | None = None) -> StreamingStats:
        """The statistics of all ranks together; what this rank has seen stays as it is.

        Every rank of the group must call it. It may be called as often as wanted: nothing counts twice.
        Rounds of `all_reduce`, of the origins, the means, then of the scatter about the common means. Without
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
            dtype=self._relative.dtype,
            device=self._relative.device,
        )
        if not distributed():
            return total.merge(self)
        self._check_ranks_agree(group)
        total.origin = self._common_origin(group)
        relative = self._relative + (self.origin - total.origin)
        sums = relative * self.count[:, None]
        total.count.copy_(self.count)
        dist.all_reduce(total.count, group=group)
        dist.all_reduce(sums, group=group)
        total._relative = sums / total.count.clamp(min=1)[:, None]
        shift = relative - total._relative
        total.scatter_trace = self.scatter_trace + self.count * shift.square().sum(1)
        dist.all_reduce(total.scatter_trace, group=group)
        if self.scatter is not None:
            total.scatter = self.scatter + weighted_scatter(shift, self.count * self._weight)
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
        stats = self._means_and_traces(skip_empty)
        return SecondPass(stats, self.num_classes, self.origin.clone(), self._relative[stats.classes])

    def _means_and_traces(self, skip_empty: bool) -> Stats:
        classes = present_classes(self.count, skip_empty)
        count, relative = self.count[classes], self._relative[classes]
        trace, centred = self.scatter_trace[classes] / count, relative - relative.mean(0)
        check_scale(centred, trace, power=2)
        return Stats(self.origin + relative, count, trace, classes, centred=centred)

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
            warn_caller(
                "classes of unequal size weigh by their sizes in within_cov: give class_counts, or use second_pass"
            )
        return self.scatter / count.sum()

    def _join(self, rows: Tensor, count: Tensor, mean: Tensor, trace: Tensor, scatter: Tensor | None) -> None:
        total = (self.count[rows] + count).clamp(min=1)
        share = count.to(mean.dtype) / total
        delta = mean - self._relative[rows]
        between = self.count[rows] * share
        self._relative.index_add_(0, rows, delta * share[:, None])
        self.scatter_trace.index_add_(0, rows, trace + between * delta.square().sum(1))
        self.count.index_add_(0, rows, count)
        if self.scatter is not None and scatter is not None:
            self.scatter += scatter + weighted_scatter(delta, between * self._weight[rows])

    def _signature(self) -> tuple[int, ...]:
        return (self.num_classes, self.dim, int(self.scatter is not None), self._relative.element_size())

    def _common_origin(self, group: dist.ProcessGroup | None) -> Tensor:
        """The mean of the origins of all ranks that have seen something."""
        seen = self.count.any().to(self.origin)
        total = torch.cat([self.origin * seen, seen[None]])
        dist.all_reduce(total, group=group)
        return total[:-1] / total[-1].clamp(min=1)

    def _check_ranks_agree(self, group: dist.ProcessGroup | None) -> None:
        def same(value: Tensor) -> Tensor:
            extremes = torch.stack([value, -value])
            dist.all_reduce(extremes, dist.ReduceOp.MAX, group=group)
            return extremes[0] == -extremes[1]

        signature = torch.tensor(self._signature(), device=self.count.device)
        for name, agrees in zip(
            ("num_classes", "dim", "cov", "dtype"), same(signature).tolist(), strict=True
        ):
            if not agrees:
                raise ValueError(f"StreamingStats of all ranks must have the same {name}")
        if not bool(same(self._weight).all()):
            raise ValueError("StreamingStats of all ranks must have the same class_counts")


def _class_counts(counts: Tensor, num_classes: int) -> Tensor:
    counts = torch.as_tensor(counts)
    whole = counts.dtype != torch.bool and not counts.is_complex() and bool((counts == counts.floor()).all())
    if counts.shape != (num_classes,) or not whole or int(counts.min()) < 0:
        raise ValueError(f"class_counts must be {num_classes} sizes, got {counts}")
    return counts


class SecondPass:
    """`M^T Sigma_W M` of data that come a second time, with the class means known.

    `Tr(Sigma_W Sigma_B^+)` depends on `Sigma_W` through the span of the centred means alone, so `[K, K]`
    numbers replace `[d, d]`, classes weigh equally whatever their sizes, and a batch of `B` samples costs
    `O(B d K)`. Made by `StreamingStats.second_pass`.

    Attributes:
        stats: What the first pass has found.

    Examples:
        >>> features, labels = torch.eye(6, 3), torch.tensor([0, 0, 1, 1, 1, 1])
        >>> stream = StreamingStats(num_classes=2, dim=3, cov="trace")
        >>> stream.update(features, labels)
        >>> second = stream.second_pass()
        >>> second.update(features, labels)
        >>> second.compute().within_gram.shape
        torch.Size([2, 2])
    """

    def __init__(self, stats: Stats, num_classes: int, origin: Tensor, relative: Tensor) -> None:
        self.stats = stats
        self._origin, self._relative = origin, relative
        num_present, device = len(stats.count), stats.mean.device
        with torch.inference_mode(False):
            self.count = torch.zeros(num_present, dtype=torch.int64, device=device)
            self.gram = torch.zeros(num_present, num_present, dtype=stats.mean.dtype, device=device)
            # Of each class: the sum of residuals on the centred means, and of their squares there and altogether.
            self._drift = torch.zeros_like(self.gram)
            self._squares = torch.zeros(2, num_present, dtype=stats.mean.dtype, device=device)
            self._row = torch.full((num_classes,), -1, device=device)
            self._row[stats.classes] = torch.arange(num_present, device=device)
        self._rounding = _ROUNDING[self.gram.dtype]

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
        self._rounding = max(self._rounding, _ROUNDING.get(features.dtype, _COARSE))
        residual = features.to(self.gram.dtype) - self._origin - self._relative[rows]
        projected = inner_products(residual, self.stats.centred_mean)
        weight = 1 / (len(self.count) * self.stats.count[rows].to(residual.dtype))
        self.gram += weighted_scatter(projected, weight)
        self.count += torch.bincount(rows, minlength=len(self.count))
        self._drift.index_add_(0, rows, projected)
        self._squares[0].index_add_(0, rows, projected.square().sum(1))
        self._squares[1].index_add_(0, rows, residual.square().sum(1))

    @torch.no_grad()
    def reduce_ddp(self, group: dist.ProcessGroup | None = None) -> SecondPass:
        """The second pass of all ranks together; this rank's stays as it is.

        Args:
            group: The process group, the default one if `None`.

        Returns:
            A new accumulator, equal on all ranks.
        """
        total = SecondPass(self.stats, len(self._row), self._origin, self._relative)
        total._rounding = self._rounding
        for name in ("count", "gram", "_drift", "_squares"):
            summed = getattr(total, name)
            summed += getattr(self, name)
            if distributed():
                dist.all_reduce(summed, group=group)
        return total

    def compute(self) -> Stats:
        """The first pass's statistics with `within_gram`.

        Returns:
            The statistics.

        Raises:
            ValueError: If the second pass has not seen the samples of the first: other numbers of some class, or, by
                more than rounding, other means or another scatter.
        """
        if not torch.equal(self.count, self.stats.count):
            raise ValueError(
                f"the second pass must see the samples of the first, {self.stats.count.tolist()} of each class, "
                f"got {self.count.tolist()} (an iterator cannot be gone over twice)"
            )
        drifted = self._drifted()
        if bool(drifted.any()):
            raise ValueError(
                "the second pass must see the samples of the first, got others in the classes "
                f"{self.stats.classes[drifted].tolist()} (a loader or model that draws at random: augmentation, "
                "dropout, sampling with replacement)"
            )
        check_scale(self.stats.centred_mean, self.stats.within_trace, power=4)
        return replace(self.stats, within_gram=self.gram.clone())

    def _drifted(self) -> Tensor:
        """Classes `[K]` whose means or scatter are not those of the first pass.

        Of the same samples the residuals sum to 0; of others of the same distribution, the square of their sum is about
        twice the sum of their squares, however many they are.
        """
        stats, count = self.stats, self.count
        # How far rounding may carry a sample between two passes: batches may be composed in another way.
        slack = self._rounding**2 * (stats.mean.square().sum(1) + stats.within_trace)
        along = stats.centred_mean.square().sum()
        moved = self._drift.square().sum(1) > 0.01 * self._squares[0] + count * slack * along
        trace = self._squares[1] / count
        tolerance = 0.01 * stats.within_trace + slack + 2 * (slack * stats.within_trace).sqrt()
        return moved | ((trace - stats.within_trace).abs() > tolerance)


# What may separate two forwards of one sample, relative to its size. Under autocast float32 features carry the
# rounding of bfloat16.
_COARSE = 2.0**-7
_ROUNDING = {torch.float32: 2.0**-8, torch.float64: 2.0**-40}
