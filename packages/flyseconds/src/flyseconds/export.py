"""Policies as plain C, for a microcontroller."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

_ACTIVATIONS = {
    nn.Tanh: "tanhf(sum)",
    nn.ReLU: "sum > 0.0f ? sum : 0.0f",
    nn.Identity: "sum",
}
# Words that are no names in C, and the one function that the file calls.
_RESERVED = re.compile(
    "auto|break|case|char|const|continue|default|do|double|else|enum|extern|float|for|goto|if|inline|int|long"
    "|register|restrict|return|short|signed|sizeof|static|struct|switch|typedef|union|unsigned|void|volatile"
    "|while|main|tanhf"
)


def export_c(
    actor: nn.Module,
    path: str | os.PathLike[str] | None = None,
    *,
    name: str = "policy",
    self_test_observation: Tensor | None = None,
) -> str:
    """Write a policy as one C file.

    The file holds the weights as `static const float` arrays and one function,
    `void NAME(const float observation[D], float action[K])`. It allocates nothing and needs of the C library
    only `tanhf`. With a `self_test_observation` it also holds that observation, the action torch computes for
    it, and `float NAME_self_test(void)`, which gives the largest difference between that action and the one
    computed on the spot: call it on the target before the first flight.

    Args:
        actor: `nn.Sequential` of `nn.Linear` with `nn.Tanh`, `nn.ReLU` or `nn.Identity` between or after them,
            such as `TD3Agent.policy()`. Subclasses, parametrizations and hooks may compute something else and
            are refused.
        path: Where to write the file; nowhere if None.
        name: Of the function, a C identifier.
        self_test_observation: (D,).

    Returns:
        The text of the file.

    Raises:
        TypeError: If `actor` is not an `nn.Sequential`.
        ValueError: If a layer is of another kind or has hooks, a weight is not finite, a shape does not fit or
            `name` is no C identifier.

    Examples:
        >>> text = export_c(nn.Sequential(nn.Linear(146, 4), nn.Tanh()), name="fly")
        >>> "void fly(const float observation[146], float action[4])" in text
        True
    """
    if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) or _RESERVED.fullmatch(name):
        raise ValueError(f"name must be a C identifier, got {name!r}")
    layers = _layers(actor)
    inputs, outputs = layers[0][0].in_features, layers[-1][0].out_features
    parts = [
        f"/* A policy of {inputs} inputs and {outputs} outputs, written by flyseconds. */",
        "#include <math.h>\n" if any(isinstance(act, nn.Tanh) for _, act in layers) else "",
        *_weights(layers, name),
        *_function(layers, name),
    ]
    if self_test_observation is not None:
        self_test_observation = torch.as_tensor(self_test_observation)
        if self_test_observation.shape != (inputs,):
            raise ValueError(
                f"self_test_observation must have shape ({inputs},), got {tuple(self_test_observation.shape)}"
            )
        parts += _self_test(actor, self_test_observation, outputs, name)
    text = "\n".join(part for part in parts if part)
    if path is not None:
        Path(path).write_text(text, encoding="ascii")
    return text


def _layers(actor: nn.Module) -> list[tuple[nn.Linear, nn.Module]]:
    """Pairs of a linear layer and what follows it."""
    if type(actor) is not nn.Sequential:
        raise TypeError(f"actor must be an nn.Sequential, got {type(actor).__name__}")
    for key, module in actor.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise ValueError(f"layer {key or 'actor'} must have no forward hooks, which C cannot call")
    layers: list[tuple[nn.Linear, nn.Module]] = []
    last: nn.Module | None = None
    for key, module in actor.named_children():
        if type(module) is nn.Linear:
            if layers and layers[-1][0].out_features != module.in_features:
                raise ValueError(
                    f"layer {key} must take {layers[-1][0].out_features} inputs, takes {module.in_features}"
                )
            layers.append((module, nn.Identity()))
        elif type(module) in _ACTIVATIONS and type(last) is nn.Linear:
            layers[-1] = (layers[-1][0], module)
        else:
            raise ValueError(
                f"layer {key} must be a Linear, or a Tanh, ReLU or Identity after one, got {module}"
            )
        last = module
    if not layers:
        raise ValueError("actor must hold at least one Linear layer, holds none")
    return layers


def _weights(layers: list[tuple[nn.Linear, nn.Module]], name: str) -> Iterator[str]:
    for index, (linear, _) in enumerate(layers):
        yield _array(f"{name}_weight_{index}", linear.weight)
        bias = torch.zeros(linear.out_features) if linear.bias is None else linear.bias
        yield _array(f"{name}_bias_{index}", bias)


def _array(name: str, values: Tensor) -> str:
    if not bool(values.float().isfinite().all()):
        raise ValueError(f"{name} must be finite in float32")
    # Nine digits give every float32 back exactly.
    numbers = [f"{value:.9e}f" for value in values.detach().flatten().float().tolist()]
    lines = [", ".join(numbers[start : start + 6]) for start in range(0, len(numbers), 6)]
    return f"static const float {name}[{len(numbers)}] = {{\n    " + ",\n    ".join(lines) + "\n};"


def _function(layers: list[tuple[nn.Linear, nn.Module]], name: str) -> Iterator[str]:
    inputs, outputs = layers[0][0].in_features, layers[-1][0].out_features
    yield f"\nvoid {name}(const float observation[{inputs}], float action[{outputs}]) {{"
    source = "observation"
    for index, (linear, activation) in enumerate(layers):
        target = "action" if index == len(layers) - 1 else f"hidden_{index}"
        if target != "action":
            yield f"    float {target}[{linear.out_features}];"
        yield f"    for (int i = 0; i < {linear.out_features}; i++) {{"
        yield f"        float sum = {name}_bias_{index}[i];"
        yield f"        for (int j = 0; j < {linear.in_features}; j++) {{"
        yield f"            sum += {name}_weight_{index}[i * {linear.in_features} + j] * {source}[j];"
        yield "        }"
        yield f"        {target}[i] = {_ACTIVATIONS[type(activation)]};"
        yield "    }"
        source = target
    yield "}\n"


def _self_test(actor: nn.Module, observation: Tensor, outputs: int, name: str) -> Iterator[str]:
    # In float32, as the C code computes, whatever the dtype of the actor.
    single = copy.deepcopy(actor).float()
    with torch.no_grad():
        action = single(observation.to(next(single.parameters()))[None])[0]
    yield _array(f"{name}_test_observation", observation)
    yield _array(f"{name}_test_action", action)
    yield f"\nfloat {name}_self_test(void) {{"
    yield f"    float action[{outputs}], largest = 0.0f;"
    yield f"    {name}({name}_test_observation, action);"
    yield f"    for (int i = 0; i < {outputs}; i++) {{"
    yield f"        const float difference = action[i] - {name}_test_action[i];"
    yield "        const float size = difference < 0.0f ? -difference : difference;"
    yield "        if (!(size <= largest)) {"
    yield "            largest = size;"
    yield "        }"
    yield "    }"
    yield "    return largest;"
    yield "}\n"
