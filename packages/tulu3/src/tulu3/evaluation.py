"""Development and unseen evaluations: the first drive decisions, the second are looked at once."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

Evaluation = Callable[[Any], float]
Skills = Mapping[str, tuple[Sequence[str], Sequence[str]]]

PAPER_SKILLS: Skills = MappingProxyType(
    {
        "knowledge recall": (("MMLU", "PopQA", "TruthfulQA"), ("MMLU-Pro", "GPQA")),
        "reasoning": (("BBH", "DROP"), ("AGIEval",)),
        "math": (("MATH", "GSM8K"), ("DeepMind Mathematics",)),
        "coding": (("HumanEval", "HumanEval+"), ("BigCodeBench-Hard",)),
        "instruction following": (("IFEval", "AlpacaEval 2"), ("IFEval-OOD", "HREF")),
        "safety": (("safety",), ()),
    }
)
"""The paper's evaluations, development and unseen, by skill (arXiv 2411.15124, table 3)."""


@dataclass(frozen=True)
class EvaluationReport:
    """What the unseen evaluations say of the decisions that were made without them.

    Attributes:
        dev: Macro average of the development evaluations, by checkpoint.
        unseen: Macro average of the unseen evaluations, by checkpoint.
        gaps: For each checkpoint and skill: development minus unseen average; skills with both only.
        rank_agreement: Kendall's tau-b between the two averages over checkpoints; None for fewer than 2
            checkpoints, or where all averages of one kind are equal.
    """

    dev: dict[str, float]
    unseen: dict[str, float]
    gaps: dict[str, dict[str, float]]
    rank_agreement: float | None


class EvalScheme:
    """Keep the unseen evaluations locked until development is over (arXiv 2411.15124, section 7).

    Args:
        dev: Development evaluations by name; each takes a model and returns a score.
        unseen: Unseen evaluations by name.
        skills: Which evaluations, development and unseen, measure the same skill.

    Raises:
        ValueError: If there is no development or unseen evaluation, a name is in both, or a skill names an
            evaluation that there is not.

    Examples:
        >>> scheme = EvalScheme(
        ...     {"GSM8K": lambda model: model["sums"]},
        ...     {"DeepMind Mathematics": lambda model: model["algebra"]},
        ...     {"math": (["GSM8K"], ["DeepMind Mathematics"])},
        ... )
        >>> scheme.develop("first", {"sums": 60.0})
        {'GSM8K': 60.0}
        >>> scheme.locked
        True
        >>> report = scheme.final({"first": {"sums": 60.0, "algebra": 25.0}})
        >>> report.gaps, scheme.locked
        ({'first': {'math': 35.0}}, False)
    """

    def __init__(
        self, dev: Mapping[str, Evaluation], unseen: Mapping[str, Evaluation], skills: Skills
    ) -> None:
        if not dev or not unseen:
            raise ValueError(f"dev and unseen must have evaluations, got {len(dev)} and {len(unseen)}")
        if both := sorted(dev.keys() & unseen.keys()):
            raise ValueError(f"unseen must share no evaluation with dev, got {both}")
        for skill, (developed, held) in skills.items():
            if unknown := sorted({*developed} - dev.keys() | {*held} - unseen.keys()):
                raise ValueError(f"skills[{skill!r}] must name evaluations of dev and unseen, got {unknown}")
        self._dev, self._unseen = dict(dev), dict(unseen)
        self._skills = {skill: (list(developed), list(held)) for skill, (developed, held) in skills.items()}
        self._scores: dict[str, dict[str, float]] = {}
        self._locked = True

    @property
    def locked(self) -> bool:
        """Whether the unseen evaluations have not been run yet."""
        return self._locked

    @property
    def scores(self) -> dict[str, dict[str, float]]:
        """All scores so far, by checkpoint and evaluation; a copy."""
        return {checkpoint: dict(found) for checkpoint, found in self._scores.items()}

    def develop(self, checkpoint: str, model: Any) -> dict[str, float]:
        """Run the development evaluations.

        Args:
            checkpoint: Name under which the scores are kept.
            model: What the evaluations take.

        Returns:
            Scores by evaluation.

        Raises:
            ValueError: If an evaluation's score is not a finite number.
            RuntimeError: If the unseen evaluations have been run: development is over.
        """
        if not self._locked:
            raise RuntimeError("development is over: the unseen evaluations have been run")
        self._scores[checkpoint] = _run(self._dev, model)
        return dict(self._scores[checkpoint])

    def average(self, checkpoint: str) -> float:
        """Macro average of a checkpoint's development scores."""
        found = self._scores_of(checkpoint)
        return _mean([found[name] for name in self._dev])

    def final(self, models: Mapping[str, Any]) -> EvaluationReport:
        """Run the unseen evaluations, once and for all.

        Args:
            models: The models by checkpoint; each must have been developed.

        Returns:
            An `EvaluationReport`.

        Raises:
            RuntimeError: If they have been run before.
            ValueError: If there is no model, a checkpoint is unknown, or a score is not a finite number.
        """
        if not self._locked:
            raise RuntimeError("the unseen evaluations have been run: they are looked at once")
        if not models:
            raise ValueError("models must have at least one checkpoint, got none")
        for checkpoint in models:
            self._scores_of(checkpoint)
        self._locked = False  # before the first is run: one that fails has been looked at, too
        for checkpoint, model in models.items():
            self._scores[checkpoint] |= _run(self._unseen, model)
        return self._report(list(models))

    def save(self, path: str | Path) -> None:
        """Write scores and lock as JSON, so that a new process cannot look again."""
        Path(path).write_text(json.dumps({"locked": self._locked, "scores": self._scores}, indent=2) + "\n")

    def load(self, path: str | Path) -> None:
        """Take over scores and lock from a file that `save` wrote.

        Raises:
            ValueError: If the file is another, or has scores of evaluations that this scheme has not.
        """
        state = json.loads(Path(path).read_text())
        if not isinstance(state, dict) or state.keys() != {"locked", "scores"}:
            raise ValueError("path must hold 'locked' and 'scores', as save() writes them")
        names = {name for scores in state["scores"].values() for name in scores}
        if unknown := sorted(names - self._dev.keys() - self._unseen.keys()):
            raise ValueError(f"path must hold scores of this scheme's evaluations, got {unknown}")
        self._locked, self._scores = bool(state["locked"]), state["scores"]

    def _scores_of(self, checkpoint: str) -> dict[str, float]:
        if checkpoint not in self._scores:
            raise ValueError(f"checkpoint must be one of {sorted(self._scores)}, got {checkpoint!r}")
        return self._scores[checkpoint]

    def _report(self, checkpoints: list[str]) -> EvaluationReport:
        dev = {checkpoint: self.average(checkpoint) for checkpoint in checkpoints}
        unseen = {
            checkpoint: _mean([self._scores[checkpoint][name] for name in self._unseen])
            for checkpoint in checkpoints
        }
        gaps = {checkpoint: self._gaps(self._scores[checkpoint]) for checkpoint in checkpoints}
        return EvaluationReport(dev, unseen, gaps, _kendall(list(dev.values()), list(unseen.values())))

    def _gaps(self, scores: Mapping[str, float]) -> dict[str, float]:
        return {
            skill: _mean([scores[name] for name in developed]) - _mean([scores[name] for name in held])
            for skill, (developed, held) in self._skills.items()
            if developed and held
        }


def _run(evaluations: Mapping[str, Evaluation], model: Any) -> dict[str, float]:
    scores = {name: float(evaluate(model)) for name, evaluate in evaluations.items()}
    for name, score in scores.items():
        if not math.isfinite(score):
            raise ValueError(f"evaluation {name!r} must return a finite number, got {score}")
    return scores


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _kendall(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Kendall's tau-b: concordant minus discordant pairs, over the geometric mean of pairs that are not tied."""
    signs = [torch.tensor(values, dtype=torch.float64) for values in (first, second)]
    one, two = ((values[:, None] - values).sign() for values in signs)
    scale = math.sqrt(float(one.square().sum()) * float(two.square().sum()))
    return float((one * two).sum()) / scale if scale else None
