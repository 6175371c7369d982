"""Batches as loaders make them, tensors or mappings and tuples of tensors, cut along the samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn


def num_samples(batch: Any, name: str) -> int | None:
    """Count the samples of a batch.

    Args:
        batch: A tensor (N, *), or a mapping, list or tuple of batches; None and plain settings have no samples.
        name: The argument, for the error.

    Returns:
        N, or None if there is no tensor.

    Raises:
        TypeError: If something is in it that is neither a tensor nor a plain setting.
        ValueError: If tensors differ in length.
    """
    lengths = {where: len(tensor) for where, tensor in _tensors(batch, name)}
    for where, length in lengths.items():
        if length != next(iter(lengths.values())):
            first = next(iter(lengths))
            raise ValueError(
                f"{name} must hold tensors of one length, got {lengths[first]} in {first} and {length} in {where}"
            )
    return next(iter(lengths.values()), None)


def split(batch: Any, sizes: list[int]) -> list[Any]:
    """Cut a batch into runs of consecutive samples.

    Args:
        batch: See `num_samples`.
        sizes: Samples in each run.

    Returns:
        A batch of the same structure for each run; what is no tensor is in all of them.
    """
    if isinstance(batch, Tensor) and batch.dim() > 0:
        return list(batch.split(sizes))
    if isinstance(batch, Mapping) and batch:
        parts = [split(value, sizes) for value in batch.values()]
        return [dict(zip(batch, part, strict=True)) for part in zip(*parts, strict=True)]
    if isinstance(batch, tuple | list) and batch:
        return [
            type(batch)(*part) if hasattr(batch, "_fields") else type(batch)(part)
            for part in zip(*(split(value, sizes) for value in batch), strict=True)
        ]
    return [batch] * len(sizes)


def call(model: nn.Module, inputs: Any) -> Any:
    """Call a model on one tensor, on keywords or on several arguments.

    Args:
        model: The model.
        inputs: A batch, see `num_samples`.

    Returns:
        What the model returns.
    """
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, tuple | list):
        return model(*inputs)
    return model(inputs)


def _tensors(batch: Any, where: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(batch, Tensor):
        if batch.dim() > 0:
            yield where, batch
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from _tensors(value, f"{where}[{key!r}]")
    elif isinstance(batch, tuple | list):
        for index, value in enumerate(batch):
            yield from _tensors(value, f"{where}[{index}]")
    elif not (batch is None or isinstance(batch, bool | int | float | str)):
        raise TypeError(
            f"{where} must be a tensor, or a mapping, list or tuple of tensors, got {type(batch).__name__}"
        )
