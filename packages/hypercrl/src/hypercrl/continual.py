"""One step of continual learning, in the order that keeps old tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from hypercrl._checks import choice, number, unwrapped
from hypercrl.hypernetwork import HyperNetwork
from hypercrl.importance import PathImportance
from hypercrl.lookahead import lookahead_delta, sgd_delta
from hypercrl.regularizer import OutputRegularizer

TaskLoss = Callable[[dict[str, Tensor]], Tensor]


def continual_step(
    hnet: nn.Module,
    task_id: int,
    task_loss_fn: TaskLoss,
    theta_optimizer: Optimizer,
    embedding_optimizer: Optimizer,
    regularizer: OutputRegularizer | None = None,
    *,
    batch_size: float = 1,
    clip: float | None = 5.0,
    path: PathImportance | None = None,
    fallback: Literal["sgd", "copy"] | None = None,
    generator: torch.Generator | None = None,
    check_finite: bool = True,
) -> dict[str, Tensor]:
    r"""Learn from one batch of task `k` while the weights of older tasks stay where they were.

    The order of the official code (arXiv 2009.11997, algorithm 1):

    1. `L_task` on the weights `h(e_k)`, backward; clip the gradient of `e_k`, **step `e_k` now**: an embedding sees its
       task's loss only.
    2. `delta`, the change that `theta_optimizer` would make from the task's gradient, before any clipping.
    3. `batch_size * regularizer.loss(delta)`, backward: gradients add up on `theta`.
    4. Clip the gradient of `theta`, step `theta`.

    Make both optimizers anew for each task: Adam's moments of the old task would move `theta` against it. In a
    `torch.distributed` job the task's gradients are averaged over the ranks, which must learn the same task; do not
    wrap the hypernetwork in DistributedDataParallel as well. Make it, and its tasks, from the same seed on every rank.

    Args:
        hnet: The hypernetwork.
        task_id: The task that the batch is from.
        task_loss_fn: Called with the weights (and buffers) of the task, for `torch.func.functional_call`; returns a
            scalar.
        theta_optimizer: Holds all of `hnet.theta()`, no embedding of this task, and the old tasks' embeddings if the
            regulariser's `plastic_embeddings` is on.
        embedding_optimizer: Holds `hnet.embedding(task_id)` and nothing of `theta`.
        regularizer: Made at the start of this task; `None` for plain fine-tuning.
        batch_size: What multiplies the regulariser: the number of samples that the loss sums over, 1 for a mean.
        clip: Largest norm of the gradients of `e_k` and of `theta`; `None` for no clipping.
        path: Gathers the importance of the generated weights, for a regulariser with synaptic intelligence.
        fallback: Look-ahead of optimizers that `lookahead_delta` does not know.
        generator: Source of the regulariser's random subset.
        check_finite: Refuse a loss or a gradient of NaN or infinity before anything is changed; this waits for the
            device.

    Returns:
        `"task_loss"` and `"regularizer"` (times `batch_size`), detached scalars.

    Raises:
        ValueError: If an optimizer holds the wrong parameters, the regulariser is of another task or hypernetwork, or
            the loss is no scalar, not finite, or independent of the weights, or gradients are switched off.
        TypeError: If the optimizer's look-ahead is unknown and there is no `fallback`.

    Examples:
        >>> from torch.func import functional_call
        >>> model = nn.Linear(3, 2)
        >>> hnet = HyperNetwork(model)
        >>> k = hnet.add_task()
        >>> x, y = torch.ones(8, 3), torch.ones(8, 2)
        >>> step = continual_step(
        ...     hnet, k, lambda w: (functional_call(model, w, (x,)) - y).square().mean(),
        ...     torch.optim.Adam(hnet.theta(), 1e-4), torch.optim.Adam([hnet.embedding(k)], 1e-4),
        ...     OutputRegularizer(hnet, k, beta=0.05),
        ... )
        >>> sorted(step)
        ['regularizer', 'task_loss']
    """
    inner = unwrapped(hnet)
    if not isinstance(inner, HyperNetwork):
        raise TypeError(f"hnet must be a HyperNetwork, got {type(inner).__name__}")
    embedding = inner.embedding(task_id)
    _check_regularizer(inner, task_id, regularizer)
    _check_optimizers(inner, embedding, theta_optimizer, embedding_optimizer, regularizer)
    batch_size = number("batch_size", batch_size, above=True)
    clip = None if clip is None else number("clip", clip, above=True)
    choice("fallback", fallback, (None, "sgd", "copy"))
    active = regularizer is not None and regularizer.task_id > 0 and regularizer.beta > 0
    through = (
        active and regularizer is not None and regularizer.backprop_delta and bool(regularizer.lookahead)
    )

    if not torch.is_grad_enabled():
        raise ValueError(
            "continual_step must be called with gradients on, not under no_grad or inference_mode"
        )
    theta_optimizer.zero_grad(set_to_none=True)
    embedding_optimizer.zero_grad(set_to_none=True)
    weights = inner(task_id)
    generated = {name: weights[name] for name in inner.shapes}
    loss = _checked_loss(task_loss_fn(weights), check_finite)
    if path is not None:
        slopes = torch.autograd.grad(loss, [*generated.values()], retain_graph=True, materialize_grads=True)
        path.observe(generated, dict(zip(generated, slopes, strict=True)))
    gradients = _backward(loss, theta_optimizer, embedding_optimizer, keep_graph=through)
    if all(value.grad is None for value in [embedding, *inner.theta()]):
        raise ValueError("task_loss_fn must return a loss that depends on the weights it is given")
    held = [value for group in theta_optimizer.param_groups for value in group["params"]]
    _average_over_ranks([embedding, *held], task_id)
    if check_finite:
        _check_gradients([embedding, *held])
    delta = None
    if active and regularizer is not None and regularizer.lookahead == "sgd":
        delta = sgd_delta(theta_optimizer, gradients or _gradients(held))
    elif active and regularizer is not None and regularizer.lookahead:
        delta = lookahead_delta(theta_optimizer, gradients, fallback=fallback)
    inner.store_buffers(task_id, weights)

    if clip is not None:
        nn.utils.clip_grad_norm_([embedding], clip)
    embedding_optimizer.step()

    penalty = torch.zeros_like(loss, dtype=torch.promote_types(loss.dtype, torch.float32))
    if active and regularizer is not None:
        penalty = batch_size * regularizer.loss(delta, generator)
        penalty.backward(inputs=[value for value in _pulled(inner, regularizer) if value.requires_grad])
        if regularizer.max_tasks is not None or regularizer.importance is not None:
            _average_over_ranks(held, task_id)  # each rank may have a subset or an importance of its own
    if clip is not None:
        nn.utils.clip_grad_norm_([value for value in held if value.grad is not None], clip)
    theta_optimizer.step()
    return {"task_loss": loss.detach(), "regularizer": penalty.detach()}


def _backward(
    loss: Tensor, theta_optimizer: Optimizer, embedding_optimizer: Optimizer, keep_graph: bool
) -> dict[Tensor, Tensor] | None:
    """Leave the gradients in `.grad`; with `keep_graph` return them with their graph too."""
    if not keep_graph:
        loss.backward()
        return None
    optimizers = (theta_optimizer, embedding_optimizer)
    held = [value for one in optimizers for group in one.param_groups for value in group["params"]]
    held = [value for value in held if value.requires_grad]
    found = torch.autograd.grad(loss, held, create_graph=True, allow_unused=True)
    gradients = {value: gradient for value, gradient in zip(held, found, strict=True) if gradient is not None}
    for value, gradient in gradients.items():
        value.grad = gradient.detach().clone()
    return gradients


def _pulled(hnet: HyperNetwork, regularizer: OutputRegularizer) -> list[Tensor]:
    """Return what the regulariser's gradient goes to."""
    plastic = regularizer.task_id if regularizer.plastic_embeddings else 0
    return [*hnet.theta(), *hnet.embeddings[:plastic]]


def _gradients(parameters: Iterable[Tensor]) -> dict[Tensor, Tensor]:
    return {value: value.grad.detach() for value in parameters if value.grad is not None}


def _checked_loss(loss: Any, check_finite: bool) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"task_loss_fn must return one number as a tensor, got {found}")
    if not loss.requires_grad:
        raise ValueError("task_loss_fn must return a loss that depends on the weights it is given")
    if check_finite and not bool(torch.isfinite(loss.detach()).all()):
        raise ValueError(
            f"task_loss_fn must return a finite loss, got {loss.detach().item()}; nothing was changed"
        )
    return loss.reshape(())


def _check_gradients(parameters: Iterable[Tensor]) -> None:
    gradients = [value.grad for value in parameters if value.grad is not None]
    if not bool(torch.stack([torch.isfinite(gradient).all() for gradient in gradients]).all()):
        raise ValueError("task_loss_fn must have finite gradients, some are not; nothing was changed")


def _check_optimizers(
    hnet: HyperNetwork,
    embedding: Tensor,
    theta_optimizer: Optimizer,
    embedding_optimizer: Optimizer,
    regularizer: OutputRegularizer | None,
) -> None:
    theta = {id(value) for group in theta_optimizer.param_groups for value in group["params"]}
    other = {id(value) for group in embedding_optimizer.param_groups for value in group["params"]}
    wanted = [id(value) for value in hnet.theta() if value.requires_grad]
    if missing := sum(one not in theta for one in wanted):
        raise ValueError(f"theta_optimizer must hold all of hnet.theta(), {missing} parameters are missing")
    if id(embedding) in theta:
        raise ValueError("theta_optimizer must not hold the task's embedding: it would see the regulariser")
    if id(embedding) not in other:
        raise ValueError("embedding_optimizer must hold hnet.embedding(task_id)")
    if any(one in other for one in wanted):
        raise ValueError("embedding_optimizer must hold nothing of hnet.theta()")
    if regularizer is not None and regularizer.plastic_embeddings:
        old = [id(value) for value in hnet.embeddings[: regularizer.task_id]]
        if missing := sum(one not in theta for one in old):
            raise ValueError(
                f"theta_optimizer must hold the old tasks' embeddings for plastic_embeddings, {missing} are missing"
            )


def _check_regularizer(hnet: HyperNetwork, task_id: int, regularizer: OutputRegularizer | None) -> None:
    if regularizer is None:
        return
    if not isinstance(regularizer, OutputRegularizer):
        raise TypeError(f"regularizer must be an OutputRegularizer, got {type(regularizer).__name__}")
    if regularizer.hnet is not hnet:
        raise ValueError("regularizer must be made for this hnet, it is another's")
    if regularizer.task_id != int(task_id):
        raise ValueError(
            f"regularizer must be made for task_id={int(task_id)}, it is of task {regularizer.task_id}"
        )


def _average_over_ranks(parameters: Iterable[Tensor], task_id: int) -> None:
    """Average gradients over the ranks of a distributed job, which must all be at the same task."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    gradients = [value.grad for value in parameters if value.grad is not None]
    dtype = torch.float32
    for value in gradients:
        dtype = torch.promote_types(dtype, value.dtype)
    pieces = [value.flatten().to(dtype) for value in gradients]
    flat = torch.cat([*pieces, pieces[0].new_tensor([task_id])])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    if float(flat[-1]) != int(task_id):
        raise ValueError(f"task_id must be the same on all ranks, here it is {int(task_id)}")
    averages = flat[:-1].split([value.numel() for value in gradients])
    for value, piece in zip(gradients, averages, strict=True):
        value.copy_(piece.view_as(value))
