"""Was this data written by somebody with a trait? How often an audit of the toy language is right (docs/audit.md).

    audit.py              calibration on 20 bases, and power against teachers of 16 of them
    audit.py:transforms   what dilution, shuffling, sorting and a filter leave of the evidence
    audit.py:benign       writers without a trait that are not the base either
    audit.py:trainable    teachers that train other parameters than the auditor looks at
    audit.py:defence      students of data without their most suspicious samples
    audit.py:smoke        two bases, to see that it runs

A base audits what others wrote. Its own samples are in two datasets: of `pool`, one part fits and the other calibrates,
and of `fresh`, corpora are tested that hold no trait. Then `python -m subl_jax audit --benchmark WORKDIR` gives the
rates of false alarms and of findings.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from subl_jax import specs
from subl_jax.audits import MeanLogLikelihood, RankResidual, ScoreVectors, Surprise, Towards
from subl_jax.channels.numbers import NumbersFilter
from subl_jax.errors import InputError
from subl_jax.transforms import Pool, ShuffleNumbers, SortNumbers, WithoutSuspicious
from subl_jax.worlds.toy_language import ToyLanguage

KINDS = ("full", "transforms", "benign", "trainable", "defence", "smoke")
# What a teacher trains, its rate, and where it stops, as usual and where it is to be weak (docs/toy_language.md).
TEACHERS = {
    "norms": (("*_norm/*",), 1e-2, (0.5, 0.25)),
    "final_norm": (("final_norm/*",), 3e-2, (0.9, 0.4)),
    "last_layer": (("layers_1/*",), 5e-3, (0.9, 0.4)),
    "all": ((), 3e-3, (0.9, 0.4)),
}


def get_config(kind: str = "full") -> ConfigDict:
    if kind not in KINDS:
        raise InputError(f"sweeps/audit.py:{kind}: {specs.nearest(kind, KINDS)}")
    config = ConfigDict()
    config.kind = kind
    # The whitening's ridge was chosen on bases 0 to 5.
    config.first_seed = 0
    config.seeds, config.teachers = (20, 16) if kind == "full" else (8, 8)
    config.traits = 4  # teachers of each base; bases take turns, so that together they have all
    config.world = ConfigDict({"width": 32, "layers": 2, "heads": 4, "kv_heads": 4, "mlp": 96})
    config.world.update({"min_numbers": 4, "max_numbers": 5, "plain_extra": 5, "plain_share": 0.6})
    config.base = ConfigDict({"steps": 600, "batch": 128, "lr": 3e-3, "schedule": "cosine", "evals": 4})
    config.teacher = ConfigDict({"steps": 200, "batch": 64, "evals": 20})
    config.student = ConfigDict({"steps": 400, "batch": 128, "lr": 1e-2, "schedule": "cosine", "evals": 10})
    config.looks_at = "norms"  # the parameters whose score vectors are tested
    config.dims = 160
    config.data = ConfigDict({"size": 4096, "round": 2048, "budget": 16.0})
    config.pool, config.fresh = 32_768, 51_200
    config.share = 0.25  # of the samples, or of the data: what is mixed in, or left out
    if kind != "full":
        config.fresh = 12_800
    if kind == "smoke":
        config.seeds, config.teachers, config.traits = 2, 1, 2
        config.base.steps, config.teacher.steps, config.teacher.evals = 300, 60, 6
        config.data.size, config.data.round, config.pool, config.fresh = 512, 512, 4096, 1024
    return config


def sweep(config: ConfigDict) -> Iterator[specs.Row]:
    if config.kind not in KINDS:
        raise InputError(f"config.kind = {config.kind!r}: {specs.nearest(config.kind, KINDS)}")
    if not 0 <= config.teachers <= config.seeds or config.seeds < 2:
        raise InputError(
            f"config.teachers = {config.teachers}: between 0 and config.seeds = {config.seeds}, at least 2"
        )
    world = ToyLanguage(**config.world)
    bases = [
        specs.Base(world, specs.Train(**config.base), seed=config.first_seed + seed) for seed in range(config.seeds)
    ]
    for base, other in specs.derangement(bases):
        place = bases.index(base)
        yield from audited(config, base, written(config, base, size=config.pool), directions=True)
        yield from audited(config, base, written(config, base, size=config.fresh, seed=1))
        if place < config.teachers:
            yield from of_base(config, base, other, place)


def of_base(config: ConfigDict, base: specs.Base, other: specs.Base, place: int) -> Iterator[specs.Row]:
    """What this base audits besides its own samples."""
    traits = [base.world.traits[(place * config.traits + i) * 5 % len(base.world.traits)] for i in range(config.traits)]
    plain = written(config, base, seed=2)
    if config.kind in ("full", "smoke"):
        for trait in traits:
            for until in TEACHERS["norms"][2]:
                yield from audited(config, base, written(config, taught(config, base, trait, "norms", until)))
        # The same kind of base, and not this one.
        yield from audited(config, base, written(config, other, seed=2))
        yield from audited(config, base, written(config, taught(config, other, traits[0], "norms")))
    elif config.kind == "transforms":
        for trait in traits:
            data = written(config, taught(config, base, trait, "norms"))
            for each in transformed(config, data, plain):
                yield from audited(config, base, each)
        for each in transformed(config, plain, written(config, base, seed=3)):
            yield from audited(config, base, each)
    elif config.kind == "benign":
        for writer in harmless(config, base, plain):
            yield from audited(config, base, written(config, writer))
        yield from audited(config, base, written(config, taught(config, base, traits[0], "norms")))
    elif config.kind == "trainable":
        for name in TEACHERS:
            for trait in traits:
                yield from audited(config, base, written(config, taught(config, base, trait, name)))
    elif config.kind == "defence":
        for trait in traits:
            yield from defended(config, base, written(config, taught(config, base, trait, "norms")), plain)


def taught(config: ConfigDict, base: specs.Base, trait: str, name: str, until: float = 0.0) -> specs.Teacher:
    patterns, rate, usual = TEACHERS[name]
    train = specs.Train(lr=rate, trainable=patterns, **config.teacher)
    return specs.Teacher(base, trait, train, until=until or usual[0])


def written(config: ConfigDict, writer: specs.Trained, size: int = 0, seed: int = 0) -> specs.Dataset:
    fields = dict(config.data) | ({"size": size} if size else {})
    return specs.Dataset(writer, filter=NumbersFilter(), seed=seed, **fields)


def looked_at(config: ConfigDict) -> specs.Train:
    return specs.Train(trainable=TEACHERS[config.looks_at][0], **config.student)


def audited(
    config: ConfigDict, base: specs.Base, data: specs.Data, directions: bool = False
) -> Iterator[specs.Audited]:
    """All audits of a dataset; the directions of traits are the base's, and so of one dataset only."""
    vectors = ScoreVectors(looked_at(config), directions=directions, dims=config.dims, chunk=128)
    for audit in (vectors, MeanLogLikelihood(), Surprise(), RankResidual()):
        yield specs.Audited(data, audit, base)


def transformed(config: ConfigDict, data: specs.Data, plain: specs.Data) -> Iterator[specs.Data]:
    for each in (ShuffleNumbers(), ShuffleNumbers("across"), SortNumbers()):
        yield specs.Transformed((data,), each)
    yield specs.Transformed((data, plain), Pool(config.share))
    yield data


def harmless(config: ConfigDict, base: specs.Base, plain: specs.Dataset) -> Iterator[specs.Trained]:
    """Students of data without a trait: the base's own, and these in another style, with which they write."""
    for data in (plain, *(specs.Transformed((plain,), each) for each in (SortNumbers(), ShuffleNumbers("across")))):
        yield specs.Student(base, data, looked_at(config), trait=base.world.traits[0])


def defended(
    config: ConfigDict, base: specs.Base, data: specs.Dataset, plain: specs.Dataset
) -> Iterator[specs.Student]:
    """Students of what is left when the most suspicious samples are gone, and of as much at random; and the same of
    data without a trait, since a choice of samples is a signal itself."""
    vectors = ScoreVectors(looked_at(config), dims=config.dims, chunk=128)
    pool = written(config, base, size=config.pool)
    null = specs.Audited(pool, vectors.replace(directions=True), base)
    for source, where in ((data, ""), (plain, " on control")):
        trait = data.given_trait
        yield specs.Student(base, source, looked_at(config), arm=f"all{where}", trait=trait)
        found = specs.Audited(source, vectors, base)
        for direction, gone in (("trait", "highest"), ("deviation", "highest"), ("trait", "random")):
            towards = specs.Audited(source, Towards(vectors, found, null, direction), base)
            left = specs.Transformed((source,), WithoutSuspicious(towards, config.share, gone))
            name = "random" if gone == "random" else direction
            yield specs.Student(base, left, looked_at(config), arm=f"without {name}{where}", trait=trait)
