"""The evidence: verified rewards, length-normalised preferences and decontamination, each against its rivals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from tulu3.demo.contamination import plant, row, scores
from tulu3.demo.figures import curves, images
from tulu3.demo.judgement import Row, conditions
from tulu3.demo.measures import METRICS, Bench
from tulu3.demo.model import CharacterModel
from tulu3.demo.search import Choice, search
from tulu3.demo.sums import NUM_TOKENS, Judge, Mixture, all_problems, draw, encoded, examples
from tulu3.demo.training import (
    PairTexts,
    Reward,
    Texts,
    Trained,
    imitate_verified,
    prefer,
    reinforce,
    supervise,
)
from tulu3.preferences import PreferenceKind

Progress = Callable[[float, str], None]
CLAIM = (
    "Programmatic verifiers make a model right where its training data made it wrong, length normalisation keeps "
    "preference tuning from lengthening answers, and n-gram coverage finds copied test questions."
)

RATES = {"continued SFT": 1e-2, "RLVR": 3e-4, "RLVR without stop penalty": 3e-4}  # middles of grids


@dataclass(frozen=True)
class Size:
    """How much of everything a preset takes."""

    largest: int  # number in a sum
    width: int
    sft_steps: int
    sft_batch: int
    iterations: int  # of RLVR; four updates each
    batch: int
    preference_steps: int
    num_judged: int
    widenings: int
    questions: tuple[int, int]


SIZES = {
    "smoke": Size(19, 32, 40, 64, 3, 16, 5, 60, 0, (22, 60)),
    "laptop": Size(49, 128, 500, 256, 40, 128, 150, 1000, 3, (220, 900)),
}


def demo(
    preset: str = "laptop", *, seed: int = 0, device: str = "cpu", progress: Progress | None = None
) -> dict[str, Any]:
    """Hold the recipe's parts against their rivals.

    `smoke` and `laptop` teach a small character model sums from examples of which many are wrong, and go on from
    there with every method, each tuned on validation problems and judged on others. `paper` judges published
    checkpoints, from the folders named by TULU3_SFT, TULU3_DPO and TULU3_RLVR, on the problems of the JSON lines file
    TULU3_PROBLEMS (`messages`, `ground_truth`, `dataset`); it needs the `hf` and `math` extras and a GPU.

    Args:
        preset: `"smoke"`, `"laptop"` or `"paper"`.
        seed: Seed of every random number used.
        device: A torch device; `smoke` and `laptop` are small and stay on the CPU.
        progress: Called as `progress(fraction, message)`.

    Returns:
        The demo contract's dictionary.

    Raises:
        ValueError: If `preset` is not one of the three, or `paper` misses its folders.
        ImportError: If `paper` misses transformers or sympy.
    """
    if preset not in ("smoke", "laptop", "paper"):
        raise ValueError(f"preset must be 'smoke', 'laptop' or 'paper', got {preset!r}")
    report = progress or (lambda fraction, message: None)
    if preset == "paper":
        from tulu3.demo.paper import judged_checkpoints

        return _result(*judged_checkpoints(device, report), [], [])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _laptop(SIZES[preset], seed, report)


def _laptop(size: Size, seed: int, report: Progress) -> dict[str, Any]:
    bench, start = _start(size, seed)
    report(0.1, "supervised fine-tuning")
    chosen = {**_rewarded(size, bench, start, report), **_preferred(size, bench, start, report)}
    rows = bench.rows(start, chosen)
    planted = plant(*size.questions, torch.Generator().manual_seed(seed))
    truth, found = planted.share > 0.5, scores(planted)
    rows += [row(name, *scored, truth) for name, scored in found.items()]
    report(1.0, "done")
    mixture = Mixture()
    setting = {
        "data": f"sums of two numbers up to {size.largest}, half to be answered in brackets; "
        f"{mixture.forgets_carry:.0%} of the carries forgotten, {mixture.skips_brackets:.0%} of the brackets, "
        f"{mixture.runs_on:.0%} of the examples never end; {len(planted.train)} paragraphs of the Python manual",
        "model": f"character model over a window of {bench.max_length}, width {size.width}",
        "budget": f"{size.iterations} rollouts of {size.batch} and 4 updates each, or as many updates; "
        f"{size.preference_steps} updates on {size.batch // 2} preferences each; all tuned on validation problems",
    }
    return _result(
        rows,
        setting,
        curves(bench, start, chosen, found, truth),
        images(bench, start, chosen["RLVR"].trained.model),
    )


def _start(size: Size, seed: int) -> tuple[Bench, CharacterModel]:
    generator = torch.Generator().manual_seed(seed)
    problems = all_problems((size.largest, size.largest), generator)
    third = len(problems) // 6
    bench = Bench(
        train=problems.take(torch.arange(2 * third, len(problems))),
        valid=problems.take(torch.arange(min(third, size.num_judged))),
        test=problems.take(torch.arange(third, third + min(third, size.num_judged))),
        judge=Judge(),
        seed=seed,
        max_length=problems.take(torch.arange(1)).prompts().shape[1] + NUM_TOKENS,
    )
    asked = draw(bench.train, 12_000 if size.widenings else 500, generator)
    bench.mixture = Texts.of(asked.prompts(), encoded(examples(asked, Mixture(), generator), NUM_TOKENS))
    blank = CharacterModel(size.width, bench.max_length)
    return bench, supervise(blank, bench.mixture, size.sft_steps, size.sft_batch, 5e-3, generator).model


def _rewarded(size: Size, bench: Bench, start: CharacterModel, report: Progress) -> dict[str, Choice]:
    def verified(reward: Reward) -> Callable[[float], Trained]:
        return lambda rate: reinforce(
            start, bench.train, bench.judge, size.iterations, size.batch, rate, bench.generator(), reward
        )

    def supervised(rate: float) -> Trained:
        return supervise(start, bench.mixture, 4 * size.iterations, size.batch, rate, bench.generator())

    def imitated(rate: float) -> Trained:
        return imitate_verified(
            start, bench.train, bench.judge, size.iterations, size.batch, rate, bench.generator()
        )

    plans = {
        "continued SFT": supervised,
        "rejection sampling": imitated,
        "RLVR": verified(Reward()),
        "RLVR without stop penalty": verified(Reward(stop_penalty=False)),
    }
    chosen = {}
    for index, (name, train) in enumerate(plans.items()):
        chosen[name] = search(RATES.get(name, 1e-3), 3.0, train, bench.validate, size.widenings)
        report(0.2 + 0.1 * index, name)
    # A control, not a rival: what is random is the reward, and nothing else.
    rate = chosen["RLVR"].value
    trained = verified(Reward(at_random=True))(rate)
    score = bench.validate(trained)
    chosen["random reward"] = Choice(rate, score, trained, {rate: score})
    return chosen


def _preferred(size: Size, bench: Bench, start: CharacterModel, report: Progress) -> dict[str, Choice]:
    pairs = PairTexts.of(start, bench.train, bench.judge, bench.generator())

    def imitated(rate: float) -> Trained:
        return supervise(start, pairs.chosen, size.preference_steps, size.batch // 2, rate, bench.generator())

    chosen = {"SFT on the chosen": search(1e-2, 3.0, imitated, bench.validate, size.widenings)}
    kinds: dict[str, tuple[PreferenceKind, float]] = {
        "DPO": ("dpo", 0.1),
        "DPO, length-normalised": ("dpo_norm", 5.0),
        "SimPO": ("simpo", 2.0),
        "WPO": ("wpo", 0.1),
    }
    for index, (name, (kind, beta)) in enumerate(kinds.items()):

        def at(rate: float, beta: float, kind: PreferenceKind = kind) -> Trained:
            return prefer(
                start, pairs, kind, size.preference_steps, size.batch, rate, beta, bench.generator()
            )

        by_rate = search(1e-4, 3.0, partial(at, beta=beta), bench.validate, size.widenings)
        by_beta = search(beta, 3.0, partial(at, by_rate.value), bench.validate, size.widenings)
        chosen[name] = Choice(by_rate.value, by_beta.score, by_beta.trained, by_rate.tried)
        bench.betas[name] = by_beta.tried
        report(0.6 + 0.08 * index, name)
    return chosen


def _result(
    rows: list[Row], setting: dict[str, str], lines: list[dict[str, Any]], pictures: list[dict[str, Any]]
) -> dict[str, Any]:
    found = conditions(rows)
    return {
        "claim": CLAIM,
        "setting": setting,
        "metrics": METRICS,
        "rows": rows,
        "conditions": found,
        "holds": all(condition["holds"] for condition in found),
        "curves": lines,
        "images": pictures,
    }
