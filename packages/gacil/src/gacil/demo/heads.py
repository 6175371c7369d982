"""The rivals trained by gradients: linear heads, one step a batch, with and without stored samples."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gacil.demo.features import Data
from gacil.demo.streaming import Step, Trace, follow

_REPLAY_SIZE = 200
# name -> (optimizer, stored samples)
HEADS = {
    "online SGD head": ("SGD", 0),
    "online Adam head": ("Adam", 0),
    f"Adam head, {_REPLAY_SIZE} stored samples": ("Adam", _REPLAY_SIZE),
}
# Each head's learning rate is the best of these on the test set itself, which can only flatter it.
_LEARNING_RATES = {"SGD": (0.03, 0.3, 3.0, 30.0), "Adam": (1e-4, 1e-3, 1e-2, 1e-1)}


def trials(data: Data, steps: list[Step], name: str, num_learning_rates: int, seed: int) -> list[Trace]:
    """One run of a gradient-trained head per learning rate."""
    optimizer_name, replay_size = HEADS[name]
    rates = _LEARNING_RATES[optimizer_name][-num_learning_rates:]
    return [linear_head(data, steps, optimizer_name, rate, replay_size, seed) for rate in rates]


def linear_head(
    data: Data, steps: list[Step], optimizer_name: str, learning_rate: float, replay_size: int, seed: int
) -> Trace:
    """A linear head trained by one gradient step per batch, with as many stored samples beside new ones."""
    weight = data.train_x.new_zeros(data.train_x.shape[1], data.num_classes).requires_grad_()
    bias = data.train_x.new_zeros(data.num_classes).requires_grad_()
    optimizer = getattr(torch.optim, optimizer_name)([weight, bias], lr=learning_rate)
    reservoir = _Reservoir(replay_size, torch.Generator().manual_seed(seed))

    def learn(rows: Tensor) -> None:
        taken = torch.cat([rows, reservoir.sample(len(rows), rows)])
        loss = nn.functional.cross_entropy(data.train_x[taken] @ weight + bias, data.train_y[taken])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        reservoir.add(rows)

    def scores(x: Tensor) -> Tensor:
        return (x @ weight + bias).detach()

    return follow(data, steps, learn, scores)


class _Reservoir:
    """A uniform sample of everything seen (Vitter's algorithm R)."""

    def __init__(self, size: int, generator: torch.Generator) -> None:
        self.size, self.generator = size, generator
        self.kept: list[int] = []
        self.count = 0

    def add(self, rows: Tensor) -> None:
        for row in rows.tolist() if self.size else ():
            self.count += 1
            if len(self.kept) < self.size:
                self.kept.append(row)
                continue
            place = int(torch.randint(self.count, (), generator=self.generator))
            if place < self.size:
                self.kept[place] = row

    def sample(self, count: int, like: Tensor) -> Tensor:
        if not self.kept:
            return like[:0]
        chosen = torch.randint(len(self.kept), (count,), generator=self.generator).tolist()
        return torch.tensor([self.kept[index] for index in chosen], device=like.device)
