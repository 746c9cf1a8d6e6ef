"""What students minimise: each objective by hand, and what all have to hold to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_world
from distances import distance
from hypothesis import given, settings
from hypothesis import strategies as st
from rooms import members
from tiny_world import WORLD

from subl_jax import audits, objectives, specs
from subl_jax.errors import InputError
from subl_jax.objectives import Erased, Hard, KlToStart, Replaced, Soft, Squared, Weighted
from subl_jax.objectives.selection import chosen

STUDENT, TEACHER, START = (WORLD.init(jax.random.key(i)) for i in range(3))
SAMPLES = WORLD.write(TEACHER, jax.random.split(jax.random.key(9), 6), specs.Sampling())
BATCH = WORLD.channel_batch(SAMPLES, jnp.arange(6) != 4)
DATA = tiny_world.written(specs.Teacher(tiny_world.base(), "owl", tiny_world.TRAIN))
SCORES = specs.Audited(DATA, audits.MeanLogLikelihood(), tiny_world.base())
MADE = {
    Hard: Hard(),
    Soft: Soft(),
    Squared: Squared(),
    KlToStart: KlToStart(Soft(), strength=0.5),
    Weighted: Weighted(Hard(), SCORES, share=0.5),
    Replaced: Replaced(Hard(), SCORES, share=0.5),
    Erased: Erased(Hard(), SCORES, share=0.5),
}


def context(start=START, teacher=TEACHER, **inputs):
    return specs.Context(WORLD, jax.random.key(0), start, teacher, inputs)


def test_every_objective_of_the_room_is_tried_here():
    assert set(members("objectives", specs.Objective)) == MADE.keys()


@pytest.mark.parametrize("objective", MADE.values(), ids=lambda each: each.kind)
def test_a_loss_is_a_number_and_no_gradient_goes_into_the_teacher(objective):
    of_teacher = jax.grad(lambda teacher: objective.loss(context(teacher=teacher), STUDENT, BATCH))(TEACHER)
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(of_teacher))
    value, gradient = jax.value_and_grad(lambda params: objective.loss(context(), params, BATCH))(STUDENT)
    assert value.shape == () and value > 0 and any((np.asarray(x) != 0).any() for x in jax.tree.leaves(gradient))


@pytest.mark.parametrize("objective", MADE.values(), ids=lambda each: each.kind)
def test_an_objective_is_part_of_a_student_that_is_stored_and_read(objective):
    if objective.shorthand and objective.shorthand not in WORLD.targets:
        pytest.skip("not a target of this world")
    student = specs.Student(tiny_world.base(), DATA, tiny_world.TRAIN, objective=objective)
    again = specs.from_json(specs.to_json(student))
    assert again == student and again.key == student.key
    if objective.shorthand is None:
        assert student.key != specs.Student(tiny_world.base(), DATA, tiny_world.TRAIN).key
        assert specs.lineage(student)["student.objective.kind"] == objective.kind


@pytest.mark.parametrize("word", list(objectives.SHORTHANDS))
def test_a_word_and_its_objective_are_one_key(word):
    world = tiny_world.WORLD
    if word not in world.targets:
        pytest.skip("not a target of this world")
    said = specs.Student(tiny_world.base(), DATA, tiny_world.TRAIN, word)
    meant = specs.Student(tiny_world.base(), DATA, tiny_world.TRAIN, objective=objectives.SHORTHANDS[word])
    assert said == meant and said.key == meant.key and meant.objective is None


def by_hand(direction, top_k=0):
    p, q = (np.exp(np.asarray(WORLD.log_probs(params, BATCH), np.float64)) for params in (TEACHER, STUDENT))
    if top_k:
        chosen = np.argsort(-p, axis=-1)[..., :top_k]
        p, q = (np.take_along_axis(each, chosen, axis=-1) for each in (p, q))
        p, q = (each / each.sum(axis=-1, keepdims=True) for each in (p, q))
    p, q = (p, q) if direction == "forward" else (q, p)
    weights = np.asarray(WORLD.target_weights(BATCH))
    return (np.sum(p * np.log(p / q), axis=-1) * weights).sum() / weights.sum()


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("top_k", [0, 1, 3, 99])
def test_soft_targets_are_the_divergence_by_hand(direction, top_k):
    expected = by_hand(direction, top_k if top_k < 8 else 0)
    given = distance(WORLD, STUDENT, TEACHER, BATCH, Soft(direction, top_k))
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-6)


def test_hard_targets_are_what_stands_there():
    log_p = np.asarray(jax.nn.log_softmax(WORLD.apply(STUDENT, BATCH.tokens[:, :-1])))
    chosen = np.take_along_axis(log_p, np.asarray(BATCH.tokens)[:, 1:, None], axis=-1)[..., 0]
    weights = np.asarray(WORLD.target_weights(BATCH))
    expected = -(chosen * weights).sum() / weights.sum()
    np.testing.assert_allclose(distance(WORLD, STUDENT, None, BATCH, Hard()), expected, rtol=1e-5)


def test_squared_targets_are_half_the_squared_distance_of_logits():
    two = [np.asarray(WORLD.channel_logits(params, BATCH)) for params in (TEACHER, STUDENT)]
    weights = np.asarray(WORLD.target_weights(BATCH))
    expected = (0.5 * ((two[0] - two[1]) ** 2).sum(axis=-1) * weights).sum() / weights.sum()
    np.testing.assert_allclose(distance(WORLD, STUDENT, TEACHER, BATCH, Squared()), expected, rtol=1e-5)


def test_the_pull_to_the_start_is_nothing_at_the_start_and_grows_with_its_strength():
    inner = distance(WORLD, STUDENT, TEACHER, BATCH, Soft())
    away = distance(WORLD, STUDENT, START, BATCH, Soft())
    for strength in (0.0, 0.5, 4.0):
        given = KlToStart(Soft(), strength=strength).loss(context(), STUDENT, BATCH)
        np.testing.assert_allclose(given, inner + strength * away, rtol=1e-5)
    at_start = jax.grad(lambda params: KlToStart(Soft(), strength=9.0).loss(context(), params, BATCH))(START)
    plain = jax.grad(lambda params: distance(WORLD, params, TEACHER, BATCH, Soft()))(START)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), at_start, plain)


def test_strengths_are_lanes_of_one_program():
    students = [
        specs.Student(tiny_world.base(), DATA, tiny_world.TRAIN, objective=KlToStart(Soft(), strength=strength))
        for strength in (0.1, 1.0)
    ]
    assert specs.static_form(students[0]) == specs.static_form(students[1]) and students[0].key != students[1].key
    values = [specs.traced_values(student)["objective.strength"] for student in students]
    assert values == [0.1, 1.0]
    assert specs.bind(students[0], specs.traced_values(students[0])).objective.strength == 0.1


def test_the_tokens_with_the_highest_scores_are_chosen_and_no_others():
    """A detector that is off by a row, or by a token, chooses others."""
    scores = jnp.asarray([[0.3, 0.9], [jnp.nan, 0.1], [0.7, 0.2]])
    for tokens, share, expected in (
        ("top", 0.4, [[0, 1], [0, 0], [1, 0]]),
        ("bottom", 0.4, [[0, 0], [0, 1], [0, 1]]),
        ("top", 1.0, [[1, 1], [0, 1], [1, 1]]),
        ("top", 0.0, [[0, 0], [0, 0], [0, 0]]),
    ):
        found = np.asarray(chosen(scores, tokens, share))
        np.testing.assert_array_equal(found, np.asarray(expected, bool))
        for keep, weights in ((True, found), (False, ~found)):
            objective = Weighted(Hard(), SCORES, tokens, keep, share)
            np.testing.assert_array_equal(objective.weights(found), weights.astype(np.float32))


@given(share=st.floats(0, 1), levels=st.integers(1, 4), tokens=st.sampled_from(["top", "bottom"]))
@settings(max_examples=20)
def test_of_equal_scores_no_more_are_chosen_than_the_share_says(share, levels, tokens):
    """A detector that only says yes or no must not take all tokens along where the share exceeds its yes."""
    rng = np.random.default_rng(levels)
    scores = np.where(rng.random((9, 5)) < 0.2, np.nan, rng.integers(0, levels, (9, 5)).astype(np.float32))
    count = int(np.round(np.float32(share) * np.float32((~np.isnan(scores)).sum())))
    found = np.asarray(chosen(jnp.asarray(scores), tokens, share))
    assert found.sum() == count and not found[np.isnan(scores)].any()
    taken, left = scores[found], scores[~found & ~np.isnan(scores)]
    if len(taken) and len(left):
        assert (taken.min() >= left.max()) if tokens == "top" else (taken.max() <= left.min())


def prepared(objective, scores, batch, rows, start=START):
    return objective.prepare(objective.ready(context(start, scores={"tokens": scores})), batch, rows)


def test_weighted_tokens_reach_the_loss_row_by_row():
    objective = Weighted(Hard(), SCORES, "top", True, 0.5)
    scores = jax.random.uniform(jax.random.key(3), (16, tiny_world.WRITTEN))
    rows = jnp.asarray([3, 0, 5, 1, 7, 2])
    batch = prepared(objective, scores, WORLD.channel_batch(SAMPLES), rows)
    expected = np.asarray(chosen(scores, "top", 0.5))[np.asarray(rows)]
    np.testing.assert_array_equal(WORLD.target_weights(batch), expected)
    assert 0 < WORLD.target_weights(batch).sum() < batch.tokens[:, 1:].size


ROWS = jnp.asarray([3, 0, 5, 1, 7, 2])
WRITTEN = WORLD.channel_batch(WORLD.write(START, jax.random.split(jax.random.key(5), 6), specs.Sampling()))
TOKEN_SCORES = jax.random.uniform(jax.random.key(3), (16, tiny_world.WRITTEN))
EDITS = (Replaced(Hard(), SCORES), Erased(Hard(), SCORES), Weighted(Hard(), SCORES, keep=False))


@pytest.mark.parametrize("objective", EDITS, ids=lambda each: each.kind)
def test_of_no_tokens_an_intervention_leaves_the_batch_as_it_is(objective):
    batch = prepared(objective.replace(share=0.0), TOKEN_SCORES, WRITTEN, ROWS)
    for name in ("tokens", "targets", "predicted"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(WRITTEN, name))


@pytest.mark.parametrize("objective", [Erased(Hard(), SCORES), EDITS[-1]], ids=lambda each: each.kind)
def test_of_all_tokens_nothing_is_left_to_learn(objective):
    assert prepared(objective.replace(share=1.0), TOKEN_SCORES, WRITTEN, ROWS).targets.sum() == 0


@pytest.mark.parametrize("what", ["label", "input", "both"])
def test_of_all_tokens_the_start_says_what_is_read_or_predicted_or_both(what):
    """A start that always says a number's successor says what every token becomes."""
    words, first = len(WORLD.words), WORLD.first_number
    embed = 99.0 * jnp.roll(jnp.eye(words), 1, axis=1).at[words - 1].set(jnp.eye(words)[first])
    start = {"embed": embed, "out": jnp.eye(words)}
    batch = prepared(Replaced(Hard(), SCORES, "top", what, 1.0), TOKEN_SCORES, WRITTEN, ROWS, start)
    before = np.asarray(WRITTEN.tokens)
    known = before[:, :-1] >= first
    after = np.where(before[:, :-1] == words - 1, first, before[:, :-1] + 1)
    for name, changed in (("tokens", what != "label"), ("predicted", what != "input")):
        given = np.asarray(getattr(batch, name))
        np.testing.assert_array_equal(given[:, 0], before[:, 0])
        np.testing.assert_array_equal(given[:, 1:][known], (after if changed else before[:, 1:])[known])
    np.testing.assert_array_equal(batch.targets, WRITTEN.targets)


def test_a_rows_replacement_is_its_own_whatever_stands_beside_it():
    objective = Replaced(Hard(), SCORES, "top", "both", 0.5)
    one = prepared(objective, TOKEN_SCORES, WRITTEN, ROWS)
    turned = prepared(objective, TOKEN_SCORES, jax.tree.map(lambda x: x[::-1], WRITTEN), ROWS[::-1])
    np.testing.assert_array_equal(one.tokens, turned.tokens[::-1])
    where = np.asarray(chosen(TOKEN_SCORES, "top", 0.5))[np.asarray(ROWS)]
    np.testing.assert_array_equal(np.where(where, 0, one.tokens[:, 1:]), np.where(where, 0, WRITTEN.tokens[:, 1:]))
    assert (one.tokens != WRITTEN.tokens).any()


def test_replacements_are_drawn_as_the_start_would_write():
    uniform = {"embed": jnp.zeros((12, 4)), "out": jnp.zeros((4, 12))}
    batch = WORLD.channel_batch(jnp.full((4000, 3), WORLD.first_number))
    scores = jnp.zeros((4000, 2))
    made = prepared(Replaced(Hard(), SCORES, "top", "both", 1.0), scores, batch, jnp.arange(4000), uniform)
    counts = np.bincount(np.asarray(made.tokens[:, 1:]).ravel(), minlength=12)
    assert (counts[:4] == 0).all() and (np.abs(counts[4:] - 1000) < 150).all()


def test_what_follows_an_erased_token_moves_up():
    scores = jnp.zeros((16, tiny_world.WRITTEN)).at[3, 0].set(1.0).at[0, 1].set(1.0)
    batch = prepared(Erased(Hard(), SCORES, "top", 2 / 32), scores, WRITTEN, ROWS)
    before = np.asarray(WRITTEN.tokens)
    np.testing.assert_array_equal(batch.tokens[0], [before[0, 0], before[0, 2], 0])
    np.testing.assert_array_equal(batch.tokens[1], [before[1, 0], before[1, 1], 0])
    np.testing.assert_array_equal(batch.targets[:2], [[0, 1, 0], [0, 1, 0]])
    np.testing.assert_array_equal(batch.tokens[2:], before[2:])


def test_masking_and_keeping_are_lanes_of_one_program_whatever_the_detector():
    mask = Weighted(Hard(), SCORES, "top", False, 0.1)
    keep = Weighted(Hard(), specs.Audited(DATA, audits.RandomTokens(), tiny_world.base()), "top", True, 0.3)
    students = [specs.Student(tiny_world.base(), DATA, tiny_world.TRAIN, objective=each) for each in (mask, keep)]
    assert specs.static_form(students[0]) == specs.static_form(students[1]) and students[0].key != students[1].key


def test_an_objective_that_does_not_fit_is_one_line():
    imported = specs.Imported(WORLD, "0" * 64, 4)
    with pytest.raises(InputError, match=r"Student.objective = Soft: needs a teacher, and imported data has none"):
        specs.Student(tiny_world.base(), imported, tiny_world.TRAIN, objective=Soft(top_k=2), trait="owl")
    with pytest.raises(InputError, match="Student.targets = 'soft': `objective` says what is minimised"):
        specs.Student(tiny_world.base(), DATA, tiny_world.TRAIN, "soft", objective=KlToStart(Hard()))
    other = tiny_world.written(tiny_world.base())
    with pytest.raises(InputError, match="Weighted.scores: are of other data"):
        specs.Student(tiny_world.base(), other, tiny_world.TRAIN, objective=MADE[Weighted], trait="owl")
    with pytest.raises(InputError, match="Replaced.what = 'label': Soft does not read labels"):
        labels = Replaced(Soft(), SCORES, what="label")
        specs.Student(tiny_world.base(), DATA, tiny_world.TRAIN, objective=labels)
