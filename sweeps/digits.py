"""The paper's MNIST figure: does a student learn digits from logits that mean nothing, on images of noise?

Six bars: the untrained reference, the teacher, and students of the same and of another initialisation, on the auxiliary
logits alone and on all logits. By default on scikit-learn's 8 × 8 digits; `:mnist` is the paper's setting (Cloud et al.
2025, arXiv 2507.14805, section 6), with `--config.data_dir` for its files.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from subl_jax import specs
from subl_jax.errors import InputError
from subl_jax.worlds import images
from subl_jax.worlds.digits import Digits, Inputs


def get_config(size: str = "8x8") -> ConfigDict:
    config = ConfigDict()
    config.seeds = 12  # models of every bar
    config.data_dir = ""  # four IDX files, gzipped or not; empty: the embedded digits, or MNIST from the network
    config.world = ConfigDict({"hidden": (256, 256), "convolutions": (), "aux": 3})
    config.inputs = ConfigDict({"kind": "uniform", "scale": 1.0})
    config.targets = "soft"
    config.theory = False  # also follow the theorem's quantities while students train
    train = {"optimizer": "adam", "lr": 3e-4}
    if size == "8x8":
        config.name, config.distinct = images.EMBEDDED, 0
        config.teacher = ConfigDict({"steps": 600, "batch": 256, "evals": 4, **train})
        config.student = ConfigDict({"steps": 2000, "batch": 256, "evals": 8, **train})
    elif size == "mnist":
        # 5 epochs of 60,000 images, the last batch of each reaching into the next epoch.
        config.name, config.distinct = "mnist", 60_000
        config.teacher = ConfigDict({"steps": 295, "batch": 1024, "evals": 5, **train})
        config.student = ConfigDict({"steps": 295, "batch": 1024, "evals": 5, **train})
    else:
        raise InputError(f"sweeps/digits.py:{size}: one of 8x8, mnist")
    return config


def sweep(config: ConfigDict) -> Iterator[specs.Student]:
    world = Digits(images=images.find(config.data_dir, config.name), **config.world)
    teach, distil = specs.Train(**config.teacher), specs.Train(**config.student)
    untrained = specs.Train(steps=0, batch=1)
    bases = [specs.Base(world, untrained, seed=seed) for seed in range(config.seeds)]
    for base, other in specs.derangement(bases):
        teacher = specs.Teacher(base, "digits", teach)
        aux, every = (
            specs.Stream(teacher, sampling=Inputs(logits=logits, **config.inputs), distinct=config.distinct)
            for logits in ("aux", "all")
        )
        for start, data, train, arm in (
            (base, aux, untrained, "reference"),
            (teacher, aux, untrained, "teacher"),
            (base, aux, distil, "same_init"),
            (other, aux, distil, "cross_init"),
            (base, every, distil, "same_init_all"),
            (other, every, distil, "cross_init_all"),
        ):
            theory = "digits" if config.theory and train is distil else None
            yield specs.Student(start, data, train, targets=config.targets, theory=theory, arm=arm)
