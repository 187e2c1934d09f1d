"""What a :class:`~moeapps.core.tabledata.columns.ColumnEncoder` reads, as numbers alone.

Standardised numbers, a flag for each number that may be missing, and a column per frequent category: for linear models,
gates and graph networks.
"""

# n rows, P numbers of the encoder, C categories, F features

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moeapps.core.tabledata.columns import FIRST, MISSING, ColumnEncoder
from moeapps.core.tabledata.numbers import TIME_PARTS

__all__ = ["CLIP", "category_name", "frequent_categories", "number_names", "one_hot", "one_hot_names"]

CLIP = 3.0
"""Clipped standardised numbers approach this many standard deviations and never exceed them."""


def frequent_categories(
    encoder: ColumnEncoder, codes: NDArray[np.int64], weight: NDArray[np.float64], most: int
) -> list[list[int]]:
    """For each category column the codes of its most frequent categories, in order.

    That of missing values counts as one if it occurs.

    Parameters
    ----------
    encoder : ColumnEncoder
        The columns.
    codes : array of shape (n, C)
        Codes of the training rows.
    weight : array of shape (n,)
        Weights of the rows.
    most : int
        Codes per column, at most.
    """
    every = []
    for column, values in zip(codes.T, encoder.categories, strict=True):
        counts = np.bincount(column, weights=weight, minlength=len(values) + FIRST)
        kept: list[int] = sorted(np.argsort(-counts, kind="stable")[:most].tolist())
        every.append([code for code in kept if counts[code] > 0])
    return every


def one_hot(
    encoder: ColumnEncoder,
    kept: Sequence[Sequence[int]],
    numbers: NDArray[np.float64],
    codes: NDArray[np.int64],
    clipped: bool,
) -> NDArray[np.float64]:
    """Features ``(n, F)`` of rows that the encoder has read.

    Parameters
    ----------
    encoder : ColumnEncoder
        The columns.
    kept : list of list of int
        For each category column the codes that are told apart.
    numbers : array of shape (n, P)
        Numbers, NaN where missing.
    codes : array of shape (n, C)
        Codes of the categories.
    clipped : bool
        Whether numbers are clipped smoothly to three standard deviations.
    """
    scaled = (numbers - np.array(encoder.mean)) / np.array(encoder.scale)
    gone = np.isnan(scaled)
    scaled[gone] = 0.0
    if clipped:  # x / sqrt(1 + (x / c)^2) of Holzmüller et al. 2024 (RealMLP), section 3
        scaled /= np.sqrt(1.0 + np.square(scaled / CLIP))
    parts = [scaled, gone[:, _flagged(encoder)].astype(np.float64)]
    parts += [(codes[:, [i]] == np.array(own)).astype(np.float64) for i, own in enumerate(kept) if own]
    return np.column_stack(parts)


def one_hot_names(encoder: ColumnEncoder, kept: Sequence[Sequence[int]]) -> list[str]:
    """Names of the features: a column's, ``age is missing``, ``city=Ulm``, ``joined hour_sin``."""
    numbers = number_names(encoder)
    flags = [f"{numbers[i]} is missing" for i in _flagged(encoder)]
    names = [encoder.names[i] for i in encoder.categorical]
    return [
        *numbers,
        *flags,
        *(f"{name}={category_name(encoder, i, code)}" for i, name in enumerate(names) for code in kept[i]),
    ]


def one_hot_columns(encoder: ColumnEncoder, kept: Sequence[Sequence[int]]) -> list[str]:
    """Names of the columns that the features are made of, one per feature."""
    numbers = [encoder.names[i] for i in encoder.numeric]
    numbers += [encoder.names[i] for i in encoder.times for _ in TIME_PARTS]
    flags = [numbers[i] for i in _flagged(encoder)]
    categories = [encoder.names[i] for i, codes in zip(encoder.categorical, kept, strict=True) for _ in codes]
    return [*numbers, *flags, *categories]


def number_names(encoder: ColumnEncoder) -> list[str]:
    """Names of the numbers: those of number columns, and the parts of times."""
    numbers = [encoder.names[i] for i in encoder.numeric]
    return numbers + [f"{encoder.names[i]}{part}" for i in encoder.times for part in TIME_PARTS]


def category_name(encoder: ColumnEncoder, position: int, code: int) -> str:
    """Text of a category's code, in the categorical column of this position."""
    if code < FIRST:
        return "missing" if code == MISSING else "unseen"
    return str(encoder.categories[position][code - FIRST])


def _flagged(encoder: ColumnEncoder) -> list[int]:
    """Numbers that had missing values in training; one flag per time is enough."""
    first, width = len(encoder.numeric), len(TIME_PARTS)
    return [i for i, fill in enumerate(encoder.fill) if fill is None and (i < first or (i - first) % width == 0)]
