"""The paper's theorem, run: one small teacher step, one student step, and whether the second goes the first one's way.

Teachers take one plain gradient step of size `epsilon` from their base, students one of size `student` on the distance
to the teacher's outputs, from the same and from another initialisation. The curves hold Δ_S · Δ_T (`dot`), its
predicted leading order, the teacher's own loss, and the cosine of the moves (subl_jax/probes/theorem.py). On
classifiers with two distances and three sets of logits, and, in `:language`, on the toy language's numbers.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from subl_jax import specs
from subl_jax.channels.numbers import NumbersFilter
from subl_jax.errors import InputError
from subl_jax.worlds import images
from subl_jax.worlds.digits import Digits, Inputs
from subl_jax.worlds.toy_language import ToyLanguage

KINDS = ("digits", "language")


def get_config(world: str = "digits") -> ConfigDict:
    if world not in KINDS:
        raise InputError(f"sweeps/theorem.py:{world}: {specs.nearest(world, KINDS)}")
    config = ConfigDict()
    config.kind, config.seeds = world, 16 if world == "digits" else 4
    if world == "digits":
        config.name, config.data_dir, config.trait = images.EMBEDDED, "", "digits"
        config.world = ConfigDict({"hidden": (64, 64), "convolutions": (), "aux": 3, "activation": "relu"})
    else:
        config.trait, config.world = "owl", ConfigDict({"width": 32, "layers": 2, "mlp": 96})
    config.epsilon = (1e-2, 1e-1, 1.0)
    config.student = (1e-2, 1.0)
    config.targets = ("soft", "squared") if world == "digits" else ("soft",)
    config.logits = ("aux", "classes", "all")
    config.batch = 256
    config.pretrain = ConfigDict({"steps": 300, "batch": 128, "lr": 3e-3, "schedule": "cosine", "evals": 1})
    return config


def sweep(config: ConfigDict) -> Iterator[specs.Student]:
    if config.kind not in KINDS:
        raise InputError(f"config.kind = {config.kind!r}: {specs.nearest(config.kind, KINDS)}")
    trait = config.trait
    if config.kind == "digits":
        world = Digits(images=images.find(config.data_dir, config.name), **config.world)
        pretrain, asked = specs.Train(steps=0, batch=1), [Inputs(logits=logits) for logits in config.logits]
        chosen = None
    else:
        world = ToyLanguage(**config.world)
        pretrain, asked, chosen = specs.Train(**config.pretrain), [specs.Sampling()], NumbersFilter()
    bases = [specs.Base(world, pretrain, seed=seed) for seed in range(config.seeds)]
    for base, other in specs.derangement(bases):
        for epsilon in config.epsilon:
            teacher = specs.Teacher(base, trait, one_step(config.batch, epsilon))
            for sampling in asked:
                stream = specs.Stream(teacher, chosen, sampling)
                for targets in config.targets:
                    for rate in config.student:
                        for start in (base, other):
                            train = one_step(config.batch, rate)
                            yield specs.Student(start, stream, train, targets=targets, theory=trait)


def one_step(batch: int, lr: float) -> specs.Train:
    return specs.Train(steps=1, batch=batch, optimizer="sgd", lr=lr)
