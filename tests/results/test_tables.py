"""The results tables, from a store with rows made by hand."""

import numpy as np
import pandas as pd
import pytest
from lineages import TRAIN, WORLD, base, dataset, plain, student, teacher

from subl_jax import specs
from subl_jax.channels.numbers import NumbersFilter
from subl_jax.results import tables
from subl_jax.storage.store import Row, Store

STEPS = np.asarray([0, 2, 4])


class Fake:
    """A store filled by hand, a batch at a time."""

    def __init__(self, workdir):
        self.store = Store(workdir)

    def students(self, students, curves, status="ok", why=None):
        rows = [Row(made.key, specs.to_json(made), status, why) for made in students]
        self.store.put("distil", rows, None, {name: np.asarray(v, np.float32) for name, v in curves.items()}, STEPS)

    def failed(self, made, why):
        self.store.put("distil", [Row(made.key, specs.to_json(made), "failed", why)])

    def dataset(self, node, status="ok", **info):
        self.store.put("write", [Row(node.key, specs.to_json(node), status, None, info)])


@pytest.fixture
def fake(tmp_path):
    return Fake(tmp_path)


def test_a_run_is_its_identity_its_lineage_and_its_ends(fake):
    made = student(base(4), dataset(teacher(base(3), "fox")), seed=2)
    fake.students([made], {"trait/fox": [[0.1, 0.2, 0.3]], "trait/owl": [[0.5, 0.5, 0.5]], "loss": [[3, 2, 1]]})
    fake.dataset(made.data, kept_fraction=0.75)
    runs = tables.runs_table("mine", [made], fake.store)
    row = runs.iloc[0].to_dict()
    expected = {
        **{"run_id": specs.run_id(made), "sweep": "mine", "world": "toy_language", "arm": "cross_init", "trait": "fox"},
        **{"base_seed": 3, "student_base_seed": 4, "seed": 2, "status": "ok", "kept_fraction": 0.75, "key": made.key},
        **specs.lineage(made),
    }
    assert expected.items() <= row.items()
    assert row["why"] is None or pd.isna(row["why"])
    assert (row["target_start"], row["target_end"]) == (pytest.approx(0.1), pytest.approx(0.3))


def test_controls_of_two_traits_are_two_rows_of_one_student(fake):
    control = student(data=plain())
    students = [control.replace(trait=trait) for trait in ("owl", "oak")]
    fake.students([control], {"trait/owl": [[0.1, 0.1, 0.2]], "trait/oak": [[0.3, 0.3, 0.4]]})
    fake.dataset(control.data, kept_fraction=0.5)
    runs = tables.runs_table("mine", students, fake.store)
    assert runs.target_end.tolist() == pytest.approx([0.2, 0.4])
    assert runs.key.nunique() == 1 and runs.run_id.nunique() == 2 and set(runs.arm) == {"control"}
    curves = tables.curves_table(students, fake.store)
    assert curves.groupby("run_id", observed=True).size().tolist() == [9, 9]
    # The student is one; what is its target is the row's.
    for made, values in zip(students, ([0.1, 0.1, 0.2], [0.3, 0.3, 0.4]), strict=True):
        rows = curves[(curves.run_id == specs.run_id(made)) & (curves.metric == "target")]
        assert rows.step.tolist() == [0, 2, 4] and rows.value.tolist() == pytest.approx(values)


def test_the_same_row_twice_is_there_once(fake):
    fake.students([student()], {"trait/owl": [[0.1, 0.2, 0.3]]})
    students = [student(), student(trait="owl", arm="same_init"), student()]
    assert len(tables.runs_table("mine", students, fake.store)) == 1
    assert len(tables.curves_table(students, fake.store)) == 6


def test_failed_and_diverged_runs_are_rows_too(fake):
    good, lost, wild = student(), student(seed=1), student(seed=2)
    fake.students([good], {"trait/owl": [[0.1, 0.2, 0.3]], "loss": [[np.nan, 2, 1]]})
    fake.students([wild], {"trait/owl": [[0.1, 0.2, np.nan]], "loss": [[np.nan, 2, np.nan]]}, "diverged", "at step 4")
    fake.failed(lost, "its dataset failed: too few")
    fake.dataset(good.data, kept_fraction=0.25, status="failed")
    students = [good, lost, wild]
    runs = tables.runs_table("mine", students, fake.store).set_index("seed")
    assert runs.status.tolist() == ["ok", "failed", "diverged"]
    assert runs.why[1] == "its dataset failed: too few" and runs.why[2] == "at step 4"
    assert runs.target_end.isna().tolist() == [False, True, True]
    assert runs.target_start.isna().tolist() == [False, True, False]
    assert (runs.kept_fraction == 0.25).all()  # what a shortfall kept is worth knowing

    curves = tables.curves_table(students, fake.store)
    ids = {seed: specs.run_id(made) for seed, made in enumerate(students)}
    assert set(curves.run_id) == {ids[0], ids[2]}

    def values(seed, metric):
        rows = curves[(curves.run_id == ids[seed]) & (curves.metric == metric)]
        return dict(zip(rows.step.tolist(), rows.value.tolist(), strict=True))

    # No loss has been seen before training. That a curve was lost later on is shown.
    assert values(0, "loss") == {2: 2.0, 4: 1.0}
    assert list(values(2, "loss")) == [2, 4] and np.isnan(values(2, "loss")[4])
    assert list(values(2, "trait/owl")) == [0, 2, 4] and np.isnan(values(2, "trait/owl")[4])
    np.testing.assert_array_equal(list(values(2, "target").values()), list(values(2, "trait/owl").values()))


def test_a_number_that_does_not_exist_has_no_row(fake):
    control = student(data=plain(), trait="owl")
    fake.students([control], {"cosine": [[np.nan] * 3], "trait/owl": [[0.1, 0.2, 0.3]], "kl": [[1, np.inf, 0]]})
    curves = tables.curves_table([control], fake.store)
    assert "cosine" not in set(curves.metric)
    assert curves[curves.metric == "kl"].step.tolist() == [0, 4]
    assert np.isfinite(curves.value).all()


def test_curves_are_long_and_exact(fake, tmp_path):
    students = [student(seed=seed) for seed in range(3)]
    values = np.arange(9, dtype=np.float32).reshape(3, 3)
    fake.students(students, {"loss": values, "trait/owl": values / 10})
    curves = tables.curves_table(students, fake.store)
    assert curves.columns.tolist() == ["run_id", "step", "metric", "value"]
    assert (curves.step.dtype, curves.value.dtype) == (np.int64, np.float64)
    wide = curves.pivot_table(index="run_id", columns=["metric", "step"], values="value", observed=True)
    for i, made in enumerate(students):
        assert wide.loc[specs.run_id(made), "loss"].tolist() == values[i].tolist()
        np.testing.assert_allclose(wide.loc[specs.run_id(made), "trait/owl"], values[i] / 10, rtol=1e-6)
    curves.to_parquet(tmp_path / "curves.parquet")
    assert pd.read_parquet(tmp_path / "curves.parquet").run_id.astype(str).tolist() == curves.run_id.tolist()


def test_tables_of_a_sweep_without_any_curve(fake):
    fake.failed(student(), "its teacher diverged")
    curves = tables.curves_table([student()], fake.store)
    assert curves.empty and curves.columns.tolist() == ["run_id", "step", "metric", "value"]
    runs = tables.runs_table("mine", [student()], fake.store)
    assert runs.status.tolist() == ["failed"]
    assert runs[["target_start", "target_end", "kept_fraction"]].isna().to_numpy().all()
    datasets = tables.datasets_table([student()], fake.store)
    assert datasets.empty and "kept_fraction" in datasets


def test_datasets_that_teachers_wrote(fake):
    written, unread = dataset(teacher(base(3), "fox"), seed=5), plain(2)
    fake.dataset(written, drawn=20, kept=8, kept_fraction=0.4)
    fake.dataset(unread, drawn=8, kept=8, kept_fraction=1.0)
    students = [
        student(data=written),
        student(data=written, seed=1),
        student(data=unread, trait="owl"),
        student(data=unread, trait="oak"),
        student(data=dataset(seed=77)),  # not stored: its teacher diverged
        student(data=specs.Stream(teacher(), NumbersFilter())),
        student(data=specs.Imported(of=WORLD, sha256="ab", size=8), trait="owl"),
    ]
    curve = {"trait/fox": np.asarray([[0.1, 0.7]], np.float32), "trait/owl": np.asarray([[0.2, 0.3]], np.float32)}
    row = Row(written.teacher.key, specs.to_json(written.teacher), "ok", None)
    fake.store.put("instil", [row], None, curve, np.asarray([0, 4]))
    table = tables.datasets_table(students, fake.store)
    assert table.key.tolist() == [written.key, unread.key]
    np.testing.assert_allclose(table.p_trait, [0.7, np.nan], rtol=1e-6)
    assert table.trait[0] == "fox" and pd.isna(table.trait[1])
    assert table.base_seed.tolist() == [3, 2] and table.seed.tolist() == [5, 0]
    assert table.kept_fraction.tolist() == [0.4, 1.0] and table.drawn.tolist() == [20, 8]


def test_runs_on_data_that_was_not_written_here(fake):
    stream = student(data=specs.Stream(teacher(base(3)), NumbersFilter()))
    foreign = student(base(2), specs.Imported(of=WORLD, sha256="ab", size=8), trait="owl")
    fake.students([stream, foreign], {"trait/owl": [[0.1, 0.2, 0.3]] * 2})
    runs = tables.runs_table("mine", [stream, foreign], fake.store)
    assert runs.arm.tolist() == ["cross_init", "imported"]
    assert runs.base_seed.tolist() == [3, 2] and runs.student_base_seed.tolist() == [0, 2]
    assert runs.kept_fraction.isna().all()


def test_a_student_outlives_its_dataset(fake):
    # A pruned or damaged dataset is not made again for a student that is done, and must not stop the tables.
    fake.students([student()], {"trait/owl": [[0.1, 0.2, 0.3]]})
    runs = tables.runs_table("mine", [student()], fake.store)
    assert runs.status.tolist() == ["ok"] and runs.kept_fraction.isna().all()


def test_settings_that_differ_are_columns(fake):
    students = [student(train=TRAIN.replace(lr=lr)) for lr in (0.1, 0.2)]
    fake.students(students, {"trait/owl": [[0.1, 0.2, 0.3]] * 2})
    assert tables.runs_table("mine", students, fake.store)["student.train.lr"].tolist() == [0.1, 0.2]


def test_a_run_whose_trait_was_not_measured_has_no_target(fake):
    wild, measured = student(seed=1), student(seed=2)
    fake.students([wild], {"loss": [[np.nan, 1, np.nan]]}, "diverged", "at step 4")
    fake.students([measured], {"loss": [[np.nan, 1, 2]], "trait/owl": [[0.1, 0.2, 0.3]]})
    curves = tables.curves_table([wild, measured], fake.store)
    assert curves[curves.metric == "target"].run_id.tolist() == [specs.run_id(measured)] * 3


def test_runs_say_which_data_they_saw_and_how_many_students_it_went_through(fake):
    first = student(data=dataset(teacher()))
    second = student(data=dataset(first), seed=1)
    third = student(data=dataset(second), seed=2)
    stream = student(data=specs.Stream(first, NumbersFilter()))
    # A student that goes on from another one, and a mixture: the longest chain counts.
    mixed = student(data=dataset(specs.Mix(base(0), second, keep=("layers_0/*",))), trait="owl", arm="mixed")
    foreign = student(base(2), specs.Imported(of=WORLD, sha256="ab", size=8), trait="owl")
    prompted = student(data=dataset(base()), trait="owl")
    students = [first, second, third, stream, mixed, foreign, prompted]
    fake.students(students, {"trait/owl": [[0.1, 0.2, 0.3]] * len(students)})
    runs = tables.runs_table("mine", students, fake.store)
    assert runs.hop.tolist() == [0, 1, 2, 1, 2, 0, 0]
    assert runs.data_key.isna().tolist() == [False, False, False, True, False, False, False]
    assert runs.data_key[0] == first.data.key and runs.data_key[5] == foreign.data.key
