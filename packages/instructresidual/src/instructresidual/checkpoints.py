"""A new checkpoint from an old one and a residual: streamed, with all that lies beside the weights."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from instructresidual._files import ShardWriter, in_threads, whole_or_not
from instructresidual.deltas import spans
from instructresidual.matching import Plan
from instructresidual.sources import Source, read_json
from instructresidual.sums import Sums

_TOKENIZER = (
    "tokenizer",
    "special_tokens_map",
    "added_tokens",
    "chat_template",
    "vocab.",
    "merges",
    "spiece",
)
_ENDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf")


def write_checkpoint(
    sums: Sums,
    out: Path,
    instruct: str | os.PathLike[str] | None,
    overwrite: bool,
    max_shard_bytes: int,
    num_workers: int,
) -> dict[str, float]:
    """Write the result as a checkpoint that appears whole or not at all; return the share of increments lost."""
    target, lost = sums.target, {}
    canonical = {own: target.canonical(plain) for plain, own in target.own_names.items()}
    layout = {}
    for own, readable in target.everything.items():
        first = canonical[own]
        shape = sums.shape(first) if first is not None else tuple(readable.shape)
        layout[own] = (readable.dtype, shape)
    with whole_or_not(out, overwrite=overwrite) as folder:
        writer = ShardWriter(folder, layout, "model", max_shard_bytes)

        def write(own: str) -> None:
            first, counts = canonical[own], [0, 0]
            if first is None or first not in sums.plan.matches:
                for start, end in spans(layout[own][1]):
                    writer.write(own, start, target.everything[own].read(start, end))
                return
            for start, values, piece_lost, piece_wanted in sums.pieces(first):
                writer.write(own, start, values)
                counts = [counts[0] + piece_lost, counts[1] + piece_wanted]
            lost[first] = counts[0] / max(counts[1], 1)

        try:
            in_threads(write, list(layout), num_workers)
            writer.close()
        finally:
            writer.abandon()
        _copy_files(target, folder, Path(instruct) if instruct is not None else None, sums.plan)
    return {own: lost[own] for own in sums.plan.matches}


def _copy_files(target: Source, folder: Path, instruct: Path | None, plan: Plan) -> None:
    """Bring along what is not weights; tokenizer and ends of text from the instruct side, if there is one."""
    if target.folder is None or not target.folder.is_dir():
        return
    for source in filter(None, (target.folder, instruct)):
        for path in source.iterdir():
            ours = (
                source == target.folder
                or path.name.startswith(_TOKENIZER)
                or path.name == "generation_config.json"
            )
            weights = path.name.endswith((*_WEIGHTS, ".index.json")) or path.name.startswith(".")
            if path.is_file() and ours and not weights:
                shutil.copy2(path, folder / path.name)
    config = read_json(folder / "config.json")
    if not config:
        return
    if instruct is not None:
        theirs = read_json(instruct / "config.json")
        config |= {key: theirs[key] for key in _ENDS if key in theirs}
    grown = [rows.size for own, rows in plan.vocabulary.items() if rows.size > target.tensors[own].shape[0]]
    for part in (config, config.get("text_config") or {}):
        if grown and "vocab_size" in part:
            part["vocab_size"] = max(grown)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
