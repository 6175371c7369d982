"""Losses between the adversarial one and that of the whole box: small boxes, and mixtures of the two."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastibp.boxes import Box
from fastibp.certification import robust_loss
from fastibp.layers import in_mode
from fastibp.margins import checked_labels, other_classes


def attack(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    box: Box,
    labels: Tensor,
    *,
    steps: int = 8,
    step_size: float = 0.5,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Look for the worst input in the box by projected gradient ascent on the cross-entropy (Madry et al. 2018).

    Begins at a uniform point, takes steps of `step_size` radii along the sign of the gradient (a tenth of that from
    half of the steps on), and gives back the worst point met, `x` among them. A module is in evaluation mode
    meanwhile; its modes, gradients and running statistics stay as they are.

    Args:
        model: Gives logits (N, K), example by example; a module, or any function.
        x: Inputs, shape (N, ...), in the box.
        box: The box.
        labels: Integer classes, shape (N,).
        steps: Steps, at least 0: 0 compares `x` with the uniform point alone.
        step_size: Length of a step in radii of the box, above 0.
        generator: Randomness of the start.

    Returns:
        Inputs in the box, shape (N, ...), without gradient.

    Raises:
        TypeError: If `box` is no `Box`, or `labels` are no integers.
        ValueError: If shapes or labels do not fit, or a number is out of range.

    Examples:
        >>> model = nn.Linear(1, 2, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[1.0], [0.0]]))
        >>> x = torch.tensor([[0.5]])
        >>> attack(model, x, Box(x - 0.1, x + 0.1), torch.tensor([0]))
        tensor([[0.4000]])
    """
    _check(x, box)
    if steps < 0:
        raise ValueError(f"steps must be at least 0, got {steps}")
    if not 0 < step_size < math.inf:
        raise ValueError(f"step_size must be positive and finite, got {step_size}")
    with torch.inference_mode(
        False
    ):  # gradients are needed inside of it too, and tensors made there have none
        bounds = (box.lower, box.upper, box.radius)
        return _ascend(
            model,
            x.detach().clone(),
            [one.detach().clone() for one in bounds],
            labels.clone() if isinstance(labels, Tensor) else labels,
            steps,
            step_size,
            generator,
        )


def _ascend(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    bounds: Sequence[Tensor],
    labels: Tensor,
    steps: int,
    step_size: float,
    generator: torch.Generator | None,
) -> Tensor:
    lower, upper, radius = bounds

    def loss(points: Tensor) -> Tensor:
        logits = model(points)
        return F.cross_entropy(logits, checked_labels(labels, logits), reduction="none")

    def keep(points: Tensor, losses: Tensor) -> None:
        better = losses > worst
        worst[better] = losses[better]
        found[better] = points[better]

    with _evaluating(model):
        with torch.no_grad():
            found, worst = x.clone(), loss(x)
        points = torch.lerp(
            lower, upper, torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        )
        for step in range(steps):
            with torch.enable_grad():
                points.requires_grad_()
                losses = loss(points)
                (gradient,) = torch.autograd.grad(losses.sum(), points)
            points = points.detach()
            keep(points, losses.detach())
            length = step_size if step < steps / 2 else step_size / 10
            points = (points + length * radius * gradient.sign()).clamp(lower, upper)
        with torch.no_grad():
            keep(points, loss(points))
    return found


def small_box(box: Box, adversarial: Tensor, share: float) -> Box:
    r"""A box of `share` of the radius inside `box`, as near to the adversarial input as that allows (SABR).

    `c' = clamp(x_adv, c - (1 - share) r, c + (1 - share) r)`, `r' = share r` (Müller et al., *Certified Training: Small
    Boxes are All You Need*, ICLR 2023, section 3). It holds the adversarial input. Propagate its centre as nominal
    input: `bounder(inner.center, inner, labels)`.

    Args:
        box: The box.
        adversarial: Inputs in it, from `attack`.
        share: Of the radius, in (0, 1]; 1 is the box.

    Returns:
        The small box.

    Raises:
        TypeError: If `box` is no `Box`.
        ValueError: If shapes do not fit or `share` is out of range.

    Examples:
        >>> box = Box(torch.zeros(1, 1), torch.ones(1, 1))
        >>> inner = small_box(box, torch.tensor([[0.9]]), share=0.5)
        >>> inner.lower, inner.upper
        (tensor([[0.5000]]), tensor([[1.]]))
    """
    _check(adversarial, box, "adversarial")
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}")
    slack = (1 - share) * box.radius
    center = adversarial.detach().clamp(box.center - slack, box.center + slack)
    radius = share * box.radius
    return Box.between(torch.maximum(center - radius, box.lower), torch.minimum(center + radius, box.upper))


def mixed_loss(logits: Tensor, margins: Tensor, labels: Tensor, alpha: float, *, kind: str = "mtl") -> Tensor:
    r"""Between the cross-entropy at adversarial inputs (`alpha = 0`) and that of the box (`alpha = 1`).

    - `"mtl"`: `(1 - alpha) L(z_adv) + alpha L(margins)`, of losses;
    - `"cc"`: `L((1 - alpha) margins_adv + alpha margins)`, of margins;
    - `"exp"`: `L(z_adv)^(1 - alpha) L(margins)^alpha`, of logarithms.

    MTL-IBP, CC-IBP and Exp-IBP (De Palma et al., *Expressive Losses for Verified Robustness via Convex Combinations*,
    ICLR 2024, section 4). Each grows with alpha, and the last two are never above the first.

    Args:
        logits: Of the adversarial inputs, shape (N, K): `model(attack(model, x, box, labels))`.
        margins: Of the whole box, shape (N, K - 1): `bounder(x, box, labels).margins`.
        labels: Integer classes, shape (N,).
        alpha: Weight of the box, in [0, 1].
        kind: `"mtl"`, `"cc"` or `"exp"`.

    Returns:
        Scalar.

    Raises:
        TypeError: If `labels` are no integers.
        ValueError: If shapes do not fit, there is no example, or `alpha` or `kind` is another.

    Examples:
        >>> logits, margins, labels = torch.tensor([[2.0, 0.0]]), torch.tensor([[-1.0]]), torch.tensor([0])
        >>> [round(float(mixed_loss(logits, margins, labels, 0.5, kind=kind)), 4) for kind in ("mtl", "cc", "exp")]
        [0.7201, 0.4741, 0.4083]
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}")
    if kind not in ("mtl", "cc", "exp"):
        raise ValueError(f"kind must be 'mtl', 'cc' or 'exp', got {kind!r}")
    labels = checked_labels(labels, logits)
    if margins.shape != (len(logits), logits.shape[1] - 1):
        raise ValueError(
            f"margins must have shape {(len(logits), logits.shape[1] - 1)}, got {tuple(margins.shape)}"
        )
    attacked = logits.gather(1, labels[:, None]) - logits.gather(1, other_classes(labels, logits.shape[1]))
    if kind == "cc":
        return robust_loss(torch.lerp(attacked, margins, alpha))
    adversarial, bounded = robust_loss(attacked), robust_loss(margins)
    if kind == "mtl":
        return (1 - alpha) * adversarial + alpha * bounded
    tiny = torch.finfo(bounded.dtype).tiny  # a loss that rounds to 0 has no logarithm
    logarithm = (1 - alpha) * adversarial.clamp(min=tiny).log() + alpha * bounded.clamp(min=tiny).log()
    return logarithm.exp()


def _evaluating(model: Callable[[Tensor], Tensor]) -> AbstractContextManager[None]:
    return in_mode(model, False) if isinstance(model, nn.Module) else nullcontext()


def _check(x: Tensor, box: Box, name: str = "x") -> None:
    if not isinstance(box, Box):
        raise TypeError(f"box must be a fastibp.Box, got {type(box).__name__}")
    if box.shape != x.shape or box.dtype != x.dtype:
        raise ValueError(
            f"box must match {name} {tuple(x.shape)} {x.dtype}, got {tuple(box.shape)} {box.dtype}"
        )
