"""What is kept of the data: sums over samples."""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gacil.checks import check_labels, check_tensor


@dataclass(frozen=True)
class Statistics:
    """All a ridge classifier knows of its data: sums over samples, so they add, subtract and reduce.

    Args:
        gram: (M, M) sum of x x', without gamma I.
        cross: (M, C) sum of x y'.
        class_counts: (C,) int64, samples with a non-zero target for the class.
        num_samples: () int64.

    Raises:
        ValueError: If the shapes do not fit together.
        TypeError: If one is not a tensor.
    """

    gram: Tensor
    cross: Tensor
    class_counts: Tensor
    num_samples: Tensor

    def __post_init__(self) -> None:
        for name, tensor in zip(
            ("gram", "cross", "class_counts", "num_samples"), self.tensors(), strict=True
        ):
            check_tensor(name, tensor)
        width = self.gram.shape[-1] if self.gram.ndim else 0
        shapes = [tuple(tensor.shape) for tensor in self.tensors()]
        if shapes != [(width, width), (width, self.class_counts.numel()), (self.class_counts.numel(),), ()]:
            raise ValueError(f"statistics must have shapes (M, M), (M, C), (C,) and (), got {shapes}")

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the four sums in the order of the arguments."""
        return self.gram, self.cross, self.class_counts, self.num_samples

    @property
    def num_classes(self) -> int:
        """Number of columns C."""
        return self.cross.shape[1]

    def widened(self, num_classes: int) -> Statistics:
        """Return the same statistics with zero columns up to `num_classes`.

        Raises:
            ValueError: If there are more classes already.
        """
        if num_classes < self.num_classes:
            raise ValueError(f"num_classes must be at least {self.num_classes}, got {num_classes}")
        pad = functools.partial(nn.functional.pad, pad=(0, num_classes - self.num_classes))
        return replace(self, cross=pad(self.cross), class_counts=pad(self.class_counts))

    def relabelled(self, labels: Tensor) -> Statistics:
        """Return the same statistics with class c called labels[c].

        Args:
            labels: (C,) distinct labels >= 0; columns between them are zero.

        Raises:
            ValueError: If there are not C labels, one is negative or two are the same.
            TypeError: If they are not a tensor of integers.
        """
        check_labels("labels", labels, self.num_classes)
        labels = labels.long()
        if len(labels.unique()) != len(labels) or bool((labels < 0).any()):
            raise ValueError(f"labels must be {self.num_classes} distinct ones >= 0, got {labels.tolist()}")
        num_classes = int(labels.max()) + 1 if len(labels) else 0
        cross = self.cross.new_zeros(len(self.cross), num_classes).index_copy(1, labels, self.cross)
        counts = self.class_counts.new_zeros(num_classes).index_copy(0, labels, self.class_counts)
        return replace(self, cross=cross, class_counts=counts)

    def to(self, like: Tensor) -> Statistics:
        """Return the same statistics on the device and with the floating dtype of `like`."""
        counts, num_samples = self.class_counts.to(like.device), self.num_samples.to(like.device)
        return Statistics(self.gram.to(like), self.cross.to(like), counts, num_samples)

    def __add__(self, other: Statistics) -> Statistics:
        return self._combined(other, operator.add)

    def __sub__(self, other: Statistics) -> Statistics:
        return self._combined(other, operator.sub)

    def all_reduced(self, group: dist.ProcessGroup | None = None) -> Statistics:
        """Return the sum over the ranks of `group`; ranks may have met different numbers of classes."""
        num_classes = torch.tensor([self.num_classes], device=self.cross.device)
        dist.all_reduce(num_classes, op=dist.ReduceOp.MAX, group=group)
        total = [tensor.clone() for tensor in self.widened(int(num_classes)).tensors()]
        for tensor in total:
            dist.all_reduce(tensor, group=group)
        return Statistics(*total)

    def _combined(self, other: Statistics, operation: Any) -> Statistics:
        if self.gram.shape != other.gram.shape:
            raise ValueError(
                f"statistics must be of as many features, got {len(self.gram)} and {len(other.gram)}"
            )
        num_classes = max(self.num_classes, other.num_classes)
        pairs = zip(self.widened(num_classes).tensors(), other.widened(num_classes).tensors(), strict=True)
        return Statistics(*(operation(left, right) for left, right in pairs))
