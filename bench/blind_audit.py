"""A blind trial of the audit: corpora with hidden labels, verdicts, and only then the labels.

    blind_audit.py make WORKDIR FOLDER     corpora of a finished sweep of sweeps/audit.py: FOLDER/NN.jsonl, a third of
                                           them the bases' own; labels.json, and its hash in labels.sha256
    blind_audit.py judge WORKDIR FOLDER    audits each with its base; reads no label; FOLDER/verdicts.csv
    blind_audit.py open FOLDER             verdicts and labels beside each other; FOLDER/opened.csv

Commit labels.sha256 and verdicts.csv before you open.
"""

import contextlib
import hashlib
import io
import json
import pathlib
import secrets
import sys

import numpy as np
import pandas as pd

from subl_jax import specs
from subl_jax.__main__ import main
from subl_jax.results import load
from subl_jax.results.audit_benchmark import OWN, case_of
from subl_jax.storage import jsonl

CORPORA, SIZE, BASES, LEVEL, NULL = 40, 256, 8, 0.01, 200


def make(workdir: str, folder: pathlib.Path) -> None:
    """Corpora are of samples that no null of the judge has: the judge's base writes anew, from another seed."""
    results = load(workdir)
    rng = np.random.default_rng(secrets.randbits(64))
    nodes = [specs.from_json(results.store.spec(key)) for key in results.audits["key"]]
    sets = {(node.by.seed, node.data.key): node for node in nodes if isinstance(node.by, specs.Base)}
    by_case: dict[bool, list[specs.Audited]] = {True: [], False: []}
    for node in sets.values():
        case = case_of(node.data, node.by)
        if case == OWN and node.data.seed or case.startswith("teacher"):
            by_case[case == OWN].append(node)
    bases = rng.permutation(sorted({node.by.seed for node in by_case[False]}))[:BASES]
    labels = {}
    folder.mkdir(parents=True)
    for i, own in enumerate(rng.permutation(np.arange(CORPORA) < round(CORPORA / 3))):
        there = [node for node in by_case[bool(own)] if node.by.seed in bases]
        node = there[rng.integers(len(there))]
        samples = np.asarray(results.store.get(node.data.key)["samples"])
        pairs = node.data.world.texts(samples[rng.permutation(len(samples))[:SIZE]])
        jsonl.write_jsonl(folder / f"{i:02d}.jsonl", pairs)
        case = case_of(node.data, node.by)
        labels[f"{i:02d}"] = {"base_seed": node.by.seed, "case": case, "trait": node.data.given_trait or ""}
    text = json.dumps(labels, indent=1)
    (folder / "labels.json").write_text(text)
    (folder / "labels.sha256").write_text(hashlib.sha256(text.encode()).hexdigest() + "\n")
    # Whose base it may be is no secret: an audit is of a base.
    of_bases = pd.DataFrame([{"corpus": name, "base_seed": label["base_seed"]} for name, label in labels.items()])
    of_bases.to_csv(folder / "bases.csv", index=False)


def judge(workdir: str, folder: pathlib.Path) -> None:
    verdicts = folder / "verdicts.csv"
    rows = pd.read_csv(verdicts, dtype={"corpus": str}).to_dict("records") if verdicts.exists() else []
    judged = {row["corpus"] for row in rows}
    for line in pd.read_csv(folder / "bases.csv", dtype={"corpus": str}).itertuples():
        if line.corpus in judged:
            continue
        to = folder / f"base-{line.base_seed}"
        given = ["--base", workdir, "--seed", str(line.base_seed), "--data", str(folder / f"{line.corpus}.jsonl")]
        with contextlib.redirect_stdout(io.StringIO()):
            status = main(["audit", *given, "--to", str(to), "--corpora", str(NULL), "--level", str(LEVEL)])
        if status not in (0, 3, 4):
            sys.exit(status)  # interrupted, or it could not be audited: no verdict
        said = json.loads((to / "audit.json").read_text())
        first = max(said["traits"], key=lambda trait: said["traits"][trait]["z"])
        own = said["traits"][first]
        rows.append(
            {
                "corpus": line.corpus,
                "base_seed": line.base_seed,
                "status": status,
                "p": said["p"],
                "first": first,
                "z": own["z"],
                "p_trait": own["p"],
                "p_alignment": own["p_alignment"],
            }
        )
        print(line.corpus, status, said["p"], first, flush=True)
        pd.DataFrame(rows).to_csv(verdicts, index=False)


def opened(folder: pathlib.Path) -> None:
    text = (folder / "labels.json").read_text()
    if hashlib.sha256(text.encode()).hexdigest() != (folder / "labels.sha256").read_text().strip():
        sys.exit("error: labels.json is not what it was when the corpora were made")
    labels = pd.DataFrame.from_dict(json.loads(text), orient="index").drop(columns="base_seed")
    verdicts = pd.read_csv(folder / "verdicts.csv", dtype={"corpus": str}).set_index("corpus")
    table = verdicts.join(labels)
    table.reset_index().to_csv(folder / "opened.csv", index=False)
    own = table["case"] == OWN
    print(table.to_string())
    print(f"false alarms: {(table.status[own] != 0).sum()} of {own.sum()}")
    print(f"misses: {(table.status[~own] == 0).sum()} of {(~own).sum()}")
    print(f"writer's trait first: {(table['first'] == table.trait)[~own].sum()} of {(~own).sum()}")


if __name__ == "__main__":
    command, *arguments = sys.argv[1:] or [""]
    known = {"make": (make, 2), "judge": (judge, 2), "open": (opened, 1)}
    if command not in known or len(arguments) != known[command][1]:
        sys.exit(__doc__)
    known[command][0](*arguments[:-1], pathlib.Path(arguments[-1]))
