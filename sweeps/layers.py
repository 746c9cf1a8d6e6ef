"""Which layers, and which parameters, give a trait away and take it up? (docs/layers.md)

`:map` trains one layer of an 8-layer model in the teacher and one in the student, or all of them, in all pairs;
`:norms` only the norms' gains of these layers. `:ranges` trains one layer, all but one, the first k, the last k, the
same in teacher and student; `:lora` does so by adapters. `:sets` crosses attention, MLPs, norms and embedding.
`:starts` lets student and teacher share only some layers at the start. All layers of a kind are lanes of one program.
`:probes` follows teacher's and student's directions in the residual stream. `:smoke` is a small map that only shows
that everything works.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from subl_jax import specs
from subl_jax.channels.numbers import NumbersFilter
from subl_jax.errors import InputError
from subl_jax.probes import Direction, Patched, WithoutTeacher, WithoutVector
from subl_jax.worlds.toy_language import ToyLanguage

# What trains in each kind: patterns of parameters, within the layers that the row names.
TRAINS = {
    "map": ("layers_*",),
    "norms": ("layers_*_norm/*",),
    "ranges": ("layers_*",),
    "lora": (),
    "sets": (),
    "starts": ("*_norm/*",),
    "probes": ("*_norm/*",),
    "smoke": ("layers_*",),
}
# What `:sets` crosses, each with its rate. Few parameters take a higher one.
SETS = {
    ("layers_*/attention/*",): 5e-3,
    ("layers_*/mlp/*",): 5e-3,
    ("*_norm/*",): 1e-2,
    ("final_norm/*",): 3e-2,
    ("embed/*",): 3e-3,
}
MAPS = ("map", "norms", "smoke")
Layers = tuple[int, int]  # the first and the last that train, as in `specs.Train`


def get_config(kind: str = "map") -> ConfigDict:
    if kind not in TRAINS:
        raise InputError(f"sweeps/layers.py:{kind}: {specs.nearest(kind, TRAINS)}")
    config = ConfigDict()
    config.kind = kind
    # Rates and steps were chosen on bases from 1000 on; what is reported is of others.
    config.seeds, config.first_seed = 8, 0
    config.traits = ("owl",)
    gains = kind in ("norms", "starts", "probes")
    config.targets = "hard" if gains else "soft"
    # Which teachers the maps have: those that train a single layer and one that trains all, or only the latter.
    config.teachers = "each"
    config.layers = 2 if kind == "sets" else 8
    config.world = ConfigDict({"width": 32, "heads": 4, "kv_heads": 4, "mlp": 96})
    config.world.update({"min_numbers": 4, "max_numbers": 5, "plain_extra": 5, "plain_share": 0.6})
    config.base = ConfigDict({"steps": 600, "batch": 128, "lr": 3e-3, "schedule": "cosine", "evals": 4})
    config.teacher = ConfigDict({"steps": 400, "batch": 64, "lr": 3e-2 if gains else 3e-3, "evals": 80})
    config.until = 0.3 if kind == "norms" else 0.5  # teachers are matched: each stops at this P(trait)
    config.data = ConfigDict({"size": 2048, "round": 1024, "budget": 32.0})
    config.student = ConfigDict({"steps": 120, "batch": 64, "lr": 3e-2 if gains else 3e-3, "evals": 4})
    config.student.schedule = "cosine"
    config.lora = ConfigDict({"max_rank": 8, "rank": 8, "alpha": 8.0})
    if kind == "smoke":
        config.seeds, config.layers = 2, 2
        config.base.steps, config.teacher.steps, config.teacher.evals = 300, 40, 4
        config.data.size, config.data.round = 512, 512
        config.student.steps, config.student.evals = 40, 2
    return config


def sweep(config: ConfigDict) -> Iterator[specs.Student]:
    if config.kind not in TRAINS:
        raise InputError(f"config.kind = {config.kind!r}: {specs.nearest(config.kind, TRAINS)}")
    if config.teachers not in ("each", "all") or (config.teachers == "all" and config.kind not in MAPS):
        raise InputError(f"config.teachers = {config.teachers!r}: each; in {', '.join(MAPS)} also all")
    world = ToyLanguage(layers=config.layers, **config.world)
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    bases = [specs.Base(world, specs.Train(**config.base), seed=seed) for seed in seeds]
    for base, other in specs.derangement(bases):
        for trait in config.traits:
            if config.kind == "starts":
                yield from of_starts(config, base, other, trait)
            elif config.kind == "probes":
                yield from probed(config, base, other, trait)
            else:
                yield from of_parts(config, base, other, trait)


def of_parts(config: ConfigDict, base: specs.Base, other: specs.Base, trait: str) -> Iterator[specs.Student]:
    """Students of teachers that train some parts each: every pair of them, or the same part in both."""
    parts = trained(config)
    lora = specs.Lora(**config.lora) if config.kind == "lora" else None
    plain = written(config, base)
    for part in parts if config.teachers == "each" else parts[-1:]:
        teacher = specs.Teacher(base, trait, train(config, "teacher", part), until=config.until, lora=lora)
        data = written(config, teacher)
        for own in parts if config.kind not in ("ranges", "lora") else [part]:
            yield specs.Student(base, data, train(config, "student", own), config.targets, lora=lora)
        yield specs.Student(other, data, train(config, "student", part), config.targets, lora=lora)
    for part in parts:
        yield specs.Student(base, plain, train(config, "student", part), config.targets, lora=lora, trait=trait)


def of_starts(config: ConfigDict, base: specs.Base, other: specs.Base, trait: str) -> Iterator[specs.Student]:
    """Students that start with only some of the teacher's layers; the rest is that of another base."""
    both = (TRAINS["starts"], None)
    distil = train(config, "student", both)
    data = written(config, specs.Teacher(base, trait, train(config, "teacher", both), until=config.until))
    layers = [f"layers_{i}/*" for i in range(config.layers)]
    rest = ("embed/*", "final_norm/*")
    one = [(layer,) for layer in layers]
    but_one = [(*(name for name in layers if name != layer), *rest) for layer in layers]
    for keep in (*one, *but_one, tuple(layers), rest):
        yield specs.Student(specs.Mix(base, other, keep=keep), data, distil, config.targets)
    yield specs.Student(base, data, distil, config.targets)
    yield specs.Student(other, data, distil, config.targets)
    yield specs.Student(base, written(config, base), distil, config.targets, trait=trait)


def probed(config: ConfigDict, base: specs.Base, other: specs.Base, trait: str) -> Iterator[specs.Student]:
    """Students that train all norms' gains, with the directions of teacher and student after every layer."""
    part, layers = (TRAINS["probes"], None), tuple(range(config.layers))
    data = written(config, specs.Teacher(base, trait, train(config, "teacher", part), until=config.until))
    probes = (Direction(layers), Patched(layers, trait), WithoutVector(layers, trait), WithoutTeacher(trait))
    distil = train(config, "student", part)
    for start in (base, other):
        yield specs.Student(start, data, distil, config.targets, probes=probes)
    yield specs.Student(base, written(config, base), distil, config.targets, trait=trait)


def trained(config: ConfigDict) -> list[tuple[tuple[str, ...], Layers | None]]:
    """The parts of a kind: which parameters train, and in which layers; None for no choice of layers."""
    if config.kind == "sets":
        return [(patterns, None) for patterns in SETS]
    patterns, last = TRAINS[config.kind], config.layers - 1
    one = [(layer, layer) for layer in range(config.layers)]
    if config.kind in MAPS:
        return [(patterns, layers) for layers in dict.fromkeys([*one, (0, last)])]
    but_one = [((layer + 1) % config.layers, (layer - 1) % config.layers) for layer in range(config.layers)]
    halves = sorted({config.layers // 4, config.layers // 2, 3 * config.layers // 4} - {0, 1})
    first = [(0, k - 1) for k in halves]
    ranges = [*one, *but_one, *first, *((config.layers - k, last) for k in halves), (0, last)]
    return [(patterns, layers) for layers in dict.fromkeys(ranges)]


def train(config: ConfigDict, who: str, part: tuple[tuple[str, ...], Layers | None]) -> specs.Train:
    patterns, layers = part
    first, last = layers or (0, -1)
    within = {"first_layer": first, "last_layer": last, "by_layer": layers is not None}
    rate = {"lr": SETS[patterns]} if config.kind == "sets" else {}
    return specs.Train(trainable=patterns, **within, **{**config[who], **rate})


def written(config: ConfigDict, writer: specs.Trained) -> specs.Dataset:
    return specs.Dataset(writer, filter=NumbersFilter(), **config.data)
