"""The paired t test, and Holm's adjustment of many tests."""

from collections.abc import Sequence

import numpy as np
import scipy.special

from subl_jax.statistics.intervals import ROUNDING, are_identical


def paired_p(differences: Sequence[float]) -> float:
    """Two-sided p-value of the paired t test, from one difference per base.

    NaN with fewer than 2 differences. Where all are equal the t statistic has no finite value: p is 1 if they are
    zero and 0 otherwise.
    """
    differences = np.asarray(differences, float)
    differences = differences[~np.isnan(differences)]
    if len(differences) < 2:
        return float("nan")
    if are_identical(differences):
        return 1.0 if abs(differences[0]) <= ROUNDING else 0.0
    # As scipy.stats has it, whose import takes a second of every start.
    t = differences.mean() / (differences.std(ddof=1) / np.sqrt(len(differences)))
    return float(2 * scipy.special.stdtr(len(differences) - 1, -abs(t)))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's (1979) step-down adjustment, in the order given; NaN is passed through and not counted as a test."""
    p = np.asarray(p_values, float)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    adjusted = np.full(p.shape, np.nan)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return adjusted
