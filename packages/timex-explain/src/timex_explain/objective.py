"""What a pass of the explainer makes, what it is trained for, and the loss that follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from timex_explain.losses import (
    check_density,
    check_mode,
    connectedness,
    label_consistency,
    mbc_loss,
    simclr_loss,
    sparsity,
)


class TimeXOutput(NamedTuple):
    """Everything one forward pass makes.

    Attributes:
        prob: (batch, T, D), the saliency map.
        mask: (batch, T, D), the mask drawn from it.
        logits: (batch, C) of the explained model on the whole series.
        logits_explanation: (batch, C) of the explainer's own head on the masked series.
        z: (batch, d_z), the explained model's embedding of the whole series.
        z_explanation: (batch, d_z), the explainer's embedding of the masked series.
        z_landmark: (batch, d_z), the landmark chosen for each series.
        assignment: (batch,), its number.
        padding: (batch, T) bool or None, as given.
    """

    prob: Tensor
    mask: Tensor
    logits: Tensor
    logits_explanation: Tensor
    z: Tensor
    z_explanation: Tensor
    z_landmark: Tensor
    assignment: Tensor
    padding: Tensor | None


@dataclass(frozen=True)
class Objective:
    """What the explainer is trained for; the defaults are the paper's on its synthetic sets.

    total = explanation (sparsity + connectedness C) + similarity (consistency + landmark Λ + label L)

    Attributes:
        density: r of the sparsity term, in (0, 1): 0.5 on the synthetic sets, 0.1 on PAM.
        explanation: Weight of the two terms about the mask.
        connectedness: C, relative to sparsity.
        connectedness_mode: `"official"` (the paper's code, which its weights and figures belong to) or
            `"l1"` (the equation as printed: far stronger at the same weight).
        similarity: Weight of the terms about behaviour.
        consistency: `"mbc"`, or one of the paper's ablations, `"simclr"` and `"none"`.
        normalized: Whether the consistency is divided by the variance of the model's similarities.
        label: L, the weight of label consistency; zero is an ablation.
        label_mode: `"pairwise"` (the paper's equation) or `"official"` (its code).
        landmark: Λ, the weight of the consistency of landmarks, which moves nothing but the landmarks.

    Raises:
        ValueError: If a number or a name is not one of those.
    """

    density: float = 0.5
    explanation: float = 2.0
    connectedness: float = 2.0
    connectedness_mode: Literal["official", "l1"] = "official"
    similarity: float = 1.0
    consistency: Literal["mbc", "simclr", "none"] = "mbc"
    normalized: bool = False
    label: float = 1.0
    label_mode: Literal["pairwise", "official"] = "pairwise"
    landmark: float = 1.0

    def __post_init__(self) -> None:
        check_density(self.density)
        check_mode(self.connectedness_mode)
        if self.consistency not in ("mbc", "simclr", "none"):
            raise ValueError(f"consistency must be 'mbc', 'simclr' or 'none', got {self.consistency!r}")
        if self.label_mode not in ("pairwise", "official"):
            raise ValueError(f"label_mode must be 'pairwise' or 'official', got {self.label_mode!r}")
        for name in ("explanation", "connectedness", "similarity", "label", "landmark"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be finite and not negative, got {getattr(self, name)}")


def loss_terms(objective: Objective, output: TimeXOutput) -> dict[str, Tensor]:
    """Compute the terms of what a pass made, and their weighted sum; a term of weight zero is zero."""
    prob, padding = output.prob, output.padding
    zero = prob.new_zeros(())
    terms = {"consistency": zero, "landmark": zero, "label": zero}
    if objective.consistency == "mbc":
        terms["consistency"] = mbc_loss(output.z, output.z_explanation, normalized=objective.normalized)
    elif objective.consistency == "simclr":
        terms["consistency"] = simclr_loss(output.z, output.z_explanation)
    if objective.landmark:
        terms["landmark"] = mbc_loss(output.z, output.z_landmark, normalized=objective.normalized)
    if objective.label:
        terms["label"] = label_consistency(
            output.logits, output.logits_explanation, official=objective.label_mode == "official"
        )
    terms["sparsity"] = sparsity(prob, objective.density, padding)
    terms["connectedness"] = connectedness(prob, padding, objective.connectedness_mode)
    about_mask = terms["sparsity"] + objective.connectedness * terms["connectedness"]
    about_behaviour = (
        terms["consistency"] + objective.landmark * terms["landmark"] + objective.label * terms["label"]
    )
    total = objective.explanation * about_mask + objective.similarity * about_behaviour
    return {"total": total, **terms}
