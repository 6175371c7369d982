"""Text to pre-train on, text to continue on, and commands to follow, on words that training never sees."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

COMMANDS: dict[str, Callable[[list[str]], str]] = {
    "FIRST": lambda words: words[0][0],
    "LAST": lambda words: words[-1][-1],
    "UPPER": lambda words: words[0][0].upper(),
    "COUNT": lambda words: str(len(words)),
    "LENGTH": lambda words: str(len(words[0])),
}
LENGTH = 36  # bytes an instruction, padded
PADDING = 0
_NUM_FILES = 40  # sources of the standard library, about 1 MB
Item = TypeVar("Item")


@dataclass(frozen=True)
class Corpus:
    """A text in three parts, as bytes."""

    training: Tensor
    validation: Tensor
    test: Tensor

    def batch(self, size: int, context: int, source: torch.Generator) -> Tensor:
        """Windows (size, context + 1) of the training part."""
        starts = torch.randint(len(self.training) - context - 1, (size, 1), generator=source)
        return self.training[starts + torch.arange(context + 1)]


@dataclass(frozen=True)
class Instructions:
    """Lines (n, LENGTH) such as `### COUNT: foo bar -> 2`, and where their answers are."""

    lines: Tensor
    answers: Tensor

    def batch(self, size: int, source: torch.Generator) -> Instructions:
        """Some of the lines."""
        chosen = torch.randint(len(self.lines), (size,), generator=source)
        return Instructions(self.lines[chosen], self.answers[chosen])


def corpora(
    generator: torch.Generator, device: str, num_held_out: int, num_commands: int
) -> tuple[Corpus, Corpus, dict[str, Instructions]]:
    """Take the Python manual as d1 and the standard library's sources as d2; make commands on the manual's words.

    Args:
        generator: Source of the splits and of the commands.
        device: Where to.
        num_held_out: Bytes to choose on, and as many to test on, at most a tenth each.
        num_commands: Commands to train on; 3 % as many to choose on, and to test on.
    """
    from pydoc_data.topics import topics

    manual = _shuffled([topics[name] for name in sorted(topics)], generator)
    files = _shuffled(sorted(Path(json.__file__).parents[1].glob("*.py")), generator)
    sources = [file.read_text(encoding="utf-8") for file in files[:_NUM_FILES]]
    texts = ["\n\n".join(part) for part in (manual, sources)]
    first, second = (_corpus(text, device, num_held_out) for text in texts)
    words = _shuffled(sorted(set(re.findall(r"\b[a-z]{3,5}\b", texts[0]))), generator)
    tenth = len(words) // 10
    parts = {"test": words[:tenth], "validation": words[tenth : 2 * tenth], "training": words[2 * tenth :]}
    counts = {
        "test": num_commands * 3 // 100,
        "validation": num_commands * 3 // 100,
        "training": num_commands,
    }
    commands = {name: _instructions(part, counts[name], generator, device) for name, part in parts.items()}
    return first, second, commands


def _shuffled(items: list[Item], generator: torch.Generator) -> list[Item]:
    return [items[index] for index in torch.randperm(len(items), generator=generator)]


def _corpus(text: str, device: str, num_held_out: int) -> Corpus:
    data = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long().to(device)
    tenth = len(data) // 10
    held_out = data[tenth : 2 * tenth], data[:tenth]
    return Corpus(data[2 * tenth :], *(part[:num_held_out] for part in held_out))


def _instructions(words: list[str], count: int, generator: torch.Generator, device: str) -> Instructions:
    names = list(COMMANDS)
    lines = torch.full((count, LENGTH), PADDING)
    answers = torch.zeros(count, LENGTH, dtype=torch.bool)
    lengths = torch.randint(1, 4, (count,), generator=generator).tolist()
    drawn = torch.randint(len(words), (count, 3), generator=generator).tolist()
    for row in range(count):
        name = names[row % len(names)]
        chosen = [words[index] for index in drawn[row][: lengths[row]]]
        question = f"### {name}: {' '.join(chosen)} -> "
        line = f"{question}{COMMANDS[name](chosen)}\n".encode()
        lines[row, : len(line)] = torch.tensor(list(line))
        answers[row, len(question) : len(line)] = True
    return Instructions(lines.to(device), answers.to(device))
