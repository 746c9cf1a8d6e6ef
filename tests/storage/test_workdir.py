"""The lock of a workdir on a file system without flock."""

import errno
import fcntl
import subprocess
import sys

import pytest

from subl_jax.errors import InputError
from subl_jax.storage.workdir import lock


@pytest.fixture
def no_flock(monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)


def test_without_flock_a_workdir_is_held_all_the_same_and_nothing_is_said(no_flock, tmp_path):
    with lock(tmp_path), pytest.raises(InputError, match="another sweep is running"), lock(tmp_path):
        pass
    with lock(tmp_path):
        pass


def test_a_lock_that_a_killed_process_left_behind_is_taken_over(no_flock, tmp_path):
    script = "import filelock, os, sys; held = filelock.SoftFileLock(sys.argv[1]); held.acquire(); os._exit(9)"
    subprocess.run([sys.executable, "-c", script, str(tmp_path / ".lock")], check=False)
    assert (tmp_path / ".lock").exists()
    with lock(tmp_path):
        pass
