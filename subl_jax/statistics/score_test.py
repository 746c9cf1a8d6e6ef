"""Rao's score test of a corpus: is its mean score vector what the model's own samples would give?

With x̄ the mean of n score vectors, μ and S mean and covariance of those of W of the model's own samples:

    T   = (x̄ − μ)' S⁻¹ (x̄ − μ) / (1/n + 1/W)          all directions at once (Rao 1948)
    z_k = J_k' S⁻¹ (x̄ − μ) / √(J_k' S⁻¹ J_k) / √(1/n + 1/W)    one direction J_k, of one degree of freedom

S gets a ridge, so that z has a deviation of less than 1, which its user may divide by. Score vectors have heavy tails
and S is estimated, so T is not χ² of d degrees and z not normal: compare them with those of corpora that the model has
written (`calibration`).
"""

import dataclasses

import numpy as np
import scipy.linalg

Floats = np.ndarray

RIDGE = 10.0  # of S, where nothing else is said; chosen on six bases (docs/audit.md)


@dataclasses.dataclass(frozen=True)
class Whitening:
    """center: (d,), μ. root: (d, d), with root' root = (S + λ I)⁻¹. samples: W."""

    center: Floats
    root: Floats
    samples: int

    @classmethod
    def of(cls, vectors: Floats, ridge: float) -> "Whitening":
        """From the model's own samples, (W, d). λ = `ridge` · the mean of S's diagonal where it is not 0."""
        center = vectors.mean(axis=0, dtype=np.float64)
        apart = vectors - center
        covariance = apart.T @ apart / max(len(vectors) - 1, 1)
        moving = np.diag(covariance) > 0
        least = ridge * np.diag(covariance)[moving].mean() if moving.any() else 1.0
        lower = np.linalg.cholesky(covariance + least * np.eye(len(center)))
        # Cholesky's factor L, of L L' = S + λ I, gives root = L⁻¹.
        root = scipy.linalg.solve_triangular(lower, np.eye(len(center)), lower=True)
        return cls(center, root, len(vectors))

    def white(self, vectors: Floats) -> Floats:
        """(n, d) → (n, d), of the model's own samples with mean 0 and, but for the ridge, covariance 1."""
        return (vectors - self.center) @ self.root.T

    def units(self, directions: Floats) -> Floats:
        """(traits, d) → (traits, d): the directions J in white coordinates, each of length 1; of a J of 0, zeros."""
        white = directions @ self.root.T
        length = np.linalg.norm(white, axis=1, keepdims=True)
        return np.divide(white, length, out=np.zeros_like(white), where=length > 0)

    def scale(self, n: int) -> float:
        """√(1/n + 1/W): the standard deviation of a coordinate of a corpus' mean."""
        return (1 / n + 1 / self.samples) ** 0.5


def rao(means: Floats, scale: float) -> Floats:
    """(corpora,): T of the means (corpora, d) of white vectors, whose deviation is `scale` (`Whitening.scale`)."""
    return ((means / scale) ** 2).sum(axis=1)


def along(means: Floats, units: Floats, scale: float) -> Floats:
    """(corpora, traits): z of the means (corpora, d) of white vectors along `units` (traits, d)."""
    return means @ units.T / scale


def mixture(shifts: Floats, share: float = 0.1, size: float = 1.0) -> Floats:
    """(corpora, …): evidence that a share of the samples is shifted; shifts: (corpora, n, …), standard ones.

    The sum over samples of log(1 − ε + ε exp(δ a − δ²/2)), the log-likelihood ratio of a mixture in which ε = `share`
    of the samples are shifted by δ = `size` standard deviations (Ingster 1997; Donoho and Jin 2004 have its limits).
    """
    return np.log1p(share * np.expm1(size * shifts - size**2 / 2)).sum(axis=1)


def alignment(white_mean: Floats, units: Floats) -> tuple[Floats, Floats]:
    """How far a corpus' deviation points along each direction: (traits,) cosines, and one-sided p.

    p is that of a deviation in a random direction of the white space, whose squared cosine is Beta(½, (d − 1)/2). A
    writer that differs from the base in some harmless way deviates, too; it is a trait's writer only where it deviates
    along the trait more than chance would have it. `white_mean`: (d,), of which coordinates that are always 0 do not
    count.
    """
    moving = (white_mean != 0) | (units != 0).any(axis=0)
    d = max(int(moving.sum()), 2)
    length = np.linalg.norm(white_mean)
    cosine = units @ white_mean / length if length > 0 else np.zeros(len(units))
    import scipy.stats  # late, as it takes a second

    beyond = scipy.stats.beta.sf(np.clip(cosine**2, 0, 1), 0.5, (d - 1) / 2) / 2
    return cosine, np.where(cosine > 0, beyond, 1 - beyond)
