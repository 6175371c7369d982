"""Run a model under clamps: the context manager, the single call, and the passes before it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from inductionclamp.clamps import Clamp, ClampSet, Earlier, FromPass, Heads, Through, as_clamp_set
from inductionclamp.plans import Harvest, PassKey, Plan, Step, plan
from inductionclamp.sites import Handler, SiteTable, sites_of, unwrapped

Acts = dict[str, Tensor]


class _Harvested(BaseException):
    """Ends a pass once all that is wanted of it is there."""


class _Pass:
    """One forward pass: its context and inputs, what it keeps, and what earlier passes left it."""

    def __init__(
        self,
        model: nn.Module,
        outer: Mapping[str, Handler | None],
        context: Any = None,
        inputs: Any = None,
        stop: bool = False,
    ) -> None:
        self.model = model
        self.outer = outer
        self.context = context
        self.inputs = inputs
        self.stop = stop
        self.wanted = 0
        self.acts: Acts = {}
        self.harvested: dict[PassKey, Acts] = {}
        self.visited: set[str] = set()
        self.repeated: set[str] = set()
        self.fixed = False  # whether the context is the user's and not a forward's
        self.ended = False

    def forget(self) -> None:
        """Begin anew, for a further forward of the same with-block."""
        self.acts.clear()
        self.harvested.clear()
        self.ended = False

    def check_current(self, name: str, harvested: bool) -> None:
        """Refuse what is known of a forward that is over, unless the backward pass recomputes it."""
        if self.ended and (harvested or not self.fixed) and torch._C._current_graph_task_id() == -1:
            raise RuntimeError(
                f"the clamp on {name!r} depends on the batch, but {name!r} was reached outside a forward of the model "
                "given to clamped: call that model, or give clamped the part that you call"
            )


class _Handler:
    """What happens at one site: outer clamps, then these, then the value is kept if it is wanted.

    In modules of others `copies` is set: what follows may work in place, and must spoil neither sources nor records.
    """

    def __init__(
        self,
        name: str,
        outer: Handler | None,
        steps: tuple[Step, ...],
        keep: bool,
        state: _Pass,
        copies: bool,
    ):
        self.name = name
        self.copies = copies
        self.outer = outer
        self.steps = steps
        self.keep = keep
        self.state = state

    def __call__(self, value: Tensor) -> Tensor:
        if self.outer is not None:
            value = self.outer(value)
        for step in self.steps:
            value = _overridden(value, step, self.name, self.state)
        state = self.state
        if self.copies and self.steps:
            value = value.clone()
        if self.name in state.visited:
            state.repeated.add(self.name)
        state.visited.add(self.name)
        if self.keep:
            state.acts[self.name] = value.clone() if self.copies else value
            if state.stop and len(state.acts) == state.wanted:
                raise _Harvested
        return value


def _overridden(value: Tensor, step: Step, name: str, state: _Pass) -> Tensor:
    clamp = step.clamp
    masked = callable(clamp.mask) and not isinstance(clamp.mask, Heads)
    if masked or not isinstance(clamp.source, Tensor | float | int):
        state.check_current(name, harvested=step.key is not None)
    source = _source(value, step, state)
    if not isinstance(source, Tensor):
        raise TypeError(f"source of the clamp on {name!r} must return a tensor, got {type(source).__name__}")
    if clamp.detach_source:
        source = source.detach()
    if source.is_complex() and not value.is_complex():
        raise ValueError(f"source of the clamp on {name!r} must be real, got {source.dtype}")
    if source.is_floating_point() and not (value.is_floating_point() or value.is_complex()):
        raise ValueError(
            f"source of the clamp on {name!r} must be of integers as {value.dtype}, got {source.dtype}"
        )
    source = source.to(device=value.device, dtype=value.dtype)
    _check_broadcast("source", name, source, value)
    if clamp.mask is None:
        return source.expand_as(value)
    mask = clamp.mask if isinstance(clamp.mask, Tensor) else clamp.mask(state.context, value)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        found = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask of the clamp on {name!r} must be a boolean tensor, got {found}")
    _check_broadcast("mask", name, mask, value)
    return torch.where(mask.to(value.device), source, value)


def _source(value: Tensor, step: Step, state: _Pass) -> Tensor:
    source = step.clamp.source
    if isinstance(source, Tensor):
        return source
    if isinstance(source, float | int):
        whole = isinstance(source, int)
        return torch.full((), source, dtype=value.dtype if whole else _floating(value), device=value.device)
    if isinstance(source, FromPass | Earlier):
        found = _found(step, state)
        return found if source.transform is None else source.transform(state.context, found, value)
    if isinstance(source, Through):
        inside = ClampSet([Clamp(source.at, _found(step, state))])
        job = Harvest(source.model, inside, {source.read})
        # a model grafted into itself must not meet the clamps that are running
        outer = state.outer if unwrapped(source.model) is state.model else None
        return _harvest(job, state.context, state.inputs, outer=outer)[source.read]
    return source(state.context, value)


def _floating(value: Tensor) -> torch.dtype:
    return value.dtype if value.is_floating_point() or value.is_complex() else torch.get_default_dtype()


def _found(step: Step, state: _Pass) -> Tensor:
    acts = state.acts if step.key is None else state.harvested.get(step.key, {})
    if step.reads not in acts:
        raise RuntimeError(
            f"the clamp on {step.clamp.name!r} reads {step.reads!r}, which was never produced before it"
        )
    return acts[step.reads]


def _check_broadcast(what: str, name: str, given: Tensor, value: Tensor) -> None:
    wanted, shape = value.shape, given.shape
    fits = len(shape) <= len(wanted) and all(
        size in (1, target) for size, target in zip(reversed(shape), reversed(wanted), strict=False)
    )
    if not fits:
        raise ValueError(
            f"{what} of the clamp on {name!r} must broadcast to its shape {tuple(wanted)}, got {tuple(shape)}"
        )


def _install(table: SiteTable, made: Plan, state: _Pass) -> None:
    for name in (*made.steps, *(made.kept - made.steps.keys())):
        steps = made.steps.get(name, ())
        table[name].handler = _Handler(
            name, state.outer[name], steps, name in made.kept, state, copies=not table.ordered
        )
    state.wanted = len(made.kept)


def _handlers(table: SiteTable) -> dict[str, Handler | None]:
    return {name: site.handler for name, site in table.items()}


def _restore(table: SiteTable, handlers: Mapping[str, Handler | None]) -> None:
    for name, handler in handlers.items():
        table[name].handler = handler


def _call(model: nn.Module, inputs: Any) -> Any:
    args, named = inputs
    return model(*args, **named)


def _as_call(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional and named arguments of the inputs that were given."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, tuple | list):
        return tuple(inputs), {}
    return (inputs,), {}


def _harvest(
    job: Harvest,
    context: Any,
    inputs: Any,
    model: nn.Module | None = None,
    outer: Mapping[str, Handler | None] | None = None,
) -> Acts:
    """Run a pass for some of its activations, and stop once they are there."""
    runner = unwrapped(job.model if model is None else model)  # type: ignore[arg-type]
    table = sites_of(runner)
    made = plan(job.under, table, tuple(sorted(job.names)))
    before = _handlers(table)
    base = before if outer is None else outer
    compiling = torch.compiler.is_compiling()
    # where a module may be called again, only the whole pass tells
    state = _Pass(runner, base, context, inputs, stop=table.ordered and not compiling)
    state.harvested = _harvest_all(made, context, inputs, runner, base)
    buffers = [] if compiling else _running_statistics(runner)
    try:
        _restore(table, base)
        _install(table, made, state)
        _call(runner, inputs)
    except _Harvested:
        pass
    finally:
        _restore(table, before)
        with torch.no_grad():
            for buffer, copy in buffers:
                buffer.copy_(copy)
    wanted = made.recorded
    missing = sorted(set(wanted) - state.acts.keys())
    if missing:
        raise RuntimeError(f"activations {missing} were never produced in the pass that they are read from")
    _check_once(made, state)
    return {name: state.acts[name] for name in wanted}


def _harvest_all(
    made: Plan, context: Any, inputs: Any, model: nn.Module, outer: Mapping[str, Handler | None]
) -> dict[PassKey, Acts]:
    found: dict[PassKey, Acts] = {}
    for key, job in made.harvests.items():
        _check_repeatable(model if job.model is None else job.model, inputs)
        if job.model is None:
            found[key] = _harvest(job, context, inputs, model, outer)
        else:
            with torch.no_grad():
                acts = _harvest(job, context, inputs)
            found[key] = {name: value.detach() for name, value in acts.items()}
    return found


def _check_repeatable(model: nn.Module, inputs: Any) -> None:
    """A second pass must see what the first one saw."""
    for path, module in model.named_modules():
        if module.training and (drops := _drops(module)):
            raise ValueError(
                f"model must not drop out where a clamp needs another pass: {path!r} has {drops} in training mode"
            )
    if inputs[1].get("past_key_values") is not None:
        raise ValueError(
            "past_key_values must be None where a clamp needs two passes: both would fill the cache"
        )


def _drops(module: nn.Module) -> str:
    """Name a probability of dropping; attention, recurrent and Hugging Face modules keep it as a plain number."""
    named = {"p": module.p} if isinstance(module, _DropoutNd) else vars(module)
    return next(
        (
            f"{name} = {value}"
            for name, value in named.items()
            if (name == "p" or "drop" in name) and isinstance(value, float) and value > 0
        ),
        "",
    )


def _running_statistics(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Buffers that a forward in training mode would move a second time, with copies."""
    modules = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
    return [(buffer, buffer.clone()) for module in modules for buffer in module.buffers(recurse=False)]


def _check_checkpointing(model: nn.Module) -> None:
    for path, module in model.named_modules():
        if getattr(module, "gradient_checkpointing", False) is True and module.training:
            raise ValueError(
                f"model must not checkpoint gradients under clamps ({path or 'model'!r} does): the backward pass "
                "would recompute without them; call gradient_checkpointing_disable()"
            )


def _check_once(made: Plan, state: _Pass) -> None:
    if repeated := sorted(state.repeated & set(made.recorded)):
        raise RuntimeError(
            f"activations {repeated} were produced more than once in one pass; which is meant?"
        )


def _check_reached(made: Plan, state: _Pass) -> None:
    missed = sorted(made.steps.keys() - state.visited)
    if missed:
        raise RuntimeError(
            f"clamps on {missed} had no effect: the forward never passed there (a fused path, a submodule that was not "
            "called, or torch.compile before instrument)"
        )


def run(
    model: nn.Module,
    inputs: Any,
    clamps: Any = None,
    record: Iterable[str] = (),
    *,
    context: Any = None,
) -> tuple[Any, Acts]:
    """Call a model under clamps, and return its output with the activations asked for.

    Passes that clamps read from (`FromPass`) come first, on the same inputs, and end at the last activation read.
    Outer `clamped` blocks stay active, these clamps after them.

    Args:
        model: A module with named activations (`sites_of`).
        inputs: Its inputs: a mapping (`model(**inputs)`), a tuple or list (`model(*inputs)`), or one object.
        clamps: A `ClampSet`, or clamps and lists of them.
        record: Names of activations to return, as the clamps left them; `*` stands for anything.
        context: What sources and masks that are functions get as first argument; None is `inputs`.

    Returns:
        The output, and a dictionary of activations. They carry gradients, and are copied in modules of others only.

    Raises:
        ValueError: If a name is unknown, a head out of range, a source or mask of another shape, or the model
            drops out, caches or checkpoints in a way that two passes cannot share.
        RuntimeError: If a clamp reads an activation that was not produced, or sits where no forward passes, or an
            activation to record was produced more than once (a shared module).

    Examples:
        >>> import torch
        >>> from inductionclamp import FewShotTransformer, prev_token, run
        >>> model = FewShotTransformer(num_features=6, num_labels=5, dim=16, num_heads=2)
        >>> batch = (torch.randn(2, 3, 6), torch.tensor([[0, 1, 0], [3, 2, 2]]))
        >>> logits, acts = run(model, batch, prev_token(0, heads=[1]), record=["blocks.0.attn_scores"])
        >>> acts["blocks.0.attn_scores"][0, 1].diagonal(-1)
        tensor([1., 1., 1., 1.], grad_fn=<DiagonalBackward0>)
    """
    given = as_clamp_set(clamps)
    names = (record,) if isinstance(record, str) else tuple(record)
    table = sites_of(model)
    made = plan(given, table, names)
    call = _as_call(inputs)
    context = inputs if context is None else context
    if len(given) and not torch.compiler.is_compiling():
        _check_checkpointing(model)
    before = _handlers(table)
    state = _Pass(unwrapped(model), before, context, call)
    state.harvested = _harvest_all(made, context, call, unwrapped(model), before)
    try:
        _install(table, made, state)
        output = _call(model, call)
    finally:
        _restore(table, before)
    _check_reached(made, state)
    if missing := sorted(set(made.recorded) - state.acts.keys()):
        raise RuntimeError(f"activations {missing} were never produced")
    _check_once(made, state)
    return output, {name: state.acts[name] for name in made.recorded}


@contextmanager
def clamped(
    model: nn.Module, clamps: Any = None, context: Any = None, *, record: Iterable[str] = ()
) -> Iterator[Acts]:
    """Keep clamps on a model while the block lasts, also around somebody else's training loop.

    Blocks nest, the inner clamps acting after the outer ones; whatever happens, the model leaves as it came.
    Passes that clamps read from are run before each forward of `model`.

    Args:
        model: A module with named activations (`sites_of`).
        clamps: A `ClampSet`, or clamps and lists of them.
        context: What functions get as first argument: the batch. None is each forward's own inputs (the tuple of
            positional ones, or the mapping of named ones).
        record: Names of activations to keep of the latest forward.

    Yields:
        The dictionary of those activations.

    Raises:
        ValueError: As `run` does.
        RuntimeError: As `run` does; a clamp that no forward of the block reached is told at its end.

    Examples:
        >>> import torch
        >>> from inductionclamp import FewShotTransformer, ablate_heads, clamped
        >>> model = FewShotTransformer(num_features=6, num_labels=5, dim=16, num_heads=2)
        >>> x, y = torch.randn(2, 3, 6), torch.tensor([[0, 1, 0], [3, 2, 2]])
        >>> with clamped(model, ablate_heads(1, [0]), record=["blocks.1.v"]) as acts:
        ...     model(x, y)[:, -1].sum().backward()
        >>> acts["blocks.1.v"][:, 0].abs().max().item()
        0.0
    """
    given = as_clamp_set(clamps)
    names = (record,) if isinstance(record, str) else tuple(record)
    table = sites_of(model)
    made = plan(given, table, names)
    if len(given):
        _check_checkpointing(model)
    before = _handlers(table)
    state = _Pass(unwrapped(model), before, context)
    state.fixed, state.ended = context is not None, True

    def prepare(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Begin a forward: note its inputs and run the passes that its clamps read from."""
        if table.harvesting:
            return
        call = (args, named)
        state.forget()
        state.inputs = call
        state.context = context if context is not None else (named or args)
        if made.harvests:
            table.harvesting = True
            try:
                state.harvested = _harvest_all(made, state.context, call, unwrapped(model), before)
            finally:
                table.harvesting = False

    def end(module: nn.Module, inputs: Any, output: Any) -> None:
        state.ended = not table.harvesting

    hooks = [
        model.register_forward_pre_hook(prepare, with_kwargs=True),
        model.register_forward_hook(end, always_call=True),
    ]
    try:
        _install(table, made, state)
        yield state.acts
        _check_reached(made, state)
    finally:
        for hook in hooks:
            hook.remove()
        _restore(table, before)
