"""Which pretrained model will fine-tune best: transferability scores, with potential energy descent before them."""

from importlib.metadata import version as _version

from pedtransfer.agreement import bootstrap_interval, kendall, pearson, rel_at_k, weighted_kendall
from pedtransfer.discriminant import sfda
from pedtransfer.energy import PEDResult, ped
from pedtransfer.evidence import Evidence, logme, logme_evidence
from pedtransfer.extraction import extract_features
from pedtransfer.posteriors import leep, nce, nleep
from pedtransfer.ranking import Ranking, ped_score, rank_models
from pedtransfer.reference import ReferenceStats
from pedtransfer.separability import gbc, hscore, parc

__all__ = [
    "Evidence",
    "PEDResult",
    "Ranking",
    "ReferenceStats",
    "__version__",
    "bootstrap_interval",
    "extract_features",
    "gbc",
    "hscore",
    "kendall",
    "leep",
    "logme",
    "logme_evidence",
    "nce",
    "nleep",
    "parc",
    "pearson",
    "ped",
    "ped_score",
    "rank_models",
    "rel_at_k",
    "sfda",
    "weighted_kendall",
]

__version__ = _version("pedtransfer")
