"""The mitigation of attention logit growth: layer normalisation of queries and keys, as a layer and as a patch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stabilityproxy._checks import checked_count, checked_number, exact_dtype
from stabilityproxy.families import attention_modules

_NAME = "qk_layernorm"
_PAIRS = (("q_proj", "k_proj"), ("query", "key"), ("to_q", "to_k"), ("q_lin", "k_lin"), ("wq", "wk"))
_BLOCKS = (
    "c_attn",
    "qkv_proj",
)  # fused projections known to give all queries, then all keys, then all values
_LAYOUTS = ("blocks", "interleaved")
_OWN_NORMS = ("q_norm", "k_norm", "q_layernorm", "k_layernorm", "query_norm", "key_norm", "qk_norm", _NAME)


class QKNorm(nn.Module):
    r"""Layer normalisation with a gain and no bias over the head dimension, one for queries and one for keys.

    $q \leftarrow g_q \odot (q - \bar q) / \sigma(q)$, likewise k, before rotation and product (section 3.1.1 of the
    paper). Then $|z| \le \sqrt{d_h}\, \max|g_q| \max|g_k|$, whatever the projections grow to. Statistics are taken
    in float32, and the result has the dtype of the input, so that autocast does not part queries from values.

    Args:
        head_dim: Size of a head.
        eps: Added to the variance.

    Shape:
        Queries and keys (..., head_dim), and so the results.

    Examples:
        >>> norm = QKNorm(4)
        >>> query, key = norm(torch.randn(2, 3, 4), 100 * torch.randn(2, 5, 4))
        >>> bool((query @ key.mT / 4**0.5).abs().max() <= 4**0.5)
        True
    """

    def __init__(
        self, head_dim: int, *, eps: float = 1e-6, device: Any = None, dtype: torch.dtype | None = None
    ):
        super().__init__()
        self.head_dim = checked_count("head_dim", head_dim)
        self.eps = checked_number("eps", eps)
        self.query_weight = nn.Parameter(torch.ones(self.head_dim, device=device, dtype=dtype))
        self.key_weight = nn.Parameter(torch.ones(self.head_dim, device=device, dtype=dtype))

    def forward(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Normalise both."""
        return self.normalised(query, self.query_weight), self.normalised(key, self.key_weight)

    def normalised(self, heads: Tensor, weight: Tensor) -> Tensor:
        """Normalise the last dimension."""
        dtype = exact_dtype(heads)
        return F.layer_norm(heads.to(dtype), (self.head_dim,), weight.to(dtype), None, self.eps).to(
            heads.dtype
        )

    def extra_repr(self) -> str:  # noqa: D102
        return f"head_dim={self.head_dim}, eps={self.eps}"


@dataclass(frozen=True)
class Projections:
    """Where an attention module makes its queries and keys.

    Args:
        head_dim: Size of a head.
        query: Name of the child that projects queries, or queries, keys and values together.
        key: Name of the child that projects keys; the same where one child makes both.
        num_heads: Heads of the queries; needed where one child makes both.
        num_key_heads: Heads of the keys; as many as of the queries if None.
        layout: Of a fused projection: "blocks" of all queries, all keys and all values (GPT-2, Phi-3), or
            "interleaved" by head: (heads, 3, head_dim) (GPT-NeoX).

    Raises:
        ValueError: If a fused projection comes without `num_heads`, or the layout is unknown.
    """

    head_dim: int
    query: str = "q_proj"
    key: str = "k_proj"
    num_heads: int | None = None
    num_key_heads: int | None = None
    layout: str = "blocks"

    def __post_init__(self) -> None:
        if self.layout not in _LAYOUTS:
            raise ValueError(f"layout must be one of {_LAYOUTS}, got {self.layout!r}")
        if self.query == self.key and self.num_heads is None:
            raise ValueError("num_heads must be given where one projection makes queries and keys")


def add_qk_layernorm_(
    model: nn.Module, mapping: Mapping[str, Projections] | None = None, *, eps: float = 1e-6
) -> list[str]:
    """Normalise the queries and keys of every attention of a model, before rotation, in place.

    Each attention module gets a child `qk_layernorm`, whose gains train, are saved and are loaded with the model,
    and hooks on its projections call it. Nothing is replaced, so fused kernels and names stay as they are, and
    adapters on the projections, put on before or after and merged or not, are normalised with them. Build the
    optimizer afterwards. To load: build the model, call this, then `load_state_dict`; a model without the
    patch refuses such a state dict, and the other way round.

    Args:
        model: The model; found by itself are the projections of Hugging Face's Llama, Mistral, Qwen 2, Gemma, Phi-3,
            GPT-2 and the like, and of your own modules with `q_proj` and `k_proj` and a `head_dim`.
        mapping: For other models, the projections of each attention module by its name in `model.named_modules()`.
        eps: Of the layer normalisation.

    Returns:
        Names of the patched modules.

    Raises:
        ValueError: If nothing is recognised, a name or child is unknown, a module has normalised queries and keys
            already, or the width of a projection does not fit its heads.

    Examples:
        >>> attention = nn.ModuleDict({"q_proj": nn.Linear(8, 8), "k_proj": nn.Linear(8, 8)})
        >>> model = nn.ModuleDict({"attention": attention})
        >>> add_qk_layernorm_(model, {"attention": Projections(head_dim=4)})
        ['attention']
        >>> [name for name in model.state_dict() if "layernorm" in name]
        ['attention.qk_layernorm.query_weight', 'attention.qk_layernorm.key_weight']
    """
    found = _recognised(model) if mapping is None else _given(model, mapping)
    for name, (attention, projections) in found.items():
        _check(name, attention, projections)
    for attention, projections in found.values():
        weight = next(attention.get_submodule(projections.query).parameters())
        dtype = weight.dtype if weight.is_floating_point() else torch.get_default_dtype()
        norm = _Patch(projections, eps=eps, device=weight.device, dtype=dtype)
        attention.add_module(_NAME, norm)
        norm.follow(attention, ())
        attention.register_forward_pre_hook(norm.follow)
    return [*found]


class _Patch(QKNorm):
    """The norm, as hooks on projections."""

    def __init__(self, projections: Projections, *, eps: float, device: Any, dtype: torch.dtype):
        super().__init__(projections.head_dim, eps=eps, device=device, dtype=dtype)
        self.projections = projections
        self.hooked: dict[str, nn.Module] = {}

    def follow(self, attention: nn.Module, inputs: Any) -> None:
        """Hook what projects now: an adapter takes the place of a projection, and gives it back when merged."""
        for child, hook in self._hooks().items():
            projection = attention.get_submodule(child)
            if projection is self.hooked.get(child):
                continue
            for module in (self.hooked.get(child, projection), projection):
                _take_off(module)
            projection.register_forward_hook(hook)
            self.hooked[child] = projection

    def _hooks(self) -> dict[str, Callable[..., Tensor]]:
        """Bound methods of a child: a deepcopy of the model, or a pickle, then has hooks on its own norm."""
        query, key = self.projections.query, self.projections.key
        return {query: self.on_fused} if query == key else {query: self.on_query, key: self.on_key}

    def on_query(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return self.normalised(output.unflatten(-1, (-1, self.head_dim)), self.query_weight).flatten(-2)

    def on_key(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return self.normalised(output.unflatten(-1, (-1, self.head_dim)), self.key_weight).flatten(-2)

    def on_fused(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        heads = output.unflatten(-1, (-1, self.head_dim))
        if self.projections.layout == "interleaved":
            query, key, value = heads.unflatten(-2, (-1, 3)).unbind(-2)
            return torch.stack([*self(query, key), value], dim=-2).flatten(-3)
        num_heads, num_key_heads = _heads(self.projections)
        rest = heads.shape[-2] - num_heads - num_key_heads
        query, key, value = heads.split([num_heads, num_key_heads, rest], dim=-2)
        return torch.cat([*self(query, key), value], dim=-2).flatten(-2)


def _take_off(projection: nn.Module) -> None:
    """Remove the hooks of any patch, from copies that an adapter has made as well."""
    for module in projection.modules():
        for key, hook in [*module._forward_hooks.items()]:
            if isinstance(getattr(hook, "__self__", None), _Patch):
                del module._forward_hooks[key]


def _heads(projections: Projections) -> tuple[int, int]:
    num_heads = projections.num_heads or 0
    return num_heads, projections.num_key_heads or num_heads


def _recognised(model: nn.Module) -> dict[str, tuple[nn.Module, Projections]]:
    found = {}
    for name, attention in attention_modules(model, "auto").items():
        projections = _projections(attention)
        if projections is not None:
            found[name] = (attention, projections)
    if not found:
        raise ValueError(
            f"mapping must say where queries and keys are made, as Projections by name of the attention module; "
            f"that was not recognised in {[*attention_modules(model, 'auto')][:5]}"
        )
    return found


def _projections(attention: nn.Module) -> Projections | None:
    children = dict(attention.named_children())
    config = getattr(attention, "config", None)
    num_heads = _first(attention, config, "num_heads", "n_head", "num_attention_heads", "n_heads")
    for query, key in _PAIRS:
        if query in children and key in children:
            width = getattr(children[query], "out_features", None)
            head_dim = _first(attention, config, "head_dim", "attention_head_size")
            if head_dim is None and num_heads and width:
                head_dim = width // num_heads
            return None if head_dim is None else Projections(head_dim, query, key)
    head_dim = _first(attention, config, "head_dim")
    width = _first(attention, config, "embed_dim", "n_embd", "hidden_size")
    fused = next((child for child in _BLOCKS if child in children), None)
    if fused is None or not num_heads or (head_dim is None and width is None):
        return None
    key_heads = _first(attention, config, "num_key_value_heads")
    return Projections(head_dim or (width or 0) // num_heads, fused, fused, num_heads, key_heads)


def _first(attention: nn.Module, config: Any, *names: str) -> int | None:
    for source in (attention, config):
        for name in names:
            if isinstance(value := getattr(source, name, None), int):
                return value
    return None


def _given(model: nn.Module, mapping: Mapping[str, Projections]) -> dict[str, tuple[nn.Module, Projections]]:
    modules = attention_modules(model, list(mapping))
    return {
        name: (module, found) for (name, module), found in zip(modules.items(), mapping.values(), strict=True)
    }


def _check(name: str, attention: nn.Module, projections: Projections) -> None:
    children = dict(attention.named_children())
    already = [norm for norm in _OWN_NORMS if norm in children]
    if already:
        raise ValueError(f"model must not have normalised queries and keys, got {already} in {name}")
    if hasattr(attention, _NAME):  # StableLM's option
        raise ValueError(
            f"model must leave the name {_NAME!r} free, but {name} has an attribute of that name"
        )
    num_heads, num_key_heads = _heads(projections)
    parts = 3 if projections.layout == "interleaved" else 1
    for child in {projections.query, projections.key}:
        if child not in children:
            raise ValueError(f"mapping must name children of {name}, {[*children]}, got {child!r}")
        width = _width(children[child])
        if width is None:
            continue
        fused = projections.query == projections.key
        least = (num_heads + num_key_heads + 1) * projections.head_dim if fused else projections.head_dim
        if width % (parts * projections.head_dim) or width < least:
            raise ValueError(
                f"head_dim must divide the width of {name}.{child}, {width}, and its heads fit into it, "
                f"got {projections}"
            )


def _width(projection: nn.Module) -> int | None:
    """Its output's size, as far as it tells: torch's and PEFT's name for it, and that of GPT-2's layers."""
    width = getattr(projection, "out_features", getattr(projection, "nf", None))
    return width if isinstance(width, int) else None
