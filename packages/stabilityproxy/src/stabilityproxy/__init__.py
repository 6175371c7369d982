"""Predict on small Transformers what will make large ones unstable, and mend it before it happens."""

from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

from stabilityproxy.attention import LogitStatistics, attention_statistics
from stabilityproxy.extrapolation import Extrapolation, extrapolate
from stabilityproxy.losses import LossParts, cross_entropy_with_z, z_loss
from stabilityproxy.mup import MuParam, mup_groups, mup_init_
from stabilityproxy.optimizers import AdamStatistics, adam_statistics, adam_update_rms
from stabilityproxy.probe import StabilityProbe
from stabilityproxy.qk_layernorm import Projections, QKNorm, add_qk_layernorm_
from stabilityproxy.reading import NamedValues, Reading
from stabilityproxy.recipe import independent_weight_decay_, warmup_cosine
from stabilityproxy.sensitivity import Sensitivity, lr_sensitivity
from stabilityproxy.spikes import LossEvent, SpikeDetector, growth_rate

if TYPE_CHECKING:
    from stabilityproxy._callback import StabilityProbeCallback as StabilityProbeCallback

__all__ = [
    "AdamStatistics",
    "Extrapolation",
    "LogitStatistics",
    "LossEvent",
    "LossParts",
    "MuParam",
    "NamedValues",
    "Projections",
    "QKNorm",
    "Reading",
    "Sensitivity",
    "SpikeDetector",
    "StabilityProbe",
    "__version__",
    "adam_statistics",
    "adam_update_rms",
    "add_qk_layernorm_",
    "attention_statistics",
    "cross_entropy_with_z",
    "extrapolate",
    "growth_rate",
    "independent_weight_decay_",
    "lr_sensitivity",
    "mup_groups",
    "mup_init_",
    "warmup_cosine",
    "z_loss",
]

__version__ = _version("stabilityproxy")


def __getattr__(name: str) -> Any:
    # Only who asks for the callback needs transformers (so it is not in `__all__`).
    if name == "StabilityProbeCallback":
        try:
            from stabilityproxy._callback import StabilityProbeCallback
        except ModuleNotFoundError as error:
            if error.name != "transformers":
                raise
            raise ImportError(
                "StabilityProbeCallback needs transformers: pip install transformers"
            ) from error
        return StabilityProbeCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
