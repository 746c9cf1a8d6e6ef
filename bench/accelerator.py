"""How wide to vmap on this device: one student alone against 2, 4, … 1024 side by side, and the memory of a lane.

Meant for a GPU or TPU; on a CPU it stops at 16. The students are those of training.py at width 32 and 128. Eager
PyTorch takes part where it is installed and has the device; the faster of all its threads and one counts.
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import measuring
from measuring import Data, Spread, Table

NAME = "accelerator"
MODEL_WIDTHS = (32, 128)
ROUNDS = 4
# From here on more width is not worth its memory.
_SATURATED = 0.9


def measure(options: argparse.Namespace) -> Data:
    from subl_jax.runtime import devices

    devices.prepare()
    import jax

    most = 2 if options.quick else 16 if jax.default_backend() == "cpu" else 1024
    models, seconds, rounds = (MODEL_WIDTHS[:1], 0.05, 2) if options.quick else (MODEL_WIDTHS, 0.5, ROUNDS)
    return {
        "platform": jax.default_backend(),
        "device_memory": (jax.devices()[0].memory_stats() or {}).get("bytes_limit"),
        "models": [_model(width, most, seconds, rounds) for width in models],
    }


def _model(width: int, most: int, seconds: float, rounds: int) -> Data:
    import jax
    import toy_student

    from subl_jax.engine import lanes

    trainers: dict[str, Callable[[int], Any]] = {}
    programs: dict[str, Data] = {}
    stopped = None
    lanes_wide = 1
    while lanes_wide <= most:
        try:
            made = toy_student.trained(width, lanes.Layout(1, 1, lanes_wide))
            made.run(1)
        except jax.errors.JaxRuntimeError as error:  # what a device says that has no memory left
            stopped = f"{lanes_wide} wide: {str(error).splitlines()[0]}"
            break
        trainers[str(lanes_wide)] = made.run
        programs[str(lanes_wide)] = {
            "bytes_needed": made.program.bytes_needed,
            "compile_seconds": made.program.compile_seconds,
        }
        lanes_wide *= 2
    trainers |= toy_student.torch_trainers(width)
    steps = {name: measuring.steps_for(run, seconds, few=4) for name, run in trainers.items()}
    runs = {name: functools.partial(run, steps[name]) for name, run in trainers.items()}
    timings = measuring.interleaved(runs, rounds)
    return {
        "width": width,
        "flops_per_lane_step": toy_student.flops_per_step(width),
        "programs": programs,
        "stopped": stopped,
        "contestants": {name: {"steps": steps[name], "seconds": each} for name, each in timings.items()},
    }


def tables(data: Data) -> list[Table]:
    rows, saturation = [], []
    for model in data["models"]:
        rates = {
            name: measuring.rates(each["seconds"], each["steps"] * (int(name) if name in model["programs"] else 1))
            for name, each in model["contestants"].items()
        }
        medians = {name: Spread.of(each).median for name, each in rates.items()}
        ours = {int(name): medians[name] for name in model["programs"]}
        enough = min(wide for wide, rate in ours.items() if rate >= _SATURATED * max(ours.values()))
        saturation.append(f"model width {model['width']}: {enough}")
        pytorch = max(medians.keys() - model["programs"].keys(), key=medians.get, default=None)
        for name, each in rates.items():
            program = model["programs"].get(name)
            label = name if not program else "solo" if name == "1" else f"{name} wide"
            rows.append(
                [
                    str(model["width"]),
                    label,
                    str(Spread.of(each)),
                    str(measuring.ratio(each, rates["1"])),
                    str(measuring.ratio(each, rates[pytorch])) if pytorch else "–",
                    measuring.number(medians[name] * model["flops_per_lane_step"] / 1e9),
                    f"{program['bytes_needed'] / int(name) / 2**20:.3g}" if program else "–",
                ]
            )
    columns = ["model width", "lanes", "lane-steps/s", "× solo", "× eager PyTorch", "GFLOP/s", "MiB per lane"]
    stops = [f"Stopped at model width {m['width']}, {m['stopped']}." for m in data["models"] if m["stopped"]]
    note = " ".join(
        [
            f"{_SATURATED:.0%} of the best rate is reached at: {', '.join(saturation)}. Memory is arguments, results "
            "and temporaries of the compiled program.",
            *stops,
        ]
    )
    return [Table(f"Lanes side by side on one device ({data['platform']})", columns, rows, note)]


if __name__ == "__main__":
    measuring.main(NAME, measuring.parser(__doc__).parse_args(), measure, tables)
