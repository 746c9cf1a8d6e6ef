"""The tracker against the real client (offline) and against clients that fail."""

import json
import os
import queue
import struct
import subprocess
import sys
import textwrap
import threading
import types

import numpy as np
import pytest
import wandb

from subl_jax.engine.observers import NoTracker, RunInfo
from subl_jax.errors import InputError
from subl_jax.tracking import wandb_place
from subl_jax.tracking.ledger import Ledger
from subl_jax.tracking.wandb_client import logged_in, wandb_mode
from subl_jax.tracking.wandb_place import Place, fitting, local_folder, workdir_token
from subl_jax.tracking.wandb_runs import Waits, WandbTracker, make_tracker

CONFIG = {"train": {"lr": 1e-3, "steps": 20}, "base": {"seed": 3}}


@pytest.fixture(autouse=True)
def no_login(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "home" / "config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "home" / "cache"))
    # Nothing listens here: a call that would reach a server fails instead.
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


def info(run_id: str, trait: str | None = "owl") -> RunInfo:
    return RunInfo(run_id, f"name of {run_id}", "traits", "same_init", "toy_language", trait, CONFIG)


def wandb_tracker(tmp_path, warn, **options) -> WandbTracker:
    ledger = tmp_path / "wandb" / "delivered.txt"
    return WandbTracker(Place("subl"), tmp_path, "1a2b3c4d", ledger=ledger, warn=warn, **options)


def records(path):
    """The records of a .wandb file: protobuf messages in LevelDB's log format (32 KiB blocks) after 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    position, message = 7, b""
    while position < len(data):
        room = 32768 - position % 32768
        if room < 7:
            position += room
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        message += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole message, or its last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(message)
            message = b""
            yield record


def read_back(path) -> types.SimpleNamespace:
    found = types.SimpleNamespace(run=None, metrics=[], rows=[], summary={}, exit_code=None)
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.run = record.run
        elif kind == "metric":
            found.metrics.append(record.metric)
        elif kind == "history":
            row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            found.rows.append({name: value for name, value in row.items() if not name.startswith("_")})
        elif kind == "summary":
            found.summary |= {item.key: json.loads(item.value_json) for item in record.summary.update if item.key}
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
    return found


# --- the real client ---


def test_many_open_runs_are_written_as_given(tmp_path):
    warnings: list[str] = []
    tracker = make_tracker("wandb", workdir=tmp_path, project="subl", warn=warnings.append)
    ids = [f"run{i:02d}" for i in range(25)]
    for run_id in ids:
        tracker.start(info(run_id))
    steps = [0, 10, 20]
    for i, run_id in enumerate(ids):
        curves = {"trait/owl": np.array([0.1, np.nan, i / 100]), "loss": np.array([3.0, np.nan, np.nan])}
        tracker.log(run_id, steps[:2], {name: values[:2] for name, values in curves.items()})
        tracker.log(run_id, steps[2:], {name: values[2:] for name, values in curves.items()})
    for i, run_id in enumerate(ids):
        summary = {"target_end": i / 100, "status": "ok", "kept_fraction": float("nan")}
        tracker.finish(run_id, summary, exit_code=i % 2)
    lines = tracker.close()

    assert warnings == []
    assert lines == [f"wandb sync {tmp_path / 'wandb'}"]
    assert tracker.delivered() == set(ids)
    wandb.teardown()  # the client does not wait for its process to close the files of finished runs
    token = workdir_token(tmp_path)
    for i, run_id in enumerate(ids):
        (path,) = (tmp_path / "wandb").glob(f"offline-run-*-{run_id}-{token}/run-{run_id}-{token}.wandb")
        found = read_back(path)
        assert (found.run.run_id, found.run.display_name) == (f"{run_id}-{token}", f"name of {run_id}")
        assert (found.run.project, found.run.run_group, found.run.job_type) == ("subl", "traits", "same_init")
        assert set(found.run.tags) == {"toy_language", "owl"}
        config = {item.key: json.loads(item.value_json) for item in found.run.config.update}
        assert {name: config[name] for name in CONFIG} == CONFIG
        assert [metric.name for metric in found.metrics if metric.name] == ["student/step"]
        assert [(metric.glob_name, metric.step_metric) for metric in found.metrics if metric.glob_name] == [
            ("*", "student/step")
        ]
        # Step 10 is NaN in every metric, step 20 in the loss.
        assert found.rows == [
            {"student/step": 0, "trait/owl": 0.1, "loss": 3.0},
            {"student/step": 20, "trait/owl": i / 100},
        ]
        assert found.summary["target_end"] == i / 100
        assert found.summary["status"] == "ok"
        assert "kept_fraction" not in found.summary
        assert found.exit_code == i % 2
    assert not list((tmp_path / "wandb").glob("latest-run"))


MANY = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))  # before the client's process is started, which inherits it
import numpy as np, wandb
from subl_jax.engine.observers import RunInfo
from subl_jax.tracking.wandb_runs import make_tracker

tracker = make_tracker("wandb", workdir=sys.argv[1], project="subl", warn=lambda line: print("warning:", line))
ids = [f"run{i:03d}" for i in range(240)]
for run_id in ids:
    tracker.start(RunInfo(run_id, run_id, "traits", "same_init", "toy_language", "owl", {}))
for step in (0, 10):
    for i, run_id in enumerate(ids):
        tracker.log(run_id, [step], {"trait/owl": np.array([i / 1000 + step])})
for run_id in ids:
    tracker.finish(run_id, {"status": "ok"})
print(*tracker.close(), sep="\\n")
wandb.teardown()
"""


@pytest.mark.slow
def test_as_many_runs_in_a_batch_as_files_may_be_open(tmp_path):
    """`ulimit -n 256`, of which the process itself and the client's sockets need some."""
    done = subprocess.run([sys.executable, "-c", MANY, str(tmp_path)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "warning:" not in done.stdout and done.stdout.strip() == f"wandb sync {tmp_path / 'wandb'}", done.stdout
    token = workdir_token(tmp_path)
    for i in range(240):
        (path,) = (tmp_path / "wandb").glob(f"offline-run-*-run{i:03d}-{token}/*.wandb")
        found = read_back(path)
        assert [row["trait/owl"] for row in found.rows] == [i / 1000, i / 1000 + 10], path
        assert found.exit_code == 0


def test_the_sync_line_finds_every_run(tmp_path):
    tracker = make_tracker("wandb", workdir=tmp_path / "with space", project="subl", warn=pytest.fail)
    for run_id in ("a1", "a2"):
        tracker.start(info(run_id, trait=None))
        tracker.finish(run_id, {})
    (line,) = tracker.close()
    assert line == f"wandb sync '{tmp_path / 'with space' / 'wandb'}'"
    command = [sys.executable, "-m", "wandb", "sync", "--dry-run", str(tmp_path / "with space" / "wandb")]
    told = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert "2 run(s)" in told.stdout + told.stderr


def test_an_unreachable_server_turns_the_sweep_offline(tmp_path, monkeypatch):
    fake = FakeWandb(fails_online=True)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    warnings: list[str] = []
    tracker = wandb_tracker(tmp_path, warnings.append)
    for run_id in ("a", "b"):
        tracker.start(info(run_id))
        tracker.finish(run_id, {})
    tracker.close()
    assert warnings == ["W&B is out of reach, runs are written offline until it is back: no route"]
    assert [(call["id"], call["mode"], call["resume"]) for call in fake.inits] == [
        ("a-1a2b3c4d", "online", "allow"),
        ("a-1a2b3c4d-offline", "offline", None),
        ("b-1a2b3c4d", "offline", None),
    ]
    assert tracker.delivered() == {"a", "b"}


def test_the_process_ends_though_the_client_stands_still(tmp_path):
    script = textwrap.dedent(
        """
        import pathlib, signal, sys, threading
        from subl_jax.engine.observers import RunInfo
        from subl_jax.tracking.wandb_place import Place
        from subl_jax.tracking.wandb_runs import Waits, WandbTracker

        folder = pathlib.Path(sys.argv[1])
        ledger, waits = folder / "delivered.txt", Waits(drain=1.0)
        tracker = WandbTracker(Place("subl"), folder, "token", ledger=ledger, warn=print, waits=waits)
        there = threading.Event()

        class Noticed(dict):
            def __setitem__(self, *item):
                super().__setitem__(*item)
                there.set()

        tracker._runs = Noticed()
        tracker.start(RunInfo("a", "a", "sweep", "control", "digits", None, {}))
        there.wait()
        service = sys.modules["wandb.sdk.wandb_setup"]._singleton._connection._proc._process
        service.send_signal(signal.SIGSTOP)
        tracker.finish("a", {"x": 1.0})
        print(*tracker.close(), sep="\\n")
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=600, check=True
    )
    assert "W&B: still busy after 1 s, stopped waiting" in done.stdout
    assert "W&B: 1 of 1 runs are not complete there: a" in done.stdout
    assert done.stderr == ""


# --- clients that fail ---


class FakeRun:
    project_url = "https://example.org/subl"

    def __init__(self, log):
        self.log = log
        self.summary: dict[str, object] = {}
        self.resumed = False
        self.settings = types.SimpleNamespace(log_internal="/nowhere")
        self.finished: list[int] = []

    def define_metric(self, *names, **options):
        pass

    def finish(self, exit_code=0):
        self.finished.append(exit_code)


class FakeWandb(types.ModuleType):
    def __init__(self, init=None, log=None, fails_online=False):
        super().__init__("wandb")
        self.inits: list[dict] = []
        self.runs: dict[str, FakeRun] = {}
        self.rows: list[dict] = []
        self._init = init
        self._log = log or self.rows.append
        self._fails_online = fails_online

    def Settings(self, **options):  # noqa: N802
        return options

    def setup(self, settings=None):
        return None

    def init(self, **options):
        self.inits.append(options)
        if self._fails_online and options["mode"] == "online":
            raise OSError("no route\nwith details")
        if self._init:
            self._init(options["id"].partition("-")[0])
        return self.runs.setdefault(options["id"].partition("-")[0], FakeRun(self._log))


def raises(*args):
    raise RuntimeError("broken\nwith details")


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")

    def install(**faults) -> FakeWandb:
        fake = FakeWandb(**faults)
        monkeypatch.setitem(sys.modules, "wandb", fake)
        return fake

    return install


def whole_sweep(tracker, ids=("a", "b", "c")) -> list[str]:
    for run_id in ids:
        tracker.start(info(run_id))
    for run_id in ids:
        tracker.log(run_id, [0, 1], {"loss": np.array([1.0, 2.0])})
        tracker.finish(run_id, {"target_end": 0.5})
    return tracker.close()


def test_a_client_that_cannot_start_is_asked_once(tmp_path, offline):
    fake = offline(init=raises)
    warnings: list[str] = []
    tracker = wandb_tracker(tmp_path, warnings.append)
    lines = whole_sweep(tracker)
    assert warnings == ["W&B tracking is off: broken"]
    assert len(fake.inits) == 1
    assert lines == ["W&B: 3 of 3 runs are not complete there: a, b, c"]
    assert tracker.delivered() == frozenset()


def test_a_missing_client_is_said_once(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    warnings: list[str] = []
    whole_sweep(make_tracker("wandb", workdir=tmp_path, project="subl", warn=warnings.append))
    assert len(warnings) == 1 and "wandb" in warnings[0] and "\n" not in warnings[0]


def test_a_run_that_fails_leaves_the_others(tmp_path, offline):
    fake = offline(init=lambda run_id: raises() if run_id == "b" else None)
    warnings: list[str] = []
    tracker = wandb_tracker(tmp_path, warnings.append)
    lines = whole_sweep(tracker)
    assert warnings == ["W&B lost run b: broken"]
    assert tracker.delivered() == {"a", "c"}
    assert lines == ["W&B: 1 of 3 runs are not complete there: b"]
    assert len(fake.rows) == 4


def test_a_log_that_raises_is_said_once_and_closes_the_runs(tmp_path, offline):
    fake = offline(log=raises)
    warnings: list[str] = []
    tracker = wandb_tracker(tmp_path, warnings.append)
    whole_sweep(tracker)
    assert warnings == ["W&B lost run a: broken"]
    assert tracker.delivered() == frozenset()
    assert {run_id: run.finished for run_id, run in fake.runs.items()} == {"a": [1], "b": [1], "c": [1]}


def test_a_hanging_client_does_not_hold_the_sweep_or_its_memory(tmp_path, offline):
    release = threading.Event()
    offline(init=lambda run_id: release.wait(60))
    warnings: list[str] = []
    tracker = wandb_tracker(tmp_path, warnings.append, waits=Waits(drain=0.05), backlog_bytes=64 * 1024)
    ids = [f"r{i}" for i in range(100)]
    for run_id in ids:
        tracker.start(info(run_id))
        tracker.log(run_id, range(100), {"loss": np.ones(100)})
        tracker.finish(run_id, {})
    assert tracker._tasks.qsize() <= 16
    lines = tracker.close()
    assert warnings == ["W&B does not keep up: what it cannot take is left out"]
    assert lines[0] == "W&B: still busy after 0.05 s, stopped waiting"
    assert lines[1].startswith("W&B: 100 of 100 runs are not complete there: r0, r1, r10, …")
    release.set()
    tracker._worker.join(10)


def test_an_overflowing_run_is_not_delivered(tmp_path, offline):
    gate = threading.Event()
    offline(init=lambda run_id: gate.wait(60))
    tracker = wandb_tracker(tmp_path, lambda line: None, backlog_bytes=20_000)
    tracker.start(info("big"))
    tracker.log("big", range(10_000), {"loss": np.ones(10_000)})
    tracker.finish("big", {})
    gate.set()
    tracker.start(info("small"))
    tracker.finish("small", {})
    tracker.close()
    assert tracker.delivered() == {"small"}


def test_runs_left_open_are_closed_but_not_delivered(tmp_path, offline):
    fake = offline()
    tracker = wandb_tracker(tmp_path, pytest.fail)
    tracker.start(info("a"))
    tracker.close()
    assert fake.runs["a"].finished == [1]
    assert tracker.delivered() == frozenset()


def test_the_caller_may_reuse_its_buffer(tmp_path, offline):
    gate = threading.Event()
    fake = offline(init=lambda run_id: gate.wait(60))
    tracker = wandb_tracker(tmp_path, pytest.fail)
    values = np.array([1.0])
    tracker.start(info("a"))
    tracker.log("a", [0], {"loss": values})
    values[:] = 7.0
    gate.set()
    tracker.close()
    assert fake.rows == [{"student/step": 0, "loss": 1.0}]


def test_online_shows_the_address(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert whole_sweep(wandb_tracker(tmp_path, pytest.fail)) == ["W&B: https://example.org/subl"]
    assert {call["reinit"] for call in fake.inits} == {"create_new"}


def test_one_refused_run_is_written_offline_and_the_next_goes_online(tmp_path, monkeypatch):
    def refuses(run_id):
        if run_id == "a" and fake.inits[-1]["mode"] == "online":
            raise RuntimeError("Timed out while retrying: HTTP 409: run was deleted")

    fake = FakeWandb(init=refuses)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    warnings: list[str] = []
    tracker = wandb_tracker(tmp_path, warnings.append)
    whole_sweep(tracker, ("a", "b"))
    assert [(call["id"][0], call["mode"]) for call in fake.inits] == [
        ("a", "online"),
        ("a", "offline"),
        ("b", "online"),
    ]
    assert len(warnings) == 1 and warnings[0].startswith("W&B refuses run a, it is written offline: ")
    assert tracker.delivered() == {"a", "b"}


def test_a_client_that_has_ended_is_no_refusal(tmp_path, monkeypatch):
    from wandb.sdk.mailbox import MailboxClosedError

    def ended(run_id):
        if run_id == "b":
            raise MailboxClosedError

    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(init=ended))
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    warnings: list[str] = []
    tracker = wandb_tracker(tmp_path, warnings.append)
    whole_sweep(tracker, ("a", "b"))
    assert warnings == ["W&B lost run b: MailboxClosedError"] and tracker.delivered() == {"a"}


def test_a_server_that_comes_back_is_used_again(tmp_path, monkeypatch):
    now, opened = [0.0], queue.Queue()

    def down_at_first(run_id):
        if now[0] < 60.0 and fake.inits[-1]["mode"] == "online":
            raise RuntimeError("POST: giving up after 1 attempt(s): connection refused")
        opened.put(run_id)

    fake = FakeWandb(init=down_at_first)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    warnings: list[str] = []
    tracker = wandb_tracker(tmp_path, warnings.append, clock=lambda: now[0])
    for run_id, at in (("a", 0.0), ("b", 59.0), ("c", 60.0)):
        now[0] = at
        tracker.start(info(run_id))
        assert opened.get(timeout=60) == run_id
        tracker.finish(run_id, {})
    tracker.close()
    assert [call["mode"] for call in fake.inits] == ["online", "offline", "offline", "online"]
    assert [line.partition(":")[0] for line in warnings] == [
        "W&B is out of reach, runs are written offline until it is back",
        "W&B is within reach again",
    ]
    assert tracker.delivered() == {"a", "b", "c"}


# --- which mode, where ---


@pytest.mark.parametrize(
    ("mode", "login", "expected"),
    [
        (None, False, "offline"),
        (None, True, "online"),
        ("offline", True, "offline"),
        ("dryrun", True, "offline"),
        ("online", True, "online"),
        ("online", False, "offline"),
    ],
)
def test_mode(mode, login, expected):
    assert wandb_mode({"WANDB_MODE": mode} if mode else {}, lambda: login) == expected


def test_a_login_is_found_in_netrc_without_a_call(tmp_path):
    settings = types.SimpleNamespace(api_key=None, base_url="https://wandb.example.org")
    client = types.SimpleNamespace(setup=lambda: types.SimpleNamespace(settings=settings))
    assert not logged_in(client)
    netrc = tmp_path / "home" / "netrc"
    netrc.parent.mkdir(parents=True, exist_ok=True)
    netrc.write_text(f"machine wandb.example.org\n  login user\n  password {'0' * 40}\n")
    netrc.chmod(0o600)
    assert logged_in(client)


def test_kinds(tmp_path, monkeypatch):
    options = {"workdir": tmp_path, "project": "subl", "warn": pytest.fail}
    none = make_tracker("none", **options)
    assert isinstance(none, NoTracker)
    assert whole_sweep(none) == [] and none.delivered() == frozenset()
    with pytest.raises(InputError, match="tracker = 'tensorboard': one of none, wandb"):
        make_tracker("tensorboard", **options)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert isinstance(make_tracker("wandb", **options), NoTracker)
    monkeypatch.setenv("WANDB_MODE", "onlin")
    with pytest.raises(InputError, match="WANDB_MODE = 'onlin': one of online"):
        make_tracker("wandb", **options)


def test_remote_workdirs_get_a_local_folder_each(tmp_path):
    assert local_folder(tmp_path) == tmp_path
    one, two = local_folder("gs://bucket/a"), local_folder("gs://bucket/b")
    assert one != two and one == local_folder("gs://bucket/a")
    assert "://" not in str(one) and one.is_absolute()


@pytest.mark.parametrize("said", ["1", "true", "True", "yes"])
def test_wandb_disabled_is_heeded(tmp_path, monkeypatch, said):
    monkeypatch.setenv("WANDB_DISABLED", said)
    assert isinstance(make_tracker("wandb", workdir=tmp_path, project="", warn=pytest.fail), NoTracker)
    monkeypatch.setenv("WANDB_DISABLED", "false")
    tracker = make_tracker("wandb", workdir=tmp_path, project="", warn=pytest.fail)
    assert isinstance(tracker, WandbTracker) and tracker.close() == []


@pytest.mark.parametrize(
    ("project", "environ", "expected"),
    [
        ("", {}, ("subl_jax", None)),
        ("", {"WANDB_PROJECT": "mine", "WANDB_ENTITY": "us"}, ("mine", "us")),
        ("", {"WANDB_PROJECT": "us/mine", "WANDB_ENTITY": "them"}, ("mine", "us")),
        ("own", {"WANDB_PROJECT": "mine", "WANDB_ENTITY": "us"}, ("own", "us")),
        ("we/own", {"WANDB_ENTITY": "us"}, ("own", "we")),
    ],
)
def test_project_and_entity(project, environ, expected):
    assert wandb_place.place(project, environ) == expected


@pytest.mark.parametrize(
    ("project", "environ", "said"),
    [
        ("a:b", {}, "config.project = 'a:b': holds :, which W&B refuses in names"),
        ("we/ours/mine", {}, "holds /"),
        ("x" * 129, {}, "longer than the 128 characters"),
        ("we/", {}, "has no name behind the /"),
        ("/mine", {}, "has no entity before the /"),
        ("", {"WANDB_PROJECT": "50%"}, "WANDB_PROJECT = '50%': holds %"),
        (" ", {}, "is empty"),
    ],
)
def test_a_name_that_wandb_refuses_is_told_before_anything_is_computed(tmp_path, monkeypatch, project, environ, said):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError) as error:
        make_tracker("wandb", workdir=tmp_path, project=project, warn=pytest.fail)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_wandb_dir_gets_the_files_and_the_workdir_keeps_the_ledger(tmp_path, monkeypatch, offline):
    fake = offline()
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
    whole_sweep(make_tracker("wandb", workdir=tmp_path / "work", project="", warn=pytest.fail), ("a",))
    assert fake.inits[0]["dir"] == str(tmp_path / "elsewhere")
    assert (tmp_path / "work" / "wandb" / "delivered.txt").read_text() == "a\n"


def test_ids_belong_to_a_workdir_and_stay(tmp_path):
    one, other = workdir_token(tmp_path / "one"), workdir_token(tmp_path / "other")
    assert one != other and len(one) == 8
    assert workdir_token(tmp_path / "one") == one


def test_long_names_are_cut_and_stay_apart(tmp_path, offline):
    fake = offline()
    long = ["x" * 200 + "1", "x" * 200 + "2"]
    assert fitting(long[0]) != fitting(long[1]) and len(fitting(long[0])) == 128 and fitting("short") == "short"
    tracker = wandb_tracker(tmp_path, pytest.fail)
    tracker.start(RunInfo("a", long[0], long[0], long[0], long[0], long[1], {}))
    tracker.close()
    (call,) = fake.inits
    assert [len(call[name]) for name in ("name", "group", "job_type")] == [128, 128, 64]
    assert [len(tag) for tag in call["tags"]] == [64, 64]


# --- the ledger ---


def test_a_resumed_sweep_knows_what_was_delivered(tmp_path, offline):
    offline()
    whole_sweep(wandb_tracker(tmp_path, pytest.fail), ("a", "b"))
    again = wandb_tracker(tmp_path, pytest.fail)
    assert again.delivered() == {"a", "b"}
    whole_sweep(again, ("c",))
    assert wandb_tracker(tmp_path, pytest.fail).delivered() == {"a", "b", "c"}


@pytest.mark.parametrize("tail", [b"", b"ccc", b"\xff\xc3", b"long" * 9])
def test_a_half_written_line_does_not_count(tmp_path, tail):
    path = tmp_path / "delivered.txt"
    path.write_bytes(b"aaaa\nbbbb\n" + tail)
    ledger = Ledger(path)
    assert ledger.ids() == {"aaaa", "bbbb"}
    ledger.add("dddd")
    ledger.add("eeee")
    assert path.read_bytes() == b"aaaa\nbbbb\ndddd\neeee\n"


def test_a_ledger_that_cannot_be_read_turns_tracking_off(tmp_path, offline):
    offline()
    (tmp_path / "wandb" / "delivered.txt").mkdir(parents=True)
    warnings: list[str] = []
    tracker = wandb_tracker(tmp_path, warnings.append)
    whole_sweep(tracker)
    assert len(warnings) == 1 and warnings[0].startswith("W&B tracking is off: ")
    assert tracker.delivered() == frozenset()
