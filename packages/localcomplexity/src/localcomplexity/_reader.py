"""Hooks that count, while the model runs on vertices, which neurons change sign between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from localcomplexity._sites import MAX_POOLS, Site


class EnoughRead(Exception):
    """Raised by a hook to end the forward pass after the last reading."""


class Reader:
    """The counts of one forward pass over (V * B) vertices, vertices first.

    Nothing is stored of a layer's output: a minimum and a maximum over the vertices tell whether any
    two of them differ. A module that runs twice is read twice.

    Args:
        sites: Where to read.
        num_vertices: V.
        num_points: B.
        zero_as_state: See `LocalComplexity`.
        stop_after: Readings after which the rest of the model is not needed; None to run it all.

    Attributes:
        names: Of the layers read, in order.
        counts: For each of them (B,) integers.
        num_neurons: For each of them, per point and times the number of kinks.
        finite: For each of them, whether all it saw was.
        extremes: For each of them, the least and the greatest over the vertices; kept without `stop_after` only.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        num_vertices: int,
        num_points: int,
        zero_as_state: bool,
        stop_after: int | None,
    ) -> None:
        self.names: list[str] = []
        self.counts: list[Tensor] = []
        self.num_neurons: list[int] = []
        self.finite: list[Tensor] = []
        self.extremes: list[Tensor] = []
        self._sites = sites
        self._num_vertices = num_vertices
        self._num_points = num_points
        self._zero_as_state = zero_as_state
        self._stop_after = stop_after

    def first_not_finite(self) -> str | None:
        """The name of the first layer that saw NaN or infinity."""
        if bool(torch.stack(self.finite).all()):  # one synchronisation where all is well
            return None
        return next(name for name, finite in zip(self.names, self.finite, strict=True) if not finite)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hook the sites for one forward pass."""
        with ExitStack() as hooks:
            for site in self._sites:
                read = self._reading(site)
                for member, (module, at_input) in enumerate(zip(site.modules, site.at_input, strict=True)):
                    hooks.enter_context(_hook(module, at_input, member, read))
            yield

    def _reading(self, site: Site) -> Callable[[int, Tensor], None]:
        """A function that takes the tensors of one site, and reads them when all have come."""
        calls = [0] * len(site.modules)
        sums: dict[int, tuple[Tensor, int]] = {}

        def take(member: int, z: Tensor) -> None:
            call = calls[member]
            calls[member] += 1
            if len(site.modules) > 1:
                # A copy, since an in-place activation may overwrite it before its partner comes.
                total, arrived = sums.pop(call, (torch.zeros_like(z), 0))
                if arrived + 1 < len(site.modules):
                    sums[call] = (total + z, arrived + 1)
                    return
                z = total + z
            name = site.name if call == 0 else f"{site.name} #{call + 1}"
            self._read(name, site, z)
            if len(self.counts) == self._stop_after:
                raise EnoughRead

        return take

    def _read(self, name: str, site: Site, z: Tensor) -> None:
        if z.dim() == 0 or len(z) % (self._num_vertices * self._num_points):
            raise ValueError(
                f"layer {name!r} must have the batch as its first axis, got shape {tuple(z.shape)} "
                f"for a batch of {self._num_vertices * self._num_points}"
            )
        if not site.kinks:
            z = chosen_by(site.modules[0], z)
        grouped = z.unflatten(0, (self._num_vertices, -1))
        low, high = grouped.amin(0), grouped.amax(0)
        count = crossings(low, high, site.kinks, self._zero_as_state).reshape(self._num_points, -1)
        self.names.append(name)
        self.counts.append(count.sum(1))
        self.num_neurons.append(count.shape[1] * max(len(site.kinks), 1))
        self.finite.append(low.isfinite().all() & high.isfinite().all())
        if self._stop_after is None:
            self.extremes.append(torch.stack([low, high]))


def crossings(low: Tensor, high: Tensor, kinks: Sequence[float], zero_as_state: bool) -> Tensor:
    """How many kinks lie between the extremes (N, ...): integers of the same shape."""
    if not kinks:
        return (low != high).long()
    total = torch.zeros_like(low, dtype=torch.long)
    for kink in kinks:
        if zero_as_state:
            total += (low - kink).sign() != (high - kink).sign()
        else:
            total += (low < kink) & (high >= kink)
    return total


def chosen_by(pool: nn.Module, z: Tensor) -> Tensor:
    """Which entry each output of a max-pool is, as a number that can be compared."""
    function = {
        nn.MaxPool1d: nn.functional.max_pool1d_with_indices,
        nn.MaxPool2d: nn.functional.max_pool2d_with_indices,
        nn.MaxPool3d: nn.functional.max_pool3d_with_indices,
    }[next(kind for kind in type(pool).__mro__ if kind in MAX_POOLS)]
    options: Any = pool
    _, indices = function(
        z, options.kernel_size, options.stride, options.padding, options.dilation, options.ceil_mode
    )
    return indices


def _hook(module: nn.Module, at_input: bool, member: int, take: Callable[[int, Tensor], None]) -> Any:
    if at_input:
        return module.register_forward_pre_hook(
            lambda _, args, kwargs: take(member, args[0] if args else next(iter(kwargs.values()))),
            with_kwargs=True,
        )
    return module.register_forward_hook(
        lambda _, args, output: take(member, output[0] if isinstance(output, tuple) else output)
    )
