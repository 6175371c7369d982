"""Sampling in one step, or in a few, and where to put the second."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from improvedct.model import bare_of, conditioning


@torch.no_grad()
def sample(
    model: nn.Module,
    shape: Sequence[int] | Tensor,
    taus: Sequence[float] | None = None,
    *,
    clip: tuple[float, float] | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    **cond: Any,
) -> Tensor:
    """Generate samples in as many evaluations as there are noise levels.

    x = f(tau_1 z, tau_1), then for each further tau: x <- f(x + sqrt(tau^2 - sigma_min^2) z', tau)
    (arXiv 2303.01469, algorithm 1). The paper's second level is 0.821 on CIFAR-10 and 1.526 on
    ImageNet-64; find yours with `ternary_search_tau`.

    Args:
        model: A `Consistency`, normally the average of `ema_update`; it is in evaluation mode meanwhile.
        shape: (B, ...) of the samples, or their standard normal noise z.
        taus: Strictly decreasing noise levels; `(sigma_max,)`, one step, if None.
        clip: Range the samples are clamped to after each evaluation.
        generator: Source of the noise, on the device.
        device: Where to sample, if `shape` is no tensor; where the model is, if None.
        dtype: Likewise.
        model_kwargs: Passed on to the model, whatever the names.
        **cond: Likewise, for all names that are not taken above.

    Returns:
        (B, ...) samples.

    Raises:
        ValueError: If taus do not decrease strictly within the noise range, or clip is no range.
    """
    levels = check_taus(model, taus)
    noise = (
        shape if isinstance(shape, Tensor) else _noise_like_parameters(model, shape, generator, device, dtype)
    )
    cond = conditioning(cond, model_kwargs)
    return refine(model, levels[0] * noise, levels, cond, clip=clip, generator=generator)


def refine(
    model: nn.Module,
    noisy: Tensor,
    levels: Sequence[float],
    cond: Mapping[str, Any],
    *,
    clip: tuple[float, float] | None,
    generator: torch.Generator | None,
    replace: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Evaluate at the first level, then add noise and evaluate again at each of the others."""
    if clip is not None and not clip[0] < clip[1]:
        raise ValueError(f"clip must be a range, low < high, got {clip}")
    sigma_min = bare_of(model).noise_range.sigma_min
    x = noisy
    with evaluation_mode(model):
        for step, tau in enumerate(levels):
            if step > 0:
                noise = torch.empty_like(x).normal_(generator=generator)
                x = x + math.sqrt(tau**2 - sigma_min**2) * noise
            # The model answers in float32 at least; a network of a shorter dtype wants its own again.
            x = model(x, constant_level(x, tau), **cond).to(noisy.dtype)
            if clip is not None:
                x = x.clamp(*clip)
            if replace is not None:
                x = replace(x)
    return x


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """No dropout and no moving statistics inside; afterwards every module is in the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def ternary_search_tau(
    metric: Callable[[float], float], low: float, high: float, *, num_steps: int = 8
) -> tuple[float, float]:
    """Find the noise level where a metric of one hump is smallest, by ternary search over ln tau.

    Args:
        metric: What two-step samples at this tau are worth, smaller is better; fix its noise.
        low: Smallest level to try.
        high: Largest level to try.
        num_steps: Each calls the metric twice and leaves two thirds of the interval.

    Returns:
        The best level tried and its metric. With a warning if the search never turned back from an end of the range:
        then the best level lies there or beyond.

    Raises:
        ValueError: If not 0 < low < high, num_steps < 1, or the metric is not finite somewhere.

    Examples:
        >>> tau, value = ternary_search_tau(lambda tau: abs(math.log(tau)), 0.1, 20.0, num_steps=20)
        >>> round(tau, 2)
        1.0
    """
    if not 0 < low < high:
        raise ValueError(f"low and high must satisfy 0 < low < high, got {low} and {high}")
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    left, right = math.log(low), math.log(high)
    tried: list[tuple[float, float]] = []
    for _ in range(num_steps):
        third = (right - left) / 3
        lower, upper = (float(metric(math.exp(point))) for point in (left + third, right - third))
        if not (math.isfinite(lower) and math.isfinite(upper)):
            raise ValueError(
                f"metric must be finite, got {lower} at {math.exp(left + third):g} and {upper} above"
            )
        tried += [(lower, math.exp(left + third)), (upper, math.exp(right - third))]
        left, right = (left, right - third) if lower < upper else (left + third, right)
    value, tau = min(tried)
    if left == math.log(low) or right == math.log(high):
        end = low if left == math.log(low) else high
        warnings.warn(
            f"the search ended at the end of its range, {end:g}: the metric may be smaller beyond",
            stacklevel=2,
        )
    return tau, value


def check_taus(model: nn.Module, taus: Sequence[float] | None) -> list[float]:
    """The noise levels to sample at, after a look at them."""
    noise_range = bare_of(model).noise_range
    levels = [noise_range.sigma_max] if taus is None else [float(tau) for tau in taus]
    inside = all(noise_range.sigma_min <= tau <= noise_range.sigma_max for tau in levels)
    if not levels or not inside or any(a <= b for a, b in pairwise(levels)):
        raise ValueError(
            f"taus must decrease strictly within [{noise_range.sigma_min}, {noise_range.sigma_max}], got {taus}"
        )
    return levels


def constant_level(x: Tensor, tau: float) -> Tensor:
    """One noise level for each of x, in float32 at least."""
    return torch.full((len(x),), tau, device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))


def _noise_like_parameters(
    model: nn.Module,
    shape: Sequence[int],
    generator: torch.Generator | None,
    device: torch.device | str | int | None,
    dtype: torch.dtype | None,
) -> Tensor:
    parameter = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    device = parameter.device if device is None else device  # 0 is a device
    dtype = parameter.dtype if dtype is None else dtype
    return torch.randn(tuple(shape), generator=generator, device=device, dtype=dtype)
