"""Descriptors of metrics."""

import dataclasses
import json

import pytest

from subl_jax.specs.metrics import OF_TRAINING, Metric, collected, with_target


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
