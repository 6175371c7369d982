"""Edge-of-reach states in offline model-based reinforcement learning: see them, and value them with reserve."""

from importlib.metadata import version as _version

from ravl.critics import CriticEnsemble, soft_update_
from ravl.losses import (
    CriticLoss,
    diversity_loss,
    ensemble_reduction,
    gradient_diversity,
    pessimistic_target,
    ravl_actor_loss,
    ravl_critic_loss,
)
from ravl.report import (
    DynamicsComparison,
    EdgeHistory,
    EdgeReport,
    Overestimation,
    compare_dynamics,
    edge_report,
    overestimation,
)
from ravl.rollouts import RolloutBuffer, Rollouts, TransitionBatch, as_batch, mix, truncated_rollouts
from ravl.tabular import TruncatedValueIteration, tabular_edge_bound, tabular_truncated_vi

__all__ = [
    "CriticEnsemble",
    "CriticLoss",
    "DynamicsComparison",
    "EdgeHistory",
    "EdgeReport",
    "Overestimation",
    "RolloutBuffer",
    "Rollouts",
    "TransitionBatch",
    "TruncatedValueIteration",
    "__version__",
    "as_batch",
    "compare_dynamics",
    "diversity_loss",
    "edge_report",
    "ensemble_reduction",
    "gradient_diversity",
    "mix",
    "overestimation",
    "pessimistic_target",
    "ravl_actor_loss",
    "ravl_critic_loss",
    "soft_update_",
    "tabular_edge_bound",
    "tabular_truncated_vi",
    "truncated_rollouts",
]

__version__ = _version("ravl")
