"""Rates chosen by held-out KL: the planted best of each cell."""

import numpy as np
import pandas as pd
import pytest

from subl_jax.errors import InputError
from subl_jax.results import tuning


def swept(scores, status=None):
    """One run for (arm, rate, base) → its last held-out KL; the first is 9 for all."""
    runs, curves = [], []
    for i, ((arm, rate, base), score) in enumerate(scores.items()):
        well = (status or {}).get((arm, rate, base), "ok")
        runs.append({"run_id": f"r{i}", "arm": arm, "student.train.lr": rate, "base_seed": base, "status": well})
        curves += [(f"r{i}", 0, "kl_held_out", 9.0), (f"r{i}", 10, "kl_held_out", score), (f"r{i}", 10, "kl", -1.0)]
    table = pd.DataFrame(curves, columns=["run_id", "step", "metric", "value"])
    return pd.DataFrame(runs), table.astype({"run_id": "category", "metric": "category"})


# "b" is best at .1 in the mean over bases, though its first base alone would say .01.
SCORES = {
    **{("a", 0.01, 0): 3.0, ("a", 0.1, 0): 1.0, ("a", 1.0, 0): 2.0},
    **{("a", 0.01, 1): 3.0, ("a", 0.1, 1): 1.5, ("a", 1.0, 1): 2.0},
    **{("b", 0.01, 0): 0.5, ("b", 0.1, 0): 0.6, ("b", 0.01, 1): 0.9, ("b", 0.1, 1): 0.7},
}


def test_the_best_rate_of_each_cell_by_the_mean_over_bases():
    found = tuning.best(*swept(SCORES))
    assert found["a"] == tuning.Chosen(0.1, 1.25, edge=False)
    assert (found["b"].rate, found["b"].edge) == (0.1, True) and found["b"].score == pytest.approx(0.65)


def test_a_rate_with_which_a_run_diverged_is_none():
    assert tuning.best(*swept(SCORES, {("a", 0.1, 1): "diverged"}))["a"].rate == 1.0
    only = {("a", 0.1, 0): 2.0, ("a", 0.1, 1): 4.0}
    assert tuning.best(*swept(only, {("a", 0.1, 1): "failed"}))["a"].score == 2.0


def test_a_sweep_without_the_metric_is_one_line():
    runs, curves = swept(SCORES)
    with pytest.raises(InputError, match="no run of 'a' has 'kl_heldout'"):
        tuning.best(runs, curves, by="kl_heldout")
    with pytest.raises(InputError, match="no run of 'a'"):
        tuning.best(runs.assign(status="failed"), curves.assign(value=np.nan))


def test_the_deviation_is_of_paired_differences_at_the_chosen_rates():
    runs, curves = swept(SCORES)
    chosen = tuning.best(runs, curves)
    # P at the chosen rates: .3 and .5 of "a", .1 and .2 of "b", so differences of .2 and .3. Elsewhere anything.
    ends = {("a", 0.1, 0): 0.3, ("a", 0.1, 1): 0.5, ("b", 0.1, 0): 0.1, ("b", 0.1, 1): 0.2}
    values = [ends.get(key, 0.9) for key in zip(runs["arm"], runs["student.train.lr"], runs["base_seed"], strict=True)]
    runs = runs.assign(target_end=values, student_base_seed=runs["base_seed"])
    assert tuning.deviation(runs, chosen) == pytest.approx(0.1 / 2**0.5)
    assert np.isnan(tuning.deviation(runs[runs["base_seed"] == 0], chosen))
