"""Tokens per second of training a chat model's students by adapters: 1 to 16 lanes against transformers + peft.

SmolLM2-135M in float32, rank 8 on all seven projections, loss on the completion only, AdamW, gradient clipped to 1. A
student sees the same conversations here and there, as many in a batch, and as many updates; that both compute the same
losses is checked first. peft trains one student after the other, in two ways: with all logits, as the trainer of
transformers does, and with those of the completions only; the faster is what others are compared with.

Tokens are those of whole conversations, from the system prompt to the end of the answer, without any padding. Every
layout that the engine could choose for a width is tried, and the fastest of each takes part. Ours also measures its
students once at the end of each call; peft does not. PyTorch uses one thread or all, whichever is faster.
"""

import argparse
import functools
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
from typing import Any

import measuring
from measuring import Data, Spread, Table

NAME = "chat_training"
WIDTHS = (1, 2, 4, 8, 16)
# The widths that the memory of a further lane is worked out from.
MEMORY = (2, 8)


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = measuring.parser(__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS, help="lanes trained together")
    parser.add_argument("--batch", type=int, default=8, help="conversations in a batch")
    parser.add_argument("--accumulate", type=int, default=2, help="parts that a batch is computed in, here")
    parser.add_argument("--steps", type=int, default=2, help="updates in a call")
    parser.add_argument("--rounds", type=int, default=3, help="timed calls of each contestant")
    parser.add_argument("--memory", type=int, nargs=2, default=MEMORY, help="two widths; 0 0 leaves memory out")
    parser.add_argument("--resident", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--samples", type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.quick:
        options.widths, options.batch, options.accumulate, options.steps = options.widths[:2], 2, 1, 1
        options.rounds, options.memory = 2, (1, 2)
    return options


def measure(options: argparse.Namespace) -> Data:
    from subl_jax.runtime import devices

    devices.prepare()
    import chat_student
    import jax

    count = options.batch * options.steps  # so that every call trains on every one of them, once
    world = chat_student.world_of(prompts=max(count, 16))
    samples = chat_student.written(world, count)
    rows = chat_student.conversations(world, samples)
    train = chat_student.train_of(options.steps, options.batch, options.accumulate)
    agreement = chat_student.agreement(world, samples[: min(count, 4)])

    contestants: dict[str, Any] = {}
    lanes_of, tried, programs = {}, {}, {}
    for width in options.widths:
        best, best_seconds = None, float("inf")
        for layout in layouts(width, jax.local_device_count()):
            made = chat_student.trained(world, train, samples, layout)
            made.run(1)
            tried[str(layout)] = {"lanes": width, "seconds": measuring.timed(lambda m=made: m.run(1))}
            program = made.program
            programs[str(layout)] = {"bytes_needed": program.bytes_needed, "compile_seconds": program.compile_seconds}
            if tried[str(layout)]["seconds"] < best_seconds:
                best, best_seconds = made, tried[str(layout)]["seconds"]
        name = f"{width} lane{'s'[: width > 1]}: {best.layout}"
        contestants[name], lanes_of[name] = best.run, width
    for name in (chat_student.PEFT, chat_student.PEFT_SHORT):
        contestants[name] = chat_student.Peft(train, rows, short=name == chat_student.PEFT_SHORT).run
    threads = chat_student.faster_threads(lambda: contestants[chat_student.PEFT_SHORT](1))
    runs = {name: functools.partial(run, options.steps) for name, run in contestants.items()}
    timings = measuring.interleaved(runs, options.rounds)
    lengths = [(len(prompt), len(completion)) for prompt, completion in rows]
    return {
        "batch": options.batch,
        "accumulate": options.accumulate,
        "steps": options.steps,
        "tokens_a_call": sum(map(sum, lengths)),
        "lengths": lengths,
        "room": [len(world.head), world.prompt_tokens, world.completion_tokens],
        "agreement": agreement,
        "torch_threads": threads,
        "contestants": {name: {"lanes": lanes_of.get(name, 1), "seconds": each} for name, each in timings.items()},
        "tried": tried,
        "programs": programs,
        "memory": _memory(options, samples) if all(options.memory) else None,
    }


def layouts(width: int, devices: int) -> list[Any]:
    """One device with its lanes in turn or side by side, and the same over all devices."""
    from subl_jax.engine.lanes import Layout

    found = [Layout(1, width, 1), Layout(1, 1, width)]
    if devices > 1 and width % devices == 0:
        found += [Layout(devices, width // devices, 1), Layout(devices, 1, width // devices)]
    return list(dict.fromkeys(found))


# --- memory ---


def _memory(options: argparse.Namespace, samples: Any) -> Data:
    """Side by side on one device: what the program reports, and the most that a process of its own had resident."""
    import numpy as np

    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "samples.npy"
        np.save(path, samples)
        for width in (0, *options.memory):
            sizes = ["--batch", str(options.batch), "--accumulate", str(options.accumulate)]
            command = [sys.executable, __file__, *sizes, "--resident", str(width), "--samples", str(path)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            measured[str(width)] = json.loads(done.stdout.splitlines()[-1])
    return measured


def resident(options: argparse.Namespace) -> None:
    """Trains so many lanes side by side (0: one student of peft), and prints the memory that this took."""
    from subl_jax.runtime import devices

    devices.prepare()
    import chat_student
    import numpy as np

    from subl_jax.engine.lanes import Layout

    samples = np.load(options.samples)
    world = chat_student.world_of(prompts=max(len(samples), 16))
    train, needed = chat_student.train_of(1, options.batch, options.accumulate), None
    if options.resident:
        made = chat_student.trained(world, train, samples, Layout(1, 1, options.resident))
        needed = made.program.bytes_needed
    else:
        made = chat_student.Peft(train, chat_student.conversations(world, samples), short=True)
    made.run(1)
    print(json.dumps({"resident": _most_resident(), "bytes_needed": needed}))


def _most_resident() -> int:
    """Bytes. On Linux `getrusage` would count what the parent had before this program replaced its copy."""
    status = pathlib.Path("/proc/self/status")
    if status.is_file():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# --- tables ---


def tables(data: Data) -> list[Table]:
    rates = {
        name: measuring.rates(each["seconds"], each["lanes"] * data["tokens_a_call"])
        for name, each in data["contestants"].items()
    }
    theirs = [name for name in rates if name.startswith("transformers")]
    best = max(theirs, key=lambda name: Spread.of(rates[name]).median)
    solo = next(iter(rates))
    rows = [
        [name, str(Spread.of(each)), str(measuring.ratio(each, rates[best])), str(measuring.ratio(each, rates[solo]))]
        for name, each in rates.items()
    ]
    head, prompt, completion = data["room"]
    mean = data["tokens_a_call"] / len(data["lengths"])
    updates = f"{data['steps']} update{'s'[: data['steps'] > 1]}"
    note = (
        f"Batches of {data['batch']} conversations, here in {data['accumulate']} parts, {updates} a call; "
        f"{mean:.0f} tokens a conversation, of the {head} + {prompt} + {completion} there is room for here. "
        f"Losses of two updates differ by {data['agreement']['losses_apart']:.1g} nats at most. × peft is against the "
        f"faster of the two. Threads of PyTorch: {data['torch_threads']}. Ratios are of medians, with the range over "
        "rounds."
    )
    columns = ["contestant", "tokens/s", "× peft", f"× {solo.partition(':')[0]}"]
    made = [Table("Training SmolLM2-135M by adapters", columns, rows, note), _tried(data)]
    return [*made, _memory_table(data["memory"])] if data["memory"] else made


def _tried(data: Data) -> Table:
    rows = [
        [
            layout,
            measuring.number(each["lanes"] * data["tokens_a_call"] / data["steps"] / each["seconds"]),
            measuring.number(data["programs"][layout]["bytes_needed"] / 2**20),
            measuring.number(data["programs"][layout]["compile_seconds"]),
        ]
        for layout, each in data["tried"].items()
    ]
    columns = ["layout", "tokens/s", "MiB the program needs", "compile, s"]
    return Table("Layouts that were tried", columns, rows, "One update each, to choose; memory is that of one device.")


def _memory_table(memory: Data) -> Table:
    few, many = sorted(int(width) for width in memory if width != "0")
    rows = []
    for name, key in (("the program reports", "bytes_needed"), ("resident, at most", "resident")):
        one, other = (memory[str(width)][key] / 2**20 for width in (few, many))
        peft = f"{memory['0'][key] / 2**20:,.0f}" if memory["0"][key] else "–"
        rows.append([name, peft, f"{one:,.0f}", f"{other:,.0f}", f"{(other - one) / (many - few):,.1f}"])
    columns = ["MiB", "peft, 1 student", f"{few} wide", f"{many} wide", "a further lane"]
    note = "Each in a process of its own. What is resident includes Python, the checkpoint as read, and compiling."
    return Table("Memory of training", columns, rows, note)


if __name__ == "__main__":
    options = options_of()
    if options.resident is None:
        measuring.main(NAME, options, measure, tables)
    else:
        resident(options)
