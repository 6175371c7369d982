"""The edge of reach in a finite Markov decision process, exactly: what bootstrapping from untouched values does."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ravl._checks import check_finite, checked_integer, checked_number


@dataclass(frozen=True)
class TruncatedValueIteration:
    """What `tabular_truncated_vi` returns.

    Attributes:
        q: `(S, A)`, the fixed point within reach and the initial values elsewhere.
        within_reach: `(S,)` bool: states that some rollout starts in or passes before its last step.
        edge: `(S,)` bool: states reached at step k and never before.
        first_step: `(S,)` int64: the first step at which a rollout can be there; -1 if never within k steps.
        steps_to_edge: `(S, A)` float64: the fewest steps from there to a state that is not updated; 0 for those
            themselves, infinite where none can be reached.
    """

    q: Tensor
    within_reach: Tensor
    edge: Tensor
    first_step: Tensor
    steps_to_edge: Tensor


def tabular_truncated_vi(
    transition: Tensor,
    reward: Tensor,
    discount: float,
    starts: Tensor,
    num_steps: int,
    initial_q: Tensor,
    *,
    tolerance: float = 1e-12,
) -> TruncatedValueIteration:
    """Value iteration that updates only what k-step rollouts pass through: the edge-of-reach problem (section 3).

    `Q(s, a) <- r(s, a) + gamma sum_s' P(s'|s, a) max_a' Q(s', a')` for states within reach, where the rollouts may
    take any action; all others keep their initial value and are bootstrapped from. With k at least the horizon
    nothing is left out, and the fixed point is the optimal one.

    Args:
        transition: `P(s'|s, a)`, `(S, A, S)`; rows of zeros end the episode.
        reward: `(S, A)`.
        discount: `gamma` in [0, 1).
        starts: `(S,)` bool, or the indices of the start states.
        num_steps: k.
        initial_q: `(S, A)`.
        tolerance: The largest change that is left, relative to the values; float64 throughout.

    Returns:
        Values, reach and edge.

    Raises:
        ValueError: If shapes do not fit, rows of `transition` are no probabilities, or there are no starts.

    Examples:
        A corridor of four states to the right, walked for one step from the first: its value is the
        second's untouched one, discounted.

        >>> transition = torch.eye(4).roll(1, 1)[:, None]
        >>> found = tabular_truncated_vi(transition, torch.zeros(4, 1), 0.5, torch.tensor([0]), 1, torch.ones(4, 1))
        >>> found.q[:, 0].tolist(), found.edge.tolist()
        ([0.5, 1.0, 1.0, 1.0], [False, True, False, False])
    """
    transition, reward, q = (torch.as_tensor(part).double() for part in (transition, reward, initial_q))
    discount = checked_number("discount", discount, 0, 1, open_end=True)
    tolerance = checked_number("tolerance", tolerance, 1e-16)
    num_steps = checked_integer("num_steps", num_steps, 1)
    if transition.dim() != 3 or transition.shape[0] != transition.shape[2]:
        raise ValueError(f"transition must have shape (S, A, S), got {tuple(transition.shape)}")
    sums = transition.sum(-1)
    if bool((transition < 0).any()) or not bool(((sums - 1).abs().minimum(sums) < 1e-6).all()):
        raise ValueError(
            "transition must hold probabilities: rows that sum to 1, or to 0 where the episode ends"
        )
    for name, table in (("reward", reward), ("initial_q", q)):
        if table.shape != transition.shape[:2]:
            raise ValueError(
                f"{name} must have shape {tuple(transition.shape[:2])}, got {tuple(table.shape)}"
            )
        check_finite(name, table)
    first_step = _first_steps(transition, _start_mask(starts, len(transition)), num_steps)
    within = (first_step >= 0) & (first_step < num_steps)
    change, bound = math.inf, 0.0
    while change > tolerance * max(bound, 1.0):
        updated = torch.where(within[:, None], reward + discount * transition @ q.amax(1), q)
        change, bound = float((updated - q).abs().max()), float(updated.abs().max())
        q = updated
    return TruncatedValueIteration(
        q=q,
        within_reach=within,
        edge=first_step == num_steps,
        first_step=first_step,
        steps_to_edge=_steps_to_edge(transition, within),
    )


def tabular_edge_bound(found: TruncatedValueIteration, discount: float, error: float) -> Tensor:
    """Bound `|Q - Q*| <= gamma^d error` d steps before the edge (proposition 1).

    `d` is the fewest steps from `(s, a)` to a state that is not updated, at least k - t for states first reached at
    step t: an error at the edge comes back to the data discounted, never averaged out.

    Args:
        found: What `tabular_truncated_vi` returned.
        discount: Its `gamma`.
        error: The largest `|Q - Q*|` of values that are not updated.

    Returns:
        `(S, A)`.

    Raises:
        ValueError: If `discount` or `error` does not fit.

    Examples:
        >>> transition = torch.eye(4).roll(1, 1)[:, None]
        >>> found = tabular_truncated_vi(transition, torch.zeros(4, 1), 0.5, torch.tensor([0]), 2, torch.ones(4, 1))
        >>> tabular_edge_bound(found, 0.5, error=1.0)[:, 0].tolist()
        [0.25, 0.5, 1.0, 1.0]
    """
    discount = checked_number("discount", discount, 0, 1, open_end=True)
    error = checked_number("error", error, 0)
    return error * torch.as_tensor(discount, dtype=torch.float64) ** found.steps_to_edge


def _start_mask(starts: Tensor, num_states: int) -> Tensor:
    starts = torch.as_tensor(starts)
    if starts.dtype == torch.bool:
        if starts.shape != (num_states,):
            raise ValueError(f"starts must have shape ({num_states},), got {tuple(starts.shape)}")
        mask = starts
    else:
        if starts.is_floating_point() or bool(((starts < 0) | (starts >= num_states)).any()):
            raise ValueError(f"starts must be a mask or indices in 0..{num_states - 1}")
        mask = torch.zeros(num_states, dtype=torch.bool)
        mask[starts.long().reshape(-1)] = True
    if not bool(mask.any()):
        raise ValueError("starts must hold at least one state, got none")
    return mask


def _first_steps(transition: Tensor, at: Tensor, num_steps: int) -> Tensor:
    """Return when each state can first be met, by any action; -1 if not within k steps."""
    leads = (transition > 0).any(1).double()
    first = torch.where(at, 0, -1)
    for step in range(1, num_steps + 1):
        at = (at.double() @ leads) > 0
        new = at & (first < 0)
        if not bool(new.any()):
            break
        first[new] = step
        at = new  # others have been followed already
    return first


def _steps_to_edge(transition: Tensor, within: Tensor) -> Tensor:
    """Return the fewest steps to a state that is not updated: shortest paths, one sweep a step."""
    possible = transition > 0
    distance = torch.where(within, math.inf, 0.0).double()
    for _ in range(len(within)):
        through = torch.where(possible, distance, math.inf).amin(-1) + 1
        nearer = torch.where(within, through.amin(1), 0.0)
        if torch.equal(nearer, distance):
            break
        distance = nearer
    through = torch.where(possible, distance, math.inf).amin(-1) + 1
    return torch.where(within[:, None], through, 0.0)
