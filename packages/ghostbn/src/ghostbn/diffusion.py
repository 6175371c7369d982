"""How far the weights have wandered: the tracker of the distance from initialisation."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ghostbn.groups import check_size
from ghostbn.law import DiffusionFit, fit_law


class DiffusionTracker:
    r"""Record $d_t = \|w_t - w_0\|_2$ at logarithmically spaced updates and fit the law it follows.

    In a random potential with $\mathbb{E}(L(w_1) - L(w_2))^2 \sim \|w_1 - w_2\|^\alpha$ weights diffuse ultra-slowly,
    $\mathbb{E}\|w_t - w_0\|^2 \sim (\ln t)^{4/\alpha}$; networks show $d_t \sim \ln t$, that is $\alpha = 2$, while the
    learning rate is high (arXiv 1705.08741, section 3). Large-batch training that lags behind the small-batch
    curve has taken too few or too small steps.

    Memory is one copy of the parameters, less with `dtype` and none to speak of with `projection_dim`. Distances
    stay on their device until they are read, so `update` never waits for an accelerator.

    Args:
        params: Tensors to follow, `named_parameters()`, an optimizer's `param_groups`, or a module, whose trainable
            parameters are followed. A tensor that comes twice counts once. Their present values are $w_0$.
        points_per_decade: How many updates to record between t and 10 t.
        dtype: Of the stored $w_0$, e.g. `torch.bfloat16`; each parameter's own if None. The error of rounding is
            subtracted from the squared distance as far as it is known.
        device: Of the stored $w_0$, e.g. `"cpu"`; each parameter's own if None.
        projection_dim: Store a random projection of $w_0$ (a count sketch, arXiv 0902.2206) of this many numbers
            instead. Squared distances are then unbiased, with a relative error of about
            $\sqrt{2 / \text{projection\_dim}}$ which is much the same along one curve.
        generator: Draws the projection's seed; a CPU generator, torch's default one if None.

    Raises:
        TypeError: If `params` holds something else than tensors.
        ValueError: If there are no parameters or an option is out of range.

    Examples:
        >>> weight = torch.zeros(3)
        >>> tracker = DiffusionTracker([weight])
        >>> for step in range(1, 101):
        ...     _ = weight.fill_(1 + math.log(step))
        ...     tracker.update(step)
        >>> fit = tracker.fit()
        >>> round(fit.slope / math.sqrt(3), 4), round(fit.alpha, 2)
        (1.0, 2.0)
    """

    def __init__(
        self,
        params: nn.Module | Tensor | Iterable[Any],
        points_per_decade: int = 20,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        projection_dim: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        self._params = list(dict.fromkeys(_tensors(params)))
        if not self._params:
            raise ValueError("params must hold at least one tensor, got none")
        if dtype is not None and not (dtype.is_floating_point or dtype.is_complex):
            raise ValueError(f"dtype must be a floating-point dtype, got {dtype}")
        self._points_per_decade = check_size("points_per_decade", points_per_decade)
        self._projection_dim = (
            None if projection_dim is None else check_size("projection_dim", projection_dim)
        )
        self._shapes = [parameter.shape for parameter in self._params]
        self._seed = torch.zeros((), dtype=torch.int64)
        if projection_dim is not None:
            self._seed = torch.randint(2**31, (), generator=generator, device="cpu")
        self._reference = [
            values.detach().to(device=device or values.device, dtype=dtype or values.dtype, copy=True)
            for values in self._values()
        ]
        self._steps: list[int] = []
        self._distances: list[Tensor] = []
        self._rounding = torch.zeros(())
        self._rounding = self._squared_distance()

    @property
    def steps(self) -> Tensor:
        """Recorded updates, (K,) int64."""
        return torch.tensor(self._steps, dtype=torch.int64)

    @property
    def distances(self) -> Tensor:
        """Recorded distances, (K,) float64 on the CPU."""
        if not self._distances:
            return torch.empty(0, dtype=torch.float64)
        return torch.stack(self._distances).to("cpu", torch.float64)

    def distance(self) -> Tensor:
        """Compute the present distance from $w_0$.

        Returns:
            A scalar on the device of the stored $w_0$.

        Raises:
            ValueError: If a parameter has another shape than at the start.
        """
        return self._squared_distance().clamp(min=0).sqrt()

    def update(self, step: int) -> None:
        """Record the distance if this update is the next on the logarithmic grid; otherwise do nothing.

        Args:
            step: t, the number of updates made so far. Must increase from call to call.

        Raises:
            TypeError: If the step is not an integer.
            ValueError: If the step is negative or not later than the last recorded one, or if a parameter
                has another shape than at the start.
        """
        try:
            step = operator.index(step)
        except TypeError:
            raise TypeError(f"step must be an integer, got {step!r}") from None
        if step < 0 or (self._steps and step <= self._steps[-1]):
            last = self._steps[-1] if self._steps else -1
            raise ValueError(f"step must be greater than {last}, got {step}")
        if not self._steps or self._cell(step) > self._cell(self._steps[-1]):
            distance = self.distance()
            self._steps.append(step)
            self._distances.append(distance)

    def fit(self, first_step: int = 1, last_step: int | None = None) -> DiffusionFit:
        r"""Fit $d = a + b \ln t$ and its alternatives by least squares to the recorded points.

        Args:
            first_step: Leave out what is earlier; at least 1.
            last_step: Leave out what is later: the law is one of the phase of high learning rate, so give the
                first drop of the schedule. None for no limit.

        Returns:
            The fitted numbers.

        Raises:
            ValueError: If fewer than five points remain, or the distance is not finite or does not vary.
        """
        if first_step < 1:
            raise ValueError(f"first_step must be at least 1, got {first_step}")
        steps = self.steps
        kept = steps >= first_step
        if last_step is not None:
            kept &= steps <= last_step
        return fit_law(steps[kept], self.distances[kept])

    def state_dict(self) -> dict[str, Tensor]:
        """Return $w_0$ (or its projection) and all records: a flat dictionary of tensors, ready for safetensors."""
        return {
            "steps": self.steps,
            "distances": self.distances,
            "seed": self._seed.clone(),
            "options": self._options(),
            "rounding": self._rounding.clone(),
            **{f"reference.{index}": values for index, values in enumerate(self._reference)},
        }

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Continue a saved record, with its $w_0$; the tracker must have been built with the same options.

        Args:
            state_dict: What `state_dict()` returned.

        Raises:
            ValueError: If the state is of a tracker with other options or other parameters.
        """
        options = state_dict.get("options")
        if options is None or not torch.equal(options.cpu(), self._options()):
            found = "none" if options is None else options.tolist()
            raise ValueError(
                "state_dict must have been saved with the same points_per_decade and projection_dim (0 for none), "
                f"{self._options().tolist()}, got {found}"
            )
        saved = {name: values for name, values in state_dict.items() if name.startswith("reference.")}
        expected = {f"reference.{index}": values for index, values in enumerate(self._reference)}
        for name in expected | saved:
            found = _describe(saved.get(name))
            if found != _describe(expected.get(name)):
                raise ValueError(
                    f"state_dict must hold {name} of {_describe(expected.get(name))}, got {found}"
                )
        self._reference = [
            saved[name].to(values.device, values.dtype, copy=True) for name, values in expected.items()
        ]
        self._steps = state_dict["steps"].tolist()
        self._distances = list(
            state_dict["distances"].to(self._rounding.device, self._rounding.dtype).unbind()
        )
        self._seed = state_dict["seed"].to("cpu", copy=True)
        self._rounding = state_dict["rounding"].to(self._rounding.device, copy=True)

    def _options(self) -> Tensor:
        return torch.tensor([self._points_per_decade, self._projection_dim or 0])

    def _cell(self, step: int) -> int:
        # The small shift keeps 1000 in the cell it opens whatever the last bit of its logarithm is.
        return math.floor(self._points_per_decade * math.log10(step) + 1e-9) if step > 0 else -1

    def _values(self) -> list[Tensor]:
        """Return what distances are measured on: the parameters, or the one tensor they are projected to."""
        if self._projection_dim is None:
            return self._params
        device = self._params[0].device
        sketches = [
            _count_sketch(parameter.detach(), self._projection_dim, int(self._seed) + (index << 40)).to(
                device
            )
            for index, parameter in enumerate(self._params)
        ]
        return [torch.stack(sketches).sum(0)]

    @torch.no_grad()
    def _squared_distance(self) -> Tensor:
        for index, (parameter, shape) in enumerate(zip(self._params, self._shapes, strict=True)):
            if parameter.shape != shape:
                raise ValueError(
                    f"params[{index}] must keep its shape {tuple(shape)}, got {tuple(parameter.shape)}"
                )
        squares = []
        for values, reference in zip(self._values(), self._reference, strict=True):
            exact = torch.promote_types(torch.promote_types(values.dtype, reference.dtype), torch.float32)
            difference = values.to(reference.device, exact) - reference.to(exact)
            squares.append(difference.abs().square().sum())
        total = torch.stack([square.to(squares[0].device) for square in squares]).sum()
        return total - self._rounding.to(total.device)


def _tensors(params: Any) -> Iterator[Tensor]:
    """Flatten what a user has at hand: a module, tensors, (name, tensor) pairs or parameter groups."""
    if isinstance(params, nn.Module):
        yield from (parameter for parameter in params.parameters() if parameter.requires_grad)
    elif isinstance(params, Tensor):
        yield params
    elif isinstance(params, dict) and "params" in params:
        yield from _tensors(params["params"])
    elif isinstance(params, tuple) and len(params) == 2 and isinstance(params[0], str):
        yield from _tensors(params[1])
    elif isinstance(params, Iterable) and not isinstance(params, str | dict):
        for part in params:
            yield from _tensors(part)
    else:
        raise TypeError(f"params must hold tensors, got {type(params).__name__}")


def _describe(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else f"{tuple(tensor.shape)} {tensor.dtype}"


def _count_sketch(values: Tensor, size: int, seed: int) -> Tensor:
    """Add each coordinate, with a random sign, to one of `size` random buckets: keeps E of squared norms."""
    # Signs and buckets are hashed anew at each call: stored, they would take more room than the parameters. The
    # hash, unlike a generator, is the same on all devices, so that a record can go on elsewhere.
    slots = _hash(torch.arange(values.numel(), device=values.device), seed) % (2 * size)
    exact = values.flatten().to(torch.promote_types(values.dtype, torch.float32))
    sums = torch.zeros(2 * size, dtype=exact.dtype, device=values.device).index_add_(0, slots, exact)
    return sums[:size] - sums[size:]


def _hash(numbers: Tensor, seed: int) -> Tensor:
    """Mix 63-bit integers: multiplications, which wrap, and shifts (the constants are those of SplitMix64)."""
    mask = 2**63 - 1
    mixed = (numbers + seed) * -7046029254386353131 & mask
    mixed = (mixed ^ (mixed >> 30)) * -4658895280553007687 & mask
    mixed = (mixed ^ (mixed >> 27)) * -7723592293110705685 & mask
    return mixed ^ (mixed >> 31)
