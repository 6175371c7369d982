"""The nested sub-models themselves: cut one off for good, or put the model into one for a while."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any, TypeVar

from torch import Tensor, nn

from sortedft._checks import checked_count, is_plain_linear
from sortedft.families import adapter, without_shell
from sortedft.parts import Parts

Model = TypeVar("Model", bound=nn.Module)

_DEPTH = "the number of blocks"
_LAYER_KEY = re.compile(r"((?:^|.*?\.)(?:layers|h|blocks))\.(\d+)\.")
# Each family's feed-forward network: what widens to the intermediate channels, and what narrows back.
_FEED_FORWARD = (
    (("gate_proj", "up_proj"), "down_proj"),
    (("c_fc",), "c_proj"),
    (("dense_h_to_4h",), "dense_4h_to_h"),
)


@contextmanager
def submodel(
    model: Model,
    depth: int | None = None,
    ff_keep: int | None = None,
    *,
    parts: Parts | None = None,
) -> Iterator[Model]:
    """Run `model` as one of its nested sub-models inside a `with` block.

    Only the first `depth` blocks run, and in each only the first `ff_keep` intermediate channels of the
    feed-forward network (SortedNet, arXiv 2309.00255, section 3). The parameters are the model's own, so
    gradients reach them; nothing is masked, the arithmetic really shrinks. Not for two threads at once.

    Args:
        model: The model; changed in place until the block ends, also by an error.
        depth: Blocks to keep, 1..N; all if None.
        ff_keep: Intermediate channels to keep; all if None. Known for the namings of `adapter`.
        parts: The model's parts if `adapter` cannot find them.

    Yields:
        The model itself.

    Raises:
        ValueError: If `depth` or `ff_keep` is out of range, or no feed-forward network is recognised, or it
            is more than weights and biases (adapters, quantised weights, hooks).
        TypeError: If either is not an integer.
    """
    layers = (parts or adapter(model)).layers
    depth = len(layers) if depth is None else checked_count("depth", depth, len(layers), _DEPTH)
    if ff_keep is not None:
        ff_keep = checked_count("ff_keep", ff_keep)
    owner, name = _place_of(layers, model)
    # The two happen in one `try` so that a width that does not fit leaves the model untouched.
    narrowed: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        if ff_keep is not None:
            for layer in list(layers)[:depth]:
                _narrow(layer, ff_keep, narrowed)
        setattr(owner, name, layers[:depth])
        yield model
    finally:
        setattr(owner, name, layers)
        for parent, child, original in narrowed:
            setattr(parent, child, original)


def cut(model: Model, depth: int, *, parts: Parts | None = None) -> Model:
    """Copy the sub-model of the first `depth` blocks, sharing storage with the original.

    The copy has its own modules and configuration (`num_hidden_layers` is `depth`) and the same
    parameters, so it costs no memory and follows further training; deepcopy it to part them.

    Args:
        model: The full model; DistributedDataParallel and `torch.compile` around it are left behind.
        depth: Blocks to keep, 1..N.
        parts: The model's parts if `adapter` cannot find them.

    Returns:
        A model of the same class that works, saves and loads like any other.

    Raises:
        ValueError: If `depth` is out of range.
        TypeError: If it is not an integer.
    """
    model = without_shell(model)
    tensors = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    depth = checked_count("depth", depth)
    with submodel(model, depth, parts=parts):
        shallow = copy.deepcopy(model, tensors)
    config = getattr(shallow, "config", None)
    if config is not None:
        config.num_hidden_layers = depth
        if getattr(config, "layer_types", None) is not None:
            config.layer_types = config.layer_types[:depth]
    return shallow


def cut_state_dict(state_dict: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Keep what the sub-model of the first `depth` blocks needs of a full model's state dict.

    Args:
        state_dict: Keys with the block's index after `layers`, `h` or `blocks`.
        depth: Blocks to keep, at least 1 and at most as many as there are.

    Returns:
        The same tensors under the same keys, blocks from `depth` on left out. Save them with
        `safetensors.torch.save_file` beside a config with `num_hidden_layers = depth`.

    Raises:
        ValueError: If no key names a block, keys name several lists of blocks (an image encoder's beside
            the language model's), or `depth` is out of range.
        TypeError: If `depth` is not an integer.

    Examples:
        >>> import torch
        >>> full = {f"model.layers.{index}.weight": torch.ones(1) for index in range(4)}
        >>> list(cut_state_dict(full, 2))
        ['model.layers.0.weight', 'model.layers.1.weight']
    """
    matches = {key: match for key in state_dict if (match := _LAYER_KEY.match(key))}
    if not matches:
        raise ValueError("state_dict must have keys like 'model.layers.0.…' or 'transformer.h.0.…', got none")
    lists = sorted({match[1] for match in matches.values()})
    if len(lists) > 1:
        raise ValueError(f"state_dict must hold one list of blocks, got {lists}")
    index = {key: int(match[2]) for key, match in matches.items()}
    depth = checked_count("depth", depth, max(index.values()) + 1, _DEPTH)
    return {key: tensor for key, tensor in state_dict.items() if index.get(key, 0) < depth}


class _Narrowed(nn.Module):
    """A projection seen through its first `keep` output or input channels."""

    def __init__(self, full: nn.Module, keep: int, side: str) -> None:
        super().__init__()
        self.full, self.keep, self.side = full, keep, side

    def forward(self, inputs: Tensor) -> Tensor:
        weight, bias = _as_linear(self.full), getattr(self.full, "bias", None)
        if self.side == "out":
            return nn.functional.linear(
                inputs, weight[: self.keep], None if bias is None else bias[: self.keep]
            )
        return nn.functional.linear(inputs, weight[:, : self.keep], bias)


def _as_linear(projection: Any) -> Tensor:
    """The weight as (out, in); GPT-2's Conv1D keeps it the other way round."""
    weight: Tensor = projection.weight
    return weight.T if hasattr(projection, "nf") else weight


def _narrow(layer: nn.Module, keep: int, replaced: list[tuple[nn.Module, str, nn.Module]]) -> None:
    for module in layer.modules():
        for widen, narrow in _FEED_FORWARD:
            if all(isinstance(getattr(module, name, None), nn.Module) for name in (*widen, narrow)):
                width = _as_linear(getattr(module, narrow)).shape[1]
                checked_count("ff_keep", keep, width, "the intermediate width")
                for name, side in [*((name, "out") for name in widen), (narrow, "in")]:
                    full = getattr(module, name)
                    _check_projection(name, full)
                    replaced.append((module, name, full))
                    setattr(module, name, _Narrowed(full, keep, side))
                return
    raise ValueError(f"ff_keep needs a feed-forward network named like one of {_FEED_FORWARD} in every block")


def _check_projection(name: str, projection: Any) -> None:
    if not is_plain_linear(projection) and not hasattr(projection, "nf"):
        raise ValueError(
            f"ff_keep needs plain linear projections, got {name} of type {type(projection).__name__} "
            "(an adapter, quantised weights or a hook: merge or remove it)"
        )


def _place_of(layers: nn.ModuleList, model: nn.Module) -> tuple[nn.Module, str]:
    for owner in model.modules():
        for name, child in owner.named_children():
            if child is layers:
                return owner, name
    raise ValueError("parts.layers must be a module of the model, got one that it does not contain")
