"""The command line, in processes of its own, on demos that do what demos should not."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time

import pytest
from conftest import wait_for

from armillary.errors import Trouble


def test_run_keeps_the_result_with_its_provenance_and_writes_the_report(installed):
    done = installed.run("good", "--seeds", "2")
    assert done.returncode == 0, done.stderr
    assert "Holds on 2 of 2 seeds" in done.stdout
    kept = installed.kept("good", "laptop-1.json")
    facts = [kept[key] for key in ("name", "version", "preset", "seed", "device")]
    assert facts == ["good", "1.0", "laptop", 1, "cpu"]
    assert kept["machine"]["torch"].startswith("2")
    assert kept["machine"]["cores"] >= 1
    report = (installed.out / "report.html").read_text()
    assert "walking" in report
    assert "armillary run good --seeds 2" in report


def test_what_finished_is_not_run_again_but_a_new_version_is(installed):
    installed.run("good", "--seeds", "2")
    again = installed.run("good", "--seeds", "3")
    assert "2 of 3 runs are there already" in again.stdout
    assert installed.logged() == ["0", "1", "2"]
    installed.add("good", version="1.1")
    installed.run("good")
    assert installed.logged() == ["0", "1", "2", "0"]


def test_fresh_runs_again_and_a_seed_can_run_alone(installed):
    installed.run("good")
    assert "there already" not in installed.run("good", "--fresh").stdout
    installed.run("good", "--seed", "7")
    assert installed.logged() == ["0", "0", "7"]


BROKEN = {
    "raising": "RuntimeError: the [bracketed] cause",
    "leaving": "SystemExit: no data",
    "interrupting": "KeyboardInterrupt",
    "mute": "Mute: its message cannot be shown",
    "hanging": "no result after 4 s",
    "killed": "the process was killed by SIGKILL",
    "crashing": "the process was killed by SIGSEGV",
    "exiting": "the process ended with status 3 and no result",
    "nan": "the result breaks the demo contract: rows[0].distance: must be a finite number, is nan",
    "huge": "the result breaks the demo contract: rows[0].distance: must be a valid number, is an integer beyond",
    "endless": "ValueError: Exceeds the limit",
    "unserialisable": "TypeError: Object of type object is not JSON serializable",
}


def test_every_kind_of_failure_is_reported_and_the_others_go_on(installed):
    strange = ("bracketed", "coloured", "dollars")  # results that only look as if they would break something
    installed.add(*BROKEN, *strange)
    done = installed.run("good", *BROKEN, *strange, "--timeout", "4", "--jobs", "2")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    report = (installed.out / "report.html").read_text()
    for name, reason in BROKEN.items():
        assert f"{name} laptop seed 0: {reason}" in done.stderr
        assert installed.kept(name, "laptop-0.failure.json")["reason"].startswith(reason)
        assert reason in report
    assert "last words" in report  # what the hanging demo had printed
    assert "Traceback (most recent call last)" in report
    assert "Fatal Python error: Segmentation fault" in report
    assert done.stdout.count("Holds on 1 of 1 seed.") == 1 + len(strange)
    assert "a[/b] [[bold]] ↓" in done.stdout
    assert installed.kept("coloured")["result"]["claim"] == "red and nothing"
    assert "price $5 to $6" in report


def test_a_real_demo_keeps_the_contract(installed):
    """One of the repository's own, so that the frame is seen with it; each package tests its own."""
    names = ["dynlinucb"]
    done = installed.run(*names, "--preset", "smoke", "--jobs", "2", "--timeout", "240", timeout=500)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Form ok, not judged.") == len(names)
    assert "Holds on" not in done.stdout


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_killing_it_at_any_instant_loses_nothing_that_finished(installed, how):
    installed.add("slow")
    first = installed.out / "slow" / "laptop-0.json"
    with installed.running("slow", "--seeds", "2") as process:
        wait_for(lambda: "slow 1" in installed.logged())
        process.send_signal(how)
        _, errors = process.communicate(timeout=60)
    if how != signal.SIGKILL:
        word = "interrupted" if how == signal.SIGINT else "terminated"
        assert process.returncode == 128 + how
        assert (
            errors
            == f"armillary: {word}; what had finished is kept, and the same command goes on from there\n"
        )
        assert not list(installed.out.glob("*/*.claim"))
    before = first.read_bytes()
    assert json.loads(before)["result"]["holds"]
    wait_for(lambda: not children_of("fake_demos:slow"))  # the worker does not outlive its parent
    done = installed.run("slow")
    assert done.returncode == 0
    assert first.read_bytes() == before
    assert installed.logged() == ["slow 0", "slow 1"]


def test_an_interrupt_ends_it_also_where_a_script_started_it_in_the_background(installed):
    installed.add("slow")
    ignored = ["bash", "-c", 'trap "" INT; exec "$@"', "bash"]
    command = [*ignored, *installed.command("run", "slow", "--seed", "1", "--out", str(installed.out))]
    with subprocess.Popen(command, env=installed.environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for(lambda: installed.logged() == ["slow 1"])
            process.send_signal(signal.SIGINT)
            assert "interrupted" in process.communicate(timeout=60)[1]
        finally:
            process.kill()
    assert process.returncode == 130


def test_neither_more_signals_nor_a_librarys_farewell_change_how_it_ends(installed):
    """`uv run` passes on an interrupt that everyone has had already; Ray may leave with a status of its own."""
    installed.add("slow")
    (installed.folder / "sitecustomize.py").write_text("import atexit, os\natexit.register(os._exit, 1)\n")
    with installed.running("slow", "--seed", "1") as process:
        wait_for(lambda: installed.logged() == ["slow 1"])
        for _ in range(5):
            process.send_signal(signal.SIGINT)
            time.sleep(0.02)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert (
        errors
        == "armillary: interrupted; what had finished is kept, and the same command goes on from there\n"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts what a process has written to")
def test_a_demo_that_takes_more_memory_than_it_may_fails_alone(installed):
    installed.add("greedy")
    done = installed.run("greedy", "good", "--memory", "1", "--quiet")
    assert done.returncode == 1
    assert done.stderr == "no result: greedy laptop seed 0: MemoryError\n"
    assert done.stdout == "good 1.0, laptop, seed 0: Holds on 1 of 1 seed.\n"


@pytest.mark.parametrize("module", ["armillary.commands", "armillary.launch", "jinja2"])
def test_an_interrupt_during_an_import_is_one_line(installed, module):
    (installed.folder / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {module!r}:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    done = installed.run("good")
    assert done.returncode == 130
    assert done.stderr.startswith("armillary: interrupted")
    assert done.stderr.count("\n") == 1


def test_sigterm_gives_the_cursor_back(installed):
    installed.add("slow")
    ours, theirs = pty.openpty()
    command = installed.command("run", "slow", "--seed", "1", "--out", str(installed.out))
    environment = {**installed.environment, "TERM": "xterm"}
    with subprocess.Popen(command, env=environment, stdout=theirs, stderr=theirs) as process:
        try:
            os.close(theirs)
            wait_for(lambda: installed.logged() == ["slow 1"])
            process.terminate()
            shown = b""
            while chunk := read(ours):
                shown += chunk
        finally:
            process.kill()
            os.close(ours)
    assert process.returncode == 143
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")
    assert b"terminated; what had finished is kept" in shown


def read(terminal):
    try:
        return os.read(terminal, 65536)
    except OSError:  # its other side is closed
        return b""


def test_two_runs_on_one_folder_share_the_work(installed):
    installed.add("meeting")
    with (
        installed.running("meeting", "--seeds", "2") as one,
        installed.running("meeting", "--seeds", "2") as other,
    ):
        said = [process.communicate(timeout=120) for process in (one, other)]
    for process, (shown, errors) in zip((one, other), said, strict=True):
        assert process.returncode == 0, errors
        assert "Holds on 2 of 2 seeds" in shown
    assert sorted(installed.logged()) == [
        "meeting 0",
        "meeting 1",
    ]  # each waits for the other: both took part
    assert not list(installed.out.glob("*/*.claim"))


def test_more_jobs_than_cores_are_not_started(installed):
    done = installed.run("good", "--jobs", "9999")
    assert "--jobs 9999: this machine has" in done.stderr
    assert done.returncode == 0


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
    ("run", "good", "--seeds", "0"): "--seeds: must be a whole number, 1 or more, is '0'",
    ("run", "good", "--seed", "1", "--seeds", "2"): "not allowed with",
    ("run", "good", "--jobs", "two"): "--jobs: must be a whole number, 1 or more, is 'two'",
    ("run", "good", "--timeout", "nan"): "--timeout: must be a number",
    ("run", "good", "--preset", "huge"): "--preset",
    ("run", "good", "--device", "abacus 7"): "--device abacus 7: must be a torch device",
    ("run", "good", "--out", "/proc/nowhere"): "cannot write to /proc/nowhere",
    ("show", "goood"): "did you mean good?",
    ("list", "zebras"): "no method mentions 'zebras'",
    ("lst",): "choose from",
}


@pytest.mark.parametrize("call", BAD_CALLS, ids=" ".join)
def test_a_bad_call_is_refused_with_its_reason(here, installed, call):
    with pytest.raises(Trouble) as caught:
        here(*call)
    assert caught.value.status == (1 if "--out" in call else 2)
    assert BAD_CALLS[call] in str(caught.value)
    assert installed.logged() == []


@pytest.mark.parametrize(("call", "status"), [(("run", "godo"), 2), (("run", "good", "--out", "/proc/x"), 1)])
def test_what_is_refused_is_one_line_and_an_exit_status(installed, call, status):
    done = installed.call(*call)
    assert done.returncode == status
    assert re.fullmatch(r"armillary: .+\n", done.stderr)


def test_a_device_that_torch_cannot_use_is_refused_before_anything_runs(installed):
    (installed.folder / "torch.py").write_text(
        "def empty(size, device):\n    raise RuntimeError(f'no {device} here')\n"
    )
    done = installed.run("good", "--device", "abacus")
    assert done.returncode == 2
    assert done.stderr.startswith("armillary: --device abacus: RuntimeError: no abacus here")
    assert done.stderr.count("\n") == 1
    assert installed.logged() == []


def without(package):
    """What a process imports first so that this distribution is not installed for it."""
    return (
        "import importlib.metadata as metadata\n"
        "found = metadata.Distribution.from_name.__func__\n"
        "def lookup(cls, name):\n"
        f"    if name == {package!r}:\n"
        "        raise metadata.PackageNotFoundError(name)\n"
        "    return found(cls, name)\n"
        "metadata.Distribution.from_name = classmethod(lookup)\n"
    )


def test_without_torch_nothing_runs_and_one_line_says_so(installed):
    (installed.folder / "sitecustomize.py").write_text(without("torch"))
    done = installed.run("good")
    assert done.returncode == 2
    assert done.stderr == "armillary: torch is not installed, and every demo needs it: pip install torch\n"
    assert installed.logged() == []


def test_a_disk_that_fills_up_is_one_clear_line_and_keeps_what_was_there(installed):
    installed.run("good")
    kept = (installed.out / "good" / "laptop-0.json").read_bytes()
    script = (
        "import errno, os, armillary.cli\n"
        "def full(_): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))\n"
        "os.fsync = full\n"
        "armillary.cli.main()\n"
    )
    command = [sys.executable, "-c", script, "run", "good", "--seeds", "2", "--out", str(installed.out)]
    done = subprocess.run(command, env=installed.environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert (installed.out / "good" / "laptop-0.json").read_bytes() == kept


def test_a_file_that_cannot_be_read_is_set_aside_and_blocks_nothing(installed):
    installed.run("good")
    path = installed.out / "good" / "laptop-0.json"
    path.write_bytes(path.read_bytes().replace(b"walking", b"\xff", 1))
    done = installed.run("good")
    assert done.returncode == 0
    assert done.stderr.count("\n") == 1
    assert "now laptop-0.json.unreadable" in done.stderr
    assert installed.logged() == ["0", "0"]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_an_encoding_without_arrows_gets_ascii(installed, encoding):
    done = installed.run("good", PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert "distance [m] v" in done.stdout
    assert "| + | walking ends" in done.stdout


def test_a_reader_that_has_seen_enough_is_no_error(installed):
    command = " ".join([*installed.command("list"), "| head -1"])
    done = subprocess.run(
        ["bash", "-c", command], env=installed.environment, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
