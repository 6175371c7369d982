"""Pretrained weights: reading published checkpoints and grouping parameters for fine-tuning."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from poseidon_lite.config import ScOTConfig
from poseidon_lite.layers import TimeConditionedLayerNorm
from poseidon_lite.model import ScOT

# Tables that older files store and that follow from the window size.
DERIVED = ("relative_coords_table", "relative_position_index")
_WRAPPERS = re.compile(r"^((model|module|_orig_mod)\.)+")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# What depends on the channels of a problem, and so starts afresh on another one.
PROBLEM_SPECIFIC = ("embeddings.patch_embeddings.", "patch_recovery.")


def convert_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring a published state dict into the names of `ScOT`.

    Strips the prefixes of wrappers (`model.`, `module.`, `_orig_mod.`) and drops stored tables that are computed here.

    Args:
        state_dict: Tensors by name.

    Returns:
        A new dict holding the same tensors.

    Raises:
        ValueError: If two names are the same without their prefixes.

    Examples:
        >>> list(convert_state_dict({"model.patch_recovery.mixup.weight": torch.zeros(1)}))
        ['patch_recovery.mixup.weight']
    """
    names = {name: _WRAPPERS.sub("", name) for name in state_dict if not name.endswith(DERIVED)}
    if len(set(names.values())) < len(names):
        raise ValueError(
            f"state_dict must name each weight once, prefixes aside, got {sorted(names)[:4]} ..."
        )
    return {bare: state_dict[name] for name, bare in names.items()}


def load_poseidon(
    path: str | Path,
    *,
    in_channels: int | None = None,
    out_channels: int | None = None,
    config: ScOTConfig | None = None,
    generator: torch.Generator | None = None,
) -> ScOT:
    """Load a Poseidon checkpoint, ready for another number of channels if asked.

    As in the official code, tensors of the patch embedding and recovery whose shape the new channels change are
    initialised afresh and every other weight is kept.

    Args:
        path: A `.safetensors` file, or a folder with `model.safetensors` or with shards and their index. A
            `config.json` beside it is read. A name such as `"camlab-ethz/Poseidon-T"` that is no path here is
            looked up at the Hugging Face hub (extra `hub`).
        in_channels: Channels of the input fields; those of the checkpoint if `None`.
        out_channels: Channels of the output fields; those of the checkpoint if `None`.
        config: Architecture of the checkpoint. If `None` it is read from `config.json` and the shapes of the
            weights; without that file, the image size is taken as 128 and the window as 16.
        generator: Source of the random numbers for what is initialised afresh.

    Returns:
        The model on the CPU, in the dtype of the checkpoint, in training mode.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If `path` can only be a name at the hub and the extra `hub` is not installed.
        ValueError: If a file is not safetensors, or weights are missing, unknown or of another shape than the
            architecture has; all are named.
    """
    if not Path(path).exists() and _HUB_ID.fullmatch(str(path)) and not str(path).endswith(".safetensors"):
        path = _from_hub(str(path))
    path = Path(path)
    weights = convert_state_dict(_read(path))
    beside = (path if path.is_dir() else path.parent) / "config.json"
    stored = config if config is not None else _infer_config(weights, beside)
    wanted = replace(
        stored,
        in_channels=stored.in_channels if in_channels is None else in_channels,
        out_channels=stored.out_channels if out_channels is None else out_channels,
    )
    model = ScOT(wanted, generator=generator)
    own = model.state_dict()
    fresh = {
        name
        for name in own.keys() & weights.keys()
        if own[name].shape != weights[name].shape and wanted != stored and name.startswith(PROBLEM_SPECIFIC)
    }
    problems = {
        "missing": sorted(own.keys() - weights.keys()),
        "unknown": sorted(weights.keys() - own.keys()),
        "of another shape": sorted(
            name for name in own.keys() & weights.keys() - fresh if own[name].shape != weights[name].shape
        ),
    }
    if any(problems.values()):
        told = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in problems.items() if names)
        raise ValueError(f"path must hold the weights of {wanted}, got {path} with weights {told}")
    model.to(weights["patch_recovery.mixup.weight"].dtype)
    model.load_state_dict(
        {name: model.state_dict()[name] if name in fresh else weights[name] for name in own}
    )
    return model


def save_poseidon(model: ScOT, folder: str | Path) -> None:
    """Write what `load_poseidon` reads: `model.safetensors` and, with all that shapes do not tell, `config.json`.

    Args:
        model: The network; of a wrapped one, its weights are found by their names.
        folder: Made if it is not there.

    Raises:
        TypeError: If there is no `ScOT` inside `model`.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_poseidon(ScOT(ScOTConfig.tiny(window_size=2)), folder)
        ...     load_poseidon(folder).config.window_size
        2
    """
    inner = next((module for module in model.modules() if isinstance(module, ScOT)), None)
    if inner is None:
        raise TypeError(f"model must be a ScOT or hold one, got {type(model).__name__}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.contiguous() for name, tensor in inner.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    told = asdict(inner.config) | {"residual_model": "convnext", "use_absolute_embeddings": False}
    (folder / "config.json").write_text(json.dumps(told, indent=2) + "\n")


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, or of the file or the shards in a folder."""
    file, index = path / "model.safetensors" if path.is_dir() else path, path / "model.safetensors.index.json"
    if not file.is_file() and index.is_file():
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        return {name: tensor for shard in shards for name, tensor in _read(path / shard).items()}
    if not file.is_file():
        raise FileNotFoundError(
            f"path must be a safetensors file or a folder with model.safetensors, got {path}"
        )
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"path must be a safetensors file, got {file}: {error}") from error


def _from_hub(name: str) -> str:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ImportError(
            f"path {name!r} is no file here; to look it up at the hub: pip install 'poseidon-lite[hub]'"
        ) from error
    return str(snapshot_download(name, allow_patterns=["config.json", "model*.safetensors*"]))


def _infer_config(weights: Mapping[str, Tensor], config_file: Path) -> ScOTConfig:
    projection = weights.get("embeddings.patch_embeddings.projection.weight")
    recovery = weights.get("patch_recovery.mixup.weight")
    if projection is None or recovery is None:
        raise ValueError(f"path must hold the weights of a scOT network, got the names {sorted(weights)[:5]}")
    stages = _count(weights, "encoder.layers.{}.")
    blocks = "encoder.layers.{}.blocks."
    first = "encoder.layers.0.blocks.0."
    telling = [first + "intermediate.dense.bias"]
    telling += [blocks.format(i) + "0.attention.self.logit_scale" for i in range(stages)]
    if absent := [name for name in telling if name not in weights]:
        raise ValueError(f"path must hold the weights of a scOT network, missing: {', '.join(absent)}")
    inferred: dict[str, Any] = {
        "patch_size": projection.shape[-1],
        "in_channels": projection.shape[1],
        "out_channels": recovery.shape[0],
        "embed_dim": projection.shape[0],
        "depths": tuple(_count(weights, blocks.format(i) + "{}.") for i in range(stages)),
        "num_heads": tuple(len(weights[name]) for name in telling[1:]),
        "skip_blocks": tuple(_count(weights, f"residual_blocks.{i}." + "{}.") for i in range(stages)),
        "mlp_ratio": weights[first + "intermediate.dense.bias"].shape[0] / projection.shape[0],
        "qkv_bias": first + "attention.self.query.bias" in weights,
        "use_conditioning": "embeddings.norm.weight.weight" in weights,
    }
    if config_file.is_file():
        told = json.loads(config_file.read_text())
        if told.get("use_absolute_embeddings") or told.get("residual_model", "convnext") != "convnext":
            raise ValueError(
                "path must hold a network without absolute position embeddings and with ConvNeXt skip blocks, "
                f"got {config_file}"
            )
        same_name = ("image_size", "window_size", "drop_path_rate", "layer_norm_eps", "learn_residual")
        inferred.update({name: told[name] for name in same_name if name in told})
        if not inferred["use_conditioning"]:
            inferred["learn_residual"] = False  # the official code ignores the wish without a lead time
    return ScOTConfig(**inferred)


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    """How many of the numbered submodules `pattern.format(0)`, `pattern.format(1)`, ... exist."""
    number = 0
    while any(name.startswith(pattern.format(number)) for name in weights):
        number += 1
    return number


def finetune_groups(
    model: nn.Module,
    learning_rate: float = 5e-5,
    learning_rate_embedding: float = 5e-4,
    learning_rate_time: float = 5e-4,
    weight_decay: float = 1e-6,
) -> list[dict[str, Any]]:
    """Parameter groups of the fine-tuning recipe, for `torch.optim.AdamW` or any other optimizer.

    Three learning rates (paper, appendix on fine-tuning; assignment as in the official code): embedding and
    recovery, time-conditioned norms, everything else. Norms and names with `bias` in them (the position-bias
    network's too) do not decay, except within embedding and recovery; layer scales and logit scales do decay.

    Args:
        model: A network with `ScOT` inside; wrappers may prefix the names.
        learning_rate: Of the pretrained body.
        learning_rate_embedding: Of embedding and recovery.
        learning_rate_time: Of the time-conditioned norms elsewhere.
        weight_decay: Of what decays.

    Returns:
        Groups with the keys `name`, `params`, `lr`, `weight_decay`; each trainable parameter is in exactly one,
        and no group is empty.

    Raises:
        ValueError: If a rate or the decay is negative, or nothing is trainable.

    Examples:
        >>> optimizer = torch.optim.AdamW(finetune_groups(ScOT(ScOTConfig.tiny())))
        >>> [(group["name"], group["lr"]) for group in optimizer.param_groups]
        [('embedding', 0.0005), ('decay', 5e-05), ('time', 0.0005), ('no decay', 5e-05)]
    """
    settings = {
        "embedding": (learning_rate_embedding, weight_decay),
        "decay": (learning_rate, weight_decay),
        "time": (learning_rate_time, 0.0),
        "no decay": (learning_rate, 0.0),
    }
    for name, value in {
        "learning_rate": learning_rate,
        "learning_rate_embedding": learning_rate_embedding,
        "learning_rate_time": learning_rate_time,
        "weight_decay": weight_decay,
    }.items():
        if not value >= 0:
            raise ValueError(f"{name} must not be negative, got {value}")
    time = _parameters_within(model, TimeConditionedLayerNorm)
    norms = time | _parameters_within(model, nn.LayerNorm)
    members: dict[str, list[nn.Parameter]] = {name: [] for name in settings}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if "embeddings" in name or "patch_recovery" in name:
            group = "embedding"
        elif parameter in time:
            group = "time"
        else:
            group = "no decay" if parameter in norms or "bias" in name else "decay"
        members[group].append(parameter)
    if not any(members.values()):
        raise ValueError("model must have trainable parameters, got none")
    return [
        {"name": name, "params": members[name], "lr": rate, "weight_decay": decay}
        for name, (rate, decay) in settings.items()
        if members[name]
    ]


def _parameters_within(model: nn.Module, kind: type[nn.Module]) -> set[nn.Parameter]:
    return {p for module in model.modules() if isinstance(module, kind) for p in module.parameters()}
