"""Descriptors of metrics."""

import dataclasses
import json

import numpy as np
import pytest

from subl_jax.specs.metrics import OF_TRAINING, Metric, collected, tracked, with_target


def test_a_metric_is_plain_values():
    metric = Metric("KL to the teacher", unit="nats", drawn="end", zero=True)
    assert Metric(**json.loads(json.dumps(dataclasses.asdict(metric)))) == metric
    assert (metric.title, Metric("loss").title) == ("KL to the teacher, nats", "loss")


def test_how_a_metric_is_drawn_is_one_of_three():
    with pytest.raises(ValueError, match=r"Metric\.drawn = 'bars': one of curve, end, none"):
        Metric("loss", drawn="bars")


def test_of_one_name_the_first_counts():
    mine = {"loss": Metric("my loss"), "depth": Metric("depth")}
    assert collected([mine, OF_TRAINING])["loss"].label == "my loss"
    assert list(collected([mine, OF_TRAINING])) == ["loss", "depth", "kl", "cosine", "agreement"]


def test_the_curve_of_a_runs_own_trait_has_one_name():
    curves = {"trait/owl": 1, "trait/oak": 2, "loss": 3}
    assert with_target("oak", curves) == {**curves, "target": 2}
    assert with_target("fox", curves) == with_target(None, curves) == curves


def test_trackers_get_paths_and_what_a_target_is_compared_with():
    curves = {"loss": np.ones(2), "trait/owl": np.array([0.1, 0.3]), "trait/cat": np.array([0.1, 0.05])}
    curves["trait/elm"] = np.array([0.2, 0.15])
    shown = tracked("owl", curves, 0.1, ("owl", "cat", "elm", "yew"))
    assert shown.keys() == {
        *(curves.keys() - {"loss"}),
        "training/loss",
        "target",
        "target/chance",
        "target/off_diagonal",
    }
    np.testing.assert_allclose(shown["target/chance"], [1, 3])
    np.testing.assert_allclose(shown["target/off_diagonal"], [0.15, 0.1])
    assert tracked(None, curves, None).keys() == {*(curves.keys() - {"loss"}), "training/loss"}
    assert "target/chance" not in tracked("owl", curves, None, ("owl",))
