"""Confidence intervals of means: Student's t, and the bootstrap."""

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


def interval(values: Sequence[float], confidence: float = 0.95, method: str = "t") -> tuple[float, float, float]:
    """Mean of `values` (one per base) and its confidence interval.

    Args:
      method: "t", or "bca": the bias-corrected and accelerated bootstrap (Efron 1987) over the bases, 9,999 resamples
        of a fixed seed. Below about 10 bases the bootstrap is too narrow; prefer "t" there.

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
    mean, low, high = t_intervals(values[None], confidence)[0]
    return float(mean), float(low), float(high)


def are_identical(values: np.ndarray) -> bool:
    """Whether they differ by rounding only."""
    return bool(np.ptp(values) <= ROUNDING * max(1.0, np.abs(values).max()))
