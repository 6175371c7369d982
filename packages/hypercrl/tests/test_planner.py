import math

import gymnasium
import numpy as np
import pytest
import torch
from helpers import seeded
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from hypercrl import CEMPlanner, HyperNetwork
from hypercrl.reference import CartPolePhysics, PendulumPhysics

A = torch.tensor([[1.0, 0.1], [0.0, 1.0]], dtype=torch.float64)
B = torch.tensor([[0.005], [0.1]], dtype=torch.float64)
Q = torch.diag(torch.tensor([1.0, 0.1], dtype=torch.float64))
R = 0.05


def linear(states, actions):
    return states @ A.T + actions @ B.T


def quadratic(states, actions):
    return ((states @ Q) * states).sum(-1) + R * actions.square().sum(-1)


def riccati_gain(horizon):
    """First gain of the finite-horizon LQR whose cost counts the states after each step."""
    value = torch.zeros(2, 2, dtype=torch.float64)
    for _ in range(horizon):
        whole = Q + value
        gain = torch.linalg.solve(R + B.T @ whole @ B, B.T @ whole @ A)
        value = A.T @ whole @ (A - B @ gain)
    return gain


def planner(**options):
    low, high = torch.tensor([-4.0]), torch.tensor([4.0])
    sizes = {"num_samples": 300, "num_elites": 30, "num_iterations": 10} | options
    return CEMPlanner(linear, quadratic, 8, low, high, dtype=torch.float64, **sizes)


STATES = torch.tensor([[1.0, 0.0], [-0.5, 1.0], [0.3, -1.5]], dtype=torch.float64)


def test_it_finds_the_first_action_of_the_linear_quadratic_regulator():
    expected = -STATES @ riccati_gain(8).T
    found = planner(num_samples=800, num_elites=60, num_iterations=14, initial_std=2.0).plan(STATES, seeded())
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0)


@given(order=st.permutations([0, 1, 2]), seed=st.integers(0, 5))
def test_a_plan_does_not_depend_on_its_neighbours(order, seed):
    one = planner(num_samples=50, num_elites=8, num_iterations=2)
    together = one.plan(STATES, seeded(seed))
    assert torch.equal(one.plan(STATES[order], seeded(seed)), together[order])
    torch.testing.assert_close(one.plan(STATES[1], seeded(seed)), together[1])


def test_the_iterations_are_those_of_the_official_code():
    """A loop for one state: clamp, sum, sort, biased deviation, one more draw, first action of the best."""
    one = planner(num_samples=40, num_elites=6, num_iterations=3, initial_mean=0.4, initial_std=0.7)
    found = one.plan(STATES, seeded(7))
    for number, state in enumerate(STATES):
        generator = seeded(7)
        mean, std = np.full((8, 1), 0.4), np.full((8, 1), 0.7)
        for _ in range(4):
            noise = torch.randn(40, 8, 1, generator=generator, dtype=torch.float64).numpy()
            actions = np.clip(mean + std * noise, -4, 4)
            costs = []
            for sequence in actions:
                x, total = state.numpy(), 0.0
                for action in sequence:
                    x = A.numpy() @ x + B.numpy() @ action
                    total += x @ Q.numpy() @ x + R * action @ action
                costs.append(total)
            elites = actions[np.argsort(costs)[:6]]
            mean, std = elites.mean(0), elites.std(0)
        np.testing.assert_allclose(found[number].numpy(), actions[int(np.argmin(costs)), 0], rtol=1e-9)


def test_actions_stay_within_their_own_bounds():
    seen = []

    def dynamics(states, actions):
        seen.append(actions)
        return states

    low, high = torch.tensor([-1.0, 2.0]), torch.tensor([0.5, 4.0])
    CEMPlanner(dynamics, lambda x, u: u.sum(-1), 2, low, high, 20, 4, 2, initial_std=9.0).plan(
        torch.zeros(2, 3)
    )
    actions = torch.cat([value.flatten(0, 1) for value in seen])
    assert (actions >= low).all()
    assert (actions <= high).all()
    assert (actions.amax(0) == high).all()


def test_the_terminal_cost_counts_once_at_the_end():
    one = CEMPlanner(
        lambda x, u: x + u, lambda x, u: 0 * x[..., 0], 3, -1.0, 1.0, 400, 30, 8,
        terminal_cost=lambda x: (x[..., 0] - 0.9).square(), dtype=torch.float64,
    )  # fmt: skip
    sequence = one._optimize(torch.zeros(1, 1, dtype=torch.float64), seeded())
    assert sequence.sum().item() == pytest.approx(0.9, abs=0.02)


def test_samples_of_nan_are_dropped_and_a_state_without_any_other_is_named():
    def half(states, actions):
        return torch.where(actions[..., 0] > 0, torch.nan, (actions[..., 0] + 0.5).square())

    one = CEMPlanner(lambda x, u: x, half, 1, -1.0, 1.0, 200, 150, 6)
    found = one.plan(torch.zeros(2, 1), seeded())
    torch.testing.assert_close(found, torch.full((2, 1), -0.5), atol=0.05, rtol=0)

    def second_is_lost(states, actions):
        return half(states, actions) + torch.tensor([[0.0], [torch.inf]])

    with pytest.raises(ValueError, match="none of state 1"):
        CEMPlanner(lambda x, u: x, second_is_lost, 1, -1.0, 1.0, 50, 10).plan(torch.zeros(2, 1), seeded())
    with pytest.raises(ValueError, match="state must be finite"):
        one.plan(torch.tensor([[0.0], [torch.nan]]))


def test_the_gaussian_is_fitted_to_finite_elites_only():
    one = CEMPlanner(lambda x, u: x, lambda x, u: u[..., 0], 1, -9.0, 9.0, 4, 3)
    actions = torch.tensor([1.0, 8.0, 2.0, -8.0]).view(1, 4, 1, 1).expand(2, 4, 1, 1)
    costs = torch.tensor([[1.0, torch.inf, 2.0, torch.inf], [torch.inf] * 4])
    mean, std = one._refit(actions, costs, torch.full((2, 1, 1), 0.3), torch.full((2, 1, 1), 0.7))
    torch.testing.assert_close(mean.flatten(), torch.tensor([1.5, 0.3]))
    torch.testing.assert_close(std.flatten(), torch.tensor([0.5, 0.7]))


def test_a_warm_start_is_the_mean_moved_on_and_is_saved_and_reset():
    one = planner(num_samples=60, num_elites=10, num_iterations=3, warm_start=True, initial_mean=0.1)
    one.plan(STATES, seeded())
    mean = one.mean.clone()
    assert torch.equal(mean[:, -1], torch.full((3, 1), 0.1, dtype=torch.float64))
    assert not torch.equal(mean[:, 0], mean[:, -1])
    other = planner(num_samples=60, num_elites=10, num_iterations=3, warm_start=True, initial_mean=0.1)
    cold = other.plan(STATES, seeded(1))
    other.load_state_dict(one.state_dict())
    warm = one.plan(STATES, seeded(1))
    assert torch.equal(warm, other.plan(STATES, seeded(1)))
    assert not torch.equal(warm, cold)
    one.reset([True, False, True])
    assert torch.equal(one.mean[0], torch.full((8, 1), 0.1, dtype=torch.float64))
    assert not torch.equal(one.mean[1], one.mean[0])
    with pytest.raises(ValueError, match="state must be of 3 states as before, got 2"):
        one.plan(STATES[:2])
    with pytest.raises(ValueError, match="done must be of 3 states"):
        one.reset([True])
    one.reset()
    assert one.state_dict() == {}
    with pytest.raises(ValueError, match="planner with warm_start"):
        planner().load_state_dict(other.state_dict())


def test_a_warm_start_drops_the_action_that_was_taken():
    """The state is a clock, and each time wants an action of its own."""
    one = CEMPlanner(
        lambda x, u: x + 1, lambda x, u: (u - 0.1 * x).square().sum(-1), 4, -1.0, 1.0, 400, 20, 8, warm_start=True
    )  # fmt: skip
    action = one.plan(torch.zeros(2, 1), seeded())
    torch.testing.assert_close(action, torch.full((2, 1), 0.1), rtol=0, atol=0.02)
    wanted = torch.tensor([0.2, 0.3, 0.4, 0.0]).expand(2, 4)
    torch.testing.assert_close(one.mean[..., 0], wanted, rtol=0, atol=0.02)


def test_generated_weights_plan_for_states_of_different_tasks_at_once():
    network = nn.Linear(3, 2).double()
    hnet = HyperNetwork(network, generator=seeded())
    tasks = [hnet.add_task(seeded(seed)) for seed in range(3)]
    stacked = {name: value.detach() for name, value in hnet(torch.stack(list(hnet.embeddings))).items()}
    calls = []
    hnet.register_forward_hook(lambda *args: calls.append(1))

    def of_each(states, actions):
        run = torch.vmap(lambda w, x: functional_call(network, w, (x,)))
        return states + run(stacked, torch.cat([states, actions], dim=-1))

    together = CEMPlanner(of_each, quadratic, 4, -1.0, 1.0, 50, 8, 3, dtype=torch.float64).plan(
        STATES, seeded()
    )
    assert not calls
    for task in tasks:
        weights = {name: value[task] for name, value in stacked.items()}

        def of_one(states, actions, weights=weights):
            return states + functional_call(network, weights, (torch.cat([states, actions], dim=-1),))

        alone = CEMPlanner(of_one, quadratic, 4, -1.0, 1.0, 50, 8, 3, dtype=torch.float64)
        torch.testing.assert_close(alone.plan(STATES[task], seeded()), together[task])


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"horizon": 0}, ValueError, "horizon must be at least 1"),
        ({"num_elites": 501}, ValueError, "num_elites must be at most num_samples=500"),
        ({"num_iterations": 0}, ValueError, "num_iterations must be at least 1"),
        ({"num_samples": 5.5}, TypeError, "num_samples must be an integer"),
        ({"action_low": 1.0}, ValueError, "action_low must be below action_high"),
        ({"action_low": torch.tensor([float("nan")])}, ValueError, "action_low must be below"),
        ({"initial_std": 0.0}, ValueError, "initial_std must be above 0"),
        ({"initial_mean": [0.0, 1.0]}, ValueError, "initial_mean must be a number or"),
        ({"initial_mean": float("nan")}, ValueError, "initial_mean must be finite"),
        ({"warm_start": "yes"}, ValueError, "warm_start must be one of"),
        ({"dtype": torch.int64}, TypeError, "dtype must be"),
    ],
)
def test_bad_options_are_named(options, error, match):
    options = {"horizon": 5, "action_low": -1.0, "action_high": 1.0} | options
    with pytest.raises(error, match=match):
        CEMPlanner(linear, quadratic, **options)


def test_bounds_and_start_come_from_a_box():
    box = gymnasium.spaces.Box(-2.0, 2.0, (2,))
    target = torch.tensor([1.5, -1.2])
    planner = CEMPlanner(
        lambda x, u: x + u, lambda x, u: (x - target).square().sum(-1), 1, box.low, box.high, 300, 20,
        initial_mean=np.array([0.2, -0.1]), initial_std=box.high / 2,
    )  # fmt: skip
    assert torch.equal(planner.initial_mean, torch.tensor([0.2, -0.1]))
    action = planner.plan(np.zeros((3, 2)), seeded())
    np.testing.assert_allclose(action, target.expand(3, 2), atol=0.1)


def test_states_that_cannot_be_planned_for_are_named():
    planner = CEMPlanner(linear, quadratic, 2, -1.0, 1.0, 9, 3)
    with pytest.raises(ValueError, match="state must be finite, state 1 is not"):
        planner.plan([[0.0, 0.0], [torch.nan, 0.0]])
    with pytest.raises(TypeError, match="state must be an array, got a mapping"):
        planner.plan({"observation": np.zeros(2)})


def test_functions_of_the_wrong_shape_are_named():
    flat = CEMPlanner(lambda x, u: x[:, 0], quadratic, 2, -1.0, 1.0, 9, 3)
    with pytest.raises(ValueError, match=r"dynamics must return a tensor \(3, 9, 2\), got \(3, 2\)"):
        flat.plan(STATES)
    column = CEMPlanner(lambda x, u: x, lambda x, u: x[..., :1], 2, -1.0, 1.0, 9, 3)
    with pytest.raises(ValueError, match=r"cost must return a tensor \(3, 9\), got \(3, 9, 1\)"):
        column.plan(STATES)
    pair = CEMPlanner(lambda x, u: (x, u), quadratic, 2, -1.0, 1.0, 9, 3)
    with pytest.raises(ValueError, match=r"dynamics must return a tensor \(3, 9, 2\), got tuple"):
        pair.plan(STATES)


# --- environments -------------------------------------------------------------------------------------


def test_the_pendulum_is_gymnasiums():
    env, physics, rng = gymnasium.make("Pendulum-v1").unwrapped, PendulumPhysics(), np.random.default_rng(0)
    env.reset(seed=0)
    state = torch.tensor(env.state, dtype=torch.float64)[None]
    for _ in range(60):
        action = rng.uniform(-1.2, 1.2)
        observation, reward, _, _, _ = env.step(np.array([2 * action]))
        turned = torch.tensor([[action]], dtype=torch.float64)
        assert physics.reward(state, turned).item() == pytest.approx(reward, rel=1e-6)
        state = physics.step(state, turned)
        np.testing.assert_allclose(physics.observe(state)[0].numpy(), observation, atol=1e-5)


def test_the_cart_pole_is_gymnasiums():
    env, physics = gymnasium.make("CartPole-v1").unwrapped, CartPolePhysics()
    env.reset(seed=3)
    state = torch.tensor(env.state, dtype=torch.float64)[None]
    for step in range(40):
        push = 1 if step % 5 < 3 else 0
        ended = env.step(push)[2]
        state = physics.step(state, torch.tensor([[2.0 * push - 1]], dtype=torch.float64))
        np.testing.assert_allclose(state[0].numpy(), np.array(env.state, dtype=float), rtol=1e-5, atol=1e-6)
        if ended:
            break
    assert step > 8
    hanging = torch.tensor([[1.0, 0.0, math.pi / 3, 0.0]])
    assert physics.reward(hanging).item() == pytest.approx(math.exp(-0.25) * 0.75)
    with pytest.raises(ValueError, match="length must be finite and above 0"):
        CartPolePhysics(length=0.0)
    turned = CartPolePhysics(gain=-10.0).step(state, torch.tensor([[0.7]], dtype=torch.float64))
    torch.testing.assert_close(turned, physics.step(state, torch.tensor([[-0.7]], dtype=torch.float64)))


def test_it_drives_a_vector_of_gymnasium_environments():
    """NumPy observations in, NumPy actions out; swinging up beats doing nothing."""
    physics = PendulumPhysics()

    def dynamics(observations, actions):
        state = torch.stack(
            [torch.atan2(observations[..., 1], observations[..., 0]), observations[..., 2]], dim=-1
        )
        return physics.observe(physics.step(state, actions / 2))

    def cost(observations, actions):
        angle = torch.atan2(observations[..., 1], observations[..., 0])
        return angle.square() + 0.1 * observations[..., 2].square()

    envs = gymnasium.make_vec("Pendulum-v1", num_envs=3)
    low, high = envs.single_action_space.low, envs.single_action_space.high
    one = CEMPlanner(
        dynamics, cost, 12, low.tolist(), high.tolist(), 64, 8, 2, initial_std=2.0, warm_start=True
    )
    returns = {}
    for name in ("plan", "rest"):
        observations, _ = envs.reset(seed=0)
        generator, total = seeded(), np.zeros(3)
        for _ in range(70):
            actions = one.plan(observations, generator) if name == "plan" else np.zeros((3, 1), np.float32)
            assert actions.shape == (3, 1)
            assert actions.dtype == np.float32
            observations, rewards, _, _, _ = envs.step(actions)
            total += rewards
        returns[name] = total.mean()
    assert returns["plan"] > returns["rest"] + 50
