import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ssorl import InverseDynamics


def make(members=1, act_dim=2, seed=0, double=True, **options):
    generator = torch.Generator().manual_seed(seed)
    options = (
        {"k": 1, "hidden": (16, 8), "low": [-2.0, 0.0][:act_dim], "high": [1.0, 4.0][:act_dim]}
        | {"dropout": 0.0}
        | options
    )
    model = InverseDynamics(3, act_dim, members=members, generator=generator, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.double() if double else model


def inputs(batch=6, act_dim=2, k=1, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, k + 2, 3, generator=generator, dtype=torch.float64)
    share = torch.rand(batch, act_dim, generator=generator, dtype=torch.float64) * 0.98 + 0.01
    return x, torch.tensor([-2.0, 0.0])[:act_dim] + share * torch.tensor([3.0, 4.0])[:act_dim]


def test_the_network_is_that_of_plain_linear_layers():
    """Members and heads one after the other, standardised by hand."""
    model, (x, _) = make(members=3), inputs()
    mean, std = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([2.0, 0.5, 1.5])
    model.set_standardiser(mean, std)
    found = model(x)
    z = ((x - mean) / (std + 1e-6)).flatten(1)
    for member in range(3):
        for head in range(2):
            h = z
            for index in range(3):
                h = h @ model.weights[index][member, head] + model.biases[index][member, head]
                h = h.clamp(min=0) if index < 2 else h
            torch.testing.assert_close(found[member, head], h, atol=1e-6, rtol=1e-6)
    mu, raw = found.unbind(1)
    base = model.eval().dist(x).base_dist.base_dist
    torch.testing.assert_close(base.loc, mu)
    torch.testing.assert_close(base.scale, (-5 + 3.5 * (raw.tanh() + 1)).exp())


def test_the_initial_weights_are_orthogonal_and_biases_zero():
    model = InverseDynamics(3, 2, hidden=(16, 8), members=2, generator=torch.Generator().manual_seed(0))
    for weight in model.weights:
        for matrix in weight.detach().flatten(0, 1):
            short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
            torch.testing.assert_close(short @ short.T, torch.eye(len(short)), atol=1e-5, rtol=0)
    assert not any(bias.any() for bias in model.biases)
    assert not torch.equal(model.weights[0][0], model.weights[0][1])


@given(seed=st.integers(0, 100))
def test_the_likelihood_is_that_of_torch_distributions(seed):
    model, (x, a) = make(members=2, seed=seed), inputs(seed=seed)
    torch.testing.assert_close(model.nll(x, a), -model.dist(x).log_prob(a), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("range_", [(-1.0, 1.0), (-0.5, 3.0)])
def test_the_density_integrates_to_one(range_):
    low, high = range_
    model = make(act_dim=1, low=low, high=high)
    x, _ = inputs(batch=1, act_dim=1)
    with torch.no_grad():  # a density that is not a needle
        model.weights[-1][:, 1].zero_()
        model.biases[-1][:, 1] = 0.1
    edges = torch.linspace(low, high, 40001, dtype=torch.float64)
    grid = ((edges[1:] + edges[:-1]) / 2)[:, None]
    density = (-model.nll(x.expand(len(grid), -1, -1), grid)).exp()
    assert float(density.sum().detach() * (high - low) / len(grid)) == pytest.approx(1, abs=1e-3)


@given(factor=st.floats(0.1, 50), offset=st.floats(-20, 20))
def test_labels_follow_the_units_of_the_actions(factor, offset):
    x, a = inputs()
    low, high = np.array([-2.0, 0.0]), np.array([1.0, 4.0])
    model = make(members=3)
    other = make(members=3, low=(factor * low + offset).tolist(), high=(factor * high + offset).tolist())
    action, variance = model.predict(x)
    scaled, scaled_variance = other.predict(x)
    torch.testing.assert_close(
        scaled, factor * action + offset, rtol=1e-5, atol=1e-5 * (factor + abs(offset))
    )
    torch.testing.assert_close(scaled_variance, factor**2 * variance, rtol=1e-4, atol=1e-8)
    a = model.low + (model.high - model.low) * (0.2 + 0.6 * (a - model.low) / (model.high - model.low))
    shift = 2 * math.log(factor)
    torch.testing.assert_close(
        other.nll(x, factor * a + offset), model.nll(x, a) + shift, rtol=1e-3, atol=1e-3
    )


def test_actions_on_the_ends_stay_finite_and_count_as_just_inside():
    for dtype in (torch.float32, torch.float64):
        model, (x, _) = make().to(dtype), inputs(batch=2)
        ends = torch.stack([model.low, model.high]).to(dtype)
        inside = ends + torch.tensor([[1.0], [-1.0]]) * 1e-6 * (model.high - model.low).to(dtype) / 2
        loss = model.nll(x.to(dtype), ends)
        loss.sum().backward()
        assert loss.isfinite().all()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
        torch.testing.assert_close(loss, model.nll(x.to(dtype), inside), rtol=0.05, atol=0)


@pytest.mark.parametrize("variance", ["pre", "delta"])
def test_variance_is_the_mixtures_second_moment(variance):
    model, (x, _) = make(members=4), inputs()
    with torch.no_grad():
        base = model.dist(x).base_dist.base_dist
        mean, std = base.loc.tanh(), base.scale
        std = std * (1 - mean**2) if variance == "delta" else std
        half = (model.high - model.low) / 2
        expected = ((std**2).mean(0) + (mean**2).mean(0) - mean.mean(0) ** 2) * half**2
        action, found = model.predict(x, variance=variance)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(action, mean.mean(0) * half + (model.high + model.low) / 2)


def test_identical_members_are_one_and_disagreement_never_lowers_the_variance():
    single, several, x = make(), make(members=3), inputs()[0]
    with torch.no_grad():
        for one, three in zip(single.parameters(), several.parameters(), strict=True):
            three.copy_(one.expand_as(three))
        for found, expected in zip(several.predict(x), single.predict(x), strict=True):
            torch.testing.assert_close(found, expected)
        before = several.predict(x)[1]
        shift = torch.tensor([-0.4, 0.0, 0.4], dtype=torch.float64)
        several.biases[-1][:, 0] += shift[:, None]
        assert (several.predict(x)[1] > before).all()


def test_dropout_stands_before_the_last_layer_in_training_alone():
    model, (x, a) = make(dropout=0.5), inputs()
    torch.manual_seed(0)
    assert not torch.equal(model(x), model(x))
    assert all(torch.equal(*pair) for pair in zip(model.predict(x), model.predict(x), strict=True))
    assert model.training
    with torch.no_grad():  # the last hidden layer is all ones, whatever comes before it
        model.weights[-2].zero_()
        model.biases[-2].fill_(1)
    assert not torch.equal(model(x), model(x))
    with torch.no_grad():
        model.weights[-1].zero_()
    assert torch.equal(model.nll(x, a), model.nll(x, a))


def test_the_window_without_the_next_state_does_not_see_it():
    model, (x, _) = make(next_state=False), inputs()
    other = x.clone()
    other[:, -1] += 5
    assert torch.equal(model.eval()(x), model(other))
    other[:, -2] += 5
    assert not torch.equal(model(x), model(other))


def test_differences_are_the_same_window_in_other_coordinates():
    x = inputs(k=2)[0]
    mean, std, step = torch.tensor([[1.0, -2.0, 0.5], [2.0, 0.5, 1.5], [0.1, 0.3, 0.2]], dtype=torch.float64)
    for next_state in (True, False):
        model = make(k=2, differences=True, next_state=next_state)
        model.set_standardiser(mean, std, step)
        seen = x if next_state else x[:, :-1]
        moves = [(seen[:, i + 1] - seen[:, i]) / (step + 1e-6) for i in range(seen.shape[1] - 1)]
        expected = torch.cat([(x[:, 2] - mean) / (std + 1e-6), *moves], dim=1)
        torch.testing.assert_close(model._features(x)[0], expected, atol=1e-6, rtol=1e-6)
    with pytest.raises(ValueError, match="step must be given where differences=True"):
        model.set_standardiser(mean, std)
    with pytest.raises(ValueError, match=r"std must be \(3,\), got \(2,\)"):
        model.set_standardiser(mean, std[:2], step)


def test_a_deterministic_model_has_squared_errors_and_disagreement_alone():
    model, (x, a) = make(members=3, deterministic=True).eval(), inputs()
    unit = model(x)[:, 0].tanh()
    target = 2 * (a - model.low) / (model.high - model.low) - 1
    torch.testing.assert_close(model.loss(x, a), ((unit - target) ** 2).sum(-1))
    half = (model.high - model.low).double() / 2
    torch.testing.assert_close(model.predict(x)[1], unit.var(0, correction=0).detach() * half**2)
    for call in (lambda: model.nll(x, a), lambda: model.dist(x)):
        with pytest.raises(ValueError, match="deterministic=True has none"):
            call()


def test_discrete_actions_are_categorical():
    model = InverseDynamics(
        3, 4, hidden=(8,), members=2, discrete=True, generator=torch.Generator().manual_seed(0)
    )
    model, x = model.double().eval(), inputs()[0]
    a = torch.tensor([0, 3, 1, 2, 2, 0], dtype=torch.int32)
    torch.testing.assert_close(model.nll(x, a), -model.dist(x).log_prob(a))
    p = model.dist(x).probs.detach().mean(0)
    action, variance = model.predict(x)
    assert torch.equal(action, p.argmax(-1))
    torch.testing.assert_close(variance, 1 - (p**2).sum(-1))
    drawn = model.sample(x[:1].expand(4000, -1, -1), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.bincount(minlength=4) / 4000, p[0].float(), atol=0.03, rtol=0)
    with pytest.raises(ValueError, match=r"actions must be integers for discrete=True"):
        model.nll(x, a.double())
    with pytest.raises(ValueError, match=r"actions must be \(6,\)"):
        model.nll(x, a[:, None])


def test_samples_have_the_mixtures_distribution():
    model, x = make(members=2, act_dim=1), inputs(batch=1)[0]
    drawn = model.sample(x.expand(20000, -1, -1), generator=torch.Generator().manual_seed(0))[:, 0]
    assert ((drawn >= model.low) & (drawn <= model.high)).all()
    generator = torch.Generator().manual_seed(1)
    base = model.eval().dist(x).base_dist.base_dist
    normal = torch.randn(10000, 2, generator=generator, dtype=torch.float64)
    expected = (base.loc[:, 0, 0] + normal * base.scale[:, 0, 0]).tanh() * 1.5 - 0.5
    levels = torch.linspace(0.05, 0.95, 10, dtype=torch.float64)
    torch.testing.assert_close(
        drawn.quantile(levels), expected.detach().flatten().quantile(levels), atol=0.06, rtol=0
    )


class Residual(nn.Module):
    def __init__(self, size, out):
        super().__init__()
        self.mix, self.norm, self.head = nn.Linear(size, size), nn.BatchNorm1d(size), nn.Linear(size, out)

    def forward(self, x):
        return self.head(self.norm(x + torch.relu(self.mix(x))))


def test_a_network_of_your_own_serves_as_well():
    torch.manual_seed(0)
    model, (x, a) = make(members=2, network=Residual, double=False).double(), inputs()
    with torch.no_grad():
        expected = torch.stack([net.eval()(x.flatten(1)) for net in model.networks])
    model.train()
    action, _variance = model.predict(x)
    torch.testing.assert_close(
        action,
        ((expected[..., :2].tanh() * 0.5 * (model.high - model.low)) + (model.high + model.low) / 2).mean(0),
    )
    assert model.networks[0].norm.training
    assert model.nll(x, a).shape == (2, 6)
    wrong = make(network=lambda size, out: nn.Linear(size, out + 1), double=False)
    with pytest.raises(ValueError, match=r"network must return a tensor \(6, 4\), got \(6, 5\)"):
        wrong(x)


def test_modes_come_back_after_an_exception():
    model = make(network=Residual, double=False)
    model.networks[0].norm.eval()
    with pytest.raises(ValueError, match=r"windows must be \(B, 3, 3\)"):
        model.predict(torch.zeros(2, 4, 3))
    assert model.training
    assert not model.networks[0].norm.training


def test_half_precision_keeps_the_standardiser_and_the_range():
    model, (x, a) = make(double=False), inputs()
    model.set_standardiser(torch.tensor([1000.3, 0.0, 5.0], dtype=torch.float64), torch.ones(3))
    expected = model.predict(x + torch.tensor([1000.3, 0.0, 5.0]))[0]
    model.to(torch.bfloat16)
    assert {model.center.dtype, model.scale.dtype, model.low.dtype} == {torch.float32}
    found = model.predict(x + torch.tensor([1000.3, 0.0, 5.0]))[0]
    assert model.weights[0].dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected.double(), atol=0.1, rtol=0)
    assert model.nll(x, a).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert make(double=False).nll(x.float(), a.float()).isfinite().all()


def test_an_offset_costs_no_digits_and_a_constant_column_is_only_centred():
    x = inputs()[0]
    offset = torch.tensor([1e6 + 0.3, -1e4, 7.7], dtype=torch.float64)
    near, far = make(), make()
    std = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    near.set_standardiser(torch.zeros(3), torch.tensor([1.0, 1.0, 1 - 1e-6]))
    far.set_standardiser(offset, std)
    torch.testing.assert_close(far.eval()(x + offset), near.eval()(x), atol=1e-5, rtol=1e-5)


def test_the_state_decides_everything_and_fits_its_own_configuration_alone():
    x = inputs()[0]
    model = make(members=2)
    model.set_standardiser(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 2.0, 3.0]))
    same = make(members=2, seed=5, low=-9.0, high=9.0)
    same.load_state_dict(model.state_dict())
    assert all(torch.equal(*pair) for pair in zip(model.predict(x), same.predict(x), strict=True))
    for option in ({"pad": "zero-raw"}, {"parity": True}, {"differences": True}):
        with pytest.raises(RuntimeError, match=f"{next(iter(option))} must be that of the saved model"):
            make(members=2, **option).load_state_dict(model.state_dict())
    with pytest.raises(RuntimeError, match="k must be that of the saved model: 1 there, 0 here"):
        make(members=2, k=0).load_state_dict(model.state_dict())


def test_a_state_that_is_refused_leaves_the_configuration_alone():
    model = make(members=2)
    with pytest.raises(RuntimeError, match="parity must be that of the saved model"):
        model.load_state_dict(make(members=2, parity=True).state_dict())
    make(members=2).load_state_dict(model.state_dict())


def test_an_index_that_stands_for_none_elsewhere_is_no_action():
    model = InverseDynamics(3, 4, hidden=(4,), members=2, discrete=True).eval()
    x = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0))
    expected = -model.dist(x).log_prob(torch.tensor([3, 0]))
    torch.testing.assert_close(model.nll(x, torch.tensor([3, 0])), expected)
    for wrong in (-100, -1, 4):
        with pytest.raises(RuntimeError, match="out of bounds"):
            model.nll(x, torch.tensor([3, wrong]))


def test_members_must_not_be_one_network():
    shared = nn.Linear(9, 4)
    with pytest.raises(ValueError, match="network must make a new module at each call"):
        InverseDynamics(3, 2, members=2, network=lambda in_features, out_features: shared)


def test_bounds_are_rounded_inwards():
    model = InverseDynamics(1, 2, hidden=(4,), low=[0.1, -0.1], high=[0.3, 0.7])
    assert (model.low.double() >= torch.tensor([0.1, -0.1], dtype=torch.float64)).all()
    assert (model.high.double() <= torch.tensor([0.3, 0.7], dtype=torch.float64)).all()


BAD = [
    ({"low": 1.0, "high": 1.0}, "low must be below high"),
    ({"low": [0.0, 0.0, 0.0]}, "low must be finite, one number or 2"),
    ({"high": math.inf}, "high must be finite"),
    ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
    ({"k": -1}, "k must be at least 0"),
    ({"members": 0}, "members must be at least 1"),
    ({"hidden": (8, 0)}, "hidden must be at least 1"),
    ({"discrete": True, "deterministic": True}, "deterministic must be False for discrete actions"),
    ({"pad": "none"}, "pad must be one of"),
]


@pytest.mark.parametrize(("options", "says"), BAD)
def test_bad_options_are_named(options, says):
    with pytest.raises(ValueError, match=says):
        InverseDynamics(3, 2, **({"hidden": (4,)} | options))


def test_bad_inputs_are_named():
    model, (x, a) = make(members=2), inputs()
    with pytest.raises(
        ValueError, match=r"actions must be \(6, 2\), one for each window, or \(2, 6, 2\), got \(5, 2\)"
    ):
        model.nll(x, a[:5])
    with pytest.raises(
        ValueError, match=r"actions must be \(6, 2\), one for each window, or \(2, 6, 2\), got \(6,\)"
    ):
        model.nll(x, a[:, 0])
    with pytest.raises(ValueError, match=r"got \(3, 6, 2\)"):
        model.nll(x, a.expand(3, -1, -1))
    with pytest.raises(ValueError, match=r"got \(2,\)"):  # as many as dimensions of an action
        model.nll(x[:2], a[0])
    with pytest.raises(TypeError, match="windows must be a tensor, got ndarray"):
        model(x.numpy())
    with pytest.raises(TypeError, match="actions must be a tensor, got ndarray"):
        model.nll(x, a.numpy())
    for moments in (
        (torch.tensor([1e150, 0.0, 0.0], dtype=torch.float64), torch.ones(3)),
        (torch.zeros(3), torch.full((3,), torch.inf)),
    ):
        with pytest.raises(ValueError, match="must be finite in float32"):
            model.set_standardiser(*moments)
    with pytest.raises(ValueError, match="windows must have 2 members in front"):
        model(x.expand(3, -1, -1, -1))
    with pytest.raises(ValueError, match="variance must be one of 'pre', 'delta'"):
        model.predict(x, variance="post")
    with pytest.raises(TypeError, match=r"k must be an integer, got 1\.5"):
        InverseDynamics(3, 2, k=1.5)
    assert model.predict(x[:0])[0].shape == (0, 2)


@pytest.mark.parametrize("network", [None, nn.Linear])
def test_each_members_own_windows_give_what_that_member_gives(network):
    torch.manual_seed(0)
    model, x = make(members=2, network=network).eval(), inputs()[0]
    other = inputs(seed=5)[0]
    found = model(torch.stack([x, other]))
    torch.testing.assert_close(found[0], model(x)[0])
    torch.testing.assert_close(found[1], model(other)[1])
