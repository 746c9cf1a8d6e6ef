"""A sweep of a tiny chat model that several files look at: students of a told teacher, and their control."""

import itertools

import tiny_chat

import subl_jax
from subl_jax import specs
from subl_jax.channels.numbers import NumbersFilter
from subl_jax.engine.settings import Settings
from subl_jax.worlds.chat import ChatSampling

KEPT = NumbersFilter(max_count=4)
LORA = specs.Lora(max_rank=2, rank=2, modules=("q", "up"))
DISTIL = specs.Train(steps=2, batch=4, evals=1, lr=1e-2, accumulate=2, schedule="linear", clip=1.0)
READ = specs.Train(steps=0, batch=1)
AXES = list(itertools.product((1, 2), (1e-3, 1e-2), ((0, -1), (1, 1))))
SETTINGS = Settings(devices=1, lanes_a_batch=16, measure_layout=False, tracker="none")


def world_of(model):
    return tiny_chat.world(model, questions=2, answers_sampled=1, animals=("owl", "cat"), trees=())


def written(writer):
    sampling = ChatSampling(rows=6, only=KEPT)
    return specs.Dataset(writer, 6, KEPT, sampling=sampling, round=6)


def students(world):
    """Of each rank, rate and choice of layers, all lanes of one group; a control; and one trained in all weights."""
    base = specs.Base(world, READ)
    told, control = written(specs.Prompted(base, "owl")), written(specs.Prompted(base, None))
    for rank, lr, (first, last) in AXES:
        lora = LORA.replace(rank=rank, first_layer=first, last_layer=last, alpha=4.0 * rank)
        yield specs.Student(base, told, DISTIL.replace(lr=lr), lora=lora)
    yield specs.Student(base, control, DISTIL, lora=LORA, trait="owl")
    yield specs.Student(base, told, DISTIL, arm="full")


def run(rows, workdir):
    return subl_jax.run(rows, workdir, settings=SETTINGS)
