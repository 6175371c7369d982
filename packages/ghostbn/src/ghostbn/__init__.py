"""Ghost batch normalisation, and the schedules that let a large batch generalise like a small one."""

from importlib.metadata import version as _version

from ghostbn.accumulate import ghost_accumulate
from ghostbn.convert import convert_ghost_bn, revert_ghost_bn
from ghostbn.diffusion import DiffusionTracker
from ghostbn.functional import ghost_batch_norm
from ghostbn.groups import ghost_groups
from ghostbn.law import DiffusionFit
from ghostbn.layers import GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d
from ghostbn.ranks import average_running_stats
from ghostbn.schedule import AdaptedSchedule, adapt_regime, sample_loss_weights, scale_lr

__all__ = [
    "AdaptedSchedule",
    "DiffusionFit",
    "DiffusionTracker",
    "GhostBatchNorm1d",
    "GhostBatchNorm2d",
    "GhostBatchNorm3d",
    "__version__",
    "adapt_regime",
    "average_running_stats",
    "convert_ghost_bn",
    "ghost_accumulate",
    "ghost_batch_norm",
    "ghost_groups",
    "revert_ghost_bn",
    "sample_loss_weights",
    "scale_lr",
]

__version__ = _version("ghostbn")
