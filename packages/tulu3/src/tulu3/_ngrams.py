"""An index of token streams: rolling hashes in sorted tensors, every match checked against the tokens."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

_SEPARATOR = 0  # between turns; no word has it
_UNKNOWN = -1  # a word of a test instance that no training instance has
_MULTIPLIER = 0x5851F42D4C957F2D
_MIXER = 0x2545F4914F6CDD1D
_MOST_HITS = 1 << 21  # matches looked at together


class Found(NamedTuple):
    """Pairs of test and training instances that share something, and their scores."""

    test: Tensor
    train: Tensor
    score: Tensor


class _Vocabulary(dict[str, int]):
    def __missing__(self, word: str) -> int:
        self[word] = number = len(self) + 1
        return number


class Index:
    """Words as ids in one stream, and where each instance starts."""

    def __init__(self) -> None:
        self._vocabulary = _Vocabulary()
        self._stream, self._starts = array("i", [_SEPARATOR]), array("q")
        self._sorted: dict[int, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self._starts)

    def add(self, turns: Iterable[Iterable[str]]) -> None:
        """Append one instance."""
        self._sorted.clear()
        self._starts.append(len(self._stream))
        for words in turns:
            self._stream.extend(map(self._vocabulary.__getitem__, words))
            self._stream.append(_SEPARATOR)

    def lookup(self, words: Iterable[str]) -> array[int]:
        """Ids of words, which are not added."""
        get = self._vocabulary.get
        return array("i", [get(word, _UNKNOWN) for word in words])

    @property
    def stream(self) -> Tensor:
        """All token ids, int32, a copy: while a tensor looks at an array, that cannot grow."""
        return torch.frombuffer(self._stream, dtype=torch.int32).clone()

    @property
    def starts(self) -> Tensor:
        """Where in the stream each instance starts."""
        return torch.tensor(self._starts, dtype=torch.long)

    def sorted_hashes(self, stream: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """The hashes of all n-grams within turns in ascending order, and their positions in the stream."""
        if n not in self._sorted:
            hashes, positions = hashed_ngrams(stream, n)
            hashes, order = hashes.sort()
            small = len(self._stream) < 2**31
            self._sorted[n] = hashes, positions[order].to(torch.int32 if small else torch.long)
        return self._sorted[n]


def hashed_ngrams(stream: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Hashes of the n-grams without a separator, and where they start; in the order of the stream."""
    count = max(len(stream) - n + 1, 0)
    mixed = stream.long() * _MIXER
    mixed = mixed ^ (mixed >> 29)
    hashes = torch.zeros(count, dtype=torch.long)
    for offset in range(n):
        hashes.mul_(_MULTIPLIER).add_(mixed[offset : offset + count])
    borders = torch.nn.functional.pad((stream == _SEPARATOR).cumsum(0), (1, 0))
    inside = (borders[n:] == borders[:-n])[:count].nonzero().flatten()
    return hashes[inside], inside


def ngram_coverage(index: Index, fields: list[array[int]], owners: list[int], n: int) -> Found:
    """Share of every field's tokens that lie in n-grams of a training instance, averaged over fields."""
    stream, test = index.stream, _Fields.of(fields, owners)
    hashes, starts = hashed_ngrams(test.stream, n)
    known, positions = index.sorted_hashes(stream, n)
    low = torch.searchsorted(known, hashes)
    counts = torch.searchsorted(known, hashes, right=True) - low
    parts = []
    for few in _portions(counts, test.owner[test.field_at(starts)]):
        gram, where = _expand(low[few], counts[few], positions)
        begin = starts[few][gram]
        same = torch.ones(len(where), dtype=torch.bool)
        for offset in range(n):
            same &= stream[where + offset] == test.stream[begin + offset]
        begin, train = begin[same], torch.searchsorted(index.starts, where[same], right=True) - 1
        parts.append(_covered(begin, train, test, n, len(index)))
    return _pairs(parts, test, len(index))


def contained(index: Index, fields: list[array[int]], owners: list[int], _: int) -> Found:
    """1 for every pair where all fields occur whole in one turn of the training instance."""
    stream, test = index.stream, _Fields.of(fields, owners)
    known, positions = index.sorted_hashes(stream, 1)
    hashes, starts = hashed_ngrams(test.stream, 1)
    low = torch.searchsorted(known, hashes)
    counts = torch.searchsorted(known, hashes, right=True) - low
    # Each field is looked for where its rarest token stands; the order of the key breaks ties by place.
    field = test.field_at(starts)
    order = (counts * len(starts) + torch.arange(len(starts))).argsort()
    order = order[field[order].argsort(stable=True)]
    first = torch.ones(len(order), dtype=torch.bool)
    first[1:] = field[order][1:] != field[order][:-1]
    rarest = order[first]
    which, where = _expand(low[rarest], counts[rarest], positions)
    which = field[rarest][which]
    begin = where - (starts[rarest] - test.start)[which]
    inside = (begin >= 0) & (begin + test.length[which] <= len(stream))
    which, begin = which[inside], begin[inside]
    for offset in range(int(test.length.max())):
        going = test.length[which] > offset
        here = torch.where(going, begin + offset, 0)
        there = torch.where(going, test.start[which] + offset, 0)
        alive = ~going | (stream[here] == test.stream[there])
        which, begin = which[alive], begin[alive]
    train = torch.searchsorted(index.starts, begin, right=True) - 1
    key = (which * len(index) + train).unique()
    found = _pairs([(key, torch.ones(len(key), dtype=torch.float64))], test, len(index))
    whole = found.score > 1 - 1e-9
    return Found(found.test[whole], found.train[whole], torch.ones(int(whole.sum()), dtype=torch.float64))


class _Fields(NamedTuple):
    """The query fields of a test set in one stream."""

    stream: Tensor
    start: Tensor
    length: Tensor
    owner: Tensor
    num_fields: Tensor  # of each test instance

    @classmethod
    def of(cls, fields: list[array[int]], owners: list[int]) -> _Fields:
        stream = array("i", [_SEPARATOR])
        for field in fields:
            stream.extend(field)
            stream.append(_SEPARATOR)
        length = torch.tensor([len(field) for field in fields])
        owner = torch.tensor(owners)
        start = 1 + (length + 1).cumsum(0) - (length + 1)
        return cls(
            torch.frombuffer(stream, dtype=torch.int32).clone(), start, length, owner, owner.bincount()
        )

    def field_at(self, positions: Tensor) -> Tensor:
        return torch.searchsorted(self.start, positions, right=True) - 1


def _portions(counts: Tensor, owner: Tensor) -> list[slice]:
    """Cut the n-grams, which are in the order of their test instances, between instances, at a bearable size."""
    if len(counts) == 0:
        return []
    ends = torch.nn.functional.pad(owner[1:] != owner[:-1], (0, 1), value=True).nonzero().flatten() + 1
    totals = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    portions, begin, end = [], 0, 0
    for stop in ends.tolist():
        if end > begin and int(totals[stop] - totals[begin]) > _MOST_HITS:
            portions.append(slice(begin, end))
            begin = end
        end = stop
    return [*portions, slice(begin, end)]


def _expand(low: Tensor, counts: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """All positions of ranges [low, low + count), and which range each comes from."""
    which = torch.repeat_interleave(torch.arange(len(counts)), counts)
    offset = torch.arange(len(which)) - (counts.cumsum(0) - counts)[which]
    return which, positions[low[which] + offset].long()


def _covered(begin: Tensor, train: Tensor, test: _Fields, n: int, num_train: int) -> tuple[Tensor, Tensor]:
    """For every field and training instance that share an n-gram: the share of the field's tokens covered."""
    field = test.field_at(begin)
    span = int(test.length.max()) + 1
    triple = ((field * num_train + train) * span + begin - test.start[field]).unique()
    pair, place = triple // span, triple % span
    gain = torch.full_like(place, n)
    # An n-gram that starts before the one in front of it ends adds only the tokens past that one's start.
    together = pair[1:] == pair[:-1]
    gain[:-1] = torch.where(together, (place[1:] - place[:-1]).clamp(max=n), n)
    key, group = pair.unique_consecutive(return_inverse=True)
    covered = torch.zeros(len(key), dtype=torch.float64).index_add(0, group, gain.double())
    return key, covered / test.length[key // num_train]


def _pairs(parts: list[tuple[Tensor, Tensor]], test: _Fields, num_train: int) -> Found:
    """Average the scores of fields over each test instance."""
    empty = (torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.float64))
    key, score = (torch.cat(column) for column in zip(empty, *parts, strict=True))
    pair, group = (test.owner[key // num_train] * num_train + key % num_train).unique(return_inverse=True)
    total = torch.zeros(len(pair), dtype=torch.float64).index_add(0, group, score)
    owner = pair // num_train
    return Found(owner, pair % num_train, total / test.num_fields[owner])
