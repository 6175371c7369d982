"""Losses and gradients of single examples and of groups of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from opposingsignals._checks import checked_count, checked_indices, checked_number

LossFunction = Callable[..., Tensor]


def per_example_loss(
    model: nn.Module,
    loss_fn: LossFunction,
    x: Any,
    y: Any = None,
    *,
    batch: int | None = None,
    per_token: bool = False,
) -> Tensor:
    """Loss of every example, l_i(θ), without gradients and in evaluation mode (Rosenfeld and Risteski 2024).

    Modes of the modules are as before afterwards, also after an exception. Dropout and batch statistics
    would show as changes of loss that no example made, which is why they are off.

    Args:
        model: Called as `model(x)`, as `model(**x)` if `x` is a mapping, as `model(*x)` if it is a tuple.
        loss_fn: Called as `loss_fn(output, y)`, or `loss_fn(output)` if `y` is `None`; returns losses of shape
            (n,). A function with an argument `reduction`, such as `torch.nn.functional.cross_entropy`, is given "none".
        x: Inputs, examples first: a tensor, or a mapping or tuple of tensors.
        y: Targets, examples first, or `None`.
        batch: Examples at a time; all at once by default.
        per_token: Expect (n, T) instead: one loss for every token.

    Returns:
        Losses, (n,), or (n, T) with `per_token`.

    Raises:
        ValueError: If the losses have another shape, for instance because they are already reduced.
        TypeError: If `loss_fn` is a module whose `reduction` is not "none", or no function.

    Examples:
        >>> model = torch.nn.Linear(2, 3)
        >>> x, y = torch.randn(5, 2), torch.tensor([0, 1, 2, 0, 1])
        >>> per_example_loss(model, torch.nn.functional.cross_entropy, x, y).shape
        torch.Size([5])
    """
    unreduced = without_reduction(loss_fn)
    with measuring(model), torch.no_grad():  # in this order: leaving inference mode turns gradients on
        return torch.cat(
            [losses_of(model, unreduced, *part, per_token).detach() for part in parts(x, y, batch)]
        )


def group_gradient(
    model: nn.Module,
    loss_fn: LossFunction,
    x: Any,
    y: Any,
    group: Any,
    *,
    batch: int | None = None,
    per_token: bool = False,
) -> Tensor:
    """Gradient of a group's mean loss, g_G = (1/|G|) Σ_{i in G} ∇l_i, by one backward pass.

    Args:
        model: See `per_example_loss`.
        loss_fn: See `per_example_loss`.
        x: Inputs of all examples.
        y: Targets of all examples, or `None`.
        group: Indices of the group's examples; with `per_token`, of tokens in the flattened (n, T).
        batch: Examples at a time.
        per_token: The losses are (n, T).

    Returns:
        The gradient as one vector over the trainable parameters, (P,).

    Raises:
        ValueError: If the group is empty or reaches beyond the data.

    Examples:
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> def squared(output, target):
        ...     return (output - target).squeeze(1).square() / 2
        >>> x = torch.tensor([[1.0], [2.0]])
        >>> gradient = group_gradient(model, squared, x, torch.zeros(2, 1), [1])
        >>> torch.allclose(gradient, 4 * model.weight.flatten())
        True
    """
    unreduced = without_reduction(loss_fn)
    length = 1
    if per_token:
        length = per_example_loss(
            model, loss_fn, take(x, slice(0, 1)), take(y, slice(0, 1)), per_token=True
        ).shape[1]
    chosen = checked_indices("group", group, num_examples(x) * length)
    with measuring(model):
        rows, place = (chosen // length).unique(return_inverse=True)
        weights = torch.zeros(len(rows), length)
        weights[place, chosen % length] = 1 / len(chosen)
        return _weighted_gradient(model, unreduced, take(x, rows), take(y, rows), weights, batch, per_token)


def _weighted_gradient(
    model: nn.Module,
    unreduced: LossFunction,
    x: Any,
    y: Any,
    weights: Tensor,
    batch: int | None,
    per_token: bool,
) -> Tensor:
    trained = trainable(model)
    total: list[Tensor] | None = None
    start = 0
    for part in parts(x, y, batch):
        losses = losses_of(model, unreduced, *part, per_token)
        share = weights[start : start + len(losses)].reshape(losses.shape).to(losses)
        start += len(losses)
        found = torch.autograd.grad(
            (losses * share).sum(), trained, allow_unused=True, materialize_grads=True
        )
        exact = [gradient.to(accurate(gradient.dtype)) for gradient in found]
        total = exact if total is None else [old + new for old, new in zip(total, exact, strict=True)]
    assert total is not None
    return flatten(total)


def per_example_gradient_norms(
    model: nn.Module, loss_fn: LossFunction, x: Any, y: Any = None, *, batch: int | None = None
) -> Tensor:
    """Norm of every example's gradient, ||∇l_i||, in evaluation mode.

    `torch.func.vmap` takes all examples of a batch at once; a model that it cannot follow is run example by example.
    Memory is `batch` times the parameters.

    Args:
        model: See `per_example_loss`.
        loss_fn: See `per_example_loss`.
        x: Inputs.
        y: Targets, or `None`.
        batch: Examples at a time.

    Returns:
        Norms, (n,).

    Examples:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> x = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
        >>> per_example_gradient_norms(model, lambda output: output[:, 0], x)
        tensor([5., 1.])
    """
    unreduced = without_reduction(loss_fn)
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    fixed = {name: value.detach() for name, value in model.named_parameters() if not value.requires_grad}
    fixed |= dict(model.named_buffers())

    def loss(parameters: dict[str, Tensor], x: Any, y: Any) -> Tensor:
        def call(*args: Any, **kwargs: Any) -> Any:
            return functional_call(model, {**parameters, **fixed}, args, kwargs)

        return losses_of(call, unreduced, expand(x), expand(y)).squeeze(0)

    def norms(x: Any, y: Any) -> Tensor:
        detached = {name: value.detach() for name, value in trained.items()}
        try:
            found = vmap(grad(loss), in_dims=(None, 0, None if y is None else 0))(detached, x, y)
        except RuntimeError:
            return torch.stack(
                [
                    norm_of_one(take(x, slice(i, i + 1)), take(y, slice(i, i + 1)))
                    for i in range(num_examples(x))
                ]
            )
        return torch.stack(
            [value.flatten(1).to(accurate(value.dtype)).norm(dim=1) for value in found.values()]
        ).norm(dim=0)

    def norm_of_one(x: Any, y: Any) -> Tensor:
        weights = torch.ones(1, 1)
        return _weighted_gradient(model, unreduced, x, y, weights, None, False).norm()

    with measuring(model):
        return torch.cat([norms(*part) for part in parts(x, y, batch)])


def example_weights(
    num_examples: int, groups: Sequence[Any], weight: float = 0.0, *, device: torch.device | str | None = None
) -> Tensor:
    """Weights of examples for an intervention: `weight` on the groups, 1 elsewhere, scaled to a mean of 1.

    `(weights * losses).mean()` then trains with the groups dropped (0) or made lighter. The control is the same call
    with as many random examples.

    Args:
        num_examples: n.
        groups: Index lists, such as `pair.a` and `pair.b`.
        weight: Weight of their examples, at least 0.
        device: Where the weights are wanted.

    Returns:
        Weights, (n,).

    Raises:
        ValueError: If nothing is left to train on.

    Examples:
        >>> example_weights(4, [[0], [3]]).tolist()
        [0.0, 2.0, 2.0, 0.0]
    """
    size = checked_count("num_examples", num_examples)
    factor = checked_number("weight", weight, 0.0)
    weights = torch.ones(size, device=device)
    for group in groups:
        weights[checked_indices("groups", group, size, weights.device)] = factor
    if not weights.any():
        raise ValueError("groups must leave at least one example, got all of them at weight 0")
    return weights / weights.mean()


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Join tensors to one vector, in float32 at least.

    Args:
        tensors: For instance the gradients of `model.parameters()`.

    Returns:
        The vector, (P,).

    Examples:
        >>> flatten([torch.zeros(2, 3), torch.ones(1)]).shape
        torch.Size([7])
    """
    return torch.cat([tensor.flatten().to(accurate(tensor.dtype)) for tensor in tensors])


# --- what the other modules share --------------------------------------------------------------------


def accurate(dtype: torch.dtype) -> torch.dtype:
    """What sums are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def without_reduction(loss_fn: LossFunction) -> LossFunction:
    """Return the loss with reduction "none", where it has such an argument."""
    if not callable(loss_fn):
        raise TypeError(f"loss_fn must be callable, got {loss_fn!r}")
    reduction = getattr(loss_fn, "reduction", "none")
    if reduction != "none":
        raise TypeError(f"loss_fn must be made with reduction='none', got reduction={reduction!r}")
    if isinstance(loss_fn, nn.Module):
        return loss_fn
    try:
        takes = "reduction" in inspect.signature(loss_fn).parameters
    except (TypeError, ValueError):
        takes = False
    return (lambda *args: loss_fn(*args, reduction="none")) if takes else loss_fn


def losses_of(model: Any, unreduced: LossFunction, x: Any, y: Any, per_token: bool = False) -> Tensor:
    """Losses of a batch, their shape checked: this is where the user's own function answers."""
    if isinstance(x, Mapping):
        output = model(**x)
    else:
        output = model(*x) if isinstance(x, tuple) else model(x)
    losses = unreduced(output) if y is None else unreduced(output, y)
    size = num_examples(x)
    wanted = (
        f"({size}, T): one loss for every token" if per_token else f"({size},): one loss for every example"
    )
    if not isinstance(losses, Tensor) or losses.ndim != 1 + per_token or losses.shape[0] != size:
        shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise ValueError(f"loss_fn must return losses of shape {wanted}, without reduction; got {shape}")
    return losses


def num_examples(x: Any) -> int:
    """Length of the first dimension of inputs or targets."""
    values = [*x.values()] if isinstance(x, Mapping) else [*x] if isinstance(x, tuple) else [x]
    sizes = {len(value) for value in values if isinstance(value, Tensor) and value.ndim}
    if len(sizes) != 1:
        raise ValueError(f"x must hold tensors of one length, examples first, got lengths {sorted(sizes)}")
    (size,) = sizes
    if size == 0:
        raise ValueError("x must hold at least one example, got none")
    return size


def _each(x: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if x is None:
        return None
    if isinstance(x, Mapping):
        return {key: change(value) if isinstance(value, Tensor) else value for key, value in x.items()}
    if isinstance(x, tuple):
        return tuple(change(value) if isinstance(value, Tensor) else value for value in x)
    return change(x)


def take(x: Any, which: Any) -> Any:
    """Some examples of a tensor, a mapping or a tuple."""
    return _each(x, lambda value: value[which.to(value.device) if isinstance(which, Tensor) else which])


def expand(x: Any) -> Any:
    """One example as a batch of one."""
    return _each(x, lambda value: value[None])


def parts(x: Any, y: Any, batch: int | None) -> Iterator[tuple[Any, Any]]:
    """Inputs and targets, `batch` examples at a time."""
    size = num_examples(x)
    if y is not None and num_examples(y) != size:
        raise ValueError(f"y must have as many examples as x, {size}, got {num_examples(y)}")
    step = size if batch is None else checked_count("batch", batch)
    for start in range(0, size, step):
        which = slice(start, start + step)
        yield take(x, which), take(y, which)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Trainable parameters, a tied one once."""
    found = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not found:
        raise ValueError("model must have at least one parameter that requires a gradient, got none")
    return found


@contextmanager
def measuring(model: nn.Module, evaluate: bool = True) -> Iterator[None]:
    """Measure without a trace: modes, buffers and random numbers are as before, attention can be differentiated twice.

    Buffers are exchanged for copies rather than written back, so that no graph sees one change under it.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (m, name, value) for m in model.modules() for name, value in m._buffers.items() if value is not None
    ]
    copies = {id(value): value.clone() for _, _, value in buffers}
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    try:
        for module, name, value in buffers:
            module._buffers[name] = copies[id(value)]
        if evaluate:
            for module, _ in modes:  # not model.eval(), which a wrapper may have overridden
                module.training = False
        with torch.random.fork_rng(devices), torch.inference_mode(False), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for module, name, value in buffers:
            module._buffers[name] = value
        for module, mode in modes:
            module.training = mode
