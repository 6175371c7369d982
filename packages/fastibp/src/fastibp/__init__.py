"""Certified robust training by interval bounds, with a warm-up of a few epochs instead of hundreds."""

from importlib.metadata import version as _version

from fastibp.boxes import Box, linf_box
from fastibp.certification import CertReport, evaluate, robust_loss, verified
from fastibp.expressive import attack, mixed_loss, small_box
from fastibp.initialization import add_batchnorm, ibp_init_, radius_gains
from fastibp.propagation import IBP, IBPOutput
from fastibp.rules import Bounds
from fastibp.warmup import (
    EpsSchedule,
    ReluState,
    relu_balance,
    relu_balance_loss,
    spread_loss,
    stability_loss,
    tightness_loss,
    volume_loss,
    warmup_regularizer,
)

__all__ = [
    "IBP",
    "Bounds",
    "Box",
    "CertReport",
    "EpsSchedule",
    "IBPOutput",
    "ReluState",
    "__version__",
    "add_batchnorm",
    "attack",
    "evaluate",
    "ibp_init_",
    "linf_box",
    "mixed_loss",
    "radius_gains",
    "relu_balance",
    "relu_balance_loss",
    "robust_loss",
    "small_box",
    "spread_loss",
    "stability_loss",
    "tightness_loss",
    "verified",
    "volume_loss",
    "warmup_regularizer",
]

__version__ = _version("fastibp")
