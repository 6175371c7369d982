"""Actions for logs that lack them: an inverse dynamics model from few labelled episodes, then any offline learner."""

from importlib.metadata import version as _version

from ssorl.episodes import Episode, from_arrays, from_d3rlpy, from_minari
from ssorl.inverse_dynamics import InverseDynamics
from ssorl.labelling import (
    LabelledEpisode,
    concat_transitions,
    label_episodes,
    load_labels,
    save_labels,
    to_d3rlpy,
    to_minari,
)
from ssorl.study import (
    LabelQuality,
    Split,
    coupled_split,
    decoupled_split,
    hide_actions,
    label_quality,
    normalised_return,
    relative_gap,
)
from ssorl.training import FitReport, SelfTrainReport, fit_idm, label_loss, self_train
from ssorl.windows import windows

__all__ = [
    "Episode",
    "FitReport",
    "InverseDynamics",
    "LabelQuality",
    "LabelledEpisode",
    "SelfTrainReport",
    "Split",
    "__version__",
    "concat_transitions",
    "coupled_split",
    "decoupled_split",
    "fit_idm",
    "from_arrays",
    "from_d3rlpy",
    "from_minari",
    "hide_actions",
    "label_episodes",
    "label_loss",
    "label_quality",
    "load_labels",
    "normalised_return",
    "relative_gap",
    "save_labels",
    "self_train",
    "to_d3rlpy",
    "to_minari",
    "windows",
]

__version__ = _version("ssorl")
