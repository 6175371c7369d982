"""Class-incremental learning in closed form: the stream's classifier equals the one trained on all data."""

from importlib.metadata import version as _version

from gacil.buffer import RandomBuffer
from gacil.classifier import AnalyticClassifier
from gacil.gamma import GammaChoice, suggest_gamma
from gacil.model import GACIL
from gacil.ridge import GacilStep, gacil_update, joint_solution
from gacil.statistics import Statistics
from gacil.streams import StreamMetrics, si_blurry, stream_metrics

__all__ = [
    "GACIL",
    "AnalyticClassifier",
    "GacilStep",
    "GammaChoice",
    "RandomBuffer",
    "Statistics",
    "StreamMetrics",
    "__version__",
    "gacil_update",
    "joint_solution",
    "si_blurry",
    "stream_metrics",
    "suggest_gamma",
]

__version__ = _version("gacil")
