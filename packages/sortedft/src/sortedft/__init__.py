"""Sorted Fine-Tuning: one fine-tuning run turns a causal language model into a family of nested ones."""

from importlib.metadata import version as _version

from sortedft.decoding import Generated, dynamic_generate, speculative_generate
from sortedft.exits import ExitHeads, SortedSampler, default_exits, default_thresholds
from sortedft.families import adapter
from sortedft.loss import compute_sorted_loss, sorted_loss
from sortedft.parts import KeyValueCache, Parts
from sortedft.report import LayerReport, layer_report
from sortedft.submodels import cut, cut_state_dict, submodel

__all__ = [
    "ExitHeads",
    "Generated",
    "KeyValueCache",
    "LayerReport",
    "Parts",
    "SortedSampler",
    "__version__",
    "adapter",
    "compute_sorted_loss",
    "cut",
    "cut_state_dict",
    "default_exits",
    "default_thresholds",
    "dynamic_generate",
    "layer_report",
    "sorted_loss",
    "speculative_generate",
    "submodel",
]

__version__ = _version("sortedft")
