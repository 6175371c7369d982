"""Two real processes, whose checks stand in two_ranks.py."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from torch import distributed

RANKS = Path(__file__).with_name("two_ranks.py")
LIMIT = timedelta(minutes=4)
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"

pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="torch was built without distributed")


def test_two_processes_read_what_one_reads_of_the_whole_batch():
    """They meet at this process's store, which outlives both; neither can be waited for in vain."""
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=LIMIT)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": LOOPBACK}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-P", str(RANKS), str(store.port), str(rank)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        said = [rank.communicate(timeout=LIMIT.total_seconds())[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(said)
