"""What a cell means: the one place where text, numbers, bools and times from any source become values of a column.

A cell reaches a model from a frame, a file, JSON or a dict. Its source decides its Python type (``pandas.read_csv``
reads ``007`` as 7 and ``19`` as 19.0 where another cell is empty; a file that is read by path gives the text). These
functions make the type of the source irrelevant, and never let an identifier pass through a float.
"""

import datetime
import json
import math
import numbers
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any, Literal

import numpy as np
import pandas as pd

from moeapps.core.errors import ConfigError, DataError

__all__ = [
    "BOOLS",
    "EXACT",
    "MISSING_VALUES",
    "CellKind",
    "category_text",
    "guess_kind",
    "is_missing_cell",
    "is_number_value",
    "missing_texts",
    "number_key",
    "other_separator",
    "pattern_of",
    "read_cell",
    "sample_of",
    "shown",
    "spaces_in_header",
    "text_kind",
]

MISSING_VALUES: tuple[str, ...] = (
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
    "NULL", "NaN", "None", "n/a", "nan", "null",
)  # fmt: skip
"""Texts that mean a missing value by default: those of ``pandas.read_csv``, so that a file read by path and the frame
that pandas makes of it agree."""

CellKind = Literal["number", "whole", "bool", "time", "list", "text"]
"""What all cells of a column of text are: numbers, whole numbers without leading zeros, ..., or nothing but text."""

EXACT = 2**53
"""A float holds every whole number up to this one."""

BOOLS = {"True": True, "TRUE": True, "true": True, "False": False, "FALSE": False, "false": False}
_PATTERNS: tuple[tuple[CellKind, re.Pattern[str]], ...] = (
    ("whole", re.compile(r"-?[1-9]\d*|0")),
    ("number", re.compile(r"\s*[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?\s*")),
    ("bool", re.compile("|".join(BOOLS))),
    ("time", re.compile(r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}([.,]\d{1,9})?)?(Z|[+-]\d{2}(:?\d{2})?)?)?")),
    ("list", re.compile(r"\[[\s\S]*\]")),
)
"""Kinds of text cells, the most special first. Leading zeros make a code, such as 00501, not a number."""

_TOO_LONG = 10**4000
"""Python writes and reads whole numbers of up to 4,300 digits."""

_ANY_NUMBER = re.compile(r"\s*[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,9})?\s*", re.ASCII)


def missing_texts(missing_values: str | Iterable[str] = "auto") -> frozenset[str]:
    """The texts that a ``missing_values`` argument stands for; the empty text is always among them.

    Parameters
    ----------
    missing_values : "auto" or iterable of str, default="auto"
        ``"auto"`` for :data:`MISSING_VALUES`.

    Raises
    ------
    ConfigError
        If it is neither ``"auto"`` nor a list of texts.
    """
    if isinstance(missing_values, str):
        if missing_values != "auto":
            raise ConfigError(
                f"missing_values must be 'auto' or a list of texts, got {missing_values!r}; did you mean "
                f"[{missing_values!r}]?"
            )
        return frozenset(MISSING_VALUES)
    texts = list(missing_values)
    for text in texts:
        if not isinstance(text, str):
            raise ConfigError(f"missing_values must be 'auto' or a list of texts, got {text!r} in it")
    return frozenset([*texts, ""])


def is_missing_cell(value: Any, missing: frozenset[str] = frozenset()) -> bool:
    """Whether a single value is None, NaN, NA, NaT or one of the ``missing`` texts."""
    if isinstance(value, str):
        return value in missing
    if value is None or value is pd.NA or value is pd.NaT:
        return True
    if isinstance(value, Decimal):
        return value.is_nan()
    if isinstance(value, np.datetime64 | np.timedelta64):
        return bool(np.isnat(value))
    return isinstance(value, float | np.floating) and bool(value != value)


def other_separator(columns: Sequence[str], separator: str = ",") -> str | None:
    """What is wrong with a header of one column that looks separated by another character; None if it does not."""
    if len(columns) != 1 or (found := re.search(r"[;\t|]", columns[0])) is None or found.group() == separator:
        return None
    return (
        f"the header {columns[0][:60]!r} has no {separator!r} and looks separated by {found.group()!r}: a .csv file is "
        "separated by commas"
    )


def spaces_in_header(columns: Sequence[str]) -> str | None:
    """What is wrong with a header whose names begin or end with spaces, and what helps; None if none does."""
    spaced = [name for name in columns if name != name.strip(" ")]
    if not spaced:
        return None
    some = ", ".join(repr(name[:60]) for name in spaced[:3]) + (", ..." if len(spaced) > 3 else "")
    after_commas = all(name == name.rstrip(" ") for name in spaced)
    how = ("path, skipinitialspace=True)", "") if after_commas else ("path)", ".rename(columns=str.strip)")
    return (
        f"spaces in the header are part of the names of the columns ({some}), and spaces in cells part of their text. "
        f"If they should not be, write the file anew: pandas.read_csv({how[0]}{how[1]}.to_csv(new, index=False)"
    )


def pattern_of(kind: CellKind) -> str:
    """Regular expression, for Arrow, of the texts that are wholly of a kind."""
    return f"^({dict(_PATTERNS)[kind].pattern})$"


def text_kind(cell: str) -> CellKind:
    """The most special kind of one text cell."""
    return next((kind for kind, pattern in _PATTERNS if pattern.fullmatch(cell)), "text")


def guess_kind(cells: Iterable[str], missing: frozenset[str] = frozenset(MISSING_VALUES)) -> CellKind:
    """The most special kind that all text cells have, missing ones left out; "text" where there is none.

    Whole numbers beside other numbers are numbers; numbers with leading zeros are text.
    """
    possible = [kind for kind, _ in _PATTERNS]
    seen = False
    patterns = dict(_PATTERNS)
    for cell in cells:
        if cell in missing:
            continue
        seen = True
        possible = [kind for kind in possible if patterns[kind].fullmatch(cell)]
        if not possible:
            return "text"
    return possible[0] if seen else "text"


def read_cell(cell: str, kind: CellKind, missing: frozenset[str] = frozenset(MISSING_VALUES)) -> Any:
    """A text cell as a value of a kind, None where it is missing.

    Parameters
    ----------
    cell : str
        The cell as it stands in the file.
    kind : {"number", "whole", "bool", "time", "list", "text"}
        What the column holds. Whole numbers come as int, however long; other numbers as float; times as float,
        in seconds since 1970-01-01 UTC (a time without a zone is taken for UTC); lists are parsed as JSON.
    missing : frozenset of str, default=MISSING_VALUES
        Texts that mean a missing value.

    Raises
    ------
    DataError
        Saying what the cell is and what was expected, if it cannot be of that kind.
    """
    if cell in missing:
        return None
    if kind == "text":
        return cell
    text = cell.strip()
    if kind == "bool" and text in BOOLS:
        return BOOLS[text]
    if kind == "whole" and (key := number_key(text)) is not None and 0 <= key[2] < 400:
        if len(key[1]) + key[2] > 4000:  # Python reads no more than 4,300
            raise DataError(f"{shown(cell)} is a whole number of more than 4,000 digits")
        return key[0] * int(key[1]) * 10 ** key[2]
    if kind == "number" and _ANY_NUMBER.fullmatch(text):
        number = float(text)
        if math.isfinite(number):
            return int(text) if text.lstrip("+-").isdigit() else number
    if kind == "time" and text[:4].isdigit():  # pandas takes "now", "today" and "-1.5" for times as well
        try:
            return pd.to_datetime(text, format="ISO8601", utc=True).timestamp()
        except (ValueError, OverflowError):
            pass
    if kind == "list" and text.startswith("["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            pass
    names = {"number": "a finite number", "whole": "a whole number", "bool": "true or false", "list": "a JSON list"}
    raise DataError(f"{shown(cell)} is not {names.get(kind, 'a time as ISO 8601 writes it')}")


def category_text(value: Any) -> str:
    """The text that identifies a category: 7, 7.0 and "7" are one category, and so are True and "True".

    Parameters
    ----------
    value : Any
        A text, number, bool, date or time that is not missing.

    Raises
    ------
    DataError
        If the value is a float beyond 2**53, which cannot be told from its neighbours, or of another type.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bool):
        return "True" if value else "False"
    if isinstance(value, int):
        if abs(value) >= _TOO_LONG:
            raise DataError("a whole number of more than 4,000 digits is not a category")
        return str(value)
    if isinstance(value, float):
        if not value.is_integer():
            return repr(value)
        if abs(value) > EXACT:
            raise DataError(
                f"{value!r} is a float, which beyond 2**53 cannot be told from its neighbours: read the column as text "
                "or as whole numbers (dtype='string' or 'Int64' in pandas)"
            )
        return str(int(value))
    if isinstance(value, Decimal):
        return _plain_decimal(value)
    if isinstance(value, datetime.date | datetime.time):  # also datetime and Timestamp
        return value.isoformat()
    raise DataError(f"{shown(value)} ({type(value).__name__}) is not a category: use text, numbers or bools")


def _plain_decimal(value: Decimal) -> str:
    """A Decimal as text without exponent and without zeros at the end."""
    key = number_key(str(value))
    if key is None or abs(key[2]) > 400:  # an exponent of 10**9 would fill the memory
        raise DataError(f"{shown(value)} is not a category: it is not finite, or has too large an exponent")
    sign, digits, exponent = key
    if exponent >= 0:
        return str(sign * int(digits) * 10**exponent)
    digits = digits.rjust(1 - exponent, "0")
    return f"{'-' * (sign < 0)}{digits[:exponent]}.{digits[exponent:]}"


def number_key(text: str) -> tuple[int, str, int] | None:
    """Sign, digits and exponent of a text that is a number, equal for equal numbers; None for other texts.

    Exact for any number of digits, unlike a float: "007", "7", "7.0" and "0.7e1" have one key.
    """
    if not _ANY_NUMBER.fullmatch(text):
        return None
    sign, digits, exponent = Decimal(text.strip()).as_tuple()
    assert isinstance(exponent, int)
    plain = "".join(map(str, digits)).lstrip("0")
    short = plain.rstrip("0")
    if not short:
        return (1, "0", 0)
    return (-1 if sign else 1, short, exponent + len(plain) - len(short))


def is_number_value(value: Any) -> bool:
    """Whether a single value is a number and no bool."""
    return isinstance(value, numbers.Number) and not isinstance(value, bool | np.bool_ | complex | np.complexfloating)


def shown(value: Any, most: int = 60) -> str:
    """A value for a message: its ``repr``, cut where it is long; also where Python refuses to write it."""
    try:
        text = repr(value)
    except Exception:  # such as a number of 5,000 digits
        return f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= most else f"{text[:most]}..."


def sample_of(values: Sequence[Any], most: int = 3) -> str:
    """Some values for a message."""
    return ", ".join(map(shown, list(values)[:most]))
