"""BatchNorm by the statistics of the batch, and back to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class BatchStatistics:
    """Batch normalisation by the statistics of the batch, until `restore`. Made by `use_batch_statistics`."""

    def __init__(self, model: nn.Module) -> None:
        self._layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        self._kept = [
            (layer.track_running_stats, layer.running_mean, layer.running_var) for layer in self._layers
        ]
        self._apply()

    def __len__(self) -> int:
        return len(self._layers)

    def __enter__(self) -> BatchStatistics:
        return self

    def __exit__(self, *raised: object) -> None:
        self.restore()

    def _apply(self) -> None:
        for layer in self._layers:
            # Without running statistics torch normalises by the batch, in either mode.
            layer.track_running_stats, layer.running_mean, layer.running_var = False, None, None

    def restore(self) -> None:
        """Put the very buffers back that the layers had."""
        for layer, (track, mean, variance) in zip(self._layers, self._kept, strict=True):
            layer.track_running_stats, layer.running_mean, layer.running_var = track, mean, variance

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Inside, layers use the statistics they came with."""
        self.restore()
        try:
            yield
        finally:
            self._apply()


def use_batch_statistics(model: nn.Module) -> BatchStatistics:
    """Let every BatchNorm layer normalise by the statistics of its batch, in training and evaluation mode.

    This alone is the BN-1 baseline (Nado et al. 2020; Schneider et al. 2020), and the paper's setting for
    student and teacher. Running statistics are set aside, neither used nor updated.

    Args:
        model: Changed in place, BatchNorm1d, 2d, 3d and SyncBatchNorm layers anywhere in it.

    Returns:
        A handle: `restore()` undoes the change to the bit; also a context manager that does so at its end.
        Its length is the number of layers.

    Examples:
        >>> import torch
        >>> model = nn.Sequential(nn.BatchNorm1d(2)).eval()
        >>> with use_batch_statistics(model):
        ...     normalised = model(torch.tensor([[0.0, 5.0], [2.0, 9.0]]))
        >>> normalised.round().tolist(), model[0].running_mean.tolist()
        ([[-1.0, -1.0], [1.0, 1.0]], [0.0, 0.0])
    """
    return BatchStatistics(model)
