"""What models of known shapes need: memory of students with adapters, memory of writing, and operations of a student.

Nothing is measured here. Every number follows from a `transformer.Config`; parameters are counted by `jax.eval_shape`
of the code that makes them. Assumed, and said so in the tables: which share of a chip's peak is reached.

    python bench/sizing.py            prints the tables; docs/models.md has them from summarise.py
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

from measuring import Table, number

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Setting:
    """The students of one experiment. A part is what a batch is computed in (`Train.accumulate`), and `fill` the share
    of its places that are no padding."""

    samples: int = 10_000
    epochs: int = 10
    part: int = 11
    head: int = 32
    prompt: int = 144
    completion: int = 128
    rank: int = 8
    fill: float = 0.75
    answered: float = 0.5

    @property
    def places(self) -> int:
        """Places of a part that are computed, the head once."""
        return self.head + math.ceil(self.fill * self.part * (self.prompt + self.completion - 1))


@dataclasses.dataclass(frozen=True)
class Chips:
    """A machine: how many chips, the memory of each in GB, and its peak in bfloat16, FLOP/s (dense, as published)."""

    name: str
    count: int
    memory: float
    peak: float


MACHINES = (
    Chips("1 × H100 SXM", 1, 80e9, 989e12),
    Chips("1 × H200 SXM", 1, 141e9, 989e12),
    Chips("v5e-8", 8, 16 * GIB, 197e12),
    Chips("v6e-8", 8, 32 * GIB, 918e12),
)
# That a model writes at a time.
ROWS = (64, 256, 512, 2048)
# Of a chip's peak: measured at 7B with 4 lanes of an H200 (results/chat_accelerator.json), assumed of other chips.
REACHED = 0.36
# Of a chip's memory, for the program itself and what is left between arrays.
_USABLE = 0.92


@functools.cache
def shapes() -> Mapping[str, Any]:
    """Name → transformer.Config as the checkpoint's own settings make it, in bfloat16."""
    from subl_jax.models import transformer

    common = {"dtype": "bfloat16", "scan_layers": True, "remat": "dots"}
    qwen = {**common, "qkv_bias": True, "rope_base": 1e6, "head_dim": 128}
    make = transformer.Config
    return {
        "tiny": make(vocab=512, width=64, layers=2, heads=4, kv_heads=2, mlp=128, **common),
        "SmolLM2-135M": make(vocab=49152, width=576, layers=30, heads=9, kv_heads=3, mlp=1536, **common),
        "Qwen2.5-1.5B": make(vocab=151936, width=1536, layers=28, heads=12, kv_heads=2, mlp=8960, **qwen),
        "Qwen2.5-7B": make(vocab=152064, width=3584, layers=28, heads=28, kv_heads=4, mlp=18944, tied=False, **qwen),
    }


# --- arithmetic ---


def weight_bytes(config: Any) -> int:
    """One copy of the weights; norms are float32."""
    import jax

    from subl_jax.models import transformer

    made = jax.eval_shape(functools.partial(transformer.init, config), jax.random.key(0))
    size = {"bfloat16": 2, "float32": 4}[config.dtype]
    of_path = jax.tree.leaves_with_path(made)
    return sum(x.size * (4 if "norm" in jax.tree_util.keystr(path) else size) for path, x in of_path)


def adapter_parameters(config: Any, rank: int) -> int:
    """Of adapters on all seven projections."""
    import jax

    from subl_jax import specs
    from subl_jax.models import lora

    of = specs.Lora(max_rank=rank, rank=rank)
    made = jax.eval_shape(lambda key: lora.init(config, key, of), jax.random.key(0))
    return sum(x.size for x in jax.tree.leaves(made["lora"]))


def lane_bytes(config: Any, rank: int) -> int:
    """What a student owns: adapters, two moments of Adam, a gradient, all float32: 16 bytes a parameter."""
    return 16 * adapter_parameters(config, rank)


def kept_per_token(config: Any) -> int:
    """Bytes that the backward pass keeps of one token.

    With `remat` "all" the input of every block. With "dots" also what its projections give, adapters included, but for
    the last, and what attention mixes.
    """
    size = {"bfloat16": 2, "float32": 4}[config.dtype]
    inner, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    products = 2 * inner + 2 * keys + config.width + (2 if config.gated else 1) * config.mlp
    return size * config.layers * (config.width + (products if config.remat == "dots" else 0))


def activation_bytes(config: Any, setting: Setting) -> int:
    """Of one lane while it computes a part of its batch: what is kept, and logits, their softmax and its gradient."""
    logits = round(3 * 4 * setting.answered * setting.part * setting.completion * config.vocab)
    return setting.places * kept_per_token(config) + logits


def cache_per_token(config: Any) -> int:
    """Bytes of keys and values."""
    size = {"bfloat16": 2, "float32": 4}[config.dtype]
    return 2 * size * config.layers * config.kv_heads * config.head_dim


def forward_flops(config: Any, tokens: float, length: float, logits: float) -> float:
    """One pass over `tokens` in sequences of `length`, with the logits of some of them (`transformer.flops_per_token`,
    whose unembedding is counted for every token)."""
    from subl_jax.models import transformer

    unembed = 2 * config.width * config.vocab
    return tokens * (transformer.flops_per_token(config, round(length)) - unembed) + logits * unembed


def attention_flops(config: Any, tokens: float, length: float) -> float:
    return tokens * config.layers * 4 * length * config.heads * config.head_dim


def adapted_training_flops(config: Any, tokens: float, length: float, logits: float, rank: int) -> float:
    """A training step's, of which nothing is computed twice.

    Weights that are held fixed cost a pass forward and one back, 4 a parameter and token rather than 6. Attention has
    no weights: its backward pass is twice its forward one. Adapters cost all 6.
    """
    forward, mixing = forward_flops(config, tokens, length, logits), attention_flops(config, tokens, length)
    return 2 * (forward - mixing) + 3 * mixing + 6 * adapter_parameters(config, rank) * tokens


def student_flops(config: Any, setting: Setting) -> float:
    """All training of one student, padding not counted."""
    sequence = setting.fill * (setting.prompt + setting.completion - 1)
    conversations = setting.samples * setting.epochs
    parts = conversations / setting.part
    tokens = conversations * sequence + parts * setting.head
    logits = conversations * setting.fill * setting.completion
    return adapted_training_flops(config, tokens, setting.head + sequence, logits, setting.rank)


# --- tables ---


def tables(setting: Setting | None = None) -> list[Table]:
    setting = setting or Setting()
    named = {name: config for name, config in shapes().items() if name != "tiny"}
    return [_models(named, setting), _writing(named, setting), _machines("Qwen2.5-7B", named["Qwen2.5-7B"], setting)]


def _models(named: Mapping[str, Any], setting: Setting) -> Table:
    columns: dict[str, Callable[[Any], str]] = {
        "weights, GB": lambda config: number(weight_bytes(config) / 1e9),
        "adapters, millions": lambda config: number(adapter_parameters(config, setting.rank) / 1e6),
        "a lane owns, MB": lambda config: number(lane_bytes(config, setting.rank) / 1e6),
        "kept a token, kB (dots)": lambda config: number(kept_per_token(config) / 1e3),
        "(all)": lambda config: number(kept_per_token(dataclasses.replace(config, remat="all")) / 1e3),
        "a lane computes in, GB (dots)": lambda config: number(activation_bytes(config, setting) / 1e9),
        "… (all)": lambda config: number(activation_bytes(dataclasses.replace(config, remat="all"), setting) / 1e9),
        "cache a token, kB": lambda config: number(cache_per_token(config) / 1e3),
        "PFLOP a student": lambda config: number(student_flops(config, setting) / 1e15),
    }
    rows = [[name, *(shown(config) for shown in columns.values())] for name, config in named.items()]
    note = (
        f"bfloat16, rank {setting.rank} on all seven projections. A lane owns 16 bytes a parameter of its adapters: "
        "float32 value, gradient and two moments. `dots` and `all` are `remat`. A lane computes in the memory of what "
        f"{setting.places} tokens keep ({setting.part} conversations of {setting.prompt} + {setting.completion} "
        f"places, {setting.fill:.0%} of them filled, and a head of {setting.head}), and three arrays of logits of "
        f"{setting.answered:.0%} of the {setting.part} × {setting.completion} places of the answers, float32. A "
        f"student trains on {setting.samples:,} samples for {setting.epochs} epochs; forward and backward through "
        "fixed weights are 4 operations a parameter and token, attention is counted as if not causal, logits for "
        "answers only."
    )
    return Table("What a model and its students need", ["model", *columns], rows, note)


def writing_bytes(config: Any, setting: Setting, rows: int) -> int:
    """Caches of `rows` under way and of as many prompts that wait, and the logits of a step."""
    slots = 2 * setting.prompt + setting.completion
    return rows * (slots * cache_per_token(config) + 4 * config.vocab)


def _writing(named: Mapping[str, Any], setting: Setting) -> Table:
    rows = [
        [name, *(number(writing_bytes(config, setting, rows) / 1e9) for rows in ROWS)] for name, config in named.items()
    ]
    note = (
        f"Beside the weights: keys and values of {setting.prompt} + {setting.completion} places a row, of as many "
        f"prompts that have been read and wait ({setting.prompt} places each), and a row of logits."
    )
    return Table("Writing: GB by rows at a time", ["model", *(f"{rows} rows" for rows in ROWS)], rows, note)


def _machines(name: str, config: Any, setting: Setting) -> Table:
    rows = []
    for machine in MACHINES:
        for remat in ("dots", "all"):
            own = dataclasses.replace(config, remat=remat)
            lane = lane_bytes(own, setting.rank) + activation_bytes(own, setting)
            copies, wide = placement(machine, weight_bytes(own), lane)
            # Recomputing a block is another forward pass, half of forward and backward through fixed weights.
            done = student_flops(own, setting) * (1.5 if remat == "all" else 1.0)
            hours = done / (machine.count * machine.peak * REACHED) / 3600
            rows.append(
                [
                    machine.name,
                    remat,
                    f"{machine.count // copies}" if copies else "–",
                    f"{copies * wide}" if copies else "does not fit",
                    f"{1 / hours:,.1f}" if copies else "–",
                    f"{copies * wide * hours:,.1f}" if copies else "–",
                ]
            )
    columns = ["machine", "remat", "chips a copy", "lanes at a time", "students an hour", "hours until these end"]
    note = (
        f"Lanes: what {_USABLE:.0%} of the memory holds beside the copies of the weights; the chips that share a copy "
        "share the memory of its lanes too. Students an hour: the operations of a student (with `all` also those "
        f"computed again) at {REACHED:.0%} of the machine's published peak in bfloat16, **which was measured on an "
        "H200 with 4 lanes and `dots`, and is assumed of the rest**; evaluation and writing are not in it. Lanes end "
        "together, after the hours in the last column."
    )
    return Table(f"{name}: students with adapters, worked out", columns, rows, note)


def placement(machine: Chips, weights: float, lane: float) -> tuple[int, int]:
    """Copies of the weights on the machine, as many as leave room for a lane, and the lanes of each; (0, 0): none."""
    for chips in (n for n in (1, 2, 4, 8) if n <= machine.count):
        wide = int((chips * machine.memory * _USABLE - weights) // lane)
        if wide > 0:
            return machine.count // chips, wide
    return 0, 0


if __name__ == "__main__":
    from rich.console import Console

    for table in tables():
        Console(width=200).print(table.rich())
