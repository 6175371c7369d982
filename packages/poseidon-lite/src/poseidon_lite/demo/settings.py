"""Sizes and rates of the presets."""

from __future__ import annotations

from dataclasses import dataclass

from poseidon_lite.config import ScOTConfig


@dataclass(frozen=True)
class Preset:
    """Sizes and rates of one run. The learning rates were chosen on seeds that are not reported."""

    config: ScOTConfig
    fno_width: int = 16
    fno_modes: int = 6
    num_pretraining: int = 512
    num_validation: int = 8
    num_test: int = 64
    num_trajectories: tuple[int, ...] = (1, 2, 4, 8, 16)
    num_snapshots: int = 6
    horizon: float = 0.1
    viscosity: float = 1e-2
    new_viscosity: float = 4e-2  # of the new problem
    sine_modes: int = 2
    vortices: int = 4
    solver_steps: int = 4
    pretraining_steps: int = 900
    finetuning_steps: int = 160
    checks: int = 8
    batch_size: int = 32
    finetuning_batch_size: int = 16
    pretraining_rate: float = 8e-3
    finetuning_rates: tuple[float, float, float] = (1e-3, 4e-3, 2e-3)  # body, embedding, time
    scratch_rate: float = 8e-3
    vanilla_rate: float = 8e-3
    fno_rate: float = 8e-3


PRESETS = {
    "smoke": Preset(
        ScOTConfig.tiny(
            image_size=16, patch_size=4, embed_dim=12, num_heads=(2, 4), window_size=2, depths=(1, 1)
        ),
        fno_width=6,
        fno_modes=3,
        num_pretraining=4,
        num_validation=2,
        num_test=3,
        num_trajectories=(1, 4),
        num_snapshots=3,
        solver_steps=2,
        pretraining_steps=3,
        finetuning_steps=2,
        checks=2,
        batch_size=4,
        finetuning_batch_size=4,
    ),
    "laptop": Preset(ScOTConfig.tiny(image_size=16, window_size=4, learn_residual=True)),
    "paper": Preset(
        ScOTConfig.T(),
        fno_width=64,
        fno_modes=16,
        num_pretraining=2048,
        num_validation=60,
        num_test=240,
        num_trajectories=(1, 2, 4, 8, 16, 32, 64, 128),
        num_snapshots=8,
        horizon=1.0,
        viscosity=4e-4,
        new_viscosity=4e-3,
        sine_modes=10,
        vortices=100,
        solver_steps=80,
        pretraining_steps=40_000,
        finetuning_steps=4_000,
        checks=20,
        batch_size=40,
        finetuning_batch_size=40,
        pretraining_rate=5e-4,
        finetuning_rates=(5e-5, 5e-4, 5e-4),
        scratch_rate=5e-4,
        vanilla_rate=5e-4,
        fno_rate=1e-3,
    ),
}
