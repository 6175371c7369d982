"""Learning from preferences: pairs out of ratings, the losses on them, and the reference's log-probabilities."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tulu3._checks import check_choice, check_finite, check_floats, checked_count, checked_positive, exact

PreferenceKind = Literal["dpo_norm", "dpo", "simpo", "wpo"]
_BETAS = {"dpo_norm": 5.0, "dpo": 0.1, "simpo": 2.0, "wpo": 0.1}


class PreferenceLoss(NamedTuple):
    """What `preference_loss` returns.

    Attributes:
        loss: Scalar, or (B,) without reduction.
        chosen_reward: (B,) beta (log pi - log ref) of the chosen responses, detached.
        rejected_reward: (B,) the same of the rejected ones.
        margin: (B,) their difference; positive where the policy agrees with the preference.
    """

    loss: Tensor
    chosen_reward: Tensor
    rejected_reward: Tensor
    margin: Tensor


def preference_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor | None = None,
    reference_rejected: Tensor | None = None,
    *,
    kind: PreferenceKind = "dpo_norm",
    beta: float | None = None,
    label_smoothing: float = 0.0,
    gamma_beta_ratio: float = 0.3,
    lengths: tuple[Tensor, Tensor] | None = None,
    reduction: Literal["mean", "none"] = "mean",
) -> PreferenceLoss:
    """Loss of a batch of preference pairs: length-normalised DPO and its rivals.

    loss = -(1 - eps) logsigmoid(beta delta) - eps logsigmoid(-beta delta), where

    - `dpo_norm` (arXiv 2411.15124, eq. 6): delta = (lbar_pi(c) - lbar_pi(r)) - (lbar_ref(c) - lbar_ref(r)) of
      *means* over response tokens, `sequence_logps(..., average=True)`;
    - `dpo` (arXiv 2305.18290): the same of *sums*;
    - `simpo` (arXiv 2405.14734): delta = lbar_pi(c) - lbar_pi(r) - gamma/beta of means, no reference;
    - `wpo` (arXiv 2406.11827): the `dpo` loss times min(1, exp(lbar_pi(c) + lbar_pi(r))), detached.

    Args:
        policy_chosen: (B,) log-probabilities of the chosen responses under the policy; means for `dpo_norm`
            and `simpo`, sums for `dpo` and `wpo`.
        policy_rejected: (B,) the same of the rejected responses.
        reference_chosen: (B,) the same under the reference; None for `simpo`.
        reference_rejected: (B,) likewise.
        kind: Which loss.
        beta: Inverse temperature. None is 5 for `dpo_norm` (averages are small), .1 for `dpo` and `wpo`, 2 for
            `simpo`. 5 on sums explodes, .1 on means does nothing.
        label_smoothing: eps in [0, .5): the share of preferences taken to be the wrong way round.
        gamma_beta_ratio: SimPO's target margin over beta.
        lengths: For `wpo`: (B,) numbers of response tokens of the chosen and of the rejected responses.
        reduction: `"mean"` over pairs, or `"none"`.

    Returns:
        A `PreferenceLoss`.

    Raises:
        ValueError: If a shape, beta, label_smoothing, kind or reduction is out of range, a log-probability is
            not finite, a reference is missing, or `lengths` is.
        TypeError: If log-probabilities are not floating point.

    Examples:
        >>> mean = torch.tensor([-1.2, -0.8])
        >>> found = preference_loss(mean, mean - 0.1, mean, mean - 0.1)
        >>> round(found.loss.item(), 4)  # policy = reference: log 2
        0.6931
    """
    check_choice("kind", kind, tuple(_BETAS))
    check_choice("reduction", reduction, ("mean", "none"))
    beta = checked_positive("beta", _BETAS[kind] if beta is None else beta)
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must lie in [0, .5), got {label_smoothing}")
    if not math.isfinite(gamma_beta_ratio):
        raise ValueError(f"gamma_beta_ratio must be finite, got {gamma_beta_ratio}")
    policy = {"policy_chosen": policy_chosen, "policy_rejected": policy_rejected}
    reference = _checked_reference(kind, policy_chosen, reference_chosen, reference_rejected)
    check_floats(1, **policy, **reference)
    check_finite(**policy, **reference)
    if reduction == "mean" and policy_chosen.numel() == 0:
        raise ValueError("policy_chosen must have at least one pair for a mean, got none")
    chosen, rejected = exact(policy_chosen), exact(policy_rejected)
    if reference:
        chosen = chosen - exact(reference["reference_chosen"])
        rejected = rejected - exact(reference["reference_rejected"])

    delta = chosen - rejected - (gamma_beta_ratio if kind == "simpo" else 0.0)
    loss = -(1 - label_smoothing) * logsigmoid(beta * delta)
    if label_smoothing:
        loss = loss - label_smoothing * logsigmoid(-beta * delta)
    if kind == "wpo":
        loss = loss * _wpo_weight(policy_chosen, policy_rejected, lengths)
    chosen_reward, rejected_reward = beta * chosen.detach(), beta * rejected.detach()
    return PreferenceLoss(
        loss.mean() if reduction == "mean" else loss,
        chosen_reward,
        rejected_reward,
        chosen_reward - rejected_reward,
    )


class Pairs(NamedTuple):
    """Which completions of each prompt make its pair.

    Attributes:
        chosen: (...) index of the completion with the highest mean rating; -1 where dropped.
        rejected: (...) index of one with a strictly lower mean; -1 where dropped.
        kept: (...) boolean: False where all completions are rated alike.
    """

    chosen: Tensor
    rejected: Tensor
    kept: Tensor


def binarise(ratings: Tensor, *, generator: torch.Generator | None = None) -> Pairs:
    """Turn ratings of several completions into one preference pair for each prompt.

    The score of a completion is the mean of its aspects (helpfulness, instruction following, honesty,
    truthfulness; 1 to 5). Chosen is the highest, rejected is drawn uniformly among those strictly below it; prompts
    whose completions are all rated alike are dropped (arXiv 2411.15124, section 5.2.1). A tie for the highest is
    broken uniformly, so that the order of the models does not matter.

    Args:
        ratings: (..., M, A) ratings of M >= 2 completions in A aspects, for any number of prompts.
        generator: Randomness, on the device of `ratings`.

    Returns:
        `Pairs` of shape (...).

    Raises:
        ValueError: If there are fewer than 2 completions, no aspect, or a rating that is not finite.

    Examples:
        >>> ratings = torch.tensor([[[5, 4], [2, 3], [1, 1]], [[3, 3], [3, 3], [2, 4]]])
        >>> pairs = binarise(ratings, generator=torch.Generator().manual_seed(0))
        >>> pairs.chosen, pairs.kept  # the second prompt's completions all have mean 3
        (tensor([ 0, -1]), tensor([ True, False]))
    """
    if ratings.dim() < 2 or ratings.shape[-2] < 2 or ratings.shape[-1] < 1:
        raise ValueError(f"ratings must be (..., M >= 2, A >= 1), got shape {tuple(ratings.shape)}")
    check_finite(ratings=ratings)
    # Sorted first, so that the same ratings in another order have the same mean to the last bit.
    means = ratings.double().sort(-1).values.mean(-1)
    best = means.amax(-1, keepdim=True)
    lots = torch.rand(means.shape, generator=generator, device=means.device)
    lower = means < best
    chosen = lots.masked_fill(lower, -1).argmax(-1)
    rejected = lots.masked_fill(~lower, -1).argmax(-1)
    kept = lower.any(-1)
    return Pairs(chosen.where(kept, -1), rejected.where(kept, -1), kept)


def concatenate_pairs(
    chosen: dict[str, Tensor], rejected: dict[str, Tensor], *, pad_id: int
) -> dict[str, Tensor]:
    """One batch of 2B rows out of B chosen and B rejected ones: one forward pass instead of two.

    Both halves are padded on the right to the longer one: `input_ids` with `pad_id`, `labels` with -100,
    `attention_mask` and all else with 0. Split the log-probabilities with `.chunk(2)`.

    Args:
        chosen: Batch of the chosen responses; tensors (B, T_c, ...).
        rejected: Batch of the rejected ones; the same keys, tensors (B, T_r, ...).
        pad_id: Token id that pads `input_ids`.

    Returns:
        Tensors (2B, max(T_c, T_r), ...), the chosen ones first.

    Raises:
        ValueError: If the keys or the numbers of rows differ.

    Examples:
        >>> pair = concatenate_pairs({"labels": torch.ones(1, 3)}, {"labels": torch.ones(1, 2)}, pad_id=0)
        >>> pair["labels"].tolist()
        [[1.0, 1.0, 1.0], [1.0, 1.0, -100.0]]
    """
    if chosen.keys() != rejected.keys():
        raise ValueError(f"rejected must have the keys {sorted(chosen)}, got {sorted(rejected)}")
    fills = {"input_ids": checked_count("pad_id", pad_id, 0), "labels": -100}
    joined = {}
    for key, first in chosen.items():
        second = rejected[key]
        if len(first) != len(second):
            raise ValueError(f"rejected[{key!r}] must have {len(first)} rows, got {len(second)}")
        length = max(first.shape[1], second.shape[1])
        rows = first.new_full((2 * len(first), length, *first.shape[2:]), fills.get(key, 0))
        rows[: len(first), : first.shape[1]] = first
        rows[len(first) :, : second.shape[1]] = second
        joined[key] = rows
    return joined


class ReferenceCache:
    """The reference's log-probabilities of every pair, computed once and kept by the example's index.

    Args:
        num_examples: Number of pairs of the data set.
        average: Whether means over tokens are kept, as `dpo_norm` wants, or sums. It goes into the file, so that
            one is not read for the other.
        fingerprint: Any text that names model and data, checked when a file is read.

    Raises:
        ValueError: If num_examples is below 1.
        TypeError: If it is not an integer.

    Examples:
        >>> cache = ReferenceCache(3, average=True)
        >>> cache.put(torch.tensor([0, 2]), torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -2.5]))
        >>> cache.missing.tolist()
        [1]
        >>> cache.get(torch.tensor([2]))
        (tensor([-2.]), tensor([-2.5000]))
    """

    def __init__(self, num_examples: int, *, average: bool, fingerprint: str = "") -> None:
        size = checked_count("num_examples", num_examples)
        self.average, self.fingerprint = bool(average), fingerprint
        self._logps = torch.full((2, size), float("nan"))

    def __len__(self) -> int:
        return self._logps.shape[1]

    @property
    def missing(self) -> Tensor:
        """Indices of the examples that have no log-probabilities yet."""
        return self._logps.isnan().any(0).nonzero().flatten()

    def put(self, index: Tensor, chosen: Tensor, rejected: Tensor) -> None:
        """Keep the log-probabilities (B,) of the examples at `index` (B,), in float32 on the CPU.

        Raises:
            ValueError: If the shapes differ, an index is out of range, or a log-probability is not finite.
        """
        check_floats(1, chosen=chosen, rejected=rejected)
        check_finite(chosen=chosen, rejected=rejected)
        index = self._checked(index)
        if index.shape != chosen.shape:
            raise ValueError(f"index must have shape {tuple(chosen.shape)}, got {tuple(index.shape)}")
        self._logps[:, index] = torch.stack([chosen, rejected]).detach().float().cpu()

    def get(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The log-probabilities (B,) of chosen and rejected responses, on the device of `index` (B,).

        Raises:
            ValueError: If an index is out of range or has no log-probabilities yet.
        """
        found = self._logps[:, self._checked(index)]
        if bool(found.isnan().any()):
            lacking = index[found.isnan().any(0).to(index.device)].tolist()
            raise ValueError(f"index must name examples that were put before, got {lacking}")
        chosen, rejected = found.to(index.device)
        return chosen, rejected

    def save(self, path: str | Path) -> None:
        """Write a safetensors file (extra `hf`)."""
        from safetensors.torch import save_file

        metadata = {"average": str(self.average), "fingerprint": self.fingerprint}
        save_file({"chosen": self._logps[0].clone(), "rejected": self._logps[1].clone()}, path, metadata)

    @classmethod
    def load(cls, path: str | Path, *, average: bool, fingerprint: str = "") -> ReferenceCache:
        """Read a file that `save` wrote.

        Raises:
            ValueError: If the file has other tensors, or was made with another `average` or `fingerprint`.
        """
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            metadata, keys = file.metadata() or {}, sorted(file.keys())
            if keys != ["chosen", "rejected"]:
                raise ValueError(f"path must hold 'chosen' and 'rejected', got {keys}")
            wanted = {"average": str(bool(average)), "fingerprint": fingerprint}
            for name, value in wanted.items():
                if metadata.get(name) != value:
                    raise ValueError(f"{name} must be the file's {metadata.get(name)!r}, got {value!r}")
            chosen, rejected = file.get_tensor("chosen"), file.get_tensor("rejected")
        cache = cls(len(chosen), average=average, fingerprint=fingerprint)
        cache._logps.copy_(torch.stack([chosen, rejected]))
        return cache

    def _checked(self, index: Tensor) -> Tensor:
        index = index.cpu()
        if index.is_floating_point() or index.dtype == torch.bool or index.dim() != 1:
            raise ValueError(f"index must be (B,) integers, got {index.dtype} of shape {tuple(index.shape)}")
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < len(self):
            raise ValueError(
                f"index must lie in 0..{len(self) - 1}, got {int(index.min())}..{int(index.max())}"
            )
        return index.long()


def _checked_reference(
    kind: str, policy: Tensor, chosen: Tensor | None, rejected: Tensor | None
) -> dict[str, Tensor]:
    if kind == "simpo":
        if chosen is not None or rejected is not None:
            raise ValueError("reference_chosen and reference_rejected must be None: SimPO has no reference")
        return {}
    if chosen is None or rejected is None:
        raise ValueError(f"reference_chosen and reference_rejected must be given for {kind!r}, got None")
    return {"reference_chosen": chosen.detach(), "reference_rejected": rejected.detach()}


def _wpo_weight(chosen: Tensor, rejected: Tensor, lengths: tuple[Tensor, Tensor] | None) -> Tensor:
    if lengths is None:
        raise ValueError("lengths must be given for 'wpo', got None")
    for count in lengths:
        if count.shape != chosen.shape or not bool(((count >= 1) & (count < math.inf)).all()):
            raise ValueError(f"lengths must be two positive ({len(chosen)},) tensors, got {lengths}")
    means = exact(chosen.detach()) / lengths[0] + exact(rejected.detach()) / lengths[1]
    return means.exp().clamp(max=1)
