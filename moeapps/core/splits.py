"""One way to hold rows back: stratified where every class has enough rows for it."""

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from moeapps.core.errors import DataError

__all__ = ["hold_out"]


def hold_out(
    n: int, fraction: float, seed: int, codes: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose rows to train on and rows to hold back for validation.

    Parameters
    ----------
    n : int
        Number of rows.
    fraction : float
        Part of the rows to hold back, below 1; at least one row unless it is 0, and never all.
    seed : int
        Seed of the choice.
    codes : array of shape (n,), optional
        Class of each row. Both parts have all classes in the same ratios, if every class has at least two rows and
        both parts are at least as large as the number of classes; otherwise rows are chosen without regard to it.

    Returns
    -------
    train, held_out : arrays of row numbers
        Disjoint; together all rows.

    Raises
    ------
    DataError
        If fewer than two rows are there to be split.
    """
    rows = np.arange(n)
    if not fraction:
        return rows, rows[:0]
    if n < 2:
        raise DataError(f"{n} row(s) cannot be split into training and validation: at least 2 are needed")
    held = min(max(1, round(n * fraction)), n - 1)
    stratify = None
    if codes is not None:
        sizes = np.unique(codes, return_counts=True)[1]
        stratify = codes if sizes.min() >= 2 and min(held, n - held) >= len(sizes) else None
    train, kept = train_test_split(rows, test_size=held, random_state=seed, stratify=stratify)
    return train, kept
