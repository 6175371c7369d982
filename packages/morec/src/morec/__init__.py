"""MOREC: a reward learned from logged transitions filters what a dynamics model proposes."""

from importlib.metadata import version as _version

from morec.filtering import (
    FilterResult,
    TransitionFilter,
    calibrate_threshold,
    candidates_from_gaussian,
    reward_consistency,
    select,
)
from morec.networks import TransitionDiscriminator, TransitionGenerator
from morec.normalizer import TransitionNormalizer
from morec.reward import DynamicsReward
from morec.rollouts import rollout
from morec.training import DynamicsRewardTrainer

__all__ = [
    "DynamicsReward",
    "DynamicsRewardTrainer",
    "FilterResult",
    "TransitionDiscriminator",
    "TransitionFilter",
    "TransitionGenerator",
    "TransitionNormalizer",
    "__version__",
    "calibrate_threshold",
    "candidates_from_gaussian",
    "reward_consistency",
    "rollout",
    "select",
]

__version__ = _version("morec")
