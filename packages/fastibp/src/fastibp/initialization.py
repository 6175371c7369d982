"""Starting points at which bounds neither explode nor die: weights for IBP, and BatchNorm everywhere."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from fastibp.boxes import Box
from fastibp.layers import copy_of, torch_layer
from fastibp.propagation import IBP
from fastibp.tables import ADDITIONS, AFFINE, BATCH_NORMS
from fastibp.tracing import Graph

_NORMS = {
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
    nn.ConvTranspose1d: nn.BatchNorm1d,
    nn.ConvTranspose2d: nn.BatchNorm2d,
    nn.ConvTranspose3d: nn.BatchNorm3d,
    nn.Linear: nn.BatchNorm1d,
}
# Between an addition and the layer that reads it, these keep the scale of a box.
_SCALE_KEEPING = (nn.ReLU, nn.LeakyReLU, nn.Identity, nn.Flatten, nn.Dropout, nn.Dropout2d)


@torch.no_grad()
def ibp_init_(
    model: nn.Module,
    skip_last: bool = True,
    residual_half: bool = True,
    generator: torch.Generator | None = None,
) -> nn.Module:
    r"""Draw weights that keep the radius of boxes constant from layer to layer, in place.

    `W ~ N(0, sigma^2)` with `sigma = sqrt(2 pi) / fan_in`: a ReLU halves the radius on average, and
    `(fan_in / 2) E|W| = (fan_in / 2) sigma sqrt(2 / pi) = 1` (paper, Section 3.2). Usual initialisations
    let the radius grow by `sqrt(fan_in)` in each layer. Biases and BatchNorm stay as they are.

    A BatchNorm behind the layer makes the box behind both independent of the scale of W: there this
    initialisation does not tighten anything at step 0. It acts through the larger relative step that Adam
    takes on small weights, and in layers without BatchNorm.

    Args:
        model: Any module with linear or convolutional layers that `torch.fx` can trace, or an `IBP` of one with
            the rules of its other parts.
        skip_last: Leave the classifier, the last such layer of the forward pass, as it is.
        residual_half: Halve the weights that read the sum of two branches, or an activation of it.
        generator: Source of randomness, on the model's device; None for torch's default.

    Returns:
        `model` itself.

    Raises:
        TypeError: If `model` cannot be traced.
        ValueError: If it has no affine layer, or one that computes its weight (weight norm, pruning).

    Examples:
        >>> model = nn.Sequential(nn.Linear(100, 400), nn.ReLU(), nn.Linear(400, 10))
        >>> weight = ibp_init_(model, generator=torch.Generator().manual_seed(0))[0].weight
        >>> round(weight.std().item() * 100 / math.sqrt(2 * math.pi), 1)
        1.0
    """
    calls = affine_calls(model)
    spared = calls[-1] if skip_last else None
    drawn: dict[int, AffineCall] = {}  # by the weight, which several layers may share
    for call in calls:
        if spared is not None and call.target == spared.target:
            continue
        if call.weight is None:
            raise ValueError(
                f"layer {call.target!r} computes its weight, by a parametrization, weight norm, pruning or its own "
                "forward pass: initialise the layer before that is added, or by hand"
            )
        if spared is None or call.weight is not spared.weight:
            drawn.setdefault(id(call.weight), call)
    for call in drawn.values():
        assert call.weight is not None
        call.weight.normal_(0, math.sqrt(2 * math.pi) / call.fan_in, generator=generator)
        if residual_half and _reads_sum(call.node, call.graph):
            call.weight.div_(2)
    return model


def add_batchnorm(model: nn.Module) -> nn.Module:
    """A copy of the model with BatchNorm behind every convolution and linear layer but the last.

    Without it behind *every* layer, also the linear ones, ReLUs of an IBP-trained network tend to die
    (paper, Section 3.3). Each layer becomes `nn.Sequential(layer, norm)` under its old name; layers that
    already have a BatchNorm behind them are left alone. Weights are copied, not drawn anew.

    Args:
        model: Any module that `torch.fx` can trace, or an `IBP` of one; its linear layers read tensors of
            shape (N, features).

    Returns:
        The copy, of the kind that was given; a new optimizer must be given its parameters.

    Raises:
        TypeError: If `model` cannot be traced.
        ValueError: If it has no affine layer, or one whose forward pass does more than its affine map.

    Examples:
        >>> model = add_batchnorm(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)))
        >>> [type(layer).__name__ for layer in model[0]], type(model[2]).__name__
        (['Linear', 'BatchNorm1d'], 'Linear')
    """
    calls = affine_calls(model)
    kept = {calls[-1].target} | {call.target for call in calls if _is_normalised(call)}
    layers = {call.bare_layer(): None for call in calls if call.target not in kept}
    copied = copy_of(model)
    names = {module: name for name, module in model.named_modules()}
    for layer in layers:
        _put_norm_behind(copied, copied.get_submodule(names[layer]))
    return copied


@torch.no_grad()
def radius_gains(model: nn.Module, box: Box) -> list[float]:
    """How much larger than the input's the mean radius is at each ReLU: a look at an initialisation.

    The nominal input is the centre of the box; the model is copied, so that no running buffer moves, and
    runs in the mode it is in.

    Args:
        model: A module, or an `IBP` of it.
        box: Input box of positive mean radius, shape (N, ...).

    Returns:
        `mean radius at the i-th ReLU / mean radius of the box`, in order of execution.

    Raises:
        ValueError: If the box is a single point.
    """
    size = box.radius.mean().item()
    if size == 0:
        raise ValueError("box must have a positive radius, it is a single point")
    bounder = copy_of(model if isinstance(model, IBP) else IBP(model))
    return [preact.radius.mean().item() / size for preact in bounder(box.center, box).preacts]


def _put_norm_behind(model: nn.Module, layer: nn.Module) -> None:
    assert isinstance(layer, nn.Linear | _ConvNd)  # which is how its name was found
    features = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    kind = next(norm for layer_type, norm in _NORMS.items() if isinstance(layer, layer_type))
    norm = kind(features, device=layer.weight.device, dtype=layer.weight.dtype).train(layer.training)
    both = nn.Sequential(layer, norm)
    for parent in list(model.modules()):
        if parent is both:
            continue
        for name, child in parent._modules.items():  # also where the layer has a second name
            if child is layer:
                parent._modules[name] = both


# --- finding the layers --------------------------------------------------------------------------------


@dataclass(frozen=True)
class AffineCall:
    """One use of a linear or convolutional layer in the forward pass.

    Attributes:
        graph: The traced model.
        node: The call: of the layer, or of a function such as `F.linear` inside of a layer of the user's.
        layer: The layer, or None where a function is called outside of any.
        target: The path of the layer, or of the weight.
        weight: The parameter, or None if the weight is computed.
    """

    graph: Graph
    node: fx.Node
    layer: nn.Module | None
    target: str
    weight: nn.Parameter | None

    @property
    def fan_in(self) -> float:
        """Number of inputs of one output."""
        assert self.weight is not None
        if isinstance(self.layer, _ConvTransposeNd):  # the kernel spreads over stride^d outputs
            terms = self.weight.numel() / self.weight.shape[1] / self.layer.groups
            return terms / math.prod(self.layer.stride)
        return self.weight[0].numel()

    def bare_layer(self) -> nn.Module:
        """The layer, if it does its affine map and nothing else.

        Raises:
            ValueError: If there is no such layer, so that it is not known where BatchNorm belongs.
        """
        if self.layer is None or not _is_bare(self.layer):
            raise ValueError(
                f"{self.target!r} ({self.node.name}) is not a layer that does its affine map and nothing else: "
                "put BatchNorm into its forward pass by hand"
            )
        return self.layer


def affine_calls(model: nn.Module) -> list[AffineCall]:
    """All of them, in order of execution."""
    graph = model.graph() if isinstance(model, IBP) else Graph(model)
    calls = [_affine_call(graph, node) for node in graph.bounded if graph.kind(node) in AFFINE]
    if not calls:
        raise ValueError("model has no linear or convolutional layer")
    return calls


def _affine_call(graph: Graph, node: fx.Node) -> AffineCall:
    if node.op == "call_module":
        layer = graph.module(node.target)
        return AffineCall(graph, node, layer, str(node.target), layer._parameters.get("weight"))
    given = node.args[1] if len(node.args) > 1 else node.kwargs["weight"]
    if not (isinstance(given, fx.Node) and given.op == "get_attr"):
        return AffineCall(graph, node, None, node.name, None)
    path = str(given.target)
    weight, owner = graph.attribute(path), path.rpartition(".")[0]
    layer = graph.root.get_submodule(owner)
    parameter = weight if isinstance(weight, nn.Parameter) else None
    if isinstance(layer, nn.Linear | _ConvNd):
        return AffineCall(graph, node, layer, owner, parameter)
    return AffineCall(graph, node, None, path, parameter)


def _is_bare(layer: nn.Module) -> bool:
    """Whether the layer's forward pass ends in its affine map."""
    if torch_layer(layer) is not None:
        return True
    graph = Graph(layer)
    return graph.kind(graph.last) in AFFINE


def _reads_sum(node: fx.Node, graph: Graph) -> bool:
    """Whether the layer's input is the sum of two computed values, or an activation of one."""
    source = node.all_input_nodes[0]
    while _keeps_scale(source, graph):
        source = source.all_input_nodes[0]
    return source.target in ADDITIONS and len(source.all_input_nodes) == 2


def _keeps_scale(node: fx.Node, graph: Graph) -> bool:
    kind = graph.kind(node)
    if node.op == "call_module":
        return kind in _SCALE_KEEPING
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    names = {"relu", "leaky_relu", "dropout", "flatten", "view", "reshape"}
    return node.op in ("call_function", "call_method") and name.rstrip("_") in names


def _is_normalised(call: AffineCall) -> bool:
    kinds = (*BATCH_NORMS, nn.functional.batch_norm)
    return any(call.graph.kind(user) in kinds for user in call.node.users)
