"""Who acts at each step: the bookkeeping of take-overs for N environments, under no particular environment API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlif._checks import as_actions, checked_flags, checked_integer
from rlif.supervisors import Supervisor


@dataclass(frozen=True)
class Decision:
    """What happens at one step of N environments.

    Args:
        action: The actions to execute (N, *A).
        intervened: i_t, where the supervisor controls this step (N,), boolean.
        takeover: Where such control begins (N,), boolean.
        caused: Where the *previous* transition, a step of the policy in the same episode, is the cause of this
            take-over (N,), boolean: its reward is -penalty. A take-over at an episode's first step has no cause.
    """

    action: Tensor
    intervened: Tensor
    takeover: Tensor
    caused: Tensor


class InterventionController:
    """Decides who acts, step by step: the interaction protocol of RLIF (algorithm 1) for loops over tensors.

    A take-over of a supervisor with `n_steps` lasts that long, unless the episode ends; the policy then acts at least
    once before the supervisor is asked again, as in the official code. `InterventionEnv` and
    `InterventionVectorEnv` are this under gymnasium's API.

    Args:
        supervisor: The supervisor; it is asked for all N environments at once.
        num_envs: N.
        n_steps: Length of every take-over instead of `supervisor.n_steps`.
        label_only: The flags are raised, but the policy keeps control (the official strategies named "label").

    Raises:
        TypeError: If `supervisor` is no `Supervisor`.
        ValueError: If `n_steps` < 1, or given for a supervisor that lets go by itself.

    Examples:
        >>> import torch
        >>> from rlif import RandomSupervisor
        >>> controller = InterventionController(RandomSupervisor(torch.zeros_like, p=1.0), num_envs=2, n_steps=1)
        >>> steps = [controller.decide(torch.ones(2, 1), torch.ones(2, 1)) for _ in range(3)]
        >>> [step.intervened[0].item() for step in steps], [step.caused[0].item() for step in steps]
        ([True, False, True], [False, False, True])
    """

    def __init__(
        self, supervisor: Supervisor, num_envs: int, *, n_steps: int | None = None, label_only: bool = False
    ) -> None:
        if not isinstance(supervisor, Supervisor):
            raise TypeError(
                f"supervisor must be an rlif.Supervisor (rlif.CallableSupervisor makes one of a callable), "
                f"got {supervisor!r}"
            )
        if n_steps is not None and supervisor.may_let_go:
            raise ValueError(
                f"n_steps must be None for a {type(supervisor).__name__}, which lets go by itself, got {n_steps!r}"
            )
        self.supervisor = supervisor.fresh()
        self.num_envs = checked_integer("num_envs", num_envs, 1)
        self.n_steps = supervisor.n_steps if n_steps is None else checked_integer("n_steps", n_steps, 1)
        self.label_only = bool(label_only)
        self._was = torch.zeros(self.num_envs, dtype=torch.bool)
        self._started = self._was.clone()
        self._remaining = torch.zeros(self.num_envs, dtype=torch.long)

    def reset(self, rows: Any = None) -> None:
        """Begin new episodes.

        Args:
            rows: Where (N,), boolean; everywhere if `None`.
        """
        if rows is None:
            chosen = torch.ones_like(self._was)
        else:
            chosen = checked_flags("rows", rows, (self.num_envs,)).to(self._was.device)
        self._was = self._was & ~chosen
        self._started = self._started & ~chosen
        self._remaining = self._remaining.masked_fill(chosen, 0)
        self.supervisor.reset(chosen)

    def decide(
        self,
        observation: Any,
        action: Tensor,
        *,
        valid: Any = None,
        generator: torch.Generator | None = None,
    ) -> Decision:
        """Decide one step.

        Args:
            observation: Observations of N rows.
            action: The policy's actions (N, *A).
            valid: Where this is a step of an episode (N,), boolean; the others, such as the steps in which a vector
                environment resets, stay outside of every episode. Everywhere if `None`.
            generator: Source of the supervisor's randomness.

        Returns:
            The decision, on the device of `action`.

        Raises:
            ValueError: If `action` does not have N rows, `valid` is not boolean (N,), or the supervisor's answer is not
                boolean (N,) and (N, *A).
        """
        if action.ndim < 1 or len(action) != self.num_envs:
            raise ValueError(f"action must have {self.num_envs} rows, got the shape {tuple(action.shape)}")
        self._to(action.device)
        answer = self.supervisor(observation, action, self._was, generator)
        take = checked_flags("take, of the supervisor,", answer[0], (self.num_envs,))
        own = as_actions("supervisor", "actions", answer[1], action)
        here = self._here(valid)
        intervened = self._held(take.to(action.device) & here) & here
        takeover = intervened & ~self._was
        caused = takeover & self._started
        self._was = intervened
        self._started = self._started | here
        executed = action
        if not self.label_only:
            rows = intervened.view(-1, *[1] * (action.ndim - 1))
            executed = torch.where(rows, own, action)
        return Decision(executed, intervened, takeover, caused)

    def _here(self, valid: Any) -> Tensor:
        """Where this is a step; what the supervisor remembers of the other rows was of no episode."""
        if valid is None:
            return torch.ones_like(self._was)
        here = checked_flags("valid", valid, (self.num_envs,)).to(self._was.device)
        if not bool(here.all()):
            self.supervisor.reset(~here)
        return here

    def _held(self, take: Tensor) -> Tensor:
        """Make take-overs last `n_steps`, with a step of the policy after each."""
        if self.n_steps is None:
            return take
        forced = self._remaining > 0
        fresh = take & ~self._was
        left = torch.where(fresh, self.n_steps - 1, 0)
        self._remaining = torch.where(forced, self._remaining - 1, left)
        return forced | fresh

    def _to(self, device: torch.device) -> None:
        if self._was.device != device:
            self._was, self._started = self._was.to(device), self._started.to(device)
            self._remaining = self._remaining.to(device)
