"""What the method is compared with: two penalties on a plain network, and a coreset of old data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hypercrl._checks import check_same, integer, number, pack
from hypercrl.importance import PathImportance


class EWC(nn.Module):
    r"""Elastic weight consolidation of a plain network, in memory that does not grow with tasks.

    $$\frac{\lambda}{2} \sum_t \sum_i F_{t,i} (\theta_i - \theta_{t,i})^2$$

    (Kirkpatrick et al., 2017), one term for each task, not the online approximation: a sum of parabolas is a parabola
    about the weighted mean, plus a constant, and these three are kept.

    Args:
        module: The network. Frozen parameters are left out.
        strength: `lambda` >= 0.

    Raises:
        ValueError: If `strength` is negative.

    Examples:
        >>> net = nn.Linear(1, 1)
        >>> ewc = EWC(net, strength=2.0)
        >>> ewc.consolidate({name: torch.ones_like(value) for name, value in net.named_parameters()})
        >>> with torch.no_grad():
        ...     _ = net.weight.add_(3.0)
        >>> ewc.penalty().detach()
        tensor(9.)
    """

    precision: Tensor
    center: Tensor
    constant: Tensor

    def __init__(self, module: nn.Module, strength: float) -> None:
        super().__init__()
        self.strength = number("strength", strength)
        self._named = _trainable(module)
        flat = _flat(self._named).detach()
        self.register_buffer("precision", torch.zeros_like(flat))
        self.register_buffer("center", flat.clone())
        self.register_buffer("constant", torch.zeros_like(flat[:1]))

    @torch.no_grad()
    def consolidate(self, fisher: Mapping[str, Tensor]) -> None:
        """Pin the parameters where they are, at the end of a task.

        Args:
            fisher: Fisher information by parameter name, as `diagonal_fisher` returns it; no name, no pin.

        Raises:
            ValueError: If a name is unknown, or a value has the wrong shape, or is negative or not finite.
        """
        added = _flat(_checked("fisher", fisher, self._named)).to(self.precision.dtype)
        value = _flat(self._named).detach()
        total = self.precision + added
        share = torch.where(total > 0, added / total.clamp(min=torch.finfo(total.dtype).tiny), 0.0)
        # Two parabolas of precisions a and b, d apart: their sum's least value is d^2 a b / (a + b).
        self.constant += ((value - self.center).square() * self.precision * share).sum()
        self.center += share * (value - self.center)
        self.precision.copy_(total)

    def penalty(self) -> Tensor:
        """Return the penalty at the present parameters, to be added to the mean loss of the task."""
        off = _flat(self._named) - self.center
        return 0.5 * self.strength * ((self.precision * off.square()).sum() + self.constant[0])

    def get_extra_state(self) -> Tensor:
        """Return the strength and the parameters' names as a tensor."""
        return pack(_configuration(self.strength, self._named))

    def set_extra_state(self, state: Any) -> None:
        """Refuse the state of another strength or of other parameters."""
        check_same("EWC", state, _configuration(self.strength, self._named))


class SynapticIntelligence(nn.Module):
    r"""Synaptic intelligence of a plain network.

    $$c \sum_i \Omega_i (\theta_i - \theta^*_i)^2$$

    with `Omega` the sum of the tasks' path integrals, see `PathImportance` (Zenke et al., 2017, equation 4). Call
    `observe` after the backward pass of the **task's** loss and before each optimizer step, `end_task` after the last.

    Args:
        module: The network. Frozen parameters are left out.
        strength: `c` >= 0.
        damping: `xi` > 0.

    Raises:
        ValueError: If `strength` is negative or `damping` not above 0.

    Examples:
        >>> net = nn.Linear(1, 1)
        >>> si = SynapticIntelligence(net, strength=0.1)
        >>> loss = net(torch.ones(4, 1)).square().mean()
        >>> si.observe(loss)
        >>> si.end_task()
        >>> si.penalty().detach()
        tensor(0.)
    """

    omega: Tensor
    center: Tensor

    def __init__(self, module: nn.Module, strength: float, damping: float = 0.1) -> None:
        super().__init__()
        self.strength = number("strength", strength)
        self._named = _trainable(module)
        self.path = PathImportance(self._named, damping)
        flat = _flat(self._named).detach()
        self.register_buffer("omega", torch.zeros_like(flat))
        self.register_buffer("center", flat.clone())

    def observe(self, loss: Tensor) -> None:
        """Note the gradient of the task's loss, before the step; `.grad` stays as it is.

        Args:
            loss: The task's loss without the penalty; its graph is kept.
        """
        values = list(self._named.values())
        found = torch.autograd.grad(loss, values, retain_graph=True, materialize_grads=True)
        self.path.observe(self._named, dict(zip(self._named, found, strict=True)))

    @torch.no_grad()
    def end_task(self) -> None:
        """Add the task's importance, pin the parameters where they are, and start a new path."""
        self.omega += _flat(self.path.importance(self._named))
        flat = _flat(self._named)
        self.center.copy_(flat)
        for buffer in (self.path.start, self.path.last):
            buffer.copy_(flat)
        for buffer in (self.path.path, self.path.gradient):
            buffer.zero_()

    def penalty(self) -> Tensor:
        """Return the penalty at the present parameters, to be added to the mean loss of the task."""
        return self.strength * (self.omega * (_flat(self._named) - self.center).square()).sum()

    def get_extra_state(self) -> Tensor:
        """Return the strength and the parameters' names as a tensor."""
        return pack(_configuration(self.strength, self._named))

    def set_extra_state(self, state: Any) -> None:
        """Refuse the state of another strength or of other parameters."""
        check_same("SynapticIntelligence", state, _configuration(self.strength, self._named))


class Coreset(nn.Module):
    """A fixed number of random samples of each old task, replayed with the current batch.

    Equal numbers for each task, so that a replay of all tasks is one batched call. Everything is in the `state_dict`.

    Args:
        size: Samples `M` kept for each task (paper: 100, 1000).

    Raises:
        ValueError: If `size` < 1.

    Examples:
        >>> coreset = Coreset(size=2)
        >>> coreset.add_task(torch.arange(10.0)[:, None], torch.arange(10))
        >>> inputs, labels = coreset.sample(5)
        >>> inputs.shape, labels.shape
        (torch.Size([1, 5, 1]), torch.Size([1, 5]))
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = integer("size", size, 1)
        self.num_tasks = 0

    def add_task(self, *data: Tensor, generator: torch.Generator | None = None) -> None:
        """Keep `size` random samples of a task.

        Args:
            data: Tensors whose first dimension is the samples', as many of them for every task.
            generator: Source of the choice.

        Raises:
            TypeError: If one is no tensor, or has another dtype than for the tasks before.
            ValueError: If there is no tensor, lengths differ or are below `size`, or other tasks had other tensors.
        """
        for value in data:
            if not isinstance(value, Tensor) or value.ndim < 1:
                raise TypeError(
                    f"data must be tensors with a dimension of samples, got {type(value).__name__}"
                )
        lengths = {len(value) for value in data}
        if len(lengths) != 1 or min(lengths) < self.size:
            raise ValueError(
                f"data must be tensors of one length >= size={self.size}, got lengths {sorted(lengths)}"
            )
        kept = self._columns()
        if self.num_tasks and len(kept) != len(data):
            raise ValueError(f"data must be {len(kept)} tensors as for the tasks before, got {len(data)}")
        for old, value in zip(kept, data, strict=False):
            if old.dtype != value.dtype:
                raise TypeError(f"data must be {old.dtype} as for the tasks before, got {value.dtype}")
            if old.shape[2:] != value.shape[1:]:
                raise ValueError(
                    f"data must be (n, *{tuple(old.shape[2:])}) as for the tasks before, got {tuple(value.shape)}"
                )
        device = "cpu" if generator is None else generator.device
        chosen = torch.randperm(*lengths, generator=generator, device=device)[: self.size]
        rows = [value.detach()[chosen.to(value.device)].clone()[None] for value in data]
        if self.num_tasks:
            rows = [torch.cat([old, new]) for old, new in zip(kept, rows, strict=True)]
        for index, value in enumerate(rows):
            self.register_buffer(f"data_{index}", value)
        self.num_tasks += 1

    def sample(self, batch_size: int, generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
        """Draw samples of every old task, with replacement.

        Args:
            batch_size: Samples of each task.
            generator: Source of the draw.

        Returns:
            For each kept tensor: (tasks, batch_size, ...).

        Raises:
            ValueError: If no task was added, or `batch_size` < 1.
        """
        batch_size, columns = integer("batch_size", batch_size, 1), self._columns()
        if not self.num_tasks:
            raise ValueError("coreset has no task yet: call add_task first")
        device = columns[0].device if generator is None else generator.device
        index = torch.randint(self.size, (self.num_tasks, batch_size), generator=generator, device=device)
        tasks = torch.arange(self.num_tasks)[:, None]
        return tuple(value[tasks.to(value.device), index.to(value.device)] for value in columns)

    def all(self) -> tuple[Tensor, ...]:
        """Return everything that is kept, (tasks, size, ...) for each tensor; weigh it by `batch_size / size`."""
        return tuple(self._columns())

    @property
    def num_bytes(self) -> int:
        """Memory of the kept samples."""
        return sum(value.numel() * value.element_size() for value in self._columns())

    def _columns(self) -> list[Tensor]:
        return list(self._buffers.values())  # type: ignore[arg-type]

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        saved = {
            key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)
        }
        for name, value in saved.items():
            if value.shape[1] != self.size:
                raise ValueError(
                    f"state_dict was saved with size={value.shape[1]}, this has size={self.size}"
                )
            old = self._buffers.get(name)
            device = value.device if old is None else old.device
            self.register_buffer(name, torch.empty_like(value, device=device))
            self.num_tasks = value.shape[0]
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _trainable(module: nn.Module) -> dict[str, Tensor]:
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    found: dict[str, Tensor] = {
        name: value for name, value in module.named_parameters() if value.requires_grad
    }
    if not found:
        raise ValueError("module must have at least one trainable parameter, got none")
    return found


def _configuration(strength: float, named: Mapping[str, Tensor]) -> dict[str, Any]:
    return {
        "strength": strength,
        "parameters": [[name, list(value.shape)] for name, value in named.items()],
    }


def _flat(named: Mapping[str, Tensor]) -> Tensor:
    return torch.cat(
        [value.flatten().to(torch.promote_types(value.dtype, torch.float32)) for value in named.values()]
    )


def _checked(what: str, values: Mapping[str, Tensor], named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if unknown := sorted(set(values) - set(named)):
        raise ValueError(f"{what} must name parameters of the module, it has none called {unknown[0]!r}")
    found = {name: values.get(name, torch.zeros_like(value)) for name, value in named.items()}
    for name, value in found.items():
        if value.shape != named[name].shape:
            raise ValueError(f"{what}[{name!r}] must be {tuple(named[name].shape)}, got {tuple(value.shape)}")
        if not bool((torch.isfinite(value) & (value >= 0)).all()):
            raise ValueError(f"{what}[{name!r}] must be finite and >= 0")
    return found
