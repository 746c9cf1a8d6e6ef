"""Score vectors and what is made of them: by hand, by finite differences, and with something planted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_world
from tiny_world import TRAIN, WORLD

from subl_jax import specs, stages
from subl_jax.audits import RankResidual, ScoreVectors, Surprise, Towards
from subl_jax.audits.score_vectors import Sketch
from subl_jax.errors import InputError
from subl_jax.statistics.score_test import Whitening

BASE, OTHER = (WORLD.init(jax.random.key(i)) for i in range(2))
CONTEXT = specs.Context(WORLD, jax.random.key(0), BASE, None, {})
OUT = ScoreVectors(TRAIN.replace(trainable=("out",)), directions=True, dims=64)
WRITE = jax.jit(lambda params, key: WORLD.write(params, jax.random.split(key, 256), specs.Sampling()))
SAMPLES = WRITE(OTHER, jax.random.key(3))
SCORED = jax.jit(lambda samples: OUT.score(CONTEXT, samples))
NUMBERS = BASE["out"].size


def log_p(out, samples):
    """(n,): of whole samples, a sum over their tokens."""
    return -WORLD.written_losses({**BASE, "out": out}, None, WORLD.channel_batch(samples)).sum(axis=1)


def test_vectors_are_gradients_of_log_p_of_whole_samples():
    expected = jax.jacfwd(log_p)(BASE["out"], SAMPLES[:20]).reshape(20, -1)
    vectors = np.asarray(SCORED(SAMPLES).kept["vectors"])
    np.testing.assert_allclose(vectors[:20, :NUMBERS], expected, rtol=1e-4, atol=1e-5)
    assert vectors.shape == (256, 64) and not vectors[:, NUMBERS:].any()


def test_directions_are_gradients_of_log_p_of_traits():
    def of(out):
        return jnp.log(WORLD.evaluate({**BASE, "out": out}, jax.random.key(0))["trait"])

    expected = np.asarray(jax.jacfwd(of)(BASE["out"])).reshape(3, -1)
    np.testing.assert_allclose(SCORED(SAMPLES).kept["directions"][:, :NUMBERS], expected, rtol=1e-4, atol=1e-6)


def test_a_models_own_samples_have_vectors_of_mean_0_and_anothers_do_not():
    own, other = (
        np.asarray(SCORED(WRITE(params, jax.random.key(7))).kept["vectors"])[:, :NUMBERS] for params in (BASE, OTHER)
    )
    z = [each.mean(axis=0) / np.maximum(each.std(axis=0), 1e-9) * 256**0.5 for each in (own, other)]
    assert np.abs(z[0]).max() < 4.5 and np.abs(z[1]).max() > 10


def test_a_sketch_keeps_products_and_goes_back():
    rng = np.random.default_rng(0)
    one, other = jnp.asarray(rng.normal(size=(2, 5000)), jnp.float32)
    one = one + other
    sketch = Sketch.of(5000, 1024)
    product = float(sketch.of_vector(one) @ sketch.of_vector(other))
    assert product == pytest.approx(float(one @ other), rel=0.15)
    direction = jnp.asarray(rng.normal(size=1024), jnp.float32)
    assert float(sketch.back(direction) @ one) == pytest.approx(float(direction @ sketch.of_vector(one)), rel=1e-3)
    # Always the same, or corpora could not be compared.
    np.testing.assert_array_equal(sketch.places, Sketch.of(5000, 1024).places)
    np.testing.assert_array_equal(Sketch.of(3, 5).of_vector(jnp.arange(3.0)), [0, 1, 2, 0, 0])
    np.testing.assert_array_equal(Sketch.of(3, 5).back(jnp.arange(5.0)), [0, 1, 2])


def test_a_sketch_is_the_same_whatever_the_key_of_the_audit():
    small = OUT.replace(dims=8)
    vectors = [small.score(CONTEXT._replace(key=jax.random.key(seed)), SAMPLES[:8]).kept["vectors"] for seed in (1, 2)]
    np.testing.assert_array_equal(*vectors)


def of_numbers(params, seed, n=1024):
    """(n, 1 + WRITTEN): by a model that can write nothing but numbers, so that no filter chooses among its samples."""
    rng = np.random.default_rng(seed)
    rows = [WORLD.first_number + rng.integers(WORLD.numbers, size=n)]
    for _ in range(tiny_world.WRITTEN):
        logits = np.asarray(WORLD.apply(params, rows[-1]))[:, WORLD.first_number :]
        rows.append(WORLD.first_number + np.argmax(logits + rng.gumbel(size=logits.shape), axis=1))
    return jnp.asarray(np.stack(rows, axis=1), jnp.uint8)


@pytest.mark.parametrize("audit", [Surprise(), RankResidual()], ids=lambda each: each.kind)
def test_what_a_model_writes_itself_is_0_on_average_and_what_another_writes_is_not(audit):
    own, other = (np.asarray(audit.score(CONTEXT, of_numbers(params, 0)).samples) for params in (BASE, OTHER))
    assert abs(own.mean()) < 4 * own.std() / len(own) ** 0.5
    assert other.mean() > 8 * other.std() / len(other) ** 0.5


def test_surprise_and_rank_by_hand():
    samples = of_numbers(OTHER, 1, 10)
    batch = WORLD.channel_batch(samples)
    p = np.exp(np.asarray(WORLD.log_probs(BASE, batch), np.float64))
    written = np.asarray(WORLD.written(batch))
    own = np.take_along_axis(p, written[..., None], axis=-1)
    surprise = -np.log(own[..., 0]) + (p * np.log(p)).sum(axis=-1)
    np.testing.assert_allclose(Surprise().score(CONTEXT, samples).tokens, surprise, rtol=1e-3, atol=1e-5)
    rank = np.where(p > own, p, 0).sum(axis=-1) + own[..., 0] / 2 - 0.5
    np.testing.assert_allclose(RankResidual().score(CONTEXT, samples).tokens, rank, atol=1e-5)


# --- which samples and tokens carry it ---

LOOK = OUT.replace(directions=False)
DATA, NULL = tiny_world.written(tiny_world.base(), size=256), tiny_world.written(tiny_world.base(), size=256, seed=1)
FOUND, OF_NULL = specs.Audited(DATA, LOOK, tiny_world.base()), specs.Audited(NULL, OUT, tiny_world.base())


def towards(direction):
    kept = SCORED(WRITE(BASE, jax.random.key(5))).kept
    inputs = {"null": kept, "found": {"vectors": SCORED(SAMPLES).kept["vectors"]}}
    audit = Towards(LOOK, FOUND, OF_NULL, direction)
    return kept, jax.jit(lambda samples: audit.score(CONTEXT._replace(inputs=inputs), samples))(SAMPLES)


@pytest.mark.parametrize("direction", ["trait", "deviation"])
def test_samples_are_shifted_as_the_statistics_say_and_their_tokens_add_up(direction):
    kept, scores = towards(direction)
    whitening = Whitening.of(np.asarray(kept["vectors"], float), ridge=10.0)
    white = whitening.white(np.asarray(SCORED(SAMPLES).kept["vectors"], float))
    mean = white.mean(axis=0)
    unit = mean / np.linalg.norm(mean)
    if direction == "trait":
        units = whitening.units(np.asarray(kept["directions"], float))
        unit = units[np.argmax(units @ mean)]
    shifts = white @ unit / (whitening.white(np.asarray(kept["vectors"], float)) @ unit).std()
    np.testing.assert_allclose(scores.samples, shifts, rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(scores.corpus, shifts.mean(), rtol=1e-2, atol=1e-3)
    # What the base's samples have on average is the same for all.
    rest = np.asarray(scores.tokens).sum(axis=1) - np.asarray(scores.samples)
    np.testing.assert_allclose(rest, rest.mean(), atol=1e-2)


def test_stored_vectors_have_the_declared_shapes():
    shapes = stages.artefact_shapes(OF_NULL)
    assert shapes["vectors"].shape == (256, 64) and shapes["directions"].shape == (3, 64)
    assert "directions" not in stages.artefact_shapes(FOUND)


@pytest.mark.parametrize(
    ("audit", "line"),
    [
        (Towards(LOOK, specs.Audited(NULL, LOOK, tiny_world.base()), OF_NULL), "found: is an audit of other data"),
        (Towards(LOOK.replace(dims=8), FOUND, OF_NULL), "found: is another audit than vectors"),
        (Towards(LOOK, FOUND, FOUND), "null: is another audit than vectors, with directions"),
    ],
)
def test_evidence_of_something_else_is_one_line(audit, line):
    with pytest.raises(InputError, match=line):
        specs.Audited(DATA, audit, tiny_world.base())


def test_what_is_kept_has_to_be_declared():
    class Undeclared(ScoreVectors):
        def keeps(self, audited):
            return {}

    node = specs.Audited(DATA, Undeclared(TRAIN), tiny_world.base())
    with pytest.raises(InputError, match="vectors is kept and not declared"):
        stages.stage_of(node).check(node, stages.artefact_shapes)
