"""stabilitygap against what a competent user would pick instead: a group is exactly two cases on the same input."""

from collections import deque
from functools import cache

import pytest
import torch
from scipy.ndimage import maximum_filter1d
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from stabilitygap import (
    ContinualEvaluator,
    EvalSet,
    WindowedExtremes,
    split_gradients,
    windowed_forgetting,
)

both = pytest.mark.parametrize("case", ["ours", "peer"])


# --- one evaluation -----------------------------------------------------------------------------------

NUM_TASKS, SAMPLES, BATCH = 5, 200, 128


@cache
def problem():
    """The demo's MLP with the card's width, five tasks, 200 samples of 784 numbers each."""
    torch.manual_seed(0)
    tasks = [(torch.rand(SAMPLES, 784), torch.randint(10, (SAMPLES,))) for _ in range(NUM_TASKS)]
    layers = [nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 10)]
    return nn.Sequential(*layers), tasks


@cache
def watcher(batch_size=None):
    return ContinualEvaluator(EvalSet.from_tasks(problem()[1]), skip_unseen=False, batch_size=batch_size)


def our_evaluation(batch_size=None):
    return watcher(batch_size).update(problem()[0], 0)


@cache
def stacked():
    tasks = problem()[1]
    return torch.cat([inputs for inputs, _ in tasks]), torch.cat([labels for _, labels in tasks])


def lines_anyone_writes():
    """All tasks stacked beforehand by hand; one forward, and the mean of each block."""
    model = problem()[0]
    inputs, labels = stacked()
    model.eval()
    with torch.inference_mode():
        hits = model(inputs).argmax(1) == labels
    model.train()
    return hits.view(NUM_TASKS, SAMPLES).double().mean(1)


def loop_over_tensors():
    """A loop over the tasks' tensors, the numbers fetched one by one."""
    model = problem()[0]
    model.eval()
    with torch.no_grad():
        found = [(model(x).argmax(1) == y).double().mean().item() for x, y in problem()[1]]
    model.train()
    return torch.tensor(found, dtype=torch.float64)


def official_way():
    """A new loader for each task at each evaluation."""
    model = problem()[0]
    model.eval()
    found = []
    with torch.no_grad():
        for inputs, labels in problem()[1]:
            hits = 0
            for x, y in DataLoader(TensorDataset(inputs, labels), batch_size=BATCH, num_workers=0):
                hits += (model(x).argmax(1) == y).sum().item()
            found.append(hits / len(labels))
    model.train()
    return torch.tensor(found, dtype=torch.float64)


EVALUATIONS = {
    lines_anyone_writes: "the stacked forward written by hand",
    loop_over_tensors: "a loop over the tasks' tensors",
    official_way: "a new DataLoader per task and evaluation",
}


def compare_evaluations(benchmark, case, peer, batch_size=None):
    torch.testing.assert_close(our_evaluation(batch_size), peer())
    size = f"MLP 784-400-400-10, {NUM_TASKS} tasks of {SAMPLES}"
    benchmark.extra_info.update(case=case, peer=EVALUATIONS[peer], size=size)
    run = {"ours": lambda: our_evaluation(batch_size), "peer": peer}[case]
    benchmark.pedantic(run, rounds=40, warmup_rounds=3)


@both
@pytest.mark.benchmark(group="one evaluation against the stacked forward")
def test_evaluation(benchmark, case):
    compare_evaluations(benchmark, case, lines_anyone_writes)


@both
@pytest.mark.benchmark(group="one evaluation against a loop over tasks")
def test_evaluation_by_tasks(benchmark, case):
    compare_evaluations(benchmark, case, loop_over_tensors)


@both
@pytest.mark.benchmark(group="one evaluation against the official code's way")
def test_evaluation_by_loaders(benchmark, case):
    compare_evaluations(benchmark, case, official_way, batch_size=BATCH)


# --- training, watched and not ------------------------------------------------------------------------


def train(watched, samples, batch, updates=20):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    inputs, labels = torch.rand(batch, 784), torch.randint(10, (batch,))
    tasks = [(x[:samples], y[:samples]) for x, y in problem()[1]]
    evaluator = ContinualEvaluator(EvalSet.from_tasks(tasks), skip_unseen=False) if watched else None
    for _ in range(updates):
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        if evaluator:
            evaluator.update(model, 0)
    return model


def compare_training(benchmark, case, samples, batch):
    watched, alone = train(True, samples, batch), train(False, samples, batch)
    for one, other in zip(watched.parameters(), alone.parameters(), strict=True):
        assert torch.equal(one, other)
    size = f"MLP 784-400-400-10, batches of {batch}, {NUM_TASKS} tasks of {samples} after every update"
    benchmark.extra_info.update(case=case, peer="the same training, not watched", size=size)
    benchmark.pedantic(train, (case == "ours", samples, batch), rounds=4, warmup_rounds=1)


@both
@pytest.mark.benchmark(group="training watched after every update, the paper's batch")
def test_training(benchmark, case):
    compare_training(benchmark, case, samples=40, batch=512)


@both
@pytest.mark.benchmark(group="training watched after every update, a small batch")
def test_training_with_small_batches(benchmark, case):
    compare_training(benchmark, case, samples=200, batch=128)


# --- windows ------------------------------------------------------------------------------------------


@cache
def series(length):
    return torch.rand(length, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def filtered(values, window):
    """SciPy's sliding maximum, O(n) in C, shifted to end at each place."""
    highest = maximum_filter1d(
        values.numpy(), window, mode="constant", cval=float("-inf"), origin=(window - 1) // 2
    )
    return torch.as_tensor((highest - values.numpy()).max())


def unfolded(values, window):
    """The vectorised lines anyone writes: every window as a row."""
    padded = torch.cat([values.new_full((window - 1,), float("-inf")), values])
    return (padded.unfold(0, window, 1).amax(1) - values).amax()


def naive(values, window):
    """The definition, all windows and all pairs in them."""
    values, worst = values.tolist(), 0.0
    for end in range(len(values)):
        inside = values[max(end - window + 1, 0) : end + 1]
        for a in range(len(inside)):
            for b in range(a + 1, len(inside)):
                worst = max(worst, inside[a] - inside[b])
    return torch.tensor(worst, dtype=torch.float64)


WINDOWS = {
    filtered: "SciPy's maximum_filter1d",
    unfolded: "unfold and amax",
    naive: "a loop over windows and pairs",
}


def compare_windows(benchmark, case, peer, length, window=100, rounds=20):
    values = series(length)
    torch.testing.assert_close(windowed_forgetting(values, window), peer(values, window))
    benchmark.extra_info.update(case=case, peer=WINDOWS[peer], size=f"n = {length:,}, w = {window}")
    run = {"ours": windowed_forgetting, "peer": peer}[case]
    benchmark.pedantic(run, (values, window), rounds=rounds)


@both
@pytest.mark.benchmark(group="windowed forgetting against SciPy")
def test_windows(benchmark, case):
    compare_windows(benchmark, case, filtered, 100_000)


@both
@pytest.mark.benchmark(group="windowed forgetting against unfold")
def test_windows_unfolded(benchmark, case):
    compare_windows(benchmark, case, unfolded, 100_000)


@both
@pytest.mark.benchmark(group="windowed forgetting against a naive loop")
def test_windows_naive(benchmark, case):
    compare_windows(benchmark, case, naive, 1_000, rounds=3)


def streamed(values):
    extremes = WindowedExtremes(100)
    for row in values:
        extremes.update(row)
    return extremes.forgetting


def last_rows(values):
    """The last w rows in a buffer, and their maximum at each step: forgetting alone."""
    buffer, worst = deque(maxlen=100), torch.zeros_like(values[0])
    for row in values:
        buffer.append(row)
        worst = torch.maximum(worst, torch.stack(list(buffer)).amax(0) - row)
    return worst


@both
@pytest.mark.benchmark(group="streaming windowed extremes against a buffer")
def test_streaming(benchmark, case):
    values = series(2_500).view(500, 5)
    torch.testing.assert_close(streamed(values), last_rows(values))
    size = "500 values of 5 series, w = 100"
    benchmark.extra_info.update(case=case, peer="the last w rows and their maximum", size=size)
    benchmark.pedantic({"ours": streamed, "peer": last_rows}[case], (values,), rounds=5)


# --- gradients ----------------------------------------------------------------------------------------


@cache
def parts():
    model, tasks = problem()
    losses = {
        "plasticity": cross_entropy(model(tasks[0][0]), tasks[0][1]),
        "stability": cross_entropy(model(tasks[1][0]), tasks[1][1]),
    }
    return losses, list(model.parameters())


def our_split():
    losses, parameters = parts()
    split = split_gradients(losses, parameters)
    return torch.stack([*split.norm.values(), *split.cosine.values(), *split.share.values()])


def flattened():
    """Both gradients as one vector each."""
    losses, parameters = parts()
    first, second = (
        torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, parameters, retain_graph=True)])
        for loss in losses.values()
    )
    total = first + second
    shares = [first @ total / (total @ total), second @ total / (total @ total)]
    cosine = nn.functional.cosine_similarity(first, second, dim=0)
    return torch.stack([first.norm(), second.norm(), cosine, *shares])


@both
@pytest.mark.benchmark(group="gradients taken apart")
def test_split(benchmark, case):
    torch.testing.assert_close(our_split(), flattened(), rtol=1e-4, atol=1e-5)
    size = f"MLP 784-400-400-10, 2 losses of {SAMPLES} samples"
    benchmark.extra_info.update(case=case, peer="flattened gradients", size=size)
    benchmark.pedantic({"ours": our_split, "peer": flattened}[case], rounds=20, warmup_rounds=2)
