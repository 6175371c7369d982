import tracemalloc

import numpy as np
import pytest
import torch
from helpers import linear_episodes
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ssorl import (
    Episode,
    InverseDynamics,
    LabelledEpisode,
    fit_idm,
    hide_actions,
    label_episodes,
    label_loss,
    label_quality,
    self_train,
)
from ssorl.training import _mean_uncertainty


def idm(obs_dim=3, act_dim=2, *, seed=0, **options):
    options = {"k": 0, "hidden": (32,), "dropout": 0.0} | options
    return InverseDynamics(obs_dim, act_dim, generator=torch.Generator().manual_seed(seed), **options)


def fit(model, episodes, *, rate=1e-2, seed=0, **options):
    options = {"steps": 250, "batch_size": 128, "eval_every": 50} | options
    optimizer = torch.optim.Adam(model.parameters(), rate)
    return fit_idm(model, optimizer, episodes, generator=torch.Generator().manual_seed(seed), **options)


LENGTHS = (60, 35, 48, 20, 51, 12, 66, 40)


def test_an_invertible_system_is_inverted():
    truth = linear_episodes((150, 160, 140, 170, 51, 12, 66, 40))
    model = idm(hidden=(64,))
    report = fit(model, hide_actions(truth, range(4)), steps=500)
    labelled = label_episodes(model, hide_actions(truth, range(4)))
    quality = label_quality(labelled, truth)
    assert quality.count == sum(LENGTHS[4:])
    assert quality.mse < 1e-2
    assert label_loss(model, truth[4:]) == pytest.approx(
        model.eval().nll(*_steps(truth[4:])).mean().item(), rel=1e-4
    )
    assert len(report.validation_ids) == 1
    assert set(report.train_ids) | set(report.validation_ids) == {f"log-{i}" for i in range(4)}
    assert report.train_steps == sum(len(truth[int(name[-1])]) for name in report.train_ids)


def _steps(episodes):
    pairs = [np.stack([e.observations, e.next_observations], 1) for e in episodes]
    return torch.from_numpy(np.concatenate(pairs)), torch.from_numpy(
        np.concatenate([e.actions for e in episodes])
    )


def position_only(seed=0):
    """v' = 0.8 v - 0.3 x + 0.5 a, x' = x + v', of which x alone is seen: one step does not show the action, two do."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(10):
        actions = rng.uniform(-0.9, 0.9, (80, 1))
        place, speed = [0.0], 0.0
        for action in actions[:, 0]:
            speed = 0.8 * speed - 0.3 * place[-1] + 0.5 * action
            place.append(place[-1] + speed)
        found.append(Episode(np.array(place)[:, None], np.zeros(80), False, actions=actions))
    return found


def test_past_transitions_matter_where_one_step_does_not_show_the_action():
    truth = position_only()
    error = {}
    for k in (0, 1):
        model = idm(1, 1, k=k)
        fit(model, hide_actions(truth, range(6)), steps=400)
        error[k] = label_quality(label_episodes(model, hide_actions(truth, range(6))), truth).mse
    assert error[0] > 0.05
    assert error[1] < error[0] / 3


def test_states_of_all_episodes_set_the_standardiser_and_only_labelled_steps_are_trained_on():
    truth = linear_episodes(LENGTHS, offset=30.0)
    model, seen = idm(), []
    actions_of = {tuple(row) for episode in truth[:2] for row in episode.actions.astype(np.float32).tolist()}
    model.register_forward_pre_hook(lambda module, given: seen.append(given[1]))
    fit(model, hide_actions(truth, range(2)), steps=3)
    states = np.concatenate([episode.observations for episode in truth])
    np.testing.assert_allclose((model.center + model.shift).numpy(), states.mean(0), rtol=1e-6)
    np.testing.assert_allclose(model.scale.numpy(), states.std(0) + 1e-6, rtol=1e-6)
    assert {tuple(row) for batch in seen for row in batch.flatten(0, -2).tolist()} <= actions_of


def test_each_member_ends_with_its_own_best_weights():
    """A rate so large that losses go up and down: the last weights are not the best of every member."""
    episodes = linear_episodes(LENGTHS, noise=0.3)
    for options in (
        {},
        {"network": lambda size, out: nn.Sequential(nn.Linear(size, 8), nn.ReLU(), nn.Linear(8, out))},
    ):
        torch.manual_seed(0)
        model = idm(members=3, **options)
        report = fit(model, episodes, rate=0.1, steps=60, eval_every=3)
        held = [episode for episode in episodes if episode.id in report.validation_ids]
        found = model.eval().nll(*_steps(held)).mean(1)
        np.testing.assert_allclose(found.detach().numpy(), report.validation_loss, rtol=1e-3, atol=1e-3)
        assert len(set(report.best_step)) > 1
        assert np.mean(report.validation_loss) < report.curve[-1][2]
        assert min(found[2] for found in report.curve) >= np.mean(report.validation_loss) - 1e-6


def test_members_are_independent():
    """A member learns what it would learn beside others of other weights."""
    episodes, losses = linear_episodes(LENGTHS), []
    for factor in (1.0, 3.0):
        model = idm(members=2)
        with torch.no_grad():
            model.weights[0][1] *= factor
        fit(model, episodes, steps=20, val_fraction=0)
        losses.append(model.weights[0][0].detach().clone())
    torch.testing.assert_close(*losses)


def test_the_generator_decides_everything_and_global_randomness_is_left_alone():
    episodes = linear_episodes(LENGTHS)
    weights = []
    for seed in (0, 0, 1):
        model, before = idm(dropout=0.5), torch.get_rng_state()
        report = fit(model, episodes, steps=5, seed=seed, bootstrap=True)
        assert torch.equal(torch.get_rng_state(), before)
        weights.append(model.weights[0].detach())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert report.validation_loss is not None


def test_bootstrapped_members_see_other_trajectories():
    episodes = linear_episodes(LENGTHS)
    owner = {tuple(row): e.id for e in episodes for row in e.actions.astype(np.float32).tolist()}
    model, seen = idm(members=2), [set(), set()]

    def watch(module, given):
        for member in range(2):
            seen[member] |= {owner[tuple(row)] for row in given[1][member].tolist()}

    model.register_forward_pre_hook(watch)
    fit(model, episodes, steps=10, bootstrap=True, val_fraction=0)
    assert seen[0] != seen[1]
    assert max(map(len, seen)) < len(episodes)


def test_patience_and_no_validation():
    episodes = linear_episodes(LENGTHS, noise=1.0)
    stopped = fit(idm(), episodes, rate=0.3, steps=400, eval_every=2, patience=3)
    assert stopped.stopped_early
    assert stopped.steps < 400
    assert stopped.steps - max(stopped.best_step) == 6
    last = fit(idm(), episodes[:1], steps=4, val_fraction=0)
    assert last.validation_loss is None
    assert last.validation_ids == ()
    assert last.best_step == (4,)


def test_mode_gradients_and_progress_are_the_users():
    model, told = idm(members=2).eval(), []
    fit(
        model,
        linear_episodes(LENGTHS),
        steps=4,
        eval_every=2,
        progress=lambda share, text: told.append(share),
    )
    assert not model.training
    assert told == [0.5, 1.0]
    model.train()
    with torch.no_grad():
        fit(model, linear_episodes(LENGTHS), steps=1)
    assert model.training
    with pytest.raises(ValueError, match="the loss must stay finite, got"):
        fit(model, linear_episodes(LENGTHS), rate=1e30, steps=20, eval_every=5)
    assert model.training


def test_partly_labelled_discrete_and_unfollowed_steps():
    rng, found = np.random.default_rng(0), []
    for length in (30, 22, 41, 17):
        index = rng.integers(3, size=length)
        place = np.concatenate([[0.0], np.cumsum(index - 1.0)])
        known = rng.random(length) < 0.7
        found.append(Episode(place[:-1, None], np.zeros(length), True, actions=index, action_mask=known))
    model = idm(1, 3, discrete=True)
    report = fit(model, found, rate=3e-2)
    followed = sum(int(e.known[:-1].sum()) for e in found)
    assert report.train_steps < followed
    assert fit(idm(1, 3, discrete=True), found, steps=1, val_fraction=0).train_steps == followed
    cloning = fit(idm(1, 3, discrete=True, next_state=False), found, steps=1, val_fraction=0)
    assert cloning.train_steps == sum(int(e.known.sum()) for e in found)
    labelled = label_episodes(model, found)
    hidden = [
        (e.actions[:-1][~s.known[:-1]], s.actions[:-1][~s.known[:-1]])
        for e, s in zip(labelled, found, strict=True)
    ]
    pred, true = (np.concatenate(part) for part in zip(*hidden, strict=True))
    assert label_quality(pred, true).accuracy > 0.95


def test_self_training_moves_the_surest_first_and_never_holds_out_proxies():
    truth = linear_episodes(LENGTHS)
    given = hide_actions(truth, range(3))
    report = self_train(
        lambda: idm(members=2),
        lambda parameters: torch.optim.Adam(parameters, 1e-2),
        given,
        rounds=3,
        steps=30,
        fraction=0.4,
        generator=torch.Generator().manual_seed(0),
    )
    assert [len(ids) for ids in report.moved] == [2, 2, 1]
    assert sorted(sum(report.moved, ())) == [f"log-{i}" for i in range(3, 8)]
    assert all(set(one.validation_ids) <= {"log-0", "log-1", "log-2"} for one in report.fits)
    assert len(report.fits[2].train_ids) == 6
    assert [episode.id for episode in report.episodes] == [episode.id for episode in truth]
    assert all(episode.labelled for episode in report.episodes)
    np.testing.assert_array_equal(report.episodes[0].actions, truth[0].actions)
    first = idm(members=2)
    fit_idm(
        first,
        torch.optim.Adam(first.parameters(), 1e-2),
        given,
        steps=30,
        generator=torch.Generator().manual_seed(0),
    )
    doubt = {e.id: e.uncertainty.mean() for e in label_episodes(first, given)[3:]}
    assert set(report.moved[0]) == set(sorted(doubt, key=doubt.get)[:2])


def test_an_episode_is_as_sure_as_its_proxies_that_have_a_successor():
    given = {"actions": [[0.0]] * 4, "proxy_mask": [False, True, True, True]}
    sure = LabelledEpisode(np.zeros((4, 1)), np.zeros(4), False, uncertainty=[0.0, 1.0, 3.0, np.inf], **given)
    assert _mean_uncertainty(sure) == 2
    unknown = LabelledEpisode(np.zeros((4, 1)), np.zeros(4), False, uncertainty=[0.0] + [np.inf] * 3, **given)
    assert _mean_uncertainty(unknown) == np.inf


def test_a_million_transitions_fit_within_the_memory_of_their_arrays():
    rng, num = np.random.default_rng(0), 1000
    states = rng.standard_normal((num, 1001, 17), dtype=np.float32)
    rewards, actions = np.zeros((num, 1000), np.float32), np.zeros((num, 1000, 6), np.float32)
    episodes = [
        Episode(states[i], rewards[i], False, actions=actions[i] if i < 500 else None, id=i)
        for i in range(num)
    ]
    arrays = states.nbytes + rewards.nbytes + actions.nbytes
    model = idm(17, 6, hidden=(8,), k=1)
    sizes = []

    def tensors(tree):
        return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            given = {x.untyped_storage().data_ptr() for x in tensors((args, kwargs))}
            sizes.extend(x.nbytes for x in tensors(out) if x.untyped_storage().data_ptr() not in given)
            return out

    tracemalloc.start()  # sees what numpy allocates; torch's tensors are seen one by one
    try:
        with Sizes():
            fit(model, episodes, steps=3, batch_size=64)
            label_episodes(model, episodes)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.1 * arrays
    assert max(sizes) < 0.2 * arrays


def test_the_loss_of_labels_counts_known_actions_alone():
    given, model = hide_actions(linear_episodes(LENGTHS), [1, 4]), idm(members=2)
    expected = label_loss(model, [given[1], given[4]])
    assert label_loss(model, label_episodes(model, given)) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="must have a truly labelled step"):
        label_loss(model, label_episodes(model, given[:1]))


def test_what_cannot_be_fitted_is_named():
    episodes = linear_episodes(LENGTHS)
    frozen = idm().requires_grad_(False)
    with pytest.raises(
        ValueError, match="optimizer must hold parameters of the model that require gradients"
    ):
        fit(frozen, episodes)
    with pytest.raises(ValueError, match="episodes must have actions in at least one of them, got none"):
        fit(idm(), hide_actions(episodes, []))
    with pytest.raises(
        ValueError, match=r"val_fraction must be 0 with fewer than 2 labelled episodes, got 0\.1 with 1"
    ):
        fit(idm(), hide_actions(episodes, [2]))
    with pytest.raises(ValueError, match=r"val_fraction must be in \[0, 1\), got 1.0"):
        fit(idm(), episodes, val_fraction=1)
    with pytest.raises(ValueError, match=r"must have actions in .* in episode 'log-0' at 0"):
        fit(idm(low=-0.5, high=0.5), episodes)
    with pytest.raises(ValueError, match="optimizer must hold parameters of the model"):
        fit_idm(idm(), torch.optim.Adam(idm().parameters()), episodes, steps=1)
    with pytest.raises(
        TypeError, match="model must be the InverseDynamics itself, not wrapped, got Sequential"
    ):
        fit_idm(nn.Sequential(idm()), torch.optim.Adam(idm().parameters()), episodes, steps=1)
    with pytest.raises(
        ValueError, match="one kind of action, got continuous of size 1, continuous of size 2"
    ):
        fit(idm(), [*episodes, *linear_episodes(act_dim=1)])
    with pytest.raises(ValueError, match="steps must be at least 1"):
        fit(idm(), episodes, steps=0)
    with pytest.raises(ValueError, match=r"must have actions in 0, ..., 1, got 2"):
        fit(idm(1, 2, discrete=True), [Episode(np.zeros((2, 1)), [0], False, actions=[2])] * 2)
    with pytest.raises(ValueError, match="must have a labelled step with a known successor"):
        fit(idm(1, 1), [Episode(np.zeros((1, 1)), [0], True, actions=[[0.5]])] * 2, val_fraction=0)
