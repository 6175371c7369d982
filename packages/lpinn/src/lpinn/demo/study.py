"""One seed's runs: every method on every wave, rows as they come, and what the plots need."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lpinn.demo.measures import folded, jacobian_at, lattice, relative_error, state_at
from lpinn.demo.methods import (
    train_curriculum,
    train_extended,
    train_lpinn,
    train_official,
    train_pinn,
    train_seq2seq,
    train_xpinn,
)
from lpinn.demo.plots import folding_curve
from lpinn.demo.training import Training
from lpinn.demo.waves import LENGTH, Family, Wave, burgers_wave, linear_wave
from lpinn.diagnosis import hessian_top, loss_landscape
from lpinn.networks import LagrangianNet, OfficialLagrangianNet

Progress = Callable[[float, str], None]
Methods = dict[str, tuple[str, Any]]

PLAIN: Methods = {"PINN": ("baseline", train_pinn), "LPINN": ("method", train_lpinn)}
REMEDIES: Methods = {
    "PINN + curriculum": ("baseline", train_curriculum),
    "PINN + seq2seq": ("baseline", train_seq2seq),
}
FURTHER: Methods = {
    "PINN + extended seq2seq": ("baseline", train_extended),
    "XPINN": ("baseline", train_xpinn),
    "LPINN, official tied network": ("ablation", train_official),
}
# From the mean speed of the initial data. On one linear wave that speed is the answer.
PINN_IN_FRAME: Methods = {
    "PINN in the mean frame": ("reference", partial(train_pinn, frame_speed="auto")),
}
IN_FRAME: Methods = PINN_IN_FRAME | {
    "LPINN in the mean frame": ("reference", partial(train_lpinn, frame_speed="auto")),
}
# Where no frame fits every point, the frame is the PINN's due, and LPINN's default.
SHEARED: Methods = {
    "PINN": ("baseline", train_pinn),
    "PINN in the mean frame": ("baseline", partial(train_pinn, frame_speed="auto")),
    "PINN + curriculum": ("baseline", train_curriculum),
    "LPINN": ("method", partial(train_lpinn, frame_speed="auto")),
}


@dataclass(frozen=True)
class Sizes:
    """What a preset chooses."""

    speeds: tuple[float, ...]
    viscosities: tuple[float, ...]
    num_steps: int
    num_points: int
    num_stages: int = 4
    depth: int = 4
    grid: tuple[int, int] | None = None
    official: bool = False
    burgers_nu: float = 0.05
    lanczos_steps: int = 12
    landscape: int = 11
    evaluation: tuple[int, int] = (256, 33)  # points and times of the errors
    all_remedies: bool = True  # curriculum and time windows at the largest speed too


class Study:
    """One seed's runs."""

    def __init__(
        self, sizes: Sizes, seed: int, device: torch.device, report: Progress, num_runs: int
    ) -> None:
        self.sizes, self.seed, self.device, self.report, self.num_runs = sizes, seed, device, report, num_runs
        self.rows: list[dict[str, Any]] = []
        self.waves: dict[str, Wave] = {}
        self.trained: dict[str, nn.Module] = {}
        self.fields: dict[tuple[str, str], Tensor] = {}
        self.losses: dict[str, list[float]] = {}
        self.t = torch.linspace(0, 1, sizes.evaluation[1], device=device)

    def points(self, wave: str) -> Tensor:
        """Where the errors on a wave are measured."""
        return lattice(self.waves[wave], self.sizes.evaluation[0], self.device)

    def row(self, title: str) -> dict[str, Any]:
        """The row of that name."""
        return next(row for row in self.rows if row["name"] == title)

    def compare(self, name: str, family: Family, speed: float, methods: Methods) -> None:
        """Train the methods on one wave."""
        title = f"{name}, c={speed:g}"
        wave = self.waves[title] = family(speed)
        x = self.points(title)
        truth = self.fields[title, "exact"] = wave.reference(x.double(), self.t.double())
        for method, (role, train) in methods.items():
            row, net = self._run(f"{method} on {title}", role, train, family, speed)
            field = self.fields[title, method] = state_at(net, x, self.t)
            row["relative_l2"] = relative_error(field, truth, wave.mean)
            if isinstance(net, LagrangianNet | OfficialLagrangianNet):
                row["folded"] = folded(jacobian_at(net, wave, x, self.t))

    def carried(self, name: str, speed: float) -> None:
        """What an error is worth: that of the initial wave, carried along without changing its shape."""
        title = f"{name}, c={speed:g}"
        x = self.points(title)[:, 0].double()
        field = speed + torch.sin(x - speed * self.t.double()[:, None])
        error = relative_error(field, self.fields[title, "exact"], speed)
        self.rows.append({"name": f"u0 carried at c on {title}", "role": "reference", "relative_l2": error})

    def past_the_shock(self) -> dict[str, Any]:
        """The limit of the method: inviscid Burgers to twice the time when characteristics meet."""
        end, wave = 2.0, burgers_wave(0.0, 1.0, reference_nu=0.02)
        title = "LPINN on inviscid Burgers past its shock, c=1"

        def train(training: Training, family: Family, speed: float) -> nn.Module:
            net = training.lagrangian(wave)
            training = replace(training, num_steps=max(training.num_steps // 3, 1))  # it fails at any number
            training.fit(net, training.lpinn_objective(net, wave), rescale=lambda t: end * t)
            return net

        row, net = self._run(title, "ablation", train, partial(burgers_wave, 0.0), 1.0)
        x, t = lattice(wave, self.sizes.evaluation[0], self.device), end * self.t
        truth, jacobian = wave.reference(x.double(), t.double()), jacobian_at(net, wave, x, t)
        field = state_at(net, x, t)
        row |= {"relative_l2": relative_error(field, truth, wave.mean), "folded": folded(jacobian)}
        error = (field - truth).norm(dim=1) / (truth - wave.mean).norm(dim=1)
        return folding_curve(title, t, error, jacobian.amin(1))

    def landscapes(self, nu: float) -> list[dict[str, Any]]:
        """Top Hessian eigenvalues at every speed; the loss on the plane of the first two at the ends."""
        images = []
        generator = torch.Generator().manual_seed(self.seed)
        x, t = (LENGTH * torch.rand(256, 1, generator=generator), torch.rand(256, 1, generator=generator))
        x, t = x.to(self.device), t.to(self.device)
        training = self._training(lambda loss: None)
        losses = {"PINN": training.pinn_objective, "LPINN": training.lpinn_objective}
        for speed in self.sizes.speeds:
            wave = linear_wave(nu, speed)
            for method, loss_of in losses.items():
                title = f"{method} on convection-diffusion nu={nu:g}, c={speed:g}"
                self.report(0.96, f"loss landscape of {title}")
                objective = partial(_loss_at, loss_of, wave, x, t)
                net = self.trained[title]
                top = hessian_top(objective, net, 2, self.sizes.lanczos_steps, generator)
                self.row(title)["sharpness"] = top.values[0].item()
                if speed in (self.sizes.speeds[0], self.sizes.speeds[-1]):
                    plane = loss_landscape(objective, net, top.vectors, 0.5, self.sizes.landscape)
                    images.append(_picture(f"{method}, c={speed:g}", plane.values))
        return images

    def _run(
        self, title: str, role: str, train: Any, family: Family, speed: float
    ) -> tuple[dict[str, Any], nn.Module]:
        """Train once, time it, start its row."""
        begun, history = 0, self.losses.setdefault(title, [])
        every = max(self.sizes.num_steps // 60, 1)

        def tick(loss: Tensor) -> None:
            nonlocal begun
            if begun % every == 0:
                history.append(loss.item())
                done = (len(self.rows) + min(begun / (2 * self.sizes.num_steps), 1)) / self.num_runs
                self.report(0.95 * min(done, 1.0), title)
            begun += 1

        start = time.perf_counter()
        net = train(self._training(tick), family, speed)
        row: dict[str, Any] = {"name": title, "role": role, "seconds": time.perf_counter() - start}
        self.rows.append(row)
        self.trained[title] = net
        return row, net

    def _training(self, tick: Callable[[Tensor], None]) -> Training:
        sizes = self.sizes
        return Training(
            num_steps=sizes.num_steps,
            num_points=sizes.num_points,
            num_stages=sizes.num_stages,
            depth=sizes.depth,
            learning_rate=1e-2,
            grid=sizes.grid,
            official=sizes.official,
            generator=torch.Generator().manual_seed(self.seed),
            device=self.device,
            tick=tick,
        )


def _loss_at(loss_of: Any, wave: Wave, x: Tensor, t: Tensor, module: nn.Module) -> Tensor:
    loss: Tensor = loss_of(module, wave)(x, t)
    return loss


def _picture(what: str, losses: Tensor) -> dict[str, Any]:
    return {
        "title": f"log10 loss around the trained {what}",
        "values": losses.clamp_min(1e-12).log10().tolist(),
        "caption": "Steps of -0.5 to 0.5 along the first (down) and second (across) eigenvector of the Hessian",
    }
