"""Find the groups of examples that pull a network in opposite directions, and measure what they do to its training."""

from importlib.metadata import version as _version

from opposingsignals.curvature import (
    CurvatureShare,
    PairScore,
    curvature_share,
    per_example_curvature,
    score_pair,
)
from opposingsignals.hessian import TopEigs, adam_preconditioner, hvp, top_eigs
from opposingsignals.losses import (
    example_weights,
    flatten,
    group_gradient,
    per_example_gradient_norms,
    per_example_loss,
)
from opposingsignals.optimizers import ClippedSGD, PartialAdamSGD, SignSGD
from opposingsignals.stability import eos_threshold, spike_steps
from opposingsignals.toy import (
    OpposingTask,
    TwoLayerNet,
    Valley,
    crossing_time,
    predicted_sharpness,
    two_layer_flow,
)
from opposingsignals.tracker import GroupPair, LossDeltaTracker, alternation, group_curves
from opposingsignals.views import FeatureView, feature_view, image_panel, text_panel

__all__ = [
    "ClippedSGD",
    "CurvatureShare",
    "FeatureView",
    "GroupPair",
    "LossDeltaTracker",
    "OpposingTask",
    "PairScore",
    "PartialAdamSGD",
    "SignSGD",
    "TopEigs",
    "TwoLayerNet",
    "Valley",
    "__version__",
    "adam_preconditioner",
    "alternation",
    "crossing_time",
    "curvature_share",
    "eos_threshold",
    "example_weights",
    "feature_view",
    "flatten",
    "group_curves",
    "group_gradient",
    "hvp",
    "image_panel",
    "per_example_curvature",
    "per_example_gradient_norms",
    "per_example_loss",
    "predicted_sharpness",
    "score_pair",
    "spike_steps",
    "text_panel",
    "top_eigs",
    "two_layer_flow",
]

__version__ = _version("opposingsignals")
