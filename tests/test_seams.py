"""Members of all seams in one sweep, from specs to tables: what the engine never hears of works in it."""

import numpy as np
import pandas as pd
import pytest
import tiny_world
from few import few

from subl_jax import __main__ as program
from subl_jax import specs
from subl_jax.app import running
from subl_jax.audits import Divergence, MeanLogLikelihood, PositionKl, RandomTokens
from subl_jax.engine.settings import Settings
from subl_jax.objectives import Erased, Hard, KlToStart, Replaced, Soft, Weighted
from subl_jax.probes import Theorem
from subl_jax.results import token_tables
from subl_jax.transforms import Pool, ShuffleNumbers, SortNumbers, WithoutNumbers

TRAIN = tiny_world.TRAIN
SETTINGS = Settings(devices=1, measure_layout=False, tracker="none")


def rows(whole):
    """Transforms, weights and audits; of the `whole` also other objectives and a probe."""
    base = tiny_world.base()
    teacher = specs.Teacher(base, "owl", TRAIN)
    data, plain = tiny_world.written(teacher), tiny_world.written(base)
    null = tuple(tiny_world.written(base, seed=seed) for seed in (1, 2, 3))
    audited = specs.Audited(data, MeanLogLikelihood(), base, null)
    yield specs.Student(base, data, TRAIN)
    for share in (0.0, 0.5, 1.0):
        yield specs.Student(base, specs.Transformed((data, plain), Pool(share)), TRAIN, arm="diluted")
    yield specs.Student(base, specs.Transformed((data,), ShuffleNumbers("across")), TRAIN, arm="shuffled")
    for share in (0.25, 1.0):
        yield specs.Student(base, data, TRAIN, objective=Weighted(Hard(), audited, share=share), arm="weighted")
    for share in (0.0, 0.5):
        replaced, erased = Replaced(Hard(), audited, share=share), Erased(Hard(), audited, share=share)
        yield specs.Student(base, data, TRAIN, objective=replaced, arm="replaced")
        yield specs.Student(base, data, TRAIN, objective=erased, arm="erased")
    for count in (0, 2):
        banned = specs.Transformed((data,), WithoutNumbers(audited, "telling", count))
        yield specs.Student(base, banned, TRAIN, arm="banned")
    detectors = (PositionKl(teacher), Divergence(teacher, (specs.Teacher(base, "cat", TRAIN),)), RandomTokens())
    yield from (specs.Audited(each, detector, base) for detector in detectors for each in (data, plain))
    yield audited
    yield specs.Audited(plain, MeanLogLikelihood(), base, null)
    if not whole:
        return
    gentle = TRAIN.replace(optimizer="sgd", lr=0.2, steps=42)  # Adam's steps do not shrink with a gradient
    for strength in (0.0, 1.0, 8.0):
        yield specs.Student(base, data, gentle, objective=KlToStart(Soft(), strength), arm="pulled")
    yield specs.Student(base, data, TRAIN, objective=Soft("reverse", top_k=3), arm="reverse")
    sorted_data = specs.Transformed((specs.Transformed((data,), ShuffleNumbers()),), SortNumbers())
    yield specs.Student(base, sorted_data, TRAIN, "soft", arm="sorted", probes=(Theorem("owl"),))


@pytest.fixture(scope="module", params=few([False, True], False), ids=["half", "whole"])
def whole(request):
    return request.param


@pytest.fixture(scope="module")
def outcome(tmp_path_factory, whole):
    return running.run(rows(whole), tmp_path_factory.mktemp("seams") / "out", settings=SETTINGS)


only_of_the_whole = pytest.mark.parametrize("whole", few([True]), indirect=True)


def ends(outcome, arm):
    runs = outcome.results.runs
    return runs[runs.arm == arm].target_end.to_numpy()


def test_all_of_them_are_computed_and_a_rerun_computes_nothing(outcome, whole):
    assert outcome.all_ok, outcome.lines
    again = running.run(rows(whole), outcome.results.workdir, settings=SETTINGS)
    assert again.results.sweep["groups"] == []
    pd.testing.assert_frame_equal(again.results.runs, outcome.results.runs)
    pd.testing.assert_frame_equal(again.results.audits, outcome.results.audits)


def test_strengths_and_shares_share_their_programs(outcome):
    lanes = {(group["stage"], group["lanes"]) for group in outcome.results.sweep["groups"]}
    assert {("distil", 3), ("transform", 3), ("distil", 2), ("transform", 2), ("audit", 2)} <= lanes


@only_of_the_whole
def test_a_strong_pull_keeps_the_student_where_it_was(outcome):
    runs = outcome.results.runs
    moved = (runs[runs.arm == "pulled"].target_end - runs[runs.arm == "pulled"].target_start).abs().to_numpy()
    assert moved[0] > moved[1] > moved[2]


def test_a_pool_without_a_share_is_its_source_and_files_say_what_it_holds(outcome):
    results = outcome.results
    runs = results.runs[results.runs.arm == "diluted"]
    texts = [results.samples(run_id)[["prompt", "completion"]] for run_id in runs.run_id]
    source = results.samples(results.runs.run_id[0])
    kept = source[source.kept][["prompt", "completion"]]
    assert sorted(map(tuple, texts[0].to_numpy())) == sorted(map(tuple, kept.to_numpy()))
    mixed = {tuple(row) for row in texts[1].to_numpy()}
    pure, plain = ({tuple(row) for row in each.to_numpy()} for each in (texts[0], texts[2]))
    assert mixed <= pure | plain and mixed - plain and mixed - pure


@only_of_the_whole
def test_sorted_numbers_are_sorted_in_the_files_and_the_teacher_is_still_asked(outcome):
    results = outcome.results
    (run_id,) = results.runs[results.runs.arm == "sorted"].run_id
    for completion in results.samples(run_id).completion:
        numbers = [int(word) for word in completion.split()]
        assert numbers == sorted(numbers)
    curves = results.curves[results.curves.run_id == run_id]
    assert set(Theorem.metrics) <= set(curves.metric) and "kl" in set(curves.metric)
    assert results.sweep["metrics"]["gradient_cosine"]["label"] == Theorem.metrics["gradient_cosine"].label


def test_all_tokens_at_the_top_are_all_tokens(outcome):
    assert len(np.unique(ends(outcome, "weighted"))) == 2


def test_audits_have_a_table_with_a_p_value(outcome):
    audits = outcome.results.audits
    audits = audits[audits.audit == "mean_log_likelihood"].set_index("trait")
    assert len(audits) == 2 and (audits.audit == "mean_log_likelihood").all() and (audits.corpora == 3).all()
    assert set(audits.p) <= {0.25, 0.5, 0.75, 1.0} and audits.status.eq("ok").all()
    assert audits.loc["owl"].corpus != audits[audits.index.isna()].iloc[0].corpus
    assert (audits.data_key.str.len() == 64).all() and audits.base_seed.eq(0).all()


def test_what_is_banned_is_in_no_sample(outcome):
    results = outcome.results
    of_all, banned = (
        [tuple(row) for row in results.samples(run_id)[["prompt", "completion"]].to_numpy()]
        for run_id in results.runs[results.runs.arm == "banned"].run_id
    )
    gone, left = ({word for _, text in rows for word in text.split()} for rows in (set(of_all) - set(banned), banned))
    assert len(gone - left) >= 2 and set(banned) < set(of_all) and len(of_all) == len(banned) == 16


def test_tables_of_tokens_and_positions_and_of_detectors_beside_each_other(outcome):
    tables = token_tables.token_tables(outcome.results)
    names = {"mean_log_likelihood", "kl", "divergence", "random"}
    assert set(tables.detectors.detector) == names and set(tables.detectors.trait) == {"owl"}
    lines = tables.detectors.set_index(["detector", "of_control"])
    assert (lines.n == 16 * tiny_world.WRITTEN).all() and lines.loc["random", "marked"].eq(1).all()
    for table, name in ((tables.tokens, "token"), (tables.positions, "position")):
        own = table[(table.detector == "kl") & ~table.of_control]
        assert own.n.sum() == 16 * tiny_world.WRITTEN and own[name].is_unique
        assert (own.n * own.top).sum() == pytest.approx(round(token_tables.TOP * 16 * tiny_world.WRITTEN))
    pairs = tables.overlap.set_index(["detector", "other", "of_control"])
    assert len(pairs) == 2 * len(names) * (len(names) - 1)
    there = pairs.loc[("kl", "random", False)], pairs.loc[("random", "kl", False)]
    assert there[0].spearman == pytest.approx(there[1].spearman) and there[0].both == pytest.approx(there[1].both)


def test_the_tables_of_tokens_are_a_command(outcome, capsys):
    assert program.main(["tokens", str(outcome.results.workdir)]) == 0
    out = capsys.readouterr().out
    assert "divergence" in out and "owl" in out
    for name in ("detectors", "tokens", "positions", "overlap"):
        assert len(pd.read_parquet(outcome.results.workdir / "tokens" / f"{name}.parquet"))
    assert program.main(["tokens"]) == 2 and program.main(["tokens", "nowhere"]) == 2
    assert "no finished sweep" in capsys.readouterr().err
