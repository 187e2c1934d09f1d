"""The types that the columns of a table had when experts were fitted, and how cells of another source get them back.

The experts of a mixture are anybody's estimators: an encoder that was fitted on True does not know the text "True", nor
one that was fitted on 7 the text "7", and NaN and None are two categories. A file that is read by path, JSON and an
Arrow table hold the same cells in other types than the frame of the fit.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from moeapps.core.errors import DataError, FileFormatError
from moeapps.core.labels import value_from_json, value_to_json
from moeapps.core.saved_arguments import fits
from moeapps.core.tabledata.cells import EXACT, category_text, is_missing_cell, missing_texts, read_cell
from moeapps.core.tabledata.frames import missing_cells

__all__ = ["ColumnForms"]

_MARKS: dict[str, Any] = {"None": None, "NaN": np.nan, "NA": pd.NA, "NaT": pd.NaT}
"""Missing cells by their names."""

_TEXTS = missing_texts()


class ColumnForms:
    """Types of columns.

    Parameters
    ----------
    forms : list of Form
        One per column.
    """

    def __init__(self, forms: "Iterable[Form]" = ()) -> None:
        self.forms = list(forms)

    @classmethod
    def of(cls, table: Any) -> "ColumnForms":
        """Of the table that experts are fitted on; an array, whose cells are numbers, has none."""
        if not isinstance(table, pd.DataFrame):
            return cls()
        return cls(Form.of(table.iloc[:, i]) for i in range(table.shape[1]))

    def restore(self, table: Any) -> Any:
        """The table with the types of the fit; a cell that cannot have its column's type stays as it is."""
        if not isinstance(table, pd.DataFrame) or table.shape[1] != len(self.forms):
            return table
        restored: pd.DataFrame = table
        for i, form in enumerate(self.forms):
            column = form.restore(table.iloc[:, i])
            if column is not None:
                if restored is table:
                    restored = table.copy(deep=False)
                restored.isetitem(i, column)  # type: ignore[arg-type]
        return restored

    def to_json(self) -> list[dict[str, Any]]:
        """JSON values."""
        return [form.to_json() for form in self.forms]

    @classmethod
    def from_json(cls, values: Any) -> "ColumnForms":
        """Undo :meth:`to_json`.

        Raises
        ------
        FileFormatError
            If it is malformed.
        """
        if not fits(values, list[dict[str, Any]]):
            raise FileFormatError("the types of its columns are malformed")
        return cls(Form.from_json(value) for value in values)


@dataclass
class Form:
    """Type of one column.

    Parameters
    ----------
    kind : str
        What its cells are: "bool", "whole", "number", "text", "time", or "" for cells that are left as they are.
    dtype : str
        Name of the dtype, "category" where the cells are categories.
    missing : list of str
        Missing cells as the column had them, the most frequent first: "None", "NaN", "NA", "NaT", or a text after "=".
    categories : list, optional
        Categories of a pandas category, in their order.
    ordered : bool
        Whether they are ordered.
    """

    kind: str = ""
    dtype: str = ""
    missing: list[str] = field(default_factory=list)
    categories: list[Any] | None = None
    ordered: bool = False

    @classmethod
    def of(cls, column: pd.Series) -> "Form":
        """Of a column that experts are fitted on."""
        kind = column.dtype
        if isinstance(kind, pd.CategoricalDtype):
            categories = kind.categories.tolist()
            known = _kind_of(categories) != "" and len(_by_text(categories)) == len(categories)
            marks = _marks_of(column[missing_cells(column, _TEXTS)])
            return cls(_kind_of(categories), "category", marks, categories, bool(kind.ordered)) if known else cls()
        name = _name_of(kind)
        if name is None or isinstance(kind, pd.SparseDtype):
            return cls()
        if pd.api.types.is_object_dtype(kind) or pd.api.types.is_string_dtype(kind):
            gone = missing_cells(column, _TEXTS)
            return cls(_kind_of(column[~gone].tolist()), name, _marks_of(column[gone]))
        tests = {
            "bool": pd.api.types.is_bool_dtype,
            "whole": pd.api.types.is_integer_dtype,
            "number": pd.api.types.is_float_dtype,
            "time": pd.api.types.is_datetime64_any_dtype,
        }
        found = next((what for what, test in tests.items() if test(kind)), None)
        return cls() if found is None else cls(found, name)

    def restore(self, column: pd.Series) -> pd.Series | None:
        """A column with this type; None for one that needs no change.

        Parameters
        ----------
        column : Series
            Cells as any source has them.
        """
        if not self.kind or isinstance(column.dtype, pd.CategoricalDtype):
            return None
        if self.dtype != "object" and _name_of(column.dtype) == self.dtype:
            return None
        if self.kind == "time":
            return self._times(column)
        if self.kind in ("whole", "number") and isinstance(column.dtype, np.dtype) and column.dtype.kind in "biuf":
            return self._number(column)
        known = None if self.categories is None else _by_text(self.categories)
        values, fit = self._values(column, known)
        if known is not None:
            new = {value: None for value in values if value is not None and _text(value) not in known}
            kept = pd.Categorical(values, pd.Index([*known.values(), *new]), ordered=self.ordered)
            return pd.Series(kept, index=column.index)
        same = self.dtype == str(column.dtype) == "object"
        if same and all(new is old for new, old in zip(values, column.tolist(), strict=True)):
            return None
        return self._series(values, column.index, fit)

    def _series(self, values: list[Any], index: pd.Index, fit: bool) -> pd.Series:
        """Values in the dtype of the fit, or in that which pandas gives to such values with gaps."""
        dtype = _dtype_named(self.dtype)
        if isinstance(dtype, np.dtype) and any(value is np.nan for value in values):
            dtype = np.dtype(np.float64 if self.kind in ("whole", "number") else object)
        if fit and dtype is not None:
            try:
                return pd.Series(values, index=index, dtype=dtype)
            except (TypeError, ValueError, OverflowError, pa.ArrowException):
                pass
        return pd.Series(values, index=index, dtype=object)

    def _values(self, column: pd.Series, known: dict[str, Any] | None) -> tuple[list[Any], bool]:
        """Cells as values of this kind, or as the known categories by their texts, and whether all of them are."""
        read = _READ[self.kind] if known is None else lambda cell: known.get(_text(cell), cell)
        found: dict[Any, Any] = {}
        values, fit = [], True
        for cell in column.astype(object).tolist():
            if is_missing_cell(cell, _TEXTS):
                values.append(self._missing(cell))
                continue
            try:
                key = (type(cell), cell)
                if key not in found:
                    found[key] = read(cell)
                values.append(found[key])
            except (TypeError, ValueError, OverflowError):  # a DataError is a ValueError
                fit = False
                values.append(cell)
        return values, fit

    def _missing(self, cell: Any) -> Any:
        """A missing cell as the column had it; None where the dtype has its own."""
        mark = _mark_of(cell)
        if not (self.dtype == "object" or self.kind == "text") or not self.missing:
            mark = ""
        elif mark not in self.missing:
            mark = self.missing[0]
        if mark.startswith("="):
            return mark[1:]
        if self.categories is None and mark:
            return _MARKS[mark]
        return np.nan if isinstance(_dtype_named(self.dtype), np.dtype) else None

    def _number(self, column: pd.Series) -> pd.Series | None:
        """Whole numbers for floats that are whole, where experts were fitted on whole numbers, and the other way."""
        if self.categories is not None or self.dtype == "object" or column.dtype.kind == "b":
            return None
        if self.kind == "number":
            return column.astype(np.float64) if column.dtype.kind in "iu" else None
        numbers = column.to_numpy()
        if column.dtype.kind != "f" or not np.isfinite(numbers).all() or (np.abs(numbers) > EXACT).any():
            return None
        return column.astype(np.int64) if (numbers == np.floor(numbers)).all() else None

    def _times(self, column: pd.Series) -> pd.Series | None:
        dtype = _dtype_named(self.dtype)
        if dtype is None or pd.api.types.is_numeric_dtype(column.dtype):
            return None
        cells: Any = [None if is_missing_cell(cell, _TEXTS) else cell for cell in column.astype(object).tolist()]
        texts = any(isinstance(cell, str) for cell in cells)
        try:
            times = pd.Series(pd.to_datetime(cells, utc=True, format="ISO8601" if texts else None), index=column.index)
            zone = getattr(dtype, "tz", None)
            times = times.dt.tz_localize(None) if zone is None else times.dt.tz_convert(zone)
            return times.astype(dtype)
        except (TypeError, ValueError, OverflowError):
            return None

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        categories = None if self.categories is None else [value_to_json(value) for value in self.categories]
        return {**vars(self), "missing": list(self.missing), "categories": categories}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Form":
        """Undo :meth:`to_json`.

        Raises
        ------
        FileFormatError
            If it is malformed.
        """
        try:
            saved = value["categories"]
            categories = None if saved is None else [value_from_json(pair) for pair in saved]
            form = cls(value["kind"], value["dtype"], value["missing"], categories, value["ordered"])
            good = (
                form.kind in (*_READ, "time", "")
                and fits(form.dtype, str)
                and fits(form.missing, list[str])
                and all(mark in _MARKS or mark.startswith("=") for mark in form.missing)
                and isinstance(form.ordered, bool)
                and (categories is None) == (form.dtype != "category")
                and (categories is None or len(_by_text(categories)) == len(categories))
            )
        except (KeyError, TypeError, ValueError):
            good = False
        if not good:
            raise FileFormatError("the types of its columns are malformed")
        return form


def _whole(cell: Any) -> int:
    if isinstance(cell, str):
        return int(read_cell(cell, "whole", frozenset()))
    if isinstance(cell, bool | np.bool_) or int(cell) != cell:
        raise ValueError("not a whole number")
    return int(cell)


def _number(cell: Any) -> float:
    if isinstance(cell, bool | np.bool_):
        raise ValueError("not a number")
    return float(read_cell(cell, "number", frozenset())) if isinstance(cell, str) else float(cell)


def _bool(cell: Any) -> bool:
    if not isinstance(cell, str | bool | np.bool_):
        raise ValueError("not a bool")
    return bool(read_cell(cell, "bool", frozenset()) if isinstance(cell, str) else cell)


_READ: dict[str, Callable[[Any], Any]] = {"whole": _whole, "number": _number, "bool": _bool, "text": category_text}
"""How a cell becomes a value of a kind."""


def _text(cell: Any) -> str:
    """The text that identifies a category; of what is none, any other."""
    try:
        return category_text(cell)
    except DataError:
        return repr(cell)


def _by_text(categories: Iterable[Any]) -> dict[str, Any]:
    return {_text(value): value for value in categories}


def _kind_of(values: list[Any]) -> str:
    """What all values are; "" where they are of several kinds, or there is none."""
    kinds = {type(value.item() if isinstance(value, np.generic) else value) for value in values}
    for kind, name in ((str, "text"), (bool, "bool"), (int, "whole")):
        if kinds == {kind}:
            return name
    return "number" if kinds and kinds <= {int, float} else ""


def _marks_of(column: pd.Series) -> list[str]:
    """Names of missing cells, the most frequent first."""
    return [mark for mark, _ in Counter(_mark_of(cell) for cell in column.tolist()).most_common()]


def _mark_of(cell: Any) -> str:
    """Name of a missing cell."""
    if isinstance(cell, str):
        return f"={cell}"
    return next((name for name, mark in _MARKS.items() if cell is mark), "NaN")


def _name_of(dtype: Any) -> str | None:
    """Name of a dtype, from which it can be made again; None for one of which it cannot."""
    if isinstance(dtype, pd.ArrowDtype):
        name = f"arrow {dtype.pyarrow_dtype}"
    elif isinstance(dtype, pd.StringDtype):
        name = f"string {dtype.storage} {'NA' if dtype.na_value is pd.NA else 'NaN'}"
    else:
        name = str(dtype)
    return name if _dtype_named(name) == dtype else None


def _dtype_named(name: str) -> Any:
    """Undo :func:`_name_of`; None if there is no such dtype here."""
    try:
        if name.startswith("arrow "):
            return pd.ArrowDtype(pa.type_for_alias(name.removeprefix("arrow ")))
        if name.startswith("string "):
            _, storage, gone = name.split(" ")
            return pd.StringDtype(storage, na_value=pd.NA if gone == "NA" else np.nan)
        return pd.api.types.pandas_dtype(name)
    except (TypeError, ValueError, ImportError):
        return None
