"""Measurements of a meter over a training, which both callbacks keep."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from neuralcollapse.checks import check_count
from neuralcollapse.meter import Layers, NCMeter


class CollapseHistory:
    """Measure a model on a loader at every so many epochs, and keep the rows.

    Args:
        loader: As in `NCMeter.run`: gone over twice, so it must give the same samples twice.
        layers: As in `NCMeter`, as the model that is trained names them.
        head: As in `NCMeter`.
        every: Epochs from one measurement to the next.
        passes: As in `NCMeter.run`.
        max_batches: As in `NCMeter.run`.
        **options: Of `NCMeter`.

    Attributes:
        rows: One for each measurement and layer: `epoch`, `step`, `layer` and the metrics of `NCReport.to_dict`.

    Raises:
        ValueError: If `every` is less than 1.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        layers: Layers = (),
        head: str | None = None,
        *,
        every: int = 1,
        passes: Any = 2,
        max_batches: int | None = None,
        **options: Any,
    ) -> None:
        self.rows: list[dict[str, Any]] = []
        self._every = check_count("every", every)
        self._loader, self._layers, self._head = loader, layers, head
        self._run: dict[str, Any] = {"passes": passes, "max_batches": max_batches}
        self._options = options

    def due(self, epoch: int) -> bool:
        """Whether the end of this epoch, counted from 1, is measured."""
        return epoch % self._every == 0

    def measure(self, model: nn.Module, epoch: int, step: int) -> dict[str, float]:
        """Measure now.

        Args:
            model: The model in training; its mode, gradients and random state are left as they are.
            epoch: Epochs made.
            step: Optimizer steps made.

        Returns:
            What was measured, by `collapse/<layer>/<metric>`.
        """
        meter = NCMeter(model, self._layers, self._head, **self._options)
        with torch.random.fork_rng(devices=[]):  # a DataLoader draws a seed each time it is gone over
            reports = meter.run(self._loader, **self._run)
        found: dict[str, float] = {}
        for layer, report in reports.items():
            metrics = report.to_dict()
            self.rows.append({"epoch": epoch, "step": step, "layer": layer, **metrics})
            found |= {
                f"collapse/{layer}/{name}": value for name, value in metrics.items() if value is not None
            }
        return found
