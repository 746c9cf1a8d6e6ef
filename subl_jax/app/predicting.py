"""What `python -m subl_jax predict` computes and prints."""

from typing import Any

import numpy as np
import pandas as pd
from etils import epath
from rich.table import Table

from subl_jax import specs
from subl_jax.app.asking import computed
from subl_jax.audits import AdamUpdate, FirstUpdate, FisherUpdate, Prediction, PromptRatio, Rollout
from subl_jax.channels.imported import suspicious
from subl_jax.errors import InputError
from subl_jax.storage.store import Store

_NULL_ROWS = 1024  # samples that the base writes, at most


def gains(
    student: specs.Student, stored: Store | None, data: specs.Data, folder: epath.Path, rows: int, rollout: int
) -> tuple[pd.DataFrame, list[str]]:
    """Predicted gains (traits, predictors), and lines to show. `stored` is where the base may be finished already.

    Raises:
      InputError: the student, its world or the data do not allow it; the base wrote too little.
    """
    written = student.data
    null = written.replace(teacher=student.start, size=min(written.size, _NULL_ROWS), seed=0)
    audits: list[Prediction] = [each(student.train, null, student.lora, rows=rows) for each in _predictors(student)]
    if rollout:
        audits.append(Rollout(student.train, null, student.lora, steps=rollout))
    audited = [specs.Audited(data, audit, student.start) for audit in audits]
    store = computed(audited, student.start, stored, folder, "predict")
    bad = next((store.row(each.key) for each in audited if store.status(each.key) != "ok"), None)
    if bad is not None:
        raise InputError(f"this cannot be predicted: {bad.why}")
    traits = student.world.traits
    curves = {each.audit.kind: store.curves(each.key)[1] for each in audited}
    table = pd.DataFrame(
        {kind: [float(curve[f"gain/{trait}"][-1]) for trait in traits] for kind, curve in curves.items()}, index=traits
    )
    told = suspicious(data, student.world.standard_filter)
    return table, [f"warning: {told}"] if told else []


def _predictors(student: specs.Student) -> tuple[type[Prediction], ...]:
    """Those that need every sample's gradient only where these are small; told bases where there are such."""
    told = (PromptRatio,) if isinstance(student.world, specs.TakesSystemPrompts) else ()
    return (FirstUpdate, *told) if student.lora else (FirstUpdate, AdamUpdate, FisherUpdate, *told)


def shown(gains: pd.DataFrame, most: int = 24) -> Table:
    """Traits by their mean rank over predictors, with every predictor's gain and rank."""
    ranks = gains.rank(ascending=False, method="first").astype(int)
    ordered = ranks.mean(axis=1).sort_values(kind="stable").index[:most]
    table = Table("trait", *(column for name in gains for column in (name.replace("_", " "), "rank")))
    for trait in ordered:
        cells: list[str] = []
        for name in gains:
            cells += [f"{gains.loc[trait, name]:+.3g}", str(ranks.loc[trait, name])]
        table.add_row(trait, *cells)
    return table


def scores(summary: pd.DataFrame) -> Table:
    """The summary of a benchmark: its test half, where there is one."""
    half = "test" if (summary["half"] == "test").any() else summary["half"].iloc[0]
    summary = summary[summary["half"] == half]
    if summary["setting"].nunique() == 2:  # one setting, which is all there is
        summary = summary[summary["setting"] != "all"]
    table = Table(title=f"{half} half of the bases; means and 95 % intervals over bases")
    for name in ("predictor", "setting", "datasets", "first", "Spearman", "wrong sign", "slope", "cost, once"):
        table.add_column(name, no_wrap=name == "predictor")
    for row in summary.to_dict("records"):
        table.add_row(
            row["predictor"].replace("_", " "),
            row["setting"],
            str(row["datasets"]),
            *(_interval(row, name) for name in ("top1", "spearman", "sign_errors", "slope")),
            f"{row['cost']:.1%}, {row['cost_once']:.1%}",
        )
    return table


def _interval(row: dict[str, Any], name: str) -> str:
    if not np.isfinite(row[name]):
        return "–"
    if not np.isfinite(row[f"{name}_low"]):
        return f"{row[name]:.2f}"
    return f"{row[name]:.2f} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"
