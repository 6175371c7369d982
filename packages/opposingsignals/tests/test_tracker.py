import pytest
import torch
from helpers import small_net, squared
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from opposingsignals import (
    LossDeltaTracker,
    OpposingTask,
    alternation,
    group_curves,
    per_example_loss,
    spike_steps,
)

curves = st.lists(st.floats(-100, 100), min_size=4, max_size=12)


def filled(losses, **options):
    tracker = LossDeltaTracker(**options)
    for step, row in enumerate(losses):
        tracker.record_losses(row, step)
    return tracker


@given(curve=curves)
def test_a_curve_alternates_with_its_negation_and_not_with_itself(curve):
    series = torch.tensor(curve, dtype=torch.float64)
    change = series.diff()
    if (change - change.mean()).abs().max() <= 1e-6:
        return
    assert alternation(series, -series) == pytest.approx(1)
    assert alternation(series.tolist(), (-series).tolist()) == pytest.approx(1)
    assert alternation(series, series) == pytest.approx(-1)
    assert alternation(series, 3 * series + 7) == pytest.approx(-1)


def test_alternation_is_the_correlation_of_differences():
    a, b = torch.tensor([0.0, 2.0, 1.0, 4.0]), torch.tensor([1.0, 0.0, 5.0, 2.0])
    wanted = -torch.corrcoef(torch.stack([a.diff(), b.diff()]))[0, 1]
    assert alternation(a, b) == pytest.approx(wanted.item(), abs=1e-6)


@given(seed=st.integers(0, 1000), n=st.integers(4, 30))
def test_changes_add_to_that_of_the_mean_and_follow_a_permutation(seed, n):
    generator = torch.Generator().manual_seed(seed)
    losses = torch.rand(5, n, generator=generator, dtype=torch.float64)
    order = torch.randperm(n, generator=generator)
    tracker, permuted = filled(losses), filled(losses[:, order])
    torch.testing.assert_close(tracker.deltas().mean(1), losses.mean(1).diff())
    k = n // 3
    for mine, other in zip(tracker.extremes(k, 2), permuted.extremes(k, 2), strict=True):
        assert torch.equal(mine, order[other])
    rises, falls = tracker.extremes(k, 2)
    change = losses[2] - losses[1]
    assert torch.equal(rises, change.argsort(descending=True)[:k])
    assert torch.equal(falls, change.argsort()[:k])


def oscillation(seed, n=300, steps=16, size=4):
    """Two planted pairs of groups, out of step with each other, in noise; one example jumps once, others drift."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(n, generator=generator)
    groups = order[: 4 * size].split(size)
    time = torch.arange(steps)
    swings = [0.5 * (-1.0) ** time, 0.4 * torch.cos(torch.pi * (time // 2))]  # periods two and four
    losses = 1 + 0.01 * torch.randn(steps, n, generator=generator) - 0.02 * time[:, None]
    for index, group in enumerate(groups):
        losses[:, group] += (-1) ** (index % 2) * swings[index // 2][:, None]
    losses[7:, order[-1]] += 30.0
    losses[:, order[-2]] += 3 * time
    return losses, groups


@given(seed=st.integers(0, 1000))
def test_planted_groups_are_found_and_a_single_jump_is_not(seed):
    losses, (a, b, c, d) = oscillation(seed)
    found = filled(losses).alternating_pairs(k=6, min_swaps=2)
    assert {frozenset(found[0].a.tolist()), frozenset(found[0].b.tolist())} == {
        frozenset(a.tolist()),
        frozenset(b.tolist()),
    }
    assert found[0].alternation > 0.95
    assert found[0].autocorrelation_a < -0.9
    assert found[0].num_steps == 15
    others = {i for pair in found[1:] for i in [*pair.a.tolist(), *pair.b.tolist()]}
    assert others <= {*c.tolist(), *d.tolist()}


def test_two_pairs_out_of_step_are_told_apart():
    losses, (a, b, c, d) = oscillation(3)
    losses[:, [*c, *d]] = (
        1
        + torch.tensor([*[1.0] * 4, *[-1.0] * 4])
        * 0.4
        * torch.cos(torch.pi * torch.arange(16) * 0.8)[:, None]
    )
    found = filled(losses).alternating_pairs(k=8)
    sets = [{frozenset(p.a.tolist()), frozenset(p.b.tolist())} for p in found]
    assert {frozenset(a.tolist()), frozenset(b.tolist())} in sets
    assert {frozenset(c.tolist()), frozenset(d.tolist())} in sets


def test_nothing_is_found_where_all_losses_fall():
    losses = torch.linspace(3, 1, 10)[:, None] * torch.linspace(1, 2, 40)
    assert filled(losses).alternating_pairs() == []


def test_an_end_step_leaves_later_records_out():
    losses, (a, b, *_) = oscillation(5)
    still = losses[:1].expand(10, -1) - 0.1 * torch.arange(10)[:, None]
    tracker = filled(torch.cat([losses, still]))
    assert tracker.alternating_pairs(k=6, window=8) == []
    pair = tracker.alternating_pairs(k=6, window=8, end_step=15)[0]
    assert {*pair.a.tolist(), *pair.b.tolist()} == {*a.tolist(), *b.tolist()}
    assert pair.num_steps == 7


def test_the_ring_keeps_the_newest_records_in_order():
    losses = torch.rand(50, 20)
    tracker = filled(losses, keep=18, every=1)
    assert tracker.steps == list(range(32, 50))
    assert torch.equal(tracker.losses(), losses[32:])
    assert torch.equal(filled(losses, every=3).losses(), losses[::3])


def test_batches_of_an_epoch_make_one_record():
    losses, _ = oscillation(1)
    whole, parts = filled(losses), LossDeltaTracker(num_examples=300)
    for epoch, row in enumerate(losses):
        for batch in torch.randperm(300).split(64):
            parts.record_losses(row[batch], epoch, indices=batch)
    assert torch.equal(whole.losses(), parts.losses())
    missing = LossDeltaTracker(num_examples=300)
    for epoch, row in enumerate(losses):
        missing.record_losses(row[:290], epoch, indices=range(290))
    rises, falls = missing.extremes(k=145)
    assert max(rises.max(), falls.max()) < 290
    assert {*rises.tolist(), *falls.tolist()} == set(range(290))
    for pair in missing.alternating_pairs(k=4):
        assert max(pair.a.max(), pair.b.max()) < 290
    assert missing.losses()[:, 290:].isnan().all()


def test_group_curves_are_means():
    losses = torch.rand(6, 10)
    tracker = filled(losses)
    wanted = torch.stack([losses[:, [1, 4]].mean(1), losses[:, 7]], dim=1)
    torch.testing.assert_close(group_curves(tracker, [[1, 4], [7]]), wanted)


def test_a_probe_set_is_measured_without_dropout_and_without_a_trace():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).double()
    model[2].eval()
    _, x, y = small_net()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    tracker = LossDeltaTracker(x, y, squared, batch=5)
    tracker.record(model, 0)
    tracker.record(model, 1)
    assert not tracker.deltas().any()
    assert (model.training, model[1].training, model[2].training) == (True, True, False)
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])
    model.eval()
    torch.testing.assert_close(tracker.losses()[0], squared(model(x), y).detach())


def test_losses_take_mappings_tuples_and_functions_with_a_reduction():
    model, x, _ = small_net()
    y = torch.arange(12) % 2
    wanted = nn.functional.cross_entropy(model(x), y, reduction="none").detach()
    torch.testing.assert_close(per_example_loss(model, nn.functional.cross_entropy, (x,), y), wanted)
    torch.testing.assert_close(
        per_example_loss(model, nn.CrossEntropyLoss(reduction="none"), {"input": x}, y), wanted
    )
    torch.testing.assert_close(
        per_example_loss(model, lambda output: output[:, 0], x, batch=5), model(x)[:, 0].detach()
    )


def test_spikes_are_rises_out_of_the_ordinary():
    losses = torch.linspace(2, 1, 60) + 0.001 * torch.sin(torch.arange(60.0))
    losses[[20, 41]] += 0.5
    assert spike_steps(losses).tolist() == [20, 41]
    assert spike_steps(-torch.arange(9.0)).tolist() == []
    assert (
        spike_steps(torch.tensor([9.0, 8.0, 7.0, 6.9, 6.0, 5.0, 4.0])).tolist() == []
    )  # a slower fall is no rise


@given(seed=st.integers(0, 1000))
def test_the_two_groups_of_the_opposing_task_are_found_beyond_the_threshold(seed):
    task = OpposingTask(dimension=5, probability=0.02, variance=60.0, kappa=0.3)
    x, y, group = task.sample(5000, generator=torch.Generator().manual_seed(seed))
    kept = torch.cat([(group == sign).nonzero()[:count, 0] for sign, count in ((1, 10), (-1, 10), (0, 980))])
    x, y, group = x[kept], y[kept], group[kept]
    net = task.net(s0=0.9, b_o=0.02)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.2 * 2 / 60.0)
    tracker = LossDeltaTracker()
    for step in range(14):
        losses = (net(x) - y).square() / 2
        tracker.record_losses(losses, step)
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
    pair = tracker.alternating_pairs(k=4)[0]
    sides = [set(group[side].tolist()) for side in (pair.a, pair.b)]
    assert sorted(sides, key=str) == [{-1}, {1}]
    assert pair.alternation > 0.8
