"""The evidence: seven objectives pretrain one encoder, and probes and policies say what it has learned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from invdyn import CrossPrediction, ProbeResult, cross_prediction, encode, fit_probe
from invdyn.demo.judgement import METHOD, conditions
from invdyn.demo.policies import Representation, demonstrations, frozen_success, scratch_success
from invdyn.demo.training import (
    EMBED,
    Progress,
    Setting,
    Size,
    Tuned,
    new_encoder,
    pretrain,
    principal_components,
    tune,
)
from invdyn.demo.world import demonstrate, draw_goals, episode_of_frames

__all__ = ["conditions", "demo"]

_RIVALS = ("behaviour cloning", "forward reconstruction", "contrastive dynamics", "SimCLR")
_TOLD = ("goal BC", "multi-head BC")  # these are told what the others are not
_EVERY = (METHOD, *_RIVALS, *_TOLD)
SIZES = {
    "smoke": Size(20, 12, 30, 6, 16, 1, 3, (1, 2), 10, (METHOD, "behaviour cloning"), horizon=10),
    "laptop": Size(200, 60, 400, 80, 64, 5, 20, (2, 5, 10), 160, _EVERY),
    "paper": Size(1000, 100, 10_000, 1000, 256, 20, 100, (1, 2, 5, 10), 10_000, _EVERY),
}
_METRICS = {
    "r2": {"unit": "", "better": "higher"},
    "r2_low": {"unit": "", "better": "higher"},
    "r2_high": {"unit": "", "better": "higher"},
    "success": {"unit": "%", "better": "higher"},
    "success_few": {"unit": "%", "better": "higher"},
    "success_many": {"unit": "%", "better": "higher"},
    "error_of_others": {"unit": "", "better": "lower"},
}


def demo(
    preset: str = "laptop",
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Pretrain on noisy demonstrations of unknown goals, then probe, imitate new goals, and cross-predict.

    Args:
        preset: `"smoke"`, `"laptop"` or `"paper"`: the same world, with more of everything.
        seed: Seed of every random number used.
        device: Only `"cpu"`: the networks are too small to gain from another.
        progress: Called as `progress(fraction, message)`.

    Returns:
        The demo contract's dictionary.

    Raises:
        ValueError: If `preset` is not one of the three, or `device` another than the CPU.
    """
    if preset not in SIZES:
        raise ValueError(f"preset must be 'smoke', 'laptop' or 'paper', got {preset!r}")
    if torch.device(device).type != "cpu":
        raise ValueError(f"device must be 'cpu', got {device!r}")
    with torch.random.fork_rng(devices=[]):
        return _run(SIZES[preset], seed, progress or (lambda fraction, message: None))


def _run(size: Size, seed: int, report: Progress) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    data, validation, test = (
        demonstrate(draw_goals(count, generator), size.horizon, 2.0, generator)
        for count in (size.episodes, size.held_out, size.held_out)
    )
    representations, tuned = _representations(data, validation, size, seed, report)
    features = {name: one(test["obs"], test["position"]) for name, one in representations.items()}
    features["state"] = features["state"][:, :2]
    groups = episode_of_frames(test)
    report(0.78, "probes")
    probes = {
        name: fit_probe(one, test["position"], groups=groups, hidden=(), generator=_generator(seed))
        for name, one in features.items()
    }
    steps = 10 if size.steps < 100 else 400
    crossed = cross_prediction(
        features, groups=groups, steps=steps, learning_rate=5e-3, generator=_generator(seed)
    )
    report(0.86, "policies")
    goals = draw_goals(size.goals, generator)
    demos = demonstrations(goals, size, generator)
    success = frozen_success(representations, demos, goals, size, seed)
    report(0.9, "policies from scratch")
    success["from scratch"], rates = scratch_success(demos, goals, size, seed)
    rows = _rows(success, probes, crossed)
    verdict = conditions(rows)
    report(1.0, "done")
    return {
        "claim": "Of all pretraining objectives, predicting the action between two frames keeps best what a "
        "policy for a new task needs, when the tasks of the data are not known.",
        "setting": _setting(size, tuned, rates),
        "metrics": _METRICS,
        "rows": rows,
        "conditions": verdict,
        "holds": all(condition["holds"] for condition in verdict),
        "curves": [_curve(success, size)],
        "images": [_heat_map(crossed)],
    }


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _representations(
    data: dict[str, Any], validation: dict[str, Any], size: Size, seed: int, report: Progress
) -> tuple[dict[str, Representation], dict[str, Tuned]]:
    """Every encoder, frozen, and the trivial ones."""
    found: dict[str, Representation] = {}
    tuned: dict[str, Tuned] = {}
    for number, name in enumerate(size.names):
        setting: Setting = {"learning rate": 2e-3}
        if name not in _TOLD:
            tuned[name] = tune(name, data, validation, size, seed)
            setting = tuned[name].setting
        phi = pretrain(name, data, setting, size, size.steps, seed)
        found[name] = _encoded(phi)
        report(0.75 * (number + 1) / len(size.names), name)
    torch.manual_seed(seed)
    components = principal_components(data)
    found["random, frozen"] = _encoded(new_encoder())
    found["principal components"] = lambda frames, position: components(frames)
    found["state"] = lambda frames, position: nn.functional.pad(position, (0, EMBED - 2))
    return found, tuned


def _encoded(phi: nn.Module) -> Representation:
    return lambda frames, position: encode(phi, frames)


def _role(name: str) -> str:
    return "method" if name == METHOD else "reference" if name in (*_TOLD, "state") else "baseline"


def _rows(
    success: dict[str, Tensor], probes: dict[str, ProbeResult], crossed: CrossPrediction
) -> list[dict[str, Any]]:
    rows = []
    for name, reached in success.items():
        row: dict[str, Any] = {"name": name, "role": _role(name)}
        if name in probes:
            result = probes[name]
            row |= {"r2": result.r2, "r2_low": result.r2_low, "r2_high": result.r2_high}
            row["error_of_others"] = _error_of_others(name, crossed)
        rates = (100 * reached.mean(0)).tolist()
        row |= {"success": sum(rates) / len(rates), "success_few": rates[0], "success_many": rates[-1]}
        rows.append(row)
    return rows


def _error_of_others(name: str, crossed: CrossPrediction) -> float:
    """Mean error with which one representation predicts those that were learned, and the state."""
    place = crossed.names.index(name)
    others = [
        column
        for column, other in enumerate(crossed.names)
        if other != name and (_role(other) != "reference" or other == "state")
    ]
    return crossed.matrix[place, others].clamp(max=1.5).mean().item()


def _setting(size: Size, tuned: dict[str, Tuned], rates: dict[str, float]) -> dict[str, Any]:
    return {
        "data": f"{size.episodes} noisy episodes of {size.horizon} steps, 32 x 32 pixels, a goal each that is not "
        f"drawn, three distractors; {size.held_out} episodes to tune on and {size.held_out} to probe; "
        f"{size.goals} new goals with {', '.join(map(str, size.demos))} clean demonstrations",
        "model": f"three convolutions, 32 keypoints, {EMBED} numbers; policies and heads are MLPs",
        "budget": f"{size.steps} steps of AdamW on batches of {size.batch} for each objective, after tuning at "
        f"{size.tuning_steps} steps by the probe on other episodes; {size.policy_steps} steps a policy",
        "chosen": {name: one.setting for name, one in tuned.items()},
        "tried": {name: [[setting, r2] for setting, r2 in one.tried] for name, one in tuned.items()},
        "bracketed": {name: one.bracketed for name, one in tuned.items()},
        "from scratch, error of each rate": rates,
    }


def _curve(success: dict[str, Tensor], size: Size) -> dict[str, Any]:
    series = {
        name: {"x": list(size.demos), "y": (100 * reached.mean(0)).tolist()}
        for name, reached in success.items()
    }
    return {
        "title": "Success on new goals",
        "x_label": "demonstrations",
        "y_label": "success (%)",
        "series": series,
    }


def _heat_map(crossed: CrossPrediction) -> dict[str, Any]:
    return {
        "title": "Error of predicting one representation (column) from another (row)",
        "values": crossed.matrix.clamp(max=1.0).tolist(),
        "caption": "MSE / variance on held-out episodes; rows and columns: " + ", ".join(crossed.names),
    }
