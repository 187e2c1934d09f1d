"""Deciding what a column is from all of its cells, batch by batch.

1. :class:`ColumnEvidence` looks at the cells and counts what they are.
2. :meth:`ColumnEvidence.decide` makes a :class:`~moeapps.core.tabledata.kinds.Column` of it, or refuses a mixture by
   naming a cell of it.
"""

import datetime
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pandas.api.types import is_object_dtype

from moeapps.core.errors import DataError
from moeapps.core.tabledata.cells import (
    EXACT,
    MISSING_VALUES,
    is_missing_cell,
    is_number_value,
    number_key,
    pattern_of,
    shown,
)
from moeapps.core.tabledata.frames import arrow_text, is_arrow_text, is_arrow_type
from moeapps.core.tabledata.kinds import Column, ColumnKind, check_column_types, is_named_id

__all__ = ["ColumnEvidence", "infer_columns"]

_NUMBER = r"^\s*[+-]?((\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|(?i:inf|infinity))\s*$"
"""Also infinity, which pandas reads as a number: it is refused by name later, not learned as a category."""
_LEADING_ZERO = r"^\s*[+-]?0\d"
_WHOLE = r"^\s*[+-]?\d+(\.0*)?\s*$"
_LIST = r"""^\s*\[\s*([\d"'\[{\].-]|true\b|false\b|null\b|None\b)[\s\S]*\]\s*$|^\s*\[\s*\]\s*$"""
"""A list in JSON, or as Python writes it; "[warn]" is text."""

_TEXT_PATTERNS = {
    "number": _NUMBER,
    "zero": _LEADING_ZERO,
    "whole": _WHOLE,
    "time": pattern_of("time"),
    "list": _LIST,
    "bool": pattern_of("bool"),
}
"""What is counted of the texts of a column."""

MOSTLY = 0.95
"""Part of numbers from which a column with other texts in it is refused: it is neither numbers nor categories."""

FEW = 20
"""Cells that a column needs to have for anything to be said of its distribution."""


@dataclass
class ColumnEvidence:
    """What the cells of a column are, counted batch by batch.

    Parameters
    ----------
    name : str
        Column.
    missing : frozenset of str
        Texts that mean a missing value.
    untyped : bool, default=False
        Whether the source has text only, as a CSV file, so that a text of digits is a number.
    """

    name: str
    missing: frozenset[str]
    untyped: bool = False
    rows: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    missing_seen: set[str] = field(default_factory=set)
    texts: dict[str, int] = field(default_factory=dict)
    whole: bool = True
    beyond: str = ""
    declared: bool = False
    spelled: bool = False
    example: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    distinct: set[Any] = field(default_factory=set)

    def update(self, column: pd.Series) -> None:
        """Look at further cells.

        Raises
        ------
        DataError
            If they are of a type that cannot be learned, naming row, column and what to do.
        """
        kind = column.dtype
        start = self.rows
        self.rows += len(column)
        if isinstance(kind, pd.SparseDtype):
            raise self._refused("is sparse", "convert it with X.sparse.to_dense()")
        if isinstance(kind, pd.CategoricalDtype):
            self.declared = True
            self.spelled = self.spelled or not all(map(_is_its_value, kind.categories))
            gone = column.isin(list(self.missing))
            self.missing_seen.update(column[gone].unique().tolist())
            known = column[~gone].dropna()
            self._add("category", len(known), known)
        elif pd.api.types.is_bool_dtype(kind):
            known = column.dropna()
            self._add("bool", len(known), known)
        elif pd.api.types.is_complex_dtype(kind):
            raise self._refused("holds complex numbers", "give real and imaginary parts as two columns")
        elif pd.api.types.is_numeric_dtype(kind):
            known = column.dropna()
            self._add("number", len(known), known)
            self._numbers(known)
        elif pd.api.types.is_datetime64_any_dtype(kind) or is_arrow_type(kind, pa.types.is_date):
            known = column.dropna()
            self._add("time", len(known), known)
        elif pd.api.types.is_timedelta64_dtype(kind) or is_arrow_type(kind, pa.types.is_duration):
            raise self._refused("holds time differences", "convert it to numbers, such as column.dt.total_seconds()")
        elif isinstance(kind, pd.PeriodDtype):
            raise self._refused("holds periods", "convert it to times, such as column.dt.to_timestamp()")
        elif isinstance(kind, pd.IntervalDtype):
            raise self._refused("holds intervals", "convert it to numbers, such as their middle, or to text")
        elif is_arrow_type(kind, pa.types.is_list, pa.types.is_large_list):
            known = column.dropna()
            self._add("list", len(known))
        elif isinstance(kind, pd.StringDtype) or is_arrow_text(kind):
            self._text(arrow_text(column, self.name), start)
        elif is_object_dtype(kind):
            self._objects(column, start)
        else:
            raise self._refused(f"is of type {kind}", "convert it to numbers, text or times")

    def decide(self, wanted: ColumnKind | None = None) -> Column:
        """What the column is.

        Parameters
        ----------
        wanted : ColumnKind, optional
            What the user says that it is.

        Raises
        ------
        DataError
            If its cells are a mixture that is neither numbers nor categories, naming one of them.
        """
        if wanted is not None:
            return self._column(wanted, "chosen by column_types")
        counts = {name: count for name, count in self.counts.items() if count}
        if self.declared:
            return self._column("category", "a pandas category")
        if not counts:
            kind: ColumnKind = "number" if "number" in self.counts else "category"
            return self._column(kind, "every cell is missing")
        if set(counts) == {"text"}:
            return self._decide_text(counts["text"])
        if set(counts) == {"number"}:
            if self.beyond:
                return self._beyond()
            return self._column("number", "whole numbers" if self.whole else "numbers")
        if set(counts) == {"time"}:
            return self._column("time", "dates or times")
        if set(counts) == {"list"}:
            return self._column("list", "lists")
        if set(counts) == {"bool"}:
            return self._column("category", "bools")
        if set(counts) <= {"bool", "text"}:
            return self._column("category", "text and bools")
        if set(counts) == {"number", "text"} and self.texts.get("number", 0) == counts["text"]:
            # what pandas makes of a large file in pieces: some numbers as numbers, others as text
            return self._column("number", "numbers, some of them as text")
        raise self._mixture(counts)

    # --- looking

    def _objects(self, column: pd.Series, start: int) -> None:
        values = column.to_numpy()
        kinds = {type(value) for value in values}
        if kinds <= {str, type(None), float} and all(v != v for v in values if type(v) is float):
            self._text(arrow_text(column, self.name), start)
            return
        texts: list[Any] = [None] * len(values)
        numbers: list[Any] = []
        for row, value in enumerate(values):
            if isinstance(value, str):
                texts[row] = value
                continue
            if not isinstance(value, list | tuple | np.ndarray) and is_missing_cell(value):
                continue
            name = _object_kind(value)
            if name is None:
                raise self._refused(
                    f"holds {shown(value)} ({type(value).__name__}) at row {column.index[row]}",
                    "decode it to text" if isinstance(value, bytes) else "convert it to numbers, text, bools or times",
                )
            self._add(name, 1)
            if name not in self.example:
                self.example[name] = (column.index[row], value)
            if name == "number":
                numbers.append(value)
        if numbers:
            self._numbers(pd.Series(numbers, dtype=object))
        if any(text is not None for text in texts):
            self._text(arrow_text(pd.Series(texts, index=column.index, dtype=object), self.name), start)

    def _numbers(self, known: pd.Series) -> None:
        if len(known) == 0:
            return
        if known.dtype == object:
            self.whole = self.whole and all(map(_is_whole, known))
            large = [value for value in known if isinstance(value, int | np.integer) and abs(int(value)) > EXACT]
            if large and not self.beyond:
                self.beyond = str(large[0])
        elif pd.api.types.is_integer_dtype(known.dtype):
            for value in (known.min(), known.max()):
                if abs(int(value)) > EXACT and not self.beyond:
                    self.beyond = str(int(value))
        elif self.whole:
            numbers = known.to_numpy(dtype=np.float64)
            with np.errstate(invalid="ignore"):
                self.whole = bool((np.mod(numbers[np.isfinite(numbers)], 1) == 0).all())
        self._remember(known)

    def _text(self, cells: pa.Array, start: int) -> None:
        gone = pc.is_in(cells, pa.array(sorted(self.missing), pa.large_string()))
        if len(self.missing_seen) < len(self.missing):
            self.missing_seen.update(
                value for value in pc.unique(pc.filter(cells, gone)).to_pylist() if value is not None
            )
        keep = pc.and_(pc.is_valid(cells), pc.invert(gone))
        known = pc.filter(cells, keep)
        if len(known) == 0:
            return
        self.counts["text"] = self.counts.get("text", 0) + len(known)
        # each pattern is tried once per distinct text; these are in order of appearance
        tally = pc.value_counts(known)
        different, rows_of = tally.field("values"), tally.field("counts")
        for name, pattern in _TEXT_PATTERNS.items():
            seen = self.texts.get(name, 0)
            if name != "number" and seen == 0 and self.texts.get("all", 0) > 0 and name != "zero":
                continue  # one batch without any is enough to know
            match = pc.match_substring_regex(different, pattern)
            self.texts[name] = seen + (pc.sum(pc.filter(rows_of, match)).as_py() or 0)
            if name == "number" and "text" not in self.example and not pc.all(match).as_py():
                text = different[pc.index(match, False).as_py()]
                rows = pc.indices_nonzero(keep)
                self.example["text"] = (start + rows[pc.index(known, text).as_py()].as_py(), text.as_py())
            if name == "whole" and not self.beyond:
                long = pc.filter(different, pc.and_(match, pc.greater(pc.utf8_length(different), 15)))
                for text in long.to_pylist():
                    if abs(int(text.strip().split(".")[0])) > EXACT:
                        self.beyond = text.strip()
                        break
        self.texts["all"] = self.texts.get("all", 0) + len(known)
        if len(self.distinct) < 1000:
            self.distinct.update(known[:5000].to_pylist())

    def _add(self, name: str, count: int, known: pd.Series | None = None) -> None:
        self.counts[name] = self.counts.get(name, 0) + count
        if known is not None and name in ("category", "number"):
            self._remember(known)

    def _remember(self, known: pd.Series) -> None:
        if len(self.distinct) < 1000:
            self.distinct.update(known.iloc[:5000].unique().tolist())

    # --- deciding

    def _decide_text(self, count: int) -> Column:
        seen = self.texts
        if seen.get("time") == count:
            return self._column("time", "text in the form of dates or times (ISO 8601)")
        if seen.get("list") == count:
            return self._column("list", "text in the form of lists (JSON)")
        if seen.get("bool") == count:
            return self._column("category", "text that is true or false")
        if seen.get("number") == count and not seen.get("zero"):
            # "?" among numbers makes text of them; who names it as missing has said what they are
            if not self.untyped and self.missing_seen <= set(MISSING_VALUES):
                column = self._column("category", "text, although every cell is a number", typed=False)
                if len(self.distinct) > 50:
                    self._warn(
                        f"is text, and every cell of it is a number ({len(self.distinct)} or more different ones)"
                    )
                return column
            if self.beyond:
                return self._beyond()
            whole = seen.get("whole") == count
            return self._column("number", "whole numbers" if whole else "numbers", whole=whole)
        numbers = seen.get("number", 0)
        if not seen.get("zero") and count >= FEW and MOSTLY * count <= numbers < count:
            raise self._mixture({"number": numbers, "text": count - numbers})
        return self._column("category", "text", typed=False)

    def _beyond(self) -> Column:
        if not is_named_id(self.name):
            self._warn(
                f"holds whole numbers beyond 2**53, such as {self.beyond[:40]}, which a float cannot hold exactly"
            )
        return self._column("category", "whole numbers beyond 2**53, which a float cannot hold exactly", whole=True)

    def _warn(self, what: str) -> None:
        warnings.warn(
            f"column {self.name!r} {what}: it is read as a category. If it is a quantity, say so with "
            f"column_types={{{self.name!r}: 'number'}}",
            UserWarning,
            stacklevel=2,
        )

    def _column(self, kind: ColumnKind, why: str, typed: bool | None = None, whole: bool | None = None) -> Column:
        texts = self.counts.get("text", 0)
        if typed is None:
            # texts that are all plain whole numbers are the same categories as the numbers that pandas makes of them
            # of a pandas category "07" and "7" would be one as numbers, and "1E5" would be "100000"
            typed = (texts == 0 and not self.spelled) or (texts > 0 and self.texts.get("bool") == texts)
            if not typed and not self.texts.get("zero") and self.untyped:
                typed = self.texts.get("whole") == texts
        present = sum(self.counts.values())
        return Column(
            self.name,
            kind,
            why,
            typed,
            self.whole and not texts if whole is None else whole,
            self.rows,
            self.rows - present,
            tuple(sorted(self.missing_seen)),
        )

    def _mixture(self, counts: Mapping[str, int]) -> DataError:
        listed = " and ".join(
            f"{count:,} {_NAMES[name].removesuffix('s' if count == 1 else '')}" for name, count in counts.items()
        )
        row, value = self.example.get("text", next(iter(self.example.values()), (0, "")))
        choice = (
            f"if {shown(value)} means a missing value, add it to missing_values; if the column is a category, say so: "
            if isinstance(value, str)
            else "give all of its cells one type, or say what it is with "
        )
        return DataError(
            f"column {self.name!r} holds {listed}, such as {shown(value)} at row {row}: {choice}"
            f"column_types={{{self.name!r}: 'category'}}"
        )

    def _refused(self, what: str, remedy: str) -> DataError:
        return DataError(f"column {self.name!r} {what}, which cannot be learned: {remedy}, or drop the column")


_NAMES = {"number": "numbers", "text": "other texts", "bool": "bools", "time": "times", "list": "lists"}


def infer_columns(
    frame: pd.DataFrame, missing: frozenset[str], column_types: Mapping[str, ColumnKind] | None = None
) -> list[Column]:
    """Decide what the columns of a frame are.

    Parameters
    ----------
    frame : DataFrame
        Rows of training.
    missing : frozenset of str
        Texts that mean a missing value.
    column_types : dict, optional
        Kinds that the user chose, by column.

    Raises
    ------
    ConfigError
        If ``column_types`` names a column that is not there, or a kind that does not exist.
    DataError
        As :meth:`ColumnEvidence.update` and :meth:`ColumnEvidence.decide`.
    """
    wanted = check_column_types(column_types, [str(name) for name in frame.columns])
    columns = []
    for position, label in enumerate(frame.columns):
        name = str(label)
        evidence = ColumnEvidence(name, missing)
        evidence.update(frame.iloc[:, position])
        columns.append(evidence.decide(wanted.get(name)))
    return columns


def _is_its_value(category: Any) -> bool:
    """Whether a category is no text, or one that is written as the number is that it stands for, or true or false."""
    if not isinstance(category, str) or category in ("true", "TRUE", "false", "FALSE"):
        return True
    key = number_key(category)
    return key is None or re.fullmatch(r"-?(0|[1-9]\d*)", category) is not None or not 0 <= key[2] < 400


def _is_whole(value: Any) -> bool:
    if isinstance(value, int | np.integer):
        return True  # also beyond what a float holds
    return not math.isfinite(value) or bool(value == int(value))


def _object_kind(value: Any) -> str | None:
    if isinstance(value, bool | np.bool_):
        return "bool"
    if is_number_value(value):
        return "number"
    if isinstance(value, datetime.date | np.datetime64):
        return "time"
    if isinstance(value, list | tuple | np.ndarray):
        return "list"
    return None
