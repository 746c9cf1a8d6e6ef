"""Models per minute of the six-bar digits experiment, and its memory: eager PyTorch, our stages alone, and the engine.

A model is one teacher and four students (of the same and of another start, on the auxiliary and on all logits), trained
for the steps of sweeps/digits.py. What is timed is a teacher's step and a student's; the rest follows by counting.
PyTorch does the same arithmetic one model at a time, and as many as the engine stacked by torch.func. The student's
batch is fresh noise, its teacher is asked, its loss is the KL over the auxiliary logits. Images of MNIST's shape are
random here: their content costs nothing.
"""

import argparse
import functools
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import measuring
from measuring import Data, Spread, Table

NAME = "digits"
SETTINGS = {
    "8 × 8": {"side": 8, "batch": 256, "steps": (600, 2000), "round": (150, 250)},
    "MNIST": {"side": 28, "batch": 1024, "steps": (295, 295), "round": (59, 59)},
}
LANES, STUDENTS, ROUNDS = 16, 4, 3
SOLO = "solo: 1 lane, 1 device"
MEMORY = (16, 64)


def measure(options: argparse.Namespace) -> Data:
    from subl_jax.runtime import devices

    devices.prepare()
    import training

    names = ["8 × 8"] if options.quick else list(SETTINGS)
    rounds = 2 if options.quick else ROUNDS
    return {
        "ceiling": training.ceiling(256 if options.quick else training.CEILING, rounds),
        "settings": [_setting(name, SETTINGS[name], rounds, options.quick) for name in names],
    }


def _setting(name: str, setting: dict[str, Any], rounds: int, quick: bool) -> Data:
    import jax

    from subl_jax.engine import lanes

    world = _world(setting["side"])
    default, *others = lanes.candidates(LANES, jax.local_device_count())
    layouts = {SOLO: lanes.Layout(1, 1, 1), f"engine, default: {default}": default}
    layouts |= {f"engine, candidate: {layout}": layout for layout in others[:1]}
    stages = {}
    for stage in ("teacher", "student"):
        stacked = _stacked(world, setting["batch"], stage)
        runs: dict[str, Callable[[int], None]] = {**_torch(world, setting["batch"], stage), **stacked}
        runs |= {each: _ours(world, setting, stage, layout).run for each, layout in layouts.items()}
        # As many steps as the sweep takes between measurements, which ours does after them and PyTorch does not.
        steps = dict.fromkeys(runs, 4 if quick else setting["round"][stage == "student"])
        timings = measuring.interleaved(
            {each: functools.partial(run, steps[each]) for each, run in runs.items()}, rounds
        )
        stages[stage] = {
            each: {
                "lanes": LANES if each in stacked else layouts[each].lanes if each in layouts else 1,
                "steps": steps[each],
                "seconds": timings[each],
            }
            for each in runs
        }
    many = {
        f"{kind}, {n}": layout
        for n in MEMORY
        for kind, layout in (
            ("in turn", lanes.default_layout(n, jax.local_device_count(), most=n)),
            ("side by side", lanes.Layout(1, 1, n)),
        )
    }
    return {
        "name": name,
        **setting,
        "flops": {
            "teacher": 3 * setting["batch"] * world.sequence_flops,
            "student": 4 * setting["batch"] * world.sequence_flops,
        },
        "stages": stages,
        "bytes": {each: _ours(world, setting, "student", layout).program.bytes_needed for each, layout in many.items()},
        "parameter_bytes": sum(
            leaf.size * 4 for leaf in jax.tree.leaves(jax.eval_shape(world.init, jax.random.key(0)))
        ),
    }


def _world(side: int) -> Any:
    from subl_jax.worlds import images
    from subl_jax.worlds.digits import Digits

    return Digits(images=images.find() if side == 8 else images.find(str(random_images(side))))


def random_images(side: int) -> pathlib.Path:
    """A folder with as many random images as MNIST has, in its format."""
    import numpy as np

    rng, folder = np.random.default_rng(0), pathlib.Path(tempfile.mkdtemp(prefix="random-images"))
    for split, n in (("train", 60_000), ("t10k", 10_000)):
        for kind, shape in (("images-idx3", (n, side, side)), ("labels-idx1", (n,))):
            values = rng.integers(0, 256 if len(shape) == 3 else 10, shape, np.uint8)
            head = bytes([0, 0, 8, len(shape)]) + b"".join(axis.to_bytes(4, "big") for axis in shape)
            (folder / f"{split}-{kind}-ubyte").write_bytes(head + values.tobytes())
    return folder


def _ours(world: Any, setting: dict[str, Any], stage: str, layout: Any) -> Any:
    """A whole batch of lanes (`engine_lanes.Lanes`)."""
    import jax
    from engine_lanes import Lanes

    from subl_jax import specs, stages
    from subl_jax.worlds.digits import Inputs

    train = specs.Train(steps=64, batch=setting["batch"], optimizer="adam", lr=3e-4)
    base = specs.Base(world, specs.Train(steps=0, batch=1))
    made = specs.Teacher(base, "digits", train)
    if stage == "student":
        made = specs.Student(base, specs.Stream(made, sampling=Inputs(), distinct=60_000), train, targets="soft")
    params = {"params": jax.device_get(world.init(jax.random.key(0)))}
    return Lanes(made, layout, dict.fromkeys(stages.stage_of(made).inputs(made), params))


# --- PyTorch ---


def _torch(world: Any, batch: int, stage: str) -> dict[str, Callable[[int], None]]:
    import torch

    own, teacher, draw = _torch_model(world), _torch_model(world), _drawn(world, stage)
    optimizer = torch.optim.Adam(own.parameters(), lr=3e-4, fused=True)

    def run(threads: int, steps: int) -> None:
        torch.set_num_threads(threads)
        for _ in range(steps):
            x, target = draw((batch,), teacher)
            optimizer.zero_grad(set_to_none=True)
            _loss(world, stage, own(x), target).backward()
            optimizer.step()

    counts = sorted({1, measuring.cores()}, reverse=True)
    return {f"eager PyTorch, {n} thread{'s'[: n > 1]}": functools.partial(run, n) for n in counts}


def _loss(world: Any, stage: str, logits: Any, target: Any) -> Any:
    """Of logits (batch, outputs), with a target from `_drawn`."""
    import torch.nn.functional as F

    classes = world.images.classes
    if stage == "teacher":
        return F.cross_entropy(logits[:, :classes], target)
    said = F.log_softmax(logits[:, classes:], dim=1)
    return F.kl_div(said, target, reduction="batchmean", log_target=True)


def _drawn(world: Any, stage: str) -> Callable[..., tuple[Any, Any]]:
    """(shape, teacher) → inputs (*shape, pixels) and targets: labels, or what the teacher says of noise."""
    import torch
    import torch.nn.functional as F

    pixels, classes = world.images.side**2, world.images.classes
    images = torch.from_numpy(world.arrays()["train_images"].copy()).reshape(-1, pixels)
    labels = torch.from_numpy(world.arrays()["train_labels"].astype("int64"))

    def draw(shape: tuple[int, ...], teacher: Callable[[Any], Any]) -> tuple[Any, Any]:
        if stage == "teacher":
            rows = torch.randint(len(images), shape)
            return images[rows].float() * (2 / world.images.peak) - 1, labels[rows]
        x = torch.rand(*shape, pixels) * 2 - 1
        with torch.no_grad():
            return x, F.log_softmax(teacher(x)[..., classes:], dim=-1)

    return draw


def _torch_model(world: Any) -> Any:
    import torch

    sizes = (world.images.side**2, *world.hidden)
    layers: list[Any] = []
    for inputs, width in zip(sizes, sizes[1:], strict=False):
        layers += [torch.nn.Linear(inputs, width), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(sizes[-1], world.outputs))


def _stacked(world: Any, batch: int, stage: str) -> dict[str, Callable[[int], None]]:
    """LANES models in one stack, each with a batch of its own."""
    import torch
    from torch_stack import Stack, stacked

    draw = _drawn(world, stage)

    def models() -> list[Any]:
        return [_torch_model(world) for _ in range(LANES)]

    def loss(logits: Callable[..., Any], x: Any, target: Any) -> Any:
        return _loss(world, stage, logits(x), target)

    students = Stack(models(), loss, functools.partial(torch.optim.Adam, lr=3e-4, fused=True))
    of_teachers = stacked(models())

    def run(threads: int, steps: int) -> None:
        torch.set_num_threads(threads)
        for _ in range(steps):
            students.step(*draw((LANES, batch), of_teachers))

    counts = sorted({1, measuring.cores()}, reverse=True)
    return {f"torch.func, stacked: {LANES} lanes, {n} thread{'s'[: n > 1]}": functools.partial(run, n) for n in counts}


def tables(data: Data) -> list[Table]:
    ceiling = data["ceiling"]
    peak = max(Spread.of(measuring.rates(each, ceiling["flops"])).median for each in ceiling["seconds"].values())
    rows, memory = [], []
    for block in data["settings"]:
        counts = {"teacher": block["steps"][0], "student": STUDENTS * block["steps"][1]}
        flops = sum(counts[stage] * block["flops"][stage] for stage in counts)
        per_minute = {
            name: [
                60 / sum(each)
                for each in zip(*(_model_seconds(block, stage, name, n) for stage, n in counts.items()), strict=True)
            ]
            for name in block["stages"]["teacher"]
        }
        pytorch = max((n for n in per_minute if "PyTorch" in n), key=lambda n: Spread.of(per_minute[n]).median)
        for name, each in per_minute.items():
            share = Spread.of(each).median / 60 * flops / peak
            compared = [str(measuring.ratio(each, per_minute[other])) for other in (pytorch, SOLO)]
            rows.append([block["name"], name, str(Spread.of(each)), *compared, f"{share:.0%}"])
        each = block["parameter_bytes"] / 2**20
        for kind in ("in turn", "side by side"):
            few, many = (block["bytes"][f"{kind}, {n}"] / 2**20 for n in MEMORY)
            further = (many - few) / (MEMORY[1] - MEMORY[0])
            memory.append([block["name"], kind, f"{few:.0f}", f"{many:.0f}", f"{further:.2f}", f"{each:.2f}"])
    columns = ["images", "contestant", "models a minute", "× eager PyTorch", "× solo", "of the ceiling"]
    head = ["images", "lanes", *(f"{n} models, MiB" for n in MEMORY), "MiB a further model", "its parameters, MiB"]
    note = "What the compiled program of students needs: a model has its parameters and two moments, in and out, "
    note += "its start, its teacher and the start of that. Side by side it also has its batch and activations."
    return [Table("Six bars", columns, rows), Table("Memory", head, memory, note)]


def _model_seconds(block: Data, stage: str, name: str, steps: int) -> list[float]:
    """Seconds that one model's `steps` of a stage take, in every round."""
    timed = block["stages"][stage][name]
    return [each / timed["lanes"] / timed["steps"] * steps for each in timed["seconds"]]


if __name__ == "__main__":
    measuring.main(NAME, measuring.parser(__doc__).parse_args(), measure, tables)
