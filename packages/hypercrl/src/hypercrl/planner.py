"""Model predictive control by the cross-entropy method, for many states at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hypercrl._checks import choice, integer, number

Dynamics = Callable[[Tensor, Tensor], Tensor]
Cost = Callable[[Tensor, Tensor], Tensor]


class CEMPlanner:
    r"""The cross-entropy method over action sequences, batched over states (arXiv 2009.11997, section III-A).

    For each state: draw `num_samples` sequences from a diagonal Gaussian, clamp them to the bounds, roll the dynamics
    out, and refit mean and (biased) standard deviation to the `num_elites` cheapest; after `num_iterations` draw once
    more and act by the first action of the cheapest sequence.

    All states of a call share their random numbers. So the plan of a state does not depend on its neighbours in the
    batch: N states planned together get what each would get alone from the same generator.

    Generate weights once, before planning: `weights = {name: value.detach() for name, value in hnet(k).items()}`.
    Dynamics and cost run without gradients.

    Memory: `N * num_samples * horizon * A` numbers for actions, and what the dynamics need for `N * num_samples` rows.

    Args:
        dynamics: `dynamics(states (N, K, *S), actions (N, K, A)) -> next states (N, K, *S)`, `K = num_samples`.
        cost: `cost(next_states, actions) -> (N, K)`, summed over the horizon. Samples with a cost that is not finite
            are dropped.
        horizon: Steps looked ahead (paper: 20; door 10, cheetah 30).
        action_low: Bounds, a number or (A,).
        action_high: Bounds, a number or (A,); A is 1 if both are numbers.
        num_samples: Sequences of each iteration (door: 2,000).
        num_elites: Sequences that the Gaussian is fitted to (cheetah: 50).
        num_iterations: Refits.
        initial_mean: Start of the mean, a number or (A,).
        initial_std: Start of the standard deviation, a number > 0 or (A,), in units of the action.
        terminal_cost: `terminal_cost(states) -> (N, K)`, added at the end of the horizon.
        warm_start: Start the next call from this call's mean moved on by one step; `reset` where an episode ended. The
            official code starts anew.
        device: Where planning happens; by default on the device of the bounds if tensors, else CPU.
        dtype: Of states and actions inside.

    Raises:
        ValueError: If `horizon < 1`, `num_elites > num_samples`, bounds are out of order, or a number is out of range.

    Examples:
        >>> planner = CEMPlanner(lambda x, u: x + u, lambda x, u: x.square().sum(-1), 2, -1.0, 1.0, num_samples=200)
        >>> action = planner.plan(torch.tensor([[0.5], [-0.3]]), torch.Generator().manual_seed(0))
        >>> action.shape, bool((action[:, 0] - torch.tensor([-0.5, 0.3])).abs().max() < 0.05)
        (torch.Size([2, 1]), True)
    """

    def __init__(
        self,
        dynamics: Dynamics,
        cost: Cost,
        horizon: int,
        action_low: float | Sequence[float] | Tensor,
        action_high: float | Sequence[float] | Tensor,
        num_samples: int = 500,
        num_elites: int = 40,
        num_iterations: int = 5,
        *,
        initial_mean: float | Sequence[float] | Tensor = 0.0,
        initial_std: float | Sequence[float] | Tensor = 1.0,
        terminal_cost: Callable[[Tensor], Tensor] | None = None,
        warm_start: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.dynamics, self.cost, self.terminal_cost = dynamics, cost, terminal_cost
        self.horizon = integer("horizon", horizon, 1)
        self.num_samples = integer("num_samples", num_samples, 1)
        self.num_elites = integer("num_elites", num_elites, 1)
        self.num_iterations = integer("num_iterations", num_iterations, 1)
        if self.num_elites > self.num_samples:
            raise ValueError(
                f"num_elites must be at most num_samples={self.num_samples}, got {self.num_elites}"
            )
        if not dtype.is_floating_point:
            raise TypeError(f"dtype must be a real floating dtype, got {dtype}")
        if device is None and isinstance(action_low, Tensor):
            device = action_low.device
        low, high = (torch.as_tensor(one, device=device, dtype=dtype) for one in (action_low, action_high))
        self.action_low, self.action_high = (value.clone() for value in torch.broadcast_tensors(low, high))
        if self.action_low.ndim == 0:
            self.action_low, self.action_high = self.action_low[None], self.action_high[None]
        if self.action_low.ndim != 1:
            raise ValueError(f"action_low must be a number or (A,), got {tuple(self.action_low.shape)}")
        if not bool((self.action_low < self.action_high).all()):
            raise ValueError("action_low must be below action_high, for every action")
        self.initial_mean = self._per_action("initial_mean", initial_mean)
        self.initial_std = self._per_action("initial_std", initial_std)
        if not bool((self.initial_std > 0).all()):
            raise ValueError("initial_std must be above 0")
        self.warm_start = bool(choice("warm_start", warm_start, (True, False)))
        self.mean: Tensor | None = None

    def _per_action(self, name: str, value: Any) -> Tensor:
        if not isinstance(value, (Tensor, Sequence, np.ndarray)):
            value = number(name, value, -math.inf)
        found = torch.as_tensor(value, device=self.action_low.device, dtype=self.action_low.dtype)
        if found.ndim > 1 or (found.ndim == 1 and found.shape != self.action_low.shape):
            raise ValueError(
                f"{name} must be a number or {tuple(self.action_low.shape)}, got {tuple(found.shape)}"
            )
        if not bool(torch.isfinite(found).all()):
            raise ValueError(f"{name} must be finite")
        return found.expand_as(self.action_low).clone()

    def plan(self, state: Any, generator: torch.Generator | None = None) -> Any:
        """Return the action for each state.

        Args:
            state: (N, *S), or one state (S,); a NumPy array gives a NumPy array.
            generator: Source of the samples.

        Returns:
            Actions (N, A), or (A,) for one state.

        Raises:
            TypeError: If `state` is a mapping.
            ValueError: If a state is not finite, cost or dynamics return a wrong shape, or no sample of a state has a
                finite cost.
        """
        plain = not isinstance(state, Tensor)
        if isinstance(state, Mapping):
            raise TypeError("state must be an array, got a mapping: join its parts first")
        states = torch.as_tensor(state, device=self.action_low.device, dtype=self.action_low.dtype)
        if states.ndim == 0:
            raise ValueError("state must be (N, *S) or (S,), got a single number")
        single = states.ndim == 1
        states = states[None] if single else states
        if not bool(torch.isfinite(states).all()):
            bad = int((~torch.isfinite(states.flatten(1))).any(dim=1).nonzero()[0, 0])
            raise ValueError(f"state must be finite, state {bad} is not")
        sequence = self._optimize(states, generator)
        action = sequence[0, 0] if single else sequence[:, 0]
        return action.cpu().numpy() if plain else action

    @torch.no_grad()
    def _optimize(self, states: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return the cheapest sequences, (N, horizon, A)."""
        mean, std = self._start(len(states))
        for _ in range(self.num_iterations):
            mean, std = self._refit(*self._sample(states, mean, std, generator), mean, std)
        actions, costs = self._sample(states, mean, std, generator)
        least, best = costs.min(dim=1)
        if not bool(torch.isfinite(least).all()):
            bad = int((~torch.isfinite(least)).nonzero()[0, 0])
            raise ValueError(f"cost must be finite for at least one sample, it is for none of state {bad}")
        if self.warm_start:
            self.mean = torch.cat([mean[:, 1:], self.initial_mean.expand(len(states), 1, -1)], dim=1)
        return actions[torch.arange(len(states), device=best.device), best]

    def _start(self, count: int) -> tuple[Tensor, Tensor]:
        shape = (count, self.horizon, len(self.action_low))
        mean = self.initial_mean.expand(shape)
        if self.warm_start and self.mean is not None:
            if len(self.mean) != count:
                raise ValueError(
                    f"state must be of {len(self.mean)} states as before, got {count}: call reset()"
                )
            mean = self.mean
        return mean, self.initial_std.expand(shape)

    def _sample(
        self, states: Tensor, mean: Tensor, std: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Return sequences (N, K, horizon, A) and their costs (N, K), infinite where they are not finite."""
        shape = (self.num_samples, self.horizon, len(self.action_low))
        device = mean.device if generator is None else generator.device
        noise = torch.randn(shape, generator=generator, device=device, dtype=mean.dtype).to(mean.device)
        actions = torch.addcmul(mean[:, None], std[:, None], noise).clamp(self.action_low, self.action_high)
        costs = self._rollout(states, actions)
        return actions, costs.masked_fill(~torch.isfinite(costs), torch.inf)

    def _rollout(self, states: Tensor, actions: Tensor) -> Tensor:
        wanted = actions.shape[:2]
        states = states[:, None].expand(-1, self.num_samples, *states.shape[1:])
        shape, total = states.shape, torch.zeros(wanted, device=states.device, dtype=states.dtype)
        for action in actions.unbind(dim=2):
            states = _checked("dynamics", self.dynamics(states, action), shape)
            total = total + _checked("cost", self.cost(states, action), wanted)
        if self.terminal_cost is not None:
            total = total + _checked("terminal_cost", self.terminal_cost(states), wanted)
        return total

    def _refit(self, actions: Tensor, costs: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        least, index = costs.topk(self.num_elites, dim=1, largest=False, sorted=False)
        elites = actions.gather(1, index[..., None, None].expand(-1, -1, *actions.shape[2:]))
        kept = torch.isfinite(least)[..., None, None].to(actions.dtype)
        count = kept.sum(dim=1)
        new_mean = (elites * kept).sum(dim=1) / count.clamp(min=1)
        variance = ((elites - new_mean[:, None]).square() * kept).sum(dim=1) / count.clamp(min=1)
        some = count > 0  # where nothing is finite, draw from the same Gaussian again
        return torch.where(some, new_mean, mean), torch.where(some, variance.sqrt(), std)

    def reset(self, done: Any | None = None) -> None:
        """Forget the warm start, of all states or of those whose episode ended.

        Args:
            done: (N,) of booleans; `None` for all.

        Raises:
            ValueError: If its length is not that of the last states.
        """
        if done is None or self.mean is None:
            self.mean = None
            return
        done = torch.as_tensor(done, device=self.mean.device, dtype=torch.bool).flatten()
        if len(done) != len(self.mean):
            raise ValueError(f"done must be of {len(self.mean)} states, got {len(done)}")
        self.mean = torch.where(done[:, None, None], self.initial_mean, self.mean)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the warm start: empty where there is none."""
        return {} if self.mean is None else {"mean": self.mean.clone()}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Go on from a saved warm start.

        Raises:
            ValueError: If it is of another horizon or action size, or this planner makes no warm starts.
        """
        if not state_dict:
            self.mean = None
            return
        mean, wanted = state_dict["mean"], (self.horizon, len(self.action_low))
        if not self.warm_start or mean.ndim != 3 or mean.shape[1:] != wanted:
            raise ValueError(f"state_dict must be that of a planner with warm_start and mean (N, *{wanted})")
        self.mean = mean.to(self.action_low, copy=True)


def _checked(name: str, value: Any, wanted: torch.Size) -> Tensor:
    if not isinstance(value, Tensor) or value.shape != wanted:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name} must return a tensor {tuple(wanted)}, got {got}")
    return value
