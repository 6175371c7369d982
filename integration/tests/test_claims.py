"""Claims on jobs, between processes that live, die and beat from afar."""

import json
import os
import subprocess
import sys
import time
from contextlib import closing

import pytest
from conftest import wait_for

from armillary import claims as module
from armillary.claims import EXPIRES, Claims, owner


@pytest.fixture
def path(tmp_path):
    return tmp_path / "good" / "laptop-0.claim"


def test_a_claim_is_one_process_s_until_it_is_given_up(path):
    with closing(Claims(path.parents[1])) as mine, closing(Claims(path.parents[1])) as theirs:
        assert mine.take(path)
        assert not theirs.take(path)
        assert owner(path) == f"process {os.getpid()} on {os.uname().nodename}"
        mine.release(path)
        assert theirs.take(path)
    assert not path.exists()


HOLD = """
import sys, time
from pathlib import Path
from armillary.claims import Claims
path = Path(sys.argv[1])
assert Claims(path.parents[1]).take(path)
time.sleep(600)
"""


def test_the_claim_of_a_process_that_was_killed_is_taken_over(path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)]) as process:
        try:
            wait_for(lambda: path.exists() and path.read_text())
            with closing(Claims(path.parents[1])) as claims:
                assert not claims.take(path)
                process.kill()
                wait_for(lambda: claims.take(path))
        finally:
            process.kill()


def claim_of(path, **changes):
    facts = {"pid": os.getpid(), "host": os.uname().nodename, "born": module._born(os.getpid())}
    path.parent.mkdir()
    path.write_text(json.dumps({**facts, **changes}))


def test_a_number_that_another_process_has_now_is_nobody_s(path):
    claim_of(path, born="1")
    with closing(Claims(path.parents[1])) as claims:
        assert claims.take(path)


@pytest.mark.parametrize("content", [None, "", "half a na"], ids=["another machine", "empty", "cut off"])
def test_a_claim_from_afar_lasts_as_long_as_its_heartbeat(path, content):
    claim_of(path, host="elsewhere")
    if content is not None:
        path.write_text(content)
    with closing(Claims(path.parents[1])) as claims:
        assert not claims.take(path)
        old = time.time() - EXPIRES - 5
        os.utime(path, (old, old))
        assert claims.take(path)


def test_a_claim_beats_while_it_is_held(path, monkeypatch):
    monkeypatch.setattr(module, "HEARTBEAT", 0.05)
    with closing(Claims(path.parents[1])) as claims:
        claims.take(path)
        os.utime(path, (1, 1))
        wait_for(lambda: path.stat().st_mtime > 1)


def test_what_was_taken_over_is_not_given_up_by_its_former_owner(path):
    with closing(Claims(path.parents[1])) as claims:
        claims.take(path)
        path.write_text("another's")
    assert path.read_text() == "another's"


def test_of_many_that_take_over_at_once_one_succeeds(path):
    """Each in a process of its own, all let go at the same instant."""
    claim_of(path, born="1")
    script = (
        "import sys, time; from pathlib import Path; from armillary.claims import Claims\n"
        "path = Path(sys.argv[1]); claims = Claims(path.parents[1])\n"
        "time.sleep(max(0, float(sys.argv[2]) - time.time()))\n"
        "print(claims.take(path), flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, str(path), str(time.time() + 3)]
    pipe = subprocess.PIPE
    taking = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(4)]
    try:
        said = [process.stdout.readline().strip() for process in taking]
    finally:
        for process in taking:
            process.kill()
            process.communicate()
    assert sorted(said) == ["False", "False", "False", "True"]
