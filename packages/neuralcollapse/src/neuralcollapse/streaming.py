"""Class means and within-class scatter of a stream, of two passes over it, of all ranks together."""

from __future__ import annotations

import warnings
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from neuralcollapse.statistics import Stats, check_batch, check_num_classes, present_classes


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
        >>> for features in torch.eye(6, 3).split(3):
        ...     stream.update(features, torch.tensor([0, 1, 1]))
        >>> stream.compute().count.tolist()
        [2, 4]
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
        check_batch(features, labels, self.num_classes)
        if features.shape[1] != self.dim:
            raise ValueError(f"features must have {self.dim} columns, got {features.shape[1]}")
        if not len(labels):
            return
        present, inverse, count = labels.long().unique(return_inverse=True, return_counts=True)
        features = features.to(self.mean.dtype)
        mean = features.new_zeros(len(present), self.dim).index_add_(0, inverse, features)
        mean /= count[:, None]
        centred = features - mean[inverse]
        trace = features.new_zeros(len(present)).index_add_(0, inverse, centred.square().sum(1))
        scatter = None
        if self.scatter is not None:
            scatter = self._outer(centred, self._weight[labels])
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
        if not (dist.is_available() and dist.is_initialized()):
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
            total.scatter = self.scatter + self._outer(shift, self.count * self._weight)
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
        classes = present_classes(self.count, skip_empty)
        count = self.count[classes]
        trace = self.scatter_trace[classes] / count
        return Stats(self.mean[classes], count, trace, classes, self._within_cov(count))

    def second_pass(self, *, skip_empty: bool = False) -> SecondPass:
        """Start a second pass over the same data that gives NC1 with `[K, K]` numbers instead of `[d, d]`.

        Under several ranks: `stream.reduce_ddp().second_pass()`, so that all of them use the common means.

        Args:
            skip_empty: Leave classes without samples out instead of raising.

        Returns:
            The accumulator of that pass.
        """
        return SecondPass(self.compute(skip_empty=skip_empty), self.num_classes)

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
            self.scatter += scatter + self._outer(delta, between * self._weight[rows])

    @staticmethod
    def _outer(rows: Tensor, weight: Tensor) -> Tensor:
        with torch.autocast(rows.device.type, enabled=False):
            return rows.mT @ (rows * weight[:, None])

    def _signature(self) -> tuple[int, ...]:
        return (self.num_classes, self.dim, int(self.scatter is not None), self.mean.element_size())

    def _check_ranks_agree(self, group: dist.ProcessGroup | None) -> None:
        names = ("num_classes", "dim", "cov", "dtype")
        signature = torch.tensor(self._signature(), device=self.mean.device)
        for name, same in zip(names, same_on_all_ranks(signature, group).tolist(), strict=True):
            if not same:
                raise ValueError(f"StreamingStats of all ranks must have the same {name}")
        if not bool(same_on_all_ranks(self._weight, group).all()):
            raise ValueError("StreamingStats of all ranks must have the same class_counts")


def same_on_all_ranks(value: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Which entries have one value on all ranks."""
    extremes = torch.stack([value, -value])
    dist.all_reduce(extremes, dist.ReduceOp.MAX, group=group)
    return extremes[0] == -extremes[1]


class SecondPass:
    """`M^T Sigma_W M` of data that come a second time, with the class means known.

    `Tr(Sigma_W Sigma_B^+)` depends on `Sigma_W` through the span of the centred means alone, so `[K, K]`
    numbers replace `[d, d]`, classes weigh equally whatever their sizes, and a batch of `B` samples costs
    `O(B d K)`. Made by `StreamingStats.second_pass`.
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
        check_batch(features, labels, len(self._row))
        rows = self._row[labels.long()]
        if bool((rows < 0).any()):
            raise ValueError("labels must be of classes that the first pass has seen")
        centred = features.to(self.gram.dtype) - self.stats.mean[rows]
        weight = 1 / (len(self.count) * self.stats.count[rows])
        with torch.autocast(features.device.type, enabled=False):
            projected = centred @ self.stats.centred_mean.mT
            self.gram += projected.mT @ (projected * weight[:, None].to(projected.dtype))
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
        if dist.is_available() and dist.is_initialized():
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
                f"the second pass must see the first one's samples, {self.stats.count.tolist()} of each class, "
                f"got {self.count.tolist()}"
            )
        stats = self.stats
        return Stats(stats.mean, stats.count, stats.within_trace, stats.classes, None, self.gram.clone())
