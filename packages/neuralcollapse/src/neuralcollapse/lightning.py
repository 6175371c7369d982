"""The meter as a callback of Lightning's Trainer; needs the `lightning` extra."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from neuralcollapse.history import CollapseHistory
from neuralcollapse.meter import Layers

try:
    from lightning.pytorch import Callback
except ImportError as error:  # pragma: no cover
    raise ImportError(
        "neuralcollapse.lightning needs Lightning: pip install 'neuralcollapse[lightning]'"
    ) from error


class CollapseCallback(Callback):
    """Measure collapse at the end of training epochs: `Trainer(callbacks=[CollapseCallback(loader, head="net.4")])`.

    The module is called as `module(inputs)`, so it needs a `forward`. The numbers are logged by the module, as
    `collapse/<layer>/<metric>`, so that other callbacks can watch them; `history.rows` has them as a table.

    Args:
        loader: The samples to measure. It must give the same samples twice: no augmentation. Where ranks share the
            training, each gives its own part.
        layers: As in `NCMeter`, with names as in the `LightningModule`.
        head: As in `NCMeter`.
        **options: Of `CollapseHistory` and `NCMeter`.

    Attributes:
        history: What was measured.

    Raises:
        ValueError: At the first measurement, if layers or batches do not fit, as in `NCMeter`.
    """

    def __init__(
        self, loader: Iterable[Any], layers: Layers = (), head: str | None = None, **options: Any
    ) -> None:
        self.history = CollapseHistory(loader, layers, head, **options)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure the module.

        Args:
            trainer: Lightning's trainer.
            pl_module: The module in training.
        """
        epoch = trainer.current_epoch + 1
        if self.history.due(epoch):
            pl_module.log_dict(self.history.measure(pl_module, epoch, trainer.global_step))

    def state_dict(self) -> dict[str, Any]:
        """The rows, kept in Lightning's checkpoint."""
        return {"rows": self.history.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the rows of a checkpoint.

        Args:
            state_dict: Of this callback.
        """
        self.history.rows = list(state_dict["rows"])
