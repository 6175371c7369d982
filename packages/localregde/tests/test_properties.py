"""Properties that hold of any draw."""

import copy
import math
import pickle

import pytest
import torch
from helpers import DOUBLE, mlp, seeded, state, times
from hypothesis import given
from hypothesis import strategies as st

from localregde import (
    NFECounter,
    TimeMLP,
    constant_weight,
    exponential_weight,
    insert_time,
    local_step,
    sample_tau,
    steer_end,
)
from localregde.steps import rms

SEEDS = st.integers(0, 1000)


@given(seed=SEEDS, batch=st.integers(1, 6), copies=st.integers(2, 3))
def test_the_order_and_the_number_of_rows_do_not_matter(seed, batch, copies):
    func, z = mlp(scale=2.0), state(batch, seed=seed)
    one = local_step(func, 0.1, z, 0.5)
    for other in (z[torch.randperm(batch, generator=seeded(seed))], z.repeat(copies, 1)):
        found = local_step(func, 0.1, other, 0.5)
        assert found.error.item() == pytest.approx(one.error.item(), rel=1e-9)
        assert found.stiffness.item() == pytest.approx(one.stiffness.item(), rel=1e-9)


@given(
    values=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=9),
    scale=st.sampled_from([1e-200, 1e-30, 1.0, 1e30, 1e200]),
)
def test_the_norm_is_that_of_exact_sums(values, scale):
    exact = math.sqrt(math.fsum(v * v for v in values) / len(values))
    found = rms(torch.tensor(values, dtype=DOUBLE) * scale).item()
    assert found == pytest.approx(exact * scale, rel=1e-12)


@pytest.mark.parametrize(("t0", "t1"), [(0.0, 2.0), (3.0, -1.0)])
def test_unbiased_times_are_uniform(t0, t1):
    generator, count = seeded(0), 4000
    drawn = torch.stack([sample_tau(t0, t1, generator=generator) for _ in range(count)])
    uniform = ((drawn - t0) / (t1 - t0)).sort().values
    steps = torch.arange(1, count + 1, dtype=DOUBLE) / count
    distance = torch.maximum((steps - uniform).abs().max(), (uniform - (steps - 1 / count)).abs().max())
    assert distance < 1.95 / math.sqrt(count)  # Kolmogorov's 0.1 % point
    assert uniform[0] >= 0
    assert uniform[-1] < 1


@given(seed=SEEDS, t1=st.sampled_from([1.0, -1.0]))
def test_biased_times_are_steps_and_never_the_end(seed, t1):
    steps = [0.0, 0.1 * t1, 0.11 * t1, 0.9 * t1, t1, 1.5 * t1]
    drawn = {sample_tau(0.0, t1, steps=steps, generator=seeded(seed + i)).item() for i in range(30)}
    assert drawn <= set(steps[:4])
    assert len(drawn) > 1


@given(seed=SEEDS)
def test_coarse_times_never_round_to_the_end(seed):
    tau = sample_tau(torch.tensor(1.0), torch.tensor(1.0 + 2**-22), generator=seeded(seed))
    assert 1 <= tau < 1 + 2**-22


@given(
    values=st.lists(st.floats(-10, 10), min_size=2, max_size=6, unique=True),
    place=st.floats(0, 1),
    back=st.booleans(),
)
def test_an_inserted_time_is_dropped_again(values, place, back):
    t = torch.tensor(sorted(values, reverse=back), dtype=DOUBLE)
    tau = t[0] + place * (t[-1] - t[0])
    found = insert_time(t, tau)
    assert torch.equal(found.times[found.keep], t)
    assert found.times[found.position] == tau
    assert len(found.times) == len(t) + (tau not in t)
    assert (found.times.diff() < 0 if back else found.times.diff() > 0).all()


@given(
    first=st.floats(1e-6, 1e6),
    last=st.floats(1e-6, 1e6),
    total=st.integers(1, 10**5),
    step=st.integers(0, 10**5),
)
def test_the_weight_decays_geometrically(first, last, total, step):
    weight = exponential_weight(first, last, total)
    assert (weight(0), weight(total), weight(2 * total)) == pytest.approx((first, last, last))
    wanted = first * math.exp(-math.log(first / last) / total * min(step, total))
    assert weight(step) == pytest.approx(wanted, rel=1e-9)
    assert pickle.loads(pickle.dumps(weight)) == weight
    assert constant_weight(first)(step) == first


@given(seed=SEEDS, b=st.floats(0.01, 0.9))
def test_only_the_end_is_steered(seed, b):
    t = times(0.0, 1.0, 2.0)
    for start in (t, -t):
        moved = steer_end(start, b, generator=seeded(seed))
        assert torch.equal(moved[:-1], start[:-1])
        assert abs(moved[-1] - start[-1]) <= b


@pytest.mark.filterwarnings(
    "ignore:You are using .torch.load.:FutureWarning"
)  # of pickled tensors, in torch 2.4
def test_a_counter_is_what_it_wraps():
    func = TimeMLP(3, (8, 4))
    func.note = "kept"
    counter = NFECounter(func)
    assert counter.note == "kept"
    assert copy.deepcopy(counter)(torch.tensor(0.0), torch.ones(2, 3)).shape == (2, 3)
    other = NFECounter(TimeMLP(3, (8, 4)))
    other.load_state_dict(pickle.loads(pickle.dumps(counter)).state_dict())
    z = torch.ones(5, 2, 3)
    assert torch.equal(counter(torch.tensor(0.5), z), other(torch.tensor(0.5), z))
    assert (counter.reset(), counter.nfe) == (1, 0)
    with pytest.raises(AttributeError):
        _ = counter.nothing


def test_time_stands_beside_every_layer():
    func = TimeMLP(2, (4, 3))
    assert [layer.in_features for layer in func.layers] == [3, 5, 4]
    z, t = torch.ones(2, 2), torch.tensor([[0.1], [0.9]])
    rows = func(t, z)
    for row in range(2):
        assert torch.allclose(rows[row], func(t[row, 0], z)[row])
    assert not torch.allclose(rows[0], rows[1])
    assert torch.equal(func(0.5, z), func(torch.tensor(0.5), z))


def test_integer_ends():
    ends = torch.tensor(2), torch.tensor(5)
    drawn = [sample_tau(*ends, generator=seeded(seed)) for seed in range(20)]
    assert {tau.dtype for tau in drawn} == {DOUBLE}
    assert len({round(tau.item(), 6) for tau in drawn}) == 20
    assert sample_tau(torch.tensor(0), 0.5, generator=seeded()) < 0.5
