"""Artificial optogenetics: clamp activations throughout training to see which sub-circuit a phase change waits for."""

from importlib.metadata import version as _version

from inductionclamp.attention import ClampableAttention
from inductionclamp.clamps import Clamp, ClampSet, Earlier, FromPass, Heads, Order, Through
from inductionclamp.huggingface import instrument_hf
from inductionclamp.metrics import (
    HeadTable,
    context_positions,
    few_shot_accuracy,
    head_ablation_table,
    in_context_loss,
    induction_strength,
    prev_token_score,
    sequence_induction_score,
    time_to_threshold,
)
from inductionclamp.recipes import (
    ablate_embedding,
    ablate_heads,
    block_prev_token,
    force_pattern,
    graft,
    head_temperature,
    induction_pattern,
    match_pattern,
    perfect_copy,
    perfect_layer1,
    preserve,
    prev_token,
    silence_non_labels,
    site_name,
)
from inductionclamp.running import clamped, run
from inductionclamp.sampler import FewShotBatch, FewShotSampler
from inductionclamp.sites import Site, SiteTable, instrument, sites_of
from inductionclamp.toy import ToyRun, tensor_toy
from inductionclamp.transformer import ClampableBlock, FewShotTransformer

__all__ = [
    "Clamp",
    "ClampSet",
    "ClampableAttention",
    "ClampableBlock",
    "Earlier",
    "FewShotBatch",
    "FewShotSampler",
    "FewShotTransformer",
    "FromPass",
    "HeadTable",
    "Heads",
    "Order",
    "Site",
    "SiteTable",
    "Through",
    "ToyRun",
    "__version__",
    "ablate_embedding",
    "ablate_heads",
    "block_prev_token",
    "clamped",
    "context_positions",
    "few_shot_accuracy",
    "force_pattern",
    "graft",
    "head_ablation_table",
    "head_temperature",
    "in_context_loss",
    "induction_pattern",
    "induction_strength",
    "instrument",
    "instrument_hf",
    "match_pattern",
    "perfect_copy",
    "perfect_layer1",
    "preserve",
    "prev_token",
    "prev_token_score",
    "run",
    "sequence_induction_score",
    "silence_non_labels",
    "site_name",
    "sites_of",
    "tensor_toy",
    "time_to_threshold",
]

__version__ = _version("inductionclamp")
