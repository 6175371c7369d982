"""Reinforcement learning with verifiable rewards: what lies between a verifier's score and PPO's two losses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from tulu3._checks import (
    check_choice,
    check_finite,
    check_floats,
    check_mask,
    checked_count,
    checked_positive,
    exact,
)

KLKind = Literal["kl1", "kl2", "kl3"]


class Rollout(NamedTuple):
    """Which positions of a batch of responses count.

    Attributes:
        responses: (B, T) the responses, padded after their first stop token.
        lengths: (B,) index of the last real token (the stop token, if there is one).
        policy_mask: (B, T) True at t <= length: where log-probabilities and advantages count.
        value_mask: (B, T) True at t <= length + 1: where values count; the score is paid at its last step.
        has_stop: (B,) whether the response ended by itself.
    """

    responses: Tensor
    lengths: Tensor
    policy_mask: Tensor
    value_mask: Tensor
    has_stop: Tensor


def rollout_masks(responses: Tensor, stop_id: int | Sequence[int], pad_id: int) -> Rollout:
    """Cut responses after their first stop token and say which positions count.

    Lengths come from the stop token, so padding with the stop token itself does no harm. A padding token in front of
    others was sampled, and counts; a response that never stops ends before its last run of padding.

    Args:
        responses: (B, T) token ids without their prompts.
        stop_id: Token that ends a response, or several.
        pad_id: Token to pad with.

    Returns:
        A `Rollout`.

    Raises:
        ValueError: If shapes do not fit, or no stop token is named.
        TypeError: If ids are not integers.

    Examples:
        >>> found = rollout_masks(torch.tensor([[5, 2, 7, 7], [5, 6, 7, 8]]), stop_id=2, pad_id=0)
        >>> found.responses.tolist(), found.lengths.tolist(), found.has_stop.tolist()
        ([[5, 2, 0, 0], [5, 6, 7, 8]], [1, 3], [True, False])
        >>> found.value_mask[0].tolist()
        [True, True, True, False]
    """
    # One token of any integer type, or several; whatever is neither is named by the check.
    single = not isinstance(stop_id, Iterable) or (isinstance(stop_id, Tensor) and stop_id.dim() == 0)
    given: Iterable[Any] = [stop_id] if single else cast("Iterable[Any]", stop_id)
    stops = [checked_count("stop_id", stop, 0) for stop in given]
    pad_id = checked_count("pad_id", pad_id, 0)
    if not stops:
        raise ValueError("stop_id must name at least one token, got none")
    if responses.is_floating_point() or responses.dtype == torch.bool:
        raise TypeError(f"responses must be integers, got {responses.dtype}")
    if responses.dim() != 2 or responses.shape[1] < 1:
        raise ValueError(f"responses must be (B, T >= 1), got shape {tuple(responses.shape)}")
    steps = torch.arange(responses.shape[1], device=responses.device)
    is_stop = torch.isin(responses.long(), torch.tensor(stops, device=responses.device))
    has_stop = is_stop.any(1)
    last_token = torch.where(responses != pad_id, steps, 0).amax(1)
    lengths = torch.where(has_stop, torch.where(is_stop, steps, len(steps)).amin(1), last_token)
    policy_mask = steps <= lengths[:, None]
    return Rollout(
        responses.masked_fill(~policy_mask, pad_id),
        lengths,
        policy_mask,
        steps <= lengths[:, None] + 1,
        has_stop,
    )


def replace_unfinished_scores(scores: Tensor, has_stop: Tensor, penalty: float = -10.0) -> Tensor:
    """Score of responses that did not end by themselves: the penalty *instead of* what the verifier said.

    Args:
        scores: (B,) verifiers' scores (alpha = 10 if accepted).
        has_stop: (B,) boolean, of `rollout_masks`.
        penalty: What replaces the score.

    Returns:
        (B,).

    Raises:
        ValueError: If the shapes differ.
        TypeError: If scores are not floating point or has_stop is not boolean.

    Examples:
        >>> replace_unfinished_scores(torch.tensor([10.0, 10.0]), torch.tensor([True, False]))
        tensor([ 10., -10.])
    """
    check_floats(1, scores=scores)
    check_mask(has_stop, scores, "has_stop")
    return scores.masked_fill(~has_stop, penalty)


def kl_penalty(logps: Tensor, ref_logps: Tensor, kind: KLKind = "kl1") -> Tensor:
    """Estimates of the KL divergence at every token: log-ratio, half its square, or the unbiased one that is >= 0.

    With d = log pi - log ref of the sampled token: `kl1` = d, `kl2` = d^2 / 2, `kl3` = exp(-d) - 1 + d.

    Args:
        logps: (B, T) log-probabilities of the sampled tokens under the policy.
        ref_logps: (B, T) the same under the reference.
        kind: Which estimate.

    Returns:
        (B, T).

    Raises:
        ValueError: If shapes differ or `kind` is unknown.
        TypeError: If they are not floating point.

    Examples:
        >>> kl_penalty(torch.tensor([[-1.0]]), torch.tensor([[-2.0]]), "kl3")
        tensor([[0.3679]])
    """
    check_choice("kind", kind, ("kl1", "kl2", "kl3"))
    check_floats(2, logps=logps, ref_logps=ref_logps)
    difference = exact(logps) - exact(ref_logps)
    if kind == "kl1":
        return difference
    if kind == "kl2":
        return difference.square() / 2
    return torch.expm1(-difference) + difference


def rlvr_rewards(
    logps: Tensor,
    ref_logps: Tensor,
    scores: Tensor,
    lengths: Tensor,
    *,
    beta: float = 0.05,
    kl: KLKind = "kl1",
) -> Tensor:
    """Rewards at every step: -beta KL at each real token, and the score once, just after the last.

    r_t = -beta kl_t for t <= length, plus the score at t = length + 1 (at t = length where the response
    fills all T steps). Arxiv 2411.15124, eq. 8 and the published PPO code.

    Args:
        logps: (B, T) log-probabilities of the sampled tokens under the policy that sampled them.
        ref_logps: (B, T) the same under the reference. Positions beyond `lengths` never count.
        scores: (B,) see `replace_unfinished_scores`.
        lengths: (B,) index of the last real token, of `rollout_masks`.
        beta: KL coefficient: .05 for the 8B model, .07 for the 70B; 0 pays no penalty.
        kl: Which estimate, see `kl_penalty`.

    Returns:
        (B, T), detached.

    Raises:
        ValueError: If shapes do not fit, beta is negative, a number is not finite, or a length is out of range.
        TypeError: If log-probabilities or scores are not floating point or lengths are not integers.

    Examples:
        >>> logps, ref = torch.tensor([[-1.0, -1.0, 0.0]]), torch.tensor([[-3.0, -2.0, 0.0]])
        >>> rlvr_rewards(logps, ref, torch.tensor([10.0]), torch.tensor([1]), beta=0.5)
        tensor([[-1.0000, -0.5000, 10.0000]])
    """
    if not 0 <= beta < float("inf"):
        raise ValueError(f"beta must be at least 0 and finite, got {beta}")
    check_choice("kl", kl, ("kl1", "kl2", "kl3"))
    check_floats(2, logps=logps, ref_logps=ref_logps)
    check_floats(1, scores=scores)
    if scores.shape[0] != logps.shape[0] or lengths.shape != scores.shape:
        raise ValueError(
            f"scores and lengths must be ({logps.shape[0]},), got {tuple(scores.shape)} and {tuple(lengths.shape)}"
        )
    if lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise TypeError(f"lengths must be integers, got {lengths.dtype}")
    num_steps = logps.shape[1]
    if not torch.compiler.is_compiling() and bool(((lengths < 0) | (lengths >= num_steps)).any()):
        raise ValueError(f"lengths must lie in 0..{num_steps - 1}, got {lengths.tolist()}")
    steps = torch.arange(num_steps, device=logps.device)
    real = steps <= lengths[:, None]
    # What stands at padding may be anything, infinite too: it is replaced before the difference is taken.
    logps, ref_logps = (tensor.detach().masked_fill(~real, 1.0) for tensor in (logps, ref_logps))
    check_finite(logps=logps, ref_logps=ref_logps, scores=scores)
    rewards = -beta * kl_penalty(logps, ref_logps, kl)
    paid = (lengths + 1).clamp(max=num_steps - 1)
    return rewards + torch.where(steps == paid[:, None], scores.detach()[:, None].to(rewards.dtype), 0.0)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the elements of `values` where `mask` is true; what stands elsewhere may be anything."""
    return torch.where(mask, values, 0.0).sum() / mask.sum()


def masked_whiten(values: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """Whiten over unmasked elements: (x - mean) / sqrt(var + 1e-8), unbiased variance; 0 where masked.

    Over this process's batch, as in the published code. For rewards the mean is kept (`shift_mean=False`).

    Args:
        values: (B, T).
        mask: (B, T) boolean; True counts.
        shift_mean: Whether the mean is taken away (advantages) or left (rewards).

    Returns:
        (B, T).

    Raises:
        ValueError: If shapes differ, fewer than 2 elements count, or one that counts is not finite.
        TypeError: If values are not floating point or the mask is not boolean.

    Examples:
        >>> masked_whiten(torch.tensor([[1.0, 3.0, 99.0]]), torch.tensor([[True, True, False]]))
        tensor([[-0.7071,  0.7071,  0.0000]])
    """
    check_floats(2, values=values)
    check_mask(mask, values, least=2)
    values = exact(values).masked_fill(~mask, 0.0)
    check_finite(values=values)
    mean = masked_mean(values, mask)
    centred = torch.where(mask, values - mean, 0.0)
    variance = centred.square().sum() / (mask.sum() - 1)
    whitened = centred * torch.rsqrt(variance + 1e-8)
    return whitened if shift_mean else torch.where(mask, whitened + mean, 0.0)


class PolicyLoss(NamedTuple):
    """What `ppo_policy_loss` returns: the loss, and two detached numbers to log.

    Attributes:
        loss: Scalar.
        approx_kl: Scalar, half the mean squared log-ratio to the policy that sampled.
        clip_fraction: Scalar, share of tokens whose clipped term is the larger one.
    """

    loss: Tensor
    approx_kl: Tensor
    clip_fraction: Tensor


def ppo_policy_loss(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, mask: Tensor, *, clip: float = 0.2
) -> PolicyLoss:
    """PPO's clipped policy loss: masked mean of max(-A rho, -A clip(rho, 1 - eps, 1 + eps)).

    rho = exp(log pi - log pi_old) (arXiv 1707.06347, eq. 7). Masked log-probabilities are made equal in both
    policies first, so that rho is 1 there.

    Args:
        logps: (B, T) under the policy that is trained.
        old_logps: (B, T) under the one that sampled; detached here.
        advantages: (B, T) whitened; detached here.
        mask: (B, T) boolean, `Rollout.policy_mask`.
        clip: eps in (0, 1).

    Returns:
        A `PolicyLoss`.

    Raises:
        ValueError: If shapes differ, clip is out of range, nothing counts, or a number that counts is not finite.
        TypeError: If log-probabilities or advantages are not floating point or the mask is not boolean.

    Examples:
        >>> same, mask = torch.tensor([[-1.0, -2.0]]), torch.tensor([[True, True]])
        >>> ppo_policy_loss(same, same, torch.tensor([[1.0, 3.0]]), mask).loss
        tensor(-2.)
    """
    _check_clip(clip)
    check_floats(2, logps=logps, old_logps=old_logps, advantages=advantages)
    check_mask(mask, logps, least=1)
    new, old = (exact(tensor).masked_fill(~mask, 1.0) for tensor in (logps, old_logps.detach()))
    advantages = exact(advantages.detach()).masked_fill(~mask, 0.0)
    check_finite(logps=new, old_logps=old, advantages=advantages)
    difference = new - old
    ratio = difference.exp()
    plain, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)
    with torch.no_grad():
        approx_kl = masked_mean(difference.square() / 2, mask)
        clip_fraction = masked_mean((clipped > plain).to(plain.dtype), mask)
    return PolicyLoss(masked_mean(torch.maximum(plain, clipped), mask), approx_kl, clip_fraction)


def ppo_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, clip: float = 0.2
) -> Tensor:
    """PPO's clipped value loss: half the masked mean of max((v - R)^2, (clip(v, v_old +- eps) - R)^2).

    The published runs multiply it by .1 and give the value network an optimizer of its own.

    Args:
        values: (B, T) of the value network that is trained.
        old_values: (B, T) at the time of the rollout; detached here.
        returns: (B, T) of `gae`, from advantages that are not whitened; detached here.
        mask: (B, T) boolean, `Rollout.value_mask`.
        clip: eps > 0, in units of the reward.

    Returns:
        Scalar.

    Raises:
        ValueError: If shapes differ, clip is not positive, nothing counts, or a number that counts is not finite.
        TypeError: If values or returns are not floating point or the mask is not boolean.

    Examples:
        >>> old, mask = torch.tensor([[0.0, 0.0]]), torch.tensor([[True, True]])
        >>> ppo_value_loss(torch.tensor([[0.1, 0.6]]), old, torch.tensor([[1.0, 1.0]]), mask)
        tensor(0.3625)
    """
    checked_positive("clip", clip)
    check_floats(2, values=values, old_values=old_values, returns=returns)
    check_mask(mask, values, least=1)
    # Before the squares: NaN at padding would come back through their gradient.
    values, old_values, returns = (
        exact(tensor).masked_fill(~mask, 0.0) for tensor in (values, old_values.detach(), returns.detach())
    )
    check_finite(values=values, old_values=old_values, returns=returns)
    near = torch.minimum(torch.maximum(values, old_values - clip), old_values + clip)
    worst = torch.maximum((values - returns).square(), (near - returns).square())
    return masked_mean(worst, mask) / 2


def _check_clip(clip: float) -> None:
    if not 0 < clip < 1:
        raise ValueError(f"clip must lie in (0, 1), got {clip}")
