import numpy as np
import pytest
import torch
from helpers import naive_official, naive_rewards
from hypothesis import given
from hypothesis import strategies as st

from rlif import InterventionRelabeler, expected_penalty, intervention_stats, official_mask, relabel

log = st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=40)
penalties = st.sampled_from([1.0, 0.5, 3.0])


def split(steps):
    flags = [one[0] for one in steps]
    ended = [one[1] and one[2] for one in steps]
    return flags, ended


def stream(relabeler, flags, ended, cut=True):
    found = []
    for t, (flag, end) in enumerate(zip(flags, ended, strict=True)):
        found += relabeler.push(
            t, t / 10, t + 1, flag, terminated=end and t % 2 == 0, truncated=end and t % 2 == 1
        )
    return found + (relabeler.flush() if cut else [])


@given(steps=log, penalty=penalties)
def test_the_offline_form_is_the_definition(steps, penalty):
    flags, ended = split(steps)
    rewards = relabel(torch.tensor(flags), torch.tensor(ended), penalty=penalty)
    assert rewards.tolist() == naive_rewards(flags, ended, penalty)
    as_array = relabel(np.array(flags), np.array(ended), penalty=penalty)
    assert isinstance(as_array, np.ndarray)
    assert as_array.tolist() == rewards.tolist()


@given(steps=log, penalty=penalties)
def test_streaming_gives_what_the_offline_form_gives(steps, penalty):
    flags, ended = split(steps)
    found = stream(InterventionRelabeler(penalty=penalty), flags, ended)
    assert [one.reward for one in found] == relabel(flags, ended, penalty=penalty).tolist()
    assert [one.observation for one in found] == list(range(len(flags)))
    assert [one.intervened for one in found] == flags
    assert [bool(one.terminated) for one in found] == [end and t % 2 == 0 for t, end in enumerate(ended)]
    assert all(one.next_observation == one.observation + 1 for one in found)


@given(steps=log)
def test_what_the_official_code_inserts(steps):
    flags, ended = split(steps)
    kept, rewards = naive_official(flags, ended)
    assert official_mask(np.array(flags), np.array(ended)).tolist() == kept
    found = stream(InterventionRelabeler(store="official"), flags, ended)
    assert [one.observation for one in found] == [t for t, keep in enumerate(kept) if keep]
    assert [one.reward for one in found] == [
        reward for reward, keep in zip(rewards, kept, strict=True) if keep
    ]
    whole = relabel(flags, ended)
    assert all(whole[one.observation] == one.reward for one in found)  # a subset with the same rewards


@given(seed=st.integers(0, 10**6), store=st.sampled_from(["all", "official"]), numpy=st.booleans())
def test_many_environments_are_many_single_ones(seed, store, numpy):
    rng = np.random.default_rng(seed)
    flags, ended = rng.random((12, 3)) < 0.5, rng.random((12, 3)) < 0.25
    form = (lambda array: array) if numpy else torch.as_tensor
    relabeler, found = InterventionRelabeler(store, num_envs=3, penalty=2.0), [[], [], []]
    where = np.zeros((3, 2))
    batches = []
    for t in range(12):
        where[:] = [[t, env] for env in range(3)]  # the same array again: what is held must be a copy
        batches += relabeler.push(
            form(where), form(where), form(where + 1), form(flags[t]), form(ended[t]), form(np.zeros(3, bool))
        )
    batches += relabeler.flush()
    for batch in batches:
        assert isinstance(batch.reward, np.ndarray) == numpy
        for row, env in enumerate(batch.env_index):
            assert float(batch.observation[row][1]) == int(env)
            found[int(env)].append((int(batch.observation[row][0]), float(batch.reward[row])))
    for env in range(3):
        alone = stream(InterventionRelabeler(store, 2.0), flags[:, env].tolist(), ended[:, env].tolist())
        assert found[env] == [(one.observation, one.reward) for one in alone]


def test_steps_that_only_reset_are_no_transitions():
    relabeler = InterventionRelabeler(num_envs=2)
    no, found = np.zeros(2, bool), []
    for t, (flags, ended, valid) in enumerate(
        [([0, 0], [1, 0], [1, 1]), ([0, 1], [0, 0], [0, 1]), ([1, 1], [0, 0], [1, 1])]
    ):
        rows = np.full((2, 1), float(t))
        flag, end = np.array(flags, bool), np.array(ended, bool)
        found += relabeler.push(rows, rows, rows, flag, end, no, valid=np.array(valid, bool))
    found += relabeler.flush()
    kept = [
        (int(env), float(row[0]), float(reward))
        for batch in found
        for env, row, reward in zip(batch.env_index, batch.observation, batch.reward, strict=True)
    ]
    assert kept == [(0, 0, 0), (1, 0, -1), (1, 1, 0), (0, 2, 0), (1, 2, 0)]


def test_flags_of_shape_n_1_and_dictionaries_of_observations():
    relabeler = InterventionRelabeler(num_envs=2)
    rows = {"a": torch.arange(2.0)[:, None], "b": (torch.ones(2), torch.zeros(2))}
    flag, no = torch.tensor([[True], [False]]), torch.zeros(2, 1, dtype=torch.bool)
    assert relabeler.push(rows, rows["a"], rows, ~flag, no, no) == []
    (batch,) = relabeler.push(rows, rows["a"], rows, flag, no, no)
    assert batch.reward.tolist() == [-1.0, 0.0] or batch.reward.tolist() == [0.0, 0.0]
    assert batch.reward.tolist()[0] == -1.0
    assert batch.observation["b"][0].shape == (2,)


def test_after_a_flush_comes_a_reset():
    relabeler = InterventionRelabeler()
    relabeler.push(0, 0, 1, False, False, False)
    (cut,) = relabeler.flush(truncated=True)
    assert (cut.reward, cut.terminated, cut.truncated) == (0.0, False, True)
    with pytest.raises(RuntimeError, match="reset"):
        relabeler.push(1, 0, 2, True, False, False)
    relabeler.reset()
    assert relabeler.push(5, 0, 6, True, False, False) == []


@given(steps=log)
def test_counts_by_hand(steps):
    flags, ended = split(steps)
    stats = intervention_stats(flags, ended)
    begins = [flag and (t == 0 or ended[t - 1] or not flags[t - 1]) for t, flag in enumerate(flags)]
    episodes = sum(ended[:-1]) + 1
    assert stats.takeovers == sum(begins)
    assert stats.episodes == episodes
    assert stats.rate == pytest.approx(sum(flags) / len(flags))
    assert stats.takeovers_per_episode == pytest.approx(sum(begins) / episodes)
    assert stats.mean_length == pytest.approx(sum(flags) / max(sum(begins), 1))
    # Every take-over that a step of the policy precedes costs the penalty once.
    preceded = [b and t > 0 and not ended[t - 1] for t, b in enumerate(begins)]
    assert relabel(flags, ended, penalty=2.0).sum() == -2.0 * sum(preceded)


@given(steps=log, columns=st.integers(1, 3))
def test_the_expected_penalty_is_a_mean_over_episodes(steps, columns):
    flags, ended = split(steps)
    discount, total, moment = 0.8, 0.0, 0
    for reward, end in zip(naive_rewards(flags, ended, 2.0), ended, strict=True):
        total += discount**moment * reward
        moment = 0 if end else moment + 1
    wanted = total / (sum(ended[:-1]) + 1)
    many = [torch.tensor(column)[:, None].expand(-1, columns) for column in (flags, ended)]
    assert float(expected_penalty(flags, ended, discount=discount, penalty=2.0)) == pytest.approx(wanted)
    assert float(expected_penalty(*many, discount=discount, penalty=2.0)) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: relabel([0.5, 1], [0, 0]), "intervened must be booleans"),
        (lambda: relabel([True], [True, False]), "dones must have the shape"),
        (lambda: relabel([True], [True], penalty=0.0), "penalty must be above 0"),
        (lambda: relabel([True], [True], penalty=float("nan")), "penalty must be finite"),
        (
            lambda: relabel(np.zeros((2, 2, 2), bool), np.zeros((2, 2, 2), bool)),
            "intervened must have the shape",
        ),
        (lambda: intervention_stats([], []), "at least one step"),
        (lambda: expected_penalty([], [], discount=0.5), "at least one step"),
        (lambda: expected_penalty([True], [True], discount=1.5), "discount must be"),
        (lambda: InterventionRelabeler(store="some"), "store must be one of"),
        (lambda: InterventionRelabeler(penalty=-1), "penalty must be above 0"),
        (lambda: InterventionRelabeler(num_envs=0), "num_envs must be"),
        (
            lambda: InterventionRelabeler().push(0, 0, 0, [True, False], False, False),
            "intervened must be one boolean",
        ),
        (
            lambda: InterventionRelabeler(num_envs=2).push(0, 0, 0, [True], False, False),
            r"intervened must have the shape \(2,\)",
        ),
    ],
)
def test_what_is_refused(call, named):
    with pytest.raises(ValueError, match=named):
        call()


def test_flags_of_every_form_are_flags():
    flags, ended = np.array([0, 1, 1, 0, 1, 0], bool), np.array([0, 0, 0, 0, 0, 1], bool)
    locked = flags.copy()
    locked.flags.writeable = False
    wanted = [-1, 0, 0, -1, 0, 0]
    for form in (
        locked,
        flags.astype(object),
        flags.astype(np.uint16),
        flags.astype(np.float16),
        flags.tolist(),
    ):
        assert relabel(form, ended).tolist() == wanted
    assert (
        relabel(flags[::-1], ended[::-1]).tolist() == relabel(flags[::-1].copy(), ended[::-1].copy()).tolist()
    )
    assert relabel(torch.tensor(flags).bfloat16(), ended).tolist() == wanted
    for bad in (np.array([None] * 6), [[True], [True, False]], np.array(["a"] * 6)):
        with pytest.raises(ValueError, match="intervened must h"):
            relabel(bad, ended)


def test_lists_and_columns_of_several_environments():
    relabeler = InterventionRelabeler(num_envs=2)
    rows, column = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], np.array([[False], [True]])
    (first,) = relabeler.push(rows, [0, 1], rows, [False, False], [False, True], [False, False])
    assert (first.observation.tolist(), first.action.tolist(), first.env_index.tolist()) == (
        [rows[1]],
        [1],
        [1],
    )
    (second, third) = relabeler.push(rows, [0, 1], rows, ~column, column, column & False)
    assert (second.observation.tolist(), second.reward.tolist()) == ([rows[0]], [-1.0])
    assert (
        third.terminated.shape
        == third.truncated.shape
        == third.intervened.shape
        == third.reward.shape
        == (1,)
    )
    no = np.zeros(2, bool)
    for number, name in enumerate(("observation", "action", "next_observation")):
        parts = [np.zeros((2, 1))] * 3
        parts[number] = {"a": np.zeros((3, 1))}
        with pytest.raises(ValueError, match=f"{name} must have 2 rows"):
            InterventionRelabeler(num_envs=2).push(*parts, no, no, no)
