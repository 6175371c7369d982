"""The evidence: base + residual against continued pre-training of the instruct model, on real text."""

from __future__ import annotations

from typing import Any

import torch

from instructresidual.demo.data import corpora
from instructresidual.demo.figures import METRICS, curves, images, table
from instructresidual.demo.judgement import conditions
from instructresidual.demo.model import ByteModel
from instructresidual.demo.study import Sizes, Study, run
from instructresidual.demo.training import Progress

__all__ = ["conditions", "demo"]

CLAIM = (
    "Continued pre-training of a base model, plus the difference of instruct model and base, learns the new text as"
    " well and follows instructions better than continued pre-training of the instruct model, without instruction data."
)
SIZES = {
    "smoke": Sizes(1, 32, 32, 4, 20, 20, 5, (1e-3, 3e-3), 2, 2000, 500),
    "laptop": Sizes(2, 96, 64, 16, 600, 700, 75, (3e-4, 1e-3, 3e-3), 5, 30000, 20000),
}


def demo(
    preset: str = "laptop",
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Hold the four strategies of the paper (arXiv 2410.10739, section 3) against each other.

    `smoke` and `laptop` train a byte-level Llama-style model on the Python manual that ships with Python, tune it on
    commands, and continue on sources of the standard library. `paper` takes checkpoints from the folders named by the
    environment variables INSTRUCTRESIDUAL_BASE, INSTRUCTRESIDUAL_INSTRUCT and INSTRUCTRESIDUAL_CONTINUED (the base
    after continued pre-training), text of the new domain and prompts with answers from INSTRUCTRESIDUAL_TEXT and
    INSTRUCTRESIDUAL_PROMPTS, and needs the `hf` extra.

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
    report = _forward_only(progress)
    if preset == "paper":
        from instructresidual.demo.paper import paper

        return {"claim": CLAIM, **paper(device, report)}
    generator = torch.Generator().manual_seed(seed)
    sizes = SIZES[preset]
    first, second, commands = corpora(generator, device, sizes.num_held_out, sizes.num_commands)
    models = [ByteModel(sizes.num_layers, sizes.size, generator).to(device) for _ in "ab"]
    order = int(torch.randint(2**31, (), generator=generator))
    study = Study(models[0], sizes, first, second, commands, order, report)
    found = run(study, models[1], lambda start, share, label: _stage(report, start, share, label))
    rows = table(study, found)
    verdict = conditions(rows)
    report(1.0, "done")
    return {
        "claim": CLAIM,
        "setting": _setting(study),
        "metrics": METRICS,
        "rows": rows,
        "conditions": verdict,
        "holds": all(condition["holds"] for condition in verdict),
        "curves": curves(study, found),
        "images": images(found),
    }


def _setting(study: Study) -> dict[str, Any]:
    sizes, commands = study.sizes, study.commands
    numbers = sum(parameter.numel() for parameter in study.model.parameters())
    return {
        "data": f"by bytes: the Python manual (pydoc_data.topics), {len(study.first.training):,} to pre-train; sources"
        f" of the standard library, {len(study.second.training):,} to continue on, {len(study.second.test):,} held out"
        " to test and as many to choose; commands on words of the manual,"
        f" {len(commands['test'].lines)} to test on words that training never sees",
        "model": f"Llama-style, {sizes.num_layers} blocks, width {sizes.size}, {numbers:,} parameters",
        "budget": f"{sizes.pretraining_steps} steps of pre-training, {sizes.tuning_steps} of instruction tuning (on"
        f" the manual as much as on commands), {4 * sizes.budget} of continued pre-training (rows; curves"
        " also at a half and a quarter)",
        "chosen on validation data": study.chosen,
        "rule": "S2 and S3: the learning rate with the least loss on d2. S1 and S4: the one that follows most commands"
        " among those whose loss on d2 is no more than that of S3, or within 3 % of that of S2. The average's share"
        " likewise. S3's scale is 1.",
    }


def _stage(report: Progress, start: float, share: float, label: str) -> Progress:
    return lambda fraction, message: report(start + share * fraction, f"{label}: {message}")


def _forward_only(progress: Progress | None) -> Progress:
    """How many learning rates are tried is not known beforehand: the bar waits rather than going back."""
    furthest = 0.0

    def report(fraction: float, message: str) -> None:
        nonlocal furthest
        furthest = max(furthest, fraction)
        if progress is not None:
            progress(furthest, message)

    return report
