"""What users hand to an estimator, one trajectory or many, as double tensors, and results in the same form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from koopmanlimits._checks import real_or_complex


@dataclass(frozen=True)
class Trajectories:
    """Trajectories and the form they came in.

    Attributes:
        parts: (T, d) states of each.
        form: `"series"` for one (T, d), `"stack"` for (B, T, d), `"list"` for a list of (T, d).
        arrays: Whether results are arrays.
        names: Names of the features, where the data have them.
    """

    parts: list[Tensor]
    form: str
    arrays: bool
    names: tuple[str, ...] | None

    def like(self, parts: Sequence[Tensor]) -> Any:
        """One result per trajectory, in the form of the trajectories."""
        if self.form == "list":
            return [self.native(part) for part in parts]
        return self.native(self.joined(parts))

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """Results of one shape: that of the series, or stacked over trajectories."""
        return parts[0] if self.form == "series" else torch.stack(list(parts))

    def native(self, tensor: Tensor) -> Any:
        """An array if arrays came."""
        return tensor.detach().cpu().resolve_conj().numpy() if self.arrays else tensor


def read(name: str, value: Any) -> Trajectories:
    """One trajectory (T, d), several of one length (B, T, d), or a list of them.

    Raises:
        TypeError: If the values are no numbers, or sparse.
        ValueError: If the shape is another one, a value is not finite, or the trajectories differ in d.
    """
    if isinstance(value, list | tuple) and len(value) and _depth(value[0]) == 2:
        parts = [_table(f"{name}[{index}]", part, 2) for index, part in enumerate(value)]
        if len({part.shape[1] for part in parts}) > 1:
            raise ValueError(
                f"{name} must hold trajectories of one size of state, got {[part.shape[1] for part in parts]}"
            )
        dtype = torch.complex128 if any(part.is_complex() for part in parts) else torch.float64
        names = {_names(part) for part in value}
        if len(names) > 1:
            raise ValueError(f"{name} must hold trajectories with the same feature names")
        arrays = not any(isinstance(part, Tensor) for part in value)
        return Trajectories([part.to(dtype) for part in parts], "list", arrays, names.pop())
    table = _table(name, value)
    arrays = not isinstance(value, Tensor)
    if table.ndim == 3:
        return Trajectories(list(table), "stack", arrays, None)
    return Trajectories([table], "series", arrays, _names(value))


# --- pieces ----------------------------------------------------------------------------------------


def _depth(value: Any) -> int:
    if isinstance(value, list | tuple):
        return 1 + (_depth(value[0]) if len(value) else 0)
    return len(getattr(value, "shape", ()))


def _names(value: Any) -> tuple[str, ...] | None:
    """Column names of a data frame; as in scikit-learn only if all are strings."""
    names = tuple(getattr(value, "columns", ()))
    return names if names and all(isinstance(name, str) for name in names) else None


def _table(name: str, value: Any, dimensions: int | None = None) -> Tensor:
    if isinstance(value, Tensor):
        tensor = value.detach()
    elif hasattr(value, "toarray"):
        raise TypeError(f"{name} must be dense, got {type(value).__name__}: pass {name}.toarray()")
    elif hasattr(value, "__array__"):
        tensor = _from_array(name, value)
    else:
        tensor = _from_list(name, value)
    if not (tensor.is_floating_point() or tensor.is_complex()):
        tensor = tensor.to(torch.float64)
    table = real_or_complex(name, tensor, dimensions or (3 if tensor.ndim == 3 else 2))
    if table.numel() == 0:
        raise ValueError(f"{name} must hold at least one state, got shape {tuple(table.shape)}")
    return table


def _from_array(name: str, value: Any) -> Tensor:
    """A copy in double precision: views with negative strides and read-only arrays are taken too."""
    import numpy as np  # whoever has an array has NumPy

    if isinstance(value, np.ma.MaskedArray):
        masked: Any = value.astype(np.result_type(value.dtype, np.float64))
        value = masked.filled(np.nan)
    array = np.asarray(value)
    try:
        array = np.array(array, dtype=np.complex128 if array.dtype.kind == "c" else np.float64, order="C")
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must hold numbers, got {array.dtype}") from error
    return torch.from_numpy(array)


def _from_list(name: str, value: Any) -> Tensor:
    if isinstance(value, list | tuple) and value and all(isinstance(row, Tensor) for row in value):
        return torch.stack([row.detach() for row in value])
    try:
        tensor = torch.as_tensor(value)
        return torch.as_tensor(value, dtype=torch.complex128 if tensor.is_complex() else torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a table of numbers, got {type(value).__name__}: {error}") from error
