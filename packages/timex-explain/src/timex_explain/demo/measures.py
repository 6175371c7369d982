"""Measures of the demo: the other attributions, what every attribution is worth, and the plots."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from timex_explain.attribution import (
    OcclusionCurve,
    gradient_times_input,
    integrated_gradients,
    occlusion_curve,
    occlusion_saliency,
    saliency_scores,
)
from timex_explain.demo.data import Split
from timex_explain.landmarks import landmark_summary
from timex_explain.replacement import Replacement

IG, GRADIENT, OCCLUSION, RANDOM = "integrated gradients", "gradient x input", "occlusion", "random"
# These ask no classifier: what a set alone gives away.
SIZE, QUIET = "size of the value", "quiet of the neighbourhood"
_NEIGHBOURS = 9  # points whose deviation is taken
FRACTIONS = [number / 10 for number in range(10)]
SCORES = ("auprc", "aup", "aur")


@dataclass(frozen=True)
class Measured:
    """What an attribution found on the test series, what that is worth, and what it took."""

    saliency: Tensor
    seconds: float
    kept: OcclusionCurve
    deleted: OcclusionCurve
    scores: dict[str, float]


def baselines(
    model: nn.Module, data: Split, source: torch.Generator, num_draws: int
) -> dict[str, Callable[[], list[Tensor]]]:
    """Make, for each of the other attributions, the forms it is used in: as it is and, if signed, its size."""
    x = data.test[0]
    with torch.no_grad():
        target = model(x).argmax(1)
    replacement = Replacement.fit(data.train[0])

    def both(saliency: Tensor) -> list[Tensor]:
        return [saliency, saliency.abs()]

    def occlusion() -> Tensor:
        return occlusion_saliency(model, x, target, replacement, num_draws=num_draws, generator=source)

    return {
        IG: lambda: both(integrated_gradients(model, x, target)),
        GRADIENT: lambda: both(gradient_times_input(model, x, target)),
        OCCLUSION: lambda: both(occlusion()),
        SIZE: lambda: [x.abs()],
        QUIET: lambda: [quiet(x)],
        RANDOM: lambda: [torch.rand(x.shape, generator=source, device=x.device)],
    }


def quiet(x: Tensor) -> Tensor:
    """Higher where the values around are alike: minus their deviation, with the ends repeated."""
    half = _NEIGHBOURS // 2
    padded = torch.cat([x[:, :1].expand(-1, half, -1), x, x[:, -1:].expand(-1, half, -1)], dim=1)
    return -padded.unfold(1, _NEIGHBOURS, 1).std(-1)


def timed(run: Callable[[], Any], repeats: int = 3) -> tuple[Any, float]:
    """Run a few times; the last result and the fastest time, in seconds."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        result = run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return result, min(seconds)


def measure(model: nn.Module, data: Split, forms: list[Tensor], seconds: float, seed: int) -> Measured:
    """Judge an attribution by the best of its forms: by AUPRC where the truth is known, else by occlusion."""
    judged = [_measure_one(model, data, saliency, seconds, seed) for saliency in forms]
    return max(judged, key=lambda found: found.scores.get("auprc", found.kept.area))


def _measure_one(model: nn.Module, data: Split, saliency: Tensor, seconds: float, seed: int) -> Measured:
    x, y = data.test
    replacement = Replacement.fit(data.train[0])

    def curve(order: Any) -> OcclusionCurve:
        source = torch.Generator(x.device).manual_seed(seed)  # the same draws for every attribution
        return occlusion_curve(model, x, y, saliency, FRACTIONS, replacement, order=order, generator=source)

    scores = {}
    if data.truth is not None:
        decided = data.truth.flatten(1).any(1)  # a class of SeqComb is that nothing is there: no curve
        found = saliency_scores(saliency[decided], data.truth[decided])
        scores = {name: float(value.mean()) for name, value in zip(SCORES, found, strict=True)}
    return Measured(saliency, seconds, curve("lowest"), curve("highest"), scores)


# --- plots -----------------------------------------------------------------------------------------


def curve(title: str, x_label: str, y_label: str, series: dict[str, Any]) -> dict[str, Any]:
    """Make a plot of the contract."""
    return {"title": title, "x_label": x_label, "y_label": y_label, "series": series}


def series(x: Sequence[float], y: Sequence[float]) -> dict[str, list[float]]:
    """Make a line of the contract."""
    return {"x": list(x), "y": list(y)}


def occlusion_plots(data: Split, found: dict[str, Measured]) -> list[dict[str, Any]]:
    """Draw what is left of the classifier when the least, and when the most, salient values are replaced."""
    percent = [100 * part for part in FRACTIONS]
    kept = {name: series(percent, measured.kept.auroc) for name, measured in found.items()}
    deleted = {name: series(percent, measured.deleted.auroc) for name, measured in found.items()}
    return [
        curve(
            f"{data.name}: least salient values replaced (high is good)",
            "replaced (% of values)",
            "AUROC of the classifier",
            kept,
        ),
        curve(
            f"{data.name}: most salient values replaced (low is good)",
            "replaced (% of values)",
            "AUROC of the classifier",
            deleted,
        ),
    ]


def sample_plots(data: Split, found: dict[str, Measured]) -> list[dict[str, Any]]:
    """Draw the first series of each class of a set of one sensor, with the saliency of two attributions."""
    x, y = data.test
    plots = []
    for label in y.unique().tolist():
        row = int((y == label).nonzero()[0])
        times = list(range(1, x.shape[1] + 1))
        lines = {"series": series(times, x[row, :, 0].tolist())}
        if data.truth is not None:
            lines["truth"] = series(times, data.truth[row, :, 0].double().tolist())
        for name, measured in found.items():
            lines[f"{name}, scaled to [0, 1]"] = series(times, _scaled(measured.saliency[row, :, 0]).tolist())
        plots.append(
            curve(f"{data.name}, class {label}: a series and its explanations", "time", "value", lines)
        )
    return plots


def _scaled(saliency: Tensor) -> Tensor:
    return (saliency - saliency.min()) / (saliency.max() - saliency.min()).clamp_min(1e-12)


def landmark_plots(
    data: Split, saliency: Tensor, z: Tensor, landmarks: Tensor, most: int = 3
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Draw the largest landmarks by their nearest series, and the explanation space in two dimensions."""
    x, y = data.test
    table = landmark_summary(z, landmarks)
    times = list(range(1, x.shape[1] + 1))
    plots = []
    for number in table.kept[:most].tolist():
        row = int(table.nearest[number, 0])
        members = y[table.assignment == number]
        label = int(members.mode().values)
        share = 100 * float((members == label).double().mean())
        title = f"{data.name}: landmark {number}, {len(members)} series, {share:.0f} % of class {label}"
        lines = {
            "nearest series": series(times, x[row, :, 0].tolist()),
            "its saliency, scaled to [0, 1]": series(times, _scaled(saliency[row, :, 0]).tolist()),
        }
        plots.append(curve(title, "time", "value", lines))
    return plots, _space(data, z)


def _space(data: Split, z: Tensor, size: int = 24) -> dict[str, Any]:
    """Draw which class is where, on the two largest principal components."""
    centred = (z - z.mean(0)).double().cpu()
    plane = centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:2].T
    low, high = plane.amin(0), plane.amax(0)
    cell = ((plane - low) / (high - low).clamp_min(1e-12) * (size - 1)).round().long()
    counts = torch.zeros(size, size, data.num_classes)
    counts.index_put_((cell[:, 1], cell[:, 0], data.test[1].cpu()), torch.ones(len(z)), accumulate=True)
    values = torch.where(counts.sum(-1) > 0, counts.argmax(-1) + 1, 0)
    caption = f"0: nothing; 1 to {data.num_classes}: the most frequent class, plus one"
    title = f"{data.name}: explanation embeddings on their two principal components"
    return {"title": title, "values": values.tolist(), "caption": caption}
