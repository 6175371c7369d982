"""The evidence: metrics of demonstrations against what cloning makes of them, and curation by these metrics."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ildataquality import _demo_pendulum as pendulum
from ildataquality._demo_curation import ARMS, Curated, run_curation
from ildataquality._demo_grid import REACH, Grid, run_grid, spearman
from ildataquality._demo_robomimic import robomimic
from ildataquality.ensemble import StackedMLP
from ildataquality.episodes import Episodes
from ildataquality.point_mass import PMObstacle

Progress = Callable[[float, str], None]
Row = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How large the experiment is."""

    grid: Grid
    num_clean: tuple[int, int]  # PMObstacle, Pendulum
    repeats: tuple[int, int, int]  # PMObstacle, Pendulum, still Pendulum
    num_steps: int
    rollouts: tuple[int, int]


SIZES = {
    "smoke": Size(Grid((0.0, 0.02), (0.0, 1.0), (3,), 1, 50, 20), (3, 2), (1, 1, 1), 50, (20, 2)),
    "laptop": Size(
        Grid((0.0, 0.01, 0.02, 0.03), (0.0, 0.3, 0.6, 1.0), (3, 10, 50), 4, 1500, 200),
        (5, 10),
        (8, 8, 4),
        1500,
        (200, 20),
    ),
}
SYSTEM, POLICY = 0.02, 1.0  # PMObstacle: noise of the system, and of the noisy operators
DISTURBANCE, SHAKE = 1.0, 2.0  # Pendulum: the same as torques, of which the limit is 2


def demo(
    preset: str = "laptop",
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Hold the metrics against success of behaviour cloning, and curation by them against all data and random halves.

    `smoke` and `laptop` clone a scripted expert in PMObstacle and in gymnasium's Pendulum-v1 (extra `demo`). `paper`
    measures the operators of a robomimic multi-human file named by the environment variable ILDATAQUALITY_ROBOMIMIC
    (extra `hdf5`); it trains nothing.

    Args:
        preset: `"smoke"`, `"laptop"` or `"paper"`.
        seed: Seed of every random number used.
        device: A torch device.
        progress: Called as `progress(fraction, message)`.

    Returns:
        The demo contract's dictionary.

    Raises:
        ValueError: If `preset` is not one of the three, or `paper` misses its file.
        ImportError: If an extra is missing.
    """
    if preset not in ("smoke", "laptop", "paper"):
        raise ValueError(f"preset must be 'smoke', 'laptop' or 'paper', got {preset!r}")
    report = progress or (lambda fraction, message: None)
    if preset == "paper":
        path = os.environ.get("ILDATAQUALITY_ROBOMIMIC")
        if path is None:
            raise ValueError(
                "preset 'paper' needs ILDATAQUALITY_ROBOMIMIC to name a multi-human file, got nothing"
            )
        return robomimic(path, seed, report)
    size, generator = SIZES[preset], torch.Generator().manual_seed(seed)
    cells = run_grid(size.grid, generator, device, _stage(report, 0.0, 0.5, "grid"))
    scores = _scores(cells, size.grid)
    curated = _curate(size, generator, device, report)
    rows = _grid_rows(scores, cells["success"])
    for task, found in curated.items():
        rows += _curation_rows(task, found)
    report(1.0, "done")
    return {
        "claim": "What is measured on demonstrations before any training, coverage less action variance, foretells the "
        "success of cloning them, which state diversity alone does not; and cloning the half that these metrics keep "
        "of a mixed data set beats cloning all of it.",
        "setting": _setting(size),
        "metrics": _METRICS,
        "rows": rows,
        "criterion": _CRITERION,
        "holds": _holds(rows),
        "curves": _curves(cells["success"], size.grid),
        "images": _images(cells | {"score": scores[_METHOD]}, size.grid),
    }


def _stage(report: Progress, start: float, share: float, label: str) -> Progress:
    return lambda fraction, message: report(start + share * fraction, f"{label}: {message}")


def _scores(cells: dict[str, Tensor], grid: Grid) -> dict[str, Tensor]:
    """What is ranked against success: the combined score, state diversity, and the parts of the first."""
    coverage, variance = cells["coverage"], cells["action variance"]
    return {
        _METHOD: coverage - variance,
        "state diversity": cells["state diversity"],
        "coverage": coverage,
        "low action variance": -variance,
        "coverage - action variance / N": coverage - variance / torch.tensor(grid.sizes)[:, None, None],
    }


def _curate(size: Size, generator: torch.Generator, device: str, report: Progress) -> dict[str, Curated]:
    task = PMObstacle()

    def collect_points(noisy: Tensor) -> Episodes:
        parts = [
            task.collect(int(group.sum()), system_noise=SYSTEM, policy_noise=noise, generator=generator)
            for group, noise in ((~noisy, 0.0), (noisy, POLICY))
        ]
        # Collected clean first; put back into the operators' order.
        order = torch.cat([(~noisy).nonzero()[:, 0], noisy.nonzero()[:, 0]])
        return Episodes.concatenate(parts).subset(order.argsort())

    def success(models: StackedMLP, count: int) -> Tensor:
        shape = (count, size.rollouts[0])
        found = task.success(models, shape, system_noise=SYSTEM, generator=generator, device=device)
        return 100 * found.double().mean(1)

    common: dict[str, Any] = {"num_steps": size.num_steps, "generator": generator, "device": device}
    found = {
        "PMObstacle": run_curation(
            collect_points,
            success,
            num_clean=size.num_clean[0],
            repeats=size.repeats[0],
            report=_stage(report, 0.5, 0.1, "PMObstacle"),
            **common,
        )
    }
    for name, disturbance, repeats, start, share in (
        ("Pendulum", DISTURBANCE, size.repeats[1], 0.6, 0.3),
        ("still Pendulum", 0.0, size.repeats[2], 0.9, 0.1),
    ):

        def collect(noisy: Tensor, disturbance: float = disturbance) -> Episodes:
            return pendulum.collect((SHAKE * noisy).numpy().astype(np.float32), disturbance, generator)

        def returns(models: StackedMLP, count: int, disturbance: float = disturbance) -> Tensor:
            return pendulum.returns(models, count, size.rollouts[1], disturbance, generator, device)

        found[name] = run_curation(
            collect,
            returns,
            num_clean=size.num_clean[1],
            repeats=repeats,
            report=_stage(report, start, share, name),
            **common,
        )
    return found


# --- judgement -------------------------------------------------------------------------------------

_METHOD = "coverage - action variance"

_CRITERION = (
    "over the cells of the PMObstacle grid, Spearman's correlation of success with coverage less action variance is at "
    "least 0.6 and greater than with state diversity; and in PMObstacle and in Pendulum at least 90 % of the episodes "
    "that the rank drops are of noisy operators, and cloning the half it keeps beats all and a random half"
)

_METRICS = {
    "spearman": {"unit": "", "better": "higher"},
    "precision": {"unit": "% of dropped are noisy", "better": "higher"},
    "success": {"unit": "%", "better": "higher"},
    "return": {"unit": "", "better": "higher"},
}


def _holds(rows: list[Row]) -> bool:
    row = {found["name"]: found for found in rows}
    combined, diversity = (row[f"grid: {name}"]["spearman"] for name in (_METHOD, "state diversity"))
    curated = True
    for task, score in (("PMObstacle", "success"), ("Pendulum", "return")):
        kept, everything, half = (row[f"{task}: {arm}"] for arm in ARMS[:3])
        curated &= kept["precision"] >= 90 and kept[score] > max(everything[score], half[score])
    return bool(combined >= 0.6 and combined > diversity and curated)


def _grid_rows(scores: dict[str, Tensor], success: Tensor) -> list[Row]:
    roles = {_METHOD: "method", "state diversity": "baseline"}
    return [
        {"name": f"grid: {name}", "role": roles.get(name, "ablation"), "spearman": spearman(score, success)}
        for name, score in scores.items()
    ]


def _curation_rows(task: str, found: Curated) -> list[Row]:
    rows = []
    for arm, name in enumerate(ARMS):
        row: Row = {"name": f"{task}: {name}", "role": "baseline" if arm else "method"}
        if task == "still Pendulum":
            row["role"] = "ablation"
        if name != "all":
            row["precision"] = 100 * float(found.precision[:, arm].mean())
        row["success" if task == "PMObstacle" else "return"] = float(found.score[:, arm].mean())
        rows.append(row)
    return rows


def _setting(size: Size) -> dict[str, Any]:
    grid, (points, swings) = size.grid, size.num_clean
    return {
        "data": f"grid: PMObstacle, system noise {grid.system_noise} x policy noise {grid.policy_noise} x "
        f"{grid.sizes} episodes x {grid.repeats} sets; curation: {points} clean and {points} noisy operators "
        f"(policy noise {POLICY}) in PMObstacle with system noise {SYSTEM}, and {swings} and {swings} in gymnasium's "
        f"Pendulum-v1 (torque noise {SHAKE}, limit 2) with an unrecorded random torque of {DISTURBANCE}, or none "
        f"(still Pendulum); {size.repeats[0]}, {size.repeats[1]} and {size.repeats[2]} sets",
        "model": "MLP 128x2 ReLU on standardised states, mean squared error, Adam 1e-3 with cosine decay, batch 64",
        "budget": f"{grid.num_steps} (grid) and {size.num_steps} (curation) gradient steps for every policy, whatever "
        f"the number of its episodes; {size.rollouts[0]} rollouts a policy in PMObstacle, "
        f"{size.rollouts[1]} in Pendulum",
        "score": f"coverage: share of the data's states, perturbed by N(0, {REACH}^2), with a sample within {REACH}; "
        "action variance: squared units of the actions (limit 1), neighbours of other episodes; state diversity: "
        "minus state similarity at one radius for all sets",
        "tuning": "score, noises and numbers of episodes were chosen on seeds of 100 and above",
    }


# --- plots -----------------------------------------------------------------------------------------


def _curves(success: Tensor, grid: Grid) -> list[dict[str, Any]]:
    """Success along the edges of the grid, where only one of the two noises is on."""
    edges = (
        ("system noise", grid.system_noise, success[:, :, 0]),
        ("policy noise", grid.policy_noise, success[:, 0, :]),
    )
    return [
        {
            "title": f"Success of cloning by {name} at collection",
            "x_label": f"{name} (the other is 0)",
            "y_label": "success (%)",
            "series": {
                f"{size} episodes": {"x": list(levels), "y": (100 * line).tolist()}
                for size, line in zip(grid.sizes, lines, strict=True)
            },
        }
        for name, levels, lines in edges
    ]


def _images(cells: dict[str, Tensor], grid: Grid) -> list[dict[str, Any]]:
    """One map a quantity: the sizes side by side."""
    caption = (
        f"Rows: system noise {grid.system_noise}. Columns: policy noise {grid.policy_noise}, once for each of "
        f"{grid.sizes} episodes."
    )
    titles = {"score": f"Score: {_METHOD}", "state diversity": "State diversity (minus similarity)"}
    return [
        {
            "title": titles.get(name, name.capitalize()),
            "values": values.permute(1, 0, 2).flatten(1).tolist(),
            "caption": caption,
        }
        for name, values in cells.items()
    ]
