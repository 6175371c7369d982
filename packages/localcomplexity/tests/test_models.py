"""Models as people write them: skips, functional activations, activations of other libraries."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from localcomplexity import LocalComplexity, exact_segment, exact_slice

SQUARE = torch.tensor([[-2.0, -2.0], [2.0, -2.0], [2.0, 2.0], [-2.0, 2.0]])


class Residual(nn.Module):
    """A skip that is added, a slope for each channel, and activations as functions."""

    def __init__(self):
        super().__init__()
        self.enter, self.leave = nn.Linear(2, 6), nn.Linear(6, 3)
        self.branch = nn.Sequential(nn.Linear(6, 6), nn.PReLU(6), nn.Dropout(), nn.Linear(6, 6))
        with torch.no_grad():
            self.branch[1].weight.copy_(torch.linspace(-0.5, 0.6, 6))

    def forward(self, x):
        hidden = torch.relu(self.enter(x))
        hidden = hidden + self.branch(hidden)
        return self.leave(nn.functional.leaky_relu(hidden, 0.2))


class Wrapped(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)


@pytest.fixture(scope="module")
def residual():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return Residual().double().eval()


def test_the_bends_of_a_residual_network_are_those_of_its_second_differences(residual):
    start, end = torch.tensor([-3.0, -2.0]).double(), torch.tensor([3.0, 2.5]).double()
    found = exact_segment(residual, start, end).numpy()
    t = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    with torch.no_grad():
        y = residual(start + (end - start) * t.unsqueeze(1))
    bent = t[1:-1][(y[2:] - 2 * y[1:-1] + y[:-2]).abs().amax(1) > 1e-9].numpy()
    seen = [group.mean() for group in np.split(bent, np.where(np.diff(bent) > 2e-5)[0] + 1)]
    assert len(found) == len(seen) > 8
    np.testing.assert_allclose(found, seen, atol=1e-5)


def test_the_regions_of_a_residual_network_carry_its_own_maps(residual):
    frame = torch.eye(2, dtype=torch.float64)
    partition = exact_slice(residual, torch.zeros(2, dtype=torch.float64), *frame, SQUARE)
    points = 4 * torch.rand(300, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 2
    region = partition.locate(points)
    said = torch.einsum("qk,qkn->qn", points, partition.slopes[region]) + partition.offsets[region]
    torch.testing.assert_close(said, residual(points).detach(), rtol=0, atol=1e-12)
    assert len(partition) > 30
    assert float(partition.areas.sum()) == pytest.approx(16.0)


def test_a_class_around_a_sequence_is_the_sequence(mlp):
    net = mlp(2, 8, 8, 1)
    ends = torch.tensor([-3.0, -2.0]).double(), torch.tensor([3.0, 2.5]).double()
    assert torch.equal(exact_segment(Wrapped(Wrapped(net)), *ends), exact_segment(net, *ends))


class Doubled(nn.ReLU):
    def forward(self, x):
        return 2 * super().forward(x)


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2), Doubled()), "got the function mul"),
        (Branching(), "must be traceable by torch.fx"),
        (nn.Sequential(nn.LSTM(2, 2)), "got LSTM at '0'"),
    ],
)
def test_what_cannot_be_taken_apart_is_named(model, message):
    with pytest.raises(TypeError, match=message):
        exact_segment(model, torch.zeros(2), torch.ones(2))


def test_a_hook_is_not_passed_over():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model[0].register_forward_hook(lambda module, args, output: 2 * output)
    with pytest.raises(TypeError, match=r"must have no forward hooks .* got one on Linear at '0'"):
        exact_segment(model, torch.zeros(2), torch.ones(2))


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class NormAct(nn.BatchNorm1d):
    """Fused, as some libraries have it: its input is no pre-activation."""

    def forward(self, x):
        return torch.relu(super().forward(x))


def test_activations_of_other_libraries_are_read_by_default():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 8), QuickGELU(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 1))
    x = torch.rand(20, 3, generator=torch.Generator().manual_seed(1))
    options = {"num_directions": 2, "radius": 0.5, "generator": torch.Generator().manual_seed(2)}
    found = LocalComplexity(model, **options)(x)
    assert found.names == ("1", "3")
    options["generator"] = torch.Generator().manual_seed(2)
    named = LocalComplexity(model, layers=["0", "2"], **options)(x)
    assert torch.equal(found.per_layer, named.per_layer)
    assert found.per_layer.sum() > 0


@pytest.mark.parametrize("activation", [torch.relu, nn.functional.gelu, torch.Tensor.relu, torch.tanh])
def test_activations_applied_as_functions_are_warned_of(activation):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.act, self.second = nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4)

        def forward(self, x):
            return activation(self.second(self.act(self.first(x))))

    x = torch.rand(5, 3)
    with pytest.warns(UserWarning, match=r"activations as functions, which are not counted: \w+ \(1 times\)"):
        assert LocalComplexity(Mixed(), num_directions=2)(x).names == ("act",)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert LocalComplexity(Mixed(), layers=["first", "second"], num_directions=2)(x).names == (
            "first",
            "second",
        )
        LocalComplexity(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), num_directions=2)(x)


def test_a_fused_normalisation_is_not_taken_for_an_activation():
    with pytest.raises(ValueError, match="no activation module to hook"):
        LocalComplexity(nn.Sequential(nn.Linear(3, 4), NormAct(4)))


def test_a_unit_that_is_zero_everywhere_bends_nowhere():
    layer = nn.Linear(2, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]))
        layer.bias.zero_()
    # At the vertices of one direction, x = 0 and x = 0.5: z is (0, 0), (0, 0.5) and (0, -0.5).
    directions = torch.tensor([[1.0, 0.0]])
    probe = LocalComplexity(nn.Sequential(layer, nn.ReLU()), directions=directions, radius=0.25)
    assert int(probe(torch.tensor([[0.25, 0.0]])).total) == 1  # below zero and at it; not at it and above
