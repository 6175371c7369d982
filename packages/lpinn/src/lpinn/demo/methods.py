"""The methods of the evidence: PINN, LPINN, the official tied network, and the remedies for failing PINNs."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from lpinn.demo.training import Training
from lpinn.demo.waves import LENGTH, Family
from lpinn.derivatives import ClosedForm
from lpinn.features import FourierState
from lpinn.losses import lpinn_loss
from lpinn.networks import EulerianNet, FrameSpeed, OfficialLagrangianNet
from lpinn.schedules import curriculum, extended_seq2seq, seq2seq
from lpinn.subdomains import TimePartition, xpinn_loss
from lpinn.taylor import Jet


def train_pinn(training: Training, family: Family, speed: float, frame_speed: FrameSpeed = 0.0) -> nn.Module:
    """The ordinary PINN, in the fixed frame or in one that moves."""
    wave = family(speed)
    net = training.eulerian(wave, frame_speed)
    training.fit(net, training.pinn_objective(net, wave), dimensions=wave.dimensions)
    return net


def train_lpinn(training: Training, family: Family, speed: float, frame_speed: FrameSpeed = 0.0) -> nn.Module:
    """The Lagrangian PINN."""
    wave = family(speed)
    net = training.lagrangian(wave, frame_speed)
    training.fit(net, training.lpinn_objective(net, wave), dimensions=wave.dimensions)
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
        training.fit(net, training.pinn_objective(net, wave), stages, dimensions=wave.dimensions)
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


class From(ClosedForm):
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
