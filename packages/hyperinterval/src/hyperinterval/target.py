"""Running an ordinary module with boxes in place of its parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules import module as torch_modules

from hyperinterval.bounded import Bounded, as_box
from hyperinterval.functions import Run
from hyperinterval.intervals import IntervalTensor
from hyperinterval.rules import _RULES, IntervalRule


def interval_forward(
    module: nn.Module,
    params: Mapping[str, IntervalTensor],
    x: Tensor | IntervalTensor,
    *,
    rules: Mapping[type[nn.Module], IntervalRule] | None = None,
    outward: bool = False,
) -> IntervalTensor:
    """Bound the output of a module over every choice of its parameters in their boxes.

    The module is walked layer by layer, each bounded by its rule (arXiv 2405.15444, section 3). A
    `torch.nn.Sequential` is entered, and the layers of `INTERVAL_RULES` are known by their exact type. Any other
    module runs its own `forward` on tensors that know their bounds: linear layers and convolutions, sums,
    products, pooling, activations, batch normalisation in eval mode, reshaping, residual connections, hooks.
    A function that has no sound rule (softmax, layer normalisation, attention, a branch on values) is
    refused by name.

    Everything after a ReLU (or another non-negative layer) uses the exact product rule, as does a single input
    point of any sign; a first layer on an input *box* uses it if that box was built with `nonneg=True`.

    Args:
        module: The target network; its own parameters serve where `params` has none.
        params: Boxes by parameter name, as `IntervalHypernetwork` returns them.
        x: Input tensor, or input box, of the module's input shape.
        rules: Rules for further layer types, `rule(layer, boxes, x, outward) -> IntervalTensor`, with the
            layer's boxes under its own parameter names. They come before all else, at any depth.
        outward: Make the bounds hold for computed values as well, see `interval_linear`.

    Returns:
        The output box; its `mid` is the ordinary output at the middle parameters.

    Raises:
        ValueError: If a name or a shape in `params` is not the module's, or something it does has no sound rule.
        TypeError: If `x` is not of floats, or the module returns anything but one tensor.

    Examples:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> boxes = {n: IntervalTensor.from_mid_rad(p, torch.full_like(p, 0.1)) for n, p in net.named_parameters()}
        >>> x = torch.tensor([[1.0, -2.0]])
        >>> interval_forward(net, boxes, x).contains(net(x))
        tensor([[True]])
    """
    return bounds(module, params, x, rules or {}, Run(outward=outward))


def bounds(
    module: nn.Module,
    params: Mapping[str, IntervalTensor],
    x: Tensor | IntervalTensor,
    rules: Mapping[type[nn.Module], IntervalRule],
    run: Run,
) -> IntervalTensor:
    """Do the work of `interval_forward`."""
    params = _under_every_name(module, params)
    return _walk(module, "", params, as_box(x), rules, run)


def relaxed_forward(module: nn.Module, params: Mapping[str, IntervalTensor], x: Tensor) -> IntervalTensor:
    """Run any module at the lower, middle and upper parameters and sort the three outputs.

    The paper's relaxed mode for networks with batch normalisation (arXiv 2405.15444; `full_interval=False`
    in the official code). **There is no guarantee**: a member of the boxes may well leave the result.
    Dropout draws one mask for the three; the middle run alone updates the module's buffers.

    Args:
        module: Any module.
        params: Boxes by parameter name.
        x: Input tensor of the module's input shape.

    Returns:
        The smallest, median and largest of the three outputs, elementwise.

    Raises:
        ValueError: If a name or a shape in `params` is not the module's.
        TypeError: If the module returns anything but one tensor.

    Examples:
        >>> net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        >>> boxes = {n: IntervalTensor.from_mid_rad(p, torch.full_like(p, 0.1)) for n, p in net.named_parameters()}
        >>> relaxed_forward(net, boxes, torch.zeros(8, 2)).shape
        torch.Size([8, 1])
    """
    _check_params(module, params)
    outputs = []
    for bound in ("lo", "hi"):
        values = {name: getattr(box, bound) for name, box in params.items()}
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        # Every run starts at the same state of the generator: one dropout mask for the three.
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            outputs.append(functional_call(module, {**values, **buffers}, (x,)))
    outputs.append(functional_call(module, {name: box.mid for name, box in params.items()}, (x,)))
    if not isinstance(outputs[-1], Tensor):
        raise TypeError(f"module must return one tensor, got {type(outputs[-1]).__name__}")
    lo, middle, hi = torch.stack(outputs).sort(dim=0).values.unbind()
    return IntervalTensor(lo, hi, middle, validate=False)


def _check_params(module: nn.Module, params: Mapping[str, IntervalTensor]) -> None:
    own = dict(module.named_parameters())
    for name, box in params.items():
        if name not in own:
            raise ValueError(f"params has {name!r}, which is no parameter of {type(module).__name__}")
        if not isinstance(box, IntervalTensor):
            raise TypeError(f"params[{name!r}] must be an IntervalTensor, got {type(box).__name__}")
        if box.shape != own[name].shape:
            raise ValueError(
                f"params[{name!r}] must have shape {tuple(own[name].shape)}, got {tuple(box.shape)}"
            )


def _under_every_name(
    module: nn.Module, params: Mapping[str, IntervalTensor]
) -> Mapping[str, IntervalTensor]:
    """Check the boxes and repeat those of shared parameters under each of their names."""
    _check_params(module, params)
    names = list(module.named_parameters(remove_duplicate=False))
    if len(names) == len(list(module.named_parameters())):
        return params
    first: dict[int, str] = {}
    for name, value in names:
        first.setdefault(id(value), name)
    return {name: params[first[id(value)]] for name, value in names if first[id(value)] in params}


def _walk(
    layer: nn.Module,
    path: str,
    params: Mapping[str, IntervalTensor],
    x: IntervalTensor,
    rules: Mapping[type[nn.Module], IntervalRule],
    run: Run,
) -> IntervalTensor:
    # The exact type as torch made it: anything else may compute something else, and runs its own forward.
    rule = rules.get(type(layer)) or (_RULES.get(type(layer)) if _is_as_made(layer) else None)
    if rule:
        boxes = {
            name: params.get(f"{path}{name}") or as_box(value) for name, value in layer.named_parameters()
        }
        return rule(layer, boxes, x, run.outward)
    if type(layer).forward is nn.Sequential.forward and not _has_hooks(layer):
        for name, child in layer._modules.items():  # named_children leaves out a layer's second use
            assert child is not None
            x = _walk(child, f"{path}{name}.", params, x, rules, run)
        return x
    if wrapped := _wrapped(layer):
        return _walk(getattr(layer, wrapped), f"{path}{wrapped}.", params, x, rules, run)
    return _run(layer, path, params, x, rules, run)


def _has_hooks(layer: nn.Module) -> bool:
    everywhere = torch_modules._global_forward_hooks or torch_modules._global_forward_pre_hooks
    return bool(everywhere or layer._forward_hooks or layer._forward_pre_hooks) or "forward" in layer.__dict__


def _is_as_made(layer: nn.Module) -> bool:
    """Return whether a layer has no hooks, and neither weight nor bias is a buffer or a plain tensor."""
    for name in ("weight", "bias"):
        if name in layer._buffers or name in layer.__dict__:
            return False
    return not _has_hooks(layer)


def _wrapped(layer: nn.Module) -> str | None:
    """Return under which name a compiled or parallel module holds the module that it runs."""
    if type(layer).__name__ == "OptimizedModule":
        return "_orig_mod"
    if type(layer) in (nn.DataParallel, nn.parallel.DistributedDataParallel):
        return "module"
    return None


def _run(
    layer: nn.Module,
    path: str,
    params: Mapping[str, IntervalTensor],
    x: IntervalTensor,
    rules: Mapping[type[nn.Module], IntervalRule],
    run: Run,
) -> IntervalTensor:
    """Let a module run its own `forward` on tensors that know their bounds."""
    which = f"layer {path.rstrip('.')!r}" if path else "the module"
    where = f"{which} is {type(layer).__name__}"
    if any(isinstance(child, torch.jit.ScriptModule) for child in layer.modules()):
        raise ValueError(f"{where}, which holds a compiled script: pass the module that it was made of")
    tensors = {id(box): Bounded.of(box, run) for box in params.values()}  # one for all names of a shared one
    weights: dict[str, Tensor] = {
        name.removeprefix(path): tensors[id(box)] for name, box in params.items() if name.startswith(path)
    }
    weights |= {name: buffer.clone() for name, buffer in layer.named_buffers()}
    with _as_before(layer):
        _follow_rules(layer, rules, run)
        try:
            out = functional_call(layer, weights, (Bounded.of(x, run),))
        except ValueError as error:
            raise ValueError(
                f"{where}: {error}; pass a rule for the layer in rules=, or use relaxed_forward (no guarantee)"
            ) from error
    if not isinstance(out, Bounded):
        raise TypeError(f"{where}, which must return one tensor that depends on x, got {type(out).__name__}")
    return out.box


@contextmanager
def _as_before(layer: nn.Module) -> Iterator[None]:
    """Leave no attribute behind that a forward, a hook or a rule has set."""
    kept = [(child, dict(vars(child))) for child in layer.modules()]
    try:
        yield
    finally:
        for child, attributes in kept:
            vars(child).clear()
            vars(child).update(attributes)


def _follow_rules(layer: nn.Module, rules: Mapping[type[nn.Module], IntervalRule], run: Run) -> None:
    """Put the caller's rules, and what compiled modules were made of, in place of the forwards."""
    for child in layer.modules():
        if rule := rules.get(type(child)):
            vars(child)["forward"] = _Ruled(child, rule, run)
        elif wrapped := _wrapped(child):
            vars(child)["forward"] = getattr(child, wrapped)


class _Ruled:
    """A rule as a layer's forward."""

    def __init__(self, layer: nn.Module, rule: IntervalRule, run: Run) -> None:
        self.layer, self.rule, self.run = layer, rule, run

    def __call__(self, x: Tensor) -> Bounded:
        boxes = {name: as_box(value) for name, value in self.layer.named_parameters()}
        del vars(self.layer)["forward"]  # the rule may run the layer itself
        try:
            return Bounded.of(self.rule(self.layer, boxes, as_box(x), self.run.outward), self.run)
        finally:
            vars(self.layer)["forward"] = self
