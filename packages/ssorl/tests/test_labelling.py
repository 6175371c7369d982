import numpy as np
import pytest
import torch
from helpers import linear_episodes
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from ssorl import (
    Episode,
    InverseDynamics,
    LabelledEpisode,
    concat_transitions,
    hide_actions,
    label_episodes,
    label_loss,
    load_labels,
    save_labels,
    to_d3rlpy,
    to_minari,
    windows,
)


def idm(members=2, *, obs_dim=3, act_dim=2, **options):
    options = {"hidden": (8,), "k": 1} | options
    return InverseDynamics(
        obs_dim, act_dim, members=members, generator=torch.Generator().manual_seed(0), **options
    )


@given(hidden=st.sets(st.integers(0, 4)), batch=st.integers(1, 40))
def test_true_actions_stay_and_proxies_are_marked_and_inside(hidden, batch):
    truth = linear_episodes()
    found = label_episodes(idm(), hide_actions(truth, set(range(5)) - hidden), batch=batch)
    assert [episode.id for episode in found] == [episode.id for episode in truth]
    for index, (episode, source) in enumerate(zip(found, truth, strict=True)):
        assert episode.labelled
        assert (episode.proxy_mask == (index in hidden)).all()
        assert np.abs(episode.actions).max() <= 1
        assert ((episode.uncertainty > 0) == episode.proxy_mask).all()
        assert episode.rewards is source.rewards or np.array_equal(episode.rewards, source.rewards)
        if index not in hidden:
            np.testing.assert_array_equal(episode.actions, source.actions)


def test_labels_are_the_models_predictions_whatever_the_batch_or_the_order():
    episodes, model = linear_episodes(hidden=range(5)), idm()
    action, variance = model.predict(windows(episodes, 1)[0])
    for batch in (1, 7, 1000):
        found = label_episodes(model.train(), episodes, batch=batch)
        np.testing.assert_allclose(np.concatenate([e.actions for e in found]), action, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            np.concatenate([e.uncertainty for e in found]), variance.mean(-1), rtol=1e-4, atol=1e-6
        )
    backwards = label_episodes(model, episodes[::-1])
    for one, other in zip(found, backwards[::-1], strict=True):
        np.testing.assert_allclose(one.actions, other.actions, rtol=1e-5, atol=1e-6)
        assert one.id == other.id


def test_some_missing_steps_are_filled_where_they_miss():
    source = linear_episodes((6,))[0]
    actions = source.actions.astype(np.float32)
    actions[[1, 4]] = np.nan
    episode = Episode(source.observations, source.rewards, False, actions=actions, nan_as_missing=True)
    (found,) = label_episodes(idm(), [episode])
    assert found.proxy_mask.tolist() == [False, True, False, False, True, False]
    np.testing.assert_array_equal(found.actions[~found.proxy_mask], actions[[0, 2, 3, 5]])
    assert np.isfinite(found.actions).all()
    assert found.actions.dtype == np.float32
    among = label_episodes(idm(), [*linear_episodes((5, 3), hidden=(1,)), episode, *linear_episodes((4,))])[2]
    np.testing.assert_allclose(among.actions, found.actions, rtol=1e-5, atol=1e-6)
    (every,) = label_episodes(idm(), [episode], keep_true=False)
    assert every.proxy_mask.all()
    assert not np.array_equal(every.actions[0], actions[0])
    np.testing.assert_array_equal(every.actions[1], found.actions[1])


def test_discrete_labels_are_indices():
    rng = np.random.default_rng(0)
    episodes = [
        Episode(
            rng.normal(size=(5, 3)), np.zeros(4), False, actions=rng.integers(4, size=4).astype(np.int32)
        ),
        Episode(rng.normal(size=(3, 3)), np.zeros(2), True),
    ]
    found = label_episodes(idm(act_dim=4, discrete=True), episodes)
    assert found[1].actions.dtype == np.int32
    assert found[1].actions.shape == (2,)
    assert ((found[1].uncertainty > 0) & (found[1].uncertainty < 0.75 + 1e-6)).all()
    np.testing.assert_array_equal(found[0].actions, episodes[0].actions)
    assert concat_transitions(found)["actions"].dtype == np.int32


def without_final(episode):
    return Episode(
        episode.observations, episode.rewards, episode.terminals, actions=episode.actions, id=episode.id
    )


def test_a_step_without_a_successor_is_uncertain_without_bound():
    episodes = [without_final(episode) for episode in linear_episodes((4, 3), hidden=(0, 1))]
    found = label_episodes(idm(), episodes)
    assert [np.isinf(episode.uncertainty).tolist() for episode in found] == [
        [False] * 3 + [True],
        [False, False, True],
    ]
    proxy = label_episodes(idm(next_state=False), episodes)
    assert all(np.isfinite(episode.uncertainty).all() for episode in proxy)


def test_samples_come_from_the_mixture_and_their_generator():
    episodes = linear_episodes((400,), hidden=(0,))

    def draw(seed):
        return label_episodes(idm(), episodes, sample=True, generator=torch.Generator().manual_seed(seed))[0]

    assert np.array_equal(draw(0).actions, draw(0).actions)
    assert not np.array_equal(draw(0).actions, draw(1).actions)
    assert np.array_equal(draw(0).uncertainty, label_episodes(idm(), episodes)[0].uncertainty)


def test_flat_arrays_lead_back_to_every_step_of_the_source():
    truth = linear_episodes()
    episodes = [without_final(e) if i in (0, 1) else e for i, e in enumerate(hide_actions(truth, [1, 2]))]
    labelled = label_episodes(idm(), episodes)
    data = concat_transitions(labelled)
    # Episode 0 ends in a terminal and keeps its last step; episode 1 was cut off and loses it.
    assert len(data["rewards"]) == 9 + 3 + 13 + 1 + 7
    assert data["terminals"].sum() == 3
    last = np.append(data["episode"][1:] != data["episode"][:-1], True)
    np.testing.assert_array_equal(data["timeouts"] | data["terminals"], last)
    assert data["timeouts"].sum() == 2
    for row in range(len(data["rewards"])):
        source = truth[int(data["episode_id"][row].split("-")[1])]
        step = data["step"][row]
        assert source.id == truth[data["episode"][row]].id
        np.testing.assert_array_equal(data["observations"][row], source.observations[step])
        assert data["rewards"][row] == source.rewards[step]
        assert data["terminals"][row] == source.terminals[step]
        if row != 8:
            np.testing.assert_array_equal(data["next_observations"][row], source.next_observations[step])
        if not data["proxy_mask"][row]:
            np.testing.assert_array_equal(data["actions"][row], source.actions[step])
    np.testing.assert_array_equal(data["next_observations"][8], data["observations"][8])
    assert np.isinf(data["uncertainty"]).tolist() == [row == 8 for row in range(33)]
    assert (data["uncertainty"] > 0).tolist() == data["proxy_mask"].tolist()


def test_d3rlpys_arguments_have_every_step_and_end_every_episode_once():
    labelled = label_episodes(idm(), hide_actions(linear_episodes(), [1]))
    both = labelled[0]
    labelled[0] = LabelledEpisode(
        both.observations, both.rewards, both.terminals, both.actions, truncations=both.terminals
    )
    found = to_d3rlpy(labelled)
    assert set(found) == {"observations", "actions", "rewards", "terminals", "timeouts"}
    ends = found["terminals"] + found["timeouts"]
    assert np.flatnonzero(ends).tolist() == [8, 12, 25, 26, 33]
    assert ends.max() == 1
    assert found["terminals"][[8, 12, 25, 26, 33]].tolist() == [1, 0, 1, 0, 1]
    np.testing.assert_array_equal(found["actions"], np.concatenate([e.actions for e in labelled]))


@pytest.mark.filterwarnings("ignore")
def test_minari_keeps_labels_and_where_they_come_from(tmp_path, monkeypatch):
    import minari
    from gymnasium import spaces

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    labelled = label_episodes(idm(), hide_actions(linear_episodes(), [1]))
    dataset = minari.create_dataset_from_buffers(
        "ssorl/labelled-v0",
        buffer=to_minari(labelled),
        observation_space=spaces.Box(-np.inf, np.inf, (3,), np.float64),
        action_space=spaces.Box(-1, 1, (2,), np.float64),
        algorithm_name="none",
        author="none",
        author_email="none",
        code_permalink="none",
        description="none",
    )
    for stored, episode in zip(dataset.iterate_episodes(), labelled, strict=True):
        np.testing.assert_array_equal(stored.actions, episode.actions)
        np.testing.assert_array_equal(stored.observations[:-1], episode.observations)
        np.testing.assert_array_equal(stored.infos["uncertainty"][:-1], episode.uncertainty)
        assert stored.infos["source_id"][0].decode() == episode.id
    with pytest.raises(
        ValueError, match="labelled must have final observations for Minari, got none in episode 'log-0'"
    ):
        to_minari([without_final(linear_episodes()[0])])


def test_saved_labels_find_their_episodes_by_id(tmp_path):
    episodes = hide_actions(linear_episodes(), [1, 3])
    labelled = label_episodes(idm(), episodes)
    save_labels(tmp_path / "labels.safetensors", labelled)
    found = load_labels(tmp_path / "labels.safetensors", episodes[::-1][:3])
    assert [episode.id for episode in found] == ["log-4", "log-3", "log-2"]
    for one, other in zip(found, labelled[::-1], strict=False):
        np.testing.assert_array_equal(one.actions, other.actions)
        np.testing.assert_array_equal(one.proxy_mask, other.proxy_mask)
        np.testing.assert_array_equal(one.uncertainty, other.uncertainty)
    with pytest.raises(ValueError, match="episodes must have ids of the file, got None"):
        load_labels(tmp_path / "labels.safetensors", [Episode(np.zeros((2, 3)), [0], False)])
    with pytest.raises(ValueError, match="episode 'log-1' must have 4 steps, got 1"):
        load_labels(tmp_path / "labels.safetensors", [Episode(np.zeros((2, 3)), [0], False, id="log-1")])
    save_file({"x": np.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(
        ValueError, match="path must hold actions, proxy_mask, uncertainty, length and ids, got x"
    ):
        load_labels(tmp_path / "other.safetensors", episodes)
    (tmp_path / "text").write_text("no")
    with pytest.raises(ValueError, match="path must be a safetensors file"):
        load_labels(tmp_path / "text", episodes)


def test_labelling_again_replaces_proxies_and_keeps_what_is_true():
    episodes, other = hide_actions(linear_episodes(), [1, 3]), idm(members=3)
    again = label_episodes(other, label_episodes(idm(), episodes))
    for one, fresh in zip(again, label_episodes(other, episodes), strict=True):
        np.testing.assert_array_equal(one.actions, fresh.actions)
        np.testing.assert_array_equal(one.proxy_mask, fresh.proxy_mask)
        np.testing.assert_array_equal(one.uncertainty, fresh.uncertainty)


def test_many_discrete_actions_fit_into_the_labels_dtype():
    rng = np.random.default_rng(0)
    few = Episode(rng.normal(size=(6, 3)), np.zeros(5), False, actions=np.arange(5, dtype=np.uint8))
    many = Episode(rng.normal(size=(301, 3)), np.zeros(300), False)
    model = idm(act_dim=1000, discrete=True)
    found = label_episodes(model, [few, many])
    np.testing.assert_array_equal(found[1].actions, model.predict(windows([many], 1)[0])[0])
    assert found[1].actions.max() > 255
    np.testing.assert_array_equal(found[0].actions, few.actions)


@pytest.mark.parametrize("order", ["C", "F"])
def test_labels_are_saved_whatever_the_order_of_their_memory_and_the_type_of_their_ids(tmp_path, order):
    truth = linear_episodes()
    episodes = [
        Episode(e.observations, e.rewards, False, actions=np.array(e.actions, order=order), id=np.int64(i))
        for i, e in enumerate(truth)
    ]
    save_labels(tmp_path / "labels.safetensors", episodes)
    found = load_labels(tmp_path / "labels.safetensors", episodes)
    for one, source in zip(found, truth, strict=True):
        np.testing.assert_array_equal(one.actions, source.actions)
    for wrong in (
        [episodes[0]] * 2,
        [without_final(e) for e in linear_episodes((3,))]
        + [Episode(np.zeros((2, 3)), [0], False, actions=[[0.0, 0.0]])],
    ):
        with pytest.raises(ValueError, match="labelled must have an id for each episode"):
            save_labels(tmp_path / "labels.safetensors", wrong)


def test_what_cannot_be_labelled_is_named():
    episodes = linear_episodes(hidden=(1,))
    with pytest.raises(ValueError, match="must have observations of size 2, as the model, got 3"):
        label_episodes(idm(obs_dim=2), episodes)
    with pytest.raises(ValueError, match="must have actions of size 1, as the model, got 2"):
        label_episodes(idm(act_dim=1), episodes)
    with pytest.raises(TypeError, match="must have discrete actions, as the model, got continuous"):
        label_episodes(idm(discrete=True), episodes)
    with pytest.raises(ValueError, match=r"must have actions in \[\[-0.5, -0.5\], \[0.5, 0.5\]\]"):
        label_episodes(idm(low=-0.5, high=0.5), episodes)
    broken = idm()
    with torch.no_grad():
        broken.biases[0][0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="model must give finite labels"):
        label_episodes(broken, episodes)
    with pytest.raises(ValueError, match="labelled must have an action at every step"):
        concat_transitions(episodes)
    with pytest.raises(ValueError, match="actions must be there at every step of a LabelledEpisode"):
        LabelledEpisode(np.zeros((2, 3)), [0], False)
    with pytest.raises(ValueError, match="proxy_mask must have 1 rows, got 2"):
        LabelledEpisode(np.zeros((2, 3)), [0], False, [[0.0]], proxy_mask=[True, False])
    for doubt in ([np.nan], [-1.0], [0.0, 0.0]):
        with pytest.raises(ValueError, match=r"uncertainty must be \(1,\) and neither negative nor NaN"):
            LabelledEpisode(np.zeros((2, 3)), [0], False, [[0.0]], uncertainty=doubt)
    for call in (label_episodes, label_loss):
        with pytest.raises(TypeError, match="model must be the InverseDynamics itself, not wrapped"):
            call(torch.nn.Sequential(idm()), episodes)
