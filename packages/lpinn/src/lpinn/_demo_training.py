"""The waves of the evidence and every way to train on them, each with the same number of steps and points."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lpinn.derivatives import Field, Jet
from lpinn.equations import TransportPDE, burgers, convection, lpinn_loss, pinn_loss
from lpinn.networks import EulerianNet, FourierState, LagrangianNet, OfficialLagrangianNet, tanh_mlp
from lpinn.schedules import TimePartition, curriculum, extended_seq2seq, seq2seq, xpinn_loss
from lpinn.solutions import exact_convection_diffusion, spectral_burgers

LENGTH = 2 * math.pi

Objective = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Wave:
    """A travelling wave: equation, initial state, speed, mean, and the reference solution on `x (N,)`, `t (M,)`."""

    pde: TransportPDE
    u0: Callable[[Tensor], Tensor]
    speed: float
    mean: float
    reference: Callable[[Tensor, Tensor], Tensor]


Family = Callable[[float], Wave]


def linear_wave(nu: float, speed: float) -> Wave:
    """A sine under convection and diffusion."""

    def reference(x: Tensor, t: Tensor) -> Tensor:
        return exact_convection_diffusion(torch.sin, speed, nu, x, t)

    return Wave(convection(speed, nu), _sine(0.0), speed, 0.0, reference)


def burgers_wave(nu: float, speed: float, reference_nu: float | None = None) -> Wave:
    """A steepening sine on a mean flow; inviscid Burgers needs a small viscosity in its reference."""

    def reference(x: Tensor, t: Tensor) -> Tensor:
        viscosity = nu if reference_nu is None else reference_nu
        return spectral_burgers(lambda x: speed + torch.sin(x), viscosity, x, t)

    return Wave(burgers(nu), _sine(speed), speed, speed, reference)


def _sine(mean: float) -> FourierState:
    x = torch.arange(8, dtype=torch.float64)[:, None] * (LENGTH / 8)
    return FourierState(mean + torch.sin(x), LENGTH, num_modes=1).to(torch.get_default_dtype())


@dataclass(frozen=True)
class Training:
    """What all methods share.

    Attributes:
        num_steps: Optimizer steps of a method, all its stages together.
        num_points: Collocation points of a step.
        num_stages: Stages, windows or subdomains of the staged methods.
        depth: Hidden layers of the state networks.
        learning_rate: Of Adam.
        grid: Labels and times of a fixed grid; `None` draws fresh points at every step.
        official: AMSGrad at a constant rate and then L-BFGS on weighted norms, with the initial condition in the
            loss, instead of Adam with cosine decay on mean squares with the initial condition built in.
        generator: Source of weights and points.
        device: Where networks live.
        tick: Called with every step's loss.
    """

    num_steps: int
    num_points: int
    num_stages: int
    depth: int
    learning_rate: float
    grid: tuple[int, int] | None
    official: bool
    generator: torch.Generator
    device: torch.device
    tick: Callable[[Tensor], None]

    def points(self) -> tuple[Tensor, Tensor]:
        """Collocation points in the period and times in `[0, 1]`, shapes `(P, 1)`."""
        if self.grid is not None:
            x, t = torch.linspace(0, LENGTH, self.grid[0]), torch.linspace(0, 1, self.grid[1])
            pairs = torch.cartesian_prod(x, t)
        else:
            scale = torch.tensor([LENGTH, 1.0])
            pairs = scale * torch.rand(self.num_points, 2, generator=self.generator)
        x, t = pairs.to(self.device).split(1, dim=1)
        return x, t

    def labels(self) -> Tensor:
        """Points of initial conditions and interfaces, shape `(32, 1)`."""
        return torch.linspace(0, LENGTH, 33, device=self.device)[:-1, None]

    def u_net(self) -> nn.Module:
        """A fresh state network."""
        return tanh_mlp(3, 1, depth=self.depth, generator=self.generator)

    def eulerian(self, wave: Wave, frame_speed: float = 0.0) -> EulerianNet:
        """A fresh PINN."""
        return EulerianNet(self.u_net(), LENGTH, not self.official, wave.u0, frame_speed).to(self.device)

    def pinn_objective(self, net: Field, wave: Wave, start: float = 0.0) -> Objective:
        """The PINN's loss at given points."""
        labels, states, weights, reduction = self._conditions(wave)
        return lambda x, t: pinn_loss(net, wave.pde, x, t, labels, states, weights[1:], reduction, start)

    def lpinn_objective(self, net: Any, wave: Wave) -> Objective:
        """The Lagrangian PINN's loss at given points."""
        labels, states, weights, reduction = self._conditions(wave)
        return lambda x, t: lpinn_loss(net, wave.pde, x, t, labels, states, weights, reduction)

    def fit(
        self,
        net: nn.Module,
        objective: Objective,
        num_stages: int = 1,
        rescale: Callable[[Tensor], Tensor] = lambda t: t,
    ) -> None:
        """Train for one of `num_stages` equal shares of the steps, on times `rescale`d from `[0, 1]`."""
        num_steps = self.num_steps // num_stages
        optimizer = torch.optim.Adam(
            net.parameters(), lr=self.learning_rate, amsgrad=self.official, fused=True
        )
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
        points = self.points()
        for step in range(num_steps):
            if self.grid is None and step > 0:
                points = self.points()
            optimizer.zero_grad()
            loss = objective(points[0], rescale(points[1]))
            loss.backward()
            optimizer.step()
            if not self.official:
                decay.step()
            self.tick(loss.detach())
        if self.official:
            _polish(net, lambda: objective(points[0], rescale(points[1])))

    def _conditions(self, wave: Wave) -> tuple[Tensor | None, Tensor | None, tuple[float, float, float], Any]:
        weights = (10.0, 1.0, 1000.0)
        if not self.official:
            return None, None, weights, "mse"
        labels = self.labels()
        return labels, wave.u0(labels), weights, "norm"


def _polish(net: nn.Module, loss_fn: Callable[[], Tensor]) -> None:
    """The official code's last 100 steps."""
    optimizer = torch.optim.LBFGS(net.parameters(), lr=1e-2, max_iter=100)

    def closure() -> float:
        optimizer.zero_grad()
        loss = loss_fn()
        loss.backward()
        return float(loss)

    optimizer.step(closure)


# --- the methods -----------------------------------------------------------------------------------


def train_pinn(training: Training, family: Family, speed: float, frame_speed: float = 0.0) -> nn.Module:
    """The ordinary PINN, in the fixed frame or in one that moves."""
    wave = family(speed)
    net = training.eulerian(wave, frame_speed)
    training.fit(net, training.pinn_objective(net, wave))
    return net


def train_lpinn(training: Training, family: Family, speed: float, frame_speed: float = 0.0) -> nn.Module:
    """The Lagrangian PINN."""
    wave = family(speed)
    x_net = tanh_mlp(3, 1, depth=2, generator=training.generator)
    net = LagrangianNet(training.u_net(), x_net, LENGTH, not training.official, wave.u0, frame_speed)
    training.fit(net.to(training.device), training.lpinn_objective(net, wave))
    return net


def train_official(training: Training, family: Family, speed: float) -> nn.Module:
    """The official code's tied network, whose positions are periodic in the label."""
    wave = family(speed)
    net = OfficialLagrangianNet(LENGTH, u_depth=max(training.depth, 3), generator=training.generator)
    labels = training.labels()
    states = wave.u0(labels)
    training.fit(
        net.to(training.device),
        lambda x, t: lpinn_loss(net, wave.pde, x, t, labels, states, diffusion="label"),
    )
    return net


def train_curriculum(training: Training, family: Family, speed: float) -> nn.Module:
    """A PINN on ever faster waves."""
    stages = training.num_stages
    net = training.eulerian(family(0.0))
    for _, wave in curriculum(family, [speed * (stage + 1) / stages for stage in range(stages)]):
        net.u0 = None if training.official else wave.u0
        training.fit(net, training.pinn_objective(net, wave), stages)
    return net


def train_extended(training: Training, family: Family, speed: float) -> nn.Module:
    """A PINN on ever longer times."""
    wave = family(speed)
    net = training.eulerian(wave)
    for window in extended_seq2seq(1.0, training.num_stages):
        training.fit(net, training.pinn_objective(net, wave), training.num_stages, window.rescale)
    return net


def train_seq2seq(training: Training, family: Family, speed: float) -> nn.Module:
    """One warm-started PINN per time window, from the last state of the one before."""
    wave, windows = family(speed), list(seq2seq(1.0, training.num_stages))
    net, nets = training.eulerian(wave), []
    for window in windows:
        local = From(net, window.start)
        objective = training.pinn_objective(local, wave, window.start)
        training.fit(local, objective, training.num_stages, window.rescale)
        nets.append(local)
        labels = training.labels()
        with torch.no_grad():
            last = local(labels, torch.full_like(labels, window.end))
        wave = replace(wave, u0=FourierState(last, LENGTH))
        net = copy.deepcopy(net)
        net.u0 = None if training.official else wave.u0
    return TimePartition(nets, windows)


def train_xpinn(training: Training, family: Family, speed: float) -> nn.Module:
    """One PINN per time window, all at once, tied at the interfaces."""
    wave, windows = family(speed), list(seq2seq(1.0, training.num_stages))
    nets: list[nn.Module] = [training.eulerian(wave)]
    nets += [From(EulerianNet(training.u_net(), LENGTH), window.start) for window in windows[1:]]
    partition = TimePartition(nets, windows).to(training.device)
    labels = training.labels()
    states = wave.u0(labels) if training.official else None
    training.fit(partition, lambda x, t: xpinn_loss(partition, wave.pde, x, t, labels, states))
    return partition


class From(nn.Module):
    """A PINN whose clock starts at a later time."""

    def __init__(self, net: EulerianNet, start: float) -> None:
        super().__init__()
        self.net, self.start = net, start

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The state."""
        return self.net(x, t - self.start)

    def jet(self, x: Tensor, t: Tensor, order: int = 2) -> Jet:
        """The state with its derivatives."""
        return self.net.jet(x, t - self.start, order)
