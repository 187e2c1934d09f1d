"""The encoder of streams for tables: column by column, with the result of one row after the other."""

# n rows, F known features, U unseen features

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moeapps.core.tabledata.cells import is_missing_cell, shown
from moeapps.stream.labels import LabelEncoder  # pickles of 0.1 find it here
from moeapps.stream.row_encoding import Encoded, OnBad, RowEncoder, UnseenFeatures, bad_value, by_first_row
from moeapps.stream.values import LARGEST, savable, seconds_of

__all__ = ["Encoded", "FeatureEncoder", "LabelEncoder", "OnBad", "UnseenFeatures"]


class FeatureEncoder(RowEncoder):
    """Names to columns, categories to codes, of instances and of tables.

    Parameters
    ----------
    max_features, max_categories, on_bad, missing_values, column_types
        See :class:`~moeapps.stream.row_encoding.RowEncoder`.
    """

    def encode_frame(self, frame: pd.DataFrame) -> Encoded:
        """Encode the rows of a table that are to be learned: as :meth:`encode`, column by column."""
        known = np.full((len(frame), len(self.columns)), np.nan)
        encoded = Encoded(known)
        unseen = UnseenFeatures()
        candidates: list[_NewColumn] = []
        for position, name in enumerate(frame.columns):
            values = frame.iloc[:, position]
            if name not in self.columns:
                candidates.append(self._new_column(name, values))
                continue
            new: dict[Hashable, int] = {}
            column, bad = self._column(name, values, new)
            self._judge(name, values, bad, self.nominal[self.columns[name]], self.on_bad == "impute", encoded.bad_names)
            known[:, self.columns[name]] = column
            if new:
                unseen.values[name] = new
        added = self._admit(candidates, frame, unseen, encoded) if candidates else {}
        if unseen.features or unseen.values:
            encoded.unseen = unseen
        if added:
            encoded.rows = np.column_stack([known, *(added[name] for name in unseen.order)])
        return encoded

    def encode_known_frame(self, frame: pd.DataFrame) -> NDArray[np.float64]:
        """Encode the rows of a table that are to be predicted: as :meth:`encode_known`, column by column."""
        table = np.full((len(frame), len(self.columns)), np.nan)
        for position, name in enumerate(frame.columns):
            if name in self.columns:
                values = frame.iloc[:, position]
                column, bad = self._column(name, values, None)
                self._judge(name, values, bad, self.nominal[self.columns[name]], self.on_bad != "raise", {})
                table[:, self.columns[name]] = column
        return table

    @staticmethod
    def _judge(
        name: Hashable,
        values: pd.Series,
        bad: Sequence[int],
        nominal: bool,
        forgive: bool,
        counts: dict[Hashable, int],
    ) -> None:
        """Count the bad values of a column, given by their rows, or raise."""
        if bad and not forgive:
            raise bad_value(name, values.iloc[bad[0]], nominal, f", row {shown(values.index[bad[0]])}")
        if bad:
            counts[name] = len(bad)

    def _column(
        self, name: Hashable, values: pd.Series, new: dict[Hashable, int] | None
    ) -> tuple[NDArray[np.float64], list[int]]:
        """Values of a known feature, shape (n,), NaN where missing or bad, and the rows with a bad value."""
        if self.nominal[self.columns[name]]:
            return self._code_column(values, self.codes[name], new)
        return self._number_column(name, values)

    def _number_column(self, name: Hashable, values: pd.Series) -> tuple[NDArray[np.float64], list[int]]:
        kind = values.dtype
        numbers: NDArray[np.float64] | None = None
        if isinstance(kind, pd.SparseDtype):
            dense = pd.Series(np.asarray(values.array), index=values.index)
            return self._number_column(name, dense)
        if isinstance(kind, np.dtype) and kind.kind in "fiub":
            numbers = values.to_numpy(dtype=np.float64)
        elif isinstance(kind, pd.api.extensions.ExtensionDtype) and kind.kind in "fiub":
            numbers = values.to_numpy(dtype=np.float64, na_value=np.nan)
        elif pd.api.types.is_datetime64_any_dtype(kind) and not isinstance(kind, pd.ArrowDtype):
            numbers = seconds_of(values.to_numpy(dtype=f"datetime64[{values.dt.unit}]"))
        if numbers is None:
            return _collected([self._number(name, value) for value in values.tolist()])
        with np.errstate(invalid="ignore"):
            bad = np.flatnonzero(np.abs(numbers) >= LARGEST)
        if len(bad):
            numbers = numbers.copy()
            numbers[bad] = np.nan
        return numbers, bad.tolist()

    def _code_column(
        self, values: pd.Series, known: Mapping[Hashable, int], new: dict[Hashable, int] | None
    ) -> tuple[NDArray[np.float64], list[int]]:
        codes: list[float | None] = []
        get = known.get
        for value in values.tolist():
            code = get(value) if type(value) is str else None
            codes.append(float(code) if code is not None else self._code(value, known, new))
        return _collected(codes)

    def _new_column(self, name: Hashable, values: pd.Series) -> "_NewColumn":
        """Encode a column that is not known yet; its first good value decides its kind, as one by one."""
        column = _NewColumn(name, values)
        if values.dtype != object and values.isna().all():
            return column
        for row, value in enumerate(values.tolist()):
            if is_missing_cell(value, self.missing):
                continue
            number, nominal, _, why = self._first_value(name, value)
            if number is None:
                column.bad.append(row)
                column.nominal = nominal
            elif not math.isnan(number):
                column.first, column.nominal, column.why = row, nominal, why
                break
        else:
            column.present = len(column.bad)
            return column
        if column.nominal:
            column.numbers, column.bad = self._code_column(values, {}, column.new)
        else:
            column.numbers, column.bad = self._number_column(name, values)
        column.present = int((~np.isnan(column.numbers)).sum()) + len(column.bad)
        return column

    def _admit(
        self, candidates: "list[_NewColumn]", frame: pd.DataFrame, unseen: UnseenFeatures, encoded: Encoded
    ) -> dict[Hashable, NDArray[np.float64]]:
        """Give new columns a place, in the order in which they would come one by one, as long as there is room."""
        room = max(self.room, 0)
        good = [column for column in candidates if column.numbers is not None]
        if room > 0:
            for column in good:
                column.name = savable(column.name, "the name of a feature")
        features = {column.name: (column.first, column.nominal) for column in good}
        order = [name for name, _ in sorted(features.items(), key=by_first_row)] if room > 0 else []
        admitted = set(order[:room])
        # from the row on in which the last place is taken, values of other features are ignored, good or bad
        full = -1 if room == 0 else features[order[room - 1]][0] if len(order) >= room else len(frame)
        added: dict[Hashable, NDArray[np.float64]] = {}
        for column in candidates:
            bad = column.bad
            if column.name not in admitted:
                bad = [row for row in column.bad if row <= full]
                encoded.ignored += column.present - len(bad)
            self._judge(
                column.name, column.values, bad, column.nominal, self.on_bad == "impute", encoded.bad_names
            )  # fmt: skip
            if column.name in admitted and column.numbers is not None:
                early = sum(row < column.first for row in bad)
                if early:  # one by one they come before there is a column
                    encoded.bad_names[column.name] -= early
                    encoded.bad_names[None] = encoded.bad_names.get(None, 0) + early
                unseen.features[column.name], unseen.why[column.name] = features[column.name], column.why
                if column.nominal:
                    unseen.values[column.name] = column.new
                added[column.name] = column.numbers
        return added


@dataclass(slots=True)
class _NewColumn:
    """A column of a table that is not known yet."""

    name: Hashable
    values: pd.Series
    numbers: NDArray[np.float64] | None = None  # None if no value of it is good
    first: int = 0  # row of the first good value
    nominal: bool = False
    why: str = ""
    new: dict[Hashable, int] = field(default_factory=dict)
    present: int = 0  # number of values that are not missing, good or bad
    bad: list[int] = field(default_factory=list)


def _collected(numbers: list[float | None]) -> tuple[NDArray[np.float64], list[int]]:
    """Array of shape (n,), NaN where a value is bad, and the rows of bad values."""
    bad = [row for row, number in enumerate(numbers) if number is None] if None in numbers else []
    return np.array([math.nan if number is None else number for number in numbers], dtype=np.float64), bad
