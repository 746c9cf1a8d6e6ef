"""The scores of predictions: what each counts, on tables with known answers."""

import numpy as np
import pandas as pd
import pytest

from subl_jax.results import prediction
from subl_jax.results.figures import prediction as figure

TRAITS = tuple("abcdef")


def table(factor=2.0, noise=0.0, bases=4, predictor="plain"):
    """Datasets whose writer's trait gains most; predictions are `factor` × what they gained."""
    rng = np.random.default_rng(0)
    rows = []
    for base in range(bases):
        for dataset, own in enumerate((*TRAITS[:3], None)):
            actual = rng.normal(0, 0.1, len(TRAITS)) + [0.5 + 0.2 * dataset if trait == own else 0 for trait in TRAITS]
            predicted = factor * (actual + noise * rng.normal(size=len(TRAITS)))
            for i, trait in enumerate(TRAITS):
                row = {"predictor": predictor, "setting": "norms", "base_seed": base, "dataset": f"{base}/{dataset}"}
                row |= {"half": "development" if base < bases // 2 else "test", "arm": "same_init", "own": own}
                row |= {"trait": trait, "predicted": predicted[i], "actual": actual[i], "cost": 0.01, "cost_once": 0.04}
                rows.append(row)
    return pd.DataFrame(rows)


def test_a_perfect_prediction_has_perfect_scores_in_any_unit():
    line = prediction.summary(table(factor=3.0)).set_index(["setting", "half"]).loc[("norms", "test")]
    assert (line.datasets, line.bases) == (8, 2)
    np.testing.assert_allclose(line[["top1", "spearman", "slope", "explained", "strength", "auroc"]].astype(float), 1.0)
    assert line.sign_errors == line.sign_errors_all == 0
    # Four datasets of a base share what is computed once.
    assert (line.cost, line.cost_once, line.cost_spread) == pytest.approx((0.01, 0.04, 0.02))


def test_a_prediction_of_the_wrong_sign_is_wrong_and_calibration_says_so():
    line = prediction.summary(table(factor=-1.0)).set_index(["setting", "half"]).loc[("all", "test")]
    assert line.top1 == 0 and line.spearman == pytest.approx(-1) and line.sign_errors == 1
    assert line.slope == pytest.approx(1)  # the development half has told its sign


def test_the_development_half_calibrates_and_the_test_half_is_scored():
    made = table()
    made.loc[made.half == "test", "predicted"] *= 2  # of other bases, predictions are twice as large
    summary = prediction.summary(made).set_index(["setting", "half"])
    assert summary.slope[("norms", "development")] == pytest.approx(1)
    assert summary.slope[("norms", "test")] == pytest.approx(0.5)
    assert summary.explained[("norms", "test")] == pytest.approx(0)  # (y - 2 y)² = y²


def test_intervals_are_over_bases_and_noise_costs():
    noisy = prediction.summary(table(noise=0.5, bases=20)).set_index(["setting", "half"]).loc[("norms", "test")]
    assert noisy.bases == 10
    assert 0 < noisy.spearman_low < noisy.spearman < noisy.spearman_high < 1
    assert noisy.explained < 0.9 and 0 < noisy.sign_errors_all < 0.5


def test_the_figures_draw_every_predictor():
    made = pd.concat([table(), table(noise=0.5, predictor="adam_update"), table(predictor="training")])
    drawn = figure.prediction(prediction.summary(made), made)
    titles = [axis.get_title() for axis in drawn.axes]
    assert titles == ["writer's trait first, of all", "rank correlation over traits", "plain", "adam update"]
    gains = pd.DataFrame({"plain": [0.1, -0.2], "adam_update": [1.0, 2.0]}, index=["a", "b"])
    ranked = figure.ranking(gains, "data.jsonl")
    assert [label.get_text() for label in ranked.axes[0].get_yticklabels()] == ["b", "a"]
