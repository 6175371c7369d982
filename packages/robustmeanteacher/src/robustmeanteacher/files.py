"""The state of an adapter, its optimizer's included, as a safetensors file."""

from __future__ import annotations

import json
from collections.abc import Callable
from os import PathLike
from typing import Any

from torch import Tensor


def write_state(state: dict[str, Any], path: str | PathLike[str]) -> None:
    """Write what `state_dict()` of an adapter gave: tensors as such, other numbers and the config in the header."""
    save_file, _ = _safetensors()
    state = dict(state)
    extra = state.pop("_extra_state")
    optimizer = extra["optimizer"]
    tensors = {f"adapter.{name}": tensor for name, tensor in state.items()}
    rest: dict[str, dict[str, Any]] = {}
    for index, entries in optimizer["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            else:
                rest.setdefault(str(index), {})[name] = value
    header = json.dumps({"param_groups": optimizer["param_groups"], "state": rest})
    # Tied weights share memory, which the format has no word for.
    copies = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    save_file(copies, path, {"optimizer": header, "config": json.dumps(extra["config"])})


def read_state(path: str | PathLike[str], device: str) -> dict[str, Any]:
    """Read what `write_state` wrote."""
    _, safe_open = _safetensors()
    with safe_open(path, framework="pt", device=device) as file:
        metadata = file.metadata() or {}
        if "optimizer" not in metadata:
            raise ValueError(
                f"path must name a file that save() wrote, got {path}: it holds no state of an optimizer"
            )
        header = json.loads(metadata["optimizer"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    optimizer = {int(index): entries for index, entries in header["state"].items()}
    state: dict[str, Any] = {}
    for name, tensor in tensors.items():
        owner, rest = name.split(".", 1)
        if owner == "adapter":
            state[rest] = tensor
        else:
            index, entry = rest.split(".", 1)
            optimizer.setdefault(int(index), {})[entry] = tensor
    state["_extra_state"] = {"optimizer": {"state": optimizer, "param_groups": header["param_groups"]}}
    if "config" in metadata:  # version 0.1 did not write it
        state["_extra_state"]["config"] = json.loads(metadata["config"])
    return state


def _safetensors() -> tuple[Callable[..., None], Callable[..., Any]]:
    try:
        from safetensors import safe_open
        from safetensors.torch import save_file
    except ImportError as error:
        raise ImportError("saving needs safetensors: pip install 'robustmeanteacher[safetensors]'") from error
    return save_file, safe_open
