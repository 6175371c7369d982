"""The evidence: RLIF against experts and imitation, solved exactly on a grid and learned on a pendulum."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from rlif.demo.experts import train_judge
from rlif.demo.figures import curves
from rlif.demo.grid import exact_study
from rlif.demo.judgement import conditions
from rlif.demo.learners import train_arms
from rlif.demo.rivals import EXPERTS, record, train_rivals
from rlif.demo.rows import METRICS, Measure, deep_rows, exact_rows
from rlif.demo.setting import SIZES, Progress, maker, world

__all__ = ["conditions", "demo"]


def demo(
    preset: str = "laptop",
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Hold RLIF against its supervisors, DAgger and HG-DAgger, as the experts get worse.

    `smoke` and `laptop` solve a grid exactly and learn the pendulum. `paper` learns the gymnasium environment named by
    the environment variable RLIF_PAPER_ENV (the paper: hopper, walker2d, Adroit pen) with the official sizes.

    Args:
        preset: `"smoke"`, `"laptop"` or `"paper"`.
        seed: Seed of every random number used.
        device: A torch device.
        progress: Called as `progress(fraction, message)`.

    Returns:
        The demo contract's dictionary.

    Raises:
        ValueError: If `preset` is not one of the three, or `paper` misses its environment.
    """
    if preset not in SIZES:
        raise ValueError(f"preset must be 'smoke', 'laptop' or 'paper', got {preset!r}")
    report = progress or (lambda fraction, message: None)
    make, sizes = maker(preset), SIZES[preset]
    exact = exact_study(torch.Generator().manual_seed(seed))
    judge = train_judge(make, sizes, seed, device, _stage(report, 0.02, 0.28))
    prior = {
        name: record(
            make, judge.experts[name], sizes.prior_episodes, torch.Generator(device).manual_seed(seed + 600)
        )
        for name in EXPERTS
    }
    with warnings.catch_warnings():  # one arm shows what the warning is about
        warnings.filterwarnings("ignore", message="q_ref returned negative values")
        learned = train_arms(make, judge, prior, sizes, seed, device, _stage(report, 0.3, 0.5))
    rivals, rate = train_rivals(make, judge, prior, sizes, seed, device, _stage(report, 0.8, 0.2))
    measure = Measure(make, judge, sizes, seed, device)
    action_size = prior["good"].action.shape[1]
    rows = [*exact_rows(exact), *deep_rows(measure, judge, learned, rivals, action_size)]
    verdict = conditions(rows)
    report(1.0, "done")
    steps = sizes.envs * sizes.steps
    return {
        "claim": "Reinforcement learning on nothing but the moments of take-over beats imitating the supervisor where "
        "the supervisor judges better than he acts.",
        "setting": {
            "data": f"exact: a slippery 6 x 6 grid with five pits; learned: {world(preset)}, returns from uniform "
            f"actions (0 %) to the reference agent (100 %), {sizes.evaluations} test episodes; the judge is the "
            "reference agent's critic",
            "model": f"SAC as in RLPD, {sizes.critics} critics, hidden {sizes.hidden}, discount {sizes.discount:g}, "
            f"first temperature {sizes.temperature:g}; imitators with the same actor",
            "budget": f"{steps:,} environment steps and {sizes.prior_episodes} expert episodes for each learner; "
            f"RLIF: {sizes.utd} critic updates for {sizes.envs} of them, batches of {sizes.batch}; imitators: "
            f"{sizes.rounds} rounds of {sizes.clone_steps} updates",
            "chosen": {
                "imitators' learning rate": rate,
                "kept on validation episodes": {
                    f"{rival.method}, {rival.expert} expert": rival.option for rival in rivals
                },
                "delta": judge.delta,
                "experts' returns": {
                    name: measure(judge.experts[name])["normalised_return"] for name in EXPERTS
                },
            },
        },
        "metrics": METRICS,
        "rows": rows,
        "conditions": verdict,
        "holds": all(condition["holds"] for condition in verdict),
        "curves": curves(exact, learned, steps),
    }


def _stage(report: Progress, start: float, share: float) -> Progress:
    return lambda fraction, message: report(start + share * fraction, message)
