"""rlif against what a competent user would pick instead: a group is exactly two cases on the same input."""

from functools import cache

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import nn

from rlif import (
    InterventionController,
    InterventionEnv,
    InterventionRelabeler,
    InterventionVectorEnv,
    RandomSupervisor,
    ValueSupervisor,
    relabel,
)
from rlif.reference import BatchedPendulum, GroupedMLP

both = pytest.mark.parametrize("case", ["ours", "peer"])


# --- relabelling a log --------------------------------------------------------------------------------


@cache
def log(steps):
    rng = np.random.default_rng(0)
    return rng.random(steps) < 0.2, rng.random(steps) < 0.005


def lines_anyone_writes(flags, ends):
    """The three vectorised lines of NumPy."""
    rewards = np.zeros(len(flags), np.float32)
    rewards[:-1] = -(~flags[:-1] & flags[1:] & ~ends[:-1]).astype(np.float32)
    return rewards


def loop(flags, ends):
    """The official code's way: a loop over steps."""
    rewards = np.zeros(len(flags), np.float32)
    for t in range(1, len(flags)):
        if flags[t] and not flags[t - 1] and not ends[t - 1]:
            rewards[t - 1] = -1
    return rewards


LOGS = {lines_anyone_writes: "the vectorised NumPy lines", loop: "a Python loop over steps"}


def compare_logs(benchmark, case, peer, steps, rounds):
    flags, ends = log(steps)
    np.testing.assert_array_equal(relabel(flags, ends), peer(flags, ends))
    benchmark.extra_info.update(case=case, peer=LOGS[peer], size=f"{steps:,} steps")
    benchmark.pedantic({"ours": relabel, "peer": peer}[case], (flags, ends), rounds=rounds, warmup_rounds=1)


@both
@pytest.mark.benchmark(group="relabelling a log")
def test_log(benchmark, case):
    compare_logs(benchmark, case, lines_anyone_writes, 1_000_000, 20)


@both
@pytest.mark.benchmark(group="relabelling a log against a loop")
def test_log_loop(benchmark, case):
    compare_logs(benchmark, case, loop, 1_000_000, 3)


@both
@pytest.mark.benchmark(group="relabelling a short log")
def test_short_log(benchmark, case):
    compare_logs(benchmark, case, lines_anyone_writes, 200, 100)


# --- collecting ---------------------------------------------------------------------------------------


@cache
def networks():
    """Policy, expert, reference and critic of the card's sizes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        actors = [nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 1), nn.Tanh()) for _ in range(3)]
        critic = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 1))
    return *actors, lambda state, action: critic(torch.cat([state, action], 1))


def start(count):
    envs = BatchedPendulum(count, torch.Generator().manual_seed(0))
    return envs, envs.reset()


def our_collection(count, steps):
    """Every environment at once."""
    policy, expert, reference, critic = networks()
    envs, state = start(count)
    supervisor = ValueSupervisor(expert, critic, reference, rule="gap", delta=0.01, beta=1.0)
    controller, relabeler = InterventionController(supervisor, count), InterventionRelabeler(num_envs=count)
    stored, no = [], torch.zeros(count, dtype=torch.bool)
    for _ in range(steps):
        with torch.no_grad():
            decision = controller.decide(state, policy(state))
        following, _, _ = envs.step(decision.action)
        stored += relabeler.push(state, decision.action, following, decision.intervened, no, no)
        state = following
    stored += relabeler.flush()
    return float(torch.cat([batch.reward for batch in stored]).sum()), state


def official_collection(count, steps):
    """One environment after the other, three policies and two critics a step, as the official script goes."""
    policy, expert, reference, critic = networks()
    total, ends = 0.0, []
    for number in range(count):
        envs, states = start(count)
        envs.state, envs.num_envs = envs.state[number : number + 1], 1
        state, intervene, before, stop = states[number : number + 1], False, False, -1
        for t in range(steps):
            with torch.no_grad():
                proposed, own, best = policy(state), expert(state), reference(state)
                if not intervene:
                    intervene = bool(critic(state, proposed) < critic(state, best) - 0.01)
                    stop = t + 4 if intervene else stop
            if t == stop:
                intervene = False
            if intervene and not before and t:
                total -= 1
            before = intervene
            state, _, _ = envs.step(own if intervene else proposed)
        ends.append(state)
    return total, torch.cat(ends)


def vectorised_by_hand(count, steps):
    """The same batched loop with the bookkeeping written inline, without classes, checks or copies."""
    policy, expert, reference, critic = networks()
    envs, state = start(count)
    left, before = torch.zeros(count, dtype=torch.long), torch.zeros(count, dtype=torch.bool)
    stored = []
    for t in range(steps):
        with torch.no_grad():
            proposed, own = policy(state), expert(state)
            bad = (critic(state, proposed) < critic(state, reference(state)) - 0.01)[:, 0]
        fresh = bad & ~before
        flags = fresh | (left > 0)
        left = torch.where(left > 0, left - 1, torch.where(fresh, 3, 0))
        action = torch.where(flags[:, None], own, proposed)
        following, _, _ = envs.step(action)
        stored.append([state, action, torch.zeros(count), following])
        if t:
            stored[-2][2] = -(flags & ~before).float()
        before, state = flags, following
    return float(torch.cat([row[2] for row in stored]).sum()), state


COLLECTIONS = {
    vectorised_by_hand: "the batched loop written by hand",
    official_collection: "the official script's loop, one environment at a time",
}


def compare_collections(benchmark, case, peer, rounds):
    count, steps = 32, 100
    (total, ends), (their_total, their_ends) = our_collection(count, steps), peer(count, steps)
    assert total == their_total < 0
    torch.testing.assert_close(ends, their_ends, atol=1e-3, rtol=1e-3)
    size = f"{count} pendulums, {steps} steps each"
    benchmark.extra_info.update(case=case, peer=COLLECTIONS[peer], size=size)
    run = {"ours": our_collection, "peer": peer}[case]
    benchmark.pedantic(run, (count, steps), rounds=rounds, warmup_rounds=1)


@both
@pytest.mark.benchmark(group="collecting with a value-based supervisor")
def test_collection(benchmark, case):
    compare_collections(benchmark, case, vectorised_by_hand, 8)


@both
@pytest.mark.benchmark(group="collecting against the official loop")
def test_collection_officially(benchmark, case):
    compare_collections(benchmark, case, official_collection, 3)


# --- wrappers -----------------------------------------------------------------------------------------


def still(state):
    return torch.zeros(len(state), 1)


@cache
def environment(watched):
    env = gym.make("Pendulum-v1", max_episode_steps=100_000)
    env = InterventionEnv(env, RandomSupervisor(still, 0.0), reward="env") if watched else env
    return env


def drive(env, action, steps):
    state, _ = env.reset(seed=0)
    for _ in range(steps):
        state, *_ = env.step(action)
    return state


@both
@pytest.mark.benchmark(group="one environment, watched")
def test_wrapper(benchmark, case):
    action, steps = np.full(1, 0.3, np.float32), 200
    np.testing.assert_array_equal(*(drive(environment(watched), action, steps) for watched in (True, False)))
    benchmark.extra_info.update(case=case, peer="the bare environment", size="Pendulum-v1, 200 steps")
    benchmark.pedantic(drive, (environment(case == "ours"), action, steps), rounds=8, warmup_rounds=1)


@cache
def environments(watched):
    def make():
        return gym.make("Pendulum-v1")

    def watch():
        return InterventionEnv(make(), RandomSupervisor(still, 0.0), reward="env")

    if watched:
        envs = SyncVectorEnv([make] * 16, autoreset_mode=AutoresetMode.SAME_STEP)
        return InterventionVectorEnv(envs, RandomSupervisor(still, 0.0), reward="env")
    return SyncVectorEnv([watch] * 16, autoreset_mode=AutoresetMode.SAME_STEP)


@both
@pytest.mark.benchmark(group="sixteen environments, watched at once")
def test_vector_wrapper(benchmark, case):
    action, steps = np.full((16, 1), 0.3, np.float32), 50
    np.testing.assert_array_equal(*(drive(environments(watched), action, steps) for watched in (True, False)))
    peer, size = "the single wrapper in each environment", "16 Pendulum-v1, 50 steps"
    benchmark.extra_info.update(case=case, peer=peer, size=size)
    benchmark.pedantic(drive, (environments(case == "ours"), action, steps), rounds=8, warmup_rounds=1)


# --- ten critics --------------------------------------------------------------------------------------


@cache
def critics():
    stack = GroupedMLP([12, 64, 64, 1], [torch.Generator().manual_seed(0)], members=10, layer_norm=True)
    modules = []
    for member in range(10):
        layers = []
        for number, weight in enumerate(stack.weights):
            linear = nn.Linear(*weight.shape[1:])
            linear.weight.data = weight[member].T.detach().clone()
            linear.bias.data = stack.biases[number][member, 0].detach().clone()
            layers += [linear, nn.LayerNorm(64), nn.ReLU()] if number < 2 else [linear]
        modules.append(nn.Sequential(*layers))
    inputs = torch.randn(128, 12, generator=torch.Generator().manual_seed(1))
    return stack, nn.ModuleList(modules), inputs


def stacked_step():
    stack, _, inputs = critics()
    loss = stack(inputs.expand(10, -1, -1)).square().mean((1, 2)).sum()
    loss.backward()
    return loss.detach()


def looped_step():
    _, modules, inputs = critics()
    loss = torch.stack([module(inputs).square().mean() for module in modules]).sum()
    loss.backward()
    return loss.detach()


@both
@pytest.mark.benchmark(group="ten critics forward and backward")
def test_critics(benchmark, case):
    torch.testing.assert_close(stacked_step(), looped_step())
    size = "10 critics 12-64-64-1 with LayerNorm, batch 128"
    benchmark.extra_info.update(case=case, peer="a loop over ten modules", size=size)
    benchmark.pedantic({"ours": stacked_step, "peer": looped_step}[case], rounds=40, warmup_rounds=3)
