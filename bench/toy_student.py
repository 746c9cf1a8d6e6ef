"""The student that training is measured on: the toy language's, with hard targets, on a fixed dataset."""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import measuring
import numpy as np
import optax
from engine_lanes import Lanes

from subl_jax import specs
from subl_jax.engine import lanes
from subl_jax.models import transformer
from subl_jax.training import optim
from subl_jax.worlds.toy_language import PAD, ToyLanguage, language

BATCH = 64
SAMPLES = 4096
LR = 5e-4
PYTORCH = "eager PyTorch"
STACKED = "torch.func, stacked"


def world_of(width: int) -> ToyLanguage:
    return ToyLanguage(width=width, layers=2, heads=4, kv_heads=4, mlp=3 * width)


def student(width: int, seed: int) -> specs.Student:
    """A student whose data has no teacher in the program, so that its rounds hold training and little else."""
    world = world_of(width)
    base = specs.Base(world, specs.Train(steps=1, batch=1))
    data = specs.Imported(of=world, sha256="", size=SAMPLES)
    return specs.Student(base, data, specs.Train(steps=640, batch=BATCH, lr=LR), seed=seed, trait=world.traits[0])


@functools.cache
def samples_of(width: int) -> np.ndarray:
    """Number sequences of the toy language, (SAMPLES, length)."""
    world = world_of(width)
    numbers_only = world.replace(question_share=0.0, fact_share=0.0)
    tokens = numbers_only.pretrain_batch(jax.random.key(0), 0, SAMPLES).tokens
    return np.asarray(tokens).astype(language(world).compact)


@functools.cache
def params_of(width: int) -> Any:
    return jax.device_get(world_of(width).init(jax.random.key(1)))


def flops_per_step(width: int) -> float:
    """Of one training step of one student: forward and backward, the unembedding at the completion only."""
    world = world_of(width)
    length = world.length - 1  # the last token is only predicted
    unembed = 2 * world.model.width * world.model.vocab
    layers = transformer.flops_per_token(world.model, length) - unembed
    return 3.0 * BATCH * (length * layers + world.completion_length * unembed)


def trained(width: int, layout: lanes.Layout) -> Lanes:
    """Students of one width, trained together by the engine's program in a given layout."""
    inputs = {"start": {"params": params_of(width)}, "data": {"samples": samples_of(width)}}
    return Lanes(student(width, 0), layout, inputs)


def torch_training(width: int, device: str = "cpu") -> Any:
    """The same student in eager PyTorch (`torch_student.Training`)."""
    import torch
    import torch_student

    world = world_of(width)
    model = torch_student.Student(world.model, world.length).load(params_of(width)).to(device)
    tokens = torch.from_numpy(samples_of(width).astype(np.int64)).to(device)
    return torch_student.Training(model, tokens, world.prompt_length, language(world).index[PAD], BATCH, LR)


def torch_stacked(width: int, count: int) -> Any:
    """As many of the same student in one stack (`torch_student.Stacked`)."""
    import torch
    import torch_student

    world = world_of(width)
    model = torch_student.Student(world.model, world.length).load(params_of(width))
    tokens = torch.from_numpy(samples_of(width).astype(np.int64))
    return torch_student.Stacked(model, count, tokens, world.prompt_length, language(world).index[PAD], BATCH, LR)


def stacked_trainers(width: int, count: int) -> dict[str, Callable[[int], None]]:
    """A stack of students on a CPU, by name: with all threads and with one."""
    counts = sorted({1, measuring.cores()}, reverse=True)
    return {
        f"{STACKED}: {count} lanes, {n} thread{'s'[: n > 1]}": _with_threads(torch_stacked(width, count), n)
        for n in counts
    }


def torch_trainers(width: int) -> dict[str, Callable[[int], None]]:
    """Eager PyTorch on the device that jax uses, by name: on a CPU with all threads and with one.

    A small model is often faster with one thread. Empty where PyTorch is not installed or has no such device.
    """
    if importlib.util.find_spec("torch") is None:
        return {}
    import torch

    if jax.default_backend() == "cpu":
        counts = sorted({1, measuring.cores()}, reverse=True)
        return {f"{PYTORCH}, {n} thread{'s'[: n > 1]}": _with_threads(torch_training(width), n) for n in counts}
    if jax.default_backend() == "gpu" and torch.cuda.is_available():
        return {PYTORCH: _on_gpu(width)}
    return {}


def _with_threads(training: Any, threads: int) -> Callable[[int], None]:
    import torch

    def run(steps: int) -> None:
        torch.set_num_threads(threads)
        training.run(steps)

    return run


def _on_gpu(width: int) -> Callable[[int], None]:
    import torch

    training = torch_training(width, "cuda")

    def run(steps: int) -> None:
        training.run(steps)
        torch.cuda.synchronize()

    return run


def agreement(width: int) -> dict[str, Any]:
    """How far PyTorch's student is from ours on the same parameters and batches.

    Raises:
      AssertionError: logits differ by more than 1e-4, or the losses of two steps, an AdamW update between them, do,
        or those of a stack of two.
    """
    import torch

    world, params = world_of(width), params_of(width)
    training = torch_training(width)
    tokens = samples_of(width).astype(np.int32)
    batches = tokens[:BATCH], tokens[BATCH : 2 * BATCH]
    with torch.no_grad():
        theirs = training.model(torch.from_numpy(batches[0].astype(np.int64))).numpy()
    logits_apart = float(np.abs(theirs - np.asarray(world.apply(params, jnp.asarray(batches[0])))).max())
    their_losses = [float(training.step(torch.from_numpy(batch.astype(np.int64)))) for batch in batches]
    pairs, stacked = (
        [torch.from_numpy(np.stack([batch] * 2).astype(np.int64)) for batch in batches],
        torch_stacked(width, 2),
    )
    stacked_losses = [stacked.step(pair).tolist() for pair in pairs]

    rule = optim.transform(student(width, 0).train)
    loss = jax.jit(jax.value_and_grad(lambda params, tokens: world.channel_loss(params, world.channel_batch(tokens))))
    opt, our_losses = rule.init(params), []
    for batch in batches:
        value, gradient = loss(params, batch)
        our_losses.append(float(value))
        change, opt = rule.update(gradient, opt, params)
        params = optax.apply_updates(params, change)
    losses_apart = float(np.abs(np.subtract(their_losses, our_losses)).max())
    assert logits_apart <= 1e-4, f"width {width}: logits of the two implementations differ by {logits_apart}"
    assert losses_apart <= 1e-4, f"width {width}: losses of the two implementations differ: {their_losses} {our_losses}"
    stacked_apart = float(np.abs(np.subtract(stacked_losses, np.asarray(our_losses)[:, None])).max())
    assert stacked_apart <= 1e-4, f"width {width}: losses of the stack differ: {stacked_losses} {our_losses}"
    return {"logits_apart": logits_apart, "losses": our_losses, "torch_losses": their_losses}
