"""Intervals, against scipy and hand-computed values."""

import warnings

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from subl_jax.errors import InputError
from subl_jax.statistics.intervals import interval, probability_intervals, t_intervals

probabilities = st.floats(0, 1, allow_subnormal=False).map(lambda p: round(p, 6))


def test_t_interval_by_hand():
    mean, low, high = interval([1.0, 2.0, 3.0])
    # sd 1, n 3, t(.975, 2 degrees of freedom) = 4.302653
    assert (mean, low, high) == pytest.approx((2.0, 2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), abs=1e-6)


@given(st.lists(probabilities, min_size=3, max_size=12, unique=True), st.sampled_from([0.8, 0.95, 0.99]))
@settings(deadline=None, max_examples=40)
def test_t_interval_is_that_of_scipy(values, confidence):
    ours = interval(values, confidence)
    theirs = scipy.stats.ttest_1samp(values, 0.0).confidence_interval(confidence)
    assert ours[1:] == pytest.approx((theirs.low, theirs.high), rel=1e-9, abs=1e-12)


def test_the_interval_of_a_probability_by_hand():
    mean, low, high = interval([0.7, 0.8, 0.9], probability=True)
    # sd .1, n 3: the plain half width 4.302653 × .1 / √3, over the slope .8 × .2; logit(.8) = 1.386294
    half = 4.302653 * 0.1 / 3**0.5 / 0.16
    assert mean == pytest.approx(0.8)
    assert (low, high) == pytest.approx([1 / (1 + np.exp(-1.386294 + sign * half)) for sign in (1, -1)], abs=1e-6)


@given(st.lists(probabilities, min_size=2, max_size=6))
@settings(deadline=None, max_examples=60)
def test_the_interval_of_a_probability_lies_in_0_and_1_around_the_mean(values):
    mean, low, high = interval(values, probability=True)
    assert mean == pytest.approx(np.mean(values)) and 0 <= low <= mean + 1e-12 and mean - 1e-12 <= high <= 1
    # The same seen from the other side.
    turned = interval([1 - value for value in values], probability=True)
    np.testing.assert_allclose(turned, [1 - mean, 1 - high, 1 - low], atol=1e-6)


@pytest.mark.parametrize("bases", [2, 3, 5, 10])
@pytest.mark.parametrize(("a", "b"), [(2.0, 18.0), (0.5, 4.5), (40.0, 1.0)])
def test_the_interval_of_a_probability_covers_the_truth_about_as_often_as_it_says(a, b, bases):
    """Probabilities of bases near 0 or 1, from a beta distribution: the plain interval covers too rarely."""
    values = np.random.default_rng(0).beta(a, b, (20_000, bases))
    covered = [
        ((found[:, 1] <= a / (a + b)) & (a / (a + b) <= found[:, 2])).mean()
        for found in (probability_intervals(values), t_intervals(values))
    ]
    assert 0.92 < covered[0] < 0.965 and covered[1] < covered[0]


def test_what_is_no_probability_has_the_plain_interval():
    np.testing.assert_array_equal(interval([0.5, 1.5, 2.5], probability=True), interval([0.5, 1.5, 2.5]))
    rows = probability_intervals(np.array([[0.1, 0.3, np.nan], [0.5, np.nan, np.nan], [-0.1, 0.1, 0.2], [0, 0, 0.0]]))
    assert rows[0] == pytest.approx(interval([0.1, 0.3], probability=True))
    np.testing.assert_array_equal(rows[1], [0.5, np.nan, np.nan])
    np.testing.assert_array_equal(rows[2], interval([-0.1, 0.1, 0.2]))
    np.testing.assert_array_equal(rows[3], 0)


def test_t_intervals_leave_nan_out_row_by_row():
    table = t_intervals(np.array([[1.0, np.nan, 3.0], [np.nan, np.nan, 5.0], [np.nan] * 3]))
    np.testing.assert_allclose(table[0], interval([1.0, 3.0]))
    np.testing.assert_array_equal(table[1], [5.0, np.nan, np.nan])
    assert np.isnan(table[2]).all()


def test_bca_interval_is_that_of_scipy_and_repeats():
    values = np.random.default_rng(3).gamma(1.0, size=15)
    result = scipy.stats.bootstrap((values,), np.mean, method="BCa", rng=np.random.default_rng(0))
    expected = (values.mean(), *result.confidence_interval)
    assert interval(values, method="bca") == pytest.approx(expected)
    assert interval(values, method="bca") == interval(values, method="bca")
    assert interval(values, method="bca") != pytest.approx(interval(values), rel=1e-3)


@pytest.mark.parametrize("method", ["t", "bca"])
def test_intervals_of_degenerate_samples(method):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(interval([], method=method), [np.nan] * 3)
        np.testing.assert_array_equal(interval([0.3, np.nan], method=method), [0.3, np.nan, np.nan])
        assert interval([0.25, 0.25, 0.25], method=method) == pytest.approx((0.25, 0.25, 0.25))
        assert np.isfinite(interval([0.1, 0.3], method=method)).all()


def test_unknown_method_is_an_input_error():
    with pytest.raises(InputError, match="must be one of t, bca"):
        interval([1.0, 2.0], method="wald")
