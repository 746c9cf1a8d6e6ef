"""What a number of pairs can show: the power of the paired t test, and the smallest effect that it finds."""

import numpy as np
import scipy.optimize
import scipy.stats

from subl_jax.errors import InputError


def power(effect: float, deviation: float, pairs: int, alpha: float = 0.05) -> float:
    """How often the two-sided paired t test of `pairs` differences has p < alpha, where they are normal with mean
    `effect` and standard deviation `deviation`."""
    _check(deviation, pairs)
    freedom, shift = pairs - 1, effect / deviation * np.sqrt(pairs)
    edge = scipy.stats.t.isf(alpha / 2, freedom)
    beyond = scipy.stats.nct.sf(edge, freedom, abs(shift))
    # The tail on the other side; where it is next to nothing scipy has no number for it.
    return float(beyond + np.nan_to_num(scipy.stats.nct.cdf(-edge, freedom, abs(shift))))


def smallest_effect(deviation: float, pairs: int, alpha: float = 0.05, wanted: float = 0.8) -> float:
    """The mean difference that the test finds with the power `wanted`, in the unit of `deviation`.

    Raises:
      InputError: fewer than two pairs, or a deviation that is not positive.
    """
    _check(deviation, pairs)

    def lacking(effect: float) -> float:
        return power(effect, 1.0, pairs, alpha) - wanted

    most = pairs**-0.5
    while lacking(most) < 0:  # in small steps: far out the noncentral t has no number
        most *= 1.5
    return deviation * float(scipy.optimize.brentq(lacking, 0.0, most, xtol=1e-10))


def _check(deviation: float, pairs: int) -> None:
    if pairs < 2:
        raise InputError(f"pairs = {pairs}: a paired test needs at least 2")
    if not deviation > 0:
        raise InputError(f"deviation = {deviation}: must be more than 0")
