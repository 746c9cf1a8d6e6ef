"""Atomic files: at every point of failure the old content or the new, and nothing beside it."""

import errno
import json
import os

import numpy as np
import pandas as pd
import pytest
from etils import epath

from subl_jax.errors import StorageError
from subl_jax.storage import atomic


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_writes_and_replaces(tmp_path):
    path = tmp_path / "new" / "deep" / "file"
    for data in (b"old", b"newer"):
        atomic.write_bytes_atomic(path, data)
        assert path.read_bytes() == data
    assert names(path.parent) == ["file"]


def test_json_takes_numpy_values(tmp_path):
    atomic.write_json_atomic(tmp_path / "a.json", {"a": np.float32(0.5), "b": np.arange(2), "c": "é"})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 0.5, "b": [0, 1], "c": "é"}


def test_parquet_round_trip(tmp_path):
    table = pd.DataFrame({"run_id": ["a", "b"], "value": [0.5, np.nan], "seed": [1, 2]}, index=[7, 9])
    atomic.write_parquet_atomic(tmp_path / "t.parquet", table)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "t.parquet"), table.reset_index(drop=True))


def test_mode_follows_the_umask_even_if_the_writer_replaces_the_file(tmp_path):
    old = os.umask(0o027)
    try:
        with atomic.replacing(tmp_path / "file") as temporary:
            (tmp_path / "own").write_bytes(b"x")
            os.chmod(tmp_path / "own", 0o600)
            os.replace(tmp_path / "own", temporary)
    finally:
        os.umask(old)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("function", ["chmod", "fsync", "replace"])
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "No space left on device; free some space and run the same command again"),
        (errno.EACCES, "Permission denied; make it writable, or use another --workdir"),
        (errno.EIO, "error; once that is mended, run the same command again"),
    ],
)
def test_a_failing_disk_leaves_the_old_file_alone(tmp_path, monkeypatch, function, number, words):
    path = tmp_path / "file"
    atomic.write_bytes_atomic(path, b"old")

    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number), str(path) + ".tmp-1")

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, function, fail)
        with pytest.raises(StorageError, match=words) as caught:
            atomic.write_bytes_atomic(path, b"new")
    assert str(caught.value).startswith(f"cannot write {path}: ") and "\n" not in str(caught.value)
    assert path.read_bytes() == b"old" and names(tmp_path) == ["file"]


def test_a_directory_that_cannot_be_synced_is_no_failure(tmp_path, monkeypatch):
    real = atomic.os.open

    def refuse(path, flags, *args, **kwargs):
        if os.fspath(path) == os.fspath(tmp_path):
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(atomic.os, "open", refuse)
    atomic.write_bytes_atomic(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_an_interrupt_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "file"
    atomic.write_bytes_atomic(path, b"old")
    with pytest.raises(KeyboardInterrupt), atomic.replacing(path) as temporary:
        temporary.write_bytes(b"ne")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and names(tmp_path) == ["file"]


def test_a_file_in_the_way_of_the_directory(tmp_path):
    (tmp_path / "way").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot write .*way/file: (Not a directory|File exists)"):
        atomic.write_bytes_atomic(tmp_path / "way" / "file", b"new")


def test_an_object_store_gets_one_whole_copy(tmp_path, monkeypatch):
    # The local disk stands in for the store: only the choice of path is what differs.
    monkeypatch.setattr(atomic, "is_local", lambda path: False)
    monkeypatch.setattr(atomic.tempfile, "gettempdir", lambda: str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    atomic.write_bytes_atomic(tmp_path / "bucket" / "file", b"old")
    atomic.write_bytes_atomic(tmp_path / "bucket" / "file", b"new")
    assert (tmp_path / "bucket" / "file").read_bytes() == b"new" and names(tmp_path / "bucket") == ["file"]

    class ClientError(Exception):
        pass

    def refuse(self, *args, **kwargs):
        raise ClientError("403: no write access\nlong explanation")

    monkeypatch.setattr(type(epath.Path(tmp_path)), "copy", refuse)
    with pytest.raises(StorageError, match="file: 403: no write access; once that is mended"):
        atomic.write_bytes_atomic(tmp_path / "bucket" / "file", b"newer")
    assert (tmp_path / "bucket" / "file").read_bytes() == b"new" and names(tmp_path / "scratch") == []


def test_is_local():
    assert atomic.is_local("runs/a") and atomic.is_local(epath.Path("/tmp"))
    assert not atomic.is_local("gs://bucket/a") and not atomic.is_local(epath.Path("gs://bucket/a"))
