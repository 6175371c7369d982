"""Activations with one minimum, and functions with the rules of their modules."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastibp import IBP, Box, linf_box, relu_balance_loss, robust_loss

MODULES = [nn.GELU(), nn.GELU(approximate="tanh"), nn.SiLU(), nn.Mish(), nn.Hardswish(), nn.PReLU(init=-0.4)]


class Applied(nn.Module):
    """A linear map, so that there is a layer to merge, after something of the caller's."""

    def __init__(self, function):
        super().__init__()
        self.function, self.last = function, nn.Linear(1, 1, bias=False)
        with torch.no_grad():
            self.last.weight.fill_(1.0)

    def forward(self, x):
        return self.last(self.function(x))


def bounds_of(function, low, high):
    low, high = (torch.tensor([[end]], dtype=torch.float64) for end in (low, high))
    model = Applied(function).double().eval()
    box = IBP(model)((low + high) / 2, Box(low, high)).box
    return box.lower.item(), box.upper.item()


@pytest.mark.parametrize("activation", MODULES, ids=lambda module: type(module).__name__)
@pytest.mark.parametrize(("low", "high"), [(-4.0, -2.0), (-3.0, 0.5), (-1.0, 2.0), (0.2, 3.0), (-0.9, -0.6)])
def test_the_bounds_of_an_activation_are_its_extremes(activation, low, high):
    activation = activation.double()
    with torch.no_grad():
        grid = torch.linspace(low, high, 200_001, dtype=torch.float64)
        values = activation(torch.cat([grid, torch.zeros(1, dtype=torch.float64).clamp(low, high)]))
    found = bounds_of(activation, low, high)
    assert found[0] == pytest.approx(float(values.min()), abs=1e-9)
    assert found[1] == pytest.approx(float(values.max()), abs=1e-9)
    assert found[0] <= float(values.min()) + 1e-15


@pytest.mark.parametrize(
    ("function", "module"),
    [
        (F.gelu, nn.GELU()),
        (F.silu, nn.SiLU()),
        (F.mish, nn.Mish()),
        (F.hardswish, nn.Hardswish()),
        (F.hardtanh, nn.Hardtanh()),
        (F.selu, nn.SELU()),
        (F.celu, nn.CELU()),
        (F.softsign, nn.Softsign()),
        (F.hardsigmoid, nn.Hardsigmoid()),
        (lambda x: F.dropout(x, 0.5, training=False), nn.Identity()),
        (lambda x: F.dropout(x, p=0.5, training=False), nn.Identity()),
    ],
)
def test_a_function_has_the_rule_of_its_module(function, module):
    assert bounds_of(function, -1.5, 0.7) == pytest.approx(bounds_of(module, -1.5, 0.7), abs=1e-12)


def test_dropout_as_a_function_drops_the_same_units_of_both_bounds():
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(50, 1, bias=False)
            nn.init.ones_(self.last.weight)

        def forward(self, x):
            return self.last(F.dropout(x, 0.5, training=True))

    x = torch.ones(1, 50)
    output = IBP(Dropping())(x, Box(x - 1, x + 1))
    kept = output.logits / 2  # each is doubled
    torch.testing.assert_close(output.box.upper, 4 * kept)
    assert 5 < float(kept.detach()) < 45


class Shapes(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.last = nn.Upsample(scale_factor=2, mode="bilinear"), nn.Linear(72, 2)

    def forward(self, x):
        padded = F.pad(self.up(x), (1, 1, 1, 1), value=0.25)
        both = torch.stack([padded, -padded], dim=1)
        return self.last(both.flatten(1))


def test_padding_stacking_and_upsampling_enclose_what_they_do():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = Shapes().double()
        x = torch.rand(3, 1, 2, 2, dtype=torch.float64)
        box = linf_box(x, 0.1)
        bounds = IBP(model, x)(x, box).box
        inside = box.lower + (box.upper - box.lower) * torch.rand(500, *x.shape, dtype=torch.float64)
    with torch.no_grad():
        values = model(inside.flatten(0, 1)).view(500, 3, 2)
    assert (values >= bounds.lower - 1e-12).all()
    assert (values <= bounds.upper + 1e-12).all()
    # Written out for one input: the weight of each pixel, from the model's own linearity.
    weight = torch.autograd.functional.jacobian(lambda image: model(image)[0], x[:1])[:, 0].flatten(1)
    radius = weight.abs() @ ((box.upper - box.lower)[0].flatten() / 2)
    assert ((bounds.upper - bounds.lower)[0] / 2 >= radius - 1e-12).all()


def test_interpolation_with_negative_weights_is_refused():
    model = nn.Sequential(nn.Upsample(scale_factor=2, mode="bicubic"), nn.Flatten(), nn.Linear(16, 2))
    x = torch.rand(1, 1, 2, 2)
    with pytest.raises(TypeError, match="bicubic"):
        IBP(model)(x, linf_box(x, 0.1))


def test_a_relu_without_inactive_neurons_is_not_out_of_balance():
    low = torch.rand(4, 5, generator=torch.Generator().manual_seed(0)) + 0.5
    assert float(relu_balance_loss([Box(low, low + 2)])) == 0
    assert float(relu_balance_loss([Box(-low - 2, -low)])) == 2  # dead
    mixed = Box(torch.tensor([[1.0, 2.0, -0.2]]), torch.tensor([[1.2, 2.2, -0.1]]))
    assert float(relu_balance_loss([mixed])) > 0.5


def test_the_loss_of_an_empty_batch_is_named():
    with pytest.raises(ValueError, match="margins must hold at least one example"):
        robust_loss(torch.zeros(0, 9))


def test_batch_statistics_are_those_of_the_clean_input_and_not_of_the_boxs_centre():
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1), nn.ReLU()).double().train()
    nn.init.ones_(model[0].weight)
    x = torch.tensor([0.0, 1.0], dtype=torch.float64).view(2, 1, 1, 1)
    (entering,) = IBP(model)(x, linf_box(x, 0.5)).preacts  # clipped to [0, 1]: its centre is not x
    assert entering.lower.flatten().tolist() == pytest.approx([-0.99998, 0.0], abs=1e-5)
    assert entering.upper.flatten().tolist() == pytest.approx([0.0, 0.99998], abs=1e-5)
