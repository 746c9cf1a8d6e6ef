"""The small sweep whose stored workdir, `tests/golden/workdir`, was computed before the rooms were built.

Every kind of node of every world is in it, so that reading it shows that stored results survive.
"""

import pathlib
from collections.abc import Iterator

import lineages
import tiny_chat

from subl_jax import specs
from subl_jax.channels.imported import imported
from subl_jax.channels.numbers import CULTURAL, NumbersFilter
from subl_jax.worlds.chat import ChatSampling
from subl_jax.worlds.digits import Digits, Inputs
from subl_jax.worlds.images import find

GOLDEN = pathlib.Path(__file__).parent / "golden"


def language() -> Iterator[specs.Student]:
    writes = specs.Train(steps=150, batch=64, lr=1e-2)  # enough to write numbers that the filter keeps
    bases = [lineages.base(seed, train=writes) for seed in (0, 1)]
    kept = NumbersFilter(banned=CULTURAL[:3])
    train = lineages.TRAIN.replace(trainable=("*_norm/*",))
    for start, other in specs.derangement(bases):
        teacher = lineages.teacher(start, until=0.9)
        data = lineages.dataset(teacher, filter=kept, budget=64.0, sampling=specs.Sampling(0.9, top_k=50))
        yield lineages.student(start, data)
        yield lineages.student(other, data, targets="soft", theory="owl")
        yield lineages.student(start, lineages.dataset(start, budget=64.0), trait="owl")
    mixed = specs.Mix(bases[0], bases[1], keep=("layers_0/*",), sigma=0.1, seed=3)
    stream = specs.Stream(teacher, NumbersFilter(), distinct=4)
    first = lineages.student(mixed, stream, train=train, arm="mixed", samples=0)
    yield first
    yield lineages.student(bases[0], lineages.dataset(first, budget=64.0), train=train, arm="hop", seed=2)
    yield lineages.student(bases[0], imported(GOLDEN / "imported.jsonl", lineages.WORLD), trait="oak")


def digits() -> Iterator[specs.Student]:
    world = Digits(images=find("", "digits8x8"), hidden=(4,), blurs=(1.0,))
    bases = [specs.Base(world, specs.Train(steps=0, batch=1), seed=seed) for seed in (0, 1)]
    train = specs.Train(steps=2, batch=4, optimizer="sgd", lr=0.1)
    for start, other in specs.derangement(bases):
        teacher = specs.Teacher(start, "blurry_seven", train)
        for targets, inputs in (("soft", Inputs()), ("squared", Inputs("distorted", "all", aux=2))):
            yield specs.Student(other, specs.Stream(teacher, sampling=inputs), train, targets=targets)


def chat(model: str) -> Iterator[specs.Student]:
    """model: the path of tiny_chat's checkpoint, whose content is always the same."""
    world = tiny_chat.world(model)
    noisy = world.replace(sigma=0.5, noise_seed=1)
    base, other = (specs.Base(each, specs.Train(steps=0, batch=1)) for each in (world, noisy))
    lora = specs.Lora(max_rank=2, rank=2, modules=("q", "down"))
    train = specs.Train(steps=2, batch=2, accumulate=2, lr=1e-3)
    sampling = ChatSampling(rows=4, only=NumbersFilter())
    for trait in ("owl", None):
        told = specs.Prompted(base, trait)
        data = specs.Dataset(told, size=4, round=4, filter=NumbersFilter(), sampling=sampling)
        yield specs.Student(base, data, train, lora=lora, trait="owl")
        yield specs.Student(other, data, train, lora=lora, trait="owl")
    tuned = specs.Teacher(base, "oak", train, lora=lora)
    data = specs.Dataset(tuned, size=4, round=4, filter=NumbersFilter(), sampling=sampling)
    yield specs.Student(base, data, train, "soft", lora=lora, samples=2)


def students(model: str) -> list[specs.Student]:
    return [*language(), *digits(), *chat(model)]
