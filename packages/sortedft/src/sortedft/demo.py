"""The evidence: Sorted Fine-Tuning against ordinary fine-tuning, from one checkpoint, on real text."""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sortedft.decoding import Generated, dynamic_generate, speculative_generate
from sortedft.exits import ExitHeads, default_exits, default_thresholds
from sortedft.loss import sorted_loss
from sortedft.parts import KeyValueCache, Parts, adapter
from sortedft.report import layer_report

Progress = Callable[[float, str], None]
Batches = Callable[[torch.Generator], dict[str, Tensor]]


def demo(
    preset: str = "laptop",
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Hold Sorted Fine-Tuning (SoFT) against ordinary fine-tuning (SFT) and early-exit heads (SFT+ICT).

    `smoke` and `laptop` train a Llama-style character model on the Python manual that ships with
    Python. `paper` takes LLaMA-2-13B and Alpaca from the folders named by the environment variables
    SORTEDFT_MODEL and SORTEDFT_ALPACA (a JSON file) and needs the `hf` extra and a large GPU.

    Args:
        preset: `"smoke"`, `"laptop"` or `"paper"`.
        seed: Seed of every random number used.
        device: A torch device.
        progress: Called as `progress(fraction, message)`.

    Returns:
        The demo contract's dictionary.

    Raises:
        ValueError: If `preset` is not one of the three, or `paper` misses its folders.
        ImportError: If `paper` misses transformers.
    """
    if preset not in ("smoke", "laptop", "paper"):
        raise ValueError(f"preset must be 'smoke', 'laptop' or 'paper', got {preset!r}")
    report = progress or (lambda fraction, message: None)
    generator = torch.Generator().manual_seed(seed)
    task = _alpaca(device) if preset == "paper" else _python_manual(_SIZES[preset], generator, device, report)

    models = {"SFT": task.model, "SoFT": copy.deepcopy(task.model)}
    order = int(torch.randint(2**31, (), generator=generator))  # both see the same batches in the same order
    exits = default_exits(len(task.parts(task.model).layers))
    training: dict[str, list[float]] = {}
    for index, (name, model) in enumerate(models.items()):
        trained = [exits[-1]] if name == "SFT" else exits
        label = f"fine-tuning, {name}"
        stage = _stage(report, 0.35 + 0.2 * index, 0.2, label)
        training[name] = _fine_tune(task, model, trained, torch.Generator().manual_seed(order), stage)
    heads = _train_heads(
        task, models["SFT"], exits[:-1], torch.Generator().manual_seed(order), _stage(report, 0.75, 0.12, "exit heads")
    )

    reports = {name: layer_report(model, task.held_out, exits, parts=task.parts(model)) for name, model in models.items()}
    report(0.9, "held-out exits")
    confidence = {name: _confidence(task, model, exits) for name, model in models.items()}
    heads_loss = _heads_loss(task, models["SFT"], heads)
    decoded = {}
    for index, (name, model) in enumerate(models.items()):
        decoded[name] = _decode(task, model, exits, _stage(report, 0.9 + 0.05 * index, 0.05, f"decoding, {name}"))
    rows = _exit_rows(exits, reports, heads_loss)
    rows += [row for name in models for row in _decoder_rows(name, exits, *confidence[name], decoded[name])]
    report(1.0, "done")
    return {
        "claim": "One fine-tuning run at the price of an ordinary one makes every exit of the model a language "
        "model, at next to no cost for the full one, and decoding can then skip blocks.",
        "setting": task.setting | {"exits": exits, "decoding": f"greedy, {len(task.prompts)} held-out prompts"},
        "metrics": _METRICS,
        "rows": rows,
        "criterion": "SoFT's mean loss over the exits up to half depth is >= 1 nat below SFT's and below SFT+ICT's; "
        "its full loss is at most 3 % above SFT's; its dynamic decoding saves >= 30 % of the block calls at < 2 "
        "points of accuracy; self-speculative text is identical to plain greedy text",
        "holds": _holds(rows),
        "curves": _curves(exits, reports, heads_loss, confidence, decoded["SoFT"], training),
        "images": [
            {
                "title": f"KL between exits, {name} (nats)",
                "values": values,
                "caption": f"Row m, column n: KL(p_m || p_n), exits {exits}",
            }
            for name, values in _kl_maps(task, models, exits).items()
        ],
    }


# --- data and models -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Task:
    """A pretrained model, its fine-tuning batches, and what the two have in common."""

    model: Any
    batches: Batches
    held_out: list[dict[str, Tensor]]
    prompts: list[Tensor]
    setting: dict[str, Any]
    num_steps: int
    accumulation: int
    learning_rate: float
    num_new_tokens: int
    last_is_normed: bool
    eos_token_id: int | None = None

    def parts(self, model: Any) -> Parts:
        return model.parts if isinstance(model, _CharacterModel) else adapter(model)

    def states(self, model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        if isinstance(model, _CharacterModel):
            return model(**inputs)
        return model(**inputs, output_hidden_states=True, use_cache=False, logits_to_keep=1).hidden_states

    def loss(self, model: Any, batch: dict[str, Tensor], exits: list[int]) -> Any:
        parts = self.parts(model)
        return sorted_loss(
            self.states(model, batch),
            batch["labels"],
            norm=parts.norm,
            head=parts.head,
            exits=exits,
            last_is_normed=self.last_is_normed,
            logit_softcap=parts.logit_softcap,
            return_per_exit=True,
        )


@dataclass(frozen=True)
class _Sizes:
    num_layers: int
    size: int
    context: int
    batch: int
    pretraining_steps: int
    tuning_steps: int
    held_out_batches: int
    num_prompts: int
    num_new_tokens: int


_SIZES = {
    "smoke": _Sizes(4, 32, 48, 8, 40, 40, 2, 1, 24),
    "laptop": _Sizes(8, 96, 96, 16, 300, 120, 10, 4, 96),
}


def _python_manual(sizes: _Sizes, generator: torch.Generator, device: str, report: Progress) -> _Task:
    """Split the manual by topic, and pretrain on one half of what is not held out."""
    from pydoc_data.topics import topics

    alphabet = {character: index for index, character in enumerate(sorted(set("".join(topics.values()) + "#: ")))}
    names = sorted(topics)
    names = [names[index] for index in torch.randperm(len(names), generator=generator)]
    held, tuned = names[: len(names) // 10], names[len(names) // 10 : len(names) * 11 // 20]

    def encode(text: str) -> Tensor:
        return torch.tensor([alphabet[character] for character in text if character in alphabet], device=device)

    def documents(chosen: list[str]) -> Tensor:
        return encode("\n\n".join(f"### topic: {name}\n### text:\n{topics[name]}" for name in chosen))

    def windows(text: Tensor, source: torch.Generator) -> dict[str, Tensor]:
        starts = torch.randint(len(text) - sizes.context, (sizes.batch,), generator=source)
        ids = torch.stack([text[start : start + sizes.context] for start in starts.tolist()])
        return {"input_ids": ids, "labels": ids}

    raw = encode("\n\n".join(topics[name] for name in names[len(names) * 11 // 20 :]))
    tuning, unseen = documents(tuned), documents(held)
    model = _CharacterModel(len(alphabet), sizes.num_layers, sizes.size, sizes.context, generator).to(device)
    task = _Task(
        model=model,
        batches=lambda source: windows(raw, source),
        held_out=[windows(unseen, generator) for _ in range(sizes.held_out_batches)],
        prompts=[window[None, : sizes.context // 4] for window in windows(unseen, generator)["input_ids"]],
        setting={
            "data": f"Python manual (pydoc_data.topics), {len(raw):,} characters to pretrain, {len(tuning):,} to "
            f"fine-tune, {len(unseen):,} of {len(held)} other topics held out",
            "model": f"Llama-style, {sizes.num_layers} blocks, width {sizes.size}, "
            f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters, context {sizes.context}",
            "budget": f"{sizes.pretraining_steps} pretraining steps shared by all, then {sizes.tuning_steps} "
            f"fine-tuning steps of {sizes.batch} windows each; SFT+ICT as many again for its heads",
        },
        num_steps=sizes.pretraining_steps,
        accumulation=1,
        learning_rate=2e-3,
        num_new_tokens=sizes.num_new_tokens,
        last_is_normed=False,
    )
    _fine_tune(task, model, [sizes.num_layers], generator, _stage(report, 0.0, 0.35, "pretraining"))
    fields = {**vars(task), "batches": lambda source: windows(tuning, source), "num_steps": sizes.tuning_steps}
    return _Task(**{**fields, "learning_rate": 1e-3, "prompts": task.prompts[: sizes.num_prompts]})


def _alpaca(device: str) -> _Task:
    """The paper's own setting: LLaMA-2-13B on Alpaca, 2 epochs of batches of 32 at 2e-5."""
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise ImportError("the paper preset needs transformers: pip install 'sortedft[hf]'") from error
    folder, file = os.environ.get("SORTEDFT_MODEL"), os.environ.get("SORTEDFT_ALPACA")
    if not folder or not file:
        raise ValueError("the paper preset needs SORTEDFT_MODEL (a model's folder) and SORTEDFT_ALPACA (a JSON file)")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.bfloat16).to(device)
    examples = [_instruction(tokenizer, example) for example in json.loads(Path(file).read_text())]
    held_out, training = examples[:170], examples[170:]
    batch, accumulation, epochs = 4, 8, 2  # 32 instructions per step

    def collate(chosen: list[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
        length = max(len(prompt) + len(answer) for prompt, answer in chosen)
        input_ids, labels = torch.zeros(len(chosen), length, dtype=torch.long), torch.full((len(chosen), length), -100)
        mask = torch.zeros(len(chosen), length, dtype=torch.long)
        for row, (prompt, answer) in enumerate(chosen):
            end = len(prompt) + len(answer)
            input_ids[row, :end] = torch.tensor(prompt + answer)
            labels[row, len(prompt) : end] = torch.tensor(answer)
            mask[row, :end] = 1
        found = {"input_ids": input_ids, "labels": labels, "attention_mask": mask}
        return {key: value.to(device) for key, value in found.items()}

    def batches(source: torch.Generator) -> dict[str, Tensor]:
        return collate([training[index] for index in torch.randint(len(training), (batch,), generator=source)])

    return _Task(
        model=model,
        batches=batches,
        held_out=[collate(held_out[start : start + batch]) for start in range(0, len(held_out), batch)],
        prompts=[torch.tensor([prompt], device=device) for prompt, _ in held_out],
        setting={"data": f"Alpaca, {len(training):,} instructions", "model": folder, "budget": "2 epochs, batch 32"},
        num_steps=epochs * len(training) // (batch * accumulation),
        accumulation=accumulation,
        learning_rate=2e-5,
        num_new_tokens=256,
        last_is_normed=True,
        eos_token_id=tokenizer.eos_token_id,
    )


def _instruction(tokenizer: Any, example: dict[str, str], max_length: int = 2024) -> tuple[list[int], list[int]]:
    """Token ids of the question, which is not supervised, and of the answer, which is."""
    context = f"\n\n### Input:\n{example['input']}" if example.get("input") else ""
    prompt = tokenizer.encode(f"### Instruction:\n{example['instruction']}{context}\n\n### Response:\n")
    answer = tokenizer.encode(example["output"], add_special_tokens=False) + [tokenizer.eos_token_id]
    return prompt, answer[: max(max_length - len(prompt), 1)]


class _CharacterBlock(nn.Module):
    """A Llama block: RMSNorm, rotary causal attention, SwiGLU."""

    def __init__(self, size: int, index: int) -> None:
        super().__init__()
        self.index, self.heads = index, max(size // 32, 1)
        self.attention_norm, self.mlp_norm = nn.RMSNorm(size, eps=1e-6), nn.RMSNorm(size, eps=1e-6)
        self.query_key_value = nn.Linear(size, 3 * size, bias=False)
        self.output = nn.Linear(size, size, bias=False)
        self.gate_proj, self.up_proj = (nn.Linear(size, 5 * size // 2, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(5 * size // 2, size, bias=False)

    def forward(self, hidden: Tensor, angles: tuple[Tensor, Tensor], cache: KeyValueCache | None = None) -> Tensor:
        batch, new, size = hidden.shape
        packed = self.query_key_value(self.attention_norm(hidden)).view(batch, new, 3, self.heads, -1)
        query, key, value = packed.permute(2, 0, 3, 1, 4)
        query, key = _rotate(query, angles), _rotate(key, angles)
        mask = None
        if cache is not None:
            key, value = cache.update(key, value, self.index)
            held = key.shape[2]
            mask = torch.ones(new, held, dtype=torch.bool, device=hidden.device).tril(held - new)
        mixed = functional.scaled_dot_product_attention(query, key, value, mask, is_causal=cache is None)
        hidden = hidden + self.output(mixed.transpose(1, 2).reshape(batch, new, size))
        inner = self.mlp_norm(hidden)
        return hidden + self.down_proj(functional.silu(self.gate_proj(inner)) * self.up_proj(inner))


class _CharacterModel(nn.Module):
    """A causal language model; calling it gives the residual stream before and after every block."""

    def __init__(self, vocabulary: int, num_layers: int, size: int, context: int, generator: torch.Generator) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, size)
        self.layers = nn.ModuleList(_CharacterBlock(size, index) for index in range(num_layers))
        self.norm = nn.RMSNorm(size, eps=1e-6)
        self.lm_head = nn.Linear(size, vocabulary, bias=False)
        self.head_size = size // max(size // 32, 1)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.dim() > 1:
                    into_stream = name.endswith(("output.weight", "down_proj.weight"))
                    scale = 0.5 / size**0.5 / ((2 * num_layers) ** 0.5 if into_stream else 1)
                    parameter.normal_(0, scale, generator=generator)

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        states = [self.embed_tokens(input_ids)]
        angles = self._angles(states[0], 0)
        for layer in self.layers:
            states.append(layer(states[-1], angles))
        return tuple(states)

    @property
    def parts(self) -> Parts:
        return Parts(
            layers=self.layers,
            norm=self.norm,
            head=self.lm_head,
            embed=lambda input_ids, start: self.embed_tokens(input_ids),
            prepare=self._angles,
        )

    def _angles(self, hidden: Tensor, start: int) -> tuple[Tensor, Tensor]:
        half = self.head_size // 2
        frequencies = 10_000.0 ** (-torch.arange(half, device=hidden.device) / half)
        angles = torch.arange(start, start + hidden.shape[1], device=hidden.device)[:, None] * frequencies
        return angles.cos(), angles.sin()


def _rotate(states: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    (cosine, sine), (first, second) = angles, states.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


# --- training --------------------------------------------------------------------------------------


def _fine_tune(
    task: _Task, model: Any, exits: list[int], source: torch.Generator, report: Progress
) -> list[float]:
    """Train every parameter on the mean loss of `exits`; return the full exit's loss at each step."""
    model.train()
    history = []
    for step, optimizer in _steps(task, list(model.parameters()), report):
        for _ in range(task.accumulation):
            loss, per_exit = task.loss(model, task.batches(source), exits)
            (loss / task.accumulation).backward()
        optimizer.step()
        history.append(float(per_exit[-1]))
        if step % 10 == 0:
            report(step / task.num_steps, f"loss of the full exit {history[-1]:.2f}")
    model.eval()
    return history


def _train_heads(
    task: _Task, model: Any, exits: list[int], source: torch.Generator, report: Progress
) -> ExitHeads:
    """SFT+ICT: a head per exit on the frozen fine-tuned model."""
    parts = task.parts(model)
    heads = ExitHeads(parts.head, exits)
    for step, optimizer in _steps(task, list(heads.parameters()), report):
        for _ in range(task.accumulation):
            batch = task.batches(source)
            with torch.no_grad():
                states = task.states(model, batch)
            for depth in exits:
                loss = sorted_loss(states, batch["labels"], norm=parts.norm, head=heads[depth], exits=[depth])
                (loss / task.accumulation).backward()
        optimizer.step()
        if step % 10 == 0:
            report(step / task.num_steps, "heads")
    parts.norm.zero_grad()
    return heads


def _steps(task: _Task, parameters: list[Any], report: Progress) -> Iterator[tuple[int, torch.optim.Optimizer]]:
    """Optimizer steps under a cosine schedule with a short warm-up."""
    optimizer = torch.optim.AdamW(parameters, lr=task.learning_rate, weight_decay=0.0)
    warm_up = max(task.num_steps // 20, 1)

    def factor(step: int) -> float:
        decay = 0.5 * (1 + math.cos(math.pi * step / task.num_steps))
        return min((step + 1) / warm_up, 1.0) * max(decay, 0.05)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    for step in range(task.num_steps):
        optimizer.zero_grad(set_to_none=True)
        yield step, optimizer
        schedule.step()


def _stage(report: Progress, start: float, share: float, label: str) -> Progress:
    return lambda fraction, message: report(start + share * fraction, f"{label}: {message}")


# --- measurements ----------------------------------------------------------------------------------


@torch.no_grad()
def _heads_loss(task: _Task, model: Any, heads: ExitHeads) -> list[float]:
    """Held-out loss of each exit's own head."""
    norm, total = task.parts(model).norm, torch.zeros(len(heads.exits), dtype=torch.float64)
    for batch in task.held_out:
        states = task.states(model, batch)
        total += torch.tensor(
            [float(sorted_loss(states, batch["labels"], norm=norm, head=heads[n], exits=[n])) for n in heads.exits]
        )
    return (total / len(task.held_out)).tolist()


@torch.no_grad()
def _confidence(task: _Task, model: Any, exits: list[int]) -> tuple[Tensor, Tensor]:
    """Of every exit and held-out token: its largest probability, and whether its choice is right."""
    sure, right = [], []
    for batch in task.held_out:
        log_probs, targets = _log_probs(task, model, batch, exits)
        best, choice = log_probs.max(-1)
        sure.append(best.exp())
        right.append(choice == targets)
    return torch.cat(sure, 1), torch.cat(right, 1)


@torch.no_grad()
def _kl_maps(task: _Task, models: dict[str, Any], exits: list[int]) -> dict[str, list[list[float]]]:
    """KL(p_m || p_n) in nats, row m and column n, on one held-out batch."""
    maps = {}
    for name, model in models.items():
        log_probs, _ = _log_probs(task, model, task.held_out[0], exits)
        entropy = (log_probs.exp() * log_probs).sum(-1).mean(1)
        cross = torch.einsum("mtv,ntv->mn", log_probs.exp(), log_probs) / log_probs.shape[1]
        maps[name] = (entropy[:, None] - cross).clamp_min(0).tolist()
    return maps


def _log_probs(task: _Task, model: Any, batch: dict[str, Tensor], exits: list[int]) -> tuple[Tensor, Tensor]:
    """Log-probabilities (|B|, tokens, V) of every exit on the supervised tokens, and these tokens."""
    parts, states = task.parts(model), task.states(model, batch)
    targets = functional.pad(batch["labels"][:, 1:], (0, 1), value=-100)
    kept = targets != -100
    logits = []
    for depth in exits:
        normed = task.last_is_normed and depth == len(states) - 1
        logits.append(parts.head(states[depth][kept]) if normed else parts.logits(states[depth][kept]))
    return torch.stack(logits).float().log_softmax(-1), targets[kept]


def _leave(sure: Tensor, right: Tensor, exits: list[int], thresholds: list[float]) -> tuple[float, float, Tensor]:
    """Accuracy and mean depth when each token leaves at its first sure exit; and where they leave."""
    bars = torch.tensor([*thresholds, 0.0], dtype=sure.dtype, device=sure.device)[:, None]
    index = (sure >= bars).int().argmax(0)
    depth = torch.tensor(exits, device=sure.device)[index].double()
    return right.gather(0, index[None]).double().mean().item(), depth.mean().item(), index


def _decode(task: _Task, model: Any, exits: list[int], report: Progress) -> dict[str, list[tuple[Generated, float]]]:
    """Every prompt through every decoder, with the seconds each took."""
    parts, length = task.parts(model), task.num_new_tokens
    drafting = exits[min(1, len(exits) - 2)]
    decoders: dict[str, Callable[[Tensor], Generated]] = {
        "plain": lambda ids: dynamic_generate(parts, ids, exits[-1:], [], length, eos_token_id=task.eos_token_id),
        "self-speculative": lambda ids: speculative_generate(
            parts, ids, drafting, length, eos_token_id=task.eos_token_id
        ),
        "dynamic": lambda ids: dynamic_generate(parts, ids, exits, None, length, eos_token_id=task.eos_token_id),
        "dynamic, copy": lambda ids: dynamic_generate(
            parts, ids, exits, None, length, eos_token_id=task.eos_token_id, fill="copy"
        ),
    }
    found: dict[str, list[tuple[Generated, float]]] = {name: [] for name in decoders}
    for index, prompt in enumerate(task.prompts):
        for name, decoder in decoders.items():
            start = time.perf_counter()
            found[name].append((decoder(prompt), time.perf_counter() - start))
        report((index + 1) / len(task.prompts), f"prompt {index + 1} of {len(task.prompts)}")
    return found


# --- judgement -------------------------------------------------------------------------------------

_METRICS = {
    "loss_shallow": {"unit": "nats", "better": "lower"},
    "loss_deep": {"unit": "nats", "better": "lower"},
    "loss_full": {"unit": "nats", "better": "lower"},
    "kl_shallow": {"unit": "nats", "better": "lower"},
    "accuracy": {"unit": "%", "better": "higher"},
    "block_calls_per_token": {"unit": "", "better": "lower"},
    "tokens_per_second": {"unit": "1/s", "better": "higher"},
    "same_text": {"unit": "%", "better": "higher"},
    "draft_accepted": {"unit": "%", "better": "higher"},
}


def _exit_rows(exits: list[int], reports: dict[str, Any], heads_loss: list[float]) -> list[dict[str, Any]]:
    """Losses over the exits up to half depth, over those above, and of the full model."""
    shallow = sum(2 * depth <= exits[-1] for depth in exits)

    def means(losses: list[float]) -> dict[str, float]:
        early, late = losses[:shallow], losses[shallow:-1]
        return {"loss_shallow": sum(early) / len(early), "loss_deep": sum(late) / len(late), "loss_full": losses[-1]}

    rows: list[dict[str, Any]] = []
    for name, role in (("SFT", "baseline"), ("SoFT", "method")):
        found = reports[name]
        row = {"name": name, "role": role, **means(found.loss.tolist())}
        row |= {"kl_shallow": found.kl_to_full[:shallow].mean().item(), "accuracy": 100 * found.accuracy[-1].item()}
        rows.append(row)
    full = reports["SFT"].loss[-1].item()
    rows.insert(1, {"name": "SFT+ICT", "role": "baseline", **means([*heads_loss, full])})
    return rows


def _decoder_rows(
    name: str, exits: list[int], sure: Tensor, right: Tensor, decoded: dict[str, list[tuple[Generated, float]]]
) -> list[dict[str, Any]]:
    """Cost on generated text; accuracy on held-out text at the depths the decoder would choose."""
    accuracy = {"plain": right[-1].double().mean().item()}
    accuracy["self-speculative"] = accuracy["plain"]
    accuracy["dynamic"] = _leave(sure, right, exits, default_thresholds(exits))[0]
    rows = []
    for decoder, runs in decoded.items():
        tokens = sum(generated.tokens.shape[1] for generated, _ in runs)
        plain = [generated.tokens for generated, _ in decoded["plain"]]
        same = [torch.equal(run.tokens, other) for (run, _), other in zip(runs, plain, strict=True)]
        role = "reference" if decoder == "plain" else "method" if name == "SoFT" else "baseline"
        row = {"name": f"{name}, {decoder} decoding", "role": role}
        if decoder in accuracy:
            row["accuracy"] = 100 * accuracy[decoder]
        row["block_calls_per_token"] = sum(generated.block_calls for generated, _ in runs) / tokens
        row["tokens_per_second"] = tokens / sum(seconds for _, seconds in runs)
        row["same_text"] = 100 * sum(same) / len(same)
        drafted = sum(generated.drafted for generated, _ in runs)
        if drafted:
            row["draft_accepted"] = 100 * sum(generated.accepted for generated, _ in runs) / drafted
        rows.append(row)
    return rows


def _holds(rows: list[dict[str, Any]]) -> bool:
    row = {found["name"]: found for found in rows}
    soft, sft, heads = row["SoFT"], row["SFT"], row["SFT+ICT"]
    plain, dynamic = row["SoFT, plain decoding"], row["SoFT, dynamic decoding"]
    return bool(
        soft["loss_shallow"] <= sft["loss_shallow"] - 1
        and soft["loss_shallow"] < heads["loss_shallow"]
        and soft["loss_full"] <= 1.03 * sft["loss_full"]
        and dynamic["block_calls_per_token"] <= 0.7 * plain["block_calls_per_token"]
        and dynamic["accuracy"] > plain["accuracy"] - 2
        and row["SoFT, self-speculative decoding"]["same_text"] == 100
    )


def _curves(
    exits: list[int],
    reports: dict[str, Any],
    heads_loss: list[float],
    confidence: dict[str, tuple[Tensor, Tensor]],
    decoded: dict[str, list[tuple[Generated, float]]],
    training: dict[str, list[float]],
) -> list[dict[str, Any]]:
    losses = {name: _series(exits, found.loss.tolist()) for name, found in reports.items()}
    losses["SFT+ICT"] = _series(exits, [*heads_loss, reports["SFT"].loss[-1].item()])
    accuracy = {name: _series(exits, (100 * found.accuracy).tolist()) for name, found in reports.items()}
    bars = [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99]
    trade_off = {}
    for name, (sure, right) in confidence.items():
        points = [_leave(sure, right, exits, [bar] * (len(exits) - 1))[:2] for bar in bars]
        trade_off[name] = _series([depth for _, depth in points], [100 * share for share, _ in points])
    left = torch.cat([generated.exit_layer for generated, _ in decoded["dynamic"]])
    shares = [100 * (left == depth).double().mean().item() for depth in exits]
    smooth = {name: _series(*_binned(history)) for name, history in training.items()}
    return [
        _curve("Held-out loss by exit", "exit after block", "loss (nats)", losses),
        _curve("Held-out accuracy by exit", "exit after block", "top-1 accuracy (%)", accuracy),
        _curve("Leaving when sure: accuracy against depth", "mean depth (blocks)", "top-1 accuracy (%)", trade_off),
        _curve("Where generated tokens leave", "exit after block", "tokens (%)", {"SoFT": _series(exits, shares)}),
        _curve("Full exit during fine-tuning", "step", "training loss (nats)", smooth),
    ]


def _binned(history: list[float], bins: int = 30) -> tuple[list[int], list[float]]:
    size = max(len(history) // bins, 1)
    starts = range(0, len(history) - size + 1, size)
    return [start + size // 2 for start in starts], [sum(history[start : start + size]) / size for start in starts]


def _curve(title: str, x_label: str, y_label: str, series: dict[str, Any]) -> dict[str, Any]:
    return {"title": title, "x_label": x_label, "y_label": y_label, "series": series}


def _series(x: list[Any], y: list[Any]) -> dict[str, list[Any]]:
    return {"x": list(x), "y": list(y)}
