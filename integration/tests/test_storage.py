import errno
import os
import stat

import pytest
from conftest import a_failure, a_run

from armillary.storage import StorageError, Store, check_writable, write_atomically


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


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_files_are_readable_to_whom_the_umask_says(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "file.json", "text")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file.json").stat().st_mode) == 0o666 & ~mask


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


DAMAGED = [b"", b"{", b'{"name": "good"}', b"null", b"\xff\xfe\xff", b"[" * 100_000, b"1" * 5000]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_file_that_is_no_result_is_set_aside_and_told_once(tmp_path, content):
    told = []
    store = Store(tmp_path, told.append)
    path = store.run_path("good", "laptop", 0)
    path.parent.mkdir()
    path.write_bytes(content)
    assert store.load("good", "laptop", 0) is None
    assert store.runs() == []
    assert len(told) == 1
    assert str(path) in told[0]
    assert path.with_name("laptop-0.json.unreadable").read_bytes() == content


def test_what_is_loaded_is_what_was_saved(tmp_path, result):
    store, run = Store(tmp_path), a_run(result)
    store.save(run)
    assert store.load("good", "laptop", 0) == run


def test_devices_do_not_overwrite_each_other(tmp_path, result):
    store = Store(tmp_path)
    runs = [
        a_run(result, device=device, seconds=at)
        for at, device in enumerate(["cpu", "cuda", "cuda:1"], start=1)
    ]
    for run in runs:
        store.save(run)
    assert store.runs() == runs
    assert [store.load("good", "laptop", 0, run.device) for run in runs] == runs
    assert store.run_path("good", "laptop", 0).name == "laptop-0.json"


def test_text_that_no_file_holds_is_cleaned_where_it_enters(tmp_path, result):
    store = Store(tmp_path)
    store.save(a_run(result))
    path = store.run_path("good", "laptop", 0)
    path.write_text(path.read_text().replace("Taking more", "\\u001b[2J\\u0000\\ud800Taking \\u202emore"))
    assert store.load("good", "laptop", 0).result.claim == "Taking more steps gets closer."
