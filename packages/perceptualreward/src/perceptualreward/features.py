"""Features of frames from layers of a network that is there already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def collect_activations(module: nn.Module, layer_names: Sequence[str], batch: Any) -> Tensor:
    """The activations of some layers, flattened and side by side.

    The module is run in evaluation mode and put back; nothing is kept on it.

    Args:
        module: Any network.
        layer_names: Names of submodules, as `named_modules` gives them; `""` is the whole.
        batch: What the network is called with, a tensor of B frames; a dict is passed as keywords.

    Returns:
        (B, F): for each layer in the order of the names all that it gives for a frame.

    Raises:
        ValueError: If a name is unknown or given twice, none is given, or a layer is not reached, is reached more than
            once, or gives no tensor of B rows.

    Examples:
        >>> net = nn.Sequential(nn.Linear(3, 5), nn.ReLU())
        >>> collect_activations(net, ["0", "1"], torch.zeros(2, 3)).shape
        torch.Size([2, 10])
    """
    known, names = dict(module.named_modules()), list(layer_names)
    if not names or len(set(names)) != len(names):
        raise ValueError(f"layer_names must be different names, one at least, got {names}")
    for name in names:
        if name not in known:
            raise ValueError(f"layer_names must be submodules of the module, got {name!r}")
    found: dict[str, Tensor] = {}

    def keep(name: str, output: Any) -> None:
        if name in found:
            raise ValueError(f"layer_names must be called once a pass, but {name!r} is called again")
        if not isinstance(output, Tensor) or output.dim() == 0:
            raise ValueError(f"layer_names must give tensors, but {name!r} gives {type(output).__name__}")
        found[name] = output.detach().flatten(1) if output.dim() > 1 else output.detach()[:, None]

    modes = {part: part.training for part in module.modules()}
    handles = [
        known[name].register_forward_hook(lambda _, __, output, name=name: keep(name, output))
        for name in names
    ]
    try:
        module.eval()
        module(**batch) if isinstance(batch, dict) else module(batch)
    finally:
        for handle in handles:
            handle.remove()
        for part, mode in modes.items():
            part.training = mode
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"layer_names must be reached by the pass, but {missing} are not")
    rows = {len(one) for one in found.values()}
    if len(rows) > 1:
        raise ValueError(f"layer_names must give a row a frame, got {sorted(rows)} rows")
    return torch.cat([found[name] for name in names], dim=1)
