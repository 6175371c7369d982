"""The evidence: Sorted Fine-Tuning against ordinary fine-tuning, from one checkpoint, on real text."""

from __future__ import annotations

from typing import Any

import torch

from sortedft.demo.figures import curves, images
from sortedft.demo.judgement import conditions
from sortedft.demo.measures import Measured, heads_loss, measure
from sortedft.demo.rows import METRICS, table
from sortedft.demo.tasks import SIZES, Task, alpaca, python_manual
from sortedft.demo.training import Progress, fine_tune, train_heads
from sortedft.exits import default_exits

__all__ = ["conditions", "demo"]


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
    if preset == "paper":
        task = alpaca(device)
    else:
        task = python_manual(SIZES[preset], generator, device, _stage(report, 0.0, 0.35, "pretraining"))

    exits = default_exits(len(task.parts(task.model).layers))
    found, own_heads = _compare(task, exits, generator, report)
    rows = table(found, own_heads)
    verdict = conditions(rows)
    report(1.0, "done")
    return {
        "claim": "One fine-tuning run at the price of an ordinary one makes every exit of the model a language "
        "model, at little cost for the full one, and decoding can then skip blocks.",
        "setting": task.setting
        | {"exits": exits, "decoding": f"greedy, {len(task.prompts)} held-out prompts"},
        "metrics": METRICS,
        "rows": rows,
        "conditions": verdict,
        "holds": all(condition["holds"] for condition in verdict),
        "curves": curves(found, own_heads),
        "images": images(found),
    }


def _compare(
    task: Task, exits: list[int], generator: torch.Generator, report: Progress
) -> tuple[dict[str, Measured], list[float]]:
    """Fine-tune the checkpoint both ways on the same batches; also measure heads of their own on SFT."""
    checkpoint = {key: tensor.to("cpu", copy=True) for key, tensor in task.model.state_dict().items()}
    order = int(torch.randint(2**31, (), generator=generator))
    found: dict[str, Measured] = {}
    own_heads: list[float] = []
    for name, trained, start, end in (("SFT", exits[-1:], 0.35, 0.64), ("SoFT", exits, 0.7, 0.94)):
        task.model.load_state_dict(checkpoint)
        batches = torch.Generator().manual_seed(order)
        history = fine_tune(
            task, task.model, trained, batches, _stage(report, start, 0.2, f"fine-tuning, {name}")
        )
        if name == "SFT":
            batches = torch.Generator().manual_seed(order)
            heads = train_heads(
                task, task.model, exits[:-1], batches, _stage(report, 0.55, 0.09, "exit heads")
            )
            own_heads = heads_loss(task, heads)
        found[name] = measure(task, exits, history, _stage(report, end, 0.06, f"measuring {name}"))
    return found, own_heads


def _stage(report: Progress, start: float, share: float, label: str) -> Progress:
    return lambda fraction, message: report(start + share * fraction, f"{label}: {message}")
