"""Values at an equal level of another curve: known ones, interpolated by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import logit

from subl_jax.results import at_equal
from subl_jax.results.figures import equal, style


def curves(**runs):
    """Runs as name → (points of kl, points of target), ten steps apart."""
    lines = [
        (run, 10 * step, metric, value)
        for run, both in runs.items()
        for metric, points in zip(("kl", "target"), both, strict=True)
        for step, value in enumerate(points)
    ]
    table = pd.DataFrame(lines, columns=["run_id", "step", "metric", "value"])
    return table.astype({"run_id": "category", "metric": "category"})


FALLING = ([8.0, 4.0, 2.0, 1.0], [0.1, 0.2, 0.4, 0.8])


@pytest.mark.parametrize(
    ("level", "log", "value"),
    [
        (3.0, False, 0.3),
        (4.0, False, 0.2),
        (8.0, False, 0.1),
        (1.0, False, 0.8),
        (2**1.5, True, 0.3),
        (1.5, False, 0.6),
        (0.5, False, np.nan),
        (9.0, True, np.nan),
    ],
)
def test_a_known_curve_at_a_level(level, log, value):
    assert at_equal.at_level(curves(a=FALLING), "kl", level, log=log)["a"] == pytest.approx(value, nan_ok=True)


def test_the_first_crossing_counts_also_upwards_and_back():
    both = curves(up=([1.0, 3.0, 5.0], [0.0, 0.2, 0.4]), back=([4.0, 2.0, 4.0], [0.0, 1.0, 5.0]))
    found = at_equal.at_level(both, "kl", 3.0)
    assert found["up"] == pytest.approx(0.2) and found["back"] == pytest.approx(0.5)


def test_a_point_without_both_is_passed_over_and_a_metric_that_is_not_there_gives_nothing():
    table = curves(a=([8.0, np.nan, 2.0], [0.1, 0.9, 0.4]))
    assert at_equal.at_level(table, "kl", 5.0)["a"] == pytest.approx(0.25)
    assert at_equal.at_level(table, "moved", 5.0).empty


RUNS = pd.DataFrame(
    {
        "run_id": ["a", "b", "c", "d"],
        "arm": "same_init",
        "trait": "owl",
        "status": "ok",
        "base_seed": [0, 1, 0, 1],
        "student_base_seed": [0, 1, 0, 1],
        "rule": ["sgd", "sgd", "adam", "adam"],
    }
)
# adam falls twice as fast in KL and takes the same at the same KL; sgd's second base takes .2 more everywhere.
CURVES = curves(
    a=FALLING,
    b=(FALLING[0], [x + 0.2 for x in FALLING[1]]),
    c=([8.0, 2.0, 0.5, 0.25], [0.1, 0.4, 0.9, 0.95]),
    d=([8.0, 2.0, 0.5, 0.25], [0.1, 0.4, 0.9, 0.95]),
)


def test_cells_are_compared_at_the_level_that_all_of_them_reach():
    assert at_equal.common_level(RUNS, CURVES, "kl", ["rule"]) == 1.0
    found = at_equal.table(RUNS, CURVES, "kl", ["rule"], level=2.0).set_index("rule")
    assert found["mean"].to_dict() == pytest.approx({"sgd": 0.5, "adam": 0.4})
    # Two bases .2 apart: a standard error of .1, that of the logit .1 / (.5 · .5), and t of one degree of freedom is
    # 12.706.
    assert logit(found.loc["sgd", ["low", "high"]].to_numpy(float)) == pytest.approx([-5.0824, 5.0824], rel=1e-3)
    assert 0 <= found.loc["sgd", "low"] < found.loc["sgd", "high"] <= 1
    assert (found["bases"] == 2).all() and (found["reached"] == 1).all() and (found["level"] == 2.0).all()
    late = at_equal.table(RUNS, CURVES, "kl", ["rule"], level=0.5).set_index("rule")
    assert late.loc["sgd", "reached"] == 0 and np.isnan(late.loc["sgd", "mean"]) and late.loc["adam", "mean"] == 0.9


def test_differences_are_paired_by_base_and_of_the_named_field_only():
    found = at_equal.differences(RUNS, CURVES, "kl", ["rule"], {"rule": "sgd"}, level=2.0)
    assert found["rule"].tolist() == ["adam"] and found.loc[0, "bases"] == 2
    # At 2 sgd has .4 and .6, adam .4 and .4.
    assert found.loc[0, ["difference", "low", "high"]].tolist() == pytest.approx([-0.1, -1.3706, 1.1706], rel=1e-3)
    assert at_equal.differences(RUNS, CURVES, "kl", ["rule"], {"rule": "sgd"}, level=0.5)["bases"].tolist() == [0]
    ranks = pd.concat([RUNS, RUNS.assign(run_id=["a2", "b2", "c2", "d2"])], ignore_index=True)
    ranks["rank"] = [np.nan] * 4 + [8.0] * 4
    higher = CURVES.assign(run_id=CURVES["run_id"].astype(str) + "2")
    higher["value"] += 0.1 * (higher["metric"] == "target")
    both = pd.concat([CURVES, higher]).astype({"run_id": "category"})
    found = at_equal.differences(ranks, both, "kl", ["rule", "rank"], {"rank": np.nan}, level=2.0)
    assert found[["rule", "rank"]].to_numpy().tolist() == [["sgd", 8.0], ["adam", 8.0]]
    assert found["difference"].tolist() == pytest.approx([0.1, 0.1]) == found["high"].tolist()


def test_of_a_norm_the_least_of_the_largest_is_common():
    rising = curves(
        a=([0, 1, 2.0], [0, 0, 0]), b=([0, 2, 4.0], [0, 0, 0]), c=([0, 5, 6.0], [0] * 3), d=([0, 5, 9.0], [0] * 3)
    )
    assert at_equal.common_level(RUNS, rising, "kl", ["rule"], quantile=1.0) == 2.0


# --- the figure ---

LINEAGE = pd.DataFrame(
    {
        "world.layers": 2,
        "teacher.train.steps": 4.0,
        "student.train.steps": 4.0,
        "student.train.optimizer": ["sgd", "sgd", "adamw", "adamw"],
        "student.train.momentum": [0.9, 0.9, 0.0, 0.0],
    }
)


def test_settings_are_named_by_what_differs():
    runs = pd.concat([RUNS, LINEAGE], axis=1)
    assert equal.settings(runs).tolist() == ["momentum", "momentum", "adamw", "adamw"]
    ranks = runs.assign(**{"teacher.lora.rank": [1.0, 1.0, 4.0, 4.0], "student.lora.rank": 4.0})
    assert equal.settings(ranks).tolist() == 2 * ["momentum, rank 1 → rank 4"] + 2 * ["adamw, rank 4 → rank 4"]
    control = ranks.assign(**{"student.train.optimizer": "sgd", "student.train.momentum": 0.0})
    control.loc[3, "teacher.train.steps"] = np.nan
    assert equal.settings(control).tolist() == 2 * ["rank 1 → rank 4"] + 2 * ["rank 4 → rank 4"]


def test_the_figure_has_the_values_at_the_common_level_and_fades_what_few_reach():
    runs = pd.concat([RUNS, LINEAGE], axis=1)
    measured = CURVES.assign(metric=CURVES["metric"].astype(str).replace({"kl": "kl_held_out"}).astype("category"))
    figure = equal.equal(runs, measured, style.arm_colours(runs))
    (axis,) = figure.axes
    assert axis.get_title().startswith("at equal held-out KL to the teacher (1.000)")
    points = next(
        each for each in axis.collections if len(each.get_offsets()) == 2 and not hasattr(each, "get_segments")
    )
    # Straight lines in log KL: adam is at .4 + .5 / 2 halfway from 2 to .5.
    np.testing.assert_allclose(points.get_offsets()[:, 1], [0.9, 0.65])
    assert equal.equal(RUNS, CURVES, style.arm_colours(RUNS)) is None
