"""The evidence: certified training with a short warm-up, with and without what the paper adds to it."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from fastibp._demo_tasks import Task, cifar10, digits, fresh, mnist
from fastibp._demo_training import Arm, Progress, Trained, attacked_error, measure, train
from fastibp.boxes import linf_box
from fastibp.initialization import ibp_init_, radius_gains

PLAIN = Arm("IBP", "baseline", batch_norm=False, ibp_init=False, regularise=False)
NORM = Arm("IBP + BN", "baseline", batch_norm=True, ibp_init=False, regularise=False)
NORM_INIT = Arm("IBP + BN + init", "ablation", batch_norm=True, ibp_init=True, regularise=False)
FULL = Arm("Fast IBP: BN + init + regularisers", "method", batch_norm=True, ibp_init=True, regularise=True)
NO_NORM = Arm("init + regularisers, no BN", "ablation", batch_norm=False, ibp_init=True, regularise=True)
_ARMS = (PLAIN, NORM, NORM_INIT, FULL, NO_NORM)

_METRICS = {
    "verified_error": {"unit": "%", "better": "lower"},
    "attacked_error": {"unit": "%", "better": "lower"},
    "standard_error": {"unit": "%", "better": "lower"},
    "inactive": {"unit": "%", "better": "lower"},
    "epochs": {"unit": "", "better": "lower"},
}
_CRITERION = (
    "with the same epochs and warm-up, the verified error of Fast IBP is at least 10 points below that of "
    "IBP + BN and below that of IBP"
)


def demo(
    preset: str = "laptop",
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train one network for certificates in several ways, all with the same short warm-up.

    `smoke` is a small fully connected network on 8x8 digits, `laptop` a convolutional one on MNIST at
    radius 0.3. `paper` is CNN-7 on CIFAR-10 at 8/255 for 160 epochs: it reads the arrays named by the
    environment variable FASTIBP_CIFAR10 and wants a GPU.

    Args:
        preset: `"smoke"`, `"laptop"` or `"paper"`.
        seed: Seed of every random number used.
        device: A torch device.
        progress: Called as `progress(fraction, message)`.

    Returns:
        The demo contract's dictionary.

    Raises:
        ValueError: If `preset` is not one of the three, or `paper` misses its arrays.
        ImportError: If the `demo` extra is missing.
    """
    if preset not in ("smoke", "laptop", "paper"):
        raise ValueError(f"preset must be 'smoke', 'laptop' or 'paper', got {preset!r}")
    report = progress or (lambda fraction, message: None)
    generator = torch.Generator().manual_seed(seed)
    task = cifar10(device) if preset == "paper" else (mnist if preset == "laptop" else digits)(generator)

    trained = _train_all(task, seed, device, report)
    rows = [_row(result, task, seed) for result in trained]
    report(1.0, "done")
    return {
        "claim": "With an initialisation for interval bounds, BatchNorm after every layer and two warm-up "
        "regularisers, a short warm-up suffices for certified training by interval bound propagation.",
        "setting": {
            "data": task.data,
            "model": task.network,
            "budget": f"l_inf radius {task.eps:.3g}; {task.epochs} epochs of Adam at {task.learning_rate:g}, batch "
            f"{task.batch_size}, warm-up of {task.length} epochs; the better baseline also with {task.longer} times "
            "the warm-up; all from one learning rate, schedule and clipping",
        },
        "metrics": _METRICS,
        "rows": rows,
        "criterion": _CRITERION,
        "holds": _holds(rows),
        "curves": _curves(trained, task, seed),
    }


def _train_all(task: Task, seed: int, device: str, report: Progress) -> list[Trained]:
    # The longer warm-up counts for as many epochs as it has.
    shares = [1.0] * len(_ARMS) + [1 + (task.longer - 1) * task.length / task.epochs]
    trained: list[Trained] = []
    for index in range(len(shares)):
        arm = _ARMS[index] if index < len(_ARMS) else _longer(trained[:2], task)
        begin, share = sum(shares[:index]) / sum(shares), shares[index] / sum(shares)
        trained.append(
            train(
                arm,
                task,
                seed,
                device,
                partial(_within, report, begin, share),
            )
        )
    return trained


def _within(report: Progress, begin: float, share: float, done: float, what: str) -> None:
    report(begin + 0.98 * share * done, what)


def _longer(baselines: list[Trained], task: Task) -> Arm:
    """The better of the baselines once more, with a longer warm-up."""
    best = min(baselines, key=lambda result: result.verified[-1]).arm
    name = f"{best.name}, warm-up {task.longer}x"
    return Arm(name, "reference", best.batch_norm, best.ibp_init, best.regularise, task.longer)


def _row(result: Trained, task: Task, seed: int) -> dict[str, Any]:
    (standard, certified), _ = measure(result.bounder, task, task.eps)
    states = result.states[-1]
    return {
        "name": result.arm.name,
        "role": result.arm.role,
        "verified_error": round(certified, 2),
        "attacked_error": round(attacked_error(result.bounder, task, seed), 2),
        "standard_error": round(standard, 2),
        "inactive": round(100 * sum(state.inactive for state in states) / len(states), 1),
        "epochs": task.epochs + task.length * (result.arm.longer - 1),
    }


def _holds(rows: list[dict[str, Any]]) -> bool:
    error = {row["name"]: row["verified_error"] for row in rows}
    return error[FULL.name] <= error[NORM.name] - 10 and error[FULL.name] < error[PLAIN.name]


def _curves(trained: list[Trained], task: Task, seed: int) -> list[dict[str, Any]]:
    compared = [result for result in trained if result.arm.role != "reference"]
    return [
        {
            "title": f"Verified error at radius {task.eps:.3g} (500 test images)",
            "x_label": "epoch",
            "y_label": "verified error (%)",
            "series": {r.arm.name: {"x": r.epochs, "y": r.verified} for r in trained},
        },
        {
            "title": "Bounds at initialisation",
            "x_label": "ReLU",
            "y_label": "mean radius / input radius",
            "y_scale": "log",
            "series": _gains_at_init(task, seed),
        },
        {
            "title": "Surely inactive ReLUs, mean over layers",
            "x_label": "epoch",
            "y_label": "inactive (%)",
            "series": {
                r.arm.name: {
                    "x": r.epochs,
                    "y": [100 * sum(s.inactive for s in states) / len(states) for states in r.states],
                }
                for r in compared
            },
        },
        {
            "title": "Active ReLUs per layer after training",
            "x_label": "ReLU",
            "y_label": "surely active (%)",
            "series": {
                r.arm.name: {
                    "x": list(range(1, len(r.states[-1]) + 1)),
                    "y": [100 * state.active for state in r.states[-1]],
                }
                for r in compared
            },
        },
        {
            "title": "Verified error at other radii",
            "x_label": "radius",
            "y_label": "verified error (%)",
            "series": {r.arm.name: _over_radii(r, task) for r in trained},
        },
    ]


def _over_radii(result: Trained, task: Task) -> dict[str, list[float]]:
    radii = [task.eps * share for share in (0.0, 0.33, 0.67, 1.0, 1.33)]
    errors = [measure(result.bounder, task, eps, limit=500)[0][1] for eps in radii]
    return {"x": radii, "y": errors}


def _gains_at_init(task: Task, seed: int) -> dict[str, Any]:
    """Growth of the radius with each initialisation, in training mode."""
    x = task.x[: task.batch_size].cpu()
    series = {}
    for batch_norm in (False, True):
        for name in ("default", "Kaiming", "orthogonal", "IBP"):
            generator = torch.Generator().manual_seed(seed)
            model = fresh(task.make, batch_norm, generator)
            _initialise(model, name, generator)
            gains = radius_gains(model, linf_box(x, task.eps))
            label = f"{name} init{', BN' if batch_norm else ''}"
            series[label] = {"x": list(range(1, len(gains) + 1)), "y": gains}
    return series


def _initialise(model: nn.Module, name: str, generator: torch.Generator) -> None:
    if name == "IBP":
        ibp_init_(model, generator=generator)
    for layer in model.modules():
        if name in ("Kaiming", "orthogonal") and isinstance(layer, nn.Linear | nn.Conv2d):
            draw = nn.init.kaiming_normal_ if name == "Kaiming" else nn.init.orthogonal_
            draw(layer.weight, generator=generator)
