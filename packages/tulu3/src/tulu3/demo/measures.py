"""What is measured of every model, on problems that none was trained on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tulu3.demo.model import CharacterModel, sample
from tulu3.demo.search import Choice
from tulu3.demo.sums import NUM_TOKENS, PAD, STOP, Judge, Problems
from tulu3.demo.training import Texts, Trained, mean_divergence

METRICS = {
    "accuracy": {"unit": "%", "better": "higher"},
    "ended": {"unit": "%", "better": "higher"},
    "divergence": {"unit": "nats", "better": "lower"},
    "length": {"unit": "tokens", "better": "lower"},
    "rate": {"unit": "", "better": "neither"},
    "beta": {"unit": "", "better": "neither"},
    "roc_area": {"unit": "%", "better": "higher"},
    "found": {"unit": "%", "better": "higher"},
    "false_alarms": {"unit": "%", "better": "lower"},
}
ROLES = {
    "RLVR": "method",
    "DPO, length-normalised": "method",
    "RLVR without stop penalty": "ablation",
    "random reward": "ablation",
}


@dataclass
class Bench:
    """The problems, by what they are for, and how a model is judged on them."""

    train: Problems
    valid: Problems
    test: Problems
    judge: Judge
    seed: int
    max_length: int
    mixture: Texts = field(default_factory=lambda: Texts(torch.zeros(0, 1), torch.zeros(0, 1)))
    betas: dict[str, dict[float, float]] = field(default_factory=dict)

    def generator(self) -> torch.Generator:
        """The same randomness for every run."""
        return torch.Generator().manual_seed(self.seed + 1)

    def validate(self, trained: Trained) -> float:
        """Share of validation problems that a sample answers right (%)."""
        responses = sample(trained.model, self.valid.prompts(), NUM_TOKENS, self.generator())
        return 100 * float(self.judge.verified(self.valid, responses).float().mean())

    def responses(self, model: CharacterModel, *, greedy: bool = False) -> Tensor:
        """One response to each test problem."""
        return sample(model, self.test.prompts(), NUM_TOKENS, self.generator(), greedy=greedy)

    def rows(self, start: CharacterModel, chosen: dict[str, Choice]) -> list[dict[str, Any]]:
        """The table, all but what concerns decontamination."""
        rows = [
            self._row("SFT", "baseline", start, start),
            self._row("SFT, greedy", "baseline", start, start, greedy=True),
        ]
        for name, choice in chosen.items():
            row = self._row(name, ROLES.get(name, "baseline"), choice.trained.model, start)
            row["rate"] = choice.value
            if name in self.betas:
                row["beta"] = max(self.betas[name], key=self.betas[name].__getitem__)
            rows.append(row)
        return rows

    def _row(
        self, name: str, role: str, model: CharacterModel, start: CharacterModel, *, greedy: bool = False
    ) -> dict[str, Any]:
        responses = self.responses(model, greedy=greedy)
        return {
            "name": name,
            "role": role,
            "accuracy": 100 * float(self.judge.verified(self.test, responses).float().mean()),
            "ended": 100 * float((responses == STOP).any(1).float().mean()),
            "divergence": None if greedy else mean_divergence(model, start, self.test, responses),
            "length": float((responses != PAD).sum(1).float().mean()),
        }
