"""Where events come from: files, standard input, frames. Every source can go back to a position.

A source is anything with ``read(n)`` and ``seek(position)``, a :class:`~moeapps.stream.io.events.Source`. A position is
a JSON value that stands in the checkpoint beside the model, so that a run that was killed goes on with the first event
that the model has not learned.
"""

import csv
import math
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd

from moeapps.core.errors import ConfigError, DataError, FileFormatError
from moeapps.core.files import existing_file
from moeapps.stream.io.events import Event, Source, parse_object
from moeapps.stream.io.kafka import KafkaSource

__all__ = ["OPENERS", "CSVSource", "Event", "FrameSource", "LinesSource", "ParquetSource", "Source", "open_source"]


class CSVSource:
    """A CSV file with a header, read record by record; the position is a byte offset.

    Cells that read as numbers are numbers, empty ones are missing, all others are text. A quoted cell may contain line
    breaks, a byte order mark is skipped. A record with another number of cells than the header is an error of that
    record alone.

    Parameters
    ----------
    path : str or Path
        The file, in UTF-8.

    Raises
    ------
    FileFormatError
        If the file is empty, or its header has a name twice.
    """

    endless = False

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file: BinaryIO = open(path, "rb")  # noqa: SIM115 - closed by close()
        self._offset = 0
        if self._file.read(3) == b"\xef\xbb\xbf":
            self._offset = 3
        self._file.seek(self._offset)
        self._lines = self._decoded()
        header = next(csv.reader(self._lines), None)
        if not header or header == [""]:
            self.close()
            raise FileFormatError(f"{path} is empty: expected a header with the names of the columns")
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice:
            self.close()
            raise FileFormatError(f"{path}, line 1: column {twice[0]!r} occurs twice")
        self.columns = header
        self._first = self._offset

    def _decoded(self) -> Iterator[str]:
        for line in self._file:
            self._offset += len(line)
            yield line.decode("utf-8", errors="surrogateescape")

    def read(self, n: int) -> list[Event]:
        """Up to ``n`` records."""
        found: list[Event] = []
        while len(found) < n:
            start = self._offset
            try:
                cells = next(csv.reader(self._lines, strict=True), None)
            except csv.Error as error:
                found.append(self._broken(start, f"not CSV: {error}"))
                continue
            if cells is None:
                break
            if not cells:  # an empty line
                continue
            if len(cells) != len(self.columns):
                found.append(self._broken(start, f"{len(cells)} cells, the header has {len(self.columns)}"))
                continue
            try:
                for cell in cells:
                    cell.encode("utf-8")
            except UnicodeEncodeError:
                found.append(self._broken(start, "not UTF-8"))
                continue
            fields = dict(zip(self.columns, map(_value, cells), strict=True))
            found.append(Event(self._offset, fields, where=f"byte {start}"))
        return found

    def _broken(self, start: int, error: str) -> Event:
        """Report the first line of a bad record and continue after it: a stray quote must not consume the rest."""
        self._file.seek(start)
        line = self._file.readline()
        self._offset = start + len(line)
        self._lines = self._decoded()
        raw = line[:2000].decode("utf-8", errors="replace").rstrip("\r\n")
        return Event(self._offset, None, error, raw, f"byte {start}")

    def seek(self, position: Any) -> None:
        """Go on at this byte; None for the first record."""
        self._offset = self._first if position is None else int(position)
        self._file.seek(self._offset)
        self._lines = self._decoded()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _value(cell: str) -> Any:
    if cell == "":
        return None
    try:
        number = float(cell)
    except ValueError:
        return cell
    if not math.isfinite(number) and cell.strip().lower().lstrip("+-") not in ("nan", "inf", "infinity"):
        return number  # 1e999
    return None if math.isnan(number) else int(number) if cell.lstrip("+-").isdigit() else number


class LinesSource:
    """One JSON object a line (NDJSON), from a file or from standard input.

    The position is the number of lines read. Standard input cannot go back: to resume, the same lines have to be sent
    again, and those that were read before are skipped.

    Parameters
    ----------
    source : str or Path or BinaryIO
        A file name, or an open binary stream.
    name : str, optional
        What it is called in messages.
    """

    endless = False

    def __init__(self, source: str | Path | BinaryIO, name: str | None = None) -> None:
        self.name = name or str(source)
        self._file: BinaryIO = open(source, "rb") if isinstance(source, str | Path) else source  # noqa: SIM115
        self._count = 0
        self._skip = 0

    def read(self, n: int) -> list[Event]:
        """Up to ``n`` lines."""
        found: list[Event] = []
        while len(found) < n:
            line = self._file.readline()
            if not line:
                break
            self._count += 1
            if self._count <= self._skip or not line.strip():
                continue
            found.append(parse_object(line, self._count, f"line {self._count}"))
        return found

    def seek(self, position: Any) -> None:
        """Skip what was read before."""
        self._skip = 0 if position is None else int(position)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class ParquetSource:
    """A Parquet file, read in row groups; the position is the number of rows read.

    Parameters
    ----------
    path : str or Path
        The file.

    Raises
    ------
    FileFormatError
        If it is not a Parquet file.
    """

    endless = False

    def __init__(self, path: str | Path) -> None:
        import pyarrow.parquet as pq
        from pyarrow import ArrowInvalid

        try:
            self._file = pq.ParquetFile(path)
        except (ArrowInvalid, OSError) as error:
            raise FileFormatError(f"{path} is not a Parquet file: {error}") from None
        self._row = 0
        self._rows: Iterator[dict[str, Any]] = iter(())
        self.seek(None)

    def _from(self, start: int) -> Iterator[dict[str, Any]]:
        done = 0
        for group in range(self._file.num_row_groups):
            size = self._file.metadata.row_group(group).num_rows
            if done + size > start:
                for batch in self._file.iter_batches(1024, row_groups=[group]):
                    rows = batch.to_pylist()
                    yield from rows[max(0, start - done) :]
                    done += len(rows)
            else:
                done += size

    def read(self, n: int) -> list[Event]:
        """Up to ``n`` rows."""
        found: list[Event] = []
        for fields in self._rows:
            self._row += 1
            found.append(Event(self._row, fields, where=f"row {self._row}"))
            if len(found) == n:
                break
        return found

    def seek(self, position: Any) -> None:
        """Go on after so many rows."""
        self._row = int(position or 0)
        self._rows = self._from(self._row)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class FrameSource:
    """The rows of a frame, what is missing as None; the position is the number of rows read.

    Parameters
    ----------
    frame : DataFrame
        The frame; columns are fields.
    """

    endless = False

    def __init__(self, frame: pd.DataFrame) -> None:
        if not isinstance(frame, pd.DataFrame):
            raise DataError(f"frame must be a pandas DataFrame, got {type(frame).__name__}")
        self.frame, self._row = frame, 0

    def read(self, n: int) -> list[Event]:
        """Up to ``n`` rows."""
        rows = self.frame.iloc[self._row : self._row + n]
        part = rows.astype(object).where(rows.notna(), None).to_dict("records")
        first = self._row + 1
        self._row += len(part)
        return [
            Event(first + i, {str(name): value for name, value in row.items()}, where=f"row {first + i}")
            for i, row in enumerate(part)
        ]

    def seek(self, position: Any) -> None:
        """Go on after so many rows."""
        self._row = int(position or 0)

    def close(self) -> None:
        """Nothing to close."""


OPENERS: dict[str, Callable[[Path], Source]] = {
    ".csv": CSVSource,
    ".parquet": ParquetSource,
    ".ndjson": LinesSource,
    ".jsonl": LinesSource,
}
"""Source of a file, by the ending of its name."""


def open_source(source: str) -> Source:
    """Source by what a user writes: ``file.csv``, ``file.parquet``, ``file.ndjson``, ``-``, ``kafka://host:port/topic``.

    Raises
    ------
    ConfigError
        If the kind is unknown.
    FileNotFoundError
        If there is no such file.
    """
    if source == "-":
        return LinesSource(sys.stdin.buffer, "standard input")
    if source.startswith("kafka://"):
        return KafkaSource(source)
    ending = Path(source).suffix.lower()
    if re.match(r"^[a-z][a-z0-9+.-]*://", source) or ending not in OPENERS:
        raise ConfigError(
            f"--source {source}: expected a .csv, .parquet, .ndjson or .jsonl file, - for NDJSON on standard input, or "
            "kafka://host:port/topic"
        )
    return OPENERS[ending](existing_file(source, "a source of events"))
