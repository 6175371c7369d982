"""Continual learning with intervals of weights: a hypernetwork, sound interval layers, one network for all tasks."""

from importlib.metadata import version as _version

from hyperinterval.continual import (
    IntervalSchedule,
    Targets,
    boxes_and_regularizer,
    interval_drift,
    interval_regularizer,
    snapshot,
)
from hyperinterval.elementwise import interval_add, interval_apply
from hyperinterval.evaluation import certified_accuracy, entropy_task_choice
from hyperinterval.hypernetwork import IntervalHypernetwork
from hyperinterval.intervals import IntervalTensor
from hyperinterval.layers import interval_conv2d, interval_linear
from hyperinterval.losses import interval_cross_entropy, interval_mse, worst_case_logits
from hyperinterval.rules import INTERVAL_RULES, IntervalRule
from hyperinterval.target import interval_forward, relaxed_forward

__all__ = [
    "INTERVAL_RULES",
    "IntervalHypernetwork",
    "IntervalRule",
    "IntervalSchedule",
    "IntervalTensor",
    "Targets",
    "__version__",
    "boxes_and_regularizer",
    "certified_accuracy",
    "entropy_task_choice",
    "interval_add",
    "interval_apply",
    "interval_conv2d",
    "interval_cross_entropy",
    "interval_drift",
    "interval_forward",
    "interval_linear",
    "interval_mse",
    "interval_regularizer",
    "relaxed_forward",
    "snapshot",
    "worst_case_logits",
]

__version__ = _version("hyperinterval")
