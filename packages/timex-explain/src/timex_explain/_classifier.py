"""Somebody's classifier as a part of the explainer: copied, kept apart, kept in its mode, differentiated."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn

from timex_explain._checks import check_device

Part = TypeVar("Part", bound=nn.Module)


def frozen_copy(reference: nn.Module) -> nn.Module:
    """Copy a classifier for reading alone: in evaluation mode, and without gradients."""
    return copy_of(reference).requires_grad_(False).eval()


def make_encoder(reference: nn.Module, encoder: nn.Module | str | None) -> nn.Module | None:
    """Give the module that sees masked series; None stands for the frozen classifier.

    A copy of a classifier in evaluation mode is in training mode, as a new module is: it is trained, and
    cuDNN has no gradient of recurrent layers in evaluation mode.
    """
    if encoder is None:
        copied = copy_of(reference).train()
        for parameter in copied.parameters():  # quantised weights are integers, which have no gradient
            parameter.requires_grad_(parameter.is_floating_point())
        return copied
    check_apart(encoder, reference, "encoder")
    if isinstance(encoder, nn.Module):
        return encoder
    if encoder != "shared":
        raise ValueError(f"encoder must be a module, 'shared' or None, got {encoder!r}")
    return None


def copy_of(module: Part) -> Part:
    """Copy a module deeply, also one that keeps a result of its last pass.

    Such a result, as `torch.nn.utils.weight_norm` keeps, has a gradient, and torch copies no such tensor.
    """
    results = [
        value
        for part in module.modules()
        for value in vars(part).values()
        if isinstance(value, Tensor) and not value.is_leaf
    ]
    copied = copy.deepcopy(module, {id(value): value.detach().clone() for value in results})
    for part in copied.modules():  # what was made in inference mode cannot be trained
        for name, buffer in part.named_buffers(recurse=False):
            if buffer.is_inference():
                part.register_buffer(name, buffer.clone(), name not in part._non_persistent_buffers_set)
        for name, parameter in part.named_parameters(recurse=False):
            if parameter.is_inference():
                part.register_parameter(name, nn.Parameter(parameter.clone(), parameter.requires_grad))
    return copied


def check_apart(module: object, reference: nn.Module, name: str) -> None:
    """Refuse a module whose training would change the caller's classifier."""
    if not isinstance(module, nn.Module):
        return
    own = {id(parameter) for parameter in reference.parameters()}
    if any(id(parameter) in own for parameter in module.parameters()):
        raise ValueError(f"{name} must share no parameters with the classifier, which training would change")


def check_fits(reference: nn.Module, mean: Tensor) -> None:
    """Refuse a classifier that is elsewhere than the series were, or of another precision throughout."""
    dtypes = set()
    for parameter in reference.parameters():
        check_device(parameter, mean.device, "reference")
        if parameter.is_floating_point():
            dtypes.add(parameter.dtype)
    if dtypes and mean.dtype not in dtypes:
        told = " or ".join(sorted(map(str, dtypes)))
        raise TypeError(
            f"replacement must have the classifier's dtype, {told}, got {mean.dtype}: fit it on series of that dtype"
        )


@contextmanager
def modes_kept(module: nn.Module) -> Iterator[None]:
    """Put every part back in the mode it was in, whatever happens meanwhile."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put everything in evaluation mode, and back as it was."""
    with modes_kept(module):
        for part in module.modules():
            part.training = False
        yield


def differentiable(model: object, x: Tensor) -> AbstractContextManager[object]:
    """Leave out cuDNN where recurrent layers may be: in evaluation mode it has no gradient of them.

    A function may hide such a layer, so only a module that shows none keeps cuDNN.
    """
    if x.is_cuda and may_recur(model):
        return torch.backends.cudnn.flags(enabled=False)
    return nullcontext()


def may_recur(model: object) -> bool:
    """Whether a recurrent layer of torch may be in it."""
    return not isinstance(model, nn.Module) or any(isinstance(part, nn.RNNBase) for part in model.modules())
