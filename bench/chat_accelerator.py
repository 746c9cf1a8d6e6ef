"""Training of students with adapters, and writing, on an accelerator: model FLOPs utilisation at three sizes of model.

The shapes of SmolLM2-135M, Qwen2.5-1.5B and Qwen2.5-7B with random weights in bfloat16, through the engine's own
programs, at widths until the memory is full. Operations are those that training needs (sizing.py): 4 a parameter and
token for weights that are held fixed; nothing is counted for padding or for what is computed twice. Random models never
end an answer, so that each writes as many tokens as it may.

On a CPU a tiny shape shows that it runs.
"""

import argparse
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import measuring
import numpy as np
import sizing
from measuring import Data, Spread, Table

from subl_jax import specs, stages
from subl_jax.engine import lanes
from subl_jax.models import transformer
from subl_jax.runtime import devices
from subl_jax.worlds.chat import Pretrained

NAME = "chat_accelerator"
SHAPES = ("SmolLM2-135M", "Qwen2.5-1.5B", "Qwen2.5-7B")
WIDTHS = (1, 2, 4, 8, 16, 32, 64)
ROWS = (64, 256, 512, 1024)
SAMPLES = 512
# Devices whose name holds the first: the peak in bfloat16, FLOP/s, dense, as published.
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "v5 lite": 197e12, "v5e": 197e12, "v6": 918e12}


@dataclasses.dataclass(frozen=True)
class Shaped(Pretrained):
    """A chat model of a shape, with random weights and random words of lengths as in an experiment."""

    shape: str = specs.static("tiny")
    in_front: int = specs.static(32, ge=1)  # tokens of every conversation, its head

    @functools.cached_property
    def config(self) -> transformer.Config:
        own = {"dtype": self.dtype, "remat": self.remat, "attention": self.attention}
        return dataclasses.replace(sizing.shapes()[self.shape], **own)

    @property
    def pad(self) -> int:
        return 0

    def array_shapes(self) -> dict[str, Any]:
        made = jax.eval_shape(functools.partial(transformer.init, self.config), jax.random.key(0))

        def stored(path: Any, x: Any) -> jax.ShapeDtypeStruct:
            norm = "norm" in jax.tree_util.keystr(path)
            return jax.ShapeDtypeStruct(x.shape, jnp.float32 if norm else self.dtype)

        return {**self.arrays_of_texts(), "weights": jax.tree.map_with_path(stored, made)}

    def arrays(self, place: Callable[[str, Any], Any] = lambda path, array: array) -> dict[str, Any]:
        """Weights are drawn on the device, one after the other."""

        @functools.partial(jax.jit, static_argnums=(1, 2))
        def drawn(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            if len(shape) < 2 or dtype == jnp.float32 != self.dtype:
                return jnp.ones(shape, dtype)
            return jax.random.normal(key, shape, dtype) * jnp.asarray(shape[-2] ** -0.5, dtype)

        leaves, tree = jax.tree.flatten_with_path(self.array_shapes()["weights"])
        made = [
            place(jax.tree_util.keystr(path, simple=True, separator="/"), drawn(jax.random.key(i), x.shape, x.dtype))
            for i, (path, x) in enumerate(leaves)
        ]
        return {**self.arrays_of_texts(), "weights": jax.tree.unflatten(tree, made)}

    def arrays_of_texts(self) -> dict[str, np.ndarray]:
        rng, pool = np.random.default_rng(0), min(self.prompts, 64)
        words = functools.partial(rng.integers, 1, self.config.vocab - 1, dtype=np.int32)
        return {
            "heads": words((2, self.in_front)),
            "head_lengths": np.full(2, self.in_front, np.int32),
            "prompts": words((pool, self.prompt_tokens)),
            "prompt_lengths": np.full(pool, self.prompt_tokens, np.int32),
            "asked": words((1, 1, 16)),
            "asked_lengths": np.full((1, 1), 16, np.int32),
            "nodes": words((1, 1)),
            "parents": np.zeros((1, 1), np.int32),
            "ancestors": np.ones((1, 1, 1), bool),
            "names": np.ones((1, 1, 1), np.float32),
            "word_ends": np.ones(self.config.vocab, bool),
            "stops": np.asarray([self.config.vocab - 1], np.int32),  # never among the words
        }


def world_of(shape: str, options: argparse.Namespace) -> Shaped:
    room = {"prompt_tokens": options.prompt, "completion_tokens": options.completion}
    room |= {"room": options.room, "answer_room": options.room, "attention": options.attention}
    few = {"prompts": 64, "questions": 1, "answers_sampled": 0}
    return Shaped(model=shape, shape=shape, dtype="bfloat16", remat=options.remat, animals=("owl",), **room, **few)


def samples_of(world: Shaped, fill: float) -> tuple[np.ndarray, np.ndarray]:
    """Samples as `Pretrained.write` gives them, of lengths around `fill` of their places, and these lengths (n, 2)."""
    rng, places = np.random.default_rng(1), (world.prompt_tokens, world.completion_tokens)
    low, high = max(2 * fill - 1, 0.8 * fill), min(1, 1.2 * fill)
    lengths = np.stack([rng.integers(max(1, round(low * n)), round(high * n) + 1, SAMPLES) for n in places], axis=1)
    prompts, completions = (rng.integers(1, world.config.vocab - 1, (SAMPLES, n), dtype=np.int32) for n in places)
    rows = np.arange(SAMPLES)
    completions[rows, lengths[:, 1] - 1] = world.config.vocab - 1
    return np.concatenate([lengths[:, :1].astype(np.int32), prompts, completions], axis=1), lengths


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    paper = sizing.Setting()
    parser = measuring.parser(__doc__)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, choices=list(sizing.shapes()))
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--rows", type=int, nargs="*", default=ROWS)
    peers = {"nargs": "*", "default": SHAPES[:1], "choices": list(sizing.shapes())}
    parser.add_argument("--peers", **peers, help="where transformers + peft take part, one student")
    parser.add_argument("--batch", type=int, default=66, help="samples of an update; 66 as in sweeps/chat.py:paper")
    parser.add_argument("--accumulate", type=int, default=6, help="parts that it is computed in")
    parser.add_argument("--prompt", type=int, default=paper.prompt)
    parser.add_argument("--completion", type=int, default=paper.completion)
    parser.add_argument("--fill", type=float, default=0.7, help="mean share of the places that is not padding")
    parser.add_argument("--room", type=float, default=0.75, help="as `Pretrained.room` and `answer_room`")
    parser.add_argument("--remat", default="dots", choices=("none", "dots", "all"))
    parser.add_argument("--attention", default="auto", choices=("plain", "auto"))
    parser.add_argument("--steps", type=int, default=4, help="updates in a call")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    if options.quick or jax.default_backend() == "cpu":
        options.shapes, options.peers, options.widths, options.rows = ["tiny"], ["tiny"], [1, 2], [4]
        options.batch, options.accumulate, options.steps, options.rounds = 4, 2, 2, 2
        options.prompt, options.completion = 24, 16
    return options


def peak_of(kind: str) -> float | None:
    """FLOP/s of a device; None where it is not known."""
    return next((peak for name, peak in PEAKS.items() if name in kind), None)


def measure(options: argparse.Namespace) -> Data:
    kind = jax.devices()[0].device_kind
    return {
        "device": kind,
        "peak": peak_of(kind),
        "options": {name: value for name, value in vars(options).items() if name != "quick"},
        "models": [_model(shape, options) for shape in options.shapes],
    }


def _model(shape: str, options: argparse.Namespace) -> Data:
    world = world_of(shape, options)
    samples, lengths = samples_of(world, options.fill)
    widths, stopped, arrays = [], None, None
    for width in options.widths:
        try:
            measured, arrays = trained(world, samples, width, options)
            widths.append(measured)
        except jax.errors.JaxRuntimeError as error:  # what a device says that has no memory left
            stopped = f"{width} lanes: {str(error).splitlines()[0]}"
            break
    try:
        peers = _peers(world, samples, options) if shape in options.peers else {}
    except RuntimeError as error:  # so says PyTorch; jax may have left it too little memory
        if "out of memory" not in str(error):
            raise
        peers, stopped = {}, f"{stopped or ''} transformers + peft: {str(error).splitlines()[0]}".strip()
    rows = []
    for count in options.rows if arrays else ():
        try:
            rows.append(written(world, arrays, count, options))
        except jax.errors.JaxRuntimeError as error:
            stopped = f"{stopped or ''} {count} rows: {str(error).splitlines()[0]}".strip()
            break
    lanes._placed.cache_clear()  # the next model needs the memory
    return {
        "shape": shape,
        "parameters": transformer.param_count(world.config),
        "flops_per_lane_step": step_flops(world, lengths, options),
        "widths": widths,
        "peers": peers,
        "rows": rows,
        "stopped": stopped,
    }


def step_flops(world: Shaped, lengths: np.ndarray, options: argparse.Namespace) -> float:
    """Of one update of one student: real tokens only, and the head once for each part."""
    prompt, completion = lengths.mean(axis=0)
    own = prompt + completion - 1  # the last token is only predicted
    tokens = options.batch * own + options.accumulate * world.in_front
    return sizing.adapted_training_flops(
        world.config, tokens, world.in_front + own, options.batch * completion, specs.Lora().max_rank
    )


def trained(world: Shaped, samples: np.ndarray, width: int, options: argparse.Namespace) -> tuple[Data, Any]:
    """What was measured of so many students side by side, and the world's arrays on the device."""
    train = specs.Train(steps=options.steps, batch=options.batch, accumulate=options.accumulate, lr=2e-4, clip=1.0)
    base = specs.Base(world, specs.Train(steps=0, batch=1))
    data = specs.Imported(of=world, sha256="", size=len(samples))
    nodes = [specs.Student(base, data, train, lora=specs.Lora(), seed=i, trait="owl") for i in range(width)]
    program = lanes.compile_program(stages.DISTIL, nodes[0], lanes.Layout(1, 1, width), stages.input_shapes(nodes[0]))
    one = {"start": {"params": {}}, "data": {"samples": samples}}
    inputs = jax.tree.map(lambda x: np.broadcast_to(x, (width, *x.shape)), one)
    arguments = program.put(np.stack([lanes.lane_key(node) for node in nodes]), lanes.lane_values(nodes), inputs)
    state = program.start(arguments)

    def run() -> None:
        nonlocal state
        state, record = program.advance(arguments, state, options.steps)
        jax.block_until_ready((state, record))

    seconds = measuring.interleaved({"ours": run}, options.rounds)["ours"]
    measured = {
        "lanes": width,
        "lane_steps": width * options.steps,
        "seconds": seconds,
        "bytes_needed": program.bytes_needed,
        "compile_seconds": program.compile_seconds,
    }
    return measured, program.arrays


def _peers(world: Shaped, samples: np.ndarray, options: argparse.Namespace) -> dict[str, Data]:
    """The same updates of one student of transformers + peft, where PyTorch has such a device."""
    import chat_student

    try:
        import peft  # noqa: F401
        import torch
        import transformers
    except ImportError:
        return {}
    cuda = jax.default_backend() == "gpu"
    if cuda and not torch.cuda.is_available():
        return {}
    config = world.config
    kind = transformers.Qwen2Config if config.qkv_bias else transformers.LlamaConfig
    sizes = {"vocab_size": config.vocab, "hidden_size": config.width, "intermediate_size": config.mlp}
    sizes |= {"num_hidden_layers": config.layers, "num_attention_heads": config.heads, "head_dim": config.head_dim}
    sizes |= {"num_key_value_heads": config.kv_heads, "tie_word_embeddings": config.tied}
    train = specs.Train(steps=options.steps, batch=options.batch, lr=2e-4, clip=1.0)
    rows = chat_student.conversations(world, samples)

    def made(short: bool) -> chat_student.Peft:
        with torch.device("cuda" if cuda else "cpu"):
            model = transformers.AutoModelForCausalLM.from_config(
                kind(**sizes), dtype=torch.bfloat16, attn_implementation="sdpa"
            )
        return chat_student.Peft(train, rows, short, model=model)

    students = {chat_student.PEFT: made(False), chat_student.PEFT_SHORT: made(True)}
    runs = {name: functools.partial(student.run, options.steps) for name, student in students.items()}
    timings = measuring.interleaved(runs, options.rounds)  # a step ends when its loss is there
    return {name: {"lane_steps": options.steps, "seconds": each} for name, each in timings.items()}


def written(world: Shaped, arrays: Any, rows: int, options: argparse.Namespace) -> Data:
    """Writes twice as many samples as rows, so that rows are taken up again."""
    keys = jax.random.split(jax.random.key(0), 2 * rows)

    def write(arrays: Any, keys: jax.Array) -> jax.Array:
        return world.holding(arrays).write({}, keys, world.sampling(rows=rows))

    compiled = jax.jit(write).lower(arrays, keys).compile()
    seconds = measuring.interleaved({"ours": lambda: compiled(arrays, keys).block_until_ready()}, options.rounds)
    tokens = 2 * rows * world.completion_tokens
    return {"rows": rows, "tokens": tokens, "samples": 2 * rows, "seconds": seconds["ours"]}


def tables(data: Data) -> list[Table]:
    options, peak = data["options"], data["peak"]
    steps = sizing.Setting().samples * sizing.Setting().epochs / options["batch"]
    training, writing = [], []
    for model in data["models"]:
        for block in model["widths"]:
            rates = measuring.rates(block["seconds"], block["lane_steps"])
            flops = Spread.of(rates).median * model["flops_per_lane_step"]
            training.append(
                [
                    model["shape"],
                    str(block["lanes"]),
                    str(Spread.of(rates)),
                    measuring.number(flops / 1e12),
                    f"{flops / peak:.0%}" if peak else "–",
                    measuring.number(3600 * Spread.of(rates).median / steps),
                    f"{block['bytes_needed'] / 2**30:.3g}",
                ]
            )
        for name, block in model["peers"].items():
            rates = measuring.rates(block["seconds"], block["lane_steps"])
            each = 3600 * Spread.of(rates).median / steps
            training.append([model["shape"], name, str(Spread.of(rates)), "–", "–", measuring.number(each), "–"])
        for block in model["rows"]:
            rates = [measuring.rates(block["seconds"], block[name]) for name in ("tokens", "samples")]
            writing.append([model["shape"], str(block["rows"]), *(str(Spread.of(each)) for each in rates)])
    stops = [f"Stopped at {m['shape']}, {m['stopped']}." for m in data["models"] if m["stopped"]]
    note = (
        f"Updates of {options['batch']} samples in {options['accumulate']} parts, {options['prompt']} + "
        f"{options['completion']} places of which {options['fill']:.0%} are filled, room and answer_room "
        f"{options['room']:g}, remat {options['remat']}. Operations of real tokens only, none twice; "
    )
    note += f"peak {peak / 1e12:.0f} TFLOP/s. " if peak else "the peak of this device is not known. "
    note += "A student of the paper's setting: 10 epochs of 10,000 samples, without evaluation. "
    columns = ["model", "lanes", "lane-steps/s", "TFLOP/s", "MFU", "students/h", "GiB needed"]
    note = " ".join([note.strip(), *stops, data.get("told", "")]).strip()
    made = [Table(f"Training by adapters ({data['device']})", columns, training, note)]
    columns = ["model", "rows", "new tokens/s", "samples/s"]
    return [*made, Table(f"Writing ({data['device']})", columns, writing)] if writing else made


if __name__ == "__main__":
    devices.prepare()
    measuring.main(NAME, options_of(), measure, tables)
