"""What every world has to hold to (`specs.World`), tried on each that comes with the package and on those of the tests.

A new world is added to `MADE`; the rest follows.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_world
from distances import distance as plain_distance
from world_calls import call, distance

from subl_jax import specs
from subl_jax.channels import numbers
from subl_jax.channels.numbers import NumbersFilter
from subl_jax.stages import training
from subl_jax.worlds.digits import Digits, Inputs
from subl_jax.worlds.toy_language import ToyLanguage

MADE = {
    "tiny": lambda: (tiny_world.WORLD, specs.Sampling()),
    "tuned": lambda: (tiny_world.TUNED, specs.Sampling()),
    "toy_language": lambda: (ToyLanguage(width=8, heads=2, kv_heads=1, mlp=8, layers=1), specs.Sampling()),
    "digits": lambda: (Digits(hidden=(8,), blurs=(1.0,)), Inputs(logits="all")),
}
N = 4


@pytest.fixture(scope="module", params=list(MADE))
def made(request):
    """A world with its arrays, two models of it, a sampling, and samples that the first model wrote."""
    world, sampling = MADE[request.param]()
    held = world.holding(jax.tree.map(jnp.asarray, world.arrays()))
    init = jax.jit(held.init)
    models = [held.trainable(init(jax.random.key(i)), jax.random.key(i), None) for i in range(2)]
    keys = jax.random.split(jax.random.key(2), N)
    samples = call(held, "write", models[0], keys, static=(sampling,))
    return held, models, sampling, samples


def batch_of(held, samples, sampling, accepted=True):
    return call(held, "channel_batch", samples, accepted, static=(sampling,))


def test_it_says_what_it_is(made):
    world, *_ = made
    assert world.name and len(set(world.traits)) == len(world.traits) > 0
    assert world.sequence_flops > 0 and set(world.base_rates) <= set(world.traits)
    assert isinstance(world, specs.World) and set(world.targets) <= {"hard", "soft", "squared"}


def test_what_it_measures_has_names(made):
    held, models, *_ = made
    record = {
        name: np.asarray(value)[None] for name, value in call(held, "evaluate", models[0], jax.random.key(0)).items()
    }
    record = held.scored(record)
    assert record["trait"].shape == (1, len(held.traits))
    assert ((record["trait"] >= 0) & (record["trait"] <= 1)).all()
    for name, values in record.items():
        assert values.ndim == 1 or values.shape[1:] == (len(held.labels[name]),), name


def test_each_sample_has_a_random_stream_of_its_own(made):
    held, models, sampling, samples = made
    keys = jax.random.split(jax.random.key(2), N)
    written = call(held, "write", models[0], keys[::-1], static=(sampling,))
    np.testing.assert_array_equal(written, samples[::-1])
    assert len({np.asarray(row).tobytes() for row in samples}) > 1


def test_distributions_are_normalised_and_of_the_shape_of_the_weights(made):
    held, models, sampling, samples = made
    batch = batch_of(held, samples, sampling)
    weights, log_p = call(held, "target_weights", batch), call(held, "log_probs", models[0], batch)
    assert weights.shape[0] == N and float(weights.sum()) > 0
    assert log_p.shape[:-1] == call(held, "channel_logits", models[0], batch).shape[:-1] == weights.shape
    np.testing.assert_allclose(np.exp(log_p).sum(axis=-1), 1.0, rtol=1e-5)
    losses = call(held, "written_losses", *models, batch)
    assert losses.shape == weights.shape and (losses[weights > 0] > 0).all()


def test_the_divergence_from_oneself_is_zero_and_else_positive(made):
    held, models, sampling, samples = made
    batch = batch_of(held, samples, sampling)
    assert call(held, "compare", models[0], models[0], batch)["kl"] == pytest.approx(0, abs=1e-6)
    apart = call(held, "compare", models[1], models[0], batch)["kl"]
    np.testing.assert_allclose(apart, distance(held, models[1], models[0], batch, "soft"), rtol=1e-5)


def test_what_is_rejected_has_no_weight(made):
    held, models, sampling, samples = made
    rejected = np.arange(N) % 2 == 0
    weights = call(held, "target_weights", batch_of(held, samples, sampling, rejected))
    assert (weights[1::2] == 0).all() and (weights[::2] != 0).any()


def test_weights_are_multiplied(made):
    held, _, sampling, samples = made
    batch = batch_of(held, samples, sampling)
    weights = call(held, "target_weights", batch)
    factors = np.arange(weights.size, dtype=np.float32).reshape(weights.shape)
    multiplied = call(held, "target_weights", call(held, "reweighted", batch, factors))
    np.testing.assert_allclose(multiplied, weights * factors)


@pytest.mark.parametrize("targets", ["hard", "soft"])
def test_a_batch_in_microbatches_is_the_whole_batch(made, targets):
    held, models, sampling, samples = made
    if not isinstance(held, specs.Microbatches):
        pytest.skip("computes a batch in one piece")
    batch = batch_of(held, samples, sampling, np.arange(N) != 1)
    gradient_of = jax.value_and_grad(lambda params, batch: plain_distance(held, params, models[1], batch, targets))
    whole = jax.jit(gradient_of)(models[0], batch)
    split = jax.jit(functools.partial(training.accumulated, gradient_of, held, 2, N))(models[0], batch)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), whole, split)


def test_texts_lead_back_to_samples(made):
    held, _, _, samples = made
    if not isinstance(held, specs.WritesTexts):
        pytest.skip("writes no texts")
    pairs = held.texts(np.asarray(samples))
    assert held.texts(held.tokens(pairs)) == pairs and len(pairs) == N


def test_the_filter_in_a_program_is_the_filter_of_texts(made):
    held, models, sampling, _ = made
    if not isinstance(held, specs.FiltersInProgram):
        pytest.skip("does not filter in a program")
    kept = NumbersFilter()
    samples = call(held, "write", models[0], jax.random.split(jax.random.key(5), 256), static=(sampling,))
    reasons = numbers.reasons([completion for _, completion in held.texts(samples)], kept)
    np.testing.assert_array_equal(call(held, "accepts", samples, static=(kept,)), [not why for why in reasons])


def test_its_spec_is_stored_and_read(made):
    held, *_ = made
    fresh = held.replace()
    assert specs.from_json(specs.to_json(fresh)) == fresh and specs.from_json(specs.to_json(fresh)).key == fresh.key
