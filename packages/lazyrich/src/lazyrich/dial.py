"""The dial: an output scale that moves any model between the lazy and the rich regime."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lazyrich._checks import checked_float
from lazyrich._models import has_statistics, logits_of


class OutputScale(nn.Module):
    """Multiply a model's output by `alpha`, optionally counted from where it started (section 3 of the paper).

    f_alpha(x) = alpha * (f(x; theta) - c * f(x; theta_0)), with c = 1 if `centered` and 0 if not. Large `alpha` is
    lazy: the output fits before the weights, and with them the tangent kernel, have moved. Small `alpha` is rich. Train
    it with `scaled_lr(learning_rate, alpha)`, or the dial turns the speed as well. For a classifier `alpha` is an
    inverse temperature. Without centring an output of order one starts at order `alpha`.

    The model may return a tensor, or a mapping or object with `logits`; of these the logits are scaled. `centered`
    holds a frozen copy of the model, in evaluation mode for good: twice the memory, and two forward passes.

    Args:
        model: The model; its own input and everything else stay as they are.
        alpha: Output scale, greater than 0.
        centered: Subtract the output at initialisation, which is that at the time of this call.

    Raises:
        ValueError: If `alpha` is not greater than 0, or `centered` meets a layer with batch normalisation, running
            statistics or dropout: f(x; theta_0) is no fixed function there while training. In `forward`, if the
            model's output holds a loss of its own, which the scale would miss. In `load_state_dict`, if the
            checkpoint has another `alpha` or `centered`.
        TypeError: In `forward`, if the output is neither a tensor nor has `logits`.

    Examples:
        >>> model = OutputScale(nn.Linear(3, 1), alpha=4.0, centered=True)
        >>> model(torch.ones(2, 3)).abs().max().item()
        0.0
    """

    def __init__(self, model: nn.Module, alpha: float, centered: bool = False) -> None:
        super().__init__()
        self.alpha = checked_float("alpha", alpha, above=0.0)
        self.centered = bool(centered)
        if self.centered:
            _refuse_random(model)
        self.model = model
        self.initial = copy.deepcopy(model).requires_grad_(False).eval() if self.centered else None

    def train(self, mode: bool = True) -> OutputScale:
        """Set the mode of the model; the frozen copy stays in evaluation mode."""
        super().train(mode)
        if self.initial is not None:
            self.initial.eval()
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the model returns, its output scaled.

        Args:
            *args: The model's own.
            **kwargs: The model's own.
        """
        output = self.model(*args, **kwargs)
        scaled = logits_of(output)
        if self.initial is not None:
            with torch.no_grad():
                start = logits_of(self.initial(*args, **kwargs))
            scaled = scaled - start
        return _replaced(output, self.alpha * scaled)

    def get_extra_state(self) -> Tensor:
        """What decides the output beside the weights."""
        return torch.tensor([self.alpha, float(self.centered)], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Refuse a checkpoint of another dial."""
        alpha, centered = state.tolist()
        if alpha != self.alpha or bool(centered) != self.centered:
            raise ValueError(
                f"state_dict has alpha={alpha} and centered={bool(centered)}, but this module was made with "
                f"alpha={self.alpha} and centered={self.centered}"
            )


def scaled_lr(learning_rate: float, alpha: float, *, adaptive: bool = False) -> float:
    """The learning rate at which the output moves as fast as at `alpha` = 1.

    The output moves by alpha^2 K times the step of gradient descent, hence learning_rate / alpha^2; an optimizer whose
    step does not grow with the gradient (Adam, sign descent) moves it by alpha, hence learning_rate / alpha.

    Args:
        learning_rate: That at `alpha` = 1, greater than 0.
        alpha: Output scale, greater than 0.
        adaptive: Whether the optimizer divides by the size of the gradient.

    Returns:
        The learning rate to give the optimizer.

    Raises:
        ValueError: If either is not greater than 0.

    Examples:
        >>> scaled_lr(0.1, 10.0), scaled_lr(0.1, 10.0, adaptive=True)
        (0.001, 0.01)
    """
    alpha = checked_float("alpha", alpha, above=0.0)
    return checked_float("learning_rate", learning_rate, above=0.0) / (alpha if adaptive else alpha**2)


def _refuse_random(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if _draws(module) or has_statistics(module):
            raise ValueError(
                f"centered=True needs a fixed function f(x; theta_0), but {type(module).__name__} at "
                f"{name or 'the top'!r} answers otherwise while training; take it out, or centered=False"
            )


def _draws(module: nn.Module) -> bool:
    """Whether a layer is random while training."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase):
        return module.dropout > 0
    return isinstance(module, nn.RReLU)


def _replaced(output: Any, logits: Tensor) -> Any:
    """The output as it was, with other logits."""
    if isinstance(output, Tensor):
        return logits
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if loss is not None:
        raise ValueError(
            "model computed its loss from outputs before they were scaled; call it without labels and take the "
            "loss of the scaled logits"
        )
    changed = copy.copy(output)
    if isinstance(changed, Mapping):
        changed["logits"] = logits  # type: ignore[index]
    else:
        changed.logits = logits
    return changed
