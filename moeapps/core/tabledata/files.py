"""Tables in files of any size, read in batches of rows: CSV, Parquet, NDJSON, compressed or in parts."""

import codecs
import io
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq

from moeapps.core.checks import check_sizes
from moeapps.core.errors import DataError, FileFormatError
from moeapps.core.tabledata.cells import missing_texts, other_separator, spaces_in_header
from moeapps.core.tabledata.copies import CellsCopy
from moeapps.core.tabledata.frames import arrow_to_frame
from moeapps.core.tabledata.kinds import ColumnKind
from moeapps.core.tabledata.numbers import to_numbers
from moeapps.core.tabledata.parts import COMPRESSED, ENDINGS, PartPath, file_ending, part_paths
from moeapps.core.tabledata.urls import is_url, local_path

__all__ = ["ENDINGS", "TableFile", "file_ending"]

_BLOCK = 16_000_000
"""Bytes of a CSV file that are in memory at once; a record may not be longer."""


class TableFile:
    """A file or a folder of files whose rows come in batches, so that it may be larger than memory.

    Parquet and NDJSON have types. The cells of a CSV file are text, exactly as they stand there, also ``NA`` and the
    empty cell, except in columns that ``kinds`` calls numbers, which are read as such.

    Parameters
    ----------
    path : str or path
        A ``.csv`` or ``.tsv`` file in UTF-8 with a header, ``.ndjson`` or ``.jsonl`` with an object per line (all of
        these also ending in ``.gz``, ``.bz2`` or ``.zst``), ``.parquet``; or a folder of such files with the same
        columns, or a pattern that names them (``parts/*.csv``), which are read in the order of their names; or a URL
        of these (``s3://bucket/*.parquet``), by the user's own plugin of fsspec.
    batch_rows : int, default=65536
        Rows of a batch, at most.
    kinds : mapping of str to ColumnKind, optional
        What columns are, as a model knows.
    missing : frozenset of str, optional
        Texts that mean a missing number; those of pandas by default.
    copy_to : Path, optional
        Empty folder of this process's own. A CSV file is parsed once, when it is opened, and its cells are copied
        there; every pass reads the copy. Parquet and NDJSON are not copied.
    copied : sequence of str, optional
        Columns of a CSV file that are copied, where it has them; all when None. A pass over others parses the file.

    Attributes
    ----------
    columns : list of str
        Names of the columns.
    untyped : bool
        Whether its cells are text.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileFormatError
        If it is not a table, is empty, its header has a name twice, or the parts of a folder differ.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        batch_rows: int = 65_536,
        kinds: Mapping[str, ColumnKind] | None = None,
        missing: frozenset[str] | None = None,
        copy_to: Path | None = None,
        copied: Sequence[str] | None = None,
    ) -> None:
        check_sizes(batch_rows=batch_rows)
        self.copy_to, self.copied = copy_to, copied
        self.path: str | Path = str(path) if is_url(path) else Path(local_path(path))
        self.batch_rows = batch_rows
        self.kinds = dict(kinds or {})
        self.missing = missing_texts() if missing is None else missing
        self._parts = [_open_part(part, self, i) for i, part in enumerate(part_paths(path))]
        first = self._parts[0]
        self.columns, self.untyped = first.columns, isinstance(first, _TextPart)
        for part in self._parts[1:]:
            if sorted(part.columns) != sorted(self.columns):
                differing = sorted(set(part.columns) ^ set(self.columns))
                raise FileFormatError(f"{path}: {part.path.name} and {first.path.name} differ in {differing[0]!r}")
        twice = sorted({name for name in self.columns if self.columns.count(name) > 1})
        if twice:
            raise FileFormatError(f"{path}: the header has {twice[0]!r} more than once")
        if self.untyped and (note := spaces_in_header(self.columns)) is not None:
            warnings.warn(f"{path}: {note}", UserWarning, stacklevel=2)

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
        for part in self._parts:
            for table in part.frames(names):
                for first in range(0, len(table), self.batch_rows):
                    piece = table.iloc[first : first + self.batch_rows].reset_index(drop=True)
                    piece.index = pd.RangeIndex(start, start + len(piece))
                    start += len(piece)
                    yield piece
        if start == 0:
            yield pd.DataFrame(columns=pd.Index(names))

    def count_rows(self) -> int:
        """Number of rows; those of a text file are counted."""
        return sum(part.count_rows() for part in self._parts)


class _Part:
    """One file."""

    columns: list[str]

    def __init__(self, path: PartPath, table: TableFile, number: int) -> None:
        self.path, self.table = path, table
        self.copy_path = None if table.copy_to is None else table.copy_to / str(number)

    def frames(self, names: list[str]) -> Iterator[pd.DataFrame]:
        """The rows of these columns."""
        raise NotImplementedError

    def count_rows(self) -> int:
        """Number of rows."""
        raise NotImplementedError


class _TextPart(_Part):
    """CSV or TSV."""

    def __init__(self, path: PartPath, table: TableFile, number: int) -> None:
        super().__init__(path, table, number)
        self._copy: CellsCopy | None = None
        self._delimiter = "\t" if file_ending(path) == ".tsv" else ","
        try:
            self.columns = list(self._open(_BLOCK).schema.names)
        except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:  # the last one is of the header
            if "Empty CSV" in str(error):
                raise FileFormatError(f"{path} is empty: expected a header with the names of the columns") from None
            # decimal commas make records longer than a header without commas, so that the first record is an error
            alone = isinstance(error, UnicodeDecodeError) or re.match(
                r".*?parse error: .*?Expected 1 columns", str(error)
            )
            header = self._header().split(self._delimiter) if alone else []
            if header and (fault := self._other_delimiter(header)) is not None:
                raise fault from None
            raise self._error(error) from None
        if (fault := self._other_delimiter(self.columns)) is not None:
            raise fault
        if self.copy_path is not None and len(set(self.columns)) == len(self.columns):
            names = [name for name in self.columns if table.copied is None or name in table.copied]
            # without any column there is still the number of rows to know
            names = names or self.columns[:1]
            try:
                self._copy = CellsCopy(self.copy_path, names, self._batches(names, []))
            except (pa.ArrowInvalid, OSError) as error:
                raise self._error(error) from None

    def frames(self, names: list[str]) -> Iterator[pd.DataFrame]:
        """Numbers where the kinds say so, else text."""
        numbers = [name for name in names if self.table.kinds.get(name) == "number"]
        done = 0
        try:
            for batch in self._batches(names, numbers):
                yield _as_frame(pa.Table.from_batches([batch]), names, numbers)
                done += batch.num_rows
            return
        except (pa.ArrowInvalid, OSError) as error:
            if "conversion error" not in str(error):
                raise self._error(error) from None
        yield from self._frames_of_text(names, numbers, done)

    def _frames_of_text(self, names: list[str], numbers: list[str], done: int) -> Iterator[pd.DataFrame]:
        """From row ``done`` on, numbers read from text: slower, forgives spaces and signs, and names a wrong cell."""
        record = 2
        try:
            for batch in self._batches(names, []):
                frame = _as_frame(pa.Table.from_batches([batch]), names, []).iloc[max(0, done - record + 2) :]
                frame.index = pd.RangeIndex(record + batch.num_rows - len(frame), record + batch.num_rows)
                record += batch.num_rows
                for name in numbers if len(frame) else ():
                    try:
                        frame[name] = to_numbers(frame[name], self.table.missing, name)
                    except DataError as error:
                        found = re.match(r"column .*?, row (\d+): (.*)", str(error), re.DOTALL)
                        where = f"record {found[1]} (the header is record 1), column {name!r}: " if found else ""
                        raise DataError(f"{self.path}, {where}{found[2] if found else error}") from None
                yield frame
        except (pa.ArrowInvalid, OSError) as error:
            raise self._error(error) from None

    def count_rows(self) -> int:
        """Number of records."""
        if self._copy is not None:
            return self._copy.rows
        try:
            return sum(batch.num_rows for batch in self._batches(self.columns[:1], []))
        except (pa.ArrowInvalid, OSError) as error:
            raise self._error(error) from None

    def _batches(self, names: list[str], numbers: list[str]) -> Iterator[pa.RecordBatch]:
        if self._copy is not None and self._copy.names.issuperset(names):
            yield from self._copy.batches(names, numbers, self.table.missing)
            return
        types = {name: pa.float64() if name in numbers else pa.string() for name in names}
        yield from self._open(_BLOCK, names, types)

    def _open(
        self, block: int, names: list[str] | None = None, types: dict[str, Any] | None = None
    ) -> arrow_csv.CSVStreamingReader:
        return arrow_csv.open_csv(
            self.path if isinstance(self.path, Path) else _input(self.path),
            read_options=arrow_csv.ReadOptions(block_size=block),
            parse_options=arrow_csv.ParseOptions(newlines_in_values=True, delimiter=self._delimiter),
            convert_options=arrow_csv.ConvertOptions(
                strings_can_be_null=False,
                null_values=sorted(self.table.missing),
                include_columns=names,
                column_types=types,
            ),
        )

    def _error(self, error: Exception) -> FileFormatError:
        if isinstance(error, OSError) and not isinstance(error, pa.ArrowInvalid):
            return FileFormatError(f"{self.path} is damaged, or not what its ending says: {error}")
        text = f"{str(error).replace('Row #', 'record ')} (the header is record 1)"
        if isinstance(error, UnicodeDecodeError):
            text = f"the header is {self._header()[:60]!r} in another encoding"
        encoding = self._beginning()[1]
        if encoding == "utf-8" and "invalid UTF8" in text:  # far down in the file
            encoding = "latin-1"
        if encoding != "utf-8":
            text += f": the file is not UTF-8. {_rewritten(_encoding(encoding))}"
        return FileFormatError(f"{self.path}: {text}")

    def _beginning(self) -> tuple[str, str]:
        """The first part of the file as text, and its encoding."""
        with io.BufferedReader(_input(self.path)) as stream:
            block = stream.read(_BLOCK)
        if block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # a spreadsheet's "Unicode text"
            return block.decode("utf-16", errors="replace"), "utf-16"
        try:  # a character may be cut off at the end
            return codecs.getincrementaldecoder("utf-8-sig")().decode(block), "utf-8"
        except UnicodeDecodeError:
            return block.decode("latin-1"), "latin-1"

    def _header(self) -> str:
        return self._beginning()[0].partition("\n")[0].rstrip("\r")

    def _other_delimiter(self, columns: list[str]) -> FileFormatError | None:
        fault = other_separator(columns, self._delimiter)
        if fault is None:
            return None
        delimiter = fault.rpartition("looks separated by ")[2].partition(":")[0]
        # a spreadsheet that separates by semicolons does so since it writes 1,5 for 1.5
        how = f"sep={delimiter}" + (', decimal=","' if ";" in delimiter else "")
        encoding = self._beginning()[1]
        how += f", {_encoding(encoding)}" if encoding != "utf-8" else ""
        return FileFormatError(f"{self.path}: {fault}, a .tsv file by tabs. {_rewritten(how)}")


class _ParquetPart(_Part):
    def __init__(self, path: PartPath, table: TableFile, number: int) -> None:
        super().__init__(path, table, number)
        try:
            self._file = pq.ParquetFile(path if isinstance(path, Path) else path.open())
        except (pa.ArrowInvalid, OSError) as error:
            raise FileFormatError(f"{path} is not a Parquet file: {error}") from None
        self.columns = list(self._file.schema_arrow.names)

    def frames(self, names: list[str]) -> Iterator[pd.DataFrame]:
        """Columns of Arrow's types."""
        try:
            for batch in self._file.iter_batches(self.table.batch_rows, columns=names):
                yield arrow_to_frame(pa.Table.from_batches([batch]))[names]
        except (pa.ArrowInvalid, OSError) as error:
            raise FileFormatError(f"{self.path} is damaged or not a Parquet file: {error}") from None

    def count_rows(self) -> int:
        """Number of rows, which the file knows."""
        return int(self._file.metadata.num_rows)


class _LinesPart(_Part):
    """NDJSON. A name that a line lacks is missing in its row."""

    def __init__(self, path: PartPath, table: TableFile, number: int) -> None:
        super().__init__(path, table, number)
        names: dict[str, None] = {}
        for fields in self._objects():
            names.update(dict.fromkeys(fields))
        if not names:
            raise FileFormatError(f"{path} is empty: expected one JSON object per line")
        self.columns = list(names)

    def frames(self, names: list[str]) -> Iterator[pd.DataFrame]:
        """Python's values as objects: whole numbers of any length are exact."""
        rows: list[dict[str, Any]] = []
        for fields in self._objects():
            rows.append(fields)
            if len(rows) == self.table.batch_rows:
                yield _objects_frame(rows, names)
                rows = []
        if rows:
            yield _objects_frame(rows, names)

    def count_rows(self) -> int:
        """Number of lines that are not empty."""
        return sum(1 for _ in self._objects())

    def _objects(self) -> Iterator[dict[str, Any]]:
        with io.BufferedReader(_input(self.path)) as stream:
            for number, line in enumerate(self._lines(stream), 1):
                if not line.strip():
                    continue
                try:
                    fields = json.loads(line, parse_constant=_refuse_constant)
                except (ValueError, RecursionError) as error:
                    raise FileFormatError(f"{self.path}, line {number}: not JSON: {error}") from None
                if not isinstance(fields, dict):
                    raise FileFormatError(f"{self.path}, line {number}: expected a JSON object, got {line[:60]!r}")
                yield fields

    def _lines(self, stream: io.BufferedReader) -> Iterator[bytes]:
        try:
            yield from stream
        except OSError as error:
            raise FileFormatError(f"{self.path} is damaged, or not what its ending says: {error}") from None


def _encoding(name: str) -> str:
    return f'encoding="{name}"'


def _rewritten(how: str) -> str:
    """What to do with a file in another form."""
    return f"Write it anew: pandas.read_csv(path, {how}).to_csv(new, index=False)"


def _input(path: PartPath) -> pa.NativeFile:
    """A text file as Arrow reads it, decompressed."""
    if isinstance(path, Path):
        return pa.input_stream(str(path), compression="detect")
    compression = pa.Codec.detect(path.name).name if path.name.lower().endswith(COMPRESSED) else None
    return pa.input_stream(path.open(), compression=compression)


def _open_part(path: PartPath, table: TableFile, number: int) -> _Part:
    kinds: dict[str, type[_Part]] = {".parquet": _ParquetPart, ".ndjson": _LinesPart, ".jsonl": _LinesPart}
    return kinds.get(file_ending(path), _TextPart)(path, table, number)


def _as_frame(table: pa.Table, names: list[str], numbers: list[str]) -> pd.DataFrame:
    types = {name: np.float64 if name in numbers else pd.ArrowDtype(pa.string()) for name in names}
    columns: dict[str, Any] = {}
    for name in names:
        column = table.column(name)
        columns[name] = column.to_numpy() if name in numbers else pd.array(column, dtype=types[name])
    return pd.DataFrame(columns, columns=pd.Index(names), copy=False)


def _objects_frame(rows: list[dict[str, Any]], names: list[str]) -> pd.DataFrame:
    columns = {}
    for name in names:
        values = np.empty(len(rows), dtype=object)
        values[:] = [row.get(name) for row in rows]
        columns[name] = pd.Series(values, dtype=object)
    return pd.DataFrame(columns, columns=pd.Index(names))


def _refuse_constant(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON: a missing number is null")
