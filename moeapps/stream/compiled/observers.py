"""What a leaf of a classification tree keeps of a feature, and the best split that it finds in it.

A numeric observer has one Gaussian per class and tries values between the smallest and the largest number seen; a
nominal one has counts and tries "equal to this category".
"""

import math

import numpy as np

from moeapps.stream.compiled.jit import kernel

__all__ = [
    "HIGH",
    "LOW",
    "MEAN",
    "OFFSET",
    "PRECISION",
    "SQUARES",
    "WEIGHT",
    "best_nominal",
    "best_numeric",
    "entropy",
    "observe",
    "part_nominal",
    "part_numeric",
]

WEIGHT, MEAN, SQUARES, LOW, HIGH, PRECISION, OFFSET = range(7)
"""What a numeric observer keeps per class: weight, mean, sum of squared deviations, smallest and largest value, and of
the Gaussian what its log density needs: 1 / variance and -log(2 pi variance) / 2, both 0 until there is a variance."""

_LOG_2_PI = math.log(2 * math.pi)
_SQRT_2 = math.sqrt(2.0)


@kernel
def observe(seen, y, value, weight):  # type: ignore[no-untyped-def]
    """Take a number of class ``y`` into a numeric observer ``(7, C)``."""
    n = seen[WEIGHT, y] + weight
    if seen[WEIGHT, y] == 0.0:
        seen[LOW, y] = value
        seen[HIGH, y] = value
    elif value < seen[LOW, y]:
        seen[LOW, y] = value
    elif value > seen[HIGH, y]:
        seen[HIGH, y] = value
    gap = value - seen[MEAN, y]
    mean = seen[MEAN, y] + gap * weight / n
    seen[SQUARES, y] += weight * gap * (value - mean)
    seen[MEAN, y] = mean
    seen[WEIGHT, y] = n
    if n > 1.0 and seen[SQUARES, y] > 0.0:
        variance = seen[SQUARES, y] / (n - 1.0)
        seen[PRECISION, y] = 1.0 / variance
        seen[OFFSET, y] = -0.5 * (_LOG_2_PI + np.log(variance))


@kernel
def entropy(counts, n):  # type: ignore[no-untyped-def]
    """Entropy in bits, times the total weight; and that weight."""
    total = 0.0
    found = 0.0
    for c in range(n):
        if counts[c] > 0.0:
            total += counts[c]
            found -= counts[c] * np.log2(counts[c])
    if total > 0.0:
        found += total * np.log2(total)
    return found, total


@kernel
def gain(before, total, left, right, n, min_fraction):  # type: ignore[no-untyped-def]
    """Information gain of a split in bits; -inf where one side gets too little."""
    e_left, w_left = entropy(left, n)
    e_right, w_right = entropy(right, n)
    w = w_left + w_right
    if w <= 0.0 or w_left <= min_fraction * w or w_right <= min_fraction * w:
        return -np.inf
    return before / total - (e_left + e_right) / w


@kernel
def part_numeric(seen, value, n, left, right):  # type: ignore[no-untyped-def]
    """Weight of each class up to a value and above it, were its numbers Gaussian."""
    for c in range(n):
        w = seen[WEIGHT, c]
        if w == 0.0 or value < seen[LOW, c]:
            share = 0.0
        elif value >= seen[HIGH, c]:
            share = 1.0
        else:
            deviation = np.sqrt(seen[SQUARES, c] / (w - 1.0)) if w > 1.0 else 0.0
            share = 0.5
            if deviation > 0.0:
                share = 0.5 * math.erfc((seen[MEAN, c] - value) / (deviation * _SQRT_2))
        left[c] = share * w
        right[c] = w - left[c]


@kernel
def part_nominal(seen, code, n, left, right):  # type: ignore[no-untyped-def]
    """Weight of each class with a category and with another; the last row of ``seen`` is that of all."""
    for c in range(n):
        left[c] = seen[code, c]
        right[c] = seen[seen.shape[0] - 1, c] - left[c]


@kernel
def best_nominal(seen, n, before, total, min_fraction, left, right):  # type: ignore[no-untyped-def]
    """Largest gain over the categories of a feature, and its category; ``before`` is the leaf's :func:`entropy`."""
    best, value = -np.inf, 0.0
    for code in range(seen.shape[0] - 1):
        part_nominal(seen, code, n, left, right)
        merit = gain(before, total, left, right, n, min_fraction)
        if merit > best:
            best, value = merit, float(code)
    return best, value


@kernel
def best_numeric(seen, n, before, total, min_fraction, num_splits, left, right):  # type: ignore[no-untyped-def]
    """Largest gain over ``num_splits`` values between the smallest and the largest number, and its value."""
    best, value = -np.inf, 0.0
    low, high = np.inf, -np.inf
    for c in range(n):
        if seen[WEIGHT, c] > 0.0:
            low = min(low, seen[LOW, c])
            high = max(high, seen[HIGH, c])
    if not low < high:
        return best, value
    for i in range(num_splits):
        candidate = low + (high - low) * (i + 1) / (num_splits + 1.0)
        if not low < candidate < high:
            continue
        part_numeric(seen, candidate, n, left, right)
        merit = gain(before, total, left, right, n, min_fraction)
        if merit > best:
            best, value = merit, candidate
    return best, value
