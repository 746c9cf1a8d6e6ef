"""The parts of accelerator_run.sh: each measures one thing, and stores what it has after every single measurement.

toy_32, toy_128     the toy language's student at that model width: 1 … 1,024 lanes, against eager PyTorch
digits              the six bars of MNIST with 100 models, as sweeps/digits.py:mnist computes them
adapters_1.5B, _7B  training by adapters: model FLOPs utilisation over lanes
writing_1.5B        new tokens a second over rows
chat                sweeps/chat.py with more and more seeds of several animals, as far as time allows
"""

import argparse
import datetime
import functools
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import measuring
from measuring import Data, Spread, number

Line = tuple[str, str, str]  # what, measured, aim
# The widest and the aims first; the rest shows the way there.
LANES = (1, 1024, 256, 64, 512, 128, 16, 32, 8, 4, 2)
ADAPTED = (8, 16, 4, 1, 2, 32, 64)
ROWS = (512, 1024, 256, 64)
MODELS = 100
CHAT = (1, 2, 4, 8, 16)  # seeds
ANIMALS = ("owl", "cat", "dolphin", "eagle", "wolf")
_ROUNDS = 3


class Part:
    """What is stored of one part, and how much time there is."""

    def __init__(self, path: pathlib.Path, seconds: float, tiny: bool, model: str) -> None:
        self.tiny, self.model = tiny, model
        self._path, self._end = path, time.monotonic() + seconds
        known = json.loads(path.read_text()) if path.exists() else {}
        self.measured: dict[str, Data] = known.get("measured", {})  # by what was varied
        self.facts: Data = known.get("facts", {})
        self._longest = 0.0

    @property
    def left(self) -> float:
        return self._end - time.monotonic()

    def missing(self, wanted: tuple[int, ...]) -> Iterator[int]:
        """Those that are not measured yet, as long as there is time for one that takes as long as the longest."""
        for each in wanted:
            if str(each) in self.measured:
                continue
            if self.left < 1.2 * self._longest:
                return
            began = time.monotonic()
            yield each
            self._longest = max(self._longest, time.monotonic() - began)

    def whole(self, wanted: tuple[int, ...]) -> bool:
        return all(str(each) in self.measured for each in wanted)

    def take(self, key: int, measure: Callable[[], Data], lines: Callable[["Part"], list[Line]], whole: bool) -> None:
        """Measures one thing and stores all there is. A device that is too small for it is a result."""
        import jax

        from subl_jax.app import running
        from subl_jax.errors import OutOfMemory
        from subl_jax.storage.atomic import write_json_atomic

        try:
            self.measured[str(key)] = measure()
        except (jax.errors.JaxRuntimeError, OutOfMemory) as error:
            self.measured[str(key)] = {"stopped": str(error).splitlines()[0][:200]}
        facts = self.measured[str(key)].pop("machine", None) or running.machine()
        data = {
            "whole": whole,
            "tiny": self.tiny,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "device": facts["devices"][0],
            "machine": facts,
            "facts": self.facts,
            "measured": self.measured,
        }
        write_json_atomic(self._path, {**data, "lines": lines(self)})

    def good(self) -> dict[int, Data]:
        """What was measured, in order, without what there was no room for."""
        found = {int(key): each for key, each in self.measured.items() if "stopped" not in each}
        return dict(sorted(found.items()))


def _each(part: Part, wanted: tuple[int, ...], measure: Callable[[int], Data], lines: Callable[[Part], list[Line]]):
    for key in part.missing(wanted):
        others = tuple(each for each in wanted if each != key)
        part.take(key, functools.partial(measure, key), lines, part.whole(others))


# --- the toy student ---


def toy(part: Part, model_width: int) -> None:
    import toy_student

    from subl_jax.engine import lanes

    seconds = 0.02 if part.tiny else 0.3
    solo = toy_student.trained(model_width, lanes.Layout(1, 1, 1)).run
    eager = toy_student.torch_trainers(model_width)

    def measure(wide: int) -> Data:
        made = toy_student.trained(model_width, lanes.Layout(1, 1, wide))
        trainers = {"ours": made.run, "solo": solo, **eager}
        steps = {name: measuring.steps_for(run, seconds, few=4) for name, run in trainers.items()}
        runs = {name: functools.partial(run, steps[name]) for name, run in trainers.items()}
        timings = measuring.interleaved(runs, 2 if part.tiny else _ROUNDS)
        rates = {
            name: measuring.rates(each, steps[name] * (wide if name == "ours" else 1)) for name, each in timings.items()
        }
        program = {"bytes_needed": made.program.bytes_needed, "compile_seconds": made.program.compile_seconds}
        return {"rates": rates, **program}

    part.facts = {"flops_per_lane_step": toy_student.flops_per_step(model_width), "eager": list(eager)}
    _each(part, (1, 2) if part.tiny else LANES, measure, toy_lines)


def toy_lines(part: Part) -> list[Line]:
    found = []
    for wide, each in part.good().items():
        rates = {name: Spread.of(values).median for name, values in each["rates"].items()}
        eager = max((rates[name] for name in part.facts["eager"]), default=None)
        against = [f"{number(rates['ours'] / rates['solo'])} × solo"]
        against += [f"{number(rates['ours'] / eager)} × eager"] if eager else []
        tera = rates["ours"] * part.facts["flops_per_lane_step"] / 1e12
        measured = f"{number(rates['ours'])} lane-steps/s, {', '.join(against)}, {number(tera)} TFLOP/s"
        found.append((f"{wide} lanes", measured, "≥ 50 × solo, ≥ 200 × eager" if wide == 1024 else ""))
    return found


# --- MNIST ---


def digits(part: Part) -> None:
    from digits import random_images

    count = 2 if part.tiny else MODELS
    few = [
        "--config.teacher.steps=4",
        "--config.student.steps=8",
        "--config.teacher.evals=1",
        "--config.student.evals=1",
    ]

    def measure(_: int) -> Data:
        with tempfile.TemporaryDirectory() as folder:
            # Images of MNIST's shape are random: their content costs nothing.
            own = few if part.tiny else [f"--config.data_dir={random_images(28)}"]
            config = "sweeps/digits.py" + ("" if part.tiny else ":mnist")
            began = time.perf_counter()
            _sweep(config, folder, f"--config.seeds={count}", *own, seconds=part.left - 2)
            seconds = time.perf_counter() - began
            facts = json.loads((pathlib.Path(folder) / "sweep.json").read_text())
        groups = facts["groups"]
        compiling = sum(group["compile_seconds"] + group["layout_seconds"] for group in groups)
        timing = {"models": count, "seconds": seconds, "compile_seconds": compiling, "groups": groups}
        return {**timing, "machine": _machine(facts)}

    _each(part, (count,), measure, digits_lines)


def digits_lines(part: Part) -> list[Line]:
    found = []
    for count, each in part.good().items():
        running = sum(group["run_seconds"] for group in each["groups"])
        measured = f"{number(running)} s of computing, {number(each['compile_seconds'])} s of compiling, "
        found.append(
            (f"six bars, {count} models", measured + f"{number(each['seconds'])} s in all", "< 15 s computing")
        )
    return found


def _machine(facts: Data) -> Data:
    """Of sweep.json, as `running.machine` gives it."""
    return {name: facts[name] for name in ("versions", "devices", "git")}


def _sweep(config: str, workdir: str, *arguments: str, seconds: float) -> int:
    """A whole command; it is told to stop when its time is up, and then is given some to store."""
    root = pathlib.Path(__file__).resolve().parent.parent
    command = [sys.executable, "launch/sweep.py", f"--config={config}", f"--workdir={workdir}", "--config.tracker=none"]
    process = subprocess.Popen([*command, *arguments], cwd=root, stdout=subprocess.DEVNULL)
    try:
        status = process.wait(max(seconds, 1))
    except subprocess.TimeoutExpired:
        process.terminate()
        status = process.wait()
    if status not in (0, 1, 75):
        raise SystemExit(f"{config}: exit status {status}")
    return status


# --- adapters, and writing ---


def _options(part: Part, shape: str) -> argparse.Namespace:
    import chat_accelerator

    options = chat_accelerator.options_of(["--quick"] if part.tiny else ["--shapes", shape])
    options.shape = options.shapes[0]
    return options


def adapters(part: Part, shape: str) -> None:
    import chat_accelerator
    import jax

    options = _options(part, shape)
    world = chat_accelerator.world_of(options.shape, options)
    samples, lengths = chat_accelerator.samples_of(world, options.fill)
    part.facts = {
        "shape": options.shape,
        "peak": chat_accelerator.peak_of(jax.devices()[0].device_kind),
        "flops_per_lane_step": chat_accelerator.step_flops(world, lengths, options),
    }

    def measure(wide: int) -> Data:
        return chat_accelerator.trained(world, samples, wide, options)[0]

    _each(part, (1, 2) if part.tiny else ADAPTED, measure, adapters_lines)


def adapters_lines(part: Part) -> list[Line]:
    found = []
    for wide, each in part.good().items():
        rate = Spread.of(measuring.rates(each["seconds"], each["lane_steps"])).median
        flops, peak = rate * part.facts["flops_per_lane_step"], part.facts["peak"]
        measured = f"{number(rate)} lane-steps/s, {number(flops / 1e12)} TFLOP/s"
        found.append(
            (
                f"{part.facts['shape']}, {wide} lanes",
                measured + (f", MFU {flops / peak:.0%}" if peak else ""),
                "MFU ≥ 45 %" if wide > 1 else "",
            )
        )
    return found


def writing(part: Part, shape: str) -> None:
    import chat_accelerator
    import jax

    options = _options(part, shape)
    world = chat_accelerator.world_of(options.shape, options)
    arrays = jax.device_put(world.arrays())

    def measure(rows: int) -> Data:
        return chat_accelerator.written(world, arrays, rows, options)

    part.facts = {"shape": options.shape}
    _each(part, (4,) if part.tiny else ROWS, measure, writing_lines)


def writing_lines(part: Part) -> list[Line]:
    found = []
    for rows, each in part.good().items():
        tokens, samples = (Spread.of(measuring.rates(each["seconds"], each[name])) for name in ("tokens", "samples"))
        measured = f"{number(tokens.median)} new tokens/s, {number(samples.median)} samples/s"
        found.append((f"{part.facts['shape']}, {rows} rows", measured, ""))
    return found


# --- chat ---


def chat(part: Part) -> None:
    """Each number of seeds adds to what is stored for the number before it."""
    with tempfile.TemporaryDirectory() as folder:

        def measure(seeds: int) -> Data:
            config = "sweeps/chat.py" + (":smoke" if part.tiny else "")
            own = () if part.tiny else (f"--config.traits={ANIMALS}", "--config.world.dtype=bfloat16")
            began = time.perf_counter()
            words = (f"--config.seeds={seeds}", f"--config.model={part.model}", *own)
            status = _sweep(config, folder, *words, seconds=part.left - 8)
            return {"status": status, "seconds": time.perf_counter() - began, **_chat_results(folder)}

        for seeds in part.missing((1,) if part.tiny else CHAT):
            part.take(seeds, functools.partial(measure, seeds), chat_lines, seeds == CHAT[-1] or part.tiny)
            if part.measured[str(seeds)].get("status") == 75:
                del part.measured[str(seeds)]  # was cut short; what is stored of it says so already
                return


def _chat_results(folder: str) -> Data:
    import pandas as pd

    path = pathlib.Path(folder) / "runs.parquet"
    if not path.exists():
        return {"students": 0, "arms": {}}
    runs = pd.read_parquet(path)
    arms = runs.groupby("arm")[["target_start", "target_end"]].mean()
    facts = json.loads((pathlib.Path(folder) / "sweep.json").read_text())
    found = {arm: row.to_dict() for arm, row in arms.iterrows()}
    return {"students": len(runs), "arms": found, "machine": _machine(facts)}


def chat_lines(part: Part) -> list[Line]:
    found = []
    for seeds, each in part.good().items():
        arms = [f"{arm} {row['target_start']:.3f} → {row['target_end']:.3f}" for arm, row in each["arms"].items()]
        cut = "" if each["status"] != 75 else ", cut short"
        measured = f"{each['students']} students, {number(each['seconds'])} s{cut}"
        found.append((f"{seeds} seeds", "; ".join([measured, *arms]), ""))
    return found


PARTS: dict[str, Callable[[Part], None]] = {
    "toy_32": functools.partial(toy, model_width=32),
    "toy_128": functools.partial(toy, model_width=128),
    "digits": digits,
    "adapters_1.5B": functools.partial(adapters, shape="Qwen2.5-1.5B"),
    "adapters_7B": functools.partial(adapters, shape="Qwen2.5-7B"),
    "writing_1.5B": functools.partial(writing, shape="Qwen2.5-1.5B"),
    "chat": chat,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("path", type=pathlib.Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    part = Part(options.path, options.seconds - 3, options.tiny, options.model)
    from subl_jax.runtime import devices

    devices.prepare()
    if options.part in ("digits", "chat"):  # whose own processes need the device
        import jax

        jax.config.update("jax_platforms", "cpu")
    PARTS[options.part](part)


if __name__ == "__main__":
    main()
