"""One axis of the auxiliary-logit experiment at a time, with its name: `sweeps/digits_axes.py:lr`, `:m`, `:width`, …

Each value is run with students of the same and of another initialisation. The axes that are numbers in a program (lr,
weight_decay, sigma, noise_scale, noise_count, m) cost one compilation for all their values.
"""

from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

from subl_jax import specs
from subl_jax.errors import InputError
from subl_jax.worlds import images
from subl_jax.worlds.digits import Digits, Inputs

# Axis → its values, and where in the config each of them goes.
AXES: dict[str, tuple[tuple[Any, ...], Callable[[ConfigDict, Any], Any]]] = {
    "m": ((1, 2, 3, 5, 10, 20), lambda config, m: config.inputs.update(aux=m)),
    "width": ((64, 128, 256, 512), lambda config, width: config.world.update(hidden=(width, width))),
    "depth": ((1, 2, 3, 4), lambda config, depth: config.world.update(hidden=(256,) * depth)),
    "lr": ((1e-4, 3e-4, 1e-3, 3e-3), lambda config, lr: config.student.update(lr=lr)),
    "batch": ((64, 256, 1024), lambda config, batch: config.student.update(batch=batch)),
    "teacher_steps": ((60, 200, 600, 2000), lambda config, steps: config.teacher.update(steps=steps)),
    "student_steps": ((80, 400, 2000), lambda config, steps: config.student.update(steps=steps)),
    "noise_count": ((64, 512, 4096, 32768), lambda config, n: config.update(distinct=n)),
    "noise_kind": (("uniform", "gaussian", "images", "shuffled"), lambda config, kind: config.inputs.update(kind=kind)),
    "noise_scale": ((0.25, 0.5, 1.0, 2.0), lambda config, scale: config.inputs.update(scale=scale)),
    "logits": (("aux", "all"), lambda config, logits: config.inputs.update(logits=logits)),
    "loss": (("soft", "squared"), lambda config, targets: config.update(targets=targets)),
    "optimizer": (
        (("adam", 3e-4), ("adamw", 3e-4), ("sgd", 0.1)),
        lambda config, rule: config.student.update(optimizer=rule[0], lr=rule[1]),
    ),
    # Decoupled: added to the gradient, as "adam" does, a decay of .001 is larger than the gradient of the logits' KL.
    "weight_decay": (
        (0.0, 1e-2, 1e-1, 1.0),
        lambda config, decay: config.student.update(optimizer="adamw", weight_decay=decay),
    ),
    "sigma": ((0.0, 0.03, 0.1, 0.3, 1.0), lambda config, sigma: config.update(sigma=sigma)),
    "shared_layers": (
        ((), ("layers_0/*",), ("layers_1/*",), ("head/*",), ("layers_*",), ("*",)),
        lambda config, keep: config.update(keep=keep),
    ),
}


def get_config(axis: str = "lr") -> ConfigDict:
    if axis not in AXES:
        raise InputError(f"sweeps/digits_axes.py:{axis}: {specs.nearest(axis, AXES)}")
    config = ConfigDict()
    config.axis, config.points = axis, ()  # other values than the axis's own
    config.seeds, config.data_dir, config.name = 8, "", images.EMBEDDED
    config.world = ConfigDict({"hidden": (256, 256), "aux": 20 if axis == "m" else 3})
    config.inputs = ConfigDict({"kind": "uniform", "logits": "aux", "scale": 1.0, "aux": 0})
    config.targets, config.distinct, config.sigma, config.keep = "soft", 0, 0.0, ("*",)
    train = {"optimizer": "adam", "lr": 3e-4, "weight_decay": 0.0}
    config.teacher = ConfigDict({"steps": 600, "batch": 256, "evals": 4, **train})
    config.student = ConfigDict({"steps": 2000, "batch": 256, "evals": 4, **train})
    return config


def sweep(config: ConfigDict) -> Iterator[specs.Student]:
    if config.axis not in AXES:
        raise InputError(f"config.axis = {config.axis!r}: {specs.nearest(config.axis, AXES)}")
    data = images.find(config.data_dir, config.name)
    for value in config.points or AXES[config.axis][0]:
        setting = ConfigDict(config.to_dict(), convert_dict=True)
        with setting.ignore_type():
            AXES[config.axis][1](setting, value)
        yield from students(setting, data)


def students(config: ConfigDict, data: images.Images) -> Iterator[specs.Student]:
    world = Digits(images=data, **config.world)
    teach, distil = specs.Train(**config.teacher), specs.Train(**config.student)
    bases = [specs.Base(world, specs.Train(steps=0, batch=1), seed=seed) for seed in range(config.seeds)]
    for base, other in specs.derangement(bases):
        stream = specs.Stream(
            specs.Teacher(base, "digits", teach), sampling=Inputs(**config.inputs), distinct=config.distinct
        )
        start = base
        if config.sigma or config.keep != ("*",) or config.axis in ("sigma", "shared_layers"):
            # A start near the teacher's, or with only some of its layers; the rest is that of the other model.
            start = specs.Mix(base, other, keep=config.keep, sigma=config.sigma)
        yield specs.Student(start, stream, distil, targets=config.targets, arm="same_init")
        yield specs.Student(other, stream, distil, targets=config.targets)
