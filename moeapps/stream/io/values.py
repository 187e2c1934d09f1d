"""From what a source delivers to values that a model, an output file and a checkpoint can hold.

Every event passes :func:`plain_fields` before anything is done with it. So a value that could not be written to the
checkpoint is refused when it arrives, with its event, and never later, with everything that was learned in between.
"""

import datetime
import math
import uuid
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd

from moeapps.core.errors import DataError
from moeapps.core.tabledata.cells import CellKind, category_text, is_missing_cell, read_cell

__all__ = ["event_key", "finite_json", "is_empty", "plain_fields", "plain_label", "plain_value", "retyped", "storable"]

_MOST_DIGITS = 4000
"""Digits of a whole number; Python reads and writes no more than 4,300."""

_MOST_BITS = 13_000
_LONG = 2**63

_EMPTY = frozenset([""])
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def plain_fields(fields: Mapping[Any, Any], exact: tuple[Any, ...] = ()) -> dict[Any, Any]:
    """Fields of an event as numbers, text, bools and None; lists and dicts stay, for the model to refuse.

    Parameters
    ----------
    fields : mapping
        Values by name.
    exact : tuple
        Names of fields that identify something, the label and the id: they are left as they are, for
        :func:`plain_label` and :func:`event_key`.

    Raises
    ------
    DataError
        Naming the field, if its value is none that can be learned and stored.
    """
    plain = dict(fields)
    for name, value in fields.items():
        kind = type(value)
        if kind is float or kind is bool or value is None or (kind is str and value.isascii()):
            continue
        if (kind is int and -_LONG < value < _LONG) or name in exact:
            continue
        try:
            plain[name] = plain_value(value)
        except DataError as error:
            raise DataError(f"field {name!r}: {error}") from None
    return plain


def plain_value(value: Any) -> Any:
    """A feature as a number, text, a bool or None; lists and dicts stay.

    Dates and times become seconds since 1970-01-01 UTC (one without a zone is taken for UTC), durations and times of
    day seconds, Decimal and Fraction numbers.

    Raises
    ------
    DataError
        If it is of another type, or text that is not Unicode, or a whole number of thousands of digits.
    """
    if isinstance(value, np.datetime64 | np.timedelta64):
        value = pd.NaT if np.isnat(value) else _pandas_time(value)
    if isinstance(value, np.generic):
        value = value.item()
    if is_missing_cell(value):
        return None
    if isinstance(value, bool | float):
        return value
    if isinstance(value, np.floating):  # a long double has no Python type
        return float(value)
    if isinstance(value, int):
        return _bounded(value)
    if isinstance(value, str):
        return _unicode(value)
    if isinstance(value, datetime.datetime):  # also pandas' Timestamp
        return _seconds(value)
    if isinstance(value, datetime.date):
        return _seconds(datetime.datetime(value.year, value.month, value.day))
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, datetime.time):
        return value.hour * 3600 + value.minute * 60 + value.second + value.microsecond / 1e6
    if isinstance(value, Decimal | Fraction):
        return float(value)
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, list | tuple | dict | set | np.ndarray):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        raise DataError("it holds bytes, which are neither a number nor text: decode them, or leave the field out")
    raise DataError(f"{value!r:.60} ({type(value).__name__}) is neither a number nor text nor a time")


def plain_label(value: Any, missing: frozenset[str] = _EMPTY) -> Any:
    """A label as it identifies a class: None where missing, text and whole numbers exact, dates and times as ISO text.

    The ``missing`` texts are no label, as they are none in a cell of a CSV file; by default only the empty text.

    Raises
    ------
    DataError
        If it is none of these.
    """
    if isinstance(value, np.datetime64) and not np.isnat(value):
        value = _pandas_time(value)
    if isinstance(value, datetime.date | datetime.time) and not is_missing_cell(value):  # also datetime, Timestamp
        return value.isoformat()
    if isinstance(value, Decimal) and value.is_finite():
        return int(value) if value == value.to_integral_value() and value.adjusted() < _MOST_DIGITS else float(value)
    try:
        plain = plain_value(value)
    except DataError as error:
        raise DataError(f"the label: {error}") from None
    if isinstance(plain, list | tuple | dict | set | np.ndarray):
        raise DataError(f"the label is a {type(plain).__name__}, expected text or a number")
    return None if is_missing_cell(plain, missing) else plain


def event_key(value: Any) -> str | None:
    """The text that identifies an event, None where the id is missing: 7, 7.0 and "7" are one id, "007" is another.

    Raises
    ------
    DataError
        If it is neither text nor a number nor a date, or a float that is not exact.
    """
    if isinstance(value, np.datetime64) and not np.isnat(value):
        value = _pandas_time(value)
    if is_missing_cell(value):
        return None
    try:
        if isinstance(value, str):
            return _unicode(value)
        if isinstance(value, int):
            _bounded(value)
        if isinstance(value, float | np.floating) and math.isinf(value):
            raise DataError("an infinite number is not a category")
        return str(value) if isinstance(value, uuid.UUID) else category_text(value)
    except DataError as error:
        raise DataError(f"the id: {str(error).replace('a category', 'an id')}") from None


def is_empty(fields: Mapping[Any, Any]) -> bool:
    """Whether an event has no features: each is missing, or an empty text."""
    return all(is_missing_cell(value) or (isinstance(value, str) and not value) for value in fields.values())


def retyped(fields: Mapping[Any, Any], types: Mapping[str, CellKind]) -> dict[Any, Any]:
    """Fields whose kind the user has stated, as values of that kind.

    Parameters
    ----------
    fields : mapping
        Values by name, as JSON, Parquet or a frame has them.
    types : mapping of str to CellKind
        What fields shall be; others stay as they are.

    Raises
    ------
    DataError
        Naming the field, if its value cannot be of that kind.
    """
    plain = dict(fields)
    for name in types.keys() & fields.keys():
        value = fields[name]
        if is_missing_cell(value):
            continue
        try:
            if types[name] == "text":
                plain[name] = value if isinstance(value, str) else category_text(value)
            elif isinstance(value, str):
                plain[name] = read_cell(value, types[name])
        except DataError as error:
            raise DataError(f"field {name!r}: {error}") from None
    return plain


def storable(fields: Mapping[Any, Any], impute: bool) -> dict[Any, Any]:
    """Fields of an event that has to wait for its label, without values that no model could learn.

    Parameters
    ----------
    fields : mapping
        What :func:`plain_fields` returned.
    impute : bool
        Whether such a value counts as missing.

    Raises
    ------
    DataError
        Naming the field, if one is a list, a dict or an infinite number, and ``impute`` is False.
    """
    plain = {}
    for name, value in fields.items():
        good = isinstance(value, str | int | type(None)) or (isinstance(value, float) and math.isfinite(value))
        if not good and not impute:
            raise DataError(f"field {name!r}: {str(value)[:60]!r} is neither a finite number nor text")
        plain[name] = value if good else None
    return plain


def finite_json(value: Any) -> Any:
    """A value for JSON: numbers that are not finite become null, and dates text."""
    if isinstance(value, dict):
        return {str(name): finite_json(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple | set):
        return [finite_json(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        return f"a whole number of {_digits(value)} digits"
    if isinstance(value, str | int | bool | type(None)):
        return value
    if is_missing_cell(value):
        return None
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else str(value)


def _seconds(value: datetime.datetime) -> float:
    """Seconds since 1970-01-01 UTC."""
    aware = value if value.tzinfo is not None else value.replace(tzinfo=datetime.UTC)
    return (aware - _EPOCH).total_seconds()


def _pandas_time(value: Any) -> Any:
    try:
        return pd.Timestamp(value) if isinstance(value, np.datetime64) else pd.Timedelta(value)
    except (ValueError, OverflowError):
        raise DataError(f"{value} is a time out of range") from None


def _bounded(value: int) -> int:
    if value.bit_length() > _MOST_BITS:
        raise DataError(f"a whole number of {_digits(value)} digits is too long")
    return value


def _digits(value: int) -> int:
    """About how many digits a whole number has, which may be too long to be written."""
    return int(value.bit_length() * 0.30103)


def _unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(f"{text[:60]!r} is not Unicode text: it holds half of a surrogate pair") from None
    return text
