"""What is asked of a user's model: its output, its parameters, its mode."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Forward = Callable[[nn.Module, Any], Tensor]


def logits_of(output: Any) -> Tensor:
    """The tensor that a model returns, alone or as `logits`."""
    if isinstance(output, Mapping) and "logits" in output:
        output = output["logits"]
    elif isinstance(getattr(output, "logits", None), Tensor):
        output = output.logits
    if isinstance(output, Tensor):
        return output
    raise TypeError(
        f"model must return a tensor, or a mapping or object with logits, got {type(output).__name__}; "
        "pass forward= (or wrap the model) to pick the tensor"
    )


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside torch.compile and the wrappers of data parallelism, whose forward passes expect training."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def call(model: nn.Module, x: Any, forward: Forward | None) -> Tensor:
    """The model's output (n, points, outputs of a point) on a batch."""
    output = shaped(model, x, forward)
    if output.ndim == 1:
        output = output.unsqueeze(1)
    return output.reshape(output.shape[0], -1, output.shape[-1])


def shaped(model: nn.Module, x: Any, forward: Forward | None) -> Tensor:
    """The model's output as it is."""
    if forward is not None:
        output = forward(model, x)
        if not isinstance(output, Tensor):
            raise TypeError(f"forward must return a tensor, got {type(output).__name__}")
    elif isinstance(x, Mapping):
        output = logits_of(model(**x))
    elif isinstance(x, tuple | list):
        output = logits_of(model(*x))
    else:
        output = logits_of(model(x))
    if output.ndim == 0 or output.shape[0] != size(x):
        raise ValueError(
            f"model must give one output per sample, got shape {tuple(output.shape)} for {size(x)} samples"
        )
    if not output.is_floating_point():
        raise TypeError(f"model must return real floating-point numbers, got {output.dtype}")
    return output


def refuse_running_statistics(model: nn.Module) -> None:
    """Before any forward pass, since that would already change the buffers of what is refused."""
    for name, module in model.named_modules():
        if module.training and has_statistics(module):
            raise ValueError(
                f"model has {type(module).__name__} at {name or 'the top'!r} in training mode, batch normalisation or "
                "running statistics that each pass changes: call model.eval() first"
            )


def has_statistics(module: nn.Module) -> bool:
    """Whether a layer normalises by other statistics in training than in evaluation."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return True
    return isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats


def size(x: Any) -> int:
    """Samples in a batch: a tensor, or a tuple or mapping of them, nested or not."""
    for one in _leaves(x):
        if isinstance(one, Tensor) and one.ndim > 0:
            return one.shape[0]
    raise TypeError(f"x must be a tensor, or a tuple or mapping that holds one, got {type(x).__name__}")


def checked_batch(name: str, x: Any) -> Any:
    """A batch without gradients and inference tensors, all of whose tensors run over the same samples."""
    number = size(x)
    lengths = {one.shape[0] for one in _leaves(x) if isinstance(one, Tensor) and one.ndim > 0}
    if len(lengths) > 1:
        raise ValueError(f"{name} must hold tensors of one number of samples, got {sorted(lengths)}")
    if number == 0:
        raise ValueError(f"{name} must hold at least one sample, got none")
    with torch.inference_mode(False):
        return _mapped(x, lambda one: one.clone() if one.is_inference() else one.detach())


def take(x: Any, rows: slice | list[int]) -> Any:
    """Some samples of a batch."""
    return _mapped(x, lambda one: one[rows] if one.ndim else one)


def fingerprint(*batches: Any) -> list[float]:
    """Numbers by which a batch is known again: sums over every tensor, plain and by position."""
    found = []
    for leaf in (leaf for batch in batches for leaf in _leaves(batch) if isinstance(leaf, Tensor)):
        values = leaf.detach().double().flatten().cpu()
        places = torch.arange(1, 1 + len(values), dtype=torch.float64).sqrt()
        found += [float(values.sum()), float(values @ places)]
    return found


def _leaves(x: Any) -> list[Any]:
    if isinstance(x, Mapping):
        x = tuple(x.values())
    return [leaf for one in x for leaf in _leaves(one)] if isinstance(x, tuple | list) else [x]


def _mapped(x: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(x, Mapping):
        return {name: _mapped(one, change) for name, one in x.items()}
    if isinstance(x, tuple | list):
        return tuple(_mapped(one, change) for one in x)
    return change(x) if isinstance(x, Tensor) else x


def trainable(model: nn.Module, params: Iterable[Tensor] | None) -> list[Tensor]:
    """The parameters that the kernel is over, each once."""
    if params is None:
        found: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        if not found:
            raise TypeError("model has no parameter that requires a gradient")
    else:
        if isinstance(params, Tensor):
            raise TypeError("params must be an iterable of the model's parameters, got one tensor")
        own = {id(p) for p in model.parameters()}
        found = list({id(p): p for p in params}.values())
        if not found:
            raise ValueError("params must hold at least one parameter, got none")
        for i, p in enumerate(found):
            if not isinstance(p, Tensor) or id(p) not in own:
                raise ValueError(f"params must be parameters of the model, but number {i} is not")
            if not p.requires_grad:
                raise ValueError(f"params must require gradients, but number {i} does not")
    for p in found:
        if p.is_inference():
            raise ValueError("model was built in inference mode, so that its parameters have no gradients")
        if p.is_complex():
            raise TypeError("model has complex parameters; the kernel is defined for real ones")
    return found


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, each submodule's own mode restored; `eval()` is not called, since some layers merge weights."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def differentiating() -> Iterator[None]:
    """Gradients on, and compiled parts run as they were written, so that their operations can be seen."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield
