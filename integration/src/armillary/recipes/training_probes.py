"""`localcomplexity` and `neuralcollapse` attached to one training run, as scalars for any logger.

pip install armillary localcomplexity neuralcollapse
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from armillary.recipes._packages import joined

with joined("localcomplexity", "neuralcollapse"):
    from localcomplexity import LocalComplexity
    from neuralcollapse import NCMeter


class TrainingProbes:
    """Two views of a network in training that need no labels, or no held-out data, of yours.

    Local complexity counts the linear regions that meet near given points: it falls, rises and falls again
    while a network learns. Neural collapse measures how the classes gather around their means. Calling the probes
    changes nothing: not the weights, the modes, the gradients or any random number.

    Args:
        complexity: A probe of your model.
        collapse: A meter of the same model.
        points: Name -> (B, *shape) points at which to measure the complexity: training, test, random.
        loader: Batches of inputs and labels over which to measure the collapse; read twice a call.

    Raises:
        ValueError: If there are no points.

    Examples:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> x, y = torch.randn(20, 2), torch.arange(20) % 2
        >>> probes = TrainingProbes(
        ...     LocalComplexity(model, num_directions=2, radius=0.1),
        ...     NCMeter(model, layers=[], head="2"),
        ...     points={"train": x},
        ...     loader=[(x, y)],
        ... )
        >>> sorted(probes())[:3]
        ['local_complexity/train', 'neural_collapse/2/cdnv', 'neural_collapse/2/nc1']
    """

    def __init__(
        self,
        complexity: LocalComplexity,
        collapse: NCMeter,
        *,
        points: Mapping[str, Tensor],
        loader: Iterable[Any],
    ) -> None:
        if not points:
            raise ValueError("points must name at least one set of points, got none")
        self.complexity, self.collapse = complexity, collapse
        self.points, self.loader = dict(points), loader

    def __call__(self) -> dict[str, float]:
        """Measure now.

        Returns:
            `local_complexity/<points>`, the mean count over all layers, and `neural_collapse/<layer>/<metric>` for
            what the meter reports of each layer.
        """
        found = {
            f"local_complexity/{name}": float(self.complexity(points).mean())
            for name, points in self.points.items()
        }
        for layer, report in self.collapse.run(self.loader).items():
            for metric in _METRICS:
                value = getattr(report, metric)
                if value is not None:
                    found[f"neural_collapse/{layer}/{metric}"] = value
        return found


_METRICS = ("nc1", "nc2", "nc3", "nc4", "cdnv")


class TensorBoardLog:
    """Keeps scalars and, where TensorBoard is installed, shows them there.

    Args:
        folder: Where TensorBoard's files go; None keeps the scalars only. The same without TensorBoard.

    Attributes:
        steps: The steps logged so far.
        scalars: Name -> its values at these steps.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.steps: list[int] = []
        self.scalars: dict[str, list[float]] = {}
        self._writer = None if folder is None else _writer(folder)

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Keep the scalars of one step.

        Args:
            step: The step of the optimizer.
            scalars: Name -> value; the same names at every step.

        Raises:
            ValueError: If the names differ from those before.
        """
        if self.steps and scalars.keys() != self.scalars.keys():
            raise ValueError(
                f"scalars must be the same at every step, got {sorted(scalars)} after {sorted(self.scalars)}"
            )
        self.steps.append(step)
        for name, value in scalars.items():
            self.scalars.setdefault(name, []).append(value)
            if self._writer is not None:
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Let TensorBoard write what it holds back."""
        if self._writer is not None:
            self._writer.close()


def _writer(folder: str | Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))
