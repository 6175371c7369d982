"""What the demo fine-tunes: a small model of the Python manual, or LLaMA-2-13B on Alpaca."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Identity

from sortedft.demo.model import CharacterModel
from sortedft.demo.training import Progress, fine_tune
from sortedft.families import adapter
from sortedft.loss import IGNORE_INDEX, next_tokens, sorted_loss
from sortedft.parts import Parts

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Task:
    """A pretrained model, its fine-tuning batches, and what differs between models."""

    model: Any
    batches: Callable[[torch.Generator], Batch]
    held_out: list[Batch]
    calibration: list[Batch]  # fine-tuning text, to choose thresholds on
    prompts: list[Tensor]
    setting: dict[str, Any]
    num_steps: int
    learning_rate: float
    num_new_tokens: int
    accumulation_steps: int = 1
    last_is_normed: bool = False
    eos_token_id: int | None = None

    def parts(self, model: Any) -> Parts:
        """Blocks, norm and head."""
        return model.parts if isinstance(model, CharacterModel) else adapter(model)

    def states(self, model: Any, batch: Batch) -> tuple[Tensor, ...]:
        """The residual stream before and after every block."""
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        if isinstance(model, CharacterModel):
            return model(**inputs)
        return model(**inputs, output_hidden_states=True, use_cache=False, logits_to_keep=1).hidden_states

    def loss(self, model: Any, batch: Batch, exits: list[int]) -> tuple[Tensor, Tensor]:
        """The sorted loss, and that of every exit."""
        parts = self.parts(model)
        return sorted_loss(
            self.states(model, batch),
            batch["labels"],
            norm=parts.norm,
            head=parts.head,
            exits=exits,
            last_is_normed=self.last_is_normed,
            logit_scale=parts.logit_scale,
            logit_softcap=parts.logit_softcap,
            return_per_exit=True,
        )

    def log_probs(self, model: Any, batch: Batch, exits: list[int]) -> tuple[Tensor, Tensor]:
        """Log-probabilities (|B|, tokens, V) of every exit on the supervised tokens, and these tokens."""
        parts, states = self.parts(model), self.states(model, batch)
        targets = next_tokens(batch["labels"])
        supervised = targets != IGNORE_INDEX
        logits = []
        for depth in exits:
            is_normed = self.last_is_normed and depth == len(states) - 1
            state = states[depth][supervised]
            logits.append(replace(parts, norm=Identity()).logits(state) if is_normed else parts.logits(state))
        return torch.stack(logits).float().log_softmax(-1), targets[supervised]


@dataclass(frozen=True)
class Sizes:
    """How big the small model and its training are."""

    num_layers: int
    size: int
    context: int
    batch: int
    pretraining_steps: int
    tuning_steps: int
    held_out_batches: int
    num_prompts: int
    num_new_tokens: int


SIZES = {
    "smoke": Sizes(4, 32, 48, 4, 12, 12, 2, 1, 8),
    "laptop": Sizes(8, 64, 64, 4, 900, 700, 48, 4, 64),
}


def python_manual(sizes: Sizes, generator: torch.Generator, device: str, report: Progress) -> Task:
    """Split the manual by topic: a tenth is held out, one half of the rest to pretrain, one to fine-tune."""
    from pydoc_data.topics import topics

    alphabet = {character: index for index, character in enumerate(sorted(set("".join(topics.values()))))}
    names = sorted(topics)
    names = [names[index] for index in torch.randperm(len(names), generator=generator)]
    tenth, half = len(names) // 10, len(names) * 11 // 20

    def encode(texts: list[str]) -> Tensor:
        return torch.tensor([alphabet[character] for character in "\n\n".join(texts)], device=device)

    def documents(chosen: list[str]) -> Tensor:
        return encode([f"### topic: {name}\n### text:\n{topics[name]}" for name in chosen])

    def windows(text: Tensor, source: torch.Generator) -> Batch:
        starts = torch.randint(len(text) - sizes.context, (sizes.batch,), generator=source)
        input_ids = torch.stack([text[start : start + sizes.context] for start in starts.tolist()])
        return {"input_ids": input_ids, "labels": input_ids}

    raw = encode([topics[name] for name in names[half:]])
    tuning, unseen = documents(names[tenth:half]), documents(names[:tenth])
    model = CharacterModel(len(alphabet), sizes.num_layers, sizes.size, generator).to(device)
    prompts = windows(unseen, generator)["input_ids"][: sizes.num_prompts, : sizes.context // 2]
    pretraining = Task(
        model=model,
        batches=lambda source: windows(raw, source),
        held_out=[windows(unseen, generator) for _ in range(sizes.held_out_batches)],
        calibration=[windows(tuning, generator) for _ in range(sizes.held_out_batches)],
        prompts=list(prompts.split(1)),
        setting={
            "data": f"Python manual (pydoc_data.topics), {len(raw):,} characters to pretrain, {len(tuning):,} to "
            f"fine-tune, {len(unseen):,} of {tenth} other topics held out",
            "model": f"Llama-style, {sizes.num_layers} blocks, width {sizes.size}, "
            f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters, context {sizes.context}",
            "budget": f"{sizes.pretraining_steps} pretraining steps shared by all, then {sizes.tuning_steps} "
            f"fine-tuning steps of {sizes.batch} windows each; SFT+ICT as many again for its heads",
        },
        num_steps=sizes.pretraining_steps,
        learning_rate=3e-3,
        num_new_tokens=sizes.num_new_tokens,
    )
    fine_tune(pretraining, model, [sizes.num_layers], generator, report)
    return replace(
        pretraining,
        batches=lambda source: windows(tuning, source),
        num_steps=sizes.tuning_steps,
        learning_rate=2e-3,
    )


def alpaca(device: str) -> Task:
    """The paper's own setting: LLaMA-2-13B on Alpaca, 2 epochs of batches of 32 at 2e-5."""
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise ImportError("the paper preset needs transformers: pip install 'sortedft[hf]'") from error
    folder, file = os.environ.get("SORTEDFT_MODEL"), os.environ.get("SORTEDFT_ALPACA")
    if not folder or not file:
        raise ValueError(
            "the paper preset needs SORTEDFT_MODEL (a model's folder) and SORTEDFT_ALPACA (a JSON file)"
        )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    examples = [_instruction(tokenizer, example) for example in json.loads(Path(file).read_text())]
    held_out, training = examples[:170], examples[170:]
    batch, accumulation_steps, epochs = 4, 8, 2  # 32 instructions per step

    def batches(source: torch.Generator) -> Batch:
        chosen = torch.randint(len(training), (batch,), generator=source).tolist()
        return _collate([training[index] for index in chosen], device)

    def split(chosen: list[Any]) -> list[Batch]:
        return [_collate(chosen[start : start + batch], device) for start in range(0, len(chosen), batch)]

    return Task(
        model=model.to(device),
        batches=batches,
        held_out=split(held_out),
        calibration=split(training[: len(held_out)]),
        prompts=[torch.tensor([prompt], device=device) for prompt, _ in held_out],
        setting={
            "data": f"Alpaca, {len(training):,} instructions",
            "model": folder,
            "budget": "2 epochs, batch 32",
        },
        num_steps=epochs * len(training) // (batch * accumulation_steps),
        learning_rate=2e-5,
        num_new_tokens=256,
        accumulation_steps=accumulation_steps,
        last_is_normed=True,
        eos_token_id=tokenizer.eos_token_id,
    )


def _instruction(
    tokenizer: Any, example: dict[str, str], max_length: int = 2024
) -> tuple[list[int], list[int]]:
    """Token ids of the question, which is not supervised, and of the answer, which is."""
    context = f"\n\n### Input:\n{example['input']}" if example.get("input") else ""
    prompt = tokenizer.encode(f"### Instruction:\n{example['instruction']}{context}\n\n### Response:\n")
    answer = [*tokenizer.encode(example["output"], add_special_tokens=False), tokenizer.eos_token_id]
    return prompt, answer[: max(max_length - len(prompt), 1)]


def _collate(examples: list[tuple[list[int], list[int]]], device: str) -> Batch:
    """Pad questions and answers on the right."""
    shape = (len(examples), max(len(prompt) + len(answer) for prompt, answer in examples))
    batch = {
        "input_ids": torch.zeros(shape, dtype=torch.long),
        "labels": torch.full(shape, IGNORE_INDEX),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
    }
    for row, (prompt, answer) in enumerate(examples):
        end = len(prompt) + len(answer)
        batch["input_ids"][row, :end] = torch.tensor(prompt + answer)
        batch["labels"][row, len(prompt) : end] = torch.tensor(answer)
        batch["attention_mask"][row, :end] = 1
    return {key: value.to(device) for key, value in batch.items()}
