"""Interval tensors and the layers that are sound on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import InitVar, dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
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
        ValueError: If shapes differ, a bound is NaN, `lo > hi`, `middle` lies outside, or `nonneg` is untrue.

    Example:
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
        for name, value in (("lo", self.lo), ("hi", self.hi), ("middle", self.middle)):
            if value is None and name == "middle":
                continue
            if not isinstance(value, Tensor) or not value.is_floating_point():
                got = value.dtype if isinstance(value, Tensor) else type(value).__name__
                raise TypeError(f"{name} must be a floating-point tensor, got {got}")
            if value.shape != self.lo.shape:
                raise ValueError(
                    f"{name} must have the shape of lo, {tuple(self.lo.shape)}, got {tuple(value.shape)}"
                )
            if value.isnan().any():
                raise ValueError(f"{name} must not hold NaN")
        tolerance = 8 * torch.finfo(self.lo.dtype).eps * self.magnitude
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

    @classmethod
    def point(cls, x: Tensor) -> IntervalTensor:
        """Return the box that holds `x` alone; layers recognise it and do less work.

        Raises:
            TypeError: If `x` is not a floating tensor.
        """
        if not x.is_floating_point():
            raise TypeError(f"x must be a floating-point tensor, got {x.dtype}")
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


def interval_linear(
    x: IntervalTensor,
    weight: IntervalTensor,
    bias: IntervalTensor | None = None,
    *,
    nonneg: bool | Literal["auto"] = "auto",
    outward: bool = False,
) -> IntervalTensor:
    r"""Bound `x W^T + b` over every input, weight and bias in their boxes.

    For inputs `x >= 0` the bounds are exact (arXiv 2405.15444, section 3):

    $$lo = x_{lo} W_{lo}^+ + x_{hi} W_{lo}^- + b_{lo}, \quad hi = x_{hi} W_{hi}^+ + x_{lo} W_{hi}^- + b_{hi}$$

    computed in the equal form `x_c W_lo - x_r |W_lo|` and `x_c W_hi + x_r |W_hi|`, which splits no weights.
    For inputs of any sign it is midpoint-radius arithmetic, at most 1.5 times wider (Rump 1999):

    $$c = x_c W_c + b_c, \quad r = |x_c| W_r + x_r (|W_c| + W_r) + b_r.$$

    For a single input point the two agree and cost two products.

    Args:
        x: Input box, (..., in_features).
        weight: Weight box, (out_features, in_features).
        bias: Bias box, (out_features,).
        nonneg: `True` for the exact rule (checks that `x.lo >= 0`), `False` for the rule of any sign, `"auto"`
            for the exact rule where `x` is known to be non-negative (`x.nonneg`, as after a ReLU).
        outward: Widen the bounds by a proven limit of the rounding errors, so that they also hold for what
            the ordinary layer *computes* in the same dtype, and not in exact arithmetic only. It covers
            sums of products in any order, in float32 or float64; not TF32, nor Winograd or FFT convolutions.

    Returns:
        The output box, (..., out_features); its `middle` is the ordinary layer at the middles.

    Raises:
        ValueError: If the shapes do not fit, or `nonneg=True` and an input is negative.
        TypeError: If `outward` and the dtype is neither float32 nor float64.

    Example:
        >>> x = IntervalTensor.point(torch.tensor([1.0, 2.0]))
        >>> weight = IntervalTensor(torch.tensor([[-1.0, 0.0]]), torch.tensor([[1.0, 2.0]]))
        >>> bias = IntervalTensor(torch.tensor([0.0]), torch.tensor([0.5]))
        >>> out = interval_linear(x, weight, bias)
        >>> out.lo.item(), out.mid.item(), out.hi.item()
        (-1.0, 2.25, 5.5)
    """
    if weight.lo.dim() != 2 or x.shape[-1:] != weight.shape[1:]:
        raise ValueError(
            f"weight must be (out_features, in_features={x.shape[-1]}), got {tuple(weight.shape)}"
        )
    _check_bias(bias, weight)
    return _affine(F.linear, x, weight, bias, _exact_rule(x, nonneg), outward)


def interval_conv2d(
    x: IntervalTensor,
    weight: IntervalTensor,
    bias: IntervalTensor | None = None,
    *,
    stride: int | tuple[int, ...] = 1,
    padding: int | str | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    nonneg: bool | Literal["auto"] = "auto",
    outward: bool = False,
) -> IntervalTensor:
    """Bound a 2-D convolution over every input, weight and bias in their boxes.

    The rules are those of `interval_linear`, with the convolution as the product.

    Args:
        x: Input box, (batch, in_channels, height, width).
        weight: Weight box, (out_channels, in_channels / groups, kernel_height, kernel_width).
        bias: Bias box, (out_channels,).
        stride: As in `torch.nn.functional.conv2d`.
        padding: As in `torch.nn.functional.conv2d`; the padding is zeros.
        dilation: As in `torch.nn.functional.conv2d`.
        groups: As in `torch.nn.functional.conv2d`.
        nonneg: As in `interval_linear`.
        outward: As in `interval_linear`.

    Returns:
        The output box, (batch, out_channels, out_height, out_width).

    Raises:
        ValueError: If the shapes do not fit, or `nonneg=True` and an input is negative.
        TypeError: If `outward` and the dtype is neither float32 nor float64.

    Example:
        >>> image = IntervalTensor(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2), nonneg=True)
        >>> kernel = IntervalTensor(-torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
        >>> out = interval_conv2d(image, kernel)
        >>> out.lo.item(), out.hi.item()
        (-4.0, 4.0)
    """
    if weight.lo.dim() != 4 or x.lo.dim() not in (3, 4) or x.shape[-3] != weight.shape[1] * groups:
        raise ValueError(
            f"weight must be (out_channels, in_channels / groups, height, width) for an input of shape "
            f"{tuple(x.shape)} and groups={groups}, got {tuple(weight.shape)}"
        )
    _check_bias(bias, weight)
    convolve = partial(F.conv2d, stride=stride, padding=padding, dilation=dilation, groups=groups)
    if bias is not None:
        bias = IntervalTensor(
            bias.lo[:, None, None], bias.hi[:, None, None], bias.mid[:, None, None], validate=False
        )
    return _affine(convolve, x, weight, bias, _exact_rule(x, nonneg), outward)


def interval_apply(
    function: Callable[[Tensor], Tensor],
    x: IntervalTensor,
    *,
    nonneg: bool = False,
    outward: bool = False,
) -> IntervalTensor:
    """Bound a function that is non-decreasing in every input: `[f(lo), f(hi)]`, which is exact.

    Activations, max and average pooling, reshaping and multiplication by a dropout mask are of this kind.

    Args:
        function: Takes and returns a tensor. That it is non-decreasing is the caller's word.
        x: Input box, the shape that `function` takes.
        nonneg: The outputs are known to be non-negative.
        outward: Widen by 8 units in the last place of `1 + |f|`, for a `function` whose floating-point code
            is accurate to that but not itself monotone (exp, tanh, ...).

    Returns:
        The output box.

    Example:
        >>> box = IntervalTensor(torch.tensor([-1.0]), torch.tensor([2.0]))
        >>> out = interval_apply(torch.relu, box, nonneg=True)
        >>> out.lo.item(), out.hi.item()
        (0.0, 2.0)
    """
    lo = function(x.lo)
    hi = lo if x.is_point else function(x.hi)
    middle = None if x.is_point else function(x.mid)
    if outward:
        middle = lo if x.is_point else middle
        ulps = 8 * _unit_roundoff(lo.dtype)
        lo, hi = lo - ulps * (1 + lo.abs()), hi + ulps * (1 + hi.abs())
        lo = lo.clamp(min=0) if nonneg else lo
    return IntervalTensor(lo, hi, middle, nonneg=nonneg, validate=False)


def interval_add(x: IntervalTensor, y: IntervalTensor) -> IntervalTensor:
    """Bound `x + y`, as in a residual connection: `[x_lo + y_lo, x_hi + y_hi]`.

    Floating-point addition is monotone, so the bounds hold for computed sums as they are.

    Example:
        >>> box = IntervalTensor(torch.tensor([0.0]), torch.tensor([1.0]))
        >>> interval_add(box, box).hi
        tensor([2.])
    """
    middle = None if x.middle is None and y.middle is None else x.mid + y.mid
    nonneg = x.nonneg and y.nonneg
    return IntervalTensor(x.lo + y.lo, x.hi + y.hi, middle, nonneg=nonneg, validate=False)


def _affine(
    product: Callable[[Tensor, Tensor], Tensor],
    x: IntervalTensor,
    weight: IntervalTensor,
    bias: IntervalTensor | None,
    exact: bool,
    outward: bool,
) -> IntervalTensor:
    """Bound `product(x, weight) + bias` for any product that is linear in both."""
    center = product(x.center, weight.center) if x.is_point or not exact else None
    if x.is_point:
        radius = product(x.lo.abs(), weight.rad)
    elif not exact:
        radius = product(x.magnitude, weight.rad) + product(x.rad, weight.center.abs())
    if center is not None:
        lo, hi = center - radius, center + radius
    else:
        lo = product(x.center, weight.lo) - product(x.rad, weight.lo.abs())
        hi = product(x.center, weight.hi) + product(x.rad, weight.hi.abs())
    # Two products agree when both middles are the midpoints.
    middle = center if center is not None and x.middle is None and weight.middle is None else None
    if middle is None:
        middle = product(x.mid, weight.mid)
    if bias is not None:
        lo, hi, middle = lo + bias.lo, hi + bias.hi, middle + bias.mid
    if outward:
        slack = _rounding_limit(product, x, weight, bias)
        lo, hi = lo - slack, hi + slack
    # Rounding must not leave the middle outside of a box of zero width.
    return IntervalTensor(torch.minimum(lo, middle), torch.maximum(hi, middle), middle, validate=False)


def _rounding_limit(
    product: Callable[[Tensor, Tensor], Tensor],
    x: IntervalTensor,
    weight: IntervalTensor,
    bias: IntervalTensor | None,
) -> Tensor:
    """Limit of the rounding errors of a computed bound and of a computed member together.

    A sum of k products has an error of at most gamma_k sum |x||w| in any order (Higham 2002, section 3.1).
    A bound takes two such sums and a few roundings more, a member one.
    """
    size = product(x.magnitude, weight.magnitude)
    if bias is not None:
        size = size + bias.magnitude
    terms = weight.lo[0].numel()
    return rounding_factor(terms, size.dtype) * size + 4 * terms * torch.finfo(size.dtype).tiny


def rounding_factor(terms: int, dtype: torch.dtype) -> float:
    """Return the error of a bound and a member relative to `sum |x||w|`, for `terms` products."""
    error = (2 * terms + 16) * _unit_roundoff(dtype)
    if error > 0.1:
        raise ValueError(f"outward=True cannot bound sums of {terms} products in {dtype}; use float64")
    # 2 for the two errors; the rest for the rounding of this very product.
    return 2.5 * error / (1 - error)


def _unit_roundoff(dtype: torch.dtype) -> float:
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"outward=True needs float32 or float64, got {dtype}")
    return torch.finfo(dtype).eps / 2


def _exact_rule(x: IntervalTensor, nonneg: bool | str) -> bool:
    if nonneg == "auto":
        return x.nonneg
    if nonneg is True and not x.nonneg and (x.lo < 0).any():
        raise ValueError(f"nonneg=True needs x >= 0, but x.lo has minimum {x.lo.min().item():.3g}")
    if not isinstance(nonneg, bool):
        raise ValueError(f"nonneg must be True, False or 'auto', got {nonneg!r}")
    return nonneg


def _check_bias(bias: IntervalTensor | None, weight: IntervalTensor) -> None:
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape {tuple(weight.shape[:1])}, got {tuple(bias.shape)}")
