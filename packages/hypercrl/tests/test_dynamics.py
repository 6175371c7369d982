import math

import pytest
import torch
from helpers import Counting, seeded
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hypercrl import (
    DynamicsModel,
    HyperNetwork,
    TaskNormalizer,
    bounded_log_variance,
    gaussian_loss,
    squared_loss,
    weight_l1,
)


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    offset=st.sampled_from([0.0, 1e4, -1e6]),
    scale=st.sampled_from([1e-2, 1.0, 1e3]),
)
def test_batches_merge_to_the_statistics_of_all(sizes, offset, scale):
    normalizer = TaskNormalizer(2, torch.float64)
    normalizer.add_task()
    batches = [
        offset + scale * torch.randn(size, 2, generator=seeded(i), dtype=torch.float64)
        for i, size in enumerate(sizes)
    ]
    for one in batches:
        normalizer.update(0, one)
    whole = torch.cat(batches)
    if len(whole) < 2:
        return
    torch.testing.assert_close(normalizer.mean[0], whole.mean(0), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(normalizer.std(0), whole.std(0, unbiased=False), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        normalizer(0, whole), (whole - whole.mean(0)) / whole.std(0, unbiased=False), rtol=1e-5, atol=1e-6
    )


def test_an_offset_costs_no_digits_in_float32():
    normalizer = TaskNormalizer(1)
    normalizer.add_task()
    x = 1e4 + torch.randn(4000, 1, generator=seeded())
    for part in x.split(100):
        normalizer.update(0, part)
    exact = x.double().std(unbiased=False).item()
    assert normalizer.std(0).item() == pytest.approx(exact, rel=1e-3)


@given(
    offset=st.sampled_from([0.0, 1e4, 1e6]),
    scale=st.sampled_from([1e-150, 1e-25, 0.01, 1e25, 1e150]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_any_scale_that_the_data_can_hold_is_normalised(offset, scale, dtype):
    if scale in (1e-150, 1e150) and dtype == torch.float32:
        return
    x = (offset * min(scale, 1.0) + scale * torch.randn(500, 1, generator=seeded(), dtype=torch.float64)).to(
        dtype
    )
    normalizer = TaskNormalizer(1)
    normalizer.add_task()
    for part in x.split(60):
        normalizer.update(0, part)
    wide = x.double() / scale
    if dtype == torch.float64 or offset == 0:
        expected = (wide - wide.mean()) / wide.std(unbiased=False)
        torch.testing.assert_close(normalizer(0, x).double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(normalizer.std(0) / scale, wide.std(dim=0, unbiased=False), rtol=1e-6, atol=0)


@given(
    value=st.floats(-1e7, 1e7, width=32),
    sizes=st.lists(st.integers(1, 999), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_a_feature_that_never_changed_is_only_centred(value, sizes, dtype):
    normalizer = TaskNormalizer(1)
    normalizer.add_task()
    for size in sizes:
        normalizer.update(0, torch.full((size, 1), value, dtype=dtype) / 3)
    assert normalizer.std(0) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_statistics_and_sums_outlive_a_cast(dtype):
    model = DynamicsModel(nn.Linear(3, 2), 2, 1)
    x = 100 + torch.randn(5000, 3, generator=seeded())
    model.observe(model.add_task(), x[:, :2], x[:, 2:])
    model = model.to(dtype)
    assert model.normalizer.count == 5000
    torch.testing.assert_close(model.normalizer.mean[0], x.double().mean(0))
    low = x.to(dtype)
    loss = model.loss(dict(model.network.named_parameters()), 0, low[:, :2], low[:, 2:], low[:, :2] + 30)
    exact = (
        model.outputs(dict(model.network.named_parameters()), 0, low[:, :2], low[:, 2:]).float() - 30
    ) ** 2
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.sum().item() / 2, rel=0.05)
    flat = torch.full((3000, 2), 30.0, dtype=dtype)
    zero = torch.zeros_like(flat)
    assert torch.isfinite(gaussian_loss(flat, zero, zero))


def test_statistics_can_be_made_in_inference_mode():
    normalizer = TaskNormalizer(2)
    with torch.inference_mode():
        normalizer.update(normalizer.add_task(), torch.randn(9, 2, generator=seeded()))
    normalizer.update(0, torch.randn(9, 2, generator=seeded(1)))
    assert normalizer.count == 18


@pytest.mark.parametrize(
    "dtypes", [(torch.float64, torch.float32), (torch.int64, torch.float32), (torch.float16,) * 2]
)
def test_states_of_any_dtype_meet_weights_of_another(dtypes):
    model, (state, action) = DynamicsModel(nn.Linear(3, 2), 2, 1), (torch.ones(4, 2), torch.ones(4, 1))
    model.observe(
        model.add_task(), torch.randn(50, 2, generator=seeded()), torch.randn(50, 1, generator=seeded(1))
    )
    weights = dict(model.network.named_parameters())
    found = model.predict(weights, 0, state.to(dtypes[0]), action.to(dtypes[1]))
    torch.testing.assert_close(
        found, model.predict(weights, 0, state, action), check_dtype=False, rtol=1e-3, atol=1e-3
    )


def test_buffers_that_the_network_sets_anew_reach_the_mapping():
    model = DynamicsModel(Counting(), 2, 1)
    state, action = torch.randn(9, 2, generator=seeded()), torch.randn(9, 1, generator=seeded(1))
    model.observe(model.add_task(), state, action)
    weights = dict(model.network.state_dict())
    model.loss(weights, 0, state, action, state)
    assert weights["calls"] == 1


def test_tasks_have_statistics_of_their_own_and_they_are_saved():
    normalizer = TaskNormalizer(2)
    for shift in (0.0, 5.0):
        normalizer.update(normalizer.add_task(), shift + torch.randn(50, 2, generator=seeded()))
    assert not torch.allclose(normalizer.mean[0], normalizer.mean[1])
    before = normalizer.mean[0].clone()
    normalizer.update(1, torch.full((5, 2), 100.0))
    assert torch.equal(before, normalizer.mean[0])
    fresh = TaskNormalizer(2)
    fresh.load_state_dict(normalizer.state_dict())
    x = torch.randn(3, 2, generator=seeded(1))
    assert torch.equal(fresh(1, x), normalizer(1, x))
    normalizer.add_task()
    with pytest.raises(ValueError, match="state_dict has 2 tasks, this normalizer has 3"):
        normalizer.load_state_dict(fresh.state_dict())


def test_bad_data_is_named():
    normalizer = TaskNormalizer(2)
    normalizer.add_task()
    with pytest.raises(ValueError, match="task 0 has none"):
        normalizer(0, torch.zeros(1, 2))
    with pytest.raises(ValueError, match="its row 1 is not"):
        normalizer.update(0, torch.tensor([[0.0, 1.0], [torch.nan, 0.0]]))
    with pytest.raises(ValueError, match=r"batch must be \(batch, 2\)"):
        normalizer.update(0, torch.zeros(4, 3))
    with pytest.raises(ValueError, match="task_id must be one of the 1 tasks"):
        normalizer.update(1, torch.zeros(4, 2))
    normalizer.update(0, torch.ones(4, 2))
    with pytest.raises(ValueError, match=r"value must be \(\.\.\., 2\), got \(3, 1\)"):
        normalizer(0, torch.zeros(3, 1))
    with pytest.raises(ValueError, match="dtype must be one of"):
        TaskNormalizer(2, torch.float16)
    with pytest.raises(TypeError, match="batch must be a tensor"):
        normalizer.update(0, [[1.0, 2.0]])
    assert normalizer.count[0] == 4


def model_of(probabilistic=False):
    network = nn.Linear(6, 6 if probabilistic else 3).double()
    with torch.no_grad():
        network.weight.copy_(torch.randn(network.weight.shape, generator=seeded(), dtype=torch.float64))
        network.bias.copy_(torch.randn(network.bias.shape, generator=seeded(1), dtype=torch.float64))
    model = DynamicsModel(network, 3, 2, angles=(1,), probabilistic=probabilistic).double()
    generator = seeded(2)
    state = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    action = torch.randn(7, 2, generator=generator, dtype=torch.float64)
    model.observe(model.add_task(), state, action)
    return model, state, action, state + torch.randn(7, 3, generator=generator, dtype=torch.float64)


def by_hand(model, state, action):
    inputs = torch.stack(
        [state[:, 0], state[:, 2], state[:, 1].cos(), state[:, 1].sin(), action[:, 0], action[:, 1]], dim=1
    )
    inputs = (inputs - inputs.mean(0)) / inputs.std(0, unbiased=False)
    return inputs @ model.network.weight.T + model.network.bias


def test_the_model_predicts_the_change_from_normalised_inputs():
    model, state, action, next_state = model_of()
    weights = dict(model.network.named_parameters())
    change = by_hand(model, state, action)
    torch.testing.assert_close(model.predict(weights, 0, state, action), state + change)
    found = model.loss(weights, 0, state, action, next_state)
    torch.testing.assert_close(found, (change - (next_state - state)).square().sum() / 3)
    twin = DynamicsModel(nn.Linear(6, 3).double(), 3, 2, angles=(1,)).double()
    twin.load_state_dict(model.state_dict())
    torch.testing.assert_close(twin.predict(weights, 0, state, action), state + change)
    with pytest.raises(ValueError, match=r"saved with angles=\[1\]"):
        DynamicsModel(nn.Linear(6, 3).double(), 3, 2, angles=(2,)).double().load_state_dict(
            model.state_dict()
        )
    grid = model.predict(weights, 0, state.expand(4, 7, 3), action.expand(4, 7, 2))
    torch.testing.assert_close(grid[2], state + change)


def test_the_probabilistic_loss_is_that_of_the_official_code():
    model, state, action, next_state = model_of(probabilistic=True)
    weights = dict(model.network.named_parameters())
    mean, raw = by_hand(model, state, action).chunk(2, dim=1)
    bounded = 0.5 - torch.log1p(torch.exp(0.5 - raw))
    bounded = -10 + torch.log1p(torch.exp(bounded + 10))
    fit = ((mean - (next_state - state)) ** 2 * torch.exp(-bounded) + bounded).sum() / 3
    torch.testing.assert_close(
        model.loss(weights, 0, state, action, next_state), fit + 0.01 * (3 * 0.5 + 3 * 10)
    )
    torch.testing.assert_close(model.predict(weights, 0, state, action), state + mean)


@given(value=st.floats(-1e6, 1e6))
def test_log_variances_stay_within_their_bounds(value):
    found = bounded_log_variance(torch.tensor(value, dtype=torch.float64)).item()
    assert -10 <= found <= 0.5 + math.log1p(math.exp(-10.5)) + 1e-12


def test_the_l1_term_sums_all_weights_and_no_buffers():
    hnet = HyperNetwork(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), generator=seeded())
    hnet.add_task()
    weights = hnet(0)
    expected = sum(weights[name].abs().sum() for name in hnet.shapes)
    torch.testing.assert_close(weight_l1(weights, 0.3), 0.3 * expected)


def test_shapes_that_do_not_fit_are_named():
    model, state, action, next_state = model_of()
    weights = dict(model.network.named_parameters())
    with pytest.raises(ValueError, match=r"state must be \(\.\.\., 3\)"):
        model.predict(weights, 0, state[:, :2], action)
    with pytest.raises(ValueError, match=r"action must be \(7, 2\), got \(5, 2\)"):
        model.predict(weights, 0, state, action[:5])
    with pytest.raises(TypeError, match="action must be a tensor, got ndarray"):
        model.predict(weights, 0, state, action.numpy())
    with pytest.raises(TypeError, match="angles must be a sequence of integers, got 0"):
        DynamicsModel(nn.Linear(6, 3), 3, 2, angles=0)
    with pytest.raises(ValueError, match="low must be below high"):
        bounded_log_variance(state, 1.0, -1.0)
    with pytest.raises(ValueError, match="weights must name at least one floating tensor"):
        weight_l1({})
    with pytest.raises(ValueError, match=r"next_state must be \(7, 3\)"):
        model.loss(weights, 0, state, action, next_state[:, :1])
    with pytest.raises(ValueError, match="of one length, got 7 and 5"):
        model.observe(0, state, action[:5])
    wide = DynamicsModel(nn.Linear(6, 4).double(), 3, 2, angles=(1,)).double()
    wide.observe(wide.add_task(), state, action)
    with pytest.raises(ValueError, match=r"network must return a tensor \(batch, 3\), got \(7, 4\)"):
        wide.predict({}, 0, state, action)
    with pytest.raises(ValueError, match="angles must be different positions below state_dim=3"):
        DynamicsModel(nn.Linear(6, 3), 3, 2, angles=(3,))
    with pytest.raises(ValueError, match=r"prediction must be \(4, 1\)"):
        squared_loss(torch.zeros(4), torch.zeros(4, 1))
    with pytest.raises(ValueError, match=r"prediction must be \(4, 1\)"):
        gaussian_loss(torch.zeros(4, 1), torch.zeros(4), torch.zeros(4, 1))
