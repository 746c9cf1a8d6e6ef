"""How often audits of a sweep are right: false alarms on the base's own corpora, and what they find of others'.

Every base audits datasets (`sweeps/audit.py`). Of its own samples, the dataset with the directions of traits is the
pool: its first part fits, the rest is cut into the null's corpora. Corpora of all other datasets are tested.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats

from subl_jax import specs
from subl_jax.audits import ScoreVectors
from subl_jax.errors import InputError
from subl_jax.results import auditing
from subl_jax.results.auditing import Evidence, Reference, Scored, Statistics
from subl_jax.results.load import Results
from subl_jax.statistics import calibration, score_test
from subl_jax.statistics.intervals import interval

OWN = "own"  # the case of what the auditing base wrote
LEVELS = (0.01, 0.05)
# Size of a corpus, and the share of its samples that the other writer gives; the rest is the base's own.
SIZES = (
    (16, 1.0),
    (64, 1.0),
    (256, 1.0),
    (1024, 1.0),
    (256, 0.5),
    (1024, 0.25),
    (1024, 0.1),
    (8192, 0.1),
    (8192, 0.05),
    (8192, 0.01),
)
_CORPORA = 200  # of the null, and of a case's tests, at most
_LARGEST = 256  # corpora of more samples are compared with a null of so many: there the law has settled
_FIT = 0.2  # the part of the pool that fits


@dataclasses.dataclass(frozen=True)
class AuditedData:
    """One dataset as a base sees it. case: what it is; trait: of its writer, "" for none."""

    base_seed: int
    case: str
    trait: str
    data: specs.Data
    evidence: Evidence
    directions: np.ndarray | None


def rates(
    results: Results, ridge: float = score_test.RIDGE, sizes: Sequence[tuple[int, float]] = SIZES
) -> pd.DataFrame:
    """One row per base, case, trait, size of corpora, share, statistic and level: of `tests` corpora `hits` are found.

    statistic: of one corpus each; `combined`, of all; `own_trait` and `other_trait`, whether the writer's trait, or one
    that it is not, is significant after all traits are accounted for; `own_pointed` and `other_pointed`, the same where
    the corpus' deviation points along it, too (`Verdict.pointed`); `first`, whether the writer's trait has the largest
    z, which has no level (NaN); `oracle`, z along the mean that other samples of the same dataset have.

    Raises:
      InputError: the sweep audits nothing, or has no pool of a base.
    """
    found: list[dict[str, Any]] = []
    for base in _by_base(results):
        pools = [each for each in base if each.directions is not None and each.case == OWN]
        if len(pools) != 1:
            raise InputError(
                f"{results.workdir}: {len(pools)} audits with directions of base {base[0].base_seed}; wants 1"
            )
        (pool,) = pools
        null = _Null(pool, ridge)
        others = [each for each in base if each is not pool]
        fresh = max((each for each in others if each.case == OWN), key=lambda each: each.data.size, default=None)
        traits = pool.data.world.traits
        rest = None if fresh is None else null.reference.scored(fresh.evidence)
        for each in others:
            scored = rest if each is fresh else null.reference.scored(each.evidence)
            for n, share in sizes:
                found += _of_dataset(each, scored, null, None if each is fresh else rest, traits, n, share)
    if not found:
        raise InputError(f"{results.workdir}: no corpora to test; see sweeps/audit.py")
    return pd.DataFrame(found)


class _Null:
    """What all datasets of a base are compared with."""

    def __init__(self, pool: AuditedData, ridge: float) -> None:
        fit = int(_FIT * len(pool.evidence))
        self.reference = Reference.of(pool.evidence.rows(0, fit), pool.directions, ridge)
        self.scored = self.reference.scored(pool.evidence.rows(fit))
        self._statistics: dict[int, Statistics] = {}

    def statistics(self, n: int) -> Statistics:
        if n not in self._statistics:
            self._statistics[n] = self.reference.statistics(self.scored, n, _CORPORA)
        return self._statistics[n]


def _of_dataset(
    one: AuditedData,
    scored: Scored,
    null: _Null,
    rest: Scored | None,
    traits: tuple[str, ...],
    n: int,
    share: float,
) -> Iterator[dict[str, Any]]:
    own = round(n * share)
    if share < 1 and (rest is None or one.case == OWN):
        return
    # The oracle's direction is of the second half; the first is tested.
    half = len(scored) // 2 if one.trait else len(scored)
    tested = min(half // max(own, 1), _CORPORA, len(rest) // (n - own) if rest is not None and own < n else _CORPORA)
    at = min(n, _LARGEST)
    if tested < 1 or len(null.scored) < 19 * at:
        return
    reference, reference_null = null.reference, null.statistics(at)
    corpora = scored.chosen(np.arange(own * tested)) if own == n else _mixed(scored, rest, tested, own, n)
    statistics = reference.statistics(corpora, n)
    white = calibration.corpora(corpora.white, n).mean(axis=1)
    verdicts = [
        auditing.judged(statistics.before(reference_null, i), n, white[i], reference.units) for i in range(tested)
    ]
    labels = {"base_seed": one.base_seed, "case": one.case, "trait": one.trait, "n": n, "share": share}
    for level in LEVELS:
        if (1 + len(reference_null.values)) * level < 1:
            continue  # no p could be so small
        for name, hits in _hits(verdicts, traits, one.trait, level).items():
            yield {**labels, "statistic": name, "level": level, "tests": tested, "hits": int(np.sum(hits))}
        if one.trait:
            p = _oracle(scored.white[half:].mean(axis=0), null, white, n, at)
            yield {**labels, "statistic": "oracle", "level": level, "tests": tested, "hits": int((p <= level).sum())}
    if one.trait in traits:
        first = [traits[int(np.argmax(each.z))] == one.trait for each in verdicts]
        yield {**labels, "statistic": "first", "level": np.nan, "tests": tested, "hits": int(np.sum(first))}


def _hits(
    verdicts: Sequence[auditing.Verdict], traits: tuple[str, ...], trait: str, level: float
) -> dict[str, np.ndarray]:
    hits = {name: np.asarray([each.of[name] <= level for each in verdicts]) for name in verdicts[0].of}
    hits["combined"] = np.asarray([each.unusual(level) for each in verdicts])
    other = np.asarray([each != trait for each in traits])
    for name, found in (
        ("{}_trait", np.stack([each.found(level) for each in verdicts])),
        ("{}_pointed", np.stack([each.pointed(level) for each in verdicts])),
    ):
        if trait in traits:
            hits[name.format("own")] = found[:, ~other].any(axis=1)
        hits[name.format("other")] = found[:, other].any(axis=1)
    return hits


def _mixed(scored: Scored, rest: Scored, tested: int, own: int, n: int) -> Scored:
    """Corpora of n, each of `own` samples of the one and the rest of the base's own."""
    theirs = np.arange(tested * own).reshape(tested, own)
    bases = len(scored) + np.arange(tested * (n - own)).reshape(tested, -1)
    return scored.beside(rest).chosen(np.concatenate([theirs, bases], axis=1).ravel())


def _oracle(direction: np.ndarray, null: _Null, white: np.ndarray, n: int, at: int) -> np.ndarray:
    """(corpora,): p along `direction` (d,), the mean of other samples of the same writer."""
    scale = null.reference.whitening.scale
    own = white @ direction / scale(n)
    others = calibration.corpora(null.scored.white @ direction, at, _CORPORA).mean(axis=1) / scale(at)
    return np.asarray([(1 + (others >= value).sum()) / (1 + len(others)) for value in own])


# --- what a sweep has audited ---


def _by_base(results: Results) -> Iterator[list[AuditedData]]:
    ok = results.audits[results.audits["status"] == "ok"] if results.audits is not None else pd.DataFrame({"key": []})
    nodes = [specs.from_json(results.store.spec(key)) for key in ok["key"]]
    vectors = [node for node in nodes if isinstance(node.audit, ScoreVectors)]
    if not vectors:
        raise InputError(
            f"{results.workdir}: no score vectors (audits.ScoreVectors); a sweep with some is sweeps/audit.py"
        )
    others: dict[tuple[str, str], list[specs.Audited]] = {}
    for node in nodes:
        if not isinstance(node.audit, ScoreVectors):
            others.setdefault((node.by.key, node.data.key), []).append(node)
    by: dict[str, list[specs.Audited]] = {}
    for node in vectors:
        by.setdefault(node.by.key, []).append(node)
    for of_base in by.values():
        yield [_audited(node, others.get((node.by.key, node.data.key), []), results) for node in of_base]


def _audited(node: specs.Audited, others: list[specs.Audited], results: Results) -> AuditedData:
    artefact = results.store.get(node.key)
    if artefact is None:
        raise InputError(f"{results.workdir}: scores of audit {node.key[:12]}… were not kept; run the sweep again")
    samples = {each.audit.kind: np.asarray(results.store.get(each.key)["samples"], float) for each in others}
    evidence = Evidence(np.asarray(artefact["vectors"], np.float32), samples)
    directions = np.asarray(artefact["directions"], float) if node.audit.directions else None
    return AuditedData(
        node.by.origin.seed, case_of(node.data, node.by), node.data.given_trait or "", node.data, evidence, directions
    )


def case_of(data: specs.Data, by: specs.Trained) -> str:
    """What a dataset is to the base that audits it, in words."""
    if isinstance(data, specs.Transformed):
        return f"{data.transform.kind}({', '.join(case_of(each, by) for each in data.sources)})"
    writer = data.writer
    if writer is None:
        return "imported"
    whose = "" if writer.origin == by.origin else "another base's "
    if writer == by or isinstance(writer, specs.Base):
        return f"{whose}own"
    if isinstance(writer, specs.Student):
        return f"{whose}student of {case_of(writer.data, by)}"
    train, until = writer.train, writer.until
    return f"{whose}teacher of {', '.join(train.trainable) or 'all'} to {until:g}"


# --- over bases ---


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """One row per case, size, share, statistic and level.

    rate: over all corpora, with the exact binomial 99.9 % interval of independent tests (`binomial_low`, `_high`).
    mean: over bases, with its 95 % interval (`low`, `high`). worst: the largest rate of a base.
    """
    rows = []
    by = ["case", "n", "share", "statistic", "level"]
    for names, own in table.groupby(by, sort=False, dropna=False):
        tests, hits = int(own["tests"].sum()), int(own["hits"].sum())
        bases = own.groupby("base_seed")[["hits", "tests"]].sum()
        of_bases = bases["hits"] / bases["tests"]
        mean, low, high = interval(of_bases, probability=True)
        exact = scipy.stats.binomtest(hits, tests).proportion_ci(0.999, "exact")
        rows.append(
            {
                **dict(zip(by, names, strict=True)),
                "bases": len(bases),
                "tests": tests,
                "rate": hits / tests,
                "binomial_low": exact.low,
                "binomial_high": exact.high,
                "mean": mean,
                "low": low,
                "high": high,
                "worst": float(of_bases.max()),
            }
        )
    return pd.DataFrame(rows)
