"""The meter as a callback of transformers' Trainer; needs the `hf` extra."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from neuralcollapse.history import CollapseHistory
from neuralcollapse.meter import Layers

try:
    from transformers import TrainerCallback
except ImportError as error:  # pragma: no cover
    raise ImportError(
        "neuralcollapse.huggingface needs transformers: pip install 'neuralcollapse[hf]'"
    ) from error


class CollapseCallback(TrainerCallback):
    """Measure collapse at the end of epochs: `Trainer(..., callbacks=[CollapseCallback(loader, head="score")])`.

    The numbers go to `state.log_history`, beside the losses, as `collapse/<layer>/<metric>`; `history.rows` has them
    as a table. Training is the same with it and without.

    Args:
        loader: The samples to measure, in batches of mappings with `"labels"`, or of pairs. It must give the same
            samples twice: no augmentation. Where ranks share the training, each gives its own part.
        layers: As in `NCMeter`.
        head: As in `NCMeter`: the last linear layer, `"classifier"` or `"score"` in most models.
        **options: Of `CollapseHistory` and `NCMeter`, such as `every=5`, `pool="token_mean"`, `passes=1`.

    Attributes:
        history: What was measured.

    Raises:
        ValueError: At the first measurement, if layers or batches do not fit, as in `NCMeter`.
    """

    def __init__(
        self, loader: Iterable[Any], layers: Layers = (), head: str | None = None, **options: Any
    ) -> None:
        self.history = CollapseHistory(loader, layers, head, **options)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the trainer's model.

        Args:
            args: Training arguments.
            state: The trainer's state.
            control: The trainer's control.
            **kwargs: Holds `model`.
        """
        epoch = round(state.epoch)
        if self.history.due(epoch):
            found = self.history.measure(kwargs["model"], epoch, state.global_step)
            state.log_history.append({"epoch": state.epoch, "step": state.global_step, **found})
