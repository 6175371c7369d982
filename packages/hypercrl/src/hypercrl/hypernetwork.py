"""Task-conditioned hypernetworks: from a task's embedding to all weights of a target module."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hypercrl._checks import check_same, choice, integer, pack, widths

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": F.elu,
    "relu": F.relu,
    "tanh": torch.tanh,
    "silu": F.silu,
    "gelu": F.gelu,
}
_CALIBRATION = 512  # embeddings drawn to measure the scale of the last hidden layer

Delta = Mapping[Tensor, Tensor]
Target = nn.Module | Mapping[str, Sequence[int] | Tensor]


def target_shapes(module: nn.Module, *, include_frozen: bool = False) -> OrderedDict[str, torch.Size]:
    """Return the shapes of the weights that a hypernetwork has to make for a module.

    Tied parameters stand under their first name only, as `torch.func.functional_call` expects them.

    Args:
        module: Any module.
        include_frozen: Name parameters without `requires_grad` too. By default they stay the module's own.

    Returns:
        Shape by parameter name, in the module's order.

    Raises:
        TypeError: If `module` is not a module or holds a parameter that is not of real floats.
        ValueError: If no parameter remains.

    Examples:
        >>> dict(target_shapes(nn.Linear(3, 2)))
        {'weight': torch.Size([2, 3]), 'bias': torch.Size([2])}
    """
    found = _parameters(module, include_frozen)
    return OrderedDict((name, value.shape) for name, value in found.items())


class HyperNetwork(nn.Module):
    r"""An MLP that generates all weights of a target module from a task's embedding.

    $$w_k = b + h_\theta(e_k)$$

    with one linear head for each target tensor (arXiv 2009.11997, section III; von Oswald et al., 2020). The heads are
    one matrix, so that the weights of several tasks come out of one call. `b` is a constant: zero for
    `init="xavier"`, as in the official code.

    Hand over a module and everything it needs is seen to: tied parameters are made once, frozen ones stay the module's
    own, buffers (running statistics of batch normalisation, masks) are kept apart for each task, and one-dimensional
    weights start at the module's values, so that a normalisation layer starts as one. `forward(task_id)` returns what
    `torch.func.functional_call(module, ..., inputs)` takes.

    Memory: `hidden[-1] * W` parameters for a target of `W` weights, and `W` for `b`.

    Args:
        target: The target module, or a shape (or a tensor: shape and initial value) for each weight by name.
        embedding_dim: Size of a task's embedding.
        hidden: Widths of the hidden layers, at least one.
        activation: `"elu"` (paper: pusher), `"relu"` (door, cheetah), `"tanh"`, `"silu"` or `"gelu"`.
        init: `"hyperfan"`: generated matrices and kernels have variance 1 / fan-in (Chang et al., 2020), vectors the
            target's own values, or zero. `"xavier"`: the official code. `"target"`: all weights start at the target's
            own values for every task, for a pretrained target.
        buffers: `"task"`: each task has its own copy of a target module's buffers, handed out with its weights.
            `"shared"`: they are left to the module, right if no forward pass changes them.
        generator: Source of the initial values.
        device: Where the parameters live; by default where the target's do.
        dtype: Floating dtype of the hypernetwork; by default the target's, but at least float32. Weights for targets
            of lower precision are cast to it.

    Raises:
        ValueError: If the target has no weights, a size is too small, or an option is unknown.
        TypeError: If a size is no integer, or a weight or `dtype` is not of real floats.

    Examples:
        >>> from torch.func import functional_call
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        >>> generator = torch.Generator().manual_seed(0)
        >>> hnet = HyperNetwork(model, generator=generator)
        >>> hnet.add_task(generator), hnet.add_task(generator)
        (0, 1)
        >>> functional_call(model, hnet(1), (torch.zeros(5, 4),)).shape
        torch.Size([5, 2])
    """

    base: Tensor

    def __init__(
        self,
        target: Target,
        embedding_dim: int = 10,
        hidden: Sequence[int] = (50, 50),
        activation: str = "elu",
        init: Literal["hyperfan", "xavier", "target"] = "hyperfan",
        *,
        buffers: Literal["task", "shared"] = "task",
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.embedding_dim = integer("embedding_dim", embedding_dim, 1)
        self.hidden = widths("hidden", hidden)
        if not self.hidden:
            raise ValueError("hidden must name at least one layer, got none")
        self.activation = choice("activation", activation, ACTIVATIONS)
        self.init = choice("init", init, ("hyperfan", "xavier", "target"))
        self.buffer_mode = choice("buffers", buffers, ("task", "shared"))
        with torch.inference_mode(False), torch.no_grad():
            initial, home = self._read(target, device, dtype, None if generator is None else generator.device)
            self._make_layers(initial, generator)  # where the generator is
            self.embeddings = nn.ParameterList()
            if home is not None:
                self.to(home)

    # --- what the target is ----------------------------------------------------------------------------

    def _read(
        self,
        target: Target,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        start: torch.device | None,
    ) -> tuple[dict[str, Tensor | None], torch.device | str | None]:
        """Note shapes, dtypes and buffers of the target; return its initial values where known, and the device."""
        initial: dict[str, Tensor | None]
        self._buffer_names: list[str] = []
        if isinstance(target, nn.Module):
            initial = {**_parameters(target, include_frozen=False)}
            if self.buffer_mode == "task":
                self._keep_buffers(target)
        elif isinstance(target, Mapping):
            initial = {
                str(name): value if isinstance(value, Tensor) else None for name, value in target.items()
            }
        else:
            raise TypeError(f"target must be a module or a mapping of shapes, got {type(target).__name__}")
        if not initial:
            raise ValueError("target must name at least one weight, got none")
        known = [value for value in initial.values() if value is not None]
        for name, value in initial.items():
            if value is not None and not value.is_floating_point():
                raise TypeError(f"target[{name!r}] must be of real floats, got {value.dtype}")
        if dtype is not None and not dtype.is_floating_point:
            raise TypeError(f"dtype must be a real floating dtype, got {dtype}")
        if dtype is None:
            dtype = torch.get_default_dtype()
            for value in known:
                dtype = torch.promote_types(dtype, value.dtype)
        if device is None and known:
            device = known[0].device
        self.shapes: OrderedDict[str, torch.Size] = OrderedDict(
            (name, _shape(name, target[name]) if value is None else value.shape)  # type: ignore[index]
            for name, value in initial.items()
        )
        self._casts = {
            name: value.dtype for name, value in initial.items() if value is not None and value.dtype != dtype
        }
        self.register_buffer("base", torch.zeros(self.num_weights, device=start or device, dtype=dtype))
        return initial, device

    def _keep_buffers(self, module: nn.Module) -> None:
        for index, (name, value) in enumerate(module.named_buffers()):
            self._buffer_names.append(name)
            self.register_buffer(f"buffer_initial_{index}", value.detach().clone())

    @property
    def num_weights(self) -> int:
        """Number of weights of the target, `W`."""
        return sum(shape.numel() for shape in self.shapes.values())

    @property
    def num_tasks(self) -> int:
        """Number of tasks so far."""
        return len(self.embeddings)

    # --- layers ----------------------------------------------------------------------------------------

    def _sizes(self) -> list[int]:
        """Widths from the input to the output of the MLP."""
        return [self.embedding_dim, *self.hidden, self.num_weights]

    def _make_layers(self, initial: dict[str, Tensor | None], generator: torch.Generator | None) -> None:
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for before, after in pairwise(self._sizes()):
            weight = self.base.new_empty(after, before)
            self.weights.append(nn.init.xavier_uniform_(weight, generator=generator))
            self.biases.append(self.base.new_zeros(after))
        self._make_heads(self._start_at(initial), generator)

    def _start_at(self, initial: dict[str, Tensor | None]) -> set[str]:
        """Let vectors, or all weights, start at the target's own values, and return their names."""
        if self.init == "xavier":
            return set()
        started = set()
        for (name, shape), part in zip(self.shapes.items(), self._rows(self.base), strict=True):
            value = initial[name]
            if value is None and self.init == "target":
                raise ValueError(
                    f"init='target' needs the value of {name!r}: hand over the module or its tensors"
                )
            if self.init == "target" or _is_vector(shape, value is not None):
                started.add(name)
                part.copy_(torch.zeros_like(part) if value is None else value.detach().flatten())
        return started

    def _make_heads(self, started: set[str], generator: torch.Generator | None) -> None:
        scale = self._head_scale(generator) if self.init == "hyperfan" else 0.0
        for (name, shape), rows in zip(self.shapes.items(), self._rows(self.weights[-1]), strict=True):
            if self.init == "xavier":
                nn.init.xavier_uniform_(rows, generator=generator)
            elif name in started:
                rows.zero_()
            else:
                rows.normal_(0, scale * _fan_in(shape) ** -0.5, generator=generator)

    def _rows(self, head: Tensor) -> tuple[Tensor, ...]:
        return head.split([shape.numel() for shape in self.shapes.values()])

    def _head_scale(self, generator: torch.Generator | None) -> float:
        """Return the head's standard deviation that makes outputs of unit variance for embeddings N(0, 1)."""
        draw = self.base.new_empty(_CALIBRATION, self.weights[0].shape[1]).normal_(generator=generator)
        squares = self._features(draw, [*self.weights, *self.biases]).square().sum(dim=1).mean()
        return float(squares.clamp(min=torch.finfo(draw.dtype).tiny).rsqrt())

    # --- tasks -----------------------------------------------------------------------------------------

    def add_task(self, generator: torch.Generator | None = None) -> int:
        """Add a task: an embedding drawn from N(0, 1), and fresh buffers.

        Args:
            generator: Source of the embedding.

        Returns:
            The task's id: 0, 1, 2, ...
        """
        with torch.inference_mode(False), torch.no_grad():
            device = self.base.device if generator is None else generator.device
            drawn = self.base.new_empty(self.embedding_dim, device=device).normal_(generator=generator)
            self._append_task(drawn.to(self.base.device))
        return self.num_tasks - 1

    def _append_task(self, embedding: Tensor) -> None:
        task_id = self.num_tasks
        self.embeddings.append(nn.Parameter(embedding))
        for index in range(len(self._buffer_names)):
            fresh = getattr(self, f"buffer_initial_{index}").clone()
            self.register_buffer(f"buffer_{task_id}_{index}", fresh)

    def embedding(self, task_id: int) -> nn.Parameter:
        """Return a task's embedding, (embedding_dim,), to be given to an optimizer of its own.

        Raises:
            ValueError: If there is no such task.
        """
        return self.embeddings[self._task(task_id)]

    def theta(self) -> list[nn.Parameter]:
        """Return all trained parameters but the tasks' embeddings."""
        return [*self.weights, *self.biases]

    def buffers_of(self, task_id: int) -> dict[str, Tensor]:
        """Return a task's own buffers by the target's names. They are no copies: a forward pass updates them in place.

        A module that sets a buffer anew instead leaves it in the mapping that `functional_call` was given:
        `continual_step` puts it back, and `store_buffers` does so in a loop of your own.

        Raises:
            ValueError: If there is no such task.
        """
        task_id = self._task(task_id)
        return {name: getattr(self, f"buffer_{task_id}_{i}") for i, name in enumerate(self._buffer_names)}

    @torch.no_grad()
    def store_buffers(self, task_id: int, weights: Mapping[str, Tensor]) -> None:
        """Keep a task's buffers that a forward pass set anew.

        Args:
            task_id: The task.
            weights: What was handed to `functional_call`, after the call.

        Raises:
            ValueError: If there is no such task, or a buffer's shape has changed.
        """
        for name, buffer in self.buffers_of(task_id).items():
            found = weights.get(name, buffer)
            if found.shape != buffer.shape:
                raise ValueError(
                    f"weights[{name!r}] must stay {tuple(buffer.shape)}, it has become {tuple(found.shape)}"
                )
            if found is not buffer:
                buffer.copy_(found)

    def _task(self, task_id: int | Tensor) -> int:
        found = integer("task_id", task_id, 0)
        if found >= self.num_tasks:
            raise ValueError(f"task_id must be one of the {self.num_tasks} tasks added so far, got {found}")
        return found

    # --- generation ------------------------------------------------------------------------------------

    def forward(self, task: int | Tensor, delta: Delta | None = None) -> dict[str, Tensor]:
        """Generate the weights of a task.

        Args:
            task: Id of a task, or embeddings (..., embedding_dim) of your own; buffers come with ids only.
            delta: Added to the parameters that it names (`theta()` or embeddings), as `lookahead_delta` returns it.

        Returns:
            Weights by name, (..., *shape), then the task's buffers.

        Raises:
            TypeError: If `task` is neither an integer nor real floats.
            ValueError: If the task is unknown or an embedding has another size.
        """
        # One number of an integer dtype is an id; all else that is a tensor must be embeddings.
        if isinstance(task, Tensor) and (task.ndim > 0 or task.dtype.is_floating_point or task.is_complex()):
            return self.unflatten(self.forward_flat(task, delta))
        task_id = self._task(task)
        embedding = self.embedding(task_id)
        if delta and embedding in delta:
            embedding = embedding + delta[embedding]  # type: ignore[assignment]
        return self.unflatten(self.forward_flat(embedding, delta)) | self.buffers_of(task_id)

    def forward_flat(self, embeddings: Tensor, delta: Delta | None = None) -> Tensor:
        """Generate the weights of many embeddings in one call, as `OutputRegularizer` does.

        Args:
            embeddings: (..., embedding_dim).
            delta: As in `forward`.

        Returns:
            All weights in the order of `shapes`, (..., num_weights), in the hypernetwork's dtype.

        Raises:
            TypeError: If the embeddings are no tensor of real floats.
            ValueError: If they have another size.
        """
        if not isinstance(embeddings, Tensor) or not embeddings.is_floating_point():
            got = embeddings.dtype if isinstance(embeddings, Tensor) else type(embeddings).__name__
            raise TypeError(f"embeddings must be a tensor of real floats, got {got}")
        if embeddings.shape[-1:] != (self.embedding_dim,):
            raise ValueError(f"embeddings must be (..., {self.embedding_dim}), got {tuple(embeddings.shape)}")
        parameters: list[Tensor] = [*self.theta()]
        if delta:
            parameters = [value + delta[value] if value in delta else value for value in parameters]
        return self.generate(embeddings, parameters)

    def generate(self, embeddings: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """Generate with given `theta`, in the order of `theta()`: the pure function behind `forward_flat`."""
        # Weights are generated in full precision: autocast would round them, and the regulariser's differences.
        with torch.autocast(self.base.device.type, enabled=False):
            # A copy, since the optimizer steps embeddings while their graph is still needed.
            return self.base + self._generate(embeddings.to(self.base.dtype).clone(), parameters)

    def _generate(self, embeddings: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        layers = len(self.weights)
        return F.linear(
            self._features(embeddings, parameters), parameters[layers - 1], parameters[2 * layers - 1]
        )

    def _features(self, value: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """Return the last hidden layer."""
        layers, activation = len(self.weights), ACTIVATIONS[self.activation]
        for weight, bias in zip(parameters[: layers - 1], parameters[layers : 2 * layers - 1], strict=True):
            value = activation(F.linear(value, weight, bias))
        return value

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        """Cut flat weights, (..., num_weights), into tensors of the target's names, shapes and dtypes."""
        pieces = flat.split([shape.numel() for shape in self.shapes.values()], dim=-1)
        return {
            name: piece.reshape(flat.shape[:-1] + shape).to(self._casts.get(name, flat.dtype))
            for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)
        }

    # --- saving ----------------------------------------------------------------------------------------

    def _configuration(self) -> dict[str, Any]:
        return {
            "class": type(self).__name__,
            "shapes": [[name, list(shape)] for name, shape in self.shapes.items()],
            "embedding_dim": self.embedding_dim,
            "hidden": list(self.hidden),
            "activation": self.activation,
            "buffers": [self.buffer_mode, self._buffer_names],
            "casts": {name: str(dtype) for name, dtype in self._casts.items()},
        }

    def get_extra_state(self) -> Tensor:
        """Return what decides the generated weights besides the parameters, as a tensor."""
        return pack(self._configuration())

    def set_extra_state(self, state: Any) -> None:
        """Refuse the state of another configuration."""
        check_same(type(self).__name__, state, self._configuration())

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        # Before anything is loaded: refuse another configuration, and add the tasks that the state has.
        if (state := state_dict.get(f"{prefix}_extra_state")) is not None:
            self.set_extra_state(state)
        saved = sum(key.startswith(f"{prefix}embeddings.") for key in state_dict)
        if saved < self.num_tasks:
            raise ValueError(
                f"state_dict has {saved} tasks, this hypernetwork has {self.num_tasks}: load it earlier"
            )
        while self.num_tasks < saved:
            self._append_task(self.base.new_zeros(self.embedding_dim))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class ChunkedHyperNetwork(HyperNetwork):
    r"""A small hypernetwork that generates the target's weights chunk by chunk, all chunks in one call.

    $$w_k = b + s \odot [h_\theta(e_k, c_1), ..., h_\theta(e_k, c_J)]_{1..W}, \quad J = \lceil W / C \rceil$$

    with learned chunk embeddings `c_j ~ N(0, 1)` that belong to `theta` (arXiv 2009.11997, section III-C). It has far
    fewer parameters than `HyperNetwork`, often fewer than the target. `s` is one, or for `init="hyperfan"` the standard
    deviation `1 / sqrt(fan-in)` of each weight, since one chunk runs over several tensors.

    Values of the official code for `hidden`, `chunk_size`, `chunk_embedding_dim`: (20, 20), 2000, 20 for a target of
    two layers of 200; (5, 5), 12000, 40 for two of 256; (25, 30), 4000, 20 for four of 200.

    Args:
        target: As for `HyperNetwork`.
        chunk_size: Number of weights `C` of a chunk.
        chunk_embedding_dim: Size of a chunk's embedding.
        embedding_dim: Size of a task's embedding.
        hidden: Widths of the hidden layers, at least one.
        activation: As for `HyperNetwork`.
        init: As for `HyperNetwork`; `"target"` starts all tasks at the target's values.
        buffers: As for `HyperNetwork`.
        generator: Source of the initial values.
        device: As for `HyperNetwork`.
        dtype: As for `HyperNetwork`.

    Raises:
        ValueError: As for `HyperNetwork`.
        TypeError: As for `HyperNetwork`.

    Examples:
        >>> hnet = ChunkedHyperNetwork({"weight": (30, 20), "bias": (30,)}, chunk_size=100, hidden=(5,))
        >>> task_id = hnet.add_task()
        >>> hnet(task_id)["weight"].shape, hnet.num_chunks
        (torch.Size([30, 20]), 7)
    """

    scale: Tensor

    def __init__(
        self,
        target: Target,
        chunk_size: int = 2000,
        chunk_embedding_dim: int = 20,
        embedding_dim: int = 10,
        hidden: Sequence[int] = (20, 20),
        activation: str = "elu",
        init: Literal["hyperfan", "xavier", "target"] = "hyperfan",
        *,
        buffers: Literal["task", "shared"] = "task",
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        # Set first, since the constructor of HyperNetwork makes the layers.
        self.chunk_size = integer("chunk_size", chunk_size, 1)
        self.chunk_embedding_dim = integer("chunk_embedding_dim", chunk_embedding_dim, 1)
        options: dict[str, Any] = {
            "buffers": buffers,
            "generator": generator,
            "device": device,
            "dtype": dtype,
        }
        super().__init__(target, embedding_dim, hidden, activation, init, **options)

    @property
    def num_chunks(self) -> int:
        """Number of chunks, `J`; the last is cut."""
        return -(-self.num_weights // self.chunk_size)

    def _sizes(self) -> list[int]:
        return [self.embedding_dim + self.chunk_embedding_dim, *self.hidden, self.chunk_size]

    def _make_heads(self, started: set[str], generator: torch.Generator | None) -> None:
        chunks = self.base.new_empty(self.num_chunks, self.chunk_embedding_dim).normal_(generator=generator)
        self.chunk_embeddings = nn.Parameter(chunks)
        self.register_buffer("scale", torch.ones_like(self.base))
        if self.init == "hyperfan":
            self.weights[-1].normal_(0, self._head_scale(generator), generator=generator)
            for (name, shape), part in zip(self.shapes.items(), self._rows(self.scale), strict=True):
                # A vector starts near the target's value: the noise of its chunk cannot be left out.
                part.fill_(0.1 if name in started else _fan_in(shape) ** -0.5)
        elif self.init == "target":
            self.weights[-1].zero_()

    def theta(self) -> list[nn.Parameter]:
        """Return all trained parameters but the tasks' embeddings, the chunk embeddings last."""
        return [*self.weights, *self.biases, self.chunk_embeddings]

    def _generate(self, embeddings: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        *layers, chunks = parameters
        batch = embeddings.shape[:-1]
        inputs = torch.cat(
            [
                embeddings.unsqueeze(-2).expand(*batch, self.num_chunks, self.embedding_dim),
                chunks.expand(*batch, *chunks.shape),
            ],
            dim=-1,
        )
        return self.scale * super()._generate(inputs, layers).flatten(-2)[..., : self.num_weights]

    def _configuration(self) -> dict[str, Any]:
        sizes = {"chunk_size": self.chunk_size, "chunk_embedding_dim": self.chunk_embedding_dim}
        return super()._configuration() | sizes


def _parameters(module: nn.Module, include_frozen: bool) -> dict[str, Tensor]:
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    named = dict(module.named_parameters())
    found: dict[str, Tensor] = {
        name: value for name, value in named.items() if include_frozen or value.requires_grad
    }
    for name, value in found.items():
        if isinstance(value, nn.parameter.UninitializedParameter):
            raise ValueError(f"module has the lazy parameter {name!r}: run it once before")
        if not value.is_floating_point():
            raise TypeError(f"module's parameter {name!r} must be of real floats, got {value.dtype}")
    if not found:
        frozen = (
            f" (all {len(named)} are frozen; pass target_shapes(module, include_frozen=True))"
            if named
            else ""
        )
        raise ValueError(f"module must have at least one trainable parameter, got none{frozen}")
    return found


def _shape(name: str, value: Any) -> torch.Size:
    if isinstance(value, (str, int)):
        raise TypeError(f"target[{name!r}] must be a shape, got {value!r}")
    return torch.Size(integer(f"target[{name!r}]", size, 0) for size in value)


def _is_vector(shape: torch.Size, known: bool) -> bool:
    """Say whether a weight is a bias or a scale: (n,), with weight normalisation (n, 1), for images (1, n, 1, 1)."""
    if len(shape) < 2:
        return True
    return known and (shape[1:].numel() == 1 or (len(shape) > 2 and max(shape) == shape.numel()))


def _fan_in(shape: torch.Size) -> int:
    return max(shape[1:].numel(), 1)
