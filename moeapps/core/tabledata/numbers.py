"""Columns as float64: numbers and times from cells of any type, or an error that names the cell."""

import datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pandas.api.types import is_object_dtype

from moeapps.core.errors import DataError
from moeapps.core.tabledata.cells import is_missing_cell, is_number_value, read_cell, shown
from moeapps.core.tabledata.frames import arrow_text, is_arrow_text, is_arrow_type

__all__ = ["TIME_PARTS", "list_column", "time_parts", "to_days", "to_numbers"]

TIME_PARTS = ("", " hour sin", " hour cos", " weekday sin", " weekday cos", " yearday sin", " yearday cos")
"""What the numbers made of a time are called, after its name: days since 1970-01-01 UTC, then its cyclic parts."""

_NUMBER = r"^[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?$"


def to_numbers(column: pd.Series, missing: frozenset[str], name: str) -> NDArray[np.float64]:
    """Numbers of shape (n,), NaN where missing.

    Parameters
    ----------
    column : Series
        Numbers, bools, or texts that are numbers.
    missing : frozenset of str
        Texts that mean a missing value.
    name : str
        Column, for errors.

    Raises
    ------
    DataError
        Naming row, column and cell, if a cell is no number.
    """
    kind = column.dtype
    if isinstance(kind, pd.CategoricalDtype):
        column = column.astype(kind.categories.dtype)
        kind = column.dtype
    if pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_complex_dtype(kind):  # bools are among them
        if is_arrow_type(kind, pa.types.is_decimal):
            column = column.astype("float64[pyarrow]")
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    if isinstance(kind, pd.StringDtype) or is_arrow_text(kind):
        return _from_text(column, missing, name)
    if is_object_dtype(kind):
        if all(isinstance(value, str) or is_missing_cell(value) for value in column):
            return _from_text(column, missing, name)
        numbers = np.empty(len(column))
        for row, value in enumerate(column):
            numbers[row] = _one(value, missing, name, column.index[row])
        return numbers
    raise DataError(f"column {name!r} holds numbers in training, and is of type {kind} here: convert it to numbers")


def _one(value: Any, missing: frozenset[str], name: str, row: Any) -> float:
    if isinstance(value, str):
        try:
            number = read_cell(value, "number", missing)
            return np.nan if number is None else float(number)
        except (DataError, OverflowError):
            raise _no_number(value, name, row) from None
    if not isinstance(value, list | tuple | np.ndarray | dict) and is_missing_cell(value):
        return np.nan
    if is_number_value(value) or isinstance(value, bool | np.bool_):
        try:
            return float(value)
        except OverflowError:
            return np.inf if value > 0 else -np.inf
    raise _no_number(value, name, row)


def _from_text(column: pd.Series, missing: frozenset[str], name: str) -> NDArray[np.float64]:
    cells = arrow_text(column, name)
    cells = pc.if_else(pc.is_in(cells, pa.array(sorted(missing), pa.large_string())), None, cells)
    cells = pc.utf8_trim_whitespace(cells)
    match = pc.match_substring_regex(cells, _NUMBER)
    if not pc.all(match, min_count=0).as_py():
        row = pc.index(match, False).as_py()
        raise _no_number(column.iloc[row], name, column.index[row])
    # Arrow reads no sign "+"
    plain = pc.replace_substring_regex(cells, r"^\+", "")
    try:
        return pc.cast(plain, pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        return np.array([np.nan if cell is None else float(cell) for cell in plain.to_pylist()])


def _no_number(value: Any, name: str, row: Any) -> DataError:
    return DataError(
        f"column {name!r}, row {row}: {shown(value)} is not a number, and the column is one of numbers; "
        "correct the cell, or make it a missing value"
    )


def to_days(column: pd.Series, missing: frozenset[str], name: str) -> NDArray[np.float64]:
    """Days since 1970-01-01 UTC, shape (n,), NaN where missing; a time without a zone is taken for UTC.

    Raises
    ------
    DataError
        Naming row, column and cell, if a cell is no time.
    """
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.dtype.categories.dtype)
    values = column.astype(object)
    text = values.map(lambda value: isinstance(value, str))
    values = values.mask(values.isin(list(missing)) & text, None) if text.any() else values
    seconds = np.full(len(values), np.nan)
    known = ~values.isna().to_numpy()
    wrong = values[known].map(lambda value: is_number_value(value) or isinstance(value, bool | list | tuple | bytes))
    if wrong.any():
        place = int(wrong.to_numpy().argmax())  # labels of rows may occur more than once
        raise _no_time(values[known].iloc[place], name, wrong.index[place])
    try:
        times = pd.to_datetime(values[known], format="ISO8601", utc=True)
        seconds[known] = (times - pd.Timestamp(0, tz="UTC")).dt.total_seconds()
    except (ValueError, TypeError, OverflowError):  # one is no time, or too far away for nanoseconds
        seconds[known] = [_seconds(value, name, row) for row, value in values[known].items()]
    return seconds / 86400


def _seconds(value: Any, name: str, row: Any) -> float:
    try:
        time = datetime.datetime.fromisoformat(value if isinstance(value, str) else value.isoformat())
    except (ValueError, TypeError, AttributeError):
        raise _no_time(value, name, row) from None
    time = time if time.tzinfo is not None else time.replace(tzinfo=datetime.UTC)
    return (time - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)).total_seconds()


def _no_time(value: Any, name: str, row: Any) -> DataError:
    return DataError(
        f"column {name!r}, row {row}: {shown(value)} is not a time, and the column is one of times; "
        "write it as 2024-01-31 or 2024-01-31T18:30:00Z (ISO 8601), or make it a missing value"
    )


def time_parts(days: NDArray[np.float64]) -> NDArray[np.float64]:
    """Numbers of shape (n, 7) made of days: the days, and sine and cosine of hour, weekday and day of the year."""
    hour = np.mod(days, 1)
    weekday = np.mod(days, 7) / 7
    yearday = np.mod(days, 365.2425) / 365.2425
    cyclic = [f(2 * np.pi * part) for part in (hour, weekday, yearday) for f in (np.sin, np.cos)]
    return np.column_stack([days, *cyclic])


def list_column(column: pd.Series, missing: frozenset[str], name: str) -> list[list[Any] | None]:
    """Lists of a column, None where missing: Python lists, tuples, arrays, Arrow lists, or text in JSON.

    Raises
    ------
    DataError
        Naming row, column and cell, if a cell is no list.
    """
    if isinstance(column.dtype, pd.ArrowDtype) and not is_arrow_text(column.dtype):
        lists: list[list[Any] | None] = pa.array(column).to_pylist()  # exact beside missing entries
        return lists
    found: list[list[Any] | None] = []
    for row, value in zip(column.index, column, strict=True):
        if isinstance(value, list | tuple | np.ndarray):
            found.append(list(value))
        elif isinstance(value, str):
            try:
                found.append(read_cell(value, "list", missing))
            except DataError:
                raise DataError(f"column {name!r}, row {row}: {shown(value)} is not a list, such as [1, 2]") from None
        elif is_missing_cell(value):
            found.append(None)
        else:
            raise DataError(f"column {name!r}, row {row}: {shown(value)} is not a list, such as [1, 2]")
    return found
