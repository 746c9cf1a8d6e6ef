"""Old import paths of results: every name that was there is there, with a line that says where it is now."""

import importlib
import sys

import pandas as pd
import pytest
from fake_results import fake_runs

from subl_jax.results import comparisons, wide_summary

STATISTICS = [
    "COMPARED",
    "CORE_ARMS",
    "Cells",
    "Columns",
    "OTHERS",
    "POOLED",
    "RARE",
    "are_rare",
    "by_base",
    "cell_name",
    "columns",
    "compared",
    "difference_columns",
    "distinct_cells",
    "gain",
    "hashable",
    "holm",
    "interval",
    "of_runs",
    "ordered_arms",
    "paired_p",
    "rare",
    "ratio_columns",
    "references",
    "replication_unit",
    "summarise",
    "swept_columns",
    "t_intervals",
]
FIGURES = [
    "arm_colours",
    "arm_label",
    "compared_label",
    "comparison",
    "details",
    "dose_response",
    "factor",
    "number",
    "p_value",
    "retention",
    "theorem",
    "training_curves",
    "trait_matrix",
    "transfer_curves",
]


@pytest.mark.parametrize(
    ("path", "names", "now"),
    [
        ("analysis.statistics", STATISTICS, "results.comparisons"),
        ("figures", FIGURES, "results.figures"),
        ("report", ["write_report", "headline"], "results.report"),
    ],
)
def test_old_paths_have_all_their_names(path, names, now):
    sys.modules.pop(f"subl_jax.{path}", None)
    with pytest.warns(DeprecationWarning, match=f"subl_jax.{path} is now subl_jax.{now}"):
        module = importlib.import_module(f"subl_jax.{path}")
    assert [name for name in names if not hasattr(module, name)] == []


def test_the_old_summary_is_wide():
    with pytest.warns(DeprecationWarning):
        sys.modules.pop("subl_jax.analysis.statistics", None)
        statistics = importlib.import_module("subl_jax.analysis.statistics")
    runs = fake_runs(traits=("owl",))
    summary = statistics.summarise(runs)
    pd.testing.assert_frame_equal(summary, wide_summary(*comparisons.summarise(runs)))
    assert statistics.columns("control", rare=True).p == "p_ratio_control" and not statistics.are_rare(summary)
    assert statistics.compared(summary) == ["cross_init", "control"]
