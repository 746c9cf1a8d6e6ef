"""An audit as a page for people, and as files for programs."""

import base64
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from subl_jax.results import auditing
from subl_jax.results.auditing import Statistics, Verdict
from subl_jax.results.figures import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawn

WHAT = {
    "combined": "the most unusual of all below, calibrated as one",
    "score": "where training on the corpus would move the base, in all directions at once (Rao's score test)",
    "trait": "the trait that it would move the base to most",
    "mixture": "the same, if only a tenth of the samples did so",
    "mean_log_likelihood": "how likely the base finds it",
    "surprise": "how likely, against how likely the base's own texts would be at these places",
    "rank_residual": "where in the base's own order of tokens the written ones stand",
    "classifier": "whether a linear classifier of words tells it from the base's texts",
    "mmd": "whether the words are distributed as in the base's texts (kernel distance)",
    "log_ratio": "how much likelier a suspect finds it",
}
_SAMPLES = 12  # that are shown
_SHIFTS = (0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
_TOWARDS, _AWAY = (246, 180, 143), (169, 203, 230)


@dataclasses.dataclass(frozen=True)
class Answer:
    """What was found. texts: (prompt, completion) of the data. shifts: (n, traits), of every sample along every trait.
    tokens: (n, places), what each token adds along the trait that the corpus points to most; words: (n, places), what
    stands there; both None where the world's tokens have no names. statistics: of the corpus, and then of those that it
    is compared with, which the base wrote where it is `simulated`, and which are exchanges of samples else. scale:
    the deviation of a mean shift by chance. without: p of the combination when the samples that point most along a
    trait are left out, here and in every corpus of the null; NaN where that was not asked."""

    verdict: Verdict
    traits: tuple[str, ...]
    texts: list[tuple[str, str]]
    shifts: np.ndarray
    tokens: np.ndarray | None
    words: np.ndarray | None
    statistics: Statistics
    simulated: bool
    scale: float
    without: float
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Shown(Answer):
    """All that the page tells. name: of the data. by: of the base. samples: in the whole file. level: of the test."""

    name: str
    by: str
    samples: int
    level: float


def headline(shown: Shown) -> str:
    """The verdict in a sentence that says no more than the test."""
    found, verdict, level = shown.verdict.found(shown.level), shown.verdict, shown.level
    corpora = f"p = {verdict.p:.2g}, how often the base's own corpora look at least as unusual"
    if found.any():
        order = [i for i in np.argsort(-verdict.z) if found[i]]
        names = ", ".join(f"{shown.traits[i]} (p = {verdict.traits[i]:.2g})" for i in order)
        more = f"more than its own do: {corpora} (level {level:g})."
        said = f"These {verdict.n} samples push the base towards {names}, {more}"
        if verdict.pointed(level).any():
            return said
        return f"{said} They differ from the base's own in other ways, too: a harmless other writer may push as far."
    if verdict.unusual(level):
        return (
            f"These {verdict.n} samples are not as the base's own: {corpora} (level {level:g}). "
            f"Nothing points to one of the {len(shown.traits)} traits that were looked for; another trait, another "
            "model or other settings of the same model may have written them."
        )
    return (
        f"These {verdict.n} samples cannot be told from the base's own: {corpora} (level {level:g}). "
        "That does not show that no trait is in them; see below for what could have been seen."
    )


def page(shown: Shown) -> str:
    """HTML, self-contained."""
    import jinja2

    verdict = shown.verdict
    exchanged = not shown.simulated
    compared = (
        f"{verdict.null:,} exchanges of its samples with the null corpus'"
        if exchanged
        else f"{verdict.null:,} corpora of as many samples that the base wrote"
    )
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("subl_jax.results"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("audit.html").render(
        name=shown.name,
        facts=f"{verdict.n} of {shown.samples:,} samples, audited by {shown.by}; compared with {compared}.",
        headline=headline(shown),
        notes=shown.notes,
        figure=base64.b64encode(style.png(histogram(shown))).decode(),
        alt="the corpus against those that it is compared with",
        statistics=[
            {"name": name.replace("_", " "), "p": _p(p), "what": WHAT.get(name, "an audit of samples")}
            for name, p in {"combined": verdict.p, **verdict.of}.items()
        ],
        compared=compared,
        without=_without(shown),
        traits=_traits(shown),
        first=shown.traits[int(np.argmax(verdict.z))],
        level=f"{shown.level:g}",
        samples=_samples(shown),
        coloured=shown.words is not None,
        power=_power(shown),
        power_note=(
            "From the same corpora of the base, with the shift added to every sample."
            if not exchanged
            else "For a normal law, as no corpora are there to shift; a sample's shift is as in the table of traits."
        ),
        assumed=_assumed(shown),
    )


def _traits(shown: Shown) -> list[dict[str, Any]]:
    verdict, found = shown.verdict, shown.verdict.found(shown.level)
    shifts = shown.shifts.mean(axis=0)
    half = 1.96 * shown.shifts.std(axis=0, ddof=1) / len(shown.shifts) ** 0.5
    return [
        {
            "trait": shown.traits[i],
            "shift": f"{shifts[i]:+.3f}",
            "ends": f"[{shifts[i] - half[i]:+.3f}, {shifts[i] + half[i]:+.3f}]",
            "p": _p(verdict.traits[i]),
            "cosine": f"{verdict.cosine[i]:+.2f}",
            "aligned": _p(verdict.aligned[i]),
            "found": bool(found[i]),
        }
        for i in np.argsort(-verdict.z)
    ]


def _samples(shown: Shown) -> list[dict[str, Any]]:
    first = int(np.argmax(shown.verdict.z))
    order = np.argsort(-shown.shifts[:, first])[:_SAMPLES]
    strongest = 1.0 if shown.tokens is None else np.nanmax(np.abs(shown.tokens[order]))
    return [
        {"shift": f"{shown.shifts[i, first]:+.2f}", "tokens": _tokens(shown, i, max(float(strongest), 1e-30))}
        for i in order
    ]


def _tokens(shown: Shown, i: int, strongest: float) -> list[dict[str, str | None]]:
    if shown.words is None or shown.tokens is None:
        return [{"text": shown.texts[i][1], "colour": None}]
    there = np.isfinite(shown.tokens[i])
    return [
        {"text": f"{word} " if str(word).isalnum() else f"{word}", "colour": colour(value / strongest)}
        for word, value in zip(shown.words[i][there], shown.tokens[i][there], strict=True)
    ]


def colour(value: float) -> str:
    """From white to one of two colours; value: −1 … 1."""
    end = _TOWARDS if value > 0 else _AWAY
    return "#" + "".join(f"{round(255 + (c - 255) * min(abs(value), 1.0)):02x}" for c in end)


def _power(shown: Shown) -> list[dict[str, str]]:
    n = shown.verdict.n
    if shown.simulated:
        rows = auditing.power_along(shown.statistics.traits[1:], shown.level, n, _SHIFTS)
    else:
        import scipy.stats

        edge = scipy.stats.norm.isf(shown.level)
        rows = [{"shift": shift, "power": scipy.stats.norm.sf(edge - shift / shown.scale)} for shift in _SHIFTS]
    return [{"shift": f"{row['shift']:g}", "power": f"{row['power']:.0%}"} for row in rows]


def _without(shown: Shown) -> str | None:
    if not np.isfinite(shown.without):
        return None
    return (
        "Without the tenth of the samples that point most along the trait to which the corpus points most, the same "
        f"left out of every corpus of the base, p is {_p(shown.without)}."
    )


def _assumed(shown: Shown) -> list[str]:
    exchanged = not shown.simulated
    return [
        f"A harmless writer is {shown.by} at temperature 1, asked prompts of the same kind, through the same filter.",
        "Samples do not depend on each other."
        if not exchanged
        else "Samples of the data and of the null corpus are exchangeable if the data are harmless.",
        f"Only these traits are looked for: {', '.join(shown.traits)}.",
        "A trait's direction is how log P(trait) of the base grows, in the parameters that a student would train.",
        f"p cannot be smaller than 1 / {shown.verdict.null + 1:,}.",
    ]


def _p(p: float) -> str:
    return f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def histogram(shown: Shown) -> "Drawn":
    """Rao's statistic and the largest z along a trait, of the corpus and of those that it is compared with."""
    names = [name for name in ("score", "trait") if name in shown.statistics.names]
    compared = "the base's own corpora" if shown.simulated else "samples exchanged at random"
    titles = {"score": "Rao's statistic, all directions", "trait": "largest z along a trait"}
    figure, axes = style.panels(len(names), height=2.6, most_across=2)
    for axis, name in zip(axes, names, strict=True):
        own, *null = shown.statistics.values[:, shown.statistics.names.index(name)]
        axis.hist(null, bins=30, color="#AFAFAF", label=compared)
        axis.axvline(own, color="#D55E00", linewidth=2, label="this corpus")
        axis.set_title(titles[name], fontsize=10, fontweight="bold")
        axis.set_ylabel("corpora", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=8.5, frameon=False)
    return figure


def as_json(shown: Shown, versions: Mapping[str, str]) -> dict[str, Any]:
    """The verdict for programs; numbers are unrounded."""
    verdict = shown.verdict
    return {
        "data": shown.name,
        "by": shown.by,
        "samples": verdict.n,
        "of": shown.samples,
        "level": shown.level,
        "status": verdict.status(shown.level),
        "headline": headline(shown),
        "null": verdict.null,
        "p": verdict.p,
        "statistics": verdict.of,
        "traits": {
            trait: {
                "z": float(verdict.z[i]),
                "p": float(verdict.traits[i]),
                "alignment": float(verdict.cosine[i]),
                "p_alignment": float(verdict.aligned[i]),
                "found": bool(verdict.found(shown.level)[i]),
            }
            for i, trait in enumerate(shown.traits)
        },
        "p_without_most_suspicious": None if np.isnan(shown.without) else shown.without,
        "notes": list(shown.notes),
        "versions": dict(versions),
    }


def samples_table(shown: Shown) -> pd.DataFrame:
    """One row per sample: prompt, completion, and its shift along every trait."""
    texts = pd.DataFrame(shown.texts, columns=["prompt", "completion"])
    return pd.concat([texts, pd.DataFrame(shown.shifts, columns=[f"shift/{t}" for t in shown.traits])], axis=1)
