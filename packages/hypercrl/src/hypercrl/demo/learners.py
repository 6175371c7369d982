"""The learners: one interface, the same batches, the same number of updates."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from hypercrl import (
    EWC,
    ChunkedHyperNetwork,
    Coreset,
    DynamicsModel,
    HyperNetwork,
    OutputRegularizer,
    SynapticIntelligence,
    continual_step,
    diagonal_fisher,
)
from hypercrl.demo.tasks import Task, Transitions

Weights = dict[str, Tensor]
CLIP = 5.0


@dataclass(frozen=True)
class Setting:
    """What decides a learner besides its name: learning rate, strength of what holds old tasks, look-ahead."""

    learner: str
    learning_rate: float
    strength: float = 0.0
    lookahead: bool = True


@dataclass(frozen=True)
class Sizes:
    """What a preset spends."""

    hidden: tuple[int, ...]
    hyper_hidden: tuple[int, ...]
    chunk: tuple[int, int, tuple[int, ...]]
    iterations: int
    batch: int
    coreset: int


class Learner:
    """A hypernetwork or a plain network that learns the tasks one after another."""

    def __init__(
        self, setting: Setting, model: DynamicsModel, sizes: Sizes, generator: torch.Generator, device: str
    ) -> None:
        self.setting, self.model, self.sizes, self.generator = setting, model, sizes, generator
        self.device, self.bytes = device, 0

    def start(self, task_id: int, data: Transitions) -> None:
        """Prepare for a task."""
        raise NotImplementedError

    def step(self, task_id: int, rows: tuple[Tensor, Tensor, Tensor]) -> None:
        """Learn from a batch."""
        raise NotImplementedError

    def end(self, task_id: int, data: Transitions) -> None:
        """Keep what the learner keeps of a task."""

    def weights(self, task_ids: Sequence[int]) -> Weights:
        """Return the network's weights for several tasks, stacked."""
        raise NotImplementedError

    @property
    def num_parameters(self) -> int:
        """Trained numbers."""
        raise NotImplementedError


class Hyper(Learner):
    """HyperCRL, and with strength 0 plain fine-tuning of the hypernetwork."""

    def __init__(
        self, setting: Setting, model: DynamicsModel, sizes: Sizes, generator: torch.Generator, device: str
    ) -> None:
        super().__init__(setting, model, sizes, generator, device)
        self.hnet: HyperNetwork
        if setting.learner == "chunked":
            size, dim, hidden = sizes.chunk
            self.hnet = ChunkedHyperNetwork(model.network, size, dim, hidden=hidden, generator=generator)
        else:
            self.hnet = HyperNetwork(model.network, hidden=sizes.hyper_hidden, generator=generator)

    def start(self, task_id: int, data: Transitions) -> None:
        """Add the task, pin the old ones, and make new optimizers."""
        assert self.hnet.add_task(self.generator) == task_id
        self.regularizer = OutputRegularizer(
            self.hnet, task_id, beta=self.setting.strength, lookahead=self.setting.lookahead
        )
        self.bytes = self.regularizer.num_bytes if self.setting.strength else 0
        rate = self.setting.learning_rate
        self.optimizer = torch.optim.Adam(self.hnet.theta(), rate, fused=True)
        self.embedding_optimizer = torch.optim.Adam([self.hnet.embedding(task_id)], rate, fused=True)

    def step(self, task_id: int, rows: tuple[Tensor, Tensor, Tensor]) -> None:
        """Take the paper's step."""
        continual_step(
            self.hnet, task_id, lambda w: self.model.loss(w, task_id, *rows), self.optimizer,
            self.embedding_optimizer, self.regularizer,
            batch_size=len(rows[0]), clip=CLIP, check_finite=False,
        )  # fmt: skip

    def weights(self, task_ids: Sequence[int]) -> Weights:
        """Generate the weights of several tasks at once."""
        with torch.no_grad():
            return self.hnet(torch.stack([self.hnet.embedding(task) for task in task_ids]))

    @property
    def num_parameters(self) -> int:
        """Trained numbers."""
        return sum(value.numel() for value in self.hnet.parameters())


class Replay(Hyper):
    """The same hypernetwork without regulariser, on new and old data: a coreset, or everything."""

    def start(self, task_id: int, data: Transitions) -> None:
        """Add the task; old data were kept."""
        super().start(task_id, data)
        if task_id == 0:
            everything = self.setting.learner == "multitask"
            self.store = Coreset(len(data) if everything else self.sizes.coreset)
        self.bytes = self.store.num_bytes

    def step(self, task_id: int, rows: tuple[Tensor, Tensor, Tensor]) -> None:
        """Learn from the batch, and from one as large of each old task."""
        for optimizer in (self.optimizer, self.embedding_optimizer):
            optimizer.zero_grad()
        order, (state, action, after) = (
            [task_id, *range(task_id)],
            _with_old(self.store, rows, self.generator),
        )
        weights = self.hnet(torch.stack([self.hnet.embedding(task) for task in order]))
        off = stacked_outputs(self.model, weights, order, state, action) - (after - state)
        (off.square().sum() / off.shape[-1]).backward()
        nn.utils.clip_grad_norm_([self.hnet.embedding(task_id)], CLIP)
        nn.utils.clip_grad_norm_(self.hnet.theta(), CLIP)
        for optimizer in (self.optimizer, self.embedding_optimizer):
            optimizer.step()

    def end(self, task_id: int, data: Transitions) -> None:
        """Keep random transitions."""
        self.store.add_task(data.state, data.action, data.next_state, generator=self.generator)


class MultiHead(nn.Module):
    """A trunk for all tasks and an output layer for each, in the shapes of the target network."""

    def __init__(self, network: nn.Module, generator: torch.Generator) -> None:
        super().__init__()
        self.names = [name for name, _ in network.named_parameters()]
        fresh = _fresh(network, generator)
        self.trunk = nn.ParameterList(fresh[name] for name in self.names[:-2])
        self.heads = nn.ParameterList()

    def add_task(self, network: nn.Module, generator: torch.Generator) -> None:
        """Add an output layer."""
        fresh = _fresh(network, generator)
        for name in self.names[-2:]:
            self.heads.append(nn.Parameter(fresh[name]))

    def weights(self, task_id: int) -> Weights:
        """Return the network's weights for a task."""
        values = [*self.trunk, *self.heads[2 * task_id : 2 * task_id + 2]]
        return dict(zip(self.names, values, strict=True))


class Plain(Learner):
    """A plain network: with a head for each task, fine-tuned or held by EWC or SI; with one; or made for each task."""

    def start(self, task_id: int, data: Transitions) -> None:
        """Add an output layer, or for `single` a network."""
        if task_id == 0:
            self.nets: list[MultiHead] = []
        if task_id == 0 or self.setting.learner == "single":
            self.nets.append(MultiHead(self.model.network, self.generator).to(self.device))
        net = self.nets[-1]
        if task_id == 0 or self.setting.learner != "one network":
            net.add_task(self.model.network, self.generator)
            net.to(self.device)
        if self.setting.learner in ("EWC", "SI") and task_id == 0:
            # Output layers are not shared: only the trunk can forget.
            kind = EWC if self.setting.learner == "EWC" else SynapticIntelligence
            self.penalty: EWC | SynapticIntelligence = kind(net.trunk, self.setting.strength)
            self.bytes = sum(value.numel() * value.element_size() for value in self.penalty.buffers())
        self.optimizer = torch.optim.Adam(net.parameters(), self.setting.learning_rate, fused=True)

    def step(self, task_id: int, rows: tuple[Tensor, Tensor, Tensor]) -> None:
        """Learn from the mean loss of a batch, and the penalty."""
        self.optimizer.zero_grad()
        loss = self.model.loss(self._of(task_id), task_id, *rows) / len(rows[0])
        held = self._held()
        if isinstance(held, SynapticIntelligence):
            held.observe(loss)
        if task_id and held is not None:
            loss = loss + held.penalty()
        loss.backward()
        nn.utils.clip_grad_norm_(self.nets[-1].parameters(), CLIP)
        self.optimizer.step()

    def end(self, task_id: int, data: Transitions) -> None:
        """Measure what mattered to the task."""
        held = self._held()
        if isinstance(held, SynapticIntelligence):
            held.end_task()
        elif isinstance(held, EWC):
            net, names = self.nets[-1], self.nets[-1].names[:-2]
            fixed = {name: value.detach() for name, value in self._of(task_id).items()}
            inputs = self.model.normalizer(task_id, self.model._features(data.state, data.action))

            def loss(trunk: Weights, x: Tensor, change: Tensor) -> Tensor:
                weights = fixed | dict(zip(names, trunk.values(), strict=True))
                return 0.5 * (functional_call(self.model.network, weights, (x,)) - change).square().sum()

            trunk = dict(net.trunk.named_parameters())
            held.consolidate(
                diagonal_fisher(loss, trunk, (inputs, data.next_state - data.state), chunk_size=200)
            )

    def _held(self) -> EWC | SynapticIntelligence | None:
        return getattr(self, "penalty", None)

    def _of(self, task_id: int) -> Weights:
        net = self.nets[task_id if self.setting.learner == "single" else 0]
        return net.weights(0 if self.setting.learner in ("single", "one network") else task_id)

    def weights(self, task_ids: Sequence[int]) -> Weights:
        """Stack the weights of several tasks."""
        found = [self._of(task) for task in task_ids]
        return {name: torch.stack([one[name].detach() for one in found]) for name in found[0]}

    @property
    def num_parameters(self) -> int:
        """Trained numbers."""
        return sum(value.numel() for net in self.nets for value in net.parameters())


class PlainReplay(Plain):
    """A plain network with a head for each task, on new data and a coreset of old."""

    def start(self, task_id: int, data: Transitions) -> None:
        """Add an output layer; old data were kept."""
        super().start(task_id, data)
        if task_id == 0:
            self.store = Coreset(self.sizes.coreset)
        self.bytes = self.store.num_bytes

    def step(self, task_id: int, rows: tuple[Tensor, Tensor, Tensor]) -> None:
        """Learn from the batch, and from one as large of each old task."""
        self.optimizer.zero_grad()
        order, (state, action, after) = (
            [task_id, *range(task_id)],
            _with_old(self.store, rows, self.generator),
        )
        parts = [self._of(task) for task in order]
        weights = {name: torch.stack([one[name] for one in parts]) for name in parts[0]}
        off = stacked_outputs(self.model, weights, order, state, action) - (after - state)
        (off.square().sum() / (off.shape[-1] * len(rows[0]))).backward()
        nn.utils.clip_grad_norm_(self.nets[-1].parameters(), CLIP)
        self.optimizer.step()

    def end(self, task_id: int, data: Transitions) -> None:
        """Keep random transitions."""
        self.store.add_task(data.state, data.action, data.next_state, generator=self.generator)


def _with_old(
    store: Coreset, rows: tuple[Tensor, Tensor, Tensor], generator: torch.Generator
) -> list[Tensor]:
    """Return a batch of the new task and one as large of each old task, stacked."""
    batch = [value[None] for value in rows]
    if not store.num_tasks:
        return batch
    old = store.sample(len(rows[0]), generator)
    return [torch.cat([new, kept]) for new, kept in zip(batch, old, strict=True)]


def make_learner(
    setting: Setting, model: DynamicsModel, sizes: Sizes, generator: torch.Generator, device: str
) -> Learner:
    """Make a learner by its name."""
    kinds: dict[str, type[Learner]] = {"coreset": Replay, "multitask": Replay, "plain coreset": PlainReplay}
    kinds |= dict.fromkeys(("single", "EWC", "SI", "plain fine-tuning", "one network"), Plain)
    return kinds.get(setting.learner, Hyper)(setting, model, sizes, generator, device)


def make_model(tasks: Sequence[Task], angles: tuple[int, ...], hidden: tuple[int, ...]) -> DynamicsModel:
    """Make the target network, and normalise each task's inputs by its own training data."""
    state, action = tasks[0].train.state, tasks[0].train.action
    inputs = state.shape[1] + len(angles) + action.shape[1]
    widths, layers = [inputs, *hidden], []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.Tanh()]
    network = nn.Sequential(*layers, nn.Linear(widths[-1], state.shape[1]))
    model = DynamicsModel(network, state.shape[1], action.shape[1], angles).to(state.device)
    for task in tasks:
        model.observe(model.add_task(), task.train.state, task.train.action)
    return model


def stacked_outputs(
    model: DynamicsModel, weights: Weights, task_ids: Sequence[int], state: Tensor, action: Tensor
) -> Tensor:
    """Return predicted changes of (tasks, n) transitions, each task by its own weights, in one call."""
    mean = model.normalizer.mean[list(task_ids), None].to(state)
    std = torch.stack([model.normalizer.std(task) for task in task_ids])[:, None].to(state)
    inputs = (model._features(state, action) - mean) / std
    return vmap(lambda w, x: functional_call(model.network, w, (x,)))(weights, inputs)


def _fresh(network: nn.Module, generator: torch.Generator) -> Weights:
    """Return new values for a network's parameters, as `torch.nn.Linear` draws them."""
    values: Weights = {}
    for name, value in network.named_parameters():
        bound = (value.shape[1] if value.ndim > 1 else bound_of_last(values)) ** -0.5
        values[name] = (2 * torch.rand(value.shape, generator=generator) - 1) * bound
    return values


def bound_of_last(values: Weights) -> int:
    """Return the fan-in of the matrix before a bias."""
    return list(values.values())[-1].shape[1]
