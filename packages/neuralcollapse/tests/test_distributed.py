"""Two processes with half of the loader each report what one process with all of it does."""

import os
import subprocess
import sys
from dataclasses import fields
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from neuralcollapse import NCMeter, StreamingStats, class_stats, nc1

K, D = 4, 6
LIMIT = timedelta(seconds=100)
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


def problem(counts=(9, 9, 9, 9)):
    generator = torch.Generator().manual_seed(0)
    labels = torch.repeat_interleave(torch.arange(K), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    means = 100 + torch.randn(K, D, generator=generator, dtype=torch.float64)
    return means[labels] + torch.randn(len(labels), D, generator=generator, dtype=torch.float64), labels


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


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
    with pytest.raises(ValueError, match="the second pass must see the samples of the first"):
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
        with pytest.warns(UserWarning, match="unequal size"):
            assert meter.report()["2"].nc2 == pytest.approx(alone["2"].nc2)
        meter.reset()
    with pytest.raises(ValueError, match="must have seen a batch"):
        meter.run([])


def check_reports(found, expected):
    assert found.keys() == expected.keys()
    for name, report in found.items():
        for metric in (field.name for field in fields(report) if field.name != "stats"):
            value = getattr(expected[name], metric)
            assert getattr(report, metric) == (None if value is None else pytest.approx(value, rel=1e-8)), (
                metric
            )


def check_disagreement(rank):
    """Every rank hears of it, or the others would wait for ever."""
    with pytest.raises(ValueError, match="of all ranks must have the same dim"):
        StreamingStats(K, D + rank).reduce_ddp()
    with pytest.raises(ValueError, match="of all ranks must have the same class_counts"):
        StreamingStats(K, D, class_counts=torch.full((K,), 5 + rank)).reduce_ddp()


def run_rank(rank, port):
    store = dist.TCPStore("127.0.0.1", port, timeout=LIMIT)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=LIMIT)
    check_streams(rank)
    check_classes_of_one_rank(rank)
    check_meter(rank)
    check_disagreement(rank)
    # Not destroy_process_group: the gloo of torch 2.4 may wait for ever where both ranks close at once.
    store.set(f"rank {rank} is done", "")
    store.wait(["rank 0 is done", "rank 1 is done"])
    os._exit(0)


@pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")
def test_two_ranks_are_one():
    """Two processes that meet at this one's store, which outlives both; neither can be waited for in vain."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=LIMIT)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": LOOPBACK}
    command = [sys.executable, "-P", str(Path(__file__)), str(store.port)]
    ranks = [
        subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True, env=environment)
        for rank in range(2)
    ]
    try:
        for rank in ranks:
            _, errors = rank.communicate(timeout=LIMIT.total_seconds())
            assert rank.returncode == 0, errors
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


if __name__ == "__main__":
    run_rank(int(sys.argv[2]), int(sys.argv[1]))
