"""How good demonstrations are for imitation, before training: metrics per set, episode and sample, and curation."""

from importlib.metadata import version as _version

from ildataquality.bound import bound_from_policy, gaussian_kl, shift_bound, step_weights
from ildataquality.coverage import HorizonStats, coverage_probability, horizon_stats, tube_width
from ildataquality.curation import episode_scores, keep_fraction, rank_episodes, sample_weights, select
from ildataquality.decomposition import Decomposition, decompose
from ildataquality.ensemble import StackedMLP, fit_stacked, held_out_residuals
from ildataquality.episodes import Episodes
from ildataquality.formats.robomimic import write_robomimic_mask
from ildataquality.leave_one_out import leave_one_out
from ildataquality.modes import multimodality
from ildataquality.neighbours import Neighbours, neighbours
from ildataquality.normalizer import Normalizer
from ildataquality.point_mass import PMObstacle
from ildataquality.quality import quality_report
from ildataquality.report import QualityReport
from ildataquality.similarity import state_similarity, tube_coverage
from ildataquality.variance import (
    action_chunks,
    action_variance,
    divergence_from_others,
    transition_variance,
)

__all__ = [
    "Decomposition",
    "Episodes",
    "HorizonStats",
    "Neighbours",
    "Normalizer",
    "PMObstacle",
    "QualityReport",
    "StackedMLP",
    "__version__",
    "action_chunks",
    "action_variance",
    "bound_from_policy",
    "coverage_probability",
    "decompose",
    "divergence_from_others",
    "episode_scores",
    "fit_stacked",
    "gaussian_kl",
    "held_out_residuals",
    "horizon_stats",
    "keep_fraction",
    "leave_one_out",
    "multimodality",
    "neighbours",
    "quality_report",
    "rank_episodes",
    "sample_weights",
    "select",
    "shift_bound",
    "state_similarity",
    "step_weights",
    "transition_variance",
    "tube_coverage",
    "tube_width",
    "write_robomimic_mask",
]

__version__ = _version("ildataquality")
