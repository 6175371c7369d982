"""The probe: what to watch while a model trains, without changing a bit of the training."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from stabilityproxy._checks import checked_count, exact_dtype, sum_dtype
from stabilityproxy.attention import (
    KERNEL,
    AttentionRecorder,
    LogitStatistics,
    attention_statistics,
    sampled_positions,
)
from stabilityproxy.families import attention_modules, has_projections, logits_of, plain_name
from stabilityproxy.optimizers import adam_of, adam_statistics, parameter_names, root_mean_squares
from stabilityproxy.reading import NamedValues, Reading

_MODES = ("sampled", "exact", "bound")
_GOLDEN = (math.sqrt(5) - 1) / 2
_NOTHING = NamedValues((), torch.zeros(0, dtype=torch.float64))


class StabilityProbe:
    r"""Reads attention logits, output log-partition, gradients, updates and epsilon while a model trains.

    The attention logits $z_{ij} = q_i \cdot k_j / \sqrt{d_h}$ are computed anew from the queries and keys that
    `scaled_dot_product_attention` is called with, after rotation, norms and adapters, so fused kernels stay on and
    any model that calls it is understood: Hugging Face decoders with "sdpa" attention, your own modules, inside of
    DistributedDataParallel, FSDP or PEFT. Attention that is written out is read at its softmax. Nothing is drawn
    from a random generator and nothing of the model is replaced: training with the probe is the same, bit for bit.

    With an optimizer a step ends with `optimizer.step()`, however many forward passes it took, and forward passes
    in evaluation mode are left out. Without one every forward pass is a step. With `torch.distributed` measured
    steps are reduced over the ranks (largest logits, mean entropies and log-partitions) as they end, on all
    ranks, so `read` may be called by one rank alone.

    Measured steps of a model under `torch.compile` run uncompiled, with results equal to rounding; this needs
    torch 2.6.

    Args:
        model: What the training loop calls, wrappers included.
        optimizer: `torch.optim.AdamW` or `Adam`; None to leave gradients, updates and epsilon out.
        attention: Names of the modules whose forward attends; "auto" for those whose class or projections say so;
            None to leave attention out.
        output: Name of the module that gives the output logits; None takes what the model returns: a tensor,
            `.logits`, a mapping's "logits", or the first tensor of a tuple with at least two dimensions.
        every: Measure each so many steps.
        mode: "sampled" looks at `num_queries` queries of each sequence and all their keys; "exact" at all of them;
            "bound" gives $\max_i \|q_i\| \max_j \|k_j\| / \sqrt{d_h}$, an upper bound at next to no cost.
        num_queries: Evenly spaced queries, others at each measured step; also tokens for the log-partition. Memory
            is batch x heads x num_queries x keys numbers in float32, one layer at a time.
        reduce: Whether to reduce over the ranks of `group`. All of them must hold the same layers and step together.
        group: A process group; the default one if None.

    Attributes:
        history: The readings so far.

    Raises:
        ValueError: If no module that attends is recognised or a name is unknown, `every` or `num_queries` is below
            one, the mode is unknown, or the model is compiled in a way that cannot be seen into.
        TypeError: If the optimizer is not Adam or AdamW.

    Examples:
        >>> from torch.nn.functional import scaled_dot_product_attention
        >>> class Attention(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.qkv = torch.nn.Linear(8, 24)
        ...
        ...     def forward(self, x):
        ...         q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        ...         return scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        >>> model = torch.nn.Sequential(Attention(), torch.nn.Linear(8, 5))
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> with StabilityProbe(model, optimizer, every=10) as probe:
        ...     for _ in range(20):
        ...         model(torch.ones(2, 6, 8)).square().mean().backward()
        ...         optimizer.step()
        >>> [reading.step for reading in probe.history], probe.read().layers
        ([0, 10], ('0',))
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        attention: str | Iterable[str] | None = "auto",
        output: str | None = None,
        every: int = 1,
        *,
        mode: str = "sampled",
        num_queries: int = 64,
        reduce: bool = True,
        group: Any = None,
    ):
        if mode not in _MODES:
            raise ValueError(f"mode must be one of {_MODES}, got {mode!r}")
        self.model = model
        self.optimizer = None if optimizer is None else adam_of(optimizer)
        self.every = checked_count("every", every)
        self.num_queries = None if mode == "exact" else checked_count("num_queries", num_queries)
        self.reduce, self.group = reduce, group
        self.history: list[Reading] = []
        self._named = attention != "auto"
        self._attention = {} if attention is None else attention_modules(model, attention)
        self._output = None if output is None else _module_named(model, output)
        self._compiled = _compiled_inside(model)
        self._recorder = AttentionRecorder(self._record, num_queries=self.num_queries, bound=mode == "bound")
        self._step = 0
        self._forward: ExitStack | None = None
        self._running: list[str] = []
        self._handles: list[Any] = []
        self._products: dict[str, LogitStatistics] = {}
        self._surety: dict[str, int] = {}
        self._has_warned = False
        self._log_z: Tensor | None = None
        self._grad_rms = _NOTHING

    def __enter__(self) -> StabilityProbe:
        if self._handles:
            raise RuntimeError("the probe is attached already")
        self._handles = [
            self.model.register_forward_pre_hook(self._before_forward),
            self.model.register_forward_hook(self._after_forward, always_call=True),
        ]
        if self.optimizer is not None:
            self._handles += [
                self.optimizer.register_step_pre_hook(self._before_step),
                self.optimizer.register_step_post_hook(self._after_step),
            ]
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def attach(self) -> StabilityProbe:
        """Begin to watch, where a `with` block does not fit; end with `close`.

        Returns:
            The probe.
        """
        return self.__enter__()

    def close(self) -> None:
        """Take all hooks off; what was read stays."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._forward is not None:
            self._forward.close()
            self._forward = None

    def read(self) -> Reading:
        """Return the last measured step that has ended.

        Returns:
            The reading, also the last of `history`.

        Raises:
            ValueError: If there is none yet.
        """
        if not self.history:
            raise ValueError(
                "no step has been measured: run the model inside of `with probe:`"
                + ("" if self.optimizer is None else ", in training mode, and then optimizer.step()")
            )
        return self.history[-1]

    def max_logit_after(self, step: int = 0) -> float:
        """Largest attention logit of all layers and measured steps from `step` on, the number to extrapolate.

        Args:
            step: Usually the end of the warm-up.

        Returns:
            The logit; infinite if one was no number.

        Raises:
            ValueError: If no step from there on was measured, or attention is None.
        """
        if not self._attention and self.history and not self.history[-1].layers:
            raise ValueError("attention must not be None for the largest logit to be known")
        found = [reading.max_logit.max().item() for reading in self.history if reading.step >= step]
        if not found:
            raise ValueError(f"step must be at most that of the last reading, got {step}")
        return max(found)

    def observe(self, name: str, query: Tensor, key: Tensor, **arguments: Any) -> None:
        """Hand over the queries and keys of an attention whose kernel cannot be seen into.

        To be called in the forward pass of a model that attends by the flash-attn package, flex attention or a
        kernel of its own. Does nothing in steps that are not measured.

        Args:
            name: How the layer is called in readings.
            query: (batch, heads, queries, d) as the kernel gets them.
            key: (batch, heads or a divisor, keys, d).
            **arguments: `mask`, `is_causal` and `scale` of `attention_statistics`.
        """
        if self._forward is None:
            return
        if self._recorder.bound:
            arguments = {"scale": arguments.get("scale")}
            found = self._recorder.product(query, key, key, **arguments)
        else:
            sampling: dict[str, Any] = {"num_queries": self.num_queries, "offset": self._recorder.offset}
            found = attention_statistics(query, key, **arguments, **sampling)
        self._surety[name] = KERNEL
        self._has_warned = True  # whoever hands attention over knows what cannot be seen
        self._keep(name, found)

    # --- one forward pass ---

    def _before_forward(self, module: nn.Module, inputs: Any) -> None:
        skipped = self.optimizer is not None and not self.model.training
        if self._step % self.every and self.optimizer is None:
            self._step += 1
            return
        if self._step % self.every or skipped or self._forward is not None:
            return
        self._recorder.offset = (0.5 + _GOLDEN * len(self.history)) % 1.0
        self._forward = stack = ExitStack()
        if self._compiled:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        for name, attention in self._attention.items():
            if attention is self.model:  # its hooks of this call are collected already
                self._begin(name)(module, inputs)
                stack.callback(self._end, module, inputs, None)
            else:
                for handle in _around(attention, self._begin(name), self._end):
                    stack.callback(handle.remove)
        if self._output is not None:
            stack.callback(self._output.register_forward_hook(self._see_output).remove)

    def _after_forward(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._forward is None:
            return
        self._forward.close()
        self._forward = None
        if self._output is None:
            self._see_output(module, inputs, output)
        if output is None:  # the forward pass has failed
            self._forget()
        elif self.optimizer is None:
            self._finish()
            self._step += 1

    def _begin(self, name: str) -> Callable[..., None]:
        def begin(module: nn.Module, inputs: Any) -> None:
            if not self._running:
                self._recorder.__enter__()
            self._running.append(name)

        return begin

    def _end(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._running.pop()
        if not self._running:
            self._recorder.__exit__(None, None, None)

    def _record(self, measure: Callable[[], LogitStatistics], surety: int) -> None:
        name = self._running[-1]
        if surety < self._surety.get(name, 0):
            return
        if surety > self._surety.get(name, 0):  # what was there was a router's softmax or the like
            self._products.pop(name, None)
            self._surety[name] = surety
        self._keep(name, measure())

    def _keep(self, name: str, found: LogitStatistics) -> None:
        kept = self._products.get(name)
        if kept is not None:
            found = LogitStatistics(
                torch.maximum(kept.max_logit, found.max_logit),
                kept.entropy_sum + found.entropy_sum,
                kept.num_rows + found.num_rows,
            )
        self._products[name] = found

    @torch.no_grad()
    def _see_output(self, module: nn.Module, inputs: Any, output: Any) -> None:
        logits = logits_of(output)
        if logits is None:
            return
        logits = logits.detach()
        if logits.dim() > 2:
            positions = sampled_positions(
                logits.shape[-2], self.num_queries, self._recorder.offset, logits.device
            )
            logits = logits.index_select(-2, positions)
        log_z = logits.to(exact_dtype(logits)).logsumexp(-1)
        found = torch.stack([log_z.sum(), log_z.square().sum(), log_z.new_tensor(log_z.numel())]).to(
            sum_dtype(log_z.device)
        )
        self._log_z = found if self._log_z is None else self._log_z + found

    # --- one step ---

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._step % self.every == 0:
            names = parameter_names(optimizer, self.model)
            found = [
                (names[id(parameter)], parameter.grad)
                for group in optimizer.param_groups
                for parameter in group["params"]
                if parameter.grad is not None
            ]
            # A fused optimizer under a gradient scaler takes the scale off inside of its own step.
            scale = getattr(optimizer, "grad_scale", None)
            values = root_mean_squares([grad for _, grad in found])
            if scale is not None:
                values = values / float(scale)
            self._grad_rms = NamedValues(tuple(name for name, _ in found), values)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._step % self.every == 0:
            self._finish()
        self._step += 1

    def _finish(self) -> None:
        """End a measured step: reduce what was seen and keep it."""
        if self._attention and not self._products:
            self._forget()
            raise ValueError(
                f"model was not called, or attention={[*self._attention][:5]} attends by no call that can be seen: "
                f"neither torch's scaled_dot_product_attention nor a softmax over (..., queries, keys). For other "
                f"kernels call probe.observe(name, query, key, is_causal=True) in its forward; of a compiled model "
                f"the probe must be given what torch.compile returned"
            )
        self._warn_of_unseen()
        layers, products, log_z = self._products.keys(), [*self._products.values()], self._log_z
        heads = [len(found.max_logit) for found in products]
        largest, sums = self._over_ranks(products, log_z)
        by_head = largest.double().cpu().split(heads) if heads else ()
        entropy, rows, output = sums.double().cpu().split([len(heads), len(heads), 3])
        log_z_mean, log_z_square = (output[:2] / output[2]).tolist() if output[2] > 0 else (None, None)
        self.history.append(
            Reading(
                step=self._step,
                layers=tuple(layers),
                max_logit=torch.stack([each.amax() for each in by_head]) if by_head else largest.cpu(),
                max_logit_by_head=tuple(by_head),
                mean_entropy=entropy / rows,
                log_z=log_z_mean,
                log_z_rms=None if log_z_square is None else math.sqrt(log_z_square),
                grad_rms=self._grad_rms,
                **self._of_the_optimizer(),
            )
        )
        self._forget()

    def _over_ranks(self, products: list[LogitStatistics], log_z: Tensor | None) -> tuple[Tensor, Tensor]:
        """Largest logits of all heads of all layers; sums of entropies, of rows, and of what log Z is made of."""
        device = products[0].max_logit.device if products else next(self.model.parameters()).device
        dtype = sum_dtype(device)
        if log_z is None:
            log_z = torch.zeros(3, device=device)
        largest = [found.max_logit.to(device, dtype) for found in products]
        sums = [found.entropy_sum.to(device, dtype).view(1) for found in products]
        sums += [found.num_rows.to(device, dtype).view(1) for found in products]
        maxima = torch.cat(largest) if largest else torch.zeros(0, device=device, dtype=dtype)
        total = torch.cat([*sums, log_z.to(device, dtype)])
        if self.reduce and distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(maxima, distributed.ReduceOp.MAX, group=self.group)
            distributed.all_reduce(total, group=self.group)
        return maxima, total

    def _of_the_optimizer(self) -> dict[str, NamedValues]:
        if self.optimizer is None:
            return {"update_rms": _NOTHING, "eps_ratio": _NOTHING, "parameter_rms": _NOTHING}
        found = adam_statistics(self.optimizer, self.model)
        names = parameter_names(self.optimizer, self.model)
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        return {
            "update_rms": NamedValues(found.names, found.update_rms),
            "eps_ratio": NamedValues(found.names, found.eps_ratio),
            "parameter_rms": NamedValues(
                tuple(names[id(parameter)] for parameter in parameters), root_mean_squares(parameters)
            ),
        }

    def _warn_of_unseen(self) -> None:
        unseen = [
            name
            for name, module in self._attention.items()
            if name not in self._products
            and (self._named or has_projections(module))
            and not any(seen.startswith(f"{name}.") for seen in self._products)
        ]
        if unseen and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"attention: nothing was seen of {unseen[:5]} in step {self._step}, so readings are without; "
                f"what attends by a kernel outside of torch calls probe.observe",
                stacklevel=2,
            )

    def _forget(self) -> None:
        self._surety = {}
        self._products, self._log_z, self._grad_rms = {}, None, _NOTHING


def _around(
    module: nn.Module, before: Callable[..., None], after: Callable[..., None]
) -> tuple[RemovableHandle, RemovableHandle]:
    return (
        module.register_forward_pre_hook(before),
        module.register_forward_hook(after, always_call=True),
    )


def _module_named(model: nn.Module, output: str) -> nn.Module:
    modules = {plain_name(name): module for name, module in model.named_modules()}
    if output not in modules:
        raise ValueError(
            f"output must name a module of the model, got {output!r}, there are {[*modules][1:20]}"
        )
    return modules[output]


def _compiled_inside(model: nn.Module) -> bool:
    """Whether measured steps have to be run uncompiled; refuse what cannot be."""
    if getattr(model, "_compiled_call_impl", None) is not None:
        raise ValueError(
            "model must be compiled by torch.compile(model), not by model.compile(), to be probed"
        )
    found = any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )
    if found and not hasattr(torch.compiler, "set_stance"):
        raise ValueError("model must not be compiled to be probed with torch below 2.6")
    return found
