"""The interval tensor: a box of tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import InitVar, dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class IntervalTensor:
    """A box: every tensor `x` with `lo <= x <= hi`, elementwise.

    A box may carry one of its members along, `middle`. The paper's target network does so: its middle
    output is the ordinary output of the middle weights (arXiv 2405.15444, section 3), which is a member of
    the output box but not its midpoint.

    Args:
        lo: Lower bounds, any floating dtype and shape.
        hi: Upper bounds, the shape of `lo`. Where `hi` falls below `lo` by rounding only, the two are swapped.
        middle: A member carried along, the shape of `lo`; `None` stands for the midpoint.
        nonneg: The caller knows that `lo >= 0`; layers then use the exact product rule. Checked with the rest.
        validate: Check the above. It reads the values, which makes a GPU wait; layers switch it off.

    Raises:
        TypeError: If the bounds are not floating tensors.
        ValueError: If shapes, dtypes or devices differ, a bound is NaN, `lo > hi`, `middle` lies outside, or
            `nonneg` is untrue.

    Examples:
        >>> box = IntervalTensor(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 1.5]))
        >>> box.mid, box.rad
        (tensor([1.0000, 1.2500]), tensor([1.0000, 0.2500]))
        >>> box.contains(torch.tensor([1.0, 3.0]))
        tensor([ True, False])
    """

    lo: Tensor
    hi: Tensor
    middle: Tensor | None = None
    nonneg: bool = False
    validate: InitVar[bool] = True

    def __post_init__(self, validate: bool) -> None:
        if not validate:
            return
        for name in ("lo", "hi", "middle"):
            self._check_bound(name)
        # Relative to each bound; an infinite one gives no tolerance.
        tolerance = 8 * torch.finfo(self.lo.dtype).eps * self.magnitude.nan_to_num(posinf=0.0)
        if (self.lo > self.hi + tolerance).any():
            excess = (self.lo - self.hi).max().item()
            raise ValueError(f"lo must not exceed hi, but does so by up to {excess:.3g}")
        lo, hi = torch.minimum(self.lo, self.hi), torch.maximum(self.lo, self.hi)
        if self.middle is not None:
            if ((self.middle < lo - tolerance) | (self.middle > hi + tolerance)).any():
                raise ValueError("middle must lie between lo and hi")
            object.__setattr__(self, "middle", self.middle.clamp(lo, hi))
        if self.nonneg and (lo < 0).any():
            raise ValueError(f"nonneg=True needs lo >= 0, but its minimum is {lo.min().item():.3g}")
        if self.lo is not self.hi:
            object.__setattr__(self, "lo", lo)
            object.__setattr__(self, "hi", hi)

    def _check_bound(self, name: str) -> None:
        value = getattr(self, name)
        if value is None and name == "middle":
            return
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name} must be a floating-point tensor, got {got}")
        if value.shape != self.lo.shape:
            raise ValueError(
                f"{name} must have the shape of lo, {tuple(self.lo.shape)}, got {tuple(value.shape)}"
            )
        if value.dtype != self.lo.dtype or value.device != self.lo.device:
            raise ValueError(
                f"{name} must have the dtype and device of lo, {self.lo.dtype} on {self.lo.device}, "
                f"got {value.dtype} on {value.device}"
            )
        if value.isnan().any():
            raise ValueError(f"{name} must not hold NaN")

    @classmethod
    def point(cls, x: Tensor) -> IntervalTensor:
        """Return the box that holds `x` alone; layers recognise it and do less work.

        Raises:
            TypeError: If `x` is not a floating tensor.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"x must be a floating-point tensor, got {got}")
        return cls(x, x, validate=False)

    @classmethod
    def from_mid_rad(cls, mid: Tensor, rad: Tensor) -> IntervalTensor:
        """Return the box `[mid - rad, mid + rad]`.

        Args:
            mid: Centres, any shape.
            rad: Radii, broadcastable to `mid`.

        Returns:
            The box, of the shape of `mid`.

        Raises:
            ValueError: If a radius is negative.
        """
        if (rad < 0).any():
            raise ValueError(f"rad must be >= 0, its minimum is {rad.min().item():.3g}")
        return cls(mid - rad, mid + rad)

    @property
    def is_point(self) -> bool:
        """Whether the box is known, without looking at its values, to hold one point."""
        return self.lo is self.hi

    @property
    def center(self) -> Tensor:
        """The midpoint `(lo + hi) / 2`."""
        return self.lo if self.is_point else (self.lo + self.hi) * 0.5

    @property
    def mid(self) -> Tensor:
        """The member carried along; the midpoint if there is none."""
        return self.center if self.middle is None else self.middle

    @property
    def rad(self) -> Tensor:
        """The radius `(hi - lo) / 2`."""
        return torch.zeros_like(self.lo) if self.is_point else (self.hi - self.lo) * 0.5

    @property
    def magnitude(self) -> Tensor:
        """The largest absolute value in the box, elementwise."""
        return torch.maximum(self.lo.abs(), self.hi.abs())

    @property
    def shape(self) -> torch.Size:
        """The shape of the bounds."""
        return self.lo.shape

    def contains(self, x: Tensor) -> Tensor:
        """Return, elementwise, whether `x` lies between the bounds."""
        return (self.lo <= x) & (x <= self.hi)

    def intersect(self, other: IntervalTensor) -> IntervalTensor:
        """Return the box of the points in both.

        Raises:
            ValueError: If there are none.
        """
        lo, hi = torch.maximum(self.lo, other.lo), torch.minimum(self.hi, other.hi)
        if (lo > hi).any():
            raise ValueError(f"the boxes are disjoint in {int((lo > hi).sum())} of {lo.numel()} coordinates")
        return IntervalTensor(lo, hi, nonneg=self.nonneg or other.nonneg, validate=False)

    def __getitem__(self, index: Any) -> IntervalTensor:
        """Return the box of the chosen elements, such as the logits of a task's classes, `out[:, 2:4]`.

        Examples:
            >>> box = IntervalTensor(torch.zeros(3), torch.ones(3))
            >>> box[1:].shape
            torch.Size([2])
        """
        return self._map(lambda value: value[index])

    def detach(self) -> IntervalTensor:
        """Return the box without its history of gradients."""
        return self._map(Tensor.detach)

    def to(self, *args: Any, **kwargs: Any) -> IntervalTensor:
        """Return the box on another device or in another dtype, with the arguments of `torch.Tensor.to`.

        A bound that a narrower dtype would round into the box is moved outwards by a unit in the last place:
        the result holds every point of the box.

        Examples:
            >>> third = IntervalTensor.point(torch.tensor(1 / 3, dtype=torch.float64))
            >>> box = third.to(torch.float32)
            >>> box.contains(third.lo).item()
            True
        """
        moved = self._map(lambda value: value.to(*args, **kwargs))
        if not moved.lo.is_floating_point():
            raise TypeError(f"dtype must be a floating dtype, got {moved.lo.dtype}")
        wide = torch.promote_types(self.lo.dtype, moved.lo.dtype)  # both dtypes' values are exact in it
        if moved.lo.dtype == wide:
            return moved
        device = moved.lo.device
        lo = _one_unit_lower(moved.lo, moved.lo.to(wide) > self.lo.to(device, wide))
        hi = -_one_unit_lower(-moved.hi, moved.hi.to(wide) < self.hi.to(device, wide))
        lo = lo.clamp(min=0) if self.nonneg else lo
        middle = moved.mid if self.is_point else moved.middle
        return IntervalTensor(lo, hi, middle, nonneg=self.nonneg, validate=False)

    def _map(self, function: Callable[[Tensor], Tensor]) -> IntervalTensor:
        """Do the same to both bounds and the member; a point stays one."""
        lo = function(self.lo)
        hi = lo if self.is_point else function(self.hi)
        middle = None if self.middle is None else function(self.middle)
        return IntervalTensor(lo, hi, middle, nonneg=self.nonneg, validate=False)


def _one_unit_lower(bound: Tensor, where: Tensor) -> Tensor:
    """Lower a bound by a unit in its last place; one that has overflowed comes back to the largest number."""
    limits = torch.finfo(bound.dtype)
    finite = bound.clamp(max=limits.max)
    return torch.where(where, finite - (finite.abs() * limits.eps + limits.tiny), bound)
