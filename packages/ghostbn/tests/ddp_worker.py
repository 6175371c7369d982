"""One of two gloo processes: python ddp_worker.py PORT RANK. Any wrong number ends it with an error."""

import os
import sys
from datetime import timedelta

import torch
from torch import distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from ghostbn import average_running_stats, convert_ghost_bn, ghost_accumulate

WORLD, SIZE, STEPS = 2, 4, 3
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def make_model():
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).double()
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=source, dtype=torch.float64))
    return model


def make_batches():
    """Per step, the samples of rank 0 and after them those of rank 1."""
    source = torch.Generator().manual_seed(2)
    inputs = torch.randn(STEPS, WORLD * 3 * SIZE, 5, generator=source, dtype=torch.float64)
    return list(zip(inputs, torch.randint(3, inputs.shape[:2], generator=source), strict=True))


def train(model, batches, backward):
    for x, y in batches:
        model.zero_grad()
        backward(model, x, y)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
    return getattr(model, "module", model)


def backward(model, x, y):
    F.cross_entropy(model(x), y).backward()


def reference(batches, ranks):
    """One process, plain batch norm, one ghost batch after another; the statistics see those of `ranks` alone."""
    model, kept = make_model(), nn.BatchNorm1d(6).double()

    def by_ghost_batch(model, x, y):
        num = len(x) // SIZE
        for index, (inputs, targets) in enumerate(zip(x.split(SIZE), y.split(SIZE), strict=True)):
            hidden = model[0](inputs)
            if index * WORLD // num in ranks:
                kept(hidden.detach())
            (F.cross_entropy(model[1:](hidden), targets) / num).backward()

    return train(model, batches, by_ghost_batch), kept


def check(ours, weights, statistics):
    for name, value in weights.named_parameters():
        torch.testing.assert_close(
            ours.get_parameter(name), value, msg=lambda text, name=name: f"{name}: {text}"
        )
    for name in BUFFERS:
        torch.testing.assert_close(
            getattr(ours[1], name), statistics[name], msg=lambda text, name=name: f"{name}: {text}"
        )


def main(port, rank):
    limit = timedelta(seconds=60)
    store = distributed.TCPStore("127.0.0.1", port, timeout=limit)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=WORLD, timeout=limit)
    batches = make_batches()
    mine = [(x.chunk(WORLD)[rank], y.chunk(WORLD)[rank]) for x, y in batches]
    per_rank = []
    for one in range(WORLD):
        weights, kept = reference(batches, {one})
        per_rank.append(kept.state_dict())
    averaged = {name: (per_rank[0][name] + per_rank[1][name]) / 2 for name in BUFFERS}
    averaged["num_batches_tracked"] = per_rank[0]["num_batches_tracked"]

    def ghosts(**options):
        model = convert_ghost_bn(make_model(), SIZE, grouping="contiguous")
        return DistributedDataParallel(model, **options)

    # Each rank normalises by its own ghost batches, gradients are those of all, statistics those of the rank.
    model = train(ghosts(broadcast_buffers=False), mine, backward)
    check(model, weights, per_rank[rank])
    average_running_stats(model)
    check(model, weights, averaged)

    # Broadcast, DDP's default: rank 0's statistics are rank 0's own, and all ranks start each step from them.
    wrapped = ghosts()
    model = train(wrapped, mine, backward)
    if rank == 0:
        check(model, weights, per_rank[0])
    model.eval()
    wrapped.train()
    wrapped(mine[0][0])  # the buffers travel with the forward pass
    counts = [torch.zeros_like(model[1].num_batches_tracked) for _ in range(WORLD)]
    distributed.all_gather(counts, model[1].num_batches_tracked)
    assert [int(count) for count in counts] == [3 * (STEPS + 1)] * WORLD

    # An unmodified model by accumulation: the same weights, gradients reduced once.
    def accumulate(model, x, y):
        ghost_accumulate(model, F.cross_entropy, x, y, SIZE)

    wrapped = DistributedDataParallel(make_model(), broadcast_buffers=False)
    reductions = []

    def count_reductions(state, bucket):
        reductions.append(bucket.index())
        future = distributed.all_reduce(bucket.buffer().div_(WORLD), async_op=True).get_future()
        return future.then(lambda done: done.value()[0])

    wrapped.register_comm_hook(None, count_reductions)
    model = train(wrapped, mine, accumulate)
    check(model, weights, per_rank[rank])
    assert reductions == [0] * STEPS, reductions
    # Not destroy_process_group: the gloo of torch 2.4 may wait for ever where both ranks close at once.
    store.set(f"rank {rank} is done", "")
    store.wait(["rank 0 is done", "rank 1 is done"])
    os._exit(0)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
