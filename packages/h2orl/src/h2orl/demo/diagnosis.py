"""The simulators scored without any agent, against what is true and against rivals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from h2orl.demo.sizes import Progress, Sizes
from h2orl.demo.worlds import REALITY, collect
from h2orl.gap import DynamicsGap, fit_gap
from h2orl.reference import GroupedSAC, Pendulum
from h2orl.transitions import Transitions
from h2orl.trust import SimulatorTrust, simulator_trust

_RATES = (3e-4, 1e-3, 3e-3, 1e-2)


@dataclass(frozen=True)
class Diagnosis:
    """One simulator: its trust, what is true, and the rivals' scores, each (N,) on held-out simulated transitions."""

    trust: SimulatorTrust
    truth: Tensor
    residual: Tensor
    inside: Tensor
    field: tuple[Tensor, Tensor]


def diagnose(
    gaps: Mapping[str, Pendulum],
    real: Transitions,
    behaviour: GroupedSAC,
    sizes: Sizes,
    generator: torch.Generator,
    report: Progress,
) -> dict[str, Diagnosis]:
    """Classifiers and a dynamics model on three quarters of the logs, judged on the last quarter."""
    seen, held_out = real.split(0.75, generator=generator)
    seed = int(torch.randint(2**31, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = dynamics_model(seen, held_out, sizes, generator)
    found = {}
    for index, (name, world) in enumerate(gaps.items()):
        report(index / len(gaps), name)
        sim, judged = collect(world, behaviour, len(real), generator).split(0.75, generator=generator)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            gap = DynamicsGap(3, 1, (sizes.hidden, sizes.hidden)).standardize(seen)
        fit_gap(gap, seen, sim, sizes.gap_steps, learning_rate=1e-3, input_noise=0.02, generator=generator)
        std = seen.observation.std(0)
        trust = simulator_trust(gap, judged, held_out)
        residual = ((judged.next_observation - model(judged)) / std).norm(dim=1)
        found[name] = Diagnosis(
            trust, _true_gap(judged, std), residual, trust.familiar > 0.4, _field(gap, world, std)
        )
    return found


def dynamics_model(seen: Transitions, held_out: Transitions, sizes: Sizes, generator: torch.Generator) -> Any:
    """What one would build instead: the next state regressed on the real log, its learning rate by held-out error."""
    mean, std = seen.observation.mean(0), seen.observation.std(0)

    def inputs(rows: Transitions) -> Tensor:
        return torch.cat([(rows.observation - mean) / std, rows.action], 1)

    def change(rows: Transitions) -> Tensor:
        return (rows.next_observation - rows.observation) / std

    best: tuple[float, nn.Module] | None = None
    for rate in _RATES:
        net = nn.Sequential(
            nn.Linear(4, sizes.hidden),
            nn.ReLU(),
            nn.Linear(sizes.hidden, sizes.hidden),
            nn.ReLU(),
            nn.Linear(sizes.hidden, 3),
        )
        optimizer = torch.optim.Adam(net.parameters(), lr=rate)
        for _ in range(sizes.gap_steps):
            rows = seen[torch.randint(len(seen), (256,), generator=generator)]
            loss = (net(inputs(rows)) - change(rows)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            error = float((net(inputs(held_out)) - change(held_out)).square().mean())
        best = (error, net) if best is None or error < best[0] else best
    assert best is not None
    chosen = best[1].requires_grad_(False)
    return lambda rows: rows.observation + std * chosen(inputs(rows))


def _true_gap(rows: Transitions, std: Tensor) -> Tensor:
    """How far the simulated next state is from where reality would have gone, in standard deviations."""
    real, _ = REALITY.step(REALITY.state(rows.observation), rows.action)
    return ((rows.next_observation - REALITY.observe(real)) / std).norm(dim=1)


def _field(gap: DynamicsGap, world: Pendulum, std: Tensor) -> tuple[Tensor, Tensor]:
    """The estimated and the true gap over angle and speed without torque, (24, 24) each."""
    angle, speed = torch.meshgrid(
        torch.linspace(-torch.pi, torch.pi, 24), torch.linspace(-8, 8, 24), indexing="ij"
    )
    state, action = torch.stack([angle, speed], -1).view(-1, 2), torch.zeros(576, 1)
    before, after = (
        world.observe(state),
        world.observe(world.step(state, action, torch.Generator().manual_seed(0))[0]),
    )
    rows = Transitions(before, action, after)
    return gap.gap(before, action, after[:, None]).view(24, 24), _true_gap(rows, std).view(24, 24)


def spearman(first: Tensor, second: Tensor) -> float:
    """Rank correlation, ties at their order of appearance; 0 where one is constant."""
    ranks = torch.stack([values.argsort().argsort().double() for values in (first, second)])
    if (first == first[0]).all() or (second == second[0]).all():
        return 0.0
    return float(torch.corrcoef(ranks)[0, 1])


def maps(diagnoses: Mapping[str, Diagnosis]) -> list[dict[str, Any]]:
    """Estimated beside true gap over angle and speed."""
    return [
        {
            "title": f"{name}: {title}",
            "values": field.tolist(),
            "caption": "angle from -pi to pi down, speed -8 to 8 across",
        }
        for name, found in diagnoses.items()
        if name in ("gravity x 2", "length x 0.6")
        for title, field in zip(
            ("gap by the classifiers [nats]", "true gap [standard deviations]"), found.field, strict=True
        )
    ]
