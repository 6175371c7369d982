"""The paper preset: operators of a robomimic multi-human file, by their metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ildataquality.curation import keep_fraction, rank_episodes
from ildataquality.episodes import Episodes
from ildataquality.normalizer import Normalizer
from ildataquality.quality import quality_report

GROUPS = ("better", "okay", "worse")


Judge = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


def robomimic(path: str, seed: int, report: Callable[[float, str], None], judge: Judge) -> dict[str, Any]:
    """Measure each group with one normaliser, and rank all episodes together without their labels."""
    parts = [Episodes.from_robomimic_hdf5(path, filter_key=group) for group in GROUPS]
    union = Episodes.concatenate(parts)
    generator = torch.Generator().manual_seed(seed)
    normalizer = Normalizer.fit(union.observations, union.actions, generator=generator)
    rows: list[dict[str, Any]] = []
    for index, (name, part) in enumerate(zip(GROUPS, parts, strict=True)):
        found = quality_report(part, normalizer=normalizer, seed=seed)
        rows.append(
            {
                "name": f"operators: {name}",
                "role": "reference",
                "action_variance": found.action_variance,
                "horizon": found.horizon.mean,
                "state_similarity": found.state_similarity,
            }
        )
        report(0.2 * (index + 1), f"measured {name}")
    whole = quality_report(union, normalizer=normalizer, seed=seed)
    sizes = torch.tensor([len(part) for part in parts])
    worse = torch.repeat_interleave(torch.tensor([False, False, True]), sizes)
    keep = 1 - float(worse.double().mean())
    similar = torch.stack([part.mean() for part in whole.samples["similarity"].split(union.lengths.tolist())])
    rankings: dict[str, Tensor] = {
        "dropped by rank": rank_episodes(whole),
        "dropped at random": torch.randperm(len(union), generator=generator),
        "dropped for low state diversity": similar.argsort(stable=True),
    }
    for name, ranking in rankings.items():
        dropped = torch.ones_like(worse)
        dropped[keep_fraction(ranking, keep)] = False
        role = "method" if name == "dropped by rank" else "baseline"
        rows.append({"name": name, "role": role, "precision": 100 * float(worse[dropped].double().mean())})
    judged = judge(rows)
    report(1.0, "done")
    return {
        "claim": "On demonstrations of many people, action variance and horizon order operators as their labels do.",
        "setting": {
            "data": f"robomimic multi-human file: {dict(zip(GROUPS, sizes.tolist(), strict=True))} episodes",
            "model": "none is trained",
            "budget": "one pass of the metrics; as many episodes are dropped as are of the worse operators",
        },
        "metrics": {
            "action_variance": {"unit": "of global", "better": "lower"},
            "horizon": {"unit": "steps", "better": "lower"},
            "state_similarity": {"unit": "", "better": "neither"},
            "precision": {"unit": "% of dropped are worse", "better": "higher"},
        },
        "rows": rows,
        "conditions": judged,
        "holds": all(condition["holds"] for condition in judged),
        "curves": [],
    }
