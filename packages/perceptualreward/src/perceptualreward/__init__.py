"""Unsupervised perceptual rewards: a dense reward from a few demonstrations and the features of a frozen network."""

from importlib.metadata import version as _version
from typing import Any

from perceptualreward.features import collect_activations
from perceptualreward.linear import LinearStepReward
from perceptualreward.metrics import jaccard, random_ordered_cuts, reward_jaccard
from perceptualreward.pi2 import Pi2Update, pi2_update
from perceptualreward.reward import PerceptualReward, StepReward
from perceptualreward.selection import StepMoments, feature_scores, select_features, step_moments
from perceptualreward.steps import (
    StepCount,
    choose_n,
    discover_steps,
    discover_steps_batch,
    segment_cost_table,
    step_labels,
)
from perceptualreward.success import SuccessDetector, episode_score

__all__ = [
    "LinearStepReward",
    "PerceptualReward",
    "PerceptualRewardWrapper",
    "Pi2Update",
    "StepCount",
    "StepMoments",
    "StepReward",
    "SuccessDetector",
    "__version__",
    "choose_n",
    "collect_activations",
    "discover_steps",
    "discover_steps_batch",
    "episode_score",
    "feature_scores",
    "jaccard",
    "pi2_update",
    "random_ordered_cuts",
    "reward_jaccard",
    "segment_cost_table",
    "select_features",
    "step_labels",
    "step_moments",
]

__version__ = _version("perceptualreward")


def __getattr__(name: str) -> Any:
    if name == "PerceptualRewardWrapper":  # gymnasium is an extra
        from perceptualreward.wrapper import PerceptualRewardWrapper

        return PerceptualRewardWrapper
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
