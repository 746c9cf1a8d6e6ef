"""p-values by rank, among corpora that are known to be harmless: never from a law that should hold in the limit.

Everywhere the first of an array is the corpus that is tested, and the others, the null, are exchangeable with it where
it is harmless: p ≤ a then has a probability of at most a, however many corpora there are (Phipson and Smyth 2010).
"""

import numpy as np

Floats = np.ndarray


def corpora(samples: Floats, n: int, at_most: int | None = None) -> Floats:
    """(m, …) → (corpora, n, …): disjoint corpora of n, in their order; what is left over is left out."""
    count = len(samples) // n
    count = count if at_most is None else min(count, at_most)
    return samples[: count * n].reshape(count, n, *samples.shape[1:])


def rank_p(values: Floats) -> float:
    """How many of all values are at least as large as the first, as a share; never 0. values: (1 + null,)."""
    return float(np.mean(values >= values[0]))


def step_down(values: Floats) -> Floats:
    """(traits,): p-values for many directions that hold together, from values (1 + null, traits), large is unusual.

    Each is compared with the largest of its null over all traits that were not found before it (Westfall and Young
    1993, step-down maxT). Like Holm's adjustment, that keeps the probability of any false finding below the level;
    unlike it, it does not need a null of 20 × traits corpora, as it adds no p-values up.
    """
    own, null = values[0], values[1:]
    order = np.argsort(-own, kind="stable")
    # Largest of the null over this and all later traits of the order.
    largest = np.maximum.accumulate(null[:, order[::-1]], axis=1)[:, ::-1]
    p = (1 + (largest >= own[order]).sum(axis=0)) / (1 + len(null))
    adjusted = np.empty(len(own))
    adjusted[order] = np.maximum.accumulate(p)
    return adjusted


def combined(statistics: Floats) -> Floats:
    """(1 + null,) from (1 + null, statistics): the largest of them, each less its mean and over its deviation.

    Means and deviations are over all corpora, the tested one too, so that it stays exchangeable with the others. The
    result has a rank p of its own: that is the calibration of the combination.
    """
    spread = statistics.std(axis=0)
    apart = statistics - statistics.mean(axis=0)
    return np.divide(apart, spread, out=np.zeros_like(apart), where=spread > 0).max(axis=1)


def permutations(rng: np.random.Generator, n: int, m: int, count: int, paired: bool = False) -> Floats:
    """(1 + count, n + m) float: weights with which a pooled sample's values give a difference of means.

    The first is as it is: the n tested samples first, with 1/n, then the m of the null, with −1/m. The others exchange
    samples at random; `paired`, with m = n, only within each pair of a tested and a null sample, which had the same
    prompt.
    """
    weights = np.concatenate([np.full(n, 1 / n), np.full(m, -1 / m)])
    if paired:
        signs = np.concatenate([np.ones((1, n)), rng.choice([-1.0, 1.0], (count, n))])
        return np.concatenate([signs, -signs], axis=1) / n
    shuffled = rng.permuted(np.broadcast_to(weights, (count, n + m)), axis=1)
    return np.concatenate([weights[None], shuffled])
