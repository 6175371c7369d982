"""One training step: the distance between two neighbours on a path, with every change of the paper a switch."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from improvedct.model import Consistency, bare_of, conditioning, find_bare
from improvedct.noise import NoiseRange, Stage, whole

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

    Examples:
        >>> pseudo_huber(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2), c=12.0)
        tensor([1.])
    """
    squared = squared_l2(a, b)
    if c is None:
        c = 0.00054 * math.sqrt(a.shape[1:].numel())
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
    squares = (a.to(exact) - b.to(exact)).square()
    return squares.flatten(1).sum(1) if a.dim() > 1 else squares


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
    model_kwargs: Mapping[str, Any] | None = None,
    **cond: Any,
) -> LossOut:
    """Consistency training loss on clean data (arXiv 2310.14189, section 3).

    E[lambda(sigma_i) d(f(x + sigma_{i+1} z, sigma_{i+1}), stopgrad f(x + sigma_i z, sigma_i))] with one z for
    both. The defaults are the improved recipe; the original one is `target=ema_teacher`,
    `metric=squared_l2`, `index_probs=torch.ones(n - 1)`, `weight="none"` with `legacy_curriculum`.

    Args:
        model: A `Consistency`, bare, compiled, in DistributedDataParallel and the like; or any module called as
            `model(x, sigma, **cond)` with a `noise_range`.
        x: (B, ...) clean data, floating point, standard deviation about `sigma_data`.
        n: Number of boundaries at this step, or a `Stage` made of it.
        target: The teacher; the model itself if None.
        metric: `"huber"`, or a function of (B, ...) and (B, ...) giving (B,), or (B, 1, ...) as LPIPS does.
        index_probs: (n - 1,) probabilities of the intervals, in any scale; lognormal if None. A `Stage`
            made once is faster.
        weight: `"inverse_gap"` for lambda = 1 / (sigma_{i+1} - sigma_i), `"none"` for 1.
        denoiser: Called as `denoiser(x, sigma)`, the mean of the data given x; it knows its own conditioning. Then
            this is consistency *distillation*: the lower neighbour is one Heun step down from the upper one.
        generator: Source of the noise and the indices, on the device of x.
        same_dropout: Give both passes the same dropout masks by rewinding torch's default generators (the CPU's and
            that of the device), which costs a microsecond whether or not anything draws from them, in modules or in
            functions. Set it to False to compile this function whole.
        validate: Look at the data where the grid is new to a `Consistency`, that is at its first step and where
            the number of boundaries changes: one pass over them, and on a GPU a synchronisation. For `check_data`
            at every step call it yourself.
        model_kwargs: Passed on to both passes, whatever the names: a network's own `target`, `weight`, ... is here.
        **cond: Likewise, for all names that are not taken above.

    Returns:
        The loss and what it was made of.

    Raises:
        TypeError: If x is not floating point, or the model has no noise range.
        ValueError: If n < 2, an option is unknown, x is empty or has NaN, or `index_probs` comes with a `Stage`, or
            the `Stage` or the target is of another noise range than the model.
    """
    if not x.is_floating_point():
        raise TypeError(f"x must be floating point (scale images to [-1, 1]), got {x.dtype}")
    if x.numel() == 0:
        raise ValueError(f"x must hold at least one sample, got {tuple(x.shape)}")
    bare = bare_of(model)
    stage = _stage_of(bare, n, index_probs, x)
    if validate and not torch.compiler.is_compiling():
        _look_once(bare, stage, x)
    index = stage.sample_indices(len(x), generator)
    noise = torch.empty_like(x).normal_(generator=generator)  # in the memory format of x
    return pair_loss(
        model, x, noise, index, stage, target=target, metric=metric, weight=weight, denoiser=denoiser,
        same_dropout=same_dropout, model_kwargs=model_kwargs, **cond,
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
    model_kwargs: Mapping[str, Any] | None = None,
    **cond: Any,
) -> LossOut:
    """`consistency_loss` at given noise and indices: no randomness of its own, no data checked, compilable.

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
        model_kwargs: See `consistency_loss`.
        **cond: Passed on to both passes.

    Returns:
        The loss and what it was made of.

    Raises:
        ValueError: If an option is unknown.
    """
    _check_options(model, target, metric, weight, denoiser)
    cond = conditioning(cond, model_kwargs)
    lower, upper, inverse_gap = stage.intervals(index)
    noisy = _noised(x, upper, noise)
    states = _random_states(x.device) if same_dropout else []
    prediction = model(noisy.to(x.dtype), upper, **cond)
    with torch.no_grad():
        neighbour = (
            _noised(x, lower, noise) if denoiser is None else _heun(denoiser, noisy, upper, lower, x.dtype)
        )
        for restore, state in states:
            restore(state)
        goal = (model if target is None else target)(neighbour.to(x.dtype), lower, **cond)
    per_sample = (
        pseudo_huber(prediction, goal) if metric == "huber" else _per_sample(metric(prediction, goal), index)
    )
    if weight == "inverse_gap":
        per_sample = per_sample * inverse_gap
    return LossOut(per_sample.mean(), per_sample.detach(), index, upper)


def check_data(x: Tensor, noise_range: NoiseRange | None = None) -> None:
    """Refuse data with NaN, and warn if their scale is far from `sigma_data`.

    Args:
        x: (B, ...) clean data.
        noise_range: The range; the paper's if None.

    Raises:
        ValueError: If x has values that are not finite.
    """
    _look(x, noise_range or NoiseRange(), stacklevel=3)


def _look_once(bare: Any, stage: Stage, x: Tensor) -> None:
    if getattr(bare, "_looked_at", None) is stage:
        return
    _look(x, bare.noise_range, stacklevel=4)
    if isinstance(bare, Consistency):
        bare._looked_at = stage


def _look(x: Tensor, noise_range: NoiseRange, stacklevel: int) -> None:
    exact = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    std, expected = exact.std(correction=0).item(), noise_range.sigma_data
    if not math.isfinite(std) and not bool(exact.isfinite().all()):
        raise ValueError("x must be finite, got NaN or infinity")
    if x.numel() >= 64 and not 0.2 <= std / expected <= 5:
        warnings.warn(
            f"x has standard deviation {std:.3g}, far from sigma_data = {expected}: scale it, or set sigma_data",
            stacklevel=stacklevel,
        )


def _stage_of(bare: Any, n: int | Stage, index_probs: Tensor | None, x: Tensor) -> Stage:
    if isinstance(n, Stage):
        if index_probs is not None:
            raise ValueError("index_probs must be None where n is a Stage, which has its own")
        if not torch.compiler.is_compiling():  # torch 2.4 cannot compare ranges in a graph
            _check_stage(n, bare, x)
        return n
    dtype = torch.promote_types(x.dtype, torch.float32)
    if index_probs is None and isinstance(bare, Consistency):
        return bare.stage(whole("n", n), x.device, dtype)
    return Stage(n, bare.noise_range, index_probs, x.device, dtype)


def _check_stage(stage: Stage, bare: Any, x: Tensor) -> None:
    if stage.noise_range != bare.noise_range:
        raise ValueError(
            f"n must be a Stage of the model's {bare.noise_range}, got one of {stage.noise_range}"
        )
    if stage.sigmas.device != x.device:
        raise ValueError(
            f"n must be a Stage on the device of x, {x.device}, got one on {stage.sigmas.device}"
        )


def _check_options(model: Any, target: Any, metric: Any, weight: Any, denoiser: Any) -> None:
    """A network's own conditioning may be called like one of these; then it came here by mistake."""
    elsewhere = "; what the network calls so goes into model_kwargs"
    if not isinstance(weight, str) or weight not in ("inverse_gap", "none"):
        raise ValueError(f"weight must be 'inverse_gap' or 'none', got {_shown(weight)}{elsewhere}")
    if not callable(metric) and not (isinstance(metric, str) and metric == "huber"):
        raise ValueError(f"metric must be 'huber' or a function, got {_shown(metric)}{elsewhere}")
    for name, function in (("target", target), ("denoiser", denoiser)):
        if function is not None and not callable(function):
            raise ValueError(f"{name} must be called to answer, got {_shown(function)}{elsewhere}")
    if target is not None and not torch.compiler.is_compiling():
        theirs, ours = find_bare(target), find_bare(model)
        if theirs is not None and ours is not None and theirs.noise_range != ours.noise_range:
            raise ValueError(f"target must have the model's {ours.noise_range}, got {theirs.noise_range}")


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str) else type(value).__name__


def _per_sample(distance: Tensor, index: Tensor) -> Tensor:
    """(B,) of a metric's answer; a mean over the batch, or one number an element, is not what is weighted."""
    if distance.dim() == 0 or len(distance) != len(index) or distance.numel() != len(index):
        raise ValueError(
            f"metric must return ({len(index)},), a distance a sample, got {tuple(distance.shape)}"
        )
    return distance.flatten()


def _noised(x: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """X + sigma noise in float32 at least: neighbouring levels may be one number in bfloat16."""
    exact = torch.promote_types(x.dtype, torch.float32)
    return torch.addcmul(x.to(exact), _spread(sigma.to(exact), x), noise.to(exact))


def _spread(sigma: Tensor, x: Tensor) -> Tensor:
    return sigma.view(-1, *[1] * (x.dim() - 1))


def _heun(denoiser: Denoiser, x: Tensor, upper: Tensor, lower: Tensor, dtype: torch.dtype) -> Tensor:
    """One step of Heun's method down the probability flow dx/dsigma = (x - D(x, sigma)) / sigma.

    The denoiser works in `dtype`, the step is taken in that of x.
    """
    high, low = _spread(upper.to(x.dtype), x), _spread(lower.to(x.dtype), x)
    slope = (x - denoiser(x.to(dtype), upper)) / high
    euler = x + (low - high) * slope
    return x + (low - high) * (slope + (euler - denoiser(euler.to(dtype), lower)) / low) / 2


def _random_states(device: torch.device) -> list[tuple[Callable[[Tensor], None], Tensor]]:
    """The default generators that dropout draws from, each as a function that sets its state and the state."""
    states: list[tuple[Callable[[Tensor], None], Tensor]] = [(torch.set_rng_state, torch.get_rng_state())]
    if device.type == "mps":
        states.append((torch.mps.set_rng_state, torch.mps.get_rng_state()))
    elif device.type != "cpu":
        backend = getattr(torch, device.type)
        states.append((partial(backend.set_rng_state, device=device), backend.get_rng_state(device)))
    return states
