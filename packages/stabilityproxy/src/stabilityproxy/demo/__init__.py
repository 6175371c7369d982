"""The evidence: small decoders on real text, swept, extrapolated, and mended."""

from __future__ import annotations

from typing import Any

from stabilityproxy.demo.experiments import all_sweeps, epsilons, predict
from stabilityproxy.demo.figures import curves
from stabilityproxy.demo.judgement import conditions
from stabilityproxy.demo.rows import METRICS, table
from stabilityproxy.demo.tasks import load
from stabilityproxy.demo.training import Progress

__all__ = ["conditions", "demo"]


def demo(
    preset: str = "laptop",
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Sweep the learning rate with and without mitigations, extrapolate attention logits, and vary epsilon.

    `smoke` and `laptop` train byte-level decoders on the Python manual that ships with Python. `paper` has the
    paper's sizes and budget and takes token ids from the file that the environment variable STABILITYPROXY_TOKENS
    names; it needs many large GPUs' days.

    Args:
        preset: `"smoke"`, `"laptop"` or `"paper"`.
        seed: Seed of every random number used.
        device: A torch device.
        progress: Called as `progress(fraction, message)`.

    Returns:
        The demo contract's dictionary.

    Raises:
        ValueError: If `preset` is not one of the three, or `paper` misses its file.
    """
    if preset not in ("smoke", "laptop", "paper"):
        raise ValueError(f"preset must be 'smoke', 'laptop' or 'paper', got {preset!r}")
    report = progress or (lambda fraction, message: None)
    task = load(preset, device)
    sizes = task.sizes
    sweeps, clipping = all_sweeps(task, seed, report)
    prediction = predict(task, seed, {size: arms["no mitigation"] for size, arms in sweeps.items()}, report)
    by_eps = epsilons(task, seed, report)
    rows = table(sweeps, prediction, by_eps)
    verdict = conditions(rows)
    report(1.0, "done")
    shapes = {name: f"width {shape[0]}, {shape[1]} layers" for name, shape in sizes.swept.items()}
    return {
        "claim": "What makes large Transformers unstable shows in small ones at high learning rates: attention "
        "logits explode, qk-layernorm mends it, and the logits of a larger model can be foretold.",
        "setting": {
            "data": task.data,
            "model": f"pre-norm decoders with rotary positions, heads of {sizes.head_dim}; {shapes}; "
            f"extrapolated from widths {[shape[0] for shape in sizes.fitted]} to {sizes.target[0]}",
            "budget": f"{sizes.num_steps} steps of {sizes.batch} x {sizes.context} tokens a run, warm-up "
            f"{sizes.warmup}, cosine, AdamW with independent weight decay 1e-4",
            "learning rates": list(sizes.learning_rates),
            "loss cap": "the loss at initialisation",
            "clipping norms, sensitivity on validation text at the upper learning rates": {
                f"{k:g}": v for k, v in clipping.items()
            },
        },
        "metrics": METRICS,
        "rows": rows,
        "conditions": verdict,
        "holds": all(condition["holds"] for condition in verdict),
        "curves": curves(sweeps, prediction, by_eps),
    }
