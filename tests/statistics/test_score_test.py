"""Rao's test on samples of a known law: its size, its power as theory has it, and what points along a direction."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from subl_jax.statistics import score_test
from subl_jax.statistics.score_test import Whitening

D, N = 6, 40
RNG = np.random.default_rng(0)
# Samples of a skewed law with correlated coordinates, and one coordinate that never moves.
MIX = np.pad(RNG.normal(size=(D - 1, D - 1)), ((0, 1), (0, 1)))


def drawn(corpora, seed, shift=0.0):
    rng = np.random.default_rng(seed)
    return (rng.exponential(size=(corpora, N, D)) - 1 + shift) @ MIX.T + 3.0


def rao(white):
    return score_test.rao(white.mean(axis=1), WHITENING.scale(N))


WHITENING = Whitening.of(drawn(1000, 1).reshape(-1, D), ridge=1e-6)


def test_white_vectors_have_mean_0_and_covariance_1():
    white = WHITENING.white(drawn(1000, 1).reshape(-1, D))
    expected = np.diag([1.0] * (D - 1) + [0.0])
    np.testing.assert_allclose(white.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(np.cov(white.T), expected, atol=1e-4)


def test_a_ridge_is_a_part_of_the_mean_variance_of_what_moves():
    vectors = np.array([[1.0, 0.0], [-1.0, 0.0]] * 50)
    whitening = Whitening.of(vectors, ridge=0.5)
    variance = vectors[:, 0].var(ddof=1)
    np.testing.assert_allclose(whitening.white(vectors)[0, 0], 1 / np.sqrt(1.5 * variance))


def test_the_statistic_by_hand():
    corpora = drawn(3, 2)
    samples = drawn(1000, 1).reshape(-1, D)[:, :-1]
    inverse = np.linalg.inv(np.cov(samples.T))
    means = corpora[..., :-1].mean(axis=1) - samples.mean(axis=0)
    expected = np.einsum("ci,ij,cj->c", means, inverse, means) / (1 / N + 1 / len(samples))
    np.testing.assert_allclose(rao(WHITENING.white(corpora)), expected, rtol=1e-3)


@pytest.mark.parametrize("shift", [0.0, 0.2, 0.35])
def test_the_power_against_a_planted_shift_is_that_of_theory(shift):
    """Of d − 1 independent coordinates, all shifted by so many of their deviations: noncentral χ²."""
    found = rao(WHITENING.white(drawn(4000, 3, shift)))
    null = rao(WHITENING.white(drawn(4000, 4)))
    moving = D - 1
    away = shift**2 * moving / (1 / N + 1 / WHITENING.samples)
    expected = scipy.stats.ncx2.sf(scipy.stats.chi2.isf(0.05, moving), moving, away) if shift else 0.05
    # The edge is of the null's own corpora, as the law is skewed: χ² is not exact here.
    assert np.mean(found > np.quantile(null, 0.95)) == pytest.approx(expected, abs=0.05)


def test_z_along_a_direction_has_the_power_of_a_normal_shift_and_sees_no_other():
    # The gradient J of something whose white coordinates are all in the first one: J = root⁻¹ e.
    directions = np.linalg.solve(WHITENING.root, np.eye(D)[:2].T).T
    units = WHITENING.units(directions)
    np.testing.assert_allclose(np.abs(units), np.eye(D)[:2], atol=1e-9)
    white = WHITENING.white(drawn(4000, 5))
    shifted = white + 0.4 * units[0]
    z = score_test.along(shifted.mean(axis=1), units, WHITENING.scale(N))
    assert z[:, 0].mean() == pytest.approx(0.4 / WHITENING.scale(N), rel=0.05)
    assert z.std(axis=0) == pytest.approx([1, 1], rel=0.05) and abs(z[:, 1].mean()) < 0.1


def test_a_direction_of_nothing_is_zeros():
    units = WHITENING.units(np.stack([np.zeros(D), np.ones(D)]))
    assert not units[0].any() and np.linalg.norm(units[1]) == pytest.approx(1)
    cosine, p = score_test.alignment(np.zeros(D), units)
    assert cosine.tolist() == [0, 0] and (p >= 0.5).all()


def test_the_mixture_is_the_log_likelihood_ratio():
    shifts = RNG.normal(size=(2, 30, 3))
    normal = scipy.stats.norm
    expected = np.log((0.9 * normal.pdf(shifts) + 0.1 * normal.pdf(shifts, 1.0)) / normal.pdf(shifts)).sum(axis=1)
    np.testing.assert_allclose(score_test.mixture(shifts), expected, rtol=1e-9)
    assert np.isfinite(score_test.mixture(np.full((1, 1, 1), 300.0))).all()


def test_a_random_deviation_is_aligned_by_chance_as_often_as_it_says():
    unit = np.eye(8)[:1]
    found = [score_test.alignment(np.random.default_rng(i).normal(size=8), unit)[1][0] for i in range(2000)]
    assert scipy.stats.kstest(found, "uniform").pvalue > 0.001
    cosine, p = score_test.alignment(np.eye(8)[0], unit)
    assert cosine == [1] and p == [0]
    assert score_test.alignment(-np.eye(8)[0], unit)[1] == [1]


@given(st.integers(1, 2000))
def test_the_spread_of_a_mean_is_that_of_both_samples(n):
    assert WHITENING.scale(n) == pytest.approx((1 / n + 1 / 40_000) ** 0.5)
