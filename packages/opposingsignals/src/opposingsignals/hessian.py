"""Hessian products and top eigenvalues: one graph of the gradient, then one backward pass a product."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from opposingsignals._checks import checked_count, checked_finite, checked_number
from opposingsignals.losses import accurate, flatten, measuring, trainable

Closure = Callable[[], Tensor]


class TopEigs(NamedTuple):
    """Largest eigenvalues of a Hessian.

    Attributes:
        values: Eigenvalues, largest first, (k,).
        vectors: Unit eigenvectors over the trainable parameters, (k, P).
        residuals: ||H v - λ v|| as Lanczos knows it, (k,): an eigenvalue of H lies within it of each value.
        num_products: Hessian products that it took.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    num_products: int


def hvp(model: nn.Module, loss_closure: Closure | Sequence[Closure], vector: Tensor) -> Tensor:
    """Hessian product H v of a loss in the trainable parameters, v the whole direction.

    H v = ∇_θ (∇_θ L · v), by two backward passes; any twice differentiable layer will do. A tied parameter counts
    once, an unused or frozen one adds nothing, dropout in training mode draws once and the same mask for both passes.
    Random numbers and buffers (batch statistics) are as before afterwards. Fused attention, which has no second
    derivative, is replaced by its plain form meanwhile.

    Args:
        model: The model whose trainable parameters are meant.
        loss_closure: Returns the scalar loss, graph attached; or several closures, whose losses are added: each is
            then evaluated alone, so that one part's graph is held at a time.
        vector: Direction, (P,), in the order of `model.parameters()`.

    Returns:
        H v, (P,).

    Raises:
        ValueError: If the vector has another length, or the loss is not a scalar, or not one of this model.
        RuntimeError: If an operation has no second derivative.

    Examples:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
        >>> hvp(model, lambda: model(x).square().sum() / 2, torch.tensor([1.0, 1.0]))
        tensor([1., 9.])
    """
    with measuring(model, evaluate=False), torch.enable_grad():
        product = _Product(model, loss_closure)
        return product(_checked_vector("vector", vector, product))


def top_eigs(
    model: nn.Module,
    loss_closure: Closure | Sequence[Closure],
    k: int = 1,
    *,
    iterations: int = 30,
    tolerance: float = 1e-3,
    preconditioner: Tensor | None = None,
    start: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> TopEigs:
    """Largest eigenvalues of a Hessian, the sharpness λ_1 first: Lanczos with full reorthogonalisation.

    Stops as soon as every residual is below `tolerance` times its eigenvalue; the error of an eigenvalue is then of
    the order of the square. An eigenvalue that occurs twice may be told once, unless `tolerance` is tiny. The
    gradient's graph is built once for all products (for several closures: once a product, with the same random
    numbers). Memory: one vector of length P an iteration.

    Args:
        model: The model whose trainable parameters are meant.
        loss_closure: See `hvp`; the model's mode is left as it is.
        k: How many.
        iterations: Products at most.
        tolerance: Relative residual that counts as converged.
        preconditioner: Diagonal P > 0, (P,): eigenvalues of P^{-1/2} H P^{-1/2} instead, see `adam_preconditioner`.
        start: Warm start, (P,) or (j, P): the vectors found a few steps earlier.
        generator: Draws the cold start; torch's default generator is left as it was.

    Returns:
        Eigenvalues, eigenvectors, residuals and the number of products. Look at the residuals if `iterations` is small.

    Raises:
        ValueError: If `k` exceeds the parameters or `iterations`, or `start` or `preconditioner` do not fit.
        RuntimeError: If an operation has no second derivative, or the product is not finite.

    Examples:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
        >>> found = top_eigs(model, lambda: model(x).square().sum() / 2)
        >>> round(found.values.item(), 3), found.num_products
        (9.0, 2)
    """
    count, most = checked_count("k", k), checked_count("iterations", iterations)
    small = checked_number("tolerance", tolerance, 0.0)
    with measuring(model, evaluate=False), torch.enable_grad():
        product = _Product(model, loss_closure)
        most = min(most, product.size)
        if count > most:
            raise ValueError(f"k must be at most {most} (iterations, or trainable parameters), got {count}")
        scale = None
        if preconditioner is not None:
            scale = _checked_vector("preconditioner", preconditioner, product)
            if not (scale > 0).all():
                raise ValueError(f"preconditioner must be positive, got {scale.min().item()}")
            scale = scale.rsqrt()

        def apply(vector: Tensor) -> Tensor:
            return product(vector) if scale is None else scale * product(scale * vector)

        first = product.random(generator)
        if start is not None:
            guess = _checked_vector("start", start.sum(0) if start.ndim == 2 else start, product)
            # a grain of noise: a start that is orthogonal to the eigenvector never finds it
            first = guess / guess.norm().clamp_min(1e-30) + 1e-3 * first / first.norm()
        with torch.no_grad():
            return _lanczos(apply, first, count, most, small, lambda: product.random(generator))


def _lanczos(
    apply: Callable[[Tensor], Tensor],
    first: Tensor,
    k: int,
    most: int,
    tolerance: float,
    fresh: Callable[[], Tensor],
) -> TopEigs:
    basis = first.new_empty(most, len(first))
    diagonal, beside = torch.zeros(2, most, dtype=torch.float64)
    vector = first / first.norm()
    restarts = 0
    for size in range(1, most + 1):
        basis[size - 1] = vector
        known = basis[:size]
        image = apply(vector)
        diagonal[size - 1] = image.double().dot(vector.double()).cpu()
        if not diagonal[size - 1].isfinite():
            raise RuntimeError("the Hessian product is not finite: is the loss, and are the parameters?")
        for _ in range(2):  # once leaves rounding behind, twice is enough (Parlett)
            image = image - known.T @ (known @ image)
        beside[size - 1] = image.norm().cpu()
        matrix = torch.diag(diagonal[:size])
        if size > 1:
            matrix = matrix + torch.diag(beside[: size - 1], 1) + torch.diag(beside[: size - 1], -1)
        values, rotation = torch.linalg.eigh(matrix)
        values, rotation = values.flip(0), rotation.flip(1)
        residuals = beside[size - 1] * rotation[-1].abs()
        spread = values.abs().max().clamp_min(1e-30)
        done = size >= k and bool((residuals[:k] <= tolerance * values[:k].abs()).all())
        exhausted = bool(beside[size - 1] <= 1e-6 * spread)
        if size == most or (done and (restarts >= k if exhausted else restarts == 0)):
            break
        if exhausted:  # an invariant subspace, which may hide the twin of an eigenvalue: look beside it
            restarts += 1
            beside[size - 1] = 0
            image = fresh()
            for _ in range(2):
                image = image - known.T @ (known @ image)
        vector = image / image.norm()
    vectors = rotation[:, :k].T.to(known) @ known
    return TopEigs(
        values[:k].to(known), vectors / vectors.norm(dim=1, keepdim=True), residuals[:k].to(known), size
    )


def adam_preconditioner(optimizer: torch.optim.Optimizer, model: nn.Module) -> Tensor:
    """Diagonal that Adam divides by, P = sqrt(v̂) + ε, with the bias of v corrected.

    The sharpness of P^{-1/2} H P^{-1/2} is what stands against `eos_threshold(optimizer)` (Cohen et al. 2022).

    Args:
        optimizer: `torch.optim.Adam`, `AdamW` or `RMSprop`, after at least one step.
        model: Its model; all its trainable parameters must be the optimizer's.

    Returns:
        P, one vector over the trainable parameters, (P,).

    Raises:
        TypeError: If the optimizer keeps no second moment.
        ValueError: If a trainable parameter has none yet.

    Examples:
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        >>> (3 * model.weight).sum().backward()
        >>> optimizer.step()
        >>> adam_preconditioner(optimizer, model)
        tensor([3.0000])
    """
    if not isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW | torch.optim.RMSprop):
        raise TypeError(f"optimizer must be Adam, AdamW or RMSprop, got {type(optimizer).__name__}")
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    found = []
    for parameter in trainable(model):
        state = optimizer.state.get(parameter, {})
        if id(parameter) not in groups or not state:
            raise ValueError(
                "optimizer must have taken a step on every trainable parameter of model, one has none"
            )
        group = groups[id(parameter)]
        if isinstance(optimizer, torch.optim.RMSprop):
            moment = state["square_avg"]
            if group["centered"]:
                moment = moment - state["grad_avg"].square()
        else:
            name = "max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"
            moment = state[name] / (1 - float(group["betas"][1]) ** float(state["step"]))
        found.append(moment.sqrt() + group["eps"])
    return flatten(found)


class _Product:
    """v -> H v. One closure: its gradient's graph is kept. Several: each is evaluated anew, same random numbers."""

    def __init__(self, model: nn.Module, loss_closure: Closure | Sequence[Closure]) -> None:
        self.parameters = trainable(model)
        self.size = sum(parameter.numel() for parameter in self.parameters)
        self.dtype = accurate(self.parameters[0].dtype)
        self.device = self.parameters[0].device
        self.closures = [loss_closure] if callable(loss_closure) else [*loss_closure]
        if not self.closures:
            raise ValueError("loss_closure must be a function or several, got an empty sequence")
        self.cuda = sorted({p.device.index for p in self.parameters if p.device.type == "cuda"})
        self.random_states = torch.get_rng_state(), [torch.cuda.get_rng_state(index) for index in self.cuda]
        self.graph = self._gradient(self.closures[0]) if len(self.closures) == 1 else None

    def random(self, generator: torch.Generator | None) -> Tensor:
        device = self.device if generator is None else generator.device
        drawn = torch.randn(self.size, dtype=self.dtype, device=device, generator=generator)
        return drawn.to(self.device)

    def __call__(self, vector: Tensor) -> Tensor:
        pieces = [
            piece.view_as(p).to(p)
            for piece, p in zip(
                vector.split([p.numel() for p in self.parameters]), self.parameters, strict=True
            )
        ]
        if self.graph is not None:
            return self._differentiate(self.graph, pieces, keep=True)
        total = torch.zeros_like(vector)
        with torch.random.fork_rng(self.cuda):
            torch.set_rng_state(self.random_states[0])  # the same masks in every product
            for index, state in zip(self.cuda, self.random_states[1], strict=True):
                torch.cuda.set_rng_state(state, index)
            for closure in self.closures:
                total += self._differentiate(self._gradient(closure), pieces, keep=False)
        return total

    def _gradient(self, closure: Closure) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            loss = closure()
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"loss_closure must return a scalar tensor, got {shape}")
        if not loss.requires_grad:
            raise ValueError("loss_closure must return a loss with its graph, got one that is detached")
        with torch.enable_grad(), explained():
            gradient = torch.autograd.grad(
                loss.reshape(()),
                self.parameters,
                create_graph=True,
                allow_unused=True,
            )
            if all(part is None for part in gradient):
                raise ValueError(
                    "loss_closure must depend on a trainable parameter of model, got none in its graph"
                )
            full = tuple(
                torch.zeros_like(p) if part is None else part
                for part, p in zip(gradient, self.parameters, strict=True)
            )
            refuse_dead_ends(full)
            return full

    def _differentiate(self, gradient: tuple[Tensor, ...], pieces: list[Tensor], keep: bool) -> Tensor:
        curved = [(g, piece) for g, piece in zip(gradient, pieces, strict=True) if g.requires_grad]
        if not curved:
            return torch.zeros(self.size, dtype=self.dtype, device=self.device)
        outputs, directions = zip(*curved, strict=True)
        with explained():
            found = torch.autograd.grad(
                outputs,
                self.parameters,
                directions,
                retain_graph=keep,
                allow_unused=True,
                materialize_grads=True,
            )
        return flatten(found).to(self.dtype)


class explained:
    """Say what to do where an operation has no second derivative."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RuntimeError) and any(
            said in str(error) for said in ("is not implemented", "not supported", "once_differentiable")
        ):
            raise RuntimeError(
                f"an operation of the model has no second derivative ({error}). For attention, take torch's "
                "scaled_dot_product_attention, or torch.nn.attention.sdpa_kernel(SDPBackend.MATH); for recurrent "
                "layers on a GPU, torch.backends.cudnn.flags(enabled=False)"
            ) from error


def refuse_dead_ends(tensors: Sequence[Tensor]) -> None:
    """Raise where a graph passes a function that differentiates once only, which autograd would take for a zero."""
    seen, ahead = set(), [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    while ahead:
        node = ahead.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.name().endswith("Error"):
            raise RuntimeError("the graph holds a function marked once_differentiable")
        ahead.extend(after for after, _ in node.next_functions if after is not None)


def _checked_vector(name: str, vector: Tensor, product: _Product) -> Tensor:
    if not isinstance(vector, Tensor) or vector.shape != (product.size,):
        shape = tuple(vector.shape) if isinstance(vector, Tensor) else type(vector).__name__
        raise ValueError(f"{name} must be of shape ({product.size},), the trainable parameters, got {shape}")
    return checked_finite(name, vector.detach()).to(product.device, product.dtype)
