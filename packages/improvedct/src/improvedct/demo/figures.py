"""The demo's figures: the paper's toy, the noise levels, the training, the samples."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from improvedct.average import ema_update
from improvedct.demo.data import Data
from improvedct.loss import pair_loss, squared_l2
from improvedct.noise import NoiseRange, Stage, lognormal_index_probs


class Point(nn.Module):
    """The paper's toy: f(x, sigma) = (sigma_min / sigma) x + (1 - sigma_min / sigma) theta, data at one point."""

    def __init__(self, theta: float) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(theta, dtype=torch.float64))
        self.noise_range = NoiseRange()

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Map (B, 1) noisy points to the start of their path."""
        share = (self.noise_range.sigma_min / sigma).unsqueeze(1)
        return share * x + (1 - share) * self.theta


def _toy_error(n: int, decay: float, seed: int, num_steps: int) -> float:
    """How far theta ends from the data at 0, begun at 1, with Adam at 0.01."""
    generator = torch.Generator().manual_seed(seed)
    model, teacher = Point(1.0), Point(1.0)
    stage = Stage(n, index_probs=torch.ones(n - 1), dtype=torch.float64)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    x = torch.zeros(32, 1, dtype=torch.float64)
    for _ in range(num_steps):
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        index = stage.sample_indices(len(x), generator)
        loss = pair_loss(
            model,
            x,
            noise,
            index,
            stage,
            target=teacher if decay else None,
            metric=squared_l2,
            same_dropout=False,
        ).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema_update(teacher, model, decay)
    return abs(model.theta.item())


def toy_curve(seed: int, num_steps: int) -> dict[str, Any]:
    """Where theta ends with and without an EMA teacher, on finer and finer grids."""
    grid = [4, 16, 64, 256, 1024]
    series = {
        name: {"x": grid, "y": [max(_toy_error(n, decay, seed, num_steps), 1e-6) for n in grid]}
        for name, decay in {"no EMA": 0.0, "EMA teacher, 0.9": 0.9, "EMA teacher, 0.99": 0.99}.items()
    }
    return {
        "title": "Data at one point: an EMA teacher pulls to its own past",
        "x_label": "number of boundaries N",
        "y_label": f"error of theta after {num_steps} steps",
        "x_scale": "log",
        "y_scale": "log",
        "series": series,
    }


def level_curve() -> dict[str, Any]:
    """How often each noise level is trained, improved and original."""
    stage = Stage(161, dtype=torch.float64)
    log_levels = stage.sigmas.log()
    middles, widths = ((log_levels[1:] + log_levels[:-1]) / 2).tolist(), log_levels.diff()
    density = lognormal_index_probs(stage.sigmas) / widths
    uniform = (1 / widths) / len(widths)
    normal = [math.exp(-((x + 1.1) ** 2) / 8) / (2 * math.sqrt(2 * math.pi)) for x in middles]
    return {
        "title": "Where training spends its time (160 intervals)",
        "x_label": "ln sigma",
        "y_label": "density",
        "series": {
            "improved: discretised lognormal": {"x": middles, "y": density.tolist()},
            "original: uniform over intervals": {"x": middles, "y": uniform.tolist()},
            "normal(-1.1, 2)": {"x": middles, "y": normal},
        },
    }


def history_curve(data: Data, histories: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """Quality during training, one line for each recipe."""
    return {
        "title": f"One-step samples during training, {data.name}",
        "x_label": "step",
        "y_label": "distance x 1000",
        "y_scale": "log",
        "series": histories,
    }


def grids(data: Data, name: str, samples: dict[str, Tensor]) -> list[dict[str, Any]]:
    """Samples to look at: images side by side, points as a histogram."""
    draw = _tiles if data.is_image else _density
    return [
        {
            "title": f"{data.name}: {name}, {steps}",
            "values": draw(data, drawn.float().cpu()).tolist(),
            "caption": caption,
        }
        for (steps, drawn) in samples.items()
        for caption in ["64 samples, not chosen" if data.is_image else f"histogram of {len(drawn):,} samples"]
    ]


def _tiles(data: Data, samples: Tensor) -> Tensor:
    channels = data.training.shape[1] if data.training.dim() == 4 else 1
    side = math.isqrt(data.training[0].numel() // channels)
    grey = samples.view(len(samples), channels, side, side).mean(1)
    framed = nn.functional.pad(grey, (1, 1, 1, 1), value=grey.max().item())
    return framed.view(8, 8, side + 2, side + 2).transpose(1, 2).reshape(8 * (side + 2), 8 * (side + 2))


def _density(data: Data, points: Tensor) -> Tensor:
    # Rows downwards, as images are read.
    return torch.histogramdd(points, bins=[40, 40], range=[-1.3, 1.3, -1.3, 1.3]).hist.T.flip(0)
