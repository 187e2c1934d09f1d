"""Tables written to files in pieces."""

import os
import secrets
import shutil
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Self

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pandas.api.types import is_object_dtype

from moeapps.core.errors import ConfigError, DataError
from moeapps.core.files import atomic_write
from moeapps.core.json_text import json_text
from moeapps.core.tabledata.cells import is_missing_cell, shown
from moeapps.core.tabledata.urls import filesystem, is_url, local_path, removed, uploaded

__all__ = ["PartsWriter", "TableWriter", "table_writer"]

_GROUP = 65_536
"""Rows of a row group that is written."""


class TableWriter:
    """A ``.csv`` or ``.parquet`` file that is written in pieces, and appears under its name only once it is complete.

    Use it in a ``with`` block; where that fails, what stood at the path before is left as it was.

    Parameters
    ----------
    path : str or path
        The file, or a URL of fsspec; its ending decides the form.
    schema : Schema, optional
        Of a Parquet file, where other files have it already; that of the first rows when None.

    Attributes
    ----------
    rows : int
        Number of rows written.
    schema : Schema or None
        Of the Parquet file, once it has rows.

    Raises
    ------
    ConfigError
        If the ending is neither.
    """

    def __init__(self, path: str | os.PathLike[str], schema: pa.Schema | None = None) -> None:
        self.path: str | Path = str(path) if is_url(path) else Path(local_path(path))
        self._ending = PurePosixPath(path).suffix
        if self._ending not in (".csv", ".parquet"):
            raise ConfigError(f"predictions are written to a .csv or .parquet file, got {str(path)!r}")
        self.rows, self.schema = 0, schema
        self._stack = ExitStack()
        self._waiting: list[pd.DataFrame] = []
        self._parquet: pq.ParquetWriter | None = None

    def __enter__(self) -> Self:
        target: AbstractContextManager[BinaryIO]
        target = uploaded(self.path) if isinstance(self.path, str) else atomic_write(self.path)
        self._file = self._stack.enter_context(target)
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
        if self._ending == ".csv":
            frame.to_csv(self._file, index=False, header=self._file.tell() == 0)
            return
        frame = frame.assign(
            **{str(n): _storable(frame[n]) for n, kind in frame.dtypes.items() if is_object_dtype(kind)}
        )
        if self.schema is None:
            table = pa.Table.from_pandas(frame, preserve_index=False)
            # a column that is all missing so far may hold anything later on, which text can hold
            kinds = [field.with_type(pa.string()) if pa.types.is_null(field.type) else field for field in table.schema]
            self.schema = pa.schema(kinds, table.schema.metadata)
            table = table.cast(self.schema)
        else:
            for field in self.schema:
                frame[field.name] = self._as_before(frame[field.name], field)
            table = pa.Table.from_pandas(frame, schema=self.schema, preserve_index=False)
        if self._parquet is None:
            self._parquet = pq.ParquetWriter(self._file, self.schema)
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


class PartsWriter:
    """A folder of Parquet files ``part-00000.parquet``, ``part-00001.parquet``, ... that is written in pieces.

    Use it in a ``with`` block. A folder of this machine appears under its name only once it is complete. Behind a URL
    parts are sent as they are complete, and an empty file ``_SUCCESS`` after the last one, as Spark has it; where the
    block fails they are removed.

    Parameters
    ----------
    path : str or path
        The folder, which must not hold anything yet; or a URL of fsspec.
    part_rows : int, default=1,048,576
        Rows of a file; the last one has fewer, others up to a piece more.

    Attributes
    ----------
    rows : int
        Number of rows written.

    Raises
    ------
    ConfigError
        If there is something at the path.
    """

    def __init__(self, path: str | os.PathLike[str], part_rows: int = 1_048_576) -> None:
        self.rows, self.part_rows = 0, part_rows
        self._url = is_url(path)
        self.path = os.fspath(path).rstrip("/") if self._url else os.path.abspath(local_path(path))
        if self._url:
            system, inner = filesystem(self.path)
            taken = system.exists(inner) and (system.isfile(inner) or bool(system.ls(inner)))
        else:
            taken = os.path.exists(self.path) and (not os.path.isdir(self.path) or bool(os.listdir(self.path)))
        if taken:
            raise ConfigError(f"{path} is not an empty folder: name another one to write to")
        head, name = os.path.split(self.path)
        # in the same folder: a move between file systems is a copy
        self._folder = self.path if self._url else os.path.join(head, f".{name}.{secrets.token_hex(4)}.moeapps-tmp")
        self._parts: list[TableWriter] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> bool | None:
        try:
            if self._parts:
                self._parts[-1].__exit__(*error)
            if error[0] is not None:
                self._remove()
            elif self._url:
                with uploaded(f"{self.path}/_SUCCESS"):
                    pass
            else:
                os.makedirs(self._folder, exist_ok=True)
                os.replace(self._folder, self.path)  # an empty folder there gives way
        except BaseException:
            self._remove()
            raise
        return None

    def _remove(self) -> None:
        if not self._url:
            shutil.rmtree(self._folder, ignore_errors=True)
            return
        for part in self._parts:
            removed(str(part.path))

    def write(self, frame: pd.DataFrame) -> None:
        """Append rows; all pieces have the same columns."""
        if not self._parts or self._parts[-1].rows >= self.part_rows:
            schema = None
            if self._parts:
                self._parts[-1].__exit__(None, None, None)
                schema = self._parts[-1].schema
            part = TableWriter(f"{self._folder}/part-{len(self._parts):05d}.parquet", schema)
            self._parts.append(part.__enter__())
        self._parts[-1].write(frame)
        self.rows += len(frame)


def table_writer(path: str | os.PathLike[str]) -> TableWriter | PartsWriter:
    """What writes a table to a path: a folder of parts where it ends with a slash or is one, else a file.

    Raises
    ------
    ConfigError
        As :class:`TableWriter` and :class:`PartsWriter`.
    """
    name = os.fspath(path)
    return PartsWriter(path) if name.endswith("/") or os.path.isdir(local_path(path)) else TableWriter(path)


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
        None if is_missing_cell(value) else value if isinstance(value, str) else json_text(value, default=str)
        for value in column
    ]
    return pd.Series(texts, index=column.index, dtype=object)
