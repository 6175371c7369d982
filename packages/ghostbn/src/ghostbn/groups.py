"""Which sample of a large batch belongs to which ghost batch."""

from __future__ import annotations

import operator
from typing import Literal, get_args

import torch
from torch import Tensor

Grouping = Literal["strided", "contiguous"]
Remainder = Literal["merge", "own", "error"]
GROUPINGS: tuple[str, ...] = get_args(Grouping)  # here, as the compiler of torch 2.4 does not read types
REMAINDERS: tuple[str, ...] = get_args(Remainder)


def ghost_groups(
    num_samples: int, ghost_size: int, *, grouping: Grouping = "strided", remainder: Remainder = "merge"
) -> Tensor:
    """Tell which ghost batch each sample of a batch belongs to.

    Args:
        num_samples: N, the size of the batch.
        ghost_size: S, see `ghost_batch_norm`.
        grouping: See `ghost_batch_norm`.
        remainder: See `ghost_batch_norm`.

    Returns:
        (N,) integers in 0..G-1, in the order in which the running statistics see the ghost batches.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If an option is unknown or a size does not fit.

    Examples:
        >>> ghost_groups(7, 2).tolist()
        [0, 1, 0, 1, 2, 2, 2]
        >>> ghost_groups(7, 2, grouping="contiguous", remainder="own").tolist()
        [0, 0, 1, 1, 2, 2, 3]
    """
    num_samples = check_size("num_samples", num_samples)
    ghost_size = check_size("ghost_size", ghost_size)
    check_choice("grouping", grouping, GROUPINGS)
    check_choice("remainder", remainder, REMAINDERS)
    num_equal, size, tail_size = layout(num_samples, ghost_size, remainder)
    samples = torch.arange(num_equal * size)
    body = samples % num_equal if grouping == "strided" else samples // size
    return torch.cat([body, torch.full((tail_size,), num_equal)])


def layout(num_samples: int, ghost_size: int, remainder: Remainder) -> tuple[int, int, int]:
    """Divide a batch: how many equal ghost batches come first, their size, and that of the one after them.

    Args:
        num_samples: N.
        ghost_size: S.
        remainder: See `ghost_batch_norm`.

    Returns:
        The number, the size, and the size of the last one, 0 if there is none.

    Raises:
        ValueError: If there is a remainder and it is an error.
    """
    # Not divmod: a compiler that keeps the batch size open knows only the two operators.
    full, rest = num_samples // ghost_size, num_samples % ghost_size
    if rest > 0 and remainder == "error":
        raise ValueError(
            f"ghost_size must divide the batch when remainder is 'error', got {ghost_size} for {num_samples}"
        )
    if full == 0:
        return 1, num_samples, 0
    if rest == 0 or remainder == "own":
        return full, ghost_size, rest
    if full == 1:
        return 1, num_samples, 0
    return full - 1, ghost_size, ghost_size + rest


def check_size(name: str, size: int) -> int:
    """Return a size as a plain integer, whatever integer type it came in.

    Args:
        name: The argument, for the error.
        size: Must be an integer from 1 on.

    Returns:
        The same number.

    Raises:
        TypeError: If it is not an integer.
        ValueError: If it is less than 1.
    """
    try:
        if isinstance(size, bool):
            raise TypeError
        number = operator.index(size)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {size!r}") from None
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}")
    return number


def check_number(name: str, value: float) -> None:
    """Raise unless a value can be compared with numbers.

    Args:
        name: The argument, for the error.
        value: A number of any library.

    Raises:
        TypeError: If it is none.
    """
    try:
        bool(value < 0)
    except TypeError:
        raise TypeError(f"{name} must be a number, got {value!r}") from None


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise unless an option is one of its values.

    Args:
        name: The argument, for the error.
        value: What was given.
        choices: What may be.

    Raises:
        ValueError: If it is none of them.
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")
