"""Instruction residuals: give a continually pre-trained base model its instruction-following back by one addition."""

from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

from instructresidual.application import ApplyReport, applied, apply_residual
from instructresidual.diagnosis import Diagnosis, TensorDiagnosis, diagnose
from instructresidual.extraction import residual
from instructresidual.matching import VocabularyRows
from instructresidual.naming import group_of
from instructresidual.residuals import Residual
from instructresidual.tracking import Tracked, compare_strategies, track

if TYPE_CHECKING:
    from instructresidual._callback import ResidualEvalCallback as ResidualEvalCallback

__all__ = [
    "ApplyReport",
    "Diagnosis",
    "Residual",
    "TensorDiagnosis",
    "Tracked",
    "VocabularyRows",
    "__version__",
    "applied",
    "apply_residual",
    "compare_strategies",
    "diagnose",
    "group_of",
    "residual",
    "track",
]

__version__ = _version("instructresidual")


def __getattr__(name: str) -> Any:
    # transformers is an extra: only who asks for the callback needs it (so it is not in `__all__`).
    if name == "ResidualEvalCallback":
        try:
            from instructresidual._callback import ResidualEvalCallback
        except ModuleNotFoundError as error:
            if error.name != "transformers":
                raise
            raise ImportError(
                "ResidualEvalCallback needs transformers: pip install 'instructresidual[hf]'"
            ) from error
        return ResidualEvalCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
