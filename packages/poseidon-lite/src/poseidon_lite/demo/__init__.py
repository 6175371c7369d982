"""The evidence: few-trajectory fine-tuning of a pretrained scOT against scOT and an FNO from scratch."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

from poseidon_lite.demo.judgement import conditions
from poseidon_lite.demo.run import Run
from poseidon_lite.demo.settings import PRESETS

__all__ = ["conditions", "demo"]


def demo(
    preset: str = "laptop",
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[float, str], None] | None = None,
) -> dict[str, Any]:
    """Pretrain scOT on Navier-Stokes flow, then learn the flow of a thicker fluid from few trajectories.

    Arms with the same trajectories, batches, most steps, and validation data that choose the step: the pretrained
    scOT fine-tuned, the same scOT from scratch (all2all, and vanilla with the first snapshot as the only input),
    a small FNO from scratch. Beside them stands what needs no training: the initial field, the mean field, and the
    pretrained scOT as it is.

    Args:
        preset: `"smoke"`, `"laptop"` or `"paper"`. The last trains Poseidon-T on 128 x 128 fields and wants a GPU;
            if the environment variable `POSEIDON_LITE_CHECKPOINT` names a safetensors file or its folder, that
            model is fine-tuned instead of the one pretrained here.
        seed: Seed of every random number used.
        device: A torch device.
        progress: Called as `progress(fraction, message)`.

    Returns:
        The demo contract's dictionary.

    Raises:
        ValueError: If `preset` is not one of the three.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset must be 'smoke', 'laptop' or 'paper', got {preset!r}")
    checkpoint = os.environ.get("POSEIDON_LITE_CHECKPOINT") if preset == "paper" else None
    threads = torch.get_num_threads()
    try:
        if preset != "paper":
            torch.set_num_threads(1)  # on fields this small, threads spend their time waiting for one another
        with torch.random.fork_rng(
            devices=[]
        ):  # modules draw default weights before they get those of the seed
            run = Run(PRESETS[preset], checkpoint, seed, device, progress or (lambda fraction, message: None))
            return run.result()
    finally:
        torch.set_num_threads(threads)
