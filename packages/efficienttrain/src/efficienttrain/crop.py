"""Low-frequency cropping: a smaller image that holds the low frequencies of a larger one, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from efficienttrain._checks import checked_choice, checked_pair
from efficienttrain.operators import axis_operator, crop_by_fourier, crop_by_products

MODES = ("gemm", "fft", "resize")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_Operator = Callable[[int, int, Tensor], Tensor]


def low_freq_crop(
    x: Tensor,
    size: int | tuple[int, int],
    *,
    mode: str = "gemm",
    round_band: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    r"""Crop the spectrum of images to its lowest frequencies, which makes the images smaller.

    With F the two-dimensional Fourier transform of an image of H x W, B = (h, w) the new size and b = B / 2, this is
    $y = \frac{hw}{HW}\,\mathrm{Re}\,\mathcal F^{-1}\left(F_{k,l}\right)$ with $-b_h \le k < b_h$ and
    $-b_w \le l < b_w$ (EfficientTrain, section 4.1, low-frequency cropping). The factor keeps the mean intensity.
    Nothing is approximated: `"gemm"` and `"fft"` differ by rounding only.

    Call it on normalised images, after augmentation and before mixup or cutmix. It is differentiable. In a loop,
    `LowFreqCrop` keeps the matrices that this function builds anew. In float32 a GPU follows
    `torch.set_float32_matmul_precision`; autocast has no effect.

    Args:
        x: Images of shape (..., H, W) with at least one dimension before; floating point, or uint8, which comes
            back rounded and clamped to 0..255. float16, bfloat16 and uint8 are computed in float32.
        size: New side, even and at most the old one; a pair (height, width) where the sides differ. A side that
            keeps its length may be odd.
        mode: `"gemm"` is two matrix products; `"fft"` is real Fourier transforms; `"resize"` is what
            EfficientTrain++ put in its place, a resize with antialias (there Lanczos, here bicubic).
        round_band: Take an odd size down to the even one below, as the official code does, rather than refuse it.
        out: Where to write the result.

    Returns:
        Images of shape (..., h, w) in the dtype and memory format of `x`; `x` itself where both sides stay.

    Raises:
        TypeError: If `x` is no tensor of such a dtype or `size` is no integer.
        ValueError: If the shape of `x`, `size`, `mode` or `out` is not as above.

    Examples:
        >>> import torch
        >>> row = torch.arange(224.0).div(224).mul(2 * torch.pi).cos()
        >>> images = row.expand(2, 3, 224, 224)
        >>> small = low_freq_crop(images, 160)
        >>> small.shape
        torch.Size([2, 3, 160, 160])
        >>> coarse = torch.arange(160.0).div(160).mul(2 * torch.pi).cos()  # the same wave, sampled at 160 points
        >>> torch.allclose(small, coarse.expand_as(small), atol=1e-4)
        True
        >>> low_freq_crop(torch.ones(1, 3, 30, 41), (20, 28)).mean().round(decimals=4)
        tensor(1.)
    """
    return _crop(x, size, mode, round_band, out, _built)


class LowFreqCrop(nn.Module):
    """`low_freq_crop` as a module that keeps its small matrices, one for each pair of old and new length.

    They are no buffers: casting the module to half precision must not round them, and no checkpoint needs them.
    They are kept for each dtype and device at the first call. A compiled module builds what is missing inside of
    its graph at every call; `prepare` spares that.

    Args:
        size: See `low_freq_crop`.
        mode: See `low_freq_crop`.
        round_band: See `low_freq_crop`.

    Raises:
        TypeError: If `size` is no integer or pair of integers.
        ValueError: If `size` is below 2, or `mode` is unknown.

    Examples:
        >>> import torch
        >>> crop = LowFreqCrop(96)
        >>> crop(torch.zeros(8, 3, 224, 224)).shape
        torch.Size([8, 3, 96, 96])
        >>> crop.set_size(160)
        LowFreqCrop(size=(160, 160), mode='gemm')
    """

    def __init__(self, size: int | tuple[int, int], mode: str = "gemm", *, round_band: bool = False) -> None:
        super().__init__()
        self.mode = checked_choice("mode", mode, MODES)
        self.round_band = round_band
        self._operators: dict[tuple[int, int, str], Tensor] = {}
        self.set_size(size)

    def set_size(self, size: int | tuple[int, int]) -> LowFreqCrop:
        """Change the new size; return the module.

        Args:
            size: See `low_freq_crop`.

        Raises:
            TypeError: If `size` is no integer or pair of integers.
            ValueError: If `size` is below 2.
        """
        self._square = not isinstance(size, (tuple, list))
        self.size = checked_pair("size", size, least=2)
        return self

    def prepare(
        self,
        input_size: int | tuple[int, int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> LowFreqCrop:
        """Build the matrices for images of `input_size`; return the module.

        Args:
            input_size: Side of the images to come, or (height, width).
            dtype: What will be computed in: float64 for such images, else float32.
            device: Where.

        Raises:
            TypeError: If `input_size` is no integer or pair of integers.
            ValueError: If `size` does not fit it.
        """
        height, width = checked_pair("input_size", input_size, least=2)
        like = torch.empty((1, height, width), dtype=dtype, device=device)
        h, w = _new_size(like, self._wanted, self.round_band)
        self._kept(height, h, like), self._kept(width, w, like)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Crop images of shape (..., H, W) to (..., h, w)."""
        return _crop(x, self._wanted, self.mode, self.round_band, None, self._kept)

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return f"size={self.size}, mode={self.mode!r}"

    @property
    def _wanted(self) -> int | tuple[int, int]:
        return self.size[0] if self._square else self.size

    def _kept(self, length: int, size: int, like: Tensor) -> Tensor:
        key = (length, size, f"{like.dtype} on {like.device}")
        if key in self._operators:
            return self._operators[key]
        operator = _built(length, size, like)
        if not torch.compiler.is_compiling() and not operator.is_inference():
            self._operators[key] = operator
        return operator


def _crop(
    x: Tensor,
    size: Any,
    mode: str,
    round_band: bool,
    out: Tensor | None,
    operator: _Operator,
) -> Tensor:
    _check_images(x)
    checked_choice("mode", mode, MODES)
    new = _new_size(x, size, round_band)
    if out is not None:
        _check_out(out, x, new)
    y = x if new == x.shape[-2:] else _converted(x, new, mode, operator)
    return y if out is None else out.copy_(y)


def _converted(x: Tensor, new: tuple[int, int], mode: str, operator: _Operator) -> Tensor:
    """Compute in float32 or float64, outside of autocast; give back dtype and memory format."""
    exact = x if x.dtype in (torch.float32, torch.float64) else x.float()
    if torch.is_autocast_enabled(x.device.type):
        with torch.autocast(x.device.type, enabled=False):
            y = _computed(exact, new, mode, operator)
    else:  # no region where none is needed: older exporters know none
        y = _computed(exact, new, mode, operator)
    if x.dtype == torch.uint8:
        y = y.round().clamp(0, 255)
    channels_last = (
        x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    )
    return y.to(x.dtype).contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )


def _computed(x: Tensor, new: tuple[int, int], mode: str, operator: _Operator) -> Tensor:
    if mode == "resize":
        return _resized(x, new)
    rows, columns = (operator(x.shape[axis - 2], new[axis], x) for axis in (0, 1))
    crop = crop_by_products if mode == "gemm" else crop_by_fourier
    return crop(x.contiguous(), rows, columns)


def _resized(x: Tensor, new: tuple[int, int]) -> Tensor:
    images = x if x.dim() == 4 else x.reshape(-1, 1, *x.shape[-2:])
    y = interpolate(images, new, mode="bicubic", antialias=True)
    return y if x.dim() == 4 else y.reshape(*x.shape[:-2], *new)


def _built(length: int, size: int, like: Tensor) -> Tensor:
    # On the CPU first: some accelerators have no float64.
    return axis_operator(length, size).to(like.dtype).to(like.device)


def _check_images(x: Any) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor of images, got {type(x).__name__}")
    if x.dtype not in _FLOATS and x.dtype != torch.uint8:
        raise TypeError(f"x must be floating point or uint8, got {x.dtype}")
    if x.dim() < 3:
        raise ValueError(f"x must have shape (..., channels, height, width), got {tuple(x.shape)}")


def _new_size(x: Tensor, size: Any, round_band: bool) -> tuple[int, int]:
    height, width = x.shape[-2:]
    if height != width and not isinstance(size, (tuple, list)):
        raise ValueError(
            f"size must be a pair (height, width) for images of unequal sides, {height} x {width}, got {size!r}"
        )
    h, w = checked_pair("size", size, least=2)
    if h > height or w > width:
        raise ValueError(f"size must be at most that of the images, {height} x {width}, got {size!r}")
    if round_band:
        h, w = (new if new == old else new // 2 * 2 for new, old in ((h, height), (w, width)))
    if (h % 2 and h != height) or (w % 2 and w != width):
        raise ValueError(f"size must be even, got {size!r}; round_band=True takes it to the even one below")
    return h, w


def _check_out(out: Any, x: Tensor, new: tuple[int, int]) -> None:
    shape = (*x.shape[:-2], *new)
    if not isinstance(out, Tensor) or out.shape != shape or out.dtype != x.dtype or out.device != x.device:
        found = (
            f"{tuple(out.shape)}, {out.dtype} on {out.device}"
            if isinstance(out, Tensor)
            else type(out).__name__
        )
        raise ValueError(f"out must be a tensor of {shape}, {x.dtype} on {x.device}, got {found}")
