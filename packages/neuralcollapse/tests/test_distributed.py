"""Many ranks: two real processes, whose checks stand in two_ranks.py."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

RANKS = Path(__file__).with_name("two_ranks.py")
LIMIT = timedelta(seconds=600)
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


@pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")
def test_two_ranks_are_one():
    """They meet at this process's store, which outlives both; neither can be waited for in vain."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=LIMIT)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": LOOPBACK}
    done = subprocess.run(
        [sys.executable, "-P", str(RANKS), str(store.port)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=LIMIT.total_seconds(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
