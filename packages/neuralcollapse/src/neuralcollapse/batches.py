"""What loaders give and models return: inputs and labels, logits, and features as vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn

from neuralcollapse.statistics import inner_products

Pooling = Literal["auto", "mean", "token_mean", "flatten"] | Callable[[Tensor], Tensor]
POOLINGS = ("auto", "mean", "token_mean", "flatten")


def split(batch: Any) -> tuple[Any, Any]:
    """Input and labels of a batch: a mapping with labels among its items, or a sequence that begins with the two."""
    if isinstance(batch, Mapping):
        for key in ("labels", "label"):
            if key in batch:
                return {name: value for name, value in batch.items() if name != key}, batch[key]
        raise ValueError(f"loader must give labels as 'labels' or 'label', got {list(batch)}: use prepare")
    if isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch) >= 2:
        return batch[0], batch[1]
    raise TypeError(
        f"loader must give mappings, or inputs and labels, got {type(batch).__name__}: prepare makes them of it"
    )


def forward(model: nn.Module, inputs: Any) -> Any:
    """The model's output; items of a mapping are arguments by name."""
    return model(**inputs) if isinstance(inputs, Mapping) else model(inputs)


def moved(value: Any, device: torch.device | None) -> Any:
    """All tensors in mappings, tuples and lists on a device; where they are if it is None."""
    if device is None:
        return value
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {name: moved(item, device) for name, item in value.items()}
    if isinstance(value, tuple | list):
        items = [moved(item, device) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def device_of(model: nn.Module) -> torch.device | None:
    """Where the model's first parameter or buffer is."""
    first = next(chain(model.parameters(), model.buffers()), None)
    return None if first is None else first.device


def logits_of(output: Any) -> Any:
    """The logits of a model's output: its `logits` or `"logits"` if it has them, its first item, or itself."""
    if isinstance(output, Mapping):
        return output.get("logits")
    if hasattr(output, "logits"):
        return output.logits
    return output[0] if isinstance(output, tuple | list) and output else output


def predicted_classes(logits: Any, num_samples: int, num_classes: int) -> Tensor:
    """`[B]`, the largest of each row; raise unless these are logits `[B, num_classes]`."""
    advice = "give logits, a function of the output (lambda output: None where there are none: no NC4)"
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"model must return logits [B, {num_classes}], or have them as 'logits', got {type(logits).__name__}: "
            + advice
        )
    if logits.shape != (num_samples, num_classes):
        raise ValueError(
            f"model must return logits [{num_samples}, {num_classes}], got {tuple(logits.shape)}: {advice}"
        )
    if bool(logits.isnan().any()):
        raise ValueError("model must not return NaN as logits")
    return logits.argmax(1)


def first_tensor(name: str, output: Any) -> Tensor:
    """The features in what a layer takes or gives: a tensor, the first item, or the last hidden state."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, tuple | list) and output:
        return first_tensor(name, output[0])
    hidden = output.get("last_hidden_state") if isinstance(output, Mapping) else None
    if isinstance(hidden, Tensor):
        return hidden
    raise TypeError(
        f"layers must give a tensor, or a tuple that begins with one, got {type(output).__name__} from {name!r}: "
        "name a module inside it"
    )


class LinearCheck:
    """Whether a layer adds no more than a bias to `inputs weight^T`, as far as half precision can tell.

    Attributes:
        linear: What was found; `None` while all inputs were alike, which tells nothing, such as those of one sample.
    """

    def __init__(self) -> None:
        self.linear: bool | None = None
        self._first: tuple[Tensor, Tensor, Tensor] | None = None

    def see(self, weight: Tensor, inputs: Tensor, output: Any) -> None:
        """Judge by one forward, if nothing is known yet."""
        if self.linear is not None:
            return
        shape = (weight.shape[1], len(weight))
        if not isinstance(output, Tensor) or (inputs.shape[-1], output.shape[-1]) != shape:
            self.linear = False
            return
        x, y = inputs.flatten(0, -2).float(), output.detach().flatten(0, -2).float()
        if not len(x):
            return
        if self._first is None or not torch.equal(self._first[2], weight):  # trained in between
            self._first = x[:1].clone(), y[:1].clone(), weight.clone()
        expected = inner_products(x - self._first[0], weight.to(x))
        size, error = torch.linalg.norm(expected), torch.linalg.norm(y - self._first[1] - expected)
        if bool(error > 0.02 * size + 1e-30):
            self.linear = False
        elif bool(size > 0):
            self.linear = True


def pooled(output: Tensor, pool: Pooling, mask: Tensor | None) -> Tensor:
    """`[B, d]` of what a layer gives; `mask` `[B, T]` tells tokens from padding."""
    if callable(pool):
        features = pool(output)
        if not isinstance(features, Tensor) or features.dim() != 2:
            got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(
                f"pool must return features [B, d], got {got} of an output {tuple(output.shape)}"
            )
        return features
    if output.dim() < 2:
        raise ValueError(f"layers must give at least [B, d], got an output of shape {tuple(output.shape)}")
    if pool == "flatten" or output.dim() <= 2:
        return output.flatten(1)
    if pool == "token_mean":
        if mask is None or mask.shape != output.shape[:2] or output.dim() != 3:
            return output.flatten(1, -2).mean(1)
        weight = mask.to(output)[..., None]
        return (output * weight).sum(1) / weight.sum(1)
    if pool == "auto" and output.dim() == 3:
        raise ValueError(
            f"pool must say what an output of shape {tuple(output.shape)} is: 'token_mean' of [B, T, d], 'mean' of "
            "[B, d, T], 'flatten', or a function"
        )
    return output.flatten(2).mean(2)
