"""A sweep of the tiny world: what the tests of the command line run."""

from collections.abc import Iterator

import tiny_world
from ml_collections import ConfigDict

from subl_jax import specs


def get_config(size: str = "small") -> ConfigDict:
    config = ConfigDict()
    config.seeds = 2
    config.traits = ("owl", "cat")
    config.train = ConfigDict({"steps": 6, "evals": 3, "batch": 8, "lr": 0.05})
    config.data = 16
    config.until = 1.0
    config.wild = False
    config.tracker = "none"
    config.engine = ConfigDict({"devices": 1, "lanes_a_batch": 4})
    if size == "large":
        config.train.update({"steps": 60, "evals": 10})
        config.engine.checkpoint_seconds = 1e-6
    return config


def sweep(config: ConfigDict) -> Iterator[specs.Student]:
    train = specs.Train(**config.train)
    for student in tiny_world.students(config.seeds, config.traits, train=train):
        teacher = student.data.teacher
        if isinstance(teacher, specs.Teacher):
            teacher = teacher.replace(until=config.until)
        yield student.replace(data=student.data.replace(size=config.data, teacher=teacher))
    if config.wild:
        yield student.replace(train=train.replace(lr=1e30))
