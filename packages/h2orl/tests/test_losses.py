import math

import pytest
import torch
from helpers import normal, rng
from hypothesis import given
from hypothesis import strategies as st

from h2orl import h2o_critic_loss, multiplier_loss, sim_omega, value_regularizer


def problem(critics=2, real=5, sim=7, seed=0):
    q_real, q_sim = normal(critics, real, seed=seed), normal(critics, sim, seed=seed + 1)
    y_real, y_sim = normal(real, seed=seed + 2), normal(sim, seed=seed + 3)
    weight, gap = torch.rand(sim, generator=rng(seed)), torch.rand(sim, generator=rng(seed + 1))
    return (
        q_real.double(),
        y_real.double(),
        q_sim.double(),
        y_sim.double(),
        weight.double(),
        sim_omega(gap.double()),
    )


def naive(q_real, y_real, q_sim, y_sim, weight, omega, beta):
    """Algorithm 1 as it is written: one critic after the other, the square root of the weight on both sides."""
    total = torch.zeros((), dtype=q_real.dtype)
    for critic in range(len(q_real)):
        total = total + ((q_real[critic] - y_real) ** 2).mean()
        root = weight.sqrt()
        total = total + ((root * q_sim[critic] - root * y_sim) ** 2).mean()
        energy = (omega * q_sim[critic].exp()).sum().log()
        total = total + beta * (energy - q_real[critic].mean())
    return total


def test_the_loss_is_the_papers():
    found = h2o_critic_loss(*problem(), beta=0.3)
    torch.testing.assert_close(found.total, naive(*problem(), 0.3))
    torch.testing.assert_close(found.total, found.td_real + found.td_sim + 0.3 * found.reg)


def test_the_ablations_are_arguments():
    q_real, y_real, q_sim, y_sim, weight, omega = problem()
    ones, uniform = torch.ones(7).double(), torch.full((7,), 1 / 7).double()
    batch = q_real, y_real, q_sim, y_sim
    torch.testing.assert_close(h2o_critic_loss(*batch, None, omega).total, naive(*batch, ones, omega, 0.01))
    torch.testing.assert_close(
        h2o_critic_loss(*batch, weight, None).total, naive(*batch, weight, uniform, 0.01)
    )
    mixing = (q_real - y_real).square().mean(1).sum() + (q_sim - y_sim).square().mean(1).sum()
    torch.testing.assert_close(h2o_critic_loss(*batch, beta=0).total, mixing)


def test_gradients_are_those_of_the_closed_form_and_reach_nothing_else():
    inputs = [part.requires_grad_() for part in problem()]
    found = h2o_critic_loss(*inputs, beta=0.3)
    found.reg.backward()
    q_real, y_real, q_sim, y_sim, weight, omega = inputs
    chosen = (q_sim + omega.log()).softmax(-1)
    torch.testing.assert_close(q_sim.grad, chosen)
    torch.testing.assert_close(q_real.grad, torch.full_like(q_real, -1 / 5))
    h2o_critic_loss(*inputs, beta=0.3).total.backward()
    assert all(part.grad is None for part in (y_real, y_sim, weight, omega))


@pytest.mark.parametrize("form", ["sequence", "columns", "one critic", "groups"])
def test_every_form_of_critics_gives_the_same(form):
    q_real, y_real, q_sim, y_sim, weight, omega = problem()
    expected = naive(*problem(), 0.01)
    if form == "sequence":  # as Stable-Baselines3's critics give it
        found = h2o_critic_loss(
            tuple(q_real[..., None]),
            y_real[:, None],
            tuple(q_sim[..., None]),
            y_sim[:, None],
            weight[:, None],
            omega,
        )
    elif form == "columns":
        found = h2o_critic_loss(
            q_real, y_real[:, None], q_sim, y_sim[:, None], weight[:, None], omega[:, None]
        )
    elif form == "one critic":
        found = h2o_critic_loss(q_real[0], y_real, q_sim[0], y_sim, weight, omega)
        expected = naive(q_real[:1], y_real, q_sim[:1], y_sim, weight, omega, 0.01)
    else:
        second = problem(seed=20)
        found = h2o_critic_loss(
            *(torch.stack(pair) for pair in zip(problem(), second, strict=True)),
            beta=torch.tensor([[0.2], [0.5]]),
        )
        expected = naive(*problem(), 0.2) + naive(*second, 0.5)
    torch.testing.assert_close(found.total, expected)


@given(seed=st.integers(0, 999), scale=st.floats(0.01, 100))
def test_a_reward_scale_scales_the_loss_by_its_square(seed, scale):
    q_real, y_real, q_sim, y_sim, weight, omega = problem(seed=seed)
    scaled = h2o_critic_loss(
        scale * q_real,
        scale * y_real,
        scale * q_sim,
        scale * y_sim,
        weight,
        omega,
        beta=0.3,
        reward_scale=scale,
    )
    plain = h2o_critic_loss(q_real, y_real, q_sim, y_sim, weight, omega, beta=0.3)
    torch.testing.assert_close(scaled.total, scale**2 * plain.total)


@pytest.mark.parametrize("scale", [0.1, 20.0])
def test_a_reward_scale_scales_the_clip_too(scale):
    q_real, y_real, q_sim, y_sim, weight, omega = problem()
    batch = q_real, y_real, q_sim + 1500, y_sim  # the regulariser is clipped at 1000
    plain = h2o_critic_loss(*batch, weight, omega)
    scaled = h2o_critic_loss(*(scale * part for part in batch), weight, omega, reward_scale=scale)
    assert plain.reg.item() == 2000
    assert scaled.reg.item() == pytest.approx(2000 * scale)


@given(seed=st.integers(0, 999), shift=st.floats(-100, 100), temperature=st.floats(0.05, 20))
def test_the_regulariser_is_the_maximum_over_distributions(seed, shift, temperature):
    q_real, _, q_sim, _, _, omega = problem(seed=seed)
    found = value_regularizer(q_sim, q_real, omega, temperature)
    torch.testing.assert_close(value_regularizer(q_sim + shift, q_real + shift, omega, temperature), found)
    # max_d E_d Q - temperature KL(d || omega): attained at its Gibbs distribution, and nowhere exceeded.
    best = (q_sim / temperature + omega.log()).softmax(-1)
    for other, exact in ((best, True), (0.8 * best + 0.2 * omega, False), (omega, False)):
        value = (
            (other * q_sim).sum(-1) - temperature * (other * (other / omega).log()).sum(-1) - q_real.mean(-1)
        )
        assert (value <= found + 1e-9).all()
        if exact:
            torch.testing.assert_close(value, found)


def test_the_regulariser_alone_gives_omega_no_gradient():
    q_real, _, q_sim, _, _, omega = problem()
    value_regularizer(q_sim.requires_grad_(), q_real, omega.requires_grad_()).sum().backward()
    assert omega.grad is None
    assert q_sim.grad is not None


def test_the_regulariser_tends_to_the_maximum_and_to_the_mean():
    q_real, _, q_sim, _, _, omega = problem()
    for temperature, limit in ((1e-5, q_sim.amax(-1)), (1e6, (omega * q_sim).sum(-1))):
        found = value_regularizer(q_sim, q_real, omega, temperature, clip=1e9)
        torch.testing.assert_close(found, limit - q_real.mean(-1), atol=1e-3, rtol=0)
    uniform = torch.logsumexp(q_sim, -1) - math.log(7) - q_real.mean(-1)
    torch.testing.assert_close(value_regularizer(q_sim, q_real), uniform)
    assert value_regularizer(q_sim + 5000, q_real).tolist() == [1000, 1000]
    assert value_regularizer(q_sim - 5000, q_real).tolist() == [-1000, -1000]


@given(st.lists(st.floats(0, 10, width=32), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_omega_is_a_distribution_that_follows_the_gaps(gaps, random):
    gap = torch.tensor(gaps)
    omega = sim_omega(gap)
    torch.testing.assert_close(omega.sum(), torch.tensor(1.0))
    assert omega.log().isfinite().all()
    order = list(range(len(gaps)))
    random.shuffle(order)
    torch.testing.assert_close(sim_omega(gap[order]), omega[order])
    assert (omega[gap.argsort()].diff() >= 0).all()


def test_omega_has_no_gradient():
    assert not sim_omega(torch.tensor([1.0, 2.0], requires_grad=True)).requires_grad


def test_gaps_without_any_gap_are_uniform_and_zero_gaps_weigh_nothing():
    assert sim_omega(torch.zeros(4)).tolist() == [0.25] * 4
    assert sim_omega(torch.full((4,), torch.finfo(torch.float32).tiny)).tolist() == [0.25] * 4
    omega = sim_omega(torch.tensor([0.0, 2.0]))
    found = value_regularizer(torch.tensor([80.0, 1.0]), torch.zeros(3), omega)
    torch.testing.assert_close(found, torch.tensor(1.0), atol=2e-3, rtol=0)
    assert sim_omega(torch.tensor([1.0, torch.nan])).isnan().any()


@given(seed=st.integers(0, 99))
def test_the_order_of_the_batch_does_not_matter(seed):
    q_real, y_real, q_sim, y_sim, weight, omega = problem(seed=seed)
    first, second = torch.randperm(5, generator=rng(seed)), torch.randperm(7, generator=rng(seed))
    batch = q_real[:, first], y_real[first], q_sim[:, second], y_sim[second], weight[second], omega[second]
    torch.testing.assert_close(h2o_critic_loss(*batch).total, h2o_critic_loss(*problem(seed=seed)).total)


def test_bfloat16_values_are_summed_in_float32():
    batch = [part.bfloat16() for part in problem()]
    found = h2o_critic_loss(*batch)
    assert found.total.dtype == torch.float32
    torch.testing.assert_close(found.total, h2o_critic_loss(*(part.float() for part in batch)).total)


def test_the_multiplier_rises_while_the_gap_is_above_its_target():
    log_multiplier = torch.tensor(0.4, requires_grad=True)
    reg = torch.tensor([3.0, 5.5], requires_grad=True)
    loss = multiplier_loss(log_multiplier, reg, target=1.0, beta=0.2)
    torch.testing.assert_close(loss, torch.tensor(-0.5 * 0.2 * math.exp(0.4) * (2.0 + 4.5)))
    loss.backward()
    assert log_multiplier.grad < 0
    assert reg.grad is None


def test_the_loss_compiles_whole():
    batch = [part.float() for part in problem()]
    compiled = torch.compile(lambda *parts: h2o_critic_loss(*parts).total, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*batch), h2o_critic_loss(*batch).total)


BAD = [
    ({"beta": -0.1}, "beta must be finite and at least 0"),
    ({"beta": torch.tensor([-0.1])}, "beta must be finite and at least 0"),
    ({"beta": torch.tensor(torch.nan)}, "beta must be finite and at least 0"),
    ({"beta": torch.tensor([0.1, 0.2])}, r"beta must be one number or have shape \(1,\), got \(2,\)"),
    ({"beta": torch.ones(3, 1)}, r"beta must be one number or have shape \(1,\), got \(3, 1\)"),
    ({"temperature": 0}, "temperature must be finite and above 0"),
    ({"reward_scale": 0}, "reward_scale must be finite and above 0"),
    ({"omega": torch.ones(6)}, "omega must have one value a transition, 7"),
    ({"is_weight": torch.ones(5)}, "is_weight must have one value a transition, 7"),
    ({"y_real": torch.ones(7)}, "y_real must have one value a transition, 5"),
    ({"y_sim": torch.ones(2, 7)}, "y_sim must have one value a transition, 7"),
    ({"q_real": torch.ones(3, 5)}, "q_real and q_sim must be of the same critics"),
    ({"q_real": torch.ones(5, 1)}, "q_real and q_sim must be of the same critics"),
    ({"q_sim": [torch.ones(7), torch.ones(6)]}, "q_sim must be critics of one shape"),
    ({"q_sim": torch.ones(2, 0)}, "q_sim must have shape"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_input_is_named(change, message):
    names = ("q_real", "y_real", "q_sim", "y_sim", "is_weight", "omega")
    with pytest.raises(ValueError, match=message):
        h2o_critic_loss(**(dict(zip(names, problem(), strict=True)) | change))


def test_bad_input_of_the_parts_is_named():
    with pytest.raises(ValueError, match="omega must have length 7"):
        value_regularizer(torch.ones(7), torch.ones(5), torch.ones(6))
    with pytest.raises(ValueError, match="omega must have length 7 and broadcast to q_sim"):
        value_regularizer(torch.ones(7), torch.ones(5), torch.ones(3, 7))
    with pytest.raises(ValueError, match="not empty"):
        value_regularizer(torch.ones(7), torch.ones(0))
    with pytest.raises(ValueError, match=r"gap must have shape \(\.\.\., B\)"):
        sim_omega(torch.ones(0))
    with pytest.raises(ValueError, match=r"be no column \(B, 1\), got \(4, 1\)"):
        sim_omega(torch.ones(4, 1))


@pytest.mark.parametrize("name", ["q_real", "y_real", "q_sim", "y_sim", "is_weight", "omega"])
def test_what_is_no_tensor_is_named(name):
    names = ("q_real", "y_real", "q_sim", "y_sim", "is_weight", "omega")
    batch = dict(zip(names, problem(), strict=True))
    batch[name] = [batch[name].numpy()] if name.startswith("q_") else batch[name].numpy()
    with pytest.raises(TypeError, match=f"{name} must be a tensor, got ndarray"):
        h2o_critic_loss(**batch)


def test_integers_are_numbers_too():
    assert sim_omega(torch.tensor([3, 1])).tolist() == [0.75, 0.25]
    q_real, q_sim = torch.tensor([[1, 3]]), torch.tensor([[2, 5, 2]])
    targets = torch.zeros(2), torch.ones(3, dtype=torch.int64)
    found = h2o_critic_loss(q_real, targets[0], q_sim, targets[1], torch.tensor([True, False, True]))
    assert (found.td_real.item(), found.td_sim.item()) == (5.0, pytest.approx(2 / 3))
