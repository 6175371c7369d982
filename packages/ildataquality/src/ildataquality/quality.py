"""All the metrics of a data set at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ildataquality.coverage import horizon_stats, mean_by, phases, tube_width
from ildataquality.ensemble import held_out_residuals
from ildataquality.episodes import Episodes
from ildataquality.exclusion import Excluded
from ildataquality.features import Encoder, features_of, joint
from ildataquality.leave_one_out import leave_one_out
from ildataquality.local import local_variance
from ildataquality.modes import mean_split, split
from ildataquality.neighbours import Neighbours, neighbours
from ildataquality.normalizer import Normalizer
from ildataquality.report import QualityReport
from ildataquality.similarity import similarities, tube_coverage
from ildataquality.variance import chunk_variance, divergence_from_others

Estimator = Literal["linear", "mean"] | None
IDLE = 0.01  # of the radius


@torch.no_grad()
def quality_report(
    episodes: Episodes,
    *,
    encode: Encoder | None = None,
    seed: int = 0,
    k: int | None = None,
    radius: float | None = None,
    normalizer: Normalizer | None = None,
    circular: Sequence[int] = (),
    reach: float | Tensor | None = None,
    estimator: Estimator = None,
    exclude_window: int | None = 10,
    cross_episode_only: bool = True,
    chunk: int = 1,
    num_phases: int = 20,
    folds: int = 0,
    backend: str = "torch",
) -> QualityReport:
    """Measure action divergence, transition diversity and horizon of demonstrations, before training anything.

    Args:
        episodes: The demonstrations.
        encode: (N, ...) observations -> (N, D) features, for images or to drop what does not matter; by
            default they are flattened. The metrics are those of the features.
        seed: Of the pairs that set the radius, the pushes of the coverage and the `folds` models; a generator of the
            report's own.
        k: Number of neighbours of the variances; 32, or fewer where a third of the samples are fewer.
        radius: Neighbours of the variances within this distance, in standardised units, instead of by number.
        normalizer: Frozen from other data (`Normalizer.fit(observations, actions)` of the union), for comparable
            numbers; of the features, where there is an `encode`.
        circular: Features that are angles in radians, where no `normalizer` says so already.
        reach: How far something may push a state that the demonstrations should know of, in the features' own units:
            one number, or (D,). Each feature is pushed by N(0, reach^2), and covered where a sample lies within the
            reach in root mean square over the dimensions; the sample that was pushed counts. By default the
            normaliser's radius, in standardised units.
        estimator: Variances around a local linear fit, or around a local mean, which takes a slope of the expert's
            actions for noise. By default linear where the neighbours exceed the dimensions by more than two.
        exclude_window: As in `neighbours`.
        cross_episode_only: As in `neighbours`.
        chunk: Length of the action chunks whose variance is measured.
        num_phases: Phases of the tube.
        folds: Number of cloned policies for the model-based divergence; 0 trains none.
        backend: As in `neighbours`.

    Returns:
        The report.

    Raises:
        ValueError: If `encode` gives something else than (N, D), or as `Normalizer.fit`, `neighbours`,
            `held_out_residuals` and the metrics.

    Examples:
        >>> import torch
        >>> from ildataquality import PMObstacle, quality_report
        >>> episodes = PMObstacle().collect(5, policy_noise=0.3, generator=torch.Generator().manual_seed(0))
        >>> report = quality_report(episodes)
        >>> 0 < report.action_variance < 1, report.episodes["divergence"].shape
        (True, torch.Size([5]))
    """
    generator = torch.Generator().manual_seed(seed)
    features = features_of(episodes.observations, encode)
    if normalizer is None:
        normalizer = Normalizer.fit(features, episodes.actions, circular=circular, generator=generator)
    elif circular:
        raise ValueError(f"circular must be left to the normalizer that is given, got {list(circular)}")
    # States and actions meet in fits and distances: in the finer of their precisions.
    kind = torch.promote_types(features.dtype, episodes.actions.dtype)
    states, actions = normalizer(features).to(kind), episodes.actions.to(kind)
    moves = normalizer(features_of(episodes.next_observations, encode)).to(kind) - states
    if k is None and radius is None:
        k = max(2, min(32, len(states) // 3))
    excluded: dict[str, Any] = {
        "episode_id": episodes.episode_id,
        "exclude_window": exclude_window,
        "cross_episode_only": cross_episode_only,
    }
    search: dict[str, Any] = {"k": k, "radius": radius, "backend": backend, **excluded}
    near = neighbours(states, **search)
    inputs = joint(states, actions, normalizer)
    near_both = neighbours(inputs, **search)
    fit_actions, fit_moves = (
        _linear(estimator, found, of.shape[1]) for found, of in ((near, states), (near_both, inputs))
    )
    unit = normalizer.unit_actions(actions)
    at = states if fit_actions else None
    modes = split(actions, near)
    whole, across = similarities(
        states,
        normalizer.radius,
        Excluded.of(states, episodes.episode_id, None, exclude_window, cross_episode_only),
    )
    samples = {
        "action_variance": chunk_variance(unit, near, chunk, at),
        "divergence": divergence_from_others(unit, near, normalize=False, states=at),
        "multimodality": modes[0],
        "transition_variance": local_variance(moves, near_both, inputs if fit_moves else None)
        / normalizer.num_dimensions,
        "similarity": across,
        "coverage": _covered(features, normalizer, reach, generator).to(kind),
        "idle": (moves.square().sum(1).sqrt() < IDLE * normalizer.radius).to(kind),
    }
    if folds:
        residuals, spread = held_out_residuals(
            states, unit, episodes.episode_id, folds=folds, generator=generator
        )
        samples |= {"model_divergence": residuals.square().sum(1), "model_disagreement": spread}
    scalars = {name: float(values.nanmean()) for name, values in samples.items()}
    return QualityReport(
        action_variance=scalars["action_variance"],
        coverage=scalars["coverage"],
        multimodality=float(mean_split(*modes)),
        transition_variance=scalars["transition_variance"],
        state_similarity=float(whole.mean()),
        state_similarity_across=scalars["similarity"],
        idle=scalars["idle"],
        model_divergence=scalars.get("model_divergence"),
        model_disagreement=scalars.get("model_disagreement"),
        horizon=horizon_stats(episodes.lengths),
        tube=tube_width(states, episodes.episode_id, num_phases=num_phases),
        tube_shift=_by_phase(samples["action_variance"], episodes, num_phases).sqrt(),
        episodes=_by_episode(samples, episodes)
        | {"leave_one_out": leave_one_out(unit, near, normalize=False)},
        samples=samples,
        episode_id=episodes.episode_id,
        names=episodes.names,
        estimators={
            "actions": "linear" if fit_actions else "mean",
            "transitions": "linear" if fit_moves else "mean",
        },
        normalizer=normalizer,
    )


def _linear(estimator: Estimator, near: Neighbours, dimensions: int) -> bool:
    """Whether there are neighbours enough for a linear fit, or whether it was asked for."""
    if estimator not in ("linear", "mean", None):
        raise ValueError(f"estimator must be 'linear', 'mean' or None, got {estimator!r}")
    typical = int(near.mask.sum(1).median())
    if estimator == "linear" and typical <= dimensions + 2:
        raise ValueError(
            f"estimator='linear' needs more than {dimensions + 2} neighbours in {dimensions} dimensions, "
            f"got {typical}; use a larger k or radius"
        )
    return estimator != "mean" and typical > dimensions + 2


def _covered(
    features: Tensor, normalizer: Normalizer, reach: float | Tensor | None, generator: torch.Generator
) -> Tensor:
    """(N,) bool: whether a sample lies within the reach of each state pushed by it."""
    if reach is None:
        pushes = normalizer.radius * normalizer.deviations
    else:
        pushes = torch.as_tensor(reach, dtype=torch.float64)
        if pushes.shape not in ((), features.shape[1:]) or not (torch.isfinite(pushes) & (pushes > 0)).all():
            raise ValueError(f"reach must be positive, one number or ({features.shape[1]},), got {reach}")
    pushes = pushes.to(features).expand(features.shape[1])
    pushed = features + pushes * torch.randn(features.shape, generator=generator).to(features)
    unit = normalizer.in_columns(pushes)
    return tube_coverage(
        normalizer(features) / unit, normalizer(pushed) / unit, normalizer.num_dimensions**0.5
    )


def _by_phase(values: Tensor, episodes: Episodes, num_phases: int) -> Tensor:
    phase = phases(episodes.episode_id, num_phases, num_samples=len(values))
    return mean_by(values, phase, num_phases)


def _by_episode(samples: dict[str, Tensor], episodes: Episodes) -> dict[str, Tensor]:
    """Means over the samples of each episode; `leave_one_out` is not one."""
    alone = (samples["similarity"] == 0).to(samples["similarity"])
    means = {"divergence": samples["divergence"], "novelty": alone, "idle": samples["idle"]}
    return {"length": episodes.lengths.to(alone)} | {
        name: mean_by(values, episodes.episode_id, len(episodes)) for name, values in means.items()
    }
