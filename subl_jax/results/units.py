"""The unit of replication: the base that wrote the data, with everything that came from it.

Runs that share a base are averaged before anything else, so more students, prompts or samples of one base never narrow
an interval.
"""

import numpy as np
import pandas as pd


def replication_unit(runs: pd.DataFrame) -> pd.Series:
    """The base seed each run counts for: of the data's base, or of the student's own where the data was imported."""
    return runs["base_seed"].where(runs["base_seed"].notna(), runs["student_base_seed"])


def lost_pairs(runs: pd.DataFrame) -> pd.DataFrame:
    """The pairs of trait and unit (columns `trait`, `unit`) where some arm has runs, and none that ended well.

    Averages over all traits leave them out in every arm, so that no arm is averaged over other traits and bases than
    the rest because its runs failed. An arm that ended well nowhere has no average, and takes nothing from the others.

    Args:
      runs: those of one cell.
    """
    table = runs.assign(unit=replication_unit(runs), ok=runs["status"] == "ok")
    table = table[table["ok"].groupby(table["arm"]).transform("any")]
    ended = table.groupby(["arm", "trait", "unit"], sort=False)["ok"].any().reset_index()
    return ended.loc[~ended["ok"], ["trait", "unit"]].drop_duplicates(ignore_index=True)


def complete(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of one cell that are not of `lost_pairs`."""
    lost = pd.MultiIndex.from_frame(lost_pairs(runs))
    own = pd.MultiIndex.from_arrays([runs["trait"], replication_unit(runs)])
    return runs[~own.isin(lost)]


def by_base(runs: pd.DataFrame, value: str = "target_end") -> pd.DataFrame:
    """Mean of `value` over the ok runs of each trait and base: (traits, bases), NaN where there is none."""
    ok = runs[runs["status"] == "ok"]
    units = replication_unit(ok).rename("base")
    return ok[value].astype(float).groupby([ok["trait"], units], sort=False).mean().unstack("base").sort_index(axis=1)


def of_runs(curves: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """The rows of `curves` that are of `runs`, with what other columns these have. Both name a run in `run_id`; of two
    runs of one name the first counts.

    A merge by categories: a large sweep's curves have tens of millions of rows.
    """
    runs, names = runs.drop_duplicates("run_id"), curves["run_id"].astype("category")
    codes, place = names.cat.codes.to_numpy(), pd.Index(runs["run_id"]).get_indexer(names.cat.categories)
    found = np.flatnonzero((place >= 0)[codes])
    place = place[codes[found]]
    columns = {name: runs[name].array[place] for name in runs.columns if name != "run_id"}
    return curves.iloc[found].assign(**columns)
