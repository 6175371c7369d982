"""Networks as users bring them: the derivatives are those of calling the module, or there is a clear error."""

import copy
import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, spectral_norm

from lpinn import (
    EulerianNet,
    FourierState,
    LagrangianNet,
    OfficialLagrangianNet,
    PeriodicFeatures,
    TimePartition,
    burgers,
    convection,
    eulerian_residual,
    fast_derivatives,
    forward_derivatives,
    lagrangian_residuals,
    lpinn_loss,
    pinn_loss,
    seq2seq,
    tanh_mlp,
)

LENGTH = 2 * math.pi


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def points(count=5, dimensions=1):
    values = torch.rand(count, dimensions + 1, generator=rng(), dtype=torch.float64)
    return LENGTH * values[:, :-1], values[:, -1:]


class ResidualStack(nn.Sequential):
    def forward(self, z):
        return z + nn.Sequential.forward(self, z)


class ScaledLinear(nn.Linear):
    def forward(self, z):
        return 3 * super().forward(z)


class SteepTanh(nn.Tanh):
    def forward(self, z):
        return torch.tanh(2 * z)


def stack(*middle):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), *middle, nn.Linear(8, 1)).double()


def hooked(register):
    mlp = stack(nn.Tanh(), nn.Linear(8, 8))
    register(mlp)
    return mlp


def pruned():
    mlp = stack(nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
    prune.random_unstructured(mlp[2], "weight", amount=0.5)
    with torch.no_grad():  # the mask and the weight meet only in the pruning hook
        mlp[2].weight_orig.mul_(2)
    return mlp


def old_weight_norm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        mlp = stack(nn.Tanh(), nn.utils.weight_norm(nn.Linear(8, 8)), nn.Tanh())
    with torch.no_grad():
        mlp[2].weight_g.mul_(2)
    return mlp


def patched():
    mlp = stack(nn.Tanh(), nn.Linear(8, 8))
    layer = mlp[2]
    layer.forward = lambda z: nn.Linear.forward(layer, z).square()
    return mlp


MODULES = {
    "residual subclass of Sequential": lambda: stack(ResidualStack(nn.Linear(8, 8), nn.Tanh())),
    "subclass of Linear": lambda: stack(nn.Tanh(), ScaledLinear(8, 8), nn.Tanh()),
    "subclass of Tanh": lambda: stack(SteepTanh()),
    "unknown activation": lambda: stack(nn.GELU()),
    "forward hook": lambda: hooked(lambda m: m[2].register_forward_hook(lambda m, i, out: 2 * out)),
    "forward pre-hook": lambda: hooked(lambda m: m[2].register_forward_pre_hook(lambda m, i: (2 * i[0],))),
    "hook on the whole": lambda: hooked(lambda m: m.register_forward_hook(lambda m, i, out: out + 1)),
    "old weight norm": old_weight_norm,
    "new weight norm": lambda: stack(nn.Tanh(), nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))),
    "pruning": pruned,
    "patched forward": patched,
    "dropout in eval": lambda: stack(nn.Tanh(), nn.Dropout(0.5)).eval(),
}


def assert_jets(ours, theirs):
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", MODULES)
def test_derivatives_are_of_what_the_module_computes(kind):
    mlp, features, (x, t) = MODULES[kind](), PeriodicFeatures(), points()
    jet = fast_derivatives(mlp, features, x, t)
    torch.testing.assert_close(jet.value, mlp(features(x, t)), rtol=0, atol=1e-12)
    assert_jets(jet, forward_derivatives(lambda x, t: mlp(features(x, t)), x, t))
    # Central differences know nothing of either path.
    step = 1e-5
    ends = [mlp(features(x + shift, t)) for shift in (-step, step)]
    torch.testing.assert_close(jet.space[..., 0], (ends[1] - ends[0]) / (2 * step), rtol=1e-6, atol=1e-6)


def test_backward_hooks_would_not_be_called_and_are_refused():
    mlp, (x, t) = stack(nn.Tanh()), points()
    mlp[0].register_full_backward_hook(lambda module, inputs, outputs: None)
    with pytest.raises(ValueError, match="mlp must not have backward hooks"):
        fast_derivatives(mlp, PeriodicFeatures(), x, t)


class Shifted(LagrangianNet):
    def forward(self, x0, t):
        x, u = super().forward(x0, t)
        return x + t.square(), 2 * u


class Doubled(EulerianNet):
    def forward(self, x, t):
        return 2 * super().forward(x, t)


class Stretched(PeriodicFeatures):
    def forward(self, x, t):
        return 2 * super().forward(x, t)


def test_a_subclass_with_a_forward_of_its_own_is_differentiated_as_it_is():
    x, t = points()
    net = Shifted(u0=torch.sin, generator=rng()).double()
    found = lagrangian_residuals(net, convection(1.0, 0.1), x, t)
    expected = lagrangian_residuals(lambda x0, t: net(x0, t), convection(1.0, 0.1), x, t)
    assert_jets(found, expected)
    # d/dt of t^2 is 2 t more than the parent's velocity.
    parent = lagrangian_residuals(
        LagrangianNet(u0=torch.sin, generator=rng()).double(), convection(1.0), x, t
    )
    torch.testing.assert_close(found.characteristics, parent.characteristics + 2 * t)

    pinn = Doubled(generator=rng()).double()
    still = EulerianNet(generator=rng()).double()
    torch.testing.assert_close(
        eulerian_residual(pinn, convection(1.0, 0.1), x, t),
        2 * eulerian_residual(still, convection(1.0, 0.1), x, t),
    )
    mlp = tanh_mlp(3, 1, 4, 1, generator=rng()).double()
    jet = fast_derivatives(mlp, Stretched(), x, t)
    torch.testing.assert_close(jet.value, mlp(2 * PeriodicFeatures()(x, t)))


@pytest.mark.parametrize("make", [lambda: LagrangianNet(u0=torch.sin), OfficialLagrangianNet])
def test_hooks_on_a_network_and_inside_it_count(make):
    x, t = points()
    net = make().double()
    list(net.modules())[-1].register_forward_hook(lambda module, inputs, output: 2 * output)
    jets = net.jets(x, t)
    expected = net(x, t)
    torch.testing.assert_close((jets[0].value, jets[1].value), expected)
    net.register_forward_hook(lambda module, inputs, output: (output[0], output[1] + 1))
    residual = lagrangian_residuals(net, burgers(0.0), x, t)
    torch.testing.assert_close(
        residual.characteristics, lagrangian_residuals(lambda *at: net(*at), burgers(0.0), x, t)[0]
    )


def test_the_moving_frames_own_derivatives_are_those_of_forward_mode():
    # With V = 2 the wrong sign of the frame's speed is off by 4 |u_x|.
    net = EulerianNet(hard_ic=True, u0=torch.sin, frame_speed=2.0, generator=rng()).double()
    x, t = points()
    assert_jets(net.jet(x, t, 2), forward_derivatives(net, x, t, 2))
    assert_jets(net.jet(x, t, 1)[:3], forward_derivatives(net, x, t, 1)[:3])
    plane = EulerianNet(
        hard_ic=True,
        length=[LENGTH, 3.0],
        u0=lambda x: x.cos().sum(1, keepdim=True),
        frame_speed=[2.0, -1.0],
        generator=rng(),
    ).double()
    x, t = points(dimensions=2)
    assert_jets(plane.jet(x, t), forward_derivatives(plane, x, t))


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm1d(8)])
def test_layers_that_make_derivatives_meaningless_are_refused_in_training(layer):
    x, t = points()
    mlp = stack(layer)
    for call in (
        lambda: fast_derivatives(mlp, PeriodicFeatures(), x, t),
        lambda: pinn_loss(EulerianNet(mlp), burgers(0.1), x, t),
        lambda: lpinn_loss(LagrangianNet(mlp, u0=torch.sin).double(), burgers(0.1), x, t),
    ):
        with pytest.raises(ValueError, match=r"mlp.* must not .* call \.eval\(\)"):
            call()
    mlp.eval()
    assert pinn_loss(EulerianNet(mlp), burgers(0.1), x, t).isfinite()


class Bare(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, features):
        return self.output(features)


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        (lambda f: (f, f), TypeError, "u_net must return a tensor, got tuple"),
        (lambda f: {"logits": f}, TypeError, "u_net must return a tensor, got dict"),
        (lambda f: f[:, 0], ValueError, r"u_net must return shape \(5, m\), got \(5,\)"),
    ],
)
def test_the_output_of_a_branch_is_a_matrix(output, error, message):
    x, t = points()
    net = LagrangianNet(Bare(output), u0=torch.sin).double()
    with pytest.raises(error, match=message):
        net(x, t)
    with pytest.raises(error, match="must return"):
        lpinn_loss(net, burgers(0.0), x, t)


def test_a_velocity_branch_has_as_many_columns_as_dimensions():
    x, t = points(dimensions=2)
    net = LagrangianNet(None, tanh_mlp(5, 1), [1.0, 1.0], u0=lambda x: x[:, :1]).double()
    for call in (lambda: net(x, t), lambda: net.jets(x, t)):
        with pytest.raises(ValueError, match=r"x_net must return shape \(5, 2\), got \(5, 1\)"):
            call()


@pytest.mark.parametrize("u0", [lambda x: x[:, 0], lambda x: torch.cat([x, x], 1)])
def test_an_initial_state_of_another_shape_is_named(u0):
    x, t = points()
    for net in (LagrangianNet(u0=u0).double(), EulerianNet(hard_ic=True, u0=u0).double()):
        with pytest.raises(ValueError, match="u0 must return shape"):
            net(x, t)
    with pytest.raises(ValueError, match="u0 must return shape"):
        lpinn_loss(LagrangianNet(u0=u0).double(), burgers(0.0), x, t)
    with pytest.raises(ValueError, match="u0 must return shape"):
        pinn_loss(EulerianNet(hard_ic=True, u0=u0).double(), burgers(0.0), x, t)


def test_maps_of_the_wrong_form_are_named():
    x, t = points()
    with pytest.raises(TypeError, match="net must return a pair"):
        lagrangian_residuals(lambda x0, t: x0, convection(1.0), x, t)
    with pytest.raises(ValueError, match=r"positions of net must return shape \(5, 1\), got \(5, 2\)"):
        lagrangian_residuals(lambda x0, t: (torch.cat([x0, t], 1), x0), convection(1.0), x, t)
    with pytest.raises(ValueError, match=r"the field must return shape \(5, m\), got \(5,\)"):
        eulerian_residual(lambda x, t: x[:, 0], convection(1.0), x, t)


def test_an_initial_state_need_not_be_a_periodic_function():
    # A pulse defined on [-3, 3] alone: the moving frame and labels beyond the period come back to it.
    def pulse(x):
        assert ((x >= -3) & (x <= 3)).all()
        return torch.exp(-(x**2) / 0.1)

    still, t = torch.linspace(-2.9, 2.9, 7, dtype=torch.float64)[:, None], torch.ones(7, 1).double()
    flat = tanh_mlp(3, 1, 4, 1)
    nn.init.zeros_(flat[-1].weight)
    pinn = EulerianNet(flat, 6.0, True, pulse, frame_speed=18.0, origin=-3.0).double()
    torch.testing.assert_close(pinn(still, t), pulse(still))  # three turns
    net = LagrangianNet(flat, length=6.0, u0=pulse, origin=-3.0).double()
    torch.testing.assert_close(net(still - 12, t)[1], pulse(still))
    assert lpinn_loss(net, burgers(0.1), still + 60, t).isfinite()


def test_the_state_dict_tells_what_decides_the_result():
    saved = LagrangianNet(length=1.0, u0=torch.sin).state_dict()
    with pytest.raises(ValueError, match="length, origin, modes are"):
        LagrangianNet(length=2.0, u0=torch.sin).load_state_dict(saved)
    # Where the period starts decides about initial states that are not periodic, such as u0 = x.
    with pytest.raises(ValueError, match="length, origin, modes are"):
        LagrangianNet(length=1.0, u0=torch.sin, origin=-0.5).load_state_dict(saved)
    samples = torch.arange(5.0)[:, None]
    state = FourierState(samples, origin=1.0).state_dict()
    with pytest.raises(ValueError, match="length, origin, modes are"):
        FourierState(samples).load_state_dict(state)
    with pytest.raises(ValueError, match="hard_ic are"):
        LagrangianNet(length=1.0, hard_ic=False).load_state_dict(saved)
    with pytest.raises(ValueError, match="u_depth are"):
        OfficialLagrangianNet(u_depth=4).load_state_dict(OfficialLagrangianNet(u_depth=5).state_dict())
    nets = [EulerianNet(), EulerianNet()]
    with pytest.raises(ValueError, match="windows are"):
        TimePartition(nets, seq2seq(2.0, 2)).load_state_dict(
            TimePartition(nets, seq2seq(1.0, 2)).state_dict()
        )
    assert all(isinstance(value, torch.Tensor) for value in saved.values())
    state = FourierState(torch.rand(9, 1), 2.0).state_dict()
    with pytest.raises(ValueError, match="length, origin, modes are"):
        FourierState(torch.rand(9, 1), 3.0).load_state_dict(state)


def test_the_loss_compiles_whole():
    net = LagrangianNet(tanh_mlp(3, 1, 4, 1), tanh_mlp(3, 1, 4, 1), u0=FourierState(torch.rand(5, 1)))
    pde, (x, t) = convection(2.0), (part.float() for part in points())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler itself
        compiled = torch.compile(lpinn_loss, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(net, pde, x, t), lpinn_loss(net, pde, x, t))


def test_a_deep_copy_computes_the_same():
    net, (x, t) = LagrangianNet(u0=torch.sin, frame_speed=2.0).double(), points()
    torch.testing.assert_close(copy.deepcopy(net)(x, t), net(x, t), rtol=0, atol=0)


def test_derivatives_without_gradient():
    x, t = points()
    net = LagrangianNet(stack(nn.GELU()), u0=torch.sin).double()
    expected = lagrangian_residuals(net, burgers(0.1), x, t).state.detach()
    with torch.no_grad():
        torch.testing.assert_close(lagrangian_residuals(net, burgers(0.1), x, t).state, expected)


class Calls(nn.Module):
    """A module around a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, z):
        return self.function(z)


@pytest.mark.parametrize(
    "normalise",
    [
        nn.LayerNorm(2, eps=0.25, elementwise_affine=False),
        nn.LayerNorm(2, eps=0.25).double(),
        lambda z: F.layer_norm(z, (2,), eps=0.25),
        lambda z: torch.layer_norm(z, (2,), eps=0.25),
        lambda z: F.instance_norm(z[:, None], eps=0.25)[:, 0],
        nn.Sequential(
            nn.Unflatten(1, (1, 2)), nn.InstanceNorm1d(1, eps=0.25, affine=True), nn.Flatten()
        ).double(),
    ],
)
def test_normalisation_over_the_features_has_its_second_derivatives(normalise):
    # Of (y, 0) with eps 1/4 it is (y, -y) / sqrt(1 + y^2); here y = a x.
    x, t = points()
    a = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)

    def field(x, t):
        return normalise(torch.cat([a * x, 0 * t], dim=1))[:, :1]

    jet = forward_derivatives(field, x, t)
    root = (1 + (1.5 * x) ** 2).sqrt()
    torch.testing.assert_close(jet.value, 1.5 * x / root)
    torch.testing.assert_close(jet.space[..., 0], 1.5 / root**3)
    torch.testing.assert_close(jet.hessian[..., 0, 0], -3 * 1.5**3 * x / root**5)
    slope = torch.autograd.grad(jet.space.sum(), a, retain_graph=True)[0]
    torch.testing.assert_close(slope, ((1 - 2 * (1.5 * x) ** 2) / root**5).sum())


def test_scales_of_normalisation_and_whole_networks_with_it():
    x, t = points()
    norm = nn.LayerNorm(8)
    torch.nn.init.uniform_(norm.weight, 0.5, 2)
    torch.nn.init.uniform_(norm.bias)
    mlp = stack(norm, nn.Tanh())
    written = stack(
        Calls(lambda z: F.group_norm(z, 1, norm.weight, norm.bias, norm.eps)), nn.Tanh()
    )  # the same, and torch's own forward mode has it right
    for ours, right in zip(
        *(fast_derivatives(net, PeriodicFeatures(), x, t) for net in (mlp, written)), strict=True
    ):
        torch.testing.assert_close(ours, right)
    channels = nn.InstanceNorm1d(2, affine=True).double()
    torch.nn.init.uniform_(channels.weight, 0.5, 2)
    torch.nn.init.uniform_(channels.bias)
    halves = stack(Calls(lambda z: channels(z.unflatten(1, (2, 4))).flatten(1)))
    same = stack(
        Calls(lambda z: F.group_norm(z.unflatten(1, (2, 4)), 2, channels.weight, channels.bias).flatten(1))
    )
    for ours, right in zip(
        *(fast_derivatives(net, PeriodicFeatures(), x, t) for net in (halves, same)), strict=True
    ):
        torch.testing.assert_close(ours, right)


def test_normalisation_is_left_out_of_compiled_graphs():
    x, t = points()
    net = LagrangianNet(stack(nn.LayerNorm(8)), u0=torch.sin).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler itself
        compiled = torch.compile(lpinn_loss, backend="eager")
        torch.testing.assert_close(compiled(net, burgers(0.1), x, t), lpinn_loss(net, burgers(0.1), x, t))
        torch.compiler.reset()
        with pytest.raises(torch._dynamo.exc.Unsupported):
            torch.compile(lpinn_loss, backend="eager", fullgraph=True)(net, burgers(0.1), x, t)


@pytest.mark.parametrize(
    "layer",
    [
        Calls(lambda z: F.dropout(z, 0.5)),
        Calls(lambda z: F.alpha_dropout(z, 0.5, training=True)),
        Calls(lambda z: F.batch_norm(z, None, None, training=True)),
        nn.RReLU(),
        nn.InstanceNorm1d(5, track_running_stats=True),
        spectral_norm(nn.Linear(8, 8)),
        parametrizations.spectral_norm(nn.Linear(8, 8)),
    ],
)
def test_functions_that_change_from_pass_to_pass_are_refused(layer):
    x, t = points()
    mlp = stack(layer)
    with pytest.raises(ValueError, match=r"mlp.* must not .* call \.eval\(\)"):
        fast_derivatives(mlp, PeriodicFeatures(), x, t)
    if not isinstance(layer, Calls):
        fast_derivatives(mlp.eval(), PeriodicFeatures(), x, t)


def test_functional_dropout_passes_when_it_is_off():
    x, t = points()
    off = stack(Calls(lambda z: F.dropout(F.dropout(z, 0.0), 0.5, training=False)))
    torch.testing.assert_close(
        fast_derivatives(off, PeriodicFeatures(), x, t).hessian,
        fast_derivatives(stack(), PeriodicFeatures(), x, t).hessian,
    )


def test_initial_states_and_features_are_looked_at_too():
    x, t = points()
    features = PeriodicFeatures()
    noisy = nn.Sequential(nn.Linear(1, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    with pytest.raises(ValueError, match="u0 must not draw dropout masks"):
        lpinn_loss(LagrangianNet(u0=noisy).double(), burgers(0.1), x, t)
    with pytest.raises(ValueError, match="features and u0 must not draw dropout masks"):
        fast_derivatives(stack(), lambda x, t: F.dropout(features(x, t)), x, t)

    @torch.inference_mode()
    def cut_off(x):
        return x.sin()

    with pytest.raises(ValueError, match=r"u0 must not be computed under torch\.inference_mode"):
        lpinn_loss(LagrangianNet(u0=cut_off).double(), burgers(0.1), x, t)
