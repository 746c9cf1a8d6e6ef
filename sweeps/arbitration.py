"""What decides whether a trait passes: adapters, the optimiser, the data, the heads? (docs/arbitration.md)

`:adapters` crosses ranks and full fine-tuning of teacher and student, `:optimizer` seven rules on matrices, `:data`
unique samples, steps, batch and width, `:heads` the start's body and head of digits classifiers. `:smoke` is a small
`:optimizer`. Learning rates are tuned on bases of their own: first `--config.tune=True` with a workdir, then
`--config.tuned=WORKDIR`. `config.smallest_effect` is what the bases can show.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from ml_collections import ConfigDict

import subl_jax
from subl_jax import specs
from subl_jax.channels.numbers import NumbersFilter
from subl_jax.errors import InputError
from subl_jax.probes import HeldOut, Moved
from subl_jax.results import tuning
from subl_jax.statistics.power import smallest_effect
from subl_jax.worlds import images
from subl_jax.worlds.digits import Digits, Inputs
from subl_jax.worlds.toy_language import ToyLanguage

KINDS = ("adapters", "optimizer", "data", "heads", "smoke")
MATRICES = ("*kernel", "*embedding")

# Rule → its other fields, and the rates that are tried.
RULES: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
    "sgd": ({"optimizer": "sgd"}, (0.03, 0.1, 0.3, 1.0, 3.0)),
    "momentum": ({"optimizer": "sgd", "momentum": 0.9}, (3e-3, 1e-2, 3e-2, 0.1, 0.3)),
    "signsgd": ({"optimizer": "signsgd"}, (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)),
    "rmsprop": ({"optimizer": "rmsprop", "eps": 1e-3}, (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)),
    "adamw": ({"optimizer": "adamw", "eps": 1e-3}, (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)),
    "muon": ({"optimizer": "muon", "b1": 0.95}, (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)),
    "frozen_adam": ({"optimizer": "frozen_adam", "eps": 1e-3}, (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)),
}
SHARED = ((), ("*",), ("layers_*",), ("head/*",), ("layers_0/*",), ("layers_1/*", "head/*"))


class Cell(NamedTuple):
    """What one student is beside its base: by which adapters (rank 0: none) teacher and student train, and the rule."""

    teacher: int
    student: int
    rule: str

    @property
    def name(self) -> str:
        ranks = " → ".join(f"rank {rank}" if rank else "full" for rank in (self.teacher, self.student))
        return f"{self.rule}, {ranks}"


def get_config(kind: str = "adapters") -> ConfigDict:
    if kind not in KINDS:
        raise InputError(f"sweeps/arbitration.py:{kind}: {specs.nearest(kind, KINDS)}")
    config = ConfigDict()
    config.kind = kind
    config.seeds = {"adapters": 16, "optimizer": 32, "data": 8, "heads": 16, "smoke": 2}[kind]
    # Rates are tuned on other bases than those that are compared.
    config.first_seed, config.tune_seeds, config.first_tune_seed = 0, 2, 1000
    config.tune, config.tuned = False, ""
    # What the bases can show. The deviation of a difference between two cells of one base is a guess until
    # `config.tuned` says what it is on the tuning bases.
    config.deviation = 0.08
    config.smallest_effect = smallest_effect(config.deviation, config.seeds)
    if kind == "heads":
        return of_digits(config)
    config.trait, config.targets = "owl", "hard" if kind == "data" else "soft"
    config.world = ConfigDict({"width": 32, "layers": 2, "heads": 4, "kv_heads": 4, "mlp": 96})
    config.world.update({"min_numbers": 4, "max_numbers": 5, "plain_extra": 5, "plain_share": 0.6})
    config.base = ConfigDict({"steps": 600, "batch": 128, "lr": 3e-3, "schedule": "cosine", "evals": 4})
    config.teacher = ConfigDict({"steps": 400, "batch": 64, "lr": 3e-3, "eps": 1e-3, "evals": 80})
    config.until = 0.9
    config.data = ConfigDict({"size": 8192, "round": 2048, "budget": 32.0})
    config.held_out = 512
    steps = 300 if kind == "adapters" else 200
    config.student = ConfigDict({"steps": steps, "batch": 64, "schedule": "cosine", "evals": steps // 20})
    config.ranks = (1, 2, 4, 8, 0) if kind == "adapters" else (8, 0)
    config.rules = ("adamw",) if kind == "adapters" else tuple(RULES)
    # Other rates to try than those of the rules.
    config.rates = (1e-3, 3e-3, 1e-2, 3e-2) if kind == "adapters" else ()
    if kind == "data":
        of_data(config)
    if kind == "smoke":
        config.rules, config.ranks = ("sgd", "adamw", "muon"), (2,)
        config.base.steps, config.teacher.steps, config.teacher.evals, config.until = 160, 20, 2, 1.0
        config.data.size, config.data.round, config.held_out = 256, 256, 64
        config.student.steps, config.student.evals = 20, 4
    return config


def of_data(config: ConfigDict) -> None:
    """The setting in which most is transferred by so few parameters (docs/toy_language.md): the norms' gains."""
    config.until, config.teacher.lr, config.teacher.eps = 0.5, 1e-2, 1e-8
    config.student.update({"lr": 1e-2, "steps": 0, "evals": 10})
    config.trainable = ("*_norm/*",)
    config.samples, config.steps, config.batches = (256, 1024, 4096, 16_384), (100, 400), (32, 128)
    config.widths = (32, 64)
    config.data.size, config.data.round = 16_384, 4096


def of_digits(config: ConfigDict) -> ConfigDict:
    config.name, config.data_dir = images.EMBEDDED, ""
    config.aux = (3, 10, 50)
    config.hidden = (256, 256)
    train = {"optimizer": "adam", "lr": 3e-4}
    config.teacher = ConfigDict({"steps": 600, "batch": 256, "evals": 4, **train})
    config.student = ConfigDict({"steps": 1000, "batch": 256, "evals": 4, **train})
    return config


def sweep(config: ConfigDict) -> Iterator[specs.Student]:
    if config.kind not in KINDS:
        raise InputError(f"config.kind = {config.kind!r}: {specs.nearest(config.kind, KINDS)}")
    if config.tune and config.kind in ("data", "heads"):
        raise InputError(f"config.tune: {config.kind} has rates of its own; leave it out")
    if config.kind == "heads":
        yield from heads(config)
    elif config.kind == "data":
        yield from data(config)
    else:
        yield from crossed(config)


def bases_of(config: ConfigDict, world: specs.World, pretrain: specs.Train) -> list[specs.Base]:
    first, count = (config.first_tune_seed, config.tune_seeds) if config.tune else (config.first_seed, config.seeds)
    return [specs.Base(world, pretrain, seed=seed) for seed in range(first, first + count)]


# --- adapters and rules ---


def crossed(config: ConfigDict) -> Iterator[specs.Student]:
    unknown = set(config.rules) - RULES.keys()
    if unknown:
        raise InputError(f"config.rules: {sorted(unknown)[0]!r}: {specs.nearest(sorted(unknown)[0], RULES)}")
    pairs = [(t, s) for t in config.ranks for s in config.ranks if config.kind == "adapters" or t == s]
    cells = [Cell(*pair, rule) for rule in config.rules for pair in pairs]
    bases = bases_of(config, ToyLanguage(**config.world), specs.Train(**config.base))
    rates = {} if config.tune else tuned(config, cells)
    for base, other in specs.derangement(bases):
        for cell in cells:
            teacher = specs.Teacher(
                base,
                config.trait,
                training(config.teacher, cell.teacher),
                until=config.until,
                lora=adapters(config, cell.teacher),
            )
            if config.tune:
                for rate in config.rates or RULES[cell.rule][1]:
                    yield student(config, cell, base, teacher, rate, arm=cell.name)
                continue
            yield student(config, cell, base, teacher, rates[cell.name])
            if cell.teacher == cell.student:
                yield student(config, cell, other, teacher, rates[cell.name])
                yield student(config, cell, base, base, rates[cell.name])


def student(
    config: ConfigDict, cell: Cell, start: specs.Base, writer: specs.Trained, rate: float, arm: str | None = None
) -> specs.Student:
    written, held_out = (
        specs.Dataset(writer, filter=NumbersFilter(), **{**config.data, "size": size, "seed": seed})
        for size, seed in ((config.data.size, 0), (config.held_out, 1))
    )
    train = training({**config.student, "lr": rate, **RULES[cell.rule][0]}, cell.student)
    probes, lora = (HeldOut(held_out), Moved()), adapters(config, cell.student)
    return specs.Student(start, written, train, config.targets, lora=lora, probes=probes, arm=arm, trait=config.trait)


def training(fields: Any, rank: int) -> specs.Train:
    """Of adapters all, of a whole model its matrices."""
    return specs.Train(trainable=() if rank else MATRICES, **fields)


def adapters(config: ConfigDict, rank: int) -> specs.Lora | None:
    return specs.Lora(max_rank=max(config.ranks), rank=rank, alpha=float(rank)) if rank else None


def tuned(config: ConfigDict, cells: list[Cell]) -> dict[str, float]:
    """The rate of every cell: the best in the workdir `config.tuned`; without it the middle of those tried."""
    if not config.tuned:
        return {cell.name: sorted(RULES[cell.rule][1])[len(RULES[cell.rule][1]) // 2] for cell in cells}
    results = subl_jax.load(config.tuned)
    found = tuning.best(results.runs, results.curves)
    deviation = tuning.deviation(results.runs, found)
    if deviation > 0:
        config.deviation, config.smallest_effect = deviation, smallest_effect(deviation, config.seeds)
    missing = [cell.name for cell in cells if cell.name not in found]
    if missing:
        raise InputError(
            f"config.tuned: {config.tuned} has no rate of {missing[0]!r}; tune with the same ranks and rules"
        )
    return {cell.name: found[cell.name].rate for cell in cells}


# --- data ---


def data(config: ConfigDict) -> Iterator[specs.Student]:
    """Unique samples × steps × batch × width; in the middle of them also another order of the same data."""
    for width in config.widths:
        world = ToyLanguage(**{**config.world, "width": width, "mlp": 3 * width})
        bases = bases_of(config, world, specs.Train(**config.base))
        for base, other in specs.derangement(bases):
            instil = specs.Train(trainable=config.trainable, **config.teacher)
            teacher = specs.Teacher(base, config.trait, instil, until=config.until)
            written, plain = (
                specs.Dataset(writer, filter=NumbersFilter(), **config.data) for writer in (teacher, base)
            )
            for steps in config.steps:
                for batch in config.batches:
                    distil = specs.Train(
                        trainable=config.trainable, **{**config.student, "steps": steps, "batch": batch}
                    )
                    for samples in config.samples:
                        made = specs.Student(base, written, distil, config.targets, samples=samples)
                        yield made
                        yield made.replace(data=plain, trait=config.trait)
                    yield made.replace(seed=1, arm="other_order")
                    yield made.replace(start=other)


# --- heads ---


def heads(config: ConfigDict) -> Iterator[specs.Student]:
    """Students that share all of the teacher's start, its body or its head alone, or some layers."""
    found = images.find(config.data_dir, config.name)
    for aux in config.aux:
        world = Digits(images=found, hidden=config.hidden, aux=aux)
        bases = bases_of(config, world, specs.Train(steps=0, batch=1))
        distil = specs.Train(**config.student)
        for base, other in specs.derangement(bases):
            stream = specs.Stream(specs.Teacher(base, "digits", specs.Train(**config.teacher)), sampling=Inputs())
            for keep in SHARED:
                if keep:
                    yield specs.Student(specs.Mix(base, other, keep=keep), stream, distil, "soft", arm=shares(keep))
            yield specs.Student(base, stream, distil, "soft")
            yield specs.Student(other, stream, distil, "soft")


def shares(keep: tuple[str, ...]) -> str:
    words = {"*": "all", "layers_*": "body", "head/*": "head"}
    return "shares_" + "_".join(words.get(name, name.removesuffix("/*").replace("layers_", "layer_")) for name in keep)
