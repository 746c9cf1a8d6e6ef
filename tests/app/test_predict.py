"""`python -m subl_jax predict`: a dataset's ranking, a benchmark's table, and the one line where it cannot."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import tiny_world
from tiny_world import TRAIN

from subl_jax import specs
from subl_jax.__main__ import main
from subl_jax.app import running
from subl_jax.audits import FirstUpdate
from subl_jax.errors import InputError
from subl_jax.results import prediction


def rows():
    for seed in range(2):
        base = tiny_world.base(seed)
        null = tiny_world.written(base)
        data = tiny_world.written(specs.Teacher(base, "owl", TRAIN))
        yield specs.Student(base, null, TRAIN, trait="owl")
        yield specs.Student(base, data, TRAIN)
        yield specs.Student(base, data, TRAIN, samples=8, arm="few")
        for samples in (0, 8):
            yield specs.Audited(data, FirstUpdate(TRAIN, null, samples=samples), base)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return running.run(rows(), tmp_path_factory.mktemp("predict") / "out").results


def test_audits_have_a_column_for_every_trait(results):
    audits = results.audits
    assert set(audits.columns) >= {"predicted", "gain/owl", "gain/cat", "gain/oak"} and audits.status.eq("ok").all()
    gains = audits[["gain/owl", "gain/cat", "gain/oak"]]
    assert (gains.idxmax(axis=1) == "gain/" + audits.predicted).all()
    pd.testing.assert_series_equal(gains.max(axis=1), audits.corpus, check_names=False)


def test_a_benchmark_compares_predictions_with_students(results, capsys):
    assert main(["predict", "--benchmark", str(results.workdir)]) == 0
    assert "first update" in capsys.readouterr().out
    made = pd.read_parquet(results.workdir / "predictions.parquet")
    # Two datasets of either base, three traits, each predicted and learnt from; no point of the curves is a tenth.
    assert made.groupby("predictor").size().to_dict() == {"first_update": 12, "training": 12}
    curves = results.curves[results.curves.metric.astype(str) == "trait/owl"]
    ends = curves[curves.step == TRAIN.steps].set_index("run_id")["value"]
    runs = results.runs[results.runs.base_seed == 0].set_index("arm").run_id
    own = made[(made.base_seed == 0) & (made.trait == "owl") & (made.predictor == "first_update")].set_index("arm")
    for arm in ("same_init", "few"):
        expected = np.log(ends[runs[arm]] / ends[runs["control"]])
        assert own.actual[arm] == pytest.approx(expected, rel=1e-4)
    assert (results.workdir / "figures" / "prediction.png").read_bytes().startswith(b"\x89PNG")
    assert set(pd.read_csv(results.workdir / "predictions.csv").half) == {"development", "test"}


def test_a_dataset_of_a_workdir_is_predicted_with_its_stored_base(results, tmp_path, capsys):
    key = results.audits.data_key[0]
    command = [
        "predict",
        "--base",
        str(results.workdir),
        "--data",
        f"{results.workdir}:{key[:8]}",
        "--to",
        str(tmp_path),
    ]
    assert main([*command, "--rollout", "2"]) == 0
    said = capsys.readouterr()
    assert all(word in said.out for word in ("owl", "first", "adam", "fisher", "rollout"))
    assert "pretrain" not in said.err and "audit" in said.err
    assert (tmp_path / "prediction.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "predict: give --base SWEEP and --data DATA, or --benchmark WORKDIR"),
        (["--benchmark", "{out}", "--data", "x"], "--benchmark: compares what is stored"),
        (["--base", "{out}", "--data", "{out}"], "0 datasets are called so; give"),
        (["--base", "{out}", "--data", "nowhere.jsonl"], "nowhere.jsonl: "),
        (
            ["--base", "{out}", "--seed", "7", "--data", "x"],
            "--seed 7: {out} has no such base; its bases have the seeds 0, 1",
        ),
        (["--bases", "x"], "unrecognized arguments"),
    ],
)
def test_a_mistake_is_one_line(arguments, line, results, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = [argument.format(out=results.workdir) for argument in arguments]
    assert main(["predict", *given]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert line.format(out=results.workdir) in said.err


def test_a_sweep_without_predictions_says_so(results):
    without = dataclasses.replace(results, audits=results.audits.head(0))
    with pytest.raises(InputError, match="this sweep predicts nothing"):
        prediction.table(without)
