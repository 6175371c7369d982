"""The interval hypernetwork: from a box of embeddings to a box of weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperinterval.intervals import IntervalTensor, rounding_factor


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
        target_shapes: The target module, or the shape of each of its parameters by name.
        num_tasks: Number of tasks.
        embedding_dim: Dimension `d` of an embedding.
        hidden: Widths of the hidden layers.
        mode: `"nested"` or `"free"`.
        eps: Perturbation strength, the sum of an embedding's radii, > 0.
        generator: Source of the initial values: layers as in `torch.nn.Linear`, embeddings N(0, 1).
        device: Where the parameters live.
        dtype: Floating dtype of the parameters.

    Raises:
        ValueError: If a size is not positive, `eps <= 0`, `mode` is neither of the two, or there is no target.

    Example:
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
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if isinstance(target_shapes, nn.Module):
            target_shapes = {name: value.shape for name, value in target_shapes.named_parameters()}
        if not target_shapes:
            raise ValueError("target_shapes must name at least one parameter, got none")
        if num_tasks < 1 or embedding_dim < 1 or any(width < 1 for width in hidden):
            raise ValueError(
                "num_tasks, embedding_dim and every width of hidden must be >= 1, "
                f"got {num_tasks}, {embedding_dim} and {tuple(hidden)}"
            )
        if mode not in ("nested", "free"):
            raise ValueError(f"mode must be 'nested' or 'free', got {mode!r}")
        if not 0 < eps < math.inf:
            raise ValueError(f"eps must be > 0 and finite, got {eps}")
        self.target_shapes = {name: torch.Size(shape) for name, shape in target_shapes.items()}
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
        last = len(self.weights) - 1
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            margin = None
            if outward:
                # |W| times factor (|c| + r) is the rounding limit; adding it to the radius saves a product.
                terms = weight.shape[1]
                factor = rounding_factor(terms, center.dtype)
                radius = radius + factor * (center.abs() + radius)
                margin = factor * bias.abs() + 4 * terms * torch.finfo(center.dtype).tiny
            center, radius = _Products.apply(center, radius, weight, weight.abs())
            center = center + bias
            radius = radius if margin is None else radius + margin
            if index < last:
                lo, hi = torch.relu(center - radius), torch.relu(center + radius)
                center, radius = (lo + hi) * 0.5, (hi - lo) * 0.5
        return center, radius

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
        tasks = tuple(tasks)
        self._check_tasks(tasks)
        eps = self.eps if eps is None else eps
        if not isinstance(eps, Tensor) and not 0 <= eps < math.inf:
            raise ValueError(f"eps must be >= 0 and finite, got {eps}")
        embedding = torch.stack([self.embeddings[task] for task in tasks])
        if self.mode == "nested":
            center = torch.cos(embedding) * (eps / (2 * self.embedding_dim))
            return center, torch.ones_like(embedding) * (eps / self.embedding_dim)
        return embedding, torch.stack([self.raw_radii[task] for task in tasks]).softmax(dim=-1) * eps

    def start_task(self, task: int) -> None:
        """Prepare for a task: its embedding alone, and the layers, are to be trained.

        In nested mode the embedding starts as a copy of the previous task's. Make a new optimizer afterwards:
        the moments of the old one would still move frozen embeddings.

        Args:
            task: Number of the task.

        Raises:
            ValueError: If `task` is out of range.
        """
        self._check_tasks((task,))
        for group in (self.embeddings, self.raw_radii):
            for index, value in enumerate(group):
                _train(value, index == task)
        if self.mode == "nested" and task > 0:
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
        self._check_tasks((task,))
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

        It holds parameters alone: a target with buffers loads it with `strict=False`.

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
        with torch.no_grad():
            return self._split(self.flat_box(intersection.mid, spread)[0])

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

    def _check_tasks(self, tasks: tuple[int, ...]) -> None:
        for task in tasks:
            if not 0 <= task < self.num_tasks:
                raise ValueError(f"task must be in 0..{self.num_tasks - 1}, got {task}")
        if not tasks:
            raise ValueError("tasks must name at least one task, got none")

    def _started_tasks(self, tasks: Iterable[int] | None) -> tuple[int, ...]:
        started = self.started.tolist()
        if tasks is None:
            tasks = [task for task in range(self.num_tasks) if started[task]]
        chosen = tuple(tasks)
        if not chosen:
            raise ValueError(
                "tasks must name at least one task that was started, got none: call start_task first"
            )
        self._check_tasks(chosen)
        if missing := [task for task in chosen if not started[task]]:
            raise ValueError(f"tasks must have been started, but start_task was never called for {missing}")
        return chosen


def _train(value: Tensor, wanted: bool) -> None:
    value.requires_grad_(wanted)
    if not wanted:
        value.grad = None  # an optimizer would take a last step with it


class _Products(torch.autograd.Function):
    """`c W^T` and `r |W|^T`, with one gradient of `W` for the two.

    The last layer's matrix is by far the largest tensor of an iteration. Left to autograd, its gradient takes
    five temporaries of its size; here it takes two.
    """

    @staticmethod
    def forward(center: Tensor, radius: Tensor, weight: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        return F.linear(center, weight), F.linear(radius, size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad_center: Tensor, grad_radius: Tensor) -> tuple[Tensor | None, ...]:
        center, radius, weight, size = ctx.saved_tensors
        need_center, need_radius, need_weight, _ = ctx.needs_input_grad
        with torch.autocast(weight.device.type, enabled=False):
            grad_center, grad_radius = grad_center.to(weight.dtype), grad_radius.to(weight.dtype)
            grad_weight = None
            if need_weight:
                rows = [
                    value.reshape(-1, value.shape[-1]) for value in (grad_radius, radius, grad_center, center)
                ]
                grad_weight = (rows[0].mT @ rows[1]).mul_(weight.sign()).addmm_(rows[2].mT, rows[3])
            return (
                grad_center @ weight if need_center else None,
                grad_radius @ size if need_radius else None,
                grad_weight,
                None,
            )
