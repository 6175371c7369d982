"""Robust Mean Teacher: a deployed classifier adapts, without labels, to a stream whose distribution keeps shifting."""

from importlib.metadata import version as _version

from robustmeanteacher.adapter import RobustMeanTeacher, RobustMeanTeacherConfig, SlidingWindow
from robustmeanteacher.images import CORRUPTIONS, TestTimeAugment, corrupt
from robustmeanteacher.losses import symmetric_cross_entropy, symmetric_cross_entropy_gradient
from robustmeanteacher.network import BatchStatistics, EMATeacher, SplitModel, use_batch_statistics
from robustmeanteacher.prototypes import nearest_prototypes, prototype_contrastive_loss, source_prototypes
from robustmeanteacher.streams import (
    StreamBatch,
    StreamResult,
    continual_stream,
    correlated_stream,
    evaluate_stream,
    gradual_stream,
    mixed_stream,
)

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
