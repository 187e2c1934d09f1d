"""From what arrives on a stream to rows of numbers: features not known in advance, missing and bad values.

Encoding changes nothing. An encoder returns the rows and what is unseen in them (:class:`Encoded`), and the estimator
commits the unseen part once everything of an instance or a batch has been checked.
"""

# n rows, F known features, U unseen features

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from moeapps.core.errors import ConfigError, DataError
from moeapps.core.labels import value_from_json, value_to_json
from moeapps.core.tabledata.cells import is_missing_cell, missing_texts, shown
from moeapps.stream.values import LARGEST, category_of, is_numeric, number_of, savable, unwrapped

__all__ = [
    "NO_FEATURES",
    "ColumnType",
    "Encoded",
    "OnBad",
    "RowEncoder",
    "UnseenFeatures",
    "bad_value",
    "by_first_row",
    "check_column_types",
]

OnBad = Literal["raise", "skip", "impute"]
ColumnType = Literal["number", "category"]

_PLAIN = (str, int, float, bool)


NO_FEATURES = "(no features)"
"""Name of the column that stands in where instances have no features at all."""


def check_column_types(given: Mapping[Hashable, Any] | None) -> dict[Hashable, ColumnType]:
    """The ``column_types`` argument, checked.

    Raises
    ------
    ConfigError
        Naming what is no kind of a column.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"column_types must be a dict such as {{'zip': 'category'}}, got {given!r}")
    for name, kind in given.items():
        if kind not in ("number", "category"):
            raise ConfigError(f"column_types: {name!r} must be 'number' or 'category', got {kind!r}")
    try:
        return {savable(name, "a name in column_types"): kind for name, kind in given.items()}
    except DataError as error:
        raise ConfigError(str(error)) from None


@dataclass(slots=True)
class UnseenFeatures:
    """What rows contain that an encoder does not know yet.

    Parameters
    ----------
    features : dict
        By name: the first row with a value, and whether the feature is categorical.
    values : dict
        By name of a categorical feature: new categories and their codes, in order of appearance.
    why : dict
        By name of a new feature: what decided its kind.
    """

    features: dict[Hashable, tuple[int, bool]] = field(default_factory=dict)
    values: dict[Hashable, dict[Hashable, int]] = field(default_factory=dict)
    why: dict[Hashable, str] = field(default_factory=dict)
    _waiting: list[Hashable] | None = None

    @property
    def order(self) -> list[Hashable]:
        """Names of the new features in the order of their columns."""
        return [name for name, _ in sorted(self.features.items(), key=by_first_row)]

    def take(self, upto: int | None) -> tuple[list[Hashable], list[Hashable]]:
        """New features that have a value by row ``upto``, and, the first time, known features with new categories.

        None is given twice, so that a batch whose features begin at many rows is sorted once.
        """
        known: list[Hashable] = []
        if self._waiting is None:
            self._waiting = self.order[::-1]
            known = [name for name in self.values if name not in self.features]
        names = []
        while self._waiting and (upto is None or self.features[self._waiting[-1]][0] <= upto):
            names.append(self._waiting.pop())
        return names, known


@dataclass(slots=True)
class Encoded:
    """Rows as numbers.

    Parameters
    ----------
    rows : list of lists or array of shape (n, F + U)
        Known features, then unseen ones in :attr:`UnseenFeatures.order`; NaN where missing.
    unseen : UnseenFeatures or None
        What is new in these rows; None if nothing is.
    bad_names : dict
        Bad values that were imputed, by feature.
    ignored : int
        Values of features beyond ``max_features``.
    """

    rows: Sequence[Sequence[float]] | NDArray[np.float64]
    unseen: UnseenFeatures | None = None
    bad_names: dict[Hashable, int] = field(default_factory=dict)
    ignored: int = 0

    @property
    def bad(self) -> int:
        """Bad values that were imputed."""
        return sum(self.bad_names.values())

    @property
    def table(self) -> NDArray[np.float64]:
        """The rows as an array of shape (n, F + U): float64, also where all values are integers.

        The loops would be compiled once more for an array of another type.
        """
        table = np.asarray(self.rows, dtype=np.float64)
        return table if table.ndim == 2 else table.reshape(len(self.rows), -1)


class RowEncoder:
    """Names to columns, categories to codes.

    The first value of a feature decides whether it is numeric or categorical, unless ``column_types`` does: text is a
    category; numbers, bools, dates and times are numbers. Missing is NaN, None, NA, NaT, one of the
    ``missing_values``, or a feature that is absent. A bad value is one that its feature cannot have: text, an infinite
    or a huge number in a numeric feature, a list or bytes anywhere.

    Parameters
    ----------
    max_features : int
        Largest number of names; further ones are ignored and counted.
    max_categories : int
        Largest number of codes per feature; all further values share the last one.
    on_bad : {"raise", "skip", "impute"}, default "raise"
        What to do with a bad value. "impute" takes it for missing; otherwise :meth:`encode` raises, and the caller may
        skip the instance. :meth:`encode_known` raises only for "raise".
    missing_values : "auto" or list of str, default "auto"
        Texts that mean a missing value; see :data:`~moeapps.core.tabledata.cells.MISSING_VALUES`.
    column_types : dict, optional
        "number" or "category" by name. Text is read as a number only where that asks for it.
    """

    def __init__(
        self,
        max_features: int,
        max_categories: int,
        on_bad: OnBad = "raise",
        missing_values: Any = "auto",
        column_types: Mapping[Hashable, Any] | None = None,
    ) -> None:
        self.columns: dict[Hashable, int] = {}
        self.nominal: list[bool] = []
        self.codes: dict[Hashable, dict[Hashable, int]] = {}
        self.ignored = 0
        self.bad_names: dict[Hashable | None, int] = {}
        self.why: dict[Hashable, str] = {}
        self.missing: frozenset[str] = frozenset()
        self.types: dict[Hashable, ColumnType] = {}
        self.given: tuple[Any, Any] = (None, None)
        self.configure(max_features, max_categories, on_bad, missing_values, column_types)

    def configure(
        self, max_features: int, max_categories: int, on_bad: OnBad, missing_values: Any, column_types: Any
    ) -> None:
        """Take over settings, which may change between two instances; arguments as of the class.

        Raises
        ------
        ConfigError
            If one is impossible, or the type of a known column would change.
        """
        self.max_features, self.max_categories, self.on_bad = max_features, max_categories, on_bad
        if missing_values is not self.given[0]:
            self.missing = missing_texts([] if missing_values is None else missing_values)
        if column_types is not self.given[1]:
            types = check_column_types(column_types)
            for name, kind in types.items():
                if name in self.columns and self.nominal[self.columns[name]] != (kind == "category"):
                    now = "number" if kind == "category" else "category"
                    raise ConfigError(f"column_types: {name!r} was learned as a {now}; begin a new model to change it")
            self.types = types
        self.given = missing_values, column_types

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpickle; a pickle of 0.1 knows no texts that mean missing, and no types."""
        older = {"missing": frozenset(), "types": {}, "why": {}, "given": (None, None), "on_bad": "raise"}
        self.__dict__.update({**older, **state})
        if "bad" in state:
            self.bad_names = {None: self.__dict__.pop("bad")}

    @property
    def bad(self) -> int:
        """Bad values that were imputed."""
        return sum(self.bad_names.values())

    @property
    def room(self) -> int:
        """Features that may still be added; the column of instances without any does not count."""
        return self.max_features - len(self.columns) + (NO_FEATURES in self.columns)

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
            If a value is bad and ``on_bad`` is not "impute", ``x`` is not a mapping, or a name cannot be written to a
            file.
        """
        encoded = Encoded([])
        row, unknown, added = self._row(x, self.on_bad == "impute", True, encoded.bad_names)
        encoded.rows = [row]
        if added is not None:
            encoded.unseen = UnseenFeatures(values=added)
        if unknown is not None:
            self._encode_unknown({name: x[name] for name in unknown}, row, encoded)
        return encoded

    def encode_known(self, x: Mapping[Hashable, Any]) -> NDArray[np.float64]:
        """Encode an instance that is to be predicted: unknown features and categories count as missing.

        Returns
        -------
        array of shape (1, F)
        """
        row, _, _ = self._row(x, self.on_bad != "raise", False, {})
        table = np.array([row], dtype=np.float64)
        return table if row else table.reshape(1, 0)

    def _row(
        self, x: Mapping[Hashable, Any], forgive: bool, learning: bool, bad: dict[Hashable, int]
    ) -> tuple[list[float], list[Hashable] | None, dict[Hashable, dict[Hashable, int]] | None]:
        """Values of the known columns, names without a column, new categories by name; counts bad values."""
        if type(x) is not dict and not isinstance(x, Mapping):
            raise DataError(f"x must be a dict of features, got {type(x).__name__}")
        columns, nominal, codes = self.columns, self.nominal, self.codes
        row = [math.nan] * len(columns)
        unknown: list[Hashable] | None = None
        added: dict[Hashable, dict[Hashable, int]] | None = None
        number: float | None
        for name, value in x.items():
            column = columns.get(name)
            if column is None:
                if unknown is None:
                    unknown = []
                unknown.append(name)
                continue
            kind = type(value)
            if nominal[column]:
                if kind is str and (code := codes[name].get(value)) is not None:
                    row[column] = code  # nearly every category, without a function call
                    continue
                new: dict[Hashable, int] | None = {} if learning else None
                number = self._code(value, codes[name], new)
                if new:
                    added = {} if added is None else added
                    added[name] = new
            else:
                if (kind is float or kind is int) and (-LARGEST < value < LARGEST or value != value):
                    row[column] = value  # nearly every value of a stream of numbers, without a function call
                    continue
                number = self._number(name, value)
            if number is not None:
                row[column] = number
            elif forgive:
                bad[name] = 1
            else:
                raise bad_value(name, value, nominal[column])
        return row, unknown, added

    def _encode_unknown(self, x: Mapping[Hashable, Any], row: list[float], encoded: Encoded) -> None:
        """Decide about names that have no column yet, and append the values of those that get one."""
        room = self.room
        found: dict[Hashable, tuple[float, bool, dict[Hashable, int], str]] = {}
        for name, value in x.items():
            if is_missing_cell(value, self.missing):
                continue
            if room <= 0:
                encoded.ignored += 1
                continue
            number, nominal, new, why = self._first_value(name, value)
            if number is None:
                if self.on_bad != "impute":
                    raise bad_value(name, value, nominal)
                encoded.bad_names[name] = 1
            elif not math.isnan(number):
                found[savable(name, "the name of a feature")] = (number, nominal, new, why)
        unseen = UnseenFeatures({name: (0, nominal) for name, (_, nominal, _, _) in found.items()})
        for position, name in enumerate(unseen.order):
            number, nominal, new, why = found[name]
            if position >= room:
                encoded.ignored += 1
                del unseen.features[name]
                continue
            unseen.why[name] = why
            if nominal:
                unseen.values[name] = new
            row.append(number)
        if unseen.features:
            if encoded.unseen is not None:
                unseen.values.update(encoded.unseen.values)
            encoded.unseen = unseen

    def _first_value(self, name: Hashable, value: Any) -> tuple[float | None, bool, dict[Hashable, int], str]:
        """Value of a new feature (None if it is bad), whether the feature is categorical, its category, and why."""
        asked = self.types.get(name)
        nominal = asked == "category" or (asked is None and not is_numeric(unwrapped(value)))
        new: dict[Hashable, int] = {}
        number = self._code(value, {}, new) if nominal else self._number(name, value)
        if asked is not None:
            return number, nominal, new, "column_types"
        return number, nominal, new, f"first value {shown(value, 30)} ({type(value).__name__})"

    def _number(self, name: Hashable, value: Any) -> float | None:
        """Number of a numeric feature, NaN where missing, None for a bad value."""
        if is_missing_cell(value, self.missing):
            return math.nan
        number = number_of(value, self.types.get(name) == "number")
        return number if number is not None and (abs(number) < LARGEST or number != number) else None

    def _code(self, value: Any, known: Mapping[Hashable, int], new: dict[Hashable, int] | None) -> float | None:
        """Code of a category, NaN where missing, None for a bad value.

        A category that is not ``known`` gets the next code and is added to ``new``; where that is None, its code is -1.
        Beyond ``max_categories`` all share the last code.
        """
        try:
            if type(value) not in _PLAIN:
                value = unwrapped(value)
                if is_missing_cell(value):  # a signalling NaN cannot be hashed
                    return math.nan
            code = known.get(value)  # also what 0.1 has learned: numbers as they are, "NA" as a category
            if code is not None:
                return float(code)
            if is_missing_cell(value, self.missing):
                return math.nan
            key = category_of(value)
        except (TypeError, DataError):  # it cannot be hashed, or is no category
            return None
        code = known.get(key)
        if code is None and new is not None:
            code = new.get(key)
        if code is not None:
            return float(code)
        number = len(known) + (len(new) if new else 0)
        if number >= self.max_categories - 1:
            return float(number)
        if new is None:
            return -1.0
        new[key] = number
        return float(number)

    # --- learning what is new

    def rows_of_new_codes(self, encoded: Encoded) -> dict[int, list[int]]:
        """Columns in which a row has a category that no row before it had, by the row."""
        unseen, found = encoded.unseen, dict[int, list[int]]()
        if unseen is None or not unseen.values:
            return found
        columns = {**self.columns, **{name: len(self.columns) + i for i, name in enumerate(unseen.order)}}
        for name, codes in unseen.values.items():
            present, rows = np.unique(encoded.table[:, columns[name]], return_index=True)
            new = np.isin(present, list(codes.values()))
            for row in rows[new].tolist():
                found.setdefault(row, []).append(columns[name])
        return found

    def commit(self, unseen: UnseenFeatures, upto: int | None = None) -> tuple[list[bool], int]:
        """Add unseen features and categories; of features only those that have a value by row ``upto``.

        Returns
        -------
        nominal : list of bool
            For each feature added, in order, whether it is categorical.
        room : int
            Number of codes that the features with new categories need; 0 if there are none.
        """
        names, known = unseen.take(upto)
        for name in names:
            nominal = unseen.features[name][1]
            self.columns[name] = len(self.nominal)
            self.nominal.append(nominal)
            self.why[name] = unseen.why.get(name, "")
            if nominal:
                self.codes[name] = {}
                known.append(name)
        room = 0
        for name in known:
            codes = self.codes[name]
            for value in unseen.values.get(name, ()):
                codes.setdefault(value, len(codes))
            room = max(room, len(codes) + 1)  # one more for those beyond max_categories
        return [unseen.features[name][1] for name in names], room

    def count(self, encoded: Encoded) -> None:
        """Add up the values that were bad and that were ignored."""
        for name, number in encoded.bad_names.items():
            key = name if name in self.columns else None  # names of features that never got a column may be endless
            self.bad_names[key] = self.bad_names.get(key, 0) + number
        self.ignored += encoded.ignored

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
            "bad_by_column": [self.bad_names.get(name, 0) for name in self.columns],
            "why": [self.why.get(name, "") for name in self.columns],
            "missing_values": sorted(self.missing),
            "column_types": [[value_to_json(name), kind] for name, kind in self.types.items()],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Undo :meth:`state`; a file of 0.1 has fewer entries, and no text in it means missing."""
        names = [value_from_json(name) for name in state["names"]]
        self.columns = {name: i for i, name in enumerate(names)}
        self.nominal = [bool(flag) for flag in state["nominal"]]
        self.codes = {
            name: {value_from_json(value): i for i, value in enumerate(values)}
            for name, values, nominal in zip(names, state["codes"], self.nominal, strict=True)
            if nominal
        }
        self.ignored = int(state["ignored"])
        self.why = dict(zip(names, state.get("why", ["learned by 0.1"] * len(names)), strict=True))
        self.bad_names = dict(zip(names, state.get("bad_by_column", [0] * len(names)), strict=True))
        self.bad_names[None] = int(state["bad"]) - self.bad  # those of 0.1, and of features that never got a column
        self.missing = frozenset(state.get("missing_values", ()))
        self.types = {value_from_json(name): kind for name, kind in state.get("column_types", ())}


def bad_value(name: Hashable, value: Any, nominal: bool, where: str = "") -> DataError:
    """The error that names a bad value."""
    what = "is neither a number nor a category" if nominal else "is not a number that can be learned"
    if nominal and isinstance(value, float | np.floating):
        what = "is a float that identifies nothing: infinite, or beyond 2**53; use text or whole numbers"
    return DataError(
        f"feature {shown(name)}{where}: {shown(value)} {what}; on_bad='impute' takes bad values for missing, "
        "on_bad='skip' leaves such instances out"
    )


def by_first_row(entry: tuple[Hashable, tuple[int, bool]]) -> tuple[int, str, str]:
    """Order of new features: by first row, then by name; never by the order of a dict, which callers may shuffle."""
    name, (row, _) = entry
    return row, type(name).__name__, f"{name:>20}" if isinstance(name, int) else str(name)
