"""Small encoders, batches and the seven objectives, on vectors."""

import torch
from torch import nn

from invdyn import (
    Batch,
    BehaviorCloning,
    ContrastiveDynamics,
    ForwardReconstruction,
    GoalBC,
    InverseDynamics,
    MultiHeadBC,
    StaticContrast,
)

OBS, DIM, ACTION, TASKS = 5, 6, 2, 3
SMALL = {"hidden": (8,)}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def encoder(dim=DIM):
    return nn.Sequential(nn.Linear(OBS, 7), nn.Tanh(), nn.Linear(7, dim))


def make(name, phi=None, discrete=False, **options):
    """One of the seven objectives; `discrete` counts where actions are read."""
    phi = encoder() if phi is None else phi
    options = SMALL | options
    if name == "simclr":
        return StaticContrast(phi, DIM, **options)
    options = {"discrete": discrete} | options
    if name == "inverse":
        return InverseDynamics(phi, DIM, ACTION, **options)
    if name == "bc":
        return BehaviorCloning(phi, DIM, ACTION, **options)
    if name == "goal":
        return GoalBC(phi, DIM, ACTION, **options)
    if name == "multihead":
        return MultiHeadBC(phi, DIM, ACTION, TASKS, **options)
    if name == "forward":
        decoder = options.pop("decoder", None) or nn.Linear(DIM + 64, OBS)
        return ForwardReconstruction(phi, decoder, DIM, ACTION, **options)
    return ContrastiveDynamics(phi, DIM, ACTION, **options)


SEVEN = ["inverse", "bc", "goal", "multihead", "forward", "contrast", "simclr"]


def batch(size=8, seed=0, discrete=False, nstep=1, dtype=torch.float32):
    generator = seeded(seed)

    def real(*shape):
        return torch.rand(size, *shape, generator=generator).to(dtype) * 2 - 1

    if discrete:
        actions = torch.randint(ACTION, (size, nstep), generator=generator)
        first = actions[:, 0]
    else:
        actions = real(ACTION, nstep)
        first = actions[..., 0]
    return Batch(
        obs=real(OBS),
        action=first,
        next_obs=real(OBS),
        action_seq=actions,
        task=torch.randint(TASKS, (size,), generator=generator),
        goal=real(OBS),
    )


def episodes(lengths, seed=0, discrete=False):
    """A buffer of random episodes."""
    generator = seeded(seed)
    total = sum(lengths)
    if discrete:
        action = torch.randint(ACTION, (total,), generator=generator)
    else:
        action = torch.rand(total, ACTION, generator=generator) * 2 - 1
    return {
        "obs": torch.randn(total + len(lengths), OBS, generator=generator),
        "action": action,
        "lengths": torch.tensor(lengths),
        "task": torch.randint(TASKS, (len(lengths),), generator=generator),
    }
