"""The evidence: does the explainer find what decides, and what is left of the classifier if only that stays?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from timex_explain.attribution import saliency_scores
from timex_explain.demo.data import Split, quiet_segments, real, segments, spikes
from timex_explain.demo.judgement import BASELINES, OURS, REFERENCES, conditions
from timex_explain.demo.measures import (
    IG,
    OCCLUSION,
    SCORES,
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
from timex_explain.demo.models import ConvNet, Transformer
from timex_explain.demo.training import Budget, Trained, train_classifier, train_explainer
from timex_explain.objective import Objective

_CLAIM = (
    "An explainer that is trained to behave as the classifier does finds the points that decide better than "
    "attributions of single series do, and what it ranks high keeps the classifier's accuracy."
)
_REPLACED = "TimeX, values replaced"
# name -> (what is different about it, whether values are replaced instead of attention masked)
_VARIANTS: dict[str, tuple[dict[str, Any], bool]] = {
    OURS: ({}, False),
    _REPLACED: ({}, True),
    "TimeX, soft masks (no straight-through)": ({"hard": False}, False),
    "TimeX, labels only (no behaviour consistency)": ({"consistency": "none"}, False),
}
_METRICS = {
    **{name: {"unit": "", "better": "higher"} for name in SCORES},
    "occlusion": {"unit": "mean AUROC", "better": "higher"},
    "deletion": {"unit": "mean AUROC", "better": "lower"},
    "auprc_lowest": {"unit": "of all explainer seeds", "better": "higher"},
    "auprc_highest": {"unit": "of all explainer seeds", "better": "higher"},
    "lowvar_auprc": {"unit": "", "better": "higher"},
    "lowvar_occlusion": {"unit": "mean AUROC", "better": "higher"},
    "seqcomb_auprc": {"unit": "", "better": "higher"},
    "seqcomb_occlusion": {"unit": "mean AUROC", "better": "higher"},
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
    segment_sizes: tuple[int, int, int]  # of LowVar and of SeqComb
    segment_length: int
    segment_classifier: Budget
    lowvar_explainer: Budget
    seqcomb_explainer: Budget
    num_seeds: int = 3  # of the explainer with values replaced, on the same classifier
    num_draws: int = 2
    num_landmarks: int = 50
    label_mode: str = "pairwise"
    real_classifier: Budget | None = None
    real_explainer: Budget | None = None


_PRESETS = {
    "smoke": _Settings(
        (128, 32, 32),
        Budget(2, 1e-2, 0.1),
        Budget(2, 3e-3, 1e-3),
        (32, 16, 16),
        61,
        Budget(2, 3e-3, 1e-3),
        Budget(1, 3e-3, 1e-4),
        Budget(1, 3e-3, 1e-4),
        num_seeds=2,
        num_draws=1,
        num_landmarks=8,
    ),
    "laptop": _Settings(
        (2000, 200, 500),
        Budget(30, 1e-2, 0.1),
        Budget(10, 3e-3, 1e-3),
        (1000, 200, 300),
        100,
        Budget(20, 3e-3, 1e-3),
        Budget(40, 3e-3, 1e-4),
        Budget(20, 3e-3, 1e-4),
        real_classifier=Budget(20, 3e-3, 1e-3),
        real_explainer=Budget(40, 3e-3, 1e-3),
    ),
    "paper": _Settings(
        (5000, 100, 1000),
        Budget(100, 1e-3, 0.1),
        Budget(50, 1e-3, 1e-3),
        (5000, 100, 1000),
        200,
        Budget(50, 1e-3, 1e-3),
        Budget(50, 3e-3, 1e-4),
        Budget(50, 3e-3, 1e-4),
        num_seeds=5,
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

    FreqShapes, whose truth is known, with the paper's small transformer; LowVar, whose truth the size of a
    value does not give away, and SeqComb, whose classes are directions, with a convolutional network; and, except
    in `smoke`, a real set with such a network: days of Italian power demand, from the data sets that sktime carries
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
        self.known = spikes(settings.sizes, source).to(device)
        parts = (settings.segment_sizes, settings.segment_length, source)
        self.quiet, self.directed = quiet_segments(*parts).to(device), segments(*parts).to(device)
        self.real = real(source).to(device) if settings.real_classifier is not None else None
        self.source = source
        self._steps, self._message = 0, "classifier"
        self._total = self._all_steps()

    def _all_steps(self) -> int:
        settings, size = self.settings, self.settings.sizes[0]
        explainers = len(_VARIANTS) + settings.num_seeds - 1
        steps = settings.classifier.steps(size) + explainers * settings.explainer.steps(size)
        for budget in (settings.lowvar_explainer, settings.seqcomb_explainer):
            count = settings.segment_sizes[0]
            steps += settings.segment_classifier.steps(count) + budget.steps(count)
        if self.real is not None and settings.real_classifier and settings.real_explainer:
            count = len(self.real.train[0])
            steps += settings.real_classifier.steps(count) + settings.real_explainer.steps(count)
        return steps

    def run(self) -> dict[str, Any]:
        rows, curves, images, setting = self._on_known()
        settings = self.settings
        for data, budget, short in (
            (self.quiet, settings.lowvar_explainer, "lowvar"),
            (self.directed, settings.seqcomb_explainer, "seqcomb"),
        ):
            found, more_curves, setting[data.name] = self._on_convolutional(
                data, settings.segment_classifier, budget, {"normalized": True}
            )
            curves += more_curves
            _add(rows, found, partial(_on_segments, short))
        if self.real is not None and settings.real_classifier and settings.real_explainer:
            found, more_curves, setting["real data"] = self._on_convolutional(
                self.real, settings.real_classifier, settings.real_explainer, {}
            )
            curves += more_curves
            _add(
                rows, found, lambda one: {"real_occlusion": one.kept.area, "real_deletion": one.deleted.area}
            )
        verdict = conditions(rows)
        self.progress(1.0, "done")
        measured_names = {name for row in rows for name in row}
        return {
            "claim": _CLAIM,
            "setting": setting,
            "metrics": {name: about for name, about in _METRICS.items() if name in measured_names},
            "rows": rows,
            "conditions": verdict,
            "holds": all(condition["holds"] for condition in verdict),
            "curves": curves,
            "images": images,
        }

    # --- FreqShapes ----------------------------------------------------------------------------------

    def _on_known(self) -> tuple[list[_Row], list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
        data, settings = self.known, self.settings
        x = data.test[0]
        model = Transformer(1, x.shape[1], data.num_classes).to(self.device)
        accuracy = train_classifier(model, data, settings.classifier, self.source, self._tick)
        trained = {
            name: self._explainer(name, model, data, settings.explainer, changes, replaced)
            for name, (changes, replaced) in _VARIANTS.items()
        }
        spread = [self._auprc(trained[_REPLACED], data)]
        for number in range(1, settings.num_seeds):
            name = f"{_REPLACED}, explainer seed {number + 1}"
            again = self._explainer(name, model, data, settings.explainer, {}, True)
            spread.append(self._auprc(again, data))
        found = self._measured(model, data, trained)
        ours = trained[OURS].explainer
        with torch.no_grad():
            out = ours(x)
        gallery, space = landmark_plots(data, found[OURS].saliency, out.z_explanation, ours.landmarks)
        shown = {name: found[name] for name in (OURS, _REPLACED, *BASELINES)}
        curves = [
            *occlusion_plots(data, shown),
            *sample_plots(data, {name: found[name] for name in (OURS, IG)}),
            *gallery,
            _history_plot(trained),
        ]
        setting = {
            "data": f"FreqShapes, {' / '.join(map(str, settings.sizes))} series of {x.shape[1]} points",
            "model": f"transformer, 17 channels, 1 layer, 1 head, test accuracy {accuracy:.1f} %",
            "budget": (
                f"explainers: {settings.explainer.epochs} epochs, AdamW at {settings.explainer.learning_rate:g}, "
                "the epoch of the smallest validation L_MBC + L_LC; integrated gradients: 50 steps; occlusion: "
                f"{settings.num_draws} draws per point; {_REPLACED}: {settings.num_seeds} explainer seeds on "
                "the one classifier, of which the first is the row's. The learning rate was chosen on another seed "
                "by that validation loss; every baseline is shown in its better form, signed or in size, chosen on "
                "the test set, to its advantage"
            ),
        }
        rows = _rows(found, trained)
        for row in rows:
            if row["name"] == _REPLACED:
                row |= {"auprc_lowest": min(spread), "auprc_highest": max(spread)}
        return rows, curves, [space], setting

    def _auprc(self, trained: Trained, data: Split) -> float:
        assert data.truth is not None
        return float(saliency_scores(trained.explainer.explain(data.test[0]), data.truth).auprc.mean())

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

    # --- LowVar, SeqComb and the real set ---------------------------------------------------------------------

    def _on_convolutional(
        self, data: Split, classifier: Budget, explainer: Budget, changes: dict[str, Any]
    ) -> tuple[dict[str, Measured], list[dict[str, Any]], str]:
        self._message = f"{data.name}: classifier"
        model = ConvNet(data.train[0].shape[2], data.num_classes).to(self.device)
        accuracy = train_classifier(model, data, classifier, self.source, self._tick)
        one = self._explainer(f"{data.name}: explainer", model, data, explainer, changes, True)
        found = self._measured(model, data, {_REPLACED: one})
        # One architecture takes no mask on its attention: there is one TimeX, and both rows stand for it.
        found[OURS] = found[_REPLACED]
        curves = occlusion_plots(data, {name: found[name] for name in (OURS, *BASELINES)})
        if data.train[0].shape[2] == 1:
            curves += sample_plots(data, {name: found[name] for name in (OURS, IG)})
            with torch.no_grad():
                z = one.explainer(data.test[0]).z_explanation
            curves += landmark_plots(data, found[OURS].saliency, z, one.explainer.landmarks)[0]
        sizes = " / ".join(str(len(x)) for x, _ in (data.train, data.validation, data.test))
        told = (
            f"{data.name}: {sizes} series of {data.train[0].shape[1]} points; three convolutions of 32 channels, "
            f"test accuracy {accuracy:.1f} %; explainer: {explainer.epochs} epochs at {explainer.learning_rate:g}"
        )
        return found, curves, told

    # --- all -----------------------------------------------------------------------------------------

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


def _add(rows: list[_Row], found: dict[str, Measured], told: Callable[[Measured], _Row]) -> None:
    """Add what was measured on another set to the rows of the same names."""
    for row in rows:
        if row["name"] in found:
            row |= told(found[row["name"]])


def _on_segments(short: str, one: Measured) -> _Row:
    return {f"{short}_auprc": one.scores["auprc"], f"{short}_occlusion": one.kept.area}


def _role(name: str) -> str:
    if name in REFERENCES:
        return "reference"
    if name in BASELINES:
        return "baseline"
    return "method" if name in (OURS, _REPLACED) else "ablation"


def _history_plot(trained: dict[str, Trained]) -> dict[str, Any]:
    lines = {name: series(list(range(1, len(one.history) + 1)), one.history) for name, one in trained.items()}
    return curve("FreqShapes: training of the explainers", "epoch", "validation L_MBC + L_LC", lines)
