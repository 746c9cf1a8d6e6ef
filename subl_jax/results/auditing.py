"""From scores of samples to a verdict on a corpus: statistics, their calibration, and which traits the data point to.

Everything is compared with corpora that the base wrote itself (`statistics.calibration`). The base's samples are in two
disjoint parts: one fits what is to be fitted (means, covariances), the other is cut into the corpora of the null.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from subl_jax.errors import InputError
from subl_jax.statistics import calibration, score_test, two_sample

Floats = np.ndarray

RIDGE = 10.0  # of the whitening; chosen on six of the bases (docs/audit.md)
LEAST = 32  # samples to fit with
ONE_SIDED = ("log_ratio",)  # audits of samples in which only the large is unusual
_TWO_SAMPLE = 512  # samples, at most, of the reference of a two-sample test, which costs n × as many


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What audits say of the n samples of a dataset, in their order.

    vectors: (n, d), score vectors. samples: audit → (n,) its scores; nan where a sample has nothing to score. texts:
    their completions, for tests that read these; None where these are left out.
    """

    vectors: Floats
    samples: Mapping[str, Floats]
    texts: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.vectors)

    def rows(self, start: int, stop: int | None = None) -> "Evidence":
        own = slice(start, stop)
        samples = {name: scores[own] for name, scores in self.samples.items()}
        return Evidence(self.vectors[own], samples, None if self.texts is None else self.texts[own])

    def chosen(self, places: Floats) -> "Evidence":
        """The samples at `places`, of which texts are left out."""
        return Evidence(self.vectors[places], {name: scores[places] for name, scores in self.samples.items()})

    def beside(self, other: "Evidence") -> "Evidence":
        samples = {name: np.concatenate([scores, other.samples[name]]) for name, scores in self.samples.items()}
        texts = None if self.texts is None or other.texts is None else [*self.texts, *other.texts]
        return Evidence(np.concatenate([self.vectors, other.vectors]), samples, texts)


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Of some corpora, the larger the more unusual. values: (corpora, names). traits: (corpora, traits), z along each
    trait's direction, positive where a student would gain the trait."""

    names: tuple[str, ...]
    values: Floats
    traits: Floats

    def before(self, null: "Statistics", which: int = 0) -> "Statistics":
        """One of these corpora, and then all of the null."""
        own = slice(which, which + 1)
        return Statistics(
            self.names,
            np.concatenate([self.values[own], null.values]),
            np.concatenate([self.traits[own], null.traits]),
        )


@dataclasses.dataclass(frozen=True)
class Reference:
    """What is fitted on the base's own samples: nothing of it may be tested or calibrated with.

    units: (traits, d), directions in white coordinates, of length 1; spread: (traits,), the deviation of samples along
    them, less than 1 by the ridge. means, deviations: (traits + audits,), of the `columns` of
    samples. texts: bags of words of some of the samples, for two-sample tests; None without.
    """

    whitening: score_test.Whitening
    units: Floats
    spread: Floats
    audits: tuple[str, ...]
    means: Floats
    deviations: Floats
    texts: Floats | None
    width: float

    @classmethod
    def of(cls, fit: Evidence, directions: Floats, ridge: float = RIDGE) -> "Reference":
        """directions: (traits, d), gradients of log P of every trait. Raises InputError: fewer than 32 samples."""
        if len(fit) < LEAST:
            raise InputError(f"{len(fit)} samples of the base: give at least {LEAST}")
        whitening = score_test.Whitening.of(fit.vectors, ridge)
        units = whitening.units(directions)
        spread = (whitening.white(fit.vectors) @ units.T).std(axis=0)
        spread = np.where(spread > 0, spread, np.inf)
        blank = cls(whitening, units, spread, tuple(fit.samples), np.zeros(0), np.zeros(0), None, 1.0)
        columns = blank.columns(fit)
        texts = None if fit.texts is None else two_sample.bag(list(fit.texts[:_TWO_SAMPLE]))
        width = 1.0 if texts is None else two_sample.median_distance(texts)
        deviations = np.nanstd(columns, axis=0)
        return dataclasses.replace(
            blank, means=np.nanmean(columns, axis=0), deviations=deviations, texts=texts, width=width
        )

    def statistics(self, evidence: Evidence, n: int, at_most: int | None = None) -> Statistics:
        """Of the disjoint corpora of n samples.

        score: Rao's T. trait: the largest z along a trait. mixture: the largest evidence along a trait that a tenth of
        the samples are shifted. Of audits of samples: how far their mean is from the base's. classifier, mmd: with
        texts, against the base's texts.
        """
        corpora = evidence.rows(0, n * min(len(evidence) // n, at_most or len(evidence)))
        white = calibration.corpora(self.whitening.white(corpora.vectors), n)
        columns = (self.columns(corpora) - self.means) / np.where(self.deviations > 0, self.deviations, np.inf)
        # A sample that has nothing to score says nothing: it is as the mean.
        means = calibration.corpora(np.nan_to_num(columns), n).mean(axis=1) / self.whitening.scale(n)
        traits = len(self.units)
        along = score_test.along(white, self.units, self.whitening) / self.spread
        found = {"score": score_test.rao(white, self.whitening)}
        if traits:
            found |= {"trait": along.max(axis=1), "mixture": means[:, :traits].max(axis=1)}
        for i, name in enumerate(self.audits):
            own = means[:, traits + i]
            found[name] = own if name in ONE_SIDED else np.abs(own)
        if self.texts is not None and corpora.texts is not None:
            bags = calibration.corpora(two_sample.bag(list(corpora.texts)), n)
            reference = self.texts[:n]
            found["classifier"] = np.asarray([two_sample.told_apart(each, reference) for each in bags])
            found["mmd"] = np.asarray([two_sample.mmd(each, reference, self.width) for each in bags])
        return Statistics(tuple(found), np.column_stack(list(found.values())), along)

    def shifts(self, evidence: Evidence) -> Floats:
        """(n, traits): how far every sample's score vector is shifted along every trait, in standard deviations."""
        return self.whitening.white(evidence.vectors) @ self.units.T / self.spread

    def columns(self, evidence: Evidence) -> Floats:
        """(n, traits + audits): every sample's evidence of a mixture along every trait, and its scores."""
        shifts = self.shifts(evidence)
        mixtures = score_test.mixture(shifts[:, None])
        return np.column_stack([mixtures, *(evidence.samples[name] for name in self.audits)])


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What is said of a corpus. All p are shares of harmless corpora that look at least as unusual.

    p: of the combination of all statistics. of: statistic → its own p. traits: p of every trait's direction, adjusted
    for all traits. z: (traits,). cosine, aligned: how far the corpus' deviation from the base points along each trait,
    and how often a deviation in a random direction would as far. null: how many corpora it is compared with.
    """

    n: int
    null: int
    p: float
    of: dict[str, float]
    traits: Floats
    z: Floats
    cosine: Floats
    aligned: Floats

    def unusual(self, level: float) -> bool:
        return self.p <= level

    def found(self, level: float) -> Floats:
        """(traits,) bool: towards which the data push significantly more than the base's own."""
        return self.traits <= level

    def pointed(self, level: float) -> Floats:
        """(traits,) bool: those found along which the corpus deviates in particular, more than another writer would."""
        return self.found(level) & (self.aligned <= level)

    def status(self, level: float) -> int:
        """An exit status: 0 as the base's own; 3 a trait is found; 4 not the base's, and no trait is."""
        if self.found(level).any():
            return 3
        return 4 if self.unusual(level) else 0


def judged(statistics: Statistics, n: int, white_mean: Floats, units: Floats) -> Verdict:
    """The verdict on the first of `statistics` (1 + null), of n samples. white_mean: (d,)."""
    cosine, aligned = score_test.alignment(white_mean, units)
    # As for p: the best of many traits has to be better than the best of many would be by chance.
    aligned = np.minimum(1.0, aligned * max(len(aligned), 1))
    return Verdict(
        n=n,
        null=len(statistics.values) - 1,
        p=calibration.rank_p(calibration.combined(statistics.values)),
        of={
            name: calibration.rank_p(values) for name, values in zip(statistics.names, statistics.values.T, strict=True)
        },
        traits=calibration.step_down(statistics.traits),
        z=statistics.traits[0],
        cosine=cosine,
        aligned=aligned,
    )


def simulated(data: Evidence, reference: Reference, null: Evidence) -> Verdict:
    """Against disjoint corpora of as many samples from `null`, which the base wrote and `reference` has not seen.

    Raises:
      InputError: `null` has fewer than 19 such corpora, so that nothing could be found at 5 %.
    """
    n = len(data)
    if len(null) < 19 * n:
        least = f"{n:,} samples need at least {19 * n:,} of the base to be calibrated with"
        raise InputError(f"{least}, and there are {len(null):,}; write more, or read fewer rows")
    statistics = reference.statistics(data, n).before(reference.statistics(null, n))
    return judged(statistics, n, reference.whitening.white(data.vectors).mean(axis=0), reference.units)


def without(data: Evidence, reference: Reference, null: Evidence, share: float) -> float:
    """p of the combination when, of the data and of every corpus of the null alike, the `share` of the samples are left
    out that point most along the trait to which the corpus points most."""
    n = len(data)
    kept = n - round(share * n)

    def trimmed(evidence: Evidence) -> Evidence:
        shifts = reference.shifts(evidence)
        places = []
        for start in range(0, len(evidence) // n * n, n):
            own = shifts[start : start + n]
            order = np.argsort(own[:, np.argmax(own.mean(axis=0))], kind="stable")
            places.append(start + np.sort(order[:kept]))
        return evidence.chosen(np.concatenate(places))

    reference = dataclasses.replace(reference, texts=None)
    both = reference.statistics(trimmed(data), kept).before(reference.statistics(trimmed(null), kept))
    return calibration.rank_p(calibration.combined(both.values))


def permuted(
    data: Evidence, null: Evidence, directions: Floats, count: int = 1999, paired: bool = False, seed: int = 0
) -> tuple[Verdict, Reference]:
    """Against exchanges of its samples with those of a null corpus, where writing many corpora would be too dear.

    Means, covariances and deviations are those of both together, so that no exchange changes them. `paired`: the i-th
    samples of both answer the same prompt, and only these two are exchanged. The test is exact where the samples are
    exchangeable: of the same prompts, or of prompts drawn alike.

    Returns:
      The verdict, and what was fitted on both.
    """
    if paired and len(data) != len(null):
        raise InputError(f"{len(data)} samples and {len(null)} of the base: pairs need as many of both")
    both = data.beside(null)
    pooled = Reference.of(dataclasses.replace(both, texts=None), directions)
    white, columns = pooled.whitening.white(both.vectors), pooled.columns(both)
    columns = np.nan_to_num((columns - pooled.means) / np.where(pooled.deviations > 0, pooled.deviations, np.inf))
    weights = calibration.permutations(np.random.default_rng(seed), len(data), len(null), count, paired)
    differences, means = weights @ white, weights @ columns
    scale = (1 / len(data) + 1 / len(null)) ** 0.5
    traits = len(pooled.units)
    along = differences @ pooled.units.T / pooled.spread / scale
    found = {"score": ((differences / scale) ** 2).sum(axis=1)}
    if traits:
        found |= {"trait": along.max(axis=1), "mixture": means[:, :traits].max(axis=1) / scale}
    for i, name in enumerate(pooled.audits):
        own = means[:, traits + i] / scale
        found[name] = own if name in ONE_SIDED else np.abs(own)
    statistics = Statistics(tuple(found), np.column_stack(list(found.values())), along)
    return judged(statistics, len(data), differences[0], pooled.units), pooled


def power_along(null: Statistics, level: float, n: int, shifts: Sequence[float]) -> list[dict[str, Any]]:
    """How often a corpus whose samples are all shifted along one trait would be found, by how far, in deviations of a
    sample: the null's own corpora with the shift added, at the level of one test."""
    edge = np.quantile(null.traits, 1 - level, axis=0)
    return [{"shift": float(shift), "power": float((null.traits + shift * n**0.5 > edge).mean())} for shift in shifts]
