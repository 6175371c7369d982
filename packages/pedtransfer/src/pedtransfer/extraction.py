"""Features and labels of a model and a loader, whatever the model's output looks like."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pedtransfer._checks import as_tensor

Pool = Callable[[Tensor], Tensor]
_POOLS = ("avg", "max", "cls", "last", "flatten")


@torch.no_grad()
def extract_features(
    model: nn.Module,
    loader: Iterable[Any],
    layer: str | None = None,
    device: torch.device | str | None = None,
    pool: str | Pool = "avg",
    *,
    progress: Callable[[int, int | None], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Run a model once over a loader and keep one feature vector a sample.

    Without `layer`, features are what a new head would be given: for a timm model its pooled features before the
    classifier (`forward_head(..., pre_logits=True)`), for a transformers model the last hidden state under its head
    (`base_model`), for any other module **its output**: name a layer where that is logits, such as `"avgpool"` of a
    torchvision ResNet. `torch.compile` and DistributedDataParallel around the model are looked through, LoRA acts.

    Args:
        model: Any module. It runs in evaluation mode, without gradients, where it is; every part's mode is as before
            afterwards.
        loader: Batches `(inputs, labels, ...)` or mappings with `"labels"` or `"label"`. Inputs that are mappings are
            given as keywords.
        layer: Name of a submodule, as in `named_modules`, whose output is taken. It must run once a batch.
        device: Where batches are sent; the device of the model's parameters if None.
        pool: How (batch, tokens, D) or (batch, D, height, width) becomes (batch, D): `"avg"`, `"max"`, the first token
            `"cls"`, the `"last"` token, `"flatten"`, or a function. An `attention_mask` among the inputs keeps padding
            out of `"avg"`, `"max"` and `"last"`. Outputs (batch, D) stay as they are.
        progress: Called as `progress(batches_done, batches)`, the latter None for loaders without a length.

    Returns:
        Features (N, D), float32 at least, and labels (N, ...), both on the CPU.

    Raises:
        ValueError: If there is no such layer, it does not run once a batch, the loader is empty, or shapes do not fit.
        TypeError: If a batch or an output has no form that is known.

    Examples:
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> loader = DataLoader(TensorDataset(torch.ones(5, 3, 8, 8), torch.arange(5)), batch_size=2)
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 9))
        >>> features, labels = extract_features(model, loader, layer="1")
        >>> features.shape, labels.tolist()
        (torch.Size([5, 4]), [0, 1, 2, 3, 4])
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch module, got {type(model).__name__}")
    if progress is not None and not callable(progress):
        raise TypeError(f"progress must be a function of batches done and all, got {progress!r}")
    if not callable(pool) and pool not in _POOLS:
        raise ValueError(f"pool must be a function or one of {list(_POOLS)}, got {pool!r}")
    bare = _unwrapped(model)
    run = _layer_runner(bare, layer) if layer is not None else _own_runner(bare)
    device = _device_of(bare) if device is None else torch.device(device)
    total = len(loader) if isinstance(loader, Sized) else None
    features: list[Tensor] = []
    labels: list[Tensor] = []
    with _evaluating(bare):
        for index, batch in enumerate(loader):
            inputs, target = _split(batch)
            inputs = _moved(inputs, device)
            mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
            found = _pooled(run(inputs), pool, mask)
            if len(found) != len(target):
                raise ValueError(
                    f"layer must give one row a sample, got {tuple(found.shape)} for {len(target)} labels"
                )
            if features and found.shape[1:] != features[0].shape[1:]:
                raise ValueError(
                    f"pool must give every batch the same D, got {features[0].shape[1]} and {found.shape[1]}"
                )
            features.append(found.to("cpu", torch.promote_types(found.dtype, torch.float32)))
            if labels and target.shape[1:] != labels[0].shape[1:]:
                shapes = [tuple(part.shape[1:]) for part in (labels[0], target)]
                raise ValueError(f"labels must have one shape a sample, got {shapes[0]} and {shapes[1]}")
            labels.append(target.cpu())
            if progress is not None:
                progress(index + 1, total)
    if not features:
        raise ValueError("loader must give at least one batch, got none")
    return torch.cat(features), torch.cat(labels)


def _unwrapped(model: Any) -> nn.Module:
    """The module under `torch.compile`, data parallelism and PEFT, whose adapters stay inside of it."""
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        return _unwrapped(model.module)
    if isinstance(getattr(model, "_orig_mod", None), nn.Module):
        return _unwrapped(model._orig_mod)
    if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
        if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
            raise ValueError("model must not learn prompts (PEFT): its features would be those without them")
        return _unwrapped(model.get_base_model())
    return model


def _device_of(model: nn.Module) -> torch.device:
    tensor = next(model.parameters(), next(model.buffers(), None))
    return torch.device("cpu") if tensor is None else tensor.device


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _call(function: Callable[..., Any], inputs: Any) -> Any:
    return function(**inputs) if isinstance(inputs, Mapping) else function(inputs)


def _own_runner(model: Any) -> Callable[[Any], Tensor]:
    """How a model of timm, of transformers, or of nobody known is asked for its features."""
    if hasattr(model, "forward_features") and hasattr(model, "forward_head"):
        return lambda inputs: _tensor(
            model.forward_head(_call(model.forward_features, inputs), pre_logits=True)
        )
    if hasattr(model, "base_model_prefix") and isinstance(getattr(model, "base_model", None), nn.Module):
        return lambda inputs: _tensor(_call(model.base_model, inputs))
    return lambda inputs: _tensor(_call(model, inputs))


def _layer_runner(model: nn.Module, layer: str) -> Callable[[Any], Tensor]:
    modules = dict(model.named_modules())
    if layer not in modules:
        near = get_close_matches(str(layer), modules, n=3) or [name for name in modules if name][-3:]
        raise ValueError(f"layer must be the name of a submodule, got {layer!r}; there are {near}")

    def run(inputs: Any) -> Tensor:
        outputs: list[Any] = []
        handle = modules[layer].register_forward_hook(lambda _, __, output: outputs.append(_kept(output)))
        try:
            _call(model, inputs)
        finally:
            handle.remove()
        if len(outputs) != 1:
            raise ValueError(f"layer must run once a batch, got {len(outputs)} runs of {layer!r}")
        return outputs[0]

    return run


def _kept(output: Any) -> Tensor:
    """A copy of the features: a next layer may work in place, as nn.ReLU(inplace=True) does."""
    return _tensor(output).clone()


def _tensor(output: Any) -> Tensor:
    """The features in an output: the tensor, the last hidden state, or the first of a tuple."""
    if isinstance(output, Tensor):
        return output
    fields = output if isinstance(output, Mapping) else getattr(output, "__dict__", {})
    if isinstance(fields.get("last_hidden_state"), Tensor):
        return fields["last_hidden_state"]
    if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
        return output[0]
    tensors = [key for key, value in fields.items() if isinstance(value, Tensor)]
    if len(tensors) == 1:
        return fields[tensors[0]]
    raise TypeError(
        "model's output must be a tensor, hold last_hidden_state or one tensor, or begin with one; "
        f"got {type(output).__name__} with {tensors}: name a layer"
    )


def _split(batch: Any) -> tuple[Any, Tensor]:
    if isinstance(batch, Mapping):
        inputs = dict(batch)
        names = [name for name in ("labels", "label") if name in inputs]
        if not names:
            raise TypeError(f"batches must have 'labels' or 'label', got {sorted(map(str, inputs))}")
        return inputs, _labels(inputs.pop(names[0]))
    if isinstance(batch, tuple | list) and len(batch) >= 2:
        return batch[0], _labels(batch[1])
    raise TypeError(f"batches must be (inputs, labels) or mappings, got {type(batch).__name__}")


def _labels(labels: Any) -> Tensor:
    if np.ndim(labels) == 0:
        raise TypeError("loader must give batches, got one label: put the data set in a DataLoader")
    tensor = as_tensor("labels", labels)
    return tensor[:, 0] if tensor.dim() == 2 and tensor.shape[1] == 1 else tensor


def _moved(inputs: Any, device: torch.device) -> Any:
    if isinstance(inputs, Mapping):
        return {key: _moved(value, device) for key, value in inputs.items()}
    return inputs.to(device) if isinstance(inputs, Tensor) else inputs


def _pooled(output: Tensor, pool: str | Pool, mask: Tensor | None) -> Tensor:
    """Make (batch, D) of (batch, D), (batch, tokens, D) or (batch, D, height, width)."""
    if callable(pool):
        found = pool(output)
        if found.dim() != 2:
            raise ValueError(f"pool must give (batch, D), got {tuple(found.shape)}")
        return found
    if output.dim() == 2:
        return output
    if pool == "flatten":
        return output.flatten(1)
    if output.dim() == 4:
        output, mask = output.flatten(2).transpose(1, 2), None
    if output.dim() != 3:
        raise ValueError(
            f"output must be (batch, D), (batch, tokens, D) or (batch, D, height, width), got {tuple(output.shape)}"
        )
    if mask is None or mask.shape != output.shape[:2]:
        mask = output.new_ones(output.shape[:2])
    return _pooled_tokens(output, pool, mask.bool())


def _pooled_tokens(tokens: Tensor, pool: str, mask: Tensor) -> Tensor:
    exact = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    if pool == "cls":
        return exact[:, 0]
    if pool == "last":
        place = (torch.arange(mask.shape[1], device=mask.device) * mask).argmax(1)
        return exact[torch.arange(len(exact), device=exact.device), place]
    if pool == "max":
        return exact.masked_fill(~mask[..., None], float("-inf")).amax(1)
    weights = mask[..., None].to(exact.dtype)
    return (exact * weights).sum(1) / weights.sum(1).clamp_min(1)
