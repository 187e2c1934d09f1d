"""Mean and spread of columns that come in batches.

scikit-learn's ``StandardScaler.partial_fit`` gives the same bits for one batch, but other last bits for several. A
checkpoint of a training from a file is compared with the file's means exactly, so that one of 0.1 could not be resumed;
and a column without any known value has the mean NaN there, 0 here.
"""

import numpy as np
from numpy.typing import NDArray

__all__ = ["Moments", "column_moments", "merge_moments"]

Moments = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def column_moments(numbers: NDArray[np.float64]) -> Moments:
    """Count, mean and sum of squared deviations of each column, over the known values."""
    known = ~np.isnan(numbers)
    count = known.sum(axis=0).astype(float)
    mean = np.where(known, numbers, 0.0).sum(axis=0) / np.maximum(count, 1)
    with np.errstate(over="ignore"):
        return count, mean, (np.where(known, numbers - mean, 0.0) ** 2).sum(axis=0)


def merge_moments(first: Moments, second: Moments) -> Moments:
    """Moments of two batches together (Chan, Golub and LeVeque 1979)."""
    count = first[0] + second[0]
    share = second[0] / np.maximum(count, 1)
    delta = second[1] - first[1]
    with np.errstate(over="ignore", invalid="ignore"):
        return count, first[1] + delta * share, first[2] + second[2] + delta**2 * first[0] * share
