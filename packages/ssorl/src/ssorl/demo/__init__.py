"""The evidence: offline learning with filled-in actions, against labelled episodes alone and against all actions."""

from __future__ import annotations

from typing import Any

import torch

from ssorl.demo.arms import SIZES, Progress, label_study, return_study
from ssorl.demo.figures import curves
from ssorl.demo.judgement import conditions
from ssorl.demo.paper import paper_study

__all__ = ["conditions", "demo"]

METRICS = {
    "score": {"unit": "% of the controller", "better": "higher"},
    "gap": {"unit": "%", "better": "lower"},
    "score_low": {"unit": "% of the controller", "better": "higher"},
    "score_high": {"unit": "% of the controller", "better": "higher"},
    "below_k1_low": {"unit": "points", "better": "neither"},
    "alpha": {"unit": "", "better": "neither"},
    "mse": {"unit": "", "better": "lower"},
    "mse_in": {"unit": "", "better": "lower"},
    "mse_out": {"unit": "", "better": "lower"},
    "nll": {"unit": "nats", "better": "lower"},
    "rank_correlation": {"unit": "", "better": "higher"},
}


def demo(
    preset: str = "laptop",
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Hold proxy actions of inverse dynamics models against what else one would do with episodes that lack theirs.

    `smoke` and `laptop` log a pendulum and a cart-pole. `paper` reads the user's Minari data set named in SSORL_MINARI.

    Args:
        preset: `"smoke"`, `"laptop"` or `"paper"`.
        seed: Seed of every random number used.
        device: A torch device; `smoke` and `laptop` run on the CPU, where their small networks are fastest.
        progress: Called as `progress(fraction, message)`.

    Returns:
        The demo contract's dictionary.

    Raises:
        ValueError: If `preset` is not one of the three, or `paper` misses its data set.
        ImportError: If `paper` misses minari.
    """
    if preset not in ("smoke", "laptop", "paper"):
        raise ValueError(f"preset must be 'smoke', 'laptop' or 'paper', got {preset!r}")
    report = progress or (lambda fraction, message: None)
    generator = torch.Generator().manual_seed(seed)
    if preset == "paper":
        rows, setting, drawn = paper_study(seed, device, report)
    else:
        size = SIZES[preset]
        labelled = label_study(size, generator, lambda share, text: report(0.3 * share, text))
        earned, scatter = return_study(
            size, generator, seed, lambda share, text: report(0.3 + 0.69 * share, text)
        )
        rows, drawn = [*earned, *labelled], curves(earned, labelled, scatter)
        setting = size.setting()
    verdict = conditions(rows)
    used = {key for row in rows for key in row}
    report(1.0, "done")
    return {
        "claim": "An inverse dynamics model fitted on a tenth of the trajectories, all from the lower half of returns, "
        "labels the rest so well that offline learning on the union comes close to knowing all actions.",
        "setting": setting,
        "metrics": {name: found for name, found in METRICS.items() if name in used},
        "rows": rows,
        "conditions": verdict,
        "holds": all(condition["holds"] for condition in verdict),
        "curves": drawn,
    }
