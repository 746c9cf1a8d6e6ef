"""The off-diagonal control, against loops over the tables."""

import numpy as np
import pandas as pd
import pytest
from fake_results import fake_curves, fake_runs
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from subl_jax.results import cells, comparisons
from subl_jax.results.specificity import others
from subl_jax.results.wide import wide_summary
from subl_jax.statistics.intervals import interval
from subl_jax.statistics.tests import paired_p

TRAITS = ("owl", "cat", "dog")


def others_end(runs: pd.DataFrame, curves: pd.DataFrame) -> np.ndarray:
    return others(runs, curves)["others_end"].to_numpy()


def tables(seed: int = 0, **fields) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Runs, and curves in which every student ends at another P of every trait."""
    runs = fake_runs(seed=seed, **fields)
    curves = fake_curves(runs)
    values = curves["value"] + np.random.default_rng(seed).uniform(0, 0.1, len(curves))
    return runs, curves.assign(value=values)


def end(curves: pd.DataFrame, run_id: str, trait: str) -> float:
    rows = curves[(curves["run_id"] == run_id) & (curves["metric"] == f"trait/{trait}")]
    return rows.sort_values("step")["value"].iloc[-1]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), bases=st.integers(1, 3), swept=st.booleans(), gone=st.sets(st.integers(0, 11)))
def test_others_are_the_students_that_differ_in_their_trait_only(seed, bases, swept, gone):
    runs, curves = tables(seed, bases=bases, swept={"student.train.lr": (1e-3, 1e-2)} if swept else None)
    # Also of unequal numbers of students: a teacher with more of them weighs no more.
    runs = runs.drop(index=[i for i in gone if i < len(runs)]).sample(frac=1, random_state=seed)
    # A rate that no trait of an arm has two values of is no setting, and its runs are alike.
    assume(not swept or "student.train.lr" in cells.swept_columns(runs))
    found = others_end(runs, curves)
    for row, value in zip(runs.to_dict("records"), found, strict=True):
        same = (
            runs[["arm", "base_seed", "student.train.lr"]] == [row["arm"], row["base_seed"], row["student.train.lr"]]
        ).all(axis=1)
        beside = runs[same & (runs["trait"] != row["trait"]) & (row["arm"] != "control")]
        ends = [[end(curves, run, row["trait"]) for run in rows["run_id"]] for _, rows in beside.groupby("trait")]
        expected = np.mean([np.mean(values) for values in ends]) if ends else np.nan
        assert value == pytest.approx(expected, nan_ok=True)


def test_the_gain_of_others_is_a_mean_of_logarithms():
    runs, curves = tables(bases=1, arms=("same_init",))
    gains = others(runs, curves)["others_gain"]
    of_owl = curves[curves["metric"] == "trait/owl"].pivot_table("value", "run_id", "step", observed=True)
    logs = np.log(of_owl.iloc[:, -1] / of_owl.iloc[:, 0])
    assert gains[0] == pytest.approx((logs["r0001"] + logs["r0002"]) / 2)
    # Of a probability of 0 there is none; the others count.
    gone = curves["value"].where((curves["run_id"] != "r0001") | (curves["step"] > 0), 0.0)
    assert others(runs, curves.assign(value=gone))["others_gain"][0] == pytest.approx(logs["r0002"])


def test_each_teacher_weighs_alike_however_many_students_it_has():
    runs, curves = tables(traits=TRAITS, bases=1, arms=("same_init",))
    more = runs[runs["trait"] == "cat"].assign(run_id="more", seed=1)
    ends = {"r0000": 0.5, "r0001": 0.2, "r0002": 0.4, "more": 0.8}
    curves = pd.DataFrame([(run, 9, "trait/owl", value) for run, value in ends.items()], columns=list(curves.columns))
    found = others_end(pd.concat([runs, more], ignore_index=True), curves)
    assert found[0] == pytest.approx(((0.2 + 0.8) / 2 + 0.4) / 2)


def test_a_control_has_no_others_and_is_none():
    runs, curves = tables(bases=1, arms=("same_init", "control"))
    found = others_end(runs, curves)
    assert np.isnan(found[runs["arm"] == "control"]).all() and np.isfinite(found[runs["arm"] == "same_init"]).all()
    # Nor is one beside students of teachers, in an arm of one's own.
    mixed = others_end(runs.assign(arm="mine"), curves)
    np.testing.assert_array_equal(mixed, found)


def test_rows_for_another_trait_than_the_datas_have_no_others():
    """As in an arm that shows the students of each teacher for the next one's trait."""
    runs, curves = tables(bases=1, arms=("same_init",))
    shown = runs.assign(arm="off_diagonal", trait=np.roll(runs["trait"], 1), run_id=[f"o{i}" for i in range(3)])
    copies = curves.assign(run_id=curves["run_id"].astype(str).str.replace("r000", "o"))
    both = pd.concat([runs, shown], ignore_index=True), pd.concat([curves, copies], ignore_index=True)
    found = others_end(*both)
    assert found[:3] == pytest.approx(others_end(runs, curves)) and np.isnan(found[3:]).all()


def test_runs_that_did_not_end_well_are_no_others():
    runs, curves = tables(bases=1, arms=("same_init",))
    runs.loc[runs["trait"] == "cat", "status"] = "diverged"
    found = others_end(runs, curves)
    assert found[0] == end(curves, "r0002", "owl") and np.isnan(found[1])


def test_the_last_point_counts_and_what_was_not_measured_does_not():
    runs, curves = tables(bases=1, arms=("same_init",))
    assert others_end(runs, curves.iloc[::-1]) == pytest.approx(others_end(runs, curves))
    assert np.isnan(others_end(runs, curves[curves["metric"] == "loss"])).all()
    assert others_end(runs.iloc[:0], curves).shape == (0,)
    one, own = tables(traits=("owl",), bases=2)
    assert np.isnan(others_end(one, own)).all()


def test_the_summary_compares_with_them():
    runs, curves = tables()
    runs = runs.join(others(runs, curves))
    summary = wide_summary(*comparisons.summarise(runs))
    for trait in (*TRAITS, "all"):
        rows = runs[(runs["arm"] == "same_init") & ((runs["trait"] == trait) | (trait == "all"))]
        difference = (rows["target_end"] - rows["others_end"]).groupby(rows["base_seed"]).mean()
        line = summary[(summary["arm"] == "same_init") & (summary["trait"] == trait)].iloc[0]
        ends = [line[f"diff_others{which}"] for which in ("", "_low", "_high")]
        assert ends == pytest.approx(list(interval(difference)))
        assert line["others"] == pytest.approx(rows.groupby("base_seed")["others_end"].mean().mean())
        assert line["pairs_others"] == 4
        gains = (
            (np.log(rows["target_end"] / rows["target_start"]) - rows["others_gain"]).groupby(rows["base_seed"]).mean()
        )
        ratios = [line[f"ratio_others{which}"] for which in ("", "_low", "_high")]
        assert ratios == pytest.approx(list(np.exp(interval(gains))))
        assert line["p_ratio_others"] == pytest.approx(paired_p(gains))
    without = wide_summary(*comparisons.summarise(runs.drop(columns=["others_end", "others_gain"])))
    assert without[["others", "diff_others", "ratio_others"]].isna().to_numpy().all()
