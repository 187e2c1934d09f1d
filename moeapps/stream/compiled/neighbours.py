"""Nearest neighbours among the instances learned last.

One table holds the last instances; each expert of this kind looks at the most recent part of it and lets its nearest
neighbours vote, a near one with more weight. Numbers are compared in units of their recent standard deviation. Two
categories that differ, and a value that is missing on one side, count as far as two values are on average: 2 in squared
standard deviations.
"""

# F features, W instances in the table, K experts, C classes

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeapps.stream.compiled.jit import fill, kernel
from moeapps.stream.compiled.references import referable

__all__ = [
    "NEIGHBOURS",
    "Neighbours",
    "grow_neighbours",
    "learn_neighbours",
    "new_neighbours",
    "predict_neighbours",
    "vote_neighbours",
]

NEIGHBOURS = ((3, 500), (5, 2000), (10, 500))
"""Neighbours and window of the first expert of this kind, the second, and so on."""

MISSING = 1e200
"""Stands for a missing value in the table, since saved arrays have to be finite; features are below 1e150."""

_APART = 2.0


@referable
class Neighbours(NamedTuple):
    """The table and the settings of the experts."""

    table: NDArray[np.float64]  # (F, W) the instance learned as number i is in column i modulo W
    labels: NDArray[Any]  # (W,) classes, or numbers
    seen: NDArray[np.int64]  # (1,) instances learned
    nearest: NDArray[np.int64]  # (K,) how many neighbours vote
    window: NDArray[np.int64]  # (K,) among how many of the last instances


def new_neighbours(
    number: int, features: int, settings: tuple[tuple[int, int], ...] = NEIGHBOURS, numbers: bool = False
) -> Neighbours:
    """A table without instances for the first ``number`` experts of ``settings``; ``numbers`` are its labels, if so."""
    chosen = np.array(settings[:number], dtype=np.int64).reshape(number, 2)
    size = int(chosen[:, 1].max(initial=0))
    labels: Any = np.zeros(size, dtype=np.float64 if numbers else np.int64)
    return Neighbours(
        np.full((features, size), MISSING), labels, np.zeros(1, dtype=np.int64),
        np.ascontiguousarray(chosen[:, 0]), np.ascontiguousarray(chosen[:, 1]),
    )  # fmt: skip


def grow_neighbours(old: Neighbours, features: int) -> Neighbours:
    """The same with further features, which are missing so far."""
    more = features - len(old.table)
    if more == 0:
        return old
    return old._replace(table=np.concatenate([old.table, np.full((more, old.table.shape[1]), MISSING)]))


@kernel
def _distances(n, kind, moments, x, filled, distance):  # type: ignore[no-untyped-def]
    """Squared distances of an instance to all of the table."""
    fill(distance, filled, 0.0)
    for f in range(n.table.shape[0]):
        value, column = x[f], n.table[f]
        if np.isnan(value) or value < 0.0 <= kind[f]:  # the same for all of the table
            continue
        if kind[f] >= 0:
            for j in range(filled):
                distance[j] += 0.0 if column[j] == value else _APART
        elif moments[f, 2] > 0.0:
            scale = 1.0 / np.sqrt(moments[f, 2])
            for j in range(filled):
                gap = (value - column[j]) * scale
                distance[j] += gap * gap if column[j] < MISSING else _APART


@kernel
def _nearest(n, k, filled, distance, near, who):  # type: ignore[no-untyped-def]
    """The nearest neighbours of expert k, by insertion: their distances and labels; returns how many there are."""
    size, count = n.labels.shape[0], 0
    last = n.seen[0]
    for back in range(min(filled, n.window[k])):
        j = (last - 1 - back) % size
        d = distance[j]
        if count == n.nearest[k] and d >= near[count - 1]:
            continue
        if count < n.nearest[k]:
            count += 1
        place = count - 1
        while place > 0 and near[place - 1] > d:
            near[place], who[place] = near[place - 1], who[place - 1]
            place -= 1
        near[place], who[place] = d, n.labels[j]
    return count


@kernel
def _weight(near, i, count):  # type: ignore[no-untyped-def]
    """Weight of a neighbour's vote, by its distance in units of that of the farthest."""
    return 1.0 / (np.sqrt(near[i] / (near[count - 1] + 1e-12)) + 0.1) if near[i] < np.inf else 1.0


@kernel
def _vote(n, k, filled, distance, near, who, classes, votes):  # type: ignore[no-untyped-def]
    """The votes of the nearest neighbours of expert k."""
    count, total = _nearest(n, k, filled, distance, near, who), 0.0
    fill(votes, classes, 0.0)
    for i in range(count):
        weight = _weight(near, i, count)
        votes[who[i]] += weight
        total += weight
    for c in range(classes):
        votes[c] = votes[c] / total if count > 0 else 1.0 / classes


@kernel
def vote_neighbours(n, kind, moments, x, distance, near, who, classes, votes):  # type: ignore[no-untyped-def]
    """Fill the class probabilities ``(K, C)`` of all experts of this kind."""
    experts = n.nearest.shape[0]
    if experts == 0:
        return
    filled = min(n.seen[0], n.labels.shape[0])
    _distances(n, kind, moments, x, filled, distance)
    for k in range(experts):
        _vote(n, k, filled, distance, near, who, classes, votes[k])


@kernel
def predict_neighbours(n, kind, moments, x, distance, near, who, unknown, votes):  # type: ignore[no-untyped-def]
    """Fill the predictions ``(K, 1)`` of all experts of this kind, where labels are numbers: weighted means."""
    experts = n.nearest.shape[0]
    if experts == 0:
        return
    filled = min(n.seen[0], n.labels.shape[0])
    _distances(n, kind, moments, x, filled, distance)
    for k in range(experts):
        count, total, found = _nearest(n, k, filled, distance, near, who), 0.0, 0.0
        for i in range(count):
            weight = _weight(near, i, count)
            total += weight
            found += weight * who[i]
        votes[k, 0] = found / total if count > 0 else unknown


@kernel
def learn_neighbours(n, kind, x, y):  # type: ignore[no-untyped-def]
    """Put an instance in the place of the oldest."""
    if n.labels.shape[0] == 0:
        return
    column = n.seen[0] % n.labels.shape[0]
    for f in range(n.table.shape[0]):
        n.table[f, column] = MISSING if np.isnan(x[f]) or x[f] < 0.0 <= kind[f] else x[f]
    n.labels[column] = y
    n.seen[0] += 1
