"""How far the weights have wandered: the tracker of the distance from initialisation, and the law it follows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_MIN_POINTS = 5


@dataclass(frozen=True)
class DiffusionFit:
    r"""What a distance curve says about the random potential the weights diffuse in.

    Attributes:
        slope: b in $d = a + b \ln t$. The same for all batch sizes if the learning rate is scaled by the square
            root: compare it with the small-batch run's.
        intercept: a.
        r2_log: Share of the variance of d that $a + b \ln t$ explains.
        power: p in $d = c\,t^p$, the ordinary-diffusion alternative, by least squares in d.
        r2_power: Share of the variance of d that $c\,t^p$ explains.
        exponent: q in $d = a' + b' (\ln t)^q$.
        alpha: 2 / q, the exponent in $\mathbb{E}(L(w_1) - L(w_2))^2 \sim \|w_1 - w_2\|^\alpha$; the paper
            finds 2.
    """

    slope: float
    intercept: float
    r2_log: float
    power: float
    r2_power: float
    exponent: float
    alpha: float

    def predict(self, steps: Tensor) -> Tensor:
        r"""Evaluate $a + b \ln t$.

        Args:
            steps: Update indices from 1 on, any shape.

        Returns:
            Distances, same shape, float64.
        """
        return self.intercept + self.slope * steps.to(torch.float64).log()


class DiffusionTracker:
    r"""Record $d_t = \|w_t - w_0\|_2$ at logarithmically spaced updates and fit the law it follows.

    In a random potential with $\mathbb{E}(L(w_1) - L(w_2))^2 \sim \|w_1 - w_2\|^\alpha$ weights diffuse ultra-slowly,
    $\mathbb{E}\|w_t - w_0\|^2 \sim (\ln t)^{4/\alpha}$; networks show $d_t \sim \ln t$, that is $\alpha = 2$, while the
    learning rate is high (arXiv 1705.08741, section 3). Large-batch training that lags behind the small-batch
    curve has taken too few or too small steps.

    Memory is one copy of the parameters, less with `dtype` and none to speak of with `projection_dim`. Distances
    stay on their device until they are read, so `update` never waits for an accelerator.

    Args:
        params: Tensors to follow, or a module, whose trainable parameters are followed. Their present values
            are $w_0$.
        points_per_decade: How many updates to record between t and 10 t.
        dtype: Of the stored $w_0$, e.g. `torch.bfloat16`; each parameter's own if None. The error of rounding is
            subtracted from the squared distance as far as it is known.
        device: Of the stored $w_0$, e.g. `"cpu"`; each parameter's own if None.
        projection_dim: Store a random projection of $w_0$ (a count sketch, arXiv 0902.2206) of this many numbers
            instead. Squared distances are then unbiased, with a relative error of about
            $\sqrt{2 / \text{projection\_dim}}$ which is much the same along one curve.
        generator: Draws the projection's seed; a CPU generator, torch's default one if None.

    Raises:
        ValueError: If there are no parameters or an option is out of range.

    Example:
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
        params: nn.Module | Iterable[Tensor],
        points_per_decade: int = 20,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        projection_dim: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if isinstance(params, nn.Module):
            params = (parameter for parameter in params.parameters() if parameter.requires_grad)
        self._params = list(params)
        if not self._params:
            raise ValueError("params must hold at least one tensor, got none")
        if points_per_decade < 1:
            raise ValueError(f"points_per_decade must be at least 1, got {points_per_decade}")
        if projection_dim is not None and projection_dim < 1:
            raise ValueError(f"projection_dim must be None or at least 1, got {projection_dim}")
        self._points_per_decade = points_per_decade
        self._projection_dim = projection_dim
        self._shapes = [parameter.shape for parameter in self._params]
        self._seed = torch.zeros((), dtype=torch.int64)
        if projection_dim is not None:
            self._seed = torch.randint(2**31, (), generator=generator)
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
            ValueError: If the step is negative or not later than the last recorded one, or if a parameter
                has another shape than at the start.
        """
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
            ValueError: If fewer than five points remain or the distance does not vary.
        """
        if first_step < 1:
            raise ValueError(f"first_step must be at least 1, got {first_step}")
        steps = self.steps
        kept = steps >= first_step
        if last_step is not None:
            kept &= steps <= last_step
        time, distance = steps[kept].to(torch.float64), self.distances[kept]
        if len(time) < _MIN_POINTS:
            raise ValueError(f"fit needs at least {_MIN_POINTS} recorded points, got {len(time)}")
        variation = (distance - distance.mean()).square().sum()
        if not variation > 0:
            raise ValueError(f"distances must vary, got {float(distance[0])} throughout")

        log_time = time.log()
        slope, intercept, log_error = _line(log_time, distance)
        power, power_error = _search(lambda p: _proportional(time**p, distance), 0.0, 2.0)
        exponent, _ = _search(lambda q: _line(log_time**q, distance)[2], 0.05, 5.0)
        return DiffusionFit(
            slope=float(slope),
            intercept=float(intercept),
            r2_log=float(1 - log_error / variation),
            power=power,
            r2_power=float(1 - power_error / variation),
            exponent=exponent,
            alpha=2 / exponent,
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Return $w_0$ (or its projection) and all records: a flat dictionary of tensors, ready for safetensors."""
        return {
            "steps": self.steps,
            "distances": self.distances,
            "seed": self._seed.clone(),
            "rounding": self._rounding.clone(),
            **{f"reference.{index}": values for index, values in enumerate(self._reference)},
        }

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Continue a saved record, with its $w_0$; the tracker must have been built with the same options.

        Args:
            state_dict: What `state_dict()` returned.

        Raises:
            ValueError: If a stored tensor does not have the shape that this tracker's has.
        """
        for index, reference in enumerate(self._reference):
            saved = state_dict.get(f"reference.{index}")
            if saved is None or saved.shape != reference.shape:
                found = "nothing" if saved is None else tuple(saved.shape)
                raise ValueError(
                    f"state_dict must hold reference.{index} of {tuple(reference.shape)}, got {found}"
                )
            self._reference[index] = saved.to(reference.device, reference.dtype, copy=True)
        self._steps = state_dict["steps"].tolist()
        self._distances = list(
            state_dict["distances"].to(self._rounding.device, self._rounding.dtype).unbind()
        )
        self._seed = state_dict["seed"].to("cpu", copy=True)
        self._rounding = state_dict["rounding"].to(self._rounding.device, copy=True)

    def _cell(self, step: int) -> int:
        # The small shift keeps 1000 in the cell it opens whatever the last bit of its logarithm is.
        return math.floor(self._points_per_decade * math.log10(step) + 1e-9) if step > 0 else -1

    def _values(self) -> list[Tensor]:
        """Return what distances are measured on: the parameters, or the one tensor they are projected to."""
        if self._projection_dim is None:
            return self._params
        device = self._params[0].device
        sketches = [
            _count_sketch(parameter.detach(), self._projection_dim, int(self._seed) + index).to(device)
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
            squares.append(difference.square().sum(dtype=torch.promote_types(exact, torch.float32)))
        total = torch.stack([square.to(squares[0].device) for square in squares]).sum()
        return total - self._rounding.to(total.device)


def _count_sketch(values: Tensor, size: int, seed: int) -> Tensor:
    """Add each coordinate, with a random sign, to one of `size` random buckets: keeps E of squared norms."""
    # Signs and buckets are drawn anew at each call: stored, they would take more room than the parameters.
    generator = torch.Generator(device=values.device).manual_seed(seed)
    slots = torch.randint(2 * size, (values.numel(),), generator=generator, device=values.device)
    exact = values.flatten().to(torch.promote_types(values.dtype, torch.float32))
    sums = torch.zeros(2 * size, dtype=exact.dtype, device=values.device).index_add_(0, slots, exact)
    return sums[:size] - sums[size:]


def _line(feature: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Least squares of target = a + b feature over the last dimension: b, a, squared error."""
    centred = feature - feature.mean(-1, keepdim=True)
    slope = (centred * target).sum(-1) / centred.square().sum(-1)
    intercept = target.mean() - slope * feature.mean(-1)
    error = (target - intercept.unsqueeze(-1) - slope.unsqueeze(-1) * feature).square().sum(-1)
    return slope, intercept, error


def _proportional(feature: Tensor, target: Tensor) -> Tensor:
    """Squared error of the least squares of target = c feature over the last dimension."""
    factor = (feature * target).sum(-1, keepdim=True) / feature.square().sum(-1, keepdim=True)
    return (target - factor * feature).square().sum(-1)


def _search(
    error: Callable[[Tensor], Tensor], low: float, high: float, points: int = 201
) -> tuple[float, float]:
    """Minimise over [low, high] by grids that close in on the best point; `error` takes (points, 1)."""
    lower, upper = low, high
    for _ in range(4):
        grid = torch.linspace(lower, upper, points, dtype=torch.float64)
        errors = error(grid.unsqueeze(1))
        best = int(errors.argmin())
        lower, upper = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, points - 1)])
    return float(grid[best]), float(errors[best])
