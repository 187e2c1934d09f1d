"""From a frame to codes and numbers, the same way in training and prediction."""

# Shapes: N rows, S sparse columns, D dense columns, L entries of a sequence

import zlib
from collections.abc import Iterable
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from moeapps.core.errors import DataError
from moeapps.core.tabledata.columns import plain_value
from moeapps.core.tabledata.files import ColumnKind, kind_of
from moeapps.recsys.moments import column_moments, merge_moments
from moeapps.recsys.schema import DenseFeature, Schema, SequenceFeature

__all__ = ["FIRST", "MISSING", "PAD", "UNKNOWN", "Rows", "TableEncoder"]

PAD, UNKNOWN, MISSING, FIRST = range(4)
"""Codes: padding of a sequence, a category not seen in training, a missing value, the first category."""

CLIP = 10.0
"""Number of standard deviations to which standardised numbers are clipped, so that no outlier dominates a batch."""


class Rows(NamedTuple):
    """Encoded rows, as tensors.

    Parameters
    ----------
    sparse : Tensor of shape (N, S)
        Codes, int32.
    dense : Tensor of shape (N, 2 D)
        Standardised numbers, then flags of the missing ones.
    sequences : tuple of Tensor of shape (N, L)
        Codes of each sequence, newest entry last, padded in front.
    """

    sparse: Tensor
    dense: Tensor
    sequences: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        """Number of rows."""
        return self.sparse.shape[0]

    def at(self, index: Any) -> "Rows":
        """The rows of an index, slice or mask."""
        return Rows(self.sparse[index], self.dense[index], tuple(part[index] for part in self.sequences))


class TableEncoder:
    """Learns the categories and the spread of the numbers.

    A category that training has not seen has the code UNKNOWN, a missing one (None, NaN) the code MISSING. Of a long
    sequence the newest entries are kept; a missing sequence is empty.

    Parameters
    ----------
    schema : Schema
        The features.

    Attributes
    ----------
    values : dict
        Categories by the name of the column that owns them; value i has the code i + FIRST.
    mean : list of float
        Mean of each dense column.
    scale : list of float
        Its standard deviation, 1 for a constant.
    """

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.values: dict[str, list[Any]] = {}
        self.mean: list[float] = []
        self.scale: list[float] = []
        self._index: dict[str, pd.Index] = {}  # categories as a hash table, built when first needed

    def fit(self, frame: pd.DataFrame) -> Self:
        """Learn from rows.

        Raises
        ------
        DataError
            If a column is missing or unknown or holds values of another kind, or there are no rows.
        """
        return self.fit_batches([frame])

    def fit_batches(self, frames: Iterable[pd.DataFrame]) -> Self:
        """Learn from rows that come in batches, as those of a file do; the same as from all of them at once.

        1. Collect each table's categories in order of appearance; a sequence adds to the table that it shares.
        2. Merge the batches' means and sums of squares.
        3. A column that is constant up to rounding gets the scale 1.

        Raises
        ------
        DataError
            As in :meth:`fit`.
        """
        categories: dict[str, dict[Any, None]] = {name: {} for name in self.table_names if self._buckets(name) is None}
        count = mean = squares = np.zeros(len(self.schema.dense))
        rows = 0
        for frame in frames:
            self.schema.check_columns(frame)
            rows += len(frame)
            for sparse in self.schema.sparse:
                if sparse.hash is None:
                    categories[sparse.name].update(dict.fromkeys(_factorize(frame[sparse.name], sparse.name)[1]))
            for sequence in self.schema.sequences:
                owner = self._owner(sequence)
                if owner in categories:
                    flat, _ = _flatten(frame[sequence.name], sequence)
                    categories[owner].update(dict.fromkeys(_factorize(flat, sequence.name)[1]))
            count, mean, squares = merge_moments((count, mean, squares), column_moments(self._numbers(frame)))
        if rows == 0:
            raise DataError("the frame has no rows")
        self.values = {name: list(values) for name, values in categories.items()}
        self._index = {}
        self.mean = mean.tolist()
        # Rounding leaves a constant column a tiny spread, which must not blow up its noise
        with np.errstate(all="ignore"):
            scale = np.sqrt(squares / np.maximum(count, 1))
        self.scale = np.where(scale > 1e-12 * np.maximum(np.abs(mean), 1e-300), scale, 1.0).tolist()
        return self

    def transform(self, frame: pd.DataFrame) -> Rows:
        """Encode rows; the order of the columns does not matter.

        Raises
        ------
        DataError
            If a column is missing or unknown, or a number is infinite or text.
        """
        self.schema.check_columns(frame)
        n = len(frame)
        sparse = np.zeros((n, len(self.schema.sparse)), dtype=np.int32)
        for s, feature in enumerate(self.schema.sparse):
            sparse[:, s] = self._codes(feature.name, frame[feature.name])
        numbers = self._numbers(frame)
        missing = np.isnan(numbers)
        # A missing number becomes the mean, and its flag says so
        scaled = np.where(missing, 0.0, (numbers - np.array(self.mean)) / np.array(self.scale))
        dense = np.concatenate([np.clip(scaled, -CLIP, CLIP), missing], axis=1)
        return Rows(
            torch.from_numpy(sparse),
            torch.from_numpy(dense.astype(np.float32)),
            tuple(torch.from_numpy(self._sequence(frame[s.name], s)) for s in self.schema.sequences),
        )

    @property
    def table_sizes(self) -> list[int]:
        """Number of codes of each sparse column's table, then of the tables that sequences have to themselves."""
        return [FIRST + self._number(name) for name in self.table_names]

    @property
    def table_names(self) -> list[str]:
        """Columns that own a table."""
        own = [sequence.name for sequence in self.schema.sequences if sequence.shares is None]
        return [*(feature.name for feature in self.schema.sparse), *own]

    @property
    def sequence_tables(self) -> list[int]:
        """For each sequence, the number of the table of its entries."""
        return [self.table_names.index(self._owner(sequence)) for sequence in self.schema.sequences]

    def column_kinds(self) -> dict[str, ColumnKind]:
        """How to read the columns of a CSV file so that their categories are found again."""
        categories = {sparse.name: kind_of(self.values.get(sparse.name, [])) for sparse in self.schema.sparse}
        return {**self.schema.column_kinds(), **categories}

    def state(self) -> dict[str, Any]:
        """The learned values as JSON values."""
        return {"schema": self.schema.to_json(), "values": self.values, "mean": self.mean, "scale": self.scale}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """Undo :meth:`state`."""
        encoder = cls(Schema.from_json(state["schema"]))
        encoder.values, encoder.mean, encoder.scale = state["values"], state["mean"], state["scale"]
        return encoder

    def _owner(self, sequence: SequenceFeature) -> str:
        return sequence.name if sequence.shares is None else sequence.shares

    def _buckets(self, owner: str) -> int | None:
        return next(f.hash for f in self.schema.features if f.name == owner and not isinstance(f, DenseFeature))

    def _number(self, owner: str) -> int:
        buckets = self._buckets(owner)
        return len(self.values[owner]) if buckets is None else buckets

    def _codes(self, owner: str, column: pd.Series) -> NDArray[np.int32]:
        index, values = _factorize(column, str(column.name))
        buckets = self._buckets(owner)
        if buckets is not None:
            # Not Python's hash, which differs from process to process
            codes = np.array([FIRST + zlib.crc32(str(value).encode()) % buckets for value in values], dtype=np.int32)
        else:
            if owner not in self._index:
                self._index[owner] = pd.Index(self.values[owner], dtype=object)
            learned = self._index[owner].get_indexer(pd.Index(values, dtype=object))
            codes = np.where(learned < 0, UNKNOWN, learned + FIRST).astype(np.int32)
        return np.append(codes, np.int32(MISSING))[index]  # a missing value has the index -1

    def _sequence(self, column: pd.Series, sequence: SequenceFeature) -> NDArray[np.int32]:
        flat, lengths = _flatten(column, sequence)
        codes = self._codes(self._owner(sequence), flat)
        out = np.full((len(column), sequence.max_len), PAD, dtype=np.int32)
        row = np.repeat(np.arange(len(column)), lengths)
        position = np.arange(len(codes)) - np.repeat(np.cumsum(lengths) - lengths, lengths)  # within its sequence
        out[row, sequence.max_len - np.repeat(lengths, lengths) + position] = codes
        return out

    def _numbers(self, frame: pd.DataFrame) -> NDArray[np.float64]:
        numbers = np.zeros((len(frame), len(self.schema.dense)))
        for d, feature in enumerate(self.schema.dense):
            column = frame[feature.name]
            try:
                numbers[:, d] = pd.to_numeric(column).to_numpy(dtype=np.float64, na_value=np.nan)
            except (TypeError, ValueError):
                raise DataError(
                    f"column {feature.name!r} is a DenseFeature and holds what is not a number: {_example(column)}"
                ) from None
            if np.isinf(numbers[:, d]).any():
                row = int(np.isinf(numbers[:, d]).argmax())
                raise DataError(f"column {feature.name!r} is infinite at row {row}: use a missing value, or clip")
        return numbers


def _flatten(column: pd.Series, sequence: SequenceFeature) -> tuple[pd.Series, NDArray[np.int64]]:
    """The newest entries of all rows one after the other, and the number that each row has."""
    kept: list[Any] = []
    lengths = np.zeros(len(column), dtype=np.int64)
    for row, value in enumerate(column.to_numpy(dtype=object)):
        if value is None or (isinstance(value, float) and np.isnan(value)):
            continue
        if not isinstance(value, list | tuple | np.ndarray):
            raise DataError(
                f"column {sequence.name!r} is a SequenceFeature and holds {value!r} at row {column.index[row]}, "
                "expected a list"
            )
        newest = list(value[-sequence.max_len :])
        kept += newest
        lengths[row] = len(newest)
    return pd.Series(kept, dtype=object, name=sequence.name), lengths


def _factorize(column: pd.Series, name: str) -> tuple[NDArray[np.intp], list[Any]]:
    """Index of every row among the distinct values (-1 where missing), and these as str, int, float or bool.

    Python code then runs once per distinct value, not once per row.
    """
    try:
        index, values = pd.factorize(column)
        distinct = values.tolist()
    except TypeError:  # lists, which _plain refuses by name
        index, distinct = np.arange(len(column)), column.tolist()
    return index, [_plain(value, name) for value in distinct]


def _plain(value: Any, name: str) -> Any:
    if isinstance(value, list | tuple | dict | set | np.ndarray):
        raise DataError(f"column {name!r} holds {value!r}, expected one category per row; lists need a SequenceFeature")
    return plain_value(value)


def _example(column: pd.Series) -> str:
    bad = column[pd.to_numeric(column, errors="coerce").isna() & column.notna()]
    return f"{bad.iloc[0]!r}" if len(bad) else str(column.dtype)
