"""The tracker online: the real client against a server on the loopback address (wandb_server.py)."""

import hashlib
import json
import os
import subprocess
import sys
import threading

import numpy as np
import pandas as pd
import pytest
import wandb_server

from subl_jax.engine.observers import RunInfo
from subl_jax.tracking.sweep_run import STEP
from subl_jax.tracking.wandb_client import stop_client
from subl_jax.tracking.wandb_place import Place
from subl_jax.tracking.wandb_runs import Waits, WandbTracker

CONFIG = {"train": {"lr": 1e-3, "steps": 20}, "base": {"seed": 3}}
# The client's own shortest waits are seconds; whoever refuses at once is not waited for.
SHORT = Waits(init=1.0, finish=1.0, again=0.0, drain=20.0)


@pytest.fixture(scope="module")
def listening(tmp_path_factory):
    """A server, and an environment that has the client use it. One client serves all tests of the file."""
    home = tmp_path_factory.mktemp("home")
    environ = {
        "WANDB_BASE_URL": "",
        "WANDB_API_KEY": wandb_server.KEY,
        "WANDB_MODE": "online",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_CONFIG_DIR": str(home / "config"),
        "WANDB_CACHE_DIR": str(home / "cache"),
        "WANDB_DATA_DIR": str(home / "data"),
        "HOME": str(home),
        "NETRC": str(home / "netrc"),
    }
    with pytest.MonkeyPatch.context() as patch, wandb_server.serving() as server:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        for name, value in environ.items():
            patch.setenv(name, value)
        patch.setenv("WANDB_BASE_URL", server.url)
        wandb = pytest.importorskip("wandb")
        wandb.teardown()
        yield server
        # It would wait for the runs that could not be opened. Other files begin with a client of their own.
        stop_client()
        sys.modules["wandb.sdk.wandb_setup"]._singleton = None


@pytest.fixture
def server(listening):
    listening.reset()
    return listening


def info(run_id: str, arm: str = "same_init") -> RunInfo:
    return RunInfo(run_id, f"name of {run_id}", "traits", arm, "toy_language", "owl", CONFIG)


def token_of(folder) -> str:
    """One client serves all tests, so that each has ids of its own, and a project so called."""
    return hashlib.sha256(str(folder).encode()).hexdigest()[:8]


def names(runs) -> set[str]:
    return {wandb_id.partition("-")[0] for wandb_id in runs}


def tracker_of(folder, warn, **options) -> WandbTracker:
    ledger = folder / "wandb" / "delivered.txt"
    options = {"waits": SHORT, **options}
    return WandbTracker(Place(token_of(folder)), folder, token_of(folder), ledger=ledger, warn=warn, **options)


def sent(tracker, run_id: str, steps=(0, 10, 20)) -> None:
    tracker.start(info(run_id))
    tracker.log(run_id, steps, {"target": np.arange(len(steps)) / 10, "training/loss": np.ones(len(steps))})
    tracker.finish(run_id, {"target_end": 0.2, "status": "ok"})


def test_runs_arrive_whole(server, tmp_path):
    tracker = tracker_of(tmp_path, pytest.fail)
    for run_id in ("a", "b", "c"):
        tracker.start(info(run_id))
    for i, run_id in enumerate(("a", "b", "c")):
        tracker.log(run_id, [0, 10], {"target": np.array([0.1, i / 10]), "training/loss": np.array([np.nan, 2.0])})
        tracker.show(run_id, {}, {"figures/transfer": _png()} if run_id == "c" else {})
        tracker.finish(run_id, {"target_end": i / 10, "status": "ok"}, exit_code=i % 2)
    lines = tracker.close()
    assert lines == [f"W&B: {server.url}/{wandb_server.ENTITY}/{token_of(tmp_path)}"]
    runs = server.of(token_of(tmp_path))
    assert names(runs) == {"a", "b", "c"}
    for i, run_id in enumerate(("a", "b", "c")):
        run = runs[f"{run_id}-{token_of(tmp_path)}"]
        assert run.fields["groupName"] == "traits" and run.fields["jobType"] == "same_init"
        assert run.fields["displayName"] == f"name of {run_id}" and run.fields["tags"] == ["toy_language", "owl"]
        assert {name: run.config[name] for name in CONFIG} == CONFIG
        rows = [{"student/step": 0, "target": 0.1}, {"student/step": 10, "target": i / 10, "training/loss": 2}]
        assert run.history()[:2] == rows
        assert (run.summary["target_end"], run.summary["status"], run.exit_code) == (i / 10, "ok", i % 2)
    shown = runs[f"c-{token_of(tmp_path)}"].history()[2]["figures/transfer"]
    assert runs[f"c-{token_of(tmp_path)}"].files[shown["path"]].startswith(b"\x89PNG")
    assert tracker.delivered() == {"a", "b", "c"}


def test_the_sweeps_own_run_arrives_with_tables_and_links(server, tmp_path):
    tracker = tracker_of(tmp_path, pytest.fail)
    sent(tracker, "a")
    own = RunInfo("sweep", "traits: sweep", "traits", "sweep", "", None, {"config": {"seeds": 2}}, STEP, appends=True)
    tracker.start(own)
    table = pd.DataFrame({"run_id": ["a"], "target_end": [0.25], "why": [None]})
    tracker.show("sweep", {"tables/students": table}, {})
    tracker.finish("sweep", {"headline": "Transfer."})
    tracker.close()
    run = server.of(token_of(tmp_path))[f"sweep-{token_of(tmp_path)}"]
    assert run.summary["headline"] == "Transfer." and run.config["config"] == {"seeds": 2}
    shown = run.history()[-1]["tables/students"]
    link = f"{server.url}/{wandb_server.ENTITY}/{token_of(tmp_path)}/runs/a-{token_of(tmp_path)}"
    content = json.loads(run.files[shown["path"]])
    assert content["columns"] == ["run_id", "target_end", "why", "link"]
    assert content["data"] == [["a", 0.25, None, link]]


def test_a_run_that_was_interrupted_goes_on_without_repeating_its_rows(server, tmp_path):
    first = tracker_of(tmp_path, pytest.fail)
    first.start(info("a"))
    first.log("a", [0, 10], {"target": np.array([0.1, 0.2])})
    first.close()
    second = tracker_of(tmp_path, pytest.fail)
    sent(second, "a")
    second.close()
    (run,) = server.of(token_of(tmp_path)).values()
    assert [row["student/step"] for row in run.history()] == [0, 10, 20]
    assert run.exit_code == 0 and second.delivered() == {"a"}


def test_the_sweep_goes_on_behind_its_rows(server, tmp_path):
    for value in (1.0, 2.0):
        tracker = tracker_of(tmp_path, pytest.fail)
        about = info("sweep", "sweep")
        tracker.start(RunInfo(**{**vars(about), "step": "sweep/group", "appends": True}))
        tracker.log("sweep", [0, 1], {"groups/lanes": np.array([value, value])})
        tracker.finish("sweep", {})
        tracker.close()
    (run,) = server.of(token_of(tmp_path)).values()
    assert [(row["sweep/group"], row["groups/lanes"]) for row in run.history()] == [(0, 1), (1, 1), (2, 2), (3, 2)]


@pytest.mark.parametrize(
    ("operation", "status"), [("UpsertBucket", 401), ("RunResumeStatus", 409), ("FileStream", 409)]
)
def test_what_the_server_refuses_concerns_one_run(server, tmp_path, operation, status):
    server.fault = lambda asked, run: status if asked == operation and run.startswith("b") else None
    warnings: list[str] = []
    tracker = tracker_of(tmp_path, warnings.append)
    for run_id in ("a", "b", "c"):
        sent(tracker, run_id)
    tracker.close()
    runs = server.of(token_of(tmp_path))
    assert all(len(runs[f"{run_id}-{token_of(tmp_path)}"].history()) == 3 for run_id in "ac")
    assert len(warnings) == 1 and warnings[0].startswith("W&B refuses run b, ")
    offline = [path.name.partition("-")[0] for path in (tmp_path / "wandb").glob("*run-*-b-*")]
    # What arrived in part comes again from the workdir; what did not begin is on the disk.
    if operation == "FileStream":
        assert tracker.delivered() == {"a", "c"}
    else:
        assert "offline" in offline and tracker.delivered() == {"a", "b", "c"}


@pytest.mark.parametrize("fault", [500, "hang"])
def test_a_server_that_is_unwell_turns_runs_offline_until_it_is_back(server, tmp_path, fault):
    server.fault = lambda asked, run: fault if run.startswith("a") else None
    warnings: list[str] = []
    tracker = tracker_of(tmp_path, warnings.append)
    sent(tracker, "a")
    sent(tracker, "b")
    tracker.close()
    assert [line.partition(":")[0] for line in warnings] == [
        "W&B is out of reach, runs are written offline until it is back",
        "W&B is within reach again",
    ]
    assert len(server.of(token_of(tmp_path))[f"b-{token_of(tmp_path)}"].history()) == 3
    assert list((tmp_path / "wandb").glob("offline-run-*-a-*")) and tracker.delivered() == {"a", "b"}


def test_a_server_that_dies_in_the_middle_holds_nobody(server, tmp_path):
    ids, opened = [f"r{i}" for i in range(4)], threading.Event()

    def dead_after_the_last_is_open(asked, run):
        if opened.is_set():
            return 503
        if asked == "UpsertBucket" and run.startswith("r3"):
            opened.set()
        return None

    server.fault = dead_after_the_last_is_open
    warnings: list[str] = []
    tracker = tracker_of(tmp_path, warnings.append, waits=SHORT._replace(again=60.0), clock=lambda: 0.0)
    for run_id in ids:
        tracker.start(info(run_id))
    assert opened.wait(60)
    # The first waits for its rows to arrive; the others are left to the end, where one is tried once more.
    for run_id in ids:
        tracker.log(run_id, [0], {"target": np.ones(1)})
        tracker.finish(run_id, {})
    sent(tracker, "later")
    lines = tracker.close()
    (warning,) = warnings
    assert warning.startswith("W&B is out of reach, runs are written offline until it is back: ")
    assert tracker.delivered() == {"later"}
    assert lines[1:] == [f"wandb sync {tmp_path / 'wandb'}", "W&B: 4 of 5 runs are not complete there: r0, r1, r2, …"]


def test_what_was_written_offline_is_synced(server, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracker = tracker_of(tmp_path, pytest.fail)
    for run_id in ("a", "b"):
        sent(tracker, run_id)
    assert tracker.close() == [f"wandb sync {tmp_path / 'wandb'}"]
    assert not server.of(token_of(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "online")
    command = [sys.executable, "-m", "wandb", "sync", str(tmp_path / "wandb")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    runs = server.of(token_of(tmp_path))
    assert names(runs) == {"a", "b"}, done.stdout + done.stderr
    for run in runs.values():
        assert [row["student/step"] for row in run.history()] == [0, 10, 20]
        assert run.config["base"] == {"seed": 3} and run.summary["target_end"] == 0.2


def _png() -> bytes:
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(stream, format="png")
    return stream.getvalue()
