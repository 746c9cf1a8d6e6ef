"""Several processes as one: options, exchanges, and whole sweeps on the CPU, with the tables of one process."""

import json
import re
import signal
import socket
import subprocess
import sys

import jax
import pytest
from machine import TESTS, Machine, assert_complete, ended
from moments import at

from subl_jax.app import running
from subl_jax.engine.plan import make_plan
from subl_jax.engine.settings import Settings
from subl_jax.errors import InputError, StorageError
from subl_jax.runtime import cluster

# Float sums are taken in the same order in each process; only what XLA fuses may differ with the layout.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}
# One trait and base pair: short, and still with every stage and two batches of students.
SMALL = ("--config.traits=('owl',)", "--config.engine.lanes_a_batch=4")
# One step at a time, and saved when told to stop.
BY_STEPS = ("--config.engine.stretch_seconds=1e-9", "--config.engine.checkpoint_seconds=600")
GONE = (
    "preempted: another process of this run is gone; what was computed is stored; run the same command again to go on"
)
STOPPED = "preempted: what was computed is stored; run the same command again to go on"


# --- options ---


@pytest.mark.parametrize(
    "given, message",
    [
        ({"coordinator": "h:1"}, "go together; --num_processes is missing"),
        ({"num_processes": 2, "process_id": 0}, "go together; --coordinator is missing"),
        ({"coordinator": "host", "num_processes": 2, "process_id": 0}, "--coordinator=host: expected HOST:PORT"),
        ({"coordinator": "h:99999", "num_processes": 2, "process_id": 0}, "h:99999: expected HOST:PORT"),
        ({"coordinator": "h:1", "num_processes": 0, "process_id": 0}, "--num_processes=0: expected 1 or more"),
        ({"coordinator": "h:1", "num_processes": 2, "process_id": 2}, "--process_id=2: expected 0 to 1"),
        ({"distributed": False, "process_id": 0}, "--nodistributed and --process_id contradict each other"),
    ],
)
def test_flags_that_cannot_be_are_one_line(given, message):
    with pytest.raises(InputError, match=message):
        cluster.Options(**given)


@pytest.mark.parametrize(("reason", "status"), [("gone", 75), (None, -signal.SIGABRT)])
def test_an_abort_is_resumable_while_other_processes_can_be_lost(reason, status):
    program = f"cluster._leave_on_abort('set'); cluster._leave_on_abort({reason!r}); os.abort()"
    program = f"import os; from subl_jax.runtime import cluster; {program}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert done.stderr == (f"preempted: gone; {cluster.RESUME}\n" if reason else "")


@pytest.fixture
def initialised(monkeypatch):
    """What jax is asked for, without doing it."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **kwargs: calls.append((*args[:3], kwargs)))
    monkeypatch.setattr(jax.config, "update", lambda *args: None)
    monkeypatch.setattr(cluster, "_leave_on_abort", lambda reason: None)
    return calls


@pytest.mark.parametrize(
    "platforms, options, asked",
    [
        ("cpu", {}, None),
        ("tpu,cpu", {}, (None, None, None)),
        ("tpu,cpu", {"distributed": False}, None),
        ("cpu", {"distributed": True}, (None, None, None)),
        ("cpu", {"coordinator": "h:1", "num_processes": 3, "process_id": 1}, ("h:1", 3, 1)),
    ],
)
def test_a_tpu_starts_by_itself_and_others_when_asked(monkeypatch, initialised, platforms, options, asked):
    monkeypatch.setattr(type(jax.config), "jax_platforms", platforms, raising=False)
    cluster.start(cluster.Options(**options))
    assert [call[:3] for call in initialised] == ([] if asked is None else [asked])


def test_a_tpu_of_one_worker_and_a_missing_cluster(monkeypatch, initialised):
    def nothing(*args, **kwargs):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", nothing)
    monkeypatch.setattr(type(jax.config), "jax_platforms", "tpu,cpu", raising=False)
    cluster.start(cluster.Options())
    with pytest.raises(InputError, match="no TPU slice, SLURM step, Open MPI or Kubernetes job"):
        cluster.start(cluster.Options(distributed=True))


def test_a_port_that_is_taken_is_one_line(initialised):
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"localhost:{port}: cannot listen at port {port}: Address already in use"):
            cluster.start(cluster.Options(None, f"localhost:{port}", 2, 0))
    cluster.start(cluster.Options(None, f"localhost:{port}", 2, 0))
    assert len(initialised) == 1


# --- exchanges ---


class Chorus(cluster.Peers):
    """Process 0 of three; `replies` are what the others say, exchange by exchange."""

    def __init__(self, *replies):
        super().__init__()
        self.count, self._replies = 3, iter(replies)

    def gather(self, value):
        return json.loads(json.dumps([value, *next(self._replies)]))


def test_one_process_agrees_with_itself():
    peers = cluster.Peers()
    assert (peers.leads, peers.gather({"a": 1}), peers.first(3)) == (True, [{"a": 1}], 3)
    assert peers.any(True) and not peers.any(False)
    assert peers.together(lambda: 5) == 5


def test_what_fails_in_one_process_fails_in_all():
    assert Chorus((None, None)).together(lambda: 5) == 5
    with pytest.raises(StorageError, match="disk of 2"):
        Chorus((None, [False, "disk of 2"])).together(lambda: 5)
    with pytest.raises(InputError, match="input of 1"):
        Chorus(([True, "input of 1"], None)).together(lambda: 5)
    with pytest.raises(ZeroDivisionError):
        Chorus((None, None)).together(lambda: 1 / 0)


def test_processes_of_another_sweep_or_on_other_storage_are_told_so(tmp_path):
    with pytest.raises(InputError, match="process 2 does not see what process 0 writes"):
        running.check_shared(Chorus((None, None), (None, None), (True, False)), tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="process 1 was started with another sweep or other settings"):
        running.check_equal(Chorus(("another", "another")), make_plan([], ()), Settings())


# --- sweeps ---

# Six datasets in batches of four: of the last two the second process has none. Teachers stop once they have their
# trait, some a round before others.
WHOLE = ("--config.traits=('owl',)", "--config.engine.lanes_a_batch=4", "--config.seeds=3", "--config.until=0.8")
RARELY = "--config.engine.checkpoint_seconds=600"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A sweep of this process alone; what it compiles is there for the processes of all tests."""
    machine = Machine(tmp_path_factory.mktemp("whole"), None)
    code, _, error = machine.here(*WHOLE, RARELY)
    assert (code, error) == (0, "")
    return machine


@pytest.fixture
def machine(tmp_path, whole, programs):
    return Machine(tmp_path, programs)


def groups_of(machine):
    return json.loads((machine.workdir / "sweep.json").read_text())["groups"]


def saves(machine):
    return len(list((machine.workdir / "checkpoints").glob("*/saves/*")))


FULL = """
import sys
import jax
from subl_jax.engine import lanes

advance, rounds = lanes.Program.advance, []

def full(self, *arguments):
    rounds.append(1)
    if "--process_id=1" in sys.argv and self.layout.lanes > 2 and len(rounds) % 2 == 0:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")
    return advance(self, *arguments)

lanes.Program.advance = full
"""


def test_two_processes_give_the_tables_of_one(machine, whole, tmp_path):
    """One of them runs out of memory now and then, and both go on with fewer lanes."""
    file = tmp_path / "tiny_sweep.py"
    file.write_text((TESTS / "tiny_sweep.py").read_text() + FULL)
    machine.sweep = f"{file}:large"
    done = machine.run_all(2, *WHOLE, RARELY)
    assert [(code, error) for code, _, error in done] == [(0, "")] * 2
    assert_complete(machine, whole, **TOLERANCE)
    assert "report.html" in done[0][1]
    assert not any("report.html" in out or "distil" in out for _, out, _ in done[1:])  # one of them speaks
    assert re.search(r"a batch of 4 \w+ does not fit into memory; going on with 2\b", done[0][1])
    assert {int(group["layout"].split()[0]) for group in groups_of(machine)} == {2}
    # Each process has stored its own lanes.
    assert len(list((machine.workdir / "artifacts").glob("*.json"))) > len(groups_of(machine))
    for where in (machine, whole):
        (instil,) = (group for group in groups_of(where) if group["stage"] == "instil")
        assert 0 < instil["lane_steps"] < 60 * instil["lanes"]
    machine.sweep = whole.sweep
    assert machine.here(*WHOLE)[0] == 0 and machine.computed() == 0


def test_processes_stop_together_and_go_on_in_another_number(machine, whole):
    """Two, of which one is told to stop within a round; then one, on two devices."""
    within = at("stretch", stage="instil", process=1, ends=False)
    done = machine.stop_one_of(2, within, signal.SIGTERM, *WHOLE, *BY_STEPS)
    assert [(code, error) for code, _, error in done] == [(75, f"{STOPPED}\n")] * 2
    assert saves(machine) == 1
    before = set(machine.stored())
    code, out, error = machine.here(*WHOLE, RARELY, "--config.engine.devices=2")
    assert (code, error) == (0, "")
    assert "cannot be used" not in out
    assert machine.computed() == len(machine.stored()) - len(before)
    assert_complete(machine, whole, **TOLERANCE)


# --- sweeps, one thing at a time ---


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    machine = Machine(tmp_path_factory.mktemp("quiet"), None)
    code, _, error = machine.here(*SMALL, RARELY)
    assert (code, error) == (0, "")
    return machine


@pytest.mark.slow
@pytest.mark.parametrize("count, devices", [(2, 2), (4, 1)])
def test_several_processes_give_the_tables_of_one(machine, quiet, count, devices):
    """Each with its own devices, of which a small group may leave some out."""
    settings = ("--config.engine.checkpoint_seconds=600", f"--config.engine.devices={devices}")
    done = machine.run_all(count, *SMALL, *settings)
    assert [(code, error) for code, _, error in done] == [(0, "")] * count
    assert_complete(machine, quiet, **TOLERANCE)
    assert "report.html" in done[0][1]
    assert not any("report.html" in out or "distil" in out for _, out, _ in done[1:])  # one of them speaks
    groups = json.loads((machine.workdir / "sweep.json").read_text())["groups"]
    assert {int(group["layout"].split()[0]) for group in groups} <= {count, count * devices}
    assert groups[-1]["layout"].startswith(f"{count * devices} devices")
    # Each process has stored its own lanes.
    assert len(list((machine.workdir / "artifacts").glob("*.json"))) > len(groups)
    assert machine.run(*SMALL)[0] == 0 and machine.computed() == 0


@pytest.mark.slow
def test_processes_stop_together_once_all_teachers_have_their_trait(machine, quiet, tmp_path, programs):
    """One of the two has its own a round before the other."""
    arguments = (*SMALL, "--config.until=0.8", "--config.engine.checkpoint_seconds=600")
    alone = Machine(tmp_path / "alone", programs)
    alone.folder.mkdir()
    assert alone.run(*arguments)[0] == 0
    assert [(code, error) for code, _, error in machine.run_all(2, *arguments)] == [(0, "")] * 2
    assert_complete(machine, alone, **TOLERANCE)
    for where in (machine, alone):
        groups = json.loads((where.workdir / "sweep.json").read_text())["groups"]
        (instil,) = (group for group in groups if group["stage"] == "instil")
        assert 0 < instil["lane_steps"] < 60 * instil["lanes"]


@pytest.mark.slow
def test_a_sweep_goes_on_with_another_number_of_processes(machine, quiet):
    """One process, told to stop within a round; then two, of which the first is killed; then one. All go by steps."""
    within = at("stretch", stage="instil", batch=1, ends=False)
    code, _, error = machine.stop_at(within, signal.SIGTERM, *SMALL, *BY_STEPS)
    assert (code, error) == (75, f"{STOPPED}\n")
    assert saves(machine) == 1
    stored = at("stored", stage="write", process=0)
    killed, other = machine.stop_one_of(2, stored, signal.SIGKILL, *SMALL, *BY_STEPS)
    assert killed[0] == -signal.SIGKILL
    assert other[0] == 75 and other[2].splitlines()[-1] == GONE
    before = set(machine.stored())
    assert machine.run(*SMALL, *BY_STEPS, "--config.engine.devices=2")[0] == 0
    assert machine.computed() == len(machine.stored()) - len(before)
    assert_complete(machine, quiet, **TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("cut", [(), BY_STEPS], ids=["by rounds", "by steps"])
def test_all_stop_where_one_is_told_to_and_the_save_serves_one_process(machine, quiet, cut):
    second = at("stretch", stage="distil", batch=2, process=1)
    done = machine.stop_one_of(2, second, signal.SIGTERM, *SMALL, *cut)
    assert [(code, error) for code, _, error in done] == [(75, f"{STOPPED}\n")] * 2
    assert saves(machine) > 0
    code, out, error = machine.run(*SMALL)
    assert (code, error) == (0, "")
    assert "cannot be used" not in out
    assert_complete(machine, quiet, **TOLERANCE)


@pytest.mark.slow
def test_all_go_on_with_fewer_lanes_where_one_runs_out_of_memory(tmp_path, quiet, programs):
    file = tmp_path / "tiny_sweep.py"
    file.write_text((TESTS / "tiny_sweep.py").read_text() + FULL)
    machine = Machine(tmp_path / "there", programs, f"{file}:large")
    machine.folder.mkdir()
    done = machine.run_all(2, *SMALL, "--config.engine.checkpoint_seconds=600")
    assert [(code, error) for code, _, error in done] == [(0, "")] * 2
    assert "distil: a batch of 4 students does not fit into memory; going on with 2" in done[0][1]
    assert_complete(machine, quiet, **TOLERANCE)


WAITING = """
import pathlib
import re
import sys
import threading
from subl_jax.engine import lanes
from subl_jax.storage.store import Store

put, start, starts, fifth = Store.put, lanes.Program.start, [], threading.Event()
waited = pathlib.Path(f"waited-{sys.argv[-1][-1]}")

def waiting(self, stage, *arguments, **options):
    if stage == "distil" and not waited.exists():
        fifth.wait(60)  # for bases, teachers, datasets, and two of students
        waited.write_text(str(len(starts)))
    return put(self, stage, *arguments, **options)

def told(self, arguments):
    starts.append(1)
    if len(starts) == 5:
        fifth.set()
    return start(self, arguments)

Store.put, lanes.Program.start = waiting, told
"""


@pytest.mark.slow
def test_each_process_writes_a_batch_while_the_next_one_is_computed(tmp_path, quiet, programs):
    """The first batch of students is not written before the second one has been started."""
    file = tmp_path / "tiny_sweep.py"
    file.write_text((TESTS / "tiny_sweep.py").read_text() + WAITING)
    machine = Machine(tmp_path / "there", programs, f"{file}:large")
    machine.folder.mkdir()
    where = machine.cluster(2)
    flags = (*SMALL, "--config.engine.checkpoint_seconds=600")
    done = ended([machine.start(*where, *flags, f"--process_id={i}") for i in range(2)])
    assert [(code, error) for code, _, error in done] == [(0, "")] * 2
    assert [(machine.folder / f"waited-{i}").read_text() for i in range(2)] == ["5"] * 2
    assert_complete(machine, quiet, **TOLERANCE)


@pytest.mark.slow
def test_a_process_that_is_lost_is_missed_by_its_heartbeat(machine, quiet):
    other, killed = machine.stop_one_of(2, at("saved", process=1), signal.SIGKILL, *SMALL)
    assert killed[0] == -signal.SIGKILL
    assert other[0] == 75 and other[2].splitlines()[-1] == GONE
    assert [code for code, *_ in machine.run_all(3, *SMALL)] == [0] * 3
    assert_complete(machine, quiet, **TOLERANCE)


@pytest.mark.slow
def test_a_batch_of_datasets_is_saved_also_where_a_process_has_padding_alone(machine):
    """Six datasets in batches of four: of the last two the second process has none."""
    done = machine.run_all(2, *SMALL, "--config.seeds=3")
    assert [(code, error) for code, _, error in done] == [(0, "")] * 2
    assert (machine.tables()["runs"].status == "ok").all()


@pytest.mark.slow
def test_processes_of_another_sweep_are_refused_before_anything_is_computed(machine):
    where = machine.cluster(2)
    processes = [machine.start(*where, "--process_id=0"), machine.start(*where, "--process_id=1", "--config.seeds=3")]
    for code, _, error in ended(processes):
        assert code == 2 and "process 1 was started with another sweep" in error
    assert not machine.stored()
