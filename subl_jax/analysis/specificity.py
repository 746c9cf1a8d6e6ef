"""The off-diagonal control: a student's trait in students whose teachers have other traits.

Data of any teacher can move every trait, above all in large models, where each is one rare word. Then "same_init minus
control" is above zero for every trait, and only this comparison tells whether it is the teacher's own that passes.
"""

import numpy as np
import pandas as pd

from subl_jax.analysis import statistics


def others_end(runs: pd.DataFrame, curves: pd.DataFrame) -> np.ndarray:
    """(runs,) P of each run's trait at the end of those runs that differ in their trait only, mean over their traits.

    These are of the same world, swept settings, arm and base. NaN where there are none, and for students that serve
    several traits, as controls do: their data has none of them.

    Args:
      runs: the runs table.
      curves: the curves table, with `trait/<name>` of more traits than a run's own.
    """
    found = runs.reset_index(drop=True)
    if "key" in found:
        several = found.groupby("key")["trait"].transform("nunique") > 1
        found = found[~several]
    found = found[(found["status"] == "ok") & found["trait"].notna()]
    settings = ["world", *statistics.swept_columns(runs), "arm"]
    alike = statistics.hashable(found[settings]).assign(unit=statistics.replication_unit(found))
    found = found.assign(alike=alike.groupby(list(alike.columns), dropna=False).ngroup())

    ends = _last(curves[curves["metric"].isin([f"trait/{trait}" for trait in found["trait"].unique()])])
    ends = statistics.of_runs(ends, found[["run_id", "alike", "trait"]])
    ends = ends.assign(evaluated=ends["metric"].astype(str).str.removeprefix("trait/"))
    ends = ends[ends["evaluated"] != ends["trait"]]
    of_teacher = ends.groupby(["alike", "evaluated", "trait"], observed=True)["value"].mean()
    means = of_teacher.groupby(level=["alike", "evaluated"]).mean()

    values = np.full(len(runs), np.nan)
    values[found.index] = means.reindex(pd.MultiIndex.from_frame(found[["alike", "trait"]])).to_numpy()
    return values


def _last(curves: pd.DataFrame) -> pd.DataFrame:
    """The last row of every run and metric."""
    return curves.sort_values("step", kind="stable").drop_duplicates(["run_id", "metric"], keep="last")
