"""Do two samples come from one law? A kernel's distance, and whether a classifier can tell them apart."""

import re
import zlib

import numpy as np

Floats = np.ndarray


def mmd(one: Floats, other: Floats, width: float) -> float:
    """The squared maximum mean discrepancy of (n, d) and (m, d) under a Gaussian kernel (Gretton et al. 2012)."""
    n, m = len(one), len(other)
    kernels = (_kernel(one, one, width), _kernel(other, other, width), _kernel(one, other, width))
    within = [(k.sum() - np.trace(k)) / (size * (size - 1)) for k, size in zip(kernels[:2], (n, m), strict=True)]
    return float(within[0] + within[1] - 2 * kernels[2].mean())


def median_distance(points: Floats) -> float:
    """The kernel's usual width: the median distance between two points; 1 where most are the same."""
    squared = _squared(points, points)[np.triu_indices(len(points), 1)]
    return float(np.sqrt(np.median(squared))) or 1.0


def _kernel(one: Floats, other: Floats, width: float) -> Floats:
    return np.exp(-_squared(one, other) / (2 * width**2))


def _squared(one: Floats, other: Floats) -> Floats:
    return np.maximum((one**2).sum(1)[:, None] + (other**2).sum(1) - 2 * one @ other.T, 0.0)


def told_apart(one: Floats, other: Floats, folds: int = 5, ridge: float = 1.0) -> float:
    """The area under the ROC curve of a linear classifier that tells (n, d) from (m, d), each sample judged by one that
    has not seen it. ½ where nothing can be told; the more, the better.

    The classifier is a ridge regression on ±1, cross-fitted; samples should come in no order. λ = `ridge` · the mean
    squared feature.
    """
    features = np.concatenate([one, other])
    labels = np.concatenate([np.ones(len(one)), -np.ones(len(other))])
    fold = np.concatenate([np.arange(len(one)) % folds, np.arange(len(other)) % folds])
    scores = np.empty(len(labels))
    for each in range(folds):
        seen = fold != each
        x, y = features[seen], labels[seen]
        center = x.mean(axis=0)
        apart = x - center
        gram = apart.T @ apart
        least = ridge * max(np.diag(gram).mean(), 1e-12)
        weights = np.linalg.solve(gram + least * np.eye(len(gram)), apart.T @ (y - y.mean()))
        # Each fold's classifier has a level of its own: what counts is the order within a fold.
        scores[~seen] = (features[~seen] - center) @ weights
    halves = [(scores[(fold == each) & (labels > 0)], scores[(fold == each) & (labels < 0)]) for each in range(folds)]
    areas = [_area(positive, negative) for positive, negative in halves]
    return float(np.nanmean(areas))


def _area(positive: Floats, negative: Floats) -> float:
    """P(positive > negative), half for ties."""
    if not len(positive) or not len(negative):
        return float("nan")
    return float(((positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)).mean())


def bag(texts: list[str], dims: int = 128) -> Floats:
    """(n, dims) float64: how often each word of a text occurs; words share a place where their hashes agree.

    A word is a run of letters or digits, or any other single sign. Places are the same in every process.
    """
    counts = np.zeros((len(texts), dims))
    for i, text in enumerate(texts):
        for word in re.findall(r"\w+|[^\w ]", text):
            counts[i, zlib.crc32(word.encode()) % dims] += 1
    return counts
