"""Regression trees in the same arena: leaves that predict a mean, splits by variance reduction (FIMT).

A leaf keeps number, mean and squared deviations of its targets in the first three places of ``counts``. The observer of
a feature is a histogram of equal bins whose range doubles when a value falls outside, so that its size is fixed and
no range has to be known in advance; each bin holds weight, sum and sum of squares of the targets, measured from the
first target of the leaf (numbers far from 0 would cancel in the sum of squares). Candidate splits are the bin edges.

:func:`learn` grows a tree by one instance (x, y, weight):

1. Descend to the leaf; update the mean and the squared deviations of its targets (Welford).
2. If the leaf has a slot, add the target to the bin, or category, of each observed feature.
3. After each ``grace_period`` of weight: for each observed feature, the split that removes most of the variance.
4. Split on the best feature if the ratio of the second best reduction to the best is below 1 minus the Hoeffding bound,
   or if the bound is below the tie threshold (FIMT, Ikonomovska et al. 2011, section 4).
"""

import numpy as np

from moeapps.stream.compiled.arena import FREE_NODES_LEFT, FREE_SLOTS_LEFT
from moeapps.stream.compiled.jit import copy_row, kernel
from moeapps.stream.compiled.trees import _child, close_split, new_child

__all__ = ["BINS", "learn", "predict"]

BINS = 32
WEIGHT, SUM, SQUARES, FRAME = range(4)
"""Rows of an observer; FRAME holds low edge, width of a bin (0 while only one value is known), and that value."""

N, MEAN, DEVIATIONS, ORIGIN = range(4)
"""Places of a leaf's ``counts``."""


@kernel
def predict(t, node, x):  # type: ignore[no-untyped-def]
    """Mean target of a leaf; NaN where it has seen none."""
    return t.counts[node, MEAN] if t.counts[node, N] > 0.0 else np.nan


@kernel
def learn(t, settings, tree, x, y, weight, rng):  # type: ignore[no-untyped-def]
    """Learn one instance. Returns whether the tree has split."""
    node = t.root[tree]
    while t.feature[node] >= 0:
        t.weight[node] += weight
        node = _child(t, node, x)
    t.weight[node] += weight
    stats = t.counts[node]
    if stats[N] == 0.0:
        stats[ORIGIN] = y
    stats[N] += weight
    gap = y - stats[MEAN]
    stats[MEAN] += gap * weight / stats[N]
    stats[DEVIATIONS] += weight * gap * (y - stats[MEAN])
    slot = t.slot[node]
    if slot < 0:
        return False
    d = y - stats[ORIGIN]
    for i in range(t.subset_size[slot]):
        feature = t.subset[slot, i]
        if np.isnan(x[feature]):
            continue
        place = t.kind[feature]
        if place < 0:
            _observe(t.numeric[slot, feature], x[feature], d, weight)
        elif x[feature] >= 0.0:
            seen = t.nominal[slot, place]
            for code in (int(x[feature]), seen.shape[0] - 1):
                seen[code, WEIGHT] += weight
                seen[code, SUM] += weight * d
                seen[code, SQUARES] += weight * d * d
    if stats[N] - t.attempted[node] < t.grace[tree]:
        return False
    t.attempted[node] = stats[N]
    return _attempt_split(t, settings, tree, node, rng)


@kernel
def _observe(seen, value, d, weight):  # type: ignore[no-untyped-def]
    """Add a target ``d`` to the bin of a value; the width of the bins is set by the first two different values."""
    frame = seen[FRAME]
    if seen[WEIGHT].sum() == 0.0:
        frame[2] = value
    if frame[1] == 0.0:
        width = abs(value - frame[2]) / (BINS // 4)
        if width == 0.0:  # the same value, or one that is nearer than the smallest number above 0
            _add(seen, 0, d, weight)
            return
        low = min(value, frame[2])
        frame[0], frame[1] = low - width * (BINS // 4), width
        place = min(max(int((frame[2] - frame[0]) / width), 0), BINS - 1)
        for row in range(3):
            held = seen[row, 0]
            seen[row, 0] = 0.0
            seen[row, place] = held
    while value < frame[0] or value >= frame[0] + BINS * frame[1]:
        _double(seen, value < frame[0])
    _add(seen, min(int((value - frame[0]) / frame[1]), BINS - 1), d, weight)


@kernel
def _add(seen, place, d, weight):  # type: ignore[no-untyped-def]
    seen[WEIGHT, place] += weight
    seen[SUM, place] += weight * d
    seen[SQUARES, place] += weight * d * d


@kernel
def _double(seen, downwards):  # type: ignore[no-untyped-def]
    """Merge neighbours and double the range, downwards or upwards."""
    half = BINS // 2
    for row in range(3):
        if downwards:
            for i in range(half - 1, -1, -1):
                seen[row, half + i] = seen[row, 2 * i] + seen[row, 2 * i + 1]
            seen[row, :half] = 0.0
        else:
            for i in range(half):
                seen[row, i] = seen[row, 2 * i] + seen[row, 2 * i + 1]
            seen[row, half:] = 0.0
    if downwards:
        seen[FRAME, 0] -= BINS * seen[FRAME, 1]
    seen[FRAME, 1] *= 2.0


@kernel
def _deviations(n, total, squares):  # type: ignore[no-untyped-def]
    return max(squares - total * total / n, 0.0) if n > 0.0 else 0.0


@kernel
def _reduction(whole, left, min_fraction):  # type: ignore[no-untyped-def]
    """Share of the squared deviations that a split removes; -inf where one side gets too little."""
    n = whole[0] - left[0]
    if left[0] <= min_fraction * whole[0] or n <= min_fraction * whole[0]:
        return -np.inf
    before = _deviations(whole[0], whole[1], whole[2])
    if before <= 0.0:
        return -np.inf
    after = _deviations(left[0], left[1], left[2]) + _deviations(n, whole[1] - left[1], whole[2] - left[2])
    return 1.0 - after / before


@kernel
def _best_value(t, settings, slot, feature, side):  # type: ignore[no-untyped-def]
    """Best reduction of a feature and its split value; ``side`` receives what goes left, and the whole."""
    best, value = -np.inf, 0.0
    whole, left = np.zeros(3), np.zeros(3)
    place = t.kind[feature]
    if place >= 0:
        seen = t.nominal[slot, place]
        last = seen.shape[0] - 1
        for row in range(3):
            whole[row] = seen[last, row]
        for code in range(last):
            for row in range(3):
                left[row] = seen[code, row]
            merit = _reduction(whole, left, settings.min_branch_fraction)
            if merit > best:
                best, value = merit, float(code)
                copy_row(left, side[0], 3)
                copy_row(whole, side[1], 3)
        return best, value
    seen = t.numeric[slot, feature]
    if seen[FRAME, 1] == 0.0:
        return best, value
    for row in range(3):
        whole[row] = seen[row].sum()
    for i in range(BINS - 1):
        for row in range(3):
            left[row] += seen[row, i]
        merit = _reduction(whole, left, settings.min_branch_fraction)
        if merit > best:
            best, value = merit, seen[FRAME, 0] + (i + 1) * seen[FRAME, 1]
            copy_row(left, side[0], 3)
            copy_row(whole, side[1], 3)
    return best, value


@kernel
def _attempt_split(t, settings, tree, node, rng):  # type: ignore[no-untyped-def]
    """Steps 3 and 4 of the module's list. Returns whether the leaf was split."""
    slot = t.slot[node]
    full = t.nodes[tree] + 2 > settings.max_nodes or t.sizes[FREE_NODES_LEFT] < 2 or t.sizes[FREE_SLOTS_LEFT] < 1
    if t.depth[node] >= settings.max_depth or full or t.counts[node, DEVIATIONS] <= 0.0:
        return False
    best, second, feature, threshold = 0.0, 0.0, -1, 0.0
    side, chosen = np.zeros((2, 3)), np.zeros((2, 3))
    for i in range(t.subset_size[slot]):
        candidate = t.subset[slot, i]
        merit, value = _best_value(t, settings, slot, candidate, side)
        if merit > best:
            second = best
            best, feature, threshold = merit, candidate, value
            copy_row(side[0], chosen[0], 3)
            copy_row(side[1], chosen[1], 3)
        elif merit > second:
            second = merit
    if feature < 0:
        return False
    bound = np.sqrt(np.log(1.0 / t.delta[tree]) / (2.0 * t.counts[node, N]))
    if second / best >= 1.0 - bound and bound >= settings.tie_threshold:
        return False
    origin = t.counts[node, ORIGIN]
    for branch in range(2):
        child = new_child(t, tree, node, branch, rng)
        n = chosen[0, 0] if branch == 0 else chosen[1, 0] - chosen[0, 0]
        total = chosen[0, 1] if branch == 0 else chosen[1, 1] - chosen[0, 1]
        squares = chosen[0, 2] if branch == 0 else chosen[1, 2] - chosen[0, 2]
        t.counts[child, N] = n
        t.counts[child, MEAN] = origin + total / n
        t.counts[child, DEVIATIONS] = _deviations(n, total, squares)
        t.counts[child, ORIGIN] = origin + total / n
        t.weight[child] = n
        t.attempted[child] = n
    close_split(t, tree, node, feature, threshold)
    return True
