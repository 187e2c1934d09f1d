"""From a table with columns of any kind to numbers and category codes, the same way in fit and predict."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moeapps.core.errors import ConfigError, DataError, FileFormatError
from moeapps.core.saved_arguments import check_fields
from moeapps.core.tabledata.cells import MISSING_VALUES, missing_texts
from moeapps.core.tabledata.evidence import infer_columns
from moeapps.core.tabledata.ids import find_ids, ignored_columns
from moeapps.core.tabledata.kinds import UNUSED, Column, ColumnKind, check_column_types, columns_frame
from moeapps.core.tabledata.numbers import TIME_PARTS, time_parts, to_days, to_numbers
from moeapps.core.tabledata.profile import ColumnProfile
from moeapps.core.tabledata.vocabulary import MISSING as NO_VALUE
from moeapps.core.tabledata.vocabulary import (
    Vocabulary,
    count_values,
    warn_of_imputed,
    warn_of_unseen,
)

__all__ = ["ColumnEncoder"]

UNKNOWN, MISSING, FIRST = 0, 1, 2
"""Codes: a category not seen in training, a missing value, the first category."""

_LARGEST = float(np.finfo(np.float32).max)


class ColumnEncoder:
    """Learns what each column is, which categories there are, and how the numbers are spread.

    A missing value is information where training had missing values, too: numbers get a flag, categories a code of
    their own. In a column that had none, a missing value becomes the median or the most frequent category, with a
    warning, since the network has learned nothing about its flag. A category that training has not seen gets the
    code 0. A time becomes seven numbers: days since 1970, and hour, weekday and day of the year as points of a circle.

    Attributes
    ----------
    names : list of str
        Names of all columns, in order.
    columns : list of Column
        What each column is, and why; empty for an array.
    numeric : list of int
        Positions of the numeric columns.
    times : list of int
        Positions of the times, whose numbers follow those of the numeric columns.
    categorical : list of int
        Positions of the categorical columns.
    unused : list of int
        Positions of ids and ignored columns, which may be absent in rows to predict.
    categories : list[list of Any]
        For each categorical column its values in order of appearance; value i has the code i + 2.
    mean : list of float
        Weighted mean of each number.
    scale : list of float
        Its weighted standard deviation (1 for a constant).
    edges : list[list of float]
        Quantiles of each number, increasing, at least two, or none for a constant.
    fill : list of float or None
        What replaces a missing number: the median where training had no missing one, else None.
    fill_codes : list of int or None
        The same for categories: the code of the most frequent one.
    new_rates : list of float
        For each categorical column the part of further rows that is expected to have an unseen category (Good-Turing:
        the part of training rows whose category occurs once).
    missing_values : list of str
        Texts that mean a missing value.
    profiles : list of ColumnProfile
        How the columns that are used were distributed; none in files of older versions.
    """

    names: list[str]
    columns: list[Column]
    numeric: list[int]
    times: list[int]
    categorical: list[int]
    unused: list[int]
    categories: list[list[Any]]
    mean: list[float]
    scale: list[float]
    edges: list[list[float]]
    fill: list[float | None]
    fill_codes: list[int | None]
    new_rates: list[float]
    missing_values: list[str]
    profiles: list[ColumnProfile]

    def __init__(self) -> None:
        self._vocabularies: dict[int, Vocabulary] = {}

    def fit(
        self,
        X: pd.DataFrame | NDArray[Any],
        sample_weight: NDArray[np.float64],
        categorical_features: str | Sequence[Any] | None = "auto",
        num_bins: int = 32,
        column_types: Mapping[str, ColumnKind] | None = None,
        missing_values: str | Iterable[str] = "auto",
        scaling: str = "standard",
        ignore_columns: Iterable[Any] | None = None,
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
            Quantile bins per number, at most; fewer for very wide tables.
        column_types : dict, optional
            What columns are, where it shall not be inferred: ``{"zip": "category", "signed_up": "time"}``.
        missing_values : "auto" or list of str, default="auto"
            Texts that mean a missing value; "auto" takes those of ``pandas.read_csv``.
        scaling : {"standard", "robust"}, default="standard"
            Whether :attr:`mean` and :attr:`scale` are mean and standard deviation, or median and quartile range.
        ignore_columns : list of str or int, optional
            Columns that are not used. Ids are not used either, with a warning: columns with a different value in nearly
            every row whose kind is not in ``column_types``.

        Raises
        ------
        ConfigError
            If an argument names a column that is not there.
        DataError
            If a column cannot be learned, or a number is infinite or too large, naming row and column.
        """
        frame = X if isinstance(X, pd.DataFrame) else None
        if frame is not None:
            self.names = [str(name) for name in frame.columns]
        else:
            self.names = [f"column {i}" for i in range(X.shape[1])]
        missing = missing_texts(missing_values)
        self.missing_values = sorted(missing)
        kinds = check_column_types(column_types, self.names)
        for i in self._named_categories(categorical_features):
            kinds.setdefault(self.names[i], "category")
        ignored = ignored_columns(ignore_columns, self.names)
        kinds |= {self.names[i]: "ignored" for i in ignored}
        if frame is not None:
            used = frame.iloc[:, [i for i, name in enumerate(self.names) if kinds.get(name) != "ignored"]]
            given = {name: kind for name, kind in kinds.items() if kind != "ignored"}
            found = iter([self._supported(column) for column in infer_columns(used, missing, given)])
            self.columns = [
                next(found) if kinds.get(name) != "ignored" else Column(name, "ignored", "chosen by ignore_columns")
                for name in self.names
            ]
            if not isinstance(categorical_features, str):
                self._refuse_unnamed(frame, kinds)
            for i, column in find_ids(frame, self.columns, missing, kinds).items():
                self.columns[i] = column
        else:
            self.columns = [Column(name, kinds.get(name, "number"), "an array", rows=len(X)) for name in self.names]
        self.unused = [i for i, column in enumerate(self.columns) if column.kind in UNUSED]
        if len(self.unused) == len(self.names):
            raise DataError("no column is left to learn from: all are ids or ignored")
        self.categorical = [i for i, column in enumerate(self.columns) if column.kind == "category"]
        self.times = [i for i, column in enumerate(self.columns) if column.kind == "time"]
        self.numeric = [i for i, column in enumerate(self.columns) if column.kind == "number"]
        self.profiles = []
        self._fit_categories(X, missing)
        self._fit_numbers(X, sample_weight, num_bins, scaling)
        return self

    def _fit_categories(self, X: pd.DataFrame | NDArray[Any], missing: frozenset[str]) -> None:
        self.categories, self.fill_codes, self.new_rates = [], [], []
        self._vocabularies = {}
        for i in self.categorical:
            cells = _column(X, i)
            counts, any_missing = count_values(cells, missing, self.names[i], self.columns[i].typed)
            values = list(counts)
            self.categories.append(values)
            rows = max(sum(counts.values()), 1)
            self.new_rates.append(sum(number == 1 for number in counts.values()) / rows)
            self.profiles.append(
                ColumnProfile(
                    self.names[i],
                    "category",
                    len(cells),
                    len(cells) - sum(counts.values()),
                    counts=tuple(counts.values()),
                    values=tuple(values),
                )
            )
            most = max(range(len(values)), key=lambda code: counts[values[code]]) if values else 0
            self.fill_codes.append(None if any_missing or not values else FIRST + most)

    def _fit_numbers(
        self, X: pd.DataFrame | NDArray[Any], sample_weight: NDArray[np.float64], num_bins: int, scaling: str
    ) -> None:
        numbers = self._numbers(X)
        bins = max(2, min(num_bins, 4096 // max(numbers.shape[1], 1)))
        self.mean, self.scale, self.edges, self.fill = [], [], [], []
        for position, column in enumerate(numbers.T):
            if not self._is_part_of_time(position):
                kind: ColumnKind = "number" if position < len(self.numeric) else "time"
                self.profiles.append(ColumnProfile.of_numbers(self._number_name(position), kind, column))
            known = ~np.isnan(column)
            mean, scale = (_quartiles if scaling == "robust" else _moments)(column[known], sample_weight[known])
            self.mean.append(mean)
            self.scale.append(scale)
            self.edges.append(_quantiles(column[known], sample_weight[known], bins))
            self.fill.append(float(np.median(column)) if known.all() and len(column) else None)

    def transform(self, X: pd.DataFrame | NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Numbers ``(n, P)`` with NaN where missing, and category codes ``(n, C)``.

        Raises
        ------
        DataError
            Naming column, row and cell, if a cell is not what the column was in training.
        """
        codes = np.zeros((len(X), len(self.categorical)), dtype=np.int64)
        filled: list[str] = []
        for position, (i, values) in enumerate(zip(self.categorical, self.categories, strict=True)):
            cells = _column(X, i)
            found = self._vocabulary(position).codes(cells)
            gone = found == NO_VALUE
            warn_of_unseen(self._vocabulary(position), cells, found, self.new_rates[position])
            fill = self.fill_codes[position]
            if gone.any() and fill is not None:
                filled.append(f"{int(gone.sum())} of {self.names[i]!r} by {values[fill - FIRST]!r}")
            known = np.where(found < 0, UNKNOWN, found + FIRST)
            codes[:, position] = np.where(gone, MISSING if fill is None else fill, known)
        numbers = self._numbers(X)
        for position, value in enumerate(self.fill):
            gone = np.isnan(numbers[:, position])
            if value is not None and gone.any():
                numbers[gone, position] = value
                if not self._is_part_of_time(position):
                    filled.append(f"{int(gone.sum())} of {self._number_name(position)!r} by {value:.6g}")
        warn_of_imputed(filled, "median")
        return numbers, codes

    def column_kinds(self) -> dict[str, ColumnKind]:
        """What the columns are that are used, in the order of training."""
        kinds: dict[str, ColumnKind] = dict.fromkeys(self.names, "number")
        kinds.update({self.names[i]: "category" for i in self.categorical})
        kinds.update({self.names[i]: "time" for i in self.times})
        return {name: kind for i, (name, kind) in enumerate(kinds.items()) if i not in self.unused}

    def unused_names(self) -> list[str]:
        """Ids and ignored columns: they may be in a table or not."""
        return [self.names[i] for i in self.unused]

    def summary(self) -> pd.DataFrame:
        """What each column is, why, how many categories it has and how many cells were missing in training."""
        sizes = {self.names[i]: len(values) for i, values in zip(self.categorical, self.categories, strict=True)}
        columns = self.columns
        if not columns:  # saved by 0.1
            columns = [Column(name, kind, "saved by moeapps 0.1") for name, kind in self.column_kinds().items()]
        return columns_frame(columns, sizes)

    def profile(self) -> list[ColumnProfile]:
        """What the columns that are used were like in training; of an older file, what it says of them."""
        if self.profiles:
            known = {profile.name: profile for profile in self.profiles}
            return [known[name] for name in self.column_kinds()]
        seen = {column.name: (column.rows, column.missing) for column in self.columns}
        found: dict[str, ColumnProfile] = {}
        for i, values in zip(self.categorical, self.categories, strict=True):
            rows, missing = seen.get(self.names[i], (0, 0))
            found[self.names[i]] = ColumnProfile(self.names[i], "category", rows, missing, values=tuple(values))
        for position, edges in enumerate(self.edges):
            if self._is_part_of_time(position):
                continue
            name = self._number_name(position)
            low, high = (edges[0], edges[-1]) if edges else (None, None)
            rows, missing = seen.get(name, (0, 0))
            kind: ColumnKind = "number" if position < len(self.numeric) else "time"
            found[name] = ColumnProfile(name, kind, rows, missing, low=low, high=high)
        return [found[name] for name in self.column_kinds()]

    def state(self) -> dict[str, Any]:
        """Everything that was learned, as JSON values."""
        learned = {name: value for name, value in sorted(vars(self).items()) if not name.startswith("_")}
        profiles = [profile.to_json() for profile in self.profiles]
        return {**learned, "columns": [column.to_json() for column in self.columns], "profiles": profiles}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """Undo :meth:`state`; what 0.1 did not save is as 0.1 had it.

        Raises
        ------
        FileFormatError
            If the state contradicts itself.
        """
        numbers, categories = len(state["mean"]), len(state["categories"])
        fields = {
            "times": [],
            "unused": [],
            "fill": [None] * numbers,
            "fill_codes": [None] * categories,
            "new_rates": [1.0] * categories,
            "missing_values": sorted(MISSING_VALUES),
            **state,
            "columns": [Column.from_json(column) for column in state.get("columns", [])],
            "profiles": [],
        }
        check_fields(cls, fields)
        encoder = cls()
        vars(encoder).update({name: fields[name] for name in cls.__annotations__})
        encoder._check()
        values = {encoder.names[i]: known for i, known in zip(encoder.categorical, encoder.categories, strict=True)}
        saved = state.get("profiles", [])
        encoder.profiles = [ColumnProfile.from_json(entry, values.get(entry.get("name"), ())) for entry in saved]
        if saved and {profile.name for profile in encoder.profiles} != set(encoder.column_kinds()):
            raise FileFormatError("the profile of its columns is one of other columns")
        return encoder

    def _check(self) -> None:
        """Refuse what :meth:`fit` cannot have learned."""
        numbers = len(self.numeric) + len(TIME_PARTS) * len(self.times)
        codes = [None if fill is None else fill - FIRST for fill in self.fill_codes]
        good = (
            sorted([*self.numeric, *self.times, *self.categorical, *self.unused]) == list(range(len(self.names)))
            and len(self.columns) in (0, len(self.names))
            and numbers == len(self.mean) == len(self.scale) == len(self.edges) == len(self.fill)
            and len(self.categorical) == len(self.categories) == len(self.fill_codes) == len(self.new_rates)
            and all(scale > 0 for scale in self.scale)
            and all(len(edges) != 1 and all(a < b for a, b in pairwise(edges)) for edges in self.edges)
            and all(isinstance(value, str | int | float) for values in self.categories for value in values)
            and all(len(set(values)) == len(values) for values in self.categories)
            and all(code is None or 0 <= code < len(v) for code, v in zip(codes, self.categories, strict=True))
        )
        if not good:
            raise FileFormatError("its columns contradict each other")

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickle, also one of 0.1."""
        now = {"_vocabularies": {}, "unused": [], "profiles": [], **state}
        vars(self).update(now if "fill" in state else vars(type(self).from_state(state)))

    def _vocabulary(self, position: int) -> Vocabulary:
        """Look-up table of a categorical column, made once: a request of one row must not wait for it."""
        if position not in self._vocabularies:
            name = self.names[self.categorical[position]]
            self._vocabularies[position] = Vocabulary(self.categories[position], frozenset(self.missing_values), name)
        return self._vocabularies[position]

    def _named_categories(self, wanted: str | Sequence[Any] | None) -> list[int]:
        if wanted is None or (isinstance(wanted, str) and wanted == "auto"):
            return []
        chosen = []
        for entry in list(wanted):
            if isinstance(entry, str) and entry in self.names:
                chosen.append(self.names.index(entry))
            elif isinstance(entry, int | np.integer) and 0 <= entry < len(self.names):
                chosen.append(int(entry))
            else:
                raise ConfigError(
                    f"categorical_features must be 'auto', None, or names or positions of columns, got {entry!r}; "
                    f"the columns are {', '.join(self.names[:10])}{', ...' if len(self.names) > 10 else ''}"
                )
        return chosen

    def _refuse_unnamed(self, frame: pd.DataFrame, kinds: Mapping[str, ColumnKind]) -> None:
        for column, dtype in zip(self.columns, frame.dtypes, strict=True):
            if column.is_category and column.name not in kinds:
                raise ConfigError(f"column {column.name!r} is {dtype}: add it to categorical_features, or drop it")

    @staticmethod
    def _supported(column: Column) -> Column:
        if column.kind == "list":
            raise DataError(
                f"column {column.name!r} holds lists, which this model cannot learn: drop it, or use a ranker of "
                "moeapps.recsys, which learns sequences"
            )
        return column

    def _is_part_of_time(self, position: int) -> bool:
        """Whether a number is one of a time's, but not its first, the days."""
        return position >= len(self.numeric) and (position - len(self.numeric)) % len(TIME_PARTS) != 0

    def _number_name(self, position: int) -> str:
        if position < len(self.numeric):
            return self.names[self.numeric[position]]
        return self.names[self.times[(position - len(self.numeric)) // len(TIME_PARTS)]]

    def _numbers(self, X: pd.DataFrame | NDArray[Any]) -> NDArray[np.float64]:
        missing = frozenset(self.missing_values)
        if isinstance(X, pd.DataFrame):
            chosen = X.iloc[:, self.numeric]
            if self.numeric and all(isinstance(kind, np.dtype) and kind.kind in "fiu" for kind in chosen.dtypes):
                numbers = chosen.to_numpy(dtype=np.float64, copy=True)
            else:
                parts = [to_numbers(X.iloc[:, i], missing, self.names[i]) for i in self.numeric]
                numbers = np.column_stack(parts) if parts else np.zeros((len(X), 0))
            parts = [time_parts(to_days(X.iloc[:, i], missing, self.names[i])) for i in self.times]
            numbers = np.column_stack([numbers, *parts]) if parts else numbers
        else:
            numbers = X[:, self.numeric].astype(np.float64)
        with np.errstate(invalid="ignore"):
            bad = np.abs(numbers) > _LARGEST
        if bad.any():
            row, position = np.argwhere(bad)[0]
            raise DataError(
                f"X has {numbers[row, position]} at row {row}, column {self._number_name(position)!r}: infinite, or "
                "too large for float32. Use a missing value or a clipped one"
            )
        return numbers


def _column(X: pd.DataFrame | NDArray[Any], index: int) -> pd.Series:
    return X.iloc[:, index] if isinstance(X, pd.DataFrame) else pd.Series(X[:, index])


def _moments(values: NDArray[np.float64], weight: NDArray[np.float64]) -> tuple[float, float]:
    """Weighted mean and standard deviation; 1 instead of a deviation that is 0 up to rounding."""
    # not StandardScaler, whose last bits differ: a fit would no longer give the numbers that 0.1 gives
    total = weight.sum()
    if total <= 0:
        return 0.0, 1.0
    mean = float((values * weight).sum() / total)
    scale = float(np.sqrt((np.square(values - mean) * weight).sum() / total))
    return mean, scale if scale > 1e-12 * max(abs(mean), 1e-300) else 1.0


def _quartiles(values: NDArray[np.float64], weight: NDArray[np.float64]) -> tuple[float, float]:
    """Weighted median and range between the quartiles; half the whole range where that is 0, 1 for a constant.

    As Holzmüller et al. 2024 (section 3) scale numbers. A weight of two gives the same as the row twice.
    """
    if weight.sum() <= 0:
        return 0.0, 1.0
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75], weights=weight, method="inverted_cdf").tolist()
    tiny = 1e-12 * max(abs(median), 1e-300)  # 0 up to rounding
    if high - low > tiny:
        return median, high - low
    spread = (values[weight > 0].max() - values[weight > 0].min()) / 2
    return median, float(spread) if spread > tiny else 1.0


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
