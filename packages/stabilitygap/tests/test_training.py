"""Watching a training run changes none of its bits, in whatever loop it runs."""

import contextlib
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from stabilitygap import ContinualEvaluationPlugin, ContinualEvaluator, EvalSet, undisturbed


def seed_all():
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (the global generator is what is tested)


def numpy_draw():
    return np.random.rand()  # noqa: NPY002


class Noisy(nn.Module):
    """Everything that could give a watcher away: generators of every kind, buffers, frozen statistics."""

    def __init__(self, size=5):
        super().__init__()
        self.first, self.frozen = nn.Linear(size, 16), nn.BatchNorm1d(16)
        self.norm, self.drop, self.last = nn.BatchNorm1d(16), nn.Dropout(0.4), nn.Linear(16, 4)
        self.generator = torch.Generator().manual_seed(5)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("nothing", None)

    def train(self, mode=True):
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, inputs):
        self.calls += 1
        hidden = torch.relu(self.norm(self.frozen(self.first(inputs))))
        hidden = hidden + 0.01 * torch.randn(hidden.shape, generator=self.generator)
        hidden = hidden * (1 + 0.01 * random.random() + 0.01 * numpy_draw())
        return self.last(nn.functional.dropout(self.drop(hidden), 0.1))


def train(tasks, watch, scope=contextlib.nullcontext, accumulate=1, autocast_all=False):
    """A plain loop over the tasks; returns all that training depends on."""
    seed_all()
    model = Noisy().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    evaluator = ContinualEvaluator(EvalSet.from_tasks(tasks, subset=6)) if watch else None
    between = ContinualEvaluator(EvalSet.from_tasks(tasks, subset=6)) if watch else None
    if evaluator:
        evaluator.update(model, 0, force=True)
    with scope() if autocast_all else contextlib.nullcontext():
        for task, (inputs, labels) in enumerate(tasks):
            for _ in range(3):
                for micro in range(accumulate):
                    rows = torch.randperm(len(labels))[:4]
                    with contextlib.nullcontext() if autocast_all else scope():
                        loss = cross_entropy(model(inputs[rows]), labels[rows])
                    loss.backward()
                    if between and micro < accumulate - 1:
                        assert between.update(model, task) is not None  # gradients wait in .grad
                optimizer.step()
                optimizer.zero_grad()
                if evaluator:
                    evaluator.update(model, task)
    draws = (torch.rand(3), random.random(), numpy_draw(), torch.rand(3, generator=model.generator))
    return model, draws, evaluator


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("autocast", ["none", "forward", "whole loop"])
def test_training_is_bit_identical(tasks, accumulate, autocast):
    def scope():
        if autocast == "none":
            return contextlib.nullcontext()
        return torch.autocast("cpu", dtype=torch.bfloat16)

    whole = autocast == "whole loop"
    alone, alone_draws, _ = train(tasks, False, scope, accumulate, whole)
    watched, watched_draws, evaluator = train(tasks, True, scope, accumulate, whole)
    for (name, wanted), found in zip(alone.state_dict().items(), watched.state_dict().values(), strict=True):
        assert torch.equal(wanted, found), name
    for wanted, found in zip(alone_draws, watched_draws, strict=True):
        np.testing.assert_array_equal(wanted, found)
    assert len(evaluator.trace().step) >= 9
    # It did train, and something would be lost otherwise.
    assert not torch.equal(alone.last.weight, Noisy().last.weight)


def test_the_same_loop_with_a_careless_watcher_differs(tasks):
    """The test above can fail: an ordinary evaluation leaves traces of each kind."""
    alone, _, _ = train(tasks, False)
    seed_all()
    model = Noisy().train()
    model.eval()(tasks[0][0])
    assert model.calls == 1
    assert torch.rand(1) != train(tasks, False)[1][0][0]
    assert alone.calls == 9


def test_each_submodule_gets_its_own_mode_back_even_after_an_error(tasks):
    model = nn.Sequential(nn.Linear(5, 4), nn.Dropout(), nn.Sequential(nn.BatchNorm1d(4)))
    model[2].eval()
    before = [module.training for module in model.modules()]
    modes = []

    def forward(model, inputs, task):
        modes.extend(module.training for module in model.modules())
        raise RuntimeError("broken")

    evaluator = ContinualEvaluator(EvalSet.from_tasks(tasks), forward=forward)
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="broken"):
        evaluator.update(model, 0)
    assert modes == [False] * len(before)
    assert [module.training for module in model.modules()] == before
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
    assert torch.is_autocast_cache_enabled()


def test_overridden_train_and_eval_are_not_called(tasks):
    class Merging(nn.Linear):
        def train(self, mode=True):
            raise AssertionError("merged into the weights")

    model = Merging(5, 4)
    ContinualEvaluator(EvalSet.from_tasks(tasks)).update(model, 0)
    assert model.training


def test_buffers_that_a_forward_replaces_come_back(tasks):
    class Counting(nn.Linear):
        def __init__(self):
            super().__init__(5, 4)
            self.register_buffer("mean", torch.zeros(4))

        def forward(self, inputs):
            self.mean = self.mean + 1
            return super().forward(inputs)

    model = Counting()
    kept = model.mean
    ContinualEvaluator(EvalSet.from_tasks(tasks)).update(model, 0)
    assert model.mean is kept
    assert (kept == 0).all()


def test_caches_made_while_watched_serve_training(tasks):
    """Under inference mode the cached mask would break the backward pass that follows."""

    class Caching(nn.Linear):
        mask = None

        def forward(self, inputs):
            if self.mask is None:
                self.mask = torch.ones(5) / 2
            return super().forward(inputs * self.mask)

    model = Caching(5, 4)
    inputs = tasks[0][0].clone().requires_grad_()
    ContinualEvaluator(EvalSet.from_tasks(tasks)).update(model, 0)
    model(inputs).sum().backward()
    assert model.weight.grad is not None


def test_autocasts_cache_neither_serves_training_nor_is_stale(tasks, model):
    """Casts that an evaluation leaves behind have no gradient; those that training left are of old weights."""

    def score(outputs, targets):
        return outputs[:, 0].float().sigmoid()

    evaluator = ContinualEvaluator(EvalSet.from_tasks(tasks), score=score)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        evaluator.update(model, 0)
        model(tasks[0][0]).float().sum().backward()
        assert model.weight.grad is not None
        with torch.no_grad():
            model.weight.add_(1.0)
        found = evaluator.update(model, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wanted = evaluator.update(model, 0)
    torch.testing.assert_close(found, wanted, equal_nan=True)


def test_a_model_built_in_inference_mode(tasks):
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4))
    assert ContinualEvaluator(EvalSet.from_tasks(tasks)).update(model, 0) is not None


def test_undisturbed_takes_any_object():
    before = torch.get_rng_state()
    with undisturbed(object()):
        torch.rand(3)
    assert torch.equal(before, torch.get_rng_state())


# --- Avalanche ----------------------------------------------------------------------------------------


class Strategy:
    """The order in which Avalanche calls its plugins; its own loop is tested below where it is installed."""

    def __init__(self, model, plugins):
        self.model, self.plugins = model, plugins
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def trigger(self, event):
        for plugin in self.plugins:
            if hasattr(plugin, event):
                getattr(plugin, event)(self)

    def train(self, number, data, epochs=2):
        self.experience = SimpleNamespace(current_experience=number)
        self.model.train()
        self.trigger("before_training")
        self.trigger("before_training_exp")
        for _ in range(epochs):
            self.trigger("before_training_epoch")
            inputs, labels = data
            for rows in torch.randperm(len(labels)).split(5):
                self.optimizer.zero_grad()
                cross_entropy(self.model(inputs[rows]), labels[rows]).backward()
                self.optimizer.step()
                self.trigger("after_update")
                self.trigger("after_training_iteration")
            self.trigger("after_training_epoch")
        self.trigger("after_training_exp")
        self.trigger("after_training")


def run_strategy(tasks, every=None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 4))
    plugins = []
    if every:
        plugins = [ContinualEvaluationPlugin(ContinualEvaluator(EvalSet.from_tasks(tasks), every=every))]
    strategy = Strategy(model, plugins)
    for number, data in enumerate(tasks):
        strategy.train(number, data)
    return model, plugins


def test_the_plugin_watches_every_iteration_and_the_end_of_every_epoch(tasks):
    alone, _ = run_strategy(tasks)
    watched, (plugin,) = run_strategy(tasks, every=1)
    for wanted, found in zip(alone.state_dict().values(), watched.state_dict().values(), strict=True):
        assert torch.equal(wanted, found)
    trace = plugin.evaluator.trace()
    # 7, 12 and 9 samples in batches of 5 are 2, 3 and 2 iterations, twice each.
    assert trace.step.tolist() == list(range(15))
    assert trace.current.tolist() == [-1] + [0] * 4 + [1] * 6 + [2] * 4
    _, (plugin,) = run_strategy(tasks, every=5)
    assert plugin.evaluator.trace().step.tolist() == [0, 2, 4, 5, 7, 10, 12, 14]


def test_the_plugin_takes_the_task_from_a_function(tasks):
    evaluator = ContinualEvaluator(EvalSet.from_tasks(tasks))
    plugin = ContinualEvaluationPlugin(evaluator, current_task=lambda strategy: strategy.now)
    plugin.after_training_iteration(SimpleNamespace(model=nn.Linear(5, 4), now=2))
    assert evaluator.trace().current.tolist() == [2]
    with pytest.raises(TypeError, match="evaluator must be a ContinualEvaluator, got Linear"):
        ContinualEvaluationPlugin(nn.Linear(1, 1))


@pytest.mark.filterwarnings("default")
def test_avalanche_itself(tasks):
    pytest.importorskip("avalanche.training.supervised")
    from avalanche.benchmarks.scenarios.supervised import class_incremental_benchmark
    from avalanche.benchmarks.utils import as_classification_dataset
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.supervised import Replay

    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 4
    inputs = torch.randn(40, 5, generator=generator) + 2 * labels[:, None]
    data = TensorDataset(inputs, labels)
    data.targets = labels.tolist()
    data = as_classification_dataset(data)
    states = []
    for watch in (False, True):
        seed_all()
        benchmark = class_incremental_benchmark(
            {"train": data, "test": data}, num_experiences=2, class_order=[0, 1, 2, 3]
        )
        model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 4))
        tests = [experience.dataset for experience in benchmark.test_stream]
        evaluator = ContinualEvaluator(EvalSet.from_tasks(tests), every=4)
        strategy = Replay(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
            criterion=nn.CrossEntropyLoss(),
            mem_size=8,
            train_mb_size=4,
            train_epochs=2,
            evaluator=EvaluationPlugin(),
            plugins=[ContinualEvaluationPlugin(evaluator)] if watch else [],
        )
        for experience in benchmark.train_stream:
            strategy.train(experience)
        states.append(model.state_dict())
    for name, wanted in states[0].items():
        assert torch.equal(wanted, states[1][name]), name
    trace = evaluator.trace()
    assert trace.step[:5].tolist() == [0, 4, 5, 8, 10]
    assert set(trace.current.tolist()) == {-1, 0, 1}


# --- Hugging Face -------------------------------------------------------------------------------------


def run_trainer(folder, tasks, watch, every=1):
    """A BERT of a few hundred weights with dropout, one trainer a task, two micro-batches an update."""
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

    from stabilitygap.huggingface import ContinualEvaluationCallback

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(vocab_size=20, num_labels=4, **sizes))
    evaluator = ContinualEvaluator(EvalSet.from_tasks(tasks, subset=5), every=every)
    for number, task in enumerate(tasks):
        arguments = TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            num_train_epochs=2,
            learning_rate=1e-2,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        )
        callbacks = [ContinualEvaluationCallback(evaluator, number)] if watch else []
        Trainer(model, arguments, train_dataset=task, callbacks=callbacks).train()
    return model, evaluator


def test_the_trainers_callback(tmp_path):
    pytest.importorskip("transformers")
    generator = torch.Generator().manual_seed(0)
    tasks = [
        [
            {
                "input_ids": torch.randint(20, (6,), generator=generator),
                "attention_mask": torch.tensor([1, 1, 1, 1, 1, 0]),
                "labels": torch.tensor(row % 4),
            }
            for row in range(8)
        ]
        for _ in range(2)
    ]
    alone, _ = run_trainer(tmp_path, tasks, False)
    watched, evaluator = run_trainer(tmp_path, tasks, True)
    for (name, wanted), found in zip(alone.state_dict().items(), watched.state_dict().values(), strict=True):
        assert torch.equal(wanted, found), name
    trace = evaluator.trace()
    # 8 samples in micro-batches of 2, two of them an update: 2 updates an epoch, 4 a task.
    assert trace.step.tolist() == list(range(9))
    assert trace.current.tolist() == [-1, 0, 0, 0, 0, 1, 1, 1, 1]
    _, thin = run_trainer(tmp_path, tasks, True, every=3)
    assert thin.trace().step.tolist() == [0, 2, 3, 4, 6, 8]


def test_the_callback_takes_the_task_from_the_trainers_state(tasks):
    pytest.importorskip("transformers")
    from stabilitygap.huggingface import ContinualEvaluationCallback

    evaluator = ContinualEvaluator(EvalSet.from_tasks(tasks))
    callback = ContinualEvaluationCallback(evaluator, lambda state: max(state.global_step - 1, 0) // 2)
    model = nn.Linear(5, 4)
    callback.on_train_begin(None, SimpleNamespace(global_step=0), None, model=model)
    for step in (1, 2, 3, 4):
        callback.on_step_end(None, SimpleNamespace(global_step=step), None, model=model)
    # The last update of an epoch is of the task that it learnt, and so is the epoch's end.
    callback.on_epoch_end(None, SimpleNamespace(global_step=4), None, model=model)
    assert evaluator.trace().current.tolist() == [-1, 0, 0, 1, 1]
    # A resumed trainer is not before its training.
    resumed = ContinualEvaluationCallback(ContinualEvaluator(EvalSet.from_tasks(tasks)))
    resumed.on_train_begin(None, SimpleNamespace(global_step=7), None, model=model)
    assert len(resumed.evaluator.trace().step) == 0
    with pytest.raises(TypeError, match="evaluator must be"):
        ContinualEvaluationCallback(model)
