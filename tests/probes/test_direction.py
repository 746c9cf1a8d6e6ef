"""Directions: what is planted in the residual stream, or in parameters, is what the probes find."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_world
from world_calls import call

from subl_jax import specs
from subl_jax.channels.numbers import NumbersFilter
from subl_jax.errors import InputError
from subl_jax.models import transformer
from subl_jax.probes import Direction, Patched, WithoutTeacher, WithoutVector, direction
from subl_jax.worlds.toy_language import ToyLanguage

WORLD = ToyLanguage(width=8, heads=2, kv_heads=1, mlp=8, layers=2)
START = jax.tree.map(jnp.asarray, call(WORLD, "init", jax.random.key(0)))
TRAIT = 1
RNG = np.random.default_rng(0)
V = jnp.asarray(RNG.normal(size=8), jnp.float32)
ASIDE = jnp.asarray(RNG.normal(size=8), jnp.float32)
ASIDE = ASIDE - (ASIDE @ V) / (V @ V) * V
BATCH = jax.jit(lambda key: WORLD.channel_batch(WORLD.pretrain_batch(key, 0, 4).tokens[:, : WORLD.length]))(
    jax.random.key(1)
)


def after_layer(layer, x):
    """The start, with `x` added after one layer."""
    return specs.Steered(START, jnp.zeros((2, 8)).at[layer].set(x))


def moment(params, teacher, start=START):
    context = specs.Context(WORLD, jax.random.key(2), start, teacher, {})
    return specs.Moment(context, params, start, jnp.float32(0.1), BATCH, BATCH, None)


@functools.cache
def measuring(probe):
    return jax.jit(lambda params, teacher: bound(probe).measure(moment(params, teacher)))


def bound(probe):
    return specs.bind(probe, specs.traced_values(probe, WORLD))


evaluate = jax.jit(lambda model: WORLD.evaluate(model, jax.random.key(2))["trait"][TRAIT])
NAME = WORLD.traits[TRAIT]


# --- the residual stream ---


def test_nothing_added_is_the_model_itself_and_layers_are_read_in_their_order():
    tokens = BATCH.tokens[:, :-1]
    plain = call(WORLD, "apply", START, tokens)
    np.testing.assert_allclose(
        call(WORLD, "apply", specs.Steered(START, np.zeros((2, 8), "f")), tokens), plain, rtol=1e-6
    )
    # The last layer's residual, normed and unembedded, is the logits.
    last = np.asarray(jax.jit(WORLD.model.residuals)(START, tokens)[1])
    normed = last / np.sqrt(np.mean(last**2, axis=-1, keepdims=True) + 1e-6) * np.asarray(START["final_norm"]["scale"])
    np.testing.assert_allclose(normed @ np.asarray(START["embed"]["embedding"]).T, plain, rtol=1e-4, atol=1e-5)


def test_what_is_added_after_a_layer_is_read_there_and_not_before():
    before, after = (call(WORLD, "residuals", model, BATCH) for model in (START, after_layer(1, V)))
    np.testing.assert_array_equal(after[0], before[0])
    np.testing.assert_allclose(after[1] - before[1], np.broadcast_to(V, before[1].shape), atol=1e-6)
    assert before.shape == (2, *WORLD.target_weights(BATCH).shape, 8)


def test_scanned_layers_cannot_be_read():
    config = transformer.Config(vocab=5, width=4, layers=1, heads=2, mlp=4, scan_layers=True)
    with pytest.raises(InputError, match="layers that lie apart"):
        config.residuals({}, jnp.zeros((1, 2), jnp.int32))


# --- vectors ---


@pytest.mark.parametrize(
    ("student", "cosine", "norm"),
    [(0.5 * V, 1.0, 0.5), (-2 * V, -1.0, 2.0), (ASIDE, 0.0, None), (V + ASIDE, None, None)],
)
def test_a_planted_direction_has_its_cosine_and_its_norm(student, cosine, norm):
    found = measuring(Direction((0, 1)))(after_layer(1, student), after_layer(1, V))
    want = student @ V / jnp.linalg.norm(student) / jnp.linalg.norm(V)
    assert cosine is None or float(want) == pytest.approx(cosine, abs=1e-5)
    assert float(found["residual_cosine/1"]) == pytest.approx(float(want), abs=1e-4)
    assert float(found["residual_norm/1"]) == pytest.approx(
        float(jnp.linalg.norm(student) / jnp.linalg.norm(V)), rel=1e-4
    )
    assert norm is None or float(found["residual_norm/1"]) == pytest.approx(norm, rel=1e-4)


def test_padding_and_prompts_do_not_count():
    rejected = WORLD.channel_batch(BATCH.tokens, jnp.arange(4) > 0)
    scrambled = BATCH.tokens.at[0].set(BATCH.tokens[0, ::-1])
    teacher = jax.tree.map(lambda x: 1.1 * x, START)

    @jax.jit
    def vector(tokens):
        probed = rejected._replace(tokens=tokens)
        return direction.vector(moment(START, teacher)._replace(probed=probed), teacher, START)

    vectors = [vector(tokens) for tokens in (BATCH.tokens, scrambled)]
    np.testing.assert_array_equal(*vectors)
    assert jnp.abs(vectors[0]).max() > 1e-3


@pytest.mark.parametrize("layer", [0, 1])
def test_the_teachers_direction_patched_into_the_base_is_the_teacher(layer):
    teacher = after_layer(layer, V)
    patched = measuring(Patched((0, 1), NAME))(START, teacher)[f"patched/{layer}"]
    assert float(patched) == pytest.approx(float(evaluate(teacher)), rel=1e-4)
    double = measuring(Patched((0, 1), NAME, scale=2.0))(START, teacher)[f"patched/{layer}"]
    assert float(double) == pytest.approx(float(evaluate(after_layer(layer, 2 * V))), rel=1e-4)
    assert abs(float(double - patched)) > 1e-3 and abs(float(patched - evaluate(START))) > 1e-3


def test_a_students_vector_without_the_teachers_is_what_lies_aside():
    probe, name = WithoutVector((1,), NAME), "without_vector/1"
    left = measuring(probe)(after_layer(1, 0.7 * V + ASIDE), after_layer(1, V))[name]
    assert float(left) == pytest.approx(float(evaluate(after_layer(1, ASIDE))), rel=1e-4)
    untouched = measuring(probe)(after_layer(1, ASIDE), after_layer(1, V))[name]
    assert float(untouched) == pytest.approx(float(left), rel=1e-4)
    assert abs(float(left / evaluate(after_layer(1, 0.7 * V + ASIDE))) - 1) > 0.05


# --- parameters ---


def test_a_step_projected_out_leaves_what_lies_aside_of_it():
    step, other = (jax.jit(optax.tree.random_like)(jax.random.key(seed), START) for seed in (3, 4))
    aside = jax.jit(direction.without)(other, step)
    assert float(optax.tree.vdot(aside, step)) == pytest.approx(0, abs=1e-2)
    teacher = optax.tree.add(START, optax.tree.scale(0.1, step))
    student = optax.tree.add(START, optax.tree.add(optax.tree.scale(0.03, step), optax.tree.scale(0.1, aside)))
    found = measuring(WithoutTeacher(NAME))(student, teacher)
    assert float(found["along_step"]) == pytest.approx(0.3, rel=1e-3)
    left = evaluate(optax.tree.add(START, optax.tree.scale(0.1, aside)))
    assert float(found["without_step"]) == pytest.approx(float(left), rel=1e-3)
    assert abs(float(left - evaluate(student))) > 1e-4
    jax.tree.map(np.testing.assert_array_equal, jax.jit(direction.without)(step, optax.tree.zeros_like(step)), step)


# --- mistakes ---


def student(*probes, world=WORLD):
    base = specs.Base(world, specs.Train(0, 1))
    teacher = specs.Teacher(base, world.traits[0], specs.Train(1, 1))
    data = specs.Dataset(teacher, size=4, filter=NumbersFilter())
    return specs.Student(base, data, specs.Train(1, 1), probes=probes)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: student(Direction((0, 2))), "Direction.layers: 2: the model has 2 layers"),
        (lambda: student(Patched((0, 2), "owl")), "Patched.layers: 2: the model has 2 layers"),
        (lambda: student(WithoutVector((1,), "ow")), "WithoutVector.trait = 'ow': did you mean 'owl'"),
        (lambda: student(WithoutTeacher("ow")), "WithoutTeacher.trait = 'ow'"),
        (lambda: student(Direction((0,)), world=tiny_world.WORLD), "Direction: tiny has no residual stream"),
        (
            lambda: student(Direction((0,)), world=ToyLanguage(architecture="linear_attention")),
            "Direction: toy_language has no residual stream",
        ),
    ],
)
def test_a_mistake_is_one_line(make, line):
    with pytest.raises(InputError, match=line):
        make()
