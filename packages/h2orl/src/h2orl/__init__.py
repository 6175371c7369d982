"""Train one agent on a few real transitions and an imperfect simulator, and see where the simulator errs."""

from importlib.metadata import version as _version

from h2orl.gap import DynamicsGap, GapLoss, SimCorrection, fit_gap
from h2orl.losses import H2OLoss, h2o_critic_loss, multiplier_loss, sim_omega, value_regularizer
from h2orl.transitions import HybridBuffer, Transitions, mix_batches
from h2orl.trust import SimulatorTrust, simulator_trust

__all__ = [
    "DynamicsGap",
    "GapLoss",
    "H2OLoss",
    "HybridBuffer",
    "SimCorrection",
    "SimulatorTrust",
    "Transitions",
    "__version__",
    "fit_gap",
    "h2o_critic_loss",
    "mix_batches",
    "multiplier_loss",
    "sim_omega",
    "simulator_trust",
    "value_regularizer",
]

__version__ = _version("h2orl")
