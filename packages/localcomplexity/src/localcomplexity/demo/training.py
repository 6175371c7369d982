"""Train one network of the demo and measure everything at the scheduled steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor, nn

from localcomplexity.demo.settings import Data, Setting
from localcomplexity.probe import LocalComplexity
from localcomplexity.robustness import robust_accuracy
from localcomplexity.tracking import ComplexityTracker, log_schedule
from localcomplexity.vertices import random_directions, uniform_points

Progress = Callable[[float, str], None]

TRAIN, TEST, RANDOM = "training points", "test points", "random points"
TRAIN_ACCURACY, TEST_ACCURACY = "training accuracy", "test accuracy"
LOSS, WEIGHTS, JACOBIAN = "training loss", "weight norm", "Jacobian norm"


@dataclass
class History:
    """What one run showed.

    Attributes:
        steps: The steps measured at.
        values: Name of a measure to its value at each step; accuracies in per cent.
        near: The tracker at the small radius.
        wide: The tracker at the large one.
        states: The parameters at each step, if there are slices to draw.
        seconds: Name to the seconds that each measurement took, and "step" for those of training.
    """

    steps: list[int]
    near: ComplexityTracker
    wide: ComplexityTracker
    values: dict[str, list[float]] = field(default_factory=dict)
    states: list[dict[str, Tensor]] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def cost(self, name: str) -> float:
        """Seconds of one measurement over those of one training step."""
        return median(self.seconds[name]) / median(self.seconds["step"])

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the time spent inside to `seconds`."""
        start = time.perf_counter()
        yield
        self.seconds.setdefault(name, []).append(time.perf_counter() - start)

    def add(self, name: str, value: float) -> None:
        """Append a value."""
        self.values.setdefault(name, []).append(value)


def robust(epsilon: float) -> str:
    """Name of the robust accuracy at some epsilon."""
    return f"robust accuracy, ε = {epsilon:.2g}"


def train(
    setting: Setting, data: Data, model: nn.Module, generator: torch.Generator, report: Progress
) -> History:
    """Train `model` in place as the setting says; the probes only watch."""
    history = _start(setting, data, model, generator)
    optimizer = setting.optimizer(list(model.parameters()))
    # The attack starts from its own numbers, so that measuring does not change the order of the batches.
    attack_seed = int(torch.randint(2**31, (), generator=generator))
    for step in range(1, setting.num_steps + 1):
        with history.timed("step"):
            rows = torch.randint(len(data.train_x), (setting.batch_size,), generator=generator)
            rows = rows.to(data.train_x.device)
            optimizer.zero_grad(set_to_none=True)
            setting.loss(model(data.train_x[rows]), data.train_y[rows]).backward()
            optimizer.step()
        if history.near.due(step):
            _measure(history, setting, data, model, step, attack_seed)
        if step % 100 == 0 or step == setting.num_steps:
            accuracy = history.values[TEST_ACCURACY][-1]
            report(step / setting.num_steps, f"step {step:,}, test accuracy {accuracy:.1f} %")
    return history


def _start(setting: Setting, data: Data, model: nn.Module, generator: torch.Generator) -> History:
    schedule = log_schedule(setting.num_steps, setting.num_measurements)
    sets = {
        TRAIN: data.train_x[: setting.num_probes],
        TEST: data.test_x[: setting.num_probes],
        RANDOM: uniform_points(
            data.train_x,
            min(setting.num_probes, len(data.test_x)),
            low=float(data.train_x.min()),
            high=float(data.train_x.max()),
            generator=generator,
        ),
    }
    directions = random_directions(setting.num_directions, data.train_x[0].numel(), generator=generator)

    def tracker(radius: float) -> ComplexityTracker:
        probe = LocalComplexity(model, setting.layers, radius=radius, directions=directions)
        return ComplexityTracker(probe, sets, schedule)

    return History(schedule, near=tracker(setting.radius), wide=tracker(setting.wide_radius))


def _measure(
    history: History, setting: Setting, data: Data, model: nn.Module, step: int, attack_seed: int
) -> None:
    probes = history.near.sets[TRAIN]
    with history.timed(TRAIN):
        history.near.probe(probes)
    history.near.update(step)
    history.wide.update(step)
    with history.timed(WEIGHTS), torch.no_grad():
        norm = torch.stack([parameter.square().sum() for parameter in model.parameters()]).sum().sqrt()
        history.add(WEIGHTS, float(norm))
    with history.timed(LOSS), torch.no_grad():
        logits = torch.cat([model(chunk) for chunk in data.train_x.split(1000)])
        history.add(LOSS, float(setting.loss(logits, data.train_y)))
    with history.timed(JACOBIAN):
        history.add(JACOBIAN, _jacobian_norm(model, probes))
    history.add(TRAIN_ACCURACY, 100 * float((logits.argmax(1) == data.train_y).double().mean()))
    accuracy = robust_accuracy(model, data.test_x, data.test_y, 0.0, chunk_size=1000)
    history.add(TEST_ACCURACY, 100 * float(accuracy))
    for epsilon in setting.epsilons:
        accuracy = robust_accuracy(
            model,
            data.test_x[: setting.num_attacked],
            data.test_y[: setting.num_attacked],
            epsilon,
            step_size=setting.alpha_share * epsilon,
            low=data.low,
            high=data.high,
            chunk_size=1000,
            generator=torch.Generator().manual_seed(attack_seed),
        )
        history.add(robust(epsilon), 100 * float(accuracy))
    if setting.num_slices:
        history.states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})


def _jacobian_norm(model: nn.Module, x: Tensor) -> float:
    """Mean over the points of the Frobenius norm of d outputs / d input, exactly: one backward pass per output."""
    squares = x.new_zeros(len(x))
    for start in range(0, len(x), 1000):
        points = x[start : start + 1000].detach().requires_grad_()
        outputs = model(points)
        for column in outputs.sum(0):
            (gradient,) = torch.autograd.grad(column, points, retain_graph=True)
            squares[start : start + 1000] += gradient.flatten(1).square().sum(1)
    return float(squares.sqrt().mean())
