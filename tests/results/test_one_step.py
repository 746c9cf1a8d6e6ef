"""The theorem's table: which values of a curve it takes, and what it counts."""

import numpy as np
import pandas as pd
from fake_results import fake_curves, fake_runs

from subl_jax.results import one_step


def results():
    runs = fake_runs(traits=("owl",), bases=2, arms=("same_init", "cross_init"))
    runs["teacher.train.lr"], runs["student.targets"] = 0.01, "soft"
    lines = []
    for i, run in enumerate(runs["run_id"]):
        values = {"dot": (0.0, 2.0 - i), "predicted": (1.0, 9.0), "trait_loss": (5.0, 5.5 - 0.4 * i)}
        for metric, (before, after) in values.items():
            lines += [(run, 0, metric, before), (run, 1, metric, after)]
        lines.append((run, 1, "cosine", 0.1 * i))
    return runs, pd.DataFrame(lines, columns=["run_id", "step", "metric", "value"])


def test_predictions_are_read_before_the_step_and_moves_after_it():
    runs, curves = results()
    table = one_step.table(runs, curves)
    assert tuple(table.columns) == one_step.COLUMNS
    assert table["dot"].tolist() == [2, 1, 0, -1] and table["predicted"].tolist() == [1] * 4
    np.testing.assert_allclose(table["loss_change"], [0.5, 0.1, -0.3, -0.7])
    assert set(table["setting"]) == {"toy_language · soft"} and set(table["epsilon"]) == {0.01}


def test_runs_that_failed_and_runs_without_the_theorem_are_left_out():
    runs, curves = results()
    runs.loc[0, "status"] = "diverged"
    assert len(one_step.table(runs, curves)) == 3
    assert one_step.table(runs, fake_curves(runs)).empty


def test_a_change_within_rounding_is_none():
    runs, curves = results()
    curves.loc[(curves["metric"] == "trait_loss") & (curves["step"] == 1), "value"] = 5.0 + 1e-6
    table = one_step.table(runs, curves)
    assert table["loss_change"].isna().all() and one_step.summary(table)["lowered"].isna().all()


def test_the_summary_counts_who_went_forward():
    summary = one_step.summary(one_step.table(*results())).set_index("arm")
    same, cross = summary.loc["same_init"], summary.loc["cross_init"]
    assert (same["students"], same["forward"], same["lowered"], same["ratio"]) == (2, 0.5, 0.5, 1.0)
    assert (cross["forward"], cross["lowered"], cross["ratio"]) == (0.5, 0.5, 0.0)
