"""Objectives that predict actions: inverse dynamics, and three kinds of behaviour cloning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from invdyn._checks import check_range, check_squashed, check_tensor, checked_count, is_integer
from invdyn.networks import MLP
from invdyn.objective import Embedded, Objective, action_losses
from invdyn.views import Observation, num_rows


class _ActionObjective(Objective):
    """An objective with a head that makes actions of embeddings."""

    def __init__(
        self,
        encoder: nn.Module,
        embed_dim: int,
        action_dim: int,
        *,
        hidden: Sequence[int],
        dropout: float,
        squash: bool,
        head: tuple[int, int],
        **options: Any,
    ) -> None:
        super().__init__(encoder, embed_dim, action_dim, **options)
        self.squash = bool(squash)
        inputs, outputs = head
        self.head = MLP(inputs * self.embed_dim, hidden, outputs * self.action_dim, dropout)

    def _act(self, embeddings: Tensor) -> Tensor:
        found = self.head(embeddings)
        return found.tanh() if self.squash and not self.discrete else found

    def _check_bounds(self, name: str, action: Tensor) -> None:
        if self.squash:
            check_squashed(name, action)

    def _settings(self) -> dict[str, Any]:
        return super()._settings() | {"squash": self.squash}


class InverseDynamics(_ActionObjective):
    """Inverse dynamics: predict the action from the frames before and after it (section 3 of the paper).

    L = mean of (pi([phi(o_t), phi(o_{t+n})]) - a_t)^2 over batch and dims, or the cross-entropy of a_t.
    The same encoder makes both embeddings. It keeps what can be controlled: neither what an agent cannot
    influence nor what a frame shows but no action depends on (a static goal's colour) has to be in phi.

    Args:
        encoder: As for every `Objective`.
        embed_dim: d.
        action_dim: A.
        hidden: Widths of pi.
        dropout: After each hidden layer of pi.
        squash: Whether a tanh ends pi, for actions in [-1, 1]; nothing to discrete actions.
        stop_grad_next: Whether phi(o_{t+n}) is detached.
        predict_all_actions: Whether to predict a_t .. a_{t+n-1}, not a_t only.
        nstep: n.
        discrete: Whether actions are integers.
        unit_pixels: As for every `Objective`.
        validate: As for every `Objective`.

    Examples:
        >>> objective = InverseDynamics(nn.Linear(5, 8), embed_dim=8, action_dim=2)
        >>> obs, next_obs = torch.randn(2, 16, 5)
        >>> objective(obs, next_obs).shape
        torch.Size([16, 2])
    """

    _uses = ("obs", "next_obs")

    def __init__(
        self,
        encoder: nn.Module,
        embed_dim: int,
        action_dim: int,
        *,
        hidden: Sequence[int] = (256, 256),
        dropout: float = 0.1,
        squash: bool = True,
        stop_grad_next: bool = False,
        predict_all_actions: bool = False,
        nstep: int = 1,
        discrete: bool = False,
        unit_pixels: bool = True,
        validate: bool = True,
    ) -> None:
        steps = checked_count("nstep", nstep)
        super().__init__(
            encoder,
            embed_dim,
            action_dim,
            hidden=hidden,
            dropout=dropout,
            squash=squash,
            head=(2, steps if predict_all_actions else 1),
            nstep=steps,
            discrete=discrete,
            unit_pixels=unit_pixels,
            validate=validate,
        )
        self.stop_grad_next, self.predict_all_actions = bool(stop_grad_next), bool(predict_all_actions)

    def predict(self, obs: Observation, next_obs: Observation) -> Tensor:
        """Return (B, A) actions or logits; (B, A, n) with `predict_all_actions`.

        Args:
            obs: (B, ...) or a mapping of views.
            next_obs: The same, n steps later.
        """
        frames = self._embed_batch({"obs": obs, "next_obs": next_obs})
        return self._actions(frames["obs"], frames["next_obs"])

    def _actions(self, obs: Tensor, next_obs: Tensor) -> Tensor:
        after = next_obs.detach() if self.stop_grad_next else next_obs
        found = self._act(torch.cat([obs, after], -1))
        return found.unflatten(1, (self.action_dim, self.nstep)) if self.predict_all_actions else found

    def _several_actions(self) -> bool:
        return self.predict_all_actions

    def _losses(self, given: Embedded, generator: torch.Generator | None) -> Tensor:
        wanted = given.action_seq if self.predict_all_actions else given.action
        assert wanted is not None
        found = self._actions(given.frames["obs"], given.frames["next_obs"])
        return action_losses(found, wanted, discrete=self.discrete)

    def _settings(self) -> dict[str, Any]:
        return super()._settings() | {
            "stop_grad_next": self.stop_grad_next,
            "predict_all_actions": self.predict_all_actions,
        }


class BehaviorCloning(_ActionObjective):
    """Behaviour cloning: predict the action from the frame before it, whatever the task was.

    L = mean of (pi(phi(o)) - a)^2. It is the rival in pretraining, and the policy in fine-tuning: with
    `nn.Identity()` as encoder it trains on embeddings that `encode` made once.

    Args:
        encoder: As for every `Objective`.
        embed_dim: d.
        action_dim: A.
        hidden: Widths of pi.
        dropout: After each hidden layer of pi.
        squash: Whether a tanh ends pi, for actions in [-1, 1]; nothing to discrete actions.
        discrete: Whether actions are integers.
        unit_pixels: As for every `Objective`.
        validate: As for every `Objective`.

    Examples:
        >>> policy = BehaviorCloning(nn.Identity(), embed_dim=8, action_dim=2)
        >>> policy(torch.randn(16, 8)).shape
        torch.Size([16, 2])
    """

    def __init__(
        self,
        encoder: nn.Module,
        embed_dim: int,
        action_dim: int,
        *,
        hidden: Sequence[int] = (256, 256),
        dropout: float = 0.1,
        squash: bool = True,
        discrete: bool = False,
        unit_pixels: bool = True,
        validate: bool = True,
    ) -> None:
        super().__init__(
            encoder,
            embed_dim,
            action_dim,
            hidden=hidden,
            dropout=dropout,
            squash=squash,
            head=(1, 1),
            discrete=discrete,
            unit_pixels=unit_pixels,
            validate=validate,
        )

    def predict(self, obs: Observation) -> Tensor:
        """Return (B, A) actions or logits.

        Args:
            obs: (B, ...) or a mapping of views.
        """
        return self._act(self.embed(obs))

    def _losses(self, given: Embedded, generator: torch.Generator | None) -> Tensor:
        return action_losses(self._act(given.frames["obs"]), given.action, discrete=self.discrete)


class GoalBC(_ActionObjective):
    """Behaviour cloning with the episode's last frame as its goal: L = mean of (pi([phi(o), phi(o_T)]) - a)^2.

    Args:
        encoder: As for every `Objective`.
        embed_dim: d.
        action_dim: A.
        hidden: Widths of pi.
        dropout: After each hidden layer of pi.
        squash: Whether a tanh ends pi, for actions in [-1, 1]; nothing to discrete actions.
        discrete: Whether actions are integers.
        unit_pixels: As for every `Objective`.
        validate: As for every `Objective`.

    Examples:
        >>> policy = GoalBC(nn.Linear(5, 8), embed_dim=8, action_dim=2)
        >>> policy(torch.randn(16, 5), torch.randn(16, 5)).shape
        torch.Size([16, 2])
    """

    _uses = ("obs", "goal")

    def __init__(
        self,
        encoder: nn.Module,
        embed_dim: int,
        action_dim: int,
        *,
        hidden: Sequence[int] = (256, 256),
        dropout: float = 0.1,
        squash: bool = True,
        discrete: bool = False,
        unit_pixels: bool = True,
        validate: bool = True,
    ) -> None:
        super().__init__(
            encoder,
            embed_dim,
            action_dim,
            hidden=hidden,
            dropout=dropout,
            squash=squash,
            head=(2, 1),
            discrete=discrete,
            unit_pixels=unit_pixels,
            validate=validate,
        )

    def predict(self, obs: Observation, goal: Observation) -> Tensor:
        """Return (B, A) actions or logits.

        Args:
            obs: (B, ...) or a mapping of views.
            goal: The same, of the last frame.
        """
        frames = self._embed_batch({"obs": obs, "goal": goal})
        return self._act(torch.cat([frames["obs"], frames["goal"]], -1))

    def _losses(self, given: Embedded, generator: torch.Generator | None) -> Tensor:
        found = self._act(torch.cat([given.frames["obs"], given.frames["goal"]], -1))
        return action_losses(found, given.action, discrete=self.discrete)


class MultiHeadBC(_ActionObjective):
    """Behaviour cloning with a head for each task, for data whose tasks are known.

    L = mean of (pi_c(phi(o)) - a)^2: one MLP ends in (n_tasks, A), of which the row of the sample's task counts.

    Args:
        encoder: As for every `Objective`.
        embed_dim: d.
        action_dim: A.
        n_tasks: Number of tasks.
        hidden: Widths of pi.
        dropout: After each hidden layer of pi.
        squash: Whether a tanh ends pi, for actions in [-1, 1]; nothing to discrete actions.
        discrete: Whether actions are integers.
        unit_pixels: As for every `Objective`.
        validate: As for every `Objective`.

    Examples:
        >>> policy = MultiHeadBC(nn.Linear(5, 8), embed_dim=8, action_dim=2, n_tasks=3)
        >>> policy(torch.randn(4, 5), torch.tensor([0, 2, 1, 1])).shape
        torch.Size([4, 2])
    """

    _reads_task = True

    def __init__(
        self,
        encoder: nn.Module,
        embed_dim: int,
        action_dim: int,
        n_tasks: int,
        *,
        hidden: Sequence[int] = (256, 256),
        dropout: float = 0.1,
        squash: bool = True,
        discrete: bool = False,
        unit_pixels: bool = True,
        validate: bool = True,
    ) -> None:
        count = checked_count("n_tasks", n_tasks)
        super().__init__(
            encoder,
            embed_dim,
            action_dim,
            hidden=hidden,
            dropout=dropout,
            squash=squash,
            head=(1, count),
            discrete=discrete,
            unit_pixels=unit_pixels,
            validate=validate,
        )
        self.n_tasks = count

    def predict(self, obs: Observation, task: Tensor) -> Tensor:
        """Return (B, A) actions or logits.

        Args:
            obs: (B, ...) or a mapping of views.
            task: (B,) integers.
        """
        self._check_task(task, num_rows("obs", obs))
        return self._actions(self.embed(obs), task)

    def _actions(self, obs: Tensor, task: Tensor) -> Tensor:
        every = self._act(obs).unflatten(1, (self.n_tasks, self.action_dim))
        return every[torch.arange(len(every), device=every.device), task.long()]

    def _losses(self, given: Embedded, generator: torch.Generator | None) -> Tensor:
        assert given.task is not None
        found = self._actions(given.frames["obs"], given.task)
        return action_losses(found, given.action, discrete=self.discrete)

    def _check_task(self, task: Tensor | None, size: int) -> None:
        if task is None:
            raise ValueError("task must be in the batch for MultiHeadBC, got None")
        if not is_integer(check_tensor("task", task)):
            raise TypeError(f"task must be integers, got {task.dtype}")
        if task.shape != (size,):
            raise ValueError(f"task must be ({size},), got {tuple(task.shape)}")
        if self.validate and not torch.compiler.is_compiling():
            check_range("task", task, self.n_tasks, "n_tasks")

    def _settings(self) -> dict[str, Any]:
        return super()._settings() | {"n_tasks": self.n_tasks}
