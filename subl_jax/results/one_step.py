"""The theorem's table: for every student that recorded it, what one step did, and what was predicted."""

import pandas as pd

_ROUNDING = 4 * 2.0**-23  # relative, of a mean loss in float32
COLUMNS = ("setting", "arm", "epsilon", "lr", "dot", "predicted", "cosine", "loss_change")


def table(runs: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """One row per student that has `theory` set: the columns of `COLUMNS`.

    `predicted` is read before the first step, `dot`, `cosine` and `loss_change` after the last; `epsilon` and `lr` are
    the teacher's and the student's rates. A change of the loss that float32 cannot tell from rounding is missing.
    """
    if "dot" not in curves["metric"].unique():
        return pd.DataFrame(columns=list(COLUMNS))
    wanted = curves[curves["metric"].isin(["dot", "predicted", "trait_loss", "cosine"])]
    ordered = wanted.sort_values("step").groupby(["run_id", "metric"], observed=True)["value"]
    first, last = ordered.first().unstack("metric"), ordered.last().unstack("metric")
    found = runs[runs["status"] == "ok"].drop_duplicates("run_id").set_index("run_id")
    found = found[found.index.isin(last.index[last["dot"].notna()])]
    first, last = first.loc[found.index], last.loc[found.index]
    change = last["trait_loss"] - first["trait_loss"]
    seen = change.abs() > _ROUNDING * first["trait_loss"].abs()
    return pd.DataFrame(
        {
            "setting": [_setting(row) for row in found.to_dict("records")],
            "arm": found["arm"],
            "epsilon": found.get("teacher.train.lr"),
            "lr": found["student.train.lr"],
            "dot": last["dot"],
            "predicted": first["predicted"],
            "cosine": last.get("cosine"),
            "loss_change": change.where(seen),
        }
    ).reset_index(drop=True)


def summary(steps: pd.DataFrame) -> pd.DataFrame:
    """Per setting, arm and both steps: students, the share that went the teacher's way, and how well predicted.

    `lowered` is the share of students whose trait's loss fell, of those where it changed by more than rounding. `ratio`
    is the median of dot / predicted, which the theorem has go to 1 as both steps go to 0, for the same start.
    """
    steps = steps.assign(ratio=steps["dot"] / steps["predicted"].where(steps["predicted"] != 0))
    grouped = steps.groupby(["setting", "arm", "epsilon", "lr"], sort=True)
    return grouped.agg(
        students=("dot", "size"),
        forward=("dot", lambda dot: float((dot > 0).mean())),
        lowered=("loss_change", lambda change: float((change.dropna() < 0).mean())),
        cosine=("cosine", "mean"),
        ratio=("ratio", "median"),
    ).reset_index()


def _setting(row: dict[str, object]) -> str:
    logits = row.get("data.sampling.logits")
    parts = [str(row["world"]), str(row["student.targets"]), *([str(logits)] if isinstance(logits, str) else [])]
    return " · ".join(parts)
