"""Find opposing groups from the losses of single examples: no gradient is needed, nor any access to the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from opposingsignals._checks import (
    checked_count,
    checked_curve,
    checked_finite,
    checked_indices,
    checked_number,
)
from opposingsignals.losses import LossFunction, per_example_loss


@dataclass(frozen=True, eq=False)
class GroupPair:
    """Two groups whose losses rise and fall in turn.

    Attributes:
        a: Indices of one group's examples, the strongest first, in the flattened losses.
        b: Indices of the other group's.
        alternation: -corr of the groups' changes of loss, 1 for opposing groups.
        autocorrelation_a: Lag-1 autocorrelation of A's changes, -1 where they swap sign at every step.
        autocorrelation_b: The same for B.
        num_steps: Steps that it was seen over.
    """

    a: Tensor
    b: Tensor
    alternation: float
    autocorrelation_a: float
    autocorrelation_b: float
    num_steps: int


class LossDeltaTracker:
    """Remember losses of the same examples over a run, and find who alternates (Rosenfeld and Risteski 2024).

    At steps t and t + 1 take δ_i = l_i(t + 1) - l_i(t) and the k most positive and most negative. Where training
    oscillates, the two sets change places from step to step.

    In a full-batch loop give it the losses that the loop has anyway, `record_losses(losses, step)`; in a mini-batch
    loop the batches' losses with their indices and the epoch as step, or a frozen probe set through `record`.
    Memory: `keep` x n numbers, in float32 (float64 if the losses are).

    Args:
        x: Inputs of a fixed probe set, for `record`.
        y: Its targets.
        loss_fn: See `per_example_loss`.
        num_examples: n, where `record_losses` is given batches with `indices`.
        every: Take every so many steps. An even number sees nothing of an oscillation of period two.
        keep: Records to keep; older ones are forgotten.
        batch: Examples of the probe set at a time.
        per_token: Losses of the probe set are (n, T), every token an example.

    Raises:
        ValueError: If a count is below its least.

    Examples:
        >>> tracker = LossDeltaTracker()
        >>> for step in range(6):
        ...     swing = 0.1 * (-1) ** step
        ...     losses = torch.tensor([1 + swing, 0.5, 0.5, 1 - swing]) + 0.01 * torch.tensor([1, 2, 3, 4]) / (step + 1)
        ...     _ = tracker.record_losses(losses, step)
        >>> (pair,) = tracker.alternating_pairs(k=1)
        >>> sorted([*pair.a.tolist(), *pair.b.tolist()])
        [0, 3]
    """

    def __init__(
        self,
        x: Any = None,
        y: Any = None,
        loss_fn: LossFunction | None = None,
        *,
        num_examples: int | None = None,
        every: int = 1,
        keep: int = 1000,
        batch: int | None = None,
        per_token: bool = False,
    ) -> None:
        self.every = checked_count("every", every)
        self.keep = checked_count("keep", keep, 3)
        self._num_examples = None if num_examples is None else checked_count("num_examples", num_examples, 2)
        self._probe = (x, y, loss_fn, batch, per_token)
        self._rows: Tensor | None = None
        self._shape: tuple[int, ...] = () if self._num_examples is None else (self._num_examples,)
        self._steps: list[int] = []
        self._next = 0

    def record(self, model: nn.Module, step: int) -> bool:
        """Measure the probe set with the model as it is now, in evaluation mode.

        Args:
            model: The model in training; its modes are as before afterwards.
            step: Step of the run, larger at every call.

        Returns:
            Whether this step was taken (`every`).

        Raises:
            ValueError: If the tracker was made without `x` and `loss_fn`.
        """
        x, y, loss_fn, batch, per_token = self._probe
        if x is None or loss_fn is None:
            raise ValueError(
                "record needs a tracker made with x and loss_fn; give losses to record_losses instead"
            )
        if checked_count("step", step, 0) % self.every:
            return False
        losses = per_example_loss(model, loss_fn, x, y, batch=batch, per_token=per_token)
        return self.record_losses(losses, step)

    def record_losses(self, losses: Any, step: int, *, indices: Any = None) -> bool:
        """Record losses that the loop already has.

        Args:
            losses: Unreduced, of all examples, (n,) or more dimensions; or of a batch, (m,), with `indices`. Padded
                tokens may have the loss 0 throughout. Detached and copied.
            step: Step of the run, larger at every call; with `indices` it may repeat, and the batches of one step
                make one record.
            indices: The batch's examples among `num_examples`.

        Returns:
            Whether this step was taken (`every`).

        Raises:
            ValueError: If losses are scalar, not finite, or of another shape than before; if the step goes back.
        """
        values = torch.as_tensor(losses).detach()
        now = checked_count("step", step, 0)
        if values.ndim == 0:
            raise ValueError("losses must be unreduced, (n,): got a scalar; use reduction='none'")
        if now % self.every:
            return False
        if not values.is_floating_point():
            raise TypeError(f"losses must be real floating point, got {values.dtype}")
        checked_finite("losses", values)
        if indices is not None:
            return self._record_part(values, now, indices)
        if self._steps and now <= self._steps[-1]:
            raise ValueError(f"step must be larger than the last, {self._steps[-1]}, got {now}")
        if self._shape and self._shape != tuple(values.shape):
            raise ValueError(f"losses must have shape {self._shape} as before, got {tuple(values.shape)}")
        if values.numel() < 2:
            raise ValueError(f"losses must be of at least 2 examples, got {values.numel()}")
        self._shape = tuple(values.shape)
        with torch.inference_mode(False), torch.no_grad():  # rows that can be written to in any mode later
            self._open(now, values)[:] = values.flatten()
        return True

    def _record_part(self, values: Tensor, now: int, indices: Any) -> bool:
        if self._num_examples is None:
            raise ValueError("indices need a tracker made with num_examples")
        where = checked_indices("indices", indices, self._num_examples, values.device)
        if values.shape != where.shape:
            raise ValueError(f"losses must be of shape ({len(where)},) as indices, got {tuple(values.shape)}")
        if self._steps and now < self._steps[-1]:
            raise ValueError(f"step must not be smaller than the last, {self._steps[-1]}, got {now}")
        new = not self._steps or now > self._steps[-1]
        with torch.inference_mode(False), torch.no_grad():
            row = self._open(now, values) if new else self._row(len(self._steps) - 1)
            row[where.to(row.device)] = values.to(row)
        return True

    def _open(self, step: int, values: Tensor) -> Tensor:
        """Begin the next record of the ring, all unknown."""
        if self._rows is None:
            dtype = torch.float64 if values.dtype == torch.float64 else torch.float32
            size = self._num_examples or values.numel()
            self._rows = torch.empty(0, size, dtype=dtype, device=values.device)
        if len(self._steps) == len(self._rows) < self.keep:
            more = min(max(len(self._rows), 16), self.keep - len(self._rows))
            self._rows = torch.cat([self._rows, self._rows.new_empty(more, self._rows.shape[1])])
        if len(self._steps) == self.keep:
            del self._steps[0]
            self._next = (self._next + 1) % self.keep
        self._steps.append(step)
        row = self._row(len(self._steps) - 1)
        row.fill_(torch.nan)
        return row

    def _row(self, index: int) -> Tensor:
        assert self._rows is not None
        return self._rows[(self._next + index) % len(self._rows)]

    @property
    def steps(self) -> list[int]:
        """Steps of the records, oldest first."""
        return [*self._steps]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one record's losses; `torch.unravel_index(pair.a, tracker.shape)` gives sentence and token."""
        return self._shape

    def losses(self) -> Tensor:
        """All records, oldest first, (T, n); NaN where a record has no loss of an example.

        Returns:
            A copy.

        Raises:
            ValueError: If nothing is recorded.
        """
        if self._rows is None:
            raise ValueError("the tracker holds no record yet")
        order = [(self._next + index) % len(self._rows) for index in range(len(self._steps))]
        return self._rows[order]

    def deltas(self) -> Tensor:
        """Changes between neighbouring records, δ, (T - 1, n): row j is `losses()[j + 1] - losses()[j]`.

        Returns:
            The changes. Their mean over the examples is the change of the mean loss.
        """
        return self.losses().diff(dim=0)

    def extremes(self, k: int | None = None, step: int | None = None) -> tuple[Tensor, Tensor]:
        """Examples whose loss rose and fell the most from the record before `step` to that of `step`.

        Args:
            k: How many of each; max(8, n / 200) by default.
            step: A recorded step but the first; the last by default.

        Returns:
            Indices of the k most positive changes, and of the k most negative, the largest first.

        Raises:
            ValueError: If 2 k exceeds the examples, or there is no such step.

        Examples:
            >>> tracker = LossDeltaTracker()
            >>> _ = tracker.record_losses(torch.tensor([1.0, 1.0, 1.0]), 0)
            >>> _ = tracker.record_losses(torch.tensor([1.0, 3.0, 0.0]), 1)
            >>> tracker.extremes(k=1)
            (tensor([1]), tensor([2]))
        """
        if len(self._steps) < 2:
            raise ValueError(f"extremes need at least 2 records, got {len(self._steps)}")
        which = self._steps[-1] if step is None else checked_count("step", step, 0)
        if which not in self._steps[1:]:
            raise ValueError(f"step must be a recorded one after the first, got {which}")
        index = self._steps.index(which)
        delta = self._row(index) - self._row(index - 1)
        count = self._checked_k(k, int(delta.isfinite().sum()))
        up = delta.nan_to_num(nan=-torch.inf).topk(count).indices
        down = (-delta).nan_to_num(nan=-torch.inf).topk(count).indices
        return up, down

    def alternating_pairs(
        self,
        k: int | None = None,
        window: int = 20,
        *,
        end_step: int | None = None,
        min_swaps: int = 2,
        min_correlation: float = 0.5,
    ) -> list[GroupPair]:
        """Pairs of groups that change places among the extremes, the strongest pair first.

        An example is a candidate if at least `min_swaps` times it is among the k largest rises at one step and the k
        largest falls at the next, or the reverse; two swaps are a sign alternation over three steps, which a
        mislabelled example that is merely hard does not show. Around the candidate with the largest swings, A takes
        the k strongest whose changes correlate with its own by at least `min_correlation`, B those that correlate by
        at most minus that; then the same with the rest.

        Args:
            k: Extremes a step and examples a group; max(8, n / 200) by default.
            window: Records to look at, at least 4.
            end_step: The last of them; the newest record by default.
            min_swaps: See above.
            min_correlation: See above, in (0, 1].

        Returns:
            Pairs, disjoint from each other; none where nothing alternates.

        Raises:
            ValueError: If there are fewer than 4 records (three changes), or 2 k exceeds the examples.
        """
        swaps, span = checked_count("min_swaps", min_swaps), checked_count("window", window, 4)
        close = checked_number("min_correlation", min_correlation, 0.0, 1.0, strict=True)
        losses = self.losses()
        if end_step is not None:
            if end_step not in self._steps:
                raise ValueError(f"end_step must be a recorded step, got {end_step}")
            losses = losses[: self._steps.index(end_step) + 1]
        losses = losses[-span:]
        if len(losses) < 4:
            raise ValueError(f"alternating_pairs need at least 4 records, got {len(losses)}")
        delta = losses.diff(dim=0)
        known = delta.isfinite().all(0)
        count = self._checked_k(k, int(known.sum()))
        delta = delta.where(known, 0.0)
        extreme = torch.zeros_like(delta, dtype=torch.int8)
        rises = delta.where(known, -torch.inf).topk(count, dim=1).indices
        falls = (-delta).where(known, -torch.inf).topk(count, dim=1).indices
        extreme.scatter_(1, rises, 1).scatter_(1, falls, -1)
        extreme[delta.sign() != extreme] = 0  # the k-th largest rise may be a fall
        swapped = (extreme[1:] * extreme[:-1] == -1).sum(0)
        return _cluster(losses, delta, (swapped >= swaps).nonzero()[:, 0], count, close)

    def _checked_k(self, k: int | None, known: int) -> int:
        count = max(8, known // 200) if k is None else checked_count("k", k)
        if 2 * count > known:
            raise ValueError(
                f"k must be at most half of the {known} examples with a change of loss, got {count}"
            )
        return count


def _cluster(losses: Tensor, delta: Tensor, pool: Tensor, k: int, close: float) -> list[GroupPair]:
    if len(pool) < 2:
        return []
    changes = delta[:, pool].double()
    swing = changes.diff(dim=0).square().mean(0).sqrt()
    centred = changes - changes.mean(0)
    centred = centred / centred.norm(dim=0).clamp_min(1e-300)
    alike = centred.T @ centred
    free = torch.ones_like(swing, dtype=torch.bool)
    pairs = []
    while free.any():
        seed = int(swing.where(free, -1.0).argmax())
        sides = []
        for sign in (1, -1):
            side = (free & (sign * alike[seed] >= close)).nonzero()[:, 0]
            sides.append(side[swing[side].argsort(descending=True)][:k])
        free[seed] = False
        if len(sides[1]) == 0:
            continue
        free &= (
            alike[seed].abs() < close
        )  # what is alike but too weak for the groups makes no pair of its own
        a, b = (pool[side] for side in sides)
        curves = [losses[:, group].double().mean(1) for group in (a, b)]
        pairs.append(
            GroupPair(
                a=a,
                b=b,
                alternation=alternation(*curves),
                autocorrelation_a=_autocorrelation(curves[0]),
                autocorrelation_b=_autocorrelation(curves[1]),
                num_steps=len(delta),
            )
        )
    return pairs


def alternation(a: Tensor | Sequence[float], b: Tensor | Sequence[float]) -> float:
    """How much two loss curves change in turn: -corr_t(a(t + 1) - a(t), b(t + 1) - b(t)).

    Args:
        a: One group's mean loss, (T,), at least 3 records; a list will do.
        b: The other's, (T,).

    Returns:
        A number in [-1, 1]: 1 for a curve and its negation, -1 for a curve and itself.

    Raises:
        ValueError: If the curves are too short, of unequal length, not finite, or change by the same amount at every
            step.

    Examples:
        >>> curve = torch.tensor([0.0, 2.0, 1.0, 4.0])
        >>> round(alternation(curve, -curve), 6)
        1.0
    """
    changes = [checked_curve(name, curve).diff() for name, curve in (("a", a), ("b", b))]
    if len(changes[0]) != len(changes[1]):
        raise ValueError(f"a and b must be curves of one length, got {len(a)} and {len(b)}")
    for name, change in zip("ab", changes, strict=True):
        if not (change - change.mean()).abs().max() > 1e-12 * change.abs().max():
            raise ValueError(
                f"{name} changes by the same amount at every step, so that it correlates with nothing"
            )
    return -_correlation(*changes)


def group_curves(tracker: LossDeltaTracker, groups: Sequence[Any]) -> Tensor:
    """Mean loss of groups at every record.

    Args:
        tracker: What was recorded.
        groups: Index lists, such as `[pair.a, pair.b]`.

    Returns:
        Curves, (T, G); an example without a loss in a record is left out of that mean.

    Raises:
        ValueError: If a group is empty or reaches beyond the examples.

    Examples:
        >>> tracker = LossDeltaTracker()
        >>> _ = tracker.record_losses(torch.tensor([1.0, 3.0, 5.0]), 0)
        >>> group_curves(tracker, [[0, 1], [2]])
        tensor([[2., 5.]])
    """
    losses = tracker.losses()
    chosen = [checked_indices("groups", group, losses.shape[1], losses.device) for group in groups]
    return torch.stack([losses[:, group].nanmean(dim=1) for group in chosen], dim=1)


def _correlation(one: Tensor, other: Tensor) -> float:
    one, other = one - one.mean(), other - other.mean()
    return float((one.dot(other) / (one.norm() * other.norm()).clamp_min(1e-300)).clamp(-1, 1))


def _autocorrelation(curve: Tensor) -> float:
    change = curve.diff()
    return _correlation(change[1:], change[:-1])
