"""Object stores: a whole sweep in a bucket, with faults that pass and faults that stay."""

import errno
import types

import pandas as pd
import pytest
import tiny_world
from bucket import Stumbling, bucket

from subl_jax.app import running
from subl_jax.engine.settings import Settings
from subl_jax.errors import InputError, StorageError
from subl_jax.storage import retrying
from subl_jax.storage.retrying import ATTEMPTS, passes, patiently
from subl_jax.storage.store import Row, Store
from subl_jax.tracking.terminal import Progress

SETTINGS = Settings(devices=1, lanes_a_batch=4, tracker="none")


class WithCode(Exception):
    def __init__(self, code):
        super().__init__(f"status {code}")
        self.code = code


class ServerDisconnectedError(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TimeoutError(), True),
        (ConnectionRefusedError(), True),
        (OSError(errno.ETIMEDOUT, "x"), True),
        (OSError(errno.ESTALE, "x"), True),
        (OSError("503 Service Unavailable"), True),
        (OSError("rate exceeded: 429"), True),
        (WithCode(503), True),
        (WithCode("429"), True),
        (ServerDisconnectedError(), True),
        (WithCode(403), False),
        (WithCode(404), False),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (OSError(errno.EDQUOT, "x"), False),
        (OSError(errno.EROFS, "x"), False),
        (PermissionError(errno.EACCES, "x"), False),
        (PermissionError("Forbidden, 503 objects"), False),
        (FileNotFoundError("gs://none: bucket 503 does not exist"), False),
        (ValueError("timed out"), False),
        (KeyError("x"), False),
    ],
)
def test_which_faults_pass(error, expected):
    assert passes(error) is expected


def test_what_passes_is_tried_again_later_and_later():
    pauses, errors = [], [TimeoutError(), ConnectionError(), OSError("503")]

    def call():
        if errors:
            raise errors.pop()
        return "done"

    assert patiently(call, pauses.append) == "done"
    assert len(pauses) == 3
    for i, pause in enumerate(pauses):
        assert 0.25 * 2**i <= pause <= 0.5 * 2**i


def test_what_never_passes_comes_out_in_the_end():
    pauses = []

    def call():
        raise TimeoutError("for ever")

    with pytest.raises(TimeoutError, match="for ever"):
        patiently(call, pauses.append)
    assert len(pauses) == ATTEMPTS - 1 and max(pauses) <= retrying._LONGEST_PAUSE
    assert 30 < sum(pauses) < 62  # a server that restarts has time to


def test_what_stays_comes_out_at_once():
    def call():
        raise PermissionError("no")

    with pytest.raises(PermissionError):
        patiently(call, lambda _: pytest.fail("waited"))


# --- in a bucket ---


def run(workdir):
    return running.run(tiny_world.students(), workdir, settings=SETTINGS, progress=Progress(plain=True)).results


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    return run(tmp_path_factory.mktemp("quiet"))


def assert_same(results, quiet):
    for name in ("runs", "curves", "summary", "comparisons", "datasets"):
        pd.testing.assert_frame_equal(getattr(results, name), getattr(quiet, name))


def test_a_sweep_in_a_bucket_gives_what_it_gives_on_a_disk(quiet):
    with bucket() as objects:
        results = run("gs://lab/sweeps/tiny")
        assert_same(results, quiet)
        names = {path.removeprefix("/lab/sweeps/tiny/") for path in objects.store}
        assert {"runs.parquet", "sweep.json", "report.html", "figures/transfer.png"} <= names
        assert not [name for name in names if ".tmp" in name or ".probe" in name]
        again = run("gs://lab/sweeps/tiny")
        assert again.sweep["groups"] == [] and again.sweep["reused_nodes"] > 0
        run_id = results.runs.run_id[0]
        assert results.student(run_id).params["out"].shape == quiet.student(run_id).params["out"].shape
        assert len(results.samples(run_id)) == len(quiet.samples(run_id))


def test_a_sweep_in_a_stumbling_bucket_gives_the_same(quiet, monkeypatch):
    pauses = []
    monkeypatch.setattr(retrying, "time", types.SimpleNamespace(sleep=pauses.append))
    faults = Stumbling(share=0.4)
    with bucket(faults):
        results = run("gs://lab/tiny")
        assert_same(results, quiet)
        assert run("gs://lab/tiny").sweep["groups"] == []
    # fsspec itself takes some faults for a no, as whether a path is a folder.
    assert faults.count >= len(pauses) >= 5


def test_a_bucket_that_may_not_be_written_is_bad_input_at_once(monkeypatch):
    monkeypatch.setattr(retrying, "time", types.SimpleNamespace(sleep=lambda _: pytest.fail("waited")))

    def faults(operation, path):
        if operation == "write":
            raise PermissionError("Forbidden: no permission storage.objects.create")

    with bucket(faults), pytest.raises(InputError, match="^--workdir gs://lab/x: Forbidden: .*; give a directory"):
        run("gs://lab/x")


@pytest.mark.parametrize(
    "error",
    [PermissionError("Forbidden: no permission"), OSError(errno.ENOSPC, "No space left on device"), WithCode(403)],
)
def test_a_store_that_may_not_be_written_any_more_is_one_line_at_once(error, monkeypatch):
    monkeypatch.setattr(retrying, "time", types.SimpleNamespace(sleep=lambda _: pytest.fail("waited")))

    def faults(operation, path):
        if operation == "write":
            raise error

    with bucket(faults), pytest.raises(StorageError, match="^cannot write gs://lab/x/artifacts/") as raised:
        Store("gs://lab/x").put("distil", [Row("a" * 64, {})])
    assert "\n" not in str(raised.value)


def test_a_store_that_cannot_be_read_for_now_is_not_called_damaged(monkeypatch):
    monkeypatch.setattr(retrying, "time", types.SimpleNamespace(sleep=lambda _: None))
    with bucket() as objects:
        Store("gs://lab/x").put("distil", [Row("a" * 64, {})], {"w": pd.Series([1.0]).to_numpy()})
        before = dict(objects.store)
        store = Store("gs://lab/x", warn=pytest.fail)

        def faults(operation, path):
            raise TimeoutError("timed out")

        objects.faults = staticmethod(faults)
        with pytest.raises(StorageError, match="^cannot read gs://lab/x/artifacts/.*timed out"):
            store.get("a" * 64)
        assert objects.store.keys() == before.keys()
