"""Who takes over, when, and what they do: a person's device, or one of the paper's simulated strategies."""

from __future__ import annotations

import copy
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlif._checks import (
    as_actions,
    as_tensor,
    checked_callable,
    checked_choice,
    checked_float,
    checked_integer,
)

Policy = Callable[[Any], Any]
"""Observations of N environments to their N actions."""


class Supervisor(ABC):
    """What decides, for N environments at once, where a take-over happens and what is done there.

    Subclass it for a strategy of your own: one `__call__`, and `reset` and `fresh` if it remembers something.

    Attributes:
        n_steps: Steps that a take-over lasts; control then goes back to the policy, which acts at least once before
            the next decision, as in the official code. `None`: as long as the supervisor says `take`.
        may_let_go: Whether the supervisor itself decides when to let go; `n_steps` cannot be imposed on it.
    """

    n_steps: int | None = None
    may_let_go: bool = False

    @abstractmethod
    def __call__(
        self, observation: Any, action: Tensor, active: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Look at what the policy is about to do.

        Args:
            observation: Observations with N rows, as the environment gave them (arrays, tensors, or dicts of them).
            action: The policy's actions (N, *A).
            active: Where this supervisor was in control one step ago (N,), boolean.
            generator: Source of randomness; torch's own if `None`.

        Returns:
            `take` (N,), boolean, where a take-over shall begin or go on, and the supervisor's actions (N, *A).
        """

    def fresh(self) -> Supervisor:
        """Give whom one more set of environments shall ask: itself, or a copy if it remembers its environments.

        Returns:
            A supervisor with nothing remembered.
        """
        return self

    def reset(self, rows: Tensor) -> None:  # noqa: B027 - most supervisors remember nothing
        """Forget what was remembered of environments whose episode ended.

        Args:
            rows: Those environments (N,), boolean.
        """


class CallableSupervisor(Supervisor):
    """A person with any device, or any script: one callable, `observation -> action | None`.

    `None` leaves the policy in control; an action takes over for this step. The callable is asked once a step and
    environment, with that environment's own observation (a NumPy array where the environment gives one).

    Args:
        device: The callable.

    Examples:
        >>> import torch
        >>> keyboard = {"left": [-1.0], None: None}
        >>> pressed = iter([None, "left"])
        >>> supervisor = CallableSupervisor(lambda observation: keyboard[next(pressed)])
        >>> take, action = supervisor(torch.zeros(2, 3), torch.full((2, 1), 0.5), torch.zeros(2, dtype=torch.bool))
        >>> take.tolist(), action.tolist()
        ([False, True], [[0.5], [-1.0]])
    """

    may_let_go = True

    def __init__(self, device: Callable[[Any], Any]) -> None:
        if not callable(device):
            raise TypeError(f"device must be callable, observation -> action or None, got {device!r}")
        self.device = device

    def __call__(
        self, observation: Any, action: Tensor, active: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Supervisor`."""
        given = [self.device(_row(observation, index)) for index in range(len(action))]
        executed = action.detach().clone()
        for index, value in enumerate(given):
            if value is not None:
                executed[index] = self._checked(value, executed[index])
        take = torch.tensor([value is not None for value in given], dtype=torch.bool, device=action.device)
        return take, executed

    @staticmethod
    def _checked(value: Any, like: Tensor) -> Tensor:
        if isinstance(value, bool | np.bool_):
            raise ValueError(
                f"device must return None, to leave the policy in control, or an action, got {value}"
            )
        return as_actions("device", "None or an action", value, like)


class RandomSupervisor(Supervisor):
    """Takes over with probability `p` at each step, whatever the policy does; drawn anew at each step [code].

    The paper's uninformed supervisor: p = 0.30, 0.50 and 0.85 (section 5); the official script also has 0.70 and 1.

    Args:
        policy: The supervisor's own policy, observations (N, S) to actions (N, *A).
        p: Probability in [0, 1].
    """

    def __init__(self, policy: Policy, p: float) -> None:
        self.policy = checked_callable("policy", policy)
        self.p = checked_float("p", p, 0, 1)

    def __call__(
        self, observation: Any, action: Tensor, active: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Supervisor`."""
        own = _actions("policy", self.policy, _tensors(observation), action)
        return _uniform(active, generator) < self.p, own


class ScheduleSupervisor(Supervisor):
    """Takes over after U{1..wait} steps for U{low..high} steps, whatever the policy does: HG-DAgger's sampler [code].

    The official levels are (wait, low, high) = (10, 1, 5), (5, 3, 7), (2, 4, 8) and (1, 12, 16). The wait is drawn at
    the policy's first step, at the start or after a take-over; the official loop draws it one step later after a
    take-over. It remembers its environments: every environment or controller asks a copy of its own.

    Args:
        policy: The supervisor's own policy, observations (N, S) to actions (N, *A).
        wait: Largest number of steps before a take-over.
        length: Smallest and largest length of a take-over, in steps.
    """

    may_let_go = True

    def __init__(self, policy: Policy, wait: int = 10, length: tuple[int, int] = (1, 5)) -> None:
        self.policy = checked_callable("policy", policy)
        self.wait = checked_integer("wait", wait, 1)
        try:
            low, high = length
        except (TypeError, ValueError):
            raise ValueError(f"length must be two integers (low, high), got {length!r}") from None
        self.length = (checked_integer("length[0]", low, 1), checked_integer("length[1]", high, low))
        self._left: Tensor | None = (
            None  # > 0: steps of the take-over left; < 0: steps until it; 0: to be drawn
        )

    def __call__(
        self, observation: Any, action: Tensor, active: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Supervisor`."""
        own = _actions("policy", self.policy, _tensors(observation), action)
        if self._left is None or len(self._left) != len(active):
            self._left = torch.zeros(len(active), dtype=torch.long, device=active.device)
        wait = _integers(active, 1, self.wait, generator)
        length = _integers(active, *self.length, generator)
        left = torch.where(self._left == 0, -wait - 1, self._left)
        left = torch.where(left == -1, length, left + (left < -1).long())
        take = left > 0
        self._left = left - take.long()
        return take, own

    def fresh(self) -> ScheduleSupervisor:
        """Give a copy that has drawn nothing yet."""
        found = copy.copy(self)
        found._left = None
        return found

    def reset(self, rows: Tensor) -> None:
        """Draw anew for these environments."""
        if self._left is not None and len(self._left) == len(rows):
            self._left = self._left.masked_fill(rows, 0)


class ValueSupervisor(Supervisor):
    """Takes over where a reference critic finds the policy's action worse than a reference action.

    With `rule="ratio"`, bad = Q(s, a) < alpha Q(s, a_ref), as in the official code (alpha: 0.97 Adroit pen, 0.99
    walker2d, 0.975 hopper). With `rule="gap"`, bad = Q(s, a) < Q(s, a_ref) - delta, as in the paper's theory (section
    6). It intervenes with probability `beta` where the action is bad and 1 - beta where it is not (section 5).
    The ratio means what it says for positive Q only; with negative Q it is lenient to bad actions and hard on good
    ones (a warning says so once): take the gap.

    Args:
        policy: What acts during a take-over, observations (N, S) to actions (N, *A).
        q_ref: Critic (observations, actions) -> values of the shape (N,), (N, 1), (E, N), (E, N, 1), or a tuple.
            It gets the environment's own actions; Stable-Baselines3's critics want `model.policy.scale_action` of them.
        reference: Policy whose action the critic compares with; `None` compares with `policy` itself (the official
            strategies named "ref").
        alpha: Factor of the ratio rule.
        delta: Margin of the gap rule, in units of Q.
        rule: `"ratio"` or `"gap"`.
        beta: Probability in [0, 1] of doing what the rule says; see `annealed_beta`.
        n_steps: Steps a take-over lasts.
        ensemble: `"min"` (twin critics) or `"mean"` (RLPD's ten) over several critics' values.

    Raises:
        ValueError: If the gap rule has no `delta`, or an argument is outside its range; at a call, if Q is not finite.

    Examples:
        >>> import torch
        >>> supervisor = ValueSupervisor(
        ...     policy=lambda s: s, q_ref=lambda s, a: -(s - a).square().sum(1), rule="gap", delta=0.5, beta=1.0
        ... )
        >>> here = torch.tensor([[0.0], [0.0]])
        >>> take, action = supervisor(here, torch.tensor([[0.5], [0.9]]), torch.zeros(2, dtype=torch.bool))
        >>> take.tolist(), action.tolist()
        ([False, True], [[0.0], [0.0]])
    """

    def __init__(
        self,
        policy: Policy,
        q_ref: Callable[[Any, Tensor], Any],
        reference: Policy | None = None,
        *,
        alpha: float = 0.97,
        delta: float | None = None,
        rule: str = "ratio",
        beta: float = 0.95,
        n_steps: int | None = 4,
        ensemble: str = "min",
    ) -> None:
        self.policy, self.q_ref = checked_callable("policy", policy), checked_callable("q_ref", q_ref)
        self.reference = None if reference is None else checked_callable("reference", reference)
        self.rule = checked_choice("rule", rule, ("ratio", "gap"))
        if self.rule == "gap" and delta is None:
            raise ValueError("delta must be given with rule='gap': the margin in units of Q")
        self.alpha = checked_float("alpha", alpha)
        self.delta = 0.0 if delta is None else checked_float("delta", delta, 0)
        self.beta = checked_float("beta", beta, 0, 1)
        self.n_steps = None if n_steps is None else checked_integer("n_steps", n_steps, 1)
        self.ensemble = checked_choice("ensemble", ensemble, ("min", "mean"))
        self._warned = False

    def __call__(
        self, observation: Any, action: Tensor, active: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Supervisor`."""
        tensors = _tensors(observation)
        own = _actions("policy", self.policy, tensors, action)
        bad = self._bad(tensors, action, own)
        chance = torch.where(bad, self.beta, 1 - self.beta)
        return _uniform(active, generator) < chance, own

    def bad(self, observation: Any, action: Tensor) -> Tensor:
        """Apply the rule alone, with no chance in it.

        Args:
            observation: Observations (N, S).
            action: The policy's actions (N, *A).

        Returns:
            Where the action is worse than the rule allows (N,), boolean.
        """
        tensors = _tensors(observation)
        own = None if self.reference is not None else _actions("policy", self.policy, tensors, action)
        return self._bad(tensors, action, own)

    def _bad(self, observation: Any, action: Tensor, own: Tensor | None) -> Tensor:
        reference = (
            own if self.reference is None else _actions("reference", self.reference, observation, action)
        )
        assert reference is not None
        count = len(action)
        with torch.no_grad():
            q_policy = _values(self.q_ref(observation, action), count, self.ensemble).to(action.device)
            q_reference = _values(self.q_ref(observation, reference), count, self.ensemble).to(action.device)
        if not bool((q_policy.isfinite() & q_reference.isfinite()).all()):
            raise ValueError("q_ref must return finite values, got NaN or infinity")
        if self.rule == "gap":
            return q_policy < q_reference - self.delta
        if not self._warned and bool((q_reference < 0).any()):
            self._warned = True
            warnings.warn(
                "q_ref returned negative values: rule='ratio' compares with alpha * Q, which is above Q there for "
                "alpha < 1, so that even the reference action counts as bad; use rule='gap'",
                stacklevel=4,
            )
        return q_policy < self.alpha * q_reference


class ActionDistanceSupervisor(Supervisor):
    """Takes over where the L1 distance of the two actions is above a threshold, with a few mistakes [code].

    Args:
        policy: The supervisor's own policy, observations (N, S) to actions (N, *A).
        threshold: Largest sum |a - a_expert| that is let through.
        beta: Probability in [0, 1] of doing what the rule says; 0.95 is 5 % of mistakes.
        n_steps: Steps a take-over lasts.

    Raises:
        ValueError: If an argument is outside its range; at a call, if an action is not finite.
    """

    def __init__(
        self, policy: Policy, threshold: float, *, beta: float = 0.95, n_steps: int | None = 4
    ) -> None:
        self.policy = checked_callable("policy", policy)
        self.threshold = checked_float("threshold", threshold, 0)
        self.beta = checked_float("beta", beta, 0, 1)
        self.n_steps = None if n_steps is None else checked_integer("n_steps", n_steps, 1)

    def __call__(
        self, observation: Any, action: Tensor, active: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Supervisor`."""
        own = _actions("policy", self.policy, _tensors(observation), action)
        distance = (own.double() - action.double()).abs().reshape(len(action), -1).sum(1)
        if not bool(distance.isfinite().all()):
            raise ValueError("action and policy must be finite, got NaN or infinity")
        bad = distance > self.threshold
        return _uniform(active, generator) < torch.where(bad, self.beta, 1 - self.beta), own


def annealed_beta(iteration: int, epsilon: float = 0.05, rate: float = 0.1) -> float:
    """Give the official temperature schedule, beta = 1 - epsilon exp(-rate * iteration) [code].

    Args:
        iteration: Rounds of collection so far.
        epsilon: Share of mistakes at the start, in [0, 1].
        rate: Decay per round.

    Returns:
        The probability to set, as in `supervisor.beta = annealed_beta(k)`.

    Raises:
        ValueError: If an argument is outside its range.

    Examples:
        >>> annealed_beta(0), round(annealed_beta(10), 3)
        (0.95, 0.982)
    """
    epsilon, rate = checked_float("epsilon", epsilon, 0, 1), checked_float("rate", rate, 0)
    return 1 - epsilon * math.exp(-rate * checked_integer("iteration", iteration, 0))


def tree_map(function: Callable[[Any], Any], value: Any) -> Any:
    """Apply a function to every leaf of nested dicts and tuples."""
    if isinstance(value, dict):
        return {key: tree_map(function, part) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(tree_map(function, part) for part in value)
    return function(value)


def _row(observation: Any, index: int) -> Any:
    return tree_map(lambda leaf: leaf[index], observation)


def _tensors(observation: Any) -> Any:
    """NumPy observations as tensors, floating-point ones in torch's default dtype, which networks have."""

    def convert(leaf: Any) -> Any:
        if not isinstance(leaf, np.ndarray) or leaf.dtype.kind not in "biuf":
            return leaf
        tensor = as_tensor("observation", leaf)
        return tensor.to(torch.get_default_dtype()) if leaf.dtype.kind == "f" else tensor

    return tree_map(convert, observation)


def _actions(name: str, policy: Policy, observation: Any, like: Tensor) -> Tensor:
    """What a policy does, in the form of the actions it stands beside."""
    with torch.no_grad():
        return as_actions(name, "actions", policy(observation), like)


def _values(found: Any, count: int, ensemble: str) -> Tensor:
    """Critic values (N,), whatever the form: (N,), (N, 1), (E, N), (E, N, 1), or a tuple over members."""
    if isinstance(found, tuple | list):
        return _reduced(torch.stack([_values(one, count, ensemble) for one in found]), ensemble)
    values = as_tensor("what q_ref returns", found).double()
    if values.shape in ((count,), (count, 1)):
        return values.reshape(count)
    if values.shape[1:] in ((count,), (count, 1)):
        return _reduced(values.flatten(1), ensemble)
    raise ValueError(
        f"q_ref must return values of the shape ({count},), ({count}, 1), (E, {count}) or (E, {count}, 1), "
        f"got {tuple(values.shape)}"
    )


def _reduced(values: Tensor, ensemble: str) -> Tensor:
    return values.amin(0) if ensemble == "min" else values.mean(0)


def _uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = like.device if generator is None else generator.device
    return torch.rand(len(like), generator=generator, device=device).to(like.device)


def _integers(like: Tensor, low: int, high: int, generator: torch.Generator | None) -> Tensor:
    device = like.device if generator is None else generator.device
    return torch.randint(low, high + 1, (len(like),), generator=generator, device=device).to(like.device)
