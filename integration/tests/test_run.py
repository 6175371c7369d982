"""The command line, in processes of its own, on demos that do what demos should not."""

import json
import os
import signal
import subprocess
import time
from importlib.metadata import entry_points

import pytest


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)


def test_run_keeps_the_result_with_its_provenance_and_writes_the_report(installed):
    done = installed.run("good", "--seeds", "2")
    assert done.returncode == 0, done.stderr
    assert "Holds on 2 of 2 seeds" in done.stdout
    kept = json.loads((installed.out / "good" / "laptop-1.json").read_text())
    assert (kept["name"], kept["version"], kept["preset"], kept["seed"], kept["device"]) == (
        "good",
        "1.0",
        "laptop",
        1,
        "cpu",
    )
    assert kept["machine"]["torch"].startswith("2")
    assert kept["machine"]["cores"] >= 1
    assert kept["seconds"] < 10
    assert "walking" in (installed.out / "report.html").read_text()


def test_what_finished_is_not_run_again_but_a_new_version_is(installed):
    installed.run("good", "--seeds", "2")
    again = installed.run("good", "--seeds", "3")
    assert "2 of 3 runs are there already" in again.stdout
    assert installed.logged() == ["0", "1", "2"]
    installed.add("good", version="1.1")
    installed.run("good")
    assert installed.logged() == ["0", "1", "2", "0"]


BROKEN = {
    "raising": "RuntimeError: the [bracketed] cause",
    "hanging": "no result after 4 s",
    "killed": "the process was killed by SIGKILL",
    "exiting": "the process ended with status 3 and no result",
    "nan": "the result breaks the demo contract",
    "unserialisable": "TypeError: Object of type object is not JSON serializable",
}


def test_every_kind_of_failure_is_reported_and_the_others_go_on(installed):
    for name in BROKEN:
        installed.add(name)
    done = installed.run("good", *BROKEN, "--timeout", "4", "--jobs", "2")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    report = (installed.out / "report.html").read_text()
    for name, reason in BROKEN.items():
        assert f"{name} laptop seed 0: {reason}" in done.stderr
        kept = json.loads((installed.out / name / "laptop-0.failure.json").read_text())
        assert kept["reason"] == reason
        assert reason in report
    assert "rows[0].distance: must be finite, is nan" in report
    assert "last words" in report  # what the hanging demo had printed
    assert "Traceback (most recent call last)" in report
    assert "Holds on 1 of 1 seed" in done.stdout


def test_every_method_gives_a_result_beside_demos_that_fail(installed):
    broken = {"hanging", "killed", "nan"}
    for name in broken:
        installed.add(name)
    options = ("--preset", "smoke", "--jobs", "2", "--timeout", "120")
    done = installed.run("--all", *options, timeout=900)
    failed = {path.parent.name for path in installed.out.glob("*/*.failure.json")}
    assert failed == broken, done.stderr
    kept = {path.parent.name for path in installed.out.glob("*/smoke-0.json")}
    methods = {method.name for method in entry_points(group="armillary.demos")}
    assert kept == methods | {"good"}
    assert len(methods) >= 9  # the repository's own, not only the fake ones


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_killing_it_at_any_instant_loses_nothing_that_finished(installed, how):
    installed.add("slow")
    command = installed.command("run", "slow", "--seeds", "2", "--out", str(installed.out))
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, env=installed.environment, stdout=pipe, stderr=pipe, text=True)
    first = installed.out / "slow" / "laptop-0.json"
    wait_for(lambda: "slow 1" in installed.logged())
    process.send_signal(how)
    _, errors = process.communicate(timeout=30)
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "interrupted; what had finished is kept" in errors
    assert "Traceback" not in errors
    before = first.read_bytes()
    assert json.loads(before)["result"]["holds"]
    wait_for(lambda: not children_of("fake_demos:slow"))  # the worker does not outlive its parent
    done = installed.run("slow")
    assert done.returncode == 0
    assert first.read_bytes() == before
    assert installed.logged() == ["slow 0", "slow 1"]


def children_of(target):
    found = []
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{process}/cmdline") as file:
                if target in file.read():
                    found.append(process)
        except OSError:
            continue
    return found


BAD_CALLS = {
    ("run", "godo"): "did you mean good?",
    ("run", "zzzzzzzz"): "`armillary list` shows what is installed",
    ("run",): "name one or more methods, or give --all",
    ("run", "good", "--all"): "not both",
    ("run", "good", "--seeds", "0"): "--seeds",
    ("run", "good", "--jobs", "0"): "--jobs",
    ("run", "good", "--timeout", "-1"): "--timeout",
    ("run", "good", "--preset", "huge"): "--preset",
    ("run", "good", "--device", "abacus"): "--device abacus",
    ("run", "good", "--out", "/proc/nowhere"): "cannot write to /proc/nowhere",
    ("show", "goood"): "did you mean good?",
}


@pytest.mark.parametrize("call", BAD_CALLS, ids=" ".join)
def test_a_bad_call_is_one_clear_line(installed, call):
    done = installed.call(*call)
    assert done.returncode in (1, 2)
    assert BAD_CALLS[call] in done.stderr
    assert "Traceback" not in done.stderr
    assert installed.logged() == []


def test_list_and_show_read_the_metadata(installed):
    assert "testing" in installed.call("list").stdout
    shown = installed.call("show", "good").stdout
    assert "A demo that is good." in shown
    assert "No evidence is committed yet." in shown


def test_a_disk_that_fills_up_is_one_clear_line_and_keeps_what_was_there(installed):
    installed.run("good")
    kept = (installed.out / "good" / "laptop-0.json").read_bytes()
    script = (
        "import errno, os, armillary.cli\n"
        "def full(_): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))\n"
        "os.fsync = full\n"
        "armillary.cli.main()\n"
    )
    command = installed.command("run", "good", "--seeds", "2", "--out", str(installed.out))
    command[1:3] = ["-c", script]
    done = subprocess.run(command, env=installed.environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert (installed.out / "good" / "laptop-0.json").read_bytes() == kept
