"""The summary and its comparisons, against scipy, brute force and hand-computed values.

Most tests look at both tables beside each other, in the wide form.
"""

import pathlib
import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from fake_results import fake_runs
from hypothesis import given, settings
from hypothesis import strategies as st

from subl_jax.errors import InputError
from subl_jax.results import comparisons
from subl_jax.results.cells import Cells, ordered_arms
from subl_jax.results.comparisons import are_rare, in_cell
from subl_jax.results.units import by_base
from subl_jax.results.wide import from_wide, wide_summary
from subl_jax.statistics.intervals import interval
from subl_jax.statistics.tests import holm

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "workdir"


def summarise(runs: pd.DataFrame, **options) -> pd.DataFrame:
    return wide_summary(*comparisons.summarise(runs, **options))


def line(summary: pd.DataFrame, arm: str, trait: str, **fields) -> pd.Series:
    rows = summary[(summary["arm"] == arm) & (summary["trait"] == trait)]
    for name, value in fields.items():
        rows = rows[rows[name.replace("__", ".")] == value]
    assert len(rows) == 1
    return rows.iloc[0]


def test_unknown_method_is_an_input_error():
    with pytest.raises(InputError, match="must be one of t, bca"):
        summarise(fake_runs(), method="wald")


# --- the table ---


def test_summary_by_hand():
    runs = fake_runs(traits=("owl",), bases=3)
    runs = runs.sort_values(["arm", "base_seed"], ignore_index=True)  # control, cross_init, same_init
    runs["target_end"] = [0.1, 0.1, 0.1, 0.1, 0.2, 0.15, 0.3, 0.5, 0.4]
    row = line(summarise(runs), "same_init", "owl")
    assert row["mean"] == pytest.approx(0.4)
    assert row["n_runs"] == row["n"] == row["pairs_cross_init"] == 3
    assert row["diff_cross_init"] == pytest.approx(0.25)
    # Differences .2, .3, .25: sd .05.
    assert row["diff_cross_init_low"] == pytest.approx(0.25 - 4.302653 * 0.05 / 3**0.5, abs=1e-6)
    expected = scipy.stats.ttest_rel([0.3, 0.5, 0.4], [0.1, 0.2, 0.15]).pvalue
    assert row["p_cross_init"] == row["p_cross_init_holm"] == pytest.approx(expected)
    assert row["diff_control"] == pytest.approx(0.3)
    assert np.isnan(row["diff_same_init"])
    cross = line(summarise(runs), "cross_init", "owl")
    assert np.isnan(cross[["diff_cross_init", "diff_control", "p_control"]].astype(float)).all()


def test_holm_is_over_the_traits_of_a_cell():
    runs = fake_runs(swept={"student.train.lr": (1e-3, 1e-2)}, effect=0.02)
    summary = summarise(runs)
    for lr in (1e-3, 1e-2):
        rows = summary[(summary["arm"] == "same_init") & (summary["student.train.lr"] == lr)]
        rows = rows.set_index("trait")
        np.testing.assert_allclose(rows["p_control_holm"].drop("all"), holm(rows["p_control"].drop("all")))
        assert np.isnan(rows.loc["all", "p_control_holm"])
        assert np.isfinite(rows.loc["all", "p_control"])


def test_pooled_row_averages_traits_within_a_base_first():
    runs = fake_runs(bases=5)
    summary = summarise(runs)
    per_base = runs[runs["arm"] == "same_init"].groupby("base_seed")["target_end"].mean()
    control = runs[runs["arm"] == "control"].groupby("base_seed")["target_end"].mean()
    row = line(summary, "same_init", "all")
    assert (row["mean"], row["ci_low"], row["ci_high"]) == pytest.approx(interval(per_base, probability=True))
    assert row["n"] == 5
    assert row["p_control"] == pytest.approx(scipy.stats.ttest_rel(per_base, control).pvalue)


def test_the_pooled_row_is_over_the_same_traits_and_bases_in_every_arm():
    """A failed dataset takes the two arms that learn from it; the control of that trait and base is there."""
    runs = fake_runs(bases=3, effect=0.0)
    runs["target_end"] = runs["trait"].map({"owl": 0.1, "cat": 0.1, "dog": 0.9}) + 0.01 * runs["base_seed"]
    lost = runs["arm"].isin(("same_init", "cross_init")) & (runs["trait"] == "dog") & (runs["base_seed"] == 1)
    runs.loc[lost, "status"] = "failed"
    summary = summarise(runs)
    means = [line(summary, arm, "all")["mean"] for arm in ("same_init", "cross_init", "control")]
    # Without dog, base 1 is low in all of them: (.367 + .11 + .387) / 3.
    assert means == pytest.approx([np.mean([1.1 / 3, 0.11, 1.1 / 3 + 0.02])] * 3)
    assert set(summary.loc[summary["trait"] == "all", "left_out"]) == {1}
    assert set(summary.loc[summary["trait"] != "all", "left_out"]) == {0}
    assert line(summary, "control", "dog")["n"] == 3  # a trait by itself keeps what it has
    assert line(summary, "same_init", "all")["diff_control"] == pytest.approx(0.0, abs=1e-12)


def test_an_arm_that_ended_well_nowhere_takes_nothing_from_the_others():
    runs = fake_runs(bases=3)
    whole = line(summarise(runs), "same_init", "all")
    runs.loc[runs["arm"] == "cross_init", "status"] = "diverged"
    row = line(summarise(runs), "same_init", "all")
    assert (row["mean"], row["left_out"]) == (whole["mean"], 0)


def test_pooled_difference_uses_only_what_both_arms_have():
    runs = fake_runs(bases=3, effect=0.0)
    runs["target_end"] = runs["trait"].map({"owl": 0.1, "cat": 0.1, "dog": 0.9}) + 0.01 * runs["base_seed"]
    lost = (runs["arm"] == "control") & (runs["trait"] == "dog") & (runs["base_seed"] == 1)
    runs.loc[lost, "status"] = "diverged"
    row = line(summarise(runs), "same_init", "all")
    # Without restriction the control of base 1 would lack its high trait and the difference would be .27.
    assert row["diff_control"] == pytest.approx(0.0, abs=1e-12)
    assert row["p_control"] == 1.0


@given(st.integers(1, 4), st.integers(0, 100))
@settings(deadline=None, max_examples=6)
def test_more_runs_of_a_base_do_not_narrow_the_interval(copies, seed):
    runs = fake_runs(traits=("owl",), seed=seed)
    several = pd.concat([runs.assign(seed=copy, run_id=runs["run_id"] + f"-{copy}") for copy in range(copies)])
    once, often = line(summarise(runs), "same_init", "owl"), line(summarise(several), "same_init", "owl")
    for name in ("mean", "ci_low", "ci_high", "diff_control", "diff_control_low", "p_control", "n"):
        assert often[name] == pytest.approx(once[name], rel=1e-6)
    assert often["n_runs"] == copies * once["n_runs"]


@given(st.randoms(use_true_random=False), st.permutations(range(4)))
@settings(deadline=None, max_examples=4)
def test_neither_row_order_nor_base_names_matter(random, names):
    runs = fake_runs()
    order = list(runs.index)
    random.shuffle(order)
    renamed = runs.loc[order].assign(base_seed=lambda rows: rows["base_seed"].map(dict(enumerate(names))))
    keys = ["trait", "arm"]
    first, second = (summarise(table).sort_values(keys, ignore_index=True) for table in (runs, renamed))
    pd.testing.assert_frame_equal(first, second, rtol=1e-6, atol=1e-12)


def test_swapping_the_arms_flips_the_difference():
    runs = fake_runs()
    swap = {"same_init": "cross_init", "cross_init": "same_init", "control": "control"}
    row, flipped = (
        line(summarise(table), "same_init", "cat") for table in (runs, runs.assign(arm=runs["arm"].map(swap)))
    )
    assert flipped["diff_cross_init"] == pytest.approx(-row["diff_cross_init"])
    assert flipped["diff_cross_init_low"] == pytest.approx(-row["diff_cross_init_high"])
    assert flipped["p_cross_init"] == pytest.approx(row["p_cross_init"])


@pytest.mark.slow
def test_interval_covers_the_truth_as_often_as_it_says_with_correlated_runs():
    """500 sweeps of 5 bases × 8 students: bases vary much, students of a base little."""
    rng = np.random.default_rng(0)
    template = fake_runs(traits=("owl",), bases=5, arms=("same_init",))
    covered, trials = 0, 500
    for _ in range(trials):
        base_effect = rng.normal(0.4, 0.1, 5)
        values = base_effect + rng.normal(0, 0.01, (8, 5))
        runs = pd.concat([template.assign(target_end=row) for row in values], ignore_index=True)
        _, low, high = interval(by_base(runs).loc["owl"])
        covered += low <= 0.4 <= high
    assert scipy.stats.binomtest(covered, trials, 0.95).pvalue > 0.01


def test_runs_that_did_not_end_well_are_counted_and_left_out():
    runs = fake_runs(traits=("owl",))
    same = runs.index[runs["arm"] == "same_init"]
    runs.loc[same[0], ["status", "target_end"]] = ["diverged", np.nan]
    runs.loc[same[1], ["status", "target_end"]] = ["failed", 55.0]
    row = line(summarise(runs), "same_init", "owl")
    assert (row["n_runs"], row["n"], row["n_diverged"], row["n_failed"]) == (4, 2, 1, 1)
    assert row["mean"] == pytest.approx(runs.loc[same[2:], "target_end"].mean())
    assert row["pairs_control"] == 2


def test_arms_pair_on_the_bases_that_both_have():
    runs = fake_runs(traits=("owl",), bases=6)
    runs = runs[(runs["arm"] != "control") | (runs["base_seed"] >= 2)]
    row = line(summarise(runs), "same_init", "owl")
    both = runs[runs["base_seed"] >= 2].pivot(index="base_seed", columns="arm", values="target_end")
    assert (row["pairs_control"], row["pairs_cross_init"]) == (4, 6)
    assert row["diff_control"] == pytest.approx((both["same_init"] - both["control"]).mean())


@pytest.mark.parametrize(
    "runs",
    [
        fake_runs(bases=1),
        fake_runs(arms=("same_init",)),
        fake_runs(arms=("control",)),
        fake_runs().assign(status="failed", target_end=np.nan),
        fake_runs().iloc[:0],
        fake_runs().assign(trait=None),
    ],
    ids=["one base", "one arm", "control only", "all failed", "no runs", "no trait"],
)
@pytest.mark.parametrize("method", ["t", "bca"])
def test_what_is_missing_is_nan_and_says_nothing(runs, method):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary = summarise(runs, method=method)
    assert summary[["diff_cross_init_low", "p_cross_init", "p_control"]].isna().all(axis=None)
    assert {"mean", "ci_low", "diff_control", "p_control_holm"} <= set(summary.columns)


def test_imported_data_replicates_over_the_students_base():
    runs = fake_runs(traits=("owl",), arms=("imported",)).assign(base_seed=np.nan)
    assert line(summarise(runs), "imported", "owl")["n"] == 4


def test_a_table_without_the_columns_is_an_input_error():
    with pytest.raises(InputError, match="lacks the columns status"):
        summarise(fake_runs().drop(columns="status"))


def test_summary_survives_a_file(tmp_path):
    summary = summarise(fake_runs(swept={"student.layers": ((0, 1), (2,))}))
    summary.to_parquet(tmp_path / "summary.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "summary.parquet"), summary)


# --- swept fields and cells ---


def test_a_control_without_a_teacher_belongs_to_every_teacher():
    runs = fake_runs(traits=("owl",), swept={"teacher.train.steps": (100.0, 200.0)})
    runs = runs[(runs["arm"] != "control") | ~runs.duplicated(["arm", "base_seed"])]  # one control for both
    cells = Cells.of(runs)
    assert [cell["teacher.train.steps"] for cell in cells.cells] == [100.0, 200.0]
    for cell in cells.cells:
        assert cells.select(runs, cell)["arm"].value_counts().to_dict() == dict.fromkeys(ordered_arms(runs), 4)
    summary = summarise(runs)
    assert (summary["arm"] == "control").sum() == 2  # "owl" and "all", once: its own rows claim no teacher
    for steps in (100.0, 200.0):
        row = line(summary, "same_init", "owl", teacher__train__steps=steps)
        own = runs[(runs["arm"] == "same_init") & (runs["teacher.train.steps"] == steps)]
        control = runs[runs["arm"] == "control"]
        assert row["diff_control"] == pytest.approx(own["target_end"].mean() - control["target_end"].mean())


def test_an_arm_is_never_compared_across_settings_that_it_has():
    runs = fake_runs(traits=("owl",), swept={"student.train.lr": (1e-3, 1e-2)})
    runs = runs[(runs["arm"] != "control") | (runs["student.train.lr"] == 1e-3)]
    summary = summarise(runs)
    assert np.isfinite(line(summary, "same_init", "owl", student__train__lr=1e-3)["p_control"])
    assert np.isnan(line(summary, "same_init", "owl", student__train__lr=1e-2)["p_control"])


def test_every_strength_of_a_defence_is_compared_with_the_undefended_arms():
    core = fake_runs(traits=("owl",)).assign(**{"data.mix": 0.0})
    defended = [
        fake_runs(traits=("owl",), arms=("mix",), seed=i).assign(**{"data.mix": mix})
        for i, mix in enumerate((0.1, 0.5))
    ]
    runs = pd.concat([core, *defended], ignore_index=True)
    summary = summarise(runs)
    row = line(summary, "mix", "owl", data__mix=0.5)
    same, mixed = core[core["arm"] == "same_init"]["target_end"], defended[1]["target_end"]
    assert row["diff_same_init"] == pytest.approx(mixed.mean() - same.mean())
    assert row["p_same_init"] == pytest.approx(scipy.stats.ttest_rel(mixed, same).pvalue)
    assert np.isnan(row["diff_cross_init"])
    assert [cell["data.mix"] for cell in Cells.of(runs).cells] == [0.1, 0.5]


def test_another_start_is_compared_with_its_own_control():
    runs = fake_runs(traits=("owl",), arms=("same_init", "cross_init", "control", "cross_control"))
    ends = {arm: rows["target_end"].to_numpy() for arm, rows in runs.groupby("arm")}
    row = line(summarise(runs), "cross_init", "owl")
    difference = ends["cross_init"] - ends["cross_control"]
    assert row["diff_cross_control"] == pytest.approx(difference.mean())
    assert row["p_cross_control"] == pytest.approx(scipy.stats.ttest_1samp(difference, 0).pvalue)
    # What same_init says of it already is not said twice.
    assert np.isnan(row["diff_same_init"])
    assert np.isnan(
        line(summarise(runs), "cross_control", "owl")[["diff_same_init", "diff_control"]].astype(float)
    ).all()


def test_every_amount_of_noise_in_the_start_is_compared_with_the_same_initialisation():
    of_one_start = fake_runs(traits=("owl",), arms=("same_init", "control")).assign(**{"world.sigma": 0.0})
    noisy = [
        fake_runs(traits=("owl",), arms=("cross_init", "cross_control"), seed=i).assign(**{"world.sigma": sigma})
        for i, sigma in enumerate((0.1, 0.5))
    ]
    runs = pd.concat([of_one_start, *noisy], ignore_index=True)
    summary = summarise(runs)
    same = of_one_start[of_one_start["arm"] == "same_init"]["target_end"].to_numpy()
    for sigma, rows in zip((0.1, 0.5), noisy, strict=True):
        cross, control = (rows[rows["arm"] == arm]["target_end"].to_numpy() for arm in ("cross_init", "cross_control"))
        row = line(summary, "cross_init", "owl", world__sigma=sigma)
        assert row["diff_same_init"] == pytest.approx((cross - same).mean())
        assert row["diff_cross_control"] == pytest.approx((cross - control).mean())
    assert np.isfinite(line(summary, "same_init", "owl")["diff_control"])
    cells = Cells.of(runs)
    assert [cell["world.sigma"] for cell in cells.cells] == [0.1, 0.5]
    for cell in cells.cells:
        assert cells.select(runs, cell)["arm"].value_counts().to_dict() == dict.fromkeys(ordered_arms(runs), 4)


def test_same_init_is_compared_with_the_other_start_of_the_cell():
    """Also where one version of the other start has the value that same_init has."""
    one_start = fake_runs(traits=("owl",), arms=("same_init", "control")).assign(**{"start.train.steps": 600})
    others = [
        fake_runs(traits=("owl",), arms=("cross_init",), seed=i).assign(**{"start.train.steps": steps})
        for i, steps in enumerate((300, 600))
    ]
    runs = pd.concat([one_start, *others], ignore_index=True)
    found, cells = comparisons.summarise(runs), Cells.of(runs)
    same = one_start[one_start["arm"] == "same_init"]["target_end"].to_numpy()
    assert [cell["start.train.steps"] for cell in cells.cells] == [300, 600]
    for cell, rows in zip(cells.cells, others, strict=True):
        of_cell = in_cell(cells, found, cell)
        lines = wide_summary(*of_cell)
        row = line(lines, "same_init", "owl")
        difference = same - rows["target_end"].to_numpy()
        ends = interval(difference)
        assert [row[f"diff_cross_init{end}"] for end in ("", "_low", "_high")] == pytest.approx(list(ends))
        assert row["p_cross_init"] == pytest.approx(scipy.stats.ttest_1samp(difference, 0).pvalue)
        assert row["pairs_cross_init"] == 4
        assert not (of_cell.comparisons["reference"] == "same_init").any()
        gains = [
            np.log(x["target_end"] / x["target_start"]).to_numpy()
            for x in (one_start[one_start["arm"] == "same_init"], rows)
        ]
        ratios = np.exp(interval(gains[0] - gains[1]))
        assert [row[f"ratio_cross_init{end}"] for end in ("", "_low", "_high")] == pytest.approx(list(ratios))
    # Without the other start in a cell there is nothing to compare with.
    left = comparisons.Summarised(*(table[table["start.train.steps"] == 600] for table in found))
    alone = in_cell(cells, left, cells.cells[0])
    assert np.isnan(line(wide_summary(*alone), "same_init", "owl")["diff_cross_init"])


def test_ratios_are_of_gains_and_geometric():
    runs = fake_runs(traits=("owl", "cat"))
    row, pooled = (line(summarise(runs), "same_init", trait) for trait in ("owl", "all"))
    logs = np.log(runs["target_end"] / runs["target_start"])
    gains = {arm: logs[(runs["arm"] == arm) & (runs["trait"] == "owl")].to_numpy() for arm in ("same_init", "control")}
    difference = gains["same_init"] - gains["control"]
    ends = [row[f"ratio_control{end}"] for end in ("", "_low", "_high")]
    assert ends == pytest.approx(list(np.exp(interval(difference))))
    assert row["p_ratio_control"] == pytest.approx(scipy.stats.ttest_1samp(difference, 0).pvalue)
    per_base = [logs[runs["arm"] == arm].groupby(runs["base_seed"]).mean() for arm in ("same_init", "control")]
    assert pooled["ratio_control"] == pytest.approx(np.exp((per_base[0] - per_base[1]).mean()))
    own = summarise(runs)
    of_traits = own[(own["arm"] == "same_init") & (own["trait"] != "all")]
    assert of_traits["p_ratio_control_holm"].tolist() == pytest.approx(holm(of_traits["p_ratio_control"].tolist()))


def test_a_probability_of_zero_has_no_gain_and_its_base_is_left_out():
    runs = fake_runs(traits=("owl",))
    one = (runs["arm"] == "same_init") & (runs["base_seed"] == 0)
    zero = line(summarise(runs.assign(target_end=runs["target_end"].where(~one, 0.0))), "same_init", "owl")
    left = line(summarise(runs[~one]), "same_init", "owl")
    assert zero["ratio_control"] == pytest.approx(left["ratio_control"]) and np.isfinite(zero["diff_control"])
    assert (zero["pairs_control"], zero["pairs_ratio_control"]) == (4, 3)


@pytest.mark.parametrize(
    ("starts", "ends", "rare"),
    [
        ([0.01, 0.04], [0.01, 0.9], True),
        ([0.01, 0.06], [0.01, 0.01], False),
        ([0.01, 0.01], [0.0, 0.01], False),
        ([0.01, 0.01], [np.nan, 0.01], True),
    ],
)
def test_traits_are_rare_where_all_start_so_and_none_is_gone(starts, ends, rare):
    summary = pd.DataFrame({"target_start": starts, "mean": ends})
    kinds = pd.DataFrame({"kind": ["difference", "ratio"]})
    assert are_rare(summary, kinds) == rare
    assert not are_rare(summary.iloc[:0], kinds) and not are_rare(pd.DataFrame(), pd.DataFrame())
    assert not are_rare(summary, kinds.iloc[:1])  # as of an earlier version


# --- the tables ---


def test_the_wide_table_is_what_it_was():
    """The golden workdir was computed before comparisons had a table of their own, and means intervals in [0, 1]."""
    before, runs = (pd.read_parquet(GOLDEN / f"{name}.parquet") for name in ("summary", "runs"))
    found, since = comparisons.summarise(runs), ["left_out", "ci_low", "ci_high"]
    pd.testing.assert_frame_equal(wide_summary(*found).drop(columns=since), before.drop(columns=since[1:]))
    summary, compared = from_wide(before)
    pd.testing.assert_frame_equal(found.summary.drop(columns=since), summary.drop(columns=since[1:]))
    pd.testing.assert_frame_equal(found.comparisons, compared)


@pytest.mark.parametrize(
    "runs",
    [
        fake_runs(),
        fake_runs(bases=1),
        fake_runs(arms=("control",)),
        fake_runs(arms=("same_init", "cross_init", "control", "cross_control", "mix")),
        fake_runs(swept={"student.train.lr": (1e-3, 1e-2)}).assign(others_end=0.1, others_gain=0.2),
    ],
    ids=["plain", "one base", "control only", "a defence", "swept"],
)
def test_wide_and_long_say_the_same(runs):
    found = comparisons.summarise(runs)
    wide = wide_summary(*found)
    for table, again in zip(found, from_wide(wide), strict=True):
        pd.testing.assert_frame_equal(table, again, check_dtype=len(table) > 0)
    pd.testing.assert_frame_equal(wide_summary(*from_wide(wide)), wide)


def test_a_comparison_is_a_row_and_the_summary_is_narrow():
    runs = fake_runs(swept={"student.train.lr": (1e-3, 1e-2)})
    found = comparisons.summarise(runs)
    assert len(found.summary.columns) == 16 + 1
    rows = found.comparisons
    # same_init has two references; two settings, three traits and all of them, two kinds.
    assert len(rows) == 2 * 2 * 4 * 2 and (rows["arm"] == "same_init").all() and (rows["pairs"] == 4).all()
    one = rows[(rows["reference"] == "control") & (rows["kind"] == "difference") & (rows["trait"] == "owl")].iloc[0]
    line = found.summary[(found.summary["arm"] == "same_init") & (found.summary["trait"] == "owl")].iloc[0]
    assert comparisons.Lookup(rows).find(line, "control", rare=False)[:3] == tuple(one[["estimate", "low", "high"]])
    assert comparisons.Lookup(rows).find(line, "others", rare=False).pairs == 0
