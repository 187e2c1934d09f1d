"""From what arrives on a stream to rows of numbers: features and labels that nobody announced, missing and bad values.

Nothing here changes before everything of an instance or a batch has been checked: an encoder first returns rows and
what is *new* in them, and learns the new things only when told to.
"""

import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moeapps.core.errors import DataError

__all__ = ["FeatureEncoder", "LabelEncoder", "NewThings"]

_LARGEST = 1e150
"""Larger numbers are bad values: their squares have to fit into a float64."""


@dataclass
class NewThings:
    """What rows bring that an encoder does not know: by row, features with their kind; by feature, categories."""

    features: dict[Hashable, tuple[int, bool]] = field(default_factory=dict)
    values: dict[Hashable, dict[Hashable, None]] = field(default_factory=dict)
    bad: int = 0
    ignored: int = 0


class FeatureEncoder:
    """Names to columns, categories to codes.

    The first value of a feature decides whether it is a number or a category; text and anything hashable that is no
    number is a category. Missing is NaN, None, NA, or a feature that is not there. A bad value is one that its feature
    cannot have: text, an infinite or a huge number in a numeric feature, a value that cannot be hashed anywhere.

    Args:
        max_features: Names that are remembered, at most; further ones are ignored and counted.
        max_categories: Values per feature, at most; all further ones share the last code.
    """

    def __init__(self, max_features: int, max_categories: int) -> None:
        self.max_features, self.max_categories = max_features, max_categories
        self.columns: dict[Hashable, int] = {}
        self.nominal: list[bool] = []
        self.codes: dict[Hashable, dict[Hashable, int]] = {}
        self.ignored = 0
        self.bad = 0

    def encode_one(self, x: Mapping[Hashable, Any], forgive: bool, new: NewThings | None = None) -> list[float] | None:
        """Row of an instance, for the known columns and then those in ``new.features``.

        Args:
            x: The features.
            forgive: Whether a bad value counts as missing; else it is refused.
            new: What the instance brings is noted here; when None, what is not known counts as missing.

        Raises:
            DataError: If a value is bad, or ``x`` is no mapping.
        """
        if not isinstance(x, Mapping):
            raise DataError(f"x must be a dict of features, got {type(x).__name__}")
        columns, nominal = self.columns, self.nominal
        row = [math.nan] * len(columns)
        for name, value in x.items():
            column = columns.get(name)
            if column is None:
                if new is not None:
                    self._note(name, value, forgive, new)
                continue
            if nominal[column]:
                row[column] = self._code(name, value, forgive, new)
                continue
            kind = type(value)
            if kind is not float and kind is not int:
                value = self._number(name, value, forgive, new)
            elif not -_LARGEST < value < _LARGEST and value == value:
                value = self._bad(name, value, "is not a number that can be learned", forgive, new)
            row[column] = value
        return row

    def _note(self, name: Hashable, value: Any, forgive: bool, new: NewThings) -> None:
        if _missing(value):
            return
        if len(self.columns) + len(new.features) >= self.max_features:
            new.ignored += 1
            return
        is_number = isinstance(value, int | float | np.number | np.bool_)
        if is_number and math.isnan(self._number(name, value, forgive, new)):
            return
        if not is_number:
            if not isinstance(value, Hashable):
                self._bad(name, value, "is neither a number nor a category", forgive, new)
                return
            new.values[name] = {value: None}
        new.features[name] = (0, not is_number)

    def _number(self, name: Hashable, value: Any, forgive: bool, new: NewThings | None) -> float:
        if _missing(value):
            return math.nan
        try:
            number = math.nan if isinstance(value, str) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not abs(number) < _LARGEST:
            return self._bad(name, value, "is not a number that can be learned", forgive, new)
        return number

    def _code(self, name: Hashable, value: Any, forgive: bool, new: NewThings | None) -> float:
        if _missing(value):
            return math.nan
        if not isinstance(value, Hashable):
            return self._bad(name, value, "is no category", forgive, new)
        code = self.codes[name].get(value)
        if code is not None:
            return float(code)
        if new is None:
            return -1.0
        added = new.values.setdefault(name, {})
        added.setdefault(value)
        return float(min(len(self.codes[name]) + list(added).index(value), self.max_categories - 1))

    @staticmethod
    def _bad(name: Hashable, value: Any, what: str, forgive: bool, new: NewThings | None) -> float:
        if not forgive:
            raise DataError(
                f"feature {name!r}: {str(value)[:60]!r} {what}; on_bad='impute' takes bad values for missing, "
                "on_bad='skip' leaves such instances out"
            )
        if new is not None:
            new.bad += 1
        return math.nan

    def encode_new(self, x: Mapping[Hashable, Any], new: NewThings) -> list[float]:
        """Values of the new features of an instance, in the order in which :meth:`commit` will add them."""
        return [0.0 if nominal else float(x[name]) for name, (_, nominal) in sorted(new.features.items(), key=_by_name)]

    def encode_frame(self, frame: pd.DataFrame, forgive: bool, new: NewThings | None = None) -> NDArray[np.float64]:
        """Rows of a table; as :meth:`encode_one`, column by column.

        In ``new.features`` stands the first row in which a feature has a value.
        """
        known = np.full((len(frame), len(self.columns)), np.nan)
        added: dict[Hashable, NDArray[np.float64]] = {}
        for position, name in enumerate(frame.columns):
            column = self.columns.get(name)
            if column is None and new is None:
                continue
            values = frame.iloc[:, position]
            if column is None:
                found = self._note_column(name, values, forgive, new)
                if found is not None:
                    added[name] = found
            elif self.nominal[column]:
                known[:, column] = self._code_column(name, values, forgive, new)
            else:
                known[:, column] = self._number_column(name, values, forgive, new)
        if not added or new is None:
            return known
        order = [name for name, _ in sorted(new.features.items(), key=_by_name)]
        return np.column_stack([known, *(added[name] for name in order)])

    def _note_column(
        self, name: Hashable, values: pd.Series, forgive: bool, new: NewThings | None
    ) -> NDArray[np.float64] | None:
        assert new is not None
        present = np.flatnonzero(~values.isna().to_numpy())
        if len(present) == 0:
            return None
        if len(self.columns) + len(new.features) >= self.max_features:
            new.ignored += len(present)
            return None
        is_number = isinstance(values.iloc[present[0]], int | float | np.number | np.bool_)
        if is_number:
            column = self._number_column(name, values, forgive, new)
            present = np.flatnonzero(~np.isnan(column))
            if len(present) == 0:
                return None
        else:
            self.codes[name] = {}  # for the length of this call
            try:
                column = self._code_column(name, values, forgive, new)
            finally:
                del self.codes[name]
        new.features[name] = (int(present[0]), not is_number)
        return column

    def _number_column(
        self, name: Hashable, values: pd.Series, forgive: bool, new: NewThings | None
    ) -> NDArray[np.float64]:
        if pd.api.types.is_numeric_dtype(values.dtype):
            numbers: NDArray[np.float64] = values.to_numpy(dtype=np.float64, na_value=np.nan)
            with np.errstate(invalid="ignore"):
                good = (np.abs(numbers) < _LARGEST) | np.isnan(numbers)
            if good.all():
                return numbers
        return np.array([self._number(name, value, forgive, new) for value in values.tolist()], dtype=np.float64)

    def _code_column(
        self, name: Hashable, values: pd.Series, forgive: bool, new: NewThings | None
    ) -> NDArray[np.float64]:
        try:
            distinct = values.astype(object).unique().tolist()
        except TypeError:
            return np.array([self._code(name, value, forgive, new) for value in values.tolist()], dtype=np.float64)
        codes = {value: self._code(name, value, forgive, new) for value in distinct if not _missing(value)}
        return np.array([codes.get(value, math.nan) for value in values.tolist()], dtype=np.float64)

    def commit(self, new: NewThings, upto: int | None = None) -> list[tuple[Hashable, bool]]:
        """Learn what is new; of features only those that are there by row ``upto``.

        Returns:
            The features added, in order, with whether they are categories.
        """
        found = []
        for name, (row, nominal) in sorted(new.features.items(), key=_by_name):
            if name not in self.columns and (upto is None or row <= upto):
                self.columns[name] = len(self.nominal)
                self.nominal.append(nominal)
                if nominal:
                    self.codes[name] = {}
                found.append((name, nominal))
        for name, values in new.values.items():
            known = self.codes.get(name)
            if known is not None:
                for value in values:
                    if len(known) < self.max_categories - 1:
                        known.setdefault(value, len(known))
        return found

    def count(self, new: NewThings) -> None:
        """Add up what was bad and what was ignored."""
        self.bad += new.bad
        self.ignored += new.ignored

    @property
    def num_values(self) -> int:
        """Codes that any category may have."""
        return max((len(values) for values in self.codes.values()), default=0) + 1

    def decode(self, row: NDArray[np.float64]) -> dict[Hashable, Any]:
        """The features of a row again, without the missing ones."""
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
            "names": [_tagged(name) for name in self.columns],
            "nominal": self.nominal,
            "codes": [[_tagged(value) for value in self.codes.get(name, ())] for name in self.columns],
            "ignored": self.ignored,
            "bad": self.bad,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Undo :meth:`state`."""
        names = [_untagged(name) for name in state["names"]]
        self.columns = {name: i for i, name in enumerate(names)}
        self.nominal = [bool(flag) for flag in state["nominal"]]
        self.codes = {
            name: {_untagged(value): i for i, value in enumerate(values)}
            for name, values, nominal in zip(names, state["codes"], self.nominal, strict=True)
            if nominal
        }
        self.ignored, self.bad = int(state["ignored"]), int(state["bad"])


class LabelEncoder:
    """Labels to classes 0, 1, ... in order of appearance; all of one kind (numbers, or text, or another hashable).

    Args:
        max_classes: Labels, at most; one more is refused.
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

        Returns:
            The new ones, with the place where each stands first.

        Raises:
            DataError: If a label is missing, of another kind than the others, or one too many.
        """
        new: dict[Hashable, int] = {}
        kind = self.kind
        for place, label in enumerate(labels):
            if isinstance(label, Hashable) and label in self.codes and kind == _kind(label):
                continue
            if _missing(label):
                raise DataError(f"y is {label!r}: a label must not be missing")
            if not isinstance(label, Hashable):
                raise DataError(f"y is a {type(label).__name__}, which cannot be a label")
            if isinstance(label, float) and not math.isfinite(label):
                raise DataError(f"y is {label!r}: a label must be finite")
            kind = kind or _kind(label)
            if kind != _kind(label):
                seen = [*self.codes, *new][0]
                raise DataError(f"y is {label!r} ({_kind(label)}), but the labels so far are {kind}, such as {seen!r}")
            if label not in new and label not in self.codes:
                new[label] = place
        if len(self.codes) + len(new) > self.max_classes:
            raise DataError(
                f"y has {len(self.codes) + len(new)} different labels, at most {self.max_classes} can be learned: is "
                "the target a number? Then use DriftMoERegressor"
            )
        return new

    def add(self, labels: Iterable[Hashable]) -> None:
        """Learn labels that :meth:`check` found new."""
        for label in labels:
            self.kind = self.kind or _kind(label)
            if label not in self.codes:
                self.codes[label] = len(self.codes)
                self._labels.append(label)

    def state(self) -> list[Any]:
        """The labels as JSON values."""
        return [_tagged(label) for label in self.codes]

    def restore(self, state: list[Any]) -> None:
        """Undo :meth:`state`."""
        self.add(_untagged(label) for label in state)


def plain(value: Any) -> Any:
    """A Python value in place of a numpy scalar."""
    return value.item() if isinstance(value, np.generic) else value


def _kind(label: Any) -> str:
    if isinstance(label, bool | int | float | np.number | np.bool_):
        return "numbers"
    return "text" if isinstance(label, str) else f"of type {type(label).__name__}"


def _missing(value: Any) -> bool:
    return value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and value != value)


def _by_name(entry: tuple[Hashable, tuple[int, bool]]) -> tuple[int, str, str]:
    """Order of new features: by the row in which they come, then by name; never by the order of a dict."""
    name, (row, _) = entry
    return row, type(name).__name__, f"{name:>20}" if isinstance(name, int) else str(name)


_TAGS: dict[str, type] = {"s": str, "i": int, "f": float, "b": bool}


def _tagged(value: Any) -> Any:
    value = plain(value)
    for tag, kind in _TAGS.items():
        if type(value) is kind:
            return [tag, value]
    if isinstance(value, tuple):
        return ["t", [_tagged(part) for part in value]]
    raise DataError(f"{value!r} ({type(value).__name__}) cannot be written to a file: use text, numbers or bools")


def _untagged(pair: Any) -> Any:
    tag, value = pair
    if tag == "t":
        return tuple(_untagged(part) for part in value)
    return _TAGS[tag](value)
