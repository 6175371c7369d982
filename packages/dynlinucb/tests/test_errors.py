"""Bad input is refused at the boundary, by the argument's name, with what it was and what it must be."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import dynlinucb
from dynlinucb import (
    AR2,
    BatchExp3,
    DLinUCB,
    DynamicalLinearBandit,
    DynLinUCB,
    Ellipsoid,
    Exp3,
    FixedAction,
    LinUCB,
    box_vertices,
    budget_vertices,
    epoch_lengths,
    identify,
    regret_upper_rate,
    simulate,
)

NAN = float("nan")
TWO = torch.eye(2, dtype=torch.float64)
VECTOR = torch.ones(2, dtype=torch.float64)


def refuses(error, message):
    return pytest.raises(error, match=re.escape(message))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"A": TWO}, ValueError, "A must have a spectral radius below 1, got 1"),
        ({"A": torch.ones(2, 3)}, ValueError, "A must be square, of shape (n, n), got (2, 3)"),
        ({"B": torch.ones(3, 2)}, ValueError, "B must have the shape (2, d), got (3, 2)"),
        ({"omega": torch.ones(3)}, ValueError, "omega must have the shape (2,), got (3,)"),
        ({"theta": torch.ones(3)}, ValueError, "theta must have the shape (2,), got (3,)"),
        (
            {"theta": torch.ones(2, dtype=torch.int64)},
            TypeError,
            "theta must be floating-point, got torch.int64",
        ),
        ({"theta": VECTOR * NAN}, ValueError, "theta must be finite"),
        ({"theta": torch.ones(2)}, ValueError, "must share dtype and device"),
        ({"noise_state": -1.0}, ValueError, "noise_state must be finite and not negative, got -1.0"),
        ({"noise_reward": NAN}, ValueError, "noise_reward must be finite and not negative, got nan"),
    ],
)
def test_systems(changes, error, message):
    with refuses(error, message):
        DynamicalLinearBandit(**({"A": 0.5 * TWO, "B": TWO, "omega": VECTOR, "theta": VECTOR} | changes))


def test_outputs():
    with refuses(ValueError, "C, D and weights must have the shapes (m, n), (m, d) and (m,)"):
        DynamicalLinearBandit.from_multi_output(0.5 * TWO, TWO, TWO, TWO, torch.ones(3).double())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spectral_radius": 1.0}, "spectral_radius must be in [0, 1), got 1.0"),
        ({"spectral_radius": -0.1}, "spectral_radius must be in [0, 1), got -0.1"),
        ({"spectral_radius": NAN}, "spectral_radius must be in [0, 1), got nan"),
        ({"transient_growth": 0.5}, "transient_growth must be finite and at least 1, got 0.5"),
        ({"action_norm": 0.0}, "action_norm must be finite and positive, got 0.0"),
        ({"theta_norm": -1.0}, "theta_norm must be finite and not negative, got -1.0"),
        ({"sigma": float("inf")}, "sigma must be finite and not negative, got inf"),
    ],
)
def test_bounds(bounds, changes, message):
    with refuses(ValueError, message):
        replace(bounds, **changes)


def test_bounds_of_a_system():
    system = DynamicalLinearBandit(0.5 * TWO, TWO, VECTOR, VECTOR)
    with pytest.warns(UserWarning, match=r"spectral_radius is 0\.3, below the system's 0\.5") as warned:
        system.bounds(TWO, spectral_radius=0.3)
    assert warned[0].filename == __file__
    with refuses(ValueError, "spectral_radius must be in [0, 1), got 1.5"):
        system.bounds(TWO, spectral_radius=1.5)
    with refuses(ValueError, "actions must have 2 components as the system's, got 3"):
        system.bounds(torch.ones(1, 3))
    with refuses(ValueError, "actions must have 2 components as the system's, got 3"):
        system.optimal(torch.ones(1, 3))


@pytest.mark.parametrize(
    ("actions", "error", "message"),
    [
        (torch.ones(3), ValueError, "actions must have the shape (K, d) and not be empty, got (3,)"),
        (torch.ones(0, 3), ValueError, "actions must have the shape (K, d) and not be empty, got (0, 3)"),
        (torch.full((1, 2), NAN), ValueError, "actions must be finite, got nan or inf"),
        (torch.ones(1, 2, dtype=torch.int64), TypeError, "actions must be floating-point, got torch.int64"),
    ],
)
@pytest.mark.parametrize("make", [DynLinUCB, LinUCB, DLinUCB, Exp3, AR2])
def test_actions(bounds, make, actions, error, message):
    with refuses(error, message):
        make(actions, bounds, **({} if make is AR2 else {"horizon": 100}))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"horizon": 0}, ValueError, "horizon must be at least 1, got 0"),
        ({"horizon": None}, ValueError, "horizon must be at least 2 with regularization='log', got None"),
        ({"horizon": 1}, ValueError, "horizon must be at least 2 with regularization='log', got 1"),
        ({"regularization": "lot"}, ValueError, "regularization must be 'log' or positive, got 'lot'"),
        ({"regularization": 0.0}, ValueError, "regularization must be 'log' or positive, got 0.0"),
        ({"regularization": -1.0}, ValueError, "regularization must be 'log' or positive, got -1.0"),
        ({"regularization": NAN}, ValueError, "regularization must be 'log' or positive, got nan"),
        (
            {"regularization": [1.0, 2.0]},
            ValueError,
            "regularization must be one value or one per replica (1)",
        ),
        ({"delta": 0.0}, ValueError, "delta must be in (0, 1) or None, got 0.0"),
        ({"beta_scale": -1.0}, ValueError, "beta_scale must be finite and not negative, got -1.0"),
        ({"replicas": 0}, ValueError, "replicas must be at least 1, got 0"),
        ({"dtype": torch.int64}, TypeError, "dtype must be torch.float32 or torch.float64, got torch.int64"),
        ({"bounds": 0.5}, TypeError, "bounds must be SystemBounds or a sequence of them, got float"),
        (
            {"actions": 2 * TWO},
            ValueError,
            "bounds must have an action_norm of at least 2 (the longest action)",
        ),
    ],
)
@pytest.mark.parametrize("make", [DynLinUCB, LinUCB, DLinUCB])
def test_linear_policies(bounds, make, changes, error, message):
    arguments = {"actions": TWO, "bounds": bounds, "horizon": 100} | changes
    with refuses(error, message):
        make(**arguments)


def test_the_rest_of_the_policies(bounds):
    with refuses(ValueError, "use must be 'last' or 'tail_mean', got 'all'"):
        DynLinUCB(TWO, bounds, horizon=10, use="all")
    with refuses(ValueError, "first must be 'ucb' or 'random', got 'best'"):
        DynLinUCB(TWO, bounds, horizon=10, first="best")
    with refuses(ValueError, "first must be 'ucb' for an Ellipsoid, got 'random'"):
        DynLinUCB(Ellipsoid.ball(2), bounds, horizon=10, first="random")
    with refuses(ValueError, "bounds must share one spectral_radius (lock-step), got [0.1, 0.5]"):
        DynLinUCB(TWO, [bounds, replace(bounds, spectral_radius=0.1)], horizon=10, replicas=2)
    with refuses(ValueError, "generator must be one or one per replica (3), got 2"):
        DynLinUCB(TWO, bounds, horizon=10, first="random", replicas=3, generator=[torch.Generator()] * 2)
    with refuses(ValueError, "constants must be 'dynamical' or 'static', got 'own'"):
        LinUCB(TWO, bounds, horizon=10, constants="own")
    with refuses(ValueError, "discount must be in (0, 1), got 1.0"):
        DLinUCB(TWO, bounds, horizon=10, discount=1.0)
    with refuses(ValueError, "index must be in 0..1, got 2"):
        FixedAction(TWO, 2)
    with refuses(ValueError, "horizon must be at least 1, got 0"):
        Exp3(TWO, bounds, horizon=0)
    with refuses(ValueError, "batch_size must be at least 1, got 0"):
        BatchExp3(TWO, bounds, horizon=10, batch_size=0)
    with refuses(ValueError, "bounds must share one spectral_radius (lock-step), got [0.1, 0.5]"):
        BatchExp3(TWO, [bounds, replace(bounds, spectral_radius=0.1)], horizon=10, replicas=2)
    with refuses(ValueError, "bounds must have a positive reward_norm, got 0"):
        Exp3(TWO, replace(bounds, theta_norm=0.0, omega_norm=0.0), horizon=10)
    with refuses(ValueError, "bounds must have a positive spectral_radius and sigma for AR2, got 0"):
        AR2(TWO, replace(bounds, sigma=0.0))
    with refuses(TypeError, "actions must be a table of shape (K, d), got Ellipsoid"):
        AR2(Ellipsoid.ball(2), bounds)
    with refuses(TypeError, "bounds must be SystemBounds or a sequence of them, got list"):
        LinUCB(TWO, [], horizon=10)
    with refuses(TypeError, "action_index must be asked of finite actions, got an Ellipsoid"):
        _ = DynLinUCB(Ellipsoid.ball(2), bounds, horizon=10).action_index


@pytest.mark.parametrize("replicas", [None, 2])
def test_rewards(bounds, replicas):
    policy = DynLinUCB(TWO, bounds, horizon=10, replicas=replicas)
    good = torch.zeros(2) if replicas else 0.0
    with pytest.raises(RuntimeError, match=r"act\(\) must be called before update\(\)"):
        policy.update(good)
    policy.act()
    with refuses(ValueError, f"reward must have the shape {(2,) if replicas else ()}"):
        policy.update(torch.zeros(3))
    for bad in (NAN, float("inf")):
        with refuses(ValueError, "reward must be finite, got nan or inf"):
            policy.update(good + bad)
    with pytest.raises(RuntimeError, match="2 rewards came, the present action is held for 1 rounds more"):
        policy.update_hold(torch.zeros(2, 2) if replicas else torch.zeros(2))
    policy.update(np.zeros(2) if replicas else np.float32(0.0))
    with pytest.raises(RuntimeError, match=r"act\(\) must be called before update\(\)"):
        policy.update(good)


def test_states_of_other_policies(bounds):
    policy = DynLinUCB(TWO, bounds, horizon=10)
    with refuses(ValueError, "state must have the keys"):
        policy.load_state_dict(LinUCB(TWO, bounds, horizon=10).state_dict())
    with refuses(ValueError, "state['action'] must have the shape (1, 2), got (3, 2)"):
        policy.load_state_dict(
            DynLinUCB(TWO, bounds, horizon=10, replicas=3).state_dict() | {"choice": torch.zeros(1)}
        )


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"system": 3}, TypeError, "system must be a DynamicalLinearBandit or a sequence of them"),
        ({"system": []}, TypeError, "system must be a DynamicalLinearBandit or a sequence of them"),
        ({"policy": "best"}, TypeError, "policy must be a Policy, got str"),
        ({"horizon": 0}, ValueError, "horizon must be at least 1, got 0"),
        ({"record_every": 0}, ValueError, "record_every must be at least 1, got 0"),
        ({"record_every": 3}, ValueError, "record_every must divide horizon=10, got 3"),
        ({"seeds": [1]}, ValueError, "seeds must be one per replica (2), got 1"),
        (
            {"seeds": [1, 2], "generator": torch.Generator()},
            ValueError,
            "seeds and generator must not both be given",
        ),
    ],
)
def test_simulate(bounds, changes, error, message):
    system = DynamicalLinearBandit(0.5 * TWO, TWO, VECTOR, VECTOR)
    policy = LinUCB(TWO, bounds, horizon=10, replicas=2)
    with refuses(error, message):
        simulate(**({"system": system, "policy": policy, "horizon": 10} | changes))


def test_simulate_compares_sizes_and_memories(bounds):
    system = DynamicalLinearBandit(0.5 * TWO, TWO, VECTOR, VECTOR)
    policy = LinUCB(TWO, bounds, horizon=10, replicas=2)
    with refuses(ValueError, "system must be one or one per replica (2), got 3 of them"):
        simulate([system] * 3, policy, 10)
    small = DynamicalLinearBandit(TWO[:1, :1] * 0.5, TWO[:1], VECTOR[:1], VECTOR)
    with refuses(ValueError, "system must have equal sizes (n, d) for every replica, got [(1, 2), (2, 2)]"):
        simulate([system, small], policy, 10)
    with refuses(ValueError, "policy must choose actions with 2 components as the system's, got 3"):
        simulate(system, LinUCB(torch.eye(3), bounds, horizon=10), 10)
    slow = DynamicalLinearBandit(0.8 * TWO, TWO, VECTOR, VECTOR)
    with pytest.warns(UserWarning, match=r"spectral_radius is 0\.5, below the system's 0\.8") as warned:
        simulate([system, slow], policy, 10, seeds=[0, 1])
    assert warned[0].filename == __file__
    run = simulate(system, policy, 10, seeds=[0, 1])
    with refuses(ValueError, "last must be in (0, 1], got 0"):
        run.slope(0)


@pytest.mark.parametrize(
    ("matrix", "radius", "error", "message"),
    [
        (torch.ones(2, 3), 1.0, ValueError, "matrix must be square, of shape (d, d), got (2, 3)"),
        (-TWO, 1.0, ValueError, "matrix must be symmetric positive definite"),
        (TWO + torch.ones(2, 2).triu(1), 1.0, ValueError, "matrix must be symmetric positive definite"),
        (TWO.long(), 1.0, TypeError, "matrix must be floating-point, got torch.int64"),
        (TWO, 0.0, ValueError, "radius must be finite and positive, got 0.0"),
        (TWO, NAN, ValueError, "radius must be finite and positive, got nan"),
    ],
)
def test_ellipsoids(matrix, radius, error, message):
    with refuses(error, message):
        Ellipsoid(matrix, radius)


def test_polytopes_epochs_and_rates(bounds):
    with refuses(ValueError, "low and high must have the same shape (d,), got (1,) and (2,)"):
        box_vertices([0.0], [1.0, 1.0])
    with refuses(ValueError, "high must be at least low"):
        box_vertices([1.0], [0.0])
    with refuses(ValueError, "budget must be reachable between low and high, got 3.0"):
        budget_vertices([0.0, 0.0], [1.0, 1.0], 3.0)
    with refuses(ValueError, "spectral_radius must be in [0, 1), got 1.0"):
        epoch_lengths(1.0, 3)
    with refuses(ValueError, "num_epochs must be at least 0, got -1"):
        epoch_lengths(0.5, -1)
    with refuses(ValueError, "horizon and dimension must be at least 1, got 0 and 3"):
        regret_upper_rate(bounds, 0, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": torch.ones(5)}, "actions and rewards must have the shapes (T, d) and (T,)"),
        ({"rewards": torch.ones(100) * NAN}, "actions and rewards must be finite, got nan or inf"),
        ({"state_dimension": 0}, "state_dimension must be in 1..7 (below lags), got 0"),
        ({"state_dimension": 8}, "state_dimension must be in 1..7 (below lags), got 8"),
        ({"ridge": 0.0}, "ridge must be positive, got 0.0"),
        ({"actions": torch.ones(9, 1), "rewards": torch.ones(9)}, "the log must have at least 18 rounds"),
        ({"rewards": 1.2 ** torch.arange(100.0)}, "the log must come from a stable system"),
    ],
)
def test_identification(changes, message):
    generator = torch.Generator().manual_seed(0)
    log = {
        "actions": torch.randn(100, 1, generator=generator),
        "rewards": torch.randn(100, generator=generator),
    }
    with refuses(ValueError, message):
        identify(**(log | {"state_dimension": 2} | changes))


def test_the_environment_names_its_extra(monkeypatch):
    import sys

    monkeypatch.delitem(sys.modules, "dynlinucb._environment", raising=False)
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with refuses(ImportError, "DynamicalLinearBanditEnv needs gymnasium: pip install 'dynlinucb[gym]'"):
        _ = dynlinucb.DynamicalLinearBanditEnv
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = dynlinucb.Nonsense


def test_the_environment_names_its_horizon():
    with refuses(ValueError, "horizon must be at least 1, got 0"):
        dynlinucb.DynamicalLinearBanditEnv(DynamicalLinearBandit(0.5 * TWO, TWO, VECTOR, VECTOR), TWO, 0)
