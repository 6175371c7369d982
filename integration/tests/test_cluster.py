"""The command line on a Ray cluster of this machine. Starting Ray costs most: one test does."""

import json
import os
import signal
import subprocess
import sys
from shutil import which

import pytest
from conftest import wait_for

from armillary import cluster
from armillary.catalog import Method
from armillary.cluster import ClusterError, ClusterExecutor
from armillary.contract import Failure
from armillary.runner import Job

PATIENCE = 600  # seconds; a busy machine takes minutes for what a free one does in twenty seconds


def test_a_cluster_gives_what_one_machine_gives(installed):
    """Two at a time; what dies is tried once more; what hangs, fails or is cut off takes nothing else with it.

    It is started by `uv run`, as in a clone: Ray would start its workers so as well, and wait for them for ever.
    """
    pytest.importorskip("ray")
    through = (
        ["uv", "run", "--quiet", "--no-project", "--python", sys.executable, "--"] if which("uv") else []
    )
    installed.add("meeting", "deadly", "deadly-once", "raising", "slow")
    names = ("meeting", "good", "deadly", "deadly-once", "raising", "slow")
    last = installed.out / "slow" / "laptop-0.json"
    ending = 2 * len(names) - 1  # all but the second slow one, in whatever order
    options = ("--seeds", "2", "--cluster", "local", "--jobs", "2")
    with installed.running(*names, *options, through=through) as process:
        wait_for(
            lambda: (
                process.poll() is not None
                or (len(list(installed.out.glob("*/*.json"))) == ending and "slow 1" in installed.logged())
            ),
            PATIENCE,
        )
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, errors = process.communicate(timeout=PATIENCE)
    assert "Traceback" not in errors, errors
    assert process.returncode == 130, errors
    assert "what had finished is kept" in errors
    kept = [json.loads(path.read_text()) for path in sorted(installed.out.glob("*/*.json"))]
    assert {(run["name"], run["seed"], run.get("reason")) for run in kept} == {
        *((name, seed, None) for name in ("meeting", "good", "deadly-once") for seed in (0, 1)),
        *(("deadly", seed, "its worker on the cluster died 2 times") for seed in (0, 1)),
        *(("raising", seed, "RuntimeError: the [bracketed] cause") for seed in (0, 1)),
        ("slow", 0, None),
    }
    assert all(run["version"] == "1.0" for run in kept)
    assert installed.logged().count("deadly") == 4
    before = last.read_bytes()
    done = installed.run("slow", "meeting")  # whoever made it, it is made
    assert "2 of 2 runs are there already" in done.stdout
    assert last.read_bytes() == before


def test_what_others_print_is_not_found_among_the_tables():
    script = (
        "from armillary import console; console.reserve(); print('a raylet died'); console.out.print('table')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.stdout, done.stderr) == ("table\n", "a raylet died\n")


ADDRESSES = {
    "127.0.0.1:1": "Connection refused",
    "ray://127.0.0.1:1": "Connection refused",
    "host:port": "must be HOST:PORT",
    "nonsense": "must be HOST:PORT (as nonsense:6379), ray://HOST:PORT, auto or local",
    "127.0.0.1": "must be HOST:PORT (as 127.0.0.1:6379)",
    "ray://": "must be HOST:PORT",
}


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_where_no_cluster_is_is_refused_at_once(address):
    with pytest.raises(ClusterError) as caught:
        ClusterExecutor(address)
    assert str(caught.value).startswith(f"--cluster {address}: ")
    assert ADDRESSES[address] in str(caught.value)


def test_without_ray_it_says_how_to_get_it_here_and_in_a_clone(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        ClusterError, match=r'pip install "armillary\[cluster\]", or in a clone: uv run --with ray'
    ):
        ClusterExecutor("local")


class Ray:
    """As much of Ray as starting takes."""

    def __init__(self):
        self.settings = {}

    def init(self, **settings):
        self.settings = settings


@pytest.fixture
def ray(monkeypatch):
    fake = Ray()
    monkeypatch.setitem(sys.modules, "ray", fake)
    for name in cluster._RAY_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    return fake


def test_ray_is_kept_from_starting_its_workers_by_uv_run(ray, monkeypatch):
    ClusterExecutor("local", size=3, cpus=2)
    assert cluster.os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] == "0"
    assert cluster.os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert ray.settings["num_cpus"] == 6
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "1")
    ClusterExecutor("auto")
    assert cluster.os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] == "1"  # who wants it has it


@pytest.mark.parametrize(
    ("name", "version", "reason"),
    [
        ("absent", "1.0", "the worker does not have absent, 1.0 was asked for"),
        ("good", "2.0", "the worker has good 1.0, 2.0 was asked for"),
    ],
)
def test_a_worker_without_the_package_is_a_failure_of_that_demo(here, name, version, reason):
    job = Job(Method(name, version, f"fake_demos:{name}"), "laptop", 0, "cpu")
    (outcome,) = cluster.work(job, None)
    assert isinstance(outcome, Failure)
    assert outcome.reason == reason


def test_a_worker_tells_of_the_demo_and_ends_with_its_outcome(installed, here, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(installed.folder))
    job = Job(Method("good", "1.0", "fake_demos:good"), "laptop", 3, "cpu")
    *steps, outcome = cluster.work(job, 60)
    assert steps[0] == (0.0, "running")
    assert (outcome.seed, outcome.result.holds) == (3, True)


def test_the_command_says_in_one_line_that_no_cluster_is_there(installed):
    done = installed.run("good", "--cluster", "127.0.0.1:1")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert subprocess.list2cmdline(["--cluster", "127.0.0.1:1"]) in done.stderr
    assert installed.logged() == []
