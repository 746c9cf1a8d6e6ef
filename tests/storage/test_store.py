"""The store: exact round trips, all-or-nothing writes, damage found and forgotten, one sweep per directory."""

import dataclasses
import errno
import json
import os
import re
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from subl_jax.errors import InputError, StorageError
from subl_jax.storage import atomic, shards, workdir
from subl_jax.storage.store import Row, Store

NATIVE = ("bool", "int8", "int32", "int64", "uint16", "uint32", "float16", "float32", "float64", "complex64")
DTYPES = [*map(np.dtype, NATIVE), np.dtype(ml_dtypes.bfloat16)]


def rows(n, start=0, **fields):
    return [Row(key=f"{i:064x}", spec={"type": "Base", "seed": i}, **fields) for i in range(start, start + n)]


def tree(n, scale=1.0):
    weights = np.arange(n * 6, dtype=np.float32).reshape(n, 2, 3) * scale
    return {"layer": {"w": weights, "b": weights[:, 0].astype(ml_dtypes.bfloat16)}, "steps": np.arange(n)}


def leaves(node, path=()):
    if isinstance(node, dict):
        return {k: v for key, child in node.items() for k, v in leaves(child, (*path, key)).items()}
    if isinstance(node, list):
        return {k: v for i, child in enumerate(node) for k, v in leaves(child, (*path, i)).items()}
    return {path: node}


def shape(node):
    """The tree without its arrays: an empty dict, an empty list and no leaf at all are three different things."""
    if isinstance(node, dict):
        return {key: shape(child) for key, child in node.items()}
    return [shape(child) for child in node] if isinstance(node, list) else node is None


def assert_same(got, want):
    assert shape(got) == shape(want)
    got, want = leaves(got), leaves(want)
    for path, array in want.items():
        if array is None:
            assert got[path] is None
            continue
        assert isinstance(got[path], np.ndarray)
        assert (got[path].dtype, got[path].shape) == (array.dtype, array.shape)
        assert got[path].tobytes() == array.tobytes()


def row_of(node, i):
    if isinstance(node, dict):
        return {key: row_of(child, i) for key, child in node.items()}
    if isinstance(node, list):
        return [row_of(child, i) for child in node]
    return None if node is None else np.asarray(node[i])


@st.composite
def stacked_trees(draw):
    n = draw(st.integers(1, 4))

    def array(dtype, shape):
        items = draw(hnp.arrays(np.uint8, (n, *shape, dtype.itemsize)))
        # Any bit pattern, NaNs included, but a boolean has only two.
        return (items[..., 0] % 2).astype(bool) if dtype.kind == "b" else items.view(dtype)[..., 0]

    leaf = st.builds(array, st.sampled_from(DTYPES), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
    names = st.text("ab /~.é", min_size=0, max_size=3).filter(lambda name: "/" not in name)
    node = st.recursive(
        leaf | st.none(),
        lambda children: st.dictionaries(names, children, max_size=3) | st.lists(children, max_size=3),
        max_leaves=8,
    )
    return n, draw(node)


@settings(deadline=None, max_examples=60)
@given(stacked=stacked_trees())
def test_trees_come_back_bit_for_bit(tmp_path_factory, stacked):
    n, values = stacked
    workdir = tmp_path_factory.mktemp("work")
    Store(workdir).put("base", rows(n), values)
    opened = Store(workdir)
    for i, row in enumerate(rows(n)):
        assert_same(opened.get(row.key), row_of(values, i))


def test_rows_curves_and_states_come_back(tmp_path):
    curves = {"loss": np.arange(8.0).reshape(2, 4), "trait/owl": np.ones((2, 4), np.float32)}
    batch = [
        Row("a", {"seed": 1, "name": "é"}, info={"kept": np.int64(3), "fraction": 0.5}),
        Row("b", {"seed": 2}, "diverged", "loss is NaN at step 30"),
    ]
    Store(tmp_path).put("student", batch, tree(2), curves, np.array([0, 5, 10, 20]))
    Store(tmp_path).put("student", [Row("c", {"seed": 3}, "failed", "no sample passed the filter")])
    Store(tmp_path).put("student", rows(2), None, curves, np.array([[0, 1, 2, 3], [0, 2, 4, 6]]))
    opened = Store(tmp_path, readonly=True)
    assert opened.done() == {"a": "ok", "b": "diverged", "c": "failed", **{row.key: "ok" for row in rows(2)}}
    assert [opened.row(row.key) for row in batch] == [dataclasses.replace(row, spec=None) for row in batch]
    assert opened.stage("c") == "student" and opened.status("b") == "diverged"
    assert [opened.spec(key) for key in "abc"] == [{"seed": 1, "name": "é"}, {"seed": 2}, {"seed": 3}]
    steps, values = opened.curves("b")
    assert steps.tolist() == [0, 5, 10, 20] and values.keys() == curves.keys()
    assert values["loss"].tolist() == [4, 5, 6, 7] and values["trait/owl"].dtype == np.float32
    assert opened.curves(rows(2)[1].key)[0].tolist() == [0, 2, 4, 6]
    assert opened.get("c") is None and opened.curves("c")[0].size == 0 and opened.curves("c")[1] == {}
    for call in (opened.get, opened.row, opened.spec, opened.status, opened.curves):
        with pytest.raises(KeyError):
            call("unknown")


def test_many_curves_are_those_of_each(tmp_path):
    """Of nodes in any order and twice, in batches that share their steps or not, and of some without any."""
    filled, rng = Store(tmp_path), np.random.default_rng(0)
    filled.put("student", rows(3), tree(3), {"loss": rng.random((3, 4)), "kl": rng.random((3, 4))}, np.arange(4))
    own_steps = np.array([[0, 1], [0, 2]])
    filled.put("student", rows(2, start=3), None, {"loss": rng.random((2, 2))}, own_steps)
    filled.put("student", rows(1, start=5), tree(1))
    filled.put("student", rows(1, start=6))
    keys = [rows(1, start=i)[0].key for i in (4, 1, 6, 0, 1, 5, 3)]
    found = {}
    for which, steps, curves in filled.many_curves(keys):
        for row, place in enumerate(which):
            of_row = {name: values[row] for name, values in curves.items()}
            assert found.setdefault(int(place), (steps if steps.ndim == 1 else steps[row], of_row))[1] is of_row
    assert sorted(found) == [0, 1, 3, 4, 6]
    for place, (steps, curves) in found.items():
        wanted_steps, wanted = filled.curves(keys[place])
        assert steps.tolist() == wanted_steps.tolist() and curves.keys() == wanted.keys()
        assert all(curves[name].tolist() == wanted[name].tolist() for name in wanted)


def test_arrays_that_are_let_go_leave_rows_curves_and_specs(tmp_path):
    filled = Store(tmp_path)
    filled.put("student", rows(2), tree(2), {"loss": np.ones((2, 4))}, np.arange(4))
    (id,) = filled.batches([row.key for row in rows(2)])
    filled.strip(id)
    for opened in (filled, Store(tmp_path)):
        for row in rows(2):
            assert opened.get(row.key) is None and opened.spec(row.key) == row.spec
            assert opened.curves(row.key)[1]["loss"].tolist() == [1.0] * 4
        assert opened.bare() == {row.key for row in rows(2)}


def test_the_same_batch_again_replaces_itself(tmp_path):
    opened = Store(tmp_path)
    for scale in (1.0, 2.0):
        opened.put("base", rows(3), tree(3, scale))
        assert len(list((tmp_path / "artifacts").iterdir())) == 2
    for reader in (opened, Store(tmp_path)):
        assert_same(reader.get(rows(3)[1].key), row_of(tree(3, 2.0), 1))


@pytest.mark.parametrize("order", [("ok", "failed"), ("failed", "ok")])
def test_the_better_of_two_copies_counts(tmp_path, order):
    opened = Store(tmp_path)
    for status, others in zip(order, (1, 2), strict=True):
        opened.put("base", [*rows(1, status=status), *rows(others, start=5 * others)], tree(1 + others))
    key = rows(1)[0].key
    assert opened.status(key) == Store(tmp_path).status(key) == "ok"


def test_more_shards_than_are_kept_open(tmp_path):
    opened = Store(tmp_path)
    for i in range(20):
        opened.put("base", rows(1, start=i), tree(1, i))
    for _ in range(2):
        for i in range(20):
            assert_same(opened.get(rows(1, start=i)[0].key), row_of(tree(1, i), 0))
    assert len(opened._files._open) < 20


def test_a_damaged_shard_does_not_hide_a_whole_copy(tmp_path):
    opened = Store(tmp_path)
    for start in (1, 2):
        opened.put("base", [*rows(1), *rows(1, start=start)], tree(2))
    damaged = next((tmp_path / "artifacts").glob("*.safetensors"))
    damaged.write_bytes(b"")
    lines = []
    reader = Store(tmp_path, lines.append)
    assert rows(1)[0].key in reader.verify(row.key for row in rows(3)) and len(lines) == 1
    assert_same(reader.get(rows(1)[0].key), row_of(tree(2), 0))


# --- kills and full disks ---


class Killed(BaseException):
    """Stands for a process that ends between two system calls."""


STEPS = [(function, call) for function in ("chmod", "fsync", "replace") for call in range(4)]


@pytest.mark.parametrize("error", [Killed(), OSError(errno.ENOSPC, "No space left on device")], ids=["kill", "full"])
@pytest.mark.parametrize(("function", "call"), STEPS)
@pytest.mark.parametrize("before", [None, 1.0], ids=["new", "again"])
def test_every_point_of_a_write_leaves_the_old_state_or_the_new(tmp_path, monkeypatch, before, function, call, error):
    writer = Store(tmp_path)
    if before is not None:
        writer.put("base", rows(3), tree(3, before))
    real, calls = getattr(os, function), []

    def fail(*args, **kwargs):
        calls.append(args)
        if len(calls) == call + 1:
            raise error
        return real(*args, **kwargs)

    expected = Killed if isinstance(error, Killed) else StorageError
    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, function, fail)
        if isinstance(error, Killed):
            # A killed process cleans nothing up.
            patch.setattr(type(epath.Path(tmp_path)), "unlink", lambda self, missing_ok=False: None)
        interrupted = False
        try:
            writer.put("base", rows(3), tree(3, 2.0))
        except expected as caught:
            interrupted = True
            if expected is StorageError:
                assert "No space left on device; free some space" in str(caught) and "\n" not in str(caught)
    # Once a file is in place, a directory that cannot be synced (every second call) is no failure.
    harmless = expected is StorageError and function == "fsync" and call % 2
    assert interrupted == (call < len(calls) and not harmless)
    if expected is StorageError:
        # The writer goes on with what it knows.
        assert len(writer.verify(row.key for row in rows(3))) in (0, 3)
        assert len(list((tmp_path / "artifacts").iterdir())) in (0, 2)
    lines = []
    opened = Store(tmp_path, lines.append)
    present = opened.verify(row.key for row in rows(3))
    assert lines == []
    if present:
        scale = float(opened.get(rows(3)[0].key)["layer"]["w"][0, 1])
        assert scale in (before, 2.0) and (interrupted or scale == 2.0)
        for i, row in enumerate(rows(3)):
            assert_same(opened.get(row.key), row_of(tree(3, scale), i))
    else:
        assert before is None and interrupted
    assert len(list((tmp_path / "artifacts").iterdir())) == (2 if present else 0)


def test_a_full_disk_while_the_data_is_written(tmp_path, monkeypatch):
    opened = Store(tmp_path)

    def full(*args, **kwargs):
        raise shards.safetensors.SafetensorError('I/O error: No space (os error 28) at path "x"')

    monkeypatch.setattr(shards.safetensors.numpy, "save_file", full)
    with pytest.raises(StorageError, match="cannot write .*safetensors: No space left on device; free some space"):
        opened.put("base", rows(1), tree(1))
    assert opened.done() == {} and list((tmp_path / "artifacts").iterdir()) == []


def test_leftovers_are_removed_by_the_owner_only(tmp_path):
    Store(tmp_path).put("base", rows(1), tree(1))
    directory = tmp_path / "artifacts"
    leftovers = ["a-1.safetensors.tmp-12", ".tmpXyZ", "b.json.tmp-1", "c-1.safetensors"]
    for name in leftovers:
        (directory / name).write_bytes(b"half")
    (directory / "notes.txt").write_text("somebody's own")
    Store(tmp_path, readonly=True)
    assert {path.name for path in directory.iterdir()} >= set(leftovers)
    assert Store(tmp_path).done() == {rows(1)[0].key: "ok"}
    assert not {path.name for path in directory.iterdir()} & set(leftovers)
    assert (directory / "notes.txt").exists()


# --- damage ---


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (truncate, r"\d+ bytes instead of \d+"),
        (flip_a_bit, "checksum differs"),
        (lambda path: path.unlink(), "missing"),
        (lambda path: path.write_bytes(b""), "0 bytes instead of"),
    ],
)
@pytest.mark.parametrize("readonly", [False, True])
def test_damaged_data_is_computed_again(tmp_path, damage, why, readonly):
    writer = Store(tmp_path)
    writer.put("teacher", rows(3), tree(3))
    writer.put("teacher", rows(2, start=10), tree(2))
    kept = {row.key for row in rows(2, start=10)}
    path = tmp_path / "artifacts" / writer._index.place(rows(3)[0].key)[0].data
    damage(path)
    for first_use in ("verify", "get"):
        lines = []
        opened = Store(tmp_path, lines.append, readonly=first_use == "verify" or readonly)
        if first_use == "verify":
            assert opened.verify([*kept, *(row.key for row in rows(3)), "unknown"]) == kept
        else:
            with pytest.raises(StorageError, match=r"damaged; run the same command again"):
                opened.get(rows(3)[0].key)
        assert set(opened.done()) == kept
        assert len(lines) == 1 and path.name in lines[0]
        assert re.search(rf"is damaged \({why}.*\): its 3 teacher results will be computed again$", lines[0])
    files = sorted((tmp_path / "artifacts").glob("*.json"))
    assert len(files) == (2 if readonly else 1)
    repaired = Store(tmp_path)
    repaired.put("teacher", rows(3), tree(3))
    assert_same(Store(tmp_path).get(rows(3)[2].key), row_of(tree(3), 2))


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\x00garbage", b"[1, 2]", b'{"format": 1}', b'{"format": 1, "rows": [{"key": 3}]}', b"[" * 100_000],
)
def test_a_damaged_sidecar_is_computed_again(tmp_path, content):
    Store(tmp_path).put("base", rows(3), tree(3))
    path = next((tmp_path / "artifacts").glob("*.json"))
    path.write_bytes(content)
    lines = []
    assert Store(tmp_path, lines.append, readonly=True).done() == {}
    assert path.exists() and len(lines) == 1 and path.name in lines[0] and "computed again" in lines[0]
    assert Store(tmp_path, lines.append).done() == {} and list((tmp_path / "artifacts").iterdir()) == []


def test_every_truncation_of_a_sidecar_is_noticed(tmp_path):
    Store(tmp_path).put("base", rows(1), tree(1))
    path = next((tmp_path / "artifacts").glob("*.json"))
    whole = path.read_bytes()
    for length in range(0, len(whole) - 2, 7):
        path.write_bytes(whole[:length])
        lines = []
        assert Store(tmp_path, lines.append, readonly=True).done() == {} and len(lines) == 1


def test_a_sidecar_of_the_first_format_is_read(tmp_path):
    """It had the specs in its rows, and no word of arrays that were let go."""
    Store(tmp_path).put("base", rows(3), tree(3))
    path = next((tmp_path / "artifacts").glob("*.json"))
    sidecar = json.loads(path.read_text())
    del sidecar["specs"], sidecar["bare"]
    for row, put in zip(sidecar["rows"], rows(3), strict=True):
        row["spec"] = put.spec
    path.write_text(json.dumps(sidecar | {"format": 1}))
    opened = Store(tmp_path)
    for i, row in enumerate(rows(3)):
        assert opened.spec(row.key) == row.spec
        assert_same(opened.get(row.key), row_of(tree(3), i))


def test_specs_that_cannot_be_read_are_one_line(tmp_path):
    Store(tmp_path).put("base", rows(1), tree(1))
    path = next((tmp_path / "artifacts").glob("*.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"specs": "AAAA"}))
    with pytest.raises(StorageError, match=rf"^artifacts/{path.name} is damaged: its specs cannot be read \("):
        Store(tmp_path).spec(rows(1)[0].key)


def test_a_spec_is_the_callers_own(tmp_path):
    filled = Store(tmp_path)
    filled.put("base", rows(1), tree(1))
    filled.spec(rows(1)[0].key)["seed"] = 99
    assert filled.spec(rows(1)[0].key) == rows(1)[0].spec


def test_a_sidecar_of_another_format_is_left_alone(tmp_path):
    Store(tmp_path).put("base", rows(1), tree(1))
    path = next((tmp_path / "artifacts").glob("*.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    lines = []
    assert Store(tmp_path, lines.append).done() == {} and path.exists() and "format 99" in lines[0]


def test_a_hash_is_checked_once_and_arrays_are_not_read_at_opening(tmp_path, monkeypatch):
    Store(tmp_path).put("base", rows(3), tree(3))
    read = []
    real = shards.file_sha256
    monkeypatch.setattr(shards, "file_sha256", lambda path: read.append(path) or real(path))
    opened = Store(tmp_path)
    opened.done(), opened.spec(rows(1)[0].key), opened.row(rows(1)[0].key)
    assert read == []
    for row in rows(3) * 2:
        opened.get(row.key), opened.verify([row.key]), opened.curves(row.key)
    assert len(read) == 1


# --- mistakes of the caller ---


@pytest.mark.parametrize(
    ("batch", "values", "curves", "error", "words"),
    [
        ([], None, None, ValueError, "keys that differ"),
        (rows(1) * 2, None, None, ValueError, "keys that differ"),
        (rows(1, status="fine"), None, None, ValueError, "none of"),
        (rows(2), {"w": np.zeros((3, 2))}, None, ValueError, r"tree/w: shape \(3, 2\), expected a leading axis of 2"),
        (rows(2), {"w": np.float32(1)}, None, ValueError, "tree/w"),
        (rows(2), {"w": (np.zeros(2), np.zeros(2))}, None, TypeError, "tree/w: tuples"),
        (rows(2), {3: np.zeros(2)}, None, TypeError, "tree: dict keys"),
        (rows(2), {"a/b": np.zeros(2), "a": {"b": np.zeros(2)}}, None, ValueError, "two arrays"),
        (rows(2), {"w": np.array(["a", "b"])}, None, TypeError, "cannot be stored"),
        (rows(2), {"w": np.zeros(2, ml_dtypes.int4)}, None, TypeError, "arrays of int4 cannot be stored"),
        (rows(2), None, {"loss": np.zeros(2)}, ValueError, "curve loss"),
    ],
)
def test_an_impossible_batch_is_refused_and_nothing_is_written(tmp_path, batch, values, curves, error, words):
    with pytest.raises(error, match=words):
        Store(tmp_path).put("base", batch, values, curves)
    assert not (tmp_path / "artifacts").exists()


def test_jax_arrays_are_taken(tmp_path):
    jnp = pytest.importorskip("jax.numpy")
    Store(tmp_path).put("base", rows(2), {"w": jnp.ones((2, 3), jnp.bfloat16)})
    assert_same(Store(tmp_path).get(rows(1)[0].key), {"w": np.ones(3, ml_dtypes.bfloat16)})


# --- object stores ---


def test_on_an_object_store(tmp_path, monkeypatch):
    # The local disk stands in for the store: only the ways of writing, locking and opening differ.
    for module in (atomic, shards, workdir):
        monkeypatch.setattr(module, "is_local", lambda path: False)
    opened = Store(tmp_path)
    opened.put("base", rows(3), tree(3))
    (tmp_path / "artifacts" / "another-sweep.safetensors").write_bytes(b"on its way")
    reader = Store(tmp_path)
    assert_same(reader.get(rows(3)[2].key), row_of(tree(3), 2))
    assert (tmp_path / "artifacts" / "another-sweep.safetensors").exists()
    with workdir.lock(tmp_path), workdir.lock(tmp_path):
        pass


# --- the working directory ---

HOLD = """
import os, signal, sys
from subl_jax.storage.workdir import lock
with lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read(1)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_one_sweep_per_directory(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout.readline() == "held\n"
        with (
            pytest.raises(InputError, match="another sweep is running in it; wait for it or") as caught,
            workdir.lock(tmp_path),
        ):
            pass
        assert str(tmp_path) in str(caught.value)
        process.stdin.write("x")
        process.stdin.flush()
        process.wait(30)
    # The holder was killed, and the system let go of its lock.
    for _ in range(2):
        with workdir.lock(tmp_path):
            pass


def test_a_lock_file_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot write .*file/.lock: "), workdir.lock(tmp_path / "file"):
        pass


def test_open_workdir(tmp_path, monkeypatch):
    path = tmp_path / "new" / "deep"
    assert workdir.open_workdir(str(path)).is_dir() and list(path.iterdir()) == []
    assert workdir.open_workdir(path) == epath.Path(path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert os.fspath(workdir.open_workdir("~/runs")) == str(tmp_path / "runs")
    (tmp_path / "file").write_text("in the way")
    for wrong in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=f"--workdir {wrong}: (File exists|Not a directory); give"):
            workdir.open_workdir(wrong)

    def refuse(self, data):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(type(epath.Path(tmp_path)), "write_bytes", refuse)
    with pytest.raises(InputError, match="Permission denied; give a directory that can be written"):
        workdir.open_workdir(tmp_path)


# --- several processes ---


def test_what_another_process_stores_is_known_once_told(tmp_path):
    first = Store(tmp_path)
    first.put("base", rows(2), tree(2))
    other = Store(tmp_path, entries=json.loads(json.dumps(first.entries())))
    assert other.done() == first.done()
    assert_same(other.get(rows(2)[1].key), first.get(rows(2)[1].key))
    entry = json.loads(json.dumps(other.put("base", rows(3, start=2), tree(3))))
    assert first.done().keys() == {row.key for row in rows(2)}
    for _ in range(2):  # told twice is told once
        first.adopt(entry)
        assert first.done() == other.done() == Store(tmp_path).done()
    assert_same(first.get(rows(5)[4].key), other.get(rows(5)[4].key))


def test_a_shard_that_another_process_writes_again_is_read_anew(tmp_path):
    first = Store(tmp_path)
    first.put("base", rows(2), tree(2))
    other = Store(tmp_path, entries=first.entries())
    first.get(rows(1)[0].key)
    first.adopt(other.put("base", rows(2), tree(2, scale=3.0)))
    assert_same(first.get(rows(1)[0].key), other.get(rows(1)[0].key))
