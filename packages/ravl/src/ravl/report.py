"""What to look at in a run: the edge report, its history, the model's errors by step, and overestimation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ravl._checks import as_matrix, check_finite, checked_integer, checked_number
from ravl.losses import ensemble_values
from ravl.rollouts import Policy, Rollouts, Step, one_step, policy_action, row_keys

_CHUNK = 1 << 22  # distances held at once


@dataclass(frozen=True)
class EdgeReport:
    """Which states a run bootstraps from and never updates, how far out they lie, and what the critics say there.

    By step means: index t < k for update inputs `s_t`, and k for last states; NaN where there are none.

    Attributes:
        edge_fraction: Share of bootstrapped targets that are edge states.
        beyond_fraction: Share of bootstrapped targets that are edge states further from the update inputs than
            `radius`; the others are edge states in name only, for other rollouts pass close by.
        radius: The given quantile of the distance from an update input to the nearest other, in standard deviations.
        auc: Chance that the critics differ more at an edge state beyond `radius` than at an input; 0.5 is a coin. NaN
            where there are none.
        std_ratio: Mean standard deviation of the critics at edge states over that at inputs.
        value_ratio: Largest pessimistic value at an edge state, in absolute terms, over the largest at an input:
            above 1 and growing is the blow-up.
        std_by_step: `(k + 1,)`, standard deviation over critics.
        penalty_by_step: `(k + 1,)`, mean less minimum over critics: what pessimism takes off.
        value_by_step: `(k + 1,)`, minimum over critics.
        distance_by_step: `(k + 1,)`, distance to the nearest (other) update inputs in standard deviations.
        index: `(m,)`, rows of the rollouts whose next observation is an edge state, farthest first.
        observation: `(m, S)`, these edge states.
        distance: `(m,)`.
        std: `(m,)`.
        value: `(m,)`, minimum over critics.
        added: `(m,)` int64, the update at which each was stored: since when; -1 where the buffer was not told.
    """

    edge_fraction: float
    beyond_fraction: float
    radius: float
    auc: float
    std_ratio: float
    value_ratio: float
    std_by_step: Tensor
    penalty_by_step: Tensor
    value_by_step: Tensor
    distance_by_step: Tensor
    index: Tensor
    observation: Tensor
    distance: Tensor
    std: Tensor
    value: Tensor
    added: Tensor

    def summary(self) -> dict[str, float]:
        """Return the six numbers and the largest distance, for a logger."""
        names = ("edge_fraction", "beyond_fraction", "radius", "auc", "std_ratio", "value_ratio")
        farthest = float(self.distance[0]) if len(self.distance) else math.nan
        return {name: getattr(self, name) for name in names} | {"farthest": farthest}


class EdgeHistory:
    """The reports of a run, and since when something has been so.

    Examples:
        >>> history = EdgeHistory()
        >>> for update, ratio in ((0, 1.0), (100, 1.4), (200, 0.9), (300, 1.6), (400, 2.5)):
        ...     history.add(update, {"value_ratio": ratio})
        >>> history.since("value_ratio", above=1.2)
        300
    """

    def __init__(self) -> None:
        self.updates: list[int] = []
        self.summaries: list[dict[str, float]] = []

    def add(self, update: int, report: EdgeReport | Mapping[str, float]) -> None:
        """Keep a report's summary, or numbers of yours.

        Args:
            update: The count of updates so far; must grow.
            report: The report.

        Raises:
            ValueError: If `update` is not later than the last.
        """
        update = checked_integer("update", update, 0)
        if self.updates and update <= self.updates[-1]:
            raise ValueError(f"update must be later than {self.updates[-1]}, got {update}")
        found = (
            report.summary() if isinstance(report, EdgeReport) else {k: float(v) for k, v in report.items()}
        )
        self.updates.append(update)
        self.summaries.append(found)

    def since(self, name: str, *, above: float) -> int | None:
        """Return the update since which a number has been above a bound without a break, or None if it is not now.

        Args:
            name: A key of the summaries.
            above: The bound. NaN is not above it.

        Returns:
            The first update of the last unbroken run.

        Raises:
            ValueError: If no report has such a number.
        """
        if not any(name in summary for summary in self.summaries):
            raise ValueError(f"name must be among the reports' numbers, got {name!r}")
        first = None
        for update, summary in zip(reversed(self.updates), reversed(self.summaries), strict=True):
            if not summary.get(name, math.nan) > above:
                break
            first = update
        return first

    def state_dict(self) -> dict[str, Any]:
        """Return plain lists, for a checkpoint or JSON."""
        return {"updates": list(self.updates), "summaries": [dict(summary) for summary in self.summaries]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned.

        Args:
            state: That dictionary.
        """
        self.updates = list(state["updates"])
        self.summaries = [dict(summary) for summary in state["summaries"]]


def edge_report(
    critic: Callable[[Tensor, Tensor], Any],
    policy: Policy,
    rollouts: Rollouts,
    reference: Tensor | None = None,
    *,
    num_neighbors: int = 1,
    quantile: float = 0.95,
    max_states: int = 2048,
    max_reference: int = 16384,
    generator: torch.Generator | None = None,
) -> EdgeReport:
    """Look for the edge-of-reach problem in a run of yours (sections 3 and 6).

    Values are `Q_i(s, pi(s))`. Distances are Euclidean in observations divided by the standard deviation of the
    update inputs; an input's is to the nearest other. An edge state whose critics differ no more than at inputs
    (`std_ratio` near 1, `auc` near 0.5) has no pessimism against it: raise the number of critics or `eta`. Nothing
    is trained; modules are in eval mode meanwhile, under `no_grad`, and as they were afterwards.

    Args:
        critic: The ensemble, called as `critic(observation, action)`.
        policy: `policy(observation)` returns an action, or action and log-probability.
        rollouts: The buffer's contents: `RolloutBuffer.contents()`, `truncated_rollouts(...)`, or `Rollouts` read
            from transitions or a replay buffer.
        reference: Further update inputs, `(m, S)`, such as the real data that is mixed in. Edge states that are among
            the inputs, to the last bit, are within reach and left out.
        num_neighbors: Distance to the so-many-th nearest.
        quantile: Which quantile of the inputs' distances `radius` is.
        max_states: At most so many rows are looked at, drawn by `generator`.
        max_reference: At most so many distinct update inputs are compared with; memory is `max_reference * S`
            numbers and 32 MiB of distances.
        generator: Draws the rows; the global generator if None.

    Returns:
        The report, with tensors on the rollouts' device.

    Raises:
        ValueError: If there are no rollouts, shapes do not fit or values are not finite.
        TypeError: If `rollouts` is no `Rollouts`.

    Examples:
        >>> from ravl import CriticEnsemble, truncated_rollouts
        >>> model = lambda s, a: (s + a, -s.abs().sum(-1))
        >>> policy = torch.ones_like
        >>> rollouts = truncated_rollouts(model, policy, torch.rand(200, 2), num_steps=2)
        >>> report = edge_report(CriticEnsemble(2, 2), policy, rollouts)
        >>> report.edge_fraction, report.std_by_step.shape
        (0.5, torch.Size([3]))
    """
    if not isinstance(rollouts, Rollouts):
        raise TypeError(f"rollouts must be Rollouts, got {type(rollouts).__name__}")
    if not len(rollouts):
        raise ValueError("rollouts must hold at least one transition, got none")
    num_neighbors = checked_integer("num_neighbors", num_neighbors, 1)
    quantile = checked_number("quantile", quantile, 0, 1)
    max_states = checked_integer("max_states", max_states, 1)
    max_reference = checked_integer("max_reference", max_reference, num_neighbors + 1)
    inputs = rollouts.observation
    if reference is not None:
        reference = as_matrix("reference", reference).to(inputs)
        if reference.shape[1] != inputs.shape[1]:
            raise ValueError(f"reference must have {inputs.shape[1]} columns, got {reference.shape[1]}")
        inputs = torch.cat([inputs, reference])
    check_finite("update inputs", inputs)

    rows = _some(len(rollouts), max_states, inputs.device, generator)
    seen = rollouts[rows]
    edges = seen.is_edge.clone()  # those that are inputs of another row are within reach
    edges[edges.clone()] = ~torch.isin(row_keys(seen.next_observation[edges].to(inputs)), row_keys(inputs))
    states = torch.cat([seen.observation, seen.next_observation[edges]])
    steps = torch.cat([seen.step, seen.step[edges] + 1])
    is_edge = torch.arange(len(states), device=states.device) >= len(seen)
    values = _values(critic, policy, states)
    distance = _Distances(inputs, num_neighbors, max_reference, generator)(states, ~is_edge)

    std, low = values.std(0, correction=0), values.amin(0)
    penalty = values.mean(0) - low
    radius = _quantile(distance[~is_edge], quantile)
    beyond = distance[is_edge] > radius
    targets = max(int((~seen.terminated).sum()), 1)
    order = distance[is_edge].argsort(descending=True)
    size = int(rollouts.step.max()) + 2
    return EdgeReport(
        edge_fraction=int(edges.sum()) / targets,
        beyond_fraction=int(beyond.sum()) / targets,
        radius=radius,
        auc=_auc(std[is_edge][beyond], std[~is_edge]),
        std_ratio=_ratio(std[is_edge].mean(), std[~is_edge].mean()),
        value_ratio=_ratio(low[is_edge].abs().amax(), low[~is_edge].abs().amax()) if len(order) else math.nan,
        std_by_step=_by_step(std, steps, size),
        penalty_by_step=_by_step(penalty, steps, size),
        value_by_step=_by_step(low, steps, size),
        distance_by_step=_by_step(distance, steps, size),
        index=rows[edges][order],
        observation=states[is_edge][order],
        distance=distance[is_edge][order],
        std=std[is_edge][order],
        value=low[is_edge][order],
        added=seen.added[edges][order],
    )


@dataclass(frozen=True)
class DynamicsComparison:
    """What `compare_dynamics` returns; all by step, `(k,)`.

    Attributes:
        observation_error: Root mean squared error of the state at step 1 .. k, in standard deviations of the true one.
        reward_error: Root mean squared error of the reward.
        model_reward: Mean reward that the model promises.
        true_reward: Mean reward of the same actions in the simulator.
    """

    observation_error: Tensor
    reward_error: Tensor
    model_reward: Tensor
    true_reward: Tensor


@torch.no_grad()
def compare_dynamics(
    true_step: Step, model_step: Step, policy: Policy, starts: Tensor, num_steps: int
) -> DynamicsComparison:
    """Roll model and simulator out side by side, under the actions that the policy takes in the model.

    How far the model may be trusted at step k, to be held against `EdgeReport.penalty_by_step` at step k when
    choosing it. The perfect-model test (section 4.1) is a second training with `true_step` in place of `model_step`
    in `truncated_rollouts`: a method whose score then falls has been mending the wrong thing.

    Args:
        true_step: The simulator, `step(observation, action)` returns next observation and reward.
        model_step: The model, likewise.
        policy: `policy(observation)` returns an action, or action and log-probability.
        starts: `(m, S)`.
        num_steps: k.

    Returns:
        The errors by step. Rows in which either rollout is no longer finite are left out of that step and the later;
        NaN where none is left.

    Raises:
        ValueError: If something's shape does not fit, or there are no starts or not finite ones.
        TypeError: If a step returns no tuple.

    Examples:
        >>> true, model = (lambda s, a: (s + a, s.sum(-1))), (lambda s, a: (s + 1.1 * a, s.sum(-1)))
        >>> found = compare_dynamics(true, model, torch.ones_like, torch.randn(50, 2), num_steps=3)
        >>> [round(error, 2) for error in (found.true_reward - found.model_reward).tolist()]
        [0.0, -0.2, -0.4]
    """
    num_steps = checked_integer("num_steps", num_steps, 1)
    true = model = as_matrix("starts", starts)
    if not len(true):
        raise ValueError("starts must hold at least one state, got none")
    check_finite("starts", true)
    alive = torch.ones(len(true), dtype=torch.bool, device=true.device)
    rows: list[tuple[Tensor, ...]] = []
    for _ in range(num_steps):
        action = policy_action(policy(model), len(model))
        following, true_reward, _ = one_step(true_step, true, action, name="true_step")
        promised, model_reward, _ = one_step(model_step, model, action, name="model_step")
        finite = (following.isfinite() & promised.isfinite()).all(1)
        alive = alive & finite & true_reward.isfinite() & model_reward.isfinite()
        error = ((promised - following)[alive] / _scale(following[alive])).square().mean()
        difference = (model_reward - true_reward)[alive].square().mean()
        rows.append((error.sqrt(), difference.sqrt(), model_reward[alive].mean(), true_reward[alive].mean()))
        true, model = (  # what has left stays where it was, out of the count
            torch.where(alive[:, None], new, old) for new, old in ((following, true), (promised, model))
        )
    return DynamicsComparison(*(torch.stack(column) for column in zip(*rows, strict=True)))


@dataclass(frozen=True)
class Overestimation:
    """What `overestimation` returns.

    Attributes:
        value: `(m,)`, the smallest of the critics' values at the starts.
        monte_carlo: `(m,)`, the true discounted return.
        mean: Mean of value less return.
        rank_correlation: Spearman's, over the starts; NaN where one of the two is constant.
    """

    value: Tensor
    monte_carlo: Tensor
    mean: float
    rank_correlation: float


def overestimation(
    critic: Callable[[Tensor, Tensor], Any],
    policy: Policy,
    true_step: Step,
    starts: Tensor,
    num_steps: int,
    discount: float = 0.99,
) -> Overestimation:
    """Hold `min_i Q_i(s, pi(s))` against the return that the policy really has from `s` (needs a simulator).

    The return is cut after `num_steps`, which leaves out at most `gamma^num_steps` of the whole; it has no entropy
    bonus, which SAC's values have.

    Args:
        critic: The ensemble.
        policy: `policy(observation)` returns an action, or action and log-probability.
        true_step: The simulator, `step(observation, action)` returns next observation, reward and, optionally,
            terminated, after which nothing counts.
        starts: `(m, S)`.
        num_steps: How far to follow.
        discount: `gamma` in [0, 1).

    Returns:
        Values, returns, and by how much the former exceed the latter.

    Raises:
        ValueError: If something's shape or range does not fit, there are no starts, or a reward that counts is not
            finite.
        TypeError: If `true_step` returns no tuple.

    Examples:
        >>> critic = lambda s, a: torch.stack([s[:, 0] * 0 + 12, s[:, 0] * 0 + 15])
        >>> pay = lambda s, a: (s, s[:, 0] * 0 + 1)
        >>> found = overestimation(critic, torch.ones_like, pay, torch.zeros(3, 1), num_steps=500, discount=0.9)
        >>> round(found.mean, 3)
        2.0
    """
    num_steps = checked_integer("num_steps", num_steps, 1)
    discount = checked_number("discount", discount, 0, 1, open_end=True)
    state = as_matrix("starts", starts)
    if not len(state):
        raise ValueError("starts must hold at least one state, got none")
    value = _values(critic, policy, state).amin(0)
    total = torch.zeros_like(value)
    alive = torch.ones_like(value, dtype=torch.bool)
    with torch.no_grad(), _evaluating(policy):
        for t in range(num_steps):
            action = policy_action(policy(state), len(state))
            following, reward, ended = one_step(true_step, state, action, name="true_step")
            check_finite("reward that true_step returned", reward.masked_fill(~alive, 0))
            total += discount**t * torch.where(alive, reward.to(total), 0)
            alive = alive & ~ended
            state = torch.where(alive[:, None], following, state)  # what has ended stays where it was
    return Overestimation(value, total, float((value - total).mean()), _spearman(value, total))


class _Distances:
    """Distances to the nearest distinct update inputs, each feature divided by its standard deviation."""

    def __init__(
        self, inputs: Tensor, num_neighbors: int, most: int, generator: torch.Generator | None
    ) -> None:
        distinct = inputs.unique(dim=0)
        self.center, self.scale = inputs.double().mean(0), _scale(inputs)
        kept = distinct[_some(len(distinct), most, inputs.device, generator)]
        self.known = self._standard(kept)
        self.num_neighbors = min(num_neighbors, max(len(kept) - 1, 1))

    def __call__(self, states: Tensor, leave_out: Tensor) -> Tensor:
        """Return `(rows,)`; where `leave_out`, a state's own copy is not its neighbour."""
        states = self._standard(states)
        size = max(_CHUNK // max(len(self.known), 1), 1)
        found = [self._nearest(*part) for part in zip(states.split(size), leave_out.split(size), strict=True)]
        return torch.cat(found)

    def _nearest(self, states: Tensor, leave_out: Tensor) -> Tensor:
        apart = torch.cdist(states, self.known, compute_mode="donot_use_mm_for_euclid_dist")
        apart = apart.masked_fill(leave_out[:, None] & (apart == 0), math.inf)
        nearest = apart.topk(min(self.num_neighbors, apart.shape[1]), largest=False).values[:, -1]
        return nearest.masked_fill(nearest.isinf(), 0)  # a lone input has no other

    def _standard(self, states: Tensor) -> Tensor:
        return ((states.double() - self.center) / self.scale).float()


def _scale(states: Tensor) -> Tensor:
    """Return the standard deviations in float64, 1 where a feature is constant."""
    if len(states) < 2:
        return torch.ones(states.shape[1], dtype=torch.float64, device=states.device)
    std = states.double().std(0, correction=0)
    rounding = states.double().abs().amax(0) * torch.finfo(torch.float64).eps * 8
    return torch.where(std > rounding, std, 1.0)


def _values(critic: Callable[[Tensor, Tensor], Any], policy: Policy, states: Tensor) -> Tensor:
    with torch.no_grad(), _evaluating(critic, policy):
        values = ensemble_values(critic(states, policy_action(policy(states), len(states))), len(states))
    if values.dtype in (torch.float16, torch.bfloat16):
        values = values.float()
    check_finite("critic's values", values.mT)
    return values


@contextmanager
def _evaluating(*functions: Any) -> Iterator[None]:
    """Put modules into eval mode and every one of their submodules back afterwards."""
    modes = {part: part.training for one in functions if isinstance(one, nn.Module) for part in one.modules()}
    try:
        for part in modes:
            part.training = False
        yield
    finally:
        for part, training in modes.items():
            part.training = training


def _some(size: int, most: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    if size <= most:
        return torch.arange(size, device=device)
    where = generator.device if generator is not None else torch.device("cpu")
    return torch.randperm(size, generator=generator, device=where)[:most].sort().values.to(device)


def _by_step(values: Tensor, steps: Tensor, size: int) -> Tensor:
    count = torch.zeros(size, dtype=values.dtype, device=values.device)
    total = count.index_add(0, steps, values)
    return total / count.index_add(0, steps, torch.ones_like(values))


def _quantile(values: Tensor, quantile: float) -> float:
    return float(values.sort().values[math.ceil(quantile * (len(values) - 1))])


def _ratio(above: Tensor, below: Tensor) -> float:
    return float(above / below) if float(below) != 0 else math.nan


def _ranks(values: Tensor) -> Tensor:
    """Return ranks from 0 in float64, equal values sharing their mean."""
    _, inverse, count = values.unique(return_inverse=True, return_counts=True)
    last = count.cumsum(0).double()
    return (last - (count + 1) / 2)[inverse]


def _auc(positive: Tensor, negative: Tensor) -> float:
    """Return the chance that a positive exceeds a negative, ties counting half (Mann and Whitney)."""
    if not len(positive) or not len(negative):
        return math.nan
    ranks = _ranks(torch.cat([positive, negative]))[: len(positive)]
    return float((ranks.sum() - len(positive) * (len(positive) - 1) / 2) / (len(positive) * len(negative)))


def _spearman(first: Tensor, second: Tensor) -> float:
    a, b = (_ranks(values) - (len(values) - 1) / 2 for values in (first, second))
    below = float((a.square().sum() * b.square().sum()).sqrt())
    return float((a * b).sum()) / below if below else math.nan
