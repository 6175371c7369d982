"""Two gloo ranks under torchrun give what one rank gives; what is compared stands in ranks.py."""

import os
import subprocess
import sys
from pathlib import Path


def test_two_ranks_equal_one():
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1", "--nproc-per-node=2"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"]
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": loopback, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(Path(__file__).with_name("ranks.py"))],
        env=environment, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    checked = ("sortedft", "ghostbn", "gacil", "morec", "neuralcollapse")
    assert done.stdout.splitlines() == [f"{name} equal" for name in checked]
