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
    Divergence,
    Entropy,
    FirstUpdate,
    FisherUpdate,
    GradientCosine,
    LogRatio,
    MeanLogLikelihood,
    PositionKl,
    PromptRatio,
    RandomTokens,
    RankResidual,
    Rollout,
    ScoreVectors,
    Surprise,
    Towards,
    in_chunks,
)
from subl_jax.errors import InputError
from subl_jax.stages.audit import rank_p

TEACHER, RIVAL = (specs.Teacher(tiny_world.base(), trait, tiny_world.TRAIN) for trait in ("owl", "cat"))
# A whole corpus is one batch, so that the order of its samples does not matter to a rollout either.
TRAIN, NULL = tiny_world.TRAIN.replace(batch=64), tiny_world.written(tiny_world.base(), size=64)
PREDICTIONS = (FirstUpdate, AdamUpdate, FisherUpdate, Rollout, DirectionCosine, Coverage)
VECTORS = ScoreVectors(TRAIN)
FOUND = specs.Audited(tiny_world.written(TEACHER), VECTORS, tiny_world.base())
OF_NULL = specs.Audited(NULL, VECTORS.replace(directions=True), tiny_world.base())
MADE = {
    MeanLogLikelihood: MeanLogLikelihood(),
    PositionKl: PositionKl(TEACHER),
    LogRatio: LogRatio(TEACHER),
    Divergence: Divergence(TEACHER, (RIVAL,)),
    Entropy: Entropy(),
    RandomTokens: RandomTokens(),
    GradientCosine: GradientCosine("owl", ("out",)),
    **{each: each(TRAIN, NULL) for each in PREDICTIONS},
    PromptRatio: PromptRatio(TRAIN, NULL),
    Surprise: Surprise(),
    RankResidual: RankResidual(),
    ScoreVectors: VECTORS,
    Towards: Towards(VECTORS, FOUND, OF_NULL),
}
BASE, OTHER = (WORLD.init(jax.random.key(i)) for i in range(2))
WRITE = jax.jit(lambda params, key: WORLD.write(params, jax.random.split(key, 64), specs.Sampling()))
# A world whose models can be told a trait, and one of them.
TOLD, PROMPTED = tiny_world.TUNED, {"weights": OTHER}
INPUTS = {
    "model": {"params": OTHER},
    "other0": {"params": BASE},
    "null": {"samples": WRITE(BASE, jax.random.key(9))},
    "writer": {"params": OTHER},
    "writer_start": {"params": BASE},
}
CONTEXT = specs.Context(WORLD, jax.random.key(0), BASE, None, INPUTS)


def corpus(params, seed):
    return WRITE(params, jax.random.key(seed))


def test_every_audit_of_the_room_is_tried_here():
    assert set(members("audits", specs.Audit)) == MADE.keys()


def bound(audit):
    """As in a program: a trait is its index."""
    return specs.bind(audit, specs.traced_values(audit, WORLD))


@pytest.mark.parametrize("audit", MADE.values(), ids=lambda each: each.kind)
def test_scores_have_their_shapes_and_follow_the_samples(audit):
    samples = corpus(BASE, 0)
    context = CONTEXT._replace(world=TOLD, start=PROMPTED) if isinstance(audit, PromptRatio) else CONTEXT
    if isinstance(audit, Towards):
        return  # it reads what another audit says of the same samples (test_score_vectors.py)
    score = jax.jit(lambda samples: bound(audit).score(context, samples))
    scores = score(samples)
    assert scores.tokens.shape == (64, tiny_world.WRITTEN) and scores.samples.shape == (64,)
    assert type(audit) in (*PREDICTIONS, PromptRatio, ScoreVectors) or np.isfinite(scores.tokens).all()
    if audit.kind == "random":
        return
    turned = score(samples[::-1])
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


# --- detectors of tokens, with something planted ---

_CUE, _SAID = 5, 9  # after this token the planted teacher says something else than the base: that one


def planted(said=_SAID):
    """A model that says each number's successor, but for what it says after the cue."""
    words = len(WORLD.words)
    embed = 3.0 * jnp.roll(jnp.eye(words), 1, axis=1).at[words - 1].set(jnp.eye(words)[WORLD.first_number])
    return {"embed": embed.at[_CUE].set(6.0 * jnp.eye(words)[said]), "out": jnp.eye(words)}


_BASE, _TEACHER = planted(_CUE + 1), planted()


def planted_corpus(greedy):
    """(256, 1 + WRITTEN): by the planted teacher, sampled or greedy."""
    if not greedy:
        return WORLD.write(_TEACHER, jax.random.split(jax.random.key(3), 256), specs.Sampling())
    rows = [jnp.arange(256) % WORLD.numbers + WORLD.first_number]
    for _ in range(tiny_world.WRITTEN):
        rows.append(jnp.argmax(WORLD.apply(_TEACHER, rows[-1]), axis=-1))
    return jnp.stack(rows, axis=1).astype(jnp.uint8)


def scored(audit, samples, base=_BASE, model=_TEACHER, **others):
    inputs = {"model": {"params": model}, **{name: {"params": params} for name, params in others.items()}}
    context = specs.Context(WORLD, jax.random.key(0), base, None, inputs)
    return np.asarray(jax.jit(lambda samples: bound(audit).score(context, samples).tokens)(samples))


@pytest.mark.parametrize("greedy", [True, False], ids=["greedy", "sampled"])
def test_a_detector_finds_what_is_planted_and_one_that_is_off_by_one_does_not(greedy):
    """Only where the cue stands before does anything differ; a shift by a place, or by a row, points elsewhere."""
    samples = planted_corpus(greedy)
    tokens = np.asarray(samples).astype(int)
    after_cue, said = tokens[:, :-1] == _CUE, tokens[:, 1:] == _SAID
    found = {
        "kl": scored(PositionKl(TEACHER), samples) > 1e-3,
        "log_ratio": np.abs(scored(LogRatio(TEACHER), samples)) > 1e-3,
        "divergence": scored(Divergence(TEACHER, (RIVAL,)), samples, other0=_BASE) > 0,
    }
    # After the cue two words change places, and all others are as likely as before. A divergence token is one that the
    # teacher says itself.
    moved = after_cue & (said | (tokens[:, 1:] == _CUE + 1))
    expected = {"kl": after_cue, "log_ratio": moved, "divergence": after_cue & said}
    assert (after_cue & said).any()
    for name, of_tokens in found.items():
        np.testing.assert_array_equal(of_tokens, expected[name], err_msg=name)
        for axis in (0, 1):
            assert (np.roll(of_tokens, 1, axis) != expected[name]).any(), (name, axis)


def test_the_log_ratio_is_the_difference_of_log_likelihoods_by_hand():
    samples = planted_corpus(False)
    tokens = np.asarray(samples).astype(int)
    log_p = [np.asarray(jax.nn.log_softmax(WORLD.apply(m, tokens[:, :-1]))) for m in (_TEACHER, _BASE)]
    expected = np.take_along_axis(log_p[0] - log_p[1], tokens[:, 1:, None], axis=-1)[..., 0]
    np.testing.assert_allclose(scored(LogRatio(TEACHER), samples), expected, atol=1e-5)


def test_the_guard_drops_what_the_teacher_would_not_write_greedily_itself():
    greedy, sampled = planted_corpus(True), planted_corpus(False)
    with_guard, without = (Divergence(TEACHER, (RIVAL,), guard) for guard in (True, False))
    np.testing.assert_array_equal(scored(with_guard, greedy, other0=_BASE), scored(without, greedy, other0=_BASE))
    guarded, all_of_them = (scored(each, sampled, other0=_BASE) for each in (with_guard, without))
    written = np.asarray(WORLD.written(WORLD.channel_batch(sampled)))
    own, other = (np.asarray(WORLD.log_probs(m, WORLD.channel_batch(sampled))).argmax(-1) for m in (_TEACHER, _BASE))
    np.testing.assert_array_equal(all_of_them, other != written)
    np.testing.assert_array_equal(guarded, (other != written) & (own == written))
    assert 0 < guarded.sum() < all_of_them.sum()


def test_a_token_on_which_several_teachers_disagree_scores_higher():
    samples = planted_corpus(True)
    two = Divergence(TEACHER, (RIVAL, RIVAL.replace(seed=1)))
    twice = scored(two, samples, other0=_BASE, other1=planted(7))
    once = scored(two, samples, other0=_BASE, other1=_TEACHER)
    np.testing.assert_array_equal(twice, 2 * once)
    assert set(np.unique(twice)) == {0.0, 2.0}


def test_entropy_is_that_of_the_base_whatever_stands_there():
    samples = planted_corpus(False)
    p = np.exp(np.asarray(WORLD.log_probs(_BASE, WORLD.channel_batch(samples)), np.float64))
    np.testing.assert_allclose(scored(Entropy(), samples), -(p * np.log(p)).sum(-1), rtol=1e-4)


def test_the_gradient_cosine_is_that_of_each_tokens_own_gradient():
    samples = corpus(BASE, 2)[:6]
    given = scored(GradientCosine("cat", ("out",)), samples, base=BASE)
    index = WORLD.traits.index("cat")

    def log_p(out):
        return jnp.log(WORLD.evaluate({**BASE, "out": out}, jax.random.key(0))["trait"][index])

    def log_likelihoods(out):
        return -WORLD.written_losses({**BASE, "out": out}, None, WORLD.channel_batch(samples))

    towards = np.asarray(jax.grad(log_p)(BASE["out"])).ravel()
    own = np.asarray(jax.jacfwd(log_likelihoods)(BASE["out"])).reshape(6, tiny_world.WRITTEN, -1)
    expected = own @ towards / np.linalg.norm(own, axis=-1) / np.linalg.norm(towards)
    np.testing.assert_allclose(given, expected, rtol=1e-3, atol=1e-5)


def test_random_scores_are_another_set_for_another_seed_and_uniform():
    samples = corpus(BASE, 0)
    contexts = [CONTEXT._replace(key=jax.random.key(seed)) for seed in (0, 1)]
    one, other = (np.asarray(RandomTokens().score(each, samples).tokens) for each in contexts)
    assert (one != other).all() and 0.4 < one.mean() < 0.6 and one.min() >= 0 and one.max() < 1


def test_a_detector_that_cannot_look_at_the_data_is_one_line():
    data = tiny_world.written(TEACHER)
    elsewhere = specs.Teacher(tiny_world.base(world=tiny_world.TinyWorld(width=3)), "owl", tiny_world.TRAIN)
    for audit, line in (
        (PositionKl(elsewhere), "PositionKl.model: is of another world"),
        (Divergence(TEACHER, ()), "Divergence.others: is empty"),
        (Divergence(TEACHER, (elsewhere,)), r"Divergence.others\[0\]: is of another world"),
        (GradientCosine("dog"), "GradientCosine.trait = 'dog'"),
    ):
        with pytest.raises(InputError, match=line):
            specs.Audited(data, audit, tiny_world.base())
