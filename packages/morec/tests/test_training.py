"""The adversarial game: its losses, its history, and what it learns."""

import copy
import functools

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from morec import DynamicsRewardTrainer, TransitionNormalizer


def linear_log(count=512, seed=0):
    """s' = 0.5 s + a with a in [-1, 1]: everything can be known about it."""
    generator = torch.Generator().manual_seed(seed)
    obs = 2 * torch.rand(count, 2, generator=generator) - 1
    act = 2 * torch.rand(count, 2, generator=generator) - 1
    return obs, act, 0.5 * obs + act


def make_trainer(seed=0, **options):
    options = {"hidden_sizes": (32, 32), "snapshot_every": 20, **options}
    return DynamicsRewardTrainer(
        2,
        2,
        normalizer=TransitionNormalizer.fit(*linear_log()),
        generator=torch.Generator().manual_seed(seed),
        **options,
    )


def test_the_losses_are_cross_entropies_on_the_same_states_and_actions():
    trainer = make_trainer(entropy_coefficient=0.3, generator_learning_rate=0.0)
    before = copy.deepcopy(trainer)
    before.random = torch.Generator()
    before.random.set_state(trainer.random.get_state())
    batch = linear_log(64)
    found = trainer.step(batch)

    state, action = trainer.normalizer.normalize_obs(batch[0]), trainer.normalizer.normalize_act(batch[1])
    mean, log_std = before.transition_generator(torch.cat([state, action], -1))
    fake = mean + log_std.exp() * torch.randn(mean.shape, generator=before.random)
    real = trainer.normalizer.normalize_obs(batch[2]) - state
    real_logit = before.discriminator(torch.cat([state, action, real], -1))
    fake_logit = before.discriminator(torch.cat([state, action, fake], -1))
    expected = binary_cross_entropy_with_logits(real_logit, torch.ones(64))
    expected = expected + binary_cross_entropy_with_logits(fake_logit, torch.zeros(64))
    torch.testing.assert_close(found["discriminator_loss"], expected)
    torch.testing.assert_close(found["data_logit"], real_logit.mean())
    torch.testing.assert_close(found["model_logit"], fake_logit.mean())
    torch.testing.assert_close(found["generator_rmse"], (mean - real).square().mean().sqrt())
    # the generator answers the discriminator that has just stepped, and wants to be taken for real
    logit = trainer.discriminator(torch.cat([state, action, fake], -1))
    expected = binary_cross_entropy_with_logits(logit, torch.ones(64)) - 0.3 * log_std.mean()
    torch.testing.assert_close(found["generator_loss"], expected)


def test_each_player_leaves_the_other_alone():
    for frozen, moving in (
        ("discriminator", "transition_generator"),
        ("transition_generator", "discriminator"),
    ):
        rates = {"discriminator_learning_rate": 1e-3, "generator_learning_rate": 1e-3}
        rates["discriminator_learning_rate" if frozen == "discriminator" else "generator_learning_rate"] = 0.0
        trainer = make_trainer(**rates)
        old = {name: copy.deepcopy(getattr(trainer, name).state_dict()) for name in (frozen, moving)}
        trainer.step(linear_log(64))
        for name, changed in ((frozen, False), (moving, True)):
            new = getattr(trainer, name).state_dict()
            assert any(not torch.equal(new[key], value) for key, value in old[name].items()) is changed


@pytest.fixture(scope="module")
def trained():
    trainer = make_trainer(
        generator_learning_rate=3e-3,
        discriminator_learning_rate=1e-3,
        optimizer=functools.partial(torch.optim.Adam, fused=True),
    )
    obs, act, next_obs = linear_log()
    errors = []
    for _ in range(500):
        rows = torch.randint(len(obs), (64,), generator=trainer.random)
        errors.append(trainer.step((obs[rows], act[rows], next_obs[rows]))["generator_rmse"].item())
    return trainer, errors


def test_the_generator_comes_near_the_environment(trained):
    trainer, errors = trained
    assert sum(errors[-20:]) < 0.2 * sum(errors[:20])
    assert trainer.generator_rmse(*linear_log(200, seed=1)) < 0.1


def test_real_transitions_outrank_wrong_ones(trained):
    obs, act, next_obs = linear_log(300, seed=1)
    wrong = next_obs + 0.5 * torch.randn(next_obs.shape, generator=torch.Generator().manual_seed(2))
    for options in ({}, {"rescale": True}):
        reward = trained[0].export(**options)
        better = reward(obs, act, next_obs).unsqueeze(0) > reward(obs, act, wrong).unsqueeze(1)
        assert better.double().mean() > 0.8  # area under the ROC curve; 0.5 for a reward that knows nothing


def test_the_history_is_a_queue_of_copies(trained):
    trainer = make_trainer(snapshot_every=3, max_snapshots=4, discriminator_learning_rate=1e-2)
    batch = linear_log(32)
    weights, levels = [], []
    for step in range(1, 19):
        losses = trainer.step(batch)
        if step % 3 == 0:
            weights.append(trainer.discriminator.layers[0].weight.detach().clone())
            levels.append((losses["data_logit"], losses["model_logit"]))
    for options, kept in (({}, [2, 3, 4, 5]), ({"keep_last": 3}, [3, 4, 5]), ({"every": 2}, [2, 4])):
        reward = trainer.export(**options)
        assert reward.num_snapshots == len(kept)
        for row, index in enumerate(kept):
            assert torch.equal(reward.ensemble.weights[0][row], weights[index].T)
            assert reward.data_logits[row] == levels[index][0]
            assert reward.model_logits[row] == levels[index][1]


def test_an_export_is_frozen(trained):
    trainer = make_trainer(snapshot_every=1)
    batch = linear_log(32)
    trainer.step(batch)
    reward = trainer.export()
    before = reward(*batch)
    trainer.step(batch)
    assert torch.equal(reward(*batch), before)
    assert not any(parameter.requires_grad for parameter in reward.parameters())


def test_a_checkpoint_goes_on_as_if_nothing_happened():
    batch = linear_log(32)
    trainer = make_trainer(snapshot_every=2)
    for _ in range(4):
        trainer.step(batch)
    other = make_trainer(seed=5, snapshot_every=2)
    other.load_state_dict(copy.deepcopy(trainer.state_dict()))
    other.random.set_state(trainer.random.get_state())
    for _ in range(4):
        first, second = trainer.step(batch), other.step(batch)
    assert first == second
    assert torch.equal(trainer.export()(*batch), other.export()(*batch))
    assert other.export().num_snapshots == 4


def test_a_longer_horizon_adds_discounted_steps():
    """With discount 0 the later steps count for nothing; a blind discriminator costs log 2 at each."""
    batch = linear_log(32)
    visited = []

    def behavior(obs):
        visited.append(obs.detach())
        return torch.zeros_like(obs)

    one = make_trainer(entropy_coefficient=0.0)
    worthless = make_trainer(entropy_coefficient=0.0, horizon=3, discount=0.0, behavior=behavior)
    torch.testing.assert_close(worthless.step(batch)["generator_loss"], one.step(batch)["generator_loss"])
    assert len(visited) == 2
    blind = make_trainer(
        entropy_coefficient=0.0,
        horizon=3,
        discount=0.5,
        behavior=behavior,
        discriminator_learning_rate=0.0,
    )
    torch.nn.init.zeros_(blind.discriminator.layers[-1].weight)
    torch.nn.init.zeros_(blind.discriminator.layers[-1].bias)
    expected = (1 + 0.5 + 0.25) * torch.tensor(2.0).log()
    torch.testing.assert_close(blind.step(batch)["generator_loss"], expected)


def test_two_steps_ahead_by_hand():
    """The loss of a rollout under a behaviour in the data's own units, and its gradient through both steps."""

    def behavior(obs):
        return 0.3 * obs - 0.1

    trainer = make_trainer(
        entropy_coefficient=0.3,
        horizon=2,
        discount=0.5,
        behavior=behavior,
        discriminator_learning_rate=0.0,
        generator_learning_rate=1.0,
        optimizer=torch.optim.SGD,
    )
    before, scale = copy.deepcopy(trainer.transition_generator), trainer.normalizer
    noise = torch.Generator()
    noise.set_state(trainer.random.get_state())
    batch = linear_log(64)
    found = trainer.step(batch)["generator_loss"]
    state, action, loss = scale.normalize_obs(batch[0]), scale.normalize_act(batch[1]), 0.0
    for weight in (1.0, 0.5):
        mean, log_std = before(torch.cat([state, action], -1))
        step = mean + log_std.exp() * torch.randn(mean.shape, generator=noise)
        logit = trainer.discriminator(torch.cat([state, action, step], -1))
        deceit = binary_cross_entropy_with_logits(logit, torch.ones(64))
        loss = loss + weight * (deceit - 0.3 * log_std.mean())
        state = state + step
        unscaled = (state - scale.obs_offset) / scale.obs_scale + scale.obs_center
        action = scale.normalize_act(behavior(unscaled))
    torch.testing.assert_close(found, loss)
    gradients = torch.autograd.grad(loss, list(before.parameters()))
    after = trainer.transition_generator.parameters()
    for old, gradient, new in zip(before.parameters(), gradients, after, strict=True):
        torch.testing.assert_close(new, old - gradient, atol=1e-5, rtol=1e-4)


def test_own_networks_and_double_precision():
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(6, 1)

        def forward(self, encoded):
            return self.layer(encoded).squeeze(-1)

    batch = [part.double() for part in linear_log(32)]
    trainer = DynamicsRewardTrainer(
        2,
        2,
        normalizer=TransitionNormalizer.fit(*batch),
        discriminator=Own(),
        snapshot_every=1,
        generator=torch.Generator().manual_seed(0),
    )
    for _ in range(3):
        trainer.step(batch)
    reward = trainer.export()
    assert reward(*batch).dtype == torch.float64
    logits = trainer.discriminator(trainer.normalizer.encode(*batch))
    torch.testing.assert_close(reward.logits(*batch)[-1], logits)
