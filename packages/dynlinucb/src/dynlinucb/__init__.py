"""Dynamical linear bandits: decide online when the effect of what you do arrives over many rounds (DynLin-UCB)."""

from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

from dynlinucb._policy import Late, Policy
from dynlinucb.actions import Ellipsoid, box_vertices, budget_vertices
from dynlinucb.baselines import AR2, BatchExp3, Exp3, FixedAction
from dynlinucb.exploring import ExploringDynLinUCB
from dynlinucb.identification import estimate_spectral_radius, identify
from dynlinucb.linucb import DLinUCB, LinUCB
from dynlinucb.policies import DynLinUCB, epoch_lengths
from dynlinucb.simulation import BanditRun, simulate
from dynlinucb.system import DynamicalLinearBandit, SystemBounds, regret_lower_rate, regret_upper_rate

if TYPE_CHECKING:
    from dynlinucb._environment import DynamicalLinearBanditEnv as DynamicalLinearBanditEnv

__all__ = [
    "AR2",
    "BanditRun",
    "BatchExp3",
    "DLinUCB",
    "DynLinUCB",
    "DynamicalLinearBandit",
    "Ellipsoid",
    "Exp3",
    "ExploringDynLinUCB",
    "FixedAction",
    "Late",
    "LinUCB",
    "Policy",
    "SystemBounds",
    "__version__",
    "box_vertices",
    "budget_vertices",
    "epoch_lengths",
    "estimate_spectral_radius",
    "identify",
    "regret_lower_rate",
    "regret_upper_rate",
    "simulate",
]

__version__ = _version("dynlinucb")


def __getattr__(name: str) -> Any:
    # Gymnasium is an extra: only who asks for the environment needs it (so it is not in `__all__`).
    if name == "DynamicalLinearBanditEnv":
        try:
            from dynlinucb._environment import DynamicalLinearBanditEnv
        except ModuleNotFoundError as error:
            if error.name != "gymnasium":
                raise
            raise ImportError(
                "DynamicalLinearBanditEnv needs gymnasium: pip install 'dynlinucb[gym]'"
            ) from error
        return DynamicalLinearBanditEnv
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
