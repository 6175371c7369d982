"""How much each weight matters to a task: diagonal Fisher information and path integrals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from hypercrl._checks import check_same, integer, number, pack


def diagonal_fisher(
    loss_fn: Callable[..., Tensor],
    weights: Mapping[str, Tensor],
    batch: Sequence[Tensor],
    *,
    chunk_size: int | None = 64,
) -> dict[str, Tensor]:
    r"""Return the empirical diagonal Fisher information of weights, without a loop over samples.

    $$F_i = \frac{1}{N} \sum_n \left( \frac{\partial}{\partial w_i} \ell(w; z_n) \right)^2$$

    (Kirkpatrick et al., 2017), with `l` the negative log-likelihood of one sample: half the squared error for a
    regression with unit variance, the cross-entropy for a classification.

    Args:
        loss_fn: `loss_fn(weights, *sample) -> scalar` for one sample **without** its batch dimension.
        weights: Weights by name, a network's parameters or what a hypernetwork generates for a task. Buffers among
            them (what requires no gradient, where something does) are handed to `loss_fn` as they are.
        batch: Tensors whose first dimension is the samples'.
        chunk_size: Samples at a time; memory is `chunk_size` times the weights. `None` for all.

    Returns:
        Mean squared gradients >= 0 by name, in float32 at least, detached.

    Raises:
        TypeError: If the batch is not of tensors.
        ValueError: If the batch is empty, its tensors differ in length, or the result is not finite.

    Examples:
        >>> weights = {"w": torch.tensor([2.0])}
        >>> x, y = torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.0])
        >>> diagonal_fisher(lambda w, x, y: 0.5 * (w["w"] * x - y).square().sum(), weights, (x, y))
        {'w': tensor([164.])}
    """
    batch = (batch,) if isinstance(batch, Tensor) else tuple(batch)
    for value in batch:
        if not isinstance(value, Tensor) or value.ndim < 1:
            raise TypeError(
                f"batch must hold tensors with a dimension of samples, got {type(value).__name__}"
            )
    lengths = {len(value) for value in batch}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"batch must be tensors of one length > 0, got lengths {sorted(lengths)}")
    chunk_size = None if chunk_size is None else integer("chunk_size", chunk_size, 1)
    fixed = {name: value.detach() for name, value in _followed(weights).items()}
    rest = {name: value.detach() for name, value in weights.items() if name not in fixed}

    def loss_of_one(some: dict[str, Tensor], *sample: Tensor) -> Tensor:
        return loss_fn({name: some.get(name, rest.get(name)) for name in weights}, *sample)

    slope = vmap(grad(loss_of_one), in_dims=(None, *(0 for _ in batch)), randomness="different")
    total = {name: torch.zeros_like(value, dtype=_wide(value)) for name, value in fixed.items()}
    (count,) = lengths
    for start in range(0, count, chunk_size or count):
        found = slope(fixed, *(value[start : start + (chunk_size or count)] for value in batch))
        for name, value in found.items():
            total[name] += value.to(total[name].dtype).square().sum(dim=0)
    fisher = {name: value / count for name, value in total.items()}
    if not all(bool(torch.isfinite(value).all()) for value in fisher.values()):
        raise ValueError("loss_fn must have finite gradients on every sample of batch")
    return fisher


class PathImportance(nn.Module):
    r"""The part of a task's loss decrease that each weight brought about (synaptic intelligence).

    $$\Omega = \frac{\max(0, \omega)}{(w_{end} - w_{start})^2 + \xi}, \quad \omega = -\sum_t g_t (w_{t+1} - w_t)$$

    (Zenke et al., 2017). Pass it to `continual_step(path=...)`, or call `observe` with the weights and their gradients
    before each step of any optimizer. Its sums are in its `state_dict`.

    Args:
        weights: Weights by name at the start of the task, as `hnet(task_id)` returns them. Those that require a
            gradient are followed; all of floats, if none does.
        damping: `xi` > 0.

    Raises:
        ValueError: If `damping` is not above 0.

    Examples:
        >>> path = PathImportance({"w": torch.tensor([1.0])}, damping=0.25)
        >>> path.observe({"w": torch.tensor([1.0])}, {"w": torch.tensor([2.0])})
        >>> path.importance({"w": torch.tensor([0.5])})
        {'w': tensor([2.])}
    """

    start: Tensor
    last: Tensor
    gradient: Tensor
    path: Tensor

    def __init__(self, weights: Mapping[str, Tensor], damping: float = 0.1) -> None:
        super().__init__()
        self.damping = number("damping", damping, above=True)
        weights = _followed(weights)
        self._shapes = {name: value.shape for name, value in weights.items()}
        with torch.inference_mode(False), torch.no_grad():
            flat = self._flat(weights).clone()
            self.register_buffer("start", flat)
            self.register_buffer("last", flat.clone())
            self.register_buffer("gradient", torch.zeros_like(flat))
            self.register_buffer("path", torch.zeros_like(flat))

    @torch.no_grad()
    def observe(self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
        """Note the weights before a step, and the gradients of the task's loss there.

        Args:
            weights: By name, as at the start.
            gradients: Of the same names and shapes.

        Raises:
            ValueError: If a name is missing or a shape differs.
        """
        flat, slopes = self._flat(weights), self._flat(gradients)
        self.path -= self.gradient * (flat - self.last)
        self.last.copy_(flat)
        self.gradient.copy_(slopes)

    @torch.no_grad()
    def importance(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the importance of each weight, at the end of the task.

        Args:
            weights: By name, after the last step.

        Returns:
            Numbers >= 0 by name.

        Raises:
            ValueError: If a name is missing, a shape differs, or a gradient was not finite.
        """
        flat = self._flat(weights)
        path = self.path - self.gradient * (flat - self.last)
        if not bool(torch.isfinite(path).all()):
            raise ValueError("gradients must be finite: those observed so far were not")
        found = path.clamp(min=0) / ((flat - self.start).square() + self.damping)
        pieces = found.split([shape.numel() for shape in self._shapes.values()])
        return {
            name: piece.view(shape) for (name, shape), piece in zip(self._shapes.items(), pieces, strict=True)
        }

    def _flat(self, values: Mapping[str, Tensor]) -> Tensor:
        for name, shape in self._shapes.items():
            if name not in values or values[name].shape != shape:
                found = tuple(values[name].shape) if name in values else "none"
                raise ValueError(f"weights must give {name!r} of shape {tuple(shape)}, got {found}")
        pieces = [values[name].detach().flatten() for name in self._shapes]
        return torch.cat([piece.to(_wide(piece)) for piece in pieces])

    def _configuration(self) -> dict[str, Any]:
        return {
            "damping": self.damping,
            "weights": [[name, list(shape)] for name, shape in self._shapes.items()],
        }

    def get_extra_state(self) -> Tensor:
        """Return the damping and the weights' names as a tensor."""
        return pack(self._configuration())

    def set_extra_state(self, state: Any) -> None:
        """Refuse the state of another damping or of other weights."""
        check_same("PathImportance", state, self._configuration())

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        if (state := state_dict.get(f"{prefix}_extra_state")) is not None:
            self.set_extra_state(state)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _followed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what requires a gradient, or where nothing does, all that could."""
    floats = {name: value for name, value in weights.items() if value.is_floating_point()}
    return {name: value for name, value in floats.items() if value.requires_grad} or floats


def _wide(value: Tensor) -> torch.dtype:
    return torch.promote_types(value.dtype, torch.float32)
