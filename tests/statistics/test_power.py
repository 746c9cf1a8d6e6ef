"""Power of the paired t test: published sample sizes, and its own definition by simulation."""

import numpy as np
import pytest
import scipy.stats

from subl_jax.errors import InputError
from subl_jax.statistics.power import power, smallest_effect


# Cohen's d, and the smallest number of pairs that has a power of 80 % at 5 %, as G*Power's tables have them.
@pytest.mark.parametrize(("d", "pairs"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_published_sample_sizes(d, pairs):
    assert power(d, 1.0, pairs) >= 0.8 > power(d, 1.0, pairs - 1)
    assert smallest_effect(1.0, pairs) <= d < smallest_effect(1.0, pairs - 1)


def test_the_smallest_effect_has_the_power_that_was_wanted_and_scales_with_the_deviation():
    for wanted in (0.5, 0.8, 0.95):
        assert power(smallest_effect(0.3, 16, wanted=wanted), 0.3, 16) == pytest.approx(wanted, abs=1e-6)
    assert smallest_effect(0.06, 16) == pytest.approx(0.06 * smallest_effect(1.0, 16))
    assert power(0.0, 1.0, 12) == pytest.approx(0.05)


def test_power_is_how_often_the_test_finds_it():
    draws = np.random.default_rng(0).normal(0.6, 1.0, (20_000, 16))
    found = scipy.stats.ttest_1samp(draws, 0.0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(power(0.6, 1.0, 16), abs=0.01)


@pytest.mark.parametrize(("deviation", "pairs", "line"), [(1.0, 1, "pairs = 1"), (0.0, 4, "deviation = 0.0")])
def test_what_cannot_be_is_one_line(deviation, pairs, line):
    with pytest.raises(InputError, match=line):
        smallest_effect(deviation, pairs)
