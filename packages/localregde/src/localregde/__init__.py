"""Neural differential equations that need fewer solver steps: regularise the error of one step at a random time."""

from importlib.metadata import version as _version

from localregde.baselines import global_error_reg, steer_end, taylor_reg
from localregde.modules import NFECounter, TimeMLP
from localregde.regularizer import LocalRegResult, LocalRegularizer
from localregde.sampling import InsertedTime, insert_time, sample_tau
from localregde.steps import StepEstimate, initial_step, local_step, tolerance_floor
from localregde.stochastic import StochasticStep, local_reg_sde, local_step_sde
from localregde.weights import ConstantWeight, ExponentialWeight, constant_weight, exponential_weight

__all__ = [
    "ConstantWeight",
    "ExponentialWeight",
    "InsertedTime",
    "LocalRegResult",
    "LocalRegularizer",
    "NFECounter",
    "StepEstimate",
    "StochasticStep",
    "TimeMLP",
    "__version__",
    "constant_weight",
    "exponential_weight",
    "global_error_reg",
    "initial_step",
    "insert_time",
    "local_reg_sde",
    "local_step",
    "local_step_sde",
    "sample_tau",
    "steer_end",
    "taylor_reg",
    "tolerance_floor",
]

__version__ = _version("localregde")
