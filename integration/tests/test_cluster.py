"""The command line on a Ray cluster of two workers, started on this machine."""

import json
import os
import signal
import subprocess
import sys

import pytest
from test_run import wait_for

pytest.importorskip("ray")

CLUSTER = ("--cluster", "local", "--jobs", "2")


@pytest.fixture(scope="module")
def cluster():
    """Skip where Ray itself cannot start: too little shared memory, no network interface, a sandbox."""
    start = "import ray; ray.init(address='local', num_cpus=1, include_dashboard=False)"
    try:
        subprocess.run([sys.executable, "-c", start], check=True, capture_output=True, timeout=150)
    except subprocess.SubprocessError as error:
        pytest.skip(f"Ray cannot start a cluster on this machine: {error}")


def kept_in(folder):
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*/*.json"))]


def test_two_workers_give_what_one_machine_gives_and_repeat_nothing(installed, cluster):
    installed.add("meeting")
    done = installed.run("meeting", "--seeds", "2", *CLUSTER)  # each waits for the other: both run at once
    assert done.returncode == 0, done.stderr
    assert "Holds on 2 of 2 seeds" in done.stdout
    kept = kept_in(installed.out)
    assert [(run["seed"], run["version"]) for run in kept] == [(0, "1.0"), (1, "1.0")]
    assert all(run["machine"]["torch"].startswith("2") for run in kept)
    again = installed.run("meeting", "--seeds", "2", *CLUSTER)
    assert "2 of 2 runs are there already" in again.stdout
    assert sorted(installed.logged()) == ["meeting 0", "meeting 1"]


def test_a_worker_that_dies_is_tried_once_more_and_then_reported(installed, cluster):
    for name in ("deadly", "deadly_once", "raising", "hanging"):
        installed.add(name)
    done = installed.run("good", "deadly", "deadly_once", "raising", "hanging", "--timeout", "6", *CLUSTER)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    reasons = {kept["name"]: kept.get("reason") for kept in kept_in(installed.out)}
    assert reasons == {
        "good": None,
        "deadly": "its worker on the cluster died 2 times",
        "deadly_once": None,
        "raising": "RuntimeError: the [bracketed] cause",
        "hanging": "no result after 6 s",
    }
    assert installed.logged().count("deadly") == 2
    assert installed.logged().count("deadly_once") == 2


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_what_had_finished_survives_the_end_of_the_command(installed, cluster, how):
    installed.add("slow")
    command = installed.command("run", "slow", "--seeds", "2", "--out", str(installed.out), *CLUSTER)
    first = installed.out / "slow" / "laptop-0.json"
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=installed.environment, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            wait_for(lambda: first.exists() and "slow 1" in installed.logged(), seconds=150)
            os.kill(process.pid, how)
            _, errors = process.communicate(timeout=100)
        finally:
            process.kill()
    assert "Traceback" not in errors
    before = first.read_bytes()
    done = installed.run("slow")  # whoever made it, it is made
    assert "1 of 1 runs are there already" in done.stdout
    assert first.read_bytes() == before


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "host:port", "nonsense"])
def test_an_address_where_no_cluster_is_is_one_clear_line(installed, address):
    done = installed.run("good", "--cluster", address)
    assert done.returncode == 2
    assert f"--cluster {address}: " in done.stderr
    assert "Traceback" not in done.stderr
    assert installed.logged() == []
