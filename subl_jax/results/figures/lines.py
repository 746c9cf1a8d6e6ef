"""Curves of arms: single runs or bases as thin lines, their mean with its band."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from subl_jax.results.units import replication_unit
from subl_jax.statistics.intervals import probability_intervals, t_intervals

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_LINES = 200  # thin lines of an arm in a panel


def ok_runs(runs: pd.DataFrame) -> pd.DataFrame:
    ok = runs[(runs["status"] == "ok") & runs["trait"].notna()]
    return ok[["run_id", "arm", "trait"]].assign(unit=replication_unit(ok))


def draw_arms(
    axis: "Axes",
    rows: pd.DataFrame,
    colours: Mapping[str, str],
    single: str,
    rare: bool = False,
    probability: bool = False,
) -> None:
    """Thin lines per `single`, and the mean over bases with its 95 % band, for each arm; of logarithms where `rare`.

    probability: the values are, and so is all of the band.
    """
    from matplotlib.collections import LineCollection

    if rare:
        rows = rows.assign(value=np.log(rows["value"]))
    drawn = np.exp if rare else np.asarray
    for arm, colour in colours.items():
        of_arm = rows[rows["arm"] == arm]
        if of_arm.empty:
            continue
        lines = _lines(of_arm, single)
        alpha = float(np.clip(4 / len(lines), 0.08, 0.4))
        lines = [np.column_stack([line[:, 0], drawn(line[:, 1])]) for line in lines]
        axis.add_collection(LineCollection(lines, colors=colour, linewidths=0.7, alpha=alpha, zorder=2))
        bases = _bases_by_step(of_arm)
        intervals = probability_intervals if probability and not rare else t_intervals
        mean, low, high = drawn(intervals(bases.to_numpy()).T)
        axis.fill_between(bases.index, low, high, color=colour, alpha=0.18, linewidth=0, zorder=2.5)
        axis.plot(bases.index, mean, color=colour, linewidth=2, zorder=4)
        if len(bases) == 1:
            axis.plot(bases.index, mean, "o", color=colour, zorder=4)
    axis.autoscale_view()


def _lines(rows: pd.DataFrame, single: str) -> list[np.ndarray]:
    """(points, 2) of each `single`, at most `MOST_LINES` of them, evenly from all."""
    places = pd.factorize(rows[single], sort=True)[0]
    count = places.max() + 1
    if count > MOST_LINES:
        chosen = np.isin(places, np.linspace(0, count - 1, MOST_LINES).round().astype(int))
        rows, places = rows[chosen], places[chosen]
    # A trait's mean first, so that the line of a base weighs its traits equally.
    of_trait = rows["value"].groupby([places, rows["step"].to_numpy(), rows["trait"].to_numpy()]).mean()
    means = of_trait.groupby(level=[0, 1]).mean()
    place, step = (means.index.get_level_values(level).to_numpy() for level in (0, 1))
    return np.split(np.column_stack([step, means.to_numpy()]), np.flatnonzero(np.diff(place)) + 1)


def _bases_by_step(rows: pd.DataFrame) -> pd.DataFrame:
    """(steps, bases): runs averaged within a trait, then traits within a base.

    Steps that some base lacks are left out where that leaves any, so that the mean follows the same bases throughout.
    """
    table = rows.groupby(["step", "unit", "trait"])["value"].mean().groupby(["step", "unit"]).mean().unstack("unit")
    full = table.dropna()
    return table if full.empty else full
