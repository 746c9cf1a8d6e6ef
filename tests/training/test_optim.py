"""Update rules against torch and plain optax, schedules by hand, and lanes that differ in traced numbers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from subl_jax import specs
from subl_jax.errors import InputError
from subl_jax.specs import Train
from subl_jax.training.optim import learning_rate, named, transform

STEPS = 12
PARAMS = {"w": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4), "b": np.full(4, 0.5, np.float32)}
TARGET = {"w": np.ones((3, 4), np.float32), "b": np.zeros(4, np.float32)}


def gradient(params, step):
    """Of a quadratic whose curvature differs between entries, tilted anew at every step."""
    scale = 1.0 + jnp.arange(4.0)
    tilt = 0.3 * jnp.sin(step.astype(jnp.float32))
    return jax.tree.map(lambda p, t: scale * (p - t) + tilt, params, TARGET)


def trained(train, steps=STEPS):
    """Parameters after each step, (steps, …)."""
    rule = transform(train)

    def update(carry, step):
        params, state = carry
        change, state = rule.update(gradient(params, step), state, params)
        params = optax.apply_updates(params, change)
        return (params, state), params

    params = jax.tree.map(jnp.asarray, PARAMS)
    return jax.lax.scan(update, (params, rule.init(params)), jnp.arange(steps))[1]


def with_optax(rule):
    params, state, path = jax.tree.map(jnp.asarray, PARAMS), rule.init(PARAMS), []
    for step in range(STEPS):
        change, state = rule.update(gradient(params, jnp.int32(step)), state, params)
        params = optax.apply_updates(params, change)
        path.append(params)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *path)


def assert_close(got, want, rtol=2e-5, atol=2e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), got, want)


TORCH = {
    "adamw": (
        Train(STEPS, 1, "adamw", lr=0.05, weight_decay=0.1, b1=0.8, b2=0.95, eps=1e-3),
        lambda torch, p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1, betas=(0.8, 0.95), eps=1e-3),
    ),
    "adam with decay": (
        Train(STEPS, 1, "adam", lr=0.05, weight_decay=0.1, b2=0.95, eps=1e-3),
        lambda torch, p: torch.optim.Adam(p, lr=0.05, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-3),
    ),
    "sgd": (Train(STEPS, 1, "sgd", lr=0.05), lambda torch, p: torch.optim.SGD(p, lr=0.05)),
    "momentum": (
        Train(STEPS, 1, "sgd", lr=0.05, momentum=0.9),
        lambda torch, p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    ),
}


@pytest.mark.parametrize(("train", "make"), TORCH.values(), ids=TORCH.keys())
def test_updates_are_those_of_torch(train, make):
    torch = pytest.importorskip("torch")
    params = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in PARAMS.items()}
    rule = make(torch, list(params.values()))
    path = []
    for step in range(STEPS):
        current = {name: jnp.asarray(value.detach().numpy()) for name, value in params.items()}
        for name, value in gradient(current, jnp.int32(step)).items():
            params[name].grad = torch.tensor(np.asarray(value))
        rule.step()
        path.append({name: value.detach().numpy().copy() for name, value in params.items()})
    assert_close(trained(train), jax.tree.map(lambda *leaves: np.stack(leaves), *path))


def test_clipping_is_that_of_torch():
    torch = pytest.importorskip("torch")
    params = [torch.nn.Parameter(torch.tensor(PARAMS[name])) for name in ("w", "b")]
    grads = gradient(PARAMS, jnp.int32(0))
    for param, name in zip(params, ("w", "b"), strict=True):
        param.grad = torch.tensor(np.asarray(grads[name]))
    torch.nn.utils.clip_grad_norm_(params, 0.7)
    torch.optim.SGD(params, lr=1.0).step()
    got = jax.tree.map(lambda x: x[0], trained(Train(STEPS, 1, "sgd", lr=1.0, clip=0.7), steps=1))
    assert_close(got, {name: param.detach().numpy() for param, name in zip(params, ("w", "b"), strict=True)})


PLAIN = {
    "adamw": (Train(STEPS, 1, lr=0.05, weight_decay=0.1), optax.adamw(0.05, weight_decay=0.1)),
    "clipped": (
        Train(STEPS, 1, lr=0.05, clip=0.5),
        optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.05)),
    ),
    "clip 0 is none": (Train(STEPS, 1, "sgd", lr=0.05, clip=0.0), optax.sgd(0.05)),
    "decoupled decay for sgd": (
        Train(STEPS, 1, "sgd", lr=0.05, momentum=0.5, weight_decay=0.1),
        optax.chain(optax.trace(0.5), optax.add_decayed_weights(0.1), optax.scale(-0.05)),
    ),
    "cosine": (
        Train(STEPS, 1, "sgd", "cosine", lr=0.05),
        optax.sgd(optax.cosine_decay_schedule(0.05, STEPS)),
    ),
    "linear": (
        Train(STEPS, 1, "sgd", "linear", lr=0.05),
        optax.sgd(optax.linear_schedule(0.05, 0.0, STEPS)),
    ),
}


@pytest.mark.parametrize(("train", "rule"), PLAIN.values(), ids=PLAIN.keys())
def test_updates_are_those_of_plain_optax(train, rule):
    assert_close(trained(train), with_optax(rule))


def test_a_clip_is_felt():
    free, clipped = (trained(Train(STEPS, 1, "sgd", lr=0.05, clip=clip)) for clip in (0.0, 0.5))
    assert np.abs(free["w"] - clipped["w"]).max() > 0.1


def test_a_gradient_too_large_for_its_norm_is_not_hidden():
    rule = transform(Train(1, 1, "sgd", lr=1.0))
    change, _ = rule.update({"w": jnp.full(3, 1e30)}, rule.init({"w": jnp.zeros(3)}), {"w": jnp.zeros(3)})
    assert not np.any(change["w"] == 0)  # it diverges, and is seen to


def rates(train):
    return [float(learning_rate(train, jnp.int32(step))) for step in range(train.steps)]


def test_schedules_by_hand():
    def train(schedule, warmup=0):
        return Train(8, 1, schedule=schedule, lr=2.0, warmup=warmup)

    np.testing.assert_allclose(rates(train("constant")), [2.0] * 8)
    np.testing.assert_allclose(rates(train("constant", 4)), [0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0, 2.0])
    np.testing.assert_allclose(rates(train("linear")), [2.0, 1.75, 1.5, 1.25, 1.0, 0.75, 0.5, 0.25])
    np.testing.assert_allclose(rates(train("linear", 4)), [0.5, 1.0, 1.5, 2.0, 2.0, 1.5, 1.0, 0.5])
    cosine = [1 + math.cos(math.pi * step / 6) for step in range(6)]
    np.testing.assert_allclose(rates(train("cosine", 2)), [1.0, 2.0, *cosine], rtol=1e-6)
    # A warm-up as long as the training, or longer.
    np.testing.assert_allclose(rates(train("cosine", 8)), [0.25 * (step + 1) for step in range(8)])
    np.testing.assert_allclose(rates(train("linear", 16)), [0.125 * (step + 1) for step in range(8)])
    assert float(learning_rate(train("linear"), jnp.int32(8))) == 0.0
    assert float(learning_rate(train("cosine"), jnp.int32(8))) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_lanes_that_differ_in_every_traced_number_are_what_they_are_alone(optimizer):
    lanes = [
        Train(STEPS, 1, optimizer, "cosine", lr=0.05, weight_decay=0.1, warmup=3, clip=0.5, b1=0.8, b2=0.9),
        Train(STEPS, 1, optimizer, "cosine", lr=0.01, eps=1e-2, momentum=0.9),
        Train(STEPS, 1, optimizer, "cosine", lr=0.2, warmup=STEPS, clip=2.0, momentum=0.5),
    ]

    def lane(values):
        return trained(specs.bind(lanes[0], values))

    values = [specs.traced_values(train) for train in lanes]
    stacked = {name: jnp.asarray([value[name] for value in values]) for name in values[0]}
    together = jax.jit(jax.vmap(lane))(stacked)
    alone = jax.jit(lane)
    for i, train in enumerate(lanes):
        one = jax.tree.map(lambda x, i=i: x[i], together)
        assert_close(one, alone({name: jnp.float32(value) for name, value in values[i].items()}))
        # As constants, 1 - b2 is rounded once less.
        assert_close(one, trained(train), rtol=1e-4, atol=1e-5)


# --- frozen parameters ---


def test_a_pattern_names_whole_paths():
    tree = {"layers_0": {"norm": {"scale": 1.0}, "mlp": {"kernel": 2.0}}, "norm": {"scale": 3.0}}
    assert named(("*norm/*",), tree) == {
        "layers_0": {"norm": {"scale": True}, "mlp": {"kernel": False}},
        "norm": {"scale": True},
    }
    assert named(("norm/*", "*/kernel"), tree) == {
        "layers_0": {"norm": {"scale": False}, "mlp": {"kernel": True}},
        "norm": {"scale": True},
    }


def test_a_pattern_that_names_nothing_is_told_with_the_nearest_path():
    with pytest.raises(
        InputError, match="Train.trainable: 'layers_0/mpl/kernel' names no parameter; did you mean 'lay"
    ):
        named(("*", "layers_0/mpl/kernel"), {"layers_0": {"mlp": {"kernel": 2.0}}})


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_frozen_parameters_keep_every_bit_and_the_others_move_as_if_alone(optimizer):
    train = Train(STEPS, 1, optimizer, lr=0.05, weight_decay=0.1, clip=0.5, momentum=0.5, trainable=("w",))
    path = trained(train)
    np.testing.assert_array_equal(path["b"], np.broadcast_to(PARAMS["b"], path["b"].shape))
    # The clip, too, is of the gradient of "w" alone.
    rule, w = transform(train.replace(trainable=())), jnp.asarray(PARAMS["w"])
    state, alone = rule.init({"w": w}), []
    for step in range(STEPS):
        change, state = rule.update({"w": gradient({**PARAMS, "w": w}, jnp.int32(step))["w"]}, state, {"w": w})
        w = w + change["w"]
        alone.append(w)
    np.testing.assert_allclose(path["w"], jnp.stack(alone), rtol=2e-5, atol=2e-6)


def test_frozen_parameters_have_no_moments():
    state = transform(Train(STEPS, 1, trainable=("w",))).init(jax.tree.map(jnp.asarray, PARAMS))
    shapes = [leaf.shape for leaf in jax.tree.leaves(state)]
    assert shapes.count((3, 4)) == 2 and (4,) not in shapes
