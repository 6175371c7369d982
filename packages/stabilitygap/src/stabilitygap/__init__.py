"""Continual evaluation: see what a model forgets between two checkpoints, and how bad it ever was."""

from importlib.metadata import version as _version

from stabilitygap.avalanche import ContinualEvaluationPlugin
from stabilitygap.curves import FeatureDrift, task_gradient_norms
from stabilitygap.eval_set import EvalSet
from stabilitygap.evaluator import ContinualEvaluator
from stabilitygap.gaps import Gap, gap_report, summary
from stabilitygap.gradients import GradSplit, gem_project, split_gradients
from stabilitygap.isolation import undisturbed
from stabilitygap.metrics import accuracy, forgetting, learning_curve_area, min_acc, worst_case_acc
from stabilitygap.scores import likelihood_score, next_token_accuracy
from stabilitygap.trace import Trace
from stabilitygap.windows import WindowedExtremes, windowed_forgetting, windowed_plasticity

__all__ = [
    "ContinualEvaluationPlugin",
    "ContinualEvaluator",
    "EvalSet",
    "FeatureDrift",
    "Gap",
    "GradSplit",
    "Trace",
    "WindowedExtremes",
    "__version__",
    "accuracy",
    "forgetting",
    "gap_report",
    "gem_project",
    "learning_curve_area",
    "likelihood_score",
    "min_acc",
    "next_token_accuracy",
    "split_gradients",
    "summary",
    "task_gradient_norms",
    "undisturbed",
    "windowed_forgetting",
    "windowed_plasticity",
    "worst_case_acc",
]

__version__ = _version("stabilitygap")
