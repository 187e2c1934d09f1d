"""Which columns are keys of rows rather than what a row is like: a different value in nearly every row."""

import re
import warnings
from collections.abc import Container, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moeapps.core.errors import ConfigError
from moeapps.core.tabledata.kinds import UNUSED, Column
from moeapps.core.tabledata.numbers import to_numbers
from moeapps.core.tabledata.vocabulary import count_values
from moeapps.registry import did_you_mean

__all__ = [
    "DIFFERENT",
    "UnusedColumns",
    "find_ids",
    "ignored_columns",
    "is_key",
    "nearly_all_differ",
    "with_unused",
]

DIFFERENT = 0.95
"""Part of the rows with a value of their own from which a column is an id."""

FEW_TEXTS, FEW_NUMBERS = 20, 30
"""Rows that a column needs for that: 20 whole numbers may differ by chance."""

DENSE = 0.5
"""Part of the whole numbers between the smallest and the largest that occur in a column of row numbers.

A random half of the rows keeps this much of a complete numbering. Measurements that are spread so densely repeat: that
30 numbers out of 60 all differ has a probability of 0.0001.
"""

_KEY = re.compile(
    r"(^|[_\W])(id|ids|key|uuid|guid|index|idx|rownames?|rownum|row|nr|no|number|code)$|^Unnamed: \d+$", re.I
)
_CAMEL = re.compile(r"[a-z](Id|ID|Key|Nr|No|Number|Index|Code)$")
_TIME = re.compile(
    r"year|month|week|date|hour|minute|second|time|season|quarter|period|since|(^|[_\W\d])(yr|day|days|step|age|t)($|[_\W\d])",
    re.I,
)
"""Names of whole numbers that differ and follow each other, and mean something: the years of a series."""

_DATE = re.compile(
    r"\s*(\d{1,2}[./-]\d{1,2}[./-](\d{4}|\d{2})|\d{4}[./]\d{1,2}[./]\d{1,2}|\d{1,2}\.? ?[A-Za-z]{3,9}\.?,? ?\d{4}"
    r"|[A-Za-z]{3,9}\.? \d{1,2},? \d{4})([ ,T]+\d{1,2}:\d{2}(:\d{2})?( ?[AaPp][Mm])?)?\s*"
)
"""Dates in other forms than ISO 8601."""


def nearly_all_differ(distinct: int, rows: int, few: int = FEW_TEXTS) -> bool:
    """Whether nearly every row has a value of its own, in a column with enough rows to say so."""
    return rows >= few and distinct >= DIFFERENT * rows


def is_key(name: str, numbers: NDArray[np.float64], floats: bool = False) -> bool:
    """Whether whole numbers are keys or numbers of rows.

    They are if nearly all differ and the name says so (``customer_id``, ``orderNo``, ``key``), or if all differ and
    they number rows: at least half of the numbers between the smallest and the largest occur. Prices, areas and other
    wide measurements stay numbers, as do columns called ``year``, ``day``, ``t`` and the like.

    Parameters
    ----------
    name : str
        Column.
    numbers : array of shape (n,)
        Its whole numbers, NaN where missing.
    floats : bool, default=False
        Whether they are floats in the table: these are keys only if their name says so.
    """
    known = numbers[~np.isnan(numbers)]
    if len(known) < FEW_NUMBERS:
        return False
    distinct = np.unique(known)
    if not nearly_all_differ(len(distinct), len(known), FEW_NUMBERS) or distinct[0] < 0:
        return False
    if _KEY.search(name) or _CAMEL.search(name):
        return True
    numbering = len(distinct) == len(known) and len(known) >= DENSE * (distinct[-1] - distinct[0] + 1)
    return bool(numbering) and not floats and not _TIME.search(name)


def find_ids(
    frame: pd.DataFrame, columns: Sequence[Column], missing: frozenset[str], types: Container[str] = ()
) -> dict[int, Column]:
    """Columns that look like ids, by position, as columns of this kind; a warning names them.

    Where there would be no other column, none is an id.

    Parameters
    ----------
    frame : DataFrame
        Rows of training.
    columns : sequence of Column
        What was decided about each of its columns.
    missing : frozenset of str
        Texts that mean a missing value.
    types : container of str, default=()
        Columns of which the user has said what they are.
    """
    found: dict[int, Column] = {}
    dates: set[int] = set()
    for i, column in enumerate(columns):
        if column.name in types or not (column.kind == "category" or (column.kind == "number" and column.whole)):
            continue
        cells = frame.iloc[:, i]
        if column.kind == "category":
            counts, _ = count_values(cells, missing, column.name, column.typed)
            different = nearly_all_differ(len(counts), sum(counts.values()))
            if column.why == "text" and _warn_of_dates(column.name, counts):
                dates.add(i)
        else:
            floats = pd.api.types.is_float_dtype(cells.dtype)
            different = is_key(column.name, to_numbers(cells, missing, column.name), floats)
        if different:
            found[i] = replace(column, kind="id", why=f"{column.why}; a different value in nearly every row")
    alone = all(i in found or column.kind in UNUSED for i, column in enumerate(columns))
    _warn_of_ids([column for i, column in found.items() if i not in dates], used=alone)
    return {} if alone else found


def ignored_columns(ignore: Any, names: Sequence[str]) -> list[int]:
    """Positions of the columns that the ``ignore_columns`` argument names.

    Parameters
    ----------
    ignore : sequence of str or int, optional
        Names or positions.
    names : sequence of str
        All columns.

    Raises
    ------
    ConfigError
        If it is no list, or names no column or all of them.
    """
    if ignore is None:
        return []
    if isinstance(ignore, str | bytes) or not isinstance(ignore, Iterable):
        raise ConfigError(f"ignore_columns must be a list of columns, got {ignore!r}; did you mean [{ignore!r}]?")
    positions = []
    for entry in ignore:
        if isinstance(entry, str) and entry in names:
            positions.append(list(names).index(entry))
        elif isinstance(entry, int | np.integer) and not isinstance(entry, bool) and 0 <= entry < len(names):
            positions.append(int(entry))
        else:
            known = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            hint = did_you_mean(entry, names, f"the columns are {known}")
            raise ConfigError(f"ignore_columns: there is no column {entry!r}{hint}")
    if len(set(positions)) == len(names):
        raise ConfigError("ignore_columns names every column: nothing is left to learn from")
    return sorted(set(positions))


def with_unused(frame: pd.DataFrame, names: Sequence[str], unused: Iterable[int]) -> pd.DataFrame:
    """The frame with those columns that a model does not use, empty where they are not there.

    Parameters
    ----------
    frame : DataFrame
        Rows to predict. It is left as it is.
    names : sequence of str
        Columns of training, in order.
    unused : iterable of int
        Positions of those that are not used, increasing.
    """
    absent = [i for i in unused if names[i] not in frame.columns]
    if not absent:
        return frame
    frame = frame.copy(deep=False)
    for i in absent:
        frame.insert(min(i, frame.shape[1]), names[i], None)
    return frame


class UnusedColumns(UserWarning):
    """Columns look like ids of the rows and are left out."""


def _warn_of_ids(columns: Iterable[Column], used: bool = False) -> None:
    """Say which columns were taken for ids, and what to do if they are none; one warning for all of them.

    Parameters
    ----------
    columns : iterable of Column
        The ids that nobody has called so.
    used : bool, default=False
        Whether they are learned from nevertheless, since there are no others.
    """
    names = [column.name for column in columns]
    if not names:
        return
    listed = ", ".join(map(repr, names[:10])) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    subject = f"column{'s' if len(names) > 1 else ''} {listed}"
    what = "an id? " if len(names) == 1 else "ids? "
    if used:
        text = "It is used, since there is no other column; it says nothing about rows to come"
    else:
        text = (
            f"{'It is' if len(names) == 1 else 'They are'} not used. If this is wrong: "
            f"column_types={{{names[0]!r}: 'category'}} or 'number'. If it is right, ignore_columns={names[:10]} "
            "says so"
        )
    category = UserWarning if used else UnusedColumns
    warnings.warn(f"{subject}: a different value in nearly every row: {what}{text}", category, stacklevel=2)


def _warn_of_dates(name: str, values: Iterable[Any]) -> bool:
    """Whether a column of text holds dates whose form leaves open what is day and what is month; a warning says so."""
    texts = [value for _, value in zip(range(200), values, strict=False)]
    if not texts or not all(isinstance(text, str) and _DATE.fullmatch(text) for text in texts):
        return False
    warnings.warn(
        f"column {name!r} holds dates such as {texts[0]!r}, in a form that leaves open what is day and what is month: "
        "they are text, not times. Write them as 2024-01-31, or convert them: "
        f"pd.to_datetime(frame[{name!r}], dayfirst=True), or dayfirst=False",
        UserWarning,
        stacklevel=3,
    )
    return True
