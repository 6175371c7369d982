"""Why a PINN fails: n-width of the solution set, Hessian spectrum and shape of the loss landscape."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from lpinn.checks import count, finite_number

Module = TypeVar("Module", bound=nn.Module)
Loss = Callable[[Module], Tensor]


class NWidth(NamedTuple):
    """Singular value decay of a snapshot matrix.

    Attributes:
        singular_values: Descending, shape `(min(N, M),)`.
        energy: Share of `sum sigma_k^2` in the first `k` values, same shape.
        rank: The fewest modes that hold the asked share.
    """

    singular_values: Tensor
    energy: Tensor
    rank: int


class HessianTop(NamedTuple):
    """Leading eigenpairs of a loss Hessian.

    Attributes:
        values: Eigenvalues, largest magnitude first, shape `(k,)`.
        vectors: Unit eigenvectors in the order of the trainable `parameters()`, flattened, shape `(k, n)`.
    """

    values: Tensor
    vectors: Tensor


class Landscape(NamedTuple):
    """A loss on a plane through the current parameters.

    Attributes:
        offsets: Step sizes along each direction, shape `(n,)`.
        values: `L(theta + a_i v1 + a_j v2)`, shape `(n, n)`.
    """

    offsets: Tensor
    values: Tensor


def n_width(snapshots: Tensor, energy: float = 0.999) -> NWidth:
    """Proxy of the Kolmogorov n-width: singular values of a snapshot matrix (paper, section 2).

    A travelling front needs many modes in the fixed frame; along characteristics pure convection has rank 1
    (`u`) and rank 2 (`x`).

    Args:
        snapshots: One column per time, shape `(N, M)`; stack positions and states, `cat([x, u])`, for the
            Lagrangian pair.
        energy: Share of squared singular values that `rank` must reach, in `(0, 1]`.

    Returns:
        Singular values, cumulative energy and rank.

    Raises:
        ValueError: If `snapshots` is not a finite non-empty matrix or `energy` is out of range.

    Examples:
        >>> import torch
        >>> from lpinn import n_width
        >>> x, t = torch.linspace(0, 6.28, 200)[:, None], torch.linspace(0, 1, 50)
        >>> n_width(torch.exp(-50 * (x - 1 - 4 * t) ** 2)).rank > 10
        True
    """
    if snapshots.ndim != 2 or snapshots.numel() == 0 or not snapshots.isfinite().all():
        raise ValueError(f"snapshots must be a finite non-empty matrix, got shape {tuple(snapshots.shape)}")
    if not 0 < energy <= 1:
        raise ValueError(f"energy must be in (0, 1], got {energy!r}")
    exact = torch.complex128 if snapshots.is_complex() else torch.float64
    values = torch.linalg.svdvals(snapshots.detach().to(exact))
    # A matrix of zeros is described by no mode: any share is reached by the first. Squares of the ratios: those of
    # the values leave the range of floats at 1e-162 and 1e+154.
    squares = (values / values[0]).square().cumsum(0) if values[0] > 0 else torch.ones_like(values)
    share = squares / squares[-1]
    # Rounding may leave the last cumulative share a hair below the total.
    rank = int((share < energy * (1 - 1e-12)).sum()) + 1
    return NWidth(values, share, rank)


def hessian_top(
    loss_fn: Loss[Module],
    module: Module,
    k: int = 2,
    num_iterations: int = 40,
    generator: torch.Generator | None = None,
) -> HessianTop:
    """Leading eigenpairs of the Hessian of a loss in a module's parameters (paper, section 4.4).

    Lanczos iteration with full reorthogonalisation on Hessian-vector products, each a forward derivative of the
    gradient (`torch.func`). Memory: `num_iterations` copies of the parameters.

    Args:
        loss_fn: Loss of the module, e.g. `lambda net: lpinn_loss(net, pde, x0, t)`; deterministic.
        module: The module; its parameters are not changed, and frozen ones do not count.
        k: Number of eigenpairs.
        num_iterations: Lanczos steps, at least `k`; as many as parameters make the answer exact.
        generator: Source of the start vector.

    Returns:
        Eigenvalues and eigenvectors.

    Raises:
        ValueError: If `k` or `num_iterations` is out of range, or the Hessian is not finite.

    Examples:
        >>> import torch
        >>> from lpinn import hessian_top
        >>> module = torch.nn.Linear(3, 1, bias=False)
        >>> loss = lambda module: (torch.tensor([1.0, 2.0, 5.0]) * module.weight ** 2).sum()
        >>> hessian_top(loss, module, k=2).values.round(decimals=3)
        tensor([10.,  4.])
    """
    point, function = _flat_loss(loss_fn, module)
    size = point.numel()
    k, num_iterations = count("k", k), count("num_iterations", num_iterations)
    if k > size:
        raise ValueError(f"k must be between 1 and the number of parameters ({size}), got {k!r}")
    if num_iterations < k:
        raise ValueError(f"num_iterations must be at least k={k}, got {num_iterations!r}")

    def product(vector: Tensor) -> Tensor:
        return jvp(grad(function), (point,), (vector,))[1]

    basis, projected = _lanczos(product, point, min(num_iterations, size), generator)
    if not projected.isfinite().all():
        raise ValueError(
            "loss_fn must have a finite Hessian at the module's parameters, got NaN or infinite values"
        )
    values, coefficients = torch.linalg.eigh(projected)
    order = values.abs().argsort(descending=True)[:k]
    return HessianTop(values[order].to(point), (coefficients[:, order].T.to(point)) @ basis)


def loss_landscape(
    loss_fn: Loss[Module],
    module: Module,
    directions: Tensor,
    span: float = 1.0,
    n: int = 21,
    chunk_size: int = 16,
) -> Landscape:
    """The loss on the plane of two parameter directions around the current point (paper, section 4.4).

    Args:
        loss_fn: Loss of the module, as in `hessian_top`.
        module: The module; its parameters are not changed.
        directions: Two directions, shape `(2, parameters)`, e.g. `hessian_top(...).vectors`.
        span: Largest offset along each direction.
        n: Points per direction; odd numbers include the current point.
        chunk_size: Parameter sets evaluated at once: memory grows with it.

    Returns:
        Offsets and losses.

    Raises:
        ValueError: If a shape or size is wrong.
    """
    point, function = _flat_loss(loss_fn, module)
    if directions.shape != (2, point.numel()):
        raise ValueError(f"directions must have shape (2, {point.numel()}), got {tuple(directions.shape)}")
    n, chunk_size = count("n", n), count("chunk_size", chunk_size)
    if not finite_number("span", span) > 0:
        raise ValueError(f"span must be positive, got {span!r}")
    offsets = torch.linspace(-span, span, n, dtype=point.dtype, device=point.device)
    grid = torch.cartesian_prod(offsets, offsets)
    with torch.no_grad():
        losses = vmap(lambda offset: function(point + offset @ directions), chunk_size=chunk_size)(grid)
    return Landscape(offsets, losses.reshape(n, n))


class _LossOf(nn.Module):
    """A loss as a module, so that `functional_call` can swap the parameters under any loss function."""

    def __init__(self, loss_fn: Loss[Module], module: Module) -> None:
        super().__init__()
        self.loss_fn, self.module = loss_fn, module

    def forward(self) -> Tensor:
        return self.loss_fn(self.module)


def _flat_loss(loss_fn: Loss[Module], module: Module) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    wrapped = _LossOf(loss_fn, module)
    parameters = {name: value for name, value in wrapped.named_parameters() if value.requires_grad}
    if not parameters:
        raise ValueError("module must have trainable parameters, got none")
    sizes = [parameter.numel() for parameter in parameters.values()]

    def function(point: Tensor) -> Tensor:
        parts = zip(parameters.items(), point.split(sizes), strict=True)
        return functional_call(
            wrapped, {name: part.view_as(parameter) for (name, parameter), part in parts}, ()
        )

    return torch.cat([parameter.detach().flatten() for parameter in parameters.values()]), function


def _lanczos(
    product: Callable[[Tensor], Tensor], like: Tensor, num_steps: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """An orthonormal Krylov basis `(steps, n)` and the operator projected on it, in double precision."""

    def fresh() -> Tensor:
        device = like.device if generator is None else generator.device
        return torch.randn(like.numel(), dtype=like.dtype, device=device, generator=generator).to(like.device)

    basis = torch.empty(num_steps, like.numel(), dtype=like.dtype, device=like.device)
    images = torch.empty_like(basis)
    candidate = fresh()
    for step in range(num_steps):
        done = basis[:step]
        length = torch.linalg.vector_norm(candidate)
        for _ in range(2):  # once is not enough in floating point
            candidate = candidate - done.T @ (done @ candidate)
        # An exhausted Krylov space leaves rounding noise: go on from a new direction.
        if torch.linalg.vector_norm(candidate) <= 1e3 * torch.finfo(like.dtype).eps * length:
            candidate = fresh()
            for _ in range(2):
                candidate = candidate - done.T @ (done @ candidate)
        basis[step] = candidate / torch.linalg.vector_norm(candidate)
        images[step] = candidate = product(basis[step])
    projected = basis.double() @ images.double().T
    return basis, (projected + projected.T) / 2
