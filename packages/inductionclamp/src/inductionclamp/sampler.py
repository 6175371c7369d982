"""The few-shot data of the paper: two labelled exemplars, and a query of one of their classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from math import comb
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inductionclamp._checks import checked_integer, checked_integers

SPLITS = ("train", "held-out")


class FewShotBatch(NamedTuple):
    """Few-shot sequences; unpacks as `(x, y)`.

    Attributes:
        x: Exemplars' features [B, n + 1, F], the query last.
        y: Labels [B, n + 1], the query's last.
    """

    x: Tensor
    y: Tensor


class FewShotSampler:
    """Draw few-shot sequences without end (Singh et al. 2024, section 3).

    A sequence has two classes and a random pair of labels for them: the query's class with one label, a distractor
    with the other, each `burstiness` times, shuffled, then the query. So only the context tells the query's label.
    Unordered pairs of labels are split at construction into training and held-out ones.

    Args:
        features: Features [classes, exemplars, F] of every exemplar.
        class_split: Indices of the training classes, and of the held-out ones (may be empty).
        n_labels: Number of labels L.
        label_split: Numbers of training and held-out pairs, together L (L - 1) / 2.
        context_pairs: Labelled exemplars n in a sequence, twice `burstiness`.
        burstiness: How often each of the two classes stands in the context.
        generator: Draws everything; its device need not be the features'.
        batch_size: Sequences in a batch of the iterator.
        exemplar_split: Numbers of training and held-out exemplars; None takes the first for training and the others as
            held-out ones.

    Raises:
        TypeError: If `features` is no floating-point tensor.
        ValueError: If a size or split does not fit; classes in both splits are named.

    Examples:
        >>> import torch
        >>> from inductionclamp import FewShotSampler
        >>> features = torch.randn(12, 2, 8)
        >>> sampler = FewShotSampler(
        ...     features, (range(8), range(8, 12)), 5, (8, 2), generator=torch.Generator().manual_seed(0)
        ... )
        >>> x, y = sampler.batch(4)
        >>> x.shape, y.shape, bool((y[:, :2] == y[:, 2:]).any(1).all())
        (torch.Size([4, 3, 8]), torch.Size([4, 3]), True)
    """

    def __init__(
        self,
        features: Tensor,
        class_split: tuple[Sequence[int], Sequence[int]],
        n_labels: int,
        label_split: tuple[int, int],
        context_pairs: int = 2,
        burstiness: int = 1,
        generator: torch.Generator | None = None,
        *,
        batch_size: int = 32,
        exemplar_split: tuple[int, int] | None = None,
    ) -> None:
        if not isinstance(features, Tensor) or not features.is_floating_point():
            raise TypeError("features must be a floating-point tensor")
        if features.dim() != 3 or 0 in features.shape:
            raise ValueError(f"features must be [classes, exemplars, F], got {tuple(features.shape)}")
        self.features = features
        self.generator = generator
        self.batch_size = checked_integer("batch_size", batch_size, 1)
        self.burstiness = checked_integer("burstiness", burstiness, 1)
        if checked_integer("context_pairs", context_pairs, 2) != 2 * self.burstiness:
            raise ValueError(
                f"context_pairs must be twice burstiness = {self.burstiness}, got {context_pairs}: a sequence has the "
                "query's class and one distractor"
            )
        self.classes = dict(zip(SPLITS, _class_split(class_split, len(features)), strict=True))
        self.exemplars = _exemplar_split(exemplar_split, features.shape[1])
        self.pairs = dict(zip(SPLITS, self._label_split(n_labels, label_split), strict=True))

    def _label_split(self, n_labels: int, label_split: tuple[int, int]) -> tuple[Tensor, ...]:
        labels = checked_integer("n_labels", n_labels, 2)
        sizes = [checked_integer("label_split", size) for size in label_split]
        if len(sizes) != 2 or sum(sizes) != comb(labels, 2) or sizes[0] == 0:
            raise ValueError(
                f"label_split must be two numbers of pairs, the first not 0, that sum to {comb(labels, 2)} "
                f"for {labels} labels, got {tuple(label_split)}"
            )
        pairs = torch.tensor(list(combinations(range(labels), 2)))
        return pairs[self._order(len(pairs))].split(sizes)

    def __iter__(self) -> Iterator[FewShotBatch]:
        """Draw training batches without end."""
        while True:
            yield self.batch()

    def batch(
        self,
        batch_size: int | None = None,
        *,
        classes: str = "train",
        labels: str = "train",
        exemplars: str = "train",
    ) -> FewShotBatch:
        """Draw one batch.

        Args:
            batch_size: Number of sequences; None is the sampler's.
            classes: `"train"` or `"held-out"`.
            labels: `"train"`, `"held-out"` or `"all"` pairs.
            exemplars: `"train"` or `"held-out"`.

        Returns:
            The batch, on the features' device.

        Raises:
            ValueError: If a split is unknown or empty.
        """
        size = self.batch_size if batch_size is None else checked_integer("batch_size", batch_size)
        pool = _chosen("classes", self.classes, classes, 2)
        pairs = _chosen("labels", {**self.pairs, "all": torch.cat(list(self.pairs.values()))}, labels, 1)
        first, last = self._exemplar_range(exemplars)
        query = self._integers(len(pool), size)
        other = (query + 1 + self._integers(len(pool) - 1, size)) % len(pool)
        both = torch.stack([query, other], 1)
        pair = pairs.to(both.device)[self._integers(len(pairs), size)]
        swap = self._integers(2, size)[:, None].bool()
        pair = torch.where(swap, pair.flip(1), pair)
        place = self._shuffled(size)
        drawn = torch.cat([both.gather(1, place), query[:, None]], 1)
        y = torch.cat([pair.gather(1, place), pair[:, :1]], 1)
        which = first + self._integers(last - first, *drawn.shape)
        device = self.features.device
        x = self.features[pool.to(drawn.device)[drawn].to(device), which.to(device)]
        return FewShotBatch(x, y.to(device))

    def state_dict(self) -> dict[str, Any]:
        """Return what decides the batches to come: the splits, the burstiness and the generator's state."""
        state: dict[str, Any] = {f"pairs.{name}": pairs for name, pairs in self.pairs.items()}
        state |= self._splits()
        if self.generator is not None:
            state["generator"] = self.generator.get_state()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as the sampler that the state is of.

        Args:
            state: What `state_dict` returned.

        Raises:
            ValueError: If the state is of a sampler with other splits or another burstiness, or of one with or without
                generator.
        """
        pairs = {name: state.get(f"pairs.{name}") for name in SPLITS}
        if any(kept is None or kept.shape != self.pairs[name].shape for name, kept in pairs.items()):
            raise ValueError("state must be of a sampler with the same split of labels")
        for name, mine in self._splits().items():
            if name not in state or not torch.equal(torch.as_tensor(state[name]).cpu(), mine):
                raise ValueError(f"state must be of a sampler with the same {name}")
        if ("generator" in state) != (self.generator is not None):
            raise ValueError("state must hold a generator exactly if the sampler has one")
        self.pairs = {name: torch.as_tensor(kept) for name, kept in pairs.items()}
        if self.generator is not None:
            self.generator.set_state(state["generator"])

    def _splits(self) -> dict[str, Tensor]:
        """What a state must share with the sampler that it is loaded into."""
        return {
            **{f"classes.{name}": classes for name, classes in self.classes.items()},
            "exemplars": torch.tensor(list(self.exemplars.values())),
            "burstiness": torch.tensor(self.burstiness),
        }

    def _exemplar_range(self, name: str) -> tuple[int, int]:
        if name not in self.exemplars:
            raise ValueError(f"exemplars must be one of {', '.join(SPLITS)}, got {name!r}")
        first, last = self.exemplars[name]
        if first == last:
            raise ValueError(f"exemplars = {name!r} has none")
        return first, last

    def _device(self) -> torch.device:
        return torch.device("cpu") if self.generator is None else self.generator.device

    def _integers(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=self.generator, device=self._device())

    def _order(self, size: int) -> Tensor:
        return torch.randperm(size, generator=self.generator, device=self._device()).cpu()

    def _shuffled(self, size: int) -> Tensor:
        """Which of the two classes stands at each place of the context, [B, n]."""
        keys = torch.rand(size, 2 * self.burstiness, generator=self.generator, device=self._device())
        return keys.argsort(1) % 2


def _class_split(split: tuple[Sequence[int], Sequence[int]], size: int) -> tuple[Tensor, Tensor]:
    if len(split) != 2:
        raise ValueError(f"class_split must hold training and held-out classes, got {len(split)} entries")
    train = checked_integers("class_split[0]", split[0])
    held = checked_integers("class_split[1]", split[1]) if len(split[1]) else ()
    if shared := sorted(set(train) & set(held)):
        raise ValueError(f"class_split must not share classes between splits, both have {shared[:5]}")
    if max(train + held) >= size:
        raise ValueError(f"class_split must be below the {size} classes of features, got {max(train + held)}")
    return torch.tensor(train), torch.tensor(held, dtype=torch.long)


def _exemplar_split(split: tuple[int, int] | None, size: int) -> dict[str, tuple[int, int]]:
    train, held = (1, size - 1) if split is None else split
    train, held = checked_integer("exemplar_split", train, 1), checked_integer("exemplar_split", held)
    if train + held > size:
        raise ValueError(f"exemplar_split must sum to at most {size} exemplars, got {(train, held)}")
    return dict(zip(SPLITS, [(0, train), (train, train + held)], strict=True))


def _chosen(name: str, splits: dict[str, Tensor], chosen: str, least: int) -> Tensor:
    if chosen not in splits:
        raise ValueError(f"{name} must be one of {', '.join(splits)}, got {chosen!r}")
    if len(splits[chosen]) < least:
        raise ValueError(f"{name} = {chosen!r} needs at least {least}, has {len(splits[chosen])}")
    return splits[chosen]
