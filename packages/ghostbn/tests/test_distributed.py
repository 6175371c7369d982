"""Many ranks: two real processes, whose checks stand in two_ranks.py, and DistributedDataParallel on one."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from ghostbn import convert_ghost_bn, ghost_accumulate

RANKS = Path(__file__).with_name("two_ranks.py")
LIMIT = timedelta(seconds=600)
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"

pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="torch was built without distributed")


def test_two_processes_train_and_track_as_one_process_by_hand():
    """They meet at this process's store, which outlives both; neither can be waited for in vain."""
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=LIMIT)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": LOOPBACK}
    command = [sys.executable, "-P", str(RANKS), str(store.port)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=LIMIT.total_seconds(), check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def one_rank(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", LOOPBACK)
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1, timeout=LIMIT)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
def test_gradients_are_reduced_once_whatever_counts(network, generator):
    """Every rank has to reduce in the same place, also where the last ghost batch holds nothing that counts."""
    model = DistributedDataParallel(network())
    reductions = []

    def count_reductions(state, bucket):
        reductions.append(bucket.index())
        return (
            distributed.all_reduce(bucket.buffer(), async_op=True)
            .get_future()
            .then(lambda done: done.value()[0])
        )

    model.register_comm_hook(None, count_reductions)
    x = torch.randn(12, 2, 5, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (12,), generator=generator)
    for ignored in (0, 4, 12):
        y[12 - ignored :] = -100
        reductions.clear()
        model.zero_grad()
        ghost_accumulate(model, F.cross_entropy, x, y, 4)
        assert reductions == [0]
        alone = network()
        ghost_accumulate(alone, F.cross_entropy, x, y, 4)
        for mine, other in zip(model.module.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, other.grad)


@pytest.mark.usefixtures("one_rank")
def test_a_converted_model_can_be_wrapped(generator):
    layer = convert_ghost_bn(nn.BatchNorm1d(3), 4)
    x = torch.randn(8, 3, generator=generator)
    DistributedDataParallel(layer)(x).sum().backward()
    assert layer.num_batches_tracked == 2
