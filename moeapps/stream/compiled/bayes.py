"""Naive Bayes that forgets: a Gaussian per class and number, frequencies per class and category.

Class weights fade with every instance by the rate of the expert; means, variances and frequencies of a class are
averages over about as many of its instances. Experts of this kind differ in how quickly they forget.
"""

# B experts, F features, Q categorical features, V room for categories, C classes

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeapps.stream.compiled.jit import fill, kernel
from moeapps.stream.compiled.references import referable

__all__ = ["BAYES", "Bayes", "grow_bayes", "learn_bayes", "new_bayes", "vote_bayes"]

BAYES = (1000.0, 300.0)
"""Instances that the first expert of this kind remembers, the second, and so on."""

_MOST = 50.0
"""A number of a feature speaks at most this much against a class, in log density."""


@referable
class Bayes(NamedTuple):
    """What all experts of this kind have counted."""

    weight: NDArray[np.float64]  # (B, C) weight of each class
    seen: NDArray[np.float64]  # (B, F, C) values seen; unlike the weights these do not fade
    mean: NDArray[np.float64]  # (B, F, C)
    variance: NDArray[np.float64]  # (B, F, C)
    precision: NDArray[np.float64]  # (B, F, C) of the Gaussian that predicts; 0 until there is one
    offset: NDArray[np.float64]  # (B, F, C) its log density at the mean, relative to that over all classes
    share: NDArray[np.float64]  # (B, Q, V, C) frequency of each category
    rate: NDArray[np.float64]  # (B,)


def new_bayes(number: int, features: int, places: int, values: int, classes: int) -> Bayes:
    """The first ``number`` experts of :data:`BAYES`, without instances."""
    grid = (number, features, classes)
    return Bayes(
        np.zeros((number, classes)), np.zeros(grid), np.zeros(grid), np.zeros(grid), np.zeros(grid), np.zeros(grid),
        np.zeros((number, places, values, classes)), 1.0 / np.array(BAYES[:number]).reshape(number),
    )  # fmt: skip


def grow_bayes(old: Bayes, features: int, places: int, values: int, classes: int) -> Bayes:
    """The same with more room."""
    new = new_bayes(len(old.rate), features, places, values, classes)
    for source, target in zip(old, new, strict=True):
        target[tuple(slice(size) for size in source.shape)] = source
    return new


@kernel
def _vote(b, e, kind, known, x, classes, votes):  # type: ignore[no-untyped-def]
    total = 0.0
    for c in range(classes):
        total += b.weight[e, c]
    if total == 0.0:
        fill(votes, classes, 1.0 / classes)
        return
    for c in range(classes):
        votes[c] = np.log(b.weight[e, c] / total) if b.weight[e, c] > 0.0 else -np.inf
    for f in range(b.mean.shape[1]):
        value, place = x[f], kind[f]
        if np.isnan(value):
            continue
        if place < 0:
            mean, precision, offset = b.mean[e, f], b.precision[e, f], b.offset[e, f]
            for c in range(classes):
                gap = value - mean[c]
                votes[c] += offset[c] - min(0.5 * gap * gap * precision[c], _MOST)
        elif 0.0 <= value < known[place]:
            share = b.share[e, place, int(value)]
            for c in range(classes):
                votes[c] += np.log((b.weight[e, c] * share[c] + 1.0) / (b.weight[e, c] + known[place]))
    best = -np.inf
    for c in range(classes):
        best = max(best, votes[c])
    total = 0.0
    for c in range(classes):
        votes[c] = np.exp(votes[c] - best)
        total += votes[c]
    for c in range(classes):
        votes[c] /= total


@kernel
def vote_bayes(b, kind, known, x, classes, votes):  # type: ignore[no-untyped-def]
    """Fill the class probabilities ``(B, C)``; ``known`` has the number of categories per categorical feature."""
    for e in range(b.rate.shape[0]):
        _vote(b, e, kind, known, x, classes, votes[e])


@kernel
def learn_bayes(b, kind, moments, known, x, y, classes):  # type: ignore[no-untyped-def]
    """Learn an instance; ``moments`` are those of the features over all classes."""
    for e in range(b.rate.shape[0]):
        for c in range(classes):
            b.weight[e, c] *= 1.0 - b.rate[e]
        b.weight[e, y] += 1.0
        weight = b.weight[e, y]
        for f in range(b.mean.shape[1]):
            value, place = x[f], kind[f]
            if np.isnan(value) or value < 0.0 <= place:
                continue
            b.seen[e, f, y] += 1.0
            rate = 1.0 / max(min(b.seen[e, f, y], weight), 1.0)
            if place >= 0:
                for v in range(known[place]):
                    b.share[e, place, v, y] *= 1.0 - rate
                b.share[e, place, int(value), y] += rate
                continue
            gap = value - b.mean[e, f, y]
            b.mean[e, f, y] += rate * gap
            b.variance[e, f, y] += rate * (gap * (value - b.mean[e, f, y]) - b.variance[e, f, y])
            overall = moments[f, 2]
            if overall > 0.0:  # few instances: nearer to the variance over all classes
                own = weight / (weight + 2.0)
                variance = own * b.variance[e, f, y] + (1.0 - own + 1e-3) * overall
                b.precision[e, f, y] = 1.0 / variance
                b.offset[e, f, y] = -0.5 * np.log(variance / overall)
