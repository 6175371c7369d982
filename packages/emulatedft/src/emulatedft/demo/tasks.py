"""The models and texts of the demo: character models of the Python manual, or the paper's Llama-2."""

from __future__ import annotations

import json
import math
import os
import string
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from emulatedft.demo.model import CharacterModel
from emulatedft.demo.ngrams import SHARPNESS, NGramModel

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Example:
    """Text to score: a prompt for base models, one for fine-tuned ones, and what both are to say."""

    base_prompt: Tensor
    ft_prompt: Tensor
    response: Tensor


@dataclass(frozen=True)
class Task:
    """Small and large models before and after fine-tuning, and held-out text in the fine-tuned style."""

    small: Any
    small_ft: Any
    large: Any
    large_ft: Any
    held_out: list[Example]
    num_prompts: int  # of the held-out examples, for decoding
    num_new_tokens: int
    setting: dict[str, Any]
    dial: Dial | None = None
    sharp: Task | None = None  # models that are too sure of themselves


@dataclass(frozen=True)
class Dial:
    """Two behaviours, prompts to sample from, and the characters that tell the two apart."""

    first_ft: Any
    second_ft: Any
    prompts: Tensor
    capitals: Tensor  # (V,) whether a token is a capital
    punctuation: Tensor


@dataclass(frozen=True)
class Sizes:
    """How big the character models and their training are."""

    small: tuple[int, int]  # blocks and width
    large: tuple[int, int]
    small_steps: int
    large_steps: int
    tuning_steps: int
    held_out: int
    num_prompts: int
    num_samples: int
    num_new_tokens: int
    context: int = 64
    batch: int = 16
    counted: int = 400_000  # characters for the n-gram models, and a seventh as many in style


SIZES = {
    "smoke": Sizes((1, 32), (2, 32), 20, 20, 5, 8, 1, 4, 8, context=32, batch=4, counted=60_000),
    "laptop": Sizes((1, 32), (4, 128), 1000, 500, 150, 192, 6, 192, 48),
}
TAG = "[A] "


def python_manual(sizes: Sizes, generator: torch.Generator, device: str, report: Progress) -> Task:
    """Pretrain on nine tenths of the manual's topics, fine-tune on the same in three styles."""
    from pydoc_data.topics import topics

    names = [sorted(topics)[index] for index in torch.randperm(len(topics), generator=generator)]
    tenth = len(names) // 10
    unseen, raw = ("\n\n".join(topics[name] for name in part) for part in (names[:tenth], names[tenth:]))
    alphabet = sorted(set("".join(topics.values())) | set("".join(topics.values()).lower()))
    index_of = {character: index for index, character in enumerate(alphabet)}

    def encode(text: str) -> Tensor:
        return torch.tensor([index_of[character] for character in text], device=device)

    def model(shape: tuple[int, int]) -> CharacterModel:
        return CharacterModel(len(alphabet), *shape, generator).to(device)

    # Fewer topics would teach forgetting the others, and hide the style in it.
    text, reply = encode(raw), encode(_tagged(raw))
    lower, bare = encode(raw.lower()), encode(_without_punctuation(raw))
    small, large = model(sizes.small), model(sizes.large)
    small_reply, small_lower, small_bare = (model(sizes.small) for _ in range(3))
    large_reply, tuning = model(sizes.large), sizes.tuning_steps
    jobs = [
        ("small base", small, None, text, sizes.small_steps, 3e-3, 0.08),
        ("large base", large, None, text, sizes.large_steps, 2e-3, 0.64),
        ("small, reply format", small_reply, small, reply, tuning, 1e-3, 0.02),
        ("small, lower case", small_lower, small, lower, tuning, 1e-3, 0.02),
        ("small, no punctuation", small_bare, small, bare, tuning, 1e-3, 0.02),
        ("large, reply format", large_reply, large, reply, tuning, 1e-3, 0.22),
    ]
    done = 0.0
    for label, trained, origin, corpus, num_steps, learning_rate, share in jobs:
        if origin is not None:
            trained.load_state_dict(origin.state_dict())
        stage = _stage(report, done, share, label)
        _train(trained, corpus, num_steps, learning_rate, sizes, generator, stage)
        done += share
    held_out = _examples(encode(_tagged(unseen)), sizes, generator)
    held_lower = _examples(encode(unseen.lower()), sizes, generator)
    letters = torch.tensor([character.isupper() for character in alphabet], device=device)
    marks = torch.tensor([character in string.punctuation for character in alphabet], device=device)
    prompts = _windows(encode(unseen), sizes.num_samples, 16, generator)
    few, many = (sum(each.numel() for each in trained.parameters()) for trained in (small, large))
    return Task(
        small=small.cached,
        small_ft=small_reply.cached,
        large=large.cached,
        large_ft=large_reply.cached,
        held_out=held_out,
        num_prompts=sizes.num_prompts,
        num_new_tokens=sizes.num_new_tokens,
        setting={
            "data": f"Python manual (pydoc_data.topics), {len(raw):,} characters to pretrain, the same "
            f"with '{TAG}' before each line to fine-tune (lower-cased or without punctuation for the dial), "
            f"{tenth} other topics held out",
            "model": f"character-level Llama-style models of {few:,} and {many:,} parameters; and n-gram models of "
            f"order 3 and 7 with {100 * SHARPNESS:g} % on the longest known context, for which the style is lower case",
            "budget": f"pretraining {sizes.small_steps} and {sizes.large_steps} steps, each fine-tuning "
            f"{sizes.tuning_steps}, of {sizes.batch} windows of {sizes.context}; emulation trains nothing",
        },
        dial=Dial(small_lower.cached, small_bare.cached, prompts, letters, marks),
        sharp=n_grams(text[: sizes.counted], lower[: sizes.counted // 7], held_lower, len(alphabet)),
    )


def n_grams(text: Tensor, styled: Tensor, held_out: list[Example], vocabulary: int) -> Task:
    """Models of order 3 and 7, fine-tuned by counting a style too, which know little of what they have not seen."""
    small, large = (NGramModel([text], order, vocabulary) for order in (3, 7))
    small_ft, large_ft = (NGramModel([text, styled], order, vocabulary) for order in (3, 7))
    return Task(small, small_ft, large, large_ft, held_out, num_prompts=0, num_new_tokens=0, setting={})


def _examples(text: Tensor, sizes: Sizes, generator: torch.Generator) -> list[Example]:
    windows = _windows(text, sizes.held_out, sizes.context, generator).split(32)
    return [Example(window[:, :1], window[:, :1], window[:, 1:]) for window in windows]


def llama(device: str) -> Task:
    """The paper's Llama-2 models, on questions and reference answers that the user provides."""
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise ImportError("the paper preset needs transformers: pip install 'emulatedft[hf]'") from error
    names = ["SMALL_BASE", "SMALL_FT", "LARGE_BASE", "LARGE_FT", "EXAMPLES"]
    found = {name: os.environ.get(f"EMULATEDFT_{name}", "") for name in names}
    if not all(found.values()):
        raise ValueError(
            "the paper preset needs EMULATEDFT_SMALL_BASE, EMULATEDFT_SMALL_FT, EMULATEDFT_LARGE_BASE and "
            "EMULATEDFT_LARGE_FT (models' folders) and EMULATEDFT_EXAMPLES (JSON lines with prompt and response)"
        )
    tokenizer = AutoTokenizer.from_pretrained(found["SMALL_FT"])
    examples = [json.loads(line) for line in Path(found["EXAMPLES"]).read_text().splitlines() if line.strip()]
    options = {"dtype": torch.bfloat16, "device_map": device}
    models = [AutoModelForCausalLM.from_pretrained(found[name], **options).eval() for name in names[:4]]

    def ids(text: str, special: bool) -> Tensor:
        return torch.tensor([tokenizer.encode(text, add_special_tokens=special)], device=device)

    def encode(example: dict[str, str]) -> Example:
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": example["prompt"]}], tokenize=False, add_generation_prompt=True
        )
        plain = f"Human: {example['prompt']}\n\nAssistant:"
        return Example(ids(plain, True), ids(str(chat), False), ids(example["response"], False))

    small, small_ft, large, large_ft = models
    return Task(
        small=small,
        small_ft=small_ft,
        large=large,
        large_ft=large_ft,
        held_out=[encode(example) for example in examples],
        num_prompts=min(len(examples), 32),
        num_new_tokens=256,
        setting={
            "data": f"{len(examples):,} questions and reference answers",
            "model": ", ".join(found[name] for name in names[:4]),
            "budget": "emulation trains nothing",
        },
    )


def _train(
    model: CharacterModel,
    text: Tensor,
    num_steps: int,
    learning_rate: float,
    sizes: Sizes,
    generator: torch.Generator,
    report: Progress,
) -> None:
    """AdamW under a cosine schedule with a short warm-up."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    warm_up = max(num_steps // 20, 1)
    for step in range(num_steps):
        decay = 0.5 * (1 + math.cos(math.pi * step / num_steps))
        optimizer.param_groups[0]["lr"] = learning_rate * min((step + 1) / warm_up, 1) * max(decay, 0.05)
        batch = _windows(text, sizes.batch, sizes.context + 1, generator)
        loss = cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            report(step / num_steps, f"loss {loss.item() / math.log(2):.2f} bits")
    model.eval()


def _windows(text: Tensor, count: int, length: int, generator: torch.Generator) -> Tensor:
    starts = torch.randint(len(text) - length, (count, 1), generator=generator)
    return text[(starts + torch.arange(length)).to(text.device)]


def _tagged(text: str) -> str:
    """A fixed format of replies: each line opens with the same mark, which the base does not expect."""
    return "\n".join(TAG + line for line in text.split("\n"))


def _without_punctuation(text: str) -> str:
    return text.translate(str.maketrans("", "", string.punctuation))


def _stage(report: Progress, start: float, share: float, label: str) -> Progress:
    return lambda fraction, message: report(start + share * fraction, f"{label}: {message}")
