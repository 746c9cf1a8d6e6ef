"""Two samples of one law and of two: a kernel's distance by hand, and what a classifier can tell."""

import numpy as np
import pytest

from subl_jax.statistics import two_sample


def drawn(seed, n=120, shift=0.0):
    return np.random.default_rng(seed).normal(size=(n, 3)) + [shift, 0, 0]


def test_the_distance_by_hand():
    one, other = drawn(0, 5), drawn(1, 7)

    def kernel(a, b):
        return np.exp(-np.sum((a - b) ** 2) / (2 * 0.7**2))

    within = [np.mean([kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j]) for x in (one, other)]
    expected = sum(within) - 2 * np.mean([kernel(a, b) for a in one for b in other])
    assert two_sample.mmd(one, other, 0.7) == pytest.approx(expected)


def test_the_distance_is_0_on_average_of_one_law_and_not_of_two():
    same = [two_sample.mmd(drawn(i), drawn(1000 + i), 1.5) for i in range(40)]
    apart = [two_sample.mmd(drawn(i), drawn(1000 + i, shift=1.0), 1.5) for i in range(40)]
    assert abs(np.mean(same)) < 3 * np.std(same) / 40**0.5 and min(apart) > max(same)


def test_the_kernels_width_is_the_median_distance():
    points = np.array([[0.0], [1.0], [3.0]])
    assert two_sample.median_distance(points) == 2.0
    assert two_sample.median_distance(np.zeros((4, 2))) == 1.0


def test_a_classifier_tells_two_laws_apart_and_not_one():
    """Of a shift δ between normals of variance 1 the best area is Φ(δ / √2)."""
    same = [two_sample.told_apart(drawn(i), drawn(1000 + i)) for i in range(30)]
    assert np.mean(same) == pytest.approx(0.5, abs=0.03)
    apart = [two_sample.told_apart(drawn(i, 400), drawn(1000 + i, 400, shift=1.0)) for i in range(10)]
    assert np.mean(apart) == pytest.approx(0.7602, abs=0.02)
    assert two_sample.told_apart(drawn(0), drawn(1, shift=50.0)) == 1.0


def test_samples_that_say_nothing_are_a_coin():
    assert two_sample.told_apart(np.ones((20, 2)), np.ones((20, 2))) == 0.5


def test_a_bag_counts_words_and_signs():
    bags = two_sample.bag(["3, 41, 3", "", "owl owl"])
    assert bags.sum(axis=1).tolist() == [5, 0, 2] and sorted(bags[0])[-2:] == [2, 2] and bags[2].max() == 2
