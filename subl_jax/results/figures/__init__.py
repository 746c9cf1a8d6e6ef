"""The figures of a sweep, as matplotlib Figures; each is None where its data is missing.

Every figure shows the single bases or runs beside the mean, because transfer is often bimodal over seeds and a mean
with an interval hides that. Intervals of curves are Student's t over base seeds (`analysis.statistics`).
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from subl_jax.results import comparisons

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, and greys of controls: told apart under every common colour blindness.
_ARM_COLOURS = {"same_init": "#0072B2", "cross_init": "#E69F00", "control": "#666666", "cross_control": "#AFAFAF"}
_OTHER_COLOURS = ("#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8C6D1F")
_GRID = "#E3E3E3"
_CHANCE = "#222222"
MOST_LINES = 200  # thin lines of an arm in a panel
_MOST_PANELS = 11  # traits with a panel of their own; a pooled panel follows
_MOST_BARS = 24  # traits in the comparison
_MOST_ROWS = 30  # rows of the filter figure
_MOST_LABELS = 40  # names along an axis of the matrix
_MOST_WRITTEN = 14  # more columns are too narrow for numbers
_MOST_CELL_VALUES = 170  # cells of a matrix that have their value written in


def arm_label(arm: str) -> str:
    return arm.replace("_", " ")


def arm_colours(runs: pd.DataFrame) -> dict[str, str]:
    """Arm → colour: fixed for the core arms, cycled for the others."""
    arms = comparisons.ordered_arms(runs)
    others = [arm for arm in arms if arm not in _ARM_COLOURS]
    return {arm: _ARM_COLOURS[arm] for arm in arms if arm in _ARM_COLOURS} | {
        arm: _OTHER_COLOURS[i % len(_OTHER_COLOURS)] for i, arm in enumerate(others)
    }


def compared_label(name: str) -> str:
    """Of what arms are compared with (`comparisons.COMPARED`)."""
    return "other teachers" if name == comparisons.OTHERS else arm_label(name)


def number(value: float) -> str:
    """A probability or a difference of two, short: ".243", "−.012", "7.1e-4", "–" for none."""
    if value is None or not np.isfinite(value):
        return "–"
    tiny = 0 < abs(value) < 0.005
    text = f"{abs(value):.1e}".replace("e-0", "e-") if tiny else f"{abs(value):.3f}".removeprefix("0")
    return f"−{text}" if value < 0 else text


def p_value(value: float) -> str:
    if value is None or not np.isfinite(value):
        return "–"
    return "<.001" if value < 0.001 else ">.999" if value > 0.999 else f"{value:.3f}".removeprefix("0")


# --- transfer curves ---


def transfer_curves(
    runs: pd.DataFrame, curves: pd.DataFrame, base_rate: Mapping[str, float], colours: Mapping[str, str]
) -> "Figure | None":
    """P(trait) against student step: a panel per trait, and one for the mean over all traits.

    Where traits are rare (`comparisons.rare`) the axis is logarithmic, and means are geometric.

    Args:
      runs: the runs of one cell.
      base_rate: trait → chance level; may lack traits.
      colours: arm → colour.
    """
    target = _target_curves(runs, curves)
    if target.empty:
        return None
    traits = list(runs["trait"].dropna().unique())
    shown = traits[:_MOST_PANELS]
    panels = [*shown, comparisons.POOLED] if len(traits) > 1 else shown
    rare = comparisons.rare(target.loc[target["step"] == target["step"].min(), "value"], target["value"])
    figure, axes = _panels(len(panels), height=2.5)
    for axis, panel in zip(axes, panels, strict=True):
        pooled = panel == comparisons.POOLED
        rows = target if pooled else target[target["trait"] == panel]
        # Where a base has several students, their own lines; in the pooled panel one line per base.
        _draw_arms(axis, rows, colours, single="unit" if pooled else "run_id", rare=rare)
        chances = [base_rate[trait] for trait in (traits if pooled else [panel]) if trait in base_rate]
        if chances:
            axis.axhline(np.mean(chances), color=_CHANCE, linewidth=1, linestyle=(0, (4, 3)), zorder=3)
        axis.set_title(f"mean over {len(traits)} traits" if pooled else panel, fontsize=9.5, fontweight="bold")
    top = max([float(target["value"].max()), *(base_rate[trait] for trait in traits if trait in base_rate), 1e-6])
    for axis in axes:
        if rare:
            axis.set_yscale("log")
            lowest = min([float(target["value"].min()), *(rate for rate in base_rate.values() if rate > 0)])
            axis.set_ylim(0.8 * lowest, 1.25 * top)
        else:
            axis.set_ylim(-0.02 * top, 1.08 * top)
    figure.supxlabel("student step", fontsize=9.5)
    figure.supylabel("P(trait)", fontsize=9.5)
    _legend(figure, _present(colours, target["arm"]), colours, chance=bool(base_rate))
    return figure


def shown_traits(runs: pd.DataFrame, most: int = _MOST_PANELS) -> tuple[int, int]:
    """How many traits have a panel, and how many there are."""
    total = runs["trait"].nunique()
    return min(most, total), total


def _target_curves(runs: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """The curve of each ok run's own trait: run_id, arm, trait, unit, step, value."""
    metrics = curves["metric"].astype("category")
    ok = _ok(runs)
    own = metrics.cat.categories.get_indexer("trait/" + ok["trait"].astype(str))
    wanted = curves.assign(code=metrics.cat.codes.astype(int))[metrics.cat.codes.isin(own[own >= 0])]
    rows = comparisons.of_runs(wanted, ok.assign(own=own))
    return rows[rows["code"] == rows["own"]].drop(columns=["code", "own"])


def _ok(runs: pd.DataFrame) -> pd.DataFrame:
    ok = runs[(runs["status"] == "ok") & runs["trait"].notna()]
    return ok[["run_id", "arm", "trait"]].assign(unit=comparisons.replication_unit(ok))


def _draw_arms(axis: "Axes", rows: pd.DataFrame, colours: Mapping[str, str], single: str, rare: bool = False) -> None:
    """Thin lines per `single`, and the mean over bases with its 95 % band, for each arm; of logarithms where `rare`."""
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
        mean, low, high = drawn(comparisons.t_intervals(bases.to_numpy()).T)
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


# --- comparison ---


def comparison(
    runs: pd.DataFrame, summary: pd.DataFrame, base_rate: Mapping[str, float], colours: Mapping[str, str]
) -> "Figure | None":
    """Final P(trait) per trait and arm: the mean as a bar, its interval as whiskers, each base as a point.

    Where traits are rare (`comparisons.are_rare`) the axis is logarithmic; it begins left of all points.

    Args:
      runs: the runs of one cell.
      summary: the rows of `comparisons.summarise` of that cell.
    """
    summary = summary[summary["mean"].notna()]
    if summary.empty:
        return None
    traits = list(summary.loc[summary["trait"] != comparisons.POOLED, "trait"].unique())
    groups = [comparisons.POOLED, *traits[:_MOST_BARS]] if len(traits) > 1 else traits
    arms = _present(colours, summary["arm"])
    height = 0.17 * len(groups) * (len(arms) + 0.9) + 1.2
    rare = comparisons.are_rare(summary)
    tests = {name: comparisons.columns(name, rare) for name in comparisons.compared(summary)}
    tests = {name: names for name, names in tests.items() if summary[names.p].notna().any()}
    figure = _figure(7.2 + 0.95 * len(tests), height)
    if tests:
        axis, margin = figure.subplots(1, 2, sharey=True, width_ratios=[7.2, 0.95 * len(tests)])
    else:
        axis = figure.add_subplot()
    _clean(axis, grid="x")
    bases = {arm: comparisons.by_base(runs[runs["arm"] == arm]) for arm in arms}
    left = 0.0
    if rare:
        axis.set_xscale("log")
        ends = np.concatenate([table.to_numpy().ravel() for table in bases.values()])
        left = 0.7 * min(value for value in (*ends, *base_rate.values()) if value > 0)
    pitch = len(arms) + 0.9
    for g, group in enumerate(groups):
        pooled = group == comparisons.POOLED
        for a, arm in enumerate(arms):
            rows = summary[(summary["trait"] == group) & (summary["arm"] == arm)]
            if rows.empty:
                continue
            row, y = rows.iloc[0], g * pitch + a
            axis.barh(
                y,
                row["mean"] - left,
                left=left,
                height=0.82,
                color=colours[arm],
                alpha=0.45 if pooled else 0.3,
                zorder=2,
            )
            axis.plot([row["mean"]] * 2, [y - 0.41, y + 0.41], color=colours[arm], linewidth=2, zorder=3)
            if np.isfinite(row["ci_low"]):
                low = max(row["ci_low"], left) if left else row["ci_low"]
                axis.plot([low, row["ci_high"]], [y, y], color=_CHANCE, linewidth=1.1, zorder=5)
            points = (bases[arm].mean(axis=0) if pooled else bases[arm].loc[group]).dropna().to_numpy()
            offsets = np.linspace(-0.24, 0.24, len(points)) if len(points) > 1 else np.zeros(len(points))
            axis.scatter(points, y + offsets, s=11, color=colours[arm], edgecolor="white", linewidth=0.4, zorder=6)
        chances = [base_rate[trait] for trait in (traits if pooled else [group]) if trait in base_rate]
        if chances:
            ends = [g * pitch - 0.6, g * pitch + len(arms) - 0.4]
            axis.plot([np.mean(chances)] * 2, ends, color=_CHANCE, linewidth=1, linestyle=(0, (3, 2)), zorder=4)
    centre = (len(arms) - 1) / 2
    axis.set_yticks([g * pitch + centre for g in range(len(groups))])
    axis.set_yticklabels([f"all {len(traits)} traits" if group == comparisons.POOLED else group for group in groups])
    if groups[0] == comparisons.POOLED:
        axis.get_yticklabels()[0].set_fontweight("bold")
        axis.axhline(pitch - 0.95, color="#999999", linewidth=0.8)
    axis.set_ylim(len(groups) * pitch - 0.3, -1.0)
    axis.set_xlim(left, min(axis.get_xlim()[1], 1.02))
    axis.set_xlabel("P(trait) at the end of student training", fontsize=9.5)
    if tests:
        _write_p_values(
            margin,
            summary,
            tests,
            {(group, arm): g * pitch + a for g, group in enumerate(groups) for a, arm in enumerate(arms)},
        )
    _legend(figure, arms, colours, chance=bool(base_rate))
    return figure


def shown_bars(runs: pd.DataFrame) -> tuple[int, int]:
    """How many traits are in the comparison, and how many there are."""
    return shown_traits(runs, _MOST_BARS)


def _write_p_values(
    margin: "Axes",
    summary: pd.DataFrame,
    tests: Mapping[str, comparisons.Columns],
    heights: Mapping[tuple[str, str], float],
) -> None:
    """p-values beside the bars: a column per comparison, at the height of the arm that is compared."""
    margin.set_axis_off()
    margin.set_xlim(0, len(tests))
    for column, (reference, own) in enumerate(tests.items()):
        head = f"p vs\n{compared_label(reference)}"
        margin.text(column, 1.0, head, transform=margin.get_xaxis_transform(), fontsize=8, va="bottom")
        for row in summary[summary[own.p].notna()].to_dict("records"):
            p = row[own.p] if row["trait"] == comparisons.POOLED else row[own.p_holm]
            if (row["trait"], row["arm"]) in heights:
                margin.text(column, heights[row["trait"], row["arm"]], p_value(p), fontsize=8, va="center")


# --- every trait, not only the one instilled ---


def trait_matrix(runs: pd.DataFrame, curves: pd.DataFrame) -> "Figure | None":
    """Change of P over training: the teacher's trait (rows) against every evaluated trait (columns), for each arm.

    Where traits are rare, as single words in a language model are, it is the factor: rare words and common ones then
    compare.
    """
    changes, factors = _changes(runs, curves)
    if changes.empty:
        return None
    arms = comparisons.ordered_arms(changes)
    rows = list(runs["trait"].dropna().unique())
    evaluated = list(changes["evaluated"].unique())
    columns = [name for name in rows if name in evaluated] + [name for name in evaluated if name not in rows]
    tables = {
        arm: table.groupby(["trait", "evaluated", "unit"])["change"]
        .mean()
        .groupby(["trait", "evaluated"])
        .mean()
        .unstack("evaluated")
        .reindex(index=rows, columns=columns)
        for arm, table in changes.groupby("arm")
    }
    reach = max(float(np.nanmax(np.abs(table.to_numpy()))) for table in tables.values()) or 1e-6
    across = 2 if len(arms) == 4 else min(3, len(arms))
    down = -(-len(arms) // across)
    side = float(np.clip(0.3 * len(columns) + 1.1, 3.2, 4.0))
    tall = float(np.clip(side * len(rows) / len(columns), 1.0, 4.0))
    figure = _figure(side * across + 0.9, down * (tall + 1.3) + 0.3)
    axes = np.atleast_1d(figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)).ravel()
    unit, unit_name = _unit(reach)
    text = _factor if factors else functools.partial(_difference, unit=unit)
    written = len(columns) <= _MOST_WRITTEN and len(rows) * len(columns) <= _MOST_CELL_VALUES
    for axis, arm in zip(axes, arms, strict=False):
        values = tables[arm].to_numpy(float)
        image = axis.imshow(values, cmap="RdBu_r", vmin=-reach, vmax=reach, aspect="auto", interpolation="nearest")
        axis.set_title(arm_label(arm), fontsize=10, fontweight="bold")
        _name_ticks(axis.xaxis, columns, rotation=90)
        _name_ticks(axis.yaxis, rows, rotation=0)
        if written:
            _write_values(axis, values, reach, text)
        if len(columns) <= _MOST_LABELS:
            _outline(axis, [(i, columns.index(name)) for i, name in enumerate(rows) if name in columns])
    for axis in axes[len(arms) :]:
        axis.set_visible(False)
    figure.supxlabel("evaluated trait", fontsize=9.5)
    figure.supylabel("teacher's trait", fontsize=9.5)
    bar = figure.colorbar(image, ax=list(axes), shrink=0.8, pad=0.01, aspect=30)
    if factors:
        bar.set_label("P at the end / P at the start", fontsize=9)
        bar.ax.yaxis.set_major_formatter(lambda value, place: _factor(value))
    else:
        in_cells = f" (in the cells: {unit_name})" if written else ""
        bar.set_label(f"P at the end − P at the start{in_cells}", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return figure


def _changes(runs: pd.DataFrame, curves: pd.DataFrame) -> tuple[pd.DataFrame, bool]:
    """Of every trait metric of every ok run: arm, trait, unit, evaluated, change; and whether the changes are factors.

    A change is the last minus the first value, or log2 of their ratio.
    """
    metrics = [name for name in curves["metric"].unique() if name.startswith("trait/")]
    values = curves[curves["metric"].isin(metrics)].sort_values("step", kind="stable")
    ends = values.groupby(["run_id", "metric"], sort=False, observed=True)["value"].agg(["first", "last"]).reset_index()
    evaluated = ends["metric"].astype("category").cat.remove_unused_categories()
    evaluated = evaluated.cat.rename_categories(lambda name: name.removeprefix("trait/"))
    changes = comparisons.of_runs(ends.assign(evaluated=evaluated), _ok(runs)).dropna(subset=["first", "last"])
    probabilities = changes[["first", "last"]]
    factors = comparisons.rare(probabilities["first"], probabilities.stack())
    change = np.log2(changes["last"] / changes["first"]) if factors else changes["last"] - changes["first"]
    return changes.assign(change=change), factors


def factor(times: float) -> str:
    """ "×11", "×1.4", "×.35", "×2.3e-5", "–" for none."""
    if not np.isfinite(times):
        return "–"
    if not 0.001 <= times < 9995:
        return f"×{times:.1e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    return (
        f"×{times:.0f}" if times >= 9.95 else f"×{times:.1f}" if times >= 0.995 else f"×{times:.2g}".replace("0.", ".")
    )


def _factor(change: float) -> str:
    """2 to the power of a change."""
    return factor(2.0**change)


def _name_ticks(axis: Any, names: Sequence[str], rotation: int) -> None:
    if len(names) > _MOST_LABELS:
        axis.set_ticks([])
        return
    axis.set_ticks(range(len(names)), names, rotation=rotation, fontsize=8)


def _unit(reach: float) -> tuple[float, str]:
    """What the largest of some changes is written in, and its name: percentage points, or a power of ten below them."""
    if reach >= 0.005:
        return 0.01, "percentage points"
    exponent = math.floor(math.log10(reach))
    return 10.0**exponent, f"1e{exponent}"


def _difference(change: float, unit: float) -> str:
    """In a unit, with one decimal: "+2.3", "−0.1"; "0" for what rounds to it."""
    return f"{change / unit:+.1f}".replace("-", "−") if abs(change / unit) >= 0.05 else "0"


def _write_values(axis: "Axes", values: np.ndarray, reach: float, text: Callable[[float], str]) -> None:
    """The values in the cells, as `text` writes them."""
    size = 7.5 if values.shape[1] <= 6 else 6.5 if values.shape[1] <= 9 else 5.5
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if abs(value) > 0.6 * reach else "#333333"
            axis.text(j, i, text(value), ha="center", va="center", fontsize=size, color=colour)


def _outline(axis: "Axes", cells: Iterable[tuple[int, int]]) -> None:
    from matplotlib.patches import Rectangle

    for i, j in cells:
        axis.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, edgecolor=_CHANCE, linewidth=1.1))


# --- the filter ---


def retention(datasets: pd.DataFrame) -> "Figure | None":
    """Left: the share of samples each teacher's filter kept. Right: what became of all samples, by reason."""
    from matplotlib.patches import Patch

    if "drawn" not in datasets.columns:
        return None
    datasets = datasets[datasets["drawn"].fillna(0) > 0]
    if datasets.empty:
        return None
    names = datasets["trait"].where(datasets["trait"].notna(), "no trait (control)")
    order = list(names.sort_values(key=lambda name: name == "no trait (control)", kind="stable").unique())
    shown = order if len(order) <= _MOST_ROWS else [*order[: _MOST_ROWS - 1], order[-1]]
    figure = _figure(10.5, 0.27 * len(shown) + 1.5)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1, 1.25])
    reasons = [name for name in datasets.columns if name.startswith("why/") and datasets[name].fillna(0).sum() > 0]
    reasons = sorted(reasons, key=lambda name: -datasets[name].sum())
    for axis in (left, right):
        _clean(axis, grid="x")
    parts = ["kept", *reasons]
    # Samples drawn that were neither kept nor rejected: a surplus over the size asked for.
    surplus = (datasets["drawn"] - datasets[parts].sum(axis=1)).clip(lower=0)
    datasets = datasets.assign(surplus=surplus)
    parts += ["surplus"] if surplus.sum() > 0 else []
    part_colours = _stack_colours(parts)
    for y, name in enumerate(shown):
        rows = datasets[names == name]
        kept = rows["kept_fraction"].to_numpy(float)
        offsets = np.linspace(-0.2, 0.2, len(kept)) if len(kept) > 1 else np.zeros(len(kept))
        left.scatter(kept, y + offsets, s=16, color=_ARM_COLOURS["same_init"], alpha=0.75, linewidth=0, zorder=3)
        shares = rows[parts].sum() / rows["drawn"].sum()
        edges = shares.cumsum() - shares
        style = {"color": part_colours, "edgecolor": "white", "linewidth": 0.5, "zorder": 2}
        right.barh(y, shares, left=edges, height=0.7, **style)
    left.set_yticks(range(len(shown)), shown, fontsize=8.5)
    left.set_ylim(len(shown) - 0.4, -0.6)
    left.set_xlim(-0.02, 1.02)
    right.set_xlim(0, 1)
    left.set_xlabel("kept fraction, one point per dataset", fontsize=9)
    right.set_xlabel("share of all samples drawn", fontsize=9)
    handles = [
        Patch(color=colour, label=part.removeprefix("why/")) for part, colour in zip(parts, part_colours, strict=True)
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(6, len(parts)), frameon=False, fontsize=8.5)
    return figure


def _stack_colours(parts: Sequence[str]) -> list[str]:
    cycle = ("#E69F00", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#8C6D1F", "#009E73", "#000000")
    fixed = {"kept": _ARM_COLOURS["same_init"], "surplus": "#CCCCCC"}
    return [fixed.get(part, cycle[(i - 1) % len(cycle)]) for i, part in enumerate(parts)]


# --- training ---

_MOST_WORDS = 10
_LEGEND_ENTRY = 1.45  # inches
_TRAINING = {
    "loss": "loss",
    "kl": "KL to the teacher",
    "cosine": "cosine to the teacher's update",
    "agreement": "agreement with the teacher",
    "gradient_cosine": "cosine of own and trait gradient",
}


def training_curves(runs: pd.DataFrame, curves: pd.DataFrame, colours: Mapping[str, str]) -> "Figure | None":
    """Loss, KL to the teacher, the cosine of the student's and the teacher's update, …, whichever there are."""
    rows = comparisons.of_runs(curves[curves["metric"].isin(_TRAINING) & curves["value"].notna()], _ok(runs))
    metrics = _present(_TRAINING, rows["metric"])
    if not metrics:
        return None
    figure, axes = _panels(len(metrics), height=2.7)
    for axis, metric in zip(axes, metrics, strict=True):
        _draw_arms(axis, rows[rows["metric"] == metric], colours, single="unit")
        axis.set_title(_TRAINING[metric], fontsize=9.5, fontweight="bold")
        axis.tick_params(labelleft=True)
        if "cosine" in metric:
            axis.axhline(0, color=_CHANCE, linewidth=0.8, zorder=1)
    figure.supxlabel("student step", fontsize=9.5)
    _legend(figure, _present(colours, rows["arm"]), colours, chance=False)
    return figure


# --- metrics with a value per class, per strength, … ---


def details(runs: pd.DataFrame, curves: pd.DataFrame, colours: Mapping[str, str]) -> "Figure | None":
    """The end values of metrics such as `class/3`, but for the traits': a panel per metric, an x place per name."""
    if curves.empty:
        return None
    metrics = curves["metric"].unique()
    shown = [name for name in metrics if "/" in name and not name.startswith(("trait/", "rate/"))]
    rows = comparisons.of_runs(curves[curves["metric"].isin(shown) & curves["value"].notna()], _ok(runs))
    if rows.empty:
        return None
    names = rows["metric"].astype(str).str.partition("/")
    rows = rows.assign(kind=names[0], place=names[2])
    last = rows[rows["step"] == rows.groupby("run_id", observed=True)["step"].transform("max")]
    kinds = list(last["kind"].unique())
    figure, axes = _panels(len(kinds), height=2.9, most_across=2)
    for axis, kind in zip(axes, kinds, strict=True):
        of_kind = last[last["kind"] == kind]
        places = list(of_kind["place"].unique())
        for a, (arm, colour) in enumerate(colours.items()):
            of_arm = of_kind[of_kind["arm"] == arm]
            if of_arm.empty:
                continue
            bases = of_arm.groupby(["place", "unit"])["value"].mean().unstack("unit").loc[places]
            mean, low, high = comparisons.t_intervals(bases.to_numpy()).T
            x = np.arange(len(places)) + (a - (len(colours) - 1) / 2) * 0.08
            axis.plot(x, mean, "o-", color=colour, linewidth=1.4, markersize=3.5, zorder=4)
            axis.vlines(x, low, high, color=colour, linewidth=1.4, zorder=3)
        axis.set_xticks(np.arange(len(places)), places)
        axis.set_title(kind, fontsize=9.5, fontweight="bold")
        axis.tick_params(labelbottom=True, labelleft=True)
    _legend(figure, _present(colours, last["arm"]), colours, chance=False)
    return figure


# --- the theorem ---


def theorem(steps: pd.DataFrame, colours: Mapping[str, str]) -> "Figure | None":
    """Δ_S · Δ_T against its predicted leading order, one point a student (`analysis.one_step.table`)."""
    if steps.empty:
        return None
    worlds = list(steps["setting"].unique())
    figure, axes = _panels(len(worlds), height=3.2, most_across=3)
    for axis, world in zip(axes, worlds, strict=True):
        of_world = steps[steps["setting"] == world]
        for arm, colour in colours.items():
            rows = of_world[of_world["arm"] == arm]
            axis.scatter(rows["predicted"], rows["dot"], s=10, color=colour, alpha=0.6, linewidth=0, zorder=3)
        reach = of_world[["predicted", "dot"]].abs().replace(0, np.nan)
        least, most = float(reach.min().min()), float(reach.max().max())
        if np.isfinite(least) and most > 0:
            # Both may be negative for a student of another start.
            axis.set_xscale("symlog", linthresh=max(least, most * 1e-12))
            axis.set_yscale("symlog", linthresh=max(least, most * 1e-12))
            axis.xaxis.get_major_locator().set_params(numticks=6)
            axis.yaxis.get_major_locator().set_params(numticks=8)
            axis.plot([least, most], [least, most], color=_CHANCE, linewidth=0.9, zorder=2)
        axis.axhline(0, color=_CHANCE, linewidth=0.8, zorder=1)
        axis.set_title(world, fontsize=9, fontweight="bold")
        axis.tick_params(labelbottom=True, labelleft=True)
    figure.supxlabel("predicted: lr · Δ_T' G (θ_T − θ), from the same start lr · Δ_T' G Δ_T", fontsize=9.5)
    figure.supylabel("Δ_S · Δ_T", fontsize=9.5)
    _legend(figure, _present(colours, steps["arm"]), colours, chance=False)
    return figure


# --- dose and response ---


def dose_response(
    runs: pd.DataFrame, base_rate: Mapping[str, float], colours: Mapping[str, str], confidence: float = 0.95
) -> "Figure | None":
    """Final P(trait) against each swept field, by arm; an arm that lacks the field is a line across.

    Words, and lists such as widths, stand evenly apart in the order of the runs.
    """
    ok = runs[(runs["status"] == "ok") & runs["trait"].notna()]
    swept = comparisons.swept_columns(runs)
    panels = [
        (world, field, along)
        for world, rows in ok.groupby("world")
        for field, along in _axes(rows, swept)
        if 1 < rows[field].nunique() <= (np.inf if _is_number(rows[field]) else _MOST_WORDS)
    ]
    if not panels:
        return None
    figure, axes = _panels(len(panels), height=2.9, most_across=3)
    for axis, (world, field, along) in zip(axes, panels, strict=True):
        rows = ok[ok["world"] == world]
        words = [] if _is_number(rows[field]) else list(rows[field].dropna().astype(str).unique())
        if words:
            places = rows[field].map(lambda value, words=words: words.index(str(value)), na_action="ignore")
            rows = rows.assign(**{field: places.astype(float)})
            axis.set_xticks(range(len(words)), words, fontsize=7.5, rotation=20)
        levels = np.sort(rows[field].dropna().astype(float).unique())
        logarithmic = not words and levels[0] > 0 and levels[-1] / levels[0] > 10
        if logarithmic:
            axis.set_xscale("log")
        for a, (arm, colour) in enumerate(colours.items()):
            of_arm = rows[rows["arm"] == arm]
            if of_arm.empty:
                continue
            if of_arm[field].isna().all():
                mean, low, high = comparisons.interval(comparisons.by_base(of_arm).mean(axis=0), confidence)
                axis.axhline(mean, color=colour, linewidth=1.6, zorder=3)
                if np.isfinite(low):
                    axis.axhspan(low, high, color=colour, alpha=0.12, linewidth=0, zorder=1)
                continue
            shift = (a - (len(colours) - 1) / 2) * 0.012
            # Points of two checkpoints are not one curve.
            models = [name for name in swept if name.startswith("world.") and name not in (field, *along)]
            for _, rows_of_model in of_arm.groupby(models, dropna=False) if models else [((), of_arm)]:
                _draw_dose(axis, rows_of_model, field, levels, shift, logarithmic, colour, confidence, not words)
        chances = [base_rate[trait] for trait in rows["trait"].unique() if trait in base_rate]
        if chances:
            axis.axhline(np.mean(chances), color=_CHANCE, linewidth=1, linestyle=(0, (4, 3)), zorder=2)
        axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]) if rows["target_end"].min() < 0 else 0.0)
        label = "\nwith ".join([field, *along])
        axis.set_xlabel(label if ok["world"].nunique() == 1 else f"{label} ({world})", fontsize=9)
        axis.tick_params(labelbottom=True)
    figure.supylabel("P(trait) at the end", fontsize=9.5)
    _legend(figure, _present(colours, ok["arm"]), colours, chance=bool(base_rate))
    return figure


def _axes(rows: pd.DataFrame, fields: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The fields, each with those whose values go with its own one to one, such as a rank with its alpha."""
    found: list[tuple[str, list[str]]] = []
    for field in fields:
        for first, along in found:
            pairs = rows[[first, field]].astype(str).drop_duplicates()
            if len(pairs) == pairs[first].nunique() == pairs[field].nunique():
                along.append(field)
                break
        else:
            found.append((field, []))
    return found


def _draw_dose(
    axis: "Axes",
    rows: pd.DataFrame,
    field: str,
    levels: np.ndarray,
    shift: float,
    logarithmic: bool,
    colour: str,
    confidence: float,
    joined: bool,
) -> None:
    """One arm in one panel: a point per base at each level, and the mean over bases with its interval."""
    means = []
    for level, at_level in rows.groupby(rows[field].astype(float)):
        bases = comparisons.by_base(at_level).mean(axis=0).dropna()
        span = levels[-1] / levels[0] if logarithmic else levels[-1] - levels[0]
        x = level * span**shift if logarithmic else level + span * shift
        axis.scatter(np.full(len(bases), x), bases, s=9, color=colour, alpha=0.5, linewidth=0, zorder=3)
        means.append((x, *comparisons.interval(bases, confidence)))
    x, mean, low, high = np.array(means).T
    if joined:
        axis.plot(x, mean, "-", color=colour, linewidth=1.8, zorder=4)
    axis.vlines(x, low, high, color=colour, linewidth=1.6, zorder=4)
    axis.scatter(x, mean, s=24, color=colour, edgecolor="white", linewidth=0.7, zorder=5)


def _is_number(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


# --- shared ---


def _present(names: Iterable[str], column: pd.Series) -> list[str]:
    """Those of `names` that occur in the column."""
    there = set(column.unique())
    return [name for name in names if name in there]


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="constrained", facecolor="white")


def _panels(count: int, height: float, most_across: int = 4) -> "tuple[Figure, list[Axes]]":
    """A figure with `count` panels in rows of about equal length."""
    down = -(-count // most_across)
    across = -(-count // down)
    figure = _figure(max(2.75 * across, 5.4) + 0.5, height * down + 0.6)
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for axis in grid[count:]:
        axis.set_visible(False)
    for axis in grid[:count]:
        _clean(axis, grid="y")
    return figure, list(grid[:count])


def _clean(axis: "Axes", grid: str) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color("#999999")
    axis.grid(axis=grid, color=_GRID, linewidth=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=8.5, color="#999999")


def _legend(figure: "Figure", arms: Sequence[str], colours: Mapping[str, str], chance: bool) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colours[arm], linewidth=2.5, label=arm_label(arm)) for arm in arms]
    if chance:
        handles.append(Line2D([], [], color=_CHANCE, linewidth=1, linestyle=(0, (4, 3)), label="chance"))
    across = min(6, len(handles), max(1, int(figure.get_figwidth() / _LEGEND_ENTRY)))
    figure.legend(handles=handles, loc="outside upper center", ncols=across, frameon=False, fontsize=9)
