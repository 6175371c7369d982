"""From metrics to data: rank episodes, keep the best, or weight the samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ildataquality.episodes import Episodes
from ildataquality.quality import quality_report
from ildataquality.report import QualityReport

DEFAULT_WEIGHTS: Mapping[str, float] = {
    "divergence": -1.0,
    "length": -0.25,
    "novelty": 0.0,
    "leave_one_out": 0.0,
    "idle": 0.0,
}


def episode_scores(report: QualityReport, weights: Mapping[str, float] | None = None) -> Tensor:
    """q_e = sum_m w_m z_m(e): the episodes' metrics as z-scores over the data set, weighted; high is good.

    Args:
        report: The report.
        weights: Of `divergence`, `length`, `leave_one_out`, `novelty` and `idle`; what is not named weighs 0. By
            default -1 and -0.25 for the first two. Novelty is worth a positive weight where operators are
            known to be clean; otherwise it rewards whoever strays.

    Returns:
        (E,) scores. A metric that is the same for all episodes adds 0; where it is not known of one (no neighbour
        within the radius), that one is taken for the worst of those known.

    Raises:
        ValueError: If a weight names no metric or is not finite.

    Examples:
        >>> import torch
        >>> from ildataquality import Episodes, PMObstacle, episode_scores, quality_report
        >>> task, generator = PMObstacle(), torch.Generator().manual_seed(0)
        >>> parts = [task.collect(5, policy_noise=noise, generator=generator) for noise in (0.0, 0.9)]
        >>> scores = episode_scores(quality_report(Episodes.concatenate(parts)))
        >>> bool(scores[:5].min() > scores[5:].max())
        True
    """
    weights = DEFAULT_WEIGHTS if weights is None else weights
    unknown = sorted(set(weights) - set(report.episodes))
    if unknown:
        raise ValueError(f"weights must be of {sorted(report.episodes)}, got {unknown}")
    score = torch.zeros_like(report.episodes["length"])
    for name, weight in weights.items():
        if not math.isfinite(weight):
            raise ValueError(f"weights must be finite, got {weight} for {name!r}")
        part = weight * _z_score(report.episodes[name])
        known = ~part.isnan()
        score += part.nan_to_num(float(part[known].min()) if known.any() else 0.0)
    return score


def _z_score(values: Tensor) -> Tensor:
    """NaN where the metric is not known."""
    centred = values - values.nanmean()
    std = centred.square().nanmean().sqrt()
    rounding = 8 * torch.finfo(values.dtype).eps * values.nan_to_num(0).abs().max()
    return torch.where(std > rounding, centred / std, centred * 0)


def rank_episodes(report: QualityReport, weights: Mapping[str, float] | None = None) -> Tensor:
    """The episodes from best to worst by `episode_scores`.

    Args:
        report: The report.
        weights: As `episode_scores`.

    Returns:
        (E,) int64 episode numbers; equal scores in the order of the data.

    Raises:
        ValueError: As `episode_scores`.
    """
    return episode_scores(report, weights).argsort(descending=True, stable=True)


def keep_fraction(ranking: Tensor, keep: float) -> Tensor:
    """The first `keep` of a ranking, in the order of the data.

    Args:
        ranking: (E,) episode numbers, best first.
        keep: Share to keep in (0, 1]; rounded, at least one episode.

    Returns:
        (M,) episode numbers, increasing.

    Raises:
        ValueError: If `keep` is not in (0, 1].

    Examples:
        >>> import torch
        >>> from ildataquality import keep_fraction
        >>> keep_fraction(torch.tensor([3, 0, 1, 2]), 0.5)
        tensor([0, 3])
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep must lie in (0, 1], got {keep}")
    return ranking[: max(1, round(keep * len(ranking)))].sort().values


def select(
    episodes: Episodes,
    keep: float = 0.8,
    *,
    weights: Mapping[str, float] | None = None,
    report: QualityReport | None = None,
    **options: Any,
) -> Episodes:
    """The best share of the episodes, with everything that they carry.

    Args:
        episodes: The demonstrations.
        keep: Share to keep in (0, 1].
        weights: As `episode_scores`.
        report: Their report, if it is there already.
        **options: Of `quality_report` otherwise.

    Returns:
        The episodes kept, in the order of the data and numbered anew; `keep_fraction(rank_episodes(report),
        keep)` says which.

    Raises:
        ValueError: If `keep` is not in (0, 1], the report is of another number of episodes or both it and options are
            given, or as `quality_report`.

    Examples:
        >>> import torch
        >>> from ildataquality import PMObstacle, select
        >>> episodes = PMObstacle().collect(6, policy_noise=0.3, generator=torch.Generator().manual_seed(0))
        >>> len(select(episodes, keep=0.5))
        3
    """
    if report is not None and (options or len(report.episodes["length"]) != len(episodes)):
        raise ValueError(
            f"report must be of these {len(episodes)} episodes and without further options, got one of "
            f"{len(report.episodes['length'])} and options {sorted(options)}"
        )
    if report is None:
        report = quality_report(episodes, **options)
    return episodes.subset(keep_fraction(rank_episodes(report, weights), keep))


def sample_weights(
    report: QualityReport, tau: float = 1.0, *, weights: Mapping[str, float] | None = None
) -> Tensor:
    """softmax(q_e / tau) over all samples: soft curation, for a weighted loss or `WeightedRandomSampler`.

    Args:
        report: The report.
        tau: Temperature in units of the score; large is uniform, small keeps the best episode.
        weights: As `episode_scores`.

    Returns:
        (N,) weights that sum to 1, equal within an episode.

    Raises:
        ValueError: If `tau` is not positive, or as `episode_scores`.

    Examples:
        >>> import torch
        >>> from ildataquality import PMObstacle, quality_report, sample_weights
        >>> episodes = PMObstacle().collect(4, policy_noise=0.3, generator=torch.Generator().manual_seed(0))
        >>> weight = sample_weights(quality_report(episodes), tau=0.5)
        >>> weight.shape == (episodes.num_samples,), round(float(weight.sum()), 4)
        (True, 1.0)
    """
    if not tau > 0:
        raise ValueError(f"tau must be positive, got {tau}")
    return (episode_scores(report, weights)[report.episode_id] / tau).softmax(0)
