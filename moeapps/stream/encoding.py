"""From what arrives on a stream to rows of numbers: features and labels not known in advance, missing and bad values.

Encoding changes nothing. An encoder returns the rows and what is unseen in them (:class:`Encoded`), and the estimator
commits the unseen part once everything of an instance or a batch has been checked.
"""

# n rows, F known features, U unseen features

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moeapps.core.errors import DataError
from moeapps.core.labels import is_missing, label_kind, value_from_json, value_to_json

__all__ = ["Encoded", "FeatureEncoder", "LabelEncoder", "OnBad", "UnseenFeatures"]

OnBad = Literal["raise", "skip", "impute"]

_LARGEST = 1e150
"""Larger numbers are bad values: their squares have to fit into a float64."""


@dataclass(slots=True)
class UnseenFeatures:
    """What rows contain that an encoder does not know yet.

    Parameters
    ----------
    features : dict
        By name: the first row with a value, and whether the feature is categorical.
    values : dict
        By name of a categorical feature: new categories and their codes, in order of appearance.
    """

    features: dict[Hashable, tuple[int, bool]] = field(default_factory=dict)
    values: dict[Hashable, dict[Hashable, int]] = field(default_factory=dict)

    @property
    def order(self) -> list[Hashable]:
        """Names of the new features in the order of their columns."""
        return [name for name, _ in sorted(self.features.items(), key=_by_first_row)]


@dataclass(slots=True)
class Encoded:
    """Rows as numbers.

    Parameters
    ----------
    rows : list of lists or array of shape (n, F + U)
        Known features, then unseen ones in :attr:`UnseenFeatures.order`; NaN where missing.
    unseen : UnseenFeatures or None
        What is new in these rows; None if nothing is.
    bad : int
        Bad values that were imputed.
    ignored : int
        Values of features beyond ``max_features``.
    """

    rows: Sequence[Sequence[float]] | NDArray[np.float64]
    unseen: UnseenFeatures | None = None
    bad: int = 0
    ignored: int = 0

    @property
    def table(self) -> NDArray[np.float64]:
        """The rows as an array of shape (n, F + U): float64, also where all values are integers.

        The loops would be compiled once more for an array of another type.
        """
        table = np.asarray(self.rows, dtype=np.float64)
        return table if table.ndim == 2 else table.reshape(len(self.rows), -1)


class FeatureEncoder:
    """Names to columns, categories to codes.

    The first value of a feature decides whether it is numeric or categorical: text, and anything hashable that is not a
    number, is a category. Missing is NaN, None, NA, or a feature that is absent. A bad value is one that its feature
    cannot have: text, an infinite or a huge number in a numeric feature, an unhashable value anywhere.

    Parameters
    ----------
    max_features : int
        Largest number of names; further ones are ignored and counted.
    max_categories : int
        Largest number of codes per feature; all further values share the last one.
    on_bad : {"raise", "skip", "impute"}
        What to do with a bad value. "impute" takes it for missing; otherwise :meth:`encode` raises, and the caller may
        skip the instance. :meth:`encode_known` raises only for "raise".
    """

    def __init__(self, max_features: int, max_categories: int, on_bad: OnBad = "raise") -> None:
        self.max_features, self.max_categories, self.on_bad = max_features, max_categories, on_bad
        self.columns: dict[Hashable, int] = {}
        self.nominal: list[bool] = []
        self.codes: dict[Hashable, dict[Hashable, int]] = {}
        self.ignored = 0
        self.bad = 0

    # --- one instance

    def encode(self, x: Mapping[Hashable, Any]) -> Encoded:
        """Encode an instance that is to be learned.

        Parameters
        ----------
        x : mapping
            Values by name.

        Raises
        ------
        DataError
            If a value is bad and ``on_bad`` is not "impute", or ``x`` is not a mapping.
        """
        row, unknown, added, bad = self._row(x, self.on_bad == "impute", True)
        encoded = Encoded([row])
        if unknown is None and added is None and not bad:
            return encoded
        encoded.bad = bad
        if added is not None:
            encoded.unseen = UnseenFeatures(values=added)
        for name in unknown or ():
            self._encode_unknown(name, x[name], encoded)
        if encoded.unseen is not None:
            for name in encoded.unseen.order:
                row.append(0.0 if encoded.unseen.features[name][1] else float(x[name]))
        return encoded

    def encode_known(self, x: Mapping[Hashable, Any]) -> NDArray[np.float64]:
        """Encode an instance that is to be predicted: unknown features and categories count as missing.

        Returns
        -------
        array of shape (1, F)
        """
        row, _, _, _ = self._row(x, self.on_bad != "raise", False)
        return np.array([row], dtype=np.float64).reshape(1, -1)

    def _row(
        self, x: Mapping[Hashable, Any], forgive: bool, learning: bool
    ) -> tuple[list[float], list[Hashable] | None, dict[Hashable, dict[Hashable, int]] | None, int]:
        """Values of the known columns, names without a column, new categories by name, number of bad values."""
        if not isinstance(x, Mapping):
            raise DataError(f"x must be a dict of features, got {type(x).__name__}")
        columns, nominal = self.columns, self.nominal
        row = [math.nan] * len(columns)
        unknown: list[Hashable] | None = None
        added: dict[Hashable, dict[Hashable, int]] | None = None
        bad = 0
        for name, value in x.items():
            column = columns.get(name)
            if column is None:
                if unknown is None:
                    unknown = []
                unknown.append(name)
                continue
            if nominal[column]:
                new: dict[Hashable, int] | None = {} if learning else None
                number = self._code(name, value, forgive, self.codes[name], new)
                if new:
                    added = {name: new} if added is None else {**added, name: new}
            else:
                kind = type(value)
                if (kind is float or kind is int) and (-_LARGEST < value < _LARGEST or value != value):
                    row[column] = value  # nearly every value of a stream of numbers, without a function call
                    continue
                number = self._number(name, value, forgive)
            if number is None:
                bad += 1
            else:
                row[column] = number
        return row, unknown, added, bad

    def _encode_unknown(self, name: Hashable, value: Any, encoded: Encoded) -> None:
        """Note a name that has no column yet."""
        if is_missing(value):
            return
        if len(self.columns) + (len(encoded.unseen.features) if encoded.unseen else 0) >= self.max_features:
            encoded.ignored += 1
            return
        forgive = self.on_bad == "impute"
        is_number = isinstance(value, int | float | np.number | np.bool_)
        new: dict[Hashable, int] = {}
        number = self._number(name, value, forgive) if is_number else self._code(name, value, forgive, {}, new)
        if number is None:
            encoded.bad += 1
            return
        if is_number and math.isnan(number):
            return
        encoded.unseen = encoded.unseen or UnseenFeatures()
        encoded.unseen.features[name] = (0, not is_number)
        if not is_number:
            encoded.unseen.values[name] = new

    def _number(self, name: Hashable, value: Any, forgive: bool) -> float | None:
        """Number of a numeric feature, NaN where missing, None for a bad value that is forgiven."""
        if is_missing(value):
            return math.nan
        try:
            number = math.nan if isinstance(value, str) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if abs(number) < _LARGEST:
            return number
        if not forgive:
            raise _bad_value(name, value, "is not a number that can be learned")
        return None

    def _code(
        self,
        name: Hashable,
        value: Any,
        forgive: bool,
        known: Mapping[Hashable, int],
        new: dict[Hashable, int] | None,
    ) -> float | None:
        """Code of a category, NaN where missing, None for a bad value that is forgiven.

        A category that is not ``known`` gets the next code and is added to ``new``; where that is None, its code is -1.
        """
        if is_missing(value):
            return math.nan
        if not isinstance(value, Hashable):
            if not forgive:
                raise _bad_value(name, value, "is neither a number nor a category")
            return None
        code = known.get(value)
        if code is not None:
            return float(code)
        if new is None:
            return -1.0
        return float(min(new.setdefault(value, len(known) + len(new)), self.max_categories - 1))

    # --- a table

    def encode_frame(self, frame: pd.DataFrame) -> Encoded:
        """Encode the rows of a table that are to be learned: as :meth:`encode`, column by column."""
        known = np.full((len(frame), len(self.columns)), np.nan)
        encoded = Encoded(known)
        unseen = UnseenFeatures()
        added: dict[Hashable, NDArray[np.float64]] = {}
        for position, name in enumerate(frame.columns):
            values = frame.iloc[:, position]
            if name not in self.columns:
                column = self._encode_unknown_column(name, values, encoded, unseen)
                if column is not None:
                    added[name] = column
                continue
            new: dict[Hashable, int] = {}
            known[:, self.columns[name]] = self._column(name, values, self.on_bad == "impute", encoded, new)
            if new:
                unseen.values[name] = new
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
                table[:, self.columns[name]] = self._column(name, values, self.on_bad != "raise", Encoded(table), None)
        return table

    def _column(
        self, name: Hashable, values: pd.Series, forgive: bool, encoded: Encoded, new: dict[Hashable, int] | None
    ) -> NDArray[np.float64]:
        """Values of a known feature, shape (n,)."""
        if self.nominal[self.columns[name]]:
            return self._code_column(name, values, forgive, self.codes[name], encoded, new)
        return self._number_column(name, values, forgive, encoded)

    def _encode_unknown_column(
        self, name: Hashable, values: pd.Series, encoded: Encoded, unseen: UnseenFeatures
    ) -> NDArray[np.float64] | None:
        """Note a column that is not known yet, and encode it; None if it is ignored or has no value."""
        present = np.flatnonzero(~values.isna().to_numpy())
        if len(present) == 0:
            return None
        if len(self.columns) + len(unseen.features) >= self.max_features:
            encoded.ignored += len(present)
            return None
        forgive = self.on_bad == "impute"
        is_number = isinstance(values.iloc[present[0]], int | float | np.number | np.bool_)
        if is_number:
            column = self._number_column(name, values, forgive, encoded)
            present = np.flatnonzero(~np.isnan(column))
            if len(present) == 0:
                return None
        else:
            new: dict[Hashable, int] = {}
            column = self._code_column(name, values, forgive, {}, encoded, new)
            if new:
                unseen.values[name] = new
        unseen.features[name] = (int(present[0]), not is_number)
        return column

    def _number_column(self, name: Hashable, values: pd.Series, forgive: bool, encoded: Encoded) -> NDArray[np.float64]:
        if pd.api.types.is_numeric_dtype(values.dtype):
            numbers: NDArray[np.float64] = values.to_numpy(dtype=np.float64, na_value=np.nan)
            with np.errstate(invalid="ignore"):
                good = (np.abs(numbers) < _LARGEST) | np.isnan(numbers)
            if good.all():
                return numbers
        return _imputed([self._number(name, value, forgive) for value in values.tolist()], encoded)

    def _code_column(
        self,
        name: Hashable,
        values: pd.Series,
        forgive: bool,
        known: Mapping[Hashable, int],
        encoded: Encoded,
        new: dict[Hashable, int] | None,
    ) -> NDArray[np.float64]:
        try:
            distinct = values.astype(object).unique().tolist()
        except TypeError:  # some value cannot be hashed
            return _imputed([self._code(name, value, forgive, known, new) for value in values.tolist()], encoded)
        codes = {value: self._code(name, value, forgive, known, new) for value in distinct if not is_missing(value)}
        return _imputed([codes.get(value, math.nan) for value in values.tolist()], encoded)

    # --- learning what is new

    def commit(self, unseen: UnseenFeatures, upto: int | None = None) -> list[bool]:
        """Add unseen features and categories; of features only those that have a value by row ``upto``.

        Returns
        -------
        list of bool
            For each feature added, in order, whether it is categorical.
        """
        found = []
        for name in unseen.order:
            row, nominal = unseen.features[name]
            if name not in self.columns and (upto is None or row <= upto):
                self.columns[name] = len(self.nominal)
                self.nominal.append(nominal)
                if nominal:
                    self.codes[name] = {}
                found.append(nominal)
        for name, values in unseen.values.items():
            known = self.codes.get(name)
            if known is not None:
                for value in values:
                    if len(known) < self.max_categories - 1:
                        known.setdefault(value, len(known))
        return found

    def count(self, encoded: Encoded) -> None:
        """Add up the values that were bad and that were ignored."""
        self.bad += encoded.bad
        self.ignored += encoded.ignored

    @property
    def num_values(self) -> int:
        """Largest number of codes of a categorical feature."""
        return max((len(values) for values in self.codes.values()), default=0) + 1

    def decode(self, row: NDArray[np.float64]) -> dict[Hashable, Any]:
        """Features of a row of shape (F,), without the missing ones."""
        found: dict[Hashable, Any] = {}
        for (name, column), nominal in zip(self.columns.items(), self.nominal, strict=True):
            value = row[column]
            if math.isnan(value):
                continue
            values = list(self.codes[name]) if nominal else []
            found[name] = value if not nominal else values[int(value)] if 0 <= value < len(values) else "(other)"
        return found

    def state(self) -> dict[str, Any]:
        """Everything that was learned, as JSON values."""
        return {
            "names": [value_to_json(name) for name in self.columns],
            "nominal": self.nominal,
            "codes": [[value_to_json(value) for value in self.codes.get(name, ())] for name in self.columns],
            "ignored": self.ignored,
            "bad": self.bad,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Undo :meth:`state`."""
        names = [value_from_json(name) for name in state["names"]]
        self.columns = {name: i for i, name in enumerate(names)}
        self.nominal = [bool(flag) for flag in state["nominal"]]
        self.codes = {
            name: {value_from_json(value): i for i, value in enumerate(values)}
            for name, values, nominal in zip(names, state["codes"], self.nominal, strict=True)
            if nominal
        }
        self.ignored, self.bad = int(state["ignored"]), int(state["bad"])


def _bad_value(name: Hashable, value: Any, what: str) -> DataError:
    return DataError(
        f"feature {name!r}: {str(value)[:60]!r} {what}; on_bad='impute' takes bad values for missing, "
        "on_bad='skip' leaves such instances out"
    )


def _imputed(numbers: list[float | None], encoded: Encoded) -> NDArray[np.float64]:
    """Array of shape (n,), with NaN for bad values, which are counted."""
    encoded.bad += numbers.count(None)
    return np.array([math.nan if number is None else number for number in numbers], dtype=np.float64)


def _by_first_row(entry: tuple[Hashable, tuple[int, bool]]) -> tuple[int, str, str]:
    """Order of new features: by first row, then by name; never by the order of a dict, which callers may shuffle."""
    name, (row, _) = entry
    return row, type(name).__name__, f"{name:>20}" if isinstance(name, int) else str(name)


class LabelEncoder:
    """Labels to classes 0, 1, ... in order of appearance; all of one kind (numbers, or text, or another hashable).

    Parameters
    ----------
    max_classes : int, default 1000
        Largest number of labels; one more is refused.
    """

    def __init__(self, max_classes: int = 1000) -> None:
        self.max_classes = max_classes
        self.codes: dict[Hashable, int] = {}
        self.kind: str | None = None
        self._labels: list[Any] = []

    @property
    def labels(self) -> list[Any]:
        """The labels, by class."""
        return self._labels

    def check(self, labels: Iterable[Any]) -> dict[Hashable, int]:
        """Refuse labels that cannot be learned, without changing anything.

        Returns
        -------
        dict
            New labels, with the index at which each stands first.

        Raises
        ------
        DataError
            If a label is missing, of another kind than the others, or one too many.
        """
        new: dict[Hashable, int] = {}
        kind = self.kind
        for index, label in enumerate(labels):
            if isinstance(label, Hashable) and label in self.codes and kind == label_kind(label):
                continue
            if is_missing(label):
                raise DataError(f"y is {label!r}: a label must not be missing")
            if not isinstance(label, Hashable):
                raise DataError(f"y is a {type(label).__name__}, which cannot be a label")
            if isinstance(label, float) and not math.isfinite(label):
                raise DataError(f"y is {label!r}: a label must be finite")
            kind = kind or label_kind(label)
            if kind != label_kind(label):
                seen = [*self.codes, *new][0]
                raise DataError(
                    f"y is {label!r} ({label_kind(label)}), but the labels so far are {kind}, such as {seen!r}"
                )
            if label not in new and label not in self.codes:
                new[label] = index
        if len(self.codes) + len(new) > self.max_classes:
            raise DataError(
                f"y has {len(self.codes) + len(new)} different labels, at most {self.max_classes} can be learned: is "
                "the target a number? Then use DriftMoERegressor"
            )
        return new

    def add(self, labels: Iterable[Hashable]) -> None:
        """Add labels that :meth:`check` found new."""
        for label in labels:
            self.kind = self.kind or label_kind(label)
            if label not in self.codes:
                self.codes[label] = len(self.codes)
                self._labels.append(label)

    def state(self) -> list[Any]:
        """The labels as JSON values."""
        return [value_to_json(label) for label in self.codes]

    def restore(self, state: list[Any]) -> None:
        """Undo :meth:`state`."""
        self.add(value_from_json(label) for label in state)
