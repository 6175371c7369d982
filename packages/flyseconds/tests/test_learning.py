"""TD3 as the textbook has it, stacks of agents, the schedule of training, and the replay buffer in use."""

import copy
import dataclasses
import pickle
from copy import deepcopy

import pytest
import torch
from helpers import random_batch, seeded
from torch import nn
from torch.nn.functional import mse_loss

from flyseconds import (
    Batch,
    InitSpec,
    QuadrotorParams,
    QuadrotorVectorEnv,
    ReplayBuffer,
    RewardCurriculum,
    RewardWeights,
    StackedMLP,
    TD3Agent,
    reward_from_observations,
    train,
)


def test_updates_are_those_of_textbook_td3():
    """Plain modules, torch's tanh and AdamW, one network after the other; without noise both are exact."""
    options = {"target_noise": 0.0, "weight_decay": 0.05, "dtype": torch.float64}
    agent = TD3Agent(7, 5, 4, hidden=(8, 6), generator=seeded(0), **options)
    actor, critics = agent.policy(), [agent.critics.network(index) for index in range(2)]
    target_actor, target_critics = copy.deepcopy(actor), copy.deepcopy(critics)

    def adamw(modules):
        named = [item for module in modules for item in module.named_parameters()]
        weights = [value for name, value in named if "weight" in name]
        biases = [value for name, value in named if "bias" in name]
        return torch.optim.AdamW(
            [{"params": weights}, {"params": biases, "weight_decay": 0}], 1e-3, weight_decay=0.05
        )

    def follow(targets, sources):
        for target, source in zip(targets, sources, strict=True):
            for old, new in zip(target.parameters(), source.parameters(), strict=True):
                old.data.mul_(0.995).add_(new.data, alpha=0.005)

    actor_optimizer, critic_optimizer = adamw([actor]), adamw(critics)
    for number in range(6):
        batch = random_batch(seed=number)
        with torch.no_grad():
            following = torch.cat([batch.next_privileged, target_actor(batch.next_observation)], -1)
            value = torch.minimum(*(critic(following) for critic in target_critics)).squeeze(-1)
            target = batch.reward + 0.99 * (1 - batch.terminated.double()) * value
        now = torch.cat([batch.privileged, batch.action], -1)
        loss = sum(mse_loss(critic(now).squeeze(-1), target) for critic in critics)
        critic_optimizer.zero_grad()
        loss.backward()
        critic_optimizer.step()
        follow(target_critics, critics)
        torch.testing.assert_close(agent.update_critics(batch), loss.detach())
        if number % 2:
            acting = torch.cat([batch.privileged, actor(batch.observation)], -1)
            loss = -critics[0](acting).mean()
            actor_optimizer.zero_grad()
            loss.backward()
            actor_optimizer.step()
            follow([target_actor], [actor])
            torch.testing.assert_close(agent.update_actor(batch), loss.detach())
    pairs = [(agent.actor.network(0), actor), (agent.target_actor.network(0), target_actor)]
    pairs += [(agent.critics.network(index), critics[index]) for index in range(2)]
    pairs += [(agent.target_critics.network(index), target_critics[index]) for index in range(2)]
    for ours, theirs in pairs:
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(mine, other)


def test_stacked_agents_learn_as_they_would_alone():
    stacked = TD3Agent(7, 5, 4, num_agents=3, hidden=(8,), target_noise=0.0, dtype=torch.float64)
    for index in range(3):
        alone = TD3Agent(7, 5, 4, hidden=(8,), target_noise=0.0, dtype=torch.float64)
        for name in ("actor", "target_actor", "critics", "target_critics"):
            stack, single = getattr(stacked, name), getattr(alone, name)
            for many, one in zip(stack.parameters(), single.parameters(), strict=True):
                one.data.copy_(many.data[index::3])
        twin = copy.deepcopy(stacked)
        for number in range(4):
            batch = random_batch(agents=3, seed=number)
            mine = Batch(*(value[index] for value in vars(batch).values()))
            torch.testing.assert_close(twin.update_critics(batch)[index], alone.update_critics(mine))
            torch.testing.assert_close(twin.update_actor(batch)[index], alone.update_actor(mine))


def test_hidden_inputs_do_not_exist():
    visible = torch.tensor([[True] * 20, [True] * 5 + [False] * 15])
    agent = TD3Agent(20, 5, 4, num_agents=2, visible=visible, generator=seeded(0), dtype=torch.float64)
    observation = torch.randn(2, 9, 20, generator=seeded(1), dtype=torch.float64)
    changed = observation.clone()
    changed[..., 5:] += 1
    first, second = agent.act(observation), agent.act(changed)
    assert not torch.allclose(first[0], second[0])
    assert torch.equal(first[1], second[1])
    torch.testing.assert_close(agent.policy(1)(changed[1]), first[1])
    # The weights begin as those of a network with five inputs: uniform within 1 / sqrt(5).
    weights = agent.actor.weights[0][1, :5]
    assert weights.abs().max() <= 5**-0.5
    assert weights.std().item() == pytest.approx(5**-0.5 / 3**0.5, rel=0.1)
    agent.update_actor(random_batch(agents=2, dim=20))
    assert torch.equal(agent.act(observation)[1], agent.act(changed)[1])


def test_the_symmetric_critic_sees_what_the_actor_sees():
    agent = TD3Agent(7, 7, 4, critic_input="observation", target_noise=0.0, dtype=torch.float64)
    batch = random_batch()
    blind = Batch(**(vars(batch) | {"privileged": batch.privileged * 0, "next_privileged": batch.privileged}))
    twin = copy.deepcopy(agent)
    assert torch.equal(agent.update_critics(batch), twin.update_critics(blind))


def test_noise_has_the_stated_size_and_limit():
    agent = TD3Agent(7, 5, 4, generator=seeded(0))
    for parameter in agent.actor.parameters():
        parameter.data.zero_()
    agent.noise_scale = 0.5
    explored = agent.explore(torch.zeros(20_000, 7))
    assert explored.std().item() == pytest.approx(0.05, rel=0.03)
    agent.exploration_noise = 100.0
    assert agent.explore(torch.zeros(100, 7)).abs().max() <= 1


def test_networks_are_stacks_of_plain_ones_and_start_like_them():
    stack = StackedMLP(3, [5, 400, 2], final_tanh=True, generator=seeded(0))
    x = torch.randn(3, 10, 5, generator=seeded(1))
    expected = torch.stack([stack.network(index)(x[index]) for index in range(3)])
    torch.testing.assert_close(stack(x), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(stack(x[:2], first=2), expected[:2], rtol=1e-5, atol=1e-6)
    weight = nn.Linear(5, 400).weight
    assert stack.weights[0].abs().max() <= 5**-0.5
    assert stack.weights[0].std().item() == pytest.approx(5**-0.5 / 3**0.5, rel=0.05)
    assert weight.abs().max() <= 5**-0.5  # what torch does, for comparison


def test_updates_come_as_often_as_the_schedule_says(monkeypatch):
    """However many vehicles run: one critic step per 10 and one actor step per 20 steps, after the starts."""
    agent = TD3Agent(generator=seeded(0))
    env = QuadrotorVectorEnv(13, generator=seeded(0))
    calls, weights = [], []
    monkeypatch.setattr(agent, "update_critics", lambda batch: calls.append("critics") or torch.zeros(()))
    monkeypatch.setattr(agent, "update_actor", lambda batch: calls.append("actor"))
    curriculum = RewardCurriculum(every=300)
    for report in train(
        env, agent, 1000, critic_start=200, actor_start=400, report_every=100, curriculum=curriculum,
        noise_decay_start=500, noise_decay_every=200, generator=seeded(0),
    ):  # fmt: skip
        weights.append(round(report.weights[0].position, 3))
        last = report.step
    assert last == 1001
    assert calls.count("critics") == (1001 - 200) // 10
    assert calls.count("actor") == (1001 - 400) // 20
    assert sorted(set(weights)) == [5.0, 6.0, 7.2, 8.64]
    assert agent.noise_scale == pytest.approx(0.9**3)


def test_rewards_in_the_buffer_follow_the_curriculum():
    """At the end every reward in the buffer is that of the last weights, or of its own time without relabel."""
    for relabel in (True, False):
        env = QuadrotorVectorEnv(10, generator=seeded(0))
        buffer = ReplayBuffer(400, 10)
        curriculum = RewardCurriculum(
            RewardWeights(position=5.0), RewardWeights(position=500.0), {"position": 10.0}, every=200
        )
        for _ in train(
            env, TD3Agent(generator=seeded(0)), 400, critic_start=10**6, actor_start=10**6,
            buffer=buffer, curriculum=curriculum, relabel=relabel,
        ):  # fmt: skip
            pass
        batch = buffer.sample(500, generator=seeded(0))
        last = reward_from_observations(
            batch.privileged,
            batch.action,
            batch.next_privileged,
            curriculum.at(399).for_params(env.params),
            batch.terminated,
        )
        same = torch.isclose(batch.reward, last, atol=1e-5)
        assert bool(same.all()) == relabel
        assert same.double().mean() > 0.4


@pytest.mark.parametrize("agents", [None, 2])
def test_training_is_repeatable_and_keeps_to_its_generators(agents):
    def run():
        generator = seeded(5)
        env = QuadrotorVectorEnv(8, generator=generator)
        agent = TD3Agent(num_agents=agents, generator=generator)
        list(train(env, agent, 160, critic_start=40, actor_start=80, batch_size=16, generator=generator))
        agent.policy()
        return agent.state_dict()

    before = torch.random.get_rng_state()
    first, second = run(), run()
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, value in first.items():
        assert torch.equal(value, second[name])
    assert not torch.equal(first["actor.weights.0"], first["target_actor.weights.0"])


def test_an_agent_is_kept_as_safetensors(tmp_path):
    from safetensors.torch import load_file, save_file

    agent = TD3Agent(7, 5, 4, num_agents=2, generator=seeded(0))
    save_file(agent.state_dict(), tmp_path / "agent.safetensors")
    other = TD3Agent(7, 5, 4, num_agents=2, generator=seeded(1))
    other.load_state_dict(load_file(tmp_path / "agent.safetensors"))
    x = torch.randn(2, 3, 7, generator=seeded(2))
    assert torch.equal(agent.act(x), other.act(x))


def test_the_weights_shrink_as_much_per_update_as_in_the_official_code():
    """By 0.5e-4, whatever the gradient: the weights of an input that is always 0 have none."""
    agent = TD3Agent(7, 5, 4, dtype=torch.float64)
    for optimizer in (agent.actor_optimizer, agent.critic_optimizer):
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]
    before = agent.critics.weights[0][:, 0].clone()
    for number in range(10):
        batch = random_batch(seed=number)
        batch.privileged[:, 0] = 0
        agent.update_critics(batch)
    torch.testing.assert_close(agent.critics.weights[0][:, 0], before * (1 - 0.5e-4) ** 10)


@pytest.mark.parametrize("sizes", [[5, 16, 12, 1], [5, 9, 4], [3, 10]])
@pytest.mark.parametrize("final_tanh", [False, True])
def test_gradients_by_hand_are_those_of_autograd(sizes, final_tanh):
    networks = StackedMLP(4, sizes, final_tanh=final_tanh, generator=seeded(0), dtype=torch.float64)
    for first in (None, 3):
        x = torch.randn(4 if first is None else first, 6, sizes[0], generator=seeded(1), dtype=torch.float64)
        weight = torch.randn(*x.shape[:2], sizes[-1], generator=seeded(2), dtype=torch.float64)
        kept = []
        y = networks.run(x, first, kept=kept)
        assert not y.requires_grad
        expected = networks(x.requires_grad_(), first)
        torch.testing.assert_close(y, expected)
        parameters = list(networks.parameters())
        of_x, *of_parameters = torch.autograd.grad((expected * weight).sum(), [x, *parameters])
        found = networks.input_gradient(kept, weight, slice(1, None))
        torch.testing.assert_close(found, of_x[..., 1:])
        if first is None:
            networks.backward_(kept, weight)
            for parameter, gradient in zip(parameters, of_parameters, strict=True):
                torch.testing.assert_close(parameter.grad, gradient)
                assert parameter.grad.is_contiguous()


def watched_targets(agent):
    """Zero the target actor; the list returned gets the actions that the target critics are asked about."""
    for parameter in agent.target_actor.parameters():
        parameter.data.zero_()
    seen, values = [], agent._values

    def watched(critics, observation, action, kept=None):
        if critics is agent.target_critics:
            seen.append(action)
        return values(critics, observation, action, kept)

    agent._values = watched
    return seen


@pytest.mark.parametrize(("scale", "limit"), [(1.0, 0.5), (0.5, 0.25)])
def test_the_noise_on_target_actions_is_clipped(scale, limit):
    agent = TD3Agent(7, 5, 4, target_noise=10.0, generator=seeded(0), dtype=torch.float64)
    agent.noise_scale = scale
    seen = watched_targets(agent)
    agent.update_critics(random_batch())
    assert seen[0].abs().max().item() == limit


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_the_noise_on_target_actions_has_the_stated_size_and_keeps_to_the_range(scale):
    agent = TD3Agent(7, 5, 4, target_noise_clip=10.0, generator=seeded(0), dtype=torch.float64)
    agent.noise_scale = scale
    seen = watched_targets(agent)
    agent.update_critics(random_batch(size=4000))
    assert seen[0].std().item() == pytest.approx(0.2 * scale, rel=0.03)
    agent.target_actor.biases[-1].data.fill_(2.0)
    agent.update_critics(random_batch())
    assert seen[1].abs().max().item() == 1


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64, torch.int64])
def test_a_terminated_future_counts_nothing(dtype):
    """In whatever dtype it is told, and even if the next observation is not finite."""
    agent = TD3Agent(7, 5, 4, target_noise=0.0, dtype=torch.float64)
    batch, twin = random_batch(), copy.deepcopy(agent)
    told = dataclasses.replace(batch, terminated=batch.terminated.to(dtype))
    told.next_observation[batch.terminated] = float("nan")
    expected = twin.update_critics(random_batch())
    assert torch.equal(agent.update_critics(told), expected)


# --- the buffer in use -----------------------------------------------------------------------------


def fill(buffer, env, steps):
    observation, privileged = env.reset_tensors()
    for _ in range(steps):
        action = 0.1 * torch.randn(env.num_envs, 4, generator=seeded(steps))
        result = env.step_tensors(action)
        buffer.add(observation, privileged, action, result)
        observation, privileged = result.observation, result.privileged
    return observation, privileged, action, result


def test_a_gap_in_what_is_added_is_noticed():
    env, buffer = QuadrotorVectorEnv(2, generator=seeded(0)), ReplayBuffer(100, 2)
    fill(buffer, env, 3)
    with pytest.raises(ValueError, match="observation must end with the last action that was added"):
        fill(buffer, env, 3)  # it was reset in between
    buffer.begin_episodes()
    last = fill(buffer, env, 3)
    with pytest.raises(ValueError, match="observation must end with the last action that was added"):
        ReplayBuffer(100, 2).add(*last)
    with pytest.raises(ValueError, match=r"observation must have shape \(4, 146\), got \(2, 146\)"):
        ReplayBuffer(200, 4).add(*last)


def test_training_can_go_on_with_the_old_buffer():
    """The vehicles begin anew, and so do the histories: each is one that some observation had."""
    env, agent = QuadrotorVectorEnv(2, generator=seeded(0)), TD3Agent(generator=seeded(0))
    buffer, seen = ReplayBuffer(300, 2), []
    add = buffer.add
    buffer.add = lambda observation, *rest: seen.append(observation) or add(observation, *rest)
    options = {"critic_start": 20, "actor_start": 40, "buffer": buffer, "generator": seeded(0)}
    list(train(env, agent, 60, **options))
    list(train(env, agent, 120, start_step=60, **options))
    assert len(buffer) == 120
    found = buffer.sample(200, generator=seeded(1)).observation
    assert torch.cdist(found, torch.cat(seen), compute_mode="donot_use_mm_for_euclid_dist").amin(1).max() == 0


def test_a_training_that_goes_on_keeps_its_schedule(monkeypatch):
    agent, calls = TD3Agent(generator=seeded(0)), []
    monkeypatch.setattr(agent, "update_critics", lambda batch: calls.append("critics") or torch.zeros(()))
    monkeypatch.setattr(agent, "update_actor", lambda batch: calls.append("actor"))
    env, curriculum = QuadrotorVectorEnv(2, generator=seeded(0)), RewardCurriculum(every=300)
    (report,) = train(
        env, agent, 1000, start_step=900, critic_start=200, actor_start=400, curriculum=curriculum,
        noise_decay_start=500, noise_decay_every=200,
    )  # fmt: skip
    assert report.step == 1000
    assert calls.count("critics") == 10
    assert calls.count("actor") == 5
    assert report.weights[0].position == pytest.approx(8.64)
    assert agent.noise_scale == pytest.approx(0.9**3)


def test_rewards_are_relabelled_for_each_vehicle_and_time_step():
    """With vehicles that hover at different actions, another time step and weights on accelerations."""
    params = QuadrotorParams.crazyflie_paper().randomized(4, 0.3, generator=seeded(0))
    env = QuadrotorVectorEnv(4, params=params, dt=0.02, generator=seeded(0), init=InitSpec(guidance=0))
    agent = TD3Agent(num_agents=2, generator=seeded(0))
    last = RewardWeights(position=9.0, action=3.0, linear_acceleration=0.1)
    curriculum = RewardCurriculum(dataclasses.replace(last, position=3.0), last, {"position": 3.0}, every=10)
    rewards, buffers = [], []
    step, sample = env.step_tensors, ReplayBuffer.sample

    def watched(action):
        result = step(action)
        rewards.append(result.reward)
        return result

    def sampled(self, *args, **options):
        buffers.append(self)
        return sample(self, *args, **options)

    env.step_tensors = watched
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReplayBuffer, "sample", sampled)
        list(train(env, agent, 24, curriculum=curriculum, critic_start=10, actor_start=10, batch_size=2))
    kept = buffers[0]._rows[:, :12, -3]
    assert not torch.allclose(kept[:, :5], torch.stack(rewards, 1)[:, :5])  # relabelled
    torch.testing.assert_close(kept[:, 5:], torch.stack(rewards, 1)[:, 5:])  # given in the last weights
    weights = RewardWeights.stack([last] * 2, 2, params.mass).for_params(params)
    rows = buffers[0]._rows[:, :12]
    fresh = reward_from_observations(
        rows[:, :, 36:64].transpose(0, 1),
        rows[:, :, 92:96].transpose(0, 1),
        rows[:, :, 64:92].transpose(0, 1),
        weights,
        rows[:, :, -2].transpose(0, 1) > 0,
        dt=0.02,
    )
    torch.testing.assert_close(kept, fresh.T, rtol=1e-4, atol=1e-4)


def test_weights_in_a_stack_are_as_precise_as_the_simulation():
    """0.1 in single precision is 0.10000000149."""
    like = torch.zeros((), dtype=torch.float64)
    weights = RewardWeights.stack([RewardWeights(position=0.1), RewardWeights(position=0.3)], 2, like)
    assert weights.position.tolist() == [0.1, 0.1, 0.3, 0.3]


@pytest.mark.parametrize("copy", ["saved", "pickled", "copied"])
def test_an_agent_goes_on_exactly_where_it_was(copy, tmp_path):
    """Moments of the optimizers, noise and generator included, whichever way it is kept."""

    def make():
        return TD3Agent(7, 5, 4, dtype=torch.float64, generator=seeded(0))

    def learn(agent, first, last):
        for number in range(first, last):
            batch = random_batch(seed=number)
            agent.update_critics(batch)
            agent.update_actor(batch)

    agent = make()
    learn(agent, 0, 3)
    agent.noise_scale = 0.5
    if copy == "saved":
        torch.save(agent.training_state(), tmp_path / "agent.pt")
        other = make()
        other.load_training_state(torch.load(tmp_path / "agent.pt", weights_only=True))
    elif copy == "pickled":
        if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 5):
            pytest.skip("generators of this torch cannot be pickled")
        other = pickle.loads(pickle.dumps(agent))
    else:
        other = deepcopy(agent)
    learn(agent, 3, 6)
    learn(other, 3, 6)
    assert other.noise_scale == 0.5
    for name, value in agent.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    observation = torch.zeros(2, 7, dtype=torch.float64)
    assert torch.equal(agent.explore(observation), other.explore(observation))


def test_losses_hold_no_graph():
    """A list of them would keep every batch in memory."""
    agent, batch = TD3Agent(7, 5, 4, dtype=torch.float64), random_batch()
    for loss in (agent.update_critics(batch), agent.update_actor(batch)):
        assert not loss.requires_grad
    assert not agent.act(batch.observation).requires_grad
