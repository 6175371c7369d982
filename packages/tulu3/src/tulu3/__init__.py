"""TULU 3's post-training recipe as plain functions: losses, verifiers, PPO's parts, pairs, decontamination."""

from importlib.metadata import version as _version

from tulu3.advantages import Advantages, gae
from tulu3.chat import CHAT_TEMPLATE, ChatTokens, assistant_mask, render_chat
from tulu3.decontamination import ContaminationReport, Decontaminator, EmbeddingDecontaminator
from tulu3.evaluation import PAPER_SKILLS, EvalScheme, EvaluationReport
from tulu3.log_probs import sequence_logps, sft_loss, token_logps
from tulu3.preferences import (
    Pairs,
    PreferenceLoss,
    ReferenceCache,
    binarise,
    concatenate_pairs,
    preference_loss,
)
from tulu3.rlvr import (
    PolicyLoss,
    Rollout,
    kl_penalty,
    masked_whiten,
    ppo_policy_loss,
    ppo_value_loss,
    replace_unfinished_scores,
    rlvr_rewards,
    rollout_masks,
)
from tulu3.verifiers import (
    CONSTRAINTS,
    REGISTRY,
    Gsm8kVerifier,
    IfevalVerifier,
    MathVerifier,
    StrictMathVerifier,
    Verifier,
    as_trl_reward,
    final_answer,
)

__all__ = [
    "CHAT_TEMPLATE",
    "CONSTRAINTS",
    "PAPER_SKILLS",
    "REGISTRY",
    "Advantages",
    "ChatTokens",
    "ContaminationReport",
    "Decontaminator",
    "EmbeddingDecontaminator",
    "EvalScheme",
    "EvaluationReport",
    "Gsm8kVerifier",
    "IfevalVerifier",
    "MathVerifier",
    "Pairs",
    "PolicyLoss",
    "PreferenceLoss",
    "ReferenceCache",
    "Rollout",
    "StrictMathVerifier",
    "Verifier",
    "__version__",
    "as_trl_reward",
    "assistant_mask",
    "binarise",
    "concatenate_pairs",
    "final_answer",
    "gae",
    "kl_penalty",
    "masked_whiten",
    "ppo_policy_loss",
    "ppo_value_loss",
    "preference_loss",
    "render_chat",
    "replace_unfinished_scores",
    "rlvr_rewards",
    "rollout_masks",
    "sequence_logps",
    "sft_loss",
    "token_logps",
]

__version__ = _version("tulu3")
