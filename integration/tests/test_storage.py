import errno
import os

import pytest

from armillary.contract import Failure, Machine, Run
from armillary.storage import StorageError, Store, check_writable, write_atomically

MACHINE = Machine(cpu="abacus", cores=2, system="none", python="3", torch="2")


def a_run(result, **changes):
    facts = {"name": "good", "version": "1.0", "preset": "laptop", "seed": 0, "device": "cpu", "seconds": 1.0}
    return Run(**{**facts, **changes}, machine=MACHINE, result=result)


def a_failure(**changes):
    facts = {"name": "good", "version": "1.0", "preset": "laptop", "seed": 0, "device": "cpu", "seconds": 1.0}
    return Failure(**{**facts, **changes}, reason="it broke", detail="there")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, step):
    path = tmp_path / "file.json"
    write_atomically(path, "old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, step, full)
    with pytest.raises(StorageError, match=r"cannot write .*file\.json: No space left on device"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_a_file_is_refused_before_anything_runs(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write to .*file"):
        check_writable(tmp_path / "file")


def test_a_run_replaces_the_failure_before_it_and_the_other_way_round(tmp_path, result):
    store = Store(tmp_path)
    store.save(a_failure())
    assert [failure.reason for failure in store.failures()] == ["it broke"]
    store.save(a_run(result))
    assert (len(store.runs()), len(store.failures())) == (1, 0)
    store.save(a_failure())
    assert (len(store.runs()), len(store.failures())) == (0, 1)


@pytest.mark.parametrize("text", ["", "{", '{"name": "good"}', "null"])
def test_a_damaged_file_counts_as_absent(tmp_path, text):
    store = Store(tmp_path)
    path = store.run_path("good", "laptop", 0)
    path.parent.mkdir()
    path.write_text(text)
    assert store.load("good", "laptop", 0) is None
    assert store.runs() == []


def test_what_is_loaded_is_what_was_saved(tmp_path, result):
    store, run = Store(tmp_path), a_run(result)
    store.save(run)
    assert store.load("good", "laptop", 0) == run
