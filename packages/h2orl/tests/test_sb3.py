import gymnasium
import numpy as np
import pytest
import torch
from helpers import rng
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

import h2orl.sb3
from h2orl import h2o_critic_loss
from h2orl.sb3 import H2OSAC

SIZES = {
    "learning_starts": 20,
    "batch_size": 20,
    "device": "cpu",
    "seed": 0,
    "policy_kwargs": {"net_arch": [16]},
}


def real_log(size=60, reward=7.0):
    angle = 6 * torch.rand(size, generator=rng(1))
    state = torch.stack([angle.cos(), angle.sin(), angle - 3], 1).numpy()
    action = (4 * torch.rand(size, 1, generator=rng(2)) - 2).numpy()
    return state, action, np.full(size, reward, np.float32), state + 0.1, np.ones(size, np.float32)


def make(env=None, **options):
    options = {"real": real_log(), "gap_kwargs": {"hidden": (16, 16)}} | SIZES | options
    return H2OSAC("MlpPolicy", env or gymnasium.make("Pendulum-v1"), **options)


@pytest.fixture
def seen(monkeypatch):
    calls = []

    def watched(*parts, **options):
        calls.append((*(None if part is None else part.detach() for part in parts), options))
        return h2o_critic_loss(*parts, **options)

    monkeypatch.setattr(h2orl.sb3, "h2o_critic_loss", watched)
    return calls


def test_it_learns_from_both_sides_and_gives_each_its_target(seen):
    model = make(real_ratio=0.25, beta=0.3, reward_scale=2.0)
    before = [parameter.clone() for parameter in [*model.gap.parameters(), *model.critic.parameters()]]
    model.learn(40)
    assert model.num_timesteps == 40
    assert len(seen) == 20
    after = [*model.gap.parameters(), *model.critic.parameters()]
    assert not any(torch.equal(*pair) for pair in zip(before, after, strict=True))
    q_real, y_real, q_sim, y_sim, weight, omega, options = seen[-1]
    assert (q_real.shape, q_sim.shape) == ((2, 5), (2, 15))
    assert y_real.tolist() == [7.0] * 5  # every real transition ends
    assert (y_sim < 1).all()
    assert ((weight > 0) & (weight <= 1)).all()
    torch.testing.assert_close(omega.sum(), torch.tensor(1.0))
    assert options == {"beta": 0.3, "reward_scale": 2.0}
    # The real actions came in [-2, 2] and are kept in the policy's own units.
    torch.testing.assert_close(model.real.action, torch.as_tensor(real_log()[1]) / 2)


def test_the_ablations_are_flags(seen):
    make(adaptive_weight=False, is_weight=False).learn(22)
    assert seen[-1][4:6] == (None, None)


@pytest.mark.parametrize("backup_entropy", [False, True])
def test_the_target_is_the_minimum_of_the_target_critics(seen, backup_entropy):
    log = real_log()
    model = make(real=(*log[:4], log[4] * 0), gamma=0.9, backup_entropy=backup_entropy)
    model.learn(21)
    seen.clear()
    with torch.no_grad():  # critics of constant value, a policy of almost no noise
        for index, critic in enumerate(model.critic_target.q_networks):
            critic[-1].weight.zero_()
            critic[-1].bias.fill_(5.0 + index)
    model.tau = 0.0
    model.train(1, batch_size=8)
    y_real = seen[-1][1]
    if backup_entropy:
        assert (y_real - (7 + 0.9 * 5)).abs().min() > 1e-3
    else:
        torch.testing.assert_close(y_real, torch.full_like(y_real, 7 + 0.9 * 5.0))


def test_saved_and_loaded_it_goes_on(tmp_path):
    model = make()
    model.learn(25)
    model.save(tmp_path / "agent")
    again = H2OSAC.load(tmp_path / "agent", env=gymnasium.make("Pendulum-v1"), device="cpu")
    for name, value in model.gap.state_dict().items():
        assert torch.equal(again.gap.state_dict()[name], value)
    assert (
        again.gap_optimizer.state_dict()["state"].keys() == model.gap_optimizer.state_dict()["state"].keys()
    )
    with pytest.raises(ValueError, match="real must be given before learning"):
        again.learn(25)
    again.set_real(real_log())
    assert again.learn(25).num_timesteps == 25


def test_real_transitions_are_normalised_as_the_simulated_ones(seen):
    env = VecNormalize(DummyVecEnv([lambda: gymnasium.make("Pendulum-v1")] * 2), clip_obs=50)
    model = make(env)
    model.learn(40)
    y_real = seen[-1][1]
    rewards = env.normalize_reward(np.full(len(y_real), 7.0, np.float32))
    assert abs(rewards[0]) != 7.0
    before = model._normalized(model.real)
    torch.testing.assert_close(before.observation, torch.as_tensor(env.normalize_obs(real_log()[0])))
    assert not torch.equal(before.observation, model.real.observation)
    torch.testing.assert_close(model._noise_std(), before.observation.std(0), atol=1e-4, rtol=1e-4)


def test_bad_input_is_named():
    log = real_log()
    with pytest.raises(ValueError, match="real: action must lie within"):
        make(real=(log[0], 3 * log[1], *log[2:]))
    with pytest.raises(ValueError, match="real must hold at least two transitions"):
        make(real=tuple(column[:1] for column in log))
    for name, value in (("beta", -1), ("real_ratio", 1.0), ("noise_ratio", 0)):
        with pytest.raises(ValueError, match=f"{name} must"):
            make(**{name: value})
    with pytest.raises(ValueError, match="real: observation must have width 3, got 2"):
        make(real=(log[0][:, :2], log[1], log[2], log[3][:, :2], log[4]))
    with pytest.raises(ValueError, match="real must hold reward"):
        make(real=(log[0], log[1], log[3]))
    with pytest.raises(ValueError, match="real must be given before learning"):
        make(real=None).learn(25)
