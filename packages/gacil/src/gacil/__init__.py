"""Class-incremental learning in closed form: the stream's classifier equals the one trained on all data."""

from importlib.metadata import version as _version

from gacil.classifier import AnalyticClassifier
from gacil.engines import Statistics
from gacil.model import GACIL, RandomBuffer
from gacil.ridge import GacilStep, GammaChoice, gacil_update, joint_solution, suggest_gamma
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
