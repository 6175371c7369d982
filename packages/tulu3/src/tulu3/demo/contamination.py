"""Paragraphs of the Python manual, copied in part into a training set: who finds those copied for the most part?"""

from __future__ import annotations

import re
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tulu3 import ContaminationReport, Decontaminator

SHARES = [step / 10 for step in range(11)]
_EDITS = 0.03  # share of copied words that are changed


class Planted(NamedTuple):
    """Training documents, test questions, and the share of each question that was copied."""

    train: list[str]
    test: list[str]
    share: Tensor


def plant(num_tests: int, num_documents: int, generator: torch.Generator) -> Planted:
    """Hide partly copied and slightly edited questions among other paragraphs."""
    text = "\n\n".join(topics.values())
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text)]
    paragraphs = list(dict.fromkeys(part for part in paragraphs if len(part.split()) >= 30))
    order = torch.randperm(len(paragraphs), generator=generator).tolist()
    chosen = [paragraphs[index] for index in order]
    test, others = chosen[:num_tests], chosen[num_tests:]
    share = torch.tensor(SHARES)[torch.randint(len(SHARES), (num_tests,), generator=generator)]
    copies = [
        _copied(question, others[index % len(others)], float(share[index]), generator)
        for index, question in enumerate(test)
    ]
    return Planted(others[: num_documents - num_tests] + copies, test, share)


def scores(planted: Planted) -> dict[str, tuple[Tensor, ContaminationReport | None]]:
    """Scores of the questions by the paper's rule and by its rivals, with a report where there is one."""
    reports = {
        "decontamination: 8-gram coverage": Decontaminator(8).index(planted.train).score(planted.test),
        "decontamination: whole string": Decontaminator(mode="exact")
        .index(planted.train)
        .score(planted.test),
        "decontamination: 13-gram": Decontaminator(13).index(planted.train).score(planted.test),
    }
    found: dict[str, tuple[Tensor, ContaminationReport | None]] = {
        name: (report.scores, report) for name, report in reports.items()
    }
    # As for GPT-3: one shared 13-gram is enough.
    found["decontamination: 13-gram"] = ((reports["decontamination: 13-gram"].scores > 0).double(), None)
    found["decontamination: shared words"] = (_shared_words(planted), None)
    return found


def roc(score: Tensor, truth: Tensor) -> tuple[list[float], list[float], float]:
    """False and true positive rates (%) at every threshold, and the area under them (%)."""
    bars = torch.cat([torch.tensor([float("inf")], dtype=score.dtype), score.unique().flip(0)])
    hits = score >= bars[:, None]
    false, true = (100 * hits[:, side].double().mean(1) for side in (~truth, truth))
    return false.tolist(), true.tolist(), float(torch.trapezoid(true, false)) / 100


def row(name: str, score: Tensor, report: ContaminationReport | None, truth: Tensor) -> dict[str, Any]:
    """One row of the table."""
    flagged = None if report is None else report.contaminated
    return {
        "name": name,
        "role": "method" if "8-gram" in name else "baseline",
        "roc_area": roc(score, truth)[2],
        "found": None if flagged is None else 100 * float(flagged[truth].double().mean()),
        "false_alarms": None if flagged is None else 100 * float(flagged[~truth].double().mean()),
    }


def _copied(question: str, other: str, share: float, generator: torch.Generator) -> str:
    words, filler = question.split(), other.split()
    count = round(share * len(words))
    start = int(torch.randint(len(words) - count + 1, (1,), generator=generator))
    copy = words[start : start + count]
    edits = torch.rand(len(copy), generator=generator) < _EDITS
    copy = [
        filler[index % len(filler)] if edit else word
        for index, (word, edit) in enumerate(zip(copy, edits, strict=True))
    ]
    cut = int(torch.randint(len(filler) + 1, (1,), generator=generator))
    return " ".join([*filler[:cut], *copy, *filler[cut:]])


def _shared_words(planted: Planted) -> Tensor:
    documents = [set(re.findall(r"\w+", text.lower())) for text in planted.train]
    best = []
    for question in planted.test:
        words = set(re.findall(r"\w+", question.lower()))
        best.append(max(len(words & document) for document in documents) / len(words))
    return torch.tensor(best, dtype=torch.float64)
