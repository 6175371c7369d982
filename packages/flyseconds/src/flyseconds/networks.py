"""Small networks of one shape in a stack, evaluated by batched products."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from flyseconds._checks import count


class _Tanh(torch.autograd.Function):
    """tanh(x) = 2 sigmoid(2 x) - 1: equal to 1e-7, and a multiple faster than torch.tanh on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = (2 * x).sigmoid_().mul_(2).sub_(1)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.tanh_backward(gradient, y)


_NARROW = 8  # outputs of a layer that is narrow


class StackedMLP(nn.Module):
    """N multilayer perceptrons of one shape, evaluated by one batched matrix product per layer.

    Hidden layers are tanh; weights and biases begin as those of `torch.nn.Linear`.

    Args:
        num_networks: N.
        sizes: Widths of all layers, the input's first.
        final_tanh: Whether the output is limited to [-1, 1] by tanh.
        generator: Source of the initial weights; torch's global one if None.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        TypeError: If a size is not a whole number.
        ValueError: If a size is below 1 or there are fewer than two.

    Examples:
        >>> networks = StackedMLP(3, [5, 8, 2])
        >>> networks(torch.zeros(3, 10, 5)).shape
        torch.Size([3, 10, 2])
    """

    def __init__(
        self,
        num_networks: int,
        sizes: Sequence[int],
        *,
        final_tanh: bool = False,
        generator: torch.Generator | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if len(sizes) < 2:
            raise ValueError(f"sizes must hold the input's and the output's width, got {list(sizes)}")
        for size in (num_networks, *sizes):
            count("num_networks and sizes", size)
        self.final_tanh = final_tanh
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for fan_in, fan_out in pairwise(sizes):
            for parameters, rows in ((self.weights, fan_in), (self.biases, 1)):
                values = torch.empty(num_networks, rows, fan_out, device=device, dtype=dtype)
                parameters.append(
                    nn.Parameter(values.uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator))
                )

    def forward(self, x: Tensor, first: int | None = None) -> Tensor:
        """Map (N, B, sizes[0]) to (N, B, sizes[-1]); with `first` only the first of the networks."""
        last = len(self.weights) - 1
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias[:first], x, weight[:first])
            if index < last or self.final_tanh:
                x = _Tanh.apply(x)
        return x

    @torch.no_grad()
    def run(self, x: Tensor, first: int | None = None, *, kept: list[Tensor] | None = None) -> Tensor:
        """As `forward`, without autograd; `kept` gets all layers, for `backward_`.

        Training is many updates of small networks, whose time goes into operations and memory around the products:
        here narrow layers are turned about, and what is not kept makes room for the next layer.
        """
        last = len(self.weights) - 1
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if kept is not None:
                kept.append(x)
            weight, bias = weight[:first], bias[:first]
            if weight.shape[2] > _NARROW:
                x = torch.baddbmm(bias, x, weight)
            else:
                x = torch.baddbmm(bias.mT, weight.mT, x.mT).mT.contiguous()
            if index < last or self.final_tanh:
                x = x.mul_(2).sigmoid_().mul_(2).sub_(1)  # tanh, several times faster
        if kept is not None:
            kept.append(x)
        return x

    @torch.no_grad()
    def backward_(self, layers: list[Tensor], gradient: Tensor) -> None:
        """Set the gradients of all parameters.

        Args:
            layers: Kept by `run`, of all networks.
            gradient: Of the loss, with respect to the output.
        """
        for index, slope in self._descent(layers, gradient):
            weight, bias, x = self.weights[index], self.biases[index], layers[index]
            if weight.shape[2] > _NARROW:
                product = torch.bmm(x.mT, slope)
            else:
                product = torch.bmm(slope.mT, x).mT.contiguous()
            weight.grad, bias.grad = product.to(weight.dtype), slope.sum(1, keepdim=True).to(bias.dtype)

    @torch.no_grad()
    def input_gradient(self, layers: list[Tensor], gradient: Tensor, columns: slice) -> Tensor:
        """The gradient with respect to some columns of the input, of the networks that were run."""
        *_, (_, slope) = self._descent(layers, gradient)
        return torch.bmm(slope, self.weights[0][: len(gradient), columns].mT)

    def _descent(self, layers: list[Tensor], gradient: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The gradient with respect to what each layer does before its tanh, the last layer first."""
        last = len(self.weights) - 1
        for index in range(last, -1, -1):
            if index < last or self.final_tanh:
                gradient = torch.ops.aten.tanh_backward(gradient, layers[index + 1])
            yield index, gradient
            if index:
                weight = self.weights[index][: len(gradient)].mT
                gradient = gradient * weight if weight.shape[1] == 1 else torch.bmm(gradient, weight)

    def network(self, index: int) -> nn.Sequential:
        """A copy of one network as plain torch layers."""
        layers: list[nn.Module] = []
        for weight, bias in zip(self.weights, self.biases, strict=True):
            _, fan_in, fan_out = weight.shape
            # Not nn.Linear(...) itself: its initialisation would draw from the global generator.
            linear = skip_init(nn.Linear, fan_in, fan_out, device=weight.device, dtype=weight.dtype)
            with torch.no_grad():
                linear.weight.copy_(weight[index].mT)
                linear.bias.copy_(bias[index, 0])
            layers += [linear, nn.Tanh()]
        return nn.Sequential(*(layers if self.final_tanh else layers[:-1]))
