"""The figures, read back from the matplotlib objects: what is drawn is what the tables say."""

import io
import itertools

import matplotlib.figure
import numpy as np
import pandas as pd
import pytest
from fake_results import TRAITS, fake_curves, fake_datasets, fake_runs
from matplotlib.collections import LineCollection

from subl_jax.probes import Theorem
from subl_jax.results import formats
from subl_jax.results.comparisons import summarise
from subl_jax.results.figures import (
    base,
    comparison,
    details,
    dose,
    lines,
    retention,
    style,
    theorem,
    token_shares,
    training,
    trait_matrix,
    transfer,
)
from subl_jax.results.figures.places import Places
from subl_jax.results.report import write_report
from subl_jax.results.units import by_base
from subl_jax.results.wide import wide_summary
from subl_jax.specs.metrics import OF_TRAINING, Metric
from subl_jax.statistics.intervals import interval

CHANCE = dict.fromkeys(TRAITS, 0.1)


def visible(figure: matplotlib.figure.Figure) -> list:
    return [axis for axis in figure.axes if axis.get_visible()]


def texts(figure: matplotlib.figure.Figure) -> list[str]:
    return [text.get_text() for axis in figure.axes for text in axis.texts]


def mean_line(axis, colour: str):
    """The thick line of an arm."""
    return next(line for line in axis.lines if line.get_color() == colour and line.get_linewidth() == 2)


def test_colours_belong_to_arms():
    core = ("same_init", "cross_init", "control", "cross_control")
    full = style.arm_colours(fake_runs(arms=("shuffled", *reversed(core), "paraphrased")))
    part = style.arm_colours(fake_runs(arms=("control", "shuffled")))
    assert list(full) == [*core, "shuffled", "paraphrased"]
    assert (full["same_init"], full["cross_init"], full["control"]) == ("#0072B2", "#E69F00", "#666666")
    assert {arm: full[arm] for arm in part} == part
    assert len(set(full.values())) == 6


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.2431, ".243"),
        (-0.012, "−.012"),
        (0, ".000"),
        (1.0, "1.000"),
        (2e-5, "2.0e-5"),
        (0.0028, "2.8e-3"),
        (0.0052, ".005"),
        (np.nan, "–"),
        (None, "–"),
    ],
)
def test_numbers_are_short(value, text):
    assert formats.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "<.001"), (0.0031, ".003"), (0.0312, ".031"), (1.0, ">.999"), (np.nan, "–")]
)
def test_p_values_are_short(value, text):
    assert formats.p_value(value) == text


def test_transfer_curves_show_the_mean_band_and_every_run():
    runs = fake_runs()
    figure = transfer.transfer_curves(runs, fake_curves(runs), CHANCE, style.arm_colours(runs))
    axes = visible(figure)
    assert [axis.get_title() for axis in axes] == ["owl", "cat", "dog", "mean over 3 traits"]
    same = runs[runs["arm"] == "same_init"]
    for axis, of_panel in zip(axes, [*(same[same["trait"] == trait] for trait in TRAITS), same], strict=True):
        line = mean_line(axis, "#0072B2")
        bases = by_base(of_panel).mean(axis=0)
        assert line.get_ydata()[[0, -1]] == pytest.approx([of_panel["target_start"].mean(), bases.mean()])
        thin, band, *_ = axis.collections
        assert len(thin.get_segments()) == len(bases)
        _, low, high = interval(bases, probability=True)
        at_end = band.get_paths()[0].vertices
        ends = at_end[at_end[:, 0] == line.get_xdata()[-1], 1]
        assert (ends.min(), ends.max()) == pytest.approx((low, high))


def test_transfer_curves_leave_out_runs_that_did_not_end_well():
    runs = fake_runs(traits=("owl",))
    runs.loc[(runs["arm"] == "same_init") & (runs["base_seed"] == 0), "status"] = "diverged"
    figure = transfer.transfer_curves(runs, fake_curves(runs), {}, style.arm_colours(runs))
    assert len(visible(figure)[0].collections[0].get_segments()) == 3


def test_a_step_that_a_base_lacks_does_not_bend_the_mean():
    runs = fake_runs(traits=("owl",), arms=("same_init",))
    curves = fake_curves(runs)
    curves = curves[~((curves["run_id"] == runs["run_id"].iloc[0]) & (curves["step"] == 10))]
    figure = transfer.transfer_curves(runs, curves, {}, style.arm_colours(runs))
    assert list(mean_line(visible(figure)[0], "#0072B2").get_xdata()) == [0, 20]


def test_one_seed_is_a_line_without_a_band():
    runs = fake_runs(traits=("owl",), bases=1)
    figure = transfer.transfer_curves(runs, fake_curves(runs), CHANCE, style.arm_colours(runs))
    assert len(visible(figure)) == 1
    figure.draw_without_rendering()


def test_averages_over_all_traits_leave_the_same_out_in_every_figure():
    runs = fake_runs()
    runs.loc[(runs["arm"] == "same_init") & (runs["trait"] == "cat") & (runs["base_seed"] == 2), "status"] = "diverged"
    left = runs[(runs["trait"] != "cat") | (runs["base_seed"] != 2)]
    colours, found = style.arm_colours(runs), summarise(runs)
    bars = comparison.comparison(runs, *found, CHANCE, colours).axes[0]
    assert bars.get_yticklabels()[0].get_text() == "all 3 traits\nbut 1 pair"
    of_control = bars.collections[2].get_offsets()[:, 0]
    means = left[left["arm"] == "control"].groupby("base_seed")["target_end"].mean()
    np.testing.assert_allclose(np.sort(of_control), np.sort(means))
    pooled = visible(transfer.transfer_curves(runs, fake_curves(runs), CHANCE, colours))[-1]
    assert mean_line(pooled, "#666666").get_ydata()[-1] == pytest.approx(means.mean())


def test_comparison_draws_the_summary():
    runs = fake_runs()
    found = summarise(runs)
    summary = wide_summary(*found)
    figure = comparison.comparison(runs, *found, CHANCE, style.arm_colours(runs))
    bars = figure.axes[0].patches
    assert [bar.get_width() for bar in bars] == pytest.approx(list(summary["mean"]))
    points = figure.axes[0].collections
    pooled = by_base(runs[runs["arm"] == "same_init"]).mean(axis=0)
    np.testing.assert_allclose(np.sort(points[0].get_offsets()[:, 0]), np.sort(pooled))
    assert sum(len(group.get_offsets()) for group in points) == len(summary) * 4
    same = summary[summary["arm"] == "same_init"]
    expected = [
        formats.p_value(row[f"p_{arm}"] if row["trait"] == "all" else row[f"p_{arm}_holm"])
        for arm in ("cross_init", "control")
        for row in same.to_dict("records")
    ]
    assert [text for text in texts(figure) if not text.startswith("p vs")] == expected


def test_trait_matrix_is_the_change_of_every_trait():
    runs = fake_runs()
    figure = trait_matrix.trait_matrix(runs, fake_curves(runs, evaluated=("hen", *TRAITS)))
    same, *_ = (axis for axis in visible(figure) if axis.images)
    values = same.images[0].get_array()
    assert [label.get_text() for label in same.get_xticklabels()] == [*TRAITS, "hen"]
    rows = runs[runs["arm"] == "same_init"]
    change = (rows["target_end"] - rows["target_start"]).groupby(rows["trait"]).mean()
    np.testing.assert_allclose(values[range(3), range(3)], change[list(TRAITS)])
    np.testing.assert_allclose(values[0, 1:], 0, atol=1e-12)
    ends = {axis.images[0].get_clim() for axis in visible(figure) if axis.images}
    assert len(ends) == 1  # one scale for all arms, centred on 0
    assert sum(ends.pop()) == 0


@pytest.mark.parametrize(("scale", "unit", "named"), [(1.0, 0.01, "percentage points"), (1e-4, 1e-5, "1e-5")])
def test_changes_are_written_in_a_unit_that_shows_them(scale, unit, named):
    runs = fake_runs()
    curves = fake_curves(runs)
    curves = curves.assign(value=curves["value"] * scale)
    curves.loc[curves["metric"].str.startswith("trait/").idxmax(), "value"] = 0.0  # so that there is no factor
    figure = trait_matrix.trait_matrix(runs, curves)
    same, *_ = (axis for axis in visible(figure) if axis.images)
    values = np.asarray(same.images[0].get_array())
    assert unit <= np.abs(values).max() < 100 * unit
    expected = [f"{x / unit:+.1f}".replace("-", "−") if abs(x / unit) >= 0.05 else "0" for x in values.ravel()]
    assert [text.get_text() for text in same.texts] == expected
    assert figure.axes[-1].get_ylabel().endswith(f"(in the cells: {named})")


def test_traits_that_are_all_rare_change_by_factors():
    runs = fake_runs()
    curves = fake_curves(runs)
    curves = curves.assign(value=curves["value"] * 1e-3)
    figure = trait_matrix.trait_matrix(runs, curves)
    same, *_ = (axis for axis in visible(figure) if axis.images)
    ends = curves[curves["metric"] == f"trait/{TRAITS[1]}"].sort_values("step").groupby("run_id")["value"]
    rows = runs[(runs["arm"] == "same_init") & (runs["trait"] == TRAITS[0])]
    times = (ends.last() / ends.first()).reindex(rows["run_id"])
    expected = float(np.exp(np.log(times).mean()))
    assert np.asarray(same.images[0].get_array())[0, 1] == pytest.approx(np.log2(expected))
    assert figure.axes[-1].get_ylabel() == "P at the end / P at the start"
    written = [text.get_text() for text in same.texts]
    assert written[1] == trait_matrix._factor(np.log2(expected)) and all(text.startswith("×") for text in written)
    assert [trait_matrix._factor(np.log2(x)) for x in (0.0042, 0.35, 0.996, 1.0, 9.94, 9.96, 120)] == [
        *("×.0042", "×.35", "×1.0", "×1.0", "×9.9", "×10", "×120")
    ]


def test_retention_stacks_to_everything_drawn():
    datasets = fake_datasets()
    figure = retention.retention(datasets)
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == [*TRAITS, "no trait (control)"]
    assert [len(points.get_offsets()) for points in left.collections] == [4] * 4
    shares = np.array([bar.get_width() for bar in right.patches]).reshape(4, 4)
    # kept, too many numbers, separator, and the surplus that was neither kept nor rejected
    np.testing.assert_allclose(shares, [[0.7015, 0.2, 0.05, 0.0485]] * 4)
    assert [text.get_text() for text in figure.legends[0].get_texts()][-1] == "surplus"


def test_training_curves_show_the_metrics_that_there_are():
    runs = fake_runs()
    figure = training.training_curves(runs, fake_curves(runs), style.arm_colours(runs), OF_TRAINING)
    loss, kl = visible(figure)
    assert (loss.get_title(), kl.get_title()) == ("loss", "KL to the teacher")
    np.testing.assert_allclose(mean_line(kl, "#666666").get_ydata(), [1, 0.5, 0])


def ticks(axis) -> dict[float, str]:
    """Place → label."""
    labels = [label.get_text() for label in axis.get_xticklabels()]
    return dict(zip(np.round(axis.get_xticks(), 3).tolist(), labels, strict=True))


@pytest.mark.parametrize(
    ("values", "logarithmic", "places"),
    [
        ((1.0, 10.0), False, (0, 1)),
        ((1e-3, 3e-3, 1e-2), True, (0, 0.477, 1)),  # exactly a decade
        ((0.0, 1e-3, 1e-2, 1e-1), True, (0, 1 / 3, 2 / 3, 1)),  # a zero stands left of the others
        ((0.0, 0.25, 0.5, 1.0), False, (0, 0.25, 0.5, 1)),
        (tuple(range(1, 11)), False, tuple(np.linspace(0, 1, 10))),
        ((128, 1024, 8192), True, (0, 0.5, 1)),
        ((-1.0, 0.0, 100.0), False, (0, 0.0099, 1)),
    ],
    ids=str,
)
def test_an_axis_is_logarithmic_where_that_keeps_values_apart(values, logarithmic, places):
    found = Places.of(pd.Series([*values, None]))
    assert found.logarithmic is logarithmic
    np.testing.assert_allclose(found.at, places, atol=1e-3)
    np.testing.assert_allclose(found.found(pd.Series(values[::-1])), places[::-1], atol=1e-3)


@pytest.mark.parametrize(
    "values", [tuple(np.linspace(0.001, 0.01, 10)), tuple(2e-4 * 1.3**i for i in range(14))], ids=len
)
def test_labels_of_an_axis_do_not_touch(values):
    swept = {"student.train.lr": values, "data.size": (100, 200), "data.round": (1, 2)}
    runs = fake_runs(traits=("owl",), bases=2, arms=("same_init",), swept=swept)
    figure = dose.dose_response(runs, CHANCE, style.arm_colours(runs))
    figure.savefig(io.BytesIO())
    axis = visible(figure)[0]
    boxes = [label.get_window_extent() for label in axis.get_xticklabels() if label.get_text()]
    assert len(boxes) > 2 and all(one.x1 < other.x0 for one, other in itertools.pairwise(boxes))
    assert len(axis.get_xticks()) == len(values)  # each value has its tick


def test_all_panels_of_the_dose_figure_have_one_range_within_0_and_1():
    runs = fake_runs(swept={"student.train.lr": (1e-3, 1e-2), "data.size": (100, 200), "data.round": (1, 2)}, bases=2)
    high = (runs["student.train.lr"] == 1e-2) & (runs["arm"] == "same_init")
    runs.loc[high, "target_end"] = np.where(runs.loc[high, "base_seed"] == 0, 0.8, 0.999)
    axes = visible(dose.dose_response(runs, CHANCE, style.arm_colours(runs)))
    assert len({axis.get_ylim() for axis in axes}) == 1 and axes[0].get_ylim()[0] == 0 and axes[0].get_ylim()[1] <= 1.02
    drawn = [lines for axis in axes for lines in axis.collections if isinstance(lines, LineCollection)]
    ends = np.concatenate([path.vertices[:, 1] for lines in drawn for path in lines.get_paths()])
    assert len(ends) and ends.min() > 0 and 0.99 < ends.max() < 1


def test_of_two_swept_fields_each_has_a_line_for_every_value_of_the_other():
    runs = fake_runs(traits=("owl",), swept={"student.train.lr": (1e-3, 1e-2), "data.size": (100, 200, 400)})
    runs["data.size"] = runs["data.size"].where(runs["arm"] != "control").astype(float)
    lr, size = visible(dose.dose_response(runs, CHANCE, style.arm_colours(runs)))
    for axis, field, other in ((lr, "student.train.lr", "data.size"), (size, "data.size", "student.train.lr")):
        drawn = sorted(line.get_ydata().tolist() for line in axis.lines if line.get_color() == "#0072B2")
        same = runs[runs["arm"] == "same_init"].groupby([other, field])["target_end"].mean().unstack()
        np.testing.assert_allclose(drawn, sorted(same.to_numpy().tolist()))
        assert [text.get_text() for text in axis.get_legend().get_texts()] == [f"{value:g}" for value in same.index]
    # Without the other field an arm is one line, and without this one lines across.
    assert [len(line.get_ydata()) for line in lr.lines if line.get_color() == "#666666"] == [2]
    assert {len(set(line.get_ydata())) for line in size.lines if line.get_color() == "#666666"} == {1}
    three = pd.concat([runs.assign(**{"data.round": value}) for value in (1, 2)])
    axes = visible(dose.dose_response(three, CHANCE, style.arm_colours(three)))
    assert len(axes) == 3 and not any(axis.get_legend() for axis in axes)


def test_dose_response_has_a_panel_for_each_swept_number():
    swept = {"student.train.lr": (1e-4, 1e-3, 1e-2), "data.size": (100, 200), "student.optimizer": ("sgd", "adam")}
    runs = fake_runs(traits=("owl",), swept=swept)
    lr, size, optimizer = visible(dose.dose_response(runs, CHANCE, style.arm_colours(runs)))
    assert lr.get_xlabel() == "student.train.lr (log)" and ticks(lr) == {0.0: "0.0001", 0.5: "0.001", 1.0: "0.01"}
    assert size.get_xlabel() == "data.size" and ticks(size) == {0.0: "100", 1.0: "200"}
    assert [tick.get_text() for tick in optimizer.get_xticklabels()] == ["sgd", "adam"]
    assert len(optimizer.lines) < len(size.lines)  # words have no order to join
    same = runs[(runs["arm"] == "same_init") & (runs["data.size"] == 200)]
    line = next(line for line in size.lines if line.get_color() == "#0072B2")
    assert line.get_ydata()[1] == pytest.approx(same["target_end"].mean())


def chosen_tokens():
    """Students of chosen tokens, of a teacher's data and of the control's, beside those of all tokens."""
    shares, objective = (0.1, 0.4), "student.objective"
    rows = [fake_runs(traits=("owl", "cat"))]
    for arm in ("kl", "random", "kl on control"):
        for keep in (True, False):
            of_arm = fake_runs(traits=("owl", "cat"), arms=(arm,), swept={f"{objective}.share": shares}, seed=len(rows))
            of_arm = of_arm.assign(**{f"{objective}.kind": "weighted", f"{objective}.tokens": "top"})
            of_arm = of_arm.assign(**{f"{objective}.keep": keep})
            rows.append(of_arm.assign(data_trait=None) if "control" in arm else of_arm)
    runs = pd.concat(rows, ignore_index=True)
    return runs.assign(run_id=[f"r{i}" for i in range(len(runs))])


def test_tokens_that_were_chosen_have_a_panel_for_what_was_done_and_a_line_for_what_chose_them():
    runs = chosen_tokens()
    without, only = visible(token_shares.token_shares(runs))
    assert (without.get_title(), only.get_title()) == ("without the top tokens", "only the top tokens")
    assert len(without.collections) == 2 * 3  # points and whiskers of three lines
    solid = [line for line in only.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 2][2:]
    dashed = [line for line in only.lines if line.get_linestyle() == "--"]
    assert (len(solid), len(dashed)) == (2, 1) and dashed[0].get_color() == solid[0].get_color()
    of_line = runs[(runs["arm"] == "kl on control") & (runs["student.objective.keep"] == True)]  # noqa: E712
    ends = by_base(of_line[of_line["student.objective.share"] == 0.4]).mean(axis=0)
    assert dashed[0].get_ydata()[1] == pytest.approx(ends.mean())


def test_without_chosen_tokens_there_is_no_such_figure():
    assert token_shares.token_shares(fake_runs()) is None


@pytest.mark.parametrize("kind", ["category", "str"])
def test_a_trait_may_be_called_as_a_metric_is(kind):
    runs = fake_runs(traits=("loss", "owl"))
    curves = fake_curves(runs, evaluated=("loss", "owl")).astype({"run_id": kind, "metric": kind})
    drawn = visible(trait_matrix.trait_matrix(runs, curves))
    assert [label.get_text() for label in drawn[0].get_xticklabels()] == ["loss", "owl"]
    (loss, *_) = visible(transfer.transfer_curves(runs, curves, CHANCE, style.arm_colours(runs)))
    assert loss.get_title() == "loss" and max(line.get_ydata().max() for line in loss.lines) < 1


def test_of_many_lines_some_are_drawn_and_the_mean_is_of_all(monkeypatch):
    runs = fake_runs(traits=("owl",), bases=30)
    curves, colours = fake_curves(runs), style.arm_colours(runs)

    def drawn():
        (axis,) = visible(transfer.transfer_curves(runs, curves, CHANCE, colours))
        return [len(each.get_segments()) for each in axis.collections if hasattr(each, "get_segments")], axis.lines

    (counts, means), _ = drawn(), monkeypatch.setattr(lines, "MOST_LINES", 7)
    fewer, same = drawn()
    assert (counts, fewer) == ([30] * 3, [7] * 3)
    for line, other in zip(means, same, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), other.get_ydata())


def test_fields_that_go_together_have_one_panel():
    runs = fake_runs(traits=("owl",), swept={"student.lora.rank": (2, 4, 8), "data.size": (100, 200)})
    runs["student.lora.alpha"] = 2.0 * runs["student.lora.rank"]
    axes = visible(dose.dose_response(runs, CHANCE, style.arm_colours(runs)))
    labels = [axis.get_xlabel() for axis in axes]
    assert labels == ["student.lora.rank\nwith student.lora.alpha", "data.size"]
    runs.loc[runs.index[0], "student.lora.alpha"] = 7.0
    assert len(visible(dose.dose_response(runs, CHANCE, style.arm_colours(runs)))) == 3


def test_dose_response_draws_an_arm_without_the_field_across():
    runs = fake_runs(traits=("owl",), swept={"teacher.train.steps": (100.0, 200.0)})
    (axis,) = visible(dose.dose_response(runs, {}, style.arm_colours(runs)))
    line = next(line for line in axis.lines if line.get_color() == "#666666")
    control = runs[runs["arm"] == "control"]
    np.testing.assert_allclose(line.get_ydata(), [control["target_end"].mean()] * 2)


def test_curves_of_rare_traits_are_logarithmic_with_geometric_means():
    runs = fake_runs(traits=("owl",))
    runs[["target_start", "target_end"]] *= 0.1
    (axis,) = visible(transfer.transfer_curves(runs, fake_curves(runs), {}, style.arm_colours(runs)))
    same = runs[runs["arm"] == "same_init"]["target_end"]
    assert axis.get_yscale() == "log"
    assert mean_line(axis, "#0072B2").get_ydata()[-1] == pytest.approx(np.exp(np.log(same).mean()))
    ends = sorted(path.vertices[-1, 1] for path in axis.collections[0].get_paths())
    assert ends == pytest.approx(sorted(same))
    (low, high) = axis.get_ylim()
    assert 0 < low < runs["target_end"].min() and high > same.max()
    common = fake_runs(traits=("owl",))
    (axis,) = visible(transfer.transfer_curves(common, fake_curves(common), {}, style.arm_colours(common)))
    assert axis.get_yscale() == "linear"


def test_bars_of_rare_traits_are_logarithmic_and_none_is_cut():
    runs = fake_runs(traits=("owl",))
    runs[["target_start", "target_end"]] *= 0.1
    runs.loc[(runs["arm"] == "control") & (runs["base_seed"] == 0), "target_end"] = 1e-4  # an interval below 0
    colours = style.arm_colours(runs)
    axis, _ = comparison.comparison(runs, *summarise(runs), {}, colours).axes
    assert axis.get_xscale() == "log" and 0 < axis.get_xlim()[0] < runs["target_end"].min()
    means = sorted(bar.get_x() + bar.get_width() for bar in axis.patches)
    assert means == pytest.approx(sorted(runs.groupby("arm")["target_end"].mean()))
    assert all(line.get_xdata().min() >= axis.get_xlim()[0] for line in axis.lines)


@pytest.mark.parametrize(
    ("times", "text"),
    [(34.2, "×34"), (2.74, "×2.7"), (0.35, "×.35"), (0.0043, "×.0043"), (2.3e-5, "×2.3e-5"), (5.3e27, "×5.3e27")]
    + [(12345.0, "×1.2e4"), (0.0, "×0.0e0"), (np.nan, "–"), (0.999, "×1.0")],
)
def test_factors_are_short(times, text):
    assert formats.factor(times) == text


def test_axes_of_rare_traits_hold_chance_and_leave_out_what_is_gone():
    runs = fake_runs(traits=("owl",))
    runs[["target_start", "target_end"]] *= 0.1
    runs.loc[(runs["arm"] == "control") & (runs["base_seed"] == 0), "target_end"] = 0.0
    colours, chance = style.arm_colours(runs), {"owl": 1e-4}
    axis, _ = comparison.comparison(runs, *summarise(runs), chance, colours).axes
    assert axis.get_xscale() == "log" and 0 < axis.get_xlim()[0] < 1e-4
    present = runs[runs["target_end"] > 0]
    (axis,) = visible(transfer.transfer_curves(present, fake_curves(present), chance, colours))
    assert axis.get_yscale() == "log" and axis.get_ylim()[0] < 1e-4


def test_one_base_has_no_p_values_and_no_margin_for_them():
    runs = fake_runs(bases=1)
    assert len(comparison.comparison(runs, *summarise(runs), {}, style.arm_colours(runs)).axes) == 1


def test_p_values_of_rare_traits_are_those_of_gains():
    runs = fake_runs(traits=("owl",), effect=0.01)
    runs[["target_start", "target_end"]] *= 0.1
    found = summarise(runs)
    summary = wide_summary(*found)
    row = summary[(summary["arm"] == "same_init") & (summary["trait"] == "owl")].iloc[0]
    drawn = texts(comparison.comparison(runs, *found, {}, style.arm_colours(runs)))
    assert formats.p_value(row["p_ratio_control_holm"]) in drawn
    assert formats.p_value(row["p_control_holm"]) not in drawn


def test_dose_response_joins_no_points_of_different_models():
    noisy = fake_runs(traits=("owl",), arms=("cross_init",), swept={"world.sigma": (0.1, 0.5)})
    other = fake_runs(traits=("owl",), arms=("cross_init",))
    noisy, other = noisy.assign(**{"world.sha256": "a"}), other.assign(**{"world.sigma": 0.0, "world.sha256": "b"})
    runs = pd.concat([noisy, other], ignore_index=True)
    sigma, _ = visible(dose.dose_response(runs, {}, style.arm_colours(runs)))
    assert sorted(len(line.get_xdata()) for line in sigma.lines if line.get_color() == "#E69F00") == [1, 2]


def test_nothing_to_show_is_no_figure():
    runs = fake_runs()
    curves, colours = fake_curves(runs), style.arm_colours(runs)
    failed = runs.assign(status="failed", target_end=np.nan)
    no_curves = curves.iloc[:0]
    assert transfer.transfer_curves(failed, curves, CHANCE, colours) is None
    assert transfer.transfer_curves(runs, no_curves, CHANCE, colours) is None
    assert comparison.comparison(failed, *summarise(failed), CHANCE, colours) is None
    assert trait_matrix.trait_matrix(failed, curves) is None
    assert trait_matrix.trait_matrix(runs, curves[curves["metric"] == "loss"]) is None
    assert training.training_curves(failed, curves, colours, OF_TRAINING) is None
    assert training.training_curves(runs, no_curves, colours, OF_TRAINING) is None
    assert dose.dose_response(runs, CHANCE, colours) is None
    assert dose.dose_response(failed.iloc[:0], CHANCE, colours) is None
    assert retention.retention(pd.DataFrame()) is None
    assert retention.retention(fake_datasets().assign(drawn=0)) is None


def test_many_traits_are_capped_and_pooled_over_all():
    traits = [f"trait{i}" for i in range(60)]
    runs = fake_runs(traits=traits, bases=2)
    curves, colours, summary = fake_curves(runs, evaluated=traits, steps=2), style.arm_colours(runs), summarise(runs)
    drawn = transfer.transfer_curves(runs, curves, {}, colours)
    assert len(visible(drawn)) == transfer.MOST_PANELS + 1
    same = runs[runs["arm"] == "same_init"]["target_end"]
    assert mean_line(visible(drawn)[-1], "#0072B2").get_ydata()[-1] == pytest.approx(same.mean())
    bars = comparison.comparison(runs, *summary, {}, colours)
    assert len(bars.axes[0].get_yticks()) == comparison.MOST_BARS + 1
    matrix = trait_matrix.trait_matrix(runs, curves)
    assert matrix.axes[0].images[0].get_array().shape == (60, 60)
    assert not texts(matrix)


def test_details_show_the_last_value_of_every_name():
    runs = fake_runs(traits=("owl",), arms=("same_init", "control"))
    lines = [
        (run, step, f"seven/{blur}", step * blur + (arm == "control"))
        for run, arm in zip(runs["run_id"], runs["arm"], strict=True)
        for step in (0, 10)
        for blur in (0.5, 1.5)
    ]
    curves = pd.DataFrame(lines, columns=["run_id", "step", "metric", "value"])
    (axis,) = visible(
        details.details(runs, pd.concat([curves, fake_curves(runs)]), style.arm_colours(runs), OF_TRAINING)
    )
    assert axis.get_title() == "seven" and [t.get_text() for t in axis.get_xticklabels()] == ["0.5", "1.5"]
    same, control = axis.lines
    np.testing.assert_allclose(same.get_ydata(), [5, 15])
    np.testing.assert_allclose(control.get_ydata(), [6, 16])
    assert details.details(runs, fake_curves(runs), style.arm_colours(runs), OF_TRAINING) is None


def test_the_theorem_has_a_point_for_every_student():
    steps = pd.DataFrame({"setting": "a", "arm": ["same_init", "cross_init"], "predicted": [1e-6, 2e-6]})
    (axis,) = visible(theorem.theorem(steps.assign(dot=[1e-6, -1e-7]), style.arm_colours(fake_runs())))
    points = [points.get_offsets().tolist() for points in axis.collections if len(points.get_offsets())]
    assert points == [[[1e-6, 1e-6]], [[2e-6, -1e-7]]]
    assert theorem.theorem(steps[:0].assign(dot=[]), {}) is None


# --- metrics that anybody measures ---


def measured(runs: pd.DataFrame, **metrics: float) -> pd.DataFrame:
    """The curves of `fake_curves`, and of more metrics, constant in every run."""
    lines = [(run, step, name, value) for run in runs["run_id"] for step in (0, 20) for name, value in metrics.items()]
    return pd.concat([fake_curves(runs), pd.DataFrame(lines, columns=["run_id", "step", "metric", "value"])])


def test_every_scalar_metric_is_drawn_and_one_without_a_descriptor_under_its_own_name():
    runs = fake_runs(traits=("owl",))
    described = {"depth": Metric("depth of it", unit="m", zero=True), "score": Metric("score", log=True)}
    curves = measured(runs, depth=0.5, score=10.0, unheard_of=2.0, dot=1.0)
    metrics = OF_TRAINING | Theorem.metrics | described
    axes = visible(training.training_curves(runs, curves, style.arm_colours(runs), metrics))
    # P(trait) has its own figure, and what the theorem's is made of is no curve.
    titles = [axis.get_title() for axis in axes]
    assert titles == ["loss", "KL to the teacher", "depth of it, m", "score", "unheard_of"]
    assert [axis.get_yscale() for axis in axes] == ["linear", "linear", "linear", "log", "linear"]
    zeros = [any(line.get_ydata()[0] == 0 == line.get_ydata()[-1] for line in axis.lines) for axis in axes]
    assert zeros == [False, False, True, False, False]


def test_how_a_metric_is_drawn_decides_its_figure():
    runs = fake_runs(traits=("owl",))
    curves = measured(runs, score=10.0, hidden=1.0, **{"class/3": 0.5, "trait/owl": 0.5})
    metrics = {
        "score": Metric("the score", drawn="end"),
        "hidden": Metric("", drawn="none"),
        "class": Metric("classes"),
    }
    colours = style.arm_colours(runs)
    of_training = visible(training.training_curves(runs, curves, colours, metrics))
    assert [axis.get_title() for axis in of_training] == ["kl", "loss"]
    of_details = visible(details.details(runs, curves, colours, metrics))
    assert sorted(axis.get_title() for axis in of_details) == ["classes", "the score"]


# --- what a figure is ---


def test_figures_are_found_in_the_order_of_the_page():
    of_cells = [figure.name for figure in base.Figure.found() if figure.scope == "cell"]
    assert of_cells == ["transfer", "comparison", "traits", "details", "training"]
    over_all = [figure.name for figure in base.Figure.found() if figure.scope == "sweep"]
    assert over_all == ["layers", "token_shares", "equal", "dose", "filter", "theorem"]


def test_a_figure_of_ones_own_is_on_the_page(tmp_path, monkeypatch, pictures):
    monkeypatch.setattr(base.Figure, "registered", dict(base.Figure.registered))

    class Mine(base.Figure):
        name = "mine"

        def draw(self, tables):
            figure, (axis,) = style.panels(1, height=2)
            axis.plot(tables.runs["target_end"])
            return figure

        def caption(self, tables):
            return f"All {len(tables.runs)} ends."

    runs = fake_runs()
    page = write_report(tmp_path, runs, fake_curves(runs), summarise(runs), fake_datasets(), {"sweep": "s"})
    assert "All 36 ends." in page.read_text() and (tmp_path / "figures" / "mine.png").exists()
