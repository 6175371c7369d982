"""Where a model's features lie on a general corpus: what PED standardises by."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pedtransfer._checks import as_double, checked_count, checked_features, checked_number


@dataclass(frozen=True, eq=False)
class ReferenceStats:
    """Mean and standard deviation of one model's features on a general corpus, such as ImageNet's validation images.

    PED measures distances and radii in units of them (paper, appendix B), so that they decide what `nsigma` means.

    Args:
        mean: (D,).
        std: (D,), positive.
        is_pooled: Whether they come from the target features themselves, for want of a corpus.

    Raises:
        ValueError: If the shapes differ, or a standard deviation is not positive.

    Examples:
        >>> stats = ReferenceStats.from_features([[0.0, 5.0], [2.0, 5.0]])
        >>> stats.mean.tolist(), stats.std.tolist()
        ([1.0, 5.0], [1.0, 0.001])
    """

    mean: Tensor
    std: Tensor
    is_pooled: bool = False

    def __post_init__(self) -> None:
        mean, std = as_double("mean", self.mean), as_double("std", self.std)
        if mean.dim() != 1 or mean.shape != std.shape:
            raise ValueError(f"mean and std must be (D,), got {tuple(mean.shape)} and {tuple(std.shape)}")
        if not (std > 0).all():
            raise ValueError(f"std must be positive, got {int((std <= 0).sum())} of {len(std)} that are not")
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "std", std)

    @classmethod
    def from_features(cls, features: Any, floor: float = 1e-3) -> ReferenceStats:
        """Measure them on features (N, D) of the corpus.

        Args:
            features: (N, D), of the same model as the target's.
            floor: Least standard deviation, in units of the features.

        Returns:
            The statistics, the standard deviation biased (divided by N).

        Raises:
            ValueError: If `features` is not 2-D and finite, or `floor` not positive.
        """
        x = checked_features(features)
        floor = checked_number("floor", floor, positive=True)
        mean = x.mean(0)
        std = (x - mean).square().mean(0).sqrt().clamp_min(floor)
        return cls(mean, std)

    @classmethod
    def identity(cls, dimensions: int) -> ReferenceStats:
        """Mean 0 and standard deviation 1: features are taken as they are.

        Args:
            dimensions: D.

        Returns:
            The statistics.

        Raises:
            ValueError: If `dimensions` is not positive.
        """
        size = checked_count("dimensions", dimensions)
        return cls(torch.zeros(size), torch.ones(size))

    @classmethod
    def pooled(cls, features: Sequence[Any], floor: float = 1e-3) -> ReferenceStats:
        """Measure them on one model's features of several targets, or of the target itself, without a corpus.

        Standardising by the target changes what `nsigma` means, so that the result is flagged: `is_pooled` is true.

        Args:
            features: One or more (N, D) of the same model.
            floor: Least standard deviation, in units of the features.

        Returns:
            The statistics of all of them together.

        Raises:
            ValueError: If there are none, or their dimensions differ.
        """
        parts = [checked_features(part, f"features[{index}]") for index, part in enumerate(features)]
        if len({part.shape[1] for part in parts}) != 1:
            sizes = [part.shape[1] for part in parts]
            raise ValueError(f"features must be of one model, with the same D, got D = {sizes}")
        stats = cls.from_features(torch.cat(parts), floor)
        return cls(stats.mean, stats.std, is_pooled=True)

    def save(self, path: str | PathLike[str]) -> None:
        """Write them to a JSON file, exactly.

        Args:
            path: The file.
        """
        content = {"mean": self.mean.tolist(), "std": self.std.tolist(), "is_pooled": self.is_pooled}
        Path(path).write_text(json.dumps(content))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> ReferenceStats:
        """Read what `save` wrote.

        Args:
            path: The file.

        Returns:
            The statistics.

        Raises:
            ValueError: If the file is not such a file.
        """
        try:
            content = json.loads(Path(path).read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"path must be a JSON file written by save, got {path}: {error}") from None
        if not isinstance(content, dict) or {"mean", "std", "is_pooled"} - content.keys():
            found = sorted(content) if isinstance(content, dict) else type(content).__name__
            raise ValueError(f"path must hold mean, std and is_pooled, got {found}")
        mean, std = (torch.tensor(content[key], dtype=torch.float64) for key in ("mean", "std"))
        return cls(mean, std, bool(content["is_pooled"]))
