"""Confidence intervals of means: Student's t, the same on the logit scale for probabilities, and the bootstrap."""

from collections.abc import Sequence

import numpy as np
import scipy.special

from subl_jax.errors import InputError

_METHODS = ("t", "bca")
# Differences closer together than this are taken as equal: rounding, not variance.
ROUNDING = 1e-12


def check_method(method: str) -> None:
    """Raises InputError where no interval is called so."""
    if method not in _METHODS:
        raise InputError(f"interval method = {method!r}: must be one of {', '.join(_METHODS)}")


def t_intervals(values: np.ndarray, confidence: float = 0.95) -> np.ndarray:
    """Student's t interval of the mean of each row.

    Args:
      values: (rows, bases); NaN is left out.

    Returns:
      (rows, 3): mean, lower and upper end; the ends are NaN with fewer than 2 values.
    """
    values = np.asarray(values, float)
    count = (~np.isnan(values)).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):  # of no values, and of one
        mean = np.nansum(values, axis=1) / count
        deviation = np.sqrt(np.nansum((values - mean[:, None]) ** 2, axis=1) / (count - 1))
        half = scipy.special.stdtrit(count - 1.0, (1 + confidence) / 2) * deviation / np.sqrt(count)
    half[count < 2] = np.nan
    return np.stack([mean, mean - half, mean + half], axis=1)


def probability_intervals(values: np.ndarray, confidence: float = 0.95) -> np.ndarray:
    """Student's t interval of the mean probability of each row, on the logit scale: its ends lie in [0, 1].

    logit(m) ± t s / (√n m (1 − m)), turned back, where m ± t s / √n is the plain interval: that is the standard error
    of a logit by the delta method. The mean is that of the probabilities. Where the spread of the bases is large beside
    the distance to 0 or 1, this covers the truth as often as it says, which the plain interval does not.

    Args:
      values: (rows, bases); NaN is left out. Rows with something else than probabilities get the plain interval.

    Returns:
      (rows, 3), as `t_intervals`.
    """
    plain = t_intervals(values, confidence)
    mean, half = plain[:, 0], plain[:, 2] - plain[:, 0]
    outside = ((np.asarray(values) < 0) | (np.asarray(values) > 1)).any(axis=1)
    within = (mean > 0) & (mean < 1) & ~outside  # a mean of 0 or 1 is that of zeros or ones: there is no spread
    mean, half = np.where(within, mean, 0.5), np.where(within, half, 0.0)
    half = half / (mean * (1 - mean))
    ends = scipy.special.expit(scipy.special.logit(mean)[:, None] + half[:, None] * [-1, 1])
    return np.where(within[:, None], np.column_stack([mean, ends]), plain)


def interval(
    values: Sequence[float], confidence: float = 0.95, method: str = "t", probability: bool = False
) -> tuple[float, float, float]:
    """Mean of `values` (one per base) and its confidence interval.

    Args:
      method: "t", or "bca": the bias-corrected and accelerated bootstrap (Efron 1987) over the bases, 9,999 resamples
        of a fixed seed. Below about 10 bases the bootstrap is too narrow; prefer "t" there.
      probability: the t interval is that of `probability_intervals`; the bootstrap needs no such care.

    Returns:
      mean, lower end, upper end; the ends are NaN with fewer than 2 values, and the mean too with none.
    """
    check_method(method)
    values = np.asarray(values, float)
    values = values[~np.isnan(values)]
    if method == "bca" and len(values) >= 2 and not are_identical(values):
        import scipy.stats  # late, as it takes a second

        result = scipy.stats.bootstrap(
            (values,), np.mean, confidence_level=confidence, method="BCa", rng=np.random.default_rng(0)
        )
        return float(values.mean()), float(result.confidence_interval.low), float(result.confidence_interval.high)
    mean, low, high = (probability_intervals if probability else t_intervals)(values[None], confidence)[0]
    return float(mean), float(low), float(high)


def are_identical(values: np.ndarray) -> bool:
    """Whether they differ by rounding only."""
    return bool(np.ptp(values) <= ROUNDING * max(1.0, np.abs(values).max()))
