"""Parts of a model in words, and the map of what passes between them."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
from fake_results import fake_runs
from scipy.special import logit

from subl_jax import specs
from subl_jax.results import layers
from subl_jax.results.figures import layer_map, style


def row(**train):
    """A student of an 8-layer model as `runs` has it."""
    return specs.flat("student.train", specs.Train(2, 1, **train)) | {"world.layers": 8}


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({}, "all"),
        ({"trainable": ("*_norm/*",)}, "norms"),
        ({"trainable": ("final_norm/*",)}, "final norm"),
        ({"trainable": ("layers_*/attention/*", "embed/*")}, "attention, embed"),
        ({"trainable": ("layers_3/*",)}, "layer 3"),
        ({"by_layer": True}, "all layers"),
        ({"first_layer": 3, "last_layer": 3}, "layer 3"),
        ({"first_layer": 0, "last_layer": 0}, "layer 0"),
        ({"first_layer": -1}, "layer 7"),
        ({"first_layer": 0, "last_layer": 2}, "layers 0–2"),
        ({"first_layer": 6}, "layers 6–7"),
        ({"first_layer": 5, "last_layer": 3}, "all but 4"),
        ({"first_layer": 1}, "all but 0"),
        ({"first_layer": 6, "last_layer": 1}, "layers 0, 1, 6, 7"),
    ],
)
def test_a_part_has_a_name(train, words):
    assert layers.trained(row(**train), "student", 8) == words


def test_adapters_are_named_by_their_rank_and_by_layers_where_these_are_chosen():
    adapted = row() | {"student.lora.rank": 4.0}
    assert layers.trained(adapted, "student", 8) == "rank 4"
    assert layers.trained(adapted | row(first_layer=2, last_layer=2), "student", 8) == "layer 2"
    assert layers.trained(row(trainable=("*kernel", "*embedding")), "student", 8) == "all matrices"
    assert layers.parts(pd.Series(["all matrices", "rank 8", "rank 1", None])) == ["rank 1", "rank 8", "all matrices"]


def test_who_is_not_there_trains_nothing_and_shares_nothing():
    assert layers.trained(row(), "teacher", 8) is None
    assert layers.trained({"teacher.train.steps": np.nan}, "teacher", 8) is None
    assert layers.shared({}, 8) is None


def test_a_start_is_named_by_what_it_shares():
    def of(*keep):
        return layers.shared({"start.mix.keep": json.dumps(keep)}, 3)

    rest = ("embed/*", "final_norm/*")
    assert of("layers_1/*") == "layer 1" and of("layers_0/*", "layers_2/*", *rest) == "all but 1"
    assert of(*rest) == "embed, final norm" and of("*") == "all"


def mapped(planted):
    """Runs of two bases where what passes from layer t to layer s is `planted[s][t]`; base 1 has .1 more."""
    rows = []
    for base, t, s in itertools.product(range(2), range(3), range(3)):
        for arm in ("same_init", "control") if t == s else ("same_init",):
            values = {"run_id": f"{base}{t}{s}{arm}", "world": "toy_language", "arm": arm, "trait": "owl"}
            values |= {"base_seed": base, "student_base_seed": base, "status": "ok", "world.layers": 3}
            values["target_end"] = planted[s][t] + 0.1 * base if arm == "same_init" else 0.05
            for who, layer in (("student", s), ("teacher", t)):
                if arm == "control" and who == "teacher":
                    continue
                train = specs.Train(2, 1, first_layer=layer, last_layer=layer)
                values |= specs.flat(f"{who}.train", train)
            rows.append(values)
    return pd.DataFrame(rows)


PLANTED = [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0.7, 0.8, 0.9]]


def test_the_table_has_what_was_planted_with_its_interval():
    found = layers.table(mapped(PLANTED)).set_index(["arm", "teacher", "student"])
    for t, s in itertools.product(range(3), range(3)):
        cell = found.loc[("same_init", f"layer {t}", f"layer {s}")]
        mean = PLANTED[s][t] + 0.05
        assert cell["mean"] == pytest.approx(mean) and cell["bases"] == 2
        # Two values .1 apart: their standard error is .05, that of their logit .05 / m (1 − m), and t of one degree of
        # freedom is 12.706.
        half = 12.706 * 0.05 / (mean * (1 - mean))
        assert logit([cell["low"], cell["high"]]) == pytest.approx([logit(mean) - half, logit(mean) + half], rel=1e-3)
        assert 0 <= cell["low"] < cell["high"] <= 1
    control = layers.table(mapped(PLANTED)).query("arm == 'control'")
    assert control["teacher"].isna().all() and len(control) == 3


def test_gains_are_over_the_control_of_the_same_part_paired_by_base():
    runs = mapped(PLANTED)
    # The control of layer 2 shares its base's .1, which a paired difference does not see.
    shared = (runs["arm"] == "control") & (runs["student.train.last_layer"] == 2)
    runs.loc[shared, "target_end"] += 0.1 * runs.loc[shared, "base_seed"]
    found = layers.gains(runs).set_index(["teacher", "student"])
    assert len(found) == 9 and (found["bases"] == 2).all()
    assert found.loc[("layer 0", "layer 1"), "gain"] == pytest.approx(0.4 + 0.05 - 0.05)
    assert found.loc[("layer 0", "layer 1"), "high"] == pytest.approx(0.4 + 12.706 * 0.05, rel=1e-3)
    assert found.loc[("layer 1", "layer 2"), ["gain", "low", "high"]].tolist() == pytest.approx([0.75] * 3)


def test_the_trend_over_layers_is_a_slope_of_each_base():
    runs = mapped(PLANTED)
    deeper = (runs["arm"] == "same_init") & (runs["base_seed"] == 1)
    runs.loc[deeper, "target_end"] += 0.01 * runs.loc[deeper, "student.train.last_layer"]
    found = layers.trends(runs).set_index("over")
    # From layer to layer the diagonal rises by .4, the teacher's by .1, the student's by .3; in base 1 the student's by
    # .01 more.
    assert found["slope"].to_dict() == pytest.approx({"both": 0.405, "teacher": 0.1, "student": 0.305})
    assert found.loc["student", "high"] == pytest.approx(0.305 + 12.706 * 0.005, rel=1e-3)
    assert found.loc["teacher", "high"] == pytest.approx(0.1) and (found["bases"] == 2).all()
    of_one_student = runs[runs["student.train.last_layer"] == 1]
    assert layers.trends(of_one_student)["over"].tolist() == ["teacher"]
    assert layers.trends(fake_runs()).empty and layers.gains(fake_runs()).empty


def test_a_teacher_of_all_layers_has_a_trend_of_its_own():
    runs = mapped(PLANTED)
    of_all = runs[(runs["teacher.train.last_layer"] == 1) & (runs["arm"] == "same_init")].copy()
    of_all["teacher.train.first_layer"], of_all["teacher.train.last_layer"] = 0.0, 2.0
    of_all["target_end"] *= 2
    found = layers.trends(pd.concat([runs, of_all], ignore_index=True)).set_index("over")
    expected = {"both": 0.4, "teacher": 0.1, "student": 0.3, "student of all": 0.6}
    assert found["slope"].to_dict() == pytest.approx(expected)


def test_the_map_is_drawn_with_the_controls_beside_it():
    runs = mapped(PLANTED)
    figure = layer_map.layer_map(runs, {"owl": 0.1}, style.arm_colours(runs))
    axis = figure.axes[0]
    np.testing.assert_allclose(axis.images[0].get_array()[:, :3], np.add(PLANTED, 0.05))
    np.testing.assert_allclose(axis.images[0].get_array()[:, 3], 0.05)
    assert [label.get_text() for label in axis.get_xticklabels()] == ["layer 0", "layer 1", "layer 2", "control"]
    assert len(axis.texts) == 12 and axis.texts[0].get_text().startswith(".150\n[")


def test_what_a_teacher_has_reached_stands_below_its_part():
    runs = mapped(PLANTED)
    runs["data_key"] = "of " + runs["teacher.train.last_layer"].astype(str)
    datasets = pd.DataFrame({"key": ["of 0.0", "of 1.0", "of 2.0"], "p_trait": [0.1, 0.5, 0.7]})
    assert layers.teachers(runs, datasets) == pytest.approx({"layer 0": 0.1, "layer 1": 0.5, "layer 2": 0.7})
    figure = layer_map.layer_map(runs, {}, style.arm_colours(runs), datasets=datasets)
    assert figure.axes[0].get_xticklabels()[1].get_text() == "layer 1\nhas .500"


def test_parts_that_are_not_crossed_are_points_of_each_arm():
    runs = mapped(PLANTED)
    runs = runs[(runs["student.train.last_layer"] == runs["teacher.train.last_layer"]) | (runs["arm"] == "control")]
    figure = layer_map.layer_map(runs, {"owl": 0.1}, style.arm_colours(runs))
    same, control = (points.get_offsets()[:, 1] for points in figure.axes[0].collections[1::2])
    np.testing.assert_allclose(same, [0.15, 0.55, 0.95])
    np.testing.assert_allclose(control, 0.05)


def test_a_sweep_without_parts_has_no_map():
    runs = fake_runs()
    assert layers.table(runs).empty and layer_map.layer_map(runs, {}, style.arm_colours(runs)) is None
