"""The four strategies, each with its own learning rate, and what stands against them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from instructresidual import Residual, applied, apply_residual, diagnose, residual
from instructresidual.demo.data import Corpus, Instructions
from instructresidual.demo.training import (
    Progress,
    State,
    accuracy,
    bits_per_byte,
    command_loss,
    snapshot,
    text_of,
    train,
)

SLACK = 1.03  # how much more loss on d2 than that of S2 still counts as equal
SCALES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
AVERAGES = (0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class Sizes:
    """How big the model and its training are."""

    num_layers: int
    size: int
    context: int
    batch: int
    pretraining_steps: int
    tuning_steps: int
    budget: int  # steps of continued pre-training that count as 1x
    learning_rates: tuple[float, ...]
    most_rates: int
    num_held_out: int
    num_commands: int


@dataclass(frozen=True)
class Score:
    """Accuracy on commands (%) and bits a byte on d2."""

    accuracy: float
    bits: float


@dataclass
class Study:
    """One seed's models and data; what is measured lands in `scores`, by row and budget."""

    model: nn.Module
    sizes: Sizes
    first: Corpus
    second: Corpus
    commands: dict[str, Instructions]
    order: int
    report: Progress
    base: State = field(default_factory=dict)
    instruct: State = field(default_factory=dict)
    runs: dict[tuple[str, float], dict[int, State]] = field(default_factory=dict)
    chosen: dict[str, float] = field(default_factory=dict)
    scores: dict[tuple[str, int], Score] = field(default_factory=dict)

    def budgets(self) -> list[int]:
        """Steps of continued pre-training: 1x, 2x, 4x."""
        return [self.sizes.budget, 2 * self.sizes.budget, 4 * self.sizes.budget]

    def prepare(self, model: nn.Module, share: float, report: Progress) -> State:
        """Pre-train a model on d1."""
        sizes = self.sizes
        loss = text_of(model, self.first, sizes.batch, sizes.context, self._source(1))
        train(model, loss, max(int(share * sizes.pretraining_steps), 1), 3e-3, report)
        return snapshot(model)

    def tune(self, report: Progress) -> State:
        """Fine-tune the model, as it is, on commands, with text of d1 in between so that it stays a language model."""
        sizes, source, lines = self.sizes, self._source(2), self.commands["training"]
        text = text_of(self.model, self.first, sizes.batch // 2, sizes.context, source)

        def loss() -> Tensor:
            return command_loss(self.model, lines.batch(32, source)) + text()

        train(self.model, loss, sizes.tuning_steps, 2e-3, report)
        return snapshot(self.model)

    def continued(self, start: str, learning_rate: float) -> dict[int, State]:
        """Pre-train base or instruct model on d2; the states at every budget. Every run sees the same batches."""
        key = (start, learning_rate)
        if key not in self.runs:
            sizes = self.sizes
            self.model.load_state_dict(self.base if start == "base" else self.instruct)
            loss = text_of(self.model, self.second, sizes.batch, sizes.context, self._source(3))

            def report(part: float, message: str) -> None:
                self.report(part, f"{start}, rate {learning_rate:.0e}: {message}")

            self.runs[key] = train(
                self.model, loss, 4 * sizes.budget, learning_rate, report, keep=self.budgets()
            )
        return self.runs[key]

    def score(
        self, state: State, part: str = "test", found: Residual | None = None, scale: float = 1.0
    ) -> Score:
        """Measure a state, with a residual if there is one."""
        self.model.load_state_dict(state)
        text = self.second.test if part == "test" else self.second.validation

        def measure() -> Score:
            bits = bits_per_byte(self.model, text, self.sizes.context)
            return Score(accuracy(self.model, self.commands[part]), bits)

        if found is None:
            return measure()
        with applied(self.model, found, scale):
            return measure()

    def choose_rate(self, start: str, better: Callable[[Score, Score], bool]) -> float:
        """The learning rate that is best on validation data at 4x; a rate at the edge widens the grid."""
        rates, last = sorted(self.sizes.learning_rates), self.budgets()[-1]
        scores = {rate: self.score(self.continued(start, rate)[last], "validation") for rate in rates}
        while True:
            best = best_of(scores, better)
            inside = min(scores) < best < max(scores)
            if inside or len(scores) >= self.sizes.most_rates:
                return best
            rate = best / 3 if best == min(scores) else best * 3
            scores[rate] = self.score(self.continued(start, rate)[last], "validation")

    def _source(self, offset: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.order + offset)


def best_of(scores: dict[float, Score], better: Callable[[Score, Score], bool]) -> float:
    """The key of the score that none is better than."""
    best, *others = scores
    for key in others:
        if better(scores[key], scores[best]):
            best = key
    return best


def lower_bits(score: Score, than: Score) -> bool:
    """Better at d2."""
    return score.bits < than.bits


def follows_better(limit: float) -> Callable[[Score, Score], bool]:
    """Better at commands, among those that are as good at d2 as `limit`; else better at d2."""

    def better(score: Score, than: Score) -> bool:
        if (score.bits <= limit) != (than.bits <= limit):
            return score.bits <= limit
        return score.accuracy > than.accuracy if score.bits <= limit else score.bits < than.bits

    return better


def run(study: Study, other: nn.Module, stage: Callable[[float, float, str], Progress]) -> dict[str, object]:
    """Do everything; return what the figures need besides the scores."""
    study.base = study.prepare(study.model, 1.0, stage(0.0, 0.14, "pre-training"))
    study.instruct = study.tune(stage(0.14, 0.16, "instruction tuning"))
    found = residual(study.base, study.instruct)
    study.report = stage(0.3, 0.5, "continued pre-training")
    study.chosen["base"] = study.choose_rate("base", lower_bits)
    continued = study.continued("base", study.chosen["base"])
    last = study.budgets()[-1]
    alone, summed = (study.score(continued[last], "validation", extra) for extra in (None, found))
    limit = max(SLACK * alone.bits, summed.bits)  # rivals may have as much loss on d2 as S3 has
    study.chosen["instruct"] = study.choose_rate("instruct", follows_better(limit))
    tuned = study.continued("instruct", study.chosen["instruct"])
    alike = study.continued("instruct", study.chosen["base"])

    for budget in [0, *study.budgets()]:
        study.report(1.0, f"measuring, {budget} steps")
        ours, theirs = (study.base, study.instruct) if budget == 0 else (continued[budget], tuned[budget])
        study.scores["instruct", budget] = study.scores.get(("instruct", 0)) or study.score(study.instruct)
        study.scores["S1", budget] = study.score(theirs)
        study.scores["S1 same", budget] = study.score(alike[budget] if budget else study.instruct)
        study.scores["S2", budget] = study.score(ours)
        study.scores["S3", budget] = study.score(ours, found=found)
        study.scores["S4", budget] = study.score(theirs, found=found)
        average = _averaged(study, ours, limit if budget else math.inf)
        study.scores["average", budget] = study.score(_mix(study.instruct, ours, average))
        if budget == last:
            study.chosen["average"] = average
    compressed = _compressed(found)
    for name, small in compressed.items():
        study.scores[name, last] = study.score(continued[last], found=small)
    scale_curve = {scale: study.score(continued[last], found=found, scale=scale) for scale in SCALES}

    stranger = study.prepare(other, 0.5, stage(0.85, 0.1, "pre-training another seed"))
    flagged = diagnose(stranger, found)
    study.scores["unrelated", last] = _forced(study, stranger, found)
    return {
        "residual": found,
        "diagnosis": diagnose(continued[last], found, study.base),
        "stranger": flagged,
        "scale_curve": scale_curve,
        "errors": {name: small.error for name, small in compressed.items()},
    }


def _averaged(study: Study, continued: State, limit: float) -> float:
    """The share of the instruct model in the average with the continued base, chosen on validation data."""
    scores = {share: study.score(_mix(study.instruct, continued, share), "validation") for share in AVERAGES}
    return best_of(scores, follows_better(limit))


def _mix(one: State, other: State, share: float) -> State:
    return {name: share * one[name] + (1 - share) * other[name] for name in one}


def _compressed(found: Residual) -> dict[str, Residual]:
    source = torch.Generator().manual_seed(0)
    return {
        "S3, rank 16": found.lowrank(16),
        "S3, rank 4": found.lowrank(4),
        "S3, 4 bits": found.quantise(4, 64),
        "S3, largest 20 %": found.sparsify(0.2),
        "S3, random 50 %": found.sparsify(0.5, method="random", generator=source),
    }


def _forced(study: Study, stranger: State, found: Residual) -> Score:
    state = {name: tensor.clone() for name, tensor in stranger.items()}
    apply_residual(state, found, force=True)
    return study.score(state)
