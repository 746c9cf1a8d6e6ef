"""p by rank: never too small where nothing is there, and what it is by its definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from subl_jax.statistics import calibration


def test_corpora_are_disjoint_and_in_order():
    corpora = calibration.corpora(np.arange(11), 3)
    assert corpora.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert calibration.corpora(np.arange(11), 3, at_most=2).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert len(calibration.corpora(np.arange(2), 3)) == 0


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30))
def test_p_counts_the_corpus_itself(values):
    expected = sum(value >= values[0] for value in values) / len(values)
    assert calibration.rank_p(np.asarray(values)) == expected > 0


def brute_step_down(values):
    """By the definition: from the largest down, against the largest of the null over what is left."""
    left, p, last = list(range(values.shape[1])), {}, 0.0
    while left:
        best = max(left, key=lambda trait: values[0, trait])
        null = values[1:, left].max(axis=1)
        last = max(last, (1 + np.sum(null >= values[0, best])) / len(values))
        p[best] = last
        left.remove(best)
    return [p[trait] for trait in range(values.shape[1])]


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 30))
def test_step_down_by_its_definition(seed, traits, null):
    values = np.random.default_rng(seed).normal(size=(1 + null, traits))
    np.testing.assert_allclose(calibration.step_down(values), brute_step_down(values))


def test_step_down_finds_something_by_chance_no_more_often_than_the_level():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(1500, 40, 1))  # traits whose directions have much in common
    values = rng.normal(size=(1500, 40, 10)) + shared
    found = np.mean([(calibration.step_down(each) <= 0.1).any() for each in values])
    assert found == pytest.approx(0.1, abs=0.025)  # three deviations of 1,500 tries
    values[:, 0, 3] += 6.0
    p = np.stack([calibration.step_down(each) for each in values])
    assert (p[:, 3] <= 0.1).mean() > 0.95 and (np.delete(p, 3, axis=1) <= 0.1).any(axis=1).mean() < 0.125


@given(st.integers(0, 1000))
def test_the_combination_does_not_mind_the_order_of_corpora(seed):
    values = np.random.default_rng(seed).normal(size=(12, 3))
    order = np.random.default_rng(seed + 1).permutation(12)
    np.testing.assert_allclose(calibration.combined(values)[order], calibration.combined(values[order]))


def test_the_combination_is_calibrated_and_sees_what_any_statistic_sees():
    rng = np.random.default_rng(1)
    values = rng.standard_exponential((2000, 60, 4)) * [1, 10, 100, 0]  # the last one says nothing
    p = np.asarray([calibration.rank_p(calibration.combined(each)) for each in values])
    assert np.mean(p <= 0.05) == pytest.approx(3 / 60, abs=0.015)  # of 60 ranks 3 are at most .05
    values[:, 0, 1] += 80
    p = np.asarray([calibration.rank_p(calibration.combined(each)) for each in values])
    assert np.mean(p <= 0.05) > 0.95


@pytest.mark.parametrize("paired", [False, True])
def test_permutations_are_differences_of_means_of_exchanged_samples(paired):
    rng = np.random.default_rng(2)
    weights = calibration.permutations(rng, 4, 4, 50, paired)
    values = np.arange(8.0) ** 2
    np.testing.assert_allclose(weights[0] @ values, values[:4].mean() - values[4:].mean())
    np.testing.assert_allclose(weights.sum(axis=1), 0, atol=1e-12)
    assert weights.shape == (51, 8) and len(np.unique(weights, axis=0)) > 10
    if paired:
        np.testing.assert_allclose(weights[:, :4], -weights[:, 4:])


def test_samples_of_different_sizes_are_exchanged_too():
    weights = calibration.permutations(np.random.default_rng(0), 2, 6, 20)
    assert all(sorted(row) == pytest.approx([-1 / 6] * 6 + [1 / 2] * 2) for row in weights)
