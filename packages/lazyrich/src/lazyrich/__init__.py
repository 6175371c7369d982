"""Tell lazy from rich training: an output-scale dial, tangent-kernel meters, and the paper's network solved exactly."""

from importlib.metadata import version as _version

from lazyrich.dial import OutputScale, scaled_lr
from lazyrich.dmft import DMFTResult, dmft
from lazyrich.kernel import cka, kta, label_power, ntk_gram
from lazyrich.linearized import linearized_fit
from lazyrich.meter import LazyMeter, LazyReading, grok_delay
from lazyrich.polynomial import (
    LossTerms,
    PolyTask,
    PopulationTrajectory,
    SuffTrajectory,
    population_flow,
    suff_gd,
    suff_kernel,
    suff_loss,
    suff_stats,
)

__all__ = [
    "DMFTResult",
    "LazyMeter",
    "LazyReading",
    "LossTerms",
    "OutputScale",
    "PolyTask",
    "PopulationTrajectory",
    "SuffTrajectory",
    "__version__",
    "cka",
    "dmft",
    "grok_delay",
    "kta",
    "label_power",
    "linearized_fit",
    "ntk_gram",
    "population_flow",
    "scaled_lr",
    "suff_gd",
    "suff_kernel",
    "suff_loss",
    "suff_stats",
]

__version__ = _version("lazyrich")
