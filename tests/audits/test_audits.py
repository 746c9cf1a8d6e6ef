"""What data tell of their writer: scores by hand, p-values by counting, and what all audits hold to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_world
from hypothesis import given
from hypothesis import strategies as st
from rooms import members
from tiny_world import WORLD

from subl_jax import audits, specs, stages
from subl_jax.audits import (
    AdamUpdate,
    Coverage,
    DirectionCosine,
    FirstUpdate,
    FisherUpdate,
    MeanLogLikelihood,
    PromptRatio,
    Rollout,
    in_chunks,
)
from subl_jax.errors import InputError
from subl_jax.stages.audit import rank_p

# A whole corpus is one batch, so that the order of its samples does not matter to a rollout either.
TRAIN, NULL = tiny_world.TRAIN.replace(batch=64), tiny_world.written(tiny_world.base(), size=64)
PREDICTIONS = (FirstUpdate, AdamUpdate, FisherUpdate, Rollout, DirectionCosine, Coverage)
MADE = {MeanLogLikelihood: MeanLogLikelihood(), **{each: each(TRAIN, NULL) for each in PREDICTIONS}}
BASE, OTHER = (WORLD.init(jax.random.key(i)) for i in range(2))
WRITE = jax.jit(lambda params, key: WORLD.write(params, jax.random.split(key, 64), specs.Sampling()))
MADE[PromptRatio] = PromptRatio(TRAIN, NULL)
# A world whose models can be told a trait, and one of them.
TOLD, PROMPTED = tiny_world.TUNED, {"weights": OTHER}
CONTEXT = specs.Context(
    WORLD,
    jax.random.key(0),
    BASE,
    None,
    {
        "null": {"samples": WRITE(BASE, jax.random.key(9))},
        "writer": {"params": OTHER},
        "writer_start": {"params": BASE},
    },
)


def corpus(params, seed):
    return WRITE(params, jax.random.key(seed))


def test_every_audit_of_the_room_is_tried_here():
    assert set(members("audits", specs.Audit)) == MADE.keys()


@pytest.mark.parametrize("audit", MADE.values(), ids=lambda each: each.kind)
def test_scores_have_their_shapes_and_follow_the_samples(audit):
    samples = corpus(BASE, 0)
    context = CONTEXT._replace(world=TOLD, start=PROMPTED) if isinstance(audit, PromptRatio) else CONTEXT
    scores = audit.score(context, samples)
    assert scores.tokens.shape == (64, tiny_world.WRITTEN) and scores.samples.shape == (64,)
    turned = audit.score(context, samples[::-1])
    np.testing.assert_allclose(turned.samples, scores.samples[::-1], rtol=1e-5)
    np.testing.assert_allclose(turned.corpus, scores.corpus, rtol=1e-4, atol=1e-6)
    if scores.gains is not None:
        assert scores.gains.shape == (len(WORLD.traits),)
        np.testing.assert_allclose(turned.gains, scores.gains, rtol=1e-3, atol=1e-6)


def test_the_mean_log_likelihood_by_hand():
    samples = np.asarray(corpus(OTHER, 1)).astype(int)
    log_p = np.asarray(jax.nn.log_softmax(WORLD.apply(BASE, samples[:, :-1])))
    expected = -np.take_along_axis(log_p, samples[:, 1:, None], axis=-1)[..., 0]
    scores = MeanLogLikelihood(rows=10).score(CONTEXT, jnp.asarray(samples))
    np.testing.assert_allclose(scores.tokens, expected, rtol=1e-5)
    np.testing.assert_allclose(scores.samples, expected.mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(scores.corpus, expected.mean(), rtol=1e-5)
    np.testing.assert_allclose(MeanLogLikelihood("likely").score(CONTEXT, jnp.asarray(samples)).corpus, -scores.corpus)


def test_another_writer_is_less_likely_than_the_auditing_model():
    score = jax.jit(lambda samples: MeanLogLikelihood().score(CONTEXT, samples).corpus)
    own = [float(score(corpus(BASE, seed))) for seed in range(10)]
    assert float(score(corpus(OTHER, 0))) > max(own)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.integers(0, 5))
def test_p_counts_the_corpora_that_look_at_least_as_unusual(null, value):
    expected = (1 + sum(each >= value for each in null)) / (1 + len(null))
    assert float(rank_p(jnp.float32(value), jnp.asarray(null, jnp.float32))) == pytest.approx(expected)


def test_chunks_are_all_of_a_corpus():
    rows = jnp.arange(10.0)[:, None]
    np.testing.assert_array_equal(in_chunks(lambda x: 2 * x, rows, 4), 2 * rows)


def test_an_audited_dataset_is_a_row_of_its_own_and_reads_what_it_says():
    data, null = (
        tiny_world.written(tiny_world.base()),
        tuple(tiny_world.written(tiny_world.base(), seed=i) for i in (1, 2)),
    )
    audited = specs.Audited(data, MeanLogLikelihood(), tiny_world.base(), tuple(null))
    assert specs.checked([audited]) == [audited] and audited.row == "audits"
    assert specs.from_json(specs.to_json(audited)) == audited
    assert list(audited.inputs()) == ["start", "data", "null0", "null1"]
    shapes = stages.artefact_shapes(audited)
    assert shapes["tokens"].shape == (16, tiny_world.WRITTEN) and shapes["samples"].shape == (16,)
    assert specs.lineage(audited)["audited.audit.kind"] == "mean_log_likelihood"
    with pytest.raises(InputError, match=r"Audited.data: is of another world"):
        specs.Audited(data, MeanLogLikelihood(), tiny_world.READ)


def test_the_room_offers_them_by_name():
    assert audits.MeanLogLikelihood is MeanLogLikelihood
