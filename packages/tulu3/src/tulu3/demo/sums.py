"""Sums as text, a mixture of right and wrong answers to learn from, and the verifiers that tell them apart."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tulu3 import Gsm8kVerifier, IfevalVerifier, as_trl_reward

CHARACTERS = "\0\n0123456789+=[].pb"  # padding, stop, then what is written
PAD, STOP = 0, 1
VOCABULARY = len(CHARACTERS)
NUM_TOKENS = 8  # longest response
BRACKETS = {"func_name": "validate_placeholders", "N": 1}


class Mixture(NamedTuple):
    """How often the examples of supervised fine-tuning are wrong."""

    forgets_carry: float = 0.6  # of the sums that have one
    skips_brackets: float = 0.4  # of those that ask for them
    runs_on: float = 0.15


class Problems(NamedTuple):
    """Sums to be asked: two numbers each, and whether the answer is to stand in brackets."""

    first: Tensor
    second: Tensor
    bracketed: Tensor

    def __len__(self) -> int:
        return len(self.first)

    def take(self, index: Tensor) -> Problems:
        """Some of them."""
        return Problems(self.first[index], self.second[index], self.bracketed[index])

    def prompts(self) -> Tensor:
        """(N, P) such as p17+48= or b07+31=; all have the same length."""
        pairs = zip(self.first.tolist(), self.second.tolist(), self.bracketed.tolist(), strict=True)
        return encoded([f"{'b' if asked else 'p'}{one:02d}+{two:02d}=" for one, two, asked in pairs])

    def labels(self) -> list[str]:
        """The right sums."""
        return [str(total) for total in (self.first + self.second).tolist()]


def all_problems(largest: tuple[int, int], generator: torch.Generator) -> Problems:
    """Every pair of numbers up to the two given, plain and in brackets, in random order."""
    numbers = (torch.arange(most + 1) for most in largest)
    first, second, bracketed = torch.cartesian_prod(*numbers, torch.arange(2)).T
    order = torch.randperm(len(first), generator=generator)
    return Problems(first[order], second[order], bracketed[order].bool())


def draw(problems: Problems, count: int, generator: torch.Generator) -> Problems:
    """Some problems, with replacement."""
    return problems.take(torch.randint(len(problems), (count,), generator=generator))


def examples(problems: Problems, mixture: Mixture, generator: torch.Generator) -> list[str]:
    """One response to each problem as the mixture has it, often wrong, with up to three dots behind it."""
    lots = torch.rand(len(problems), 3, generator=generator)
    dots = torch.randint(4, (len(problems),), generator=generator).tolist()
    right = [
        (str(label), asked)
        for label, asked in zip(problems.labels(), problems.bracketed.tolist(), strict=True)
    ]
    wrong = without_carry(problems)
    written = []
    for index, (label, asked) in enumerate(right):
        answer = wrong[index] if lots[index, 0] < mixture.forgets_carry else label
        brackets = asked and bool(lots[index, 1] >= mixture.skips_brackets)
        text = response(answer, brackets, dots[index])
        runs_on = bool(lots[index, 2] < mixture.runs_on)
        written.append(text.rstrip("\n").ljust(NUM_TOKENS, ".") if runs_on else text)
    return written


def without_carry(problems: Problems) -> list[str]:
    """The sums as somebody writes them who forgets what is carried from the units."""
    units = (problems.first + problems.second) % 10
    tens = problems.first // 10 + problems.second // 10
    return [str(total) for total in (10 * tens + units).tolist()]


def response(answer: str, brackets: bool, dots: int) -> str:
    """An answer, some dots, and the stop token."""
    return (f"[{answer}]" if brackets else answer) + "." * dots + "\n"


class Judge:
    """The verifiers of these problems, as trl's trainers would call them."""

    def __init__(self) -> None:
        self._reward = as_trl_reward({"gsm8k": Gsm8kVerifier(), "ifeval": IfevalVerifier()})

    def scores(self, problems: Problems, responses: Tensor) -> Tensor:
        """(B,) 10 for each verifier that accepts."""
        return torch.tensor(self._rewards(problems, responses))

    def verified(self, problems: Problems, responses: Tensor) -> Tensor:
        """(B,) whether a response ends, and every verifier of its problem accepts it."""
        wanted = 10.0 * (1 + problems.bracketed)
        return (self.scores(problems, responses) == wanted) & (responses.cpu() == STOP).any(1)

    def _rewards(self, problems: Problems, responses: Tensor) -> list[float]:
        names, labels = [], []
        for label, asked in zip(problems.labels(), problems.bracketed.tolist(), strict=True):
            names.append(["gsm8k", "ifeval"] if asked else ["gsm8k"])
            labels.append([label, BRACKETS] if asked else [label])
        return self._reward(completions=decoded(responses), dataset=names, ground_truth=labels)


def encoded(texts: list[str], length: int | None = None) -> Tensor:
    """(N, length) ids, padded on the right."""
    length = length or max(map(len, texts))
    return torch.tensor([[CHARACTERS.index(sign) for sign in text.ljust(length, "\0")] for text in texts])


def decoded(responses: Tensor) -> list[str]:
    """Texts of ids, up to the stop token."""
    return [
        "".join(CHARACTERS[token] for token in row).split("\n")[0].rstrip("\0") for row in responses.tolist()
    ]
