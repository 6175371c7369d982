"""The loop around the method: rejection rules, rollouts, and the reference agent and model."""

import math

import pytest
import torch
from torch import nn

from morec import DynamicsReward, TransitionFilter, TransitionNormalizer, rollout
from morec.reference.ensemble import GaussianEnsemble, fit_ensemble
from morec.reference.mopo import Arm, ModelBuffer, mopo_sample_fn, train_in_models
from morec.reference.sac import GroupedSAC


class StepSize(nn.Module):
    """Judges a one-dimensional transition by its size alone: logit -|s' - s|."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, encoded):
        return -encoded[..., 2].abs()


def reward_of(size):
    return math.log1p(math.exp(-size))


@pytest.fixture
def reward():
    return DynamicsReward(TransitionNormalizer(1, 1), [StepSize()])


OBS, ACT = torch.zeros(3, 1), torch.zeros(3, 1)
# next state and reward: small, middling and large steps, the better candidate second
CANDIDATES = torch.tensor([[[1.0, 10.0], [3.0, 30.0], [9.0, 90.0]], [[-0.5, 11.0], [2.0, 31.0], [8.0, 91.0]]])


def test_the_reward_of_the_chosen_candidate_travels_with_it(reward):
    result = TransitionFilter(reward, min_reward=reward_of(2.5))(OBS, ACT, CANDIDATES)
    assert result.next_obs.squeeze(-1).tolist() == [-0.5, 2.0, 8.0]
    assert result.extra.squeeze(-1).tolist() == [11.0, 31.0, 91.0]
    assert result.index.tolist() == [1, 1, 1]
    torch.testing.assert_close(result.score, torch.tensor([reward_of(size) for size in (0.5, 2.0, 8.0)]))
    assert result.reject.tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("on_reject", "terminal", "keep"),
    [
        ("terminal", [False, False, True], [True, True, True]),
        ("drop", [False, False, False], [True, True, False]),
        ("truncate", [False, False, False], [True, True, True]),
    ],
)
def test_every_rule_of_rejection(reward, on_reject, terminal, keep):
    transition_filter = TransitionFilter(reward, min_reward=reward_of(2.5), on_reject=on_reject, min_length=4)
    early = transition_filter(OBS, ACT, CANDIDATES, step=3)
    assert not early.reject.any()
    assert not early.terminal.any()
    assert early.keep.all()
    late = transition_filter(OBS, ACT, CANDIDATES, step=4)
    assert late.reject.tolist() == [False, False, True]
    assert late.terminal.tolist() == terminal
    assert late.keep.tolist() == keep


def test_broken_candidates_are_never_chosen_and_hopeless_states_never_stored(reward):
    broken = CANDIDATES.clone()
    broken[1, 0, 1] = math.nan  # a broken reward spoils the candidate
    broken[:, 1, 0] = math.inf
    for mode in ("greedy", "softmax"):
        transition_filter = TransitionFilter(
            reward, mode=mode, min_reward=-math.inf, min_length=9, nan_policy="reject"
        )
        result = transition_filter(OBS, ACT, broken, generator=torch.Generator().manual_seed(0))
        assert result.next_obs[0].item() == 1.0
        assert result.next_obs[1].item() == OBS[1].item()
        assert result.reject.tolist() == [False, True, False]
        assert result.keep.tolist() == [True, False, True]
        assert not result.terminal.any()


def test_candidates_are_clipped_before_they_are_judged(reward):
    result = TransitionFilter(reward, clip=1.5, min_reward=reward_of(1.6))(OBS, ACT, CANDIDATES)
    assert result.next_obs.squeeze(-1).tolist() == [-0.5, 1.5, 1.5]
    assert result.extra.squeeze(-1).tolist() == [1.5, 1.5, 1.5]
    assert not result.reject.any()


def doubling(obs, act):
    """s -> 2 s, with reward 100 s: a step as large as the state."""
    return torch.cat([2 * obs, 100 * obs], dim=-1).expand(4, -1, -1)


@pytest.mark.parametrize(("on_reject", "rows"), [("terminal", 3), ("drop", 2), ("truncate", 3)])
def test_a_rollout_ends_at_its_rejection(reward, on_reject, rows):
    """From 1 the steps are 1, 2, 4: the third is rejected."""
    transition_filter = TransitionFilter(reward, min_reward=reward_of(3.0), on_reject=on_reject)
    steps = rollout(doubling, lambda obs: obs, torch.tensor([[1.0], [0.01]]), 6, transition_filter)
    first = steps["start"] == 0
    assert steps["obs"][first, 0].tolist() == [1.0, 2.0, 4.0][:rows]
    assert steps["next_obs"][first, 0].tolist() == [2.0, 4.0, 8.0][:rows]
    assert steps["reward"][first].tolist() == [100.0, 200.0, 400.0][:rows]
    assert steps["terminal"][first].tolist() == [False, False, on_reject == "terminal"][:rows]
    assert steps["truncated"][first].tolist() == [False, False, on_reject == "truncate"][:rows]
    assert (~first).sum() == 6  # 0.01 doubles six times and is never rejected
    assert steps["truncated"][~first].tolist() == [False] * 5 + [True]
    assert steps["step"][~first].tolist() == list(range(6))


def test_the_environments_own_ending_is_terminal(reward):
    transition_filter = TransitionFilter(reward, min_reward=reward_of(30.0))
    steps = rollout(
        doubling,
        lambda obs: obs,
        torch.tensor([[1.0]]),
        6,
        transition_filter,
        termination_fn=lambda obs, act, next_obs: next_obs[:, 0] >= 8,
    )
    assert steps["terminal"].tolist() == [False, False, True]
    assert not steps["truncated"].any()


def test_without_a_filter_candidates_are_uniform():
    def sample(obs, act):
        values = torch.arange(4.0).view(4, 1, 1).expand(4, len(obs), 2)
        return values

    steps = rollout(
        sample, lambda obs: obs, torch.zeros(4000, 1), 1, None, generator=torch.Generator().manual_seed(0)
    )
    counts = torch.bincount(steps["next_obs"][:, 0].long(), minlength=4).double()
    assert ((counts - 1000).square() / 1000).sum() < 16.3  # 0.1 % of chi-square with 3 degrees of freedom
    assert steps["score"].isnan().all()


def test_mopos_penalty_is_the_largest_deviation():
    model = GaussianEnsemble(2, 1, num_members=3, num_elites=2, hidden_sizes=(8,))
    obs, act = torch.randn(5, 2), torch.randn(5, 1)
    plain, penalised = (
        mopo_sample_fn(model, penalty=penalty, reward_scale=0.5, generator=torch.Generator().manual_seed(0))(
            obs, act
        )
        for penalty in (0.0, 2.0)
    )
    largest = model(obs, act)[1].pow(2).sum(-1).sqrt().max(0).values.detach()
    torch.testing.assert_close(plain[..., :2], penalised[..., :2])
    expected = (0.5 * 2.0 * largest).expand(4, -1)
    torch.testing.assert_close(plain[..., 2] - penalised[..., 2], expected)


def test_the_ensemble_learns_a_linear_system():
    generator = torch.Generator().manual_seed(0)
    obs, act = torch.randn(600, 2, generator=generator), torch.randn(600, 1, generator=generator)
    next_obs = obs + torch.cat([0.1 * obs[:, 1:], act - 0.2 * obs[:, :1]], -1)
    model = GaussianEnsemble(2, 1, num_members=4, num_elites=2, hidden_sizes=(32, 32), generator=generator)
    errors = fit_ensemble(
        model, obs, act, obs[:, 0], next_obs, num_steps=300, learning_rate=3e-3, generator=generator
    )
    assert errors.max() < 0.05  # of the targets' variance
    assert model.elites.tolist() == errors.argsort()[:2].tolist()
    mean, std = model(obs[:100], act[:100])
    assert (mean[..., :2] - next_obs[:100]).square().mean().sqrt() < 0.2
    assert (mean[..., 2] - obs[:100, 0]).square().mean().sqrt() < 0.2
    assert mean.shape == std.shape == (4, 100, 3)


def agent_of(seeds):
    return GroupedSAC(2, 1, [torch.Generator().manual_seed(seed) for seed in seeds], hidden_sizes=(8,))


def sac_batch(groups, seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(groups, 16, *shape, generator=generator)

    terminal = (draw() > 1).float()
    return {
        "obs": draw(2),
        "act": draw(1).tanh(),
        "next_obs": draw(2),
        "reward": draw(),
        "terminal": terminal,
    }


def test_grouped_agents_do_not_feel_each_other():
    together, alone = agent_of([0, 1, 2]), [agent_of([seed]) for seed in range(3)]
    for step in range(5):
        batch = sac_batch(3, step)
        together.update(batch)
        for group, agent in enumerate(alone):
            agent.update({name: column[group : group + 1] for name, column in batch.items()})
    for group, agent in enumerate(alone):
        torch.testing.assert_close(together.log_temperature[group], agent.log_temperature[0])
        for network in ("actor", "critic", "target"):
            for joint, single in zip(
                getattr(together, network).parameters(), getattr(agent, network).parameters(), strict=True
            ):
                size = len(single)
                torch.testing.assert_close(
                    joint[group * size : (group + 1) * size], single, atol=1e-5, rtol=1e-4
                )
    obs = torch.randn(4, 2)
    every = together.act(obs.expand(3, -1, -1), deterministic=True)
    torch.testing.assert_close(together.act_as(1, obs, deterministic=True), every[1])


def test_the_agents_log_prob_is_torchs():
    agent = agent_of([3])
    obs = torch.randn(1, 50, 2)
    state = agent.generators[0].get_state()
    act, log_prob = agent._sample(obs)
    agent.generators[0].set_state(state)
    mean, log_std = agent.actor(obs).chunk(2, -1)
    normal = torch.distributions.Normal(mean.double(), log_std.clamp(-5, 2).exp().double())
    squashed = torch.distributions.TransformedDistribution(normal, [torch.distributions.TanhTransform()])
    raw = mean + log_std.clamp(-5, 2).exp() * torch.randn(50, 1, generator=agent.generators[0])
    torch.testing.assert_close(act, raw.tanh())
    expected = squashed.log_prob(raw.double().tanh()).sum(-1)
    torch.testing.assert_close(log_prob.double(), expected, atol=1e-3, rtol=1e-3)


def test_the_buffer_is_a_ring_per_group():
    buffer = ModelBuffer(2, 4, 1, 1)

    def rows(values):
        column = torch.tensor(values).unsqueeze(-1)
        flat = column.squeeze(-1)
        return {"obs": column, "act": column, "next_obs": column, "reward": flat, "terminal": flat}

    buffer.add(0, rows([1.0, 2.0, 3.0]))
    buffer.add(1, rows([10.0]))
    buffer.add(0, rows([4.0, 5.0]))
    drawn = buffer.sample(400, [torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)])
    assert set(drawn["reward"][0].tolist()) == {2.0, 3.0, 4.0, 5.0}
    assert set(drawn["obs"][1, :, 0].tolist()) == {10.0}


def test_agents_learn_inside_a_model():
    """One step to live and a reward of -(a - 0.5)^2: the best action is known."""

    def sample(obs, act):
        reward = -(act - 0.5).square()
        return torch.cat([obs, reward], -1).expand(2, -1, -1)

    log = {
        "obs": torch.zeros(8, 2),
        "act": torch.zeros(8, 1),
        "next_obs": torch.zeros(8, 2),
        "reward": torch.full((8,), -0.25),
        "terminal": torch.ones(8),
    }
    agent = GroupedSAC(
        2,
        1,
        [torch.Generator().manual_seed(seed) for seed in range(2)],
        hidden_sizes=(16,),
        actor_learning_rate=3e-3,
        critic_learning_rate=1e-2,
    )
    fractions = []
    train_in_models(
        agent,
        [Arm(log, sample, None, 1, lambda obs, act, next_obs: torch.ones(len(obs), dtype=torch.bool))] * 2,
        num_updates=300,
        batch_size=64,
        rollout_every=30,
        rollout_transitions=200,
        capacity=1000,
        progress=fractions.append,
    )
    chosen = agent.act(torch.zeros(2, 1, 2), deterministic=True).flatten()
    assert ((chosen - 0.5).abs() < 0.15).all()
    assert fractions == sorted(fractions)
