"""The imitation baselines: DAgger and HG-DAgger as data aggregation, behaviour cloning as a loss."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, TanhTransform, TransformedDistribution

from rlif._checks import as_tensor, checked_flags, checked_float
from rlif.supervisors import Policy


class Demonstrations(NamedTuple):
    """What behaviour cloning learns from.

    Attributes:
        observation: (M, S).
        action: (M, *A).
    """

    observation: Tensor
    action: Tensor


def aggregate_dagger(
    data: Demonstrations,
    observation: Tensor,
    expert: Policy,
    *,
    fraction: float = 1.0,
    generator: torch.Generator | None = None,
) -> Demonstrations:
    """Add states that the policy visited, with the action the expert would have taken there (DAgger).

    D <- D + {(s, pi_exp(s))} for a random share of the visited states; the official levels are 30, 50 and 87.5 %.

    Args:
        data: D.
        observation: States that the policy visited, acting alone (M, S).
        expert: The expert, observations (m, S) to actions (m, *A).
        fraction: Share of them that the expert labels, in [0, 1].
        generator: Source of randomness.

    Returns:
        D with the new pairs behind the old ones.

    Raises:
        ValueError: If `fraction` is outside [0, 1], or shapes do not go together.

    Examples:
        >>> import torch
        >>> empty = Demonstrations(torch.zeros(0, 2), torch.zeros(0, 1))
        >>> aggregate_dagger(empty, torch.ones(3, 2), lambda s: -s[:, :1]).action.tolist()
        [[-1.0], [-1.0], [-1.0]]
    """
    fraction = checked_float("fraction", fraction, 0, 1)
    visited = as_tensor("observation", observation).detach()
    device = visited.device if generator is None else generator.device
    drawn = torch.rand(len(visited), generator=generator, device=device).to(visited.device)
    states = visited[drawn < fraction]
    if not len(states):
        return data
    with torch.no_grad():
        labels = as_tensor("what expert returns", expert(states))
    return _joined(data, states, labels)


def aggregate_hg_dagger(
    data: Demonstrations, observation: Tensor, action: Tensor, intervened: Any, *, only_expert: bool = False
) -> Demonstrations:
    """Add what was executed while a person could take over (HG-DAgger).

    D <- D + {(s_t, a_t)} with the executed actions. The original method adds the expert's alone
    (`only_expert=True`); the official RLIF baseline adds every executed pair, the policy's own too.

    Args:
        data: D.
        observation: States (M, S).
        action: *Executed* actions (M, *A).
        intervened: Where the expert controlled (M,), boolean.
        only_expert: Whether to add those alone.

    Returns:
        D with the new pairs behind the old ones.

    Raises:
        ValueError: If the flags are not boolean, or shapes do not go together.
    """
    states, executed = (
        as_tensor(name, part).detach() for name, part in (("observation", observation), ("action", action))
    )
    flags = checked_flags("intervened", intervened, (len(states),)).to(states.device)
    if len(executed) != len(states):
        raise ValueError(f"action must have {len(states)} rows, as observation has, got {len(executed)}")
    kept = flags if only_expert else torch.ones_like(flags)
    return _joined(data, states[kept], executed[kept])


def bc_loss(
    distribution: Any, action: Tensor, *, clip: float = 0.999, weight: Tensor | None = None
) -> Tensor:
    """Behaviour cloning: the mean negative log-likelihood of the actions.

    L = -mean_i log pi(a_i | s_i). For a tanh-squashed `TransformedDistribution` actions are clipped to +-clip first,
    as in the official code: its density is infinite at the border.

    Args:
        distribution: A torch distribution over actions, batch (B,) or (B, *A), or anything with its `log_prob`.
        action: Actions (B, *A).
        clip: Largest absolute action of a tanh-squashed distribution, in (0, 1).
        weight: Weights (B,), at least 0, such as a mask of padding.

    Returns:
        A scalar; 0 without any pair that counts.

    Raises:
        ValueError: If `clip` is outside (0, 1) or shapes do not go together.

    Examples:
        >>> import torch
        >>> normal = torch.distributions.Normal(torch.zeros(2, 1), torch.ones(2, 1))
        >>> round(float(bc_loss(normal, torch.tensor([[0.0], [2.0]]))), 4)
        1.9189
    """
    clip = checked_float("clip", clip, 0, 1)
    if not 0 < clip < 1:
        raise ValueError(f"clip must be in (0, 1), got {clip:g}")
    if isinstance(distribution, TransformedDistribution) and any(
        isinstance(transform, TanhTransform) for transform in distribution.transforms
    ):
        if action.dtype in (torch.float16, torch.bfloat16):  # where 0.999 may be 1
            action = action.float()
        action = action.clamp(-clip, clip)
    if isinstance(distribution, Distribution):
        wanted = distribution.batch_shape + distribution.event_shape
        if action.shape != wanted:
            raise ValueError(f"action must have the shape {tuple(wanted)}, got {tuple(action.shape)}")
    if weight is None:
        return -_by_row(distribution.log_prob(action)).sum() / max(len(action), 1)
    if weight.shape != action.shape[:1]:
        raise ValueError(f"weight must have the shape ({len(action)},), got {tuple(weight.shape)}")
    counts = weight > 0
    if len(action):  # a finite action in place of padding, whose gradient would be NaN
        rows = counts.view(-1, *[1] * (action.ndim - 1))
        action = torch.where(rows, action, action[counts.int().argmax()])
    log_prob = torch.where(counts, _by_row(distribution.log_prob(action)), 0.0)
    total = (weight * log_prob).sum()
    return -total / torch.where(counts.any(), weight.sum(), 1)


def _by_row(log_prob: Tensor) -> Tensor:
    return log_prob.flatten(1).sum(1) if log_prob.ndim > 1 else log_prob


def _joined(data: Demonstrations, observation: Tensor, action: Tensor) -> Demonstrations:
    for name, old, new in (("observation", data[0], observation), ("action", data[1], action)):
        if old.shape[1:] != new.shape[1:]:
            raise ValueError(
                f"{name} must have rows of the shape {tuple(old.shape[1:])}, got {tuple(new.shape[1:])}"
            )
        if new.is_floating_point() and not old.is_floating_point():
            raise ValueError(f"{name} must be of {old.dtype}, as data is, got {new.dtype}")
    if len(observation) != len(action):
        raise ValueError(f"action must have {len(observation)} rows, as observation has, got {len(action)}")
    return Demonstrations(
        torch.cat([data[0], observation.to(data[0])]), torch.cat([data[1], action.to(data[1])])
    )
