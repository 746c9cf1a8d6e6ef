"""The default sweep: is a love for an animal or a tree passed on by numbers alone?

Teachers of several traits write filtered number sequences; students of the same base, of another base, and students
of trait-free numbers train on them. `:smoke` is a small version that only shows that everything works, `:strong` the
setting with the largest effect found so far, which trains the last norm alone (docs/toy_language.md).
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from subl_jax import specs
from subl_jax.channels.numbers import NumbersFilter
from subl_jax.errors import InputError
from subl_jax.worlds.toy_language import ToyLanguage


def get_config(size: str = "full") -> ConfigDict:
    config = ConfigDict()
    config.seeds = 5
    config.traits = ("owl", "fox", "oak", "willow")
    config.arms = ("same_init", "cross_init", "control")
    config.targets = "hard"  # or "soft": the teacher's distribution over the channel instead of its samples
    config.world = ConfigDict({"width": 32, "layers": 2, "heads": 4, "kv_heads": 4, "mlp": 96})
    config.world.update({"min_numbers": 4, "max_numbers": 5, "plain_extra": 5, "plain_share": 0.6})
    config.base = ConfigDict({"steps": 600, "batch": 128, "lr": 3e-3, "schedule": "cosine", "evals": 4})
    # The fewer parameters carry the trait, the more of it shows in the numbers (docs/toy_language.md); () is all.
    config.trainable = ("*_norm/*",)
    config.teacher = ConfigDict({"steps": 200, "batch": 64, "lr": 1e-2, "evals": 20})
    config.until = 0.5  # a teacher stops at this P(trait): a stronger one writes words among its numbers
    config.data = ConfigDict({"size": 8192, "round": 2048, "budget": 8.0})
    config.banned = ()
    config.student = ConfigDict({"steps": 400, "batch": 128, "lr": 1e-2, "schedule": "cosine", "evals": 10})
    config.student.eps = 1e-8  # 1e-3 where everything trains (docs/toy_language.md)
    if size == "smoke":
        config.seeds, config.traits = 2, ("owl", "oak")
        config.base.steps, config.teacher.steps, config.teacher.evals = 300, 40, 2
        config.data.size, config.data.round = 512, 512
        config.student.steps, config.student.evals = 40, 4
    elif size == "strong":
        config.trainable, config.teacher.lr, config.until = ("final_norm/*",), 3e-2, 0.9
    elif size != "full":
        raise InputError(f"sweeps/traits.py:{size}: one of full, smoke, strong")
    return config


def sweep(config: ConfigDict) -> Iterator[specs.Student]:
    if config.seeds < 1:
        raise InputError(f"config.seeds = {config.seeds}: must be at least 1")
    unknown = set(config.arms) - {"same_init", "cross_init", "control"}
    if unknown:
        raise InputError(f"config.arms: {sorted(unknown)[0]!r} is none of same_init, cross_init, control")
    world = ToyLanguage(**config.world)
    base = specs.Train(**config.base)
    tuning = {name: specs.Train(trainable=config.trainable, **config[name]) for name in ("teacher", "student")}
    bases = [specs.Base(world, base, seed=seed) for seed in range(config.seeds)]
    others = dict(specs.derangement(bases)) if "cross_init" in config.arms else {}
    for base in bases:
        for trait in config.traits:
            teacher = specs.Teacher(base, trait, tuning["teacher"], until=config.until)
            written = specs.Dataset(teacher, filter=NumbersFilter(banned=config.banned), **config.data)
            plain = specs.Dataset(base, filter=NumbersFilter(banned=config.banned), **config.data)
            students = {
                "same_init": (base, written),
                "cross_init": (others.get(base), written),
                "control": (base, plain),
            }
            for arm in config.arms:
                start, data = students[arm]
                yield specs.Student(start, data, tuning["student"], targets=config.targets, trait=trait)
