"""Pretrain an encoder on unlabelled-task demonstrations by predicting the action between two frames."""

from importlib.metadata import version as _version

from invdyn.augmentations import (
    Augmentation,
    ColorJitter,
    Compose,
    GaussianBlur,
    RandomCrop,
    augment_batch,
)
from invdyn.dynamics import ContrastiveDynamics, ForwardReconstruction, StaticContrast, info_nce
from invdyn.episodes import from_episodes
from invdyn.imitation import BehaviorCloning, GoalBC, InverseDynamics, MultiHeadBC
from invdyn.networks import (
    ActionEncoder,
    MultiViewEncoder,
    PixelDecoder,
    PixelEncoder,
    SpatialSoftmax,
    StateEncoder,
)
from invdyn.objective import Objective
from invdyn.probes import CrossPrediction, ProbeResult, StateProbe, cross_prediction, encode, fit_probe
from invdyn.theory import LinearOracle, linear_bc_oracle, linear_id_oracle
from invdyn.transitions import (
    Batch,
    SequenceBatch,
    TransitionIndex,
    iterate_batches,
    iterate_sequences,
    transition_index,
)
from invdyn.views import gather_frames, stack_history, to_unit

__all__ = [
    "ActionEncoder",
    "Augmentation",
    "Batch",
    "BehaviorCloning",
    "ColorJitter",
    "Compose",
    "ContrastiveDynamics",
    "CrossPrediction",
    "ForwardReconstruction",
    "GaussianBlur",
    "GoalBC",
    "InverseDynamics",
    "LinearOracle",
    "MultiHeadBC",
    "MultiViewEncoder",
    "Objective",
    "PixelDecoder",
    "PixelEncoder",
    "ProbeResult",
    "RandomCrop",
    "SequenceBatch",
    "SpatialSoftmax",
    "StateEncoder",
    "StateProbe",
    "StaticContrast",
    "TransitionIndex",
    "__version__",
    "augment_batch",
    "cross_prediction",
    "encode",
    "fit_probe",
    "from_episodes",
    "gather_frames",
    "info_nce",
    "iterate_batches",
    "iterate_sequences",
    "linear_bc_oracle",
    "linear_id_oracle",
    "stack_history",
    "to_unit",
    "transition_index",
]

__version__ = _version("invdyn")
