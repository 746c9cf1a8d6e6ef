"""Stands in for `gcloud compute tpus`: a cloud of one TPU in the folder $FAKE_CLOUD, whose workers are folders.

    calls.jsonl      every call: {"words", "flags"}
    cloud.json       {"node", "queued": states or null, "starts": {worker: sweeps started there}}
    plan.json        {"workers": 1, "create": [error, …], "queue": [state, …], "sweep": [what the n-th sweep does, …]}
    sweeps.jsonl     what each sweep was given: {"worker", "arguments", "environment"}
    worker-N/        a worker's home folder; commands sent by ssh really run there

A sweep does one of: a number (its exit status), "preempt", "drop" (the connection breaks, the sweep goes on until it is
told to stop), "hang". Where a test stops processes (moments.py), each sweep tells of "sweep", with its `worker`. Flags
are those of `gcloud compute tpus … --help`, Google Cloud SDK 528: others are refused.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import moments

CLOUD = pathlib.Path(os.environ["FAKE_CLOUD"])
WIDE = {"zone", "project", "quiet"}
FLAGS = {
    ("tpu-vm", "create"): {"accelerator-type", "version", "spot"},
    ("tpu-vm", "describe"): {"format"},
    ("tpu-vm", "delete"): set(),
    ("tpu-vm", "scp"): {"worker"},
    ("tpu-vm", "ssh"): {"worker", "command", "ssh-flag"},
    ("queued-resources", "create"): {"accelerator-type", "runtime-version", "node-id", "spot"},
    ("queued-resources", "describe"): {"format"},
    ("queued-resources", "delete"): {"force"},
}
NEEDED = {
    ("tpu-vm", "create"): {"version"},
    ("queued-resources", "create"): {"accelerator-type", "runtime-version", "node-id"},
}


@contextlib.contextmanager
def cloud():
    """The cloud's state, to read and to change, by one process at a time."""
    with open(CLOUD / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        file = CLOUD / "cloud.json"
        state = json.loads(file.read_text()) if file.exists() else {"node": None, "queued": None, "starts": {}}
        try:
            yield state
        finally:
            # At once: whoever holds the lock may be killed.
            (CLOUD / "cloud.next").write_text(json.dumps(state))
            os.replace(CLOUD / "cloud.next", file)


def plan():
    return {
        "workers": 1,
        "create": [],
        "queue": ["ACTIVE"],
        "sweep": [0],
        **json.loads((CLOUD / "plan.json").read_text()),
    }


def note(file, **record):
    with open(CLOUD / file, "a") as lines:
        lines.write(json.dumps(record) + "\n")


def refuse(line, status=1):
    print(f"ERROR: (gcloud) {line}", file=sys.stderr)
    sys.exit(status)


def leave(line):
    """As `refuse`, though what was started goes on."""
    print(f"ERROR: (gcloud) {line}", file=sys.stderr, flush=True)
    os._exit(1)


def main(arguments):
    if arguments[:2] != ["compute", "tpus"]:
        refuse(f"Invalid choice: {arguments[:2]}", 2)
    words = [argument for argument in arguments[2:] if not argument.startswith("--")]
    flags = dict(argument[2:].partition("=")[::2] for argument in arguments[2:] if argument.startswith("--"))
    kind, verb = words[:2]
    unknown = set(flags) - WIDE - FLAGS[kind, verb]
    missing = NEEDED.get((kind, verb), set()) | {"zone"} - set(flags)
    if unknown or missing - set(flags):
        refuse(f"unrecognized arguments: {unknown}, missing: {missing - set(flags)}", 2)
    note("calls.jsonl", words=words, flags=flags)
    {"create": create, "describe": describe, "delete": delete, "scp": scp, "ssh": ssh}[verb](kind, words[2:], flags)


def create(kind, words, flags):
    errors = plan()["create"]
    with cloud() as state:
        number = state["created"] = state.get("created", 0) + 1
        if state["node"] or state["queued"]:
            refuse("ALREADY_EXISTS: there is one")
        if number <= len(errors) and errors[number - 1]:
            refuse(errors[number - 1])
        if kind == "tpu-vm":
            state["node"] = "READY"
        else:
            state["queued"], state["looks"] = plan()["queue"][0], 0
        for home in CLOUD.glob("worker-*"):
            shutil.rmtree(home)


def describe(kind, words, flags):
    with cloud() as state:
        if kind == "queued-resources" and state["queued"] not in (None, "SUSPENDED"):
            queue = plan()["queue"]
            state["queued"] = queue[min(state["looks"], len(queue) - 1)]
            state["looks"] += 1
            if state["queued"] == "ACTIVE" and not state["node"]:
                state["node"] = "READY"
        seen = state["node"] if kind == "tpu-vm" else state["queued"]
    if not seen:
        refuse("NOT_FOUND: Resource was not found")
    workers = "networkEndpoints.len()"
    print({"value(state)": seen, "value(state.state)": seen, f"value({workers})": plan()["workers"]}[flags["format"]])


def delete(kind, words, flags):
    with cloud() as state:
        if not state["node" if kind == "tpu-vm" else "queued"]:
            refuse("NOT_FOUND: Resource was not found")
        if kind == "queued-resources" and state["node"] and "force" not in flags:
            refuse("FAILED_PRECONDITION: it has nodes")
        state["node"] = state["queued"] = None
    for file in CLOUD.glob("worker-*/.subl_jax/pid"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(file.read_text()), signal.SIGKILL)
    connections(CLOUD.glob("worker-*"), "gone")


def connections(homes, news):
    """Writes to all that are connected to a worker: "gone", "drop" or "ended", by the first letter."""
    for home in homes:
        for line in home.glob("line-*"):
            with contextlib.suppress(OSError):  # just closed
                end = os.open(line, os.O_WRONLY | os.O_NONBLOCK)
                os.write(end, news[:1].encode())
                os.close(end)


def homes(flags):
    """The home folders of the workers that --worker names, each with what a TPU VM has on its PATH."""
    numbers = range(plan()["workers"]) if flags["worker"] == "all" else [int(flags["worker"])]
    for number in numbers:
        home = CLOUD / f"worker-{number}"
        (home / ".local" / "bin").mkdir(parents=True, exist_ok=True)
        uv = home / ".local" / "bin" / "uv"
        uv.write_text(UV.format(python=sys.executable, fake=os.path.abspath(__file__)))
        uv.chmod(0o755)
        yield number, home


UV = """#!/bin/sh
printf '%s\\n' "$*" >> "$HOME/uv.log"
[ "$1" = venv ] || exit 0
for folder; do :; done
mkdir -p "$folder/bin"
printf '#!/bin/sh\\nexec {python} -IS {fake} sweep "$@"\\n' > "$folder/bin/python"
chmod +x "$folder/bin/python"
"""


def check_ready():
    with cloud() as state:
        if state["node"] != "READY":
            refuse(f'This TPU has terminal state "{state["node"]}", so it cannot be used anymore.')


def scp(kind, words, flags):
    check_ready()
    source, target = words
    if not target.endswith(":"):
        refuse(f"{target}: expected NAME:")
    for _, home in homes(flags):
        shutil.copy(source, home)


def ssh(kind, words, flags):
    check_ready()
    status = 0
    for number, home in homes(flags):
        environment = {**os.environ, "HOME": str(home), "FAKE_WORKER": str(number)}
        environment["PATH"] = f"{CLOUD / 'vm-bin'}:{os.environ['PATH']}"
        named = home / f"line-{os.getpid()}"
        os.mkfifo(named)
        line = os.open(named, os.O_RDWR)  # before anyone can have news
        remote = subprocess.Popen(["bash", "-c", flags["command"]], cwd=home, env=environment, start_new_session=True)
        threading.Thread(target=lambda remote=remote, line=line: (remote.wait(), os.write(line, b"e"))).start()
        with cloud() as state:
            news = b"" if state["node"] == "READY" else b"g"
        news = news or os.read(line, 1)
        named.unlink(missing_ok=True)
        if news == b"g":
            os.killpg(remote.pid, signal.SIGKILL)
            refuse("[/usr/bin/ssh] exited with return code [255].")
        if news == b"d":
            leave("[/usr/bin/ssh] exited with return code [255].")
        status = status or remote.returncode
    sys.exit(status)


def sweep(arguments):
    """What `python launch/sweep.py …` is on a worker."""
    worker, home = os.environ["FAKE_WORKER"], pathlib.Path(os.environ["HOME"])
    script, *rest = arguments
    if not pathlib.Path(script).is_file():
        sys.exit(f"{script}: no such file in {os.getcwd()}")
    with cloud() as state:
        number = state["starts"][worker] = state["starts"].get(worker, 0) + 1
    running = home / "running"
    does = plan()["sweep"]
    does = does[min(number, len(does)) - 1]
    does = does[int(worker)] if isinstance(does, list) else does

    def stopped(*_):
        note("stopped.jsonl", worker=worker)
        running.unlink(missing_ok=True)
        sys.exit(75)

    signal.signal(signal.SIGTERM, stopped)
    note(
        "sweeps.jsonl",
        worker=worker,
        arguments=rest,
        environment=os.environ.get("FAKE_VARIABLE"),
        beside=running.exists(),
    )
    running.touch()
    if does == "preempt":
        with cloud() as state:
            state["node"] = "PREEMPTED"
            state["queued"] = state["queued"] and "SUSPENDED"
    print("a line of the sweep", flush=True)
    if moments.VARIABLE in os.environ:
        moments.announce("sweep", worker=worker)
    if does == "preempt":
        connections(CLOUD.glob("worker-*"), "gone")
    if does == "drop":
        connections([home], "drop")
    while not isinstance(does, int):
        signal.pause()
    running.unlink()
    os._exit(does)


if __name__ == "__main__":
    sweep(sys.argv[2:]) if sys.argv[1] == "sweep" else main(sys.argv[1:])
