"""A residual in factors as a LoRA adapter, in the files that `peft` reads."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from instructresidual._files import whole_or_not
from instructresidual.compression import norm
from instructresidual.deltas import LowRank
from instructresidual.naming import group_of, has_token_rows, listed
from instructresidual.residuals import Residual


def write_adapter(
    residual: Residual,
    path: Path,
    base_model: str | None,
    fan_in_fan_out: bool,
    strict: bool,
    overwrite: bool,
) -> tuple[str, ...]:
    """Write `adapter_model.safetensors` and `adapter_config.json`; return what does not fit."""
    fits = {
        name.removesuffix(".weight"): delta
        for name, delta in residual.deltas.items()
        if isinstance(delta, LowRank) and name.endswith(".weight") and not _is_beyond(residual, name)
    }
    left_out = tuple(
        name
        for name, delta in residual.deltas.items()
        if name.removesuffix(".weight") not in fits and norm(delta)
    )
    if not fits:
        raise ValueError("the residual has no matrix in factors: call lowrank(rank) first")
    if left_out and strict:
        raise ValueError(
            f"a LoRA adapter cannot hold {listed(left_out)} (vectors, matrices that are not in factors, rows that are"
            " copied, embeddings whose head is tied): leave these out by filter(exclude=...), or pass strict=False"
        )
    tensors: dict[str, Tensor] = {}
    for module, delta in fits.items():
        tensors |= _factors(module, delta, fan_in_fan_out)
    ranks = {module: delta.left.shape[1] for module, delta in fits.items()}
    rank = max(ranks.values())
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": fan_in_fan_out,
        "target_modules": list(fits),
        "rank_pattern": {module: other for module, other in ranks.items() if other != rank},
        "alpha_pattern": {module: other for module, other in ranks.items() if other != rank},
    }
    with whole_or_not(path, overwrite=overwrite) as folder:
        save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return left_out


def _is_beyond(residual: Residual, name: str) -> bool:
    """Whether a matrix has rows that are copied, or is the embedding of a base whose head is tied.

    An adapter of the embedding would leave the head as it is.
    """
    has_head = any(group_of(other) == "head" for other in residual.ancestor.shapes)
    tied = name in residual.ties.values() or not has_head
    return name in residual.added or (tied and group_of(name) == "embed" and has_token_rows(name))


def _factors(module: str, delta: LowRank, fan_in_fan_out: bool) -> dict[str, Tensor]:
    """A linear layer has B A (out, in); an embedding, and a layer that lies the other way round, its transpose."""
    prefix = f"base_model.model.{module}"
    left, right = delta.left.contiguous().cpu(), delta.right.contiguous().cpu()
    if group_of(f"{module}.weight") == "embed":
        return {
            f"{prefix}.lora_embedding_A": left.mT.contiguous(),
            f"{prefix}.lora_embedding_B": right.mT.contiguous(),
        }
    if fan_in_fan_out and not has_token_rows(f"{module}.weight"):
        left, right = right.mT.contiguous(), left.mT.contiguous()
    return {f"{prefix}.lora_A.weight": right, f"{prefix}.lora_B.weight": left}
