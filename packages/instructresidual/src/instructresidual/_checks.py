"""What several public functions ask of their arguments."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeAlias

from instructresidual.naming import GROUPS, group_of, matcher

Scale: TypeAlias = float | Mapping[str, float]


def checked_count(name: str, value: Any) -> int:
    """Return an integer, NumPy's too, of at least 1."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}")
    return number


def checked_choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """Refuse what is not one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def checked_scale(scale: Any, names: Iterable[str]) -> dict[str, float]:
    """Return the scale of every tensor: of the first pattern that names it, 1 where none does."""
    names = list(names)
    if not isinstance(scale, Mapping):
        return dict.fromkeys(names, _finite(scale))
    rules = [(matcher(pattern, "scale"), pattern, _finite(value)) for pattern, value in scale.items()]
    for matches, pattern, _ in rules:
        if pattern not in GROUPS and not any(map(matches, names)):
            groups = sorted({group_of(name) for name in names})
            raise ValueError(
                f"scale names {pattern!r}, which is no group (there are {groups}) and matches no tensor"
            )
    return {name: next((value for matches, _, value in rules if matches(name)), 1.0) for name in names}


def _finite(scale: Any) -> float:
    try:
        value = float(scale)
    except (TypeError, ValueError):
        raise TypeError(f"scale must be a number or map groups to numbers, got {scale!r}") from None
    if not math.isfinite(value):
        raise ValueError(f"scale must be finite, got {value}")
    return value
