"""Test streams of shifting domains, and the error of whatever adapts to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import default_collate

from robustmeanteacher.split import logits_of

Domain = Any
"""A pair of tensors (images, labels), or anything with `len` whose items are pairs (image, label)."""

_Sample = tuple[str, Domain, int]


class StreamBatch(NamedTuple):
    """A batch of a stream; unpacks as `images, labels, domains`."""

    images: Tensor
    labels: Tensor
    domains: tuple[str, ...]
    """Name of the domain of each sample. The adapting model is not told."""


def continual_stream(
    domains: Mapping[str, Domain],
    batch_size: int,
    *,
    loops: int = 1,
    drop_last: bool = False,
    generator: torch.Generator | None = None,
) -> Iterator[StreamBatch]:
    """One domain after the other, with abrupt changes (the continual setting of Wang et al. 2022).

    Args:
        domains: Name -> domain, in the order of the stream.
        batch_size: Samples per batch; no batch spans two domains.
        loops: How many times the whole sequence comes.
        drop_last: Leave out a smaller last batch of a domain: a batch of one has no batch statistics.
        generator: Order of the samples within a domain; torch's global one if None.

    Returns:
        Iterator over batches.

    Raises:
        ValueError: If there is no domain, one is empty, or a number is below 1.

    Examples:
        >>> day, night = (torch.ones(4, 1), torch.arange(4)), (torch.zeros(4, 1), torch.arange(4))
        >>> [batch.domains for batch in continual_stream({"day": day, "night": night}, batch_size=2)]
        [('day', 'day'), ('day', 'day'), ('night', 'night'), ('night', 'night')]
    """
    _check(domains, batch_size)
    if loops < 1:
        raise ValueError(f"loops must be at least 1, got {loops}")
    return _domain_after_domain(list(domains.items()) * loops, batch_size, drop_last, generator)


def gradual_stream(
    corruptions: Mapping[str, Sequence[Domain]],
    batch_size: int,
    *,
    drop_last: bool = False,
    generator: torch.Generator | None = None,
) -> Iterator[StreamBatch]:
    """Severity rises and falls, 1-2-3-4-5-4-3-2-1, before the next corruption sets in (arXiv 2211.13081, section 4).

    Args:
        corruptions: Name -> its domains from mild to severe. Batches are labelled `"name-severity"`.
        batch_size: Samples per batch; no batch spans two severities.
        drop_last: Leave out a smaller last batch of a domain.
        generator: Order of the samples within a domain; torch's global one if None.

    Returns:
        Iterator over batches.

    Raises:
        ValueError: If there is no corruption, one has no severities or an empty domain, or a number is below 1.

    Examples:
        >>> levels = [(torch.zeros(1, 1), torch.zeros(1, dtype=torch.long))] * 3
        >>> [batch.domains[0] for batch in gradual_stream({"noise": levels}, batch_size=1)]
        ['noise-1', 'noise-2', 'noise-3', 'noise-2', 'noise-1']
    """
    sequence = []
    for name, levels in corruptions.items():
        if len(levels) == 0:
            raise ValueError(f"corruptions must have at least one severity each, {name!r} has none")
        up = [(f"{name}-{index}", level) for index, level in enumerate(levels, start=1)]
        sequence += up + up[-2::-1]
    _check(dict(sequence), batch_size, "corruptions")
    return _domain_after_domain(sequence, batch_size, drop_last, generator)


def mixed_stream(
    domains: Mapping[str, Domain],
    batch_size: int,
    *,
    drop_last: bool = False,
    generator: torch.Generator | None = None,
) -> Iterator[StreamBatch]:
    """Samples of all domains shuffled together (the mixed-domains setting of the official benchmark).

    Args:
        domains: Name -> domain; their samples must have one shape.
        batch_size: Samples per batch.
        drop_last: Leave out a smaller last batch.
        generator: The order; torch's global one if None.

    Returns:
        Iterator over batches.

    Raises:
        ValueError: If there is no domain, one is empty, or `batch_size` is below 1.

    Examples:
        >>> day, night = (torch.ones(3, 1), torch.arange(3)), (torch.zeros(3, 1), torch.arange(3))
        >>> (batch,) = mixed_stream({"day": day, "night": night}, batch_size=6)
        >>> sorted(batch.domains)
        ['day', 'day', 'day', 'night', 'night', 'night']
    """
    _check(domains, batch_size)
    samples = [(name, domain, index) for name, domain in domains.items() for index in range(_length(domain))]
    order = _permutation(len(samples), generator)
    return _batches([samples[index] for index in order], batch_size, drop_last)


def correlated_stream(
    domains: Mapping[str, Domain],
    batch_size: int,
    *,
    drop_last: bool = False,
    generator: torch.Generator | None = None,
) -> Iterator[StreamBatch]:
    """One domain after the other, sorted by class within each: batch statistics are then those of a class.

    Args:
        domains: Name -> domain.
        batch_size: Samples per batch.
        drop_last: Leave out a smaller last batch of a domain.
        generator: Order of the samples within a class; torch's global one if None.

    Returns:
        Iterator over batches.

    Raises:
        ValueError: If there is no domain, one is empty, or `batch_size` is below 1.

    Examples:
        >>> day = (torch.zeros(4, 1), torch.tensor([1, 0, 1, 0]))
        >>> [batch.labels.tolist() for batch in correlated_stream({"day": day}, batch_size=2)]
        [[0, 0], [1, 1]]
    """
    _check(domains, batch_size)
    return _sorted_by_class(domains, batch_size, drop_last, generator)


def _domain_after_domain(
    sequence: list[tuple[str, Domain]], batch_size: int, drop_last: bool, generator: torch.Generator | None
) -> Iterator[StreamBatch]:
    for name, domain in sequence:
        order = _permutation(_length(domain), generator)
        yield from _batches([(name, domain, index) for index in order], batch_size, drop_last)


def _sorted_by_class(
    domains: Mapping[str, Domain], batch_size: int, drop_last: bool, generator: torch.Generator | None
) -> Iterator[StreamBatch]:
    for name, domain in domains.items():
        order = _permutation(_length(domain), generator)
        order.sort(key=_labels(domain).__getitem__)  # stable: shuffled within a class
        yield from _batches([(name, domain, index) for index in order], batch_size, drop_last)


def _batches(samples: list[_Sample], batch_size: int, drop_last: bool) -> Iterator[StreamBatch]:
    for start in range(0, len(samples), batch_size):
        batch = samples[start : start + batch_size]
        if drop_last and len(batch) < batch_size:
            return
        names = tuple(name for name, _, _ in batch)
        first = batch[0][1]
        if _is_pair(first) and all(domain is first for _, domain, _ in batch):
            rows = torch.tensor([index for _, _, index in batch], device=first[0].device)
            yield StreamBatch(first[0][rows], first[1][rows.to(first[1].device)], names)
        else:
            pairs = [_item(domain, index) for _, domain, index in batch]
            images = default_collate([image for image, _ in pairs])
            labels = torch.stack([torch.as_tensor(label) for _, label in pairs])
            yield StreamBatch(images, labels, names)


def _is_pair(domain: Domain) -> bool:
    return isinstance(domain, tuple) and len(domain) == 2 and all(isinstance(x, Tensor) for x in domain)


def _length(domain: Domain) -> int:
    return len(domain[1]) if _is_pair(domain) else len(domain)


def _item(domain: Domain, index: int) -> tuple[Any, Any]:
    return (domain[0][index], domain[1][index]) if _is_pair(domain) else domain[index]


def _labels(domain: Domain) -> list[int]:
    if _is_pair(domain):
        return domain[1].tolist()
    return [int(domain[index][1]) for index in range(len(domain))]


def _permutation(length: int, generator: torch.Generator | None) -> list[int]:
    where = None if generator is None else generator.device
    return torch.randperm(length, generator=generator, device=where).tolist()


def _check(domains: Mapping[str, Domain], batch_size: int, name: str = "domains") -> None:
    if not domains:
        raise ValueError(f"{name} must not be empty, got {domains!r}")
    for key, domain in domains.items():
        if _is_pair(domain) and len(domain[0]) != len(domain[1]):
            raise ValueError(
                f"{name} must pair every image with a label, {key!r} has {len(domain[0])} and {len(domain[1])}"
            )
        if _length(domain) == 0:
            raise ValueError(f"{name} must have samples, {key!r} has none")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")


# --- evaluation ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StreamResult:
    """How a stream was classified, predictions made before the model saw what came after.

    Attributes:
        error_by_domain: Share of wrong predictions in each domain, in [0, 1].
        error_by_batch: The same for each batch, in the order of the stream.
        confusion: (K, K) counts, true class by predicted class.
    """

    error_by_domain: dict[str, float]
    error_by_batch: tuple[float, ...]
    confusion: Tensor

    @property
    def mean(self) -> float:
        """Mean error over the domains, as benchmarks report it."""
        return sum(self.error_by_domain.values()) / len(self.error_by_domain)


def evaluate_stream(
    adapter: Callable[[Tensor], Tensor],
    stream: Iterable[tuple[Tensor, Tensor, str | Sequence[str]]],
    *,
    reset_each_shift: bool = False,
) -> StreamResult:
    """Classify a stream batch by batch, each batch once, in order.

    Args:
        adapter: Images (N, ...) -> logits (N, K), or an output with `.logits`; an adapter that learns from each batch,
            or a plain model.
        stream: Batches (images, labels, domains), `domains` naming each sample's, or one name for all.
        reset_each_shift: Call `adapter.reset()` whenever the domain of the first sample changes, which an
            oracle would have to tell.

    Returns:
        Errors and confusion matrix.

    Raises:
        ValueError: If the stream is empty, labels or domains are not one per sample, or a label is none of the
            classes of the logits.
        TypeError: If a reset is asked of something that has no `reset`.

    Examples:
        >>> day = (torch.eye(2), torch.tensor([0, 1]))
        >>> result = evaluate_stream(lambda x: x, continual_stream({"day": day}, batch_size=2))
        >>> result.mean, result.confusion.tolist()
        (0.0, [[1, 0], [0, 1]])
    """
    reset = getattr(adapter, "reset", None)
    if reset_each_shift and not callable(reset):
        raise TypeError(
            f"adapter must have a reset method for reset_each_shift, got {type(adapter).__name__}"
        )
    predictions: list[Tensor] = []
    labels: list[Tensor] = []
    domains: list[str] = []
    num_classes, before = 0, None
    for images, truth, of_batch in stream:
        names = [of_batch] * len(truth) if isinstance(of_batch, str) else of_batch
        if reset_each_shift and before is not None and names[0] != before and reset is not None:
            reset()
        before = names[0]
        logits = logits_of(adapter(images)).detach()
        num_classes = max(num_classes, logits.shape[1])
        if truth.shape != logits.shape[:1] or len(names) != len(truth):
            raise ValueError(
                f"stream must give one label and one domain for each of {len(logits)} samples, "
                f"got labels of shape {tuple(truth.shape)} and {len(names)} domains"
            )
        predictions.append(logits.argmax(1))
        labels.append(truth.long())
        domains += names
    if not labels:
        raise ValueError("stream must have at least one batch, got none")
    # Read back once, at the end: the stream itself never waits for the device.
    found, actual = torch.cat(predictions).cpu(), torch.cat(labels).cpu()
    wrong = (found != actual).double()
    distinct = {name: index for index, name in enumerate(dict.fromkeys(domains))}
    where = torch.tensor([distinct[name] for name in domains])
    errors = torch.bincount(where, wrong) / torch.bincount(where)
    if not 0 <= int(actual.min()) <= int(actual.max()) < num_classes:
        raise ValueError(
            f"stream's labels must be in 0..{num_classes - 1}, the classes of the logits, "
            f"got {int(actual.min())}..{int(actual.max())}"
        )
    confusion = torch.bincount(actual * num_classes + found, minlength=num_classes**2)
    return StreamResult(
        error_by_domain=dict(zip(distinct, errors.tolist(), strict=True)),
        error_by_batch=tuple(part.mean().item() for part in wrong.split([len(truth) for truth in labels])),
        confusion=confusion.view(num_classes, num_classes),
    )
