"""The evidence: an agent between a few real transitions and a wrong simulator, and how wrong it is."""

from __future__ import annotations

from typing import Any

import torch

from h2orl.demo.arms import arms_of
from h2orl.demo.diagnosis import diagnose, maps
from h2orl.demo.judgement import conditions
from h2orl.demo.rows import METRICS, chosen, curves, diagnosis_rows, return_rows
from h2orl.demo.training import SIZES, Progress, train
from h2orl.demo.worlds import GAPS, real_log

__all__ = ["conditions", "demo"]


def demo(
    preset: str = "laptop",
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Hold H2O against agents of one source, mixing and DARC, and its gap against the true one.

    `smoke` and `laptop` swing up a pendulum whose simulators have another gravity, length or action noise. `paper` runs
    HalfCheetah in MuJoCo with the Minari data set named by the environment variable H2ORL_MINARI (extra `sb3`).

    Args:
        preset: `"smoke"`, `"laptop"` or `"paper"`.
        seed: Seed of every random number used.
        device: A torch device; the pendulums run on the CPU.
        progress: Called as `progress(fraction, message)`.

    Returns:
        The demo contract's dictionary.

    Raises:
        ValueError: If `preset` is not one of the three, or `paper` misses its data set.
        ImportError: If `paper` misses Stable-Baselines3, Minari or MuJoCo.
    """
    if preset not in ("smoke", "laptop", "paper"):
        raise ValueError(f"preset must be 'smoke', 'laptop' or 'paper', got {preset!r}")
    report = progress or (lambda fraction, message: None)
    if preset == "paper":
        from h2orl.demo.paper import half_cheetah

        rows, setting, drawn = half_cheetah(seed, device, report)
        extra: dict[str, Any] = {"curves": drawn}
    else:
        rows, setting, extra = _pendulum(preset, seed, report)
    verdict = conditions(rows)
    report(1.0, "done")
    return {
        "claim": "Two small classifiers tell where a simulator's dynamics are wrong, and a critic corrected by them "
        "learns from real data and the wrong simulator more than from either alone or from both mixed.",
        "setting": setting,
        "metrics": METRICS,
        "rows": rows,
        "conditions": verdict,
        "holds": all(condition["holds"] for condition in verdict),
        **extra,
    }


def _pendulum(
    preset: str, seed: int, report: Progress
) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    sizes = SIZES[preset]
    generator = torch.Generator().manual_seed(seed)
    real, behaviour = real_log(sizes, generator, lambda done, says: report(0.1 * done, says))
    gaps = {name: GAPS[name] for name in sizes.gaps}
    diagnoses = diagnose(
        gaps,
        real,
        behaviour,
        sizes,
        generator,
        lambda done, says: report(0.1 + 0.2 * done, f"diagnosis: {says}"),
    )
    arms = arms_of(gaps, sizes)
    outcome = train(
        arms,
        gaps,
        real,
        behaviour,
        sizes,
        generator,
        lambda done, says: report(0.3 + 0.65 * done, f"agents: {says}"),
    )
    best = chosen(arms, outcome)
    rows = return_rows(arms, outcome, best, generator) + diagnosis_rows(diagnoses)
    setting = {
        "data": f"a pendulum with a constant torque; {len(real)} real transitions of a SAC agent stopped half way; "
        "simulators without that torque and with " + ", ".join(name for name in gaps if name != "no gap"),
        "model": f"soft actor-critic, two layers of {sizes.hidden} everywhere, Adam 2e-3, discount 0.97",
        "budget": f"{sizes.num_updates} updates of {sizes.half} + {sizes.half} transitions an agent, "
        f"4 simulated steps each; betas and weights of each arm by {sizes.num_validation} validation episodes, "
        f"judged on {sizes.num_test} others",
        "grids": f"beta {list(sizes.betas)}, DARC's bonus {list(sizes.bonuses)}, CQL's weight "
        f"{list(sizes.conservatisms)}; the zeros of the first two have rows of their own: the weights alone (mixing, "
        "without weights) and the simulator alone",
        "chosen": {f"{gap}: {name}": arms[index].says for (gap, name), index in best.items()},
    }
    return rows, setting, {"curves": curves(arms, outcome, best, sizes), "images": maps(diagnoses)}
