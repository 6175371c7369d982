"""Batches as loaders give them: their parts, and more of them without end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor


def images_and_labels(batch: Any, name: str) -> tuple[Tensor, Tensor]:
    """The two parts of a labelled batch; class labels as int64, soft ones (n, K) as they are."""
    if (
        not isinstance(batch, (tuple, list))
        or len(batch) != 2
        or not all(isinstance(x, Tensor) for x in batch)
    ):
        raise TypeError(f"{name} must give pairs of tensors (images, labels), got {_described(batch)}")
    images, labels = batch
    soft = labels.is_floating_point() and labels.dim() == 2
    if len(labels) != len(images) or (labels.dim() != 1 and not soft):
        raise ValueError(
            f"{name} must give one label per image, (n,), got shapes {tuple(images.shape)} and {tuple(labels.shape)}"
        )
    if not soft and (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool):
        raise TypeError(f"{name}'s labels must be integers, got {labels.dtype}")
    return images, labels if soft else labels.long()


def images_of(batch: Any, name: str) -> Tensor:
    """The images of a batch that is images alone, or starts with them."""
    images = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(images, Tensor):
        raise TypeError(f"{name} must give images, or pairs that start with them, got {_described(batch)}")
    return images


def trainable(tensor: Tensor) -> Tensor:
    """What inference mode made cannot be part of a graph; a copy can."""
    return tensor.clone() if tensor.is_inference() else tensor.detach()


class Cycle:
    """Batches of a loader, again from the start when it ends."""

    def __init__(self, loader: Iterable[Any], name: str) -> None:
        self._loader, self._name = loader, name
        self._iterator: Iterator[Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Iterators of loaders can be neither copied nor pickled; a copy starts the loader anew.
        return vars(self) | {"_iterator": None}

    def __next__(self) -> Any:
        if self._iterator is None:
            self._iterator = iter(self._loader)
        batch = next(self._iterator, None)
        if batch is None:
            self._iterator = iter(self._loader)
            batch = next(self._iterator, None)
        if batch is None:
            raise ValueError(
                f"{self._name} must give batches for as long as it is asked: it is empty, or an iterator that is "
                "used up (pass the loader itself)"
            )
        return batch


def _described(batch: Any) -> str:
    kind = type(batch).__name__
    return f"{kind} with {sorted(map(str, batch))}" if isinstance(batch, dict) else kind
