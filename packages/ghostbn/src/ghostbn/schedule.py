"""The learning rate, its schedule and the gradient noise when only the batch size changes."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ghostbn.groups import check_number, check_size


def scale_lr(
    learning_rate: float,
    batch_size: float,
    base_batch_size: float,
    rule: str | Callable[[float], float] = "sqrt",
) -> float:
    r"""Scale a learning rate that was tuned for another batch size.

    $\eta = \eta_0 \sqrt{M / M_0}$ keeps the covariance of an SGD step, about
    $\frac{\eta^2}{M} \mathbb{E}[g g^\top]$, what it was (arXiv 1705.08741, section 4). That is an argument about
    SGD; with Adam the square root is usual, too, for another reason. Momentum and weight decay stay as they
    are. The first steps at the scaled rate need gradient clipping (the official code: norm 5).

    Args:
        learning_rate: $\eta_0$, tuned for `base_batch_size`.
        batch_size: M, samples per update over all devices.
        base_batch_size: $M_0$.
        rule: `"sqrt"`, `"linear"`, `"none"`, or a function from $M / M_0$ to the factor.

    Returns:
        $\eta$.

    Raises:
        TypeError: If an argument or the rule's factor is not a number.
        ValueError: If a size is not positive, the learning rate or the rule's factor is negative or not finite, or
            the rule is unknown.

    Examples:
        >>> scale_lr(0.1, 2048, 128)
        0.4
    """
    check_number("learning_rate", learning_rate)
    if not 0 <= learning_rate < math.inf:
        raise ValueError(f"learning_rate must be non-negative and finite, got {learning_rate}")
    ratio = _ratio(batch_size, base_batch_size)
    if callable(rule):
        factor = rule(ratio)
        check_number("the factor of rule", factor)
        if not 0 <= factor < math.inf:
            raise ValueError(f"rule must give a non-negative finite factor, got {factor} for {ratio}")
        return learning_rate * factor
    if rule not in _RULES:
        raise ValueError(f"rule must be one of {tuple(_RULES)} or a function, got {rule!r}")
    return learning_rate * ratio ** _RULES[rule]


def adapt_regime(
    milestones: Sequence[int], total_epochs: int, batch_size: float, base_batch_size: float
) -> tuple[list[int], int]:
    r"""Stretch a schedule in epochs so that each phase keeps its number of updates.

    Every epoch boundary is multiplied by $\lceil M / M_0 \rceil$ (arXiv 1705.08741, section 5, "regime adaptation").

    Args:
        milestones: Increasing epochs at which the learning rate drops.
        total_epochs: Length of the training in epochs.
        batch_size: M, samples per update over all devices.
        base_batch_size: $M_0$, the batch size the schedule was made for.

    Returns:
        The new milestones and the new number of epochs.

    Raises:
        TypeError: If an epoch is not an integer, or a size not a number.
        ValueError: If a size is not positive, or milestones do not increase within 1..total_epochs.

    Examples:
        >>> adapt_regime([81, 122, 164], 200, batch_size=512, base_batch_size=128)
        ([324, 488, 656], 800)
    """
    total_epochs = check_size("total_epochs", total_epochs)
    milestones = [_epoch(epoch) for epoch in milestones]
    bounded = not milestones or (milestones[0] >= 1 and milestones[-1] <= total_epochs)
    if not bounded or any(later <= earlier for earlier, later in pairwise(milestones)):
        raise ValueError(f"milestones must increase strictly within 1..{total_epochs}, got {milestones}")
    stretch = math.ceil(_ratio(batch_size, base_batch_size))
    return [epoch * stretch for epoch in milestones], total_epochs * stretch


class AdaptedSchedule:
    """Step a per-epoch scheduler by updates, as if the batch size had never changed.

    The wrapped scheduler advances once in as many updates as an epoch had at the base batch size, so the learning
    rate is the same function of the update index at any batch size: regime adaptation (arXiv 1705.08741,
    section 5) for a scheduler of any kind, without rounding the ratio of batch sizes to a whole number.

    Args:
        scheduler: A scheduler written for one `step()` per epoch.
        num_samples: Samples in an epoch, over all devices.
        base_batch_size: Samples per update the schedule was made for, over all devices.
        drop_last: Whether the base regime dropped the incomplete last batch of an epoch.

    Raises:
        TypeError: If the scheduler is not an LRScheduler, or is ReduceLROnPlateau, which follows a metric.
        ValueError: If a size is not positive or an epoch has no update.

    Examples:
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        >>> epochs = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[1, 3])
        >>> schedule = AdaptedSchedule(epochs, num_samples=100, base_batch_size=50)  # 2 updates an epoch
        >>> rates = []
        >>> for _ in range(schedule.num_updates(total_epochs=4)):
        ...     optimizer.step()
        ...     rates.extend(schedule.get_last_lr())
        ...     schedule.step()
        >>> [round(rate, 2) for rate in rates]
        [1.0, 1.0, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01]
    """

    def __init__(
        self, scheduler: LRScheduler, num_samples: int, base_batch_size: int, *, drop_last: bool = False
    ) -> None:
        if not isinstance(scheduler, LRScheduler) or isinstance(scheduler, ReduceLROnPlateau):
            raise TypeError(
                "scheduler must be a torch.optim.lr_scheduler.LRScheduler that needs no metric, "
                f"got {type(scheduler).__name__}"
            )
        num_samples = check_size("num_samples", num_samples)
        ratio = _ratio(num_samples, base_batch_size, name="num_samples")
        self.updates_per_epoch = math.floor(ratio) if drop_last else math.ceil(ratio)
        if self.updates_per_epoch < 1:
            raise ValueError(
                f"base_batch_size must be at most num_samples = {num_samples} with drop_last, got {base_batch_size}"
            )
        self.scheduler = scheduler
        self.update = 0

    def num_updates(self, total_epochs: int) -> int:
        """Count the updates of the whole base regime: train for as many.

        Args:
            total_epochs: Epochs of the base regime.

        Returns:
            The number of updates.
        """
        return check_size("total_epochs", total_epochs) * self.updates_per_epoch

    def step(self) -> None:
        """Advance by one update; call it after every `optimizer.step()`."""
        self.update += 1
        if self.update % self.updates_per_epoch == 0:
            self.scheduler.step()

    def get_last_lr(self) -> list[float]:
        """Return the current learning rate of each parameter group."""
        return [float(rate) for rate in self.scheduler.get_last_lr()]

    def state_dict(self) -> dict[str, Any]:
        """Return the update index and the wrapped scheduler's state."""
        return {
            "update": self.update,
            "updates_per_epoch": self.updates_per_epoch,
            "scheduler": self.scheduler.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a saved state.

        Args:
            state_dict: What `state_dict()` returned.

        Raises:
            ValueError: If the state is none of an `AdaptedSchedule`, or of one with another number of updates in an
                epoch.
        """
        if "update" not in state_dict:
            raise ValueError(f"state_dict must be of an AdaptedSchedule, got the keys {sorted(state_dict)}")
        saved = state_dict.get("updates_per_epoch", self.updates_per_epoch)  # version 0.1.0 had none
        if saved != self.updates_per_epoch:
            raise ValueError(
                f"state_dict must be of a schedule with updates_per_epoch = {self.updates_per_epoch}, got {saved}"
            )
        self.update = state_dict["update"]
        self.scheduler.load_state_dict(state_dict["scheduler"])


def sample_loss_weights(
    num_samples: int,
    batch_size: float,
    base_batch_size: float,
    generator: torch.Generator | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    r"""Draw per-sample loss weights that give a large batch the gradient noise of a small one.

    $\hat g = \frac{1}{M} \sum_n z_n g_n$ with $z_n \sim \mathcal{N}(1, \sigma^2)$ (arXiv 1705.08741, section 4).
    The paper has $\sigma^2$ proportional to M; here $\sigma^2 = M / M_0 - 1$, which makes the second moments
    equal: $(1 + \sigma^2) / M = 1 / M_0$. An alternative to `scale_lr`, not an addition to it. Use it as
    `(weights * per_sample_loss).mean()`.

    Args:
        num_samples: How many weights to draw: the samples in this (micro-)batch.
        batch_size: M, samples per update over all devices.
        base_batch_size: $M_0 \le M$.
        generator: Source of randomness; torch's default one if None.
        dtype: Of the weights.
        device: Of the weights; the generator's if None.

    Returns:
        (num_samples,) weights with mean 1. Some are negative: that is meant.

    Raises:
        ValueError: If a size is not positive or `batch_size` is below `base_batch_size`.
        TypeError: If `num_samples` is not an integer, or a size not a number.

    Examples:
        >>> sample_loss_weights(3, batch_size=128, base_batch_size=128).tolist()
        [1.0, 1.0, 1.0]
    """
    num_samples = check_size("num_samples", num_samples)
    variance = _ratio(batch_size, base_batch_size) - 1
    if variance < 0:
        raise ValueError(f"batch_size must be at least base_batch_size = {base_batch_size}, got {batch_size}")
    if device is None and generator is not None:
        device = generator.device
    noise = torch.randn(num_samples, generator=generator, dtype=dtype, device=device)
    return 1 + math.sqrt(variance) * noise


_RULES = {"sqrt": 0.5, "linear": 1.0, "none": 0.0}


def _epoch(epoch: int) -> int:
    try:
        return operator.index(epoch)
    except TypeError:
        raise TypeError(f"milestones must be integers, got {epoch!r}") from None


def _ratio(size: float, base_batch_size: float, name: str = "batch_size") -> float:
    for argument, value in ((name, size), ("base_batch_size", base_batch_size)):
        check_number(argument, value)
        if not 0 < value < math.inf:
            raise ValueError(f"{argument} must be positive and finite, got {value}")
    return size / base_batch_size
