"""Lane-steps per second of students on one device, on two devices of one process, and on two processes of one device.

The students are the toy language's, as in `training.py`, one at a time on each device. Two of anything have twice the
lanes: ideal is twice the lane-steps per second. A single device may use more than one core for a large operation, so
the ideal is only to be had where it does not. Processes begin each round together, and it ends with the slowest.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

import measuring
from measuring import Data, Spread, Table

NAME = "scaling"
WIDTH = 64
LANES_A_DEVICE = 4
ROUNDS = 5
# Name → processes, devices of each.
SETUPS = {"1 process, 1 device": (1, 1), "1 process, 2 devices": (1, 2), "2 processes, 1 device each": (2, 1)}


def measure(options: argparse.Namespace) -> Data:
    rounds, seconds = (2, 0.05) if options.quick else (ROUNDS, 2.0)
    return {
        "width": WIDTH,
        "lanes_a_device": LANES_A_DEVICE,
        "setups": {name: _run(*setup, rounds, seconds) for name, setup in SETUPS.items()},
    }


def _run(processes: int, devices: int, rounds: int, seconds: float) -> Data:
    """Starts the processes of one setup. Gives lane-steps of all of them together, and the seconds of each round."""
    address = f"localhost:{measuring.free_port()}"
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)}
    tasks = [
        {"address": address, "processes": processes, "index": i, "rounds": rounds, "seconds": seconds}
        for i in range(processes)
    ]
    started = [
        subprocess.Popen(
            [sys.executable, __file__, "--task", json.dumps(task)], env=environment, stdout=subprocess.PIPE, text=True
        )
        for task in tasks
    ]
    outputs = [process.communicate()[0] for process in started]
    assert not any(process.returncode for process in started), outputs
    return {"processes": processes, "devices": processes * devices, **json.loads(outputs[0].splitlines()[-1])}


def compute(task: dict[str, Any]) -> None:
    """One process of a setup; the first prints what all of them did."""
    from subl_jax.runtime import cluster, devices

    devices.prepare()
    if task["processes"] > 1:
        cluster.start(cluster.Options(None, task["address"], task["processes"], task["index"]))
    import jax
    import toy_student

    from subl_jax.engine import lanes

    peers = cluster.peers()
    students = toy_student.trained(WIDTH, lanes.Layout(jax.device_count(), LANES_A_DEVICE, 1))
    steps = peers.first(measuring.steps_for(students.run, task["seconds"], few=2))
    times = []
    for _ in range(task["rounds"]):
        peers.gather(None)
        began = time.perf_counter()
        students.run(steps)
        # A round is over when the slowest process is done.
        times.append(max(peers.gather(time.perf_counter() - began)))
    print(json.dumps({"lane_steps": students.layout.lanes * steps, "seconds": times}), flush=True)
    cluster.leave(0)


def tables(data: Data) -> list[Table]:
    rates = {name: measuring.rates(run["seconds"], run["lane_steps"]) for name, run in data["setups"].items()}
    alone = next(iter(rates.values()))
    rows = []
    for name, run in data["setups"].items():
        gain = measuring.ratio(rates[name], alone)
        efficiency = f"{100 * gain.median / run['devices']:.0f} %"
        rows.append([name, str(Spread.of(rates[name])), str(gain), efficiency])
    return [
        Table(
            "One and two devices and processes",
            ["setup", "lane-steps/s", "× one device", "of ideal"],
            rows,
            f"Width {data['width']}, {data['lanes_a_device']} lanes a device, in turn. Lanes do not communicate: what "
            "is missing to the ideal is memory bandwidth, caches, clock, and one device's use of more than one core.",
        )
    ]


if __name__ == "__main__":
    parser = measuring.parser(__doc__)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        compute(json.loads(arguments.task))
    else:
        measuring.main(NAME, arguments, measure, tables)
