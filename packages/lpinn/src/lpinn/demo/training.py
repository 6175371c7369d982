"""How every method of the evidence is trained: the same points, optimizer and treatment of the initial condition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lpinn.demo.waves import LENGTH, Wave
from lpinn.derivatives import Field
from lpinn.losses import lpinn_loss, pinn_loss
from lpinn.networks import EulerianNet, FrameSpeed, LagrangianNet, tanh_mlp

Objective = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Training:
    """What all methods share.

    Attributes:
        num_steps: Optimizer steps of a method without stages; one with stages has twice as many in all.
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

    def points(self, dimensions: int = 1) -> tuple[Tensor, Tensor]:
        """Collocation points in the period and times in `[0, 1]`, shapes `(P, d)` and `(P, 1)`."""
        if self.grid is not None and dimensions == 1:
            x, t = torch.linspace(0, LENGTH, self.grid[0]), torch.linspace(0, 1, self.grid[1])
            pairs = torch.cartesian_prod(x, t)
        else:
            scale = torch.tensor([LENGTH] * dimensions + [1.0])
            pairs = scale * torch.rand(self.num_points, dimensions + 1, generator=self.generator)
        x, t = pairs.to(self.device).split([dimensions, 1], dim=1)
        return x, t

    def labels(self, dimensions: int = 1) -> Tensor:
        """Points of initial conditions and interfaces, shape `(32, 1)` or `(256, 2)`."""
        axis = torch.linspace(0, LENGTH, (33, 17)[dimensions - 1], device=self.device)[:-1]
        return torch.cartesian_prod(*[axis] * dimensions).reshape(-1, dimensions)

    def u_net(self, dimensions: int = 1) -> nn.Module:
        """A fresh state network."""
        return tanh_mlp(2 * dimensions + 1, 1, depth=self.depth, generator=self.generator)

    def eulerian(self, wave: Wave, frame_speed: FrameSpeed = 0.0) -> EulerianNet:
        """A fresh PINN."""
        lengths, u_net = [LENGTH] * wave.dimensions, self.u_net(wave.dimensions)
        net = EulerianNet(u_net, lengths, not self.official, wave.u0, frame_speed, pde=wave.pde)
        return net.to(self.device)

    def lagrangian(self, wave: Wave, frame_speed: FrameSpeed = 0.0) -> LagrangianNet:
        """A fresh Lagrangian PINN."""
        d = wave.dimensions
        x_net = tanh_mlp(2 * d + 1, d, depth=2, generator=self.generator)
        hard, lengths = not self.official, [LENGTH] * d
        net = LagrangianNet(self.u_net(d), x_net, lengths, hard, wave.u0, frame_speed, pde=wave.pde)
        return net.to(self.device)

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
        dimensions: int = 1,
    ) -> None:
        """Train for one of `num_stages` equal shares of the steps, on times `rescale`d from `[0, 1]`.

        A method with stages has twice the steps in all: its early stages solve easier problems.
        """
        num_steps = self.num_steps if num_stages == 1 else 2 * self.num_steps // num_stages
        optimizer = torch.optim.Adam(
            net.parameters(), lr=self.learning_rate, amsgrad=self.official, fused=True
        )
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
        points = self.points(dimensions)
        for step in range(num_steps):
            if self.grid is None and step > 0:
                points = self.points(dimensions)
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
        labels = self.labels(wave.dimensions)
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
