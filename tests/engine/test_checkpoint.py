"""Checkpoints: exact round trips, kills in the middle of a save, damage, and saves of another program."""

import errno
import json
import logging
import os
import re
import socket
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from subl_jax.engine import checkpoint
from subl_jax.engine.checkpoint import Checkpoints
from subl_jax.errors import OutOfMemory, StorageError
from subl_jax.storage import retrying
from subl_jax.storage.atomic import storage_error


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "running" / "batch"


def make_state(scale=1.0, dtype=jnp.float32):
    params = {
        "w": (jnp.arange(12.0).reshape(4, 3) * scale).astype(dtype),
        "b": jnp.ones((4, 2), jnp.bfloat16) * scale,
        "frozen": None,
        "empty": jnp.zeros((4, 0)),
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    _, opt_state = optimizer.update(params, optimizer.init(params), params)
    return {"params": params, "opt": opt_state, "step": jnp.int32(7), "done": np.array([True, False, True, True])}


def make_records(rounds):
    losses = np.arange(4.0 * rounds, dtype=np.float32).reshape(rounds, 4)
    return {"loss": losses, "traits": [np.arange(rounds), np.zeros((rounds, 2), jnp.bfloat16)], "none": {}}


def abstract(state):
    return jax.eval_shape(lambda: jax.tree.map(jnp.asarray, state))


def assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def saved(directory, *rounds):
    checkpoints = Checkpoints(directory)
    for round in rounds:
        checkpoints.save(round, make_state(round), make_records(round), {"round": round, "name": "é"})
    checkpoints.close()


def restored(directory, state=None):
    lines = []
    checkpoints = Checkpoints(directory, lines.append)
    result = checkpoints.restore(abstract(make_state() if state is None else state))
    checkpoints.close()
    return result, lines


def test_round_trip_in_another_manager(directory):
    assert restored(directory) == (None, [])
    saved(directory, 10, 25, 40)
    (round, state, records, meta), lines = restored(directory)
    assert (round, meta, lines) == (40, {"round": 40, "name": "é"}, [])
    assert_same(state, make_state(40))
    assert isinstance(state["opt"][1][0], optax.ScaleByAdamState)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    assert_same(records, make_records(40))
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(records))


@pytest.mark.parametrize("method", ["_read_seal", "_restore"])
def test_storage_that_stumbles_costs_no_save(directory, monkeypatch, method):
    """What may pass is tried again, and told if it does not; the save is there afterwards."""
    saved(directory, 10, 25)
    pauses, real, times = [], getattr(Checkpoints, method), [3]

    def stumbling(*arguments):
        times[0] -= 1
        if times[0] >= 0:
            raise ConnectionError("the bucket is gone")
        return real(*arguments)

    monkeypatch.setattr(retrying, "time", types.SimpleNamespace(sleep=pauses.append))
    monkeypatch.setattr(Checkpoints, method, stumbling)
    (round, *_), lines = restored(directory)
    assert (round, lines, len(pauses)) == (25, [], 3)
    times[0] = 1000
    with pytest.raises(StorageError, match="^cannot read .*the bucket is gone"):
        restored(directory)
    times[0] = 0
    assert restored(directory)[0][0] == 25


@pytest.mark.parametrize(
    "error", [PermissionError(13, "denied"), ValueError("UNAVAILABLE: Error reading 'gs://bucket/x'")], ids=type
)
def test_storage_that_refuses_costs_no_save(directory, monkeypatch, error):
    saved(directory, 10)

    def refuse(*arguments):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "_restore", refuse)
        with pytest.raises(StorageError, match="^cannot read"):
            restored(directory)
    assert restored(directory)[0][0] == 10


def test_a_save_without_memory_is_no_damaged_one(directory, monkeypatch):
    saved(directory, 10)

    def full(*arguments):
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "_restore", full)
        with pytest.raises(OutOfMemory):
            restored(directory)
    assert restored(directory)[0][0] == 10


def test_records_may_be_empty(directory):
    checkpoints = Checkpoints(directory)
    checkpoints.save(0, {"w": jnp.ones(2)}, {"loss": np.zeros((0, 4), np.float32)}, {})
    round, _, records, meta = checkpoints.restore(abstract({"w": jnp.ones(2)}))
    assert (round, meta) == (0, {}) and records["loss"].shape == (0, 4) and records["loss"].dtype == np.float32
    checkpoints.close()


def test_the_latest_two_are_kept_and_numbered_one_by_one(directory):
    saved(directory, 10, 25, 40)
    assert {path.name for path in (directory / "saves").iterdir()} == {"1", "2"}
    saved(directory, 55)
    assert {path.name for path in (directory / "saves").iterdir()} == {"2", "3"}
    assert restored(directory)[0][0] == 55


def test_arrays_may_change_while_they_are_written(directory):
    checkpoints = Checkpoints(directory)
    records = {"loss": np.zeros(1000)}
    state = jnp.zeros((1000, 500))
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    for round in range(4):
        checkpoints.save(round, {"x": state}, records, {})
        state = step(state)
        records["loss"] += 1
    got, result, recorded, _ = checkpoints.restore(abstract({"x": state}))
    assert got == 3 and (result["x"] == 3).all() and (recorded["loss"] == 3).all()
    checkpoints.close()


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(directory):
    optimizer = optax.adam(0.1)
    start = jnp.arange(3.0)

    def step(carry):
        params, opt_state = carry
        updates, opt_state = optimizer.update(jax.grad(lambda p: jnp.sum((p - 2) ** 2))(params), opt_state)
        return optax.apply_updates(params, updates), opt_state

    whole = carry = (start, optimizer.init(start))
    for _ in range(6):
        whole = step(whole)
    for _ in range(3):
        carry = step(carry)
    checkpoints = Checkpoints(directory)
    checkpoints.save(3, carry, {}, {})
    checkpoints.close()
    round, carry, _, _ = restored(directory, carry)[0]
    for _ in range(round, 6):
        carry = step(carry)
    assert_same(carry, whole)


# --- kills ---

KILLED = """
import os, signal, sys
import jax.numpy as jnp, numpy as np
from subl_jax.engine import checkpoint
checkpoints = checkpoint.Checkpoints(sys.argv[1])
def save(round):
    checkpoints.save(round, {"x": jnp.full((300, 300), round)}, {"loss": np.arange(round)}, {})
if sys.argv[2] == "second":
    save(1)
    checkpoints.wait()
kill = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[3] == "before the seal":
    checkpoint._hashes = kill
elif sys.argv[3] == "after the seal":
    real = checkpoint.write_json_atomic
    checkpoint.write_json_atomic = lambda *args: kill(real(*args))
save(2)
if sys.argv[3] == "at once":
    kill()
checkpoints.wait()
"""


@pytest.mark.parametrize(
    ("which", "when"),
    [("first", "before the seal"), ("second", "after the seal"), ("second", "at once")],
)
def test_a_kill_in_the_middle_of_a_save(directory, which, when):
    process = subprocess.run([sys.executable, "-c", KILLED, str(directory), which, when], timeout=900, check=False)
    assert process.returncode == -9
    state = {"x": jnp.zeros((300, 300), int)}
    result, lines = restored(directory, state)
    assert lines == []
    if which == "first":
        assert result is None
    else:
        round, got, records, _ = result
        # Killed at once, the second save may have been just in time.
        assert round == 1 or (when == "at once" and round == 2)
        assert (got["x"] == round).all() and records["loss"].shape == (round,)
    checkpoints = Checkpoints(directory)
    checkpoints.save(3, state, {}, {})
    checkpoints.close()
    assert restored(directory, state)[0][0] == 3
    assert not [path for path in (directory / "saves").iterdir() if "tmp" in path.name]


# --- damage and misfits ---


def largest(path):
    return max((file for file in path.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


def flip_a_bit(directory):
    file = largest(directory / "saves" / "1" / "default")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def truncate(directory):
    file = largest(directory / "saves" / "1" / "default")
    file.write_bytes(file.read_bytes()[:-1])


DAMAGE = {
    "flipped bit": flip_a_bit,
    "truncated": truncate,
    "missing file": lambda directory: largest(directory / "saves" / "1" / "default").unlink(),
    "no manifest": lambda directory: (directory / "saves" / "1" / "default" / "manifest.ocdbt").unlink(),
    "no seal": lambda directory: (directory / "seals" / "1.json").unlink(),
    "a seal of an earlier version": lambda directory: (directory / "seals" / "1.json").write_text(
        (directory / "seals" / "1.json").read_text().replace('"steps": ', '"round": ')
    ),
    "half a seal": lambda directory: (directory / "seals" / "1.json").write_text('{"steps": 2'),
    "empty seal": lambda directory: (directory / "seals" / "1.json").write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_save_gives_way_to_the_one_before(directory, damage):
    saved(directory, 1, 2)
    DAMAGE[damage](directory)
    (round, state, records, _), lines = restored(directory)
    assert round == 1 and len(lines) == 1 and "saves/1 cannot be used and is removed: " in lines[0]
    assert "\n" not in lines[0]
    assert_same(state, make_state(1))
    assert_same(records, make_records(1))
    saved(directory, 3)
    assert restored(directory)[0][0] == 3
    assert {path.name for path in (directory / "saves").iterdir()} == {"0", "1"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s | {"step": np.float32(0)}, r"holds \['step'\] as int32\[\], and this run needs .* float32"),
        (lambda s: s | {"step": np.zeros(2, np.int32)}, r"holds \['step'\] as int32\[\], and .* int32\[2\]"),
        (lambda s: s | {"params": s["params"] | {"w": jnp.zeros((4, 3), jnp.bfloat16)}}, r"\['w'\] as float32\[4, 3\]"),
        (lambda s: s | {"stop": s["step"]}, r"it holds \d+ arrays, and this run needs \d+"),
        (lambda s: {("halt" if key == "step" else key): s[key] for key in s}, "this run needs"),
    ],
)
def test_saves_of_another_program_are_not_used(directory, change, words):
    saved(directory, 1, 2)
    result, lines = restored(directory, change(make_state()))
    assert result is None and len(lines) == 2
    assert re.search(words, lines[0]), lines[0]
    assert list((directory / "saves").iterdir()) == []


@pytest.mark.parametrize("wanted", [3, 8])
def test_rows_that_mean_nothing_may_be_missing_or_more(directory, wanted):
    def rows(n, scale=1.0):
        few = np.arange(3.0, dtype=np.float32)[:, None] * scale
        return np.concatenate([few, np.repeat(few[:1], n - 3, axis=0)])

    checkpoints = Checkpoints(directory)
    checkpoints.save(2, {"w": jnp.asarray(rows(5))}, {"loss": rows(5, 2.0)}, {})
    target = {"w": jax.ShapeDtypeStruct((wanted, 1), jnp.float32)}
    _, state, records, _ = checkpoints.restore(target, rows=3)
    np.testing.assert_array_equal(state["w"], rows(wanted))
    np.testing.assert_array_equal(records["loss"], rows(wanted, 2.0))
    assert checkpoints.restore(target, rows=4 if wanted == 3 else 6) is None
    checkpoints.close()


def test_interrupted_batches_are_found_by_their_meta(tmp_path):
    assert checkpoint.interrupted(tmp_path / "none") == []
    saved(tmp_path / "a", 1, 2)
    saved(tmp_path / "b", 7)
    (tmp_path / "c" / "seals").mkdir(parents=True)
    (tmp_path / "c" / "seals" / "0.json").write_text("{")
    assert [meta["round"] for meta in checkpoint.interrupted(tmp_path)] == [2, 7]


def test_a_failing_disk_is_one_clear_line_and_leaves_the_older_save(directory, monkeypatch):
    checkpoints = Checkpoints(directory)
    checkpoints.save(1, make_state(1), {}, {})
    checkpoints.wait()

    def full(path, value):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_json_atomic", full)
        checkpoints.save(2, make_state(2), {}, {})
        with pytest.raises(StorageError, match="cannot write .*batch: No space left on device; free") as caught:
            checkpoints.wait()
    assert "\n" not in str(caught.value)
    checkpoints.close()
    assert restored(directory)[0][0] == 1


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write .*file/batch: "):
        Checkpoints(tmp_path / "file" / "batch")


def test_meta_is_plain_json_beside_the_save(directory):
    saved(directory, 4)
    seal = json.loads((directory / "seals" / "0.json").read_text())
    assert seal["steps"] == 4 and seal["meta"] == {"round": 4, "name": "é"}


def test_orbax_is_quiet_and_others_are_not(directory, caplog, capfd):
    logging.getLogger("absl").setLevel(logging.DEBUG)
    try:
        saved(directory, 1, 2)
        restored(directory)
        assert caplog.records == [] and capfd.readouterr() == ("", "")
        logging.getLogger("absl").warning("of somebody else")
        assert len(caplog.records) == 1
    finally:
        logging.getLogger("absl").setLevel(logging.NOTSET)


# --- devices ---

OTHER_DEVICES = """
import sys
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_num_cpu_devices", 4)
from jax.sharding import AxisType, NamedSharding
from subl_jax.storage.atomic import storage_error
from subl_jax.engine.checkpoint import Checkpoints
def lanes(n):
    mesh = jax.make_mesh((n,), ("lane",), axis_types=(AxisType.Auto,), devices=jax.devices()[-n:])
    return NamedSharding(mesh, jax.P("lane"))
values = np.arange(24.0, dtype=np.float32).reshape(4, 6)
checkpoints = Checkpoints(sys.argv[1])
checkpoints.save(5, {"w": jax.device_put(values, lanes(4)), "e": jax.device_put(np.zeros((4, 0)), lanes(4))}, {}, {})
for n in (2, 1, 4):
    target = {"w": jax.ShapeDtypeStruct((4, 6), np.float32, sharding=lanes(n)),
              "e": jax.ShapeDtypeStruct((4, 0), np.float32, sharding=lanes(n))}
    state = checkpoints.restore(target)[1]
    for leaf in state.values():
        assert leaf.sharding == lanes(n), leaf.sharding
    np.testing.assert_array_equal(state["w"], values)
target = {"w": jax.ShapeDtypeStruct((4, 6), np.float32), "e": jax.ShapeDtypeStruct((4, 0), np.float32)}
state = checkpoints.restore(target)[1]
assert state["w"].devices() == {jax.devices()[0]}
checkpoints.close()
print("same")
"""


def test_restores_onto_another_number_of_devices(directory):
    process = subprocess.run(
        [sys.executable, "-c", OTHER_DEVICES, str(directory)], timeout=900, capture_output=True, text=True, check=False
    )
    assert process.stdout == "same\n", process.stderr


UNREADABLE = """
import sys
import jax, numpy as np
import orbax.checkpoint as ocp
from jax.sharding import AxisType, NamedSharding
from subl_jax.runtime import cluster
from subl_jax.engine.checkpoint import Checkpoints
from subl_jax.errors import StorageError
directory, address, index = sys.argv[1:]
cluster.start(cluster.Options(None, address, 2, int(index)))
lanes = NamedSharding(jax.make_mesh((2,), ("lane",), axis_types=(AxisType.Auto,)), jax.P("lane"))
own = np.full((1, 3), float(index), np.float32)
state = {"w": jax.make_array_from_process_local_data(lanes, own, (2, 3))}
checkpoints = Checkpoints(directory)
checkpoints.save(4, state, {"loss": state["w"]}, {})
target = {"w": jax.ShapeDtypeStruct((2, 3), np.float32, sharding=lanes)}
whole = checkpoints.restore(target, sharding=lanes)
assert (whole[0], whole[1]["w"].sharding) == (4, lanes)
for restored in (whole[1]["w"], whole[2]["loss"]):
    np.testing.assert_array_equal(restored.addressable_data(0), own)

def unreadable(*arguments, **options):
    raise PermissionError(13, "Permission denied")

if index == "1":
    ocp.StandardCheckpointHandler.restore = unreadable
try:
    checkpoints.restore(target, sharding=lanes)
except StorageError as error:
    print(error)
checkpoints.close()
cluster.leave(0)
"""


@pytest.mark.slow
def test_where_one_process_cannot_read_a_save_all_say_so_and_none_waits(directory):
    with socket.create_server(("localhost", 0)) as free:
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-c", UNREADABLE, str(directory), address]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    options["env"] = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}
    processes = [subprocess.Popen([*command, index], **options) for index in "01"]
    try:
        for process in processes:
            out, error = process.communicate(timeout=900)
            assert process.returncode == 0, error
            assert re.search(r"^cannot read .*batch: Permission denied; .*\n", out, re.M), out
    finally:
        for process in processes:
            process.kill()
    assert list((directory / "saves").iterdir()) == [directory / "saves" / "0"]


def test_a_seal_that_cannot_be_written_is_told_once(directory, monkeypatch):
    def full(path, value):
        raise storage_error(path, OSError(errno.ENOSPC, ""))

    monkeypatch.setattr(checkpoint, "write_json_atomic", full)
    checkpoints = Checkpoints(directory)
    checkpoints.save(0, make_state(), make_records(1), {})
    with pytest.raises(StorageError, match=r"seals/0.json: No space left on device; free some space [^:]*$"):
        checkpoints.wait()


def test_a_relative_directory_will_do(directory, monkeypatch):
    directory.parent.mkdir()
    monkeypatch.chdir(directory.parent)
    saved(directory.name, 3)
    assert restored(directory)[0][0] == 3
