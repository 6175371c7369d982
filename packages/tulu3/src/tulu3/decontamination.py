"""Which test questions a training set has seen, by shared n-grams, whole strings or embeddings."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from tulu3._checks import check_choice, check_finite, checked_count, checked_share
from tulu3._ngrams import Found, Index, contained, ngram_coverage

Item = TypeVar("Item")
_WORDS = re.compile(r"\w+")


class ContaminationReport(NamedTuple):
    """What was found of a test set in a training set.

    Attributes:
        scores: (N,) for each test instance the largest score over training instances.
        nearest: (N,) the training instance with that score; -1 where nothing is shared.
        contaminated: (N,) scores > threshold.
        too_short: (N,) whether a query field has fewer than n tokens, so that it shares no n-gram with anything.
        test_index: (P,) with `train_index`, all pairs whose score is above the threshold.
        train_index: (P,) see `test_index`.
        num_train: Number of training instances that were indexed.
        tolerance: Share of contaminated test instances above which the training set counts as contaminated.
    """

    scores: Tensor
    nearest: Tensor
    contaminated: Tensor
    too_short: Tensor
    test_index: Tensor
    train_index: Tensor
    num_train: int
    tolerance: float

    @property
    def share(self) -> float:
        """Share of the test instances that are contaminated."""
        return self.contaminated.double().mean().item()

    @property
    def is_contaminated(self) -> bool:
        """Whether the training set is contaminated with respect to this test set: share > tolerance."""
        return self.share > self.tolerance

    @property
    def kept(self) -> Tensor:
        """Indices of the training instances that match no contaminated test instance, in their order."""
        keep = torch.ones(self.num_train, dtype=torch.bool)
        keep[self.train_index] = False
        return keep.nonzero().flatten()

    def remove(self, train: Sequence[Item]) -> list[Item]:
        """The training instances without those that match a contaminated test instance.

        Args:
            train: What was indexed, all of it, in the same order.

        Returns:
            The instances at `kept`. (For a `datasets.Dataset`: `dataset.select(report.kept.tolist())`.)

        Raises:
            ValueError: If there are more or fewer instances than were indexed.
        """
        if len(train) != self.num_train:
            raise ValueError(
                f"train must be the {self.num_train} instances that were indexed, got {len(train)}"
            )
        return [train[index] for index in self.kept.tolist()]


class Decontaminator:
    """Match test questions against a training set by n-grams or as whole strings.

    N-grams (arXiv 2411.15124, section 3.2): the tokens of a test instance that lie in some n-gram of it which also
    occurs in a training instance are covered; the score of the pair is covered / length, averaged over the
    test instance's query fields. It is contaminated where the largest score is above the threshold. N-grams do
    not run across turns. A field shorter than n shares none, and is reported as `too_short`: use `mode="exact"`
    for these.

    The index holds a sorted 64-bit hash and a position for each n-gram and an id for each token: 16 bytes a
    token. Every match of hashes is checked against the tokens, so a collision cannot count.

    Args:
        n: Tokens in an n-gram.
        threshold: In (0, 1]; a pair matches if its score is larger (in mode `exact`: if it is 1).
        mode: `"ngram"`, or `"exact"`: all query fields occur whole in the training instance.
        tolerance: Share of contaminated test instances above which the training set is called contaminated.
        tokenize: Text to tokens. The default takes the runs of letters, digits and underscores, in lower case.

    Raises:
        ValueError: If n, threshold, tolerance or mode is out of range.
        TypeError: If n is not an integer.

    Examples:
        >>> train = ["the cat sat on the mat", "a dog ran in the park all day"]
        >>> report = Decontaminator(n=3).index(train).score(["the cat sat on the sofa", "birds fly south"])
        >>> [round(score, 3) for score in report.scores.tolist()], report.nearest.tolist()
        ([0.833, 0.0], [0, -1])
        >>> report.remove(train)
        ['a dog ran in the park all day']
    """

    def __init__(
        self,
        n: int = 8,
        threshold: float = 0.5,
        *,
        mode: Literal["ngram", "exact"] = "ngram",
        tolerance: float = 0.02,
        tokenize: Callable[[str], Iterable[str]] | None = None,
    ) -> None:
        check_choice("mode", mode, ("ngram", "exact"))
        self.n = checked_count("n", n)
        self.threshold = checked_share("threshold", threshold, zero=False)
        self.tolerance = checked_share("tolerance", tolerance)
        self.mode = mode
        self._tokenize = tokenize or _lower_case_words
        self._index = Index()

    def index(self, train: Iterable[Any]) -> Decontaminator:
        """Add training instances; called again, it adds more.

        Args:
            train: Texts, or conversations (lists of turns with `role` and `content`, or mappings with them at
                `messages`), of which only users' turns are indexed.

        Returns:
            This object.

        Raises:
            TypeError: If an instance is neither.
        """
        if isinstance(train, (str, Mapping)):
            raise TypeError(
                f"train must be a collection of texts or conversations, got one {type(train).__name__}"
            )
        for instance in train:
            self._index.add(self._tokenize(turn) for turn in _user_turns(instance))
        return self

    def score(self, test: Iterable[str | Sequence[str]]) -> ContaminationReport:
        """Match test instances against all that was indexed.

        Args:
            test: Instances: a text, or several query fields whose scores are averaged.

        Returns:
            A `ContaminationReport`.

        Raises:
            ValueError: If nothing was indexed, there is no test instance, or one has no token.
            TypeError: If an instance is neither text nor texts.
        """
        if len(self._index) == 0:
            raise ValueError("train must have instances: call index(train) before score(test)")
        fields, owners = self._read(test)
        find = ngram_coverage if self.mode == "ngram" else contained
        found = find(self._index, fields, owners, self.n)
        lengths = torch.tensor([len(field) for field in fields])
        short = torch.zeros(owners[-1] + 1, dtype=torch.bool)
        if self.mode == "ngram":
            short[torch.tensor(owners)[lengths < self.n]] = True
        # A whole string is there or not: at 1 the pair matches, whatever the threshold.
        bar = self.threshold if self.mode == "ngram" else 0.5
        return _report(found, short, bar, len(self._index), self.tolerance)

    def _read(self, test: Iterable[str | Sequence[str]]) -> tuple[list[array[int]], list[int]]:
        if isinstance(test, (str, Mapping)):
            raise TypeError(f"test must be a collection of texts, got one {type(test).__name__}")
        fields, owners = [], []
        for owner, instance in enumerate(test):
            texts = [instance] if isinstance(instance, str) else instance
            if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
                raise TypeError(f"test[{owner}] must be a text or a sequence of texts, got {instance!r}")
            read = [self._index.lookup(self._tokenize(text)) for text in texts]
            if not read or not all(read):
                raise ValueError(f"test[{owner}] must have a token in every field, got {instance!r}")
            fields += read
            owners += [owner] * len(read)
        if not fields:
            raise ValueError("test must have instances, got none")
        return fields, owners


class EmbeddingDecontaminator:
    """Match test questions against a training set by the cosine of embeddings that you supply.

    Args:
        threshold: In (0, 1]; a pair matches if its cosine is larger.
        tolerance: As for `Decontaminator`.
        chunk_size: Test vectors compared at a time; memory is chunk_size times the number of training vectors.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If chunk_size is not an integer.

    Examples:
        >>> report = EmbeddingDecontaminator(0.9).index(torch.eye(3)).score(torch.tensor([[0.0, 2.0, 0.1]]))
        >>> report.nearest.tolist(), report.contaminated.tolist()
        ([1], [True])
    """

    def __init__(self, threshold: float, *, tolerance: float = 0.02, chunk_size: int = 256) -> None:
        self.threshold = checked_share("threshold", threshold, zero=False)
        self.tolerance = checked_share("tolerance", tolerance)
        self.chunk_size = checked_count("chunk_size", chunk_size)
        self._train: Tensor | None = None

    def index(self, train: Tensor) -> EmbeddingDecontaminator:
        """Add training vectors (N, D); called again, it adds more."""
        unit = _unit("train", train)
        if self._train is not None and self._train.shape[1] != unit.shape[1]:
            raise ValueError(f"train must be (N, {self._train.shape[1]}) as before, got {tuple(train.shape)}")
        self._train = unit if self._train is None else torch.cat([self._train, unit])
        return self

    def score(self, test: Tensor) -> ContaminationReport:
        """Match test vectors (N, D) against all that was indexed."""
        if self._train is None or len(self._train) == 0:
            raise ValueError("train must have vectors: call index(train) before score(test)")
        unit = _unit("test", test)
        if unit.shape[1] != self._train.shape[1] or len(unit) == 0:
            raise ValueError(f"test must be (N >= 1, {self._train.shape[1]}), got {tuple(test.shape)}")
        best, nearest, pairs = [], [], []
        for start in range(0, len(unit), self.chunk_size):
            cosine = unit[start : start + self.chunk_size] @ self._train.T
            top = cosine.max(1)
            best.append(top.values)
            nearest.append(top.indices)
            pairs.append((cosine > self.threshold).nonzero() + torch.tensor([start, 0], device=unit.device))
        scores, matched = torch.cat(best).double().cpu(), torch.cat(pairs).cpu()
        return ContaminationReport(
            scores,
            torch.cat(nearest).cpu(),
            scores > self.threshold,
            torch.zeros(len(scores), dtype=torch.bool),
            matched[:, 0],
            matched[:, 1],
            len(self._train),
            self.tolerance,
        )


def _report(
    found: Found, short: Tensor, threshold: float, num_train: int, tolerance: float
) -> ContaminationReport:
    scores = torch.zeros(len(short), dtype=torch.float64).scatter_reduce(0, found.test, found.score, "amax")
    nearest = torch.full((len(short),), num_train)
    # The first of several with the same score, so that the answer does not hang on the order of the matches.
    at_best = found.score == scores[found.test]
    nearest = nearest.scatter_reduce(0, found.test[at_best], found.train[at_best], "amin")
    above = found.score > threshold
    return ContaminationReport(
        scores,
        nearest.masked_fill(nearest == num_train, -1),
        scores > threshold,
        short,
        found.test[above],
        found.train[above],
        num_train,
        tolerance,
    )


def _lower_case_words(text: str) -> list[str]:
    return _WORDS.findall(text.lower())


def _user_turns(instance: Any) -> list[str]:
    if isinstance(instance, str):
        return [instance]
    turns = instance.get("messages") if isinstance(instance, Mapping) else instance
    if not isinstance(turns, Sequence) or not all(
        isinstance(turn, Mapping) and "role" in turn for turn in turns
    ):
        raise TypeError(
            f"train must hold texts or lists of turns with 'role' and 'content', got {instance!r}"
        )
    return [turn["content"] for turn in turns if turn["role"] == "user"]


def _unit(name: str, vectors: Tensor) -> Tensor:
    if vectors.dim() != 2 or not vectors.is_floating_point():
        raise ValueError(
            f"{name} must be (N, D) floating point, got {vectors.dtype} of {tuple(vectors.shape)}"
        )
    check_finite(**{name: vectors})
    vectors = vectors.detach().float()
    norms = vectors.norm(dim=1, keepdim=True)
    if bool((norms == 0).any()):
        raise ValueError(f"{name} must have no zero vector, got one in row {int(norms[:, 0].argmin())}")
    return vectors / norms
