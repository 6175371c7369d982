"""Maximal update parametrisation for Adam, which keeps the best learning rate where it is as width grows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from stabilityproxy._checks import checked_count, checked_number
from stabilityproxy.families import plain_name

_RULES = ("full", "simple")
_HEADS = ("lm_head", "head", "output", "embed_out", "unembed", "unembedding")


@dataclass(frozen=True)
class MuParam:
    """What the parametrisation asks for.

    Attributes:
        groups: Parameter groups for `torch.optim.AdamW`, with a "name": "hidden", "output" or "other". Add
            `weight_decay` and whatever else to them.
        logits_multiplier: Multiply the output logits by it.
        attention_scale: Use it instead of the inverse root of the head's size; None if no head was given.
        hidden: Names of the hidden matrices.
        output: Name of the output matrix; None where it is tied to the embedding or there is none.
    """

    groups: list[dict[str, Any]]
    logits_multiplier: float
    attention_scale: float | None
    hidden: tuple[str, ...]
    output: str | None


def mup_groups(
    model: nn.Module,
    base_width: int,
    lr: float,
    rules: str = "full",
    *,
    width: int | None = None,
    output: str | None = None,
    scale_output_lr: bool = False,
    head_dim: int | None = None,
) -> MuParam:
    r"""Parameter groups of muP for Adam (section 3.2.4 of the paper).

    With width d and base width b, hidden matrices learn at $\eta b / d$; embeddings, norms and biases at $\eta$; output
    logits are multiplied by b / d. That keeps the best learning rate across widths; it does not lower the
    sensitivity to it. At d = b nothing changes.

    Args:
        model: The model. Embeddings are `nn.Embedding`s; all other parameters with two or more dimensions, but the
            output, are hidden matrices.
        base_width: b, the width at which `lr` was tuned.
        lr: $\eta$, the learning rate at the base width.
        rules: "full", or "simple": the learning rates of hidden matrices and output alone, all by b / d, and no
            multiplier.
        width: d; by default `model.config.hidden_size` (or `n_embd`), or the size of the first embedding.
        output: Name of the module that gives the output logits; by default what
            `model.get_output_embeddings()` says, or a child called lm_head, head, output, embed_out or unembed.
        scale_output_lr: Let the output matrix learn at $\eta b / d$ instead of multiplying logits.
        head_dim: Give the head's size to be told muP's attention scale, $1 / d_h$ rather than its root.

    Returns:
        Groups and multipliers.

    Raises:
        ValueError: If a width is below 1, `lr` is not positive, the rules are unknown, the width or output cannot be
            found, or the learning rate of an output that is tied to the embedding is to be scaled.

    Examples:
        >>> model = nn.Sequential(nn.Embedding(9, 64), nn.Linear(64, 64), nn.Linear(64, 9))
        >>> found = mup_groups(model, base_width=16, lr=0.01, output="2")
        >>> [(group["name"], group["lr"]) for group in found.groups], found.logits_multiplier
        ([('hidden', 0.0025), ('other', 0.01), ('output', 0.01)], 0.25)
    """
    base, lr = checked_count("base_width", base_width), checked_number("lr", lr, positive=True)
    if rules not in _RULES:
        raise ValueError(f"rules must be one of {_RULES}, got {rules!r}")
    ratio = base / (_width_of(model) if width is None else checked_count("width", width))
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    embeddings = {id(table.weight) for table in tables}
    head = _head_of(model, output)
    if head is None:
        _check_headless(model, {tuple(table.weight.shape) for table in tables})
    head_weight = None if head is None else getattr(head, "weight", None)
    tied = head_weight is not None and id(head_weight) in embeddings
    scales_output = scale_output_lr or rules == "simple"
    if tied and scale_output_lr:
        raise ValueError("scale_output_lr must be False where the output is tied to the embedding")

    groups: dict[str, dict[str, Any]] = {
        "hidden": {"params": [], "lr": lr * ratio, "name": "hidden"},
        "other": {"params": [], "lr": lr, "name": "other"},
        "output": {"params": [], "lr": lr * ratio if scales_output else lr, "name": "output"},
    }
    hidden, output_name = [], None
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.dim() < 2 or id(parameter) in embeddings:
            kind = "other"
        elif parameter is head_weight:
            kind, output_name = "output", plain_name(name)
        else:
            kind = "hidden"
            hidden.append(plain_name(name))
        groups[kind]["params"].append(parameter)
    return MuParam(
        groups=[group for group in groups.values() if group["params"]],
        logits_multiplier=1.0 if scales_output or head is None else ratio,
        attention_scale=None if head_dim is None else 1.0 / checked_count("head_dim", head_dim),
        hidden=tuple(hidden),
        output=output_name,
    )


@torch.no_grad()
def mup_init_(model: nn.Module, found: MuParam, *, generator: torch.Generator | None = None) -> None:
    """Draw the hidden matrices anew from a normal distribution of variance 1 / fan-in, in place.

    Args:
        model: The model that `found` is of.
        found: The parametrisation.
        generator: Source of the numbers, on the parameters' device.

    Examples:
        >>> model = nn.Sequential(nn.Embedding(9, 64), nn.Linear(64, 64, bias=False))
        >>> mup_init_(model, mup_groups(model, base_width=16, lr=0.01))
        >>> 0.11 < model[1].weight.std().item() < 0.14  # 1 / sqrt(64) = 0.125
        True
    """
    parameters = {plain_name(name): parameter for name, parameter in model.named_parameters()}
    owners = {
        id(parameter): module for module in model.modules() for parameter in module.parameters(recurse=False)
    }
    for name in found.hidden:
        parameter = parameters[name]
        # Hugging Face's Conv1D, as in GPT-2, keeps its weight as (in, out).
        is_transposed = type(owners[id(parameter)]).__name__ == "Conv1D"
        fan_in = parameter.shape[0] if is_transposed else parameter[0].numel()
        parameter.normal_(0.0, fan_in**-0.5, generator=generator)


def _width_of(model: nn.Module) -> int:
    config = getattr(model, "config", None)
    for name in ("hidden_size", "n_embd", "d_model"):
        if isinstance(value := getattr(config, name, None), int):
            return value
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            return module.embedding_dim
    raise ValueError(
        "width must be given, since the model has neither a config that says it nor an embedding"
    )


def _check_headless(model: nn.Module, tables: set[tuple[int, ...]]) -> None:
    """An output that is taken for a hidden matrix would learn at the wrong rate."""
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(module, nn.Embedding) and getattr(weight, "shape", None) in tables:
            raise ValueError(
                f"output must name the module that gives the output logits; {name!r} looks like it"
            )


def _head_of(model: nn.Module, output: str | None) -> nn.Module | None:
    modules = {plain_name(name): module for name, module in model.named_modules()}
    if output is not None:
        if output not in modules:
            raise ValueError(f"output must name a module of the model, got {output!r}")
        return modules[output]
    says = getattr(model, "get_output_embeddings", None)
    if callable(says):
        return says()
    return next((modules[name] for name in _HEADS if name in modules), None)
