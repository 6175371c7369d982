"""Two real processes under DistributedDataParallel; what they check stands in ddp_worker.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch import distributed

WORKER = Path(__file__).with_name("ddp_worker.py")


@pytest.mark.skipif(not distributed.is_available() or not hasattr(os, "fork"), reason="needs gloo and fork")
def test_two_processes_train_and_track_as_one_process_by_hand(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", str(WORKER), str(tmp_path / "store")]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
