"""Predictions before training, with planted answers: a world whose numbers and questions share one vector of gains."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_world
from tiny_world import TRAIN, WORLD, TinyWorld

from subl_jax import specs
from subl_jax.audits import AdamUpdate, Coverage, DirectionCosine, FirstUpdate, FisherUpdate, PromptRatio, Rollout
from subl_jax.audits.fisher_update import solved
from subl_jax.errors import InputError
from subl_jax.transforms import Pool


@dataclasses.dataclass(frozen=True)
class Gained(TinyWorld):
    """Gains are what a question and the numbers have in common, so that numbers can carry a trait."""

    name: ClassVar[str] = "gained"

    def init(self, key: jax.Array) -> Any:
        return {**super().init(key), "gain": jnp.ones(self.width)}

    def apply(self, params: Any, tokens: jax.Array) -> jax.Array:
        return (params["embed"][tokens] * params["gain"]) @ params["out"]


GAINED = Gained(width=24)
GAINS = TRAIN.replace(trainable=("gain",), batch=64)
BASE = GAINED.init(jax.random.key(3))
NULL_NODE = tiny_world.written(tiny_world.base(world=GAINED), size=4096)
WRITE = jax.jit(lambda params, key: GAINED.write(params, jax.random.split(key, 4096), specs.Sampling()))
FIRST = {
    each.kind: each(GAINS, NULL_NODE, rows=4096, null_rows=4096) for each in (FirstUpdate, AdamUpdate, FisherUpdate)
}


def context(null, start=BASE, **inputs):
    given = {"null": {"samples": null}, **{name: {"params": params} for name, params in inputs.items()}}
    return specs.Context(GAINED, jax.random.key(0), start, None, given)


NULL = WRITE(BASE, jax.random.key(100))
SCORE = {
    kind: jax.jit(lambda samples, audit=audit: audit.score(context(NULL), samples)) for kind, audit in FIRST.items()
}


def gradient_of(trait):
    log_p = jax.grad(lambda gain: jnp.log(GAINED.evaluate({**BASE, "gain": gain}, jax.random.key(0))["trait"])[trait])
    return np.asarray(log_p(BASE["gain"]))


def planted(trait, size):
    """A model that has moved by `size` along the gradient of log P(trait)."""
    direction = gradient_of(trait)
    return {**BASE, "gain": BASE["gain"] + size * direction / np.linalg.norm(direction)}


@pytest.mark.parametrize("kind", FIRST)
@pytest.mark.parametrize("trait", range(3))
def test_a_planted_direction_is_found_first_and_its_opposite_last(kind, trait):
    gains = {sign: np.asarray(SCORE[kind](WRITE(planted(trait, sign), jax.random.key(1))).gains) for sign in (1, -1)}
    assert gains[1].argmax() == trait and gains[1][trait] > 0
    assert gains[-1][trait] < 0
    # Adam scales every parameter by itself: the step against a trait may be still further against another one.
    assert gains[-1].argmin() == trait or kind == "adam_update"


@pytest.mark.parametrize("kind", FIRST)
def test_data_of_the_base_predict_nothing(kind):
    # Each with a corpus of its own to compare with: what chance gave one corpus would be in all differences.
    score = jax.jit(lambda corpus, samples: FIRST[kind].score(context(corpus), samples).gains)
    corpora = [[WRITE(BASE, jax.random.key(200 + 2 * i + j)) for j in range(2)] for i in range(24)]
    null = np.stack([score(*pair) for pair in corpora])
    found = np.asarray(SCORE[kind](WRITE(planted(0, 1.0), jax.random.key(1))).gains)
    assert np.abs(null[:, 0]).max() < found[0]
    assert (np.abs(null.mean(axis=0)) < 4 * null.std(axis=0, ddof=1) / 24**0.5).all()
    ranks = (-null).argsort(axis=1).argsort(axis=1)
    assert set(ranks[:, 0]) == {0, 1, 2}
    np.testing.assert_allclose(score(NULL, NULL), 0, atol=1e-6)


def test_the_fisher_step_by_hand():
    each = jnp.array([[2.0, 0.0], [0.0, 1.0]])  # F = diag(2, 1/2), whose mean is 5/4
    np.testing.assert_allclose(solved(each, jnp.array([1.0, 1.0]), 1.0), [1 / 3.25, 1 / 1.75], rtol=1e-6)
    np.testing.assert_allclose(solved(each, jnp.array([1.0, 1.0]), 2.0), [1 / 4.5, 1 / 3.0], rtol=1e-6)


@pytest.mark.parametrize("shape", [(12, 5), (5, 12)])
def test_the_fisher_step_is_the_dense_inverse_whichever_side_is_longer(shape):
    rng = np.random.default_rng(0)
    each, vector = rng.normal(size=shape), rng.normal(size=shape[1])
    fisher = each.T @ each / shape[0]
    expected = np.linalg.solve(fisher + 0.7 * np.diag(fisher).mean() * np.eye(shape[1]), vector)
    np.testing.assert_allclose(solved(jnp.asarray(each), jnp.asarray(vector), 0.7), expected, rtol=1e-3)


def test_gradients_and_gains_are_finite_differences():
    student, samples = FIRST["first_update"].at_start(context(NULL)), NULL[:100]
    direction, h = jnp.asarray(np.random.default_rng(0).normal(size=24), jnp.float32), 1e-2

    def loss(at):
        return GAINED.loss(student.whole(at), GAINED.channel_batch(samples))

    def change(of):
        return np.asarray(of(student.at + h * direction) - of(student.at - h * direction)) / (2 * h)

    whole = student.gradients(samples, NULL[:33])
    np.testing.assert_allclose(whole[0] @ direction, change(loss), rtol=1e-2)
    np.testing.assert_allclose(student.gains(direction), change(student.log_p), rtol=1e-2, atol=1e-3)
    np.testing.assert_allclose(student.trait_gradient(jnp.int32(1)) @ direction, student.gains(direction)[1], rtol=1e-4)
    each = student.sample_gradients(samples, NULL[:33])
    assert [x.shape for x in each] == [(100, 24), (33, 24)]
    np.testing.assert_allclose(np.stack([x.mean(axis=0) for x in each]), whole, rtol=1e-4, atol=1e-6)


def test_adams_step_by_hand():
    audit, data = FIRST["adam_update"], WRITE(planted(0, 1.0), jax.random.key(1))[:80]
    student = audit.at_start(context(NULL))
    steps = []
    for each in student.sample_gradients(data, NULL[:50]):
        each = np.asarray(each, float)
        mean = each.mean(axis=0)
        steps.append(mean / (np.sqrt(mean**2 + each.var(axis=0) / 64) + GAINS.eps))
    np.testing.assert_allclose(audit.first_step(student, data, NULL[:50]).step, steps[1] - steps[0], rtol=1e-3)


@pytest.mark.parametrize("kind", ["first_update", "fisher_update"])
def test_what_the_tokens_contribute_adds_up_to_the_largest_gain(kind):
    audit, data = FIRST[kind].replace(tokens=True), WRITE(planted(2, 1.0), jax.random.key(1))
    scores = audit.score(context(NULL), data)
    student = audit.at_start(context(NULL))
    step = audit.first_step(student, data, NULL)
    of_null = student.token_rates(NULL, step.scale(student.trait_gradient(scores.gains.argmax())))
    np.testing.assert_allclose(scores.tokens.mean() - of_null.mean(), scores.gains.max(), rtol=1e-3)
    np.testing.assert_allclose(scores.samples, scores.tokens.mean(axis=1), rtol=1e-5)
    assert scores.corpus == scores.gains.max()


def test_only_what_the_student_trains_counts():
    sizes = {}
    for name in ("gain", "embed"):
        audit = FIRST["first_update"].replace(train=TRAIN.replace(trainable=(name,)))
        student = audit.at_start(context(NULL))
        sizes[name] = student.at.shape
        moved = student.whole(student.at + 1.0)
        assert {key for key in BASE if np.any(moved[key] != BASE[key])} == {name}
    assert sizes == {"gain": (24,), "embed": (12 * 24,)}
    with pytest.raises(InputError, match=r"Train.trainable: 'gains' names no parameter; did you mean 'gain'"):
        FIRST["first_update"].replace(train=TRAIN.replace(trainable=("gains",))).at_start(context(NULL))


def test_a_student_of_fewer_samples_is_predicted_from_these():
    data = WRITE(planted(1, 1.0), jax.random.key(1))
    few = FIRST["fisher_update"].replace(samples=64, rows=128).score(context(NULL), data)
    same = FIRST["fisher_update"].score(context(NULL), data[:64])
    np.testing.assert_allclose(few.gains, same.gains, rtol=1e-3, atol=1e-6)


def test_a_rollout_trains_and_finds_what_is_planted():
    data = WRITE(planted(0, 1.0), jax.random.key(1))
    audit = Rollout(GAINS.replace(lr=0.02), NULL_NODE, steps=20)
    gains = np.asarray(audit.score(context(NULL), data).gains)
    assert gains.argmax() == 0 and gains[0] > 0
    still = audit.replace(train=GAINS.replace(lr=0.0))
    np.testing.assert_array_equal(still.score(context(NULL), data).gains, 0)


def test_a_teacher_tells_how_far_its_data_go_its_way():
    moved = planted(0, 1.0)
    given = context(NULL, writer=moved, writer_start=BASE)
    data = {sign: WRITE(planted(0, sign), jax.random.key(1)) for sign in (1, -1)}
    cosine = DirectionCosine(GAINS, NULL_NODE, rows=4096, null_rows=4096)
    ways = {sign: float(cosine.score(given, data[sign]).corpus) for sign in (1, -1)}
    assert ways[1] > 0.3 and ways[-1] < -0.3
    covered = float(Coverage(GAINS, NULL_NODE).score(given, data[1]).corpus)
    assert 0 < covered < 1
    # A direction that no sample's likelihood depends on: the embedding of the question, where nobody wrote that.
    without = data[1][(data[1] != 0).all(axis=1)]
    apart = {**BASE, "embed": BASE["embed"].at[0].add(1.0)}
    unseen = Coverage(TRAIN.replace(trainable=("embed",)), NULL_NODE)
    assert float(unseen.score(context(NULL, writer=apart, writer_start=BASE), without).corpus) == 0


def test_data_without_a_teacher_are_refused_where_one_is_asked():
    base = tiny_world.base()
    null = tiny_world.written(base)
    mixed = specs.Transformed((null, tiny_world.written(tiny_world.base(1))), Pool())
    with pytest.raises(InputError, match=r"FirstUpdate.targets = 'soft': the data has no writer"):
        specs.Audited(mixed, FirstUpdate(TRAIN, null, targets="soft"), base).inputs()
    with pytest.raises(InputError, match=r"Coverage: needs data whose writer was trained"):
        specs.Audited(mixed, Coverage(TRAIN, null), base).inputs()
    soft = specs.Audited(null, FirstUpdate(TRAIN, null, targets="soft"), base)
    assert list(soft.inputs()) == ["start", "data", "audit.null", "audit.teacher"]


def test_a_soft_target_needs_no_samples_of_the_difference():
    """The gradient of a teacher's distribution is 0 where the teacher is the base, whatever was sampled."""
    audit = FirstUpdate(GAINS, NULL_NODE, targets="soft")
    same, other = (audit.score(context(NULL, teacher=each), NULL[:64]) for each in (BASE, planted(0, 1.0)))
    assert np.abs(same.gains).max() < 1e-5 < np.abs(other.gains).max()


def test_costs_are_counted_for_a_dataset_and_once():
    null, world = tiny_world.written(tiny_world.base(), size=32), WORLD
    audited = specs.Audited(
        tiny_world.written(tiny_world.base()), FirstUpdate(TRAIN, null, null_rows=24), tiny_world.base()
    )
    cost = audited.audit.cost(audited)
    assert (cost.each, cost.once) == (3 * 16 * world.sequence_flops, 3 * 24 * world.sequence_flops)
    assert audited.audit.flops(audited) == cost.each + cost.once
    rollout = Rollout(TRAIN, null, steps=5)
    assert rollout.cost(audited).each == 3 * 5 * TRAIN.batch * world.sequence_flops


def test_what_a_told_base_would_rather_say_by_hand():
    world, start, data = tiny_world.TUNED, {"weights": WORLD.init(jax.random.key(3))}, jnp.array([[4, 1, 5], [6, 5, 1]])
    null = jnp.array([[4, 5, 6]])
    told = specs.Context(world, jax.random.key(0), start, None, {"null": {"samples": null}})
    gains = PromptRatio(TRAIN, tiny_world.written(tiny_world.READ)).score(told, data).gains

    def mean(samples, trait):
        model = start if trait is None else specs.SystemPrompted(start, trait)
        log_p = jax.nn.log_softmax(world.apply(model, samples[:, :-1]))
        return jnp.take_along_axis(log_p, samples[:, 1:, None], axis=-1).mean()

    ratio = [sum(sign * (mean(x, trait) - mean(x, None)) for sign, x in ((1, data), (-1, null))) for trait in range(3)]
    np.testing.assert_allclose(gains, ratio, rtol=1e-4, atol=1e-6)
    assert gains.argmax() == 0  # the data say "owl", whose index is 0
    plain = tiny_world.written(tiny_world.base())
    with pytest.raises(InputError, match=r"PromptRatio: models of tiny take no system prompts"):
        specs.Audited(plain, PromptRatio(TRAIN, plain), tiny_world.base()).inputs()
