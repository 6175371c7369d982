"""One training step: the distance between two neighbours on a path, with every change of the paper a switch."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from improvedct.noise import NoiseRange, Stage

Metric = Callable[[Tensor, Tensor], Tensor]
Denoiser = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class LossOut:
    """What a step leaves behind.

    Args:
        loss: The scalar to differentiate.
        per_sample: (B,) weighted distances, detached.
        index: (B,) the interval of each sample, from sigmas[index] to sigmas[index + 1].
        sigma: (B,) the larger level, at which the model is trained.
    """

    loss: Tensor
    per_sample: Tensor
    index: Tensor
    sigma: Tensor


def pseudo_huber(a: Tensor, b: Tensor, c: float | None = None) -> Tensor:
    """Pseudo-Huber distance of whole samples, sqrt(|a - b|^2 + c^2) - c.

    One norm over all D dimensions of a sample (arXiv 2310.14189, section 3.3), not one per element:
    per element the differences are far below c, and the metric would be a scaled square.

    Args:
        a: (B, ...).
        b: (B, ...).
        c: Where the square turns into the norm; 0.00054 sqrt(D) if None.

    Returns:
        (B,) in float32 at least.

    Raises:
        ValueError: If c is not positive or the shapes differ.

    Example:
        >>> pseudo_huber(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2), c=12.0)
        tensor([1.])
    """
    squared = squared_l2(a, b)
    if c is None:
        c = 0.00054 * math.sqrt(a[0].numel())
    elif not c > 0:
        raise ValueError(f"c must be positive, got {c}")
    # The difference of two nearly equal numbers, written as a quotient that keeps its digits.
    return squared / ((squared + c * c).sqrt() + c)


def squared_l2(a: Tensor, b: Tensor) -> Tensor:
    """Squared distance of whole samples, the metric of the original consistency training.

    Args:
        a: (B, ...).
        b: (B, ...).

    Returns:
        (B,) in float32 at least.

    Raises:
        ValueError: If the shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"a and b must have one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    exact = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    return (
        (a.to(exact) - b.to(exact)).square().flatten(1).sum(1) if a.dim() > 1 else (a - b).to(exact).square()
    )


def consistency_loss(
    model: nn.Module,
    x: Tensor,
    n: int | Stage,
    *,
    target: nn.Module | None = None,
    metric: Literal["huber"] | Metric = "huber",
    index_probs: Tensor | None = None,
    weight: Literal["inverse_gap", "none"] = "inverse_gap",
    denoiser: Denoiser | None = None,
    generator: torch.Generator | None = None,
    same_dropout: bool = True,
    validate: bool = True,
    **cond: Any,
) -> LossOut:
    """Consistency training loss on clean data (arXiv 2310.14189, section 3).

    E[lambda(sigma_i) d(f(x + sigma_{i+1} z, sigma_{i+1}), stopgrad f(x + sigma_i z, sigma_i))] with one z for
    both. The defaults are the improved recipe; the original one is `target=ema_teacher`,
    `metric=squared_l2`, `index_probs=torch.ones(n - 1)`, `weight="none"` with `legacy_curriculum`.

    Args:
        model: A `Consistency`, bare or in DistributedDataParallel; or any module called as
            `model(x, sigma, **cond)` with a `noise_range`.
        x: (B, ...) clean data, floating point, standard deviation about `sigma_data`.
        n: Number of boundaries at this step, or a `Stage` made of it.
        target: The teacher; the model itself if None.
        metric: `"huber"`, or a function of (B, ...) and (B, ...) giving (B,).
        index_probs: (n - 1,) probabilities of the intervals, in any scale; lognormal if None. A `Stage`
            made once is faster.
        weight: `"inverse_gap"` for lambda = 1 / (sigma_{i+1} - sigma_i), `"none"` for 1.
        denoiser: Called as `denoiser(x, sigma)`, the mean of the data given x. Then this is consistency
            *distillation*: the lower neighbour is one Heun step down from the upper one.
        generator: Source of the noise and the indices, on the device of x.
        same_dropout: Give both passes the same dropout masks (in training mode) by rewinding the device's
            default generator. Set it to False to compile this function whole.
        validate: Look at the data; one pass over them, and on a GPU a synchronisation.
        **cond: Passed on to both passes.

    Returns:
        The loss and what it was made of.

    Raises:
        TypeError: If x is not floating point.
        ValueError: If n < 2, an option is unknown, x has NaN, or `index_probs` comes with a `Stage`.
    """
    if not x.is_floating_point():
        raise TypeError(f"x must be floating point (scale images to [-1, 1]), got {x.dtype}")
    bare: Any = getattr(model, "module", model)
    if validate and not torch.compiler.is_compiling():
        check_data(x, bare.noise_range)
    if isinstance(n, Stage) and index_probs is not None:
        raise ValueError("index_probs must be None where n is a Stage, which has its own")
    stage = n if isinstance(n, Stage) else _stage(bare, n, index_probs, x)
    index = stage.sample_indices(len(x), generator)
    noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return pair_loss(
        model, x, noise, index, stage, target=target, metric=metric, weight=weight, denoiser=denoiser,
        same_dropout=same_dropout, **cond,
    )  # fmt: skip


def pair_loss(
    model: nn.Module,
    x: Tensor,
    noise: Tensor,
    index: Tensor,
    stage: Stage,
    *,
    target: nn.Module | None = None,
    metric: Literal["huber"] | Metric = "huber",
    weight: Literal["inverse_gap", "none"] = "inverse_gap",
    denoiser: Denoiser | None = None,
    same_dropout: bool = True,
    **cond: Any,
) -> LossOut:
    """`consistency_loss` at given noise and indices: no randomness of its own, nothing checked, compilable.

    Args:
        model: See `consistency_loss`.
        x: (B, ...) clean data.
        noise: (B, ...) standard normal.
        index: (B,) intervals.
        stage: The grid.
        target: See `consistency_loss`.
        metric: See `consistency_loss`.
        weight: See `consistency_loss`.
        denoiser: See `consistency_loss`.
        same_dropout: See `consistency_loss`.
        **cond: Passed on to both passes.

    Returns:
        The loss and what it was made of.

    Raises:
        ValueError: If an option is unknown.
    """
    if weight not in ("inverse_gap", "none"):
        raise ValueError(f"weight must be 'inverse_gap' or 'none', got {weight!r}")
    if not callable(metric) and metric != "huber":
        raise ValueError(f"metric must be 'huber' or a function, got {metric!r}")
    distance = metric if callable(metric) else pseudo_huber
    lower, upper = stage.sigmas[index], stage.sigmas[index + 1]
    noisy = x + _spread(upper, x) * noise
    states = _random_states(x.device) if same_dropout and model.training else []
    prediction = model(noisy, upper, **cond)
    with torch.no_grad():
        neighbour = (
            x + _spread(lower, x) * noise if denoiser is None else _heun(denoiser, noisy, upper, lower)
        )
        for restore, state in states:
            restore(state)
        goal = (target or model)(neighbour, lower, **cond)
    per_sample = distance(prediction, goal.detach())
    if weight == "inverse_gap":
        per_sample = per_sample * stage.inverse_gaps[index]
    return LossOut(per_sample.mean(), per_sample.detach(), index, upper)


@torch.no_grad()
def ema_update(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """Move an average of a model one step: ema <- decay ema + (1 - decay) model; buffers are copied.

    For evaluation (0.99993 in the paper), or as the teacher of the original consistency training. The
    improved training has no teacher but the model itself.

    Args:
        ema: The average, changed in place; a deepcopy of the model to start with.
        model: The model.
        decay: In [0, 1].

    Raises:
        ValueError: If decay is out of range, or the two have different parameters.
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"decay must be in [0, 1], got {decay}")
    averages: list[Tensor] = list(ema.parameters())
    parameters: list[Tensor] = list(model.parameters())
    if [p.shape for p in averages] != [p.shape for p in parameters]:
        raise ValueError("ema and model must have the same parameters; start from copy.deepcopy(model)")
    torch._foreach_lerp_(averages, parameters, 1 - decay)
    for average, buffer in zip(ema.buffers(), model.buffers(), strict=True):
        average.copy_(buffer)


def check_data(x: Tensor, noise_range: NoiseRange | None = None) -> None:
    """Refuse data with NaN, and warn if their scale is far from `sigma_data`.

    Args:
        x: (B, ...) clean data.
        noise_range: The range; the paper's if None.

    Raises:
        ValueError: If x has values that are not finite.
    """
    std = x.detach().float().std(correction=0).item()
    if not math.isfinite(std):
        raise ValueError("x must be finite, got NaN or infinity")
    expected = (noise_range or NoiseRange()).sigma_data
    if x.numel() >= 64 and not 0.2 <= std / expected <= 5:
        warnings.warn(
            f"x has standard deviation {std:.3g}, far from sigma_data = {expected}: scale it, or set sigma_data",
            stacklevel=3,
        )


def _stage(model: Any, n: int, index_probs: Tensor | None, x: Tensor) -> Stage:
    dtype = torch.promote_types(x.dtype, torch.float32)
    if index_probs is None and hasattr(model, "stage"):
        kept: Stage = model.stage(n, x.device, dtype)
        return kept
    return Stage(n, model.noise_range, index_probs, x.device, dtype)


def _spread(sigma: Tensor, x: Tensor) -> Tensor:
    return sigma.to(x.dtype).view(-1, *[1] * (x.dim() - 1))


def _heun(denoiser: Denoiser, x: Tensor, upper: Tensor, lower: Tensor) -> Tensor:
    """One step of Heun's method down the probability flow dx/dsigma = (x - D(x, sigma)) / sigma."""
    high, low = _spread(upper, x), _spread(lower, x)
    slope = (x - denoiser(x, upper)) / high
    euler = x + (low - high) * slope
    return x + (low - high) * (slope + (euler - denoiser(euler, lower)) / low) / 2


def _random_states(device: torch.device) -> list[tuple[Callable[[Tensor], None], Tensor]]:
    """The default generators that dropout draws from, each as a function that sets its state and the state."""
    states: list[tuple[Callable[[Tensor], None], Tensor]] = [(torch.set_rng_state, torch.get_rng_state())]
    if device.type == "mps":
        states.append((torch.mps.set_rng_state, torch.mps.get_rng_state()))
    elif device.type != "cpu":
        backend = getattr(torch, device.type)
        states.append((partial(backend.set_rng_state, device=device), backend.get_rng_state(device)))
    return states
