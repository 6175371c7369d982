"""Improved consistency training: one- and two-step generators, trained from data alone."""

from importlib.metadata import version as _version

from improvedct.average import ema_update
from improvedct.editing import LinearTransform, channel_transform, edit, interpolate, patch_transform
from improvedct.loss import (
    LossOut,
    check_data,
    consistency_loss,
    pair_loss,
    pseudo_huber,
    squared_l2,
)
from improvedct.model import Consistency
from improvedct.noise import (
    NoiseRange,
    Stage,
    curriculum,
    karras_boundaries,
    legacy_curriculum,
    legacy_ema,
    lognormal_index_probs,
    sample_indices,
)
from improvedct.sampling import sample, ternary_search_tau

__all__ = [
    "Consistency",
    "LinearTransform",
    "LossOut",
    "NoiseRange",
    "Stage",
    "__version__",
    "channel_transform",
    "check_data",
    "consistency_loss",
    "curriculum",
    "edit",
    "ema_update",
    "interpolate",
    "karras_boundaries",
    "legacy_curriculum",
    "legacy_ema",
    "lognormal_index_probs",
    "pair_loss",
    "patch_transform",
    "pseudo_huber",
    "sample",
    "sample_indices",
    "squared_l2",
    "ternary_search_tau",
]

__version__ = _version("improvedct")
