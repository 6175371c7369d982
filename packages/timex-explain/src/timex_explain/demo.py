"""The evidence: does the explainer find what decides, and what is left of the classifier if only that stays?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from timex_explain._demo_data import Split, real, synthetic
from timex_explain._demo_measures import (
    GRADIENT,
    IG,
    OCCLUSION,
    RANDOM,
    SCORES,
    SIZE,
    Measured,
    baselines,
    curve,
    landmark_plots,
    measure,
    occlusion_plots,
    sample_plots,
    series,
    timed,
)
from timex_explain._demo_models import ConvNet, Transformer
from timex_explain._demo_training import Budget, Trained, train_classifier, train_explainer
from timex_explain.explainer import Objective

_CLAIM = (
    "An explainer that is trained to behave as the classifier does finds the points that decide better than "
    "attributions of single series do, and what it ranks high keeps the classifier's accuracy."
)
_CRITERION = (
    "on FreqShapes, TimeX with the paper's masks has a higher AUPRC than every baseline in its better form; "
    "and, where there is a real set, the classifier's AUROC with the least salient values replaced, averaged "
    "over the parts replaced, is higher by TimeX than by random saliency"
)
_OURS = "TimeX"
_REPLACED = "TimeX, values replaced"
_BASELINES = (IG, GRADIENT, OCCLUSION, RANDOM)
# name -> (what is different about it, whether values are replaced instead of attention masked)
_VARIANTS: dict[str, tuple[dict[str, Any], bool]] = {
    _OURS: ({}, False),
    _REPLACED: ({}, True),
    "TimeX, soft masks (no straight-through)": ({"hard": False}, False),
    "TimeX, labels only (no behaviour consistency)": ({"consistency": "none"}, False),
    "TimeX, connectedness as printed": ({"connectedness_mode": "l1"}, False),
}
_METRICS = {
    **{name: {"unit": "", "better": "higher"} for name in SCORES},
    "occlusion": {"unit": "mean AUROC", "better": "higher"},
    "deletion": {"unit": "mean AUROC", "better": "lower"},
    "real_occlusion": {"unit": "mean AUROC", "better": "higher"},
    "real_deletion": {"unit": "mean AUROC", "better": "lower"},
    "explaining": {"unit": "ms per series", "better": "lower"},
    "training": {"unit": "s", "better": "lower"},
    "break_even": {"unit": "series, against integrated gradients", "better": "lower"},
}

_Report = Callable[[float, str], None]
_Row = dict[str, Any]


@dataclass(frozen=True)
class _Settings:
    sizes: tuple[int, int, int]
    classifier: Budget
    explainer: Budget
    num_draws: int = 4
    num_landmarks: int = 50
    label_mode: str = "pairwise"
    real_classifier: Budget | None = None
    real_explainer: Budget | None = None


_PRESETS = {
    "smoke": _Settings((128, 32, 32), Budget(2, 1e-2, 0.1), Budget(2, 3e-3, 1e-3), 1, 8),
    "laptop": _Settings(
        (2000, 200, 500),
        Budget(30, 1e-2, 0.1),
        Budget(15, 3e-3, 1e-3),
        real_classifier=Budget(20, 3e-3, 1e-3),
        real_explainer=Budget(40, 3e-3, 1e-3),
    ),
    "paper": _Settings(
        (5000, 100, 1000),
        Budget(100, 1e-3, 0.1),
        Budget(50, 1e-3, 1e-3),
        num_draws=10,
        label_mode="official",
        real_classifier=Budget(50, 1e-3, 1e-3),
        real_explainer=Budget(100, 1e-3, 1e-3),
    ),
}


def demo(
    preset: str = "laptop",
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[float, str], None] | None = None,
) -> dict[str, Any]:
    """Hold TimeX against attributions of single series, on the same classifiers.

    FreqShapes, whose truth is known, with the paper's small transformer; and, except in `smoke`, a real
    set with a convolutional network: days of Italian power demand, from the data sets that sktime carries
    (extra `timex-explain[demo]`), or your own from the safetensors file named by the environment variable
    `TIMEX_EXPLAIN_DATA`, with `x` (N, T, D) and `y` (N,). `paper` has the paper's sizes, epochs and
    losses.

    Args:
        preset: `"smoke"`, `"laptop"` or `"paper"`.
        seed: Seed of every random number used.
        device: A torch device.
        progress: Called as `progress(fraction, message)`.

    Returns:
        The claim, its setting, a row per attribution, whether the claim holds, curves and images.

    Raises:
        ValueError: If `preset` is not one of the three, or the user's file does not fit.
        ImportError: If the extra is missing.
    """
    if preset not in _PRESETS:
        raise ValueError(f"preset must be 'smoke', 'laptop' or 'paper', got {preset!r}")
    place = torch.device(device)
    devices = [place.index or 0] if place.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):  # parameters and dropout draw from the global source
        torch.manual_seed(seed)
        return _Study(_PRESETS[preset], seed, place, progress or _silent).run()


def _silent(fraction: float, message: str) -> None:
    pass


class _Study:
    """Everything that is done for one seed."""

    def __init__(self, settings: _Settings, seed: int, device: torch.device, progress: _Report) -> None:
        self.settings, self.seed, self.device, self.progress = settings, seed, device, progress
        source = torch.Generator().manual_seed(seed)
        self.known = synthetic(settings.sizes, source).to(device)
        self.real = real(source).to(device) if settings.real_classifier is not None else None
        self.source = source
        self._steps, self._message = 0, "classifier"
        size = settings.sizes[0]
        self._total = settings.classifier.steps(size) + len(_VARIANTS) * settings.explainer.steps(size)
        if self.real is not None and settings.real_classifier and settings.real_explainer:
            count = len(self.real.train[0])
            self._total += settings.real_classifier.steps(count) + settings.real_explainer.steps(count)

    def run(self) -> dict[str, Any]:
        rows, curves, images, setting = self._on_known()
        if self.real is not None:
            found, more_curves, accuracy = self._on_real(self.real)
            curves += more_curves
            setting["real data"] = (
                f"{self.real.name}: {len(self.real.train[0])} / {len(self.real.validation[0])} / "
                f"{len(self.real.test[0])} series of {self.real.train[0].shape[1]} points"
            )
            setting["real model"] = f"three convolutions of 32 channels, test accuracy {accuracy:.1f} %"
            for row in rows:
                if row["name"] in found:
                    measured = found[row["name"]]
                    row |= {"real_occlusion": measured.kept.area, "real_deletion": measured.deleted.area}
        self.progress(1.0, "done")
        measured_names = {name for row in rows for name in row}
        return {
            "claim": _CLAIM,
            "setting": setting,
            "metrics": {name: about for name, about in _METRICS.items() if name in measured_names},
            "rows": rows,
            "criterion": _CRITERION,
            "holds": judge(rows),
            "curves": curves,
            "images": images,
        }

    # --- the set whose truth is known ----------------------------------------------------------------

    def _on_known(self) -> tuple[list[_Row], list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
        data, settings = self.known, self.settings
        x = data.test[0]
        model = Transformer(1, x.shape[1], data.num_classes).to(self.device)
        accuracy = train_classifier(model, data, settings.classifier, self.source, self._tick)
        trained = {
            name: self._explainer(name, model, data, settings.explainer, changes, replaced)
            for name, (changes, replaced) in _VARIANTS.items()
        }
        found = self._measured(model, data, trained)
        ours = trained[_OURS].explainer
        with torch.no_grad():
            out = ours(x)
        gallery, space = landmark_plots(data, found[_OURS].saliency, out.z_explanation, ours.landmarks)
        shown = {name: found[name] for name in (_OURS, _REPLACED, *_BASELINES)}
        curves = [
            *occlusion_plots(data, shown),
            *sample_plots(data, {name: found[name] for name in (_OURS, IG)}),
            *gallery,
            _history_plot(trained),
        ]
        setting = {
            "data": f"FreqShapes, {' / '.join(map(str, settings.sizes))} series of {x.shape[1]} points",
            "model": f"transformer, 17 channels, 1 layer, 1 head, test accuracy {accuracy:.1f} %",
            "budget": (
                f"explainers: {settings.explainer.epochs} epochs, AdamW at {settings.explainer.learning_rate:g}, "
                "the epoch of the smallest validation L_MBC + L_LC; integrated gradients: 50 steps; occlusion: "
                f"{settings.num_draws} draws per point. The learning rate was chosen on another seed by that "
                "validation loss; every baseline is shown in its better form, signed or in size, chosen on "
                "the test set, to its advantage"
            ),
        }
        return _rows(found, trained), curves, [space], setting

    def _explainer(
        self,
        name: str,
        model: torch.nn.Module,
        data: Split,
        budget: Budget,
        changes: dict[str, Any],
        replaced: bool,
    ) -> Trained:
        self._message = name
        options: dict[str, Any] = {"num_landmarks": self.settings.num_landmarks}
        if not replaced:  # the paper's masks for a transformer of one sensor
            options |= {"masking": "attention", "extra_inputs": {"attention": "attention"}}
        goals = dict(changes)
        if "hard" in goals:
            options["hard"] = goals.pop("hard")
        objective = Objective(**({"label_mode": self.settings.label_mode} | goals))
        return train_explainer(
            model,
            data,
            budget,
            self.source,
            self._tick,
            objective,
            embed="head",
            embed_side="input",
            **options,
        )

    # --- the real set --------------------------------------------------------------------------------

    def _on_real(self, data: Split) -> tuple[dict[str, Measured], list[dict[str, Any]], float]:
        settings = self.settings
        assert settings.real_classifier is not None
        assert settings.real_explainer is not None
        self._message = f"{data.name}: classifier"
        model = ConvNet(data.train[0].shape[2], data.num_classes).to(self.device)
        accuracy = train_classifier(model, data, settings.real_classifier, self.source, self._tick)
        name = f"{data.name}: explainer"
        trained = {_REPLACED: self._explainer(name, model, data, settings.real_explainer, {}, True)}
        found = self._measured(model, data, trained)
        # One architecture takes no mask on its attention: there is one TimeX, and both rows stand for it.
        found[_OURS] = found[_REPLACED]
        shown = {name: found[name] for name in (_OURS, *_BASELINES)}
        curves = occlusion_plots(data, shown)
        if data.train[0].shape[2] == 1:
            curves += sample_plots(data, {name: found[name] for name in (_OURS, IG)})
            explainer = trained[_REPLACED].explainer
            with torch.no_grad():
                z = explainer(data.test[0]).z_explanation
            curves += landmark_plots(data, found[_OURS].saliency, z, explainer.landmarks)[0]
        return found, curves, accuracy

    # --- both ----------------------------------------------------------------------------------------

    def _measured(
        self, model: torch.nn.Module, data: Split, trained: dict[str, Trained]
    ) -> dict[str, Measured]:
        self._message = f"{data.name}: measuring"
        self._tick(0)
        found = {}
        for name, one in trained.items():
            saliency, seconds = timed(partial(one.explainer.explain, data.test[0]))
            found[name] = measure(model, data, [saliency], seconds, self.seed)
        source = torch.Generator(self.device).manual_seed(self.seed)
        for name, attribute in baselines(model, data, source, self.settings.num_draws).items():
            forms, seconds = timed(attribute, repeats=1 if name in (IG, OCCLUSION) else 2)
            found[name] = measure(model, data, forms, seconds, self.seed)
        return found

    def _tick(self, steps: int = 1) -> None:
        self._steps += steps
        self.progress(min(0.99 * self._steps / self._total, 0.99), self._message)


def _rows(found: dict[str, Measured], trained: dict[str, Trained]) -> list[_Row]:
    rows = []
    count = len(next(iter(found.values())).saliency)
    ig_seconds = found[IG].seconds / count
    for name, measured in found.items():
        seconds = measured.seconds / count
        row: _Row = {
            "name": name,
            "role": _role(name),
            **measured.scores,
            "occlusion": measured.kept.area,
            "deletion": measured.deleted.area,
            "explaining": 1000 * seconds,
        }
        if name in trained:
            row["training"] = trained[name].seconds
            if seconds < ig_seconds:
                row["break_even"] = trained[name].seconds / (ig_seconds - seconds)
        rows.append(row)
    return rows


def _role(name: str) -> str:
    if name == SIZE:
        return "reference"
    if name in _BASELINES:
        return "baseline"
    return "method" if name in (_OURS, _REPLACED) else "ablation"


def judge(rows: list[_Row]) -> bool:
    """Apply the criterion to the rows."""
    row = {found["name"]: found for found in rows}
    finds = all(row[_OURS]["auprc"] > row[name]["auprc"] for name in _BASELINES)
    real_set = "real_occlusion" in row[_OURS]
    return bool(finds and (not real_set or row[_OURS]["real_occlusion"] > row[RANDOM]["real_occlusion"]))


def _history_plot(trained: dict[str, Trained]) -> dict[str, Any]:
    lines = {name: series(list(range(1, len(one.history) + 1)), one.history) for name, one in trained.items()}
    return curve("FreqShapes: training of the explainers", "epoch", "validation L_MBC + L_LC", lines)
