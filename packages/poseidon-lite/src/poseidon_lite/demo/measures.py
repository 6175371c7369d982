"""What is measured on trajectories: errors, curves and fields."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from poseidon_lite.model import rollout
from poseidon_lite.training import relative_error

VELOCITY = (2,)  # both channels make one group


@torch.no_grad()
def predict(model: nn.Module, x: Tensor, time: float, steps: int = 1) -> Tensor:
    """Predictions for all fields `x` after one lead time, in chunks."""
    return torch.cat([rollout(model, chunk, time, steps) for chunk in x.split(64)])


def errors_at(model: nn.Module, trajectories: Tensor, snapshot: int, steps: int = 1) -> Tensor:
    """Relative L1 error of every trajectory from the first snapshot to a later one, in percent."""
    time = snapshot / (trajectories.shape[1] - 1)
    prediction = predict(model, trajectories[:, 0], time, steps)
    return relative_error(prediction, trajectories[:, snapshot], VELOCITY)[:, 0]


def error(model: nn.Module, trajectories: Tensor) -> float:
    """Median error over trajectories and all later snapshots, from the first snapshot."""
    later = range(1, trajectories.shape[1])
    return float(torch.cat([errors_at(model, trajectories, j) for j in later]).median())


def error_curve(counts: tuple[int, ...], errors: dict[str, list[float]]) -> dict[str, Any]:
    """Test error of every arm against the number of trajectories."""
    return {
        "title": "New PDE: test error against trajectories",
        "x_label": "trajectories",
        "y_label": "median relative L1 error, %",
        "x_scale": "log",
        "y_scale": "log",
        "series": {name: {"x": list(counts), "y": values} for name, values in errors.items()},
    }


def lead_time_curve(models: dict[str, nn.Module], method: str, test: Tensor) -> dict[str, Any]:
    """Error against lead time of every model in one call, and of the method's step by step as well."""
    later = range(1, test.shape[1])
    series = {name: [errors_at(model, test, j) for j in later] for name, model in models.items()}
    series[f"{method}, one snapshot a step"] = [errors_at(models[method], test, j, steps=j) for j in later]
    times = [j / (test.shape[1] - 1) for j in later]
    return {
        "title": "New PDE: test error against lead time, most trajectories",
        "x_label": "lead time (trajectory = 1)",
        "y_label": "median relative L1 error, %",
        "series": {
            name: {"x": times, "y": [float(value.median()) for value in values]}
            for name, values in series.items()
        },
    }


def images(model: nn.Module, test: Tensor, num_trajectories: int) -> list[dict[str, Any]]:
    """First velocity component of the first test trajectory at the start, at the end, and as predicted."""
    prediction = predict(model, test[:1, 0], 1.0)[0, 0]
    fields = {
        "Velocity u, initial": test[0, 0, 0],
        "Velocity u, final, reference": test[0, -1, 0],
        "Velocity u, final, fine-tuned scOT": prediction,
        "Absolute error": (prediction - test[0, -1, 0]).abs(),
    }
    stride = max(1, test.shape[-1] // 64)
    caption = f"first test trajectory, {num_trajectories} training trajectories"
    return [
        {"title": title, "values": field[::stride, ::stride].tolist(), "caption": caption}
        for title, field in fields.items()
    ]
