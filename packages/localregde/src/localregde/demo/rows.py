"""The table, from the outcomes that were chosen."""

from __future__ import annotations

from typing import Any

from localregde.demo.rivals import Arm
from localregde.demo.training import Outcome

Row = dict[str, Any]

METRICS = {
    "accuracy": {"unit": "%", "better": "higher"},
    "rms_error": {"unit": "", "better": "lower"},
    "nfe": {"unit": "evaluations", "better": "lower"},
    "steps": {"unit": "", "better": "lower"},
    "saved": {"unit": "% of vanilla's evaluations", "better": "higher"},
    "training_time": {"unit": "x vanilla's", "better": "lower"},
    "strength": {"unit": "", "better": "neither"},
}


def table(arms: list[Arm], chosen: dict[str, Outcome], label: str, classes: bool) -> list[Row]:
    """One row an arm."""
    vanilla = chosen["vanilla"]
    rows = []
    for arm in arms:
        one = chosen[arm.name]
        error = {"accuracy": 100 - one.test} if classes else {"rms_error": one.test}
        rows.append(
            {
                "name": f"{label}: {arm.name}",
                "role": arm.role,
                **error,
                "nfe": one.nfe,
                "steps": one.num_steps,
                "saved": 100 * (1 - one.nfe / vanilla.nfe),
                "training_time": one.milliseconds / vanilla.milliseconds,
                "strength": one.strength,
            }
        )
    return rows
