"""Lagrangian PINNs: learn the characteristics and the state along them, for transport-dominated equations."""

from importlib.metadata import version as _version

from lpinn.activations import Sine
from lpinn.derivatives import fast_derivatives, forward_derivatives
from lpinn.diagnosis import HessianTop, Landscape, NWidth, hessian_top, loss_landscape, n_width
from lpinn.equations import TransportPDE, burgers, convection, mean_speed, reaction
from lpinn.evaluation import invert_map, on_grid
from lpinn.features import FourierState, PeriodicFeatures
from lpinn.interpolation import to_grid
from lpinn.losses import EulerianTerms, LagrangianTerms, lpinn_loss, periodic_penalty, pinn_loss
from lpinn.networks import EulerianNet, LagrangianNet, OfficialLagrangianNet, tanh_mlp
from lpinn.points import validate_points
from lpinn.residuals import LagrangianResiduals, eulerian_residual, lagrangian_residuals
from lpinn.schedules import Window, curriculum, extended_seq2seq, seq2seq
from lpinn.solutions import exact_convection_diffusion, spectral_burgers
from lpinn.subdomains import TimePartition, xpinn_loss
from lpinn.taylor import Jet

__all__ = [
    "EulerianNet",
    "EulerianTerms",
    "FourierState",
    "HessianTop",
    "Jet",
    "LagrangianNet",
    "LagrangianResiduals",
    "LagrangianTerms",
    "Landscape",
    "NWidth",
    "OfficialLagrangianNet",
    "PeriodicFeatures",
    "Sine",
    "TimePartition",
    "TransportPDE",
    "Window",
    "__version__",
    "burgers",
    "convection",
    "curriculum",
    "eulerian_residual",
    "exact_convection_diffusion",
    "extended_seq2seq",
    "fast_derivatives",
    "forward_derivatives",
    "hessian_top",
    "invert_map",
    "lagrangian_residuals",
    "loss_landscape",
    "lpinn_loss",
    "mean_speed",
    "n_width",
    "on_grid",
    "periodic_penalty",
    "pinn_loss",
    "reaction",
    "seq2seq",
    "spectral_burgers",
    "tanh_mlp",
    "to_grid",
    "validate_points",
    "xpinn_loss",
]

__version__ = _version("lpinn")
