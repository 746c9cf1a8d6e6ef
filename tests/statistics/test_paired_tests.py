"""The paired t test and Holm's adjustment, against scipy and the procedure as the paper words it."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from subl_jax.statistics.tests import holm, paired_p

probabilities = st.floats(0, 1, allow_subnormal=False).map(lambda p: round(p, 6))


@given(st.lists(st.tuples(probabilities, probabilities), min_size=3, max_size=10))
@settings(deadline=None, max_examples=60)
def test_paired_p_is_the_paired_t_test(pairs):
    a, b = np.array(pairs).T
    if np.ptp(a - b) < 1e-5:
        return
    assert paired_p(a - b) == pytest.approx(scipy.stats.ttest_rel(a, b).pvalue, rel=1e-9)


def test_paired_p_without_variance():
    assert paired_p([0.0, 0.0, 0.0]) == 1.0
    # .3 − .1 and .4 − .2 differ in the last bit.
    assert paired_p([0.3 - 0.1, 0.4 - 0.2, 0.5 - 0.3]) == 0.0
    assert np.isnan(paired_p([0.2]))
    assert np.isnan(paired_p([0.2, np.nan]))


def step_down(p, alpha):
    """Which hypotheses Holm's procedure rejects at level alpha, as the paper words it: stop at the first failure."""
    rejected = set()
    for k, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        if p[i] > alpha / (len(p) - k):
            break
        rejected.add(i)
    return rejected


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.999))
@settings(deadline=None, max_examples=200)
def test_holm_rejects_what_the_step_down_procedure_rejects(p, alpha):
    adjusted = holm(p)
    if np.any(np.abs(adjusted - alpha) < 1e-9):
        return
    assert set(np.flatnonzero(adjusted <= alpha)) == step_down(p, alpha)


def test_holm_by_hand_and_with_missing_tests():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.01, np.nan, 0.03]), [0.02, np.nan, 0.03])
    assert holm([]).shape == (0,)
