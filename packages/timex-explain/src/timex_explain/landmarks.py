"""Landmarks: a few trained points of the embedding space that stand for the patterns a model uses."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from timex_explain._checks import check_count, check_device, check_labels, check_positive, check_tensor


class LandmarkTable(NamedTuple):
    """Which series each landmark stands for.

    Attributes:
        counts: (K,), how many series have the landmark as their nearest.
        kept: Landmarks with more than the required number of members, the most populous first.
        nearest: (K, n), the series nearest to each landmark among its members, -1 where there is none.
        similarity: (K, n), their cosine similarity to it, -1 where there is none.
        assignment: (N,), the landmark of each series.
    """

    counts: Tensor
    kept: Tensor
    nearest: Tensor
    similarity: Tensor
    assignment: Tensor


def landmark_summary(
    z_explanation: Tensor, landmarks: Tensor, *, min_members: int = 5, num_nearest: int = 5
) -> LandmarkTable:
    """Assign explanations to landmarks and list the examples of each (arXiv 2306.02109, section 4.5).

    Args:
        z_explanation: (N, d) embeddings of masked series.
        landmarks: (K, d).
        min_members: A landmark is kept if it has *more* members than this.
        num_nearest: n, how many examples to list.

    Returns:
        The table.

    Raises:
        ValueError: If shapes do not fit or a number is too small.
        TypeError: If the devices differ.

    Examples:
        >>> z = torch.tensor([[1.0, 0.1], [1.0, 0.0], [0.0, 2.0]])
        >>> table = landmark_summary(z, torch.eye(2), min_members=1, num_nearest=2)
        >>> table.counts.tolist(), table.kept.tolist(), table.nearest.tolist()
        ([2, 1], [0], [[1, 0], [2, -1]])
    """
    check_landmarks(z_explanation, landmarks)
    check_count(min_members, "min_members", 0)
    check_count(num_nearest, "num_nearest")
    similarity = cosine(z_explanation, landmarks)
    assignment = similarity.argmax(1)
    counts = assignment.bincount(minlength=len(landmarks))
    order = counts.argsort(descending=True, stable=True)
    member = assignment.unsqueeze(1) == torch.arange(len(landmarks), device=landmarks.device)
    found = similarity.masked_fill(~member, -2.0).T.topk(min(num_nearest, len(z_explanation)), dim=1)
    absent = found.values < -1.5
    return LandmarkTable(
        counts=counts,
        kept=order[counts[order] > min_members],
        nearest=found.indices.masked_fill(absent, -1),
        similarity=found.values.masked_fill(absent, -1.0),
        assignment=assignment,
    )


def straight_through_categorical(
    log_prob: Tensor, temperature: float = 0.1, generator: torch.Generator | None = None
) -> Tensor:
    """Draw one-hot rows that carry the gradient of a Gumbel-softmax.

    Args:
        log_prob: (batch, K) log-probabilities; float32 at least.
        temperature: Positive.
        generator: Source of the noise, on the device of `log_prob`.

    Returns:
        (batch, K) one-hot rows.

    Raises:
        ValueError: If the temperature is not positive.

    Examples:
        >>> straight_through_categorical(torch.tensor([[-99.0, 0.0, -99.0]])).tolist()
        [[0.0, 1.0, 0.0]]
    """
    check_positive(temperature, "temperature")
    uniform = torch.rand(log_prob.shape, dtype=log_prob.dtype, device=log_prob.device, generator=generator)
    gumbel = -(-uniform.clamp_min(torch.finfo(log_prob.dtype).tiny).log()).log()
    soft = ((log_prob + gumbel) / temperature).softmax(-1)
    hard = torch.zeros_like(soft).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0)
    return hard + (soft - soft.detach())


def stratified_rows(labels: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Choose rows so that every class is there about equally often.

    Rows are shuffled, then dealt: the first of every class, the second of every class, ... When there
    are fewer rows than asked for, they are dealt again.

    Args:
        labels: (N,) integers.
        count: How many rows.
        generator: Source of the shuffle, on the CPU.

    Returns:
        (count,) row numbers.

    Raises:
        ValueError: If there are no labels.
        TypeError: If labels are not integers.

    Examples:
        >>> labels = torch.tensor([7, 7, 7, 7, 3])
        >>> sorted(labels[stratified_rows(labels, 2)].tolist())
        [3, 7]
    """
    check_tensor(labels, "labels")
    check_labels(labels, labels.numel())
    check_count(labels.numel(), "the number of labels")
    shuffled = torch.randperm(len(labels), generator=generator).to(labels.device)
    order = shuffled[labels[shuffled].argsort(stable=True)]
    of_order = labels[order]
    first = torch.searchsorted(of_order, of_order)  # where the class of each row begins
    turn = torch.arange(len(labels), device=labels.device) - first
    dealt = order[turn.argsort(stable=True)]
    return dealt.repeat(-(-count // len(dealt)))[:count]


def cosine(z: Tensor, landmarks: Tensor) -> Tensor:
    """Cosine similarity of every row to every landmark, (batch, K), in float32 at least, so that few are equal."""
    exact = torch.promote_types(torch.promote_types(z.dtype, landmarks.dtype), torch.float32)
    with torch.autocast(z.device.type, enabled=False):
        return normalize(z.to(exact), dim=-1) @ normalize(landmarks.to(exact), dim=-1).mT


def check_landmarks(z: Tensor, landmarks: Tensor) -> None:
    """Refuse embeddings and landmarks of different spaces."""
    check_tensor(z, "z_explanation")
    check_tensor(landmarks, "landmarks")
    if z.dim() != 2 or landmarks.dim() != 2 or z.shape[1] != landmarks.shape[1] or not z.numel():
        raise ValueError(
            "z_explanation and landmarks must be (N, d) and (K, d), "
            f"got shapes {tuple(z.shape)} and {tuple(landmarks.shape)}"
        )
    check_count(len(landmarks), "the number of landmarks")
    check_device(landmarks, z.device, "landmarks")
