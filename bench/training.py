"""Lane-steps per second of student training: PyTorch, our stage alone, and the engine's program of 16 lanes.

The student is the toy language's (2 layers, 4 heads), batch 64, hard targets, a fixed dataset, AdamW. PyTorch trains
one student at a time, eagerly, with the same arithmetic, which is checked first; the faster of all its threads and one
thread is what others are compared with. It also trains as many as the engine at a time, stacked by torch.func.
One lane-step is one update of one student.
"""

import argparse
import functools

import measuring
from measuring import Data, Spread, Table

NAME = "training"
WIDTHS = (32, 64, 128)
LANES = 16
ROUNDS = 4
# The size of the square matrices whose product is taken as the machine's ceiling.
CEILING = 2048
SOLO = "solo: 1 lane, 1 device"


def measure(options: argparse.Namespace) -> Data:
    from subl_jax.runtime import devices

    devices.prepare()
    if options.quick:
        return {"ceiling": ceiling(256, 2), "widths": [_width(WIDTHS[0], 2, 0.05, 2, most_layouts=1)]}
    return {"ceiling": ceiling(CEILING, ROUNDS), "widths": [_width(width, LANES, 0.8, ROUNDS) for width in WIDTHS]}


def ceiling(size: int, rounds: int) -> Data:
    """Seconds of float32 products of square matrices in both libraries, with all threads."""
    import jax
    import numpy as np
    import torch

    torch.set_num_threads(measuring.cores())
    a = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
    ours, theirs, product = jax.device_put(a), torch.from_numpy(a), jax.jit(lambda x: x @ x)
    products = 5

    def in_jax() -> None:
        for _ in range(products):
            product(ours).block_until_ready()

    def in_torch() -> None:
        for _ in range(products):
            theirs @ theirs

    timings = measuring.interleaved({"jax": in_jax, "torch": in_torch}, rounds)
    return {"size": size, "flops": 2.0 * products * size**3, "seconds": timings}


def _width(width: int, count: int, seconds: float, rounds: int, most_layouts: int | None = None) -> Data:
    import jax
    import toy_student

    from subl_jax.engine import lanes

    agreement = toy_student.agreement(width)
    layouts = {SOLO: lanes.Layout(1, 1, 1)}
    default, *others = lanes.candidates(count, jax.local_device_count())[:most_layouts]
    layouts[f"engine, default: {default}"] = default
    layouts |= {f"engine, candidate: {layout}": layout for layout in others}
    made = {name: toy_student.trained(width, layout) for name, layout in layouts.items()}
    stacked = toy_student.stacked_trainers(width, count)
    lane_counts = {**dict.fromkeys(stacked, count), **{name: layout.lanes for name, layout in layouts.items()}}
    trainers = {**toy_student.torch_trainers(width), **stacked, **{name: each.run for name, each in made.items()}}
    steps = {name: measuring.steps_for(run, seconds, few=4) for name, run in trainers.items()}
    runs = {name: functools.partial(run, steps[name]) for name, run in trainers.items()}
    timings = measuring.interleaved(runs, rounds)
    return {
        "width": width,
        "flops_per_lane_step": toy_student.flops_per_step(width),
        "agreement": agreement,
        "contestants": {
            name: {"lanes": lane_counts.get(name, 1), "steps": steps[name], "seconds": each}
            for name, each in timings.items()
        },
        "compile_seconds": {name: each.program.compile_seconds for name, each in made.items()},
    }


def tables(data: Data) -> list[Table]:
    ceiling = data["ceiling"]
    peaks = {name: Spread.of(measuring.rates(each, ceiling["flops"])) for name, each in ceiling["seconds"].items()}
    peak = max(each.median for each in peaks.values())
    rows = []
    for block in data["widths"]:
        rates = {
            name: measuring.rates(each["seconds"], each["lanes"] * each["steps"])
            for name, each in block["contestants"].items()
        }
        best = _fastest(rates, "engine")
        pytorch = rates[_fastest(rates, "eager PyTorch")]
        for name, each in rates.items():
            share = Spread.of(each).median * block["flops_per_lane_step"] / peak
            rows.append(
                [
                    str(block["width"]),
                    f"{name} (best)" if name == best else name,
                    str(Spread.of(each)),
                    str(measuring.ratio(each, pytorch)),
                    str(measuring.ratio(each, rates[SOLO])),
                    f"{share:.0%}",
                ]
            )
    columns = ["width", "contestant", "lane-steps/s", "× eager PyTorch", "× solo", "of the ceiling"]
    note = (
        f"Ratios are of medians, with the range over rounds. Ceiling: float32 product of {ceiling['size']}² matrices, "
        + ", ".join(f"{name} {measuring.number(each.median / 1e9)} GFLOP/s" for name, each in peaks.items())
        + "; the higher counts."
    )
    return [Table("Student training", columns, rows, note)]


def _fastest(rates: dict[str, list[float]], kind: str) -> str:
    return max((name for name in rates if name.startswith(kind)), key=lambda name: Spread.of(rates[name]).median)


if __name__ == "__main__":
    measuring.main(NAME, measuring.parser(__doc__).parse_args(), measure, tables)
