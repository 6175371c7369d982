"""One of two ranks under torchrun: each function holds two ranks against one on the same global batch."""

import copy
import os

import torch
from torch import distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel


def shard(*tensors):
    """This rank's part of each tensor."""
    world, rank = distributed.get_world_size(), distributed.get_rank()
    return [tensor.chunk(world)[rank] for tensor in tensors]


def descend(model, loss):
    """One step of gradient descent."""
    model.zero_grad()
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.1 * parameter.grad


def assert_same_parameters(model, other):
    """Equal up to the order of summation."""
    for (name, mine), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, msg=lambda text, name=name: f"{name}: {text}")


def sortedft():
    """The sorted loss under DistributedDataParallel: as many supervised tokens on each rank."""
    from sortedft import sorted_loss

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.norm, self.head = nn.Embedding(11, 8), nn.LayerNorm(8), nn.Linear(8, 11)
            self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

        def forward(self, text):
            states = [self.embed(text)]
            for block in self.blocks:
                states.append(states[-1] + torch.tanh(block(states[-1])))
            options = {"norm": self.norm, "head": self.head, "exits": [1, 3], "last_is_normed": False}
            return sorted_loss(states, text, **options)

    alone = Model().double()
    wrapped = DistributedDataParallel(copy.deepcopy(alone))
    for text in torch.randint(11, (3, 8, 6)):
        descend(alone, alone(text))
        descend(wrapped, wrapped(*shard(text)))
    assert_same_parameters(wrapped.module, alone)


def ghostbn():
    """Ghost batches never cross a rank, so two ranks normalise as one does; the statistics are averaged after."""
    from ghostbn import average_running_stats, convert_ghost_bn

    plain = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).double()
    alone = convert_ghost_bn(plain, 8, grouping="contiguous")
    wrapped = DistributedDataParallel(copy.deepcopy(alone), broadcast_buffers=False)
    for x, y in zip(torch.randn(3, 32, 5).double(), torch.randint(3, (3, 32)), strict=True):
        descend(alone, F.cross_entropy(alone(x), y))
        mine, targets = shard(x, y)
        descend(wrapped, F.cross_entropy(wrapped(mine), targets))
    assert_same_parameters(wrapped.module, alone)
    average_running_stats(wrapped.module)
    ranks = [torch.empty_like(wrapped.module[1].running_mean) for _ in range(2)]
    distributed.all_gather(ranks, wrapped.module[1].running_mean)
    assert torch.equal(*ranks)


def gacil():
    """Each rank learns its shard, all_reduce joins them: the weight of one rank that saw everything."""
    from gacil import AnalyticClassifier

    alone, ours = (AnalyticClassifier(16, gamma=0.5, dtype=torch.float64) for _ in range(2))
    for x, y in zip(torch.randn(4, 20, 16).double(), torch.arange(80).view(4, 20) // 14, strict=True):
        alone.partial_fit(x, y)
        ours.partial_fit(*shard(x, y))
        ours.all_reduce()
        torch.testing.assert_close(ours.weight, alone.weight)


class JoinedAdam(torch.optim.Adam):
    """Adam on the mean of all ranks' gradients."""

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                distributed.all_reduce(parameter.grad)
                parameter.grad /= distributed.get_world_size()
        return super().step(closure)


class Certain(nn.Linear):
    """A transition generator without noise, so that it proposes the same to one rank as to two."""

    def forward(self, state_action):
        mean = super().forward(state_action)
        return mean, mean.new_full(mean.shape, -100.0)


def morec():
    """The trainer takes an optimizer that joins gradients; the reward scores each transition by itself."""
    from morec import DynamicsRewardTrainer

    def trainer(optimizer):
        generator, proposals = torch.Generator().manual_seed(0), Certain(4, 3)
        with torch.no_grad():
            proposals.weight.fill_(0.1)
            proposals.bias.zero_()
        options = {"snapshot_every": 2, "transition_generator": proposals, "generator": generator}
        return DynamicsRewardTrainer(3, 1, optimizer=optimizer, **options)

    alone, ours = trainer(torch.optim.Adam), trainer(JoinedAdam)
    obs, act = torch.randn(4, 32, 3), torch.randn(4, 32, 1)
    for batch in zip(obs, act, 0.9 * obs, strict=True):
        alone.step(batch)
        ours.step(shard(*batch))
    assert_same_parameters(ours.discriminator, alone.discriminator)
    assert_same_parameters(ours.transition_generator, alone.transition_generator)
    reward, whole = ours.export(), (obs[0], act[0], 0.9 * obs[0])
    ranks = [torch.empty(16) for _ in range(2)]
    distributed.all_gather(ranks, reward(*shard(*whole)))
    torch.testing.assert_close(torch.cat(ranks), alone.export()(*whole))


def neuralcollapse():
    """Each rank streams its shard, reduce_ddp joins them: the statistics of one rank that saw everything."""
    from neuralcollapse import StreamingStats, class_stats, nc1

    stream = StreamingStats(4, 5)
    features, labels = torch.randn(48, 5).double(), torch.arange(48) % 4
    for batch in zip(features.split(16), labels.split(16), strict=True):
        stream.update(*shard(*batch))
    found, expected = stream.reduce_ddp().compute(), class_stats(features, labels, 4)
    torch.testing.assert_close(found.mean, expected.mean)
    torch.testing.assert_close(found.within_cov, expected.within_cov)
    torch.testing.assert_close(nc1(found), nc1(expected))


def main():
    """Run every check; the first wrong number ends this rank, and torchrun the other."""
    distributed.init_process_group("gloo")
    store = distributed.PrefixStore("ranks", distributed.distributed_c10d._get_default_store())
    for check in (sortedft, ghostbn, gacil, morec, neuralcollapse):
        torch.manual_seed(0)  # the same global batch on every rank
        check()
        if distributed.get_rank() == 0:
            print(check.__name__, "equal", flush=True)
    # Not destroy_process_group: gloo may wait for ever, or abort, where both ranks close at once.
    store.set(f"rank {distributed.get_rank()} is done", "")
    store.wait(["rank 0 is done", "rank 1 is done"])
    os._exit(0)


if __name__ == "__main__":
    main()
