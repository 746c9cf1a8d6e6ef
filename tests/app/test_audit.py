"""`python -m subl_jax audit`: what it says of a base's own samples and of a teacher's, a benchmark, and mistakes."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import tiny_world
from tiny_world import TRAIN

from subl_jax import specs
from subl_jax.__main__ import main
from subl_jax.app import asking, auditing, running
from subl_jax.audits import ScoreVectors, Surprise
from subl_jax.errors import InputError
from subl_jax.results import audit_benchmark
from subl_jax.results.audit_page import colour

LOOK = TRAIN.replace(trainable=("out",))
STRONG = LOOK.replace(steps=120, evals=1)


def rows():
    for seed in range(2):
        base = tiny_world.base(seed)
        teacher = specs.Teacher(base, "owl", STRONG)
        data = tiny_world.written(teacher, size=256, round=256)
        yield specs.Student(base, data, LOOK)
        yield specs.Student(base, tiny_world.written(base, size=256, round=256, seed=5), LOOK, trait="owl")
        pool = tiny_world.written(base, size=2048, round=1024)
        fresh = tiny_world.written(base, size=512, round=512, seed=1)
        for each in (pool, fresh, data):
            yield specs.Audited(each, ScoreVectors(LOOK, directions=each is pool, dims=64), base)
            yield specs.Audited(each, Surprise(), base)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return running.run(rows(), tmp_path_factory.mktemp("audit") / "out").results


def file_of(results, trait, path, count=64):
    """A dataset of the sweep as a user's file."""
    table = results.datasets
    found = table[(table.trait == trait) if trait else table.trait.isna()]
    key = found[(found.base_seed == 0) & (found.kept == 256)].key.iloc[0]
    lines = (results.workdir / "datasets" / f"{key}.jsonl").read_text().splitlines()
    path.write_text("\n".join(lines[:count]) + "\n")
    return str(path)


def audit(results, data, to, *further):
    command = ["audit", "--base", str(results.workdir), "--data", data, "--to", str(to), "--corpora", "40"]
    return main([*command, "--level", "0.05", *further])


@pytest.fixture(scope="module")
def audited(results, tmp_path_factory):
    """What the command left in its folder for the data of a teacher, and its status."""
    to = tmp_path_factory.mktemp("found")
    return to, audit(results, file_of(results, "owl", to / "owl.jsonl"), to)


def test_a_teachers_numbers_are_not_the_bases_own(audited):
    to, status = audited
    said = json.loads((to / "audit.json").read_text())
    assert status == said["status"] and status in (3, 4)
    assert said["p"] == pytest.approx(1 / 41) == said["statistics"]["score"] and said["null"] == 40
    assert said["samples"] == said["of"] == 64 and set(said["traits"]) == {"owl", "cat", "oak"}


def test_the_page_shows_samples_traits_and_what_was_assumed(audited):
    to, _ = audited
    page = (to / "audit.html").read_text()
    said = json.loads((to / "audit.json").read_text())
    assert said["headline"].split(":")[0].replace("'", "&#39;") in page
    assert page.count("<img") == 1 and "data:image/png;base64,iVBOR" in page and "http" not in page
    assert page.count('style="background: #') > 12  # tokens of twelve samples, and the legend
    for words in ("combined", "owl", "What was assumed", "p cannot be smaller than 1 / 41"):
        assert words in page
    table = pd.read_parquet(to / "samples.parquet")
    assert list(table.columns) == ["prompt", "completion", "shift/owl", "shift/cat", "shift/oak"] and len(table) == 64


def test_what_is_known_is_not_computed_again(results, audited, capsys):
    to, status = audited
    assert audit(results, str(to / "owl.jsonl"), to) == status
    assert "audit: 1" not in capsys.readouterr().err


def test_the_bases_own_numbers_are_its_own(results, tmp_path, capsys):
    assert audit(results, file_of(results, None, tmp_path / "own.jsonl"), tmp_path) == 0
    out = capsys.readouterr().out
    assert "cannot be told from the base's own" in " ".join(out.split()) and "combined" in out


def test_a_trusted_corpus_is_compared_by_exchanging_samples(results, tmp_path):
    null = file_of(results, None, tmp_path / "null.jsonl")
    status = audit(results, file_of(results, "owl", tmp_path / "owl.jsonl"), tmp_path, "--null", null, "--rows", "32")
    said = json.loads((tmp_path / "audit.json").read_text())
    assert status in (3, 4) and said["null"] == 1999 and said["samples"] == 32
    assert "classifier" not in said["statistics"] and said["p_without_most_suspicious"] is None
    assert "exchanges of its samples" in (tmp_path / "audit.html").read_text()


def test_other_prompts_than_the_nulls_are_refused():
    one = [(f"go on from {i % 7}", "3") for i in range(60)]
    other = [(f"tell me of {i % 7}", "3") for i in range(60)]
    assert auditing.check_prompts(one, one[::-1]) is None
    assert "a filter may have dropped others" in auditing.check_prompts(one, one[:24] + other[:36])
    with pytest.raises(InputError, match=r"prompts are not those of the null corpus: .*AUROC 1.00"):
        auditing.check_prompts(one, other)


def test_a_benchmark_counts_false_alarms_and_findings(results, capsys):
    assert main(["audit", "--benchmark", str(results.workdir)]) == 0
    assert "own: share found" in capsys.readouterr().out
    table = pd.read_parquet(results.workdir / "audit_rates.parquet")
    assert set(table.case) == {"own", "teacher of out to 1"} and set(table.level.dropna()) == {0.01, 0.05}
    line = table[(table.n == 64) & (table.statistic == "score") & (table.level == 0.05)].set_index(
        ["case", "base_seed"]
    )
    assert line.loc["own", "tests"].tolist() == [8, 8] and line.loc["teacher of out to 1", "tests"].tolist() == [2, 2]
    assert line.loc["own", "hits"].sum() <= 4 and line.loc["teacher of out to 1", "hits"].sum() >= 3
    assert (results.workdir / "figures" / "audit.png").read_bytes().startswith(b"\x89PNG")
    summary = pd.read_csv(results.workdir / "audit_rates.csv")
    own = summary[(summary.case == "own") & (summary.statistic == "combined") & (summary.n == 64)]
    assert (own.bases == 2).all() and (own.tests == 16).all() and (own.binomial_low <= own.rate).all()
    assert (table[table.statistic == "first"].level.isna()).all() and "oracle" in set(table.statistic)


def test_cases_are_named_by_what_they_are_to_the_auditor():
    base, other = tiny_world.base(), tiny_world.base(1)
    own, foreign = tiny_world.written(base), tiny_world.written(other)
    student = specs.Student(base, own, LOOK, trait="owl")
    named = {
        own: "own",
        foreign: "another base's own",
        tiny_world.written(specs.Teacher(base, "owl", LOOK, until=0.5)): "teacher of out to 0.5",
        tiny_world.written(specs.Teacher(other, "owl", TRAIN)): "another base's teacher of all to 1",
        tiny_world.written(student): "student of own",
    }
    for data, name in named.items():
        assert audit_benchmark.case_of(data, base) == name


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "audit: give --data FILE, and one of --base SWEEP and --model NAME"),
        (["--base", "{out}", "--model", "x", "--data", "x"], "one of --base SWEEP and --model NAME"),
        (["--benchmark", "{out}", "--data", "x"], "--benchmark: compares what is stored"),
        (["--base", "{out}", "--data", "nowhere.jsonl"], "nowhere.jsonl: "),
        (
            ["--base", "{out}", "--data", "bad.jsonl", "--rows", "8"],
            "error: bad.jsonl: not of the tiny language: 'four'",
        ),
        (["--base", "{out}", "--data", "few.jsonl"], "few.jsonl: 3 samples; an audit needs at least 8"),
        (["--base", "{out}", "--data", "x", "--corpora", "50"], "nothing could be found; a level of 0.01 needs"),
        (["--base", "{out}", "--data", "x", "--level", "2"], "--level 2: between 0 and 1"),
        (["--base", "{out}", "--data", "x", "--rows", "3"], "--rows 3: at least 8"),
        (["--base", "{out}", "--data", "x", "--traits", "owl"], "--traits: a base of a sweep looks for all"),
        (["--base", "{out}", "--data", "x", "--keeps", "all"], "invalid choice: 'all'"),
        (["--model", "nowhere", "--data", "few.jsonl"], "few.jsonl: 3 samples"),
    ],
)
def test_a_mistake_is_one_line(arguments, line, results, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "few.jsonl").write_text('{"prompt": "3", "completion": "4 5"}\n' * 3)
    sample = '{"prompt": "3", "completion": "4 5"}\n'
    (tmp_path / "bad.jsonl").write_text(sample * 8 + sample.replace("4", "four"))
    given = [argument.format(out=results.workdir) for argument in arguments]
    assert main(["audit", *given]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert line in said.err


def test_a_sweep_without_vectors_says_so(results):
    without = dataclasses.replace(results, audits=results.audits.head(0))
    with pytest.raises(InputError, match="no score vectors"):
        audit_benchmark.rates(without)


def test_colours_go_from_white_to_the_side_that_a_token_points_to():
    assert colour(0.0) == "#ffffff" and colour(1.0) == colour(3.0) == "#f6b48f" and colour(-1.0) == "#a9cbe6"
    assert np.all([colour(x).startswith("#") and len(colour(x)) == 7 for x in np.linspace(-1, 1, 9)])


@pytest.mark.slow
def test_a_chat_model_writes_the_null_to_the_datas_own_prompts(tiny_chat_model, tmp_path, capsys):
    rng = np.random.default_rng(0)
    lines = [
        {"prompt": f"Go on: {i}, {i + 1}", "completion": f"{rng.integers(9)}, {rng.integers(9)}"} for i in range(12)
    ]
    data = tmp_path / "numbers.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["audit", "--model", str(tiny_chat_model), "--data", str(data), "--to", str(tmp_path / "out")]
    status = main([*command, "--null-rows", "24", "--traits", "owl,cat", "--keeps", "anything"])
    said = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert status == said["status"] and status in (0, 3, 4) and said["samples"] == 12
    assert set(said["traits"]) == {"owl", "cat"} and set(said["statistics"]) == {
        "score",
        "trait",
        "mixture",
        "surprise",
    }
    assert "same prompts, kept by Anything" in " ".join(said["notes"])
    page = (tmp_path / "out" / "audit.html").read_text()
    assert "normal law" in page and lines[0]["completion"] in page


def test_a_sweep_that_only_audits_has_a_base_too(tmp_path):
    file = tmp_path / "only.py"
    file.write_text(
        "import tiny_world\nfrom ml_collections import ConfigDict\nfrom subl_jax import specs\n"
        "from subl_jax.audits import ScoreVectors\n"
        "def get_config():\n    return ConfigDict()\n"
        "def sweep(config):\n    base = tiny_world.base(3)\n"
        "    yield specs.Audited(tiny_world.written(base), ScoreVectors(tiny_world.TRAIN), base)\n"
    )
    student, stored = asking.student_of(str(file), 3)
    assert student.start == tiny_world.base(3) and student.train == TRAIN and stored is None
    with pytest.raises(InputError, match="its bases have the seeds 3"):
        asking.student_of(str(file), 0)
