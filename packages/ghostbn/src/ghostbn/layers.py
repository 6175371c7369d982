"""Ghost batch normalisation as layers: torch's own batch normalisation layers with one more argument."""

# No postponed annotations here: TorchScript has to read them.

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ghostbn.functional import check_options, ghost_batch_norm
from ghostbn.groups import Grouping, Remainder, check_size
from ghostbn.running import Running


class _GhostBatchNorm(_BatchNorm):
    if TYPE_CHECKING:  # TorchScript reads a class's annotations and knows no Literal
        ghost_size: int
        grouping: Grouping
        remainder: Remainder
        running: Running

    def __init__(
        self,
        num_features: int,
        ghost_size: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        grouping: Grouping = "strided",
        remainder: Remainder = "merge",
        running: Running = "sequential",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_options(ghost_size, momentum, eps, grouping, remainder, running)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        set_options(self, ghost_size, grouping, remainder, running)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise, and update the running statistics in training mode.

        Args:
            input: (N, C, *).

        Returns:
            Same shape and dtype.

        Raises:
            ValueError: If the dimensions or channels do not fit, or a ghost batch has one value per channel.
        """
        self._check_input_dim(input)
        if input.shape[1] != self.num_features:
            raise ValueError(
                f"input must have num_features = {self.num_features} channels, got {input.shape[1]}"
            )
        if not self.training and self.running_mean is not None:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return self._by_ghost_batches(input)

    @torch.jit.unused  # scripted models evaluate; training by ghost batches is eager or compiled
    def _by_ghost_batches(self, input: Tensor) -> Tensor:
        tracks = self.track_running_stats or not self.training
        return ghost_batch_norm(
            input,
            self.running_mean if tracks else None,
            self.running_var if tracks else None,
            self.weight,
            self.bias,
            self.training,
            self.momentum,
            self.eps,
            self.ghost_size,
            grouping=self.grouping,
            remainder=self.remainder,
            running=self.running,
            num_batches_tracked=self.num_batches_tracked if tracks else None,
        )

    def extra_repr(self) -> str:
        own = f"ghost_size={self.ghost_size}, grouping={self.grouping!r}, "
        return f"{super().extra_repr()}, {own}remainder={self.remainder!r}, running={self.running!r}"


def set_options(
    layer: Any, ghost_size: int, grouping: Grouping, remainder: Remainder, running: Running
) -> None:
    """Give a layer all that a ghost layer has and torch's has not.

    Args:
        layer: A ghost layer, or one that is to become one.
        ghost_size: See `ghost_batch_norm`.
        grouping: See `ghost_batch_norm`.
        remainder: See `ghost_batch_norm`.
        running: See `ghost_batch_norm`.
    """
    layer.ghost_size = check_size("ghost_size", ghost_size)
    layer.grouping = grouping
    layer.remainder = remainder
    layer.running = running
    # torch.fx keeps a module whole, as one node, if it says that it is torch's own; else it would trace into
    # a forward that depends on the batch size.
    layer.__module__ = nn.BatchNorm1d.__module__


def clear_options(layer: Any) -> None:
    """Take away what `set_options` gave.

    Args:
        layer: A ghost layer that is to become one of torch's again.
    """
    for name in ("ghost_size", "grouping", "remainder", "running", "__module__"):
        delattr(layer, name)


class GhostBatchNorm1d(_GhostBatchNorm, nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` that normalises each ghost batch of S samples by its own statistics.

    The equations are those of `ghost_batch_norm` (arXiv 1705.08741, algorithm 1). Parameters, buffers and
    evaluation mode are those of `torch.nn.BatchNorm1d`, so state dicts go both ways. `num_batches_tracked`
    counts ghost batches. Under DistributedDataParallel each rank has its own ghost batches, and running
    statistics are broadcast from rank 0 as for any buffer; see `average_running_stats` for their mean.

    Args:
        num_features: C.
        ghost_size: S, the number of samples in a ghost batch.
        eps: Added to the variance.
        momentum: Of the running statistics, in [0, 1]; None for their cumulative average.
        affine: Whether to learn a scale and a shift per channel.
        track_running_stats: Whether to keep running statistics. Without them evaluation, too, is by ghost batches.
        grouping: See `ghost_batch_norm`.
        remainder: See `ghost_batch_norm`.
        running: See `ghost_batch_norm`.
        device: Of parameters and buffers.
        dtype: Of parameters and buffers.

    Raises:
        TypeError: If `ghost_size` is not an integer, or momentum or eps not a number.
        ValueError: If an option is not one of its values.

    Examples:
        >>> layer = GhostBatchNorm1d(8, ghost_size=32)
        >>> layer(torch.ones(256, 8)).shape, int(layer.num_batches_tracked)
        (torch.Size([256, 8]), 8)
    """


class GhostBatchNorm2d(_GhostBatchNorm, nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` that normalises each ghost batch of S samples by its own statistics.

    Arguments and meaning are those of `GhostBatchNorm1d`; the input is (N, C, H, W).

    Examples:
        >>> isinstance(GhostBatchNorm2d(8, ghost_size=32), nn.BatchNorm2d)
        True
    """


class GhostBatchNorm3d(_GhostBatchNorm, nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d` that normalises each ghost batch of S samples by its own statistics.

    Arguments and meaning are those of `GhostBatchNorm1d`; the input is (N, C, D, H, W).

    Examples:
        >>> GhostBatchNorm3d(8, ghost_size=2)(torch.ones(4, 8, 2, 2, 2)).shape
        torch.Size([4, 8, 2, 2, 2])
    """
