"""The evidence has the form it promises, and the full-size setting is real."""

import json
import math

import pytest
import torch

import morec.demo
from morec.demo import arm, conditions, demo
from morec.demo.ways import Proposals, Trace, end_early
from morec.reference.fullsize import FullSize
from morec.reference.logged import load_transitions, termination_of


@pytest.mark.demo
def test_the_smoke_preset_judges_its_own_criterion():
    heard = []
    result = demo("smoke", seed=1, progress=lambda fraction, message: heard.append(fraction))
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert heard == sorted(heard)
    assert heard[-1] == 1.0
    row = {found["name"]: found for found in result["rows"]}
    random, mean, ending = row["random elite"], row["ensemble mean"], row["filter + termination"]
    rival = row["ensemble mean, ended by disagreement"]
    choosing = row["filter"]["error_out"] < min(random["error_out"], mean["error_out"])
    assert result["holds"] == (
        choosing
        and row["filter"]["logs_won"] >= 75
        and row["filter"]["rollout_in"] < mean["rollout_in"]
        and 2 * ending["worst_tenth_out"] <= random["worst_tenth_out"]
        and all(ending[name] < rival[name] for name in ("worst_tenth_out", "worst_tenth_in"))
    )
    # rivals of termination store at least as much
    for name in ("random elite, cut short", "random elite, ended by disagreement", rival["name"]):
        for place in ("in", "out"):
            assert row[name][f"stored_{place}"] >= ending[f"stored_{place}"]
    # an oracle is never worse than what it may choose from, whoever chooses
    for name in ("filter", "random elite", "nearest to the mean", "filter, last discriminator"):
        for place in ("in", "out"):
            assert row["best of K (oracle)"][f"error_{place}"] <= row[name][f"error_{place}"]
    assert {key for found in result["rows"] for key in found} - {"name", "role"} == set(result["metrics"])


def test_every_clause_can_fail():
    """Rows in which the method is better by half, then the same with one figure spoiled."""
    better = {
        "error_out": 1.0,
        "rollout_in": 1.0,
        "worst_tenth_out": 1.0,
        "worst_tenth_in": 1.0,
        "logs_won": 100.0,
    }
    worse = {name: 2 * value for name, value in better.items()}
    names = (
        "random elite",
        "ensemble mean",
        "ensemble mean, ended by disagreement",
        "filter",
        "filter + termination",
    )
    good = [{"name": name, **(better if name.startswith("filter") else worse)} for name in names]
    assert all(clause["holds"] for clause in conditions(good))
    assert [clause["figure"] for clause in conditions(good)] == [0.5, 0.5, 100.0, 0.5, 0.5, 0.5, 0.5]
    spoiled = {"error_out": 2, "logs_won": 1, "rollout_in": 1, "worst_tenth_out": 2, "worst_tenth_in": 1}
    for figure, count in spoiled.items():
        value = 74.0 if figure == "logs_won" else 2.0
        bad = [{**row, figure: value} if row["name"].startswith("filter") else row for row in good]
        assert sum(not clause["holds"] for clause in conditions(bad)) == count
    assert not any(
        clause["holds"]
        for clause in conditions([{"name": "random elite"}, {"name": "filter"}, {"name": names[-1]}])
    )


def energy_of(angles, velocities):
    """Potential and kinetic energy of two point masses of 1 kg, from where they are."""
    shoulder, elbow = angles
    x = torch.stack([shoulder.sin(), shoulder.sin() + (shoulder + elbow).sin()])
    y = -torch.stack([shoulder.cos(), shoulder.cos() + (shoulder + elbow).cos()])
    fast, both = velocities[0], velocities.sum()
    first = torch.stack([shoulder.cos() * fast, shoulder.sin() * fast])
    second = first + torch.stack([(shoulder + elbow).cos() * both, (shoulder + elbow).sin() * both])
    return 10 * y.sum() + 0 * x.sum(), 0.5 * (first.square().sum() + second.square().sum())


def test_the_arm_moves_as_lagrange_says():
    """M a + dM/dt v - d(T - V)/dq = torque - friction - stop, all derivatives by autograd."""
    generator = torch.Generator().manual_seed(0)
    for elbow in (0.3, -0.45, 0.56, -0.6):
        state = 2 * torch.randn(4, generator=generator, dtype=torch.float64)
        state[1] = elbow
        torque = 5 * torch.randn(2, generator=generator, dtype=torch.float64)
        angles, velocities = state[:2], state[2:]

        def lagrangian(angles, velocities):
            potential, kinetic = energy_of(angles, velocities)
            return kinetic - potential

        by_angle = torch.func.grad(lagrangian, 0)(angles, velocities)
        momentum = torch.func.grad(lagrangian, 1)
        mass = torch.func.jacrev(momentum, 1)(angles, velocities)
        turning = torch.func.jacrev(momentum, 0)(angles, velocities) @ velocities
        beyond = max(0.0, abs(elbow) - 0.5) * (1 if elbow > 0 else -1)
        stop = torch.tensor([0.0, 400 * beyond + (4 * velocities[1].item() if beyond else 0.0)]).double()
        expected = torch.linalg.solve(mass, torque - 0.2 * velocities - stop + by_angle - turning)
        torch.testing.assert_close(arm._acceleration(state, torque), expected)


def test_the_two_controllers_differ_in_what_they_visit():
    generator = torch.Generator().manual_seed(0)
    timid, bold = (arm.collect(one, 10, 30, generator=generator) for one in (arm.timid, arm.bold))
    assert timid["act"].abs().mean() < 0.35 < 0.6 < bold["act"].abs().mean()
    assert bold["state"][..., 3].std() > 2 * timid["state"][..., 3].std()
    assert (timid["state"][..., 1].abs() > 0.5).any()  # the log has seen the stop
    torch.testing.assert_close(arm.observe(arm.step(bold["state"], bold["act"])), bold["next_obs"])


def test_rivals_end_where_they_are_told():
    error = torch.arange(6.0).view(3, 2)
    doubt = torch.tensor([[0.1, 0.3], [0.5, 0.2], [0.2, 0.9]])
    never = torch.ones(3, 2, dtype=torch.bool)
    trace = Trace(torch.zeros(3, 2, 1), error, doubt, never)
    like = Trace(trace.obs, error, doubt, torch.tensor([[True, True], [False, True], [False, False]]))
    assert end_early(trace, like, "length").alive.tolist() == [[True, True], [True, True], [False, False]]
    # the largest disagreement so far is .1 .5 .5 and .3 .3 .9
    assert end_early(trace, like, "disagreement").alive.tolist() == [
        [True, True],
        [False, True],
        [False, False],
    ]
    assert like.mean_error() == pytest.approx((0 + 1 + 3) / 3)
    assert like.worst_tenth() == 3.0


def test_ways_of_choosing_by_hand():
    found = Proposals(
        error=torch.tensor([[3.0], [1.0], [2.0]]),
        mean_error=torch.tensor([1.5]),
        from_mean=torch.tensor([[0.5], [0.4], [0.1]]),
        disagreement=torch.ones(1),
        scores={"history": torch.tensor([[0.9], [0.8], [0.1]])},
    )
    expected = {
        "random elite": 2.0,
        "ensemble mean": 1.5,
        "nearest to the mean": 2.0,
        "filter": 3.0,
        "best of K (oracle)": 1.0,
    }
    assert {name: found.of(name).item() for name in expected} == expected
    assert found.of("nearest to the mean", 2).item() == 1.0
    # scores and minus errors about their means: (.3, .2, -.5) and (-1, 1, 0)
    assert found.within_state_correlation("filter") == pytest.approx(-0.1 / (0.38 * 2) ** 0.5)


def test_presets_and_their_needs_are_named(monkeypatch):
    with pytest.raises(ValueError, match="preset must be 'smoke', 'laptop' or 'paper', got 'huge'"):
        demo("huge")
    monkeypatch.delenv("MOREC_DATA", raising=False)
    with pytest.raises(ValueError, match="needs MOREC_DATA"):
        demo("paper")


def test_the_full_size_comparison_runs_from_a_file(monkeypatch, tmp_path):
    """The paper's own path, with everything shrunk."""
    safetensors = pytest.importorskip("safetensors.torch")
    gymnasium = pytest.importorskip("gymnasium")
    env = gymnasium.make("Pendulum-v1")
    obs, _ = env.reset(seed=0)
    generator, steps = torch.Generator().manual_seed(0), []
    for _ in range(200):
        act = 2 * torch.rand(1, generator=generator) - 1
        following, reward, *_ = env.step(2 * act.numpy())
        steps.append(
            (torch.tensor(obs), act, torch.tensor(reward), torch.tensor(following), torch.tensor(0.0))
        )
        obs = following
    names = ("obs", "act", "reward", "next_obs", "terminal")
    columns = {
        name: torch.stack(values) for name, values in zip(names, zip(*steps, strict=True), strict=True)
    }
    safetensors.save_file(columns, tmp_path / "log.safetensors")
    monkeypatch.setenv("MOREC_DATA", str(tmp_path / "log.safetensors"))
    monkeypatch.setenv("MOREC_ENVIRONMENT", "Pendulum-v1")
    small = FullSize((8,), 20, (8,), 40, (8,), 20, rollout_every=10, num_rollouts=5, horizon=4, episodes=1)
    monkeypatch.setattr(morec.demo, "FullSize", lambda: small)
    result = demo("paper")
    assert [row["name"] for row in result["rows"]] == ["MOPO", "MOREC-MOPO"]
    assert result["holds"] == (result["rows"][1]["return"] > result["rows"][0]["return"])
    # 200 steps of at most pi^2 + 0.1 * 64 + 0.001 * 4
    assert all(-200 * (math.pi**2 + 6.404) < row["return"] <= 0 for row in result["rows"])

    del columns["terminal"]
    safetensors.save_file(columns, tmp_path / "short.safetensors")
    with pytest.raises(ValueError, match="it lacks terminal"):
        load_transitions(tmp_path / "short.safetensors")


def test_when_hoppers_and_walkers_fall():
    hopper = termination_of("Hopper-v5")
    standing = torch.tensor([[1.2, 0.0, 0.0], [0.6, 0.0, 0.0], [1.2, 0.3, 0.0], [1.2, 0.0, 101.0]])
    assert hopper(standing, standing, standing).tolist() == [False, True, True, True]
    walker = termination_of("Walker2d-v5")
    standing = torch.tensor([[1.2, 0.0], [0.7, 0.0], [2.1, 0.0], [1.2, 1.1]])
    assert walker(standing, standing, standing).tolist() == [False, True, True, True]
    assert termination_of("HalfCheetah-v5") is None
