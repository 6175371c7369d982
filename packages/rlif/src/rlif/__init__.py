"""Learn from interventions: the step before a take-over is penalised, and any off-policy learner does the rest."""

from importlib.metadata import version as _version

from rlif.control import Decision, InterventionController
from rlif.environments import InterventionEnv, InterventionVectorEnv
from rlif.imitation import Demonstrations, aggregate_dagger, aggregate_hg_dagger, bc_loss
from rlif.relabeling import (
    InterventionRelabeler,
    InterventionStats,
    Transition,
    expected_penalty,
    intervention_stats,
    official_mask,
    relabel,
)
from rlif.supervisors import (
    ActionDistanceSupervisor,
    CallableSupervisor,
    RandomSupervisor,
    ScheduleSupervisor,
    Supervisor,
    ValueSupervisor,
    annealed_beta,
)
from rlif.tabular import (
    TabularSolution,
    tabular_hg_dagger,
    tabular_policy_value,
    tabular_rlif,
    tabular_solve,
    tabular_takeover_prob,
)

__all__ = [
    "ActionDistanceSupervisor",
    "CallableSupervisor",
    "Decision",
    "Demonstrations",
    "InterventionController",
    "InterventionEnv",
    "InterventionRelabeler",
    "InterventionStats",
    "InterventionVectorEnv",
    "RandomSupervisor",
    "ScheduleSupervisor",
    "Supervisor",
    "TabularSolution",
    "Transition",
    "ValueSupervisor",
    "__version__",
    "aggregate_dagger",
    "aggregate_hg_dagger",
    "annealed_beta",
    "bc_loss",
    "expected_penalty",
    "intervention_stats",
    "official_mask",
    "relabel",
    "tabular_hg_dagger",
    "tabular_policy_value",
    "tabular_rlif",
    "tabular_solve",
    "tabular_takeover_prob",
]

__version__ = _version("rlif")
