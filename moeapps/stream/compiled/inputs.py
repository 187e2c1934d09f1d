"""What linear models, networks and the gate see of an instance: a short list of rows and values.

A weight matrix of these models has one row per input: row 0 is the constant, then one row per feature for numbers,
standardised by the mean and variance of the recent past, then one row per category (one-hot). An instance is the list
of its rows that are not zero, so a missing value is left out, a category costs one row, and the time does not depend on
how many categories there are.
"""

# F features, Q categorical features, V room for categories, R rows

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeapps.stream.compiled.jit import kernel

__all__ = ["Layout", "encode", "move_rows", "update_moments"]

MEMORY = 2000.0
"""Instances over which features are standardised."""

CUT = 5.0
"""Standardised numbers are cut off here."""


class Layout(NamedTuple):
    """Which row is which."""

    features: int  # F
    places: int  # Q
    values: int  # V

    @property
    def rows(self) -> int:
        """Number R of rows."""
        return 1 + self.features + self.places * self.values

    def keys(self) -> NDArray[np.uint64]:
        """``(R,)`` a number for each row that stays the same when the layout grows."""
        numbers = np.arange(1 + self.features, dtype=np.uint64)
        places = np.arange(1, 1 + self.places, dtype=np.uint64)[:, None] << np.uint64(32)
        codes = places + np.arange(self.values, dtype=np.uint64)
        return np.concatenate([numbers, codes.ravel()])


def move_rows(source: NDArray[Any], target: NDArray[Any], old: Layout, new: Layout) -> None:
    """Copy what a smaller layout has learned; axis 0 of both arrays is that of the rows."""
    first = 1 + old.features
    rest = tuple(slice(size) for size in source.shape[1:])
    target[(slice(first), *rest)] = source[:first]
    for place in range(old.places):
        start, begin = first + place * old.values, 1 + new.features + place * new.values
        target[(slice(begin, begin + old.values), *rest)] = source[start : start + old.values]


@kernel
def encode(kind, moments, x, values, rows, numbers):  # type: ignore[no-untyped-def]
    """Fill ``rows`` and ``numbers`` with the inputs of an instance that are not zero; returns how many there are."""
    features = moments.shape[0]
    rows[0], numbers[0] = 0, 1.0
    n = 1
    for f in range(features):
        value, place = x[f], kind[f]
        if np.isnan(value):
            continue
        if place >= 0:
            if 0.0 <= value < values:
                rows[n], numbers[n] = 1 + features + place * values + int(value), 1.0
                n += 1
        elif moments[f, 2] > 0.0:
            rows[n] = 1 + f
            numbers[n] = min(max((value - moments[f, 1]) / np.sqrt(moments[f, 2]), -CUT), CUT)
            n += 1
    return n


@kernel
def update_moments(moments, x):  # type: ignore[no-untyped-def]
    """Count each value that is there; mean and variance of the last :data:`MEMORY` or so."""
    for f in range(moments.shape[0]):
        if np.isnan(x[f]):
            continue
        moments[f, 0] += 1.0
        rate = max(1.0 / moments[f, 0], 1.0 / MEMORY)
        gap = x[f] - moments[f, 1]
        moments[f, 1] += rate * gap
        moments[f, 2] += rate * (gap * (x[f] - moments[f, 1]) - moments[f, 2])
