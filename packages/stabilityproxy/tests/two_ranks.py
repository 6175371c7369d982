"""One of two gloo processes: python two_ranks.py PORT RANK. A wrong number ends in an error."""

import os
import sys
from datetime import timedelta

import torch
from torch import distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from stabilityproxy import StabilityProbe, adam_statistics

LIMIT = timedelta(minutes=4)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24, bias=False)  # a bias on keys has no gradient but noise

    def forward(self, x):
        query, key, value = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).flatten(2)


def make_model():
    model = nn.Sequential(nn.Embedding(7, 8), Attention(), nn.Linear(8, 7))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def step(model, optimizer, ids):
    F.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
    optimizer.step()


def check_data_parallel(rank):
    """Each rank reads of both what one process reads of the whole batch."""
    ids = torch.randint(7, (6, 5), generator=torch.Generator().manual_seed(1))
    whole = make_model()
    optimizer = torch.optim.AdamW(whole.parameters())
    with StabilityProbe(whole, optimizer, reduce=False) as expected:
        step(whole, optimizer, ids)
    model = DistributedDataParallel(make_model())
    optimizer = torch.optim.AdamW(model.parameters())
    mine = ids.chunk(2)[rank]
    with StabilityProbe(model, optimizer) as probe:
        step(model, optimizer, mine)
    with StabilityProbe(make_model(), reduce=False) as alone:
        alone.model(mine)
    ours, theirs = probe.read().as_dict(), expected.read().as_dict()
    assert ours.keys() == theirs.keys(), (ours.keys(), theirs.keys())
    for name, value in theirs.items():
        assert abs(ours[name] - value) <= 1e-4 * abs(value), (name, ours[name], value)
    # What a rank would say alone is something else, at least of the mean.
    assert abs(alone.read().log_z - ours["log_z"]) > 1e-3


def check_spread_tensors():
    """Optimizer states that are spread over the ranks count whole."""
    try:
        from torch.distributed.tensor import DTensor, Shard, distribute_tensor, init_device_mesh
    except ImportError:  # torch below 2.5
        return
    mesh = init_device_mesh("cpu", (2,))
    values = torch.linspace(-1, 2, 10).view(5, 2)
    found = []
    for make in (torch.clone, lambda tensor: distribute_tensor(tensor.clone(), mesh, [Shard(0)])):
        parameter = nn.Parameter(make(values))
        optimizer = torch.optim.AdamW([parameter], eps=0.3, foreach=False)
        parameter.grad = make(values * 0.1)
        optimizer.step()
        found.append(adam_statistics(optimizer))
    assert isinstance(optimizer.state[parameter]["exp_avg"], DTensor)
    torch.testing.assert_close(found[0].update_rms, found[1].update_rms)
    torch.testing.assert_close(found[0].eps_ratio, found[1].eps_ratio)


def main(port, rank):
    store = distributed.TCPStore("127.0.0.1", port, timeout=LIMIT)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=LIMIT)
    check_data_parallel(rank)
    check_spread_tensors()
    # Not destroy_process_group: the gloo of torch 2.4 may wait for ever where both ranks close at once.
    store.set(f"rank {rank} is done", "")
    store.wait(["rank 0 is done", "rank 1 is done"])
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
