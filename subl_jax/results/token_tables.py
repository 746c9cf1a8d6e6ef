"""What detectors of tokens say of datasets: which tokens and positions score highest, and how far detectors agree.

A detector is an audit whose scores of tokens are stored. The unit of replication is the base, as everywhere.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats

from subl_jax import specs
from subl_jax.errors import InputError
from subl_jax.objectives.selection import chosen
from subl_jax.results.load import Results
from subl_jax.statistics.intervals import interval

TOP = 0.1  # the share of all tokens that counts as the top


@dataclasses.dataclass(frozen=True)
class TokenTables:
    """One row per detector, trait, base and …

    `of_control`: the data are the base's own. `n`: how many tokens; `mean`: their mean score; `top`: the share of them
    that is among the corpus's top tenth, .1 where they are like all others.

    Attributes:
      detectors: the corpus. `marked`: the share of its tokens that score above 0 (of `divergence`: divergence tokens).
      tokens: and `token`.
      positions: and `position`, from 0.
      overlap: and the detector `other`. `both`: the share of the one's top tenth that is in the other's, .1 by chance;
        `spearman`: the rank correlation of their scores.
    """

    detectors: pd.DataFrame
    tokens: pd.DataFrame
    positions: pd.DataFrame
    overlap: pd.DataFrame


@dataclasses.dataclass(frozen=True)
class _Scored:
    """Scores (n, places) of one dataset, nan where there is nothing, and what they are of."""

    labels: dict[str, Any]
    data: str
    scores: np.ndarray
    top: np.ndarray
    words: np.ndarray | None


def token_tables(results: Results) -> TokenTables:
    """Of all audits of a sweep that have scores for tokens.

    Raises:
      InputError: no audit scores tokens, or the scores are not stored.
    """
    found = list(_scored(results))
    if not found:
        raise InputError(f"{results.workdir}: no audit that scores tokens; a sweep such as sweeps/tokens.py has some")
    rows: dict[str, list[dict[str, Any]]] = {"detectors": [], "tokens": [], "positions": [], "overlap": []}
    for one in found:
        flat = ~np.isnan(one.scores)
        marked = float((one.scores[flat] > 0).mean())
        whole = {"n": int(flat.sum()), "mean": float(one.scores[flat].mean()), "marked": marked}
        rows["detectors"].append({**one.labels, **whole})
        rows["positions"] += _means(one, "position", np.broadcast_to(np.arange(flat.shape[1]), flat.shape))
        if one.words is not None:
            rows["tokens"] += _means(one, "token", one.words)
    where = ("trait", "base_seed", "of_control")
    for one, other in itertools.permutations(found, 2):
        if one.data == other.data and all(one.labels[name] == other.labels[name] for name in where):
            rows["overlap"].append({**one.labels, "other": other.labels["detector"], **_agreement(one, other)})
    return TokenTables(**{name: pd.DataFrame(lines) for name, lines in rows.items()})


def _scored(results: Results) -> Iterator[_Scored]:
    known: dict[str, np.ndarray | None] = {}
    traits: dict[str, list[str]] = {}
    ok = results.audits[results.audits["status"] == "ok"]
    nodes = [specs.from_json(results.store.spec(key)) for key in ok["key"]]
    for node in nodes:
        if _trait(node):
            traits.setdefault(node.data.key, []).append(_trait(node))
    for node in nodes:
        artefact = results.store.get(node.key)
        if artefact is None:
            raise InputError(f"{results.workdir}: scores of audit {node.key[:12]}… were not kept; run the sweep again")
        if node.data.key not in known:
            known[node.data.key] = _words(node.data, results)
        scores = np.asarray(artefact["tokens"])
        if np.isnan(scores).all():
            continue  # an audit of whole samples or of the corpus only
        labels = {"detector": detector(node), "base_seed": node.by.origin.seed}
        top = np.asarray(chosen(scores, "top", TOP))
        # What does not depend on a teacher is of the base's data of every trait.
        for trait in [_trait(node)] if _trait(node) else dict.fromkeys(traits.get(node.data.key, [""])):
            labels = {**labels, "trait": trait, "of_control": node.data.given_trait is None}
            yield _Scored(labels, node.data.key, scores, top, known[node.data.key])


def detector(node: specs.Audited) -> str:
    """The name of an audit: its kind, and whose model it looks with where that is not the teacher's."""
    model = node.audit.suspect
    return (
        node.audit.kind if model is None or model.role in ("teacher", "prompted") else f"{node.audit.kind}_{model.role}"
    )


def _trait(node: specs.Audited) -> str | None:
    """The trait that an audit is about: its own, or that of the data's writer."""
    return node.audit.given_trait or node.given_trait


def _words(data: specs.Data, results: Results) -> np.ndarray | None:
    """(n, places) of text: what stands at every place; None where the world has no tokens."""
    artefact = results.store.get(data.key)
    return None if artefact is None else words_of(data.world, artefact["samples"])


def words_of(world: specs.World, samples: np.ndarray) -> np.ndarray | None:
    """(n, places) of text: what stands at every place of samples (n, …); None where the world has no tokens."""
    if not isinstance(world, specs.HoldsTokens):
        return None
    return np.asarray([*world.outputs, ""], object)[np.asarray(world.written(world.channel_batch(samples)))]


def _means(one: _Scored, name: str, groups: np.ndarray) -> list[dict[str, Any]]:
    there = ~np.isnan(one.scores)
    frame = pd.DataFrame({name: groups[there], "score": one.scores[there], "top": one.top[there]})
    found = frame.groupby(name, sort=True).agg(n=("score", "size"), mean=("score", "mean"), top=("top", "mean"))
    return [{**one.labels, **row} for row in found.reset_index().to_dict("records")]


def _agreement(one: _Scored, other: _Scored) -> dict[str, float]:
    there = ~np.isnan(one.scores)
    both = float(other.top[one.top].mean()) if one.top.any() else np.nan
    pair = (one.scores[there], other.scores[there])
    constant = any(np.ptp(each) == 0 for each in pair)
    return {"both": both, "spearman": np.nan if constant else float(scipy.stats.spearmanr(*pair).statistic)}


def means(table: pd.DataFrame, value: str, by: list[str]) -> pd.DataFrame:
    """The mean of `value` over traits and then bases, with its 95 % t interval, for each combination of `by`."""
    lines = []
    for names, rows in table.groupby(by, sort=False, dropna=False):
        bases = rows.groupby(["base_seed", "trait"])[value].mean().groupby("base_seed").mean()
        mean, low, high = interval(bases, probability=True)
        lines.append({**dict(zip(by, names, strict=True)), "mean": mean, "low": low, "high": high, "n": len(bases)})
    return pd.DataFrame(lines)
