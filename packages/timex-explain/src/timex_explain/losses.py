"""The losses: the explanation behaves as the model does, and its mask is sparse and connected."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import normalize

from timex_explain._checks import (
    check_classes,
    check_device,
    check_padding,
    check_positive,
    check_same_shape,
    check_tensor,
    clean_padded,
)
from timex_explain.masks import check_prob

_EPSILON = 1e-6


def mbc_loss(z: Tensor, z_explanation: Tensor, *, normalized: bool = False) -> Tensor:
    """Model behaviour consistency: pairs of series are as similar in one space as in the other.

    L = mean_ij (cos(z_i, z_j) - cos(z'_i, z'_j))² over all pairs of the batch (arXiv 2306.02109, eq. 1).
    It compares relations, so the two spaces may differ by a rotation, a scale, or in dimension.

    Args:
        z: (batch, d) embeddings by the explained model.
        z_explanation: (batch, d') embeddings of the masked series.
        normalized: Divide by the variance of cos(z_i, z_j), as the official code does on LowVar: for
            models whose embeddings are all alike.

    Returns:
        The scalar loss, not negative.

    Raises:
        ValueError: If there is no pair, or the batches differ.
        TypeError: If the devices differ.

    Examples:
        >>> z = torch.randn(8, 4)
        >>> float(mbc_loss(z, 3 * z.flip(1))) < 1e-12  # a rotation and a scale
        True
    """
    _check_pairs(z, z_explanation, "z", "z_explanation")
    similarity = _cosines(z, z)
    loss = (similarity - _cosines(z_explanation, z_explanation)).square().mean()
    return loss / similarity.var() if normalized else loss


def simclr_loss(z: Tensor, z_explanation: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Contrast each explanation with the other series of the batch: the paper's ablation of `mbc_loss`.

    L = -mean_i log(exp(cos(z'_i, z_i) / t) / sum_{j != i} exp(cos(z'_i, z_j) / t)): an explanation is
    near its own series and far from all others, whatever the model thinks of them.

    Args:
        z: (batch, d) embeddings by the explained model.
        z_explanation: (batch, d) embeddings of the masked series.
        temperature: t, positive.

    Returns:
        The scalar loss; negative values are possible, since the positive is not in the denominator.

    Raises:
        ValueError: If there is no pair, the shapes differ, or the temperature is not positive.
        TypeError: If the devices differ.

    Examples:
        >>> round(float(simclr_loss(torch.eye(3), torch.eye(3))), 4)  # log 2 - 1
        -0.3069
    """
    check_positive(temperature, "temperature")
    _check_pairs(z, z_explanation, "z", "z_explanation")
    check_same_shape(z_explanation, z, "z_explanation", "z")
    scores = _cosines(z_explanation, z) / temperature
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    return (scores.masked_fill(own, float("-inf")).logsumexp(1) - scores.diagonal()).mean()


def label_consistency(
    logits: Tensor, logits_explanation: Tensor, *, official: bool = False, chunk_rows: int = 64
) -> Tensor:
    """Label consistency: pairs of series differ in their predictions as much as under the explained model.

    L = mean_{i<j} (JS(p'_i, p'_j) - JS(p_i, p_j))² with the Jensen-Shannon divergence (arXiv 2306.02109,
    section 4.4), by JS(p, q) = H(m) - (H(p) + H(q)) / 2 with m = (p + q) / 2, in nats. Loss and gradient
    come from one pass over the pairs, chunk by chunk; extra memory is O(chunk_rows batch classes).

    Args:
        logits: (batch, classes) of the explained model: a constant target, without gradient.
        logits_explanation: (batch, classes) of the masked series.
        official: What the official code computes instead: KL with its arguments exchanged, averaged over
            pairs *and* classes before the difference is squared. One number a batch on each side.
        chunk_rows: Rows of pairs held at a time.

    Returns:
        The scalar loss, not negative; zero if the logits differ by a constant per row.

    Raises:
        ValueError: If there is no pair or a single class, the shapes differ, or `chunk_rows` is not positive.
        TypeError: If the devices differ.

    Examples:
        >>> logits = torch.tensor([[9.0, -9.0], [-9.0, 9.0]])  # two opposite predictions: JS = log 2
        >>> round(float(label_consistency(logits, torch.zeros(2, 2))), 4)
        0.4805
    """
    _check_pairs(logits, logits_explanation, "logits", "logits_explanation")
    check_same_shape(logits_explanation, logits, "logits_explanation", "logits")
    check_classes(logits.shape[1], "logits")
    if chunk_rows < 1:
        raise ValueError(f"chunk_rows must be at least 1, got {chunk_rows}")
    if official:
        return (_official_js(logits_explanation) - _official_js(logits.detach())).square()
    exact = torch.promote_types(logits_explanation.dtype, torch.float32)
    prob, target = logits_explanation.to(exact).softmax(-1), logits.detach().to(exact).softmax(-1)
    with torch.autocast(prob.device.type, enabled=False):  # small differences of large sums
        loss: Tensor = _PairwiseJensenShannon.apply(prob, target, chunk_rows)
    return loss


class _PairwiseJensenShannon(torch.autograd.Function):
    """mean_{i<j} (JS(p_i, p_j) - JS(q_i, q_j))², with its gradient to p made on the way.

    With G_ij = dL / dJS_ij, dL/dp_i = sum_j G_ij (log p_i - log m_ij) / 2, and log m_ij is what JS itself
    is made of. Nothing of the size of all pairs is kept. A chunk of rows looks only at the columns from
    its first row on, which is half of the square.
    """

    @staticmethod
    def forward(ctx: Any, prob: Tensor, target: Tensor, chunk_rows: int) -> Tensor:
        count = len(prob)
        want_gradient = ctx.needs_input_grad[0]
        smallest = torch.finfo(prob.dtype).tiny  # 0 log 0 = 0, and no infinite gradient
        log_prob, log_target = prob.clamp_min(smallest).log(), target.clamp_min(smallest).log()
        entropy, target_entropy = _entropy(prob, log_prob), _entropy(target, log_target)
        half, target_half = ((value / 2).clamp_min(smallest) for value in (prob, target))
        gradient = torch.zeros_like(prob) if want_gradient else None
        total = prob.new_zeros(())
        for start in range(0, count, chunk_rows):
            rows, columns = slice(start, start + chunk_rows), slice(start, None)
            js, log_mean = _divergences(half, entropy, rows, columns)
            js -= _divergences(target_half, target_entropy, rows, columns)[0]
            difference = js.triu(1)
            total += difference.square().sum()
            if gradient is not None:
                # A factor 2 of the square, halved by the 1/2 of the divergence's gradient.
                gradient[rows] += log_prob[rows] * difference.sum(1, keepdim=True)
                gradient[rows] -= torch.einsum("ij,ijc->ic", difference, log_mean)
                gradient[columns] += log_prob[columns] * difference.sum(0).unsqueeze(1)
                gradient[columns] -= torch.einsum("ij,ijc->jc", difference, log_mean)
        pairs = count * (count - 1) / 2
        ctx.gradient = None if gradient is None else gradient / pairs
        return total / pairs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, None, None]:
        return (None if ctx.gradient is None else ctx.gradient * d_loss), None, None


def _cosines(rows: Tensor, columns: Tensor) -> Tensor:
    """All cosine similarities, in float32 at least: the losses are small differences of them."""
    exact = torch.promote_types(rows.dtype, torch.float32)
    with torch.autocast(rows.device.type, enabled=False):
        return normalize(rows.to(exact), dim=-1) @ normalize(columns.to(exact), dim=-1).mT


def _entropy(prob: Tensor, log_prob: Tensor) -> Tensor:
    return -(prob * log_prob).sum(-1)


def _divergences(half: Tensor, entropy: Tensor, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
    """JS of every row with every column, and the logarithms of their means; `half` is half the probabilities."""
    mean = half[rows, None] + half[None, columns]
    log_mean = mean.log()
    return _entropy(mean, log_mean) - (entropy[rows, None] + entropy[None, columns]) / 2, log_mean


def _official_js(logits: Tensor) -> Tensor:
    log_prob = logits.log_softmax(-1)
    first, second = torch.triu_indices(len(logits), len(logits), offset=1, device=logits.device)
    p, q = log_prob[first], log_prob[second]
    mean = (p.exp() + q.exp()) / 2
    return (torch.xlogy(mean, mean) - mean * (p + q) / 2).mean()


def sparsity_loss(prob: Tensor, density: float = 0.5, *, padding: Tensor | None = None) -> Tensor:
    """Keep little: the divergence of the mask's Bernoulli probabilities from a prior density.

    L = mean[p log(p / r) + (1 - p) log((1 - p) / (1 - r))], the information bound of GSAT (arXiv
    2306.02109, section 4.4; arXiv 2201.12987), with 1e-6 where the official code has it. With r = 0.5 it
    is not half of the points that is kept in the end: what matters of p is its ranking.

    Args:
        prob: (batch, T, D) in [0, 1].
        density: r in (0, 1): 0.5 in the paper, 0.1 on PAM.
        padding: (batch, T) bool, true where a series has ended; such points do not count.

    Returns:
        The scalar loss, zero at p = r up to 1e-6.

    Raises:
        ValueError: If `prob` is not (batch, T, D) in [0, 1], or r lies outside (0, 1).
        TypeError: If `prob` is not floating-point or `padding` not bool.

    Examples:
        >>> round(float(sparsity_loss(torch.ones(1, 2, 1))), 3)  # log 2
        0.693
    """
    check_density(density)
    prob = _checked_mask(prob, padding)
    return sparsity(prob, density, padding)


def sparsity(prob: Tensor, density: float, padding: Tensor | None) -> Tensor:
    """`sparsity_loss` without its checks."""
    kept = prob * (prob / density + _EPSILON).log()
    left = (1 - prob) * ((1 - prob) / (1 - density + _EPSILON) + _EPSILON).log()
    return _mean(kept + left, None if padding is None else ~padding)


def connectedness_loss(
    prob: Tensor, *, padding: Tensor | None = None, mode: Literal["l1", "official"] = "l1"
) -> Tensor:
    """Keep runs rather than scattered points: neighbouring probabilities are alike.

    L = mean |p_{t+1} - p_t| (arXiv 2306.02109, section 4.4). The official code has the Frobenius norm
    of all differences of the batch, divided by their number: much weaker, and dependent on batch size.

    Args:
        prob: (batch, T, D) in [0, 1].
        padding: (batch, T) bool, true where a series has ended; steps into such points do not count.
        mode: `"l1"`, as printed; or `"official"`, which is the default of `Objective`, since the paper's
            weights belong to it.

    Returns:
        The scalar loss, in [0, 1]; zero for masks that are constant in time, or with a single point.

    Raises:
        ValueError: If `prob` is not (batch, T, D) in [0, 1] or the mode unknown.
        TypeError: If `prob` is not floating-point or `padding` not bool.

    Examples:
        >>> float(connectedness_loss(torch.tensor([[[0.0], [1.0], [1.0]]])))
        0.5
    """
    check_mode(mode)
    prob = _checked_mask(prob, padding)
    return connectedness(prob, padding, mode)


def connectedness(prob: Tensor, padding: Tensor | None, mode: str) -> Tensor:
    """`connectedness_loss` without its checks."""
    steps = prob.diff(dim=1)
    if steps.numel() == 0:
        return prob.sum() * 0
    inside = None if padding is None else ~(padding[:, 1:] | padding[:, :-1])
    if mode == "l1":
        return _mean(steps.abs(), inside)
    if inside is not None:
        steps = steps * inside.unsqueeze(-1)
    count = steps.numel() if inside is None else (inside.sum() * steps.shape[-1]).clamp_min(1)
    return torch.linalg.vector_norm(steps) / count


def check_density(density: float) -> None:
    """Refuse a density that no mask can have."""
    if not 0 < density < 1:
        raise ValueError(f"density must lie in (0, 1), got {density}")


def check_mode(mode: str) -> None:
    """Refuse an unknown form of connectedness."""
    if mode not in ("l1", "official"):
        raise ValueError(f"mode must be 'l1' or 'official', got {mode!r}")


def _mean(values: Tensor, keep: Tensor | None) -> Tensor:
    """Mean over (batch, T, D), or over those of its points that are kept, (batch, T)."""
    if keep is None:
        return values.mean()
    return (values * keep.unsqueeze(-1)).sum() / (keep.sum() * values.shape[-1]).clamp_min(1)


def _checked_mask(prob: Tensor, padding: Tensor | None) -> Tensor:
    """Refuse anything but a mask; what is not finite where padded is nobody's value."""
    check_tensor(prob, "prob")
    if prob.dim() != 3 or prob.numel() == 0:
        raise ValueError(f"prob must be (batch, T, D) and not empty, got shape {tuple(prob.shape)}")
    check_padding(padding, prob)
    prob = clean_padded(prob, padding)
    check_prob(prob)
    return prob


def _check_pairs(first: Tensor, second: Tensor, first_name: str, second_name: str) -> None:
    for value, name in ((first, first_name), (second, second_name)):
        check_tensor(value, name)
        if value.dim() != 2:
            raise ValueError(f"{name} must be (batch, channels), got shape {tuple(value.shape)}")
        if len(value) < 2:
            raise ValueError(f"{name} must have at least 2 rows to make a pair, got {len(value)}")
    if len(first) != len(second):
        raise ValueError(
            f"{second_name} must have as many rows as {first_name}, {len(first)}, got {len(second)}"
        )
    check_device(second, first.device, second_name)
