"""Boxes: the axis-aligned sets that interval bound propagation pushes through a network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Scale = float | Sequence[float] | Tensor


class Box:
    """All points between two tensors, element by element.

    The box can be read as bounds or as centre and radius; the form that was not given is computed when
    it is first asked for, and kept.

    Args:
        lower: Lower bounds, any shape, floating point.
        upper: Upper bounds, same shape, dtype and device as `lower`.

    Raises:
        TypeError: If the bounds are not floating-point tensors of one dtype.
        ValueError: If the shapes differ, or `lower > upper`, infinite or NaN anywhere.

    Examples:
        >>> box = Box(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 1.0]))
        >>> box.center, box.radius
        (tensor([1., 1.]), tensor([1., 0.]))
    """

    __slots__ = ("_center", "_lower", "_radius", "_upper")

    def __init__(self, lower: Tensor, upper: Tensor) -> None:
        if not (isinstance(lower, Tensor) and isinstance(upper, Tensor)):
            raise TypeError(
                f"lower and upper must be tensors, got {type(lower).__name__} and {type(upper).__name__}"
            )
        if not lower.is_floating_point() or lower.dtype != upper.dtype:
            raise TypeError(
                f"lower and upper must share one floating dtype, got {lower.dtype} and {upper.dtype}"
            )
        if lower.shape != upper.shape:
            raise ValueError(
                f"lower and upper must have one shape, got {tuple(lower.shape)} and {tuple(upper.shape)}"
            )
        if not bool(((lower <= upper) & lower.isfinite() & upper.isfinite()).all()):
            raise ValueError("lower must be <= upper everywhere and hold no NaN, and both must be finite")
        self._lower: Tensor | None = lower
        self._upper: Tensor | None = upper
        self._center: Tensor | None = None
        self._radius: Tensor | None = None

    @classmethod
    def around(cls, center: Tensor, radius: Tensor) -> Box:
        """The box `center ± radius`, unchecked: for rules, whose radii are non-negative by construction."""
        box = cls.__new__(cls)
        box._lower = box._upper = None
        box._center, box._radius = center, radius
        return box

    @classmethod
    def between(cls, lower: Tensor, upper: Tensor) -> Box:
        """The box from `lower` to `upper`, unchecked: for rules, which keep the order by construction."""
        box = cls.__new__(cls)
        box._lower, box._upper = lower, upper
        box._center = box._radius = None
        return box

    @property
    def lower(self) -> Tensor:
        """Lower bounds."""
        if self._lower is None:
            self._lower = self.center - self.radius
        return self._lower

    @property
    def upper(self) -> Tensor:
        """Upper bounds."""
        if self._upper is None:
            self._upper = self.center + self.radius
        return self._upper

    @property
    def center(self) -> Tensor:
        """Midpoints `(lower + upper) / 2`."""
        if self._center is None:
            self._center = torch.lerp(self.lower, self.upper, 0.5)
        return self._center

    @property
    def radius(self) -> Tensor:
        """Half widths `(upper - lower) / 2`."""
        if self._radius is None:
            # Not (upper - lower) / 2: one operation less, and exact where lower is 0, as after a ReLU.
            self._radius = self.upper - self.center
        return self._radius

    @property
    def shape(self) -> torch.Size:
        """Shape of the bounds."""
        known = self._lower if self._lower is not None else self.center
        return known.shape

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the bounds."""
        known = self._lower if self._lower is not None else self.center
        return known.dtype

    def widened(self, steps: float) -> Box:
        """The box enlarged by `steps` units of rounding of its largest magnitude, element by element."""
        kind = torch.finfo(self.dtype)
        unit = kind.eps / 2
        magnitude = self.center.abs() + self.radius
        # gamma_n = n u / (1 - n u) bounds n roundings in any order; the last factor covers this sum itself.
        gamma = steps * unit / (1 - steps * unit)
        return Box.around(self.center, (self.radius + gamma * magnitude + kind.tiny) * (1 + 4 * unit))

    def __repr__(self) -> str:
        return f"Box(shape={tuple(self.shape)}, dtype={self.dtype})"


def linf_box(
    x: Tensor,
    eps: Scale,
    low: Scale | None = 0.0,
    high: Scale | None = 1.0,
    mean: Scale | None = None,
    std: Scale | None = None,
) -> Box:
    r"""All valid inputs that differ from `x` by at most `eps` in every element.

    `lower = max(x - eps, low)` and `upper = min(x + eps, high)`, as in the paper's code. When `x` was
    normalised by `(pixel - mean) / std`, give both: `eps`, `low` and `high` stay in units of pixels, and
    the box comes out in the units of `x`.

    Args:
        x: Inputs, shape (N, C, ...) or (N, features).
        eps: Radius in pixel units, `>= 0`; a number, or one per channel (dimension 1 of `x`).
        low: Smallest valid pixel, a number or one per channel; None for no limit.
        high: Largest valid pixel, likewise.
        mean: Mean that was subtracted from the pixels, a number or one per channel.
        std: Standard deviation the pixels were divided by, `> 0`.

    Returns:
        The box, with the shape, dtype and device of `x`.

    Raises:
        TypeError: If `x` is not a floating-point tensor, or `eps` or another value no number.
        ValueError: If `eps < 0`, `std <= 0`, a per-channel value does not fit, or `x` is NaN or outside
            of `[low, high]` by more than `eps`.

    Examples:
        >>> box = linf_box(torch.tensor([[0.0, 0.5]]), eps=0.1)
        >>> box.lower, box.upper
        (tensor([[0.0000, 0.4000]]), tensor([[0.1000, 0.6000]]))
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(
            f"x must be a floating-point tensor, got {x.dtype if isinstance(x, Tensor) else type(x)}"
        )
    if not bool((_tensor("eps", eps) >= 0).all()):
        raise ValueError(f"eps must be >= 0, got {eps}")
    if (low is None or high is None) and not bool(_tensor("eps", eps).isfinite().all()):
        raise ValueError(f"eps must be finite where low or high sets no limit, got {eps}")
    if std is not None and not bool((_tensor("std", std) > 0).all()):
        raise ValueError(f"std must be > 0, got {std}")
    radius, center = _per_channel("eps", eps, x), _per_channel("mean", 0.0 if mean is None else mean, x)
    scale = _per_channel("std", 1.0 if std is None else std, x)
    lower, upper = x - radius / scale, x + radius / scale
    if low is not None:
        lower = torch.maximum(lower, (_per_channel("low", low, x) - center) / scale)
    if high is not None:
        upper = torch.minimum(upper, (_per_channel("high", high, x) - center) / scale)
    # Another order of the same normalisation leaves x outside by some roundings, which a small eps does not cover.
    slack = 8 * torch.finfo(x.dtype).eps * (lower.abs() + upper.abs() + (center / scale).abs())
    if not bool((lower <= upper + slack).all()):
        raise ValueError(
            f"x must hold no NaN and lie in [low, high] = [{low}, {high}] (after undoing mean and std)"
        )
    return Box.between(torch.minimum(lower, upper), torch.maximum(lower, upper))


def _per_channel(name: str, value: Scale, x: Tensor) -> Tensor:
    """A number as a 0-d tensor, one number per channel as a tensor that broadcasts along dimension 1."""
    tensor = _tensor(name, value).to(x.device, x.dtype)
    if tensor.ndim == 0 or tensor.shape == x.shape:
        return tensor
    if tensor.ndim != 1 or x.ndim < 2 or tensor.shape[0] != x.shape[1]:
        raise ValueError(
            f"{name} must be a number or one per channel of x {tuple(x.shape)}, got shape {tuple(tensor.shape)}"
        )
    return tensor.view(1, -1, *[1] * (x.ndim - 2))


def _tensor(name: str, value: Scale) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a number or one per channel, got {value!r}") from error
