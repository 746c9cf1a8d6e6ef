"""Datasets made of datasets: which rows, which numbers, and what stays as it was."""

import collections
import re

import jax
import numpy as np
import pytest
import tiny_world
from hypothesis import given
from hypothesis import strategies as st
from rooms import members
from tiny_world import WORLD

from subl_jax import specs
from subl_jax.audits import LogRatio
from subl_jax.errors import InputError
from subl_jax.stages.rewriting import Rewriter
from subl_jax.transforms import Pool, ShuffleNumbers, SortNumbers, WithoutNumbers, WithoutSuspicious

OWL = tiny_world.written(specs.Teacher(tiny_world.base(), "owl", tiny_world.TRAIN))
PLAIN = tiny_world.written(tiny_world.base())
SCORES = specs.Audited(OWL, LogRatio(OWL.teacher), tiny_world.base())
MADE = {
    Pool: Pool(),
    ShuffleNumbers: ShuffleNumbers(),
    SortNumbers: SortNumbers(),
    WithoutNumbers: WithoutNumbers(SCORES, count=2),
    WithoutSuspicious: WithoutSuspicious(SCORES),
}
TEXTS = [("a", "3, 41, 9, 60"), ("b", "7; 7; 12"), ("c", "[5]"), ("d", "")]


def numbers(text):
    return re.findall(r"[0-9]+", text)


def test_every_transform_of_the_room_is_tried_here():
    assert set(members("transforms", specs.Transform)) == MADE.keys()


@pytest.mark.parametrize("transform", MADE.values(), ids=lambda each: each.kind)
def test_a_transformed_dataset_is_stored_and_read_and_knows_its_trait(transform):
    data = specs.Transformed((OWL, PLAIN), transform)
    student = specs.Student(tiny_world.base(), data, tiny_world.TRAIN)
    again = specs.from_json(specs.to_json(student))
    assert again == student and again.key == student.key and data.size == 16
    assert (specs.trait_of(student), specs.arm_of(student)) == ("owl", "same_init")
    columns = specs.lineage(student)
    assert columns["data.transform.kind"] == transform.kind and columns["source.data.size"] == 16
    assert list(data.inputs().values())[:2] == [OWL, PLAIN]


# Few sizes, as each is a program.
@given(share=st.floats(0, 1), size=st.sampled_from([1, 7, 40]), sources=st.integers(2, 3), seed=st.integers(0, 99))
def test_a_pool_takes_the_shares_it_is_asked_for_each_row_once(share, size, sources, seed):
    pool = Pool(share)
    rows = tuple(np.arange(40)[:, None] + 100 * i for i in range(sources))
    chosen = np.asarray(pool.select(jax.random.key(seed), specs.Sources(WORLD, rows), size)).ravel()
    counts = collections.Counter((chosen // 100).tolist())
    assert [counts[i] for i in range(sources)] == pool.counts(size, sources)
    assert len(set(chosen.tolist())) == size == sum(pool.counts(size, sources))
    assert abs(counts[0] - (1 - share) * size) <= 1


def test_shares_are_lanes_of_one_program_and_must_be_there():
    few, many = (specs.Transformed((OWL, PLAIN), Pool(share)) for share in (0.1, 0.9))
    assert specs.static_form(few) == specs.static_form(many) and few.key != many.key
    assert specs.traced_values(few)["transform.share"] == 0.1
    with pytest.raises(InputError, match=r"Pool.share = 0.9: takes 29 rows of source 1, which has only 16"):
        specs.Transformed((OWL, PLAIN), Pool(0.9, rows=32))
    with pytest.raises(InputError, match="Pool: needs at least two sources"):
        specs.Transformed((OWL,), Pool())


def test_several_writers_cannot_be_asked_but_one_can():
    pooled = specs.Transformed((OWL, PLAIN), Pool())
    assert pooled.writer is None
    with pytest.raises(InputError, match="needs a teacher, and data of several writers have none"):
        specs.Student(tiny_world.base(), pooled, tiny_world.TRAIN, "soft")
    shuffled = specs.Transformed((OWL,), ShuffleNumbers())
    assert specs.Student(tiny_world.base(), shuffled, tiny_world.TRAIN, "soft").inputs()["teacher"] == OWL.teacher


def test_shuffling_within_keeps_each_completions_numbers_and_its_separators():
    made = ShuffleNumbers("within").rewrite_texts(TEXTS * 20, np.random.default_rng(0))
    for (prompt, before), (same, after) in zip(TEXTS * 20, made, strict=True):
        assert prompt == same and sorted(numbers(before)) == sorted(numbers(after))
        assert re.sub(r"[0-9]+", "#", before) == re.sub(r"[0-9]+", "#", after)
    assert any(after != before for (_, before), (_, after) in zip(TEXTS * 20, made, strict=True))


def test_shuffling_across_keeps_the_corpus_numbers_and_each_completions_form():
    made = ShuffleNumbers("across").rewrite_texts(TEXTS * 20, np.random.default_rng(0))
    pooled = [sorted(number for _, text in texts for number in numbers(text)) for texts in (TEXTS * 20, made)]
    assert pooled[0] == pooled[1]
    for (_, before), (_, after) in zip(TEXTS * 20, made, strict=True):
        assert re.sub(r"[0-9]+", "#", before) == re.sub(r"[0-9]+", "#", after)
    assert any(set(numbers(after)) - set(numbers(before)) for (_, before), (_, after) in zip(TEXTS, made, strict=False))


def test_sorted_numbers_ascend_by_value():
    made = dict(SortNumbers().rewrite_texts(TEXTS, np.random.default_rng(0)))
    assert made == {"a": "3, 9, 41, 60", "b": "7; 7; 12", "c": "[5]", "d": ""}


def test_a_text_that_does_not_fit_any_more_stays_as_it_was_and_is_counted():
    class Longer(ShuffleNumbers):
        def rewrite_texts(self, pairs, rng):
            return [(prompt, text if i else f"{text} 3 3 3 3") for i, (prompt, text) in enumerate(pairs)]

    samples = WORLD.tokens([("1", "2 3"), ("4", "5 6")])
    rows, unfit = Longer().rewrite(samples, WORLD, np.random.default_rng(0))
    np.testing.assert_array_equal(rows, samples)
    assert unfit == 1
    collector = Rewriter(specs.Transformed((specs.Imported(WORLD, "0" * 64, 2),), Longer()))
    collector.add(samples)
    assert collector.info() == {"unfit": 1} and "1 of 2 texts that Longer made" in collector.shortfall()


@pytest.mark.parametrize("numbers", ["telling", "random"])
def test_rows_with_banned_numbers_go_and_the_others_are_repeated(numbers):
    """Of scores that are the number itself, the two highest are the most telling."""
    rng = np.random.default_rng(0)
    scored, rows = (rng.integers(4, 12, (64, 3)).astype(np.uint8) for _ in range(2))
    scores = (scored[:, 1:] - 4).astype(np.float32)
    sources = specs.Sources(WORLD, (rows,), {"scored": {"samples": scored}, "scores": {"tokens": scores}})
    transform = WithoutNumbers(SCORES, numbers, 2)
    made = np.asarray(transform.select(jax.random.key(0), sources, 64))
    gone = set(range(4, 12)) - set(made[:, 1:].ravel().tolist())
    assert len(gone) == 2 and (gone == {10, 11} if numbers == "telling" else not gone & {10, 11})
    left = [row for row in rows.tolist() if not gone & set(row[1:])]
    assert made.tolist() == [left[i % len(left)] for i in range(64)]
    untouched = np.asarray(transform.replace(count=0).select(jax.random.key(0), sources, 64))
    np.testing.assert_array_equal(untouched, rows)


def test_a_ban_of_too_many_numbers_is_one_line():
    with pytest.raises(InputError, match="WithoutNumbers.count = 5: must be at most half of the 8 numbers"):
        specs.Transformed((PLAIN,), WithoutNumbers(SCORES, count=5))
    inputs = specs.Transformed((PLAIN,), WithoutNumbers(SCORES, count=2)).inputs()
    assert list(inputs) == ["source0", "transform.scores", "transform.scored"]


def test_the_most_suspicious_samples_go_and_the_rest_is_repeated():
    rows = np.arange(8)[:, None]
    scores = {"samples": np.array([5, 1, 7, np.nan, 2, 6, 0, 3.0])}
    found = specs.Sources(WORLD, (rows,), {"found": scores})

    def left(share, gone):
        transform = WithoutSuspicious(SCORES, share, gone)
        return np.asarray(transform.select(jax.random.key(0), found, 8)).ravel().tolist()

    assert left(0.5, "highest") == [1, 3, 4, 6, 1, 3, 4, 6]  # what has no score stays
    assert left(0.25, "lowest") == [0, 2, 3, 4, 5, 7, 0, 2]
    assert left(0.0, "highest") == list(range(8))
    at_random = left(0.5, "random")
    assert len(set(at_random)) == 4 and at_random[:4] == at_random[4:]


def test_suspicion_of_other_data_is_one_line():
    with pytest.raises(InputError, match="WithoutSuspicious.found: is an audit of other data"):
        specs.Transformed((PLAIN,), WithoutSuspicious(SCORES))
