"""ADWIN in compiled code: a window of the recent past that is cut where its mean has changed (Bifet and Gavalda 2007).

It is written by hand, and tested against river's, because two detectors per expert receive a value at every instance,
inside the compiled loop.

:func:`update_window` adds one value:

1. The value becomes a bucket of row 0; number, sum and squared deviations of the window are updated.
2. A row with more than 5 buckets merges its two oldest into one of the next row (an exponential histogram), so a window
   of n values takes O(log n) memory.
3. At every 32nd value: for each split of the window between two buckets, compare the means of the older and the newer
   part. Where they differ by more than the paper's bound, with the variance of the window, drop the oldest bucket and
   compare again.
"""

# D windows

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeapps.stream.compiled.jit import fill, kernel
from moeapps.stream.compiled.references import referable

__all__ = ["Windows", "allocate_windows", "reset_window", "update_window"]

ROWS, BUCKETS = 32, 5
CLOCK, MIN_WINDOW, GRACE = 32, 5, 10
COUNT, SUM, VARIATION, TICK = range(4)


@referable
class Windows(NamedTuple):
    """D windows. Row r of a window holds up to 5 buckets (6 for a moment) of 2^r values each, the oldest first."""

    filled: NDArray[np.int32]  # (D, ROWS) buckets in use
    sums: NDArray[np.float64]  # (D, ROWS, 6) sum of a bucket's values
    variations: NDArray[np.float64]  # (D, ROWS, 6) sum of squared deviations from the bucket's mean
    whole: NDArray[np.float64]  # (D, 4) of the window: number, sum, sum of squared deviations, updates so far


def allocate_windows(number: int) -> Windows:
    """Empty windows."""
    return Windows(
        filled=np.zeros((number, ROWS), dtype=np.int32),
        sums=np.zeros((number, ROWS, BUCKETS + 1)),
        variations=np.zeros((number, ROWS, BUCKETS + 1)),
        whole=np.zeros((number, 4)),
    )


@kernel
def reset_window(w, d):  # type: ignore[no-untyped-def]
    """Empty a window."""
    fill(w.filled[d], ROWS, 0)
    fill(w.whole[d], 4, 0.0)


@kernel
def update_window(w, d, value, delta):  # type: ignore[no-untyped-def]
    """Add a value. Returns whether the mean has changed; the older part of the window is dropped then."""
    whole = w.whole[d]
    if whole[COUNT] > 0.0:
        gap = value - whole[SUM] / whole[COUNT]
        whole[VARIATION] += gap * gap * whole[COUNT] / (whole[COUNT] + 1.0)
    whole[COUNT] += 1.0
    whole[SUM] += value
    w.sums[d, 0, w.filled[d, 0]] = value
    w.variations[d, 0, w.filled[d, 0]] = 0.0
    w.filled[d, 0] += 1
    _compress(w, d)
    whole[TICK] += 1.0
    if whole[TICK] % CLOCK != 0.0 or whole[COUNT] <= GRACE:
        return False
    changed = False
    while _has_changed(w, d, delta):
        changed = True
        _drop_oldest(w, d)
    return changed


@kernel
def _compress(w, d):  # type: ignore[no-untyped-def]
    """Step 2: merge the two oldest buckets of rows that are full."""
    for row in range(ROWS - 1):
        if w.filled[d, row] <= BUCKETS:
            return
        size = 2.0**row
        sums, variations = w.sums[d, row], w.variations[d, row]
        gap = (sums[0] - sums[1]) / size
        place = w.filled[d, row + 1]
        w.sums[d, row + 1, place] = sums[0] + sums[1]
        w.variations[d, row + 1, place] = variations[0] + variations[1] + gap * gap * size / 2.0
        w.filled[d, row + 1] += 1
        for i in range(BUCKETS - 1):
            sums[i] = sums[i + 2]
            variations[i] = variations[i + 2]
        w.filled[d, row] = BUCKETS - 1


@kernel
def _has_changed(w, d, delta):  # type: ignore[no-untyped-def]
    """Step 3: whether the means of some older and newer part differ by more than the bound."""
    n, total = w.whole[d, COUNT], w.whole[d, SUM]
    variance = w.whole[d, VARIATION] / n
    confidence = np.log(2.0 * np.log(n) / delta)
    old, old_sum = 0.0, 0.0
    for row in range(ROWS - 1, -1, -1):
        for i in range(w.filled[d, row]):
            old += 2.0**row
            old_sum += w.sums[d, row, i]
            new = n - old
            if new < MIN_WINDOW:
                return False
            if old < MIN_WINDOW:
                continue
            harmonic = 1.0 / (old - MIN_WINDOW + 1.0) + 1.0 / (new - MIN_WINDOW + 1.0)
            bound = np.sqrt(2.0 * harmonic * variance * confidence) + 2.0 / 3.0 * confidence * harmonic
            if abs(old_sum / old - (total - old_sum) / new) > bound:
                return True
    return False


@kernel
def _drop_oldest(w, d):  # type: ignore[no-untyped-def]
    """Remove the oldest bucket and its share of the window's statistics."""
    whole = w.whole[d]
    for row in range(ROWS - 1, -1, -1):
        if w.filled[d, row] == 0:
            continue
        size, total = 2.0**row, w.sums[d, row, 0]
        rest = whole[COUNT] - size
        if rest > 0.0:
            gap = total / size - (whole[SUM] - total) / rest
            whole[VARIATION] -= w.variations[d, row, 0] + gap * gap * size * rest / whole[COUNT]
            whole[VARIATION] = max(whole[VARIATION], 0.0)
        whole[COUNT] = rest
        whole[SUM] -= total
        for i in range(w.filled[d, row] - 1):
            w.sums[d, row, i] = w.sums[d, row, i + 1]
            w.variations[d, row, i] = w.variations[d, row, i + 1]
        w.filled[d, row] -= 1
        return
