import pytest
import torch
from helpers import logits, make_gap, probabilities, rng, rows
from hypothesis import given
from hypothesis import strategies as st

from h2orl import DynamicsGap, Transitions, fit_gap, sim_omega


def parts(batch):
    return batch.observation, batch.action, batch.next_observation


def test_the_log_ratio_is_the_papers_and_the_classifier_of_state_and_action_cancels():
    gap, batch = make_gap(), rows()
    sa, sas = probabilities(gap, *parts(batch))
    papers = sas[:, 0].log() - sas[:, 1].log() - sa[:, 0].log() + sa[:, 1].log()
    before = gap.log_ratio(*parts(batch))
    torch.testing.assert_close(before, papers)
    with torch.no_grad():
        for parameter in gap.d_sa.parameters():
            parameter.mul_(-3)
    assert torch.equal(gap.log_ratio(*parts(batch)), before)


def test_the_losses_and_their_gradients_are_those_of_two_official_optimisers():
    gap, real, sim = make_gap(), rows(10, seed=1), rows(6, seed=2)
    found = gap.loss(real, sim, input_noise=0.0)
    (sa_real, sas_real), (sa_sim, sas_sim) = (probabilities(gap, *parts(side)) for side in (real, sim))
    sa = -sa_real[:, 0].log().mean() - sa_sim[:, 1].log().mean()
    sas = -sas_real[:, 0].log().mean() - sas_sim[:, 1].log().mean()
    torch.testing.assert_close(found.sa, sa)
    torch.testing.assert_close(found.sas, sas)
    # d_sa steps with both gradients, d_sas with its own.
    both = torch.autograd.grad(sa + sas, list(gap.d_sa.parameters()), retain_graph=True)
    own = torch.autograd.grad(sas, list(gap.d_sas.parameters()))
    found.total.backward()
    for parameter, expected in zip(gap.parameters(), [*both, *own], strict=True):
        torch.testing.assert_close(parameter.grad, expected)


def test_noise_of_the_inputs_is_on_state_action_and_next_state_of_both_sides():
    gap, real, sim = make_gap(), rows(4, seed=1), rows(4, seed=2)
    source = rng(7)
    left, right = torch.randn(8, 5, generator=source), torch.randn(8, 3, generator=source)
    noisy = [
        Transitions(
            side.observation + 0.3 * left[part, :3],
            side.action + 0.3 * left[part, 3:],
            side.next_observation + 0.3 * right[part],
        )
        for side, part in ((real, slice(4)), (sim, slice(4, 8)))
    ]
    for found, expected in zip(gap.loss(real, sim, 0.3, rng(7)), gap.loss(*noisy, 0.0), strict=True):
        torch.testing.assert_close(found, expected)


def test_the_gap_is_the_mean_over_noisy_next_states():
    gap, batch = make_gap(), rows(20)
    std = torch.tensor([0.5, 1.0, 2.0])
    noise = torch.randn(20, 7, 3, generator=rng(5))
    state, action, following = (part.repeat_interleave(7, 0) for part in parts(batch))
    following = following + (std * noise).flatten(0, 1)
    difference = logits(gap.d_sas, state, action, following)
    expected = (difference[:, 1] - difference[:, 0]).view(20, 7).mean(1)
    found = gap.gap(*parts(batch), n=7, noise_std=std, generator=rng(5))
    assert 0 < (expected > 0).sum() < 20
    torch.testing.assert_close(found, expected.clamp_min(0))
    assert (found > 0).all()
    assert gap.gap(*parts(batch), n=7, noise_std=std, generator=rng(5), max_gap=0.01).max() <= 0.01


def test_the_correction_is_weight_and_omega_in_one_pass():
    gap, batch = make_gap(), rows(20)
    found = gap.correction(*parts(batch), n=3, noise_std=0.7, generator=rng(1), lo=0.9, hi=1.02)
    torch.testing.assert_close(found.weight, gap.weight(*parts(batch), lo=0.9, hi=1.02))
    assert {0.9, 1.02} <= {round(value, 4) for value in found.weight.tolist()}
    torch.testing.assert_close(found.gap, gap.gap(*parts(batch), n=3, noise_std=0.7, generator=rng(1)))
    torch.testing.assert_close(found.omega, sim_omega(found.gap))
    torch.testing.assert_close(found.log_ratio, gap.log_ratio(*parts(batch)))
    assert not any(column.requires_grad for column in found)


@given(scale=st.floats(0.1, 1e3), bound=st.sampled_from([0.5, 2.0, 3.0]), seed=st.integers(0, 99))
def test_the_log_ratio_never_leaves_twice_the_bound(scale, bound, seed):
    gap, batch = make_gap(seed=seed, logit_bound=bound), rows(seed=seed)
    with torch.no_grad():
        for parameter in gap.parameters():
            parameter.mul_(scale)
    assert gap.log_ratio(*parts(batch)).abs().max() <= 2 * bound * (1 + 1e-6)


@given(lo=st.floats(0, 1), width=st.floats(0, 2), seed=st.integers(0, 99))
def test_weights_are_clamped_and_rise_with_the_log_ratio(lo, width, seed):
    gap, batch = make_gap(seed=seed), rows(seed=seed)
    weight = gap.weight(*parts(batch), lo=lo, hi=lo + width)
    assert ((weight >= lo - 1e-6) & (weight <= lo + width + 1e-6)).all()
    order = gap.log_ratio(*parts(batch)).argsort()
    assert (weight[order].diff() >= 0).all()


def test_classifiers_that_know_nothing_change_nothing():
    gap, batch = make_gap(), rows()
    with torch.no_grad():
        for parameter in gap.parameters():
            parameter.zero_()
    found = gap.correction(*parts(batch), noise_std=1.0)
    assert found.log_ratio.tolist() == [0] * 12
    assert found.weight.tolist() == [1] * 12
    torch.testing.assert_close(found.omega, torch.full((12,), 1 / 12))


def test_dropout_acts_in_the_loss_and_never_in_an_evaluation():
    gap, batch, other = make_gap(dropout=0.5), rows(), rows(seed=1)
    gap.train()
    assert torch.equal(gap.log_ratio(*parts(batch)), gap.log_ratio(*parts(batch)))
    assert gap.loss(batch, other, 0.0).sas != gap.loss(batch, other, 0.0).sas
    gap.eval()
    assert gap.loss(batch, other, 0.0).sas == gap.loss(batch, other, 0.0).sas


def test_standardized_inputs_are_centred_scaled_and_kept_in_the_state():
    batch = rows(50)
    far = Transitions(batch.observation * 7 + 1e5, batch.action * 0.01, batch.next_observation * 7 + 1e5)
    far.observation[:, 1] = far.next_observation[:, 1] = 3.0
    gap = make_gap().standardize(far)
    columns = far.observation.double()
    scaled = [
        (values.double() - columns.mean(0)) / columns.std(0).clamp_min(1e-9) for values in parts(far)[::2]
    ]
    for values in scaled:
        values[:, 1] = 0
    action = (far.action - far.action.mean(0)) / far.action.std(0)
    plain = make_gap()
    expected = plain.log_ratio(scaled[0].float(), action, scaled[1].float())
    torch.testing.assert_close(gap.log_ratio(*parts(far)), expected, atol=2e-3, rtol=1e-3)
    other = make_gap(seed=9)
    other.load_state_dict(gap.state_dict())
    assert torch.equal(other.log_ratio(*parts(far)), gap.log_ratio(*parts(far)))


def test_the_bound_travels_with_the_weights():
    gap, batch = make_gap(logit_bound=0.5), rows()
    other = make_gap(seed=4)
    other.load_state_dict(gap.state_dict())
    assert torch.equal(other.log_ratio(*parts(batch)), gap.log_ratio(*parts(batch)))


def test_fitting_learns_and_leaves_the_mode_as_it_was():
    gap, (real, sim) = make_gap().eval(), (rows(200, seed=1), rows(200, seed=2))
    sim = Transitions(sim.observation, sim.action, sim.next_observation + 2)
    losses = fit_gap(gap, real, sim, 60, batch_size=64, learning_rate=1e-2, generator=rng())
    assert losses[-10:, 1].mean() < 0.7 * losses[:10, 1].mean()
    assert not gap.training


def test_fitting_restores_the_mode_also_after_an_error():
    def stop(module, inputs):
        assert module.training
        raise RuntimeError("stopped")

    gap, batch = make_gap().eval(), rows()
    gap.register_forward_pre_hook(stop)
    with pytest.raises(RuntimeError, match="stopped"):
        fit_gap(gap, batch, batch, 5)
    assert not gap.training


def test_half_precision_inputs_and_autocast_give_the_float32_ratio():
    gap, batch = make_gap(), rows(40)
    full = gap.log_ratio(*parts(batch))
    half = gap.log_ratio(*(part.bfloat16() for part in parts(batch)))
    with torch.autocast("cpu", torch.bfloat16):
        cast = gap.log_ratio(*parts(batch))
    assert half.dtype == cast.dtype == torch.float32
    torch.testing.assert_close(half, full, atol=0.05, rtol=0.05)
    torch.testing.assert_close(cast, full, atol=0.05, rtol=0.05)
    double = gap.double().log_ratio(*(part.double() for part in parts(batch)))
    torch.testing.assert_close(double.float(), full)


def test_nan_stays_visible_and_touches_its_row_alone():
    gap, batch = make_gap(), rows()
    batch.next_observation[2, 1] = torch.nan
    weight = gap.weight(*parts(batch))
    assert weight.isnan().nonzero().flatten().tolist() == [2]
    assert gap.gap(*parts(batch), noise_std=1.0).isnan().nonzero().flatten().tolist() == [2]
    assert gap.loss(batch, rows()).total.isnan()


def test_stacked_modules_give_what_each_gives():
    gaps, batch, other = [make_gap(seed=seed) for seed in range(3)], rows(), rows(seed=1)
    state = torch.func.stack_module_state(gaps)

    def loss(parameters, buffers):
        return torch.func.functional_call(gaps[0], (parameters, buffers), (batch, other, 0.0))

    found = torch.func.vmap(loss)(*state)
    expected = torch.stack([gap.loss(batch, other, 0.0).total for gap in gaps])
    torch.testing.assert_close(found[0] + found[1], expected)


BAD = [
    (
        lambda gap, b: gap.log_ratio(b.observation[:, :2], b.action, b.next_observation),
        r"observation must have shape",
    ),
    (
        lambda gap, b: gap.log_ratio(b.observation, b.action[:5], b.next_observation),
        r"action must have shape \(12, 2\)",
    ),
    (
        lambda gap, b: gap.log_ratio(b.observation, b.action, b.next_observation[:1]),
        "next_observation must have shape",
    ),
    (lambda gap, b: gap.weight(*parts(b), lo=0.5, hi=0.1), "lo and hi must be"),
    (lambda gap, b: gap.weight(*parts(b), lo=-0.5), "lo and hi must be"),
    (lambda gap, b: gap.gap(*parts(b)), "noise_std must be given"),
    (lambda gap, b: gap.gap(*parts(b), noise_std=0.0), "noise_std must be finite and above 0"),
    (
        lambda gap, b: gap.gap(*parts(b), noise_std=torch.tensor([1.0, 1.0, 0.0])),
        "noise_std must be positive",
    ),
    (
        lambda gap, b: gap.gap(*parts(b), noise_std=torch.tensor([1.0, 1.0, torch.inf])),
        "noise_std must be positive and finite",
    ),
    (lambda gap, b: gap.gap(*parts(b), noise_std=torch.ones(2)), r"noise_std must have shape \(3,\)"),
    (lambda gap, b: gap.gap(*parts(b), n=0, noise_std=1.0), "n must be at least 1"),
    (
        lambda gap, b: gap.gap(b.observation, b.action, b.next_observation[:, None], noise_std=1.0),
        "noise_std must be None",
    ),
    (lambda gap, b: gap.loss(b, rows(states=2)), "sim: observation must have width 3, got 2"),
    (lambda gap, b: gap.loss(rows(actions=1), b), "real: action must have width 2, got 1"),
    (lambda gap, b: gap.loss(b, b[:0]), "sim must hold at least one"),
    (lambda gap, b: gap.loss(b, b, input_noise=-1), "input_noise must be finite and at least 0"),
    (lambda gap, b: gap.standardize(b[:1]), "real must hold at least two"),
    (lambda gap, b: fit_gap(gap, b, b, learning_rate=0), "learning_rate must be finite and above 0"),
    (lambda gap, b: fit_gap(gap, b, b, 0), "num_steps must be at least 1"),
    (lambda gap, b: DynamicsGap(0, 1), "observation_dim must be at least 1"),
    (lambda gap, b: DynamicsGap(1, 1, logit_bound=0), "logit_bound must be finite and above 0"),
    (lambda gap, b: DynamicsGap(1, 1, dropout=1.0), r"dropout must be in \[0, 1\)"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(make_gap(), rows())


NO_TENSOR = [
    (lambda gap, b: gap.log_ratio(b.observation.numpy(), b.action, b.next_observation), "observation"),
    (lambda gap, b: gap.weight(b.observation, b.action.tolist(), b.next_observation), "action"),
    (lambda gap, b: gap.gap(*parts(b)[:2], b.next_observation.numpy(), noise_std=1.0), "next_observation"),
    (lambda gap, b: gap.correction(*parts(b)[:2], b.next_observation.numpy()), "next_observation"),
]


@pytest.mark.parametrize(("call", "name"), NO_TENSOR)
def test_what_is_no_tensor_is_named(call, name):
    with pytest.raises(TypeError, match=f"{name} must be a tensor, got"):
        call(make_gap(), rows())


def test_integer_states_are_numbers_too():
    gap, batch = make_gap(), rows()
    whole = (10 * batch.observation).long()
    expected = gap.gap(whole.float(), batch.action, whole.float(), noise_std=1.0, generator=rng())
    found = gap.gap(whole, batch.action, whole, noise_std=1.0, generator=rng())
    assert torch.equal(found, expected)


@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_a_scale_that_the_module_cannot_hold_is_named(scale):
    batch = rows(20, dtype=torch.float64)
    far = Transitions(scale * batch.observation, batch.action, scale * batch.next_observation)
    gap = make_gap()
    with pytest.raises(
        ValueError, match=r"real: observation has a mean or scale that torch\.float32 cannot hold"
    ):
        gap.standardize(far)
    assert gap.observation_std.tolist() == [1, 1, 1]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_fitting_learns_in_every_mode(mode):
    gap, batch = make_gap(), rows()
    before = gap.log_ratio(*parts(batch))
    with mode():
        fit_gap(gap, batch, rows(seed=1), 3)
    assert not torch.equal(gap.log_ratio(*parts(batch)), before)


def test_a_size_that_is_no_integer_is_named():
    with pytest.raises(TypeError, match="hidden must be a sequence of integers, got 64"):
        DynamicsGap(3, 1, hidden=64)
    with pytest.raises(TypeError, match="action_dim must be an integer"):
        DynamicsGap(3, 1.5)
