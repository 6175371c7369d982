"""A dynamics model around any network: inputs normalised task by task, the change of the state predicted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from hypercrl._checks import check_same, choice, integer, number, pack, real_batch

MAX_LOG_VARIANCE, MIN_LOG_VARIANCE = 0.5, -10.0
_ROUNDING = 8  # units in the last place by which the mean of equal numbers may be off


class TaskNormalizer(nn.Module):
    """Running mean and standard deviation of inputs, kept apart for each task.

    The paper's `2 (S + A)` numbers for each task. Batches are merged about their own means (Chan et al., 1979) in
    float64, so that neither a large offset nor a small scale costs digits. A feature that never changed is only
    centred.

    Args:
        features: Number of features.
        dtype: Of the statistics, which keep it when the module is cast: float64, or float32 for devices without it.

    Raises:
        ValueError: If `features` < 1 or `dtype` is another.

    Examples:
        >>> normalizer = TaskNormalizer(2)
        >>> k = normalizer.add_task()
        >>> normalizer.update(k, torch.tensor([[0.0, 5.0], [2.0, 5.0]]))
        >>> normalizer(k, torch.tensor([[2.0, 5.0]]))
        tensor([[1., 0.]])
    """

    count: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self, features: int, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.features = integer("features", features, 1)
        choice("dtype", dtype, (torch.float64, torch.float32))
        self.register_buffer("count", torch.zeros(0, dtype=dtype))
        self.register_buffer("mean", torch.zeros(0, self.features, dtype=dtype))
        self.register_buffer("squares", torch.zeros(0, self.features, dtype=dtype))
        self._filled: set[int] = set()  # tasks with data: asking the device in each call would wait for it

    @property
    def num_tasks(self) -> int:
        """Number of tasks so far."""
        return len(self.count)

    def add_task(self) -> int:
        """Add a task without data, and return its id."""
        with torch.inference_mode(False):
            for name in ("count", "mean", "squares"):
                value = getattr(self, name)
                setattr(self, name, torch.cat([value, value.new_zeros(1, *value.shape[1:])]))
        return self.num_tasks - 1

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TaskNormalizer:
        # A model cast to bfloat16 keeps its statistics: only the device follows.
        return super()._apply(lambda value: value.to(fn(value[:0]).device), recurse)

    @torch.no_grad()
    def update(self, task_id: int, batch: Tensor) -> None:
        """Add a batch to a task's statistics.

        Args:
            task_id: The task.
            batch: (batch, features), finite.

        Raises:
            ValueError: If the task is unknown, or the batch has another shape or a value that is not finite.
        """
        task_id = self._task(task_id)
        batch = real_batch("batch", batch, self.features).to(self.mean)
        if not len(batch):
            return
        old, new = self.count[task_id].clone(), float(len(batch))
        mean = batch.mean(dim=0)
        squares = (batch - mean).square().sum(dim=0)
        shift, total = mean - self.mean[task_id], old + new
        self.mean[task_id] += shift * (new / total).to(mean.dtype)
        self.squares[task_id] += squares + shift.square() * (old * new / total).to(mean.dtype)
        self.count[task_id] = total
        self._filled.add(task_id)

    def std(self, task_id: int) -> Tensor:
        """Return a task's (biased) standard deviations, 1 where a feature never changed."""
        task_id = self._task(task_id)
        variance = self.squares[task_id] / self.count[task_id].clamp(min=1).to(self.squares.dtype)
        still = variance <= (_ROUNDING * torch.finfo(variance.dtype).eps * self.mean[task_id]).square()
        return variance.masked_fill(still, 1.0).sqrt()

    def forward(self, task_id: int, value: Tensor) -> Tensor:
        """Return `(value - mean) / std` of a task, in the dtype of `value`, computed in float32 at least.

        Args:
            task_id: The task.
            value: (..., features).

        Raises:
            ValueError: If the task is unknown or has no data yet, or `value` has another size.
        """
        task_id = self._task(task_id)
        if task_id not in self._filled:
            raise ValueError(f"task_id must have data, task {task_id} has none: call update first")
        if value.shape[-1:] != (self.features,):
            raise ValueError(f"value must be (..., {self.features}), got {tuple(value.shape)}")
        dtype = value.dtype if value.is_floating_point() else torch.get_default_dtype()
        mean, std = self.mean[task_id], self.std(task_id)
        wide = torch.promote_types(dtype, torch.float32)
        std = std.to(wide).clamp(min=torch.finfo(wide).tiny)
        return ((value.to(wide) - mean.to(wide)) / std).to(dtype)

    def _task(self, task_id: int) -> int:
        found = integer("task_id", task_id, 0)
        if found >= self.num_tasks:
            raise ValueError(f"task_id must be one of the {self.num_tasks} tasks added so far, got {found}")
        return found

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        if (saved := state_dict.get(f"{prefix}count")) is not None:
            if len(saved) < self.num_tasks:
                raise ValueError(f"state_dict has {len(saved)} tasks, this normalizer has {self.num_tasks}")
            while self.num_tasks < len(saved):
                self.add_task()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._filled = set(self.count.nonzero().flatten().tolist())


class DynamicsModel(nn.Module):
    r"""A network of your own as the model `x' = x + f_w(x, u)` of each task (arXiv 2009.11997, section III-A).

    The network sees state and action, normalised by the task's own statistics, and predicts the change of the state,
    unnormalised. It is called with the weights that a hypernetwork generates.

    Args:
        network: Any module from (batch, `num_inputs`) to (batch, `num_outputs`).
        state_dim: Size `S` of a state.
        action_dim: Size `A` of an action.
        angles: Positions of angles in the state: the network sees their cosine and sine.
        probabilistic: The network has `2 S` outputs, means and log-variances (paper: door pose, cheetah).

    Raises:
        ValueError: If a size is below 1 or an angle is not in the state.

    Examples:
        >>> network = nn.Linear(4, 2)
        >>> model = DynamicsModel(network, state_dim=2, action_dim=1, angles=(0,))
        >>> k = model.add_task()
        >>> state, action = torch.zeros(5, 2), torch.ones(5, 1)
        >>> model.observe(k, state, action)
        >>> model.predict(dict(network.named_parameters()), k, state, action).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        network: nn.Module,
        state_dim: int,
        action_dim: int,
        angles: Sequence[int] = (),
        probabilistic: bool = False,
    ) -> None:
        super().__init__()
        self.state_dim, self.action_dim = (
            integer("state_dim", state_dim, 1),
            integer("action_dim", action_dim, 1),
        )
        if isinstance(angles, (str, int)):
            raise TypeError(f"angles must be a sequence of integers, got {angles!r}")
        self.angles = tuple(integer("angles", one, 0) for one in angles)
        if any(one >= self.state_dim for one in self.angles) or len(set(self.angles)) < len(self.angles):
            raise ValueError(
                f"angles must be different positions below state_dim={self.state_dim}, got {self.angles}"
            )
        self.network, self.probabilistic = network, bool(probabilistic)
        self._straight = [index for index in range(self.state_dim) if index not in self.angles]
        self.normalizer = TaskNormalizer(self.num_inputs)

    @property
    def num_inputs(self) -> int:
        """Features that the network sees: an angle counts twice."""
        return self.state_dim + len(self.angles) + self.action_dim

    @property
    def num_outputs(self) -> int:
        """Numbers that the network must return."""
        return self.state_dim * (2 if self.probabilistic else 1)

    def add_task(self) -> int:
        """Add a task to the normaliser, and return its id."""
        return self.normalizer.add_task()

    def observe(self, task_id: int, state: Tensor, action: Tensor) -> None:
        """Add transitions to a task's statistics.

        Args:
            task_id: The task.
            state: (batch, S).
            action: (batch, A).

        Raises:
            ValueError: If the task is unknown, a shape is wrong, or a value is not finite.
        """
        state = real_batch("state", state, self.state_dim)
        action = real_batch("action", action, self.action_dim)
        if len(state) != len(action):
            raise ValueError(f"state and action must be of one length, got {len(state)} and {len(action)}")
        self.normalizer.update(task_id, self._features(state, action))

    def outputs(self, weights: Mapping[str, Tensor], task_id: int, state: Tensor, action: Tensor) -> Tensor:
        """Return what the network says of transitions, (..., num_outputs).

        Args:
            weights: Weights (and buffers) of the network, as `hnet(task_id)` returns them. Normalised inputs are cast
                to their dtype.
            task_id: The task whose statistics normalise the inputs.
            state: (..., S).
            action: (..., A).

        Raises:
            TypeError: If a state or an action is no tensor.
            ValueError: If a shape is wrong, or the network returns another size.
        """
        self._check_last("state", state, self.state_dim)
        self._check_last("action", action, self.action_dim)
        if state.shape[:-1] != action.shape[:-1]:
            raise ValueError(
                f"action must be {(*state.shape[:-1], self.action_dim)}, got {tuple(action.shape)}"
            )
        inputs = self.normalizer(task_id, self._features(state, action))
        dtype = next((one.dtype for one in weights.values() if one.is_floating_point()), inputs.dtype)
        # The mapping itself, since `functional_call` writes into it the buffers that the network sets anew.
        named = weights if isinstance(weights, dict) else dict(weights)
        found = functional_call(self.network, named, (inputs.to(dtype).flatten(0, -2),))
        if not isinstance(found, Tensor) or found.shape[1:] != (self.num_outputs,):
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"network must return a tensor (batch, {self.num_outputs}), got {got}")
        return found.view(*inputs.shape[:-1], self.num_outputs)

    def predict(self, weights: Mapping[str, Tensor], task_id: int, state: Tensor, action: Tensor) -> Tensor:
        """Return the next state, the mean of it if the model is probabilistic; for `CEMPlanner`.

        Args:
            weights: As in `outputs`.
            task_id: As in `outputs`.
            state: (..., S).
            action: (..., A).

        Returns:
            (..., S).

        Raises:
            ValueError: As `outputs`.
        """
        return state + self.outputs(weights, task_id, state, action)[..., : self.state_dim]

    def loss(
        self, weights: Mapping[str, Tensor], task_id: int, state: Tensor, action: Tensor, next_state: Tensor
    ) -> Tensor:
        """Return the loss of transitions, **summed** over the batch and divided by `S`.

        Args:
            weights: As in `outputs`.
            task_id: As in `outputs`.
            state: (batch, S).
            action: (batch, A).
            next_state: (batch, S). A step that only ended the episode by time is an ordinary transition; the reset
                after it is none.

        Returns:
            A scalar; give `batch_size=len(state)` to `continual_step`.

        Raises:
            ValueError: If a shape is wrong, as `outputs`.
        """
        if next_state.shape != state.shape:
            raise ValueError(f"next_state must be {tuple(state.shape)}, got {tuple(next_state.shape)}")
        change, found = next_state - state, self.outputs(weights, task_id, state, action)
        if not self.probabilistic:
            return squared_loss(found, change)
        return gaussian_loss(found[..., : self.state_dim], found[..., self.state_dim :], change)

    def _features(self, state: Tensor, action: Tensor) -> Tensor:
        if not self.angles:
            return torch.cat([state, action], dim=-1)
        angle = state[..., list(self.angles)]
        return torch.cat([state[..., self._straight], angle.cos(), angle.sin(), action], dim=-1)

    def _configuration(self) -> dict[str, Any]:
        sizes = {"state_dim": self.state_dim, "action_dim": self.action_dim}
        return sizes | {"angles": list(self.angles), "probabilistic": self.probabilistic}

    def get_extra_state(self) -> Tensor:
        """Return what decides the predictions besides weights and statistics, as a tensor."""
        return pack(self._configuration())

    def set_extra_state(self, state: Any) -> None:
        """Refuse the state of another configuration."""
        check_same("DynamicsModel", state, self._configuration())

    @staticmethod
    def _check_last(name: str, value: Tensor, size: int) -> None:
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
        if value.ndim < 2 or value.shape[-1] != size:
            raise ValueError(f"{name} must be (..., {size}) with a batch, got {tuple(value.shape)}")


def squared_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the squared error summed over the batch, its mean over features; in float32 at least.

    Args:
        prediction: (batch, S).
        target: (batch, S).

    Raises:
        ValueError: If the shapes differ.

    Examples:
        >>> squared_loss(torch.ones(3, 2), torch.zeros(3, 2))
        tensor(3.)
    """
    _check_shapes(prediction, target)
    return (_widened(prediction) - target).square().sum() / target.shape[-1]


def bounded_log_variance(
    log_variance: Tensor, low: float = MIN_LOG_VARIANCE, high: float = MAX_LOG_VARIANCE
) -> Tensor:
    r"""Return log-variances softly held between two bounds (Chua et al., 2018).

    `v <- high - softplus(high - v)`, then `low + softplus(v - low)`. The upper bound is exceeded by at most
    `softplus(low - high)`.

    Args:
        log_variance: Any shape.
        low: Lower bound.
        high: Upper bound.

    Raises:
        ValueError: If the bounds are out of order.

    Examples:
        >>> bounded_log_variance(torch.tensor([-1e3, 1e3]))
        tensor([-10.0000,   0.5000])
    """
    if not low < high:
        raise ValueError(f"low must be below high, got {low:g} and {high:g}")
    upper = high - F.softplus(high - log_variance)
    return low + F.softplus(upper - low)


def gaussian_loss(mean: Tensor, log_variance: Tensor, target: Tensor) -> Tensor:
    r"""Return the loss of a probabilistic model, summed over the batch; in float32 at least.

    $$\frac{1}{S} \sum (\mu - y)^2 e^{-v} + v + 0.01 \, S \, (v_{max} - v_{min})$$

    with `v` bounded by `bounded_log_variance`. The last term is the official code's; in the hypernetwork setting the
    bounds are not trained, and it is a constant.

    Args:
        mean: (batch, S).
        log_variance: (batch, S), before bounding.
        target: (batch, S).

    Raises:
        ValueError: If the shapes differ.
    """
    _check_shapes(mean, target)
    _check_shapes(log_variance, target)
    bounded, size = bounded_log_variance(_widened(log_variance)), target.shape[-1]
    fit = ((_widened(mean) - target).square() * torch.exp(-bounded) + bounded).sum() / size
    return fit + 0.01 * size * (MAX_LOG_VARIANCE - MIN_LOG_VARIANCE)


def weight_l1(weights: Mapping[str, Tensor], strength: float = 1.0) -> Tensor:
    """Return `strength` times the sum of absolute values of all weights.

    Args:
        weights: Generated weights by name; buffers of integers are passed over.
        strength: >= 0.

    Raises:
        ValueError: If `strength` is negative or no weight is given.

    Examples:
        >>> weight_l1({"a": torch.tensor([1.0, -2.0]), "b": torch.tensor([3.0])}, 0.5)
        tensor(3.)
    """
    strength = number("strength", strength)
    pieces = [
        value.abs().sum() for value in weights.values() if value.is_floating_point() and value.requires_grad
    ]
    if not pieces:
        pieces = [value.abs().sum() for value in weights.values() if value.is_floating_point()]
    if not pieces:
        raise ValueError("weights must name at least one floating tensor, got none")
    return strength * torch.stack(pieces).sum()


def _widened(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))


def _check_shapes(prediction: Tensor, target: Tensor) -> None:
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction must be {tuple(target.shape)} as the target, got {tuple(prediction.shape)}"
        )
