"""The gradient of a continual learner, taken apart into what learns and what keeps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

_Scaled = tuple[Tensor, list[Tensor]]


@dataclass(frozen=True)
class GradSplit:
    """What `split_gradients` found; every value is a scalar tensor on the parameters' device.

    Args:
        norm: L2 norm of each part's gradient.
        cosine: Cosine of the angle between two parts, for each pair in the order given; NaN where one is zero.
        share: <g_part, g> / ||g||^2 with g the sum of all parts; they sum to 1, and are NaN where g is zero.
        total_norm: L2 norm of the sum.
        grads: For each part its gradients in the order of the parameters, if they were kept.
    """

    norm: dict[str, Tensor]
    cosine: dict[tuple[str, str], Tensor]
    share: dict[str, Tensor]
    total_norm: Tensor
    grads: dict[str, list[Tensor]] | None = None


def split_gradients(
    losses: Mapping[str, Tensor],
    params: Iterable[Tensor],
    *,
    retain_graph: bool = True,
    keep_grads: bool = False,
) -> GradSplit:
    """Take the gradient of each part of a loss, and compare them (section 5 of the paper).

    With L = L_plast + L_stab, g_plast = grad L_plast and g_stab = grad L_stab over the shared parameters. The parts
    include their weights, as a * CE(new batch) and (1 - a) * CE(memory). `.grad` is not touched. Cost: one
    backward pass a part, and memory for twice all their gradients and their sum. Complex parameters count as pairs of
    real ones.

    Args:
        losses: Scalar losses by name. With a `GradScaler` these are the losses before `scaler.scale`.
        params: The parameters; those that a part does not reach count as zero.
        retain_graph: Keep the graph for the `backward` that follows.
        keep_grads: Return the gradients too.

    Returns:
        Norms, cosines and shares, in float32 at least, without waiting for the device.

    Raises:
        ValueError: If there are no losses or parameters, a loss is no scalar or has no gradient, or a parameter
            does not require one.

    Examples:
        >>> weight = torch.ones(2, requires_grad=True)
        >>> parts = {"plasticity": 3 * weight[0], "stability": 4 * weight[1]}
        >>> split = split_gradients(parts, [weight])
        >>> split.norm["plasticity"].item(), split.norm["stability"].item(), split.total_norm.item()
        (3.0, 4.0, 5.0)
        >>> round(split.share["stability"].item(), 2)
        0.64
    """
    params = [params] if isinstance(params, Tensor) else list(params)
    _check(losses, params)
    names = list(losses)
    grads = {name: _gradients(losses[name], params, retain_graph or name != names[-1]) for name in names}
    parts = {name: _wide(grads[name]) for name in names}
    scaled = {name: _scaled(parts[name]) for name in names}
    # The sum itself: from the inner products of its parts nothing is left of it where they cancel.
    total = _scaled([sum(summands[1:], summands[0]) for summands in zip(*parts.values(), strict=True)])
    length = {name: _length(part) for name, part in scaled.items()}
    total_length = _length(total)
    return GradSplit(
        norm={name: scale * length[name] for name, (scale, _) in scaled.items()},
        cosine={
            (first, second): _inner(scaled[first], scaled[second]) / (length[first] * length[second])
            for first, second in combinations(names, 2)
        },
        share={
            name: part[0] / total[0] * _inner(part, total) / total_length.square()
            for name, part in scaled.items()
        },
        total_norm=total[0] * total_length,
        grads=grads if keep_grads else None,
    )


def gem_project(g: Tensor, memory: Tensor, gamma: float = 0.5, *, ridge: float = 1e-3) -> Tensor:
    """Project a gradient so that no memory's loss rises to first order (GEM, Lopez-Paz and Ranzato 2017, eq. 11).

    With M the memory gradients and P = M M^T + ridge * s * I: solve min_v v^T P v / 2 + (M g)^T v subject
    to v >= gamma, and return g + M^T v; g itself if no <g, g_i> is negative. s is the mean squared norm of the rows,
    so that the ridge is the official one for gradients of norm 1 and the result does not depend on their
    scale. The stability part of the gradient is the result minus g.

    Args:
        g: (P,) gradient of the new task.
        memory: (T, P) gradients of the memories.
        gamma: Memory strength, the least of each v.
        ridge: Regularisation of the dual, relative to s. Constraints hold up to `ridge * s * v`.

    Returns:
        (P,) the projected gradient, in the dtype and on the device of `g`. The dual is solved in float64 on the CPU.

    Raises:
        ValueError: If shapes do not match, numbers are not finite, or `gamma` or `ridge` is negative.

    Examples:
        >>> g, memory = torch.tensor([1.0, -1.0]), torch.tensor([[0.0, 1.0]])
        >>> gem_project(g, memory, gamma=0.0, ridge=0.0)
        tensor([1., 0.])
    """
    if g.ndim != 1 or memory.ndim != 2 or memory.shape[1] != g.shape[0]:
        raise ValueError(
            f"memory must have shape (tasks, {g.numel()}) for g of shape {tuple(g.shape)}, got {tuple(memory.shape)}"
        )
    for name, value in (("gamma", gamma), ("ridge", ridge)):
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name} must be finite and at least 0, got {value}")
    # Normed first: squares of very small or large gradients leave the range of float32.
    exact, rows = g.detach().double(), memory.detach().double()
    scale = max(float(exact.abs().amax()), float(rows.abs().amax())) if memory.numel() else 1.0
    if not scale < float("inf"):
        raise ValueError("g and memory must be finite")
    if len(memory) == 0 or scale == 0:
        return g
    exact, rows = exact / scale, rows / scale
    dots = (rows @ exact).cpu()
    if bool((dots >= 0).all()):
        return g
    gram = (rows @ rows.T).cpu()
    gram += ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    dual = gamma + _least_non_negative(gram, dots + gamma * gram.sum(1))
    return ((exact + rows.T @ dual.to(rows.device)) * scale).to(g.dtype)


def _check(losses: Mapping[str, Tensor], params: list[Tensor]) -> None:
    if not losses:
        raise ValueError("losses must name at least one part, got none")
    if not params:
        raise ValueError("params must hold at least one parameter, got none")
    for name, loss in losses.items():
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise ValueError(f"losses[{name!r}] must be a scalar tensor with a gradient, got {loss!r}")
    for number, param in enumerate(params):
        if not param.requires_grad:
            raise ValueError(
                f"params must require gradients, number {number} of shape {tuple(param.shape)} does not"
            )


def _gradients(loss: Tensor, params: list[Tensor], retain_graph: bool) -> list[Tensor]:
    grads = torch.autograd.grad(loss, params, retain_graph=retain_graph, allow_unused=True)
    return [
        torch.zeros_like(param) if grad is None else grad.to_dense() if grad.is_sparse else grad
        for grad, param in zip(grads, params, strict=True)
    ]


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype of a tensor, float32 if it is of fewer digits."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _wide(grads: list[Tensor]) -> list[Tensor]:
    """Gradients in float32 at least, complex ones as pairs of numbers."""
    wide = [grad.to(wide_dtype(grad)) for grad in grads]
    return [torch.view_as_real(grad.resolve_conj()) if grad.is_complex() else grad for grad in wide]


def _scaled(grads: list[Tensor]) -> _Scaled:
    """The largest entry of a gradient (1 where it is none), and the gradient divided by it, to be squared safely."""
    filled = [grad for grad in grads if grad.numel()] or [grads[0].new_zeros(1)]
    sizes = [torch.linalg.vector_norm(grad, torch.inf).to(grads[0].device) for grad in filled]
    largest = torch.stack(sizes).max()
    scale = torch.where(torch.isfinite(largest) & (largest > 0), largest, 1)
    return scale, [grad / scale.to(grad.device) for grad in grads]


def _length(part: _Scaled) -> Tensor:
    """L2 norm of a scaled gradient."""
    scale, grads = part
    return torch.stack([norm.to(scale.device) for norm in torch._foreach_norm(grads)]).norm()


def _inner(first: _Scaled, second: _Scaled) -> Tensor:
    """Inner product of two scaled gradients, without flattening them into one vector each."""
    products = torch._foreach_mul(first[1], second[1])
    return torch.stack([product.sum().to(first[0].device) for product in products]).sum()


def _least_non_negative(gram: Tensor, linear: Tensor) -> Tensor:
    """Minimise u^T G u / 2 + b^T u over u >= 0 for a small G, by the active set of Lawson and Hanson (1974)."""
    size = len(linear)
    solution, free = torch.zeros_like(linear), torch.zeros(size, dtype=torch.bool)
    tolerance = 1e-12 * float(linear.abs().max())
    for _ in range(10 * size):
        slope = torch.where(free, torch.inf, gram @ solution + linear)
        if float(slope.min()) >= -tolerance:
            break
        free[slope.argmin()] = True
        while True:
            wanted = torch.zeros_like(solution)
            wanted[free] = torch.linalg.lstsq(gram[free][:, free], -linear[free, None]).solution[:, 0]
            if bool((wanted[free] > 0).all()):
                break
            blocking = free & (wanted <= 0)
            steps = torch.where(blocking, solution / (solution - wanted), torch.inf)
            solution = solution + float(steps.min()) * (wanted - solution)
            free &= ~(steps == steps.min()) & (solution > 0)
            solution = torch.where(free, solution, 0)
            if not bool(free.any()):
                wanted = solution
                break
        solution = wanted
    return solution
