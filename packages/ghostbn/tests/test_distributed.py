"""Two real processes under DistributedDataParallel; what they check stands in ddp_worker.py."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from torch import distributed

WORKER = Path(__file__).with_name("ddp_worker.py")
LIMIT = timedelta(seconds=100)
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


@pytest.mark.skipif(not distributed.is_available(), reason="torch was built without distributed")
def test_two_processes_train_and_track_as_one_process_by_hand():
    """They meet at this process's store, which outlives both; neither can be waited for in vain."""
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=LIMIT)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": LOOPBACK}
    command = [sys.executable, "-P", str(WORKER), str(store.port)]
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
