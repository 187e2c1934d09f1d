"""Tables written to files in pieces."""

import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pandas.api.types import is_object_dtype

from moeapps.core.errors import ConfigError, DataError
from moeapps.core.files import atomic_write
from moeapps.core.tabledata.cells import is_missing_cell, shown

__all__ = ["TableWriter"]

_GROUP = 65_536
"""Rows of a row group that is written."""


class TableWriter:
    """A ``.csv`` or ``.parquet`` file that is written in pieces, and appears under its name only once it is complete.

    Use it in a ``with`` block; where that fails, what stood at the path before is left as it was.

    Parameters
    ----------
    path : str or path
        The file; its ending decides the form.

    Raises
    ------
    ConfigError
        If the ending is neither.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.suffix not in (".csv", ".parquet"):
            raise ConfigError(f"predictions are written to a .csv or .parquet file, got {str(path)!r}")
        self.rows = 0
        self._stack = ExitStack()
        self._waiting: list[pd.DataFrame] = []
        self._parquet: pq.ParquetWriter | None = None

    def __enter__(self) -> Self:
        self._file = self._stack.enter_context(atomic_write(self.path))
        return self

    def __exit__(self, *error: Any) -> bool | None:
        if error[0] is not None:
            if self._parquet is not None:
                self._parquet.close()  # else it tries to once the file is closed
            return self._stack.__exit__(*error)
        with self._stack:
            self._flush()
            if self._parquet is not None:
                self._parquet.close()
        return None

    def write(self, frame: pd.DataFrame) -> None:
        """Append rows; all pieces have the same columns."""
        self._waiting.append(frame)
        self.rows += len(frame)
        if sum(map(len, self._waiting)) >= _GROUP:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        frame = pd.concat(self._waiting, ignore_index=True)
        self._waiting = []
        if self.path.suffix == ".csv":
            frame.to_csv(self._file, index=False, header=self._file.tell() == 0)
            return
        frame = frame.assign(
            **{str(n): _storable(frame[n]) for n, kind in frame.dtypes.items() if is_object_dtype(kind)}
        )
        if self._parquet is None:
            table = pa.Table.from_pandas(frame, preserve_index=False)
            # a column that is all missing so far may hold anything later on, which text can hold
            kinds = [field.with_type(pa.string()) if pa.types.is_null(field.type) else field for field in table.schema]
            table = table.cast(pa.schema(kinds, table.schema.metadata))
            self._parquet = pq.ParquetWriter(self._file, table.schema)
        else:
            for field in self._parquet.schema:
                frame[field.name] = self._as_before(frame[field.name], field)
            table = pa.Table.from_pandas(frame, schema=self._parquet.schema, preserve_index=False)
        self._parquet.write_table(table)

    def _as_before(self, column: pd.Series, field: pa.Field) -> pd.Series:
        """Cells that fit the type which earlier rows of their column have in the file."""
        try:
            pa.array(column, field.type, from_pandas=True)
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
                return _texts(column)
            raise DataError(
                f"{self.path}: column {field.name!r} holds {field.type} in the first {_GROUP:,} rows and other cells, "
                f"such as {shown(_misfit(column, field.type))}, later: write a .csv file, which holds any cell"
            ) from None
        return column


def _misfit(column: pd.Series, kind: pa.DataType) -> Any:
    for value in column:
        try:
            pa.array([value], kind, from_pandas=True)
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            return value
    return None


def _storable(column: pd.Series) -> pd.Series:
    """Objects that Arrow has one type for as they are, others as text: whole numbers beyond 64 bits, mixed types."""
    for kind in (None, pa.uint64()):
        try:
            pa.array(column, kind, from_pandas=True)
        except (pa.ArrowException, OverflowError, TypeError):
            continue
        return column if kind is None else column.astype(pd.UInt64Dtype())
    return _texts(column)


def _texts(column: pd.Series) -> pd.Series:
    texts = [
        None if is_missing_cell(value) else value if isinstance(value, str) else json.dumps(value, default=str)
        for value in column
    ]
    return pd.Series(texts, index=column.index, dtype=object)
