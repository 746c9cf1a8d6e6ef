"""Sweeps on a Ray cluster of several node processes, disturbed and not, end with the tables of a local run."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading

import pytest
import tiny_world
from machine import assert_as_quiet
from moments import Stops, at
from ray_machines import ROOT, TESTS, Machines

from subl_jax import specs
from subl_jax.engine.timing import GroupTiming, summed
from subl_jax.errors import InputError, StorageError
from subl_jax.fleet import cluster, portable
from subl_jax.fleet import worker as at_work
from subl_jax.storage.store import Row, Store

# --- without a cluster ---


def test_resources_are_read_from_text():
    assert cluster.Fleet.parsed("auto", "GPU=1,CPU=8").resources == {"GPU": 1.0, "CPU": 8.0}
    assert cluster.Fleet.parsed("auto", "").resources == {}


@pytest.mark.parametrize("text", ["GPU", "GPU=", "GPU=x", "GPU=-1", "TPU=0", "=1"])
def test_resources_that_are_none_are_one_line(text):
    with pytest.raises(InputError, match=r"^--ray_resources=.* is not NAME=NUMBER, as in GPU=1,CPU=8$"):
        cluster.Fleet.parsed("auto", text)


def test_without_ray_installed_it_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    line = r"^--launcher=ray: Ray is not installed; pip install 'subl_jax\[ray\]'$"
    with pytest.raises(InputError, match=line), cluster.Fleet().connected():
        pass


@pytest.mark.parametrize(
    ("address", "line"),
    [
        ("127.0.0.1:1", "no cluster to be reached: Connection refused"),
        ("ray://127.0.0.1:10001", "hand the whole command in with `ray job submit`"),
        ("nowhere", "expected auto or HOST:PORT"),
        ("127.0.0.1:99999", "no cluster to be reached"),
    ],
)
def test_an_address_without_a_cluster_is_one_line(address, line):
    pytest.importorskip("ray")
    with pytest.raises(InputError, match=f"^--ray_address={address}: ") as raised, cluster.Fleet(address).connected():
        pass
    assert line in str(raised.value) and "\n" not in str(raised.value)


def test_paths_of_imported_data_go_out_in_full(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    data = specs.Imported(tiny_world.WORLD, sha256="0", size=3, path="mine.jsonl")
    student = specs.Student(tiny_world.base(), data, tiny_world.TRAIN, trait="owl")
    form = portable.portable(specs.to_json(student))
    assert form["data"]["path"] == str(tmp_path / "mine.jsonl")
    assert specs.from_json(form).key == student.key


def test_the_modules_of_a_sweep_file_reach_a_machine_without_them(monkeypatch):
    (form,), sources = portable.forms_of([tiny_world.base()])
    assert set(portable.classes(form)) == {"tiny_world:TinyWorld", "specs/Base", "specs/Train"}
    assert sources.keys() == {"tiny_world"}
    source = sources["tiny_world"]
    monkeypatch.delitem(sys.modules, "tiny_world")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(TESTS)])
    portable.import_sources({"tiny_world": source})
    made = specs.from_json(form)
    assert type(made.world) is sys.modules["tiny_world"].TinyWorld is not tiny_world.TinyWorld
    assert made.key == tiny_world.base().key
    portable.import_sources({"tiny_world": source})
    assert type(specs.from_json(form).world) is type(made.world)


def test_what_no_other_machine_sees_is_said_to_be_unshared(tmp_path, monkeypatch):
    monkeypatch.setattr(at_work, "_VISIBLE_WITHIN", 0.2)
    with pytest.raises(StorageError, match="give a directory that all machines share"):
        at_work.adopt(Store(tmp_path, shared=True), ["0" * 24], tmp_path)


def test_timings_of_batches_add_up():
    def timing(lanes, seconds, flops):
        steps = 10 * lanes
        return GroupTiming(
            "distil",
            lanes,
            "1 device",
            1,
            steps,
            0.5,
            0.0,
            seconds,
            seconds,
            steps / seconds,
            flops,
            flops,
            7 * lanes,
            lanes,
        )

    total = summed([timing(2, 1.0, 3.0), timing(4, 3.0, 1.0)])
    assert (total.lanes, total.batches, total.lane_steps, total.bytes_needed) == (6, 2, 60, 28)
    assert (total.compile_seconds, total.run_seconds, total.waited_seconds) == (1.0, 4.0, 4.0)
    assert (total.lane_steps_per_second, total.flops_per_second, total.ceiling_percent) == (15.0, 1.5, 1.5)
    assert total.bytes_peak == 4


# --- on a cluster ---


class Fleet(Machines):
    """A cluster, and commands that run on it, in `folder`. `stops` stops what computes."""

    def __init__(self, folder, stops):
        self.folder, self.stops = folder, stops
        super().__init__(folder / "cluster.log", stops.environment)

    @property
    def workdir(self):
        return self.folder / "out"

    def start(self, *arguments, sweep="tiny_sweep.py:large"):
        command = [sys.executable, ROOT / "launch" / "sweep.py", "--config", TESTS / sweep, "--workdir", "out"]
        return _start([*command, "--launcher=ray", f"--ray_address={self.address}", *arguments], self.folder)

    def run(self, *arguments, **options):
        return _ended(self.start(*arguments, **options))

    def computing(self, node):
        """The pids of a node's processes that compute a batch."""
        return [pid for pid in _children(node["raylet"]) if _title(pid).startswith("ray::_compute")]

    def lose(self, stop):
        """The machine that computes what was stopped."""
        (node,) = (node for node in self.nodes if node["raylet"] == stop.told["parent"])
        self.nodes.remove(node)
        self.remove_node(node)

    def facts(self):
        return json.loads((self.workdir / "sweep.json").read_text())


def _of_two(stops, process):
    """Lets a batch of teachers go on when another is computed beside it, as there is work for two."""
    first, second = stops.next(process), stops.next(process)
    assert first.pid != second.pid
    first.go_on()
    second.go_on()


TWO = (at("began", stage="instil"), at("began", stage="instil"))


def _ended(process):
    out, error = process.communicate(timeout=600)
    return process.returncode, out, error


def _start(command, folder, stderr=subprocess.PIPE, **environment):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(TESTS)]), **environment}
    command = list(map(str, command))
    return subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=stderr, text=True)


def _children(parent):
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, rest = path.parent.name, path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if int(rest[1]) == parent and rest[0] != "Z":
            yield int(pid)


def _title(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


@pytest.fixture
def machines(tmp_path):
    pytest.importorskip("ray")
    with Stops() as stops:
        made = Fleet(tmp_path, stops)
        yield made
        made.close()


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    """The workdir of the same sweep on this machine alone."""
    folder = tmp_path_factory.mktemp("quiet")
    sweep = TESTS / "tiny_sweep.py:large"
    command = [sys.executable, ROOT / "launch" / "sweep.py", "--config", sweep, "--workdir", "out"]
    code, _, error = _ended(_start(command, folder))
    assert (code, error) == (0, "")
    return folder / "out"


@pytest.mark.slow
def test_a_cluster_gives_the_tables_of_one_machine(machines, quiet):
    machines.stops.expect(*TWO)
    process = machines.start()
    _of_two(machines.stops, process)
    code, out, error = _ended(process)
    assert (code, error) == (0, "")
    assert_as_quiet(machines.workdir, quiet)
    facts = machines.facts()
    assert facts["fleet"]["resources"] == {"CPU": 1.0}
    assert len(facts["fleet"]["machines"]) == 2
    assert sum(machine["batches"] for machine in facts["fleet"]["machines"].values()) >= 8
    assert [group["stage"] for group in facts["groups"]] == ["pretrain", "instil", "write", "distil"]
    assert [group["lanes"] for group in facts["groups"]] == [2, 4, 6, 10]
    code, out, error = machines.run()
    assert (code, error) == (0, "") and machines.facts()["groups"] == []
    assert_as_quiet(machines.workdir, quiet)


# Ray's own autoscaler, with machines that are processes here: none at first, two at most.
GROWING = {
    "cluster_name": "growing",
    "max_workers": 2,
    "upscaling_speed": 2.0,
    "idle_timeout_minutes": 10,
    "provider": {
        "type": "fake_multinode",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    },
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    },
    **{f"{who}_commands": [] for who in ("initialization", "setup", "head_setup", "worker_setup")},
    **{f"{who}_start_ray_commands": [] for who in ("head", "worker")},
    **{"auth": {}, "file_mounts": {}, "cluster_synced_files": []},
}


@pytest.fixture
def growing(tmp_path):
    """The address of a cluster of a head that computes nothing, which starts machines as there is work for them; and
    what stops them."""
    pytest.importorskip("ray")
    (tmp_path / "cluster.json").write_text(json.dumps(GROWING))
    # Machines of this kind look for their head at the usual port.
    command = [pathlib.Path(sys.executable).parent / "ray", "start", "--head", "--block", "--port=6379", "--num-cpus=0"]
    command += [f"--autoscaling-config={tmp_path / 'cluster.json'}", "--include-dashboard=false"]
    with Stops() as stops:
        env = {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1", "PYTHONUNBUFFERED": "1"}
        head = _start(command, tmp_path, stderr=subprocess.STDOUT, **env, **stops.environment)
        try:
            said = []
            while "will now block" not in "".join(said[-1:]):
                said.append(head.stdout.readline())
                assert said[-1], "".join(said)
            rest = threading.Thread(target=head.stdout.read, daemon=True)
            rest.start()
            yield "127.0.0.1:6379", stops
            head.terminate()
            head.wait(300)
            rest.join()  # one reader of the pipe, which must have ended before the pipe is closed
            head.stdout.close()
        finally:
            head.kill()


@pytest.mark.slow
def test_a_cluster_that_grows_with_the_work_gives_the_tables_of_one_machine(growing, quiet, tmp_path):
    address, stops = growing
    command = [sys.executable, ROOT / "launch" / "sweep.py", "--config", TESTS / "tiny_sweep.py:large"]
    command += ["--workdir", "out", "--launcher=ray", f"--ray_address={address}", "--ray_resources=CPU=1"]
    students = at("began", stage="distil")
    stops.expect(students, students)
    process = _start(command, tmp_path)
    _of_two(stops, process)
    code, out, error = _ended(process)
    assert (code, error) == (0, ""), out
    assert_as_quiet(tmp_path / "out", quiet)
    assert len(json.loads((tmp_path / "out" / "sweep.json").read_text())["fleet"]["machines"]) == 2


SAVED = (at("saved", stage="instil"), at("saved", stage="distil"))


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced(machines, quiet):
    machines.stops.expect(*SAVED)
    process = machines.start()
    for _ in SAVED:
        machines.stops.next(process).send(signal.SIGKILL)
    code, _, error = _ended(process)
    assert (code, error) == (0, "")
    assert_as_quiet(machines.workdir, quiet)


@pytest.mark.slow
def test_a_node_that_is_lost_leaves_its_work_to_the_others(machines, quiet):
    machines.stops.expect(SAVED[-1])
    process = machines.start()
    machines.lose(machines.stops.next(process))
    code, _, error = _ended(process)
    assert (code, error) == (0, "")
    assert_as_quiet(machines.workdir, quiet)


@pytest.mark.slow
def test_a_driver_that_is_killed_goes_on_when_it_is_started_again(machines, quiet):
    for moment in SAVED:
        machines.stops.expect(moment)
        process = machines.start()
        stop = machines.stops.next(process)
        process.kill()
        process.communicate()
        stop.go_on()
        assert not (machines.workdir / "sweep.json").exists()
    before = len(Store(machines.workdir, readonly=True).done())
    code, _, error = machines.run()
    assert (code, error) == (0, "")
    assert_as_quiet(machines.workdir, quiet)
    computed = sum(group["lanes"] for group in machines.facts()["groups"])
    assert 0 < computed <= 22 - before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "together"), [(signal.SIGTERM, ()), (signal.SIGINT, ()), (signal.SIGTERM, ("--ray_slice=2",))]
)
def test_a_driver_that_is_told_to_stop_lets_batches_save_and_goes_on(machines, quiet, number, together):
    machines.stops.expect(SAVED[-1])
    process = machines.start(*together)
    machines.stops.next(process)  # it goes on when Ray tells it to stop
    process.send_signal(number)
    code, _, error = _ended(process)
    assert code == 75
    assert error == "preempted: what was computed is stored; run the same command again to go on\n"
    assert not any(machines.computing(node) for node in machines.nodes)
    assert any((machines.workdir / "checkpoints").glob("*/saves/*"))
    code, out, error = machines.run(*together)
    assert (code, error) == (0, "") and "cannot be used" not in out
    assert_as_quiet(machines.workdir, quiet)


@pytest.mark.slow
def test_machines_that_compute_together_give_the_tables_of_one(machines, quiet):
    code, _, error = machines.run("--ray_slice=2")
    assert (code, error) == (0, "")
    assert_as_quiet(machines.workdir, quiet)
    facts = machines.facts()
    assert facts["fleet"]["slice"] == {"hosts": 2, "resources": {"CPU": 1.0}, "tpu": []}
    one, other = (machine["batches"] for machine in facts["fleet"]["machines"].values())
    assert one == other == sum(group["batches"] for group in facts["groups"])
    assert all(group["layout"].startswith("2 devices") for group in facts["groups"])
    assert machines.reservations() == []


@pytest.mark.slow
def test_of_machines_that_compute_together_one_is_lost(machines, quiet):
    """A process, then a whole machine: the batch goes on with another one."""
    machines.nodes.append(machines.add_node())
    machines.stops.expect(*SAVED)
    process = machines.start("--ray_slice=2")
    machines.stops.next(process).send(signal.SIGKILL)
    machines.lose(machines.stops.next(process))
    code, _, error = _ended(process)
    assert (code, error) == (0, "")
    assert_as_quiet(machines.workdir, quiet)


@pytest.mark.slow
def test_a_tpu_slice_is_reserved_by_ray_itself(machines, quiet):
    """Two machines that say they are of one slice, and one with as many chips that says it is of another."""
    for node in machines.nodes:
        machines.remove_node(node)
    machines.nodes.clear()
    for name, worker in (("one", 0), ("one", 1), ("other", 1)):
        labels = {"ray.io/tpu-slice-name": name, "ray.io/tpu-worker-id": str(worker), "ray.io/tpu-pod-type": "v4-16"}
        head = {"TPU-v4-16-head": 1} if worker == 0 else {}
        options = {"labels": labels, "env_vars": {"TPU_NAME": name, "TPU_WORKER_ID": str(worker)}}
        machines.nodes.append(machines.add_node(resources={"TPU": 4, **head}, **options))
    code, _, error = machines.run("--ray_slice=v4:2x2x2")
    assert (code, error) == (0, "")
    assert_as_quiet(machines.workdir, quiet)
    facts = machines.facts()["fleet"]
    assert facts["slice"] == {"hosts": 2, "resources": {"CPU": 1, "TPU": 4}, "tpu": ["v4", "2x2x2"]}
    assert {name.rpartition("/")[2] for name in facts["machines"]} == {node["id"][-8:] for node in machines.nodes[:2]}


@pytest.mark.slow
def test_a_sweep_that_diverges_says_so_as_on_one_machine(machines):
    code, out, error = machines.run("--config.wild", sweep="tiny_sweep.py")
    assert (code, error) == (1, "")
    assert "1 of 13 runs are not ok: 1 diverged" in out


def test_a_batch_that_another_writer_has_put_first_stays(tmp_path):
    first, second = Store(tmp_path, shared=True), Store(tmp_path, shared=True)
    row = Row(key="a" * 64, spec={})
    first.put("distil", [row])
    second.put("distil", [Row(key="a" * 64, spec={}, status="failed", why="later")])
    assert second.status("a" * 64) == "ok"
    assert Store(tmp_path).done() == {"a" * 64: "ok"}


# --- launch/ray ---


@pytest.mark.parametrize(("file", "kind"), [("gcp-tpu.yaml", "TPU"), ("gcp-gpu.yaml", "GPU")])
def test_cluster_files_are_what_ray_takes(file, kind):
    ray = pytest.importorskip("ray")
    jsonschema, yaml = pytest.importorskip("jsonschema"), pytest.importorskip("yaml")
    config = yaml.safe_load((ROOT / "launch" / "ray" / file).read_text())
    schema = json.loads((pathlib.Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(config))
    types = config["available_node_types"]
    head, (worker,) = types.pop(config["head_node_type"]), types.values()
    assert head["resources"] == {"CPU": 0}  # or batches would run beside the driver
    assert worker["resources"][kind] >= 1 and worker["max_workers"] == config["max_workers"]
    # What Google's compute API wants: an object, where Ray's own examples have a list.
    assert isinstance(worker["node_config"].get("scheduling", {}), dict)
    assert worker["node_config"]["serviceAccounts"]
