"""Cross-entropy of many rows through one head, a chunk of logits at a time."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sortedft._checks import is_plain_linear


def chunked_cross_entropy(
    rows: Tensor, head: nn.Module, targets: Tensor, row_weights: Tensor, options: Options
) -> tuple[Tensor, Tensor]:
    """sum_r weight_r CE(head(row_r), target_r) of rows (R, D), and the detached losses of the rows (R,).

    A plain `nn.Linear` is read through its weight and bias. Any other head is called as it is, so that
    adapters, hooks and quantised weights count; its logits are then made twice, once for the backward pass.
    """
    if not is_plain_linear(head):
        return _through_any_head(rows, head, targets, row_weights, options)
    return _ChunkedCrossEntropy.apply(
        rows, head.weight, head.bias, targets, row_weights, options, torch.is_grad_enabled()
    )


class Options(NamedTuple):
    """How logits are made of rows, and how many at a time."""

    chunk_tokens: int
    logit_scale: float
    logit_softcap: float | None


def _through_any_head(
    rows: Tensor, head: nn.Module, targets: Tensor, row_weights: Tensor, options: Options
) -> tuple[Tensor, Tensor]:
    from torch.utils.checkpoint import checkpoint

    losses = [
        checkpoint(
            _row_losses,
            rows[start : start + options.chunk_tokens],
            head,
            targets[start : start + options.chunk_tokens],
            options,
            use_reentrant=False,
        )
        for start in range(0, len(rows), options.chunk_tokens)
    ]
    row_losses = torch.cat(losses)
    return (row_losses * row_weights).sum(), row_losses.detach()


def _row_losses(rows: Tensor, head: nn.Module, targets: Tensor, options: Options) -> Tensor:
    logits = head(rows)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * options.logit_scale
    if options.logit_softcap is not None:
        logits = torch.tanh(logits / options.logit_softcap) * options.logit_softcap
    return nn.functional.cross_entropy(logits, targets, reduction="none")


class _ChunkedCrossEntropy(torch.autograd.Function):
    """sum_r weight_r CE(head(row_r), target_r), with both gradients accumulated chunk by chunk.

    The gradient of the logits is known as soon as the logits are, so the forward pass turns each
    chunk of logits in place into its gradient and folds it into d rows and d weight. The backward
    pass only scales them, in place unless the graph is retained; no logits are kept or computed twice.
    What is kept is the gradient for row weights of at most one, since weights of 1 / (|B| T) would
    underflow in half precision.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        row_weights: Tensor,
        options: Options,
        want_gradients: bool,  # a Function's forward always runs with gradients off and cannot ask
    ) -> tuple[Tensor, Tensor]:
        compute_dtype = autocast_dtype(rows.device.type) or rows.dtype
        exact_dtype = torch.promote_types(compute_dtype, torch.float32)
        with torch.autocast(rows.device.type, enabled=False):
            matrix = weight.to(compute_dtype)
            d_rows = _room(rows, rows.dtype, want_gradients and ctx.needs_input_grad[0])
            d_weight = _room(weight, exact_dtype, want_gradients and ctx.needs_input_grad[1])
            d_bias = _room(bias, exact_dtype, want_gradients and ctx.needs_input_grad[2])
            losses = torch.empty(len(rows), dtype=exact_dtype, device=rows.device)
            largest = row_weights.amax()
            relative_weights = (row_weights / largest).to(exact_dtype).unsqueeze(1)
            for start in range(0, len(rows), options.chunk_tokens):
                chunk = slice(start, start + options.chunk_tokens)
                inputs, wanted = rows[chunk].to(compute_dtype), targets[chunk].unsqueeze(1)
                logits = (inputs @ matrix.T).to(exact_dtype)
                if bias is not None:
                    logits += bias
                slope = _transform(logits, options)
                logits -= logits.amax(1, keepdim=True)
                wanted_logits = logits.gather(1, wanted)
                normaliser = logits.exp_().sum(1, keepdim=True)
                losses[chunk] = (normaliser.log() - wanted_logits).squeeze(1)
                if not want_gradients:
                    continue
                scale = relative_weights[chunk]
                d_logits = logits.mul_(scale / normaliser).scatter_add_(1, wanted, -scale)
                if slope is not None:
                    d_logits *= slope
                if d_bias is not None:
                    d_bias += d_logits.sum(0)
                d_logits = d_logits.to(compute_dtype)
                if d_rows is not None:
                    d_rows[chunk] = d_logits @ matrix
                if d_weight is not None:
                    _accumulate(d_weight, d_logits, inputs)
                del logits, d_logits  # else the next chunk is made while this one is still held
        ctx.gradients, ctx.scale = (d_rows, d_weight, d_bias), largest
        ctx.dtypes = tuple(None if tensor is None else tensor.dtype for tensor in (rows, weight, bias))
        ctx.mark_non_differentiable(losses)
        return (losses * row_weights).sum(), losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the loss was differentiated before, without retain_graph=True")
        gradients, scale, retained = ctx.gradients, d_loss * ctx.scale, _graph_is_retained()
        if not retained:
            ctx.gradients = None
        scaled = (
            None if one is None else (one * scale if retained else one.mul_(scale)).to(dtype)
            for one, dtype in zip(gradients, ctx.dtypes, strict=True)
        )
        return (*scaled, None, None, None, None)


def _graph_is_retained() -> bool:
    """Whether the backward pass that runs now keeps its graph for another one; true if torch does not tell."""
    if torch.compiler.is_compiling():
        return True
    told = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return told is None or bool(told())


def _room(tensor: Tensor | None, dtype: torch.dtype, wanted: bool) -> Tensor | None:
    return torch.zeros_like(tensor, dtype=dtype) if wanted and tensor is not None else None


def _accumulate(total: Tensor, d_logits: Tensor, inputs: Tensor) -> None:
    if total.dtype == d_logits.dtype:
        total.addmm_(d_logits.T, inputs)
    else:
        total += d_logits.T @ inputs


def _transform(logits: Tensor, options: Options) -> Tensor | None:
    """Scale and soft-cap the logits in place; return the derivative, None where it is one."""
    if options.logit_scale != 1.0:
        logits *= options.logit_scale
    if options.logit_softcap is None:
        return None if options.logit_scale == 1.0 else logits.new_tensor(options.logit_scale)
    logits.div_(options.logit_softcap).tanh_()
    slope = (1 - logits.square()) * options.logit_scale
    logits *= options.logit_softcap
    return slope


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """The dtype that autocast now puts products in, None where it is off."""
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None
