"""Augmentation whose strength the training loop turns while data-loader workers run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from efficienttrain._checks import checked_number


def magnitude_to_timm(magnitude: float) -> str:
    """Write a magnitude as timm's `auto_augment` string: noise of standard deviation 0.5, increasing operations.

    Noise takes a level to 9 at most: at timm's own limit of 10 its posterizing keeps no bit of a colour, which
    Pillow 12 refuses.

    Args:
        magnitude: Strength; timm takes integers, so it is rounded.

    Raises:
        TypeError: If `magnitude` is no number.
        ValueError: If `magnitude` is negative or not finite.

    Examples:
        >>> magnitude_to_timm(7.0)
        'rand-m7-mstd0.5-mmax9-inc1'
    """
    if checked_number("magnitude", magnitude) < 0:
        raise ValueError(f"magnitude must be at least 0, got {magnitude}")
    return f"rand-m{round(magnitude)}-mstd0.5-mmax9-inc1"


class MagnitudeTransform:
    """A transform of the strength that was set last, also inside of data-loader workers that are already running.

    The magnitude lives in shared memory; every process builds the transform anew when it finds it changed.
    `CurriculumBatches(augment=...)` sets it. Batches that workers have prefetched keep the strength before.

    Args:
        build: Makes the transform of a magnitude; a module-level function where workers are spawned, not forked.
        magnitude: The first one.

    Raises:
        TypeError: If `build` is not callable or `magnitude` no number.
        ValueError: If `magnitude` is negative or not finite.

    Examples:
        >>> augment = MagnitudeTransform(lambda magnitude: lambda image: image + magnitude)
        >>> augment.set_magnitude(3)
        >>> augment(10)
        13.0
    """

    def __init__(self, build: Callable[[float], Callable[..., Any]], magnitude: float = 0.0) -> None:
        if not callable(build):
            raise TypeError(f"build must be callable, got {build!r}")
        self.build = build
        self._shared = torch.zeros((), dtype=torch.float64).share_memory_()
        self._built: tuple[float, Callable[..., Any]] | None = None
        self.set_magnitude(magnitude)

    @property
    def magnitude(self) -> float:
        """What the next image is transformed with."""
        return self._shared.item()

    def set_magnitude(self, magnitude: float) -> None:
        """Set the strength in all processes.

        Args:
            magnitude: Strength, at least 0.

        Raises:
            TypeError: If `magnitude` is no number.
            ValueError: If `magnitude` is negative or not finite.
        """
        if checked_number("magnitude", magnitude) < 0:
            raise ValueError(f"magnitude must be at least 0, got {magnitude}")
        self._shared.fill_(float(magnitude))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Transform one sample."""
        magnitude = self.magnitude
        if self._built is None or self._built[0] != magnitude:
            self._built = magnitude, self.build(magnitude)
        return self._built[1](*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_built": None}
