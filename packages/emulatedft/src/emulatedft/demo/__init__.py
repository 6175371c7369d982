"""The evidence: emulated fine-tuning against its ingredients, on text in a style the large model never learned."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from emulatedft.decoding import EFTOutput, eft_generate, speculative_generate, sweep
from emulatedft.deltas import Delta, Ensemble
from emulatedft.demo.judgement import conditions
from emulatedft.demo.tasks import SIZES, Dial, Example, Progress, Task, llama, python_manual
from emulatedft.scoring import eft_logprobs

Row = dict[str, Any]
WEIGHTS = [0.0, 0.5, 1.0, 1.5, 2.0]
SHARES = [
    0.1,
    0.25,
    0.4,
    0.5,
    0.6,
    0.75,
    0.9,
]  # of the small fine-tuned model in the blends; 0 and 1 are other rows
DIALS = [0.0, 0.25, 0.5, 0.75, 1.0]
BLOCKS = [1, 2, 4, 8]
TOP_P = 0.95


def demo(
    preset: str = "laptop",
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Hold emulated fine-tuning (EFT) against the small fine-tuned and the large base model.

    `smoke` and `laptop` train character models on the Python manual that ships with Python. The rivals that know
    nothing of emulation, the geometric mean of the small fine-tuned and the large base model and the mixture of
    the two, get the weight that is best on the very text they are judged by; emulation has weight 1. `paper` takes
    Llama-2 7B, 7B-chat, 70B and 70B-chat and questions with answers from the folders and the file named by
    the environment variables EMULATEDFT_SMALL_BASE, EMULATEDFT_SMALL_FT, EMULATEDFT_LARGE_BASE,
    EMULATEDFT_LARGE_FT and EMULATEDFT_EXAMPLES; it needs the `hf` extra and large GPUs.

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
    if preset == "paper":
        task = llama(device)
    else:
        task = python_manual(SIZES[preset], generator, device, lambda done, text: report(0.75 * done, text))
    scores = _score(task)
    sharp = {} if task.sharp is None else _score(task.sharp, weights=[])
    report(0.83, "likelihoods")
    decoded = _decode(task, torch.Generator(device).manual_seed(seed), report)
    dials = [] if task.dial is None else _dial(task, task.dial, torch.Generator(device).manual_seed(seed))
    rows = _score_rows(scores) + _decoder_rows(decoded) + dials + _score_rows(sharp, "n-grams: ")
    verdict = conditions(rows)
    report(1.0, "done")
    return {
        "claim": "A large base model, guided by what fine-tuning did to a small one, predicts text in the fine-tuned "
        "style better than either; behaviours can be dialled at test time; drafts save calls of the large model.",
        "setting": task.setting,
        "metrics": _METRICS,
        "rows": rows,
        "conditions": verdict,
        "holds": all(condition["holds"] for condition in verdict),
        "curves": _curves(scores, decoded, dials),
        "images": [],
    }


# --- measuring -------------------------------------------------------------------------------------


def _score(task: Task, weights: list[float] = WEIGHTS) -> dict[str, float]:
    """Bits per token of held-out text, by model."""

    def pair(weight: float = 1.0, alone: bool = False) -> Callable[[Example], Delta]:
        return lambda example: Delta(
            task.small_ft, None if alone else task.small, weight, ft_prompt=example.ft_prompt
        )

    def guided(delta: Callable[[Example], Delta], top_p: float = 1.0) -> float:
        return _bits(
            task,
            [
                eft_logprobs(
                    task.large,
                    delta(example),
                    torch.cat([example.base_prompt, example.response], dim=1),
                    prompt_length=example.base_prompt.shape[1],
                    top_p=top_p,
                )
                for example in task.held_out
            ],
        )

    base, small = _alone(task, task.large, fine_tuned=False), _alone(task, task.small_ft, fine_tuned=True)
    ends = {0.0: _bits(task, base), 1.0: guided(pair())}
    return {
        "small fine-tuned": _bits(task, small),
        "large base": ends[0.0],
        "geometric mean of these two": min(guided(pair(share, alone=True)) for share in SHARES),
        "mixture of these two": min(_bits(task, _mixed(base, small, share)) for share in SHARES),
        "EFT": ends[1.0],
        f"EFT, top-p {TOP_P}": guided(pair(), TOP_P),
        "large fine-tuned (oracle)": _bits(task, _alone(task, task.large_ft, fine_tuned=True)),
        **{f"weight {weight}": ends.get(weight) or guided(pair(weight)) for weight in weights},
    }


def _alone(task: Task, model: Any, fine_tuned: bool) -> list[Tensor]:
    """One model's own log-probabilities of the responses' tokens."""
    found = []
    for example in task.held_out:
        prompt = example.ft_prompt if fine_tuned else example.base_prompt
        ids = torch.cat([prompt, example.response], dim=1)
        # A delta of weight 0 is the base alone.
        scored = eft_logprobs(model, Delta(model, None, 0.0), ids, prompt_length=prompt.shape[1])
        found.append(scored[:, prompt.shape[1] :])
    return found


def _mixed(base: list[Tensor], small: list[Tensor], share: float) -> list[Tensor]:
    """Log-probabilities of a model that is either, with this share of the second."""
    logs = math.log(1 - share), math.log(share)
    return [torch.logaddexp(one + logs[0], other + logs[1]) for one, other in zip(base, small, strict=True)]


def _bits(task: Task, log_probs: list[Tensor]) -> float:
    total = sum(found.double().sum().item() for found in log_probs)
    return -total / math.log(2) / sum(example.response.numel() for example in task.held_out)


@dataclass(frozen=True)
class Decoded:
    """One decoder's texts, and the seconds they took."""

    outputs: list[EFTOutput]
    seconds: float

    def total(self, name: str) -> int:
        """Sum of a count over the texts."""
        return sum(getattr(output, name) for output in self.outputs)

    @property
    def num_tokens(self) -> int:
        """Tokens of all texts."""
        return sum(output.tokens.numel() for output in self.outputs)


def _decode(task: Task, generator: torch.Generator, report: Progress) -> dict[str, Decoded]:
    """Every prompt through every decoder, with the same randomness."""
    state = generator.get_state()
    settings: dict[str, dict[str, Any]] = {"plain": {}}
    for block in BLOCKS:
        for rule in ("coupled", "rejection"):
            settings[f"{rule} {block}"] = {"block": block, "rule": rule}
    found = {}
    for index, (name, options) in enumerate(settings.items()):
        decoder = speculative_generate if options else eft_generate
        generator.set_state(state)
        start, outputs = time.perf_counter(), []
        for example in task.held_out[: task.num_prompts]:
            start_length = min(16, example.response.shape[1])
            prompts = example.base_prompt[:1], example.ft_prompt[:1]
            if task.dial is not None:  # characters follow text, not questions
                text = torch.cat([example.base_prompt, example.response], dim=1)[:1, :start_length]
                prompts = text, text
            delta = Delta(task.small_ft, task.small, ft_prompt=prompts[1])
            outputs.append(
                decoder(
                    task.large,
                    delta,
                    prompts[0],
                    max_new_tokens=task.num_new_tokens,
                    generator=generator,
                    diagnostics=not options,
                    **options,
                )
            )
        found[name] = Decoded(outputs, time.perf_counter() - start)
        report(0.83 + 0.1 * (index + 1) / len(settings), f"decoding, {name}")
    return found


def _dial(task: Task, dial: Dial, generator: torch.Generator) -> list[Row]:
    """Samples between two behaviours: lower case (weight l) and no punctuation (weight 1 - l).

    What is told is the probability of capitals and of punctuation along the samples, which is what counting the
    tokens estimates, without the noise of rare ones.
    """
    deltas = [Delta(dial.first_ft, task.small), Delta(dial.second_ft, task.small)]
    settings = [(share, 1 - share) for share in DIALS]
    rows = []
    for weights, output in sweep(
        task.large, deltas, settings, dial.prompts, generator=generator, max_new_tokens=task.num_new_tokens
    ):
        turned = [replace(delta, weight=weight) for delta, weight in zip(deltas, weights, strict=True)]
        text = torch.cat([dial.prompts, output.tokens[:, :-1]], dim=1)
        reading = Ensemble(task.large, turned, text, None, 1.0, None).read(output.tokens.shape[1])
        prob = reading.scores().double().softmax(-1)
        rows.append(
            {
                "name": f"EFT dial at {weights[0]}",
                "role": "method",
                "capitals": 100 * prob[..., dial.capitals].sum(-1).mean().item(),
                "punctuation": 100 * prob[..., dial.punctuation].sum(-1).mean().item(),
            }
        )
    return rows


# --- judgement -------------------------------------------------------------------------------------

_METRICS = {
    "bits_per_token": {"unit": "bits", "better": "lower"},
    "gap_recovered": {"unit": "%", "better": "higher"},
    "base_calls_per_token": {"unit": "", "better": "lower"},
    "tokens_per_second": {"unit": "1/s", "better": "higher"},
    "draft_accepted": {"unit": "%", "better": "higher"},
    "same_text": {"unit": "%", "better": "higher"},
    "capitals": {"unit": "%", "better": "lower"},
    "punctuation": {"unit": "%", "better": "lower"},
}

_ROLES = {"EFT": "method", f"EFT, top-p {TOP_P}": "method", "large fine-tuned (oracle)": "reference"}


def _score_rows(scores: dict[str, float], prefix: str = "") -> list[Row]:
    if not scores:
        return []
    small, oracle = scores["small fine-tuned"], scores["large fine-tuned (oracle)"]
    rows = []
    for name, bits in scores.items():
        if name.startswith("weight"):
            continue
        row = {"name": prefix + name, "role": _ROLES.get(name, "baseline"), "bits_per_token": bits}
        if small > oracle:  # else there is no gap to recover
            row["gap_recovered"] = 100 * (small - bits) / (small - oracle)
        elif name == "EFT":
            row["gap_recovered"] = 0.0
        rows.append(row)
    return rows


def _decoder_rows(decoded: dict[str, Decoded], block: int = 4) -> list[Row]:
    plain = decoded["plain"]
    names = {
        "EFT: plain sampling": "plain",
        "EFT: speculative, coupled": f"coupled {block}",
        "EFT: speculative, rejection": f"rejection {block}",
    }
    rows = []
    for name, key in names.items():
        found = decoded[key]
        row: Row = {
            "name": name,
            "role": "reference" if key == "plain" else "method",
            "base_calls_per_token": found.total("base_calls") / found.num_tokens,
            "tokens_per_second": found.num_tokens / found.seconds,
        }
        if key != "plain":
            row["draft_accepted"] = 100 * found.total("accepted") / found.total("drafted")
        if not key.startswith("rejection"):  # which has the same distribution, not the same text
            pairs = list(zip(found.outputs, plain.outputs, strict=True))
            row["same_text"] = 100 * sum(torch.equal(a.tokens, b.tokens) for a, b in pairs) / len(pairs)
        rows.append(row)
    return rows


def _curves(scores: dict[str, float], decoded: dict[str, Decoded], dials: list[Row]) -> list[Row]:
    variation = torch.cat(
        [output.tv.flatten() for output in decoded["plain"].outputs if output.tv is not None]
    )
    share = torch.histc(variation.float().cpu(), bins=10, min=0, max=1) / variation.numel()
    centers = [(index + 0.5) / 10 for index in range(10)]

    def by_block(value: Callable[[Decoded], float]) -> dict[str, Any]:
        return {
            rule: {"x": BLOCKS, "y": [value(decoded[f"{rule} {block}"]) for block in BLOCKS]}
            for rule in ("coupled", "rejection")
        }

    levels = ("small fine-tuned", "large base", "large fine-tuned (oracle)")
    curves = [
        {
            "title": "Likelihood of the style by the delta's weight",
            "x_label": "weight of the delta",
            "y_label": "bits per token",
            "series": {
                "EFT": {"x": WEIGHTS, "y": [scores[f"weight {weight}"] for weight in WEIGHTS]},
                **{name: {"x": [WEIGHTS[0], WEIGHTS[-1]], "y": [scores[name]] * 2} for name in levels},
            },
        },
        {
            "title": "How far EFT is from the small fine-tuned model, token by token",
            "x_label": "total variation",
            "y_label": "share of tokens",
            "series": {"EFT": {"x": centers, "y": share.tolist()}},
        },
        {
            "title": "Drafted tokens kept",
            "x_label": "block size",
            "y_label": "% kept",
            "series": by_block(lambda found: 100 * found.total("accepted") / found.total("drafted")),
        },
        {
            "title": "Calls of the large model",
            "x_label": "block size",
            "y_label": "calls per token",
            "series": by_block(lambda found: found.total("base_calls") / found.num_tokens),
        },
    ]
    if dials:
        curves.append(
            {
                "title": "Two behaviours on one dial",
                "x_label": "weight of lower case (the rest is on no punctuation)",
                "y_label": "% of characters",
                "series": {
                    name: {"x": DIALS, "y": [row[name] for row in dials]}
                    for name in ("capitals", "punctuation")
                },
            }
        )
    return curves
