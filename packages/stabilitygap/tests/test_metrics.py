"""Hand-computed values, naive definitions, and the invariants of the metrics."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from stabilitygap import (
    Trace,
    WindowedExtremes,
    accuracy,
    forgetting,
    gap_report,
    learning_curve_area,
    min_acc,
    summary,
    windowed_forgetting,
    windowed_plasticity,
    worst_case_acc,
)

NAN = float("nan")


@st.composite
def traces(draw, most_tasks=4):
    """Tasks learnt one after the other, any of them perhaps again later, tasks not seen are NaN."""
    order = draw(st.lists(st.integers(0, most_tasks - 1), min_size=1, max_size=6))
    lengths = draw(st.lists(st.integers(1, 4), min_size=len(order), max_size=len(order)))
    before = draw(st.booleans())
    current = [-1] * before + [
        task for task, length in zip(order, lengths, strict=True) for _ in range(length)
    ]
    seen, rows = {order[0]} if before else set(), []
    for task in current:
        seen |= {task} - {-1}
        rows.append([draw(st.integers(0, 20)) / 20 if i in seen else NAN for i in range(most_tasks)])
    return Trace.from_array(rows, current)


def naive(trace):
    """Every metric by its definition, one evaluation and one task after the other."""
    scores, current = trace.scores.tolist(), trace.current.tolist()
    first = next(task for task in current if task >= 0)
    seen, last, minima, found = set(), {}, {}, []
    for row, task in zip(scores, current, strict=True):
        seen.add(first if task == -1 else task)
        if task >= 0:
            last[task] = row[task]
        old = sorted(seen - {task}) if task >= 0 else []
        for i in old:
            minima[i] = min(minima.get(i, math.inf), row[i])
        acc = sum(row[i] for i in seen) / len(seen)
        least = sum(minima[i] for i in old) / len(old) if old else NAN
        lost = sum(last[i] - row[i] for i in old) / len(old) if old else NAN
        now = first if task == -1 else task
        worst = row[now] if not old else row[now] / len(seen) + (1 - 1 / len(seen)) * least
        found.append((acc, lost, least, worst))
    return torch.tensor(found, dtype=torch.float64)


def naive_drop(series, window):
    drops = [
        series[a] - series[b]
        for start in range(max(len(series) - window + 1, 1))
        for a in range(start, min(start + window, len(series)))
        for b in range(a + 1, min(start + window, len(series)))
    ]
    return max([0.0, *drops])


series = st.lists(st.integers(0, 1000).map(lambda value: value / 1000), min_size=2, max_size=40)
windows = st.integers(2, 45)


def test_the_worked_example(worked):
    assert accuracy(worked).item() == pytest.approx(0.85)
    assert forgetting(worked).item() == pytest.approx(0.1)
    assert min_acc(worked).item() == pytest.approx(0.4)
    assert worst_case_acc(worked).item() == pytest.approx(0.65)
    assert windowed_forgetting(worked, 2, per_task=True).tolist() == pytest.approx([0.5, 0.0])
    assert windowed_forgetting(worked, 2).item() == pytest.approx(0.25)
    assert windowed_plasticity(worked, 2, per_task=True)[0].item() == pytest.approx(0.4)
    assert windowed_plasticity(worked, 3, per_task=True)[1].item() == pytest.approx(0.7)
    (gap,) = gap_report(worked)
    assert (gap.task, gap.next_task, gap.step, gap.minimum_step) == (0, 1, 2, 3)
    assert gap.depth == pytest.approx(0.5)
    assert gap.area == pytest.approx((0.5 + 0.2 + 0.1) / 3)
    assert gap.recovery == math.inf
    assert gap_report(worked, tol=0.2)[0].recovery == 2
    assert learning_curve_area(worked, beta=2).item() == pytest.approx((0.7 + 0.4) / 2)


def test_the_minimum_does_not_count_a_task_while_it_is_learnt_again():
    trace = Trace.from_array([[0.9, NAN], [0.6, 0.3], [0.1, 0.2], [0.8, 0.5]], current=[0, 1, 0, 1])
    assert min_acc(trace, per_task=True).tolist() == pytest.approx([0.6, 0.2])
    assert min_acc(trace, per_task=True, curve=True)[0].isnan().all()
    # Forgetting is from the second time that task 0 was learnt.
    assert forgetting(trace).item() == pytest.approx(0.1 - 0.8)


def test_unseen_tasks_that_were_evaluated_count_nowhere():
    scores = torch.tensor([[0.2, 0.9], [0.5, 0.1], [0.4, 0.3]])
    full = Trace.from_array(scores, [-1, 0, 1])
    bare = scores.clone()
    bare[:2, 1] = NAN
    masked = Trace.from_array(bare, [-1, 0, 1])
    assert summary(full) == pytest.approx(summary(masked), nan_ok=True)


def test_one_task_and_one_evaluation():
    trace = Trace.from_array([[0.5, NAN]], [0])
    found = summary(trace, windows=(2,))
    assert found["accuracy"] == found["worst_case_acc"] == 0.5
    assert math.isnan(found["min_acc"])
    assert math.isnan(found["forgetting"])
    assert found["windowed_forgetting_2"] == found["windowed_plasticity_2"] == 0
    assert windowed_forgetting([], 2) == windowed_forgetting([0.3], 2) == 0


def test_the_summary_tells_how_to_read_it():
    found = summary(Trace.from_array([[0.5, NAN], [0.4, 0.4]], [0, 1], every=5, sizes=[400, 100]))
    assert found["every"] == 5
    assert found["standard_error"] == pytest.approx(0.05)


@given(traces())
def test_every_curve_equals_its_definition(trace):
    curves = [metric(trace, curve=True) for metric in (accuracy, forgetting, min_acc, worst_case_acc)]
    torch.testing.assert_close(torch.stack(curves, 1), naive(trace), equal_nan=True)
    for metric, curve in zip((accuracy, forgetting, min_acc, worst_case_acc), curves, strict=True):
        torch.testing.assert_close(metric(trace), curve[-1], equal_nan=True)


@given(traces())
def test_the_worst_case_bounds_the_accuracy(trace):
    acc, worst = accuracy(trace, curve=True), worst_case_acc(trace, curve=True)
    assert (worst <= acc + 1e-12).all()
    assert ((worst >= 0) & (worst <= 1)).all()


@given(traces())
def test_minima_never_rise(trace):
    minima = min_acc(trace, per_task=True, curve=True)
    assert not (minima.diff(dim=0) > 0).any()


@given(traces(), st.integers(1, 4))
def test_looking_less_often_never_finds_a_lower_minimum_nor_a_larger_drop(trace, every):
    thin = trace.subsampled(every)
    assume(len(thin.step) > 0 and bool((thin.current >= 0).any()))
    wanted, found = min_acc(trace, per_task=True), min_acc(thin, per_task=True)
    known = ~found.isnan() & ~wanted.isnan()
    assert (found[known] >= wanted[known]).all()
    window = len(trace.step) + 2
    wide = windowed_forgetting(trace, window, per_task=True)
    narrow = windowed_forgetting(thin, window, per_task=True)
    both = ~wide.isnan() & ~narrow.isnan()
    assert (narrow[both] <= wide[both] + 1e-12).all()


@given(traces(), st.data())
def test_one_score_moves_the_minimum_by_its_share(trace, data):
    old = (~min_acc(trace, per_task=True, curve=True).isnan()).nonzero().tolist()
    assume(old)
    row, task = data.draw(st.sampled_from(old))
    delta = data.draw(st.floats(0, 1)) * (1 - float(trace.scores[row, task]))
    scores = trace.scores.clone()
    scores[row, task] += delta
    moved = min_acc(Trace.from_array(scores.clamp(max=1), trace.current, trace.step)) - min_acc(trace)
    others = int(trace.seen[-1].sum()) - 1
    assert others == 0 or -1e-12 <= moved <= delta / others + 1e-12


@given(series, windows)
def test_windows_equal_their_definition(values, window):
    drop, gain = windowed_forgetting(values, window), windowed_plasticity(values, window)
    assert drop.item() == pytest.approx(naive_drop(values, window), abs=1e-12)
    assert gain.item() == pytest.approx(naive_drop([-value for value in values], window), abs=1e-12)


@given(series, windows)
def test_forgetting_is_plasticity_turned_round(values, window):
    drop = windowed_forgetting(values, window)
    torch.testing.assert_close(drop, windowed_plasticity(values[::-1], window))
    torch.testing.assert_close(drop, windowed_plasticity([3 - value for value in values], window))
    assert drop <= windowed_forgetting(values, window + 1)
    whole = np.max(np.maximum.accumulate(values) - values)
    assert windowed_forgetting(values, len(values)).item() == pytest.approx(whole)
    assert windowed_forgetting([values[0]] * 9, window) == 0


def test_the_official_loop_counts_less_plasticity_than_the_definition():
    assert windowed_plasticity([0.5, 0.1, 0.9], 3).item() == pytest.approx(0.8)


@given(traces(), st.integers(2, 6))
def test_streaming_equals_the_whole(trace, window):
    extremes = WindowedExtremes(window)
    for scores, seen in zip(trace.scores, trace.seen, strict=True):
        extremes.update(torch.where(seen, scores, NAN))
    wanted = windowed_forgetting(trace, window, per_task=True)
    torch.testing.assert_close(extremes.forgetting, wanted, equal_nan=True)
    wanted = windowed_plasticity(trace, window, per_task=True)
    torch.testing.assert_close(extremes.plasticity, wanted, equal_nan=True)


wide = st.floats(-1e150, 1e150) | st.integers(-2, 2).map(float) | st.sampled_from([1e-150, 1e6 + 0.5, -0.0])


@given(st.lists(wide, max_size=40), windows, st.integers(0, 3))
def test_windows_and_streams_of_any_numbers_are_exact(values, window, before):
    extremes = WindowedExtremes(window)
    for value in [NAN] * before + values:
        extremes.update([value, 0.0])
    wanted = [naive_drop(values, window), naive_drop([-value for value in values], window)]
    assert [windowed_forgetting(values, window).item(), windowed_plasticity(values, window).item()] == wanted
    if values:
        assert [extremes.forgetting[0].item(), extremes.plasticity[0].item()] == wanted


def test_complex_scores_are_refused():
    values = torch.tensor([1 + 1j, 2])
    with pytest.raises(ValueError, match="a series must be real"):
        windowed_forgetting(values, 2)
    with pytest.raises(ValueError, match="scores must be real"):
        WindowedExtremes(2).update(values)
    with pytest.raises(ValueError, match="scores must be real"):
        Trace.from_array(values[:, None], [0, 0])


def test_streaming_over_many_blocks():
    values = torch.rand(200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    extremes = WindowedExtremes(7)
    for value in values:
        extremes.update(value)
    assert extremes.forgetting == windowed_forgetting(values, 7)


def test_a_gap_that_recovers_and_one_that_is_none():
    rows = [[0.8, NAN], [0.6, 0.1], [0.3, 0.2], [0.5, 0.3], [0.76, 0.4], [0.9, 0.9]]
    (gap,) = gap_report(Trace.from_array(rows, [0, 1, 1, 1, 1, 1], [4, 6, 8, 10, 12, 14]))
    assert (gap.minimum_step, gap.recovery, gap.step) == (8, 4, 4)
    assert gap.after == 0.9
    (none,) = gap_report(Trace.from_array([[0.5, NAN], [0.7, 0.1], [0.6, 0.3]], [0, 1, 1]))
    assert none.depth == pytest.approx(-0.1)
    assert (none.recovery, none.area) == (0, 0)


def test_gaps_are_of_the_phase_alone():
    """The second switch does not see the first one's minimum, and a task learnt again is no old task."""
    rows = [[0.9, NAN], [0.1, 0.6], [0.8, 0.7], [0.7, 0.5], [0.95, 0.2]]
    gaps = gap_report(Trace.from_array(rows, [0, 1, 1, 0, 0]))
    assert [(gap.task, gap.next_task) for gap in gaps] == [(0, 1), (1, 0)]
    assert gaps[1].depth == pytest.approx(0.5)


@given(traces())
def test_a_trace_comes_back_from_its_file_and_its_dictionary(tmp_path_factory, trace):
    path = tmp_path_factory.mktemp("trace") / "trace.json"
    trace.save(path)
    for back in (Trace.load(path), Trace.from_state_dict(trace.state_dict())):
        assert torch.equal(back.scores.nan_to_num(-1), trace.scores.nan_to_num(-1))
        assert torch.equal(back.step, trace.step)
        assert torch.equal(back.current, trace.current)
        assert (back.every, back.sizes) == (trace.every, trace.sizes)
