"""The off-diagonal control: a student's trait in students whose teachers have other traits.

Data of any teacher can move every trait, above all in large models, where each is one rare word. Then "same_init minus
control" is above zero for every trait, and only this comparison tells whether it is the teacher's own that passes.
"""

import numpy as np
import pandas as pd

from subl_jax.results import cells, comparisons
from subl_jax.results.units import of_runs, replication_unit


def others(runs: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """What becomes of each run's trait in the runs whose data has another trait: means over these traits, row by row.

    Such runs are of the same world, swept settings, arm and base. NaN where there are none, and for a run whose data
    has not its own trait, as of controls.

    Args:
      runs: the runs table, whose column `data_trait` is the trait of the data's writer.
      curves: the curves table, with `trait/<name>` of more traits than a run's own.

    Returns:
      `others_end`: P at the end; `others_gain`: the logarithm of P at the end over P at the start.
    """
    found = runs.reset_index(drop=True)
    found = found[found["status"] == "ok"]
    settings = ["world", *cells.swept_columns(runs), "arm"]
    alike = cells.hashable(found[settings]).assign(unit=replication_unit(found))
    found = found.assign(alike=alike.groupby(list(alike.columns), dropna=False).ngroup())

    own = found[found["trait"] == found["data_trait"]]
    ends = _ends(curves[curves["metric"].isin([f"trait/{trait}" for trait in own["trait"].unique()])])
    ends = of_runs(ends, found[["run_id", "alike", "data_trait"]])
    ends = ends.assign(evaluated=ends["metric"].astype(str).str.removeprefix("trait/"))
    ends = ends[ends["evaluated"] != ends["data_trait"]]
    of_teacher = ends.groupby(["alike", "evaluated", "data_trait"], observed=True)[["end", "gain"]].mean()
    means = of_teacher.groupby(level=["alike", "evaluated"]).mean()

    values = np.full((len(runs), 2), np.nan)
    values[own.index] = means.reindex(pd.MultiIndex.from_frame(own[["alike", "trait"]])).to_numpy()
    return pd.DataFrame(values, columns=["others_end", "others_gain"], index=runs.index)


def _ends(curves: pd.DataFrame) -> pd.DataFrame:
    """run_id, metric, end and gain of every run and metric, whose points are those of all its metrics here."""
    runs, steps = curves["run_id"].astype("category").cat.codes.to_numpy(), curves["step"]
    first, last = (curves[(steps == steps.groupby(runs).transform(end)).to_numpy()] for end in ("min", "max"))
    ends = last.merge(first, on=["run_id", "metric"], suffixes=("", "_first"))
    return ends.assign(end=ends["value"], gain=comparisons.gain(ends["value_first"], ends["value"]))
