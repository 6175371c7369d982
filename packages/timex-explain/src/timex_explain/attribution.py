"""Other attributions of a classifier's decision, and the scores by which attributions are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from timex_explain._checks import (
    check_count,
    check_device,
    check_finite,
    check_labels,
    check_logits,
    check_padding,
    check_same_shape,
    check_series,
    check_target,
    check_tensor,
    clean_padded,
)
from timex_explain._classifier import differentiable, evaluating
from timex_explain.replacement import Replacement

Classifier = Callable[[Tensor], Tensor]
_OCCLUDED_AT_ONCE = 512  # series with one value replaced, in one pass


def integrated_gradients(
    model: Classifier,
    x: Tensor,
    target: Tensor,
    *,
    num_steps: int = 50,
    baseline: Tensor | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """Attribute logits by gradients along the straight way from a baseline.

    A_td = (x_td - b_td) mean_k dF_y / dx_td (b + a_k (x - b)) at the midpoints a_k of num_steps equal
    parts of [0, 1] (Sundararajan et al., 2017; arXiv 1703.01365, eq. 3). The sum of A is F_y(x) - F_y(b)
    up to the error of the midpoint rule.

    Args:
        model: (batch, T, D) to logits (batch, C); a module is in evaluation mode meanwhile.
        x: (batch, T, D).
        target: (batch,), the class y whose logit is attributed.
        num_steps: Gradients per series.
        baseline: Broadcastable to (batch, T, D); zero if None.
        batch_size: Series at a time in the classifier, which bounds the memory; more than there are takes
            several steps at once. None is as many as there are: one step of all series at a time.

    Returns:
        (batch, T, D), signed.

    Raises:
        ValueError: If shapes do not fit, values are not finite, `num_steps` or `batch_size` is not
            positive, or the classifier has fewer than two logits or not the classes of `target`.
        TypeError: If `x` is not floating-point or `target` not integers.

    Examples:
        >>> x = torch.tensor([[[1.0], [2.0]]])
        >>> integrated_gradients(lambda x: x.flatten(1), x, torch.tensor([1])).tolist()
        [[[0.0], [2.0]]]
    """
    _check(x, target)
    check_count(num_steps, "num_steps")
    size = len(x) if batch_size is None else batch_size
    check_count(size, "batch_size")
    start = torch.zeros_like(x) if baseline is None else _expanded(baseline, x)
    exact = torch.promote_types(x.dtype, torch.float32)
    total = torch.zeros_like(x, dtype=exact)
    # All pairs of a step and a series, step after step.
    for pairs in torch.arange(num_steps * len(x), device=x.device).split(size):
        step, rows = pairs // len(x), pairs % len(x)
        place = ((step + 0.5) / num_steps).to(x.dtype)[:, None, None]
        gradient = _gradient(model, torch.lerp(start[rows], x[rows], place), target[rows])
        total.index_add_(0, rows, gradient.to(exact))
    return ((x - start) * total / num_steps).to(x.dtype)


def gradient_times_input(model: Classifier, x: Tensor, target: Tensor) -> Tensor:
    """Attribute logits by x_td dF_y / dx_td: the first-order share of every value in the logit.

    Args:
        model: (batch, T, D) to logits (batch, C); a module is in evaluation mode meanwhile.
        x: (batch, T, D).
        target: (batch,), the class y whose logit is attributed.

    Returns:
        (batch, T, D), signed.

    Raises:
        ValueError: If shapes do not fit, values are not finite, or the classifier has fewer than two
            logits or not the classes of `target`.
        TypeError: If `x` is not floating-point or `target` not integers.

    Examples:
        >>> gradient_times_input(lambda x: x.flatten(1), torch.ones(1, 2, 1), torch.tensor([1])).tolist()
        [[[0.0], [1.0]]]
    """
    _check(x, target)
    return x * _gradient(model, x, target)


@torch.no_grad()
def occlusion_saliency(
    model: Classifier,
    x: Tensor,
    target: Tensor,
    replacement: Replacement,
    *,
    num_draws: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Attribute probabilities by what is lost when one value at a time is replaced.

    A_td = p_y(x) - mean over draws of p_y(x with x_td replaced): T D num_draws forward passes per series.

    Args:
        model: (batch, T, D) to logits (batch, C); a module is in evaluation mode meanwhile.
        x: (batch, T, D).
        target: (batch,), the class y.
        replacement: What a value is replaced by.
        num_draws: Draws per value.
        generator: Source of the draws, on the device of `x`. Small batches are passed several times at once.

    Returns:
        (batch, T, D), signed.

    Raises:
        ValueError: If shapes do not fit, values are not finite, `num_draws` is not positive, or the
            classifier has fewer than two logits or not the classes of `target`.
        TypeError: If `x` is not floating-point or `target` not integers.
    """
    _check(x, target)
    check_series(x, length=replacement.length, sensors=replacement.num_features)
    check_count(num_draws, "num_draws")
    rows = torch.arange(len(x), device=x.device)
    exact = torch.promote_types(x.dtype, torch.float32)
    lost = torch.zeros_like(x, dtype=exact)
    logits = _logits_of(model, x, target)
    whole = logits.softmax(-1, dtype=exact)[rows, target]
    values = torch.cartesian_prod(*(torch.arange(size, device=x.device) for size in x.shape[1:]))
    for _ in range(num_draws):
        drawn = replacement.draw(x, generator)
        for part in values.split(max(1, _OCCLUDED_AT_ONCE // max(len(x), 1))):
            times, sensors = part.T
            numbers = torch.arange(len(part), device=x.device)
            occluded = x.repeat(len(part), 1, 1, 1)
            occluded[numbers, :, times, sensors] = drawn[:, times, sensors].T
            logits = _logits_of(model, occluded.flatten(0, 1), target.repeat(len(part)))
            prob = logits.softmax(-1, dtype=exact).unflatten(0, (len(part), len(x)))
            lost[:, times, sensors] += (whole - prob[:, rows, target]).T
    return (lost / num_draws).to(x.dtype)


class SaliencyScores(NamedTuple):
    """How well saliency finds the truth, one value per series, each in [0, 1], higher is better.

    Attributes:
        auprc: (batch,), average precision of the ranking.
        aup: (batch,), area under precision as a function of the threshold.
        aur: (batch,), area under recall as a function of the threshold.
    """

    auprc: Tensor
    aup: Tensor
    aur: Tensor


def saliency_scores(saliency: Tensor, truth: Tensor, *, padding: Tensor | None = None) -> SaliencyScores:
    """Compare saliency maps with the points that are known to matter.

    Every map is scaled to [0, 1] by its own smallest and largest value. AUPRC = sum_k (R_k - R_{k-1})
    P_k over its distinct values as thresholds; AUP and AUR are the areas under P and R against the
    threshold, by the trapezoid rule between distinct values (arXiv 2306.02109, section 5; arXiv
    2106.05303). All series at once, equal to scikit-learn's curves on each.

    Args:
        saliency: (batch, T, D), higher where more important.
        truth: (batch, T, D) bool, or zeros and ones.
        padding: (batch, T) bool, true where a series has ended; such points do not count.

    Returns:
        Three scores per series.

    Raises:
        ValueError: If shapes differ, a value is not finite, or a series has no true point (its AUPRC is
            undefined: leave it out).
        TypeError: If `saliency` is not floating-point or `padding` not bool.

    Examples:
        >>> truth = torch.tensor([[[1], [0], [0], [1]]])
        >>> scores = saliency_scores(torch.tensor([[[0.9], [0.1], [0.1], [0.9]]]), truth)
        >>> [round(score.item(), 2) for score in scores]
        [1.0, 0.75, 1.0]
    """
    check_series(saliency, "saliency")
    check_same_shape(truth, saliency, "truth", "saliency")
    check_padding(padding, saliency)
    saliency = clean_padded(saliency, padding)
    check_finite(saliency, "saliency")
    if not bool(((truth == 0) | (truth == 1)).all()):
        raise ValueError("truth must be bool, or zeros and ones, got other values")
    value, true = saliency.flatten(1), truth.flatten(1).bool()
    value = value.to(torch.promote_types(value.dtype, torch.float32))
    inside = torch.ones_like(true)
    if padding is not None:
        inside = ~padding.unsqueeze(-1).expand_as(saliency).flatten(1)
        true = true & inside
    if not bool(true.any(1).all()):
        raise ValueError("truth must have a true point in every series, got a series without any")

    threshold, order = _scaled(value, inside).sort(dim=1, descending=True, stable=True)
    hit, counted = true.gather(1, order).to(threshold.dtype), inside.gather(1, order).to(threshold.dtype)
    last = _last_of_equals(threshold)
    hits, seen = hit.cumsum(1).gather(1, last), counted.cumsum(1).gather(1, last)
    precision, recall = hits / seen.clamp_min(1), hits / hits[:, -1:]
    width = (threshold[:, :-1] - threshold[:, 1:]) * counted[:, 1:]
    return SaliencyScores(
        auprc=(hit * precision).sum(1) / hits[:, -1],
        aup=(width * (precision[:, :-1] + precision[:, 1:])).sum(1) / 2,
        aur=(width * (recall[:, :-1] + recall[:, 1:])).sum(1) / 2,
    )


def _scaled(value: Tensor, inside: Tensor) -> Tensor:
    """Scale each row to [0, 1]; what is not inside comes below everything."""
    low = value.masked_fill(~inside, float("inf")).amin(1, keepdim=True)
    high = value.masked_fill(~inside, float("-inf")).amax(1, keepdim=True)
    width = high - low
    return ((value - low) / torch.where(width > 0, width, 1)).masked_fill(~inside, -1)


def _last_of_equals(ranked: Tensor) -> Tensor:
    """For every place of sorted rows, the last place with the same value: where a threshold takes effect."""
    count = ranked.shape[1]
    place = torch.arange(count, device=ranked.device).expand_as(ranked)
    is_last = torch.nn.functional.pad(ranked[:, 1:] != ranked[:, :-1], (0, 1), value=True)
    return place.masked_fill(~is_last, count).flip(1).cummin(1).values.flip(1)


class OcclusionCurve(NamedTuple):
    """How well a classifier does on series of which a part is replaced.

    Attributes:
        fractions: The parts replaced, as given.
        auroc: AUROC at each of them, in [0, 1].
    """

    fractions: list[float]
    auroc: list[float]

    @property
    def area(self) -> float:
        """Mean AUROC over the fractions, by the trapezoid rule: one number for the curve."""
        curve, places = torch.tensor(self.auroc), torch.tensor(self.fractions)
        return float(torch.trapezoid(curve, places) / (places[-1] - places[0]))


@torch.no_grad()
def occlusion_curve(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    saliency: Tensor,
    fractions: Sequence[float],
    replacement: Replacement,
    *,
    order: Literal["lowest", "highest"] = "lowest",
    num_draws: int = 1,
    generator: torch.Generator | None = None,
) -> OcclusionCurve:
    """Replace a part of every series, by its saliency, and see what the classifier is still worth.

    With `order="lowest"` the least salient values go first, and good saliency keeps the AUROC up
    (arXiv 2306.02109, section 5, R2); with `"highest"` the most salient go first, and good saliency makes
    it fall. All methods that share the state of `generator` share the draws.

    Args:
        model: (batch, T, D) to logits (batch, C); a module is in evaluation mode meanwhile.
        x: (batch, T, D).
        y: (batch,) true classes, at least two different ones.
        saliency: (batch, T, D). Equal values go in the order of time.
        fractions: Increasing parts of T D in [0, 1].
        replacement: What values are replaced by.
        order: Which values go first.
        num_draws: Draws of the replacement, over which the AUROC is averaged.
        generator: Source of the draws, on the device of `x`.

    Returns:
        AUROC at each fraction: for several classes, the mean over pairs of classes.

    Raises:
        ValueError: If shapes, fractions or order do not fit, values are not finite, there is one class, or
            the classifier has fewer than two logits or not the classes of `y`.
        TypeError: If `x` is not floating-point or `y` not integers.
    """
    _check(x, y)
    check_finite(saliency, "saliency")
    check_same_shape(saliency, x, "saliency", "x")
    check_series(x, length=replacement.length, sensors=replacement.num_features)
    check_count(num_draws, "num_draws")
    parts = [float(part) for part in fractions]
    if not parts or parts != sorted(set(parts)) or parts[0] < 0 or parts[-1] > 1:
        raise ValueError(f"fractions must be increasing and in [0, 1], got {parts}")
    if order not in ("lowest", "highest"):
        raise ValueError(f"order must be 'lowest' or 'highest', got {order!r}")
    rank = (
        saliency.flatten(1).argsort(dim=1, descending=order == "highest", stable=True).argsort(1).view_as(x)
    )
    drawn = [replacement.draw(x, generator) for _ in range(num_draws)]
    values = []
    for part in parts:
        keep = rank >= round(part * rank[0].numel())
        scores = [_auroc_of(model, torch.where(keep, x, other), y) for other in drawn]
        values.append(float(torch.stack(scores).mean()))
    return OcclusionCurve(parts, values)


def _auroc_of(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
    return auroc(_logits_of(model, x, y).softmax(-1), y)


def auroc(prob: Tensor, y: Tensor) -> Tensor:
    """Compute the area under the receiver operating characteristic, by ranks.

    For two classes the chance that a series of class 1 scores higher than one of class 0, ties counting
    half (Mann-Whitney). For more, the mean over ordered pairs (i, j) of the same for p_i between the
    series of classes i and j (Hand and Till, 2001). Classes without series are left out.

    Args:
        prob: (batch, C), C at least 2.
        y: (batch,), in [0, C).

    Returns:
        A scalar.

    Raises:
        ValueError: If fewer than two classes are present, shapes do not fit, or `prob` is not finite.
        TypeError: If `y` is not integers.

    Examples:
        >>> prob = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3]])
        >>> float(auroc(prob, torch.tensor([0, 0, 1])))
        0.5
    """
    check_tensor(prob, "prob")
    if prob.dim() != 2 or prob.shape[1] < 2:
        raise ValueError(f"prob must be (batch, classes), 2 classes at least, got shape {tuple(prob.shape)}")
    check_finite(prob, "prob")
    check_labels(y, len(prob), "y")
    classes = y.unique()
    if len(classes) < 2:
        raise ValueError("y must have at least two classes, got one")
    check_target(y, prob.shape[1], "y")
    exact = prob.double()
    if prob.shape[1] == 2:
        return _pair_auroc(exact[y == 1, 1], exact[y == 0, 1])
    pairs = torch.combinations(classes).tolist()
    areas = [
        _pair_auroc(exact[y == one, one], exact[y == other, one])
        for i, j in pairs
        for one, other in ((i, j), (j, i))
    ]
    return torch.stack(areas).mean()


def _pair_auroc(positive: Tensor, negative: Tensor) -> Tensor:
    """Share of pairs in which the positive scores higher; ties count half."""
    ranked = negative.sort().values
    below = torch.searchsorted(ranked, positive.contiguous())
    up_to = torch.searchsorted(ranked, positive.contiguous(), right=True)
    return (below + up_to).double().mean() / (2 * len(negative))


def _gradient(model: Classifier, x: Tensor, target: Tensor) -> Tensor:
    with torch.inference_mode(False), torch.enable_grad(), differentiable(model, x):
        # What was made in inference mode has no gradient, but its copy may have.
        x, target = (value.clone() if value.is_inference() else value for value in (x, target))
        x = x.detach().requires_grad_()
        logits = _logits_of(model, x, target)
        (gradient,) = torch.autograd.grad(logits.gather(1, target.unsqueeze(1)).sum(), x)
    return gradient


def _expanded(baseline: Tensor, x: Tensor) -> Tensor:
    """The baseline of every series."""
    check_tensor(baseline, "baseline")
    check_device(baseline, x.device, "baseline")
    check_finite(baseline, "baseline")
    try:
        return baseline.to(x.dtype).expand_as(x)
    except RuntimeError:
        raise ValueError(
            f"baseline must be broadcastable to {tuple(x.shape)}, got shape {tuple(baseline.shape)}"
        ) from None


def _logits_of(model: Classifier, x: Tensor, target: Tensor) -> Tensor:
    """Ask the classifier, in evaluation mode if it has one: no dropout, and no statistics of the batch."""
    with evaluating(model) if isinstance(model, nn.Module) else nullcontext():
        logits = model(x)
    check_logits(logits, len(target))
    check_target(target, logits.shape[1], "the classes of x")
    return logits


def _check(x: Tensor, target: Tensor) -> None:
    check_series(x)
    check_finite(x)
    check_labels(target, len(x), "the classes of x")
