"""Images in [0, 1]: the augmentation of the test batch, and corruptions to try adaptation on."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, affine_grid, grid_sample, interpolate, pad

Range = tuple[float, float]

_GRAY = (0.2989, 0.587, 0.114)  # ITU-R 601 luma, as image libraries round it
_BLUR_RADIUS = 2


@dataclass
class TestTimeAugment:
    """The paper's strong augmentation of a test batch, in torch alone and for the whole batch at once.

    Colour jitter in random order (brightness, contrast, saturation, hue, gamma), rotation, translation and
    scaling beyond whose border the edge is repeated, Gaussian blur, horizontal flip, Gaussian noise; everything
    is clipped to [0, 1] (as in CoTTA, Wang et al. 2022, and the official code of arXiv 2211.13081). One
    resampling does what padding by half the image, transforming and cropping does, at a quarter of the pixels.

    Args:
        brightness: Range of the factor.
        contrast: Range of the factor.
        saturation: Range of the factor (three channels only).
        hue: Range of the shift, in turns (three channels only).
        gamma: Range of the exponent.
        degrees: Rotations are drawn from plus or minus this.
        translate: Shifts are drawn from plus or minus this fraction of the side. (1/16 of an image padded to
            twice its side, as in the official code, is 1/8.)
        scale: Range of the scale.
        blur_sigma: Range of the blur's standard deviation in pixels; the kernel is 5 x 5.
        flip_probability: Of a horizontal flip. Set it to 0 where left and right matter, as in text.
        noise_std: Standard deviation of the noise.
        per_sample: Draw parameters for each image rather than once for the batch, as the official code does.
            The order of the colour operations is always drawn once.
        generator: Randomness of all draws; torch's global one if None.
        mean: Mean of each channel, or of all, that the images were normalised by; None if they are in [0, 1].
        std: The same of the standard deviation: images are taken as (image in [0, 1] - mean) / std, and come back so.

    Raises:
        ValueError: On a range that is not increasing, or a parameter out of its bounds.

    Examples:
        >>> augment = TestTimeAugment(per_sample=True, generator=torch.Generator().manual_seed(0))
        >>> augmented = augment(torch.rand(8, 3, 16, 16))
        >>> augmented.shape, bool((augmented >= 0).all() and (augmented <= 1).all())
        (torch.Size([8, 3, 16, 16]), True)
    """

    __test__ = False  # the name would make pytest collect it

    brightness: Range = (0.6, 1.4)
    contrast: Range = (0.7, 1.3)
    saturation: Range = (0.5, 1.5)
    hue: Range = (-0.06, 0.06)
    gamma: Range = (0.7, 1.3)
    degrees: float = 15.0
    translate: float = 1 / 8
    scale: Range = (0.9, 1.1)
    blur_sigma: Range = (0.001, 0.5)
    flip_probability: float = 0.5
    noise_std: float = 0.005
    per_sample: bool = False
    generator: torch.Generator | None = None
    mean: float | Sequence[float] | None = None
    std: float | Sequence[float] | None = None

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation", "gamma", "scale", "blur_sigma", "hue"):
            low, high = getattr(self, name)
            lowest = -0.5 if name == "hue" else 0.0
            positive = name in ("gamma", "scale", "blur_sigma")
            if not (lowest <= low <= high) or (positive and low == 0) or (name == "hue" and high > 0.5):
                bounds = "in [-0.5, 0.5]" if name == "hue" else "positive" if positive else "non-negative"
                raise ValueError(f"{name} must be an increasing range, {bounds}, got {(low, high)}")
        for name in ("degrees", "translate", "noise_std"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be non-negative, got {getattr(self, name)}")
        if not 0 <= self.flip_probability <= 1:
            raise ValueError(f"flip_probability must be in [0, 1], got {self.flip_probability}")
        _check_normalisation(self.mean, self.std)
        self._range_checked = False

    def __call__(self, images: Tensor) -> Tensor:
        """Augment a batch.

        The first batch is checked to lie in [0, 1] once normalisation is undone, with a warning if it does not:
        images that were normalised by the loader need `mean` and `std`. Half precision is computed in float32.

        Args:
            images: (N, C, H, W) floating-point images in [0, 1], or normalised by `mean` and `std`.

        Returns:
            (N, C, H, W), clipped to the range of an image; no gradients.

        Raises:
            ValueError: If the images have another number of dimensions, or of channels than `mean` or `std`.
            TypeError: If they are not floating-point.
        """
        _check_images(images)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            plain = images.to(torch.promote_types(images.dtype, torch.float32))
            if self.mean is None or self.std is None:
                return self._augment(plain).to(images.dtype)
            mean, std = _per_channel("mean", self.mean, plain), _per_channel("std", self.std, plain)
            return ((self._augment(plain * std + mean) - mean) / std).to(images.dtype)

    def _augment(self, images: Tensor) -> Tensor:
        """Augment images in [0, 1]."""
        if not self._range_checked:
            self._range_checked = True
            if images.numel() and (float(images.min()) < -1e-2 or float(images.max()) > 1 + 1e-2):
                warnings.warn(
                    "images must be in [0, 1] for the built-in augmentation, which clips them: tell it the mean "
                    "and std they were normalised by, or normalise inside the model; "
                    f"got {float(images.min()):.3g} to {float(images.max()):.3g}",
                    stacklevel=3,
                )
        images = self._jitter_colours(images.clamp(0, 1))
        images = _blur(self._transform(images), self._draw(images, *self.blur_sigma))
        if self.noise_std > 0:
            images = images + self.noise_std * _normal(images, self.generator)
        return images.clamp(0, 1)

    def _draw(self, images: Tensor, low: float, high: float) -> Tensor:
        """Uniform numbers of shape (N, 1, 1, 1), or (1, 1, 1, 1) for the whole batch."""
        return _uniform(images, (len(images) if self.per_sample else 1, 1, 1, 1), self.generator, low, high)

    def _jitter_colours(self, images: Tensor) -> Tensor:
        steps: list[tuple[Callable[[Tensor, Tensor], Tensor], Range]] = [
            (_brightness, self.brightness),
            (_contrast, self.contrast),
            (_gamma, self.gamma),
        ]
        if images.shape[1] == 3:
            steps += [(_saturation, self.saturation), (_shift_hue, self.hue)]
        where = None if self.generator is None else self.generator.device
        for index in torch.randperm(len(steps), generator=self.generator, device=where).tolist():
            step, (low, high) = steps[index]
            images = step(images, self._draw(images, low, high))
        return images

    def _transform(self, images: Tensor) -> Tensor:
        """Rotate, scale, shift and flip, with a margin of two pixels that the blur eats."""
        height, width = images.shape[-2:]
        angle = self._draw(images, -self.degrees, self.degrees).flatten() * (math.pi / 180)
        scale = self._draw(images, *self.scale).flatten()
        shift_x, shift_y = (
            self._draw(images, -self.translate, self.translate).flatten() * 2 for _ in range(2)
        )
        # In [-1, 1] the identity is an increasing map, its mirror image a decreasing one.
        flip = (self._draw(images, 0, 1).flatten() >= self.flip_probability).to(images.dtype) * 2 - 1
        theta = _inverse_affine(angle, scale, shift_x, shift_y, width / height)
        grown = theta.new_tensor([1 + 2 * _BLUR_RADIUS / width, 1 + 2 * _BLUR_RADIUS / height, 1])
        theta = theta * grown * torch.stack([flip, *2 * [torch.ones_like(flip)]], -1)[:, None]
        size = (len(images), 1, height + 2 * _BLUR_RADIUS, width + 2 * _BLUR_RADIUS)
        return _warp(images, theta, size)


def _check_images(images: Tensor) -> None:
    if images.dim() != 4:
        raise ValueError(f"images must be (N, C, H, W), got shape {tuple(images.shape)}")
    if not images.is_floating_point():
        raise TypeError(f"images must be floating-point in [0, 1], got {images.dtype}")


def _check_normalisation(mean: float | Sequence[float] | None, std: float | Sequence[float] | None) -> None:
    if (mean is None) != (std is None):
        raise ValueError(f"mean and std must be given together, got mean={mean!r} and std={std!r}")
    if mean is None or std is None:
        return
    if not bool(torch.as_tensor(mean).isfinite().all()):
        raise ValueError(f"mean must be finite, got {mean!r}")
    if not bool(((torch.as_tensor(std) > 0) & torch.as_tensor(std).isfinite()).all()):
        raise ValueError(f"std must be positive and finite, got {std!r}")


def _per_channel(name: str, values: float | Sequence[float], images: Tensor) -> Tensor:
    """(C, 1, 1), or () for one number."""
    given = torch.as_tensor(values, dtype=images.dtype, device=images.device)
    if given.dim() > 1 or given.numel() not in (1, images.shape[1]):
        raise ValueError(
            f"{name} must be one number or one per channel, {images.shape[1]}, got {tuple(given.shape)} numbers"
        )
    return given.reshape(-1, 1, 1)


def _uniform(
    like: Tensor, shape: tuple[int, ...], generator: torch.Generator | None, low: float, high: float
) -> Tensor:
    where = like.device if generator is None else generator.device
    return (low + (high - low) * torch.rand(shape, generator=generator, device=where)).to(like)


def _normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    where = like.device if generator is None else generator.device
    return torch.randn(like.shape, generator=generator, device=where).to(like)


# --- colour ----------------------------------------------------------------------------------------


def _gray(images: Tensor) -> Tensor:
    if images.shape[1] != 3:
        return images
    red, green, blue = images.unbind(1)
    return (_GRAY[0] * red + _GRAY[1] * green + _GRAY[2] * blue).unsqueeze(1)


def _brightness(images: Tensor, factor: Tensor) -> Tensor:
    return (images * factor).clamp(0, 1)


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    mean = _gray(images).mean((1, 2, 3), keepdim=True)
    return (factor * images + (1 - factor) * mean).clamp(0, 1)


def _saturation(images: Tensor, factor: Tensor) -> Tensor:
    return (factor * images + (1 - factor) * _gray(images)).clamp(0, 1)


def _gamma(images: Tensor, exponent: Tensor) -> Tensor:
    return images.clamp(min=1e-8) ** exponent


def _shift_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue in HSV space, keeping saturation and value."""
    red, green, blue = images.unbind(1)
    high, low = images.amax(1), images.amin(1)
    chroma = high - low
    safe = torch.where(chroma > 0, chroma, 1)
    hue = torch.where(
        high == red,
        (green - blue) / safe,
        torch.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = hue + 6 * shift[:, 0]
    # f(n) = V - V S max(0, min(k, 4 - k, 1)) with k = (n + 6 H) mod 6, for n = 5, 3, 1.
    offset = hue.new_tensor([5.0, 3.0, 1.0])[:, None, None]
    k = (offset + hue.unsqueeze(1)) % 6
    return high.unsqueeze(1) - chroma.unsqueeze(1) * torch.minimum(k, 4 - k).clamp(0, 1)


# --- geometry and blur -----------------------------------------------------------------------------


def _inverse_affine(angle: Tensor, scale: Tensor, shift_x: Tensor, shift_y: Tensor, aspect: float) -> Tensor:
    """(B, 2, 3) maps from output to input coordinates in [-1, 1], of rotation, scaling, then shifting."""
    cos, sin = angle.cos() / scale, angle.sin() / scale
    first = torch.stack([cos, sin / aspect, -cos * shift_x - sin / aspect * shift_y], -1)
    second = torch.stack([-sin * aspect, cos, sin * aspect * shift_x - cos * shift_y], -1)
    return torch.stack([first, second], 1)


def _warp(images: Tensor, theta: Tensor, size: tuple[int, ...], padding: str = "border") -> Tensor:
    theta = theta.expand(len(images), -1, -1)
    grid = affine_grid(theta, list(size), align_corners=False)
    return grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=False)


def _blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Separable Gaussian over five pixels, without padding: two pixels less on every side."""
    offsets = torch.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1, device=images.device)
    weights = torch.exp(-(offsets**2) / (2 * sigma**2))  # (B, 1, 1, 5)
    weights = weights / weights.sum(-1, keepdim=True)
    return _convolve(_convolve(images, weights, -1), weights, -2)


def _convolve(images: Tensor, weights: Tensor, dim: int) -> Tensor:
    """Sum of shifted copies: with one kernel per image still a handful of whole-batch operations."""
    taps = weights.shape[-1]
    length = images.shape[dim] - taps + 1
    total = images.narrow(dim, 0, length) * weights[..., :1]
    for tap in range(1, taps):
        total = torch.addcmul(total, images.narrow(dim, tap, length), weights[..., tap : tap + 1])
    return total


# --- corruptions -----------------------------------------------------------------------------------


def corrupt(images: Tensor, kind: str, severity: int, generator: torch.Generator | None = None) -> Tensor:
    """Corrupt images, in the spirit of the common corruptions benchmark (Hendrycks & Dietterich 2019).

    A small set in torch alone, to try adaptation on images at hand; not the benchmark's own code, and its
    error rates are not comparable.

    Args:
        images: (N, C, H, W) floating-point images in [0, 1].
        kind: One of `CORRUPTIONS`.
        severity: 1 (mild) to 5.
        generator: Randomness of the noises and the fog; torch's global one if None.

    Returns:
        (N, C, H, W) in [0, 1].

    Raises:
        ValueError: If kind or severity is unknown, or the images are not (N, C, H, W).
        TypeError: If the images are not floating-point.

    Examples:
        >>> corrupt(torch.zeros(1, 1, 2, 2), "inversion", severity=5).flatten().tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    _check_images(images)
    if kind not in _CORRUPTIONS:
        raise ValueError(f"kind must be one of {sorted(_CORRUPTIONS)}, got {kind!r}")
    if severity not in (1, 2, 3, 4, 5):
        raise ValueError(f"severity must be 1, 2, 3, 4 or 5, got {severity!r}")
    function, strengths = _CORRUPTIONS[kind]
    with torch.autocast(images.device.type, enabled=False):
        # Coordinates in half precision would be wrong by whole pixels.
        plain = images.to(torch.promote_types(images.dtype, torch.float32))
        return function(plain, strengths[severity - 1], generator).clamp(0, 1).to(images.dtype)


def _gaussian_noise(images: Tensor, std: float, generator: torch.Generator | None) -> Tensor:
    return images + std * _normal(images, generator)


def _impulse_noise(images: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    shape = tuple(images.shape)
    hit = _uniform(images, shape, generator, 0, 1) < share
    value = (_uniform(images, shape, generator, 0, 1) < 0.5).to(images)
    return torch.where(hit, value, images)


def _gaussian_blur(images: Tensor, sigma: float, generator: torch.Generator | None) -> Tensor:
    sigma = sigma * images.shape[-1]
    radius = min(math.ceil(3 * sigma), min(images.shape[-2:]) - 1)
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    weights = torch.exp(-(offsets**2) / (2 * sigma**2)).to(images)
    weights = (weights / weights.sum())[None, None, None]
    grown = pad(images, [radius] * 4, mode="replicate")
    return _convolve(_convolve(grown, weights, -1), weights, -2)


def _motion_blur(images: Tensor, length: float, generator: torch.Generator | None) -> Tensor:
    """Mean along a diagonal of this length, a fraction of the side."""
    radius = max(1, round(length * images.shape[-1] / 2))
    grown = pad(images, [radius] * 4, mode="replicate")
    height, width = images.shape[-2:]
    steps = range(2 * radius + 1)
    moved = [grown[..., step : step + height, step : step + width] for step in steps]
    return torch.stack(moved).mean(0)


def _low_contrast(images: Tensor, factor: float, generator: torch.Generator | None) -> Tensor:
    mean = images.mean((1, 2, 3), keepdim=True)
    return factor * images + (1 - factor) * mean


def _fog(images: Tensor, density: float, generator: torch.Generator | None) -> Tensor:
    """Bright clouds: coarse noise over finer noise."""
    clouds = torch.zeros_like(images[:, :1])
    for cells, weight in ((2, 0.5), (4, 0.3), (8, 0.2)):
        noise = _uniform(images, (len(images), 1, cells, cells), generator, 0.4, 1.0)
        clouds = clouds + weight * interpolate(
            noise, size=images.shape[-2:], mode="bilinear", align_corners=False
        )
    return (1 - density) * images + density * clouds


def _rotation(images: Tensor, degrees: float, generator: torch.Generator | None) -> Tensor:
    one, zero = images.new_ones(1), images.new_zeros(1)
    angle = one * (degrees * math.pi / 180)
    theta = _inverse_affine(angle, one, zero, zero, images.shape[-1] / images.shape[-2])
    return _warp(images, theta, tuple(images.shape), padding="zeros")


def _shear(images: Tensor, slope: float, generator: torch.Generator | None) -> Tensor:
    theta = images.new_tensor([[[1.0, slope, 0.0], [0.0, 1.0, 0.0]]])
    return _warp(images, theta, tuple(images.shape), padding="zeros")


def _pixelate(images: Tensor, factor: float, generator: torch.Generator | None) -> Tensor:
    height, width = images.shape[-2:]
    small = adaptive_avg_pool2d(images, (max(1, round(factor * height)), max(1, round(factor * width))))
    return interpolate(small, size=(height, width), mode="nearest")


def _inversion(images: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    """Negative of the image from the left up to a share of its width."""
    width = images.shape[-1]
    inverted = torch.arange(width, device=images.device) < round(share * width)
    return torch.where(inverted, 1 - images, images)


_Corruption = Callable[[Tensor, float, torch.Generator | None], Tensor]

# kind -> function and its strength at severities 1 to 5; lengths are fractions of the side.
_CORRUPTIONS: dict[str, tuple[_Corruption, tuple[float, ...]]] = {
    "gaussian_noise": (_gaussian_noise, (0.1, 0.15, 0.2, 0.3, 0.4)),
    "impulse_noise": (_impulse_noise, (0.03, 0.06, 0.1, 0.15, 0.25)),
    "gaussian_blur": (_gaussian_blur, (0.02, 0.03, 0.04, 0.055, 0.07)),
    "motion_blur": (_motion_blur, (0.08, 0.15, 0.2, 0.28, 0.35)),
    "contrast": (_low_contrast, (0.6, 0.45, 0.35, 0.25, 0.15)),
    "fog": (_fog, (0.2, 0.3, 0.4, 0.5, 0.6)),
    "rotation": (_rotation, (6.0, 12.0, 18.0, 24.0, 30.0)),
    "shear": (_shear, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "pixelate": (_pixelate, (0.7, 0.6, 0.5, 0.4, 0.3)),
    "inversion": (_inversion, (0.2, 0.4, 0.6, 0.8, 1.0)),
}

CORRUPTIONS: tuple[str, ...] = tuple(_CORRUPTIONS)
"""What `corrupt` knows, in the order of the demo's stream."""
