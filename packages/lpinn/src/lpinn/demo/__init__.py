"""The evidence: Lagrangian PINNs against ordinary ones and their remedies, on waves that travel far."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from lpinn.demo.plots import linear_curves, n_width_curve
from lpinn.demo.study import (
    FURTHER,
    IN_FRAME,
    PINN_IN_FRAME,
    PLAIN,
    REMEDIES,
    SHEARED,
    Progress,
    Sizes,
    Study,
)
from lpinn.demo.verdict import FAST, conditions
from lpinn.demo.waves import burgers_wave, linear_wave, shear_wave

__all__ = ["conditions", "demo"]

_PAPER_SPEEDS = (0.0, 2.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0)
_SIZES = {
    "smoke": Sizes((5.0, 20.0), (0.01,), 2, 32, 2, 2, lanczos_steps=3, landscape=3, evaluation=(64, 9)),
    "laptop": Sizes((5.0, 20.0, 50.0), (0.01,), 1_500, 128, all_remedies=False),
    "paper": Sizes(_PAPER_SPEEDS, (0.01, 0.0), 1_000_000, 25_600, 5, 5, (256, 100), True, 0.01, 40, 41),
}
_SPEED = 20.0  # of Burgers and of the shear flow

_METRICS = {
    "relative_l2": {"unit": "", "better": "lower"},
    "folded": {"unit": "%", "better": "lower"},
    "sharpness": {"unit": "", "better": "lower"},
    "seconds": {"unit": "s", "better": "lower"},
}


def demo(
    preset: str = "laptop",
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Hold the Lagrangian PINN against the PINN, curricula, time windows and XPINN at growing speed.

    All have as many collocation points a step, the same optimizer and the same treatment of the initial condition;
    methods with stages have twice the steps of the others.

    Args:
        preset: `"smoke"`, `"laptop"`, or `"paper"`: the official code's full grids and 10^6 steps, for a GPU.
        seed: Seed of every random number used.
        device: A torch device.
        progress: Called as `progress(fraction, message)`.

    Returns:
        The demo contract's dictionary.

    Raises:
        ValueError: If `preset` is not one of the three.
    """
    if preset not in _SIZES:
        raise ValueError(f"preset must be 'smoke', 'laptop' or 'paper', got {preset!r}")
    sizes = _SIZES[preset]
    plan = _plan(sizes)
    num_runs = sum(len(methods) for *_, methods in plan) + 2
    study = Study(sizes, seed, torch.device(device), progress or (lambda fraction, message: None), num_runs)
    for name, family, speed, methods in plan:
        study.compare(name, family, speed, methods)
    study.carried("Burgers", _SPEED)
    folding = study.past_the_shock()
    nu = sizes.viscosities[0]
    images = study.landscapes(nu)
    study.report(1.0, "done")
    verdict = conditions(study.rows)
    return {
        "claim": "Ordinary PINNs and their remedies fail on waves that travel many periods; a PINN that learns the "
        "characteristics and the state along them does not.",
        "setting": _setting(sizes),
        "metrics": _METRICS,
        "rows": study.rows,
        "conditions": verdict,
        "holds": all(condition["holds"] for condition in verdict),
        "curves": [
            *linear_curves(study, f"convection-diffusion nu={nu:g}", list(PLAIN)),
            folding,
            n_width_curve(),
        ],
        "images": images,
    }


def _plan(sizes: Sizes) -> list[tuple[str, Any, float, Any]]:
    """The comparisons: name, family of waves, speed and methods."""
    plan: list[tuple[str, Any, float, Any]] = []
    for nu in sizes.viscosities:
        for speed in sizes.speeds:
            fastest = speed == sizes.speeds[-1]
            remedies = speed >= FAST and (sizes.all_remedies or not fastest)
            methods = PLAIN | (REMEDIES if remedies else {}) | (FURTHER | PINN_IN_FRAME if fastest else {})
            plan.append((f"convection-diffusion nu={nu:g}", partial(linear_wave, nu), speed, methods))
    plan.append(("Burgers", partial(burgers_wave, sizes.burgers_nu), _SPEED, PLAIN | REMEDIES | IN_FRAME))
    plan.append(("shear flow", shear_wave, _SPEED, SHEARED))
    return plan


def _setting(sizes: Sizes) -> dict[str, str]:
    points = (
        f"{sizes.num_points} fresh random points"
        if sizes.grid is None
        else "a grid of {}x{}".format(*sizes.grid)
    )
    rule = (
        "AMSGrad at 0.01 then 100 L-BFGS steps, weighted norms, initial condition in the loss"
        if sizes.official
        else "Adam at 0.01 with cosine decay, mean squares, initial condition built in (the tied network: in the loss)"
    )
    return {
        "data": f"u_t + c u_x = nu u_xx, u0 = sin x, c in {list(sizes.speeds)}, nu in {list(sizes.viscosities)}; "
        f"Burgers, u0 = {_SPEED:g} + sin x, nu = {sizes.burgers_nu:g}; two-dimensional shear flow "
        f"({_SPEED / 2:g} (1 + sin y), 0), u0 = sin x, nu = 0; period 2 pi, t in [0, 1]. Errors: relative L2 of the "
        "wave without its mean, against exact solutions and, for Burgers, a pseudo-spectral one",
        "model": f"tanh networks of width 50 on (cos x, sin x, t), {sizes.depth} hidden layers for u, 2 for x; "
        "frames start at rest, unless said otherwise; LPINN's on the shear flow moves with the mean speed",
        "budget": f"{sizes.num_steps:,} steps on {points}; rows with stages (curriculum, seq2seq) have twice "
        f"the steps, divided over {sizes.num_stages} stages; {rule}",
    }
