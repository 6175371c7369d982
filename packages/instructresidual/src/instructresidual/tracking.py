"""Follow base + residual while the base is still being trained, and hold the paper's strategies against each other."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import nn

from instructresidual._checks import Scale
from instructresidual.application import applied
from instructresidual.extraction import residual as residual_of
from instructresidual.residuals import Residual

Score = TypeVar("Score")
Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Tracked(Generic[Score]):
    """The scores of a model without and with the residual.

    Args:
        base: Of the model as it is.
        residual: Of the model with the residual.
    """

    base: Score
    residual: Score


def track(
    model: Model, residual: Residual, evaluate: Callable[[Model], Score], *, scale: Scale = 1.0
) -> Tracked[Score]:
    """Score a model as it is and with the residual, inside of any training loop, which does not notice.

    The model is in evaluation mode meanwhile and no gradients are recorded. Parameters, training modes and torch's
    random state are as before afterwards, also after an exception.

    Args:
        model: The model in training, wrapped or not.
        residual: The residual; have it where the model is (`residual.to(device)`) if this is done often.
        evaluate: Called with the model; what it returns is handed on.
        scale: As for `apply_residual`.

    Returns:
        Both scores.

    Examples:
        >>> from instructresidual import residual
        >>> base, instruct = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
        >>> found = track(base, residual(base, instruct), lambda model: model.weight.item())
        >>> found.base == base.weight.item(), abs(found.residual - instruct.weight.item()) < 1e-6
        (True, True)
    """
    with _undisturbed(model):
        before = evaluate(model)
        with applied(model, residual, scale):
            return Tracked(before, evaluate(model))


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    with torch.random.fork_rng(devices=[device.index for device in devices]), torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training


def compare_strategies(
    base: Model,
    instruct: Model,
    continue_pretraining: Callable[[Model], object],
    evaluate: Callable[[Model], Score],
    *,
    scale: Scale = 1.0,
) -> dict[str, Score]:
    """Score the four strategies of the paper (arXiv 2410.10739, section 3) and the untouched instruct model.

    Args:
        base: The base model; it is copied, never changed.
        instruct: The instruct model; likewise.
        continue_pretraining: Trains the model it is called with in place; called once with a copy of either, so let
            it seed its own order of batches.
        evaluate: Called with a model in evaluation mode.
        scale: As for `apply_residual`.

    Returns:
        Scores under `"instruct"`, `"S1"` (instruct, continued), `"S2"` (base, continued), `"S3"` (base, continued,
        plus residual: the proposal) and `"S4"` (instruct, continued, plus residual).

    Examples:
        >>> base, instruct = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
        >>> _ = base.weight.data.fill_(1.0), instruct.weight.data.fill_(3.0)
        >>> compare_strategies(base, instruct, lambda m: m.weight.data.add_(0.5), lambda m: m.weight.item())
        {'instruct': 3.0, 'S1': 3.5, 'S2': 1.5, 'S3': 3.5, 'S4': 5.5}
    """
    found = residual_of(base, instruct)
    scores = {}
    with _undisturbed(instruct):
        scores["instruct"] = evaluate(instruct)
    for names, start in ((("S1", "S4"), instruct), (("S2", "S3"), base)):
        model = copy.deepcopy(start)
        continue_pretraining(model)
        both = track(model, found, evaluate, scale=scale)
        scores |= {names[0]: both.base, names[1]: both.residual}
    return {name: scores[name] for name in ("instruct", "S1", "S2", "S3", "S4")}
