"""The plots: how training went, what was tried, who finds copies, and where carries are forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tulu3.demo.contamination import roc
from tulu3.demo.measures import Bench
from tulu3.demo.model import CharacterModel
from tulu3.demo.search import Choice

REWARDED = ("RLVR", "RLVR without stop penalty", "random reward", "rejection sampling")
PREFERRED = ("DPO", "DPO, length-normalised", "SimPO", "WPO")


def curves(
    bench: Bench,
    start: CharacterModel,
    chosen: Mapping[str, Choice],
    found: Mapping[str, tuple[Tensor, Any]],
    truth: Tensor,
) -> list[dict[str, Any]]:
    """Draw the lines; each bears the name of its row."""
    histories = {name: chosen[name].trained.history for name in REWARDED}
    return [
        _curve(
            "Verified answers while training",
            "rollout",
            "verified (%)",
            {name: _counted(history["verified"]) for name, history in histories.items()},
        ),
        _curve(
            "Divergence from the model that RLVR starts from",
            "rollout",
            "KL (nats per response)",
            {
                name: _counted(history["divergence"])
                for name, history in histories.items()
                if "divergence" in history
            },
        ),
        _curve(
            "Responses that end by themselves",
            "rollout",
            "ended (%)",
            {name: _counted(history["ended"]) for name, history in histories.items() if "ended" in history},
        ),
        _curve(
            "Validation by learning rate",
            "learning rate",
            "verified (%)",
            {
                name: _series(list(choice.tried), list(choice.tried.values()))
                for name, choice in chosen.items()
            },
            x_scale="log",
        ),
        _curve(
            "Validation by beta",
            "beta",
            "verified (%)",
            {name: _series(list(tried), list(tried.values())) for name, tried in bench.betas.items()},
            x_scale="log",
        ),
        _curve(
            "Lengths of responses after preference tuning",
            "tokens, with the stop token",
            "responses (%)",
            {
                "SFT": _lengths(bench, start),
                **{name: _lengths(bench, chosen[name].trained.model) for name in PREFERRED},
            },
        ),
        _curve(
            "Finding questions that were copied for more than half",
            "false positives (%)",
            "true positives (%)",
            {name: _series(*roc(score, truth)[:2]) for name, (score, _) in found.items()},
        ),
    ]


def images(bench: Bench, start: CharacterModel, rewarded: CharacterModel) -> list[dict[str, Any]]:
    """Draw how often sums are right by their units."""
    return [
        {
            "title": f"Right sums by their units, {name} (%)",
            "values": _by_units(bench, model),
            "caption": "Row: units of the first number; column: of the second. A carry where they come to 10 or more.",
        }
        for name, model in (("SFT", start), ("RLVR", rewarded))
    ]


def _by_units(bench: Bench, model: CharacterModel) -> list[list[float]]:
    right = bench.judge.verified(bench.test, bench.responses(model)).double()
    cell = bench.test.first % 10 * 10 + bench.test.second % 10
    count = torch.bincount(cell, minlength=100).clamp(min=1)
    shares = 100 * torch.bincount(cell, right, minlength=100) / count
    return [[float(share) for share in line] for line in shares.view(10, 10)]


def _lengths(bench: Bench, model: CharacterModel) -> dict[str, list[Any]]:
    lengths = (bench.responses(model) != 0).sum(1)
    longest = bench.max_length - bench.test.prompts().shape[1]
    return _series(
        list(range(1, longest + 1)),
        [100 * float((lengths == n).double().mean()) for n in range(1, longest + 1)],
    )


def _counted(values: Sequence[float]) -> dict[str, list[Any]]:
    return _series(list(range(1, len(values) + 1)), list(values))


def _curve(
    title: str, x_label: str, y_label: str, series: dict[str, Any], x_scale: str = "linear"
) -> dict[str, Any]:
    return {"title": title, "x_label": x_label, "y_label": y_label, "x_scale": x_scale, "series": series}


def _series(x: Sequence[Any], y: Sequence[Any]) -> dict[str, list[Any]]:
    return {"x": list(x), "y": list(y)}
