"""A sweep in words is the same on the page and elsewhere."""

import html
import types

import numpy as np
import pytest
from fake_results import fake_curves, fake_datasets, fake_runs

from subl_jax.results.comparisons import summarise
from subl_jax.results.findings import findings
from subl_jax.results.report import write_report


@pytest.mark.parametrize("rates", [(1e-3,), (1e-3, 1e-2, 1e-1)])
def test_what_is_found_is_what_the_page_says(rates, tmp_path):
    runs = fake_runs(traits=("owl", "cat"), swept={"student.train.lr": rates})
    # Effects so small that p matters: of several settings it is adjusted.
    small = np.random.default_rng(0).normal(0.003, 0.003, len(runs)) * (runs["arm"] == "same_init")
    runs["target_end"] = runs["target_start"] + small
    found, sweep = summarise(runs), {"sweep": "traits", "base_rate": {"owl": 0.1, "cat": 0.1}}
    page = html.unescape(
        write_report(tmp_path, runs, fake_curves(runs), found, fake_datasets(runs), sweep).read_text(encoding="utf-8")
    )
    said = findings(types.SimpleNamespace(runs=runs, summary=found.summary, comparisons=found.comparisons, sweep=sweep))
    assert [name for name, _ in said] == [f"student.train.lr = {rate:g}" if len(rates) > 1 else "" for rate in rates]
    assert all(line in page for _, line in said)
