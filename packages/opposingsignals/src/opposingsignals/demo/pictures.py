"""Train on the full batch, find who alternates, and hold that choice of examples against others of its size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from opposingsignals.curvature import CurvatureShare, curvature_share, per_example_curvature, score_pair
from opposingsignals.demo.data import Pictures, pictures
from opposingsignals.demo.settings import Setting
from opposingsignals.hessian import top_eigs
from opposingsignals.losses import example_weights, per_example_gradient_norms
from opposingsignals.stability import eos_threshold
from opposingsignals.tracker import GroupPair, LossDeltaTracker, group_curves
from opposingsignals.views import image_panel

Progress = Callable[[float, str], None]


@dataclass
class Run:
    """A finished training run and what was recorded on the way."""

    model: nn.Module
    tracker: LossDeltaTracker
    sharpness: dict[int, float]
    mistakes: Tensor  # (T, n): who was misclassified when
    threshold: float
    vector: Tensor


@dataclass
class PictureStudy:
    """Rows and figures of one data set."""

    about: str
    model_about: str
    rows: list[dict[str, Any]]
    loss: dict[str, list[float]]
    groups: dict[str, list[float]]
    sharpness: dict[int, float]
    threshold: float
    dropped: dict[str, list[float]]
    panel: list[list[float]] | None
    caption: str


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Half the squared distance to the one-hot target, (n,)."""
    return (output - target).square().sum(1) / 2


def study_pictures(
    setting: Setting, generator: torch.Generator, device: str, prefix: str, plant: bool, report: Progress
) -> PictureStudy:
    """Train, find, measure, and take the groups out."""
    data = pictures(setting, generator, device, plant)
    run = train(data, setting, report)
    pairs = run.tracker.alternating_pairs(setting.k, setting.window)
    pair = pairs[0] if pairs else None
    rows = _rows(data, run, pair, setting, generator, prefix)
    dropped: dict[str, list[float]] = {}
    if pair is not None and not plant:
        dropped = _interventions(data, run, pair, setting, generator)
        rows += _intervention_rows(dropped, prefix)
    losses = run.tracker.losses().double()
    curves = group_curves(run.tracker, [pair.a, pair.b]).double() if pair is not None else losses[:, :0]
    tail = run.tracker.steps
    return PictureStudy(
        about=data.about,
        model_about=data.model_about,
        rows=rows,
        loss={"x": [float(step) for step in tail], "y": losses.mean(1).tolist()},
        groups={name: curve.tolist() for name, curve in zip(("group A", "group B"), curves.T, strict=False)},
        sharpness=run.sharpness,
        threshold=run.threshold,
        dropped=dropped,
        panel=None if pair is None else _panel(data, pair),
        caption="" if pair is None else _caption(data, pair),
    )


def train(data: Pictures, setting: Setting, report: Progress) -> Run:
    """Full-batch gradient descent; the tracker reads the losses that the step needs anyway."""
    model, x, targets = data.build(), data.x, data.targets
    optimizer = torch.optim.SGD(model.parameters(), lr=setting.learning_rate)
    tracker, sharpness, mistakes = LossDeltaTracker(keep=setting.steps), {}, []
    vector = None
    for step in range(setting.steps):
        output = model(x)
        losses = squared_error(output, targets)
        tracker.record_losses(losses, step)
        mistakes.append(output.detach().argmax(1) != data.labels)
        if step % setting.sharpness_every == 0 or step == setting.steps - 1:
            top = top_eigs(model, lambda: squared_error(model(x), targets).mean(), start=vector)
            vector, sharpness[step] = top.vectors[0], float(top.values[0])
            report(step / setting.steps, f"sharpness {sharpness[step]:.2f}")
        if step < setting.steps - 1:
            optimizer.zero_grad()
            losses.mean().backward()
            optimizer.step()
    assert vector is not None
    return Run(model, tracker, sharpness, torch.stack(mistakes), eos_threshold(optimizer), vector)


def choices(data: Pictures, run: Run, count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Other ways to choose as many examples from the same run."""
    losses = run.tracker.losses()[-1]
    norms = per_example_gradient_norms(run.model, squared_error, data.x, data.targets)
    # forgetting: right at one step, wrong at the next (ties fall to the higher loss)
    forgotten = (~run.mistakes[:-1] & run.mistakes[1:]).sum(0) + losses / (losses.max() + 1e-12) / 2
    change = (run.tracker.deltas()[-1]).abs()
    return {
        "highest loss": losses.topk(count).indices,
        "largest gradient": norms.topk(count).indices,
        "most often forgotten": forgotten.topk(count).indices,
        "largest change in one step": change.topk(count).indices,
        "random": torch.randperm(len(losses), generator=generator)[:count].to(losses.device),
    }


def _rows(
    data: Pictures,
    run: Run,
    pair: GroupPair | None,
    setting: Setting,
    generator: torch.Generator,
    prefix: str,
) -> list[dict[str, Any]]:
    curvatures = per_example_curvature(run.model, squared_error, data.x, data.targets, run.vector)
    count = 2 * setting.k if pair is None else len(pair.a) + len(pair.b)
    row: dict[str, Any] = {"name": f"{prefix}opposing pair", "role": "method"}
    if pair is not None:
        score = score_pair(
            run.model,
            squared_error,
            data.x,
            data.targets,
            pair.a,
            pair.b,
            vector=run.vector,
            null=setting.null,
            generator=generator,
        )
        row |= _share(score.curvature) | {
            "alternation": pair.alternation,
            "autocorrelation": (pair.autocorrelation_a + pair.autocorrelation_b) / 2,
            "cosine": score.cosine,
            "lowest_random_cosine": float(score.null_cosines.min()),
        }
        row |= _precision(torch.cat([pair.a, pair.b]), data.planted)
    rows = [row]
    for name, chosen in choices(data, run, count, generator).items():
        role = "ablation" if name.startswith("largest change") else "baseline"
        rows.append(
            {"name": prefix + name, "role": role}
            | _share(curvature_share(curvatures, chosen))
            | _precision(chosen, data.planted)
        )
    return rows


def _share(share: CurvatureShare) -> dict[str, float]:
    return {"curvature_ratio": share.ratio, "curvature_ratio_error": share.ratio_error}


def _precision(chosen: Tensor, planted: Tensor) -> dict[str, float]:
    if len(planted) == 0:
        return {}
    return {"precision": float(torch.isin(chosen, planted).float().mean())}


def _interventions(
    data: Pictures, run: Run, pair: GroupPair, setting: Setting, generator: torch.Generator
) -> dict[str, list[float]]:
    """Go on training with the groups at weight 0, with as many others at 0, and with all."""
    found, n = torch.cat([pair.a, pair.b]), len(data.x)
    others = torch.ones(n, dtype=torch.bool)
    others[found.cpu()] = False
    control = others.nonzero()[:, 0]
    control = control[torch.randperm(len(control), generator=generator)[: len(found)]]
    state = {key: value.clone() for key, value in run.model.state_dict().items()}
    curves = {}
    for name, groups in (
        ("nothing dropped", []),
        ("opposing pair dropped", [found]),
        ("random dropped", [control]),
    ):
        model = data.build()
        model.load_state_dict(state)
        optimizer = torch.optim.SGD(model.parameters(), lr=setting.learning_rate)
        weights = example_weights(n, groups, device=data.x.device)
        sharpness, vector = [], run.vector
        for step in range(setting.intervention_steps + 1):
            losses = weights * squared_error(model(data.x), data.targets)
            if step % (setting.intervention_steps // 10) == 0:

                def closure(model: nn.Module = model, weights: Tensor = weights) -> Tensor:
                    return (weights * squared_error(model(data.x), data.targets)).mean()

                top = top_eigs(model, closure, start=vector)
                vector = top.vectors[0]
                sharpness.append(float(top.values[0]))
            optimizer.zero_grad()
            losses.mean().backward()
            optimizer.step()
        curves[name] = sharpness
    return curves


def _intervention_rows(dropped: dict[str, list[float]], prefix: str) -> list[dict[str, Any]]:
    roles = {"opposing pair dropped": "method", "random dropped": "baseline", "nothing dropped": "reference"}
    return [
        {
            "name": prefix + name,
            "role": roles[name],
            "sharpness_change": 100 * (curve[0] / dropped["nothing dropped"][0] - 1),
        }
        for name, curve in dropped.items()
    ]


def _panel(data: Pictures, pair: GroupPair) -> list[list[float]]:
    images = data.x.mean(1) if data.x.ndim == 4 else data.x
    found: list[list[float]] = image_panel(images.cpu(), [pair.a.cpu(), pair.b.cpu()], columns=5).tolist()
    return found


def _caption(data: Pictures, pair: GroupPair) -> str:
    labels = [", ".join(map(str, data.labels[group][:5].tolist())) for group in (pair.a, pair.b)]
    return f"Above group A, labels {labels[0]}; below group B, labels {labels[1]}."
