"""A residual on the disk: safetensors for its tensors, `residual.json` for all else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from instructresidual._files import ShardWriter, Slot, in_threads, read_header, whole_or_not
from instructresidual.ancestry import Ancestor
from instructresidual.deltas import Delta, Dense, restore, spans
from instructresidual.naming import listed
from instructresidual.residuals import Residual, Tokens
from instructresidual.sources import read_json

INDEX = "residual.json"


def save_residual(
    residual: Residual, path: Path, overwrite: bool, max_shard_bytes: int, num_workers: int
) -> None:
    """Write a folder, piece by piece; it appears whole or not at all."""
    if path.resolve() in {folder.resolve() for folder in residual.files()}:
        raise ValueError(f"path must not be where the residual is read from, got {path}: save it elsewhere")
    parts = dict(_parts(residual))
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in parts.items()}
    streamed = {name: delta for name, delta in residual.deltas.items() if not delta.parts()}
    layout |= {name: (delta.dtype, delta.shape) for name, delta in streamed.items()}
    with whole_or_not(path, overwrite=overwrite) as folder:
        writer = ShardWriter(folder, layout, "residual", max_shard_bytes)
        try:
            for name, tensor in parts.items():
                writer.write(name, 0, tensor.reshape(-1))
            _write_all(writer, streamed, num_workers)
            writer.close()
        finally:
            writer.abandon()
        (folder / INDEX).write_text(json.dumps(_description(residual, writer.names), indent=1) + "\n")


def load_residual(folder: Path) -> Residual:
    """Open a folder; tensors are read when asked for."""
    found = read_json(folder / INDEX)
    if not found:
        there = listed(sorted(file.name for file in folder.iterdir())) if folder.is_dir() else "nothing"
        raise ValueError(f"path must be a folder with {INDEX}, {folder} holds {there or 'nothing'}")
    slots: dict[str, Slot] = {}
    for file in found["files"]:
        slots |= read_header(folder / file)
    deltas = {name: _restored(name, entry, slots) for name, entry in found["tensors"].items()}
    shapes = {name: tuple(shape) for name, shape in found["base_shapes"].items()}
    tokens = found["tokens"]
    return Residual(
        deltas=deltas,
        ancestor=Ancestor(shapes, {name: slots[f"{name}::sample"].read() for name in shapes}),
        added={name: _whole(slots[f"{name}::added"]) for name in found["added"]},
        ties=found["ties"],
        renamed=found["renamed"],
        skipped=tuple(found["skipped"]),
        tokens=Tokens(tokens["base"], tuple(tokens["added"])) if tokens else None,
        errors=found["errors"],
        error=found["error"],
    )


def _parts(residual: Residual) -> Iterator[tuple[str, Tensor]]:
    for name, delta in residual.deltas.items():
        for part, tensor in delta.parts().items():
            yield f"{name}::{part}", tensor
    for kind, tensors in (("sample", residual.ancestor.samples), ("added", residual.added)):
        for name, tensor in tensors.items():
            yield f"{name}::{kind}", tensor


def _description(residual: Residual, files: list[str]) -> dict[str, Any]:
    tensors = {
        name: {
            "kind": delta.kind,
            "shape": list(delta.shape),
            "parts": list(delta.parts()),
            **delta.settings(),
        }
        for name, delta in residual.deltas.items()
    }
    return {
        "format": 1,
        "files": files,
        "base_fingerprint": residual.ancestor.fingerprint,
        "error": residual.error,
        "errors": dict(residual.errors),
        "ties": dict(residual.ties),
        "renamed": dict(residual.renamed),
        "skipped": list(residual.skipped),
        "added": list(residual.added),
        "tokens": {"base": dict(residual.tokens.base), "added": list(residual.tokens.added)}
        if residual.tokens
        else None,
        "tensors": tensors,
        "base_shapes": {name: list(shape) for name, shape in residual.ancestor.shapes.items()},
    }


def _write_all(writer: ShardWriter, deltas: Mapping[str, Delta], num_workers: int) -> None:
    """Write tensors piece by piece, several at a time."""

    def write(name: str) -> None:
        for first, last in spans(deltas[name].shape):
            writer.write(name, first, deltas[name].read(first, last))

    in_threads(write, list(deltas), num_workers)


def _restored(name: str, entry: Mapping[str, Any], slots: Mapping[str, Slot]) -> Delta:
    if entry["kind"] == "dense":
        return Dense(slots[name])
    parts = {part: _whole(slots[f"{name}::{part}"]) for part in entry["parts"]}
    return restore(entry["kind"], parts, dict(entry))


def _whole(slot: Slot) -> Tensor:
    return slot.read().reshape(slot.shape)
