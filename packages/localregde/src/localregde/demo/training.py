"""Training one arm at one strength, and choosing the strength."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from localregde.demo.data import Pairs, Problem
from localregde.demo.rivals import Arm
from localregde.modules import TimeMLP
from localregde.regularizer import LocalRegularizer
from localregde.weights import exponential_weight

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Sizes:
    """What a preset says of the training on one problem."""

    steps: int
    batch: int
    hidden: int
    learning_rate: float
    tolerance: float
    widenings: int
    thin: int = 1  # take every so many strengths of a grid


@dataclass
class Outcome:
    """A trained model: its errors, what its solves cost, and how training went.

    Attributes:
        arm: Name of the arm.
        strength: At which it was trained.
        validation: Error there, percent of wrong labels or root mean square.
        test: The same on the test part.
        nfe: Evaluations of a solve of the test part, mean over its batches.
        validation_nfe: Of the validation part.
        num_steps: Steps of a solve of the test part.
        milliseconds: Median CPU time of a training step.
        history: Evaluations of the training solves.
        taus: Where the local steps started.
    """

    arm: str
    strength: float
    validation: float = 0.0
    test: float = 0.0
    nfe: float = 0.0
    validation_nfe: float = 0.0
    num_steps: float = 0.0
    milliseconds: float = 0.0
    history: list[int] = field(default_factory=list)
    taus: list[float] = field(default_factory=list)


class Classifier(nn.Module):
    """A flow, and a linear layer at its end; without classes, the flow alone."""

    def __init__(self, problem: Problem, hidden: int) -> None:
        super().__init__()
        dim = problem.train[0].shape[1]
        self.func = TimeMLP(dim, hidden)
        self.head = nn.Linear(dim, problem.num_classes) if problem.num_classes else None

    def loss(self, solution: Tensor, target: Tensor) -> Tensor:
        """Cross entropy of the end, or mean square distance from a trajectory."""
        if self.head is None:
            return F.mse_loss(solution.transpose(0, 1), target)
        return F.cross_entropy(self.head(solution[-1]), target)

    def error(self, solution: Tensor, target: Tensor) -> float:
        """Percent of wrong labels, or root mean square distance."""
        if self.head is None:
            return F.mse_loss(solution.transpose(0, 1), target).sqrt().item()
        return 100 * (self.head(solution[-1]).argmax(1) != target).float().mean().item()


def train(problem: Problem, arm: Arm, strength: float, sizes: Sizes, seed: int, device: str) -> Outcome:
    """Train from the same weights on the same batches as every other arm."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Classifier(problem, sizes.hidden).to(device)
    batches, drawn = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1)
    decay = strength if arm.uses == "decay" else 0.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=sizes.learning_rate, weight_decay=decay)
    # The official schedule of the first experiment, 2.5 to 1.
    weight = exponential_weight(strength, 0.4 * strength, sizes.steps) if arm.uses == "reg" else None
    outcome, clocks = Outcome(arm.name, strength), []
    states, targets = problem.train
    for step in range(sizes.steps):
        rows = torch.randint(len(states), (sizes.batch,), generator=batches).to(device)
        started = time.process_time()  # a busy neighbour does not lengthen it
        result = arm.solve(model.func, states[rows], problem.times, strength, drawn)
        loss = model.loss(result.solution, targets[rows])
        if weight is not None:
            loss = loss + weight(step) * result.reg
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        clocks.append(time.process_time() - started)
        outcome.history.append(result.nfe)
        if result.tau is not None:
            outcome.taus.append(float(result.tau))
    outcome.milliseconds = 1e3 * sorted(clocks)[len(clocks) // 2]
    outcome.validation, outcome.validation_nfe, _ = evaluate(problem, problem.validation, model, sizes)
    outcome.test, outcome.nfe, outcome.num_steps = evaluate(problem, problem.test, model, sizes)
    return outcome


def evaluate(problem: Problem, part: Pairs, model: Classifier, sizes: Sizes) -> tuple[float, float, float]:
    """Error on a part, and the mean evaluations and steps of its batches' solves."""
    plain = LocalRegularizer(atol=sizes.tolerance, rtol=sizes.tolerance).eval()
    with torch.no_grad():
        found = [plain.solve(model.func, states, problem.times) for states in part[0].split(sizes.batch)]
        error = model.error(torch.cat([one.solution for one in found], 1), part[1])
    return (
        error,
        sum(one.nfe for one in found) / len(found),
        sum(one.num_steps or 0 for one in found) / len(found),
    )


def choose(outcomes: list[Outcome], limit: float) -> Outcome:
    """The cheapest solve among those that keep the error; if none does, the one of least error."""
    kept = [one for one in outcomes if one.validation <= limit]
    if kept:
        return min(kept, key=lambda one: (one.validation_nfe, one.validation))
    return min(outcomes, key=lambda one: one.validation)


def search(
    arm: Arm, run: Callable[[Arm, float], Outcome], limit: float, widenings: int, thin: int
) -> list[Outcome]:
    """Train at every strength of the grid, and beyond it while the choice stands at an edge."""
    outcomes = [run(arm, strength) for strength in arm.grid[::thin]]
    for _ in range(widenings):
        strengths = sorted(one.strength for one in outcomes)
        best = choose(outcomes, limit).strength
        if best == strengths[-1] and 10 * best <= arm.widest:
            outcomes.append(run(arm, 10 * best))
        elif best == strengths[0] and len(strengths) > 1:
            outcomes.append(run(arm, best / 10))
        else:
            break
    return outcomes
