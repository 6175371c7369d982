"""The interval hypernetwork: from a box of embeddings to a box of weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hyperinterval.arguments import check_positive, scalar, several, whole_number
from hyperinterval.configuration import check_same, pack, unpack
from hyperinterval.gradients import TwoProducts
from hyperinterval.intervals import IntervalTensor
from hyperinterval.rounding import rounding_factor
from hyperinterval.shapes import shapes_of, shared_names


class IntervalHypernetwork(nn.Module):
    r"""An MLP that turns each task's box of embeddings into a box of target weights.

    Task `t` owns an embedding `e_t` of `d` numbers, and a box around it whose radii sum to `eps`
    (arXiv 2405.15444, section 3):

    * `mode="nested"`: centre `eps / (2d) cos(e_t)`, radius `eps / d`. All boxes overlap for any embeddings,
      so one universal embedding lies in all of them.
    * `mode="free"`: centre `e_t`, radius `eps softmax(p_t)` with a trained `p_t`; the task must be known.

    The box goes through the MLP by interval arithmetic: `c <- W c + b, r <- |W| r` in each layer, and ReLU of
    the two bounds between layers. The middle weights are the midpoint of the output box, not the output at
    the centre.

    Memory: the last layer holds `hidden[-1] * n` weights for a target of `n`, and as much again is used for
    their absolute values in each call.

    Args:
        target_shapes: The target module, or the shape of each of its parameters by name. Shared parameters of
            a module are made once. To leave some parameters of a module as they are, give the shapes of the rest.
        num_tasks: Number of tasks.
        embedding_dim: Dimension `d` of an embedding.
        hidden: Widths of the hidden layers.
        mode: `"nested"` or `"free"`.
        eps: Perturbation strength, the sum of an embedding's radii, > 0.
        init: How the last layer starts: `"linear"` as `torch.nn.Linear`, like the official code, or `"hyperfan"`
            (Chang et al., 2020), which gives the target's middle weights the variance that `torch.nn.Linear` would;
            take it for targets of several wide layers, whose outputs and bounds are far too wide otherwise.
        generator: Source of the initial values: layers as in `torch.nn.Linear`, embeddings N(0, 1).
        device: Where the parameters live.
        dtype: Floating dtype of the parameters.

    Raises:
        ValueError: If a size is not positive, `eps <= 0`, `mode` or `init` is neither of its two, or the target
            has no parameters or is partly frozen.
        TypeError: If a size is no integer, or the dtype not floating.

    Examples:
        >>> target = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> hyper = IntervalHypernetwork(target, num_tasks=3, eps=1.0, generator=torch.Generator().manual_seed(0))
        >>> boxes = hyper(task=0)
        >>> boxes["0.weight"].shape
        torch.Size([8, 4])
        >>> bool((boxes["0.weight"].rad > 0).all())
        True
    """

    started: Tensor

    def __init__(
        self,
        target_shapes: Mapping[str, Sequence[int]] | nn.Module,
        num_tasks: int,
        embedding_dim: int = 24,
        hidden: Sequence[int] = (100,),
        mode: Literal["nested", "free"] = "nested",
        eps: float = 5.0,
        *,
        init: Literal["linear", "hyperfan"] = "linear",
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self._shared: dict[str, str] = {}  # further names of a parameter, by name
        if isinstance(target_shapes, nn.Module):
            self._shared = shared_names(target_shapes)
            target_shapes = shapes_of(target_shapes)
        if not target_shapes:
            raise ValueError("target_shapes must name at least one parameter, got none")
        num_tasks, embedding_dim = (
            whole_number("num_tasks", num_tasks),
            whole_number("embedding_dim", embedding_dim),
        )
        hidden = tuple(whole_number("hidden", width) for width in several("hidden", hidden))
        shapes = {
            name: tuple(
                whole_number(f"target_shapes[{name!r}]", size)
                for size in several(f"target_shapes[{name!r}]", shape)
            )
            for name, shape in target_shapes.items()
        }
        if any(size < 0 for shape in shapes.values() for size in shape):
            raise ValueError(f"target_shapes must hold sizes >= 0, got {shapes}")
        if num_tasks < 1 or embedding_dim < 1 or any(width < 1 for width in hidden):
            raise ValueError(
                "num_tasks, embedding_dim and every width of hidden must be >= 1, "
                f"got {num_tasks}, {embedding_dim} and {hidden}"
            )
        if mode not in ("nested", "free"):
            raise ValueError(f"mode must be 'nested' or 'free', got {mode!r}")
        if init not in ("linear", "hyperfan"):
            raise ValueError(f"init must be 'linear' or 'hyperfan', got {init!r}")
        check_positive("eps", eps)
        if dtype is not None and not dtype.is_floating_point:
            raise TypeError(f"dtype must be a floating dtype, got {dtype}")
        self.target_shapes = {name: torch.Size(shape) for name, shape in shapes.items()}
        self.num_tasks, self.embedding_dim, self.mode, self.eps = num_tasks, embedding_dim, mode, float(eps)

        def uniform(*shape: int, bound: float) -> Tensor:
            empty = torch.empty(shape, device=device, dtype=dtype)
            return nn.init.uniform_(empty, -bound, bound, generator=generator)

        widths = list(pairwise([embedding_dim, *hidden, sum(self._sizes)]))
        self.weights = nn.ParameterList(
            uniform(after, before, bound=before**-0.5) for before, after in widths
        )
        self.biases = nn.ParameterList(uniform(after, bound=before**-0.5) for before, after in widths)
        self.embeddings = nn.ParameterList(
            nn.init.normal_(torch.empty(embedding_dim, device=device, dtype=dtype), generator=generator)
            for _ in range(num_tasks)
        )
        self.raw_radii = nn.ParameterList(
            torch.full((embedding_dim,), 1 / embedding_dim, device=device, dtype=dtype)
            for _ in range(num_tasks if mode == "free" else 0)
        )
        self.register_buffer("started", torch.zeros(num_tasks, dtype=torch.bool, device=device))
        if init == "hyperfan":
            self._start_like_linear_layers(generator)

    def forward(
        self, task: int, eps: float | Tensor | None = None, *, outward: bool = False
    ) -> dict[str, IntervalTensor]:
        """Return the weight box of a task, one `IntervalTensor` for each target parameter.

        Args:
            task: Number of the task.
            eps: Current perturbation strength, >= 0; `None` for the full one.
            outward: Widen the box by a proven limit of the rounding errors, see `box`.

        Returns:
            Boxes by parameter name, of the parameters' shapes.

        Raises:
            ValueError: If `task` is out of range or `eps` is negative.
        """
        center, radius = self.embedding_center_radius((task,), eps)
        return self.unflatten(*self.flat_box(center[0], radius[0], outward=outward))

    def box(self, center: Tensor, radius: Tensor, *, outward: bool = False) -> dict[str, IntervalTensor]:
        """Return the weight box of any box of embeddings.

        Args:
            center: Centres, (..., embedding_dim).
            radius: Radii, >= 0, of the same shape.
            outward: Widen the box so that it holds, in floating point as computed in float32 or float64, the
                weights of every embedding in the box and the plain box of every box inside it.

        Returns:
            Boxes by parameter name, (..., *parameter shape).

        Raises:
            ValueError: If the shapes are wrong, or a radius is negative or NaN.
        """
        if not (radius >= 0).all():
            raise ValueError(f"radius must be >= 0, its minimum is {radius.min().item():.3g}")
        return self.unflatten(*self.flat_box(center, radius, outward=outward))

    def unflatten(self, mid: Tensor, rad: Tensor) -> dict[str, IntervalTensor]:
        """Return flat midpoints and radii, (..., number of target weights) each, as boxes by parameter name."""
        lo, hi = self._split(mid - rad), self._split(mid + rad)
        return {name: IntervalTensor(lo[name], hi[name], validate=False) for name in lo}

    def flat_box(self, center: Tensor, radius: Tensor, *, outward: bool = False) -> tuple[Tensor, Tensor]:
        """Return the weight box of any box of embeddings as flat midpoints and radii.

        All rows go through the layers together; for `t` tasks the cost of the last layer, which dominates, is
        near that of one.

        Args:
            center: Centres, (..., embedding_dim).
            radius: Radii, >= 0, of the same shape. Their sign is not looked at, so as not to make a GPU wait.
            outward: As in `box`.

        Returns:
            Midpoints and radii, each (..., number of target weights), in the order of `target_shapes`.

        Raises:
            ValueError: If the shapes are wrong.
        """
        if center.shape != radius.shape or center.shape[-1:] != (self.embedding_dim,):
            raise ValueError(
                f"center and radius must both be (..., {self.embedding_dim}), "
                f"got {tuple(center.shape)} and {tuple(radius.shape)}"
            )
        for index in range(len(self.weights)):
            center, radius = self._layer(index, center, radius, outward)
        return center, radius

    def _layer(self, index: int, center: Tensor, radius: Tensor, outward: bool) -> tuple[Tensor, Tensor]:
        """Return the box after one layer, and after its ReLU if another follows."""
        weight, bias = self.weights[index], self.biases[index]
        margin = None
        if outward:
            # |W| times factor (|c| + r) is the rounding limit; adding it to the radius saves a product.
            terms = weight.shape[1]
            factor = rounding_factor(terms, center)
            radius = radius + factor * (center.abs() + radius)
            margin = factor * bias.abs() + 4 * terms * torch.finfo(center.dtype).tiny
        center, radius = TwoProducts.apply(center, radius, weight, weight.abs())
        center = center + bias
        radius = radius if margin is None else radius + margin
        if index + 1 == len(self.weights):
            return center, radius
        lo, hi = torch.relu(center - radius), torch.relu(center + radius)
        return (lo + hi) * 0.5, (hi - lo) * 0.5

    def embedding_box(self, task: int, eps: float | Tensor | None = None) -> IntervalTensor:
        """Return a task's box of embeddings, (embedding_dim,).

        Args:
            task: Number of the task.
            eps: Perturbation strength, >= 0; `None` for the full one.

        Raises:
            ValueError: If `task` is out of range or `eps` is negative.
        """
        (center,), (radius,) = self.embedding_center_radius((task,), eps)
        return IntervalTensor(center - radius, center + radius, center, validate=False)

    def embedding_center_radius(
        self, tasks: Iterable[int], eps: float | Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the centres and radii of several tasks' boxes of embeddings, (tasks, embedding_dim) each.

        Args:
            tasks: Numbers of the tasks.
            eps: Perturbation strength, >= 0; `None` for the full one.

        Raises:
            ValueError: If a task is out of range, there is none, or `eps` is negative.
        """
        tasks = self._numbers(tasks)
        eps = self.eps if eps is None else scalar("eps", eps)
        embedding = torch.stack([self.embeddings[task] for task in tasks])
        if self.mode == "nested":
            center = torch.cos(embedding) * (eps / (2 * self.embedding_dim))
            return center, torch.ones_like(embedding) * (eps / self.embedding_dim)
        return embedding, torch.stack([self.raw_radii[task] for task in tasks]).softmax(dim=-1) * eps

    def start_task(self, task: int) -> None:
        """Prepare for a task: its embedding alone, and the layers, are to be trained.

        In nested mode the embedding starts as a copy of the previous task's. A task that was started before goes
        on where it was, as after loading a checkpoint. Make a new optimizer afterwards: the moments of the old
        one would still move frozen embeddings.

        Args:
            task: Number of the task.

        Raises:
            ValueError: If `task` is out of range.
        """
        (task,) = self._numbers((task,))
        for group in (self.embeddings, self.raw_radii):
            for index, value in enumerate(group):
                _train(value, index == task)
        if self.mode == "nested" and task > 0 and not self.started[task]:
            with torch.no_grad():
                self.embeddings[task].copy_(self.embeddings[task - 1])
        self.started[task] = True

    def freeze(self, task: int) -> None:
        """Fix a task's embedding, once the task is learnt.

        Args:
            task: Number of the task.

        Raises:
            ValueError: If `task` is out of range.
        """
        (task,) = self._numbers((task,))
        for group in (self.embeddings, self.raw_radii):
            for value in group[task : task + 1]:
                _train(value, False)
        self.started[task] = True

    def intersection_box(self, tasks: Iterable[int] | None = None) -> IntervalTensor:
        """Return the box of the embeddings that lie in every task's box, (embedding_dim,).

        In nested mode it is never empty: its width is between `eps / d` and `2 eps / d`. In free mode the boxes
        may be disjoint in a coordinate; there both bounds become the average of the two.

        Args:
            tasks: Numbers of tasks that were started; `None` for all of those.

        Raises:
            ValueError: If there are no tasks, or one is out of range or not started.
        """
        chosen = self._started_tasks(tasks)
        center, radius = (value.detach() for value in self.embedding_center_radius(chosen))
        lo, hi = (center - radius).amax(dim=0), (center + radius).amin(dim=0)
        average = (lo + hi) / 2
        return IntervalTensor(
            torch.where(hi < lo, average, lo), torch.where(hi < lo, average, hi), average, validate=False
        )

    def universal(
        self,
        tasks: Iterable[int] | None = None,
        radius: Literal["intersection", "full", "point"] = "intersection",
    ) -> dict[str, Tensor]:
        """Return one set of target weights for all tasks, for `load_state_dict` (section 3, nested).

        It holds the target's parameters, shared ones under each of their names, and no buffers: a target that
        has buffers, such as those of batch normalisation, loads it with `strict=False` and keeps its own.

        With `u` the midpoint of the intersection of the tasks' boxes, the weights are

        * `"intersection"`: the midpoint of the weight box of the intersection. Interval arithmetic keeps
          inclusions, so it lies in every task's weight box, if the boxes intersect (always in nested mode).
        * `"full"`: the midpoint of the weight box of `u` with a task's full radius, as in the official code.
          Nothing proves that it lies in the tasks' boxes. (In free mode: the largest radius of the tasks.)
        * `"point"`: the output at `u`; in every task's weight box as in the first case.

        Args:
            tasks: Numbers of tasks that were started; `None` for all of those.
            radius: Which of the three.

        Returns:
            Detached weights by parameter name. They lie in `hyper(task, outward=True)` as computed.

        Raises:
            ValueError: If there are no tasks, one is out of range or not started, or `radius` is none of the three.
        """
        chosen = self._started_tasks(tasks)
        intersection = self.intersection_box(chosen)
        if radius == "intersection":
            spread = intersection.rad
        elif radius == "full":
            spread = self.embedding_center_radius(chosen)[1].detach().amax(dim=0)
        elif radius == "point":
            spread = torch.zeros_like(intersection.mid)
        else:
            raise ValueError(f"radius must be 'intersection', 'full' or 'point', got {radius!r}")
        device = intersection.lo.device.type
        with torch.no_grad(), torch.autocast(device, enabled=False):  # it would round them out of the boxes
            weights = self._split(self.flat_box(intersection.mid, spread)[0])
        return weights | {name: weights[first] for name, first in self._shared.items()}

    def get_extra_state(self) -> Tensor:
        """Return what decides the boxes besides the parameters, for `state_dict`; a tensor of bytes."""
        trained = [value.requires_grad for value in self.embeddings]
        return pack(self._configuration() | {"trained": trained})

    def set_extra_state(self, state: Any) -> None:
        """Take over which embeddings are frozen, for `load_state_dict`."""
        for task, trained in enumerate(unpack(state)["trained"]):
            for group in (self.embeddings, self.raw_radii):
                for value in group[task : task + 1]:
                    _train(value, trained)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        # Before anything is loaded: a state under another eps or mode would fit, and mean other boxes.
        if (state := state_dict.get(f"{prefix}_extra_state")) is not None:
            check_same(unpack(state), self._configuration())
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _configuration(self) -> dict[str, Any]:
        shapes = [
            [name, list(shape)] for name, shape in self.target_shapes.items()
        ]  # in the order of the output
        return {
            "mode": self.mode,
            "eps": self.eps,
            "num_tasks": self.num_tasks,
            "embedding_dim": self.embedding_dim,
            "target_shapes": shapes,
        }

    @torch.no_grad()
    def _start_like_linear_layers(self, generator: torch.Generator | None) -> None:
        """Draw the last layer anew, so that the middle weights have the variance of `torch.nn.Linear`'s."""
        center, radius = self.embedding_center_radius(range(self.num_tasks))
        for index in range(len(self.weights) - 1):
            center, radius = self._layer(index, center, radius, outward=False)
        inputs = center.square().sum(dim=-1).mean().clamp(min=torch.finfo(center.dtype).tiny)
        fan_in, last = 1, self.weights[-1]
        rows = last.split(self._sizes)
        for shape, part in zip(self.target_shapes.values(), rows, strict=True):
            if len(shape) > 1:  # a bias follows its weight and has the same bound
                fan_in = shape[1:].numel()
            part.uniform_(-1, 1, generator=generator).mul_((fan_in * inputs).rsqrt())
        self.biases[-1].zero_()

    @property
    def _sizes(self) -> list[int]:
        return [shape.numel() for shape in self.target_shapes.values()]

    def _split(self, flat: Tensor) -> dict[str, Tensor]:
        pieces = flat.split(self._sizes, dim=-1)
        shapes = self.target_shapes.items()
        return {
            name: piece.unflatten(-1, shape) if shape else piece.squeeze(-1)
            for (name, shape), piece in zip(shapes, pieces, strict=True)
        }

    def _numbers(self, tasks: Iterable[int]) -> tuple[int, ...]:
        chosen = tuple(whole_number("task", task) for task in several("tasks", tasks))
        for task in chosen:
            if not 0 <= task < self.num_tasks:
                raise ValueError(f"task must be in 0..{self.num_tasks - 1}, got {task}")
        if not chosen:
            raise ValueError("tasks must name at least one task, got none")
        return chosen

    def _started_tasks(self, tasks: Iterable[int] | None) -> tuple[int, ...]:
        started = self.started.tolist()
        if tasks is None:
            tasks = [task for task in range(self.num_tasks) if started[task]]
        chosen = several("tasks", tasks)
        if not chosen:
            raise ValueError(
                "tasks must name at least one task that was started, got none: call start_task first"
            )
        chosen = self._numbers(chosen)
        if missing := [task for task in chosen if not started[task]]:
            raise ValueError(f"tasks must have been started, but start_task was never called for {missing}")
        return chosen


def _train(value: Tensor, wanted: bool) -> None:
    value.requires_grad_(wanted)
    if not wanted:
        value.grad = None  # an optimizer would take a last step with it
