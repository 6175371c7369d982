"""Recipes: the clamps of the paper, each a list of `Clamp` for a `ClampSet`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from inductionclamp._checks import (
    blocked_value,
    checked_float,
    checked_integer,
    checked_integers,
    checked_tensor,
)
from inductionclamp.clamps import Clamp, ClampSet, Earlier, FromPass, Heads, Order, Through

Layer = int | str
HeadIndices = int | Iterable[int] | None

PRESERVED = {"patterns": "attn_scores", "values": "v", "queries": "q", "keys": "k"}


def site_name(layer: Layer, name: str) -> str:
    """Return an activation's full name.

    Args:
        layer: Index of a block, or the prefix that the model itself has.
        name: The activation.

    Returns:
        `"blocks.{layer}.{name}"`, or `"{layer}.{name}"`.

    Raises:
        ValueError: If the index is negative.
    """
    if isinstance(layer, str):
        return f"{layer}.{name}" if layer else name
    return f"blocks.{checked_integer('layer', layer)}.{name}"


def _heads(heads: HeadIndices) -> tuple[int, ...] | None:
    return None if heads is None else checked_integers("heads", heads)


def ablate_heads(layer: Layer, heads: HeadIndices = None) -> list[Clamp]:
    """Silence heads: their values are 0, and so is all they write (recipe of Fig. 4).

    The output projection must have no bias of a head, as everywhere. With `preserve("patterns")`, and "values",
    "queries" or "keys", only the direct effect on what follows is taken away.

    Args:
        layer: The block.
        heads: Heads; None are all.

    Returns:
        The clamp.
    """
    chosen = _heads(heads)
    clamp = Clamp(
        site_name(layer, "v"), 0.0, Heads(chosen), order=Order.ABLATION, kind="ablation", heads=chosen
    )
    return [clamp]


def ablate_embedding() -> list[Clamp]:
    """Silence the token embedding: what is left is what other clamps preserve.

    Returns:
        The clamp.
    """
    return [Clamp("tok_embedding", 0.0, order=Order.EMBEDDING, kind="embedding")]


def preserve(kinds: str | Iterable[str], layers: Iterable[int] | None = None) -> list[Clamp]:
    """Keep patterns, values, queries or keys as they are in an unperturbed pass on the same batch.

    Args:
        kinds: Of `"patterns"`, `"values"`, `"queries"`, `"keys"`.
        layers: Blocks; None are all.

    Returns:
        The clamps; other clamps of the same activation override them.

    Raises:
        ValueError: If a kind is unknown.
    """
    clamps = []
    for kind in (kinds,) if isinstance(kinds, str) else kinds:
        if kind not in PRESERVED:
            raise ValueError(f"kinds must be of {', '.join(PRESERVED)}, got {kind!r}")
        names = ["*"] if layers is None else [str(checked_integer("layers", layer)) for layer in layers]
        clamps += [
            Clamp(f"blocks.{name}.{PRESERVED[kind]}", FromPass(), order=Order.PRESERVE, kind="preserve")
            for name in names
        ]
    return clamps


def force_pattern(layer: Layer, heads: HeadIndices, pattern: Tensor) -> list[Clamp]:
    """Force an attention pattern of your own.

    Args:
        layer: The block.
        heads: Heads; None are all.
        pattern: Weights [T, T] or broadcastable to [B, H, T, T]; rows sum to 1, nothing above the diagonal.

    Returns:
        The clamp.

    Raises:
        TypeError: If `pattern` is no floating-point tensor.
        ValueError: If a row does not sum to 1, has negative weights, or weights on later positions.
    """
    if not isinstance(pattern, Tensor) or not pattern.is_floating_point():
        raise TypeError("pattern must be a floating-point tensor")
    if pattern.dim() < 2 or pattern.shape[-1] != pattern.shape[-2]:
        raise ValueError(f"pattern must be of shape [..., T, T], got {tuple(pattern.shape)}")
    rows = pattern.detach().double().sum(-1)
    if not bool(((rows - 1).abs() < 1e-2).all()) or bool((pattern < 0).any()):
        raise ValueError(
            f"pattern must have rows that sum to 1 and no negative weights, got sums {rows.flatten()[:4].tolist()}"
        )
    if bool((pattern.detach().triu(1) != 0).any()):
        raise ValueError("pattern must be causal, got weight on a later position")
    return [_forced(layer, _heads(heads), pattern, Order.CUSTOM, "pattern")]


def prev_token(
    layer: Layer, heads: HeadIndices = None, strength: float = 1.0, only_labels: bool = False
) -> list[Clamp]:
    """Perfect previous-token heads: weight `strength` at i - 1 and 1 - `strength` at i; position 0 sees itself.

    Where the context holds an `attention_mask`, the first token of a left-padded row sees itself too.

    Args:
        layer: The block.
        heads: Heads; None are all.
        strength: Between 0 and 1.
        only_labels: Whether only label positions (1, 3, ...) are forced.

    Returns:
        The clamp.

    Raises:
        ValueError: If `strength` is not between 0 and 1.
    """
    strength = checked_float("strength", strength, 0, 1)
    chosen = _heads(heads)
    mask = partial(_label_rows, heads=Heads(chosen)) if only_labels else None
    source = partial(_previous, strength=strength)
    return [_forced(layer, chosen, source, Order.PREVIOUS_TOKEN, "previous token", mask=mask)]


def induction_pattern(
    layer: Layer,
    heads: HeadIndices = None,
    strength: float = 1.0,
    *,
    labels: Any = None,
    label_positions: Any = None,
    query_position: int = -1,
) -> list[Clamp]:
    """Perfect induction heads: the query attends to labels equal to its own with `strength`, else to the others.

    The paper plots the difference of the two weights, 2 `strength` - 1. With several right or wrong labels each
    group shares its weight; where a group is empty the other one has it all. Sub-circuits 1, 2, 3qk and 4 are clamped:
    only the copying (C) is left to learn.

    Args:
        layer: The block.
        heads: Heads; None are all.
        strength: Between 0 and 1.
        labels: Labels [B, n + 1] with the query's last, or a function of the context; None takes the context's.
        label_positions: Positions of the n labels, [n] or [B, n]; None are 1, 3, ....
        query_position: The query's position.

    Returns:
        The clamp on the query's row.

    Raises:
        ValueError: If `strength` is not between 0 and 1, or at the call if fewer than two labels are in context.
    """
    strength = checked_float("strength", strength, 0, 1)
    source = partial(
        _induction, strength=strength, labels=labels, positions=label_positions, query=query_position
    )
    return [_forced(layer, _heads(heads), source, Order.INDUCTION, "induction", rows=(query_position,))]


def match_pattern(
    layer: Layer,
    heads: HeadIndices = None,
    temperature: float = 0.0,
    *,
    features: Any = None,
    label_positions: Any = None,
    query_position: int = -1,
) -> list[Clamp]:
    """Match heads: the query attends to labels by softmax(cos(exemplar, query) / temperature) of the inputs.

    Args:
        layer: The block.
        heads: Heads; None are all.
        temperature: At least 0; at 0 the nearest exemplar's label has all weight, equal ones share it.
        features: Exemplars [B, n + 1, F] with the query last, or a function of the context; None takes the context's.
        label_positions: Positions of the n labels, [n] or [B, n]; None are 1, 3, ....
        query_position: The query's position.

    Returns:
        The clamp on the query's row.

    Raises:
        ValueError: If `temperature` is negative.
    """
    temperature = checked_float("temperature", temperature, 0)
    source = partial(
        _match, temperature=temperature, features=features, positions=label_positions, query=query_position
    )
    return [_forced(layer, _heads(heads), source, Order.MATCH, "match", rows=(query_position,))]


def block_prev_token(layer: Layer, heads: HeadIndices = None, only_labels: bool = False) -> list[Clamp]:
    """Forbid attention from i to i - 1: these scores become -1e9 before the softmax.

    Args:
        layer: The block.
        heads: Heads; None are all.
        only_labels: Whether only label positions (1, 3, ...) are blocked.

    Returns:
        The clamp.
    """
    chosen = _heads(heads)
    mask = partial(_previous_entries, heads=Heads(chosen), only_labels=only_labels)
    return [_blocked(layer, chosen, mask, "block")]


def silence_non_labels(
    layer: Layer, heads: HeadIndices = None, *, label_positions: Any = None, query_position: int = -1
) -> list[Clamp]:
    """Let the query attend to label positions only: its other scores become -1e9 before the softmax.

    Args:
        layer: The block.
        heads: Heads; None are all.
        label_positions: Positions of the n labels, [n] or [B, n]; None are 1, 3, ....
        query_position: The query's position.

    Returns:
        The clamp on the query's row.
    """
    chosen = _heads(heads)
    mask = partial(_non_labels, heads=Heads(chosen, (query_position,)), positions=label_positions)
    return [_blocked(layer, chosen, mask, "silence")]


def head_temperature(layer: Layer, temperatures: Mapping[int, float]) -> list[Clamp]:
    """Divide the scores of heads by a temperature before the softmax.

    Args:
        layer: The block.
        temperatures: For each head its temperature, at least 1e-6.

    Returns:
        The clamps.

    Raises:
        ValueError: If a temperature is below 1e-6.
    """
    clamps = []
    for head, temperature in temperatures.items():
        value = checked_float(f"temperatures[{head}]", temperature, 1e-6)
        chosen = checked_integers("temperatures", head)
        name, source = site_name(layer, "attn_pre_softmax"), partial(_cooled, temperature=value)
        mask = Heads(chosen)
        clamps.append(Clamp(name, source, mask, order=Order.TEMPERATURE, kind="temperature", heads=chosen))
    return clamps


def perfect_copy(
    layer: Layer,
    head: int,
    label_positions: Any = None,
    label_ids: Any = None,
    *,
    query_position: int = -1,
    unperturbed: bool = False,
) -> list[Clamp]:
    """Bypass the copy: the query's logits are a head's scores to the labels in context, and -1e9 for all others.

    Sub-circuits 3v and 5 are clamped: the head's softmax is the answer. A label that stands several times has the
    log-sum-exp of its scores. Values and output of the last block get no gradient.

    Args:
        layer: The block.
        head: Its head.
        label_positions: Positions of the n labels, [n] or [B, n]; None are 1, 3, ....
        label_ids: Their indices among the logits, [B, n], or a function of the context; None are the context's labels.
        query_position: The query's position.
        unperturbed: Whether the scores are those of a pass without any clamp (as in the official code), not those that
            the other clamps of the set leave. They differ only if another clamp acts before these scores.

    Returns:
        The clamp on the logits.
    """
    (chosen,) = checked_integers("head", head)
    transform = partial(_copied, head=chosen, positions=label_positions, ids=label_ids, query=query_position)
    name = site_name(layer, "attn_pre_softmax")
    source = FromPass(name, transform=transform) if unperturbed else Earlier(name, transform=transform)
    mask = partial(_position, position=query_position)
    return [Clamp("logits", source, mask, order=Order.COPY, kind="copy")]


def perfect_layer1(layer: int = 1) -> list[Clamp]:
    """Bypass what comes before a block: its queries and keys see shifted embeddings, its values plain ones.

    Queries and keys are those of a pass in which the block before puts out the embeddings moved on by one: position
    i carries embedding i - 1, the first and last keep their own. In the clamped pass it puts out the plain embeddings.
    Sub-circuits 1 and 2 are clamped: matching (B) and copying (C) are left to learn.

    Args:
        layer: The block whose inputs are clamped, at least 1.

    Returns:
        The clamps.

    Raises:
        ValueError: If `layer` is below 1.
    """
    layer = checked_integer("layer", layer, 1)
    before = site_name(layer - 1, "out")
    moved = Clamp(before, Earlier("blocks.0.x", transform=_moved_on), order=Order.GRAFT, kind="layer1")
    under = ClampSet([moved])
    clamps = [Clamp(before, Earlier("blocks.0.x"), order=Order.GRAFT, kind="layer1")]
    return clamps + [
        Clamp(site_name(layer, name), FromPass(under=under), order=Order.PRESERVE, kind="layer1")
        for name in ("q", "k")
    ]


def graft(model: nn.Module, *, upto: int | None = None, from_: int | None = None) -> list[Clamp]:
    """Graft a frozen checkpoint in: blocks up to one are its own, or those after one.

    Args:
        model: The checkpoint, with the same names; its gradients are not taken (`upto`), or its parameters are to
            be frozen by you (`from_`: gradients flow through them to the early layers).
        upto: The last block taken from the checkpoint.
        from_: The last block that stays; the checkpoint's following blocks read its output.

    Returns:
        The clamp.

    Raises:
        ValueError: If not exactly one of `upto` and `from_` is given.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if (upto is None) == (from_ is None):
        raise ValueError("exactly one of upto and from_ must be given")
    if upto is not None:
        return [Clamp(site_name(upto, "out"), FromPass(model=model), order=Order.GRAFT, kind="graft")]
    assert from_ is not None
    source = Through(model, at=site_name(from_, "out"), read="logits")
    return [Clamp("logits", source, order=Order.GRAFT, kind="graft")]


# --- sources and masks --------------------------------------------------------------------------------


def _forced(
    layer: Layer,
    heads: tuple[int, ...] | None,
    source: Any,
    order: Order,
    kind: str,
    rows: tuple[int, ...] | None = None,
    mask: Any = None,
) -> Clamp:
    where = Heads(heads, rows) if mask is None else mask
    return Clamp(site_name(layer, "attn_scores"), source, where, order=order, kind=kind, heads=heads)


def _blocked(layer: Layer, heads: tuple[int, ...] | None, mask: Any, kind: str) -> Clamp:
    return Clamp(
        site_name(layer, "attn_pre_softmax"), _very_low, mask, order=Order.BLOCK, kind=kind, heads=heads
    )


def _very_low(context: Any, value: Tensor) -> Tensor:
    return value.clamp(max=blocked_value(value.dtype))  # what a causal mask forbids stays at -inf


def _cooled(context: Any, value: Tensor, temperature: float) -> Tensor:
    return value / temperature


def _query_and_key(value: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of queries [T, 1] and keys [S], the last query standing at the last key."""
    queries, keys = value.shape[-2:]
    positions = torch.arange(keys, device=value.device)
    return positions[keys - queries :, None], positions


def _previous(context: Any, value: Tensor, strength: float) -> Tensor:
    query, key = _query_and_key(value)
    alone = query == 0
    padding = context.get("attention_mask") if isinstance(context, Mapping) else None
    if isinstance(padding, Tensor) and padding.dim() == 2 and padding.shape[1] == value.shape[-1]:
        # a token after padding has nothing before it
        before = padding.to(value.device).bool().roll(1, 1)[:, None, -value.shape[-2] :, None]
        alone = alone | ~before
    before_weight = torch.where(alone, 0.0, strength)
    weights = (key == query - 1) * before_weight + (key == query) * (1 - before_weight)
    return weights.to(value.dtype)


def _previous_entries(context: Any, value: Tensor, heads: Heads, only_labels: bool) -> Tensor:
    query, key = _query_and_key(value)
    entries = key == query - 1
    return heads(context, value) & (entries & (query % 2 == 1) if only_labels else entries)


def _label_rows(context: Any, value: Tensor, heads: Heads) -> Tensor:
    query, _ = _query_and_key(value)
    return heads(context, value) & (query % 2 == 1)


def _non_labels(context: Any, value: Tensor, heads: Heads, positions: Any) -> Tensor:
    labels = _label_positions(positions, context, value.shape[-1], value.device)
    at_label = torch.zeros(labels.shape[0], value.shape[-1], dtype=torch.bool, device=value.device)
    return heads(context, value) & ~at_label.scatter(1, labels, True)[:, None, None]


def _position(context: Any, value: Tensor, position: int) -> Tensor:
    size = value.shape[1]
    _check_position(position, size)
    return (torch.arange(size, device=value.device) == position % size)[:, None]


def _check_position(position: int, size: int) -> None:
    if not -size <= position < size:
        raise ValueError(f"query_position must be below {size}, got {position}")


def _induction(
    context: Any, value: Tensor, strength: float, labels: Any, positions: Any, query: int
) -> Tensor:
    known = _given("labels", labels, context, ("y", "labels"), 1, value.device)
    if known.dim() != 2 or known.shape[1] < 3:
        raise ValueError(
            f"labels must hold at least two in context and the query's, got shape {tuple(known.shape)}"
        )
    right = known[:, :-1] == known[:, -1:]
    wrong = ~right
    weight = torch.full(
        (), strength, dtype=torch.promote_types(value.dtype, torch.float32), device=value.device
    )
    weight = torch.where(wrong.any(1), torch.where(right.any(1), weight, 0.0), 1.0)[:, None]
    shares = right * weight / right.sum(1, keepdim=True).clamp(min=1)
    shares = shares + wrong * (1 - weight) / wrong.sum(1, keepdim=True).clamp(min=1)
    return _row(shares, _causal_positions(positions, context, value, query), value)


def _match(
    context: Any, value: Tensor, temperature: float, features: Any, positions: Any, query: int
) -> Tensor:
    x = _given("features", features, context, ("x", "features"), 0, value.device)
    if x.dim() != 3:
        raise ValueError(f"features must be [B, n + 1, F], got {tuple(x.shape)}")
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    cosines = cosine_similarity(x[:, :-1], x[:, -1:], dim=-1)
    cosines = cosines - cosines.amax(1, keepdim=True)  # so that a tiny temperature does not overflow
    if temperature == 0:
        best = (cosines == 0).to(cosines.dtype)
        shares = best / best.sum(1, keepdim=True)
    else:
        shares = (cosines / temperature).softmax(1)
    return _row(shares, _causal_positions(positions, context, value, query), value)


def _row(shares: Tensor, positions: Tensor, value: Tensor) -> Tensor:
    """Spread shares [B, n] over a row of keys; [B, 1, 1, S]."""
    if shares.shape[1] != positions.shape[1]:
        raise ValueError(
            f"label_positions must name {shares.shape[1]} positions, one for each label, got {positions.shape[1]}"
        )
    row = torch.zeros(shares.shape[0], value.shape[-1], dtype=shares.dtype, device=value.device)
    return row.scatter(1, positions.expand(len(shares), -1), shares)[:, None, None].to(value.dtype)


def _copied(
    context: Any, scores: Tensor, logits: Tensor, head: int, positions: Any, ids: Any, query: int
) -> Tensor:
    """The query's row of logits, [B, 1, V], of scores [B, H, T, S]; a repeated label has its scores' log-sum-exp."""
    if head >= scores.shape[1]:
        raise ValueError(f"head must be below {scores.shape[1]}, got {head}")
    _check_position(query, scores.shape[2])
    at = _causal_positions(positions, context, scores, query).expand(len(scores), -1)
    known = _given("label_ids", ids, context, ("y", "labels"), 1, scores.device)[:, : at.shape[1]]
    if known.shape != at.shape or at.shape[1] < 2:
        raise ValueError(f"label_ids must name at least two, as many as positions, got {tuple(known.shape)}")
    known = known.long()
    _check_range("label_ids", known, logits.shape[-1])
    low = blocked_value(logits.dtype)
    wide = torch.promote_types(scores.dtype, torch.float32)
    chosen = scores[:, head, query].to(wide).gather(1, at)
    same = known[:, :, None] == known[:, None]
    grouped = torch.where(same, chosen[:, None], low).logsumexp(-1)
    first = ~same.tril(-1).any(-1)
    empty = torch.zeros(len(scores), logits.shape[-1], dtype=wide, device=scores.device)
    row = empty.scatter_add(1, known, torch.where(first, grouped, 0.0))
    present = torch.zeros_like(empty, dtype=torch.bool).scatter(1, known, True)
    return torch.where(present, row, low)[:, None]


def _moved_on(context: Any, tokens: Tensor, value: Tensor) -> Tensor:
    return torch.cat([tokens[:, :1], tokens[:, :-2], tokens[:, -1:]], 1)


def _given(what: str, given: Any, context: Any, keys: tuple[str, str], place: int, device: Any) -> Tensor:
    """Find labels or features: given, a function of the context, or in the context by name or place."""
    if callable(given):
        given = given(context)
    if given is None and isinstance(context, Mapping):
        given = next((context[key] for key in keys if key in context), None)
    elif given is None and isinstance(context, tuple | list) and len(context) > place:
        given = context[place]
    if given is None:
        raise ValueError(
            f"{what} must be given, or be in the context as {keys[0]!r} or {keys[1]!r} or as its entry {place}"
        )
    return checked_tensor(what, given).to(device)


def _label_positions(given: Any, context: Any, size: int, device: Any) -> Tensor:
    """Positions of labels as [1, n] or [B, n]; every second one if none are given."""
    if callable(given):
        given = given(context)
    if given is None:
        return torch.arange(1, size - 1, 2, device=device)[None]
    positions = checked_tensor("label_positions", given)
    if positions.dim() not in (1, 2) or positions.is_floating_point():
        raise ValueError(
            f"label_positions must be integers of shape [n] or [B, n], got {tuple(positions.shape)}"
        )
    _check_range("label_positions", positions, size)
    return (positions if positions.dim() == 2 else positions[None]).to(device)


def _causal_positions(given: Any, context: Any, value: Tensor, query: int) -> Tensor:
    """Positions of labels among the keys of [B, H, T, S], none after the query."""
    queries, keys = value.shape[-2:]
    positions = _label_positions(given, context, keys, value.device)
    if query != -1:  # the last one sees all
        _check_position(query, queries)
        _check_range("label_positions", positions, keys - queries + query % queries + 1)
    return positions


def _check_range(name: str, given: Tensor, size: int) -> None:
    """Check indices where it costs nothing: an accelerator would have to be waited for, and says it itself."""
    if torch.compiler.is_compiling() or given.device.type != "cpu" or not given.numel():
        return
    least, most = given.min().item(), given.max().item()
    if least < 0 or most >= size:
        raise ValueError(f"{name} must be from 0 to {size - 1}, got {least} to {most}")
