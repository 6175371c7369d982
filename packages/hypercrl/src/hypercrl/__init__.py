"""A hypernetwork that generates a network's weights for each task, and keeps those of old tasks where they were."""

from importlib.metadata import version as _version

from hypercrl.baselines import EWC, Coreset, SynapticIntelligence
from hypercrl.continual import continual_step
from hypercrl.dynamics import (
    DynamicsModel,
    TaskNormalizer,
    bounded_log_variance,
    gaussian_loss,
    squared_loss,
    weight_l1,
)
from hypercrl.hypernetwork import ChunkedHyperNetwork, HyperNetwork, target_shapes
from hypercrl.importance import PathImportance, diagonal_fisher
from hypercrl.lookahead import lookahead_delta
from hypercrl.metrics import transfer_matrix_metrics
from hypercrl.planner import CEMPlanner
from hypercrl.regularizer import OutputRegularizer

__all__ = [
    "EWC",
    "CEMPlanner",
    "ChunkedHyperNetwork",
    "Coreset",
    "DynamicsModel",
    "HyperNetwork",
    "OutputRegularizer",
    "PathImportance",
    "SynapticIntelligence",
    "TaskNormalizer",
    "__version__",
    "bounded_log_variance",
    "continual_step",
    "diagonal_fisher",
    "gaussian_loss",
    "lookahead_delta",
    "squared_loss",
    "target_shapes",
    "transfer_matrix_metrics",
    "weight_l1",
]

__version__ = _version("hypercrl")
