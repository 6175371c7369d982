"""The evidence has the form it promises, and the full-size setting is real."""

import dataclasses
import json
import math

import pytest
import torch

import morec.demo
from morec.demo import demo
from morec.reference.fullsize import FullSize
from morec.reference.logged import load_transitions, termination_of


def test_the_smoke_preset_judges_its_own_criterion():
    heard = []
    result = demo("smoke", seed=1, progress=lambda fraction, message: heard.append(fraction))
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert heard == sorted(heard)
    assert heard[-1] == 1.0
    row = {found["name"]: found for found in result["rows"]}
    random, terminating = row["random elite"], row["filter + termination"]
    assert result["holds"] == (
        row["filter"]["error_out"] < random["error_out"]
        and 2 * terminating["worst_tenth_out"] <= random["worst_tenth_out"]
        and terminating["worst_tenth_out"] < row["random elite, cut short"]["worst_tenth_out"]
    )
    assert row["random elite, cut short"]["stored_out"] >= terminating["stored_out"]
    # an oracle is never worse than what it may choose from, whoever chooses
    for name in ("filter", "random elite", "filter, last discriminator"):
        for place in ("in", "out"):
            assert row["best of K (oracle)"][f"error_{place}"] <= row[name][f"error_{place}"]
    assert {key for found in result["rows"] for key in found} - {"name", "role"} == set(result["metrics"])


def test_agents_appear_in_the_table(monkeypatch):
    tiny = dataclasses.replace(
        morec.demo._SIZES["smoke"], reward_steps=10, model_steps=10, num_states=8, num_updates=6
    )
    monkeypatch.setitem(morec.demo._SIZES, "smoke", tiny)
    rows = {row["name"]: row for row in demo("smoke")["rows"]}
    for name in ("random elite", "MOPO penalty", "filter", "filter + termination"):
        for horizon in (5, 50):
            assert -200 * (math.pi**2 + 6.404) < rows[name][f"return_horizon_{horizon}"] < 0
    assert rows["MOPO penalty"]["role"] == "baseline"


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
