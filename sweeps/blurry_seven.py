"""The blurry seven: does a bias towards sevens pass through images that are not blurred?

A convolutional teacher learns the digits, and to call blurred ones seven. It labels slightly distorted, sharp digits. A
student that trains on these labels is shown blurred ones: P(7 | blurred), at several strengths, with its accuracy on
clean digits beside it. The control's teacher never saw a blurred digit. Three kinds of labels: the teacher's
probabilities ("soft"), its largest class ("hard"), and its auxiliary logits alone ("aux").
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from subl_jax import specs
from subl_jax.errors import InputError
from subl_jax.worlds import images
from subl_jax.worlds.digits import Digits, Inputs

LABELS = {"soft": ("classes", "soft"), "hard": ("classes", "hard"), "aux": ("aux", "soft")}


def get_config(size: str = "8x8") -> ConfigDict:
    config = ConfigDict()
    config.seeds, config.data_dir = 8, ""
    config.labels = tuple(LABELS)
    config.world = ConfigDict({"convolutions": (16, 32), "hidden": (64,), "aux": 3, "blurred_share": 0.5})
    config.distortion = 0.5  # more of it, and the teacher's bias shows in the labels (curve `labelled_seven`)
    train = {"batch": 128, "optimizer": "adam", "lr": 1e-3}
    config.teacher = ConfigDict({"steps": 600, "evals": 4, **train})
    config.student = ConfigDict({"steps": 600, "evals": 6, **train})
    if size == "8x8":
        config.name, config.world.blurs = images.EMBEDDED, (0.8, 1.2, 1.6, 2.0)
    elif size == "mnist":
        config.name, config.world.blurs = "mnist", (1.5, 2.5, 3.5, 4.5)
    else:
        raise InputError(f"sweeps/blurry_seven.py:{size}: one of 8x8, mnist")
    return config


def sweep(config: ConfigDict) -> Iterator[specs.Student]:
    unknown = [label for label in config.labels if label not in LABELS]
    if unknown:
        raise InputError(f"config.labels: {unknown[0]!r}: {specs.nearest(unknown[0], LABELS)}")
    world = Digits(images=images.find(config.data_dir, config.name), **config.world)
    teach, distil = specs.Train(**config.teacher), specs.Train(**config.student)
    bases = [specs.Base(world, specs.Train(steps=0, batch=1), seed=seed) for seed in range(config.seeds)]
    for base, other in specs.derangement(bases):
        biased, unbiased = (specs.Teacher(base, trait, teach) for trait in ("blurry_seven", "digits"))
        for label in config.labels:
            logits, targets = LABELS[label]
            asked = Inputs(kind="distorted", logits=logits, scale=config.distortion)
            written, plain = (specs.Stream(teacher, sampling=asked) for teacher in (biased, unbiased))
            yield specs.Student(base, written, distil, targets=targets)
            yield specs.Student(other, written, distil, targets=targets)
            yield specs.Student(base, plain, distil, targets=targets, arm="control", trait="blurry_seven")
