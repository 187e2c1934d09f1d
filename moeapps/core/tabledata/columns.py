"""From a table with columns of any kind to numbers and category codes, the same way in fit and predict."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moeapps.core.errors import ConfigError, DataError
from moeapps.core.tabledata.files import ColumnKind, kind_of

__all__ = ["ColumnEncoder", "is_number", "plain_value"]

UNKNOWN, MISSING, FIRST = 0, 1, 2
"""Codes: a category not seen in training, a missing value, the first category."""

_LARGEST = float(np.finfo(np.float32).max)


class ColumnEncoder:
    """Learns which columns are categories, which categories there are, and how the numbers are spread.

    A missing value (NaN, None, NA) is information: numbers get a flag, categories a code of their own. A category that
    training has not seen gets the code 0, to which the network has learned nothing.

    Attributes
    ----------
    names : list of str
        Names of all columns, in order.
    numeric : list of int
        Positions of the numeric columns.
    categorical : list of int
        Positions of the categorical columns.
    categories : list[list of Any]
        For each categorical column its values in order of appearance; value i has the code i + 2.
    mean : list of float
        Weighted mean of each numeric column.
    scale : list of float
        Its weighted standard deviation (1 for a constant).
    edges : list[list of float]
        Quantiles of each numeric column, increasing, at least two, or none for a constant.
    """

    names: list[str]
    numeric: list[int]
    categorical: list[int]
    categories: list[list[Any]]
    mean: list[float]
    scale: list[float]
    edges: list[list[float]]

    def fit(
        self,
        X: pd.DataFrame | NDArray[Any],
        sample_weight: NDArray[np.float64],
        categorical_features: str | Sequence[Any] | None = "auto",
        num_bins: int = 32,
    ) -> Self:
        """Learn from a table.

        Parameters
        ----------
        X : DataFrame or array
            ``(n, P)`` frame or float array.
        sample_weight : array
            ``(n,)`` non-negative weights.
        categorical_features : str or sequence of Any or None, default="auto"
            ``"auto"`` (columns that are text, bool, category or object), None, or the names or positions of the
            categorical columns.
        num_bins : int, default=32
            Quantile bins per numeric column, at most; fewer for very wide tables.

        Raises
        ------
        ConfigError
            If ``categorical_features`` names a column that is not there.
        DataError
            If a number is infinite or too large, naming row and column.
        """
        self.names = [str(name) for name in X.columns] if isinstance(X, pd.DataFrame) else [
            f"column {i}" for i in range(X.shape[1])
        ]  # fmt: skip
        chosen = self._categorical(X, categorical_features)
        self.categorical = sorted(chosen)
        self.numeric = [i for i in range(X.shape[1]) if i not in chosen]
        self.categories = [self._values(_column(X, i)) for i in self.categorical]
        numbers = self._numbers(X)
        bins = max(2, min(num_bins, 4096 // max(len(self.numeric), 1)))
        self.mean, self.scale, self.edges = [], [], []
        for column in numbers.T:
            known = ~np.isnan(column)
            mean, scale = _moments(column[known], sample_weight[known])
            self.mean.append(mean)
            self.scale.append(scale)
            self.edges.append(_quantiles(column[known], sample_weight[known], bins))
        return self

    def transform(self, X: pd.DataFrame | NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Numbers ``(n, P)`` with NaN where missing, and category codes ``(n, C)``."""
        codes = np.zeros((len(X), len(self.categorical)), dtype=np.int64)
        for position, (index, values) in enumerate(zip(self.categorical, self.categories, strict=True)):
            column = _column(X, index)
            lookup = {value: FIRST + i for i, value in enumerate(values)}
            code = column.map(lookup).to_numpy(dtype=float, na_value=UNKNOWN)
            codes[:, position] = np.where(column.isna(), MISSING, np.nan_to_num(code, nan=UNKNOWN))
        return self._numbers(X), codes

    def column_kinds(self) -> dict[str, ColumnKind]:
        """What the columns of a CSV file have to be read as, in the order of training."""
        categories = dict(zip(self.categorical, self.categories, strict=True))
        return {name: kind_of(categories[i]) if i in categories else "number" for i, name in enumerate(self.names)}

    def state(self) -> dict[str, Any]:
        """Everything that was learned, as JSON values."""
        return dict(vars(self))

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """Undo :meth:`state`."""
        encoder = cls()
        vars(encoder).update(state)
        return encoder

    def _categorical(self, X: pd.DataFrame | NDArray[Any], wanted: str | Sequence[Any] | None) -> set[int]:
        frame = X if isinstance(X, pd.DataFrame) else None
        if isinstance(wanted, str) and wanted == "auto":
            return set() if frame is None else {i for i, kind in enumerate(frame.dtypes) if not is_number(kind)}
        chosen = set()
        for entry in [] if wanted is None else list(wanted):
            if isinstance(entry, str) and entry in self.names:
                chosen.add(self.names.index(entry))
            elif isinstance(entry, int | np.integer) and 0 <= entry < len(self.names):
                chosen.add(int(entry))
            else:
                raise ConfigError(
                    f"categorical_features must be 'auto', None, or names or positions of columns, got {entry!r}; "
                    f"the columns are {', '.join(self.names[:10])}{', ...' if len(self.names) > 10 else ''}"
                )
        if frame is not None:
            for i, kind in enumerate(frame.dtypes):
                if i not in chosen and not is_number(kind):
                    raise ConfigError(f"column {self.names[i]!r} is {kind}: add it to categorical_features, or drop it")
        return chosen

    @staticmethod
    def _values(column: pd.Series) -> list[Any]:
        return list(column.dropna().unique())

    def _numbers(self, X: pd.DataFrame | NDArray[Any]) -> NDArray[np.float64]:
        if isinstance(X, pd.DataFrame):
            chosen = X.iloc[:, self.numeric]
            if all(isinstance(kind, np.dtype) and kind.kind in "fiu" for kind in chosen.dtypes):
                numbers = chosen.to_numpy(dtype=np.float64, copy=True) if self.numeric else None
            else:
                parts = [pd.to_numeric(column, errors="coerce") for _, column in chosen.items()]
                numbers = np.column_stack([p.to_numpy(dtype=np.float64, na_value=np.nan) for p in parts])
        else:
            numbers = X[:, self.numeric].astype(np.float64)
        if numbers is None:
            return np.zeros((len(X), 0))
        with np.errstate(invalid="ignore"):
            bad = np.abs(numbers) > _LARGEST
        if bad.any():
            row, position = np.argwhere(bad)[0]
            name = self.names[self.numeric[position]]
            raise DataError(
                f"X has {numbers[row, position]} at row {row}, column {name!r}: infinite, or too large for float32. "
                "Use a missing value or a clipped one"
            )
        return numbers


def is_number(kind: Any) -> bool:
    """Whether a column of this dtype holds numbers; bool counts as a category."""
    return pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind)


def _column(X: pd.DataFrame | NDArray[Any], index: int) -> pd.Series:
    """A column of plain values (str, int, float, bool), so that they can be looked up and written to a file."""
    column = X.iloc[:, index] if isinstance(X, pd.DataFrame) else pd.Series(X[:, index])
    values = column.astype(object)
    return values.where(values.isna(), values.map(plain_value))


def plain_value(value: Any) -> Any:
    """A category as str, int, float or bool, so that it can be looked up and written to a file."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, str | int | float | bool) else str(value)


def _moments(values: NDArray[np.float64], weight: NDArray[np.float64]) -> tuple[float, float]:
    """Weighted mean and standard deviation; 1 instead of a deviation that is 0 up to rounding."""
    # not StandardScaler, whose last bits differ: a fit would no longer give the numbers that 0.1 gives
    total = weight.sum()
    if total <= 0:
        return 0.0, 1.0
    mean = float((values * weight).sum() / total)
    scale = float(np.sqrt((np.square(values - mean) * weight).sum() / total))
    return mean, scale if scale > 1e-12 * max(abs(mean), 1e-300) else 1.0


def _quantiles(values: NDArray[np.float64], weight: NDArray[np.float64], bins: int) -> list[float]:
    """Distinct weighted quantiles, none for a constant. A weight of two gives the same as the row twice."""
    if len(values) == 0 or weight.sum() <= 0:
        return []
    distinct = np.unique(values[weight > 0])
    bins = min(bins, max(4, len(distinct) // 20))  # counted in distinct values: repeating rows must not change it
    levels = np.linspace(0, 1, bins + 1)
    found = np.unique(np.quantile(values, levels, weights=weight, method="inverted_cdf"))
    if len(found) < bins / 2 < len(distinct):  # most of the mass in few values: spread the rest over the others
        rest = ~np.isin(values, found)
        more = np.quantile(values[rest], levels, weights=weight[rest], method="inverted_cdf")
        found = np.unique(np.concatenate([found, more]))
    return found.tolist() if len(found) > 1 else []
