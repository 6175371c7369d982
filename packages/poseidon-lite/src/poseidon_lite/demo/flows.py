"""The trajectories: thin fluid for pretraining, thick fluid as the new problem."""

from __future__ import annotations

import torch
from torch import Tensor

from poseidon_lite.demo.settings import Preset
from poseidon_lite.simulate import gaussian_vorticity, navier_stokes, sine_vorticity


def snapshot_times(preset: Preset) -> Tensor:
    """Times of the snapshots `(snapshots,)` in units in which a trajectory lasts 1."""
    return torch.linspace(0, 1, preset.num_snapshots)


def simulate(preset: Preset, count: int, viscosity: float, generator: torch.Generator, device: str) -> Tensor:
    """Velocities `(count, snapshots, 2, n, n)` on the device, half from sines, half from Gaussian vortices."""
    n = preset.config.image_size
    sines = sine_vorticity(count // 2, n, modes=preset.sine_modes, generator=generator)
    vortices = gaussian_vorticity(count - count // 2, n, vortices=preset.vortices, generator=generator)
    vorticity = torch.cat([sines, vortices])[torch.randperm(count, generator=generator)]
    return torch.cat(
        [
            navier_stokes(
                chunk.float().to(device),
                (snapshot_times(preset) * preset.horizon).tolist(),
                viscosity=viscosity,
                num_steps=preset.solver_steps,
            )
            for chunk in vorticity.split(64)
        ]
    )
