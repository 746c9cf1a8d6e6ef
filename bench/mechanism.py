"""Where in the network a trait sits, asked of the stored models of finished sweeps; nothing is trained.

    python bench/mechanism.py --tokens runs/tokens --predict runs/predict

`--tokens` is the workdir of sweeps/tokens.py, `--predict` one of sweeps/predict.py, and either may be left out. Tables
go to `--out`, a row a cell with n (bases), mean and 95 % interval:

    directions.csv             teachers' and students' directions in the residual stream (docs/layers.md)
    parts.csv                  P(trait) with one part of an update alone, and without it
    layer_parts.png            their picture
    first_update_by_part.csv   what a first step in one part of the model says of the writer's trait
    direction_cosine.csv       how gains go with the cosine to the teacher, within a base (docs/prediction.md)
"""

import argparse
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import scipy.stats
from jax.flatten_util import ravel_pytree

import subl_jax
from subl_jax import specs
from subl_jax.audits import AdamUpdate, Coverage, DirectionCosine, FirstUpdate
from subl_jax.probes import Direction, Parts, Patched, WithoutTeacher, WithoutVector
from subl_jax.results import Results
from subl_jax.results.afterwards import measured
from subl_jax.results.figures import style
from subl_jax.statistics.intervals import interval
from subl_jax.training import optim

PARTS = {
    **{f"layer {i}": f"layers_{i}/*" for i in range(2)},
    **{f"layer {i}, {name} norm": f"layers_{i}/{name}_norm/*" for i in range(2) for name in ("attention", "mlp")},
    "both layers": "layers_*",
    "final norm": "final_norm/*",
}
STEPS = {
    "embedding": "embed/*",
    **{f"layer {i}": f"layers_{i}/*" for i in range(2)},
    **{f"layer {i}, {name}": f"layers_{i}/{name}/*" for i in range(2) for name in ("attention", "mlp")},
    **{f"layer {i}, norms": f"layers_{i}/*_norm/*" for i in range(2)},
    "final norm": "final_norm/*",
    "all norms": "*_norm/*",
    "all": "*",
}
BASE = ["arm", "trait", "base_seed"]


def line(of_bases: pd.Series, probability: bool = False) -> dict[str, float]:
    mean, low, high = interval(of_bases, probability=probability)
    return {"n": int(of_bases.notna().sum()), "mean": mean, "low": low, "high": high}


def beside(results: Results) -> tuple[pd.DataFrame, dict[str, str]]:
    """Students of all norms' gains with their controls, and for each control the student that it stands beside."""
    runs = results.runs[results.runs["arm"].isin(["same_init", "control"]) & (results.runs["status"] == "ok")]
    runs = runs[runs["student.train.trainable"] == json.dumps(["*_norm/*"])]
    own = runs[runs["arm"] == "same_init"].set_index(["base_seed", "trait"])["run_id"].to_dict()
    controls = runs[runs["arm"] == "control"]
    places = {row.run_id: (row.base_seed, row.trait) for row in controls.itertuples()}
    teachers = {run_id: own[place] for run_id, place in places.items() if place in own}
    return runs[(runs["arm"] == "same_init") | runs["run_id"].isin(teachers)], teachers


def probed(results: Results, probes: Any, probability: bool = True) -> pd.DataFrame:
    """What probes say, by arm and metric. What is of the teacher alone is said once."""
    runs, teachers = beside(results)
    found = measured(results, runs["run_id"], probes, teachers).merge(runs[["run_id", *BASE]], on="run_id")
    of_teacher = found["metric"].str.startswith(("patched", "teacher"))
    found = found[~(of_teacher & (found["arm"] == "control"))]
    return pd.DataFrame(
        {"arm": arm, "metric": metric, "traits": rows["trait"].nunique()}
        | line(
            rows.groupby("base_seed")["value"].mean(),
            probability and not metric.startswith(("residual", "along")),
        )
        for (arm, metric), rows in found.groupby(["arm", "metric"], sort=False)
    )


def directions(results: Results) -> pd.DataFrame:
    def probes(student: specs.Student) -> list[specs.Probe]:
        layers, trait = tuple(range(student.world.layers)), student.data.teacher.trait
        return [Direction(layers), Patched(layers, trait), WithoutVector(layers, trait), WithoutTeacher(trait)]

    def farther(student: specs.Student) -> list[specs.Probe]:
        return [Patched(tuple(range(student.world.layers)), student.data.teacher.trait, scale=4.0)]

    more = probed(results, farther).assign(metric=lambda found: found["metric"].str.replace("/", " × 4/"))
    return pd.concat([probed(results, probes), more], ignore_index=True)


def parts(results: Results, sweep: str) -> pd.DataFrame:
    found = probed(results, lambda student: [Parts(tuple(PARTS.values()), student.data.teacher.trait)])
    name = found["metric"].str.split("/", expand=True)
    of = np.where(name[0].str.startswith("teacher"), "teacher", "student")
    update = name[0].str.removeprefix("teacher_")
    part = name[1].astype(int).map(dict(enumerate(PARTS)))
    named = pd.DataFrame({"sweep": sweep, "arm": found["arm"], "of": of, "update": update, "part": part})
    return named.join(found[["n", "traits", "mean", "low", "high"]])


def drawn(table: pd.DataFrame) -> Any:
    """P(trait) with each part of the update alone, and without it: of teachers, and of students."""
    names = ["layer 0", "layer 1", "both layers", "final norm"]
    shown = table[(table["sweep"] == "tokens") & (table["arm"] == "same_init")].set_index(["of", "update", "part"])
    figure = style.blank(7.2, 2.7)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, of in zip(axes, ("teacher", "student"), strict=True):
        style.clean(axis, grid="x")
        for shift, update, label, colour in (
            (0.14, "only", "this part of the update alone", "#3b6fb6"),
            (-0.14, "without", "all but this part", "#d17b2a"),
        ):
            rows = shown.loc[[(of, update, name) for name in names]]
            y = np.arange(len(names))[::-1] + shift
            axis.hlines(y, rows["low"], rows["high"], color=colour, linewidth=1.8)
            axis.scatter(rows["mean"], y, s=26, color=colour, edgecolor="white", linewidth=0.6, zorder=3, label=label)
        axis.axvline(1 / 12, color=style.CHANCE, linewidth=1, linestyle=(0, (4, 3)))
        axis.set_xlim(left=0)
        axis.set_title(f"the {of}'s update", fontsize=9.5, fontweight="bold")
        axis.set_xlabel("P(trait)", fontsize=9.5)
    axes[0].set_yticks(range(len(names)), names[::-1], fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8.5, frameon=False)
    return figure


# --- first steps ---


def nulls(results: Results) -> dict[Any, specs.Dataset]:
    """(base, what trains) → what the base wrote, from its controls."""
    controls = results.runs[results.runs["arm"] == "control"]
    found = [results.student(run_id).node for run_id in controls["run_id"]]
    return {(student.start, student.train.trainable): student.data for student in found}


def stored(results: Results, node: specs.Node) -> Any:
    return results.store.get(node.key)


def first_updates(results: Results) -> pd.DataFrame:
    """Of a first step in one part alone: does the writer's trait gain most of all, and how much does it gain?"""
    runs, null = beside(results)[0], nulls(results)
    rows, programs = [], {}
    for row in runs[runs["arm"] == "same_init"].itertuples():
        student = results.student(row.run_id).node
        world, plain = student.world, null[student.start, student.train.trainable]
        program = programs.setdefault(world, jax.jit(_steps_of(world, plain)))
        start, data, written = (stored(results, node) for node in (student.start, student.data, plain))
        trait = world.traits.index(student.data.teacher.trait)
        for kind, gains in program(start["params"], *map(jnp.asarray, (data["samples"], written["samples"]))).items():
            for part, of_traits in zip(STEPS, np.asarray(gains), strict=True):
                place = {"predictor": kind, "part": part, "base_seed": row.base_seed, "trait": row.trait}
                z = (of_traits[trait] - of_traits.mean()) / of_traits.std()
                rows.append(place | {"top1": float(of_traits.argmax() == trait), "z": z, "gain": of_traits[trait]})
    made = pd.DataFrame(rows)
    return pd.DataFrame(
        {"predictor": kind, "part": part, "measure": measure, "traits": found["trait"].nunique()}
        | line(found.groupby("base_seed")[measure].mean(), measure == "top1")
        for (kind, part), found in made.groupby(["predictor", "part"], sort=False)
        for measure in ("top1", "z", "gain")
    )


def _steps_of(world: specs.World, null: specs.Dataset) -> Any:
    everything = specs.Train(steps=1, batch=64)
    audits = [
        FirstUpdate(everything, null, rows=2048, null_rows=2048),
        AdamUpdate(everything, null, rows=512, null_rows=512),
    ]

    def steps(start: Any, data: jax.Array, written: jax.Array) -> dict[str, jax.Array]:
        context = specs.Context(world, jax.random.key(0), start, None, {})
        masks = []
        for pattern in STEPS.values():
            inside = optim.named((pattern,), start)
            masks.append(ravel_pytree(jax.tree.map(lambda this, x: jnp.full(x.shape, float(this)), inside, start))[0])
        found = {}
        for audit in audits:
            bound = specs.bind(audit, specs.traced_values(audit, world))
            student = bound.at_start(context)
            step = bound.first_step(student, data[: audit.rows], written[: audit.null_rows]).step
            found[audit.kind] = jax.lax.map(
                lambda mask, student=student, step=step: student.gains(mask * step), jnp.stack(masks)
            )
        return found

    return steps


def cosines(results: Results, name: str) -> Iterator[dict[str, Any]]:
    """Rank correlations over the datasets of a base with the student's gain of log P, by what trains."""
    null, programs, rows = nulls(results), {}, []
    runs = results.runs[(results.runs["status"] == "ok") & results.runs["arm"].isin(["same_init", "weak", "few"])]
    reached = results.datasets.set_index("key")["p_trait"]
    for row in runs.itertuples():
        student = results.student(row.run_id).node
        plain, teacher = null[student.start, student.train.trainable], student.data.teacher
        audits = [each(student.train, plain, samples=student.samples) for each in (DirectionCosine, Coverage)]
        for audit in audits:
            form = f"{student.world} {specs.static_form(audit)}"
            program = programs.setdefault(form, jax.jit(_score_of(audit, student.world)))
            inputs = {
                "null": stored(results, plain),
                "writer": stored(results, teacher),
                "writer_start": stored(results, teacher.start),
            }
            start, data = (
                stored(results, student.start)["params"],
                jnp.asarray(stored(results, student.data)["samples"]),
            )
            score = float(program(specs.traced_values(audit, student.world), start, inputs, data))
            place = {"predictor": audit.kind, "trains": " ".join(student.train.trainable), "arm": row.arm}
            gain = np.log(row.target_end / row.target_start)
            rows.append(place | {"base_seed": row.base_seed, "score": score, "gain": gain})
        rows.append(rows[-1] | {"predictor": "teacher's P(trait)", "score": reached[row.data_key]})
    made = pd.DataFrame(rows)
    for (kind, trains), found in made.groupby(["predictor", "trains"], sort=False):
        for which in ("same_init", "all"):
            here = found if which == "all" else found[found["arm"] == which]
            if which == "all" and found["arm"].nunique() == 1:
                continue
            within = here.groupby("base_seed").apply(_rank_correlation, include_groups=False)
            yield {"sweep": name, "trains": trains, "data": which, "predictor": kind, "datasets": len(here)} | line(
                within
            )
    for kind, found in made.groupby("predictor", sort=False):
        if found["trains"].nunique() > 1:
            pooled = {"sweep": name, "trains": "both, pooled", "data": "all", "predictor": kind, "datasets": len(found)}
            yield pooled | {"n": found["base_seed"].nunique(), "mean": _rank_correlation(found)}


def _rank_correlation(rows: pd.DataFrame) -> float:
    return scipy.stats.spearmanr(rows["score"], rows["gain"]).statistic


def _score_of(audit: specs.Audit, world: specs.World) -> Any:
    def score(values: dict[str, Any], start: Any, inputs: Any, samples: jax.Array) -> jax.Array:
        context = specs.Context(world, jax.random.key(0), start, None, inputs)
        return specs.bind(audit, values).score(context, samples).corpus

    return score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=pathlib.Path)
    parser.add_argument("--predict", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("build/bench"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    tables: dict[str, pd.DataFrame] = {}
    of_cosines: list[dict[str, Any]] = []
    if given.tokens:
        results = subl_jax.load(given.tokens)
        tables = {
            "directions": directions(results),
            "parts": parts(results, "tokens"),
            "first_update_by_part": first_updates(results),
        }
        of_cosines += cosines(results, "tokens")
    if given.predict:
        results = subl_jax.load(given.predict)
        tables["parts"] = pd.concat([tables.get("parts"), parts(results, "predict")], ignore_index=True)
        of_cosines += cosines(results, "predict")
    if of_cosines:
        tables["direction_cosine"] = pd.DataFrame(of_cosines)
    for name, table in tables.items():
        table.round(4).to_csv(given.out / f"{name}.csv", index=False)
        print(f"{given.out / name}.csv: {len(table)} rows")
    if given.tokens:
        drawn(tables["parts"]).savefig(given.out / "layer_parts.png", dpi=150)


if __name__ == "__main__":
    main()
