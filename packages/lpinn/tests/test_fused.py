"""The hand-written gradient of Taylor mode: that of the operations it stands for, wherever it is taken and left."""

import warnings
from itertools import pairwise

import pytest
import torch
from torch import nn

from lpinn import PeriodicFeatures, Sine, fast_derivatives, fused, tanh_mlp
from lpinn.fused import carry
from lpinn.stacks import carry_traced, pairs, steps


def stack(*sizes, activation=nn.Tanh, bias=True, last=False):
    generator = torch.Generator().manual_seed(0)
    layers = []
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        layer = nn.Linear(inputs, outputs, bias=bias, dtype=torch.float64)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.normal_(generator=generator)
        layers += [layer, activation()] if last or i < len(sizes) - 2 else [layer]
    return layers


def rows(dimensions, order, points=7, size=3):
    number = 2 + dimensions + (len(pairs(dimensions)) if order == 2 else 0)
    generator = torch.Generator().manual_seed(1)
    return torch.randn(number, points, size, generator=generator, dtype=torch.float64).requires_grad_()


def was_fused(out):
    return type(out.grad_fn).__name__ == "_CarryBackward"


def parameters_of(layers):
    return [parameter for layer in layers for parameter in layer.parameters()]


SHAPES = {
    "tanh": {},
    "sigmoid": {"activation": nn.Sigmoid},
    "without biases": {"bias": False},
    "an activation at the end": {"last": True},
}


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_those_of_the_operations_written_out(shape, dimensions, order, monkeypatch):
    monkeypatch.setattr(fused, "_BLOCK", 3)  # blocks of 3, 2 and 2 points
    layers, start = stack(3, 5, 4, 2, **SHAPES[shape]), rows(dimensions, order)
    ours, plain = carry(layers, start, dimensions), carry_traced(steps(layers), start, dimensions)
    assert was_fused(ours)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    weights = torch.randn(plain.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    inputs = [start, *parameters_of(layers)]
    for found, wanted in zip(
        *(torch.autograd.grad(out, inputs, weights) for out in (ours, plain)), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


def test_the_gradient_is_right_by_finite_differences_and_so_is_its_own():
    layers, start = stack(2, 3, 1), rows(1, 2, points=2, size=2)

    def function(start, *parameters):
        named = dict(zip(("0.weight", "0.bias", "2.weight", "2.bias"), parameters, strict=True))
        with nn.utils.stateless._reparametrize_module(nn.Sequential(*layers), named):
            out = carry(layers, start, 1)
        assert was_fused(out)
        return out

    inputs = [part.detach().clone().requires_grad_() for part in (start, *parameters_of(layers))]
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_frozen_parts_get_no_gradient_and_change_nothing_else():
    layers, start = stack(3, 4, 1), rows(1, 2)
    wanted = torch.autograd.grad(carry(layers, start, 1).square().sum(), layers[0].weight)[0]
    for frozen in (layers[0].bias, layers[2].weight):
        frozen.requires_grad_(False)
    out = carry(layers, start.detach(), 1)
    out.square().sum().backward()
    torch.testing.assert_close(layers[0].weight.grad, wanted)
    assert [layers[i].weight.grad is None for i in (0, 2)] == [False, True]
    assert layers[0].bias.grad is None


def test_a_graph_may_be_used_twice():
    layers, start = stack(3, 4, 1), rows(1, 2)
    loss = carry(layers, start, 1).square().sum()
    first, second = (torch.autograd.grad(loss, parameters_of(layers), retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_weights_changed_before_the_backward_pass_are_noticed():
    layers, start = stack(3, 4, 1), rows(1, 2)
    out = carry(layers, start, 1)
    with torch.no_grad():
        layers[2].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize(
    "layers",
    [
        stack(3, 4, 1, activation=Sine),
        stack(3, 4, 1, activation=nn.SiLU),
        [nn.Tanh(), *stack(3, 4, 1)],
        [*stack(3, 4, last=True), nn.Tanh()],
    ],
    ids=["sine", "silu", "an activation in front", "two activations in a row"],
)
def test_other_stacks_are_written_out(layers):
    start = rows(1, 2)
    out = carry(layers, start, 1)
    assert not was_fused(out)
    torch.testing.assert_close(out, carry_traced(steps(layers), start, 1))


def test_identities_and_linear_layers_in_a_row_are_carried():
    layers, start = [nn.Identity(), *stack(3, 4), *stack(4, 4, 2)], rows(2, 2)
    out = carry(layers, start, 2)
    assert was_fused(out)
    torch.testing.assert_close(out, carry_traced(steps(layers), start, 2))


@pytest.fixture
def field():
    mlp = tanh_mlp(3, 1, width=6, depth=2, generator=torch.Generator().manual_seed(0))
    features = PeriodicFeatures()
    return mlp, lambda x: fast_derivatives(mlp, features, x, x)


def test_transforms_see_the_operations(field):
    mlp, derivatives = field
    points = torch.rand(4, 1, generator=torch.Generator().manual_seed(1))
    wanted = torch.autograd.grad(
        derivatives(points).hessian.square().sum(), mlp.parameters(), allow_unused=True
    )

    class Curvature(nn.Module):
        def __init__(self):
            super().__init__()
            self.mlp = mlp

        def forward(self, x):
            return derivatives(x).hessian.square().sum()

    curvature = Curvature()
    parameters = dict(curvature.named_parameters())
    found = torch.func.grad(lambda values: torch.func.functional_call(curvature, values, (points,)))(
        parameters
    )
    for ours, theirs in zip(found.values(), wanted, strict=True):
        torch.testing.assert_close(ours, torch.zeros_like(ours) if theirs is None else theirs)
    each = torch.func.vmap(lambda x: derivatives(x[None]).value[0])(points)
    torch.testing.assert_close(each, derivatives(points).value)


def test_forward_mode_and_autocast_see_the_operations(field):
    _, derivatives = field
    points = torch.rand(4, 1, generator=torch.Generator().manual_seed(1))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(points, torch.ones_like(points))
        tangent = torch.autograd.forward_ad.unpack_dual(derivatives(dual).value).tangent
    jet = derivatives(points)
    torch.testing.assert_close(tangent, jet.space[..., 0] + jet.time)
    with torch.autocast("cpu", torch.bfloat16):
        assert derivatives(points).value.dtype == torch.bfloat16


def test_a_traced_field_has_no_function_in_it(field):
    mlp, derivatives = field
    mlp.requires_grad_(False)
    points = torch.rand(4, 1, generator=torch.Generator().manual_seed(1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(lambda x: derivatives(x).value, points, check_trace=False)
    assert "PythonOp" not in str(traced.graph)
    torch.testing.assert_close(traced(2 * points), derivatives(2 * points).value)
