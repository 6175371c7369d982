"""Emulated fine-tuning: decode from a large base model as if it had been fine-tuned like a small one."""

from importlib.metadata import version as _version

from emulatedft.decoding import EFTOutput, eft_generate, speculative_generate, sweep
from emulatedft.deltas import Delta, check_vocab
from emulatedft.distribution import emulate
from emulatedft.processor import EFTLogitsProcessor
from emulatedft.scoring import eft_logprobs
from emulatedft.streams import CachedModel

__all__ = [
    "CachedModel",
    "Delta",
    "EFTLogitsProcessor",
    "EFTOutput",
    "__version__",
    "check_vocab",
    "eft_generate",
    "eft_logprobs",
    "emulate",
    "speculative_generate",
    "sweep",
]

__version__ = _version("emulatedft")
