"""Lagrangian PINNs: learn the characteristics and the state along them, for transport-dominated equations."""

from importlib.metadata import version as _version

from lpinn.derivatives import Jet, Sine, fast_derivatives, forward_derivatives
from lpinn.diagnosis import HessianTop, Landscape, NWidth, hessian_top, loss_landscape, n_width
from lpinn.equations import (
    LagrangianResiduals,
    TransportPDE,
    burgers,
    convection,
    eulerian_residual,
    lagrangian_residuals,
    lpinn_loss,
    mean_speed,
    periodic_penalty,
    pinn_loss,
    reaction,
    validate_points,
)
from lpinn.networks import (
    EulerianNet,
    FourierState,
    LagrangianNet,
    OfficialLagrangianNet,
    PeriodicFeatures,
    tanh_mlp,
)
from lpinn.schedules import (
    TimePartition,
    Window,
    curriculum,
    extended_seq2seq,
    seq2seq,
    xpinn_loss,
)
from lpinn.solutions import exact_convection_diffusion, invert_map, spectral_burgers, to_grid

__all__ = [
    "EulerianNet",
    "FourierState",
    "HessianTop",
    "Jet",
    "LagrangianNet",
    "LagrangianResiduals",
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
