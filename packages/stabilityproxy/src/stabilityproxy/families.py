"""Which modules of a model attend, and where its output logits are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_FUSED = ("qkv", "qkv_proj", "c_attn", "query_key_value", "Wqkv", "wqkv", "W_pack", "attn_qkv")
_PAIRS = (
    ("q_proj", "k_proj"),
    ("query", "key"),
    ("q_lin", "k_lin"),
    ("to_q", "to_k"),
    ("wq", "wk"),
    ("q", "k"),
    ("c_q", "c_k"),
)


def plain_name(name: str) -> str:
    """A name without what DistributedDataParallel, FSDP and `torch.compile` put into it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def attention_modules(model: nn.Module, attention: str | Iterable[str]) -> dict[str, nn.Module]:
    """Modules that attend, by name: those that are named, or those that look like it."""
    modules = {plain_name(name): module for name, module in model.named_modules()}
    if isinstance(attention, str):
        if attention != "auto":
            raise ValueError(f"attention must be 'auto' or a list of module names, got {attention!r}")
        found = {name: module for name, module in modules.items() if _attends(module)}
        if len(found) > 1:
            found.pop("", None)  # a whole model may bear the word in its name
        if not found:
            raise ValueError(
                f"attention must name the modules whose forward attends, since none was recognised by its class "
                f"or its projections; candidates: {_candidates(modules)}"
            )
        return found
    names = [plain_name(name) for name in attention]
    missing = [name for name in names if name not in modules]
    if missing or not names:
        raise ValueError(
            f"attention must name modules of the model, got {missing or names}; "
            f"candidates: {_candidates(modules)}"
        )
    return {name: modules[name] for name in names}


def logits_of(output: Any) -> Tensor | None:
    """The logits (..., vocabulary) in what a model returned; None where there are none to be seen."""
    if isinstance(output, Tensor):
        return output if output.dim() >= 2 and output.is_floating_point() else None
    if isinstance(output, Mapping) or hasattr(output, "logits"):
        found = output.get("logits") if isinstance(output, Mapping) else output.logits
        return found if isinstance(found, Tensor) else None
    if isinstance(output, tuple | list):
        return next((part for part in output if isinstance(part, Tensor) and part.dim() >= 2), None)
    return None


def _attends(module: nn.Module) -> bool:
    name = type(module).__name__.lower()
    if ("attention" in name or "attn" in name) and not isinstance(module, nn.ModuleList | nn.ModuleDict):
        return True
    return has_projections(module) or "in_proj" in dict(module.named_children())


def has_projections(module: nn.Module) -> bool:
    """Whether it makes queries and keys by children of the usual names."""
    children = dict(module.named_children())
    fused = any(child in children for child in _FUSED)
    return fused or any(query in children and key in children for query, key in _PAIRS)


def _candidates(modules: dict[str, nn.Module]) -> list[str]:
    names = [
        name
        for name, module in modules.items()
        if name and not isinstance(module, nn.ModuleList | nn.ModuleDict | nn.Sequential)
    ]
    return names if len(names) <= 20 else [*names[:20], f"... {len(names) - 20} more"]
