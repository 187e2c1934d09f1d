"""What a single value of a stream is: a number, a category, missing, or nothing that can be learned.

The rules are those of :mod:`moeapps.core.tabledata.cells`, for values of Python, numpy and pandas that come one by one.
"""

import datetime
import enum
import hashlib
import math
import numbers
import uuid
from collections.abc import Hashable
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moeapps.core.errors import DataError
from moeapps.core.tabledata.cells import category_text, read_cell, shown

__all__ = ["LARGEST", "category_of", "is_numeric", "number_of", "savable", "seconds_of", "unwrapped"]

LARGEST = 1e150
"""Larger numbers are bad values: their squares have to fit into a float64."""

_NUMBERS = (numbers.Real, np.bool_, Decimal)
_TIMES = (datetime.date, datetime.time, datetime.timedelta, np.datetime64, np.timedelta64)  # a datetime is a date
_LONGEST = 1000
"""Longer texts are known by their beginning and their digest, so that the memory of a stream stays bounded."""

_TOO_LONG = 10**4000
"""Larger whole numbers are not written to a file: Python reads no more than 4,300 digits."""


def unwrapped(value: Any) -> Any:
    """The value of an enumeration's member, or of an array or tensor of shape ()."""
    while isinstance(value, enum.Enum):
        value = value.value
    if not isinstance(value, np.generic) and getattr(value, "shape", None) == () and hasattr(value, "item"):
        return value[()] if isinstance(value, np.ndarray) else value.item()
    return value


def is_numeric(value: Any) -> bool:
    """Whether a feature whose first value this is holds numbers: numbers, bools, Decimals, dates and times."""
    return isinstance(value, _NUMBERS + _TIMES)


def number_of(value: Any, from_text: bool = False) -> float | None:
    """A value as a number: times as seconds since 1970-01-01 UTC, durations and times of day as seconds.

    Parameters
    ----------
    value : Any
        A value that is not missing.
    from_text : bool, default False
        Whether a text is read as a number.

    Returns
    -------
    float or None
        None if it is no number; NaN or an infinity where the value is one.
    """
    value = unwrapped(value)
    try:
        if isinstance(value, str):
            return float(read_cell(str(value), "number", frozenset())) if from_text else None
        if isinstance(value, _TIMES):
            return float(seconds_of(_as_numpy_time(value)))
        return float(value) if isinstance(value, _NUMBERS) else None
    except (TypeError, ValueError, OverflowError):  # a year as a duration; DataError is a ValueError
        return None


def _as_numpy_time(value: Any) -> np.datetime64 | np.timedelta64:
    """A time or duration as numpy's; a time without a zone is taken for UTC."""
    if isinstance(value, np.datetime64 | np.timedelta64):
        return value
    if isinstance(value, pd.Timestamp):
        return value.to_datetime64()
    if isinstance(value, pd.Timedelta):
        return value.to_timedelta64()
    if isinstance(value, datetime.timedelta):
        return np.timedelta64(value, "us")
    if isinstance(value, datetime.time):
        delta = datetime.timedelta(hours=value.hour, minutes=value.minute, seconds=value.second)
        return np.timedelta64(delta + datetime.timedelta(microseconds=value.microsecond), "us")
    if isinstance(value, datetime.datetime):
        if value.tzinfo is not None:
            value = value.astimezone(datetime.UTC).replace(tzinfo=None)
        return np.datetime64(value, "us")
    return np.datetime64(value, "D")


def seconds_of(times: Any) -> NDArray[np.float64]:
    """Times or durations of numpy as seconds, NaN for NaT; the same to the last bit for one value and for an array."""
    times = np.asarray(times)
    kind = "timedelta64" if times.dtype.kind == "m" else "datetime64"
    whole = times.astype(f"{kind}[s]")
    rest = (times - whole).astype("timedelta64[ns]")
    seconds = whole.astype(np.int64).astype(np.float64) + rest.astype(np.int64).astype(np.float64) / 1e9
    return np.where(np.isnat(times), np.nan, seconds)


def category_of(value: Any, depth: int = 0) -> Hashable:
    """What identifies a category: 7, 7.0 and "7" are one, True and "True" are one; a tuple is one of its parts.

    Raises
    ------
    DataError
        If the value is no category: a list, bytes, an infinity, a float beyond 2**53, ...
    """
    value = unwrapped(value)
    if isinstance(value, str):
        return str(value) if len(value) <= _LONGEST else _digest(str(value))
    if isinstance(value, tuple) and depth < 8:
        return tuple(category_of(part, depth + 1) for part in value)
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, np.datetime64):
        value = pd.Timestamp(value)
    if isinstance(value, float | np.floating) and not math.isfinite(value):
        raise DataError("an infinity or NaN is no category")
    if isinstance(value, np.timedelta64):
        raise DataError("a duration is no category")
    try:
        text = category_text(value)
    except DataError:
        raise
    except Exception:  # a whole number of thousands of digits, or an object that cannot be shown
        raise DataError(f"{shown(value)} is no category") from None
    return text if len(text) <= _LONGEST else _digest(text)


def _digest(text: str) -> str:
    return f"{text[:100]}... sha256:{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}"


def savable(value: Any, what: str) -> Any:
    """A name or label as a value that can be written to a file and comes back the same.

    Parameters
    ----------
    value : Any
        Text, a whole number, a finite number, a bool, or a tuple of these; also numpy's.
    what : str
        What it is, for the error.

    Raises
    ------
    DataError
        If it is something else.
    """
    plain = value.item() if isinstance(value, np.bool_ | np.number | np.str_) else value
    if isinstance(plain, str):
        return str.__str__(plain)
    if isinstance(plain, bool):
        return plain
    if isinstance(plain, int) and not isinstance(value, np.timedelta64) and abs(plain) < _TOO_LONG:
        return int(plain)
    if isinstance(plain, float) and math.isfinite(plain):
        return float(plain)
    if isinstance(plain, tuple):
        return tuple(savable(part, what) for part in plain)
    raise DataError(f"{what} is {shown(value)} ({type(value).__name__}): use text, a finite number, or a bool")
