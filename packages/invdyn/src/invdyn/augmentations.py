"""Augmentations of pixels whose draws can be kept, so that both frames of a pair may share them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from invdyn._checks import checked_count, checked_number
from invdyn.transitions import Batch
from invdyn.views import Observation, map_views, to_unit


class Augmentation(ABC):
    """A random change of images (B, C, H, W): first a draw for each image, then its application."""

    @abstractmethod
    def draw(self, images: Tensor, generator: torch.Generator | None = None) -> Any:
        """What `apply` needs to know, drawn for each of `images`."""

    @abstractmethod
    def apply(self, images: Tensor, drawn: Any) -> Tensor:
        """Change images of the shape that the draw was made for."""

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw and apply."""
        return self.apply(images, self.draw(images, generator))


class Compose(Augmentation):
    """Several augmentations, one after the other."""

    def __init__(self, *augmentations: Augmentation) -> None:
        self.augmentations = augmentations

    def draw(self, images: Tensor, generator: torch.Generator | None = None) -> list[Any]:
        """One draw of each."""
        return [one.draw(images, generator) for one in self.augmentations]

    def apply(self, images: Tensor, drawn: list[Any]) -> Tensor:
        """Apply all in order."""
        for one, own in zip(self.augmentations, drawn, strict=True):
            images = one.apply(images, own)
        return images


class RandomCrop(Augmentation):
    """Shift each image by up to `padding` pixels each way; edges are repeated. Bytes stay bytes.

    Args:
        padding: At least 0; the paper has 8.

    Examples:
        >>> RandomCrop(2)(torch.rand(3, 3, 16, 16)).shape
        torch.Size([3, 3, 16, 16])
    """

    def __init__(self, padding: int = 8) -> None:
        self.padding = checked_count("padding", padding, 0)

    def draw(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(B, 2) shifts in pixels, down and to the right."""
        _check_images(images)
        own = generator.device if generator is not None else images.device
        size = (len(images), 2)
        shifts = torch.randint(-self.padding, self.padding + 1, size, generator=generator, device=own)
        return shifts.to(images.device)

    def apply(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Shift by the draw."""
        height, width = images.shape[-2:]
        rows = torch.arange(height, device=images.device) + drawn[:, :1]
        columns = torch.arange(width, device=images.device) + drawn[:, 1:]
        rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
        each = torch.arange(len(images), device=images.device)[:, None, None]
        return images[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class ColorJitter(Augmentation):
    """Change brightness, contrast, saturation and hue of RGB images, and make some grey. Bytes become floats.

    Frames of a history, stacked along the channels, are changed alike.

    Args:
        brightness: Largest amount added.
        contrast: Largest relative change of the distance to the channel's mean.
        saturation: Largest relative change.
        hue: Largest turn, in whole turns.
        probability: Of changing an image's colours at all.
        grey_probability: Of making an image grey.
    """

    def __init__(
        self,
        brightness: float = 0.4,
        contrast: float = 0.4,
        saturation: float = 0.2,
        hue: float = 0.1,
        probability: float = 0.8,
        grey_probability: float = 0.2,
    ) -> None:
        self.brightness = checked_number("brightness", brightness, 0)
        self.contrast = checked_number("contrast", contrast, 0)
        self.saturation = checked_number("saturation", saturation, 0)
        self.hue = checked_number("hue", hue, 0, 0.5)
        self.probability = checked_number("probability", probability, 0, 1)
        self.grey_probability = checked_number("grey_probability", grey_probability, 0, 1)

    def draw(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(B, 6) numbers in [0, 1)."""
        _check_images(images)
        if images.shape[1] % 3:
            raise ValueError(f"images must have a multiple of 3 channels, got {images.shape[1]}")
        return _uniform((len(images), 6), images, generator)

    def apply(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Brightness, contrast, saturation and hue, grey, and back into [0, 1]."""
        images = _floats(images)
        frames = images.unflatten(1, (-1, 3))  # (B, h, 3, H, W)
        turn = (2 * drawn[:, :, None, None, None, None] - 1).to(images.dtype)
        found = frames + self.brightness * turn[:, 0]
        mean = found.mean((-2, -1), keepdim=True)
        found = mean + (1 + self.contrast * turn[:, 1]) * (found - mean)
        hue, saturation, value = _rgb_to_hsv(found)
        saturation = (saturation * (1 + self.saturation * turn[:, 2, 0])).clamp(0, 1)
        found = _hsv_to_rgb((hue + self.hue * turn[:, 3, 0]) % 1.0, saturation, value)
        found = torch.where(_where(drawn[:, 4] < self.probability), found, frames)
        weights = torch.tensor([0.2989, 0.5870, 0.1140], dtype=found.dtype, device=found.device)
        grey = (found * weights[:, None, None]).sum(2, keepdim=True).expand_as(found)
        found = torch.where(_where(drawn[:, 5] < self.grey_probability), grey, found)
        return found.clamp(0, 1).flatten(1, 2)


class GaussianBlur(Augmentation):
    """Blur each image with a standard deviation of its own; edges are repeated. Bytes become floats.

    Args:
        kernel_share: Width of the kernel, in widths of the image.
        sigma: Smallest and largest standard deviation in pixels.
    """

    def __init__(self, kernel_share: float = 0.1, sigma: tuple[float, float] = (0.1, 2.0)) -> None:
        self.kernel_share = checked_number("kernel_share", kernel_share, 0, 1, open_at="low")
        low = checked_number("sigma[0]", sigma[0], 0, open_at="low")
        self.sigma = (low, checked_number("sigma[1]", sigma[1], low))

    def draw(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(B,) standard deviations."""
        _check_images(images)
        low, high = self.sigma
        return low + (high - low) * _uniform((len(images),), images, generator)

    def apply(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Blur along columns, then along rows."""
        images = _floats(images)
        batch, channels, height, width = images.shape
        radius = math.floor(self.kernel_share * width / 2)
        offsets = torch.arange(-radius, radius + 1, device=images.device)
        kernel = (-0.5 * (offsets / drawn[:, None]) ** 2).softmax(1).to(images.dtype)
        kernel = kernel.repeat_interleave(channels, 0)[:, None, None]  # (B C, 1, 1, K)
        flat = images.reshape(1, batch * channels, height, width)
        for weight, pad in (
            (kernel.transpose(2, 3), (0, 0, radius, radius)),
            (kernel, (radius, radius, 0, 0)),
        ):
            padded = torch.nn.functional.pad(flat, pad, mode="replicate")
            flat = torch.nn.functional.conv2d(padded, weight, groups=batch * channels)
        return flat.view(batch, channels, height, width)


def augment_batch(
    batch: Batch,
    augmentation: Augmentation,
    *,
    single_aug: bool = False,
    generator: torch.Generator | None = None,
) -> Batch:
    """Augment both frames of every transition, and the goal's; of several views those that are images.

    Args:
        batch: Images are views of shape (B, C, H, W).
        augmentation: What to do.
        single_aug: Whether the frames share one draw. By default each frame has its own.
        generator: Of the draws; on any device.

    Returns:
        The batch with other frames.

    Examples:
        >>> frames = torch.rand(4, 3, 16, 16)
        >>> batch = augment_batch(Batch(frames, torch.zeros(4, 2), frames), RandomCrop(4), single_aug=True)
        >>> torch.equal(batch.obs, batch.next_obs)
        True
    """
    kept: dict[int, Any] = {}

    def change(observation: Observation | None) -> Observation | None:
        if observation is None:
            return None
        number = iter(range(1_000_000))

        def one(view: Tensor) -> Tensor:
            place = next(number)
            if view.ndim != 4:
                return view
            if not single_aug or place not in kept:
                kept[place] = augmentation.draw(view, generator)
            return augmentation.apply(view, kept[place])

        return map_views(one, observation)

    obs = change(batch.obs)
    assert obs is not None
    return batch._replace(obs=obs, next_obs=change(batch.next_obs), goal=change(batch.goal))


def _check_images(images: Tensor) -> None:
    if images.ndim != 4:
        raise ValueError(f"images must be (B, C, H, W), got {tuple(images.shape)}")


def _floats(images: Tensor) -> Tensor:
    found = to_unit(images)
    assert isinstance(found, Tensor)
    return found


def _uniform(size: tuple[int, ...], images: Tensor, generator: torch.Generator | None) -> Tensor:
    own = generator.device if generator is not None else images.device
    return torch.rand(size, generator=generator, device=own).to(images.device)


def _where(condition: Tensor) -> Tensor:
    return condition[:, None, None, None, None]


def _rgb_to_hsv(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue and saturation in [0, 1], and value, of (..., 3, H, W)."""
    red, green, blue = images.unbind(-3)
    value, low = images.amax(-3), images.amin(-3)
    spread = value - low
    safe = torch.where(spread > 0, spread, 1.0)
    hue = torch.where(
        red == value,
        (green - blue) / safe,
        torch.where(green == value, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    saturation = torch.where(value > 0, spread / torch.where(value > 0, value, 1.0), 0.0)
    return torch.where(spread > 0, hue / 6 % 1.0, 0.0), saturation, value


def _hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """The inverse: (..., 3, H, W)."""
    channels = []
    for shift in (5, 3, 1):
        place = (shift + 6 * hue) % 6
        channels.append(value - value * saturation * torch.minimum(place, 4 - place).clamp(0, 1))
    return torch.stack(channels, -3)
