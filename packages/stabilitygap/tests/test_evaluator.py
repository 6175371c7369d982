"""What is evaluated, when, on what; and every bad input by its name."""

import copy
import warnings
from collections import UserDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler, TensorDataset

from stabilitygap import (
    ContinualEvaluator,
    EvalSet,
    FeatureDrift,
    Trace,
    WindowedExtremes,
    likelihood_score,
    min_acc,
    next_token_accuracy,
    task_gradient_norms,
    windowed_forgetting,
)
from stabilitygap.metrics import accuracy
from stabilitygap.scores import accuracy_score


def by_hand(model, task):
    inputs, labels = task
    hits = [int(model(x[None])[0].argmax()) == int(y) for x, y in zip(inputs, labels, strict=True)]
    return sum(hits) / len(hits)


@pytest.mark.parametrize("batch_size", [None, 1, 5, np.int64(100)])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_scores_are_those_of_a_loop_over_tasks(tasks, model, batch_size, order):
    evaluator = ContinualEvaluator(EvalSet.from_tasks(tasks), batch_size=batch_size)
    for count, current in enumerate(order, start=1):
        scores = evaluator.update(model, current)
        for task in range(3):
            if task in order[:count]:
                assert scores[task].item() == pytest.approx(by_hand(model, tasks[task]))
            else:
                assert scores[task].isnan()
    assert evaluator.trace().current.tolist() == list(order)
    sizes = [7, 12, 9]
    assert evaluator.rows_evaluated == sum(sum(sizes[task] for task in order[:count]) for count in (1, 2, 3))


def test_unseen_tasks_on_demand(tasks, model):
    scores = ContinualEvaluator(EvalSet.from_tasks(tasks), skip_unseen=False).update(model, 1)
    assert scores.tolist() == pytest.approx([by_hand(model, task) for task in tasks])


@given(every=st.integers(1, 7), lengths=st.lists(st.integers(1, 6), min_size=1, max_size=3))
def test_every_rho_equals_the_full_trace_looked_at_every_rho(every, lengths):
    generator = torch.Generator().manual_seed(0)
    tasks = [(torch.randn(9, 5, generator=generator), torch.arange(9) % 4) for _ in range(3)]
    full, thin = (ContinualEvaluator(EvalSet.from_tasks(tasks), every=rho) for rho in (1, every))
    model = nn.Linear(5, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for task, length in enumerate(lengths):
            for _ in range(length):
                with torch.no_grad():
                    model.weight.normal_(generator=generator)
                full.update(model, task)
                thin.update(model, task)
    wanted, found = full.trace().subsampled(every), thin.trace()
    assert torch.equal(wanted.step, found.step)
    torch.testing.assert_close(wanted.scores, found.scores, equal_nan=True)
    assert found.every == wanted.every == every


def test_forced_and_numbered_updates(eval_set, model):
    evaluator = ContinualEvaluator(eval_set, every=3)
    assert evaluator.update(model, 0, force=True) is not None
    assert evaluator.update(model, 0) is None
    assert evaluator.update(model, 0, force=True) is not None
    assert evaluator.update(model, 0) is not None
    assert evaluator.update(model, 0, step=3, force=True) is None
    assert evaluator.update(model, 1, step=9) is not None
    assert evaluator.update(model, 1, step=10) is None
    trace = evaluator.trace()
    assert trace.step.tolist() == [0, 2, 3, 9]
    assert trace.current.tolist() == [-1, 0, 0, 1]
    with pytest.raises(ValueError, match="step may not fall, got 4 after 10"):
        evaluator.update(model, 1, step=4)


def test_a_forced_call_after_counted_updates_is_an_update(eval_set, model):
    evaluator = ContinualEvaluator(eval_set, every=5)
    evaluator.update(model, 0)
    evaluator.update(model, 0, force=True)
    assert (evaluator.trace().step.tolist(), evaluator.trace().current.tolist()) == ([2], [0])


def test_a_task_that_no_evaluation_saw_is_spoken_of(eval_set, model):
    evaluator = ContinualEvaluator(eval_set, every=4)
    for task in (0, 0, 0):
        evaluator.update(model, task)
    with pytest.warns(UserWarning, match=r"task 0 ended without an evaluation .* lower every \(4\)"):
        evaluator.update(model, 1)
    trace = evaluator.trace()
    assert trace.seen.tolist() == [[False, True, False]]
    Trace.from_state_dict(trace.state_dict())


def test_long_runs_are_flushed_in_pieces(eval_set, model):
    evaluator = ContinualEvaluator(eval_set)
    for _ in range(600):
        evaluator.update(model, 0)
    trace = evaluator.trace()
    assert trace.step.tolist() == list(range(1, 601))
    assert trace.scores.shape == (600, 3)
    assert trace.scores[:, 0].unique().numel() == 1


def test_a_resumed_run_goes_on_with_its_trace(tasks, model):
    whole, first, second = (ContinualEvaluator(EvalSet.from_tasks(tasks), every=2) for _ in range(3))
    for task in (0, 0, 0, 1, 1, 2, 2, 2):
        whole.update(model, task)
    for task in (0, 0, 0, 1):
        first.update(model, task)
    second.load_state_dict(first.state_dict())
    for task in (1, 2, 2, 2):
        second.update(model, task)
    wanted, found = whole.state_dict(), second.state_dict()
    torch.testing.assert_close(wanted.pop("scores"), found.pop("scores"), equal_nan=True)
    for name, value in wanted.items():
        assert np.array_equal(value, found[name]), name


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"every": 3}, "every 2 as this evaluator, got 3"),
        ({"sizes": (7, 12, 8)}, "must have sizes"),
        ({"updates": None}, "state must have"),
    ],
)
def test_a_state_of_another_evaluator_is_refused(tasks, changed, says):
    evaluator = ContinualEvaluator(EvalSet.from_tasks(tasks), every=2)
    state = evaluator.state_dict() | changed
    if changed.get("updates", 0) is None:
        del state["updates"]
    with pytest.raises(ValueError, match=says):
        evaluator.load_state_dict(state)


def test_a_resumed_run_draws_the_samples_that_it_would_have_drawn(tasks, model):
    def fresh(seed):
        generator = torch.Generator().manual_seed(seed)
        return ContinualEvaluator(
            EvalSet.from_tasks(tasks, subset=2, generator=generator, resample=True),
            score=lambda outputs, targets: outputs[:, 0].sigmoid(),
        )

    whole, first, second = fresh(0), fresh(0), fresh(1)
    for _ in range(4):
        whole.update(model, 0)
    for _ in range(2):
        first.update(model, 0)
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        second.update(model, 0)
    wanted = whole.trace().scores[:, 0]
    assert wanted.unique().numel() > 1
    assert torch.equal(second.trace().scores[:, 0], wanted)
    with pytest.raises(ValueError, match="same resample"):
        second.load_state_dict(first.state_dict() | {"generator": None})
    with pytest.raises(ValueError, match="same resample"):
        ContinualEvaluator(EvalSet.from_tasks(tasks, subset=2)).load_state_dict(first.state_dict())


# --- outputs and scores -------------------------------------------------------------------------------


class Wrapped(nn.Module):
    """Logits in the forms in which models give them."""

    def __init__(self, form):
        super().__init__()
        self.head, self.form = nn.Linear(5, 4), form

    def forward(self, inputs):
        logits = self.head(inputs)
        forms = {
            "dict": {"loss": 0, "logits": logits},
            "object": SimpleNamespace(logits=logits),
            "tuple": (logits, "hidden"),
        }
        return forms[self.form]


@pytest.mark.parametrize("form", ["dict", "object", "tuple"])
def test_outputs_of_any_form(tasks, form):
    model = Wrapped(form)
    scores = ContinualEvaluator(EvalSet.from_tasks(tasks)).update(model, 0)
    assert scores[0].item() == pytest.approx(by_hand(model.head, tasks[0]))


def test_inputs_of_any_form(tasks, model):
    class Named(nn.Module):
        def forward(self, left, right):
            return model(torch.cat([left, right], 1))

    mappings = [({"left": x[:, :2], "right": x[:, 2:]}, y) for x, y in tasks]
    tuples = [((x[:, :2], x[:, 2:]), y) for x, y in tasks]
    wanted = ContinualEvaluator(EvalSet.from_tasks(tasks)).update(model, 1)
    for form in (mappings, tuples):
        found = ContinualEvaluator(EvalSet.from_tasks(form), batch_size=5).update(Named(), 1)
        torch.testing.assert_close(found, wanted, equal_nan=True)


def test_several_heads_by_forward(tasks):
    heads = nn.ModuleList(nn.Linear(5, 4) for _ in range(3))

    def forward(heads, inputs, task):
        every = torch.stack([head(inputs) for head in heads])
        return every[task, torch.arange(len(task))]

    evaluator = ContinualEvaluator(EvalSet.from_tasks(tasks), forward=forward, skip_unseen=False)
    wanted = [by_hand(head, task) for head, task in zip(heads, tasks, strict=True)]
    assert evaluator.update(heads, 0).tolist() == pytest.approx(wanted)
    # No module at all is fine where forward is given.
    call = ContinualEvaluator(EvalSet.from_tasks(tasks), forward=lambda f, x, task: f(x))
    assert call.update(lambda x: x[:, :4], 0) is not None


def test_binary_outputs_and_column_targets(tasks):
    binary = [(x, (y > 1).float()[:, None]) for x, y in tasks]
    model = nn.Linear(5, 1)
    scores = ContinualEvaluator(EvalSet.from_tasks(binary)).update(model, 0)
    wanted = ((model(tasks[0][0])[:, 0] > 0) == (tasks[0][1] > 1)).double().mean()
    assert scores[0] == wanted


def test_bounded_likelihood_as_score(tasks, model):
    scores = ContinualEvaluator(EvalSet.from_tasks(tasks), score=likelihood_score).update(model, 0)
    inputs, labels = tasks[0]
    wanted = model(inputs).softmax(1)[torch.arange(7), labels].mean()
    assert scores[0].item() == pytest.approx(wanted.item())


def test_next_tokens_of_a_language_model():
    logits = torch.eye(5)[torch.tensor([[1, 2, 3, 0], [4, 4, 0, 0]])]
    labels = torch.tensor([[0, 1, -100, 3], [-100, 4, 4, 1]])
    # First row: 1 right, 2 skipped, 3 right; second: 4 right, 4 right, 1 missed.
    assert next_token_accuracy(logits, labels).tolist() == pytest.approx([1.0, 2 / 3])
    with pytest.raises(ValueError, match="at least one next token"):
        next_token_accuracy(logits, torch.full((2, 4), -100))
    with pytest.raises(ValueError, match="outputs must have shape"):
        next_token_accuracy(logits[:, :2], labels)


@pytest.mark.parametrize("classes", [1, 3])
def test_a_model_that_gives_nan_hits_nothing(classes):
    """`argmax` names the class of the first NaN, and NaN > 0 is false: either would hit every sample of class 0."""
    broken = nn.Linear(4, classes)
    nn.init.constant_(broken.weight, torch.nan)
    tasks = [(torch.eye(4), torch.tensor([0, 0, 0, 1]))]
    assert ContinualEvaluator(EvalSet.from_tasks(tasks)).update(broken, 0).item() == 0


def test_one_row_of_nan_is_the_only_one_that_is_lost():
    logits = torch.tensor([[2.0, 1.0], [torch.nan, 1.0], [3.0, torch.nan], [0.0, 1.0]])
    tasks = [(torch.zeros(4, 1), torch.tensor([0, 0, 0, 1]))]
    evaluator = ContinualEvaluator(EvalSet.from_tasks(tasks), forward=lambda model, inputs, task: logits)
    assert evaluator.update(None, 0).item() == 0.5
    assert next_token_accuracy(logits[None], torch.tensor([[0, 0, 0, 0]])).item() == pytest.approx(1 / 3)


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(5, 4)

    def forward(self, inputs):
        return self.head(inputs.div_(255))


@pytest.mark.parametrize("options", [{}, {"batch_size": 4}])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_samples_that_the_model_changes_in_place_are_spoken_of(tasks, options, mode):
    evaluator = ContinualEvaluator(EvalSet.from_tasks(tasks), **options)
    with mode(), pytest.raises(ValueError, match=r"must not change the inputs .* in place"):
        evaluator.update(InPlace(), 0)
    safe = ContinualEvaluator(
        EvalSet.from_tasks(tasks), forward=lambda model, inputs, task: model(inputs.clone()), **options
    )
    safe.update(InPlace(), 0)
    assert torch.equal(safe.eval_set.inputs, torch.cat([inputs for inputs, _ in tasks]))


def test_drift_and_gradients_do_not_let_the_samples_change_either(tasks):
    drift = FeatureDrift(EvalSet.from_tasks(tasks), lambda model, inputs, task: model(inputs))
    with pytest.raises(ValueError, match="in place"):
        drift.update(InPlace())
    with pytest.raises(ValueError, match="in place"):
        task_gradient_norms(InPlace(), EvalSet.from_tasks(tasks))


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(5, 4)

    def forward(self, left, right):
        return self.head(left - right)


def test_samples_of_two_inputs_come_alike_from_tensors_items_and_loaders(tasks):
    inputs, targets = tasks[0]
    items = [((x, 2 * x), y) for x, y in zip(inputs, targets, strict=True)]
    model = Both()
    wanted = accuracy_score(model(inputs, 2 * inputs), targets).double().mean().item()
    for task in (((inputs, 2 * inputs), targets), items, DataLoader(items, 4)):
        assert ContinualEvaluator(EvalSet.from_tasks([task])).update(model, 0).item() == wanted


def test_a_mapping_of_ones_own_is_a_mapping(tasks):
    """Tokenizers give a `UserDict`."""
    inputs, targets = tasks[0]
    plain = EvalSet.from_tasks([({"input": inputs}, targets)])
    own = EvalSet.from_tasks([(UserDict(input=inputs), targets)])
    assert torch.equal(own.inputs["input"], plain.inputs["input"])
    loader = DataLoader(list(zip(inputs, targets, strict=True)), 4, collate_fn=_as_mapping)
    assert torch.equal(EvalSet.from_tasks([loader]).inputs["input"], inputs)


def _as_mapping(items):
    inputs, targets = zip(*items, strict=True)
    return UserDict(input=torch.stack(inputs)), torch.stack(targets)


def test_half_precision_scores_are_averaged_exactly():
    ones = torch.arange(4000) % 4 == 0
    tasks = [(ones[:, None].float(), torch.zeros(4000, dtype=torch.int64))]
    evaluator = ContinualEvaluator(
        EvalSet.from_tasks(tasks, subset=None), score=lambda outputs, targets: outputs[:, 0].half()
    )
    assert evaluator.update(nn.Identity(), 0).item() == 0.25


# --- the evaluation set -------------------------------------------------------------------------------


class Items:
    """A map-style data set without a base class, counting what is read."""

    def __init__(self, size):
        self.size, self.read = size, 0

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.read += 1
        return torch.full((5,), float(index)), index % 4, "more"


def test_only_the_subset_of_a_dataset_is_loaded_once():
    items = Items(1000)
    first = EvalSet.from_tasks([items], subset=50, generator=torch.Generator().manual_seed(1))
    assert items.read == 50
    second = EvalSet.from_tasks([items], subset=50, generator=torch.Generator().manual_seed(1))
    assert torch.equal(first.inputs, second.inputs)
    assert first.inputs[:, 0].unique().numel() == 50
    assert torch.equal(first.targets, first.inputs[:, 0].long() % 4)


def test_drawing_leaves_the_global_generator_alone(tasks):
    state = torch.get_rng_state()
    loader = DataLoader(TensorDataset(*tasks[1]), batch_size=5, shuffle=True)
    EvalSet.from_tasks([tasks[0], loader], subset=3)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_loader_gives_what_its_sampler_gives(tasks):
    inputs, labels = tasks[1]
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=2, sampler=SubsetRandomSampler([2, 4, 7]))
    found = EvalSet.from_tasks([loader])
    assert sorted(found.inputs[:, 0].tolist()) == sorted(inputs[[2, 4, 7], 0].tolist())


def test_streams_lists_arrays_and_mappings(tasks):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(zip(*tasks[0], strict=True))

    found = EvalSet.from_tasks(
        [Stream(), list(zip(*tasks[1], strict=True)), tuple(part.numpy() for part in tasks[2])]
    )
    wanted = EvalSet.from_tasks(tasks)
    assert torch.equal(found.inputs, wanted.inputs)
    assert torch.equal(found.targets, wanted.targets)
    texts = [{"input_ids": [1, 2, row], "labels": row} for row in range(3)]
    assert EvalSet.from_tasks([texts]).inputs["input_ids"].tolist() == [[1, 2, 0], [1, 2, 1], [1, 2, 2]]


def test_samples_of_unequal_length_need_collate():
    texts = [{"input_ids": list(range(row + 1)), "labels": row} for row in range(3)]
    with pytest.raises(ValueError, match="collate must pad them"):
        EvalSet.from_tasks([texts])

    def collate(items):
        padded = [torch.tensor(item["input_ids"] + [0] * (3 - len(item["input_ids"]))) for item in items]
        return {"input_ids": torch.stack(padded), "labels": [item["labels"] for item in items]}

    assert EvalSet.from_tasks([texts], collate=collate).targets.tolist() == [0, 1, 2]


def test_resampling_draws_anew_from_its_own_generator(tasks):
    generator = torch.Generator().manual_seed(0)
    noisy = EvalSet.from_tasks(tasks, subset=4, generator=generator, resample=True)
    seen = []
    evaluator = ContinualEvaluator(
        noisy, score=lambda outputs, targets: seen.append(outputs[:, 0].tolist()) or torch.ones(len(targets))
    )
    evaluator.update(nn.Identity(), 1)
    evaluator.update(nn.Identity(), 0)
    evaluator.update(nn.Identity(), 1)
    assert [len(row) for row in seen] == [4, 8, 8]
    assert sorted(seen[1]) != sorted(seen[2])
    assert set(seen[0]) <= set(tasks[1][0][:, 0].tolist())
    assert evaluator.trace().sizes == (4, 4, 4)
    with pytest.raises(ValueError, match="resample=True needs"):
        EvalSet.from_tasks(tasks, resample=True)


# --- the other curves ---------------------------------------------------------------------------------


def test_feature_drift_by_hand(tasks, model):
    drift = FeatureDrift(EvalSet.from_tasks(tasks), lambda model, inputs, task: model(inputs))
    before = [model(x).detach() for x, _ in tasks]
    assert drift.update(model) is None
    with torch.no_grad():
        model.weight[1] += 0.5
    wanted = [
        (model(x) - old).square().sum(1).mean().item() for (x, _), old in zip(tasks, before, strict=True)
    ]
    assert drift.update(model).tolist() == pytest.approx(wanted, rel=1e-4)
    with pytest.raises(ValueError, match="features must return 28 rows"):
        FeatureDrift(EvalSet.from_tasks(tasks), lambda *_: torch.ones(3)).update(model)


def test_the_drift_of_large_float64_features_is_exact(tasks, model):
    drift = FeatureDrift(
        EvalSet.from_tasks(tasks), lambda model, inputs, task: inputs.double()[:, :3] + model[0]
    )
    drift.update([1e6])
    assert drift.update([1e6 + 1e-3]).tolist() == pytest.approx([3e-6] * 3, rel=1e-5)


def test_gradient_norms_leave_ignored_targets_out_and_keep_their_digits(tasks):
    inputs, targets = tasks[0]
    ignored, linear = targets.clone(), nn.Linear(5, 4)
    ignored[::2] = -100
    found = task_gradient_norms(linear, EvalSet.from_tasks([(inputs, ignored), (inputs, targets)]))
    for norm, labels in zip(found, (ignored, targets), strict=True):
        grads = torch.autograd.grad(nn.functional.cross_entropy(linear(inputs), labels), linear.parameters())
        assert norm.item() == pytest.approx(
            torch.cat([grad.flatten() for grad in grads]).norm().item(), rel=1e-5
        )
    half = [(inputs.bfloat16(), ignored), (inputs.bfloat16(), targets)]
    coarse = task_gradient_norms(copy.deepcopy(linear).bfloat16(), EvalSet.from_tasks(half))
    assert coarse.dtype == torch.float32
    torch.testing.assert_close(coarse, found, rtol=0.03, atol=0)


def test_gradient_norms_of_a_sparse_embedding():
    tokens, targets = torch.tensor([[0, 1], [1, 1]]), torch.tensor([0, 1])
    embedding = nn.Embedding(3, 2)
    sparse = nn.Embedding(3, 2, sparse=True)
    sparse.load_state_dict(embedding.state_dict())
    norms = [
        task_gradient_norms(
            part,
            EvalSet.from_tasks([(tokens, targets)]),
            forward=lambda model, inputs, task: model(inputs).sum(1),
        )
        for part in (embedding, sparse)
    ]
    torch.testing.assert_close(*norms)


def test_gradient_norms_by_hand(tasks):
    model = nn.Sequential(nn.Linear(5, 6), nn.Dropout(), nn.Linear(6, 4))
    found = task_gradient_norms(model, EvalSet.from_tasks(tasks))
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    model.eval()
    for norm, (inputs, labels) in zip(found, tasks, strict=True):
        grads = torch.autograd.grad(nn.functional.cross_entropy(model(inputs), labels), model.parameters())
        assert norm.item() == pytest.approx(
            torch.cat([grad.flatten() for grad in grads]).norm().item(), rel=1e-5
        )


# --- bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "error", "says"),
    [
        ([], ValueError, "tasks must hold at least one task"),
        ([(torch.ones(3, 2), torch.ones(4))], ValueError, r"task 0: inputs and targets .* \[3, 4\]"),
        ([(torch.ones(0, 2), torch.ones(0))], ValueError, "task 0 must have at least one sample"),
        ([3], TypeError, "task 0 must be a pair .* got int"),
        ([(torch.ones(1), torch.ones(1), torch.ones(1))], TypeError, "got a tuple of 3"),
        ([[{"x": 1}]], ValueError, r"must have 'labels', got \['x'\]"),
        ([[1, 2]], TypeError, "must yield"),
        (
            [(torch.ones(2, 3), torch.ones(2)), (torch.ones(2, 4), torch.ones(2))],
            ValueError,
            "one form and shape",
        ),
    ],
)
def test_bad_tasks_are_named(bad, error, says):
    with pytest.raises(error, match=says):
        EvalSet.from_tasks(bad)


def test_bad_sets_are_named(tasks):
    with pytest.raises(ValueError, match="subset must be at least 1, got 0"):
        EvalSet.from_tasks(tasks, subset=0)
    with pytest.raises(ValueError, match="task must be sorted"):
        EvalSet(torch.ones(3, 1), torch.zeros(3), torch.tensor([0, 2, 2]))
    with pytest.raises(ValueError, match="targets must have 3 rows"):
        EvalSet(torch.ones(3, 1), torch.zeros(2), torch.tensor([0, 1, 1]))


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"every": 0}, ValueError, "every must be at least 1, got 0"),
        ({"every": 1.5}, TypeError, "every must be an integer, got 1.5"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"score": "f1"}, ValueError, "score must be 'accuracy' or a function, got 'f1'"),
    ],
)
def test_bad_options_are_named(eval_set, options, error, says):
    with pytest.raises(error, match=says):
        ContinualEvaluator(eval_set, **options)
    with pytest.raises(TypeError, match="eval_set must be an EvalSet, got list"):
        ContinualEvaluator([])


@pytest.mark.parametrize("task", [-1, 3])
def test_a_task_that_is_none_is_named(eval_set, model, task):
    with pytest.raises(ValueError, match="current_task must"):
        ContinualEvaluator(eval_set).update(model, task)


@pytest.mark.parametrize(
    ("options", "model", "error", "says"),
    [
        ({}, lambda x: x, TypeError, "model must be a torch.nn.Module unless forward is given"),
        ({}, nn.LazyLinear(4), ValueError, "uninitialised parameters"),
        ({}, nn.Linear(5, 3), ValueError, "targets must be less than the outputs' width 3, got 3"),
        ({"forward": lambda m, x, t: m(x)[:3]}, nn.Linear(5, 4), ValueError, "outputs must have 7 rows"),
        ({"forward": lambda m, x, t: "no"}, nn.Linear(5, 4), TypeError, "have logits, got str"),
        (
            {"score": lambda o, t: o.mean()},
            nn.Linear(5, 4),
            ValueError,
            r"one number per sample \(7,\), got \(\)",
        ),
        (
            {"score": lambda o, t: o[:, 0] / 0},
            nn.Linear(5, 4),
            ValueError,
            "finite numbers, .* after update 1",
        ),
    ],
)
def test_bad_models_and_scores_are_named(eval_set, options, model, error, says):
    evaluator = ContinualEvaluator(eval_set, **options)
    with pytest.raises(error, match=says):
        evaluator.update(model, 0)
    assert len(evaluator.trace().step) == 0


def test_ignored_targets_are_no_classes(tasks, model):
    marked = [(x, torch.where(y == 0, -100, y)) for x, y in tasks]
    with pytest.raises(ValueError, match="class numbers of at least 0, got -100"):
        ContinualEvaluator(EvalSet.from_tasks(marked)).update(model, 0)


def test_soft_or_dense_targets_need_a_score(tasks, model):
    soft = [(x, torch.ones(len(x), 4)) for x, _ in tasks]
    with pytest.raises(ValueError, match="accuracy needs class numbers"):
        ContinualEvaluator(EvalSet.from_tasks(soft)).update(model, 0)


@pytest.mark.parametrize(
    ("scores", "current", "options", "says"),
    [
        ([0.5], [0], {}, r"scores must have shape \(evaluations, tasks\)"),
        ([[0.5]], [1], {}, r"current must lie in -1..0"),
        ([[0.5], [0.5]], [0, -1], {}, "only at the first evaluation"),
        ([[0.5], [0.5]], [0], {}, "current must be 2 integers"),
        ([[0.5], [0.5]], [0, 0], {"step": [3, 3]}, "step must increase"),
        ([[float("nan")]], [0], {}, "must be finite, got nan for task 0 at evaluation 0"),
        ([[0.5]], [0], {"sizes": [1, 2]}, "sizes must have one number for each of 1 tasks"),
    ],
)
def test_bad_traces_are_named(scores, current, options, says):
    with pytest.raises(ValueError, match=says):
        Trace.from_array(scores, current, **options)


def test_bad_questions_are_named(worked, tmp_path):
    for window in (1, 0):
        with pytest.raises(ValueError, match="window must be at least 2"):
            windowed_forgetting(worked, window)
    with pytest.raises(ValueError, match="a series must be"):
        windowed_forgetting([0.5, float("nan")], 2)
    with pytest.raises(ValueError, match="at least one evaluation"):
        accuracy(Trace.from_array(torch.empty(0, 2), torch.empty(0, dtype=torch.int64)))
    with pytest.raises(TypeError, match="trace must be a Trace, got list"):
        accuracy([0.5])
    with pytest.warns(UserWarning, match=r"meant for scores in \[0, 1\]"):
        min_acc(Trace.from_array([[3.0], [2.0]], [0, 0]))
    extremes = WindowedExtremes(2)
    extremes.update([0.1, float("nan")])
    with pytest.raises(ValueError, match="must be finite, or NaN before"):
        extremes.update([float("nan"), 0.2])
    with pytest.raises(ValueError, match="scores must keep shape"):
        extremes.update(0.2)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="must hold a trace"):
        Trace.load(tmp_path / "other.json")
