"""Second part of the evidence: what cloning gains from the better half of a mixed data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ildataquality.curation import keep_fraction, rank_episodes
from ildataquality.ensemble import StackedMLP, fit_stacked
from ildataquality.episodes import Episodes
from ildataquality.quality import quality_report

ARMS = ("best half by rank", "all", "random half", "half of most state diversity")


@dataclass(frozen=True)
class Curated:
    """Mean over the data sets, per arm.

    Args:
        score: (R, arms) success or return of the cloned policies.
        precision: (R, arms) share of noisy operators among the episodes dropped; NaN where none is.
    """

    score: Tensor
    precision: Tensor


def run_curation(
    collect: Callable[[Tensor], Episodes],
    evaluate: Callable[[StackedMLP, int], Tensor],
    *,
    num_clean: int,
    repeats: int,
    num_steps: int,
    generator: torch.Generator,
    device: str,
    report: Callable[[float, str], None],
) -> Curated:
    """Mix as many clean as noisy operators without labels, curate in each way, clone with the same number of steps.

    Args:
        collect: (E,) bool, which operators are noisy -> one episode of each.
        evaluate: Policies and their number M -> (M,) scores.
        num_clean: Number of clean operators, and of noisy ones.
        repeats: R, the number of data sets.
        num_steps: Gradient steps of every policy.
        generator: Draws everything.
        device: Where policies are trained.
        report: Progress.
    """
    mixes, members, precision, offset = [], [], torch.full((repeats, len(ARMS)), torch.nan), 0
    for repeat in range(repeats):
        noisy = torch.randperm(2 * num_clean, generator=generator) < num_clean
        episodes = collect(noisy)
        for arm, kept in enumerate(_kept(episodes, generator)):
            members.append(torch.isin(episodes.episode_id, kept).nonzero()[:, 0] + offset)
            dropped = torch.ones_like(noisy)
            dropped[kept] = False
            precision[repeat, arm] = noisy[dropped].float().mean()
        mixes.append(episodes)
        offset += episodes.num_samples
        report(0.3 * (repeat + 1) / repeats, "collecting and ranking")
    union = Episodes.concatenate(mixes)
    models = fit_stacked(
        union.observations.to(device),
        union.actions.to(device),
        members,
        num_steps=num_steps,
        generator=generator,
        progress=lambda fraction: report(0.3 + 0.6 * fraction, f"cloning {len(members)} data sets"),
    )
    score = evaluate(models, len(members)).cpu().view(repeats, len(ARMS))
    report(1.0, "rolled out")
    return Curated(score, precision)


def _kept(episodes: Episodes, generator: torch.Generator) -> list[Tensor]:
    """The episodes of each arm; no arm knows who is noisy."""
    found = quality_report(episodes)
    everything = torch.arange(len(episodes))
    diverse = torch.stack(
        [part.mean() for part in found.samples["similarity"].split(episodes.lengths.tolist())]
    )
    return [
        keep_fraction(rank_episodes(found), 0.5),
        everything,
        keep_fraction(torch.randperm(len(episodes), generator=generator), 0.5),
        keep_fraction(diverse.argsort(stable=True), 0.5),
    ]
