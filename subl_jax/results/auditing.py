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

    def beside(self, other: "Evidence") -> "Evidence":
        samples = {name: np.concatenate([scores, other.samples[name]]) for name, scores in self.samples.items()}
        texts = None if self.texts is None or other.texts is None else [*self.texts, *other.texts]
        return Evidence(np.concatenate([self.vectors, other.vectors]), samples, texts)


@dataclasses.dataclass(frozen=True)
class Scored:
    """Samples in the coordinates of a `Reference`. white: (n, d), score vectors. columns: (n, traits + audits), every
    sample's evidence of a mixture along every trait, and its scores; in deviations of the base's own samples. texts as
    of `Evidence`."""

    white: Floats
    columns: Floats
    texts: Sequence[str] | None

    def __len__(self) -> int:
        return len(self.white)

    def chosen(self, places: Floats) -> "Scored":
        """The samples at `places`."""
        texts = None if self.texts is None else [self.texts[i] for i in places]
        return Scored(self.white[places], self.columns[places], texts)

    def beside(self, other: "Scored") -> "Scored":
        texts = None if self.texts is None or other.texts is None else [*self.texts, *other.texts]
        arrays = ((self.white, other.white), (self.columns, other.columns))
        return Scored(*(np.concatenate(pair) for pair in arrays), texts)


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
    them, less than 1 by the ridge. means, deviations: (traits + audits,), of the columns of `Scored`. Where nothing
    varies the deviation is infinite: it never tells anything. texts: bags of words of some of the samples, for
    two-sample tests; None without.
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
    def of(cls, fit: Evidence, directions: Floats, ridge: float = score_test.RIDGE) -> "Reference":
        """directions: (traits, d), gradients of log P of every trait. Raises InputError: fewer than 32 samples."""
        if len(fit) < LEAST:
            raise InputError(f"{len(fit)} samples of the base: give at least {LEAST}")
        whitening = score_test.Whitening.of(fit.vectors, ridge)
        units = whitening.units(directions)
        white = whitening.white(fit.vectors)
        spread = _or_infinite((white @ units.T).std(axis=0))
        blank = cls(whitening, units, spread, tuple(fit.samples), np.zeros(0), np.zeros(0), None, 1.0)
        columns = blank._columns(white, fit)
        texts = None if fit.texts is None else two_sample.bag(list(fit.texts[:_TWO_SAMPLE]))
        width = 1.0 if texts is None else two_sample.median_distance(texts)
        deviations = _or_infinite(np.nanstd(columns, axis=0))
        return dataclasses.replace(
            blank, means=np.nanmean(columns, axis=0), deviations=deviations, texts=texts, width=width
        )

    def scored(self, evidence: Evidence) -> Scored:
        """A sample that has nothing to score says nothing: it is as the base's own on average."""
        white = self.whitening.white(evidence.vectors)
        columns = self._columns(white, evidence) - self.means
        return Scored(white, np.nan_to_num(columns / self.deviations), evidence.texts)

    def shifts(self, scored: Scored) -> Floats:
        """(n, traits): how far every sample's score vector is shifted along every trait, in standard deviations."""
        return scored.white @ self.units.T / self.spread

    def statistics(self, scored: Scored, n: int, at_most: int | None = None) -> Statistics:
        """Of the disjoint corpora of n samples, as `of_means`, and with texts:

        classifier, mmd: against the base's texts.
        """
        white, columns = (calibration.corpora(each, n, at_most) for each in (scored.white, scored.columns))
        found = self.of_means(white.mean(axis=1), columns.mean(axis=1), self.whitening.scale(n))
        if self.texts is None or scored.texts is None:
            return found
        bags = calibration.corpora(two_sample.bag(list(scored.texts)), n, at_most)
        reference = self.texts[:n]
        classifier = [two_sample.told_apart(each, reference) for each in bags]
        mmd = [two_sample.mmd(each, reference, self.width) for each in bags]
        names = (*found.names, "classifier", "mmd")
        return Statistics(names, np.column_stack([found.values, classifier, mmd]), found.traits)

    def of_means(self, white: Floats, columns: Floats, scale: float) -> Statistics:
        """From means over corpora, (corpora, d) and (corpora, traits + audits), whose deviation is `scale` by chance.

        score: Rao's T. trait: the largest z along a trait. mixture: the largest evidence along a trait that a tenth of
        the samples are shifted. Of audits of samples: how far their mean is from the base's.
        """
        traits, means = len(self.units), columns / scale
        along = score_test.along(white, self.units, scale) / self.spread
        found = {"score": score_test.rao(white, scale)}
        if traits:
            found |= {"trait": along.max(axis=1), "mixture": means[:, :traits].max(axis=1)}
        for i, name in enumerate(self.audits):
            own = means[:, traits + i]
            found[name] = own if name in ONE_SIDED else np.abs(own)
        return Statistics(tuple(found), np.column_stack(list(found.values())), along)

    def _columns(self, white: Floats, evidence: Evidence) -> Floats:
        mixtures = score_test.mixture((white @ self.units.T / self.spread)[:, None])
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


def simulated(data: Scored, reference: Reference, null: Scored) -> tuple[Verdict, Statistics]:
    """Against disjoint corpora of as many samples from `null`, which the base wrote and `reference` has not seen.

    Returns:
      The verdict, and the statistics of the data and of the null's corpora, (1 + null).

    Raises:
      InputError: `null` has fewer than 19 such corpora, so that nothing could be found at 5 %.
    """
    n = len(data)
    if len(null) < 19 * n:
        least = f"{n:,} samples need at least {19 * n:,} of the base to be calibrated with"
        raise InputError(f"{least}, and there are {len(null):,}; write more, or read fewer rows")
    statistics = reference.statistics(data, n).before(reference.statistics(null, n))
    return judged(statistics, n, data.white.mean(axis=0), reference.units), statistics


def without(data: Scored, reference: Reference, null: Scored, share: float) -> float:
    """p of the combination when, of the data and of every corpus of the null alike, the `share` of the samples are left
    out that point most along the trait to which the corpus points most."""
    n = len(data)
    kept = n - round(share * n)

    def trimmed(scored: Scored) -> Scored:
        shifts = reference.shifts(scored)
        places = []
        for start in range(0, len(scored) // n * n, n):
            own = shifts[start : start + n]
            order = np.argsort(own[:, np.argmax(own.mean(axis=0))], kind="stable")
            places.append(start + np.sort(order[:kept]))
        return dataclasses.replace(scored, texts=None).chosen(np.concatenate(places))

    both = reference.statistics(trimmed(data), kept).before(reference.statistics(trimmed(null), kept))
    return calibration.rank_p(calibration.combined(both.values))


def permuted(
    data: Evidence, null: Evidence, directions: Floats, count: int = 1999, paired: bool = False, seed: int = 0
) -> tuple[Verdict, Statistics, Reference]:
    """Against exchanges of its samples with those of a null corpus, where writing many corpora would be too dear.

    Means, covariances and deviations are those of both together, so that no exchange changes them. `paired`: the i-th
    samples of both answer the same prompt, and only these two are exchanged. The test is exact where the samples are
    exchangeable: of the same prompts, or of prompts drawn alike.

    Returns:
      The verdict, the statistics of the data and of all exchanges, and what was fitted on both.
    """
    if paired and len(data) != len(null):
        raise InputError(f"{len(data)} samples and {len(null)} of the base: pairs need as many of both")
    both = dataclasses.replace(data.beside(null), texts=None)
    pooled = Reference.of(both, directions)
    scored = pooled.scored(both)
    weights = calibration.permutations(np.random.default_rng(seed), len(data), len(null), count, paired)
    white = weights @ scored.white
    statistics = pooled.of_means(white, weights @ scored.columns, (1 / len(data) + 1 / len(null)) ** 0.5)
    return judged(statistics, len(data), white[0], pooled.units), statistics, pooled


def _or_infinite(deviations: Floats) -> Floats:
    return np.where(deviations > 0, deviations, np.inf)


def power_along(null: Floats, level: float, n: int, shifts: Sequence[float]) -> list[dict[str, Any]]:
    """How often a corpus of n samples that are all shifted along one trait would be found, by how far, in deviations of
    a sample: the null's own z (corpora, traits) with the shift added, at the level of one test."""
    edge = np.quantile(null, 1 - level, axis=0)
    return [{"shift": float(shift), "power": float((null + shift * n**0.5 > edge).mean())} for shift in shifts]
