"""Local complexity: watch, without labels, where the linear regions of a network gather while it trains."""

from importlib.metadata import version as _version

from localcomplexity.exact import (
    Partition,
    Plane,
    RegionStatistics,
    exact_segment,
    exact_slice,
    slice_through,
)
from localcomplexity.probe import Complexity, LocalComplexity, sign_crossings
from localcomplexity.robustness import pgd_linf, robust_accuracy
from localcomplexity.tracking import ComplexityTracker, Phases, detect_phases, log_schedule
from localcomplexity.vertices import cross_polytope, random_directions, segment_points, uniform_points

__all__ = [
    "Complexity",
    "ComplexityTracker",
    "LocalComplexity",
    "Partition",
    "Phases",
    "Plane",
    "RegionStatistics",
    "__version__",
    "cross_polytope",
    "detect_phases",
    "exact_segment",
    "exact_slice",
    "log_schedule",
    "pgd_linf",
    "random_directions",
    "robust_accuracy",
    "segment_points",
    "sign_crossings",
    "slice_through",
    "uniform_points",
]

__version__ = _version("localcomplexity")
