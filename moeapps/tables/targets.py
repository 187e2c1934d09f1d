"""Numeric targets: checked, standardised for learning, and back; shared by the regressors of tables."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.utils.validation import check_array, column_or_1d

from moeapps.core.arrays import as_array
from moeapps.core.errors import DataError
from moeapps.core.tabledata.cells import missing_texts
from moeapps.core.tabledata.numbers import to_numbers

__all__ = ["NumericTarget", "has_outliers", "refuse_several_labels", "robust_scale"]

EXTREME, FEW, WIDER, TAILS = 0.01, 20, 1.5, 2.0
"""Part of the rows that may be outliers (at least one); rows needed to say so; what outliers do to the standard
deviation; how widely the others may be spread."""

_NORMAL = 1.349
"""Range between the quartiles of a normal distribution, in standard deviations."""

_LARGEST, _SMALLEST = 1e150, 1e-150
"""Targets, and their standard deviations, whose squares fit into float64."""


def refuse_several_labels(y: Any, estimator: object) -> None:
    """Refuse several targets of classes, naming what learns them.

    Raises
    ------
    DataError
        If y has more than one column.
    """
    shape: tuple[int, ...] = getattr(y, "shape", ())
    if len(shape) == 2 and shape[1] > 1:
        raise DataError(
            f"y has {shape[1]} targets, and {type(estimator).__name__} learns one: y should be a 1d array. "
            "moeapps.MultiTaskRanker learns several targets of one table: MultiTaskRanker().fit(frame, "
            "targets=['churned', 'bought']), where the frame has them as columns"
        )


class NumericTarget:
    """Adds to an estimator what it knows of its targets: how many there are, their means and standard deviations."""

    target_mean_: NDArray[np.float64]
    target_scale_: NDArray[np.float64]
    n_outputs_: int
    _one_column: bool

    def _check_target(self, y: Any) -> NDArray[Any]:
        y = as_array(y)
        if y.dtype.kind in "mM":
            raise DataError("y holds times: convert them to numbers, such as days since a date")
        if y.ndim == 1 and (y.dtype == object or y.dtype.kind in "US"):
            try:
                y = to_numbers(pd.Series(y, dtype=object), missing_texts(), "y")
            except DataError as error:
                found = str(error).removeprefix("column 'y', ").partition(" is not a number")[0]
                raise DataError(f"y must be numbers, got {found}") from None
        y = check_array(y, ensure_2d=False, dtype=None, input_name="y")
        if y.ndim > 2:
            raise DataError(f"y must have shape (n,) or (n, targets), got {y.shape}")
        if np.iscomplexobj(y):
            raise ValueError("Complex data not supported")
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        numbers = np.asarray(y, dtype=np.float64)
        if (large := np.argwhere(np.abs(numbers) >= _LARGEST)).size:
            value = numbers[tuple(large[0])]
            raise DataError(
                f"y holds {value:g} at row {large[0][0]}: numbers from {_LARGEST:g} cannot be scaled, divide them first"
            )
        return numbers

    def _learn_target(self, y: NDArray[Any], weight: NDArray[np.float64]) -> None:
        self._one_column = y.ndim == 1
        columns = y.reshape(len(y), -1)
        self.n_outputs_ = columns.shape[1]
        share = weight[:, None] / weight.sum()
        self.target_mean_ = (columns * share).sum(axis=0)
        gap = columns - self.target_mean_
        scale = np.sqrt((np.square(gap) * share).sum(axis=0))
        if (tiny := (scale < _SMALLEST) & (gap != 0).any(axis=0)).any():  # their squares are not numbers of float64
            unit = np.abs(gap).max(axis=0)
            unit[unit == 0] = 1.0
            scale = np.where(tiny, unit * np.sqrt((np.square(gap / unit) * share).sum(axis=0)), scale)
        self.target_scale_ = np.where(scale > 0, scale, 1.0)

    def _encode_target(self, y: NDArray[Any]) -> NDArray[np.float64]:
        columns = y.reshape(len(y), -1)
        if columns.shape[1] != self.n_outputs_:
            raise DataError(f"y has {columns.shape[1]} targets, the model was fitted with {self.n_outputs_}")
        return (columns - self.target_mean_) / self.target_scale_

    def _decode_target(self, outputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Targets from standardised ones ``(n, T)``: ``(n,)`` if there was one column."""
        targets = outputs * self.target_scale_ + self.target_mean_
        return targets[:, 0] if self._one_column else targets


def has_outliers(y: NDArray[np.float64], weight: NDArray[np.float64]) -> bool:
    """Whether a few targets, and nothing but these, are far from all others.

    They are if the standard deviation is 1.5 times that without the 1 % farthest from the median, and the remaining
    rows are spread at most twice as widely as their quartiles say. A skewed target (incomes, claims, counts with many
    zeros) fails the second condition: its tail belongs to what the mean has to predict.

    Parameters
    ----------
    y : array of shape (n,)
        Targets.
    weight : array of shape (n,)
        Positive weights.
    """
    median, robust = robust_scale(y, weight)
    far = np.abs(y - median)
    kept = far <= np.quantile(far, 1 - max(EXTREME, 1 / len(y)), weights=weight, method="inverted_cdf")
    others = _deviation(y[kept], weight[kept])
    return len(y) >= FEW and _deviation(y, weight) > WIDER * others and others < TAILS * robust


def robust_scale(y: NDArray[np.float64], weight: NDArray[np.float64]) -> tuple[float, float]:
    """Weighted median, and the range between the quartiles as a standard deviation; 0 where the quartiles are one."""
    low, median, high = np.quantile(y, [0.25, 0.5, 0.75], weights=weight, method="inverted_cdf").tolist()
    return median, (high - low) / _NORMAL


def _deviation(y: NDArray[np.float64], weight: NDArray[np.float64]) -> float:
    mean = np.average(y, weights=weight)
    return float(np.sqrt(np.average(np.square(y - mean), weights=weight)))
