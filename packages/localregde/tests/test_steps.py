"""One step against closed forms, Butcher's conditions and torchdiffeq."""

import math

import numpy as np
import pytest
import torch
from helpers import DOUBLE, Linear, mlp, seeded, state, times
from hypothesis import given
from hypothesis import strategies as st
from torchdiffeq import odeint
from torchdiffeq._impl.misc import _rms_norm, _select_initial_step
from torchdiffeq._impl.odeint import SOLVERS

from localregde import initial_step, local_step, tolerance_floor
from localregde.steps import advance
from localregde.tableaus import TABLEAUS

TOLERANCE = {"atol": 1e-3, "rtol": 1e-2}
PAIRS = pytest.mark.parametrize("method", ["tsit5", "dopri5"])


def arrays(tableau):
    size = len(tableau.nodes)
    matrix = np.zeros((size, size))
    for row, weights in enumerate(tableau.stages):
        matrix[row, : len(weights)] = weights
    return matrix, np.array(tableau.solution), np.array(tableau.error), np.array(tableau.nodes)


def trees(a, c):
    """Butcher's conditions up to order 5: (order, vector, 1 / density)."""
    one = np.ones_like(c)
    return [
        (1, one, 1),
        (2, c, 1 / 2),
        (3, c**2, 1 / 3),
        (3, a @ c, 1 / 6),
        (4, c**3, 1 / 4),
        (4, c * (a @ c), 1 / 8),
        (4, a @ c**2, 1 / 12),
        (4, a @ a @ c, 1 / 24),
        (5, c**4, 1 / 5),
        (5, c**2 * (a @ c), 1 / 10),
        (5, (a @ c) ** 2, 1 / 20),
        (5, c * (a @ c**2), 1 / 15),
        (5, a @ c**3, 1 / 20),
        (5, c * (a @ a @ c), 1 / 30),
        (5, a @ (c * (a @ c)), 1 / 40),
        (5, a @ a @ c**2, 1 / 60),
        (5, a @ a @ a @ c, 1 / 120),
    ]


@pytest.mark.parametrize("method", list(TABLEAUS))
def test_every_pair_has_its_orders(method):
    tableau = TABLEAUS[method]
    a, b, error, c = arrays(tableau)
    assert np.allclose(a.sum(1), c, atol=1e-13)
    embedded = b - error
    # fehlberg2's companion is of order 1, adaptive_heun's and bosh3's one below, as is that of the five's.
    for order, vector, wanted in trees(a, c):
        if order <= tableau.order:
            assert b @ vector == pytest.approx(wanted, abs=2e-13)
        if order < tableau.order:
            assert embedded @ vector == pytest.approx(wanted, abs=2e-13)
    assert any(
        abs(embedded @ vector - wanted) > 1e-6
        for order, vector, wanted in trees(a, c)
        if order == tableau.order
    )


@pytest.mark.parametrize("method", [name for name in TABLEAUS if name != "tsit5"])
def test_the_other_pairs_are_torchdiffeqs(method):
    theirs, tableau = SOLVERS[method].tableau, TABLEAUS[method]
    assert np.allclose(theirs.alpha, tableau.nodes[1:])
    for one, other in zip(theirs.beta, tableau.stages[1:], strict=True):
        assert np.allclose(one, other)
    assert np.allclose(theirs.c_sol, tableau.solution)
    assert np.allclose(theirs.c_error, tableau.error, atol=1e-16)


@PAIRS
@given(seed=st.integers(0, 100), size=st.floats(-0.8, 0.8).filter(lambda h: abs(h) > 0.05))
def test_linear_dynamics_are_polynomials_of_the_matrix(method, seed, size):
    matrix = torch.randn(3, 3, generator=seeded(seed), dtype=DOUBLE).numpy()
    z = state(seed=seed)
    a, b, error, _ = arrays(TABLEAUS[method])
    power, found = np.ones(7), [z.numpy(), np.zeros((4, 3))]
    term = z.numpy()
    for _ in range(7):
        term = size * term @ matrix.T
        found = [found[0] + (b @ power) * term, found[1] + (error @ power) * term]
        power = a @ power
    scale = 1e-3 + 1e-2 * np.maximum(np.abs(z.numpy()), np.abs(found[0]))
    step = local_step(Linear(torch.from_numpy(matrix)), 0.0, z, size, method=method, **TOLERANCE)
    wanted = math.sqrt(np.mean((found[1] / scale) ** 2)) * abs(size)
    assert step.error.item() == pytest.approx(wanted, rel=1e-9)
    assert np.allclose(step.y1.detach().numpy(), found[0], rtol=1e-12)


@PAIRS
def test_polynomials_of_time_have_no_error_below_degree_four(method):
    z, coefficients = state(), state(4, 1, seed=5)[:, 0]

    def polynomial(degree):
        return lambda t, z: sum(coefficients[i] * t**i for i in range(degree + 1)) + 0 * z

    for degree in range(4):
        assert local_step(polynomial(degree), 0.3, z, 0.7, method=method, **TOLERANCE).error < 1e-11
    assert local_step(lambda t, z: 5 * t**4 + 0 * z, 0.3, z, 0.7, method=method, **TOLERANCE).error > 1e-6


@given(
    rate=st.floats(-50, 50).filter(lambda r: abs(r) > 0.5), h=st.floats(0.03, 0.4), seed=st.integers(0, 50)
)
def test_the_stiffness_of_scalar_decay_is_its_rate(rate, h, seed):
    step = local_step(lambda t, z: rate * z, 0.0, state(seed=seed), h, **TOLERANCE)
    assert step.stiffness.item() * 3.5068 == pytest.approx(abs(rate), rel=1e-7)
    back = local_step(lambda t, z: rate * z, 0.0, state(seed=seed), -h, **TOLERANCE)
    assert back.stiffness.item() * 3.5068 == pytest.approx(abs(rate), rel=1e-7)


def test_one_step_of_torchdiffeq():
    func, z, h = mlp(), state(), 0.37
    step = local_step(func, 0.2, z, h, method="dopri5", **TOLERANCE)
    wide = {"atol": 1e3, "rtol": 1e3, "method": "dopri5", "options": {"first_step": h}}
    torch.testing.assert_close(
        step.y1, odeint(func, z, times(0.2, 0.2 + h), **wide)[-1], rtol=1e-12, atol=1e-12
    )


@PAIRS
def test_the_orders_of_the_step_and_of_its_error(method):
    func, z = mlp(scale=3.0), state()
    exact = odeint(func, z, times(0.0, 0.05, 0.1), rtol=1e-13, atol=1e-13, method="dopri8")
    steps = [local_step(func, 0.0, z, h, method=method, **TOLERANCE) for h in (0.05, 0.1)]
    local = [(step.y1 - exact[i + 1]).norm().item() for i, step in enumerate(steps)]
    assert math.log2(local[1] / local[0]) == pytest.approx(6, abs=0.7)
    small, large = (
        local_step(func, 0.0, z, h, method=method, **TOLERANCE).error.item() for h in (0.01, 0.02)
    )
    assert math.log2(large / small) == pytest.approx(6, abs=0.5)
    torch.testing.assert_close(
        advance(func, times(0.0)[0], z, times(0.05)[0]), exact[1], rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("scale", [1e-4, 1.0, 30.0])
def test_the_first_step_is_torchdiffeqs(scale):
    func, z, t = mlp(scale=scale), state(), times(0.3)[0]
    wanted = _select_initial_step(func, t, z, 4, 1e-5, 1e-6, _rms_norm)
    found = initial_step(func, t, z, 5, 1e-6, 1e-5)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-12)
    assert not found.requires_grad
    assert initial_step(func, t, z, 5, 1e-6, 1e-5, until=t + 1e-5).item() == pytest.approx(1e-5)
    back = initial_step(lambda t, z: -func(-t, z), -t, z, 5, 1e-6, 1e-5, until=-1e9)
    assert back.item() == pytest.approx(-wanted.item(), rel=1e-12)


def test_the_first_step_of_nothing_happening():
    still = initial_step(lambda t, z: 0 * z, 0.0, state(), until=2.0)
    assert still.item() == pytest.approx(1e-6)


@PAIRS
@pytest.mark.parametrize("estimate", ["error", "stiffness"])
def test_gradients_are_finite_differences(method, estimate):
    func, z = mlp(scale=2.0), state()

    def value():
        return getattr(local_step(func, 0.1, z, 0.6, method=method, **TOLERANCE), estimate)

    value().backward()
    for parameter in func.parameters():
        flat, grad = parameter.data.view(-1), parameter.grad.view(-1)
        for place in (0, -1):
            kept = flat[place].item()
            ends = []
            for shift in (1e-5, -1e-5):
                flat[place] = kept + shift
                ends.append(value().item())
            flat[place] = kept
            assert grad[place].item() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-9)


def test_a_known_first_stage_saves_an_evaluation():
    func, z, calls = mlp(), state(), []

    def counted(t, z):
        calls.append(t)
        return func(t, z)

    plain = local_step(counted, 0.1, z, 0.3)
    assert len(calls) == 7
    given_first = local_step(counted, 0.1, z, 0.3, k1=func(times(0.1)[0], z))
    assert len(calls) == 13
    assert torch.equal(plain.error, given_first.error)


def test_dynamics_that_stand_still_have_gradients_of_zero():
    weight = torch.zeros(3, dtype=DOUBLE, requires_grad=True)
    step = local_step(lambda t, z: weight * z, 0.0, state(), 0.5)
    assert step.error == 0
    assert step.stiffness == 0
    (step.error + step.stiffness).backward()
    assert torch.equal(weight.grad, torch.zeros(3, dtype=DOUBLE))


def test_not_a_number_stays_one():
    step = local_step(lambda t, z: z * math.nan, 0.0, state(), 0.5)
    assert step.error.isnan()
    assert step.stiffness.isnan()


@pytest.mark.parametrize("scale", [1e-150, 1e-5, 1e150])
def test_the_scale_of_the_state_does_not_matter_to_stiffness(scale):
    step = local_step(lambda t, z: -4 * z, 0.0, scale * state(), 0.1, atol=1e-3 * scale, rtol=1e-3)
    one = local_step(lambda t, z: -4 * z, 0.0, state(), 0.1, atol=1e-3, rtol=1e-3)
    assert step.stiffness.item() * 3.5068 == pytest.approx(4, rel=1e-9)
    assert step.error.item() == pytest.approx(one.error.item(), rel=1e-9)


def test_an_offset_in_single_precision():
    z = (state() + 1e2).float().double()

    def turning(t, z):
        return 1e3 * torch.stack([-(z[:, 1] - 1e2), z[:, 0] - 1e2, 0.1 * (z[:, 2] - 1e2)], 1)

    double = local_step(turning, 0.0, z, 1e-3, atol=1e-3, rtol=1e-6)
    single = local_step(turning, 0.0, z.float(), 1e-3, atol=1e-3, rtol=1e-6)
    assert single.error.item() == pytest.approx(double.error.item(), rel=0.05)
    assert single.stiffness.item() == pytest.approx(double.stiffness.item(), rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_single(dtype):
    func, z = mlp(dtype=dtype), state(dtype=torch.float32).to(dtype)
    step = local_step(func, 0.1, z, 0.5)
    assert step.y1.dtype == dtype
    assert step.error.dtype == torch.float32
    wide = local_step(lambda t, y: func(t.to(dtype), y.to(dtype)).float(), 0.1, z.float(), 0.5)
    # Same evaluations to rounding of the inner states; sums in half precision would be off by 1e-2 of y1.
    torch.testing.assert_close(step.y1.float(), wide.y1, rtol=1e-2, atol=1e-2)


def test_autocast_reaches_the_dynamics_and_no_sum():
    func, z, seen = mlp(dtype=torch.float32), state(dtype=torch.float32), []

    def watched(t, y):
        found = func(t, y)
        seen.append((y.dtype, found.dtype))
        return found

    with torch.autocast("cpu", dtype=torch.bfloat16):
        step = local_step(watched, 0.1, z, 0.5)
    assert set(seen) == {(torch.float32, torch.bfloat16)}
    assert {one.dtype for one in step.k} == {torch.float32}
    torch.testing.assert_close(step.y1, local_step(func, 0.1, z, 0.5).y1, rtol=2e-2, atol=2e-2)


def test_vmap_gives_each_its_own_estimate():
    func, z, h = mlp(), state(), times(0.1, 0.2, 0.3, 0.4)

    def error(z, h):
        return local_step(func, 0.0, z, h).error

    found = torch.func.vmap(error)(z, h)
    assert torch.allclose(found, torch.stack([error(*one) for one in zip(z, h, strict=True)]), rtol=1e-10)


def test_it_compiles_whole():
    func = mlp()

    def error(z, h):
        return local_step(func, 0.0, z, h).error

    torch._dynamo.reset()
    compiled = torch.compile(error, fullgraph=True, backend="eager")
    for batch in (4, 7, 1):
        z = state(batch)
        assert torch.allclose(compiled(z, times(0.3)[0]), error(z, times(0.3)[0]))


def test_the_floor_is_that_of_the_coarsest():
    assert tolerance_floor(DOUBLE) == pytest.approx(10 * 2**-52)
    assert tolerance_floor(torch.float32, torch.float16) == pytest.approx(10 * 2**-10)


def test_half_precision_does_not_round_the_step():
    z = state(dtype=torch.float32).bfloat16()
    step = local_step(lambda t, y: y, 0.0, z, 0.1, atol=1.0, rtol=1e-9)
    wide = local_step(lambda t, y: y.bfloat16().float(), 0.0, z.float(), 0.1, atol=1.0, rtol=1e-9)
    # The inner states are rounded alike, so that all is as in single precision; 0.1 in bfloat16 is 0.1001.
    assert step.error.item() == pytest.approx(wide.error.item(), rel=1e-5)
    # 1e-8 in float16 is 0.
    tiny = local_step(lambda t, y: torch.full_like(y, 5e4), 0.0, torch.full((3,), 1e-3).half(), 1e-8)
    assert tiny.y1[0].item() == pytest.approx(1.5e-3, rel=1e-3)


def test_stiffness_is_that_of_where_the_dynamics_were_evaluated():
    """At an offset of 1e4 the inner states are rounded to 1e-3; their slope is exact all the same."""
    z = state(64, dtype=torch.float32) + 1e4
    step = local_step(lambda t, y: -(y - 1e4), 0.0, z, 0.1)
    assert step.stiffness.item() * 3.5068 == pytest.approx(1, rel=1e-6)


def test_no_room_is_no_step():
    assert initial_step(lambda t, z: -z, 1.0, state(), until=1.0) == 0
