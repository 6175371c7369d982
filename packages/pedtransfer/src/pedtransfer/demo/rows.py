"""The table: every score without and with PED, their mean, and what else moves classes apart."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pedtransfer.demo.cases import Case
from pedtransfer.demo.measures import Measured, taus, truth

Row = dict[str, Any]
ALL = "mean of all scores"
NUM_RESAMPLES = 1000


def column(case: Case) -> str:
    """The name of a target's column.

    Args:
        case: The target.

    Returns:
        Letters, digits and underscores.
    """
    return "tau_" + re.sub(r"\W+", "_", case.name)


def metrics(cases: Sequence[Case]) -> dict[str, dict[str, str]]:
    """Describe the columns.

    Args:
        cases: The targets.

    Returns:
        Unit and direction of each.
    """
    higher = {"unit": "", "better": "higher"}
    found = {"tau": higher, "tau_low": higher, "tau_high": higher}
    found |= {"rise": higher, "rise_low": higher, "rise_high": higher}
    found |= {column(case): higher for case in cases}
    found["time"] = {"unit": "ms", "better": "lower"}
    if all(case.epoch_seconds for case in cases):
        found["cost"] = {"unit": "% of an epoch", "better": "lower"}
    return found


def table(
    cases: Sequence[Case],
    variants: Mapping[str, tuple[str, Measured]],
    rival: Measured,
    generator: torch.Generator,
) -> list[Row]:
    """Build every row.

    Args:
        cases: The targets.
        variants: By what is done to the features (`""`, `"PED"`, ...), the role of its rows and what it gave.
        rival: What the linear probe gave.
        generator: Draws models for the intervals.

    Returns:
        The rows. Time is that of a score and the move before it, a model; cost adds the extraction of its features,
        against one epoch of fine-tuning.
    """
    accuracies = truth(cases)
    drawn = torch.randint(len(accuracies[0]), (NUM_RESAMPLES, len(accuracies[0])), generator=generator)
    plain = variants[""][1]
    rows = []
    for name, (role, measured) in variants.items():
        if name in ("", "PED"):
            for score in measured.scores:
                label = f"{score} + {name}" if name else score
                rows.append(
                    _row(label, role, measured, [score], plain if name else None, cases, accuracies, drawn)
                )
    for name, (role, measured) in variants.items():
        label, before = (f"{ALL} + {name}", plain) if name else (ALL, None)
        rows.append(_row(label, role, measured, list(measured.scores), before, cases, accuracies, drawn))
    rows.append(_row("linear probe", "baseline", rival, ["linear probe"], None, cases, accuracies, drawn))
    return rows


def _row(
    label: str,
    role: str,
    measured: Measured,
    scores: list[str],
    before: Measured | None,
    cases: Sequence[Case],
    accuracies: list[Tensor],
    drawn: Tensor,
) -> Row:
    """Tau over some scores and all targets, and its rise over the same without a move."""

    def mean_tau(of: Measured, draws: Tensor | None = None) -> Tensor:
        return taus({score: of.scores[score] for score in scores}, accuracies, draws).mean(0)

    by_target, resampled = mean_tau(measured), mean_tau(measured, drawn).mean(0)
    row: Row = {"name": label, "role": role, "tau": by_target.mean().item()}
    row["tau_low"], row["tau_high"] = _ends(resampled)
    if before is not None:
        row["rise"] = (by_target - mean_tau(before)).mean().item()
        row["rise_low"], row["rise_high"] = _ends(resampled - mean_tau(before, drawn).mean(0))
    row |= {column(case): tau for case, tau in zip(cases, by_target.tolist(), strict=True)}
    seconds = sum(measured.seconds[score] for score in scores) / len(scores)
    row["time"] = 1000 * seconds
    if all(case.epoch_seconds for case in cases):
        extraction = sum(case.extraction_seconds for case in cases)
        epochs = sum(case.epoch_seconds or 0 for case in cases)
        row["cost"] = 100 * (seconds * len(cases) + extraction) / epochs
    return row


def _ends(values: Tensor) -> tuple[float, float]:
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high
