"""Many small networks trained at once on the same batches, end to end or layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from neuralcollapse.demo.arms import Arm, Trace, matched_arm
from neuralcollapse.demo.data import Data
from neuralcollapse.statistics import class_stats


@dataclass(frozen=True)
class Training:
    """Stochastic gradient descent with momentum on the squared loss."""

    num_epochs: int
    batch_size: int = 100
    learning_rate: float = 0.05
    weight_decay: float = 5e-4
    # Shares of the epochs after which the learning rate falls to a tenth.
    drops: tuple[float, ...] = (0.5, 0.75)
    num_looks: int = 10

    @property
    def milestones(self) -> list[int]:
        """Epochs after which the learning rate falls to a tenth."""
        return [int(self.num_epochs * share) for share in self.drops]

    def is_look(self, epoch: int) -> bool:
        """Whether to measure after this epoch, counted from 1."""
        return epoch == self.num_epochs or epoch % max(1, self.num_epochs // self.num_looks) == 0


class Perceptrons:
    """`len(decay)` perceptrons of the same shape, as batched matrices; no bias in the head."""

    def __init__(self, sizes: list[int], num_classes: int, initial: list[Tensor], num_networks: int) -> None:
        weights = [*pairwise(sizes), (sizes[-1], num_classes)]
        assert len(initial) == len(weights)
        self.layers = [tensor.expand(num_networks, -1, -1).clone() for tensor in initial[:-1]]
        self.biases = [weight.new_zeros(num_networks, 1, weight.shape[2]) for weight in self.layers]
        self.head = initial[-1].expand(num_networks, -1, -1).clone()
        for parameter in self.parameters():
            parameter.requires_grad_()

    def parameters(self) -> list[Tensor]:
        """Feature layers, their biases, then the head."""
        return [*self.layers, *self.biases, self.head]

    def features(self, x: Tensor) -> Tensor:
        """What enters the heads, `[M, B, d]`, of inputs `[B, D]`."""
        hidden = x.expand(self.head.shape[0], -1, -1)
        for weight, bias in zip(self.layers, self.biases, strict=True):
            hidden = torch.baddbmm(bias, hidden, weight).relu()
        return hidden


def initial_weights(sizes: list[int], num_classes: int, generator: torch.Generator) -> list[Tensor]:
    """He's initialisation of each layer, and a head of unit gain."""
    shapes = [*pairwise(sizes), (sizes[-1], num_classes)]
    gains = [2.0] * (len(sizes) - 1) + [1.0]
    return [
        torch.randn(1, *shape, generator=generator) * (gain / shape[0]) ** 0.5
        for shape, gain in zip(shapes, gains, strict=True)
    ]


def train(
    networks: Perceptrons,
    x: Tensor,
    y: Tensor,
    decay: tuple[Tensor, Tensor],
    training: Training,
    generator: torch.Generator,
    after_epoch: Callable[[int], None],
) -> None:
    """Train all networks on the same batches; `decay` `[M]` of feature layers and head.

    Torch's optimizers know one weight decay for a tensor, and here each network of a tensor has its own.
    """
    parameters = networks.parameters()
    decays = [decay[1 if parameter is networks.head else 0][:, None, None] for parameter in parameters]
    momenta = [torch.zeros_like(parameter) for parameter in parameters]
    targets = one_hot(y).to(x.dtype)
    rate = training.learning_rate
    for epoch in range(1, training.num_epochs + 1):
        for rows in torch.randperm(len(x), generator=generator).to(x.device).split(training.batch_size):
            outputs = networks.features(x[rows]) @ networks.head
            loss = (outputs - targets[rows]).square().sum(2).mean(1).sum() / 2
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for parameter, gradient, strength, momentum in zip(
                    parameters, gradients, decays, momenta, strict=True
                ):
                    momentum.mul_(0.9).add_(gradient + strength * parameter)
                    parameter.sub_(momentum, alpha=rate)
        rate *= 0.1 ** training.milestones.count(epoch)
        after_epoch(epoch)


def train_arms(
    data: Data,
    sizes: list[int],
    arms: list[Arm],
    num_replicas: int,
    training: Training,
    generator: torch.Generator,
    report: Callable[[float, str], None],
) -> list[dict[Arm, Trace]]:
    """One network per arm and replica; the arms of a replica start from the same weights and see the same batches.

    The arm of equal penalty comes last: how much less that is, the baseline's end tells.
    """
    replicas = []
    for replica in range(num_replicas):
        initial = [
            tensor.to(data.train_x.device) for tensor in initial_weights(sizes, data.num_classes, generator)
        ]
        state = generator.get_state()

        def report_part(start: float, span: float, replica: int = replica) -> Callable[[float], None]:
            return lambda done: report((replica + start + span * done) / num_replicas, "weight decay")

        traces = _train_together(data, sizes, arms, initial, training, generator, report_part(0.0, 0.8))
        generator.set_state(state)
        last = [matched_arm(traces[0])]
        traces += _train_together(data, sizes, last, initial, training, generator, report_part(0.8, 0.2))
        replicas.append(dict(zip([*arms, *last], traces, strict=True)))
    return replicas


def _train_together(
    data: Data,
    sizes: list[int],
    arms: list[Arm],
    initial: list[Tensor],
    training: Training,
    generator: torch.Generator,
    report: Callable[[float], None],
) -> list[Trace]:
    networks = Perceptrons(sizes, data.num_classes, initial, len(arms))
    decay_features, decay_head = (
        torch.tensor([training.weight_decay * factor for factor in factors], device=data.train_x.device)
        for factors in ([arm.features for arm in arms], [arm.head for arm in arms])
    )
    traces = [Trace() for _ in arms]

    def after_epoch(epoch: int) -> None:
        if training.is_look(epoch):
            _look(networks, data, traces, epoch)
        report(epoch / training.num_epochs)

    train(
        networks, data.train_x, data.train_y, (decay_features, decay_head), training, generator, after_epoch
    )
    return traces


@torch.no_grad()
def _look(networks: Perceptrons, data: Data, traces: list[Trace], epoch: int) -> None:
    features = networks.features(data.train_x)
    fitted = (features @ networks.head).argmax(2) == data.train_y
    tested = (networks.features(data.test_x) @ networks.head).argmax(2) == data.test_y
    for index, trace in enumerate(traces):
        stats = class_stats(features[index].double(), data.train_y, data.num_classes)
        trace.look(epoch, stats, networks.head[index].mT.double())
        trace.train_accuracy = 100 * float(fitted[index].double().mean())
        trace.test_accuracy = 100 * float(tested[index].double().mean())
        trace.head_norm = float(networks.head[index].square().sum())
        trace.features_norm = sum(
            float(parameter[index].square().sum()) for parameter in networks.parameters()[:-1]
        )


def train_layer_by_layer(
    data: Data,
    width: int,
    depth: int,
    training: Training,
    generator: torch.Generator,
    report: Callable[[float, str], None],
) -> tuple[list[Tensor], list[float]]:
    """Add one layer at a time, trained with a head of its own on the frozen ones before.

    Returns:
        The features `[N, width]` of each layer on the training set, and its training accuracy (%).
    """
    device = data.train_x.device
    inputs, features, accuracy = data.train_x, [], []
    decay = torch.tensor([training.weight_decay], device=device)
    for layer in range(depth):
        sizes = [inputs.shape[1], width]
        initial = [tensor.to(device) for tensor in initial_weights(sizes, data.num_classes, generator)]
        network = Perceptrons(sizes, data.num_classes, initial, 1)

        def after_epoch(epoch: int, layer: int = layer) -> None:
            done = (layer + epoch / training.num_epochs) / depth
            report(done, f"layer {layer + 1}, epoch {epoch}")

        train(network, inputs, data.train_y, (decay, decay), training, generator, after_epoch)
        with torch.no_grad():
            inputs = network.features(inputs)[0]
            right = (inputs @ network.head[0]).argmax(1) == data.train_y
        features.append(inputs)
        accuracy.append(100 * float(right.double().mean()))
    return features, accuracy
