"""Training an explainer as the paper does: by epochs, of which the best on held-out series is kept."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from timex_explain._checks import check_count, check_positive, read_batch
from timex_explain._classifier import modes_kept
from timex_explain.explainer import TimeX

Batches = Iterable[Sequence[Any]]
_PLATEAU_FROM = 20  # epochs before which the learning rate stays
_FLAT = 0.3  # maps whose values lie nearer together say little


class FitHistory(NamedTuple):
    """How a training went.

    Attributes:
        losses: Consistency plus weighted label consistency on the validation series, an epoch each.
        learning_rates: What each epoch was trained with.
        best_epoch: The epoch that was kept, counted from 0.
        spread: Largest minus smallest value of a saliency map, mean over the validation series, of that
            epoch: near 0 the maps are flat and rank nothing.
    """

    losses: list[float]
    learning_rates: list[float]
    best_epoch: int
    spread: float


def fit(
    explainer: TimeX,
    train: Batches,
    validation: Batches,
    *,
    epochs: int = 50,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-3,
    patience: int | None = None,
    init_landmarks: bool = True,
    generator: torch.Generator | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> FitHistory:
    """Train an explainer in place and keep its best epoch (arXiv 2306.02109, appendix C).

    AdamW on `explainer.losses`; from epoch 20 on the learning rate falls to a tenth whenever the validation
    loss has not fallen for more than 5 epochs; the epoch of the smallest validation loss is kept. That loss
    is measured with the same draws of masks in every epoch, so that epochs differ by what was learnt alone.
    Dropout draws from torch's own source; so does all else where `generator` is None.

    Args:
        explainer: What is trained. Its mode is afterwards as before.
        train: Batches (x, labels), (x, labels, times) or (x, labels, times, padding), such as a loader; gone
            through once an epoch, so an iterator that ends does not do. A batch of one series has no pairs
            and is left out. The labels serve for the landmarks alone.
        validation: Batches of the same form, of other series.
        epochs: At most so many; 50 to 100 in the paper.
        learning_rate: 1e-3 on the paper's synthetic sets.
        weight_decay: Of AdamW.
        patience: Stop when so many epochs in a row were no better than the best; None never stops early.
        init_landmarks: Whether landmarks are set first by `explainer.init_landmarks(train)`; False to go on.
        generator: Source of masks, replacements and landmark choices in training, on the explainer's device.
            The first landmarks are drawn from it if that is the CPU.
        progress: Called as `progress(fraction, message)` after every epoch.

    Returns:
        How it went.

    Raises:
        ValueError: If a number is out of its range, batches do not fit, or none has two series.
        RuntimeError: If no epoch has a finite validation loss.

    Warns:
        UserWarning: If the maps are nearly flat in the end: not trained enough, or held down by the
            sparsity and connectedness of the objective.

    Examples:
        >>> from timex_explain import Replacement
        >>> classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(40, 8), torch.nn.Linear(8, 3))
        >>> x, y = torch.randn(32, 20, 2), torch.arange(32) % 3
        >>> explainer = TimeX(classifier, Replacement.fit(x), embed="1", num_landmarks=6)
        >>> history = fit(explainer, [(x[:16], y[:16])], [(x[16:], y[16:])], epochs=2)
        >>> len(history.losses), history.best_epoch in (0, 1)
        (2, True)
    """
    check_count(epochs, "epochs")
    check_positive(learning_rate, "learning_rate")
    if not 0 <= weight_decay < float("inf"):
        raise ValueError(f"weight_decay must be finite and not negative, got {weight_decay}")
    if patience is not None:
        check_count(patience, "patience")
    for batches, name in ((train, "train"), (validation, "validation")):
        if isinstance(batches, Iterator):
            raise ValueError(
                f"{name} must be a list or a loader, got an iterator, which ends after one epoch"
            )
    with modes_kept(explainer), torch.inference_mode(False), torch.enable_grad():
        if init_landmarks:
            on_cpu = generator is not None and generator.device.type == "cpu"
            explainer.init_landmarks(train, generator if on_cpu else None)
        run = _Run(explainer, learning_rate, weight_decay, generator)
        for epoch in range(epochs):
            run.epoch(train, validation)
            if progress is not None:
                progress((epoch + 1) / epochs, f"validation loss {run.losses[-1]:.4g}")
            if patience is not None and epoch - run.best_epoch >= patience:
                break
        return run.end(validation)


class _Run:
    """A training on its way: its optimizer, its schedule and its best epoch so far."""

    def __init__(
        self, explainer: TimeX, learning_rate: float, weight_decay: float, generator: torch.Generator | None
    ) -> None:
        self.explainer, self.generator = explainer, generator
        parameters = [parameter for parameter in explainer.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
        self.schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(self.optimizer, factor=0.1, patience=5)
        self.losses: list[float] = []
        self.learning_rates: list[float] = []
        self.best_epoch = 0
        self.best_state: dict[str, Tensor] = {}

    def epoch(self, train: Batches, validation: Batches) -> None:
        """Train one epoch, and keep it if it is the best."""
        self.learning_rates.append(self.optimizer.param_groups[0]["lr"])
        self.explainer.train()
        for x, times, padding in _with_pairs(train, "train"):
            loss = self.explainer.losses(self.explainer(x, times, padding, self.generator))["total"]
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        self.losses.append(_validation_loss(self.explainer, validation))
        if self._is_best():
            self.best_epoch = len(self.losses) - 1
            self.best_state = copy.deepcopy(self.explainer.state_dict())
        if len(self.losses) > _PLATEAU_FROM:
            self.schedule.step(self.losses[-1])

    def _is_best(self) -> bool:
        """What is not finite is never the best."""
        if not math.isfinite(self.losses[-1]):
            return False
        return not self.best_state or self.losses[-1] < self.losses[self.best_epoch]

    def end(self, validation: Batches) -> FitHistory:
        """Go back to the best epoch, and see whether its maps say anything."""
        if not self.best_state:
            raise RuntimeError(
                "training must have a finite validation loss in some epoch: lower learning_rate, "
                "or look for series that are not finite"
            )
        self.explainer.load_state_dict(self.best_state)
        spread = _spread(self.explainer, validation)
        if spread < _FLAT:
            warnings.warn(
                f"the saliency maps are nearly flat: their values spread over {spread:.2g} of 1. Train longer "
                "or faster, or lower Objective.explanation or Objective.connectedness",
                stacklevel=4,
            )
        return FitHistory(self.losses, self.learning_rates, self.best_epoch, spread)


def _with_pairs(batches: Batches, name: str) -> Iterator[tuple[Tensor, Tensor | None, Tensor | None]]:
    """Series, times and padding of the batches that have at least two series."""
    found = False
    for batch in batches:
        x, _, times, padding = read_batch(batch, name)
        if len(x) > 1:
            found = True
            yield x, times, padding
    if not found:
        raise ValueError(f"{name} must hold a batch of at least two series, got none")


@torch.no_grad()
def _validation_loss(explainer: TimeX, validation: Batches) -> float:
    """Mean over series of the consistencies that are trained, with the same draws at every call."""
    explainer.eval()
    source = torch.Generator(explainer.landmarks.device).manual_seed(0)
    total, count = 0.0, 0
    for x, times, padding in _with_pairs(validation, "validation"):
        terms = explainer.losses(explainer(x, times, padding, source))
        total += len(x) * float(terms["consistency"] + explainer.objective.label * terms["label"])
        count += len(x)
    return total / count


@torch.no_grad()
def _spread(explainer: TimeX, validation: Batches) -> float:
    """Largest minus smallest value of each map, padding aside; the mean over series."""
    spreads = []
    for x, times, padding in _with_pairs(validation, "validation"):
        saliency = explainer.explain(x, times, padding)
        outside = torch.zeros_like(saliency, dtype=torch.bool)
        if padding is not None:
            outside = padding.unsqueeze(-1).expand_as(saliency)
        high = saliency.masked_fill(outside, 0).amax((1, 2))
        spreads.append(high - saliency.masked_fill(outside, 1).amin((1, 2)))
    return float(torch.cat(spreads).mean())
