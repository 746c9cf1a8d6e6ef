"""Verdicts on corpora of a known law: how often they are wrong where nothing is there, and what they find."""

import dataclasses

import numpy as np
import pytest

from subl_jax.errors import InputError
from subl_jax.results import auditing
from subl_jax.results.auditing import Evidence, Reference

D, N = 8, 32
DIRECTIONS = np.eye(D)[:3] + 0.3  # of three traits
WORDS = [f"w{i}" for i in range(12)]


def drawn(seed, n, shift=0.0, likely=0.0, words=None):
    """Samples of a heavy-tailed law, shifted along the second trait; and one more audit, and texts."""
    rng = np.random.default_rng(seed)
    unit = DIRECTIONS[1] / np.linalg.norm(DIRECTIONS[1])
    vectors = rng.standard_t(5, size=(n, D)) / (5 / 3) ** 0.5 + shift * unit
    texts = None
    if words is not None:
        texts = [" ".join(rng.choice(WORDS, 6, p=words)) for _ in range(n)]
    return Evidence(vectors.astype(np.float32), {"surprise": rng.normal(size=n) + likely}, texts)


REFERENCE = Reference.of(drawn(0, 4000), DIRECTIONS)
NULL = REFERENCE.scored(drawn(1, 99 * N))


def verdict(evidence):
    return auditing.simulated(REFERENCE.scored(evidence), REFERENCE, NULL)[0]


def test_harmless_corpora_are_found_no_more_often_than_the_level():
    verdicts = [verdict(drawn(seed, N)) for seed in range(100, 500)]
    assert verdicts[0].null == 99 and verdicts[0].n == N
    for name in verdicts[0].of:
        # Three deviations of 400 tries at 5 %; the null's own chance adds to that.
        assert np.mean([each.of[name] <= 0.05 for each in verdicts]) == pytest.approx(0.05, abs=0.05), name
    assert np.mean([each.p <= 0.05 for each in verdicts]) == pytest.approx(0.05, abs=0.05)
    assert np.mean([each.found(0.05).any() for each in verdicts]) == pytest.approx(0.05, abs=0.05)


def test_a_trait_is_found_where_samples_are_shifted_along_it_and_named():
    verdicts = [verdict(drawn(seed, N, shift=1.2)) for seed in range(40)]
    assert all(each.status(0.05) == 3 and each.p <= 0.05 for each in verdicts)
    found = np.stack([each.found(0.05) for each in verdicts])
    # The traits' directions have a cosine of .57, so that others gain, too.
    assert found[:, 1].all() and np.mean([np.argmax(each.z) == 1 for each in verdicts]) >= 0.9
    assert np.mean([each.cosine[1] > each.cosine[[0, 2]].max() for each in verdicts]) >= 0.9


def test_another_writer_is_not_the_bases_own_and_has_no_trait():
    away = np.zeros(D)
    away[-1] = -3.0
    moved = drawn(5, N)
    moved = dataclasses.replace(moved, vectors=moved.vectors + away.astype(np.float32))
    assert verdict(moved).status(0.05) == 4
    assert verdict(drawn(6, N, likely=2.0)).status(0.05) == 4
    assert verdict(drawn(6, N, likely=2.0)).of["surprise"] == 0.01


def test_texts_are_looked_at_where_there_are_any():
    even, skewed = np.full(12, 1 / 12), np.r_[np.full(4, 0.2), np.full(8, 0.025)]
    reference = Reference.of(drawn(0, 600, words=even), DIRECTIONS)
    null = reference.scored(drawn(1, 40 * N, words=even))
    harmless, other = (
        auditing.simulated(reference.scored(drawn(2, N, words=words)), reference, null)[0] for words in (even, skewed)
    )
    for name in ("classifier", "mmd"):
        assert harmless.of[name] > 0.05 and other.of[name] == pytest.approx(1 / 41)


def test_without_its_most_suspicious_samples_a_corpus_is_compared_with_corpora_that_lost_theirs():
    rng = np.random.default_rng(0)
    few = drawn(3, N)
    few.vectors[rng.permutation(N)[:3]] += 9 * (DIRECTIONS[1] / np.linalg.norm(DIRECTIONS[1])).astype(np.float32)
    assert verdict(few).p == 0.01 and auditing.without(REFERENCE.scored(few), REFERENCE, NULL, 0.1) > 0.05
    own = [auditing.without(REFERENCE.scored(drawn(seed, N)), REFERENCE, NULL, 0.1) for seed in range(100, 200)]
    assert np.mean(np.asarray(own) <= 0.1) <= 0.2  # the same loss is the null's, or all would be unusual


@pytest.mark.parametrize("paired", [False, True])
def test_exchanging_samples_is_exact_and_finds_a_shift(paired):
    def found(seed, **planted):
        data, null = drawn(seed, 48, **planted), drawn(10_000 + seed, 48)
        return auditing.permuted(data, null, DIRECTIONS, count=99, paired=paired)[0]

    harmless = [found(seed) for seed in range(200)]
    assert np.mean([each.p <= 0.05 for each in harmless]) == pytest.approx(0.05, abs=0.05)
    shifted = found(0, shift=1.5)
    assert shifted.status(0.05) == 3 and np.argmax(shifted.z) == 1 and shifted.null == 99


def test_a_likelihood_ratio_counts_only_where_a_suspect_is_likelier():
    def of(mean):
        data = drawn(7, N)
        return dataclasses.replace(data, samples={"log_ratio": np.random.default_rng(1).normal(size=N) + mean})

    fit, null = (
        dataclasses.replace(each, samples={"log_ratio": each.samples["surprise"]})
        for each in (drawn(0, 4000), drawn(1, 99 * N))
    )
    reference = Reference.of(fit, DIRECTIONS)
    found = (auditing.simulated(reference.scored(of(mean)), reference, reference.scored(null)) for mean in (2.0, -2.0))
    p = [each.of["log_ratio"] for each, _ in found]
    assert p == [0.01, 1.0]


def test_a_sample_without_a_score_says_nothing():
    evidence = drawn(8, N)
    empty = dataclasses.replace(evidence, samples={"surprise": np.full(N, np.nan)})
    values = REFERENCE.statistics(REFERENCE.scored(empty), N)
    assert values.values[0, values.names.index("surprise")] == 0


def test_power_along_a_trait_grows_from_the_level_to_1():
    null = REFERENCE.statistics(NULL, N).traits
    rows = auditing.power_along(null, 0.05, N, [0.0, 0.3, 3.0])
    assert rows[0]["power"] == pytest.approx(0.05, abs=0.02) and rows[2]["power"] == 1
    assert rows[0]["power"] < rows[1]["power"] < 1


def test_too_few_samples_are_one_line():
    with pytest.raises(InputError, match=r"32 samples need at least 608 of the base .* there are 96"):
        auditing.simulated(REFERENCE.scored(drawn(0, N)), REFERENCE, REFERENCE.scored(drawn(1, 3 * N)))
    with pytest.raises(InputError, match="31 samples of the base: give at least 32"):
        Reference.of(drawn(0, 31), DIRECTIONS)
    with pytest.raises(InputError, match="pairs need as many of both"):
        auditing.permuted(drawn(0, 8), drawn(1, 9), DIRECTIONS, paired=True)
