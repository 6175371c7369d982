"""Two gloo processes, one forked from the other: python ddp_worker.py PORT. A wrong number ends in an error."""

import os
import signal
import sys
import traceback
from datetime import timedelta

import torch
from torch import distributed, nn
from torch.nn import functional as F

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
    return model


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


def average_gradients(model):
    for parameter in model.parameters():
        distributed.all_reduce(parameter.grad)
        parameter.grad /= WORLD


def backward(model, x, y):
    F.cross_entropy(model(x), y).backward()
    average_gradients(model)


def accumulate(model, x, y):
    ghost_accumulate(model, F.cross_entropy, x, y, SIZE)
    average_gradients(model)


def main(port, rank):
    limit = timedelta(seconds=300)
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

    # Each rank normalises by its own ghost batches, gradients are those of all, statistics those of the rank.
    model = train(convert_ghost_bn(make_model(), SIZE, grouping="contiguous"), mine, backward)
    check(model, weights, per_rank[rank])
    average_running_stats(model)
    check(model, weights, averaged)

    # An unmodified model by accumulation: the same weights and statistics.
    check(train(make_model(), mine, accumulate), weights, per_rank[rank])
    # Not destroy_process_group: the gloo of torch 2.4 may wait for ever where both ranks close at once.
    store.set(f"rank {rank} is done", "")
    store.wait(["rank 0 is done", "rank 1 is done"])


if __name__ == "__main__":
    # Forked before torch has done anything, so that importing it is paid for once.
    child = os.fork()
    status = 1
    try:
        main(int(sys.argv[1]), rank=int(child == 0))
        status = 0
    except BaseException:
        traceback.print_exc()
    if child and status == 0:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    elif child:
        os.kill(child, signal.SIGKILL)
    os._exit(status)
