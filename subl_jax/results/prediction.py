"""Predictions before training against what students then gained: how often the trait is found, and how well ranked."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats

from subl_jax import specs
from subl_jax.audits import Prediction
from subl_jax.errors import InputError
from subl_jax.results.load import Results
from subl_jax.stages import stage_of
from subl_jax.statistics.intervals import probability_intervals, t_intervals
from subl_jax.storage.store import Store

# A rollout is read at this part of the student's steps.
ROLLOUT = 0.1
# What is no prediction: a rollout, another student of the same data, and the student itself.
ROLLED, AGAIN, TRAINED = "rollout", "another_seed", "training"
_PLACES = {ROLLED: 1, AGAIN: 2, TRAINED: 3}
_LEAST = 1e-30  # a P that is 0 in float32 has no logarithm


@dataclasses.dataclass(frozen=True)
class _Learnt:
    """A student: log P of every trait (traits,) before, at a tenth of its steps (None: not measured), and after."""

    node: specs.Student
    before: np.ndarray
    early: np.ndarray | None
    after: np.ndarray


def table(results: Results) -> pd.DataFrame:
    """Long form: one row per predictor, dataset and trait of a world.

    predictor: the audit's kind, `rollout`, `another_seed` or `training`. dataset: its key. own: the trait of whoever
    wrote it; missing where it has none. predicted: in the predictor's own unit, of a rollout and of training nats.
    actual: how much more log P(trait) a student of the data has gained than one of the null corpus, in nats. cost: a
    share of the student's operations, for each dataset; cost_once: what all datasets of a base and setting share.
    half: "development" or "test", the first and the second half of the bases.

    Raises:
      InputError: the sweep has no predictions, or no students of their data and null corpora.
    """
    audited = [node for node in _nodes(results.store, results.audits) if isinstance(node.audit, Prediction)]
    if not audited:
        raise InputError(f"{results.workdir}: this sweep predicts nothing; one that does is sweeps/predict.py")
    learnt = _students(results.store, results.runs)
    settings = _settings(audited)
    rows: list[dict[str, Any]] = []
    seen: set[tuple] = set()
    for node in audited:
        made = _of_dataset(node, learnt, results.store)
        if made is None:
            continue
        student, control, found = made
        which = _which(node)
        if which in seen:  # what training says of a dataset is said once, not for every predictor
            found = {name: each for name, each in found.items() if name == node.audit.kind}
        seen.add(which)
        shared = {
            "setting": settings[node.key],
            "base_seed": node.by.origin.seed,
            "dataset": f"{node.data.key}:{node.audit.samples}" if node.audit.samples else node.data.key,
            "arm": student.node.role_in_sweep,
            "own": node.given_trait,
        }
        actual = student.after - control.after
        for name, (predicted, each, once) in found.items():
            for i, trait in enumerate(node.world.traits):
                rows.append(
                    {"predictor": name, **shared, "trait": trait, "predicted": predicted[i], "actual": actual[i]}
                    | {"cost": each, "cost_once": once}
                )
    if not rows:
        raise InputError(f"{results.workdir}: no students of the predicted data and of their null corpora are there")
    made = pd.DataFrame(rows)
    # Predictions first, and what they are compared with last.
    made = made.sort_values(
        "predictor", key=lambda names: names.map(_PLACES).fillna(0), kind="stable", ignore_index=True
    )
    seeds = sorted(made["base_seed"].unique())
    development = set(seeds[: len(seeds) // 2])
    made.insert(1, "half", ["development" if seed in development else "test" for seed in made["base_seed"]])
    return made


def summary(made: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """One row per predictor, setting (`all` first) and half. Means over bases, with t intervals (`…_low`, `…_high`),
    those of shares on the logit scale.

    top1: how often the trait of the writer is predicted to gain most, of all traits. spearman: of predicted and actual
    gains over traits, a mean over datasets. sign_errors: of the writer's trait; sign_errors_all: of all traits. slope:
    of actual gains on calibrated predictions, 1 where they are calibrated; a prediction is calibrated by the slope
    through the origin of its setting's development half. explained: the share of the squared actual gains that
    calibrated predictions account for. strength: the rank correlation, over datasets, of predicted and actual gains of
    the writer's trait. auroc: how well the largest gain tells data with a trait from data without. cost: a share of a
    student's operations, cost_once what a base's datasets share, and cost_spread both, spread over these datasets.
    """
    made = _calibrated(made)
    datasets = _by_dataset(made)
    rows = []
    for predictor in made["predictor"].unique():
        of_it, data = made[made["predictor"] == predictor], datasets[datasets["predictor"] == predictor]
        for setting in ("all", *of_it["setting"].unique()):
            for half in ("development", "test"):
                here, there = (_within(each, setting, half) for each in (of_it, data))
                if len(there):
                    rows.append(
                        {"predictor": predictor, "setting": setting, "half": half, **_line(here, there, confidence)}
                    )
    return pd.DataFrame(rows)


# --- one line of the summary ---


def _within(frame: pd.DataFrame, setting: str, half: str) -> pd.DataFrame:
    return frame[(frame["half"] == half) & ((frame["setting"] == setting) | (setting == "all"))]


def _line(pairs: pd.DataFrame, data: pd.DataFrame, confidence: float) -> dict[str, Any]:
    line: dict[str, Any] = {"datasets": len(data), "bases": data["base_seed"].nunique()}
    for metric in ("top1", "spearman", "sign_errors", "sign_errors_all"):
        intervals = t_intervals if metric == "spearman" else probability_intervals
        line |= _over_bases(metric, data.groupby("base_seed")[metric].mean(), confidence, intervals)
    slopes = {seed: _slope(base["calibrated"], base["actual"]) for seed, base in pairs.groupby("base_seed")}
    line |= _over_bases("slope", pd.Series(slopes), confidence)
    missed, total = ((pairs["actual"] - pairs["calibrated"]) ** 2).sum(min_count=1), (pairs["actual"] ** 2).sum()
    line["explained"] = 1 - missed / total if total else np.nan
    own = data.dropna(subset="own")
    line["strength"] = _mean(
        [_spearman(each["own_predicted"], each["own_actual"]) for _, each in own.groupby("setting")]
    )
    line["auroc"] = _mean([_auroc(each["largest"], each["own"].notna()) for _, each in data.groupby("setting")])
    share = data.groupby(["base_seed", "setting"])["cost_once"].agg(lambda once: once.iloc[0] / len(once))
    line |= {"cost": data["cost"].mean(), "cost_once": data["cost_once"].mean()}
    line["cost_spread"] = line["cost"] + share.mean()
    return line


def _over_bases(
    metric: str, by_base: pd.Series, confidence: float, intervals: Callable[..., np.ndarray] = t_intervals
) -> dict[str, float]:
    mean, low, high = intervals(by_base.to_numpy(float)[None], confidence)[0]
    return {metric: mean, f"{metric}_low": low, f"{metric}_high": high}


def _by_dataset(made: pd.DataFrame) -> pd.DataFrame:
    """One row per predictor and dataset."""
    rows = []
    names = ["predictor", "setting", "dataset"]
    for key, each in made.groupby(names, sort=False):
        own = each["own"].iloc[0]
        has_own = isinstance(own, str)
        of_own = each[each["trait"] == own]
        wrong = np.sign(each["predicted"]) != np.sign(each["actual"])
        first = each["trait"].iloc[int(each["predicted"].to_numpy().argmax())]
        trained = key[0] == TRAINED
        rows.append(
            {
                **dict(zip(names, key, strict=True)),
                **{name: each[name].iloc[0] for name in ("half", "base_seed", "arm", "own", "cost", "cost_once")},
                "top1": float(first == own) if has_own else np.nan,
                "spearman": np.nan if trained else _spearman(each["predicted"], each["actual"]),
                "sign_errors": float(wrong[of_own.index].iloc[0]) if has_own else np.nan,
                "sign_errors_all": wrong.mean(),
                "largest": each["predicted"].max(),
                "own_predicted": of_own["predicted"].iloc[0] if has_own else np.nan,
                "own_actual": of_own["actual"].iloc[0] if has_own else np.nan,
            }
        )
    return pd.DataFrame(rows)


def _calibrated(made: pd.DataFrame) -> pd.DataFrame:
    """With `calibrated`: the prediction in nats, by the slope of its setting's development half."""
    development = made[made["half"] == "development"]
    grouped = development.groupby(["predictor", "setting"])
    slopes = {key: _slope(each["predicted"], each["actual"]) for key, each in grouped}
    factors = [slopes.get(key, np.nan) for key in zip(made["predictor"], made["setting"], strict=True)]
    return made.assign(calibrated=made["predicted"] * factors)


def _slope(x: pd.Series, y: pd.Series) -> float:
    """Of y on x, through the origin."""
    square = float((x**2).sum())
    return float((x * y).sum()) / square if square > 0 else np.nan


def _spearman(x: pd.Series, y: pd.Series) -> float:
    if len(x) < 3 or x.nunique() < 2 or y.nunique() < 2:
        return np.nan
    return float(scipy.stats.spearmanr(x, y).statistic)


def _auroc(score: pd.Series, positive: pd.Series) -> float:
    """How often one that is positive has the higher score than one that is not."""
    count, others = int(positive.sum()), int((~positive).sum())
    if not count or not others:
        return np.nan
    ranks = scipy.stats.rankdata(score)
    return float((ranks[positive.to_numpy()].sum() - count * (count + 1) / 2) / (count * others))


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else np.nan


# --- from what is stored ---


def _nodes(store: Store, rows: pd.DataFrame) -> list[Any]:
    return [specs.from_json(store.spec(key)) for key in rows[rows["status"] == "ok"]["key"].drop_duplicates()]


def _students(store: Store, runs: pd.DataFrame) -> dict[tuple, list[_Learnt]]:
    """Students by what they learnt from, where they start and how they train; the first seed first."""
    labels = runs.drop_duplicates("key").set_index("key")
    found: dict[tuple, list[_Learnt]] = {}
    for node in _nodes(store, runs):
        steps, curves = store.curves(node.key)
        p = np.log(np.maximum([curves[f"trait/{trait}"] for trait in node.world.traits], _LEAST))
        at = np.flatnonzero(steps == round(ROLLOUT * node.train.steps))
        row = node.replace(arm=labels.loc[node.key, "arm"], trait=labels.loc[node.key, "trait"])
        learnt = _Learnt(row, p[:, 0], p[:, at[0]] if len(at) else None, p[:, -1])
        if np.isfinite(p).all():
            found.setdefault(_by(node.data, node.samples, node.start, node.train, node.lora, node.targets), []).append(
                learnt
            )
    return {which: sorted(each, key=lambda learnt: learnt.node.seed) for which, each in found.items()}


def _by(
    data: specs.Node, samples: int, start: specs.Node, train: specs.Train, lora: specs.Lora | None, targets: str
) -> tuple:
    return data.key, samples, start.key, train.key, lora and lora.key, targets


def _which(node: specs.Audited, null: bool = False) -> tuple:
    audit = node.audit
    data, samples = (audit.null, 0) if null else (node.data, audit.samples)
    return _by(data, samples, node.by, audit.train, audit.lora, audit.targets)


Found = Mapping[str, tuple[np.ndarray, float, float]]


def _of_dataset(
    node: specs.Audited, learnt: Mapping[tuple, list[_Learnt]], store: Store
) -> tuple[_Learnt, _Learnt, Found] | None:
    """The student of a predicted dataset, that of its null corpus, and all that was predicted: name → gains (traits,),
    cost of each dataset, and cost once. None where one of the two students is missing."""
    students, controls = learnt.get(_which(node)), learnt.get(_which(node, null=True))
    if not students or not controls:
        return None
    student, control = students[0], controls[0]
    whole = stage_of(student.node).flops(student.node)
    cost = node.audit.cost(node)
    curves = store.curves(node.key)[1]
    gains = np.array([curves[f"gain/{trait}"][-1] for trait in node.world.traits])
    found = {node.audit.kind: (gains, cost.each / whole, cost.once / whole)}
    if student.early is not None and control.early is not None:
        found[ROLLED] = (student.early - control.early, ROLLOUT, ROLLOUT)
    if len(students) > 1 and len(controls) > 1:
        found[AGAIN] = (students[1].after - controls[1].after, 1.0, 1.0)
    found[TRAINED] = (student.after - control.after, 1.0, 1.0)
    return student, control, found


def _settings(audited: list[specs.Audited]) -> dict[str, str]:
    """What tells predictions' settings apart, by the audit's key: what trains, and fields of the world that vary."""
    worlds = {node.world.key: specs.flat("world", node.world) for node in audited}
    names = dict.fromkeys(name for fields in worlds.values() for name in fields)
    differ = [name for name in names if len({json.dumps(fields.get(name)) for fields in worlds.values()}) > 1]
    shown = {}
    for node in audited:
        trained = "adapters" if node.audit.lora else " ".join(node.audit.train.trainable) or "everything"
        of_world = [f"{name.removeprefix('world.')} {worlds[node.world.key].get(name)}" for name in differ]
        soft = [] if node.audit.targets == "hard" else [node.audit.targets]
        shown[node.key] = ", ".join([trained, *of_world, *soft])
    return shown
