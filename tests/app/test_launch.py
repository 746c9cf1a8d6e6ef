"""The files of launch/: the story of a TPU told to a stand-in for gcloud, a Slurm job, the GKE manifest."""

import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig

import jsonschema
import pytest
import yaml
from moments import Stops, at

# Many short processes that wait for one another.
pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
TPU = ROOT / "launch" / "tpu"
SWEEP = ("--config", "sweeps/traits.py", "--workdir", "gs://bucket/traits")


class Cloud:
    """A folder that `tests/fake_gcloud.py` takes for the cloud."""

    def __init__(self, folder, checkout):
        self.folder, self.checkout = folder, checkout
        self.logs = folder / "logs"
        for place, name, body in (
            ("bin", "gcloud", f'exec {sys.executable} -IS {ROOT}/tests/fake_gcloud.py "$@"'),
            ("vm-bin", "python3", 'printf "%s\\n" "$*" >> "$HOME/python3.log"'),
        ):
            (folder / place).mkdir()
            (folder / place / name).write_text(f"#!/bin/sh\n{body}\n")
            (folder / place / name).chmod(0o755)
        self.plan()

    def plan(self, **plan):
        (self.folder / "plan.json").write_text(json.dumps(plan))

    def start(self, *options, sweep=SWEEP, **environment):
        command = [
            "bash",
            self.checkout / "launch/tpu/run.sh",
            "--zone=us-west4-a",
            "--poll=0.1",
            f"--logs={self.logs}",
            *options,
            "--",
            *sweep,
        ]
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        return subprocess.Popen(
            list(map(str, command)),
            env={**os.environ, "PATH": path, "FAKE_CLOUD": str(self.folder), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *options, **others):
        """(exit status, stdout, stderr) of run.sh."""
        process = self.start(*options, **others)
        out, err = process.communicate(timeout=600)
        return process.returncode, out, err

    def run_together(self, workers, rounds, *options):
        """The same, with sweeps on several workers that go on once all of them have been started, in every round.

        Polls are far apart: a worker that has left alone is not waited for long.
        """
        with Stops(*[at("sweep")] * workers * rounds) as stops:
            process = self.start(*options, "--poll=2", **stops.environment)
            for _ in range(rounds):
                for stop in [stops.next(process) for _ in range(workers)]:
                    stop.go_on()
            process.communicate(timeout=600)
        return process.returncode

    def hanging(self, *options):
        """run.sh, once its sweep has begun, which does not end by itself."""
        self.plan(sweep=["hang"])
        with Stops(at("sweep")) as stops:
            process = self.start(*options, **stops.environment)
            stops.next(process)
        return process

    def read(self, name):
        file = self.folder / name
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def calls(self):
        """What gcloud was asked to do, without the looks."""
        return [" ".join(call["words"][:2]) for call in self.read("calls.jsonl") if call["words"][1] != "describe"]

    def flags(self, words):
        return [call["flags"] for call in self.read("calls.jsonl") if " ".join(call["words"][:2]) == words]

    @property
    def exists(self):
        state = json.loads((self.folder / "cloud.json").read_text())
        return bool(state["node"] or state["queued"])


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A git checkout with what run.sh looks for, and a file that git ignores."""
    root = tmp_path_factory.mktemp("checkout")
    shutil.copytree(TPU, root / "launch" / "tpu")
    for name, text in (
        ("launch/sweep.py", ""),
        ("sweeps/traits.py", ""),
        ("a file.py", "with spaces"),
        (".gitignore", "/ignored"),
        ("ignored", ""),
        ("removed", ""),
    ):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    for command in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", *command], cwd=root, check=True)
    (root / "removed").unlink()
    return root


@pytest.fixture
def cloud(tmp_path, checkout):
    return Cloud(tmp_path, checkout)


CREATED = ["tpu-vm create", "tpu-vm scp", "tpu-vm ssh"]


# --- the story ---


def test_a_preempted_tpu_is_created_again_until_the_sweep_is_done(cloud):
    cloud.plan(sweep=["preempt", 0])
    status, out, _ = cloud.run("--spot")
    assert status == 0
    once = [*CREATED, "tpu-vm ssh", "tpu-vm delete"]
    assert cloud.calls() == once + once
    assert not cloud.exists
    assert "lost: subl-jax is PREEMPTED" in out
    assert [flags["spot"] for flags in cloud.flags("tpu-vm create")] == ["", ""]
    assert (cloud.logs / "worker-0.log").read_text().count("a line of the sweep") == 2


def test_a_queued_resource_waits_in_the_queue_and_is_asked_for_again(cloud):
    cloud.plan(queue=["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"], sweep=["preempt", 0])
    status, out, _ = cloud.run("--queued", "--spot", "--type=v6e-8", "--project=mine", "--name=owls")
    assert status == 0
    once = ["queued-resources create", "tpu-vm scp", "tpu-vm ssh", "tpu-vm ssh", "queued-resources delete"]
    assert cloud.calls() == once + once
    place = {"zone": "us-west4-a", "project": "mine", "quiet": ""}
    asked = {"accelerator-type": "v6e-8", "runtime-version": "v2-alpha-tpuv6e", "node-id": "owls", "spot": ""}
    assert cloud.flags("queued-resources create") == [{**asked, **place}] * 2
    assert cloud.flags("queued-resources delete") == [{"force": "", **place}] * 2
    assert "waiting: owls is WAITING_FOR_RESOURCES" in out and "lost: owls is SUSPENDED" in out


def test_a_request_that_failed_in_the_queue_is_made_again(cloud):
    cloud.plan(queue=["FAILED"])
    status, _, err = cloud.run("--queued", "--limit=1")
    assert status == 75
    assert cloud.calls() == ["queued-resources create", "queued-resources delete"] * 2
    assert "gave up after 1 further starts" in err


@pytest.mark.parametrize("final", [0, 1, 2])
def test_a_final_exit_status_is_handed_on(cloud, final):
    cloud.plan(sweep=[final, 0])
    assert cloud.run()[0] == final
    assert cloud.calls() == [*CREATED, "tpu-vm ssh", "tpu-vm delete"]


@pytest.mark.parametrize("passing", [75, 134])
def test_after_any_other_exit_status_the_sweep_starts_again_on_the_same_tpu(cloud, passing):
    cloud.plan(sweep=[passing, 0])
    assert cloud.run()[0] == 0
    assert cloud.calls() == [*CREATED, "tpu-vm ssh", "tpu-vm ssh", "tpu-vm delete"]


def test_the_limit_ends_it(cloud):
    cloud.plan(sweep=[75])
    status, _, err = cloud.run("--limit=2")
    assert status == 75
    assert len(cloud.read("sweeps.jsonl")) == 3
    assert "gave up after 2 further starts" in err
    assert not cloud.exists


def test_every_worker_of_a_slice_runs_the_sweep_and_has_a_log(cloud):
    cloud.plan(workers=3, sweep=[[75, 75, 134], [0, 1, 0]])
    assert cloud.run_together(3, 2, "--type=v5litepod-16") == 1
    sweeps = cloud.read("sweeps.jsonl")
    assert sorted(sweep["worker"] for sweep in sweeps) == ["0", "0", "1", "1", "2", "2"]
    assert all(sweep["arguments"] == list(SWEEP) for sweep in sweeps)
    for worker, statuses in enumerate([["75", "0"], ["75", "1"], ["134", "0"]]):
        log = (cloud.logs / f"worker-{worker}.log").read_text()
        assert re.findall(r"exit status (\d+)", log) == statuses


def test_a_worker_that_waits_for_one_that_left_is_ended_and_all_start_again(cloud):
    cloud.plan(workers=2, sweep=[["hang", 134], [0, 0]])
    assert cloud.run_together(2, 1, "--type=v5litepod-16") == 0
    assert [line["worker"] for line in cloud.read("stopped.jsonl")] == ["0"]


def test_a_broken_connection_never_leaves_two_sweeps_on_a_worker(cloud):
    cloud.plan(sweep=["drop", 0])
    assert cloud.run()[0] == 0
    assert [sweep["beside"] for sweep in cloud.read("sweeps.jsonl")] == [False, False]
    assert len(cloud.read("stopped.jsonl")) == 1  # with SIGTERM, so with time to store
    assert cloud.calls().count("tpu-vm create") == 1


def test_a_command_that_gcloud_repeats_starts_no_second_sweep(cloud):
    assert cloud.run("--keep")[0] == 0
    command = cloud.flags("tpu-vm ssh")[-1]["command"]
    home = cloud.folder / "worker-0"
    again = subprocess.run(
        ["bash", "-c", command], cwd=home, env={**os.environ, "HOME": str(home)}, capture_output=True
    )
    assert again.stdout.endswith(b"exit status 75\n")
    assert len(cloud.read("sweeps.jsonl")) == 1


# --- what the worker gets ---


def test_words_reach_the_sweep_as_they_were_given(cloud):
    hard = ["--config.traits=('owl', 'cat')", '--config.a=$HOME `id` "x"', "--config.b=*", "", "a\nb", "ä; exit 3", "'"]
    assert cloud.run("--env=FAKE_VARIABLE=--one='1' --two", sweep=[*SWEEP, *hard])[0] == 0
    (sweep,) = cloud.read("sweeps.jsonl")
    assert sweep["arguments"] == [*SWEEP, *hard]
    assert sweep["environment"] == "--one='1' --two"


def test_a_secret_reaches_the_sweep_and_is_not_printed(cloud):
    status, out, err = cloud.run("--env=FAKE_VARIABLE", FAKE_VARIABLE="s3cret")
    assert status == 0
    assert cloud.read("sweeps.jsonl")[0]["environment"] == "s3cret"
    assert "FAKE_VARIABLE=***" in (cloud.logs / "commands.log").read_text()
    assert not any("s3cret" in text for text in [out, err, *(log.read_text() for log in cloud.logs.glob("*.log"))])


def test_the_checkout_is_copied_and_installed_with_its_constraints(cloud):
    assert cloud.run("--keep")[0] == 0
    home = cloud.folder / "worker-0"
    copied = {str(file.relative_to(home / "subl_jax")) for file in (home / "subl_jax").rglob("*") if file.is_file()}
    files = {"launch/sweep.py", "sweeps/traits.py", "a file.py", ".gitignore"}
    assert copied == files | {f"launch/tpu/{file.name}" for file in TPU.iterdir()}
    assert (home / "python3.log").read_text() == "-m pip install --quiet --user uv\n"
    environment, package = (home / "uv.log").read_text().splitlines()
    assert environment == f"venv --quiet --python 3.11 {home}/.subl_jax/venv"
    assert package.endswith("-c constraints.txt -e .[chat,tpu]")


# --- nothing is left that costs money ---


@pytest.fixture
def heeded():
    """Under nohup, or in the background of a script, tests ignore these signals, and what they start would too."""
    handlers = {signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("heeded")
@pytest.mark.parametrize("sent, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)])
def test_interrupted_it_deletes_the_tpu(cloud, sent, status):
    process = cloud.hanging()
    process.send_signal(sent)
    process.communicate(timeout=600)
    assert process.returncode == status
    assert cloud.calls()[-1] == "tpu-vm delete" and not cloud.exists


def test_a_closed_terminal_does_not_keep_it_from_deleting(cloud):
    process = cloud.hanging()
    process.stdout.close()
    process.stderr.close()
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=600)
    assert not cloud.exists


def test_what_cannot_be_installed_is_deleted(cloud):
    (cloud.folder / "vm-bin" / "python3").write_text("#!/bin/sh\necho no such package\nexit 1\n")
    status, out, _ = cloud.run("--limit=1")
    assert status == 75
    assert cloud.calls() == [*CREATED, "tpu-vm scp", "tpu-vm ssh", "tpu-vm delete"]
    assert "not installed: no such package" in out and not cloud.exists


def test_kept_it_is_used_again_and_left(cloud):
    status, out, _ = cloud.run("--keep")
    assert status == 0 and "is kept" in out
    assert cloud.run("--keep")[0] == 0
    assert cloud.exists
    assert cloud.calls() == [*CREATED, "tpu-vm ssh", "tpu-vm scp", "tpu-vm ssh", "tpu-vm ssh"]


@pytest.mark.usefixtures("heeded")
def test_kept_and_interrupted_its_sweep_is_stopped(cloud):
    process = cloud.hanging("--keep")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=600)
    assert len(cloud.read("stopped.jsonl")) == 1 and cloud.exists


def test_a_tpu_of_the_same_name_is_never_touched(cloud):
    assert cloud.run("--keep")[0] == 0
    before = cloud.calls()
    status, _, err = cloud.run()
    assert status == 2
    assert err == "error: subl-jax is there already (READY); another --name, or --keep to use it and leave it\n"
    assert cloud.exists and cloud.calls() == before


def test_no_capacity_is_asked_for_again_and_a_refusal_is_not(cloud):
    cloud.plan(create=['{"code": 8, "message": "There is no more capacity in the zone"}'])
    status, out, _ = cloud.run()
    assert status == 0 and "There is no more capacity" in out
    assert cloud.calls().count("tpu-vm create") == 2
    shutil.rmtree(cloud.folder / "logs")
    cloud.plan(create=["", "", "PERMISSION_DENIED: not yours"])
    status, _, err = cloud.run()
    assert status == 2
    assert err.startswith("error: gcloud will not create subl-jax") and err.count("\n") == 1
    assert cloud.calls().count("tpu-vm create") == 3


# --- the command line ---


def test_a_dry_run_prints_what_a_run_does_and_does_nothing(cloud):
    options = ["--queued", "--spot", "--name=owls", "--env=FAKE_VARIABLE=a b"]
    status, out, err = cloud.run(*options, "--dry_run")
    assert (status, err) == (0, "")
    assert not cloud.read("calls.jsonl") and not cloud.logs.exists()
    printed = [shlex.split(line) for line in out.splitlines() if not line.startswith("#")]
    assert cloud.run(*options)[0] == 0
    done = [shlex.split(line.split(" ", 2)[2]) for line in (cloud.logs / "commands.log").read_text().splitlines()]

    def comparable(commands):
        return {tuple(re.sub(r" run \S+ ", " run TOKEN ", word) for word in command) for command in commands}

    assert comparable(printed) == comparable(done)
    assert len(done) == len(cloud.read("calls.jsonl"))


def test_a_dry_run_needs_no_gcloud(cloud):
    (cloud.folder / "bin" / "gcloud").unlink()
    path = f"{cloud.folder / 'bin'}:/bin"
    for program in ("bash", "git", "dirname", "tail", "cut", "grep"):
        (cloud.folder / "bin" / program).symlink_to(shutil.which(program))
    assert cloud.run("--dry_run", PATH=path)[0] == 0


OPTIONS = {
    "--zone=": "--zone: expected a value",
    "--type=big": "--type=big: expected a TPU type",
    "--type=v9x-8": "--type=v9x-8: its runtime version is not known here",
    "--name=My_TPU": "--name=My_TPU: expected lower-case letters",
    "--limit=some": "--limit=some: expected a whole number",
    "--poll=0": "--poll=0: expected seconds",
    "--color": "--color: no such option",
    "--env=1A=2": "--env=1A=2: expected NAME or NAME=VALUE",
    "--env=NOT_THERE": "--env=NOT_THERE: not set here",
    "word": "word: not understood",
}


@pytest.mark.parametrize("option", OPTIONS)
def test_a_wrong_option_is_one_line(cloud, option):
    status, out, err = cloud.run(option)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {OPTIONS[option]}")
    assert not cloud.read("calls.jsonl")


SWEEPS = {
    (): "after -- expected the sweep's options",
    ("--config", "sweeps/traits.py"): "--workdir is missing: expected gs://BUCKET/FOLDER",
    ("--config=sweeps/traits.py", "--workdir=runs/x"): "--workdir runs/x: expected gs://BUCKET/FOLDER",
    ("--config=sweeps/none.py", "--workdir=gs://b/x"): "--config sweeps/none.py: not a file of",
    ("--config=/etc/traits.py", "--workdir=gs://b/x"): "--config /etc/traits.py: not a file of",
}


@pytest.mark.parametrize("sweep", SWEEPS, ids=" ".join)
def test_a_wrong_sweep_is_one_line_before_anything_costs_money(cloud, sweep):
    status, out, err = cloud.run(sweep=sweep)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {SWEEPS[sweep]}")
    assert not cloud.read("calls.jsonl")


def test_a_sweep_file_may_have_an_argument(cloud):
    assert cloud.run("--dry_run", sweep=["--config=sweeps/traits.py:a/b.py", "--workdir=gs://b/x"])[0] == 0


def test_help_says_every_option():
    said = subprocess.run(["bash", TPU / "run.sh", "--help"], capture_output=True, text=True, check=True).stdout
    parsed = (TPU / "run.sh").read_text().split("parse() {")[1].split("\n}\n")[0]
    known = set(re.findall(r"--([a-z_]+)(?= \||\))", parsed)) - {"help"}
    assert len(known) == 13
    assert known == set(re.findall(r"^  --(\w+)", said, re.MULTILINE))


@pytest.mark.parametrize("file", ["launch/tpu/run.sh", "launch/tpu/worker.sh", "launch/slurm.sbatch"])
def test_shell_files_are_clean(file):
    subprocess.run(["bash", "-n", ROOT / file], check=True)
    # A program, which its package puts beside the others of the environment.
    program = shutil.which("shellcheck", path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]]))
    if program is None:
        pytest.skip("shellcheck is not installed")
    subprocess.run([program, "--shell=bash", ROOT / file], check=True)


# --- Slurm ---


@pytest.fixture
def slurm(tmp_path):
    """Runs the job of launch/slurm.sbatch with stand-ins; gives its exit status and what each program was given."""
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "sweep.py").touch()
    programs = {
        "scontrol": 'echo "$*" >> scontrol.log; [ "$1" = requeue ] || printf "node7\\nnode8\\nnode9\\n"',
        "python": 'printf "%s\\n" "$SLURM_PROCID" "$@" > "task-$SLURM_PROCID"; exit $((STATUS * (SLURM_PROCID == 1)))',
        # As srun does: one process per task, the highest status of them all.
        "srun": """printf '%s\\n' "$@" > srun.log
highest=0
while [ "${1#-}" != "$1" ]; do shift; done
for SLURM_PROCID in 0 1 2; do
  export SLURM_PROCID
  "$@"; status=$?; [ $status -gt $highest ] && highest=$status
done
exit $highest""",
    }
    for name, body in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)

    def run(*arguments, status=0, **environment):
        job = {"SLURM_JOB_ID": "4242", "SLURM_JOB_NODELIST": "node[7-9]", "SLURM_JOB_NUM_NODES": "3"}
        process = subprocess.run(
            ["bash", ROOT / "launch" / "slurm.sbatch", *arguments],
            env={
                "PATH": f"{tmp_path}:{os.environ['PATH']}",
                "PYTHON": "python",
                "STATUS": str(status),
                **job,
                **environment,
            },
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        return process.returncode, process.stderr, lambda name: (tmp_path / name).read_text().splitlines()

    return run


def test_every_node_is_a_process_that_knows_the_others(slurm):
    sweep = ["--config", "sweeps/traits.py", "--workdir=/shared/x", "--config.traits=('owl', 'cat')"]
    status, _, read = slurm(*sweep)
    assert status == 0
    for number in range(3):
        joined = ["--distributed", "--coordinator", "node7:24242", "--num_processes", "3", "--process_id", str(number)]
        assert read(f"task-{number}") == [str(number), "launch/sweep.py", *sweep, *joined]
    assert {"--nodes=3", "--ntasks=3", "--ntasks-per-node=1"} <= set(read("srun.log"))
    assert read("scontrol.log") == ["show hostnames node[7-9]"]


@pytest.mark.parametrize("status, requeued", [(0, False), (1, False), (2, False), (75, True), (137, True)])
def test_a_job_that_is_not_done_is_queued_again(slurm, status, requeued):
    ended, _, read = slurm("--workdir=/shared/x", status=status, SLURM_RESTART_COUNT="99")
    assert ended == status
    assert ("requeue 4242" in read("scontrol.log")) == requeued
    assert "node7:24341" in read("task-0")


def test_a_job_is_not_queued_for_ever(slurm):
    assert "requeue 4242" not in slurm("--workdir=/shared/x", status=75, SLURM_RESTART_COUNT="100")[2]("scontrol.log")


@pytest.mark.parametrize(
    "arguments, environment, line",
    [
        (["--workdir=/x"], {"SLURM_JOB_ID": ""}, "this is a batch job: sbatch"),
        (["--workdir=/x"], {"PYTHON": "no/python"}, "no/python: no such program"),
        (["--config=x.py"], {}, "--workdir DIR is needed"),
    ],
)
def test_a_wrong_job_is_one_line(slurm, arguments, environment, line):
    status, err, _ = slurm(*arguments, **environment)
    assert (status, err.count("\n")) == (2, 1) and err.startswith(f"error: {line}")


def test_slurm_reads_its_options_and_gives_notice():
    lines = (ROOT / "launch" / "slurm.sbatch").read_text().splitlines()
    first_command = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    options = [line.split()[1] for line in lines[:first_command] if line.startswith("#SBATCH ")]
    assert {"--signal=TERM@30", "--requeue", "--ntasks-per-node=1"} <= set(options)


# --- GKE ---

JOBSET = ROOT / "launch" / "gke" / "jobset.yaml"


def faults(jobset):
    """What the schema of JobSet has against a manifest."""
    schema = json.loads((ROOT / "tests" / "data" / "jobset.schema.json").read_text())
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(jobset)]


def objects(value, path=()):
    """All mappings in a manifest whose keys are fields, with their paths."""
    if isinstance(value, dict) and path[-1:] not in (("annotations",), ("nodeSelector",), ("requests",), ("limits",)):
        yield path, value
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from objects(inner, (*path, key))


def test_the_manifest_is_what_jobset_takes():
    assert faults(yaml.safe_load(JOBSET.read_text())) == []


def test_a_mistyped_field_anywhere_in_the_manifest_is_told():
    places = [path for path, _ in objects(yaml.safe_load(JOBSET.read_text()))]
    assert len(places) > 20
    for place in places:
        jobset = yaml.safe_load(JOBSET.read_text())
        fields = dict(objects(jobset))[place]
        name = next(iter(fields))
        fields[f"{name}s"] = fields.pop(name)
        assert any(f"{name}s" in fault for fault in faults(jobset)), place


@pytest.mark.parametrize("value", ["maxRestarts: many", "action: RestartAll", "values: 75", "backoffLimit: '0'"])
def test_a_wrong_value_in_the_manifest_is_told(value):
    name = value.split(":")[0]
    text = re.sub(rf"{name}: [^#\n]+", value, JOBSET.read_text(), count=1)
    assert text != JOBSET.read_text() and faults(yaml.safe_load(text))


def test_the_manifest_asks_for_whole_hosts_of_one_slice_and_heeds_exit_statuses():
    spec = yaml.safe_load(JOBSET.read_text())["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    long, wide = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    chips = container["resources"]["requests"]["google.com/tpu"]
    assert container["resources"]["limits"]["google.com/tpu"] == chips
    assert job["parallelism"] * chips == job["completions"] * chips == long * wide
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy needs it
    action = {}
    for rule in job["podFailurePolicy"]["rules"]:
        exits = rule.get("onExitCodes", {"values": [], "containerName": container["name"]})
        assert exits["containerName"] == container["name"]
        action |= dict.fromkeys(exits["values"], rule["action"])
    assert action == {75: "Count", 1: "FailJob", 2: "FailJob"}
    first, second = spec["failurePolicy"]["rules"]
    assert (first["action"], first["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    assert second["action"] == "RestartJobSet" and "onJobFailureReasons" not in second


def test_the_image_is_made_of_files_that_are_there():
    dockerfile = (ROOT / "launch" / "gke" / "Dockerfile").read_text()
    copied = [name for line in re.findall(r"^COPY (.+)", dockerfile, re.MULTILINE) for name in line.split()[:-1]]
    assert {"subl_jax", "launch", "sweeps", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"} == set(copied)
    assert all((ROOT / name).exists() for name in copied)
    assert 'ENTRYPOINT ["python", "launch/sweep.py"]' in dockerfile
