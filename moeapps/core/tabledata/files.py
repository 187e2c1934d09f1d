"""Tables in files of any size: CSV and Parquet, read and written in batches of rows."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, Self

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq

from moeapps.core.checks import check_sizes
from moeapps.core.errors import ConfigError, DataError, FileFormatError
from moeapps.core.files import atomic_write, existing_file

__all__ = ["ColumnKind", "TableFile", "TableWriter", "kind_of"]

ColumnKind = Literal["number", "whole", "bool", "list", "text"]
"""What the cells of a CSV column are."""

_NOT_A_NUMBER = ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "None"]
_PATTERNS = (
    ("whole", r"^(-?[1-9]\d{0,17}|0)$"),
    ("number", r"^[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?$"),
    ("list", r"^\[[\s\S]*\]$"),
)
_BLOCK = 16_000_000
"""Bytes of a CSV file that are in memory at once; a record may not be longer."""

_GROUP = 65_536
"""Rows of a row group that is written."""


def kind_of(categories: Sequence[Any]) -> ColumnKind:
    """What a CSV column has to be read as, so that these categories are found again."""
    if not categories:
        return "text"
    if all(isinstance(value, bool) for value in categories):
        return "bool"
    if all(isinstance(value, int) for value in categories):
        return "whole"
    return "number" if all(isinstance(value, int | float) for value in categories) else "text"


class TableFile:
    """A ``.csv`` or ``.parquet`` file whose rows come in batches, so that it may be larger than memory.

    A Parquet file declares the types of its columns. A CSV file does not: where ``kinds`` does not either, the file is
    read once to find out. A column is ``"whole"`` if all its cells are whole numbers without leading zeros,
    ``"number"`` if all are numbers, ``"list"`` if all are JSON lists, and ``"text"`` otherwise. An empty cell is
    missing; ``NA`` and the like are missing among numbers, and text among text. ``"bool"`` is never guessed.

    Parameters
    ----------
    path : str or path
        The file; a CSV file is UTF-8, with a header.
    batch_rows : int, default=65536
        Rows of a batch, at most.
    kinds : mapping of str to ColumnKind, optional
        What columns of a CSV file hold. A cell of a whole, bool or list column that is something else stays text; a
        cell of a number column that is none is an error.

    Attributes
    ----------
    columns
        Names of the columns.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileFormatError
        If it is neither, empty, or its header has a name twice.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        batch_rows: int = 65_536,
        kinds: Mapping[str, ColumnKind] | None = None,
    ) -> None:
        check_sizes(batch_rows=batch_rows)
        self.path = existing_file(path, "a .csv or .parquet file")
        self.batch_rows = batch_rows
        ending = self.path.suffix.lower()
        if ending not in (".csv", ".parquet"):
            raise FileFormatError(f"{path}: expected a .csv or .parquet file")
        self._is_csv = ending == ".csv"
        self._kinds = dict(kinds or {})
        self.columns = self._read_header()
        twice = sorted({name for name in self.columns if self.columns.count(name) > 1})
        if twice:
            raise FileFormatError(f"{path}: the header has {twice[0]!r} more than once")

    def batches(self, columns: list[str] | None = None) -> Iterator[pd.DataFrame]:
        """The rows, some at a time; the index counts them from 0. Without any rows, one empty frame.

        Parameters
        ----------
        columns : list of str, optional
            Only these.

        Raises
        ------
        FileFormatError
            Naming file and record, if a record has another number of cells than the header, or is not UTF-8.
        DataError
            Naming file, record and column, if a cell of a number column is none.
        """
        start = 0
        names = self.columns if columns is None else columns
        for table in self._csv_batches(names) if self._is_csv else self._parquet_batches(names):
            for first in range(0, len(table), self.batch_rows):
                part = table.iloc[first : first + self.batch_rows].reset_index(drop=True)
                part.index = pd.RangeIndex(start, start + len(part))
                start += len(part)
                yield part
        if start == 0:
            yield pd.DataFrame(columns=pd.Index(names))

    def count_rows(self) -> int:
        """Number of rows; of a CSV file it is counted."""
        if not self._is_csv:
            return int(pq.ParquetFile(self.path).metadata.num_rows)
        return sum(batch.num_rows for batch in self._texts(self.columns[:1]))

    def _read_header(self) -> list[str]:
        try:
            if self._is_csv:
                return list(self._open_csv(_BLOCK).schema.names)
            return list(pq.ParquetFile(self.path).schema_arrow.names)
        except pa.ArrowInvalid as error:
            if self._is_csv and "Empty CSV" in str(error):
                raise FileFormatError(
                    f"{self.path} is empty: expected a header with the names of the columns"
                ) from None
            if self._is_csv:
                raise self._csv_error(error) from None
            raise FileFormatError(f"{self.path} is not a Parquet file: {error}") from None

    def _csv_error(self, error: Exception) -> FileFormatError:
        text = str(error).replace("Row #", "record ")
        return FileFormatError(f"{self.path}: {text} (the header is record 1)")

    def _open_csv(self, block: int, names: list[str] | None = None) -> arrow_csv.CSVStreamingReader:
        return arrow_csv.open_csv(
            self.path,
            read_options=arrow_csv.ReadOptions(use_threads=False, block_size=block),
            parse_options=arrow_csv.ParseOptions(newlines_in_values=True),
            convert_options=arrow_csv.ConvertOptions(
                strings_can_be_null=False,
                include_columns=names,
                column_types={name: pa.string() for name in names or ()},
            ),
        )

    def _texts(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        """Every cell as text."""
        try:
            yield from self._open_csv(_BLOCK, names)
        except pa.ArrowInvalid as error:
            raise self._csv_error(error) from None

    def _csv_batches(self, names: list[str]) -> Iterator[pd.DataFrame]:
        kinds = self._find_kinds(names)
        record = 2
        for batch in self._texts(names):
            columns = {name: self._convert(name, batch.column(name), kinds[name], record) for name in names}
            record += batch.num_rows
            yield pd.DataFrame(columns, columns=pd.Index(names))

    def _parquet_batches(self, names: list[str]) -> Iterator[pd.DataFrame]:
        nullable: dict[Any, Any] = {pa.int64(): pd.Int64Dtype(), pa.int32(): pd.Int32Dtype()}  # exact beside missing
        file = pq.ParquetFile(self.path)
        try:
            for batch in file.iter_batches(self.batch_rows, columns=names):
                yield batch.to_pandas(types_mapper=nullable.get)[names]
        except (pa.ArrowInvalid, OSError) as error:
            raise FileFormatError(f"{self.path} is damaged or not a Parquet file: {error}") from None

    def _find_kinds(self, names: list[str]) -> dict[str, ColumnKind]:
        """Read the file once for the columns of which nothing is known."""
        unknown = [name for name in names if name not in self._kinds]
        possible: dict[str, set[str]] = {name: {kind for kind, _ in _PATTERNS} for name in unknown}
        seen = dict.fromkeys(unknown, False)
        for batch in self._texts(unknown) if unknown else ():
            for name in unknown:
                cells = batch.column(name)
                empty = pc.is_in(cells, pa.array(_NOT_A_NUMBER))
                for kind, pattern in _PATTERNS:
                    if (
                        kind in possible[name]
                        and not pc.all(pc.or_(empty, pc.match_substring_regex(cells, pattern)), min_count=0).as_py()
                    ):
                        possible[name].discard(kind)
                seen[name] |= not pc.all(empty, min_count=0).as_py()
        for name in unknown:
            found = next((kind for kind, _ in _PATTERNS if kind in possible[name]), "text")
            self._kinds[name] = found if seen[name] else "text"  # type: ignore[assignment]
        return self._kinds

    def _convert(self, name: str, cells: pa.Array, kind: ColumnKind, record: int) -> pd.Series:
        if kind == "number":
            cells = pc.utf8_trim_whitespace(cells)
            known = pc.if_else(pc.is_in(cells, pa.array(_NOT_A_NUMBER)), None, cells)
            try:
                return pc.cast(known, pa.float64()).to_pandas()
            except pa.ArrowInvalid:
                column = known.to_pandas()
                wrong = (pd.to_numeric(column, errors="coerce").isna() & column.notna()).to_numpy()
                if not wrong.any():
                    return pd.to_numeric(column).astype(float)
                row = int(wrong.argmax())
                raise DataError(
                    f"{self.path}, record {record + row} (the header is record 1), column {name!r}: "
                    f"{column.iloc[row]!r} is not a number"
                ) from None
        if kind == "text":
            return pc.if_else(pc.equal(cells, ""), None, cells).to_pandas()
        known = pc.if_else(pc.is_in(cells, pa.array(_NOT_A_NUMBER)), None, cells)
        if kind == "whole":
            try:
                return pc.cast(known, pa.int64()).to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
            except pa.ArrowInvalid:
                return known.to_pandas().map(_whole, na_action="ignore").astype(object)
        return known.to_pandas().astype(object).map(_list if kind == "list" else _bool, na_action="ignore")


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
        if self._parquet is None:
            table = pa.Table.from_pandas(frame, preserve_index=False)
            self._parquet = pq.ParquetWriter(self._file, table.schema)
        else:
            table = pa.Table.from_pandas(frame, schema=self._parquet.schema, preserve_index=False)
        self._parquet.write_table(table)


def _whole(cell: str) -> int | str:
    try:
        return int(cell)
    except ValueError:
        return cell


def _bool(cell: str) -> bool | str:
    return {"true": True, "false": False, "1": True, "0": False}.get(cell.lower(), cell)


def _list(cell: str) -> Any:
    try:
        return json.loads(cell)
    except ValueError:
        return cell
