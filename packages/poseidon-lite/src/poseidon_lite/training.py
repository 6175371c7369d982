"""All2all training: every ordered pair of snapshots is a sample; the loss and the error that go with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

# Of the fluid problems that Poseidon was pretrained on: density, two velocities, pressure (official code).
FLUID_MEAN = (0.80, 0.0, 0.0, 0.0)
FLUID_STD = (0.31, 0.391, 0.356, 0.185)


class All2AllPairs(Sequence[tuple[int, int]]):
    """The pairs (input snapshot, target snapshot) of one trajectory that serve as training samples.

    All2all training (paper, Sec. 2) uses `{(i, j): i <= j}`, that is `(K + 1) (K + 2) / 2` pairs for `K + 1`
    snapshots. The identity pairs `i = j` (lead time 0) belong to it. Vanilla training fixes the input.

    Args:
        num_snapshots: Snapshots stored per trajectory, `K + 1` at step 1.
        step: Use every `step`-th snapshot only.
        allowed: Allowed differences `j - i`, counted in steps, e.g. `[1]` for next-step training; all if `None`.
        include_identity: Whether the pairs `(i, i)` are samples.
        fix_input_to: Take this snapshot as the only input, with the later ones as targets (vanilla training
            has 0 here); it has no identity pair.

    Raises:
        ValueError: If an argument is out of range or no pair is left.

    Examples:
        >>> pairs = All2AllPairs(15, step=2)
        >>> len(pairs), pairs[1], list(All2AllPairs(3, allowed=[1]))
        (36, (0, 2), [(0, 1), (1, 2)])
    """

    def __init__(
        self,
        num_snapshots: int,
        step: int = 1,
        allowed: Sequence[int] | None = None,
        include_identity: bool = True,
        fix_input_to: int | None = None,
    ) -> None:
        if num_snapshots < 2:
            raise ValueError(f"num_snapshots must be at least 2, got {num_snapshots}")
        if step < 1:
            raise ValueError(f"step must be at least 1, got {step}")
        if fix_input_to is not None and not 0 <= fix_input_to < num_snapshots:
            raise ValueError(f"fix_input_to must be in [0, {num_snapshots}), got {fix_input_to}")
        inputs = range(0, num_snapshots, step) if fix_input_to is None else (fix_input_to,)
        shortest = 0 if include_identity and fix_input_to is None else step
        pairs = [
            (i, j)
            for i in inputs
            for j in range(i + shortest, num_snapshots, step)
            if allowed is None or (j - i) // step in allowed
        ]
        if not pairs:
            raise ValueError(
                f"allowed must leave at least one pair of {num_snapshots} snapshots, got {allowed}"
            )
        self.num_snapshots = num_snapshots
        self.pairs = torch.tensor(pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[int, int]:  # type: ignore[override]
        i, j = self.pairs[index].tolist()
        return i, j


class Snapshots(Protocol):
    """Trajectories that stay where they are until a snapshot is asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """`(n, K + 1, channels, size, size)`."""

    def __getitem__(self, place: tuple[int, int]) -> Any:
        """One snapshot `(channels, size, size)`."""


class All2AllDataset(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Map-style dataset of `(input field, lead time, target field)` over trajectories and pairs of snapshots.

    Sample `k` is pair `k % len(pairs)` of trajectory `k // len(pairs)`. Fields are normalised as they are read;
    the trajectories are neither copied nor changed.

    Args:
        trajectories: Snapshots `(n, K + 1, channels, size, size)`, real and finite. Besides a tensor, anything
            with that `shape` whose `[n, k]` is one snapshot as NumPy takes it: an HDF5 or zarr array, or a
            memory map. It is read snapshot by snapshot, when a sample asks for it, as float32.
        times: Times of the snapshots `(K + 1,)`, increasing.
        mean: Mean of every channel `(channels,)`; 0 if `None`. The published models want `FLUID_MEAN` and
            `FLUID_STD` for density, two velocities and pressure.
        std: Standard deviation of every channel `(channels,)`; 1 if `None`.
        pairs: Which pairs are samples; all of them, identity included, if `None`.
        time_scale: Time that counts as lead time 1, in the unit of `times`. Fine-tuning must use a scale that
            means the same as in pretraining (20 steps in the published models).

    Raises:
        TypeError: If the trajectories are complex.
        ValueError: If shapes do not fit, a value is not finite, or a scale is not positive.

    Examples:
        >>> data = All2AllDataset(torch.randn(5, 3, 1, 8, 8), torch.tensor([0.0, 0.5, 1.0]))
        >>> x, t, y = data[2]
        >>> len(data), float(t), x.shape
        (30, 1.0, torch.Size([1, 8, 8]))
    """

    def __init__(
        self,
        trajectories: Tensor | Snapshots,
        times: Tensor | Sequence[float],
        mean: Tensor | Sequence[float] | None = None,
        std: Tensor | Sequence[float] | None = None,
        *,
        pairs: All2AllPairs | None = None,
        time_scale: float = 1.0,
    ) -> None:
        if len(trajectories.shape) != 5 or trajectories.shape[-1] != trajectories.shape[-2]:
            raise ValueError(
                "trajectories must have shape (n, snapshots, channels, size, size), "
                f"got {tuple(trajectories.shape)}"
            )
        like = trajectories if isinstance(trajectories, Tensor) else torch.empty(0)
        if like.is_complex():
            raise TypeError(f"trajectories must be real, got {like.dtype}")
        if not torch.isfinite(like).all():
            raise ValueError("trajectories must be finite, got NaN or infinity")
        snapshots, channels = trajectories.shape[1:3]
        times = torch.as_tensor(times)
        if times.shape != (snapshots,) or not bool((times.diff() > 0).all() and times.isfinite().all()):
            raise ValueError(f"times must be {snapshots} increasing numbers, got {times.tolist()}")
        if not 0 < time_scale < math.inf:
            raise ValueError(f"time_scale must be positive, got {time_scale}")
        fields = like.dtype if like.is_floating_point() else torch.float32  # whole numbers are divided too
        mean = torch.zeros(channels) if mean is None else torch.as_tensor(mean)
        std = torch.ones(channels) if std is None else torch.as_tensor(std)
        for name, value in (("mean", mean), ("std", std)):
            if value.shape != (channels,):
                raise ValueError(f"{name} must have shape ({channels},), got {tuple(value.shape)}")
            if not bool(value.isfinite().all()):
                raise ValueError(f"{name} must be finite, got {value.tolist()}")
        if not bool((std > 0).all()):
            raise ValueError(f"std must be positive, got {std.tolist()}")
        mean, std = mean.to(like.device, fields), std.to(like.device, fields)
        pairs = All2AllPairs(snapshots) if pairs is None else pairs
        if pairs.num_snapshots > snapshots:
            raise ValueError(f"pairs must be over at most {snapshots} snapshots, got {pairs.num_snapshots}")
        self.trajectories = trajectories
        # Differences of half-precision times would be coarse.
        self.times = times.to(like.device, torch.promote_types(fields, torch.float32)) / time_scale
        self.mean, self.std = mean.view(-1, 1, 1), std.view(-1, 1, 1)
        self.pairs = pairs

    def __len__(self) -> int:
        return int(self.trajectories.shape[0]) * len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index must be below {len(self)}, got {index}")
        x, t, y = self.batch(torch.tensor([index % len(self)]))
        return x[0], t[0], y[0]

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Read many samples at once.

        Args:
            indices: Sample numbers `(batch,)`.

        Returns:
            Input fields `(batch, channels, size, size)`, lead times `(batch,)`, target fields like the inputs.
        """
        trajectory = indices // len(self.pairs)
        i, j = self.pairs.pairs[indices % len(self.pairs)].unbind(1)
        x, y = (self._read(trajectory, snapshot) for snapshot in (i, j))
        return (x - self.mean) / self.std, self.times[j] - self.times[i], (y - self.mean) / self.std

    def _read(self, trajectories: Tensor, snapshots: Tensor) -> Tensor:
        if isinstance(self.trajectories, Tensor):
            return self.trajectories[trajectories, snapshots]
        places = list(zip(trajectories.tolist(), snapshots.tolist(), strict=True))
        fields = [torch.as_tensor(self.trajectories[place], dtype=torch.float32) for place in places]
        for place, field in zip(places, fields, strict=True):
            if not bool(field.isfinite().all()):
                raise ValueError(f"trajectories must be finite, got NaN or infinity in snapshot {place}")
        return torch.stack(fields)


def group_loss(prediction: Tensor, target: Tensor, groups: Sequence[int], p: int = 1) -> Tensor:
    """Training loss: relative error of every group of channels, averaged over the groups.

    `mean_g [ L(prediction_g, target_g) / (L(0, target_g) + 1e-10) ]` with `L` the mean absolute (`p = 1`) or
    squared (`p = 2`) difference over batch, channels and pixels of the group (official code).

    Args:
        prediction: Fields `(batch, channels, size, size)`.
        target: Fields of the same shape.
        groups: Sizes of the consecutive groups of channels, e.g. `(1, 2, 1)` for density | velocity | pressure.
        p: 1 or 2.

    Returns:
        A scalar, in float32 at least; 0 for an empty batch.

    Raises:
        TypeError: If a field is complex.
        ValueError: If shapes differ, the groups do not cover the channels, or `p` is neither 1 nor 2.

    Examples:
        >>> target = torch.ones(1, 2, 4, 4)
        >>> float(group_loss(1.5 * target, target, (1, 1)))
        0.5
    """
    prediction, target = _checked(prediction, target, groups, p)
    if prediction.numel() == 0:
        return prediction.sum()
    error = ((prediction - target).abs() ** p).split(list(groups), dim=1)
    size = (target.abs() ** p).split(list(groups), dim=1)
    return torch.stack([e.mean() / (s.mean() + 1e-10) for e, s in zip(error, size, strict=True)]).mean()


def relative_error(prediction: Tensor, target: Tensor, groups: Sequence[int], p: int = 1) -> Tensor:
    """Test metric: relative error of every sample and group of channels, in percent.

    `100 * (sum |prediction - target|^p / sum |target|^p)^(1/p)`, summed over the pixels and channels of a group
    (official code). The paper reports the median over the test set.

    Args:
        prediction: Fields `(batch, channels, size, size)`.
        target: Fields of the same shape.
        groups: Sizes of the consecutive groups of channels.
        p: 1 or 2.

    Returns:
        Errors `(batch, len(groups))`, in float32 at least.

    Raises:
        TypeError: As `group_loss`.
        ValueError: As `group_loss`.

    Examples:
        >>> relative_error(torch.full((1, 1, 2, 2), 3.0), torch.full((1, 1, 2, 2), 4.0), (1,))
        tensor([[25.]])
    """
    prediction, target = _checked(prediction, target, groups, p)
    error = ((prediction - target).abs() ** p).sum(dim=(2, 3)).split(list(groups), dim=1)
    size = (target.abs() ** p).sum(dim=(2, 3)).split(list(groups), dim=1)
    ratios = [e.sum(dim=1) / s.sum(dim=1).clamp_min(1e-10) for e, s in zip(error, size, strict=True)]
    return 100 * torch.stack(ratios, dim=1) ** (1 / p)


def _checked(prediction: Tensor, target: Tensor, groups: Sequence[int], p: int) -> tuple[Tensor, Tensor]:
    """Both fields in float32 at least: sums over 128 x 128 points leave the range of float16."""
    if prediction.ndim != 4 or prediction.shape != target.shape:
        raise ValueError(
            "prediction and target must have one shape (batch, channels, size, size), "
            f"got {tuple(prediction.shape)} and {tuple(target.shape)}"
        )
    if sum(groups) != target.shape[1] or any(size < 1 for size in groups):
        raise ValueError(
            f"groups must be sizes that add up to {target.shape[1]} channels, got {tuple(groups)}"
        )
    if p not in (1, 2):
        raise ValueError(f"p must be 1 or 2, got {p}")
    if prediction.is_complex() or target.is_complex():
        raise TypeError(f"prediction and target must be real, got {prediction.dtype} and {target.dtype}")
    dtype = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
    return prediction.to(dtype), target.to(dtype)
