"""Starting points at which bounds neither explode nor die: weights for IBP, and BatchNorm everywhere."""

from __future__ import annotations

import copy
import math

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from fastibp.boxes import Box
from fastibp.propagation import IBP, trace
from fastibp.rules import ADDITIONS, AFFINE, BATCH_NORMS, AffineLayer

_CONVOLUTIONS = {
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
        model: Any module with linear or convolutional layers that `torch.fx` can trace.
        skip_last: Leave the classifier, the last such layer of the forward pass, as it is.
        residual_half: Halve the weights that read the sum of two branches, or an activation of it.
        generator: Source of randomness, on the model's device; None for torch's default.

    Returns:
        `model` itself.

    Raises:
        TypeError: If `model` cannot be traced.
        ValueError: If it has no affine layer.

    Example:
        >>> model = nn.Sequential(nn.Linear(100, 400), nn.ReLU(), nn.Linear(400, 10))
        >>> weight = ibp_init_(model, generator=torch.Generator().manual_seed(0))[0].weight
        >>> round(weight.std().item() * 100 / math.sqrt(2 * math.pi), 1)
        1.0
    """
    nodes = _affine_nodes(model)
    last = nodes[-1].target
    done = set()
    for node in nodes:
        if node.target in done or (skip_last and node.target == last):
            continue
        done.add(node.target)
        layer = _affine_layer(model, node.target)
        weight = layer.weight.normal_(0, math.sqrt(2 * math.pi) / _fan_in(layer), generator=generator)
        if residual_half and _reads_sum(node, model):
            weight.div_(2)
    return model


def add_batchnorm(model: nn.Module) -> nn.Module:
    """A copy of the model with BatchNorm behind every convolution and linear layer but the last.

    Without it behind *every* layer, also the linear ones, ReLUs of an IBP-trained network tend to die
    (paper, Section 3.3). Each layer becomes `nn.Sequential(layer, norm)` under its old name; layers that
    already have a BatchNorm behind them are left alone. Weights are copied, not drawn anew.

    Args:
        model: Any module that `torch.fx` can trace, whose linear layers read tensors of shape (N, features).

    Returns:
        The copy; a new optimizer must be given its parameters.

    Raises:
        TypeError: If `model` cannot be traced.
        ValueError: If it has no affine layer.

    Example:
        >>> model = add_batchnorm(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)))
        >>> [type(layer).__name__ for layer in model[0]], type(model[2]).__name__
        (['Linear', 'BatchNorm1d'], 'Linear')
    """
    nodes = _affine_nodes(model)
    last = nodes[-1].target
    normalised = {node.target for node in nodes if _is_normalised(node, model)}
    names = dict.fromkeys(str(node.target) for node in nodes if node.target not in {last, *normalised})
    copied = copy.deepcopy(model)
    for name in names:
        layer = _affine_layer(copied, name)
        features = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        kind = next(norm for layer_type, norm in _CONVOLUTIONS.items() if isinstance(layer, layer_type))
        norm = kind(features, device=layer.weight.device, dtype=layer.weight.dtype)
        parent, _, child = name.rpartition(".")
        copied.get_submodule(parent).register_module(child, nn.Sequential(layer, norm.train(layer.training)))
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
    bounder = copy.deepcopy(model if isinstance(model, IBP) else IBP(model))
    return [preact.radius.mean().item() / size for preact in bounder(box.center, box).preacts]


def _affine_nodes(model: nn.Module) -> list[fx.Node]:
    """Calls of affine layers in order of execution."""
    graph = trace(model)
    nodes = [
        node
        for node in graph.nodes
        if node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), AFFINE)
    ]
    if not nodes:
        raise ValueError("model has no linear or convolutional layer")
    return nodes


def _affine_layer(model: nn.Module, name: object) -> AffineLayer:
    layer = model.get_submodule(str(name))
    assert isinstance(layer, nn.Linear | _ConvNd)  # which is how its node was found
    return layer


def _fan_in(layer: AffineLayer) -> float:
    """Number of inputs of one output."""
    if isinstance(layer, _ConvTransposeNd):  # transposed: the kernel spreads over stride^d outputs
        return layer.weight.numel() / layer.weight.shape[1] / layer.groups / math.prod(layer.stride)
    return layer.weight[0].numel()


def _reads_sum(node: fx.Node, model: nn.Module) -> bool:
    """Whether the layer's input is the sum of two computed values, or an activation of one."""
    source = node.all_input_nodes[0]
    while _keeps_scale(source, model):
        source = source.all_input_nodes[0]
    return source.target in ADDITIONS and len(source.all_input_nodes) == 2


def _keeps_scale(node: fx.Node, model: nn.Module) -> bool:
    if node.op == "call_module":
        return isinstance(model.get_submodule(str(node.target)), _SCALE_KEEPING)
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return node.op != "placeholder" and name.rstrip("_") in {
        "relu",
        "leaky_relu",
        "flatten",
        "view",
        "reshape",
    }


def _is_normalised(node: fx.Node, model: nn.Module) -> bool:
    return any(
        user.op == "call_module" and isinstance(model.get_submodule(str(user.target)), BATCH_NORMS)
        for user in node.users
    )
