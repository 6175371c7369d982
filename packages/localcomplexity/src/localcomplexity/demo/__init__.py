"""The evidence: local complexity over training beside the delayed rise of accuracy and robustness."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from localcomplexity.demo.exact import Agreement, compare_counts, density_images, seeded, spearman
from localcomplexity.demo.judgement import AGREEMENT, OURS, conditions
from localcomplexity.demo.settings import Setting, settings
from localcomplexity.demo.training import (
    JACOBIAN,
    LOSS,
    RANDOM,
    TEST,
    TEST_ACCURACY,
    TRAIN,
    TRAIN_ACCURACY,
    WEIGHTS,
    History,
    robust,
    train,
)
from localcomplexity.probe import LocalComplexity
from localcomplexity.tracking import detect_phases
from localcomplexity.vertices import segment_points

Row = dict[str, Any]

_METRICS = {
    "at_interpolation": {"unit": "", "better": "neither"},
    "peak": {"unit": "", "better": "neither"},
    "peak_step": {"unit": "step", "better": "neither"},
    "final": {"unit": "", "better": "neither"},
    "final_over_peak": {"unit": "", "better": "neither"},
    "rank_correlation": {"unit": "with robust accuracy after interpolation", "better": "neither"},
    "cost": {"unit": "training steps", "better": "lower"},
    "step": {"unit": "", "better": "neither"},
    "training_accuracy": {"unit": "%", "better": "higher"},
    "test_accuracy": {"unit": "%", "better": "higher"},
    "robust_accuracy": {"unit": "%, smaller ε", "better": "higher"},
    "robust_accuracy_large": {"unit": "%, larger ε", "better": "higher"},
    "train_over_test": {"unit": "local complexity at training over test points", "better": "neither"},
    "exact_correlation": {"unit": "rank correlation with the exact count", "better": "higher"},
    "exact_share": {"unit": "% of the exact count", "better": "higher"},
}


def demo(
    preset: str = "laptop",
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[float, str], None] | None = None,
) -> dict[str, Any]:
    """Train a network far beyond interpolation and watch local complexity, accuracy and robustness.

    `smoke` and `laptop` need the `demo` extra. `paper` has the paper's MLP on MNIST and its ResNet-18 on CIFAR-10,
    each if the environment variable LOCALCOMPLEXITY_MNIST or LOCALCOMPLEXITY_CIFAR10 names the folder of the data.

    Args:
        preset: `"smoke"`, `"laptop"` or `"paper"`.
        seed: Seed of every random number used.
        device: A torch device.
        progress: Called as `progress(fraction, message)`.

    Returns:
        The demo contract's dictionary.

    Raises:
        ValueError: If `preset` is not one of the three, or `paper` finds no data.
        ImportError: If the `demo` extra is missing.
    """
    if preset not in ("smoke", "laptop", "paper"):
        raise ValueError(f"preset must be 'smoke', 'laptop' or 'paper', got {preset!r}")
    report = progress or (lambda fraction, message: None)
    generator = torch.Generator().manual_seed(seed)
    runs = settings(preset)

    def stage(start: float, share: float) -> Callable[[float, str], None]:
        return lambda fraction, message: report(start + share * fraction, message)

    agreement = compare_counts(8 if preset == "smoke" else 64, generator, stage(0.0, 0.05))
    outcomes = []
    for index, setting in enumerate(runs):
        told = stage(0.05 + 0.95 * index / len(runs), 0.95 / len(runs))
        outcomes.append(_Outcome(setting, seed, device, generator, told))
    report(1.0, "done")

    rows = [row for outcome in outcomes for row in outcome.rows()]
    rows.append(_agreement_row(agreement))
    verdict = conditions(rows)
    return {
        "claim": "Long after a network has interpolated its data, its linear regions gather around the training "
        "points and then leave them, and with this second descent generalisation and robustness rise.",
        "setting": _setting(runs),
        "metrics": _METRICS,
        "rows": rows,
        "conditions": verdict,
        "holds": all(condition["holds"] for condition in verdict),
        "curves": [curve for outcome in outcomes for curve in outcome.curves()]
        + [_agreement_curve(agreement)],
        "images": [image for outcome in outcomes for image in outcome.images()],
    }


class _Outcome:
    """One setting, run; its part of the table and of the plots."""

    def __init__(
        self, setting: Setting, seed: int, device: str, generator: torch.Generator, report: Any
    ) -> None:
        self.setting = setting
        self.prefix = f"{setting.name}: " if setting.name else ""
        self.data = setting.data(generator).to(device, setting.dtype)
        self.model = seeded(setting.model, seed).to(device, setting.dtype)
        self.history = train(setting, self.data, self.model, generator, report)
        self.measures = _measures(self.history)
        interpolated = [value >= 100 for value in self.history.values[TRAIN_ACCURACY]]
        # If it never comes, everything is judged from the end, where there is no peak to be found.
        self.interpolation = interpolated.index(True) if any(interpolated) else len(interpolated) - 1
        self.interpolates = any(interpolated)

    # --- the table ---

    def rows(self) -> list[Row]:
        near, wide = f"r = {self.setting.radius:g}", f"r = {self.setting.wide_radius:g}"
        roles = {
            (TRAIN, near): "method",
            (TEST, near): "reference",
            (RANDOM, near): "reference",
            (TRAIN, wide): "ablation",
        }
        rows = []
        for (place, radius), role in roles.items():
            tracker = self.history.near if radius == near else self.history.wide
            name = f"local complexity at {place}" + (f", {radius}" if role == "ablation" else "")
            row = self._measure_row(name, role, tracker.values(place).tolist())
            if role == "method":
                row["cost"] = self.history.cost(TRAIN)
            rows.append(row)
        for name in (LOSS, WEIGHTS, JACOBIAN):
            row = self._measure_row(name, "baseline", self.history.values[name])
            rows.append(row | {"cost": self.history.cost(name)})
        return rows + self._moments()

    def _measure_row(self, name: str, role: str, values: list[float]) -> Row:
        """Where a curve peaks after a rise, if it does, and how it goes with robust accuracy."""
        start = self.interpolation
        row: Row = {"name": self.prefix + name, "role": role, "final": values[-1]}
        row["at_interpolation"] = values[start] if self.interpolates else None
        peak_step = detect_phases(self.history.steps, values).ascent_peak
        if peak_step is not None:
            peak = values[self.history.steps.index(peak_step)]
            row |= {"peak_step": peak_step, "peak": peak, "final_over_peak": values[-1] / peak}
        robustness = self.history.values[robust(self.setting.epsilons[0])]
        row["rank_correlation"] = spearman(values[start:], robustness[start:])
        return row

    def _moments(self) -> list[Row]:
        """The network at the moments that the criterion speaks of."""
        values, ratio = self.history.values, self._ratio()
        widest = max(range(self.interpolation, len(ratio)), key=ratio.__getitem__)
        small, large = (values[robust(epsilon)] for epsilon in self.setting.epsilons)
        return [
            {
                "name": f"{self.prefix}network {when}",
                "role": "reference",
                "step": self.history.steps[index],
                "training_accuracy": values[TRAIN_ACCURACY][index],
                "test_accuracy": values[TEST_ACCURACY][index],
                "robust_accuracy": small[index],
                "robust_accuracy_large": large[index],
                "train_over_test": ratio[index],
            }
            for when, index in {**self._checkpoints(), "where training over test is greatest": widest}.items()
        ]

    def _checkpoints(self) -> dict[str, int]:
        """Interpolation, the peak of local complexity if there is one, and the end."""
        peak = detect_phases(self.history.steps, self.measures[OURS]).ascent_peak
        moments = {"at interpolation": self.interpolation} if self.interpolates else {}
        if peak is not None:
            moments["at the peak of local complexity"] = self.history.steps.index(peak)
        return moments | {"at the end": len(self.history.steps) - 1}

    def _ratio(self) -> list[float]:
        near = self.history.near
        return (near.values(TRAIN) / near.values(TEST).clamp(min=1e-6)).tolist()

    # --- the plots ---

    def curves(self) -> list[dict[str, Any]]:
        near, wide, values = self.history.near, self.history.wide, self.history.values
        accuracies = [TRAIN_ACCURACY, TEST_ACCURACY, *map(robust, self.setting.epsilons)]
        unit = "neurons that change sign per point"
        relative = {
            name: [value / curve[self.interpolation] for value in curve]
            for name, curve in self.measures.items()
            if curve[self.interpolation] > 0
        }
        return [
            self._over_steps(
                f"Local complexity, r = {self.setting.radius:g}",
                unit,
                {place: near.values(place).tolist() for place in near.sets},
            ),
            self._over_steps("Accuracy", "accuracy (%)", {name: values[name] for name in accuracies}),
            self._over_steps(
                f"Local complexity, r = {self.setting.wide_radius:g}",
                unit,
                {place: wide.values(place).tolist() for place in wide.sets},
            ),
            self._over_steps("Measures relative to interpolation", "ratio", relative) | {"y_scale": "log"},
            *self._segment_curve(),
        ]

    def _over_steps(self, title: str, y_label: str, series: dict[str, list[float]]) -> dict[str, Any]:
        steps = self.history.steps
        return {
            "title": self.prefix + title,
            "x_label": "optimizer step",
            "y_label": y_label,
            "series": {name: {"x": steps, "y": values} for name, values in series.items()},
            "x_scale": "log",
        }

    def _segment_curve(self) -> list[dict[str, Any]]:
        """Where the non-linearity sits between two test images of different classes."""
        if not self.history.states:
            return []
        first, second = (self.data.test_x[self.data.test_y == digit][0] for digit in (0, 1))
        points = segment_points(first, second, 41)
        series = {}
        for name, index in self._checkpoints().items():
            self.model.load_state_dict(self.history.states[index])
            probe = LocalComplexity(
                self.model,
                radius=self.setting.wide_radius,
                num_directions=self.setting.num_directions,
                generator=torch.Generator().manual_seed(0),
            )
            counts = probe(points).total.tolist()
            series[name] = {"x": [position / 40 for position in range(41)], "y": counts}
        title = f"Local complexity from a test zero to a test one, r = {self.setting.wide_radius:g}"
        labels = {"x_label": "position on the segment", "y_label": "neurons that change sign"}
        return [{"title": self.prefix + title, **labels, "series": series}]

    def images(self) -> list[dict[str, Any]]:
        layers = self.history.near.layers(TRAIN)
        names, steps = ", ".join(self.history.near.names), self.history.steps
        heat_map = {
            "title": f"{self.prefix}Local complexity at training points, layer by layer",
            "values": layers.T.tolist(),
            "caption": f"One row per layer ({names}), one column per measurement, "
            f"steps {steps[0]:,} to {steps[-1]:,} on a log scale",
        }
        if not self.history.states:
            return [heat_map]
        moments = {"at the start": 0, **self._checkpoints()}
        chosen = dict(list(moments.items())[: self.setting.num_slices])
        states = {
            f"{when} (step {steps[index]:,})": self.history.states[index] for when, index in chosen.items()
        }
        return [heat_map, *density_images(self.model, self.data, states)]


def _measures(history: History) -> dict[str, list[float]]:
    ours = {OURS: history.near.values(TRAIN).tolist()}
    return ours | {name: history.values[name] for name in (LOSS, WEIGHTS, JACOBIAN)}


def _agreement_row(agreement: Agreement) -> Row:
    return {
        "name": AGREEMENT,
        "role": "reference",
        "exact_correlation": agreement.rank_correlation,
        "exact_share": 100 * agreement.share,
    }


def _agreement_curve(agreement: Agreement) -> dict[str, Any]:
    order = sorted(range(len(agreement.exact)), key=lambda index: (agreement.exact[index], index))
    exact = [agreement.exact[index] for index in order]
    return {
        "title": "The count at the vertices against the exact number of neurons in a square",
        "x_label": "neurons whose boundary meets the square",
        "y_label": "neurons that change sign between its vertices",
        "series": {
            "random networks": {"x": exact, "y": [agreement.counted[index] for index in order]},
            "equal": {"x": [exact[0], exact[-1]], "y": [exact[0], exact[-1]]},
        },
    }


def _setting(runs: list[Setting]) -> dict[str, str]:
    first = runs[0]
    return {
        "data": "; ".join(run.data_name for run in runs),
        "model": "; ".join(run.model_name for run in runs),
        "budget": "; ".join(
            f"{run.num_steps:,} steps of batch {run.batch_size}, {run.num_measurements} measurements at "
            "log-spaced steps; the same network and points for every measure"
            for run in runs
        ),
        "probes": "; ".join(
            f"{run.num_probes:,} points per set, {2 * run.num_directions} vertices, r = {run.radius:g} and "
            f"{run.wide_radius:g}, one frozen frame"
            for run in runs
        ),
        "attack": "; ".join(
            f"10 steps of projected gradient descent on {run.num_attacked:,} test images, "
            f"ε = {run.epsilons[0]:.2g} and {run.epsilons[1]:.2g}"
            for run in runs
        ),
        "optimizer": type(first.optimizer([torch.nn.Parameter(torch.zeros(1))])).__name__
        + ", learning rate 1e-3",
    }
