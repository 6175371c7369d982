"""scOT and Poseidon: a foundation model for PDEs on square fields, standalone and fast."""

from importlib.metadata import version as _version

from poseidon_lite.config import ScOTConfig
from poseidon_lite.layers import SwinV2Block, TimeConditionedLayerNorm
from poseidon_lite.model import ScOT, fourier_resize, rollout
from poseidon_lite.simulate import gaussian_vorticity, navier_stokes, sine_vorticity
from poseidon_lite.training import (
    FLUID_MEAN,
    FLUID_STD,
    All2AllDataset,
    All2AllPairs,
    group_loss,
    relative_error,
)
from poseidon_lite.transfer import convert_state_dict, finetune_groups, load_poseidon, save_poseidon

__all__ = [
    "FLUID_MEAN",
    "FLUID_STD",
    "All2AllDataset",
    "All2AllPairs",
    "ScOT",
    "ScOTConfig",
    "SwinV2Block",
    "TimeConditionedLayerNorm",
    "__version__",
    "convert_state_dict",
    "finetune_groups",
    "fourier_resize",
    "gaussian_vorticity",
    "group_loss",
    "load_poseidon",
    "navier_stokes",
    "relative_error",
    "rollout",
    "save_poseidon",
    "sine_vorticity",
]

__version__ = _version("poseidon-lite")
