"""One face for what holds weights: a module, a state dict, a checkpoint folder or a safetensors file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from instructresidual import _files
from instructresidual.naming import (
    group_of,
    has_token_rows,
    is_adapter,
    is_buffer,
    is_quantised,
    listed,
    plain_name,
)
from instructresidual.numerics import CHUNK, FLOATS

Weights: TypeAlias = nn.Module | Mapping[str, Tensor] | str | os.PathLike[str]
Vocabulary: TypeAlias = Mapping[str, int]


class Readable(Protocol):
    """A tensor that can be read in part."""

    @property
    def dtype(self) -> torch.dtype:
        """Its dtype."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    def read(self, first: int = 0, last: int | None = None) -> Tensor:
        """Elements `first` to `last` of the flattened tensor."""


class InMemory:
    """A tensor that is there already."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()
        self.dtype, self.shape = tensor.dtype, tuple(tensor.shape)
        self._flat = self.tensor.reshape(-1) if tensor.is_contiguous() else None

    def read(self, first: int = 0, last: int | None = None) -> Tensor:
        """Elements `first` to `last` of the flattened tensor; of a contiguous one, a view."""
        flat = self.tensor.reshape(-1) if self._flat is None else self._flat
        return flat[first:last]


class Source:
    """Floating-point parameters by name, each once; buffers and integers are left out and named.

    Args:
        label: What error messages call it.
        tensors: Every tensor by the name its owner uses.
        aliases: Second names of tied tensors, and the first.
        folder: Where it was read from.
        ties_head: Whether a head that is not there is the embedding.
    """

    def __init__(
        self,
        label: str,
        tensors: Mapping[str, Readable],
        aliases: Mapping[str, str],
        folder: Path | None = None,
        ties_head: bool = False,
    ) -> None:
        self.label, self.folder, self.ties_head = label, folder, ties_head
        self.own_names: dict[str, str] = {}
        for name in dict.fromkeys((*tensors, *aliases)):
            if plain_name(name) in self.own_names:
                raise ValueError(
                    f"{label} has two tensors called {plain_name(name)!r} inside of its wrappers"
                )
            self.own_names[plain_name(name)] = name
        self.aliases = {plain_name(name): plain_name(first) for name, first in aliases.items()}
        self.tensors = {}
        self.skipped = []
        self.everything = dict(tensors)
        for name, tensor in tensors.items():
            if name in aliases:
                continue
            if _is_parameter(name, tensor, label):
                self.tensors[plain_name(name)] = tensor
            else:
                self.skipped.append(plain_name(name))

    def canonical(self, name: str) -> str | None:
        """Find the name under which the tensor called `name` is listed: the first, if it is tied."""
        if name in self.tensors:
            return name
        if name in self.aliases:
            return self.aliases[name]
        if self.ties_head and group_of(name) == "head" and name.endswith("weight"):
            embeddings = [key for key in self.tensors if has_token_rows(key) and group_of(key) == "embed"]
            heads = [key for key in self.tensors if group_of(key) == "head" and key.endswith("weight")]
            return embeddings[0] if len(embeddings) == 1 and not heads else None
        return None


def open_source(weights: Any, argument: str) -> Source:
    """Open weights of any kind.

    Raises:
        ValueError: If they are quantised, on the meta device, in an adapter, or the files are not safetensors.
        TypeError: If they are none of the kinds.
    """
    if isinstance(weights, Source):
        return weights
    if isinstance(weights, nn.Module):
        return _module(weights, argument)
    if isinstance(weights, Mapping):
        return _state_dict(weights, argument)
    if isinstance(weights, str | os.PathLike):
        return _checkpoint(Path(weights), argument)
    raise TypeError(
        f"{argument} must be a module, a state dict or the path of a checkpoint, got {type(weights).__name__}"
    )


def _module(module: nn.Module, argument: str) -> Source:
    tensors: dict[str, Readable] = {}
    aliases: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if id(parameter) in first:
            aliases[name] = first[id(parameter)]
        else:
            first[id(parameter)] = name
            tensors[name] = _checked(parameter, name, argument)
    return Source(argument, tensors, aliases)


def _state_dict(state: Mapping[str, Any], argument: str) -> Source:
    tensors: dict[str, Readable] = {}
    aliases: dict[str, str] = {}
    first: dict[Any, str] = {}
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise TypeError(
                f"{argument} must map names to tensors, got {type(tensor).__name__} for {name!r}"
                "; if the weights are an entry of a larger checkpoint, pass that entry"
            )
        readable = _checked(tensor, name, argument)
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() and place in first:
            aliases[name] = first[place]
        else:
            first[place] = name
            tensors[name] = readable
    return Source(argument, tensors, aliases)


def _checkpoint(path: Path, argument: str) -> Source:
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ValueError(f"{argument} must be a folder or a .safetensors file, got {path}")
        return Source(f"{argument} ({path})", dict(_files.read_header(path)), {}, path)
    if not path.is_dir():
        raise ValueError(f"{argument} must be a folder or a file that exists, got {path}")
    config = read_json(path / "config.json")
    if config.get("quantization_config"):
        raise ValueError(f"{argument} is quantised (quantization_config in {path}): dequantise it first")
    label = f"{argument} ({path})"
    slots: dict[str, Readable] = {}
    for file, names in _shards(path, argument).items():
        header = _files.read_header(file)
        if missing := [name for name in names or () if name not in header]:
            raise ValueError(
                f"{label}: the index places {listed(missing)} in {file.name}, which has not got them"
            )
        slots |= {name: header[name] for name in names or header}
    # transformers leaves the flag out of config.json where it is true by default
    text = config.get("text_config") or {}
    tied = (
        bool(config) and config.get("tie_word_embeddings", text.get("tie_word_embeddings", True)) is not False
    )
    return Source(label, slots, _written_twice(slots) if tied else {}, path, tied)


def _shards(path: Path, argument: str) -> dict[Path, list[str] | None]:
    """The files of a folder and the tensors that the index, if there is one, takes from each."""
    index = path / "model.safetensors.index.json"
    if (path / "model.safetensors").exists():
        return {path / "model.safetensors": None}
    if index.exists():
        by_file: dict[str, list[str]] = {}
        for name, file in read_json(index)["weight_map"].items():
            by_file.setdefault(file, []).append(name)
        if missing := [file for file in by_file if not (path / file).exists()]:
            raise ValueError(f"{argument} ({path}): {listed(missing)}, which the index names, is missing")
        return {path / file: names for file, names in by_file.items()}
    files = sorted(path.glob("*.safetensors"))
    if (path / "adapter_config.json").exists():
        raise ValueError(f"{argument} ({path}) is an adapter: merge it into its base model first")
    if len(files) == 1:
        return {files[0]: None}
    there = listed(sorted(file.name for file in path.iterdir())) or "nothing"
    raise ValueError(
        f"{argument} must hold model.safetensors or model.safetensors.index.json, {path} holds {there}"
        "; save pickled weights (.bin, .pt) as safetensors first"
    )


def _written_twice(slots: Mapping[str, Readable]) -> dict[str, str]:
    """A head that is tied by the configuration and written out all the same, with the bytes of the embedding."""
    embeddings = [name for name in slots if has_token_rows(name) and group_of(plain_name(name)) == "embed"]
    heads = [name for name in slots if group_of(plain_name(name)) == "head" and name.endswith("weight")]
    if len(embeddings) != 1 or len(heads) != 1:
        return {}
    embedding, head = slots[embeddings[0]], slots[heads[0]]
    if (embedding.shape, embedding.dtype) != (head.shape, head.dtype):
        return {}
    size = prod(head.shape)
    pieces = ((first, min(first + CHUNK, size)) for first in range(0, size, CHUNK))
    same = all(torch.equal(embedding.read(*piece), head.read(*piece)) for piece in pieces)
    return {heads[0]: embeddings[0]} if same else {}


def _checked(tensor: Tensor, name: str, argument: str) -> InMemory:
    if tensor.is_meta:
        raise ValueError(
            f"{argument}: {name} is on the meta device and has no values: load the weights first"
        )
    if type(tensor) not in (Tensor, nn.Parameter):
        raise ValueError(
            f"{argument}: {name} is a {type(tensor).__name__}, not a plain tensor: dequantise or gather it first"
            " (FSDP.summon_full_params, full_tensor)"
        )
    return InMemory(tensor)


def _is_parameter(name: str, tensor: Readable, label: str) -> bool:
    if is_adapter(name):
        raise ValueError(f"{label}: {name} belongs to an adapter: merge it first (merge_and_unload)")
    if is_buffer(name, len(tensor.shape)):
        return False
    if (
        is_quantised(name)
        or (tensor.dtype.itemsize == 1 and tensor.dtype != torch.bool)
        or tensor.dtype.is_complex
    ):
        raise ValueError(f"{label}: {name} is of dtype {tensor.dtype}, as if quantised: dequantise it first")
    return tensor.dtype in FLOATS


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file says; nothing, if there is none."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def vocabulary_of(tokenizer: Any, argument: str) -> dict[str, int]:
    """Tokens and their ids, of a tokenizer with `get_vocab` or of a mapping.

    Raises:
        TypeError: If it is neither.
    """
    found = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else tokenizer
    if not isinstance(found, Mapping):
        raise TypeError(
            f"{argument} must have get_vocab() or map tokens to ids, got {type(tokenizer).__name__}"
        )
    return {token: int(index) for token, index in found.items()}
