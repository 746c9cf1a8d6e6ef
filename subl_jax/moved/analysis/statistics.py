"""Moved to `subl_jax.results` (cells, comparisons, units, wide) and `subl_jax.statistics`."""

import pandas as pd

from subl_jax.moved import say
from subl_jax.results import comparisons
from subl_jax.results.cells import *  # noqa: F403
from subl_jax.results.comparisons import COMPARED, OTHERS, POOLED, RARE, gain, rare  # noqa: F401
from subl_jax.results.units import by_base, of_runs, replication_unit  # noqa: F401
from subl_jax.results.wide import Columns, column_names, from_wide, wide_summary
from subl_jax.statistics.intervals import interval, t_intervals  # noqa: F401
from subl_jax.statistics.tests import holm, paired_p  # noqa: F401

say("analysis.statistics", "results.comparisons")


def summarise(runs: pd.DataFrame, confidence: float = 0.95, method: str = "t") -> pd.DataFrame:
    """The wide table: `results.comparisons.summarise` gives two."""
    return wide_summary(*comparisons.summarise(runs, confidence, method))


def are_rare(summary: pd.DataFrame) -> bool:
    """Of a wide summary."""
    return comparisons.are_rare(*from_wide(summary))


def compared(summary: pd.DataFrame) -> list[str]:
    """Of a wide summary."""
    return comparisons.compared(from_wide(summary).comparisons)


def difference_columns(arm: str) -> Columns:
    return column_names(arm, "difference")


def ratio_columns(arm: str) -> Columns:
    return column_names(arm, "ratio")


def columns(arm: str, rare: bool) -> Columns:  # noqa: F811
    """What the comparison with `arm` is called in a wide summary."""
    return ratio_columns(arm) if rare else difference_columns(arm)
