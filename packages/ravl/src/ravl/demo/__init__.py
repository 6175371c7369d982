"""The evidence: agents that value what they never update, in a void and on a pendulum."""

from __future__ import annotations

from typing import Any

import torch

from ravl.demo.arms import Progress
from ravl.demo.experiments import Sizes, pendulum_arms, run_pendulum, run_void, void_arms
from ravl.demo.figures import curves
from ravl.demo.judgement import conditions
from ravl.demo.paper import paper
from ravl.demo.rows import METRICS, half_width, last_returns, rows
from ravl.reference import GaussianEnsemble

__all__ = ["conditions", "demo"]

SIZES = {
    "smoke": Sizes(2, 1, 10, 10, 1, critics=3, long=5, model_updates=20),
    "laptop": Sizes(8, 2, 2400, 2400, 2),
}


def demo(
    preset: str = "laptop",
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Show the edge-of-reach problem, its cause and its cure, with exact dynamics and with learned ones.

    `smoke` and `laptop` run the two small experiments on the CPU. `paper` trains on a D4RL or Minari data set that
    the environment variable RAVL_DATASET names, and evaluates in gymnasium's MuJoCo (see `ravl.demo.paper`).

    Args:
        preset: `"smoke"`, `"laptop"` or `"paper"`.
        seed: Seed of every random number used.
        device: A torch device; the small experiments run on the CPU whatever it says.
        progress: Called as `progress(fraction, message)`.

    Returns:
        The demo contract's dictionary.

    Raises:
        ValueError: If `preset` is not one of the three, or `paper` misses its data set.
        ImportError: If `paper` misses the `demo` extra.
    """
    if preset not in (*SIZES, "paper"):
        raise ValueError(f"preset must be 'smoke', 'laptop' or 'paper', got {preset!r}")
    report = progress or (lambda fraction, message: None)
    if preset == "paper":
        return paper(seed, device, report)
    sizes = SIZES[preset]
    void = run_void(sizes, seed, lambda fraction, message: report(0.65 * fraction, f"void, {message}"))
    pendulum, of_data = run_pendulum(
        sizes, seed, lambda fraction, message: report(0.65 + 0.34 * fraction, f"pendulum, {message}")
    )
    table = rows(void_arms(sizes), void, collapse=25, evaluations=1)
    names = [arm.name for arm in void_arms(sizes)]
    (base,) = (name for name in names if name == "void: base, min of 2")
    (method,) = (name for name in names if "RAVL" in name and "eta = 0" in name)
    ahead = last_returns(void[method]) - last_returns(void[base])
    model = GaussianEnsemble(3, 1, generator=torch.Generator())
    table += [
        {
            "name": "void: RAVL less base, seed by seed",
            "role": "reference",
            "return": float(ahead.mean()),
            "interval": half_width(ahead),
        },
        {"name": "void: to do nothing", "role": "reference", "return": _idle()},
        *rows(pendulum_arms(sizes, model), pendulum, collapse=-1000, evaluations=3),
        {"name": "pendulum: the data's policy", "role": "baseline", "return": of_data},
    ]
    verdict = conditions(table)
    report(1.0, "done")
    return {
        "claim": "States that rollouts end in are valued and never updated: base agents chase their values out of "
        "reach, even with exact dynamics; a pessimistic ensemble of critics does not.",
        "setting": {
            "data": "void: 500 states drawn from [-3, 3]^2 every 200 updates, exact dynamics; pendulum: 3,000 steps of "
            "a noisy swing-up policy, exact and learned dynamics, 5 % real data in each batch",
            "model": "SAC, ReLU 48-48, Adam 0.001, batch 96, gamma 0.99; learned dynamics: 5 Gaussian networks 64-64",
            "budget": f"void: {sizes.updates} updates, {sizes.seeds} seeds of base and RAVL, {sizes.more_seeds} of "
            f"the others; pendulum: {sizes.pendulum_updates} updates, {sizes.pendulum_seeds} seeds; MOPO's lambda is "
            "the best of four by true return",
        },
        "metrics": METRICS,
        "rows": table,
        "conditions": verdict,
        "holds": all(condition["holds"] for condition in verdict),
        "curves": curves(void, pendulum),
    }


def _idle() -> float:
    """Return what who never moves gets in the void from its data states, on average."""
    from ravl.reference import Void

    state = Void.starts(10_000, torch.Generator().manual_seed(0))
    return float(Void.horizon * Void.step(state, torch.zeros_like(state))[1].mean())
