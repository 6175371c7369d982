"""The two-layer linear network: when does the sharpness cross the threshold, and when should it?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from opposingsignals.demo.settings import Setting
from opposingsignals.hessian import top_eigs
from opposingsignals.toy import OpposingTask, crossing_time, predicted_sharpness


@dataclass
class ToyStudy:
    """Rows and curves of the toy."""

    about: str
    rows: list[dict[str, Any]]
    steps: list[float]
    sharpness: list[float]
    predicted: list[float]
    threshold: float
    groups: dict[str, list[float]]


def study_toy(setting: Setting, report: Callable[[float, str], None]) -> ToyStudy:
    """Gradient descent on the population loss at 1.2 times the learning rate whose threshold is α ||β||."""
    s0, every = 0.02, setting.toy_every
    task = OpposingTask(dimension=20, probability=0.02, variance=setting.variance, beta_norm=1.0, kappa=0.1)
    pull = 1e-3
    rate = 1.2 * 2 / (task.variance * task.beta_norm)
    net = task.net(s0, b_o=1e-3)
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    steps, sharpness, groups = [], [], []
    vector, crossed = None, None
    for step in range(setting.toy_steps):
        if step % every == 0:
            top = top_eigs(net, lambda: task.population_loss(net), start=vector, iterations=12)
            vector = top.vectors
            steps.append(float(step))
            sharpness.append(float(top.values[0]))
        groups.append(task.group_losses(net).detach())
        if crossed is None and sharpness[-1] >= 2 / rate:
            crossed = step
        optimizer.zero_grad()
        # the groups are never quite balanced: without a slight pull, b_o would be 0 when the valley turns unstable
        (task.population_loss(net) + pull * net.b[-1]).backward()
        optimizer.step()
    report(1.0, "toy")
    flow = crossing_time(rate, task.beta_norm, s0, task.variance) / rate
    # the trivial forecast: the sharpness goes on as it began, at the rate of its first steps
    growth = 2 * (task.beta_norm - s0)
    exponential = math.log(2 / (rate * task.variance * s0)) / growth / rate
    measured = float(crossed) if crossed is not None else float(setting.toy_steps)
    rows = [
        {
            "name": "toy: closed form",
            "role": "method",
            "crossing_error": 100 * abs(flow / measured - 1),
            "crossing_step": flow,
        },
        {
            "name": "toy: growth as at the start",
            "role": "baseline",
            "crossing_error": 100 * abs(exponential / measured - 1),
            "crossing_step": exponential,
        },
        {"name": "toy: measured", "role": "reference", "crossing_step": measured},
    ]
    predicted = predicted_sharpness(torch.tensor(steps) * rate, task.beta_norm, s0, task.variance).tolist()
    curves = torch.stack(groups)[:, :2].double()
    return ToyStudy(
        about=f"two-layer linear network, α = {task.variance:g}, p = {task.probability:g}, ||β|| = 1, "
        f"s(0) = {s0:g}, learning rate 1.2 · 2/(α ||β||) = {rate:g}, {setting.toy_steps} steps, "
        f"a constant gradient of {pull:g} on b_o",
        rows=rows,
        steps=steps,
        sharpness=sharpness,
        predicted=predicted,
        threshold=2 / rate,
        groups={"x_o = +m": curves[:, 0].tolist(), "x_o = -m": curves[:, 1].tolist()},
    )
