"""Robustness against l-infinity attacks: what rises late in training, after accuracy has long stood still."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from localcomplexity._modes import bare, undisturbed
from localcomplexity.vertices import check_points


def pgd_linf(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    epsilon: float,
    *,
    step_size: float | None = None,
    num_steps: int = 10,
    low: float | Tensor = 0.0,
    high: float | Tensor = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Projected gradient descent against the labels: untargeted, cross-entropy, from a random start.

    x_0 = x + U[-epsilon, epsilon]; x_{k+1} = clamp(P(x_k + step_size * sign(grad_x CE(f(x_k), y)))), where P projects
    onto the l-infinity ball around x and clamp keeps to the data's range (Madry et al., arXiv 1706.06083;
    arXiv 2402.15555, section 4). Runs in evaluation mode; modes and parameters' gradients stay as they are.

    Args:
        model: A classifier; (B, *shape) to logits (B, C), or to an object or mapping that holds them as `logits`.
        x: (B, *shape) inputs, on the model's device.
        y: (B,) class indices.
        epsilon: Radius of the ball, in units of the input.
        step_size: Of one step, in units of the input; `epsilon / 4` if None.
        num_steps: How many.
        low: Least value of the data in the model's input units, a number or a tensor that broadcasts against x.
        high: Greatest value.
        generator: Source of the start; torch's global one if None.

    Returns:
        (B, *shape) the attacked inputs.

    Raises:
        ValueError: If sizes, `epsilon`, `step_size`, `num_steps` or the range do not fit, or y names a class that
            the model does not have.
        TypeError: If x is not floating, y is not integer, the model is not a module or gives no logits.

    Examples:
        >>> model, x, y = nn.Linear(4, 3), torch.rand(8, 4), torch.zeros(8, dtype=torch.long)
        >>> attacked = pgd_linf(model, x, y, epsilon=0.1)
        >>> bool(((attacked - x).abs() <= 0.1 + 1e-6).all())
        True
    """
    model = bare(model)
    step_size = epsilon / 4 if step_size is None else step_size
    _check_attack(x, y, epsilon, step_size, num_steps)
    least, greatest = (torch.as_tensor(bound, dtype=x.dtype, device=x.device) for bound in (low, high))
    if not bool((least < greatest).all()):
        raise ValueError(f"low must be below high, got {low} and {high}")
    source = x.device if generator is None else generator.device
    start = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=source).to(x.device)
    x = x.detach()
    floor, ceiling = torch.maximum(x - epsilon, least), torch.minimum(x + epsilon, greatest)
    attacked = _clamp(x + epsilon * (2 * start - 1), floor, ceiling)
    with undisturbed(model, x.device), torch.enable_grad():
        for step in range(num_steps):
            attacked.requires_grad_()
            logits = _logits(model, attacked)
            if step == 0:
                _check_classes(y, logits)
            # A sum, so that an input's gradient does not depend on how many others there are.
            loss = nn.functional.cross_entropy(logits, y.long(), reduction="sum")
            (gradient,) = torch.autograd.grad(loss, attacked)
            attacked = _clamp(attacked.detach() + step_size * gradient.sign(), floor, ceiling)
    return attacked


def robust_accuracy(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    epsilon: float,
    *,
    step_size: float | None = None,
    num_steps: int = 10,
    low: float | Tensor = 0.0,
    high: float | Tensor = 1.0,
    chunk_size: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Share of inputs that are still classified correctly after `pgd_linf`.

    Args:
        model: A classifier; (B, *shape) to logits (B, C).
        x: (B, *shape) inputs.
        y: (B,) class indices.
        epsilon: See `pgd_linf`; 0 gives the ordinary accuracy.
        step_size: See `pgd_linf`.
        num_steps: See `pgd_linf`.
        low: See `pgd_linf`; a tensor must not depend on the input.
        high: See `pgd_linf`.
        chunk_size: Inputs per pass; all at once if None.
        generator: See `pgd_linf`.

    Returns:
        Scalar in [0, 1].

    Raises:
        ValueError: As `pgd_linf`, or if `chunk_size` is below 1.
        TypeError: As `pgd_linf`.

    Examples:
        >>> model, x, y = nn.Linear(4, 3), torch.rand(8, 4), torch.zeros(8, dtype=torch.long)
        >>> bool(robust_accuracy(model, x, y, 0.1) <= robust_accuracy(model, x, y, 0.0))
        True
    """
    model = bare(model)
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    radius = epsilon or 1.0  # without an attack the data must fit all the same
    _check_attack(x, y, radius, radius if step_size is None else step_size, num_steps)
    correct = []
    size = chunk_size or len(x)
    for inputs, labels in zip(x.split(size), y.split(size), strict=True):
        if epsilon != 0:
            inputs = pgd_linf(
                model,
                inputs,
                labels,
                epsilon,
                step_size=step_size,
                num_steps=num_steps,
                low=low,
                high=high,
                generator=generator,
            )
        with torch.no_grad(), undisturbed(model, x.device):
            logits = _logits(model, inputs)
            _check_classes(labels, logits)
            correct.append(logits.argmax(1) == labels)
    return torch.cat(correct).to(torch.float32).mean()


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    output = model(x)
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != len(x):
        what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(output).__name__
        raise TypeError(
            f"model must answer with logits ({len(x)}, C), or with what holds them as logits, got {what}"
        )
    return found


def _check_classes(y: Tensor, logits: Tensor) -> None:
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= logits.shape[1]:
        raise ValueError(f"y must name classes from 0 to {logits.shape[1] - 1}, got {low} to {high}")


def _clamp(x: Tensor, floor: Tensor, ceiling: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(x, floor), ceiling)


def _check_attack(x: Tensor, y: Tensor, epsilon: float, step_size: float, num_steps: int) -> None:
    check_points(x)
    if y.is_floating_point() or y.is_complex():
        raise TypeError(f"y must be integers, got {y.dtype}")
    if y.shape != x.shape[:1]:
        raise ValueError(f"y must have shape ({len(x)},), got {tuple(y.shape)}")
    for name, value in (("epsilon", epsilon), ("step_size", step_size)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive and finite, got {value}")
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
