"""The demo contract: what a package's `demo()` must return, and what the frame stores around it."""

from __future__ import annotations

import operator
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from armillary.presets import PRESETS, Preset

__all__ = [
    "PRESETS",
    "Condition",
    "ContractError",
    "Curve",
    "Failure",
    "Figure",
    "Image",
    "Machine",
    "Metric",
    "Preset",
    "Result",
    "Row",
    "Run",
    "Series",
    "Setting",
    "check_result",
    "meets",
]

Number = FiniteFloat  # strict: neither a bool nor a string, and no integer beyond the range of floats
Text = Annotated[str, Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Metric(_Strict):
    """A column of the table: its unit and which way is better."""

    unit: str
    better: Literal["higher", "lower", "neither"]


class Row(BaseModel):
    """One line of the table: a name, a role, and one value per metric (absent or `None`: not measured)."""

    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, Number | None]

    name: Text
    role: Literal["method", "baseline", "ablation", "reference"]

    @property
    def values(self) -> dict[str, float | None]:
        """Metric name -> value."""
        return self.__pydantic_extra__


class Condition(_Strict):
    """One clause of the verdict: what it says, the figure measured, what it needs, and whether that holds.

    `needs` is a comparison of the figure with a number, such as `">= 5 points"` or `"< 1"`; a figure that the
    rows do not give (`None`) holds nothing.
    """

    says: Text
    figure: Number | None
    needs: str
    holds: bool

    @model_validator(mode="after")
    def _holds_as_needed(self) -> Condition:
        right = meets(self.figure, self.needs)
        if right != self.holds:
            raise ValueError(f"holds is {self.holds}, but {self.figure} {self.needs} is {right}")
        return self


_SIGNS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "==": operator.eq}
_NEEDS = re.compile(r"(>=|<=|>|<|==) ([-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[-+]?[0-9]+)?)(?: \S.*)?")


def meets(figure: float | None, needs: str) -> bool:
    """Whether a figure is as needed; `None` never is.

    Args:
        figure: What was measured.
        needs: A comparison with a number, a unit may follow: `">= 5 points"`.

    Raises:
        ValueError: If `needs` is no such comparison.
    """
    found = _NEEDS.fullmatch(needs)
    if not found:
        raise ValueError(f'needs must be a comparison such as ">= 5 points", is {needs!r}')
    sign, number = found.groups()
    return figure is not None and bool(_SIGNS[sign](figure, float(number)))


class Series(_Strict):
    """A line of a plot."""

    x: list[Number]
    y: list[Number]

    @model_validator(mode="after")
    def _same_length(self) -> Series:
        if len(self.x) != len(self.y):
            raise ValueError(f"x has {len(self.x)} values, y has {len(self.y)}")
        return self


class Curve(_Strict):
    """A plot of named lines."""

    title: Text
    x_label: str
    y_label: str
    series: dict[str, Series]
    x_scale: Literal["linear", "log"] = "linear"
    y_scale: Literal["linear", "log"] = "linear"


class Image(_Strict):
    """A two-dimensional field."""

    title: Text
    values: list[list[Number]]
    caption: str = ""

    @model_validator(mode="after")
    def _rectangular(self) -> Image:
        if not self.values or len({len(row) for row in self.values}) != 1 or not self.values[0]:
            raise ValueError("values must be a non-empty rectangle")
        return self


class Figure(_Strict):
    """Plots that stand by themselves, such as those of a recipe."""

    curves: list[Curve] = []
    images: list[Image] = []


class Setting(BaseModel):
    """Enough to judge fairness; further keys are welcome."""

    model_config = ConfigDict(extra="allow", strict=True)

    data: Any
    model: Any
    budget: Any


class Result(_Strict):
    """What `demo()` returns."""

    claim: Text
    setting: Setting
    metrics: dict[str, Metric]
    rows: Annotated[list[Row], Field(min_length=2)]
    conditions: Annotated[list[Condition], Field(min_length=1)]
    holds: bool
    curves: list[Curve]
    images: list[Image] = []

    @model_validator(mode="after")
    def _holds_if_all_do(self) -> Result:
        if self.holds != all(condition.holds for condition in self.conditions):
            raise ValueError(f"holds is {self.holds}, which is not what its conditions say")
        return self

    @model_validator(mode="after")
    def _table_is_complete(self) -> Result:
        names = [row.name for row in self.rows]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"rows: more than one is called {', '.join(twice)}")
        for role in ("method", "baseline"):
            if all(row.role != role for row in self.rows):
                raise ValueError(f"rows: no row has the role {role!r}")
        measured = {key for row in self.rows for key in row.values}
        if unknown := measured - self.metrics.keys():
            raise ValueError(f"rows: {sorted(unknown)} not declared in metrics")
        if unused := self.metrics.keys() - measured:
            raise ValueError(f"metrics: {sorted(unused)} appear in no row")
        return self


class Machine(_Strict):
    """Where a run was made."""

    cpu: str
    cores: int
    system: str
    python: str
    torch: str
    accelerator: str | None = None


class Run(_Strict):
    """One stored run: the demo's result and where it comes from."""

    name: str
    version: str
    preset: Preset
    seed: int
    device: str
    seconds: float
    machine: Machine
    result: Result


class Failure(_Strict):
    """One run that gave no result, and why."""

    name: str
    version: str
    preset: Preset
    seed: int
    device: str
    seconds: float
    reason: str
    detail: str


class ContractError(ValueError):
    """A demo's result breaks the contract; the message names each field."""


def check_result(data: Any) -> Result:
    """Validate a demo's result.

    Args:
        data: What `demo()` returned.

    Returns:
        The validated result.

    Raises:
        ContractError: Naming every field that breaks the contract.
    """
    try:
        return Result.model_validate(data)
    except ValidationError as error:
        raise ContractError("\n".join(_explain(item) for item in error.errors())) from None


def _explain(item: Any) -> str:
    where = ""
    for part in item["loc"]:
        where += f"[{part}]" if isinstance(part, int) else f".{part}" if where else str(part)
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] in ("finite_number", "float_type"):
        message = message.replace("Input should be", "must be") + f", is {_brief(item['input'])}"
    return f"{where}: {message}" if where else message


def _brief(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return (
            "an integer beyond the range of floats"  # all others are taken; its digits are too many to show
        )
    return repr(value) if isinstance(value, float) else type(value).__name__
