import json

import pytest
import torch
from helpers import seeded, transitions
from hypothesis import given
from hypothesis import strategies as st

from ravl import RolloutBuffer, Rollouts, as_batch, mix, truncated_rollouts
from ravl.rollouts import row_keys


def tagged_step(state, action):
    """Every state has a name of its own: start and step."""
    return state + torch.tensor([0.0, 1.0]), state[:, 0]


def tagged(count):
    return torch.stack([torch.arange(float(count)), torch.zeros(count)], 1)


@given(k=st.integers(1, 6), count=st.integers(1, 7))
def test_the_edge_is_never_an_input(k, count):
    found = truncated_rollouts(tagged_step, torch.ones_like, tagged(count), k)
    assert len(found) == k * count
    inputs = {tuple(row) for row in found.observation.tolist()}
    edge = {tuple(row) for row in found.next_observation[found.is_edge].tolist()}
    assert edge == {(float(i), float(k)) for i in range(count)}
    assert not inputs & edge
    assert inputs == {(float(i), float(t)) for i in range(count) for t in range(k)}
    assert found.step.tolist() == found.observation[:, 1].long().tolist()
    by_definition = Rollouts.from_transitions(found)
    assert torch.equal(by_definition.is_edge, found.is_edge)
    if k == 1:
        assert torch.equal(found.observation, tagged(count))


@pytest.mark.parametrize("column", [False, True])
def test_terminated_rollouts_are_dropped_and_have_no_edge(column):
    ends = lambda s: (s[:, 0] == 1) & (s[:, 1] >= 2)  # noqa: E731
    rule = (lambda s: ends(s)[:, None]) if column else ends
    found = truncated_rollouts(tagged_step, lambda s: (s, s[:, 0]), tagged(3), 4, terminated_fn=rule)
    assert len(found) == 4 + 2 + 4
    assert found.terminated.sum() == 1
    assert found.next_observation[found.terminated].tolist() == [[1.0, 2.0]]
    assert sorted(found.next_observation[found.is_edge][:, 0].tolist()) == [0.0, 2.0]
    assert found.reward.tolist() == found.observation[:, 0].tolist()
    inside = truncated_rollouts(
        lambda s, a: (*tagged_step(s, a), ends(s + torch.tensor([0.0, 1.0])), {}),
        torch.ones_like,
        tagged(3),
        4,
    )
    assert torch.equal(inside.terminated, found.terminated)
    everyone = truncated_rollouts(
        tagged_step, torch.ones_like, tagged(3), 4, terminated_fn=lambda s: s[:, 1] >= 2
    )
    assert len(everyone) == 6
    assert not everyone.is_edge.any()


def test_the_last_step_may_terminate_too():
    found = truncated_rollouts(
        tagged_step, torch.ones_like, tagged(3), 1, terminated_fn=lambda s: s[:, 0] == 2
    )
    assert found.is_edge.tolist() == [True, True, False]


def test_starts_are_drawn_by_the_generator():
    drawn = [
        truncated_rollouts(
            tagged_step, torch.ones_like, tagged(5), 2, num_rollouts=20, generator=seeded(seed)
        )
        for seed in (0, 0, 1)
    ]
    assert len(drawn[0]) == 40
    assert torch.equal(drawn[0].observation, drawn[1].observation)
    assert not torch.equal(drawn[0].observation, drawn[2].observation)


def test_nothing_of_a_rollout_needs_gradients():
    policy = torch.nn.Linear(2, 2)
    found = truncated_rollouts(tagged_step, policy, tagged(3), 2)
    assert not any(part.requires_grad for part in (found.action, found.next_observation, found.reward))


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5), capacity=st.integers(1, 12))
def test_the_ring_keeps_the_newest(sizes, capacity):
    buffer, rows, since = RolloutBuffer(capacity), [], []
    for update, size in enumerate(sizes):
        start = torch.full((size, 2), float(update))
        start[:, 1] = torch.arange(size)
        buffer.add(truncated_rollouts(tagged_step, torch.ones_like, start, 1), update)
        rows += start.tolist()
        since += [update] * size
    assert buffer.contents().observation.tolist() == rows[-capacity:]
    assert buffer.contents().added.tolist() == since[-capacity:]
    other = RolloutBuffer(capacity)
    other.load_state_dict(buffer.state_dict())
    assert torch.equal(other.contents().observation, buffer.contents().observation)
    assert torch.equal(other.contents().added, buffer.contents().added)
    for one in (buffer, other):  # both go on alike
        one.add(truncated_rollouts(tagged_step, torch.ones_like, tagged(2), 1), 99)
    assert torch.equal(other.contents().observation, buffer.contents().observation)
    assert all(row in rows[-capacity:] + tagged(2).tolist() for row in buffer.sample(9).observation.tolist())


@given(ratio=st.floats(0, 1), size=st.integers(1, 60))
def test_mixed_batches_have_exact_counts(ratio, size):
    ones, zeros = ([torch.full((4, 1), x), *[torch.zeros(4, 1)] * 4] for x in (1.0, 0.0))
    found = mix(ones, zeros, ratio, size, seeded(0)).observation[:, 0]
    wanted = int(ratio * size + 1e-9)
    assert found.tolist() == [1.0] * wanted + [0.0] * (size - wanted)
    assert mix(ones, zeros, 0.29, 100).observation.sum() == 29  # 0.29 * 100 is 28.999...


def test_mixing_takes_buffers_that_sample():
    class Corl:
        def sample(self, batch_size):
            self.asked = batch_size
            return [
                torch.ones(batch_size, 2),
                *[torch.ones(batch_size, 1)] * 2,
                torch.ones(batch_size, 2),
                torch.zeros(batch_size, 1),
            ]

    real, model = Corl(), RolloutBuffer(20)
    model.add(truncated_rollouts(tagged_step, lambda s: s[:, :1], tagged(9), 1), 0)
    found = mix(real, model, 0.05, 256, seeded(1))
    assert real.asked == 12
    assert found.observation.shape == (256, 2)
    assert found.reward[:12].tolist() == [1.0] * 12


def test_batches_are_read_by_the_names_of_their_parts():
    s, a, r, following, d = transitions()
    d4rl = {
        "observations": s,
        "actions": a,
        "rewards": r[:, None],
        "next_observations": following,
        "terminals": d[:, None],
    }
    found = as_batch(d4rl)
    for one, other in zip(found, (s, a, r, following, d), strict=False):
        assert torch.equal(one, other)
    assert torch.equal(as_batch((s, a, r, following, d)).next_observation, following)


def test_row_keys_tell_rows_apart_and_nothing_else():
    grid = torch.cartesian_prod(*[torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0])] * 5)
    assert len(row_keys(grid).unique()) == len(grid)
    assert torch.equal(row_keys(-grid.abs()), row_keys(-(grid.abs())))
    assert torch.equal(row_keys(torch.tensor([[0.0, 1.0]])), row_keys(torch.tensor([[-0.0, 1.0]])))
    assert len(row_keys(grid.double()).unique()) == len(grid)


def test_the_state_of_a_buffer_is_tensors_and_a_number():
    buffer = RolloutBuffer(4)
    assert json.dumps(buffer.state_dict()) == '{"capacity": 4}'
    with pytest.raises(ValueError, match="capacity 4, the buffer of 5"):
        RolloutBuffer(5).load_state_dict(buffer.state_dict())
    buffer.add(truncated_rollouts(tagged_step, torch.ones_like, tagged(3), 1))
    state = buffer.state_dict()
    del state["is_edge"]
    with pytest.raises(ValueError, match="lacks 'is_edge'"):
        RolloutBuffer(4).load_state_dict(state)
