import types

import numpy as np
import pytest
import torch
from helpers import rng, rows
from hypothesis import given
from hypothesis import strategies as st

from h2orl import HybridBuffer, Transitions, mix_batches


def numbered(start, size):
    """Transitions that carry their number in every column."""
    number = torch.arange(start, start + size, dtype=torch.float32)
    return Transitions(
        number[:, None].repeat(1, 3), number[:, None], number[:, None].repeat(1, 3), number, number * 0
    )


def test_every_form_of_a_log_is_read_alike():
    batch = rows()
    arrays = {
        "observations": batch.observation.double().numpy(),
        "actions": batch.action.numpy(),
        "next_observations": batch.next_observation.numpy(),
        "rewards": batch.reward.numpy()[:, None],
        "terminals": batch.terminated.bool().numpy(),
    }
    plain = (batch.observation, batch.action, batch.reward, batch.next_observation, batch.terminated)
    for data in (batch, arrays, plain):
        found = Transitions.of(data)
        for name in ("observation", "action", "next_observation", "reward", "terminated"):
            assert torch.equal(getattr(found, name), getattr(batch, name))
    assert Transitions.of(plain[:2] + plain[3:4]).reward is None


def test_a_time_limit_is_no_end():
    batch = rows(4)
    log = {
        "observations": batch.observation,
        "actions": batch.action,
        "next_observations": batch.next_observation,
    }
    done, limit = np.array([1, 1, 0, 0], bool), np.array([0, 1, 0, 1], bool)
    assert Transitions.of(log | {"dones": done, "timeouts": limit}).terminated.tolist() == [1, 0, 0, 0]
    with pytest.raises(ValueError, match="log: 'dones' may hold time limits"):
        Transitions.of(log | {"dones": done}, "log")
    assert Transitions.of(log | {"dones": done, "terminated": limit}).terminated.tolist() == [0, 1, 0, 1]


def test_episodes_are_cut_into_transitions():
    states = np.arange(24, dtype=np.float64).reshape(8, 3)
    episodes = [
        types.SimpleNamespace(
            observations=states[part],
            actions=np.ones((size, 1)),
            rewards=np.arange(size),
            terminations=np.arange(size) == 2,
        )
        for part, size in ((slice(0, 4), 3), (slice(4, 8), 3))
    ]
    found = Transitions.from_episodes(episodes)
    assert found.observation[:, 0].tolist() == [0, 3, 6, 12, 15, 18]
    assert found.next_observation[:, 0].tolist() == [3, 6, 9, 15, 18, 21]
    assert found.terminated.tolist() == [0, 0, 1, 0, 0, 1]
    episodes[1].actions = np.ones((4, 1))
    with pytest.raises(ValueError, match="episode 1 must have one observation more"):
        Transitions.from_episodes(episodes)
    episodes[0].observations = {"a": states}
    with pytest.raises(TypeError, match="episode 0 are nested"):
        Transitions.from_episodes(episodes)
    with pytest.raises(ValueError, match="at least one episode"):
        Transitions.from_episodes([])


def test_episodes_that_do_not_fit_are_named():
    columns = {"observations": np.zeros((4, 3)), "actions": np.zeros((3, 1))}
    columns |= {"rewards": np.zeros(3), "terminations": np.zeros(3, bool)}
    named = types.SimpleNamespace(**columns)
    assert len(Transitions.from_episodes([columns, named])) == 6
    with pytest.raises(ValueError, match="log: episode 0 must hold rewards"):
        Transitions.from_episodes([{key: columns[key] for key in columns if key != "rewards"}], "log")
    with pytest.raises(ValueError, match="episode 1: observation must be as wide as in the first episode, 3"):
        Transitions.from_episodes([columns, columns | {"observations": np.zeros((4, 2))}])


def test_integer_states_become_floating_point():
    whole = np.arange(12).reshape(4, 3)
    log = (whole, np.zeros((4, 1)), np.arange(4), whole + 1, np.zeros(4, int))
    buffer = HybridBuffer(log)
    assert buffer.real.observation.dtype == buffer.real.reward.dtype == torch.float32
    buffer.add((whole + 0.5, *log[1:3], whole + 1.5, log[4]))
    assert torch.equal(buffer.sim.observation, torch.as_tensor(whole + 0.5).float())
    raw = Transitions(torch.as_tensor(whole), torch.zeros(4, 1), torch.as_tensor(whole))
    assert Transitions.of(raw).observation.dtype == torch.float32


def test_integer_rewards_of_a_half_precision_log_keep_their_digits():
    state = torch.zeros(2, 3, dtype=torch.bfloat16)
    found = Transitions(state, state[:, :1], state, torch.tensor([1001, 7]), torch.tensor([True, False]))
    assert found.reward.tolist() == [1001, 7]
    assert found.terminated.tolist() == [1, 0]


def test_reversed_and_read_only_arrays_are_read():
    states = np.arange(12.0).reshape(4, 3)[::-1]
    fixed = states.copy()
    fixed.setflags(write=False)
    found = Transitions.of((states, np.zeros((4, 1)), fixed))
    assert found.observation[:, 0].tolist() == found.next_observation[:, 0].tolist() == [9, 6, 3, 0]


def test_columns_of_ends_and_rows_of_time_limits_fit_together():
    batch = rows(4)
    log = {"obs": batch.observation, "actions": batch.action, "next_obs": batch.next_observation}
    done, limit = np.array([[1], [1], [0], [0]]), np.array([0, 1, 0, 1])
    assert Transitions.of(log | {"dones": done, "truncations": limit}).terminated.tolist() == [1, 0, 0, 0]
    with pytest.raises(ValueError, match="log: 'dones' and time limits must be as many"):
        Transitions.of(log | {"dones": done, "truncations": limit[:1]}, "log")


def test_transitions_are_compared_by_identity():
    batch = rows(4)
    same = batch
    assert batch == same
    assert batch != rows(4)


def test_a_split_keeps_every_transition_once():
    first, second = numbered(0, 10).split(0.7, generator=rng())
    assert (len(first), len(second)) == (7, 3)
    assert sorted([*first.reward.tolist(), *second.reward.tolist()]) == list(range(10))
    assert torch.equal(first.observation[:, 0], first.reward)
    with pytest.raises(ValueError, match="share must leave both parts"):
        numbered(0, 3).split(0.01)


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    ratio=st.sampled_from([0.5, 1, 2.5]),
)
def test_the_ring_holds_the_newest_and_never_touches_the_real(sizes, ratio):
    buffer, written = HybridBuffer(numbered(-4, 4), capacity_ratio=ratio), 0
    for size in sizes:
        buffer.add(numbered(written, size))
        written += size
    capacity = round(4 * ratio)
    assert buffer.sim_size == min(written, capacity)
    newest = set(range(written))
    assert set(buffer.sim.reward.tolist()) == set(sorted(newest)[-capacity:])
    assert torch.equal(buffer.sim.observation[:, 2], buffer.sim.reward)
    assert buffer.real.reward.tolist() == [-4, -3, -2, -1]


def test_samples_come_from_their_scope():
    buffer = HybridBuffer(numbered(-4, 4), capacity_ratio=2)
    with pytest.raises(ValueError, match="holds no simulated transition yet"):
        buffer.sample(3, "sim")
    assert set(buffer.sample(200, generator=rng()).reward.tolist()) == {-4, -3, -2, -1}
    buffer.add(numbered(0, 3))
    assert set(buffer.sample(200, "sim", generator=rng()).reward.tolist()) == {0, 1, 2}
    assert set(buffer.sample(200, "real", generator=rng()).reward.tolist()) == {-4, -3, -2, -1}
    assert set(buffer.sample(300, generator=rng()).reward.tolist()) == {-4, -3, -2, -1, 0, 1, 2}
    again = buffer.sample(9, "sim", generator=rng(4)).reward
    assert torch.equal(again, buffer.sample(9, "sim", generator=rng(4)).reward)
    with pytest.raises(ValueError, match="scope must be 'real', 'sim' or None"):
        buffer.sample(3, "both")


def test_the_state_goes_on_where_it_was():
    buffer, other = (HybridBuffer(numbered(-4, 4), capacity_ratio=2) for _ in range(2))
    buffer.add(numbered(0, 11))
    other.load_state_dict(buffer.state_dict())
    for one in (buffer, other):
        one.add(numbered(11, 2))
    assert torch.equal(other.sim.reward, buffer.sim.reward)
    assert set(other.sim.reward.tolist()) == set(range(5, 13))
    with pytest.raises(
        ValueError, match=r"state must come from HybridBuffer.state_dict, it lacks \['written'\]"
    ):
        other.load_state_dict({key: value for key, value in buffer.state_dict().items() if key != "written"})
    assert HybridBuffer(numbered(0, 100), capacity_ratio=0.29).capacity == 29
    with pytest.raises(ValueError, match="capacity 8, this one has 12"):
        HybridBuffer(numbered(0, 4), capacity_ratio=3).load_state_dict(buffer.state_dict())
    with pytest.raises(ValueError, match="observation has shape"):
        HybridBuffer(rows(4), capacity_ratio=2).load_state_dict(
            buffer.state_dict() | {"observation": torch.zeros(8, 2)}
        )


def test_halves_are_drawn_in_the_ratio_from_their_sides():
    real, sim = mix_batches(numbered(-4, 4), numbered(0, 4), 0.3, 10, generator=rng())
    assert (len(real), len(sim)) == (3, 7)
    assert (real.reward < 0).all()
    assert (sim.reward >= 0).all()


NAN = rows(4)
NAN.action[1, 0] = torch.inf
BAD = [
    (ValueError, lambda b: Transitions.of(NAN, "log"), "log: action is not finite in 1 of 4"),
    (ValueError, lambda b: HybridBuffer(NAN), "real: action is not finite"),
    (ValueError, lambda b: HybridBuffer(b).add(NAN), "sim: action is not finite"),
    (ValueError, lambda b: HybridBuffer(b).add(rows(4, states=2)), "sim: observation must be as wide"),
    (ValueError, lambda b: HybridBuffer(b).add(rows(4, actions=1)), "sim: action must be as wide"),
    (ValueError, lambda b: HybridBuffer(b[:0]), "real must hold at least one"),
    (ValueError, lambda b: HybridBuffer(b, capacity_ratio=0.01), "capacity_ratio must leave room"),
    (ValueError, lambda b: HybridBuffer(b, capacity_ratio=float("inf")), "capacity_ratio must be finite"),
    (TypeError, lambda b: HybridBuffer(b, capacity_ratio="10 times"), "capacity_ratio must be a number"),
    (TypeError, lambda b: mix_batches((1, 2, 3), b), "real must be Transitions, got tuple"),
    (
        ValueError,
        lambda b: mix_batches(b, Transitions(b.observation, b.action, b.next_observation)),
        "sim: reward must be there as in the real data",
    ),
    (
        TypeError,
        lambda b: Transitions(b.observation + 0j, b.action, b.observation + 0j),
        "observation must be real",
    ),
    (
        TypeError,
        lambda b: Transitions.of((np.full((4, 3), None), b.action, b.observation), "log"),
        "log: observation must be an array of numbers",
    ),
    (
        ValueError,
        lambda b: HybridBuffer((b.observation, b.action, b.next_observation)),
        "real must hold reward",
    ),
    (
        ValueError,
        lambda b: Transitions.of({"observations": b.observation, "actions": b.action}),
        "next_observations",
    ),
    (
        ValueError,
        lambda b: Transitions.of((b.observation, b.action, b.reward, b.next_observation, b.reward)),
        "0 or 1",
    ),
    (
        ValueError,
        lambda b: Transitions(b.observation, b.action[:, 0], b.next_observation),
        r"action must have shape \(N",
    ),
    (
        ValueError,
        lambda b: Transitions(b.observation, b.action[:2], b.next_observation),
        "action must have one row",
    ),
    (
        ValueError,
        lambda b: Transitions(b.observation, b.action, b.action),
        "next_observation must have the shape",
    ),
    (
        ValueError,
        lambda b: Transitions(b.observation, b.action, b.observation, b.reward[:3]),
        r"reward must have shape",
    ),
    (ValueError, lambda b: mix_batches(b, b, 1.0), "ratio must lie strictly between"),
    (ValueError, lambda b: mix_batches(b, b, 0.01, 8), "ratio must leave both halves"),
    (ValueError, lambda b: mix_batches(b, b[:0]), "sim must hold at least one"),
    (ValueError, lambda b: mix_batches(b, rows(states=2)), "sim: observation must be as wide"),
    (TypeError, lambda b: Transitions.of(3, "log"), "log must be Transitions, a mapping"),
    (TypeError, lambda b: Transitions(b.observation, b.action.long(), b.observation), "one-hot encode"),
    (
        TypeError,
        lambda b: Transitions(b.observation.numpy(), b.action, b.observation),
        "observation must be a tensor",
    ),
    (TypeError, lambda b: HybridBuffer(b).sample(2.5), "size must be an integer"),
]


@pytest.mark.parametrize(("error", "call", "message"), BAD)
def test_bad_input_is_named(error, call, message):
    with pytest.raises(error, match=message):
        call(rows(4))
