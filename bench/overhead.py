"""The engine's overhead: the share of a sweep's wall clock that is not device compute, from its working directory.

    python launch/sweep.py --config sweeps/traits.py --workdir DIR      # then, with the same machine
    python bench/overhead.py --workdir DIR

Inside a group it is the time in which the host was neither in a call of a program nor waiting for its results (an upper
bound: the device may have been busy then). On a CPU such a call computes, or waits for the round before it. Outside
groups it is everything: reading the store, planning, the tracker, tables, report. Compiling and timing layouts are told
apart and count for nothing here. The start of Python is not in it.
"""

import argparse
import datetime
import json
import pathlib

import measuring
from measuring import Data, Table

NAME = "overhead"


def measure(options: argparse.Namespace) -> Data:
    path = pathlib.Path(options.workdir) / "sweep.json"
    sweep = json.loads(path.read_text())
    if not sweep["groups"]:
        raise SystemExit(f"{path}: this sweep found everything stored and computed nothing; measure a first run")
    # sweep.json is written last and its `seconds` end before the tables; `started` is cut to whole seconds, so this is
    # up to a second too much.
    written = path.stat().st_mtime
    after = written - datetime.datetime.fromisoformat(sweep["started"]).timestamp() - sweep["seconds"]
    return {
        "sweep": {name: sweep[name] for name in ("sweep", "command", "started", "seconds", "settings", "reused_nodes")},
        "swept_on": {name: sweep[name] for name in ("versions", "devices", "git")},
        "groups": sweep["groups"],
        "after_seconds": max(after, 0.0),
    }


def tables(data: Data) -> list[Table]:
    groups = data["groups"]
    inside = {
        name: sum(group[f"{name}_seconds"] for group in groups) for name in ("compile", "layout", "run", "waited")
    }
    between = data["sweep"]["seconds"] - inside["compile"] - inside["layout"] - inside["run"]
    host = inside["run"] - inside["waited"]
    warm = inside["run"] + between + data["after_seconds"]

    def share(seconds: float) -> str:
        return f"{seconds / warm:.1%}"

    rows = [
        ["waiting for the device", measuring.number(inside["waited"]), share(inside["waited"])],
        ["host, inside groups (upper bound)", measuring.number(host), share(host)],
        ["store, plan, tracker", measuring.number(between), share(between)],
        ["tables and report", measuring.number(data["after_seconds"]), share(data["after_seconds"])],
        ["overhead in all", measuring.number(warm - inside["waited"]), share(warm - inside["waited"])],
        ["all, without compiling", measuring.number(warm), "100%"],
        ["compiling", measuring.number(inside["compile"]), "–"],
        ["timing layouts", measuring.number(inside["layout"]), "–"],
    ]
    per_group = [
        [
            group["stage"],
            str(group["lanes"]),
            group["layout"],
            measuring.number(group["run_seconds"]),
            f"{1 - group['waited_seconds'] / group['run_seconds']:.1%}" if group["run_seconds"] else "–",
            measuring.number(group["compile_seconds"]),
            measuring.number(group["lane_steps_per_second"]),
        ]
        for group in groups
    ]
    columns = ["stage", "lanes", "layout", "run, s", "host", "compile, s", "lane-steps/s"]
    sweep = data["sweep"]
    return [
        Table(f"Where the time of `{sweep['sweep']}` goes (tracker: {sweep['settings']['tracker']})",
              ["part", "seconds", "share"], rows),
        Table("Its groups", columns, per_group, "A lane-step of `write` is one sampled sequence."),
    ]  # fmt: skip


if __name__ == "__main__":
    parser = measuring.parser(__doc__)
    parser.add_argument("--workdir", required=True, help="of a sweep that has just run for the first time")
    measuring.main(NAME, parser.parse_args(), measure, tables)
