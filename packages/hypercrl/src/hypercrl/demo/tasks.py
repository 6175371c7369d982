"""The tasks: cart-poles whose physics conflict, or transitions of the user's own robot."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hypercrl.reference import CartPolePhysics

VARIABLE = "HYPERCRL_DATA"
TIME_STEP = 0.04
# Length factor, mass factor, motor: one motor is the other way round, so that no single model serves all tasks.
CONFLICTING = ((1.0, 1.0, 10.0), (0.6, 0.8, -10.0), (1.5, 2.0, 10.0), (0.8, 1.5, 6.0), (2.0, 3.0, 14.0))
COMPATIBLE = ((1.0, 1.0, 10.0), (1.02, 1.0, 10.0), (0.98, 1.0, 10.0), (1.0, 1.05, 10.0), (1.0, 0.95, 10.0))


@dataclass(frozen=True)
class Transitions:
    """Rows of state, action and next state."""

    state: Tensor
    action: Tensor
    next_state: Tensor

    def __len__(self) -> int:
        return len(self.state)

    def rows(self, index: Tensor | slice) -> tuple[Tensor, Tensor, Tensor]:
        """Return a batch."""
        return self.state[index], self.action[index], self.next_state[index]


@dataclass(frozen=True)
class Task:
    """One task: what is learnt from, what settings are chosen by, what is reported, and runs of several steps."""

    train: Transitions
    validation: Transitions
    test: Transitions
    states: Tensor | None = None  # (runs, steps + 1, S)
    actions: Tensor | None = None  # (runs, steps, A)
    physics: CartPolePhysics | None = None


def cart_poles(
    numbers: Sequence[tuple[float, float, float]],
    train: int,
    held_out: int,
    generator: torch.Generator,
    device: str,
) -> list[Task]:
    """Make cart-pole tasks: short runs from anywhere in the state space under random actions."""
    tasks = []
    for length, mass, gain in numbers:
        physics = CartPolePhysics(0.5 * length, 0.1 * mass, gain=gain, time_step=TIME_STEP)
        parts = [_run(physics, count // 25, 25, generator, device) for count in (train, held_out, held_out)]
        rows = [
            Transitions(s[:, :-1].flatten(0, 1), a.flatten(0, 1), s[:, 1:].flatten(0, 1)) for s, a in parts
        ]
        tasks.append(Task(rows[0], rows[1], rows[2], *parts[2], physics))
    return tasks


def _run(
    physics: CartPolePhysics, runs: int, steps: int, generator: torch.Generator, device: str
) -> tuple[Tensor, Tensor]:
    scale = torch.tensor([2.0, 3.0, math.pi, 6.0])
    state = (2 * torch.rand(runs, 4, generator=generator) - 1) * scale
    # A force that changes every few steps, as a controller's would.
    coarse = (2 * torch.rand(runs, -(-steps // 3), 1, generator=generator) - 1).repeat_interleave(3, dim=1)
    actions, states = coarse[:, :steps], [state]
    for step in range(steps):
        states.append(physics.step(states[-1], actions[:, step]))
    return torch.stack(states, dim=1).to(device), actions.to(device)


def own_robot(device: str, generator: torch.Generator) -> list[Task]:
    """Read the transitions of the user's own tasks.

    Raises:
        ValueError: If the environment variable is not set, or what it names is not what it should be.
    """
    place = os.environ.get(VARIABLE)
    if not place:
        raise ValueError(
            f"preset='paper' needs transitions of your robot (the paper: five half-cheetahs): set {VARIABLE} "
            "to a folder of task-0.safetensors, task-1.safetensors, ..., with tensors state, action and next_state"
        )
    files = sorted(Path(place).glob("task-*.safetensors"), key=lambda path: (len(path.name), path.name))
    if len(files) < 2:
        raise ValueError(
            f"{VARIABLE}={place!r} must hold at least two files task-*.safetensors, it has {len(files)}"
        )
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise ImportError("preset='paper' reads safetensors: pip install 'hypercrl[demo]'") from None
    return [_split(path.name, load_file(path), device, generator) for path in files]


def _split(name: str, found: dict[str, Tensor], device: str, generator: torch.Generator) -> Task:
    wanted = ("state", "action", "next_state")
    if missing := [key for key in wanted if key not in found]:
        raise ValueError(
            f"{name} must hold the tensors {wanted}, {missing} are missing; it has {sorted(found)}"
        )
    values = [found[key].float().to(device) for key in wanted]
    if len({len(value) for value in values}) != 1 or len(values[0]) < 100:
        raise ValueError(
            f"{name} must hold tensors of one length >= 100, got {[len(value) for value in values]}"
        )
    order = torch.randperm(len(values[0]), generator=generator).to(device)
    first, second = int(0.8 * len(order)), int(0.9 * len(order))
    parts = [
        Transitions(*(value[index] for value in values)) for index in order.tensor_split([first, second])
    ]
    return Task(parts[0], parts[1], parts[2])
