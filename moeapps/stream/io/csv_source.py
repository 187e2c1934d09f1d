"""CSV files as a source: records, whose columns keep the kind that was decided at the beginning.

1. :class:`~moeapps.stream.io.lines.LineReader` gives complete lines; a quoted cell joins several to a record.
2. A sample of the first records decides the kind of every column (:mod:`moeapps.stream.io.columns`).
3. A record that is broken, or has a cell of another kind than its column, becomes an event with an error.
"""

import csv
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moeapps.core.errors import ConfigError, DataError, FileFormatError
from moeapps.core.tabledata.cells import MISSING_VALUES, other_separator, spaces_in_header
from moeapps.stream.io.columns import Columns
from moeapps.stream.io.events import Event
from moeapps.stream.io.lines import MOMENT, LineReader, OfLines

__all__ = ["SAMPLE", "CSVSource"]

SAMPLE = 1000
"""Records that decide the kinds of the columns."""

_FURTHER = 20_000
"""Records that are looked at where a column has no value in the sample."""


class _Unfinished(Exception):
    """A record that has begun and whose end has not come yet."""


class CSVSource(OfLines):
    """A CSV file with a header, read record by record; the position is a byte offset.

    A quoted cell may contain line breaks, a byte order mark is skipped. A record with another number of cells than the
    header is an error of that record alone. A last line without a newline may still be in the making: it is not read
    before its newline comes, unless ``complete`` says that the file is.

    The first 1,000 records decide what a column holds (:attr:`kinds`): numbers, times, bools, or text. Numbers with
    leading zeros are text. A later cell that is not of that kind is an error of its record.

    Parameters
    ----------
    path : str or Path
        The file, in UTF-8. A named pipe works too.
    complete : bool, default False
        Whether the last line counts without a newline.

    Raises
    ------
    FileFormatError
        If the file is empty, not UTF-8, not separated by commas, or its header has a name twice.
    """

    def __init__(self, path: str | Path, complete: bool = False) -> None:
        self.path = Path(path)
        self._raw = b""  # bytes of the last record
        self._at_end = False
        self.complete = complete
        self._lines = LineReader(path, str(path))
        try:
            self.columns = self._read_header()
            self._first = self._lines.offset
            self.kinds = Columns(self.columns, [])
            self.kinds.look_at(self._sample())
        except BaseException:
            self.close()
            raise

    @property
    def replayable(self) -> bool:
        """Whether it can go back: a file can, a pipe cannot."""
        return self._lines.is_file

    @property
    def unfinished(self) -> str | None:
        """What stands at the end and is not read, since its end has not come yet; None if there is nothing."""
        rest = self._lines.rest if self._at_end and not self.complete else b""
        return rest.decode("utf-8", errors="replace") if rest.strip() else None

    def declare(self, target: str, id_field: str | None, **more: Any) -> None:
        """Say what is known of the columns besides the sample; see :meth:`Columns.declare`."""
        self.kinds.declare(target, id_field, **more)

    # --- records

    def _read_header(self) -> list[str]:
        while (cells := self._cells(MOMENT)) is None or not cells:
            if cells is None and not self.endless:
                break
        if isinstance(cells, str):
            raise FileFormatError(f"{self.path}, line 1: {cells}")
        if not cells or cells == [""]:
            raise FileFormatError(f"{self.path} is empty: expected a header with the names of the columns")
        cells[0] = cells[0].removeprefix("\ufeff")
        if (fault := other_separator(cells)) is not None:
            raise FileFormatError(f"{self.path}: {fault}")
        twice = sorted({name for name in cells if cells.count(name) > 1})
        if twice:
            raise FileFormatError(f"{self.path}, line 1: column {twice[0]!r} occurs twice")
        if (note := spaces_in_header(cells)) is not None:
            warnings.warn(f"{self.path}: {note}", UserWarning, stacklevel=3)
        return cells

    def _next_line(self, wait: float) -> bytes | None:
        """The next line; the last one also without a newline, where nothing can follow it."""
        line = self._lines.line(wait)
        if line is None and self._lines.rest and not self.endless and (self.complete or not self._lines.is_file):
            line = self._lines.take_rest()
        return line

    def _cells(self, wait: float) -> list[str] | str | None:
        """Cells of the next record, or what is wrong with it; None where none has come. An empty line has no cells.

        A record that is broken costs its first line only: a stray quote must not consume the rest.
        """
        line = self._next_line(wait)
        if line is None:
            return None
        if b'"' not in line and line.isascii():
            text = line.decode().rstrip("\n").removesuffix("\r")
            if text.count(",") == len(getattr(self, "columns", ())) - 1 and text and "\r" not in text:
                self._raw = line
                return text.split(",")  # what csv.reader does, in a fifth of the time
        taken = [line]
        try:
            cells = next(csv.reader(self._texts(taken), strict=True), [])
        except _Unfinished:
            if not self._is_stray(taken):
                self._lines.put_back(b"".join(taken))
                return None
            error = "not CSV: a quoted cell has no end"
        except csv.Error as problem:
            error = f"not CSV: {problem}"
        except UnicodeDecodeError:
            error = "not UTF-8"
        else:
            width = len(getattr(self, "columns", cells))
            if not cells or len(cells) == width:
                self._raw = b"".join(taken)
                return cells
            error = f"{len(cells)} cells, the header has {width}"
        self._lines.put_back(b"".join(taken[1:]))
        self._raw = line
        return error

    def _texts(self, taken: list[bytes]) -> Iterator[str]:
        """Lines of a record, as many as the reader asks for; they are appended to ``taken``."""
        yield taken[0].decode()
        while (line := self._next_line(0.0)) is not None:
            taken.append(line)
            yield line.decode()
        raise _Unfinished

    def _is_stray(self, taken: list[bytes]) -> bool:
        """Whether a quote without an end is a mistake: the file ends here, or records follow it.

        Otherwise the record may still be in the making.
        """
        if self.complete or self._lines.ended:
            return True
        for line in taken[1:]:
            try:
                cells = next(csv.reader([line.decode()], strict=True), [])
            except (csv.Error, UnicodeDecodeError):
                continue
            if len(cells) == len(getattr(self, "columns", ())) > 1:
                return True
        return False

    def _sample(self) -> list[list[str]]:
        """The first records, and later ones where a column has no value in them, without moving on."""
        found: list[list[str]] = []
        taken: list[bytes] = []
        empty, count = set(range(len(self.columns))), 0
        while count < SAMPLE or (empty and count < _FURTHER):
            cells = self._cells(0.0 if found else MOMENT)
            if cells is None:
                if found or not self.endless:
                    break
                continue
            if not self._lines.is_file:
                taken.append(self._raw)
            if not cells or isinstance(cells, str):
                continue
            count += 1
            decides = {i for i in empty if cells[i] not in MISSING_VALUES}
            empty -= decides
            if count <= SAMPLE or decides:
                found.append(cells)
        if self._lines.is_file:
            self._lines.seek(self._first)
        else:
            self._lines.put_back(b"".join(taken))
        return found

    def read(self, n: int) -> list[Event]:
        """Up to ``n`` records; none where none has come for a moment."""
        found: list[Event] = []
        self._at_end = False
        while len(found) < n:
            start = self._lines.offset
            cells = self._cells(0.0 if found else MOMENT)
            if cells is None:
                self._at_end = not self.endless
                break
            if not cells:  # an empty line
                continue
            found.append(self._event(cells, start))
        return found

    def _event(self, cells: list[str] | str, start: int) -> Event:
        where, end = f"byte {start}", self._lines.offset
        raw = self._raw[:2000].decode("utf-8", errors="replace").rstrip("\r\n")
        if isinstance(cells, str):
            return Event(end, None, cells, raw, where)
        try:
            return Event(end, self.kinds.read(cells), where=where)
        except DataError as error:
            return Event(end, None, str(error), raw, where)

    # --- positions

    def mark(self, position: Any) -> dict[str, Any]:
        """What a checkpoint stores, to go on after ``position`` in this file and no other."""
        kinds = self.kinds.state()
        if not self._lines.is_file:
            return {"kind": "pipe", "columns": kinds}
        return {"kind": "csv", "file": self._lines.fingerprint(int(position or self._first)), "columns": kinds}

    def resume_at(self, mark: dict[str, Any], replayed: bool = False) -> None:
        """Go on where :meth:`mark` was taken.

        Raises
        ------
        DataError
            If this is another file, or it was cut.
        ConfigError
            If a pipe is said to be replayed.
        """
        if mark["kind"] != ("csv" if self._lines.is_file else "pipe"):
            raise DataError(f"{self.path} is not the source that was read before")
        if self._lines.is_file:
            self._lines.check(mark["file"])
            self.seek(mark["file"]["bytes"])
        elif replayed:
            raise ConfigError(f"{self.path}: a CSV pipe cannot be replayed; send JSON lines, or name a file")
        self.kinds.restore(mark["columns"])

    def seek(self, position: Any) -> None:
        """Go on at this byte; None for the first record.

        Raises
        ------
        DataError
            If the file is shorter.
        """
        offset = self._first if position is None else int(position)
        status = self._lines.status
        if self._lines.is_file and status is not None and status.st_size < offset:
            raise DataError(
                f"{self.path} has {status.st_size} bytes, but {offset} bytes of it were read before: it was replaced "
                "or cut"
            )
        self._lines.seek(offset)

    def close(self) -> None:
        """Close the file."""
        self._lines.close()
