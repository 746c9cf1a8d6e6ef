"""Predict before training: which trait will a dataset pass on, and how strongly, as seen from the student's start?

    predict.py           528 datasets of twelve bases: traits, strengths, sizes, trainable sets, widths
    predict.py:smoke     two bases and one trainable set, to see that it runs

Every dataset is predicted (`audits/`: plain, Adam's and Fisher-preconditioned first update) and then learnt from, by a
student whose gains over a student of the null corpus are what should have been predicted. Then
`python -m subl_jax predict --benchmark WORKDIR` compares the two (docs/prediction.md).
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from subl_jax import specs
from subl_jax.audits import AdamUpdate, FirstUpdate, FisherUpdate
from subl_jax.channels.numbers import NumbersFilter
from subl_jax.errors import InputError
from subl_jax.worlds.toy_language import ToyLanguage

PREDICTORS = {each.kind: each for each in (FirstUpdate, AdamUpdate, FisherUpdate)}

# What teacher and student train, in a model of which width; the teacher's and the student's rate; and the P(trait) at
# which a teacher stops, as usual and where it is to be weak (docs/toy_language.md).
SETTINGS = {
    "norms": {"width": 32, "trainable": ("*_norm/*",), "teach": 1e-2, "learn": 1e-2, "until": (0.5, 0.25)},
    "final_norm": {"width": 32, "trainable": ("final_norm/*",), "teach": 3e-2, "learn": 1e-2, "until": (0.9, 0.4)},
    "last_layer": {"width": 32, "trainable": ("layers_1/*",), "teach": 5e-3, "learn": 5e-3, "until": (0.9, 0.4)},
    "wide_norms": {"width": 64, "trainable": ("*_norm/*",), "teach": 1e-2, "learn": 1e-2, "until": (0.5, 0.25)},
}


def get_config(size: str = "full") -> ConfigDict:
    config = ConfigDict()
    config.seeds = 12
    config.settings = tuple(SETTINGS)
    config.predictors = tuple(PREDICTORS)
    # Of every base and setting: teachers of so many traits, of which some also write when they are weak and some also
    # few samples; datasets that the base wrote; and students that repeat another one with another seed.
    config.counts = ConfigDict({"traits": 6, "weak": 2, "few": 2, "plain": 1, "again": 1})
    config.world = ConfigDict({"layers": 2, "heads": 4, "kv_heads": 4, "mlp": 96})
    config.world.update({"min_numbers": 4, "max_numbers": 5, "plain_extra": 5, "plain_share": 0.6})
    config.base = ConfigDict({"steps": 600, "batch": 128, "lr": 3e-3, "schedule": "cosine", "evals": 4})
    config.teacher = ConfigDict({"steps": 200, "batch": 64, "evals": 20})
    config.student = ConfigDict({"steps": 400, "batch": 128, "schedule": "cosine", "evals": 10})
    config.data = ConfigDict({"size": 1024, "round": 1024, "budget": 16.0})
    config.few = 128  # samples of the small datasets
    config.rows = 256  # samples that a prediction reads, and as many as these of the null corpus:
    config.null_rows = 1024
    if size == "smoke":
        config.seeds, config.settings, config.predictors = 2, ("norms",), ("first_update", "fisher_update")
        config.counts.update({"traits": 2, "weak": 0, "few": 1, "plain": 1, "again": 1})
        config.base.steps, config.teacher.steps, config.teacher.evals = 300, 60, 6
        config.student.steps, config.data.size, config.data.round = 40, 512, 512
        config.null_rows = 512
    elif size != "full":
        raise InputError(f"sweeps/predict.py:{size}: one of full, smoke")
    return config


def sweep(config: ConfigDict) -> Iterator[specs.Row]:
    for place, chosen in (("settings", SETTINGS), ("predictors", PREDICTORS)):
        for name in config[place]:
            if name not in chosen:
                raise InputError(f"config.{place}: {name!r}: {specs.nearest(name, chosen)}")
    if not 1 <= config.counts.traits <= 24 or config.seeds < 1:
        raise InputError("config.counts.traits and config.seeds: at least 1 of each, and at most 24 traits")
    for name in config.settings:
        for seed in range(config.seeds):
            yield from of_base(config, SETTINGS[name], seed)


def of_base(config: ConfigDict, setting: dict, seed: int) -> Iterator[specs.Row]:
    """The students of one base and trainable set, and the predictions of their data."""
    world = ToyLanguage(width=setting["width"], **config.world)
    base = specs.Base(world, specs.Train(**config.base), seed=seed)
    teach = specs.Train(lr=setting["teach"], trainable=setting["trainable"], **config.teacher)
    learn = specs.Train(lr=setting["learn"], trainable=setting["trainable"], **config.student)
    counts = config.counts

    def written(teacher: specs.Trained, seed: int = 0, **fields: int) -> specs.Dataset:
        return specs.Dataset(teacher, filter=NumbersFilter(), seed=seed, **{**config.data, **fields})

    null = written(base)
    predictors = [
        PREDICTORS[name](learn, null, rows=config.rows, null_rows=config.null_rows) for name in config.predictors
    ]

    def learnt(data: specs.Data, samples: int = 0, **fields: object) -> Iterator[specs.Row]:
        yield specs.Student(base, data, learn, samples=samples, **fields)
        yield from (specs.Audited(data, each.replace(samples=samples), base) for each in predictors)

    for repeat in range(1 + (counts.again > 0)):
        arm = "control_again" if repeat else "control"
        yield specs.Student(base, null, learn, seed=repeat, arm=arm, trait=world.traits[0])
    for i in range(counts.plain):
        yield from learnt(written(base, seed=1 + i), arm="plain", trait=world.traits[0])
    usual, weak = setting["until"]
    for i in range(counts.traits):
        # Bases take turns, so that together they have all traits.
        trait = world.traits[(seed * counts.traits + i) * 5 % len(world.traits)]
        data = written(specs.Teacher(base, trait, teach, until=usual))
        yield from learnt(data)
        if i < counts.weak:
            yield from learnt(written(specs.Teacher(base, trait, teach, until=weak)), arm="weak")
        if i < counts.few:
            yield from learnt(data.replace(seed=1), samples=config.few, arm="few")
        if i < counts.again:
            yield specs.Student(base, data, learn, seed=1, arm="again")
