"""What was measured of a data set, per set, episode, sample and operator."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ildataquality.coverage import HorizonStats
from ildataquality.normalizer import Normalizer


@dataclass(frozen=True)
class QualityReport:
    """What `quality_report` measured; tensors on the data's device.

    Args:
        action_variance: Mean V_i over the global action variance that the normaliser holds (1 - local R^2); low is
            consistent. Times `normalizer.action_variance` it is in squared units of the actions.
        coverage: Share of the states, each pushed at random by the reach, that have a sample within that reach; about
            0.6 for states far from each other, 1 for a dense tube.
        multimodality: Share of the neighbours' variance between two clusters of actions; 0.64 is one Gaussian, 1 two
            modes. NaN where nothing varies.
        transition_variance: Mean local variance of s' - s, in standardised units per state dimension.
        state_similarity: Share of all samples within the radius of a sample, itself included.
        state_similarity_across: The same with the neighbours' exclusions: other episodes only.
        idle: Share of the steps that move the state by less than a hundredth of the radius.
        model_divergence: Mean ||pi_k(s_i) - a_i||^2 of cloned policies on held-out episodes over the global action
            variance; None without `folds`.
        model_disagreement: Mean variance between those policies, likewise.
        horizon: Lengths of the episodes.
        tube: (P,) RMS distance of each phase's states to their mean, standardised units.
        tube_shift: (P,) sqrt(mean V_i) of each phase, in units of the actions' deviation.
        episodes: Per episode, each (E,): `length`, `divergence` (mean distance of its actions from what the others do
            there, over the action variance), `leave_one_out` (V(D) - V(D without it), around means), `novelty` (share
            of its samples that no other episode comes near), `idle`.
        samples: Per sample, each (N,): `action_variance`, `divergence`, `multimodality`, `transition_variance`,
            `similarity`, `coverage` (1 or 0), `idle` (1 or 0); with `folds` also `model_divergence` and
            `model_disagreement`. NaN: no neighbour, or too few.
        episode_id: (N,).
        names: What the source calls each of the E episodes.
        estimators: `"linear"` or `"mean"`, around which the variances of `actions` and of `transitions` are taken.
        normalizer: The frozen means, deviations and radius. Give it to reports that are to be compared with this.
    """

    action_variance: float
    coverage: float
    multimodality: float
    transition_variance: float
    state_similarity: float
    state_similarity_across: float
    idle: float
    model_divergence: float | None
    model_disagreement: float | None
    horizon: HorizonStats
    tube: Tensor
    tube_shift: Tensor
    episodes: dict[str, Tensor]
    samples: dict[str, Tensor]
    episode_id: Tensor
    names: tuple[str | int, ...]
    estimators: dict[str, str]
    normalizer: Normalizer

    @property
    def score(self) -> float:
        """Coverage less action variance, both shares: what foretells cloning in the package's evidence.

        Comparable between data sets under one normaliser and one `reach` only.
        """
        return self.coverage - self.action_variance

    def by_group(self, groups: Sequence[Hashable]) -> dict[Hashable, dict[str, float]]:
        """Means of the episodes' metrics by operator, task or whatever else an episode belongs to.

        Args:
            groups: The E episodes' groups.

        Returns:
            For each group, in the order in which they come: `num_episodes` and `num_samples`; means over its episodes
            of `length`, `divergence`, `leave_one_out`, `novelty` and `idle`; means over its samples of
            `action_variance`, `transition_variance` and `coverage`. NaN: not known of any.

        Raises:
            ValueError: If there is not one group for each episode.
        """
        if len(groups) != len(self.names):
            raise ValueError(f"groups must be {len(self.names)} as there are episodes, got {len(groups)}")
        table: dict[Hashable, dict[str, float]] = {}
        for group in dict.fromkeys(groups):
            inside = torch.tensor([other == group for other in groups], device=self.episode_id.device)
            rows = inside[self.episode_id]
            table[group] = {
                "num_episodes": float(inside.sum()),
                "num_samples": float(rows.sum()),
                **{name: float(values[inside].nanmean()) for name, values in self.episodes.items()},
                **{name: float(self.samples[name][rows].nanmean()) for name in _BY_SAMPLE},
            }
        return table

    def to_dict(self, *, samples: bool = False) -> dict[str, Any]:
        """Plain numbers and lists that `json.dumps` takes; NaN becomes None.

        Args:
            samples: Also the per-sample lists.
        """
        found: dict[str, Any] = {name: _plain(getattr(self, name)) for name in _SCALARS}
        found |= {
            "horizon": dict(vars(self.horizon)),
            "radius": self.normalizer.radius,
            "estimators": dict(self.estimators),
            "tube": _plain(self.tube),
            "tube_shift": _plain(self.tube_shift),
            "names": list(self.names),
            "episodes": {name: _plain(values) for name, values in self.episodes.items()},
        }
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
    "action_variance", "coverage", "score", "multimodality", "transition_variance", "state_similarity",
    "state_similarity_across", "idle", "model_divergence", "model_disagreement",
)  # fmt: skip
_BY_SAMPLE = ("action_variance", "transition_variance", "coverage")


def _plain(value: Any) -> Any:
    """Numbers and lists; None for NaN."""
    if isinstance(value, Tensor):
        return [_plain(entry) for entry in value.tolist()]
    return None if value is None or value != value else value
