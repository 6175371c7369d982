"""The mixed logs of the second part: careful and careless operators in two tasks, and how their clones are scored."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ildataquality.demo import pendulum
from ildataquality.demo.curation import Curated, run_curation
from ildataquality.demo.size import DISTURBANCE, POLICY, SHAKE, SYSTEM, Progress, Size, stage
from ildataquality.ensemble import StackedMLP
from ildataquality.episodes import Episodes
from ildataquality.point_mass import PMObstacle


def run_mixes(size: Size, generator: torch.Generator, device: str, report: Progress) -> dict[str, Curated]:
    """Curate and clone mixes in PMObstacle, in Pendulum, and in a Pendulum that nothing disturbs."""
    task = PMObstacle()

    def collect_points(noisy: Tensor) -> Episodes:
        parts = [
            task.collect(int(group.sum()), system_noise=SYSTEM, policy_noise=noise, generator=generator)
            for group, noise in ((~noisy, 0.0), (noisy, POLICY))
        ]
        # Collected clean first; put back into the operators' order.
        order = torch.cat([(~noisy).nonzero()[:, 0], noisy.nonzero()[:, 0]])
        return Episodes.concatenate(parts).subset(order.argsort())

    def success(models: StackedMLP, count: int) -> Tensor:
        shape = (count, size.rollouts[0])
        found = task.success(models, shape, system_noise=SYSTEM, generator=generator, device=device)
        return 100 * found.double().mean(1)

    common: dict[str, Any] = {"num_steps": size.num_steps, "generator": generator, "device": device}
    found = {
        "PMObstacle": run_curation(
            collect_points,
            success,
            num_clean=size.num_clean[0],
            repeats=size.repeats[0],
            report=stage(report, 0.0, 0.2, "PMObstacle"),
            **common,
        )
    }
    for name, disturbance, repeats, start, share in (
        ("Pendulum", DISTURBANCE, size.repeats[1], 0.2, 0.6),
        ("still Pendulum", 0.0, size.repeats[2], 0.8, 0.2),
    ):

        def collect(noisy: Tensor, disturbance: float = disturbance) -> Episodes:
            return pendulum.collect((SHAKE * noisy).numpy().astype(np.float32), disturbance, generator)

        def returns(models: StackedMLP, count: int, disturbance: float = disturbance) -> Tensor:
            return pendulum.returns(models, count, size.rollouts[1], disturbance, generator, device)

        found[name] = run_curation(
            collect,
            returns,
            num_clean=size.num_clean[1],
            repeats=repeats,
            report=stage(report, start, share, name),
            **common,
        )
    return found
