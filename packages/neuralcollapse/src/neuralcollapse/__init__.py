"""Neural-collapse metrics, streamed, and the near-features model that predicts how features collapse."""

from importlib.metadata import version as _version

from neuralcollapse.flow import CentralPath, central_path
from neuralcollapse.history import CollapseHistory
from neuralcollapse.meter import NCMeter
from neuralcollapse.metrics import cdnv, nc1, nc2, nc3, nc4, nc5, norm_variation
from neuralcollapse.model import (
    Solution,
    class_columns,
    closed_form_w,
    near_features,
    objective,
    ufm_minimizer,
)
from neuralcollapse.report import NCReport
from neuralcollapse.statistics import Stats, class_stats
from neuralcollapse.stream import SecondPass, StreamingStats
from neuralcollapse.transfer import BlockSpectrum, predicted_spectrum, transfer, transfer_spectrum

__all__ = [
    "BlockSpectrum",
    "CentralPath",
    "CollapseHistory",
    "NCMeter",
    "NCReport",
    "SecondPass",
    "Solution",
    "Stats",
    "StreamingStats",
    "__version__",
    "cdnv",
    "central_path",
    "class_columns",
    "class_stats",
    "closed_form_w",
    "nc1",
    "nc2",
    "nc3",
    "nc4",
    "nc5",
    "near_features",
    "norm_variation",
    "objective",
    "predicted_spectrum",
    "transfer",
    "transfer_spectrum",
    "ufm_minimizer",
]

__version__ = _version("neuralcollapse")
