"""All the metrics of a data set at once: per set, per episode and per sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ildataquality._checks import check_matrix
from ildataquality.coverage import HorizonStats, horizon_stats, mean_by, phases, tube_width
from ildataquality.ensemble import held_out_residuals
from ildataquality.episodes import Episodes
from ildataquality.neighbours import neighbours, state_similarity
from ildataquality.normalizer import Normalizer
from ildataquality.variance import (
    action_variance,
    divergence_from_others,
    leave_one_out,
    local_covariance,
    multimodality,
    transition_variance,
)

Encoder = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class QualityReport:
    """What `quality_report` measured; tensors on the data's device.

    Args:
        action_variance: Mean V_i over the global action variance (1 - local R^2); low is consistent.
        multimodality: Share of that variance between two clusters of actions; 0.64 is one Gaussian, 1 two modes. NaN
            where nothing varies.
        transition_variance: Mean local variance of s' - s, in standardised units per state dimension.
        state_similarity: Share of all samples within the radius of a sample, itself included.
        state_similarity_across: The same with the neighbours' exclusions: other episodes only.
        model_divergence: Mean ||pi_k(s_i) - a_i||^2 of cloned policies on held-out episodes over the global action
            variance; None without `folds`.
        model_disagreement: Mean variance between those policies, likewise.
        horizon: Lengths of the episodes.
        tube: (P,) RMS distance of each phase's states to their mean, standardised units.
        tube_shift: (P,) sqrt(mean V_i) of each phase, in units of the actions' deviation.
        episodes: Per episode, each (E,): `length`, `divergence` (mean distance of its actions from the local
            mean of the others, over the action variance), `leave_one_out` (V(D) - V(D without it)), `novelty`
            (share of its samples that no other episode comes near).
        samples: Per sample, each (N,): `action_variance`, `divergence`, `multimodality`, `transition_variance`,
            `similarity`; with `folds` also `model_divergence` and `model_disagreement`. NaN: no neighbour.
        episode_id: (N,).
        normalizer: The frozen means, deviations and radius. Give it to reports that are to be compared with this.
    """

    action_variance: float
    multimodality: float
    transition_variance: float
    state_similarity: float
    state_similarity_across: float
    model_divergence: float | None
    model_disagreement: float | None
    horizon: HorizonStats
    tube: Tensor
    tube_shift: Tensor
    episodes: dict[str, Tensor]
    samples: dict[str, Tensor]
    episode_id: Tensor
    normalizer: Normalizer

    def to_dict(self, *, samples: bool = False) -> dict[str, Any]:
        """Plain numbers and lists that `json.dumps` takes; NaN becomes None.

        Args:
            samples: Also the per-sample lists.
        """
        names = (*_SCALARS, "model_divergence", "model_disagreement")
        found: dict[str, Any] = {name: _plain(getattr(self, name)) for name in names}
        found["horizon"] = dict(vars(self.horizon))
        found |= {
            "radius": self.normalizer.radius,
            "tube": _plain(self.tube),
            "tube_shift": _plain(self.tube_shift),
        }
        found["episodes"] = {name: _plain(values) for name, values in self.episodes.items()}
        if samples:
            found["samples"] = {name: _plain(values) for name, values in self.samples.items()}
        return found

    def plot(self) -> Any:
        """Four panels: episodes by divergence and length, tube, per-sample variance, leave-one-out.

        Returns:
            A matplotlib figure.

        Raises:
            ImportError: If matplotlib is missing.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("plot needs matplotlib: pip install 'ildataquality[demo]'") from error
        figure = Figure(figsize=(10, 7), layout="constrained")
        (scatter, tube), (histogram, bars) = figure.subplots(2, 2)
        episodes = {name: values.cpu().numpy() for name, values in self.episodes.items()}
        scatter.scatter(episodes["length"], episodes["divergence"])
        scatter.set(xlabel="length (steps)", ylabel="divergence from other episodes", title="Episodes")
        tube.plot(self.tube.cpu().numpy(), label="width of the tube of states")
        tube.plot(self.tube_shift.cpu().numpy(), label="local spread of actions")
        tube.set(xlabel="phase", ylabel="standardised units", title="Tube")
        tube.legend()
        variance = self.samples["action_variance"].cpu()
        histogram.hist(variance[~variance.isnan()].numpy(), bins=50)
        histogram.set(xlabel="local action variance / global", ylabel="samples", title="Action variance")
        bars.bar(range(len(episodes["length"])), episodes["leave_one_out"])
        bars.set(xlabel="episode", ylabel="V(D) - V(D without it)", title="Leave one out")
        return figure


_SCALARS = (
    "action_variance",
    "multimodality",
    "transition_variance",
    "state_similarity",
    "state_similarity_across",
)


@torch.no_grad()
def quality_report(
    episodes: Episodes,
    *,
    encode: Encoder | None = None,
    seed: int = 0,
    k: int | None = None,
    radius: float | None = None,
    normalizer: Normalizer | None = None,
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
        seed: Of the pairs that set the radius and of the `folds` models; a generator of the report's own.
        k: Number of neighbours of the variances; 32, or fewer where a third of the samples are fewer.
        radius: Neighbours of the variances within this distance, in standardised units, instead of by number.
        normalizer: Frozen from other data (`Normalizer.fit` on the union), for comparable numbers.
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

    Example:
        >>> import torch
        >>> from ildataquality import PMObstacle, quality_report
        >>> episodes = PMObstacle().collect(5, policy_noise=0.3, generator=torch.Generator().manual_seed(0))
        >>> report = quality_report(episodes)
        >>> 0 < report.action_variance < 1, report.episodes["divergence"].shape
        (True, torch.Size([5]))
    """
    generator = torch.Generator().manual_seed(seed)
    features = _features(encode, episodes.observations)
    normalizer = Normalizer.fit(features, generator=generator) if normalizer is None else normalizer
    states, following = normalizer(features), normalizer(_features(encode, episodes.next_observations))
    actions, identity = episodes.actions, episodes.episode_id
    if k is None and radius is None:
        k = max(2, min(32, len(states) // 3))
    excluded: dict[str, Any] = {
        "episode_id": identity,
        "exclude_window": exclude_window,
        "cross_episode_only": cross_episode_only,
    }
    near = neighbours(states, k=k, radius=radius, backend=backend, **excluded)
    joint = _joint(states, actions)
    moved = transition_variance(
        states, following, neighbours(joint, k=k, radius=radius, backend=backend, **excluded), reduce=None
    )
    samples = {
        "action_variance": action_variance(actions, near, chunk=chunk, reduce=None),
        "divergence": divergence_from_others(actions, near),
        "multimodality": multimodality(actions, near, reduce=None),
        "transition_variance": moved / states.shape[1],
        "similarity": state_similarity(states, normalizer.radius, reduce=None, **excluded),
    }
    divergence = disagreement = None
    if folds:
        with torch.enable_grad():
            residuals, spread = held_out_residuals(
                states, actions, identity, folds=folds, generator=generator
            )
        total = actions.var(0, correction=0).sum().clamp_min(torch.finfo(actions.dtype).tiny)
        samples |= {
            "model_divergence": residuals.square().sum(1) / total,
            "model_disagreement": spread / total,
        }
        divergence, disagreement = (
            float(samples[f"model_{name}"].mean()) for name in ("divergence", "disagreement")
        )
    alone = samples["similarity"] == 0
    count = len(episodes)
    return QualityReport(
        action_variance=float(samples["action_variance"].nanmean()),
        multimodality=float(multimodality(actions, near)),
        transition_variance=float(samples["transition_variance"].nanmean()),
        state_similarity=float(state_similarity(states, normalizer.radius)),
        state_similarity_across=float(samples["similarity"].mean()),
        model_divergence=divergence,
        model_disagreement=disagreement,
        horizon=horizon_stats(episodes.lengths),
        tube=tube_width(states, identity, num_phases=num_phases),
        tube_shift=mean_by(samples["action_variance"], phases(identity, num_phases), num_phases).sqrt(),
        episodes={
            "length": episodes.lengths.to(states.dtype),
            "divergence": mean_by(samples["divergence"], identity, count),
            "leave_one_out": leave_one_out(actions, near),
            "novelty": mean_by(alone.to(states.dtype), identity, count),
        },
        samples=samples,
        episode_id=identity,
        normalizer=normalizer,
    )


@dataclass(frozen=True)
class Decomposition:
    """Where the spread of a data set comes from.

    Args:
        action_noise: RMS deviation of the recorded actions from a local linear policy, per action dimension, in the
            actions' own units. Noise of the policy (and whatever the state does not explain).
        system_noise: RMS deviation of s' - s from a local linear model in (s, a), per state dimension, in the
            states' own units.
        state_spread: RMS distance of the states to the mean of their phase, per state dimension, own units.
        system_covariance: (S, S) mean covariance of those deviations of s' - s, own units.
    """

    action_noise: float
    system_noise: float
    state_spread: float
    system_covariance: Tensor


def decompose(
    episodes: Episodes, *, encode: Encoder | None = None, k: int = 32, backend: str = "torch"
) -> Decomposition:
    """Split the spread of the data into noise of the actions, noise of the system, and spread of the states.

    Noise in the system under clean recorded actions (as DART adds it) widens the tube and leaves the actions
    consistent; noise in the recorded actions widens it too, and has to be averaged away by the learner. All
    samples but the sample's own neighbours in time count as neighbours, so that one episode is enough where it
    comes back.

    Args:
        episodes: The demonstrations.
        encode: As in `quality_report`.
        k: Neighbours of each fit; must exceed the number of state and action dimensions by two.
        backend: As in `neighbours`.

    Returns:
        The split.

    Raises:
        ValueError: If `k` is too small for the dimensions, or as `neighbours`.

    Example:
        >>> import torch
        >>> from ildataquality import PMObstacle, decompose
        >>> generator = torch.Generator().manual_seed(0)
        >>> episodes = PMObstacle().collect(10, system_noise=0.02, generator=generator)
        >>> round(decompose(episodes).system_noise, 3)
        0.02
    """
    features, following = (
        _features(encode, episodes.observations),
        _features(encode, episodes.next_observations),
    )
    normalizer = Normalizer.fit(
        features, generator=torch.Generator()
    )  # draws for the radius, not needed here
    states, actions = normalizer(features), episodes.actions
    joint = _joint(states, actions)
    if k <= joint.shape[1] + 1:
        raise ValueError(f"k must exceed {joint.shape[1] + 1} for {joint.shape[1]} dimensions, got {k}")
    excluded: dict[str, Any] = {"episode_id": None, "backend": backend, "k": k}
    acted = local_covariance(actions, neighbours(states, **excluded), states)
    moved = local_covariance(following - features, neighbours(joint, **excluded), joint).nanmean(0)
    spread = tube_width(features, episodes.episode_id).square().nanmean() / features.shape[1]
    return Decomposition(
        action_noise=float(acted.diagonal(dim1=1, dim2=2).nanmean().sqrt()),
        system_noise=float(moved.diagonal().mean().sqrt()),
        state_spread=float(spread.sqrt()),
        system_covariance=moved,
    )


# --- small parts -----------------------------------------------------------------------------------


def _features(encode: Encoder | None, observations: Tensor) -> Tensor:
    features = observations.flatten(1) if encode is None else encode(observations)
    if encode is not None and (features.ndim != 2 or len(features) != len(observations)):
        raise ValueError(f"encode must give ({len(observations)}, D) features, got {tuple(features.shape)}")
    check_matrix("observations" if encode is None else "encode(observations)", features)
    return features


def _joint(states: Tensor, actions: Tensor) -> Tensor:
    """(N, S + A) standardised; a constant action stays, as zeros."""
    std = actions.std(0, correction=0)
    return torch.cat([states, (actions - actions.mean(0)) / torch.where(std > 0, std, 1)], dim=1)


def _plain(value: Any) -> Any:
    """Numbers and lists; None for NaN."""
    if isinstance(value, Tensor):
        return [_plain(entry) for entry in value.tolist()]
    return None if value is None or value != value else value
