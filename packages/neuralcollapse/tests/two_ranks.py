"""Two ranks with half of the loader each report what one process with all of it does; run by test_distributed.py."""

import os
import signal
import sys
import traceback
import warnings
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

from neuralcollapse import NCMeter, StreamingStats, class_stats, nc1

K, D = 4, 6
LIMIT = timedelta(seconds=300)


def problem(counts=(9, 9, 9, 9)):
    generator = torch.Generator().manual_seed(0)
    labels = torch.repeat_interleave(torch.arange(K), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    means = 100 + torch.randn(K, D, generator=generator, dtype=torch.float64)
    return means[labels] + torch.randn(len(labels), D, generator=generator, dtype=torch.float64), labels


# pytest and torch.testing would cost these processes more than all that they check.


def close(found, expected, tolerance=1e-10):
    found, expected = torch.as_tensor(found).double(), torch.as_tensor(expected).double()
    assert found.shape == expected.shape, (found.shape, expected.shape)
    assert torch.allclose(found, expected, rtol=tolerance, atol=tolerance), (found, expected)


@contextmanager
def refused(message):
    try:
        yield
    except ValueError as error:
        if message not in str(error):
            raise
    else:
        raise AssertionError(f"nothing was refused with {message!r}")


def check_streams(rank):
    """In one pass and in two; after more samples; a sum once reduced is not counted again."""
    features, labels = problem((5, 7, 9, 11))
    count = torch.bincount(labels)
    expected = class_stats(features, labels, K)
    stream = StreamingStats(K, D, class_counts=count)
    for rows in torch.arange(len(labels))[rank::2].split(4):
        stream.update(features[rows], labels[rows])
        stream.reduce_ddp()
    total = stream.reduce_ddp()
    for name in ("mean", "count", "within_trace", "classes", "within_cov"):
        close(getattr(total.compute(), name), getattr(expected, name))
    assert int(stream.count.sum()) == len(labels) // 2

    second = total.second_pass()
    second.update(features[rank::2], labels[rank::2])
    close(nc1(second.reduce_ddp().compute()), nc1(expected))
    other = total.second_pass()  # other samples on one rank are heard of on both
    other.update(features[rank::2] + rank * torch.randn(len(labels) // 2, D), labels[rank::2])
    with refused("got others in the classes"):
        other.reduce_ddp().compute()
    with refused("the second pass must see the samples of the first"):
        second.compute()  # this rank's half alone


def check_classes_of_one_rank(rank):
    """Rank 0 has seen the first two classes, rank 1 the others."""
    features, labels = problem()
    mine = (labels >= 2) == bool(rank)
    stream = StreamingStats(K, D)
    stream.update(features[mine], labels[mine])
    found, expected = stream.reduce_ddp().compute(), class_stats(features, labels, K)
    close(found.mean, expected.mean)
    close(found.within_cov, expected.within_cov)


def check_meter(rank):
    """Reports are those of one process, though this one's loader is half as long, or has nothing at all."""
    features, labels = problem((5, 7, 9, 11))
    features = features - 100
    model = nn.Sequential(nn.Linear(D, 5), nn.ReLU(), nn.Linear(5, K)).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    meter = NCMeter(model, ["0"], head="2")
    alone = meter.run([(features, labels)], reduce=False)
    halves = [(features[rank::2], labels[rank::2])]
    everything = [(features, labels)] if rank == 1 else []
    for share in (halves, everything):
        check_reports(meter.run(share), alone)
        with meter:
            for inputs, targets in share:
                model(inputs)
                meter.update(targets)
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            close(meter.report()["2"].nc2, alone["2"].nc2, 1e-8)
        assert any("unequal size" in str(warning.message) for warning in heard)
        meter.reset()
    with refused("must have seen a batch"):
        meter.run([])


def check_reports(found, expected):
    assert found.keys() == expected.keys()
    for name, report in found.items():
        for metric, value in expected[name].to_dict().items():
            if value is None:
                assert getattr(report, metric) is None, metric
            else:
                close(getattr(report, metric), value, 1e-8)
        assert report.disagreements.tolist() == expected[name].disagreements.tolist()


def check_disagreement(rank):
    """Every rank hears of it, or the others would wait for ever."""
    with refused("of all ranks must have the same dim"):
        StreamingStats(K, D + rank).reduce_ddp()
    with refused("of all ranks must have the same class_counts"):
        StreamingStats(K, D, class_counts=torch.full((K,), 5 + rank)).reduce_ddp()


def main(port, rank):
    store = dist.TCPStore("127.0.0.1", port, timeout=LIMIT)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=LIMIT)
    check_streams(rank)
    check_classes_of_one_rank(rank)
    check_meter(rank)
    check_disagreement(rank)
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
