"""Robust Mean Teacher: a deployed classifier adapts, without labels, to a stream whose distribution keeps shifting."""

from importlib.metadata import version as _version

from robustmeanteacher.adapter import RobustMeanTeacher
from robustmeanteacher.batch_statistics import BatchStatistics, use_batch_statistics
from robustmeanteacher.config import RobustMeanTeacherConfig
from robustmeanteacher.images import CORRUPTIONS, TestTimeAugment, corrupt
from robustmeanteacher.losses import symmetric_cross_entropy, symmetric_cross_entropy_gradient
from robustmeanteacher.prototypes import nearest_prototypes, prototype_contrastive_loss, source_prototypes
from robustmeanteacher.split import SplitModel
from robustmeanteacher.streams import (
    StreamBatch,
    StreamResult,
    continual_stream,
    correlated_stream,
    evaluate_stream,
    gradual_stream,
    mixed_stream,
)
from robustmeanteacher.teacher import EMATeacher
from robustmeanteacher.window import SlidingWindow

__all__ = [
    "CORRUPTIONS",
    "BatchStatistics",
    "EMATeacher",
    "RobustMeanTeacher",
    "RobustMeanTeacherConfig",
    "SlidingWindow",
    "SplitModel",
    "StreamBatch",
    "StreamResult",
    "TestTimeAugment",
    "__version__",
    "continual_stream",
    "correlated_stream",
    "corrupt",
    "evaluate_stream",
    "gradual_stream",
    "mixed_stream",
    "nearest_prototypes",
    "prototype_contrastive_loss",
    "source_prototypes",
    "symmetric_cross_entropy",
    "symmetric_cross_entropy_gradient",
    "use_batch_statistics",
]

__version__ = _version("robustmeanteacher")
