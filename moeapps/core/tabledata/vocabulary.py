"""Categories of a column and their codes: the same code for the same cell, whatever it was read from."""

import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moeapps.core.errors import DataError
from moeapps.core.tabledata.cells import (
    BOOLS,
    category_text,
    is_missing_cell,
    is_number_value,
    missing_texts,
    number_key,
    read_cell,
    sample_of,
    shown,
)

__all__ = [
    "MISSING",
    "UNKNOWN",
    "ImputedValues",
    "UnseenCategories",
    "Vocabulary",
    "count_values",
    "distinct_cells",
    "distinct_values",
    "settle_values",
    "warn_of_imputed",
    "warn_of_unseen",
]

UNKNOWN, MISSING = -1, -2
"""Codes of a category that is not in the vocabulary, and of a missing value."""

_AMBIGUOUS = -3
_WHOLE = re.compile(r"-?(0|[1-9]\d*)(\.0*)?")


class Vocabulary:
    """The categories of a column; value i has the code i.

    A text is looked up as it is written. A number finds the text that is written like it, or else the only category of
    the same value: an int column that ``pandas.read_csv`` made of ``007`` finds "007". Where the categories themselves
    are numbers or bools, a text finds the category of its value: "19.0" finds 19, "true" finds True.

    Parameters
    ----------
    values : sequence of str, int, float or bool
        Categories in the order of their codes.
    missing : frozenset of str, optional
        Texts that mean a missing value, unless they are a category.
    name : str, default=""
        Column, for errors.
    """

    def __init__(self, values: Sequence[Any], missing: frozenset[str] | None = None, name: str = "") -> None:
        self.values, self.name = list(values), name
        self.missing = missing_texts() if missing is None else missing
        self.typed = all(not isinstance(value, str) for value in self.values)
        self._exact: dict[str, int] = {}
        self._by_value: dict[Any, int] = {}
        for code, value in enumerate(self.values):
            text = category_text(value)
            self._exact.setdefault(text, code)
            key = _value_key(text)
            if key is not None:
                self._by_value[key] = _AMBIGUOUS if key in self._by_value else code
        if self.typed and self.values and all(value in (0, 1) for value in self.values):
            # bools and the numbers 0 and 1 stand for each other, as in numpy
            for number, truth in (((1, "0", 0), False), ((1, "1", 0), True)):
                for key, other in ((number, truth), (truth, number)):
                    if key in self._by_value:
                        self._by_value.setdefault(other, self._by_value[key])

    def __len__(self) -> int:
        return len(self.values)

    def code(self, value: Any) -> int:
        """Code of a single value.

        Raises
        ------
        DataError
            If the value cannot be a category, or is a number that stands for several texts.
        """
        is_text = isinstance(value, str)
        text = value if is_text else category_text(value)
        code = self._exact.get(text)
        if code is not None and (is_text or self._by_value.get(_value_key(text)) != _AMBIGUOUS):
            return code
        if is_text and text in self.missing:
            return MISSING
        if is_text and not self.typed:
            return UNKNOWN
        code = self._by_value.get(_value_key(text), UNKNOWN)
        if code == _AMBIGUOUS:
            same = [known for known in self.values if _value_key(category_text(known)) == _value_key(text)]
            raise DataError(
                f"column {self.name!r} was text in training, where {' and '.join(map(repr, same[:3]))} differ; the "
                f"number {value!r} could be any of them: read the column as text (dtype=str in pandas)"
            )
        return code

    def codes(self, column: pd.Series) -> NDArray[np.int64]:
        """Codes of a column, shape (n,).

        Raises
        ------
        DataError
            Naming column and row of a value that cannot be a category.
        """
        index, values = distinct_cells(column, self.name)
        codes = np.empty(len(values) + 1, dtype=np.int64)
        for position, value in enumerate(values):
            try:
                codes[position] = self.code(value)
            except DataError as error:
                raise _located(error, column, index, position, self.name) from None
        codes[-1] = MISSING
        return codes[index]


def distinct_cells(column: pd.Series, name: str) -> tuple[NDArray[np.intp], list[Any]]:
    """Index of every row among the distinct values of a column, -1 where it is None, NaN or NA; and these values.

    Python code then runs once per distinct value, not once per row.

    Raises
    ------
    DataError
        If a value is a list or anything else that cannot be looked up.
    """
    if column.dtype == object:
        kinds = {type(value) for value in column}
        if {bool, np.bool_} & kinds and len(kinds - {bool, np.bool_, str, type(None)}) > 0:
            # a hash table takes True for 1
            column = column.map(lambda value: None if is_missing_cell(value) else category_text(value))
    try:
        index, values = pd.factorize(column)
    except TypeError:
        bad = next((i, value) for i, value in enumerate(column) if not _is_hashable(value))
        raise DataError(
            f"column {name!r} holds {shown(bad[1])} at row {column.index[bad[0]]}, expected one category per row; "
            "lists need a SequenceFeature of moeapps.recsys"
        ) from None
    return index, values.tolist()


def distinct_values(column: pd.Series, missing: frozenset[str], name: str, typed: bool = False) -> list[Any]:
    """The categories of a column as JSON values, in order of appearance, missing ones left out.

    Parameters
    ----------
    column : Series
        Cells.
    missing : frozenset of str
        Texts that mean a missing value.
    name : str
        Column, for errors.
    typed : bool, default=False
        Whether texts that are numbers or bools are kept as such: "19.0" as 19.

    Raises
    ------
    DataError
        Naming column and row of a value that cannot be a category.
    """
    counts, _ = count_values(column, missing, name, typed)
    return list(counts)


def count_values(
    column: pd.Series, missing: frozenset[str], name: str, typed: bool = False
) -> tuple[dict[Any, int], bool]:
    """How often each category of a column occurs, in order of appearance; and whether any cell is missing.

    Parameters and errors are those of :func:`distinct_values`.
    """
    index, values = distinct_cells(column, name)
    rows = np.bincount(index[index >= 0], minlength=len(values)).tolist()
    any_missing = bool((index < 0).any())
    distinct: dict[str, Any] = {}
    counts: dict[str, int] = {}
    for position, (value, number) in enumerate(zip(values, rows, strict=True)):
        if is_missing_cell(value, missing):
            any_missing = True
            continue
        try:
            plain = _typed(value) if typed and isinstance(value, str) else _plain(value)
            text = category_text(plain)
        except DataError as error:
            raise _located(error, column, index, position, name) from None
        distinct.setdefault(text, plain)
        counts[text] = counts.get(text, 0) + number
    return {distinct[text]: number for text, number in counts.items()}, any_missing


def settle_values(values: Sequence[Any], untyped: bool, name: str) -> list[Any]:
    """Categories that were collected from several columns or batches, each of them once.

    Where a source has only text, texts that all are whole numbers without leading zeros (or all true and false) are
    these numbers: a frame that pandas makes of the same file has them as such. A number beside texts is the text that
    has its value.

    Parameters
    ----------
    values : sequence of str, int, float or bool
        What :func:`distinct_values` found, in order of appearance.
    untyped : bool
        Whether the source has only text.
    name : str
        Column, for errors.

    Raises
    ------
    DataError
        If a number could stand for several texts.
    """
    if untyped and values and all(_is_plain_whole(value) for value in values):
        values = [_typed(value) if isinstance(value, str) else value for value in values]
    texts = Vocabulary([value for value in values if isinstance(value, str)], frozenset(), name)
    if 0 < len(texts) < len(values):
        values = [value for value in values if isinstance(value, str) or texts.code(value) == UNKNOWN]
    distinct: dict[str, Any] = {}
    for value in values:
        distinct.setdefault(category_text(value), value)
    return list(distinct.values())


def _is_plain_whole(value: Any) -> bool:
    """Whether a text is a whole number as pandas writes it (19 or 19.0), true or false; or a value is no text."""
    if not isinstance(value, str):
        return not isinstance(value, float) or value.is_integer()
    return value in BOOLS or _WHOLE.fullmatch(value) is not None


class UnseenCategories(UserWarning):
    """A column's categories differ from those of training far more than chance explains."""


class ImputedValues(UserWarning):
    """Missing values were replaced, in columns that had none in training."""


def warn_of_imputed(filled: Sequence[str], by: str, stacklevel: int = 3) -> None:
    """Warn of missing values in columns that had none in training.

    Parameters
    ----------
    filled : sequence of str
        What was replaced by what, such as ``"3 of 'age' by 41"``; nothing to warn of where it is empty.
    by : {"median", "mean"}
        What replaces numbers.
    stacklevel : int, default=3
        As in :func:`warnings.warn`.
    """
    if filled:
        warnings.warn(
            f"missing values in columns that had none in training were replaced by the {by} or the most frequent "
            f"category of training: {', '.join(filled[:5])}{', ...' if len(filled) > 5 else ''}",
            ImputedValues,
            stacklevel=stacklevel,
        )


def warn_of_unseen(
    vocabulary: Vocabulary, cells: pd.Series, codes: NDArray[np.int64], new_rate: float, stacklevel: int = 3
) -> bool:
    """Warn where every category of many rows is unseen, or a far larger part than training lets expect.

    Parameters
    ----------
    vocabulary : Vocabulary
        Categories of training.
    cells : Series
        A column.
    codes : array of shape (n,)
        Its codes.
    new_rate : float
        Part of rows that is expected to have an unseen category.
    stacklevel : int, default=3
        As in :func:`warnings.warn`.

    Returns
    -------
    bool
        Whether there was a warning.
    """
    rows, unseen = int((codes != MISSING).sum()), int((codes == UNKNOWN).sum())
    every = rows >= 10 and unseen == rows
    if not every and (rows < 50 or unseen < 0.2 * rows or unseen < 3 * new_rate * rows):
        return False
    if every and new_rate > 0.9:  # an id: rows to come have new ones
        return False
    examples = sample_of(cells[codes == UNKNOWN].iloc[:100].unique().tolist())
    known = f", such as {sample_of(vocabulary.values)}" if len(vocabulary) else ""
    share = "every value" if every else f"{unseen / rows:.0%} of the values"
    warnings.warn(
        f"column {vocabulary.name!r}: {share} of {rows} rows, such as {examples}, was not among the {len(vocabulary)} "
        f"categories of training{known}; the model knows nothing about them",
        UnseenCategories,
        stacklevel=stacklevel,
    )
    return True


def _plain(value: Any) -> Any:
    """A category as str, int, float or bool, which a file can hold."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool | str | int):
        return value
    text = category_text(value)
    if isinstance(value, float):
        return int(text) if value.is_integer() else value
    return int(text) if is_number_value(value) and text.lstrip("-").isdigit() else text


def _typed(text: str) -> Any:
    if text in BOOLS:
        return BOOLS[text]
    try:
        return read_cell(text, "whole", frozenset())
    except DataError:
        return text


def _value_key(text: str) -> Any:
    """Key of equal values: numbers however written, true and false."""
    return BOOLS[text] if text in BOOLS else number_key(text)


def _located(error: DataError, column: pd.Series, index: NDArray[np.intp], position: int, name: str) -> DataError:
    row = column.index[int((index == position).argmax())]
    text = str(error)
    return error if text.startswith("column ") else DataError(f"column {name!r}, row {row}: {text}")


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
