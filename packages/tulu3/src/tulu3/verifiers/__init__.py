"""Programs that tell whether an answer is right."""

from tulu3.verifiers.base import Verifier, final_answer
from tulu3.verifiers.constraints import CONSTRAINTS
from tulu3.verifiers.gsm8k import Gsm8kVerifier
from tulu3.verifiers.ifeval import IfevalVerifier
from tulu3.verifiers.mathematics import MathVerifier, StrictMathVerifier
from tulu3.verifiers.rewards import REGISTRY, as_trl_reward

__all__ = [
    "CONSTRAINTS",
    "REGISTRY",
    "Gsm8kVerifier",
    "IfevalVerifier",
    "MathVerifier",
    "StrictMathVerifier",
    "Verifier",
    "as_trl_reward",
    "final_answer",
]
