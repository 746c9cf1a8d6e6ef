"""Learning rates chosen on bases of their own: the best of each cell in a finished sweep."""

import dataclasses
import itertools
from collections.abc import Mapping

import numpy as np
import pandas as pd

from subl_jax.errors import InputError
from subl_jax.results.units import replication_unit


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The rate of a cell. score: its mean at the end, over bases. edge: it is the smallest or the largest tried."""

    rate: float
    score: float
    edge: bool


def best(runs: pd.DataFrame, curves: pd.DataFrame, by: str = "kl_held_out") -> dict[str, Chosen]:
    """Arm → the student's rate whose curve of `by` ends lowest, in the mean over the runs.

    A rate with a run that diverged or failed is none, unless all rates of the arm have one.

    Raises:
      InputError: no run of an arm is well, or none has such a curve.
    """
    last = (
        curves[curves["metric"] == by]
        .sort_values("step", kind="stable")
        .groupby("run_id", observed=True)["value"]
        .last()
    )
    last.index = last.index.astype(str)
    runs = runs.assign(score=runs["run_id"].map(last.to_dict()).astype(float))
    runs = runs.assign(score=runs["score"].where(runs["status"] == "ok"))
    found = {}
    for arm, rows in runs.groupby("arm", sort=False):
        rates = rows.groupby("student.train.lr")["score"].agg(["mean", lambda x: x.isna().any()])
        rates.columns = ["mean", "unwell"]
        if rates["mean"].isna().all():
            raise InputError(f"tuning: no run of {arm!r} has {by!r}; give a workdir in which it was measured")
        fit = rates[~rates["unwell"]] if (~rates["unwell"]).any() else rates.dropna()
        rate = float(fit["mean"].idxmin())
        edge = len(rates) > 1 and rate in (rates.index.min(), rates.index.max())
        found[str(arm)] = Chosen(rate, float(np.min(fit["mean"])), bool(edge))
    return found


def deviation(runs: pd.DataFrame, chosen: Mapping[str, Chosen]) -> float:
    """The standard deviation over bases of the difference in P(trait) between two arms, each at its chosen rate.

    The root mean square over all pairs of arms; what `statistics.power` asks for. NaN with fewer than two bases.
    """
    ok = runs[
        (runs["status"] == "ok") & (runs["student.train.lr"] == runs["arm"].map({a: c.rate for a, c in chosen.items()}))
    ]
    ends = ok["target_end"].astype(float).groupby([replication_unit(ok), ok["arm"]]).mean().unstack()
    spread = [(ends[one] - ends[two]).var(ddof=1) for one, two in itertools.combinations(ends.columns, 2)]
    return float(np.sqrt(np.nanmean(spread))) if np.isfinite(spread).any() else float("nan")
