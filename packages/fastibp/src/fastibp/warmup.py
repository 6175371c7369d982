"""The warm-up: how the radius grows, and what is regularised while it does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fastibp.boxes import Box
from fastibp.propagation import IBPOutput


@dataclass(frozen=True)
class EpsSchedule:
    r"""The training radius at each optimizer step: zero, then smooth growth, then `eps_max`.

    With `s = (start - 1) n`, `T = s + length n`, `m = s + int(mid length n)` for `n` steps per epoch:
    `eps(t) = a (t - s)^beta` up to m, then a straight line of the same slope up to `eps(T) = eps_max`,
    with `a = eps_max / (beta (T - m) (m - s)^(beta - 1) + (m - s)^beta)`. Kind `"linear"` is one straight
    line from s to T.

    Args:
        eps_max: Final radius, `>= 0`.
        steps_per_epoch: Optimizer steps of one epoch, `>= 1`.
        start: Epoch, counted from 1, at whose beginning the radius starts to grow.
        length: Number of epochs of growth, `> 0`.
        kind: `"smooth"` or `"linear"`.
        beta: Exponent of the smooth part, `>= 1`.
        mid: Share of the warm-up after which growth is linear, between 0 and 1.

    Raises:
        ValueError: If an argument is out of its range.

    Examples:
        >>> schedule = EpsSchedule(eps_max=0.3, steps_per_epoch=100, start=2, length=6)
        >>> schedule(100), round(schedule(400), 4), schedule(700)
        (0.0, 0.1154, 0.3)
    """

    eps_max: float
    steps_per_epoch: int
    start: int = 2
    length: float = 20
    kind: Literal["smooth", "linear"] = "smooth"
    beta: float = 4.0
    mid: float = 0.25

    def __post_init__(self) -> None:
        limits = {
            "eps_max": (self.eps_max >= 0, ">= 0"),
            "steps_per_epoch": (self.steps_per_epoch >= 1, ">= 1"),
            "start": (self.start >= 1, ">= 1"),
            "length": (self.length > 0, "> 0"),
            "kind": (self.kind in ("smooth", "linear"), "'smooth' or 'linear'"),
            "beta": (self.beta >= 1, ">= 1"),
            "mid": (0 <= self.mid <= 1, "between 0 and 1"),
        }
        for name, (holds, must) in limits.items():
            if not holds:
                raise ValueError(f"{name} must be {must}, got {getattr(self, name)!r}")

    def __call__(self, step: int) -> float:
        """The radius at this optimizer step, counted from 0 over all epochs."""
        begin = (self.start - 1) * self.steps_per_epoch
        total = self.length * self.steps_per_epoch
        time = step - begin
        if time <= 0:
            return 0.0
        if time >= total:
            return self.eps_max
        middle = int(self.mid * total)
        if self.kind == "linear" or middle == 0:
            return self.eps_max * time / total
        # In units of the middle, whose powers could overflow.
        slope = self.beta * (total - middle) / middle
        scale = self.eps_max / (slope + 1)
        if time < middle:
            return scale * math.pow(time / middle, self.beta)
        return scale * (1 + self.beta * (time - middle) / middle)


def warmup_regularizer(
    output: IBPOutput, eps: float, eps_max: float, weight: float = 0.5, tolerance: float = 0.5
) -> Tensor:
    r"""Both regularisers of the paper, fading out as the radius grows (Section 3.4, eq. 10 to 14).

    `weight (1 - eps / eps_max) (L_tight + L_relu)`. In the first epochs, where `eps = 0`, propagate a box
    of radius 1e-6 and give `eps=0` here.

    Args:
        output: What `IBP` returned for this batch.
        eps: Radius of this step, between 0 and `eps_max`.
        eps_max: Final radius, `> 0`.
        weight: `lambda_0`: 0.5 for MNIST and CIFAR-10, 0.1 to 0.2 for TinyImageNet.
        tolerance: `tau`, in (0, 1].

    Returns:
        Scalar to add to the loss; zero from `eps = eps_max` on.

    Raises:
        ValueError: If `eps`, `eps_max`, `weight` or `tolerance` is out of its range, or the model has no
            rectifier whose input could be regularised.
    """
    if not eps_max > 0:
        raise ValueError(f"eps_max must be > 0, got {eps_max}")
    if not 0 <= eps <= eps_max:
        raise ValueError(f"eps must lie in [0, eps_max] = [0, {eps_max}], got {eps}")
    if not weight >= 0:
        raise ValueError(f"weight must be >= 0, got {weight}")
    if not output.preacts:
        raise ValueError(
            "output holds no rectifier's input (preacts is empty): there is nothing to regularise"
        )
    strength = weight * (1 - eps / eps_max)
    if strength == 0:
        return output.logits.new_zeros(())
    tight = tightness_loss(output.input_box, output.preacts, tolerance)
    return strength * (tight + relu_balance_loss(output.preacts, tolerance))


def tightness_loss(input_box: Box, preacts: Sequence[Box], tolerance: float = 0.5) -> Tensor:
    r"""Penalise boxes that grow from the input on: `mean_i relu(tau - T_0 / T_i) / tau`.

    `T_0` and `T_i` are mean radii over batch and elements of the input and of the i-th ReLU's input. Zero
    when no layer has more than `1 / tau` times the input's radius (paper, Section 3.4, "bound tightness").

    Args:
        input_box: The propagated box.
        preacts: Boxes entering each of the m ReLUs.
        tolerance: `tau`, in (0, 1].

    Returns:
        Scalar in [0, 1]; zero if there is no ReLU.

    Raises:
        ValueError: If `tolerance` is out of range, or a box is empty.

    Examples:
        >>> unit = Box(torch.zeros(3), torch.ones(3))
        >>> tightness_loss(unit, [Box(torch.zeros(3), 4 * torch.ones(3))])  # (0.5 - 1/4) / 0.5
        tensor(0.5000)
    """
    _check_tolerance(tolerance)
    _check_boxes(preacts)
    if not preacts:
        return input_box.center.new_zeros(())
    first = input_box.radius.mean()
    radii = torch.stack([box.radius.mean() for box in preacts]).clamp_min(1e-12)
    return (tolerance - first / radii).relu().mean() / tolerance


def relu_balance_loss(preacts: Sequence[Box], tolerance: float = 0.5) -> Tensor:
    r"""Penalise ReLUs whose active and inactive neurons do not balance.

    With centres `c`, their mean `mu`, active neurons `A` (`l > 0`) and inactive ones `I` (`u < 0`), for
    each ReLU `rho_mean = mean(c A) / -mean(c I)` and `rho_var = sum((c - mu)^2 A) / sum((c - mu)^2 I)`,
    each replaced by `min(rho, 1 / rho)`; the loss is the mean over ReLUs of
    `[relu(tau - rho_mean) + relu(tau - rho_var)] / tau` (paper, Section 3.4, "ReLU activation states").
    A ReLU without inactive neurons contributes zero, as in the official code; one without active ones the most.

    Args:
        preacts: Boxes entering each of the m ReLUs.
        tolerance: `tau`, in (0, 1].

    Returns:
        Scalar in [0, 2]; zero if there is no ReLU.

    Raises:
        ValueError: If `tolerance` is out of range, or a box is empty.

    Examples:
        >>> center = torch.tensor([-1.0, 1.0])
        >>> relu_balance_loss([Box(center - 0.1, center + 0.1)])
        tensor(0.)
    """
    _check_tolerance(tolerance)
    _check_boxes(preacts)
    if not preacts:
        return torch.zeros(())
    terms = [_balance_term(box, tolerance) for box in preacts]
    return torch.stack(terms).mean() / tolerance


def _balance_term(box: Box, tolerance: float) -> Tensor:
    center = box.center
    active, inactive = (box.lower > 0).to(center.dtype), (box.upper < 0).to(center.dtype)
    square = (center - center.mean()).square()
    pairs = torch.stack(
        [
            torch.stack([(center * active).mean(), (square * active).mean()]),
            torch.stack([-(center * inactive).mean(), (square * inactive).mean()]),
        ]
    )
    # min(a / b, b / a) as smaller / larger: no division by zero unless both are, and finite gradients.
    smaller, larger = pairs.amin(0), pairs.amax(0)
    defined = larger > 0
    ratio = smaller / torch.where(defined, larger, 1.0)
    return torch.where(inactive.any() & defined.all(), (tolerance - ratio).relu().sum(), 0.0)


def spread_loss(preacts: Sequence[Box], tolerance: float = 0.5) -> Tensor:
    """Penalise small standard deviations of centres: `mean_i relu(tau - std(c_i)) / tau` (a variant).

    Args:
        preacts: Boxes entering each ReLU.
        tolerance: `tau`, in (0, 1].

    Returns:
        Scalar in [0, 1].
    """
    _check_tolerance(tolerance)
    _check_boxes(preacts)
    if not preacts:
        return torch.zeros(())
    deviations = torch.stack([box.center.std() for box in preacts])
    return (tolerance - deviations).relu().mean() / tolerance


def stability_loss(preacts: Sequence[Box]) -> Tensor:
    """ReLU stability of Xiao et al. (2019), a baseline: minus the batch mean of `sum tanh(1 + l u)`.

    Args:
        preacts: Boxes entering each ReLU, shapes (N, ...).

    Returns:
        Scalar; the usual weight is 1e-5, with an L1 penalty on the weights beside it.
    """
    _check_boxes(preacts)
    if not preacts:
        return torch.zeros(())
    sums = [torch.tanh(1 + box.lower * box.upper).flatten(1).sum(1).mean() for box in preacts]
    return -torch.stack(sums).sum()


def volume_loss(preacts: Sequence[Box]) -> Tensor:
    """Area of the ReLU relaxations, of COLT (Balunovic and Vechev, 2020): `mean(relu(-l) relu(u))`.

    Args:
        preacts: Boxes entering each ReLU.

    Returns:
        Scalar, summed over ReLUs.
    """
    _check_boxes(preacts)
    if not preacts:
        return torch.zeros(())
    return torch.stack([((-box.lower).relu() * box.upper.relu()).mean() for box in preacts]).sum()


class ReluState(NamedTuple):
    """Shares of one ReLU's neurons, over a batch."""

    active: float
    inactive: float
    unstable: float


def relu_balance(output: IBPOutput) -> list[ReluState]:
    """How many neurons of each ReLU are surely active (`l > 0`), surely inactive (`u < 0`), or neither.

    Args:
        output: What `IBP` returned.

    Returns:
        One `ReluState` for each ReLU, in order of execution; each sums to one.
    """
    _check_boxes(output.preacts)
    states = []
    for box in output.preacts:
        active, inactive = (box.lower > 0).double().mean().item(), (box.upper < 0).double().mean().item()
        states.append(ReluState(active, inactive, 1 - active - inactive))
    return states


def _check_tolerance(tolerance: float) -> None:
    if not 0 < tolerance <= 1:
        raise ValueError(f"tolerance must lie in (0, 1], got {tolerance}")


def _check_boxes(preacts: Sequence[Box]) -> None:
    if any(box.shape.numel() == 0 for box in preacts):
        raise ValueError("preacts must hold at least one example, got an empty box: its mean is not defined")
