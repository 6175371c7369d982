"""The tables of functions that a module may call on tensors with bounds."""

from __future__ import annotations

from collections.abc import Iterator
from types import GetSetDescriptorType

import torch
import torch.nn.functional as F

from hyperinterval.functions import activations, products, selections, sums
from hyperinterval.functions.common import Function, Maker, Rule, Run

__all__ = ["FACTS", "IN_PLACE", "RULES", "VIEWS", "Run"]

_PLACES = (torch, torch.Tensor, F)


def _called(names: str) -> Iterator[Function]:
    """Every function of these names: torch's, the tensor's methods, those of torch.nn.functional."""
    for name in names.split():
        for place in _PLACES:
            found = getattr(place, name, None)
            if isinstance(found, property | GetSetDescriptorType):
                yield found.__get__  # as torch names the reading of an attribute
            elif callable(found):
                yield found


_VIEWS = (
    "view reshape flatten unflatten permute transpose swapaxes movedim squeeze unsqueeze contiguous expand "
    "__getitem__ narrow select chunk split unbind tensor_split T mT detach to float double type"
)
_MAKERS: dict[str, Maker] = {
    "linear": products.linear,
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d": products.convolution,
    "matmul mm bmm __matmul__": products.matmul,
    "mul multiply __mul__ __rmul__": products.multiply,
    "div divide true_divide __truediv__ __div__": products.divide,
    "add __add__ __radd__": sums.add,
    "sub subtract __sub__": sums.subtract,
    "rsub __rsub__": sums.subtract_from,
    "neg negative __neg__": sums.negate,
    "sum mean": sums.total,
    "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d": sums.pool_average,
    "relu relu6": activations.rectifier,
    "sigmoid hardsigmoid": activations.positive,
    "tanh softsign logsigmoid selu": activations.increasing,
    "leaky_relu": activations.leaky_relu,
    "elu": activations.elu,
    "gelu": activations.gelu,
    "silu": activations.valley(-1.2784645, -0.2784645427610738),
    "mish": activations.valley(-1.1924312, -0.30884341301725027),
    "hardswish": activations.valley(-1.5, -0.375),
    "dropout dropout1d dropout2d dropout3d": activations.dropout,
    "clamp": activations.clamp,
    "max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d": selections.pool_max,
    "hardtanh": activations.hardtanh,
    "pad": selections.pad,
    _VIEWS + " cat concat stack clone amax amin maximum minimum": selections.selection,
}

RULES: dict[Function, Rule] = {
    function: maker(function) for names, maker in _MAKERS.items() for function in _called(names)
}
RULES[F.batch_norm] = sums.batch_norm(F.batch_norm)  # torch.batch_norm has another order of arguments

VIEWS = frozenset(_called(_VIEWS))
IN_PLACE: dict[Function, Function] = {
    function: getattr(torch.Tensor, name)
    for name in ["add", "sub", "mul", "div", "relu", "sigmoid", "tanh", "clamp"]
    for function in (*_called(f"{name}_"), *_called(f"__i{name}__" if name != "div" else "__itruediv__"))
}
FACTS = frozenset(
    _called(
        "shape size dim ndim ndimension dtype device numel nelement layout is_cuda is_floating_point is_complex "
        "requires_grad is_contiguous __len__ element_size get_device is_sparse is_quantized is_meta"
    )
)
"""What is asked about a tensor, not of its values."""
