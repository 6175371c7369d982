"""TimeX: explain your time-series classifier by masks that make a second model behave as it does."""

from importlib.metadata import version as _version

from timex_explain.attribution import (
    OcclusionCurve,
    SaliencyScores,
    auroc,
    gradient_times_input,
    integrated_gradients,
    occlusion_curve,
    occlusion_saliency,
    saliency_scores,
)
from timex_explain.explainer import TimeX
from timex_explain.landmarks import (
    LandmarkTable,
    landmark_summary,
    straight_through_categorical,
    stratified_rows,
)
from timex_explain.losses import (
    connectedness_loss,
    label_consistency,
    mbc_loss,
    simclr_loss,
    sparsity_loss,
)
from timex_explain.masks import (
    Mask,
    MaskGenerator,
    SequenceEncoder,
    attention_mask,
    encode_positions,
    straight_through_bernoulli,
)
from timex_explain.objective import Objective, TimeXOutput
from timex_explain.replacement import Replacement
from timex_explain.summary import SaliencySummary, saliency_summary
from timex_explain.synthetic import LabelledSeries, freq_shapes, low_variance, seq_comb
from timex_explain.training import FitHistory, fit

__all__ = [
    "FitHistory",
    "LabelledSeries",
    "LandmarkTable",
    "Mask",
    "MaskGenerator",
    "Objective",
    "OcclusionCurve",
    "Replacement",
    "SaliencyScores",
    "SaliencySummary",
    "SequenceEncoder",
    "TimeX",
    "TimeXOutput",
    "__version__",
    "attention_mask",
    "auroc",
    "connectedness_loss",
    "encode_positions",
    "fit",
    "freq_shapes",
    "gradient_times_input",
    "integrated_gradients",
    "label_consistency",
    "landmark_summary",
    "low_variance",
    "mbc_loss",
    "occlusion_curve",
    "occlusion_saliency",
    "saliency_scores",
    "saliency_summary",
    "seq_comb",
    "simclr_loss",
    "sparsity_loss",
    "straight_through_bernoulli",
    "straight_through_categorical",
    "stratified_rows",
]

__version__ = _version("timex-explain")
