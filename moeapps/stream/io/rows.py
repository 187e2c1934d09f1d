"""Sources whose events are rows of a table: Parquet files and frames."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from moeapps.core.errors import DataError, FileFormatError
from moeapps.stream.io.events import Event

__all__ = ["FrameSource", "ParquetSource"]


class _RowSource:
    """Rows by number; the position is the number of rows read. A table is known again by its columns and two rows."""

    endless = False
    _kind = "rows"
    name = "the table"

    def __init__(self) -> None:
        self._row = 0
        self._recent: dict[int, dict[str, Any]] = {}

    @property
    def _columns(self) -> list[str]:
        raise NotImplementedError

    def _rows_from(self, start: int) -> Iterator[dict[str, Any]]:
        """Rows after the first ``start`` ones."""
        raise NotImplementedError

    def _count(self) -> int:
        raise NotImplementedError

    def seek(self, position: Any) -> None:
        """Go on after so many rows."""
        raise NotImplementedError

    def mark(self, position: Any) -> dict[str, Any]:
        """What a checkpoint stores, to go on after ``position`` in this table and no other."""
        count = int(position or 0)
        mark: dict[str, Any] = {"kind": self._kind, "row": count, "columns": self._columns}
        if count:
            mark["first"] = _digest(next(self._rows_from(0)))
            last = self._recent.get(count)
            mark["last"] = _digest(next(self._rows_from(count - 1)) if last is None else last)
        return mark

    def resume_at(self, mark: dict[str, Any], replayed: bool = False) -> None:
        """Go on where :meth:`mark` was taken.

        Raises
        ------
        DataError
            If this is another table, or it has fewer rows.
        """
        if mark["kind"] != self._kind:
            raise DataError(f"{self.name} is not the source that was read before")
        count = int(mark["row"])
        if self._count() < count:
            raise DataError(f"{self.name} has {self._count()} rows, but {count} rows of it were read before")
        if mark["columns"] != self._columns:
            raise DataError(f"{self.name} has the columns {self._columns}, what was read before had {mark['columns']}")
        if count and (mark["first"], mark["last"]) != (
            _digest(next(self._rows_from(0))),
            _digest(next(self._rows_from(count - 1))),
        ):
            raise DataError(f"{self.name} is not the table that was read before: its row 1 or row {count} differs")
        self.seek(count)


def _digest(row: dict[str, Any]) -> str:
    return hashlib.sha256(repr(list(row.items())).encode("utf-8", "backslashreplace")).hexdigest()


class ParquetSource(_RowSource):
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

    _kind = "parquet"

    def __init__(self, path: str | Path) -> None:
        import pyarrow.parquet as pq
        from pyarrow import ArrowInvalid

        super().__init__()
        self.path, self.name = Path(path), str(path)
        try:
            self._file = pq.ParquetFile(path)
        except (ArrowInvalid, OSError) as error:
            raise FileFormatError(f"{path} is not a Parquet file: {error}") from None
        self.columns = list(self._file.schema_arrow.names)
        twice = sorted({name for name in self.columns if self.columns.count(name) > 1})
        if twice:
            raise FileFormatError(f"{path}: column {twice[0]!r} occurs twice")
        self.seek(None)

    @property
    def _columns(self) -> list[str]:
        return self.columns

    def _count(self) -> int:
        return int(self._file.metadata.num_rows)

    def _rows_from(self, start: int) -> Iterator[dict[str, Any]]:
        done = 0
        for group in range(self._file.num_row_groups):
            size = self._file.metadata.row_group(group).num_rows
            if done + size <= start:
                done += size
                continue
            for batch in self._file.iter_batches(1024, row_groups=[group]):
                if done + batch.num_rows > start:
                    yield from batch.slice(max(0, start - done)).to_pylist()
                done += batch.num_rows

    def read(self, n: int) -> list[Event]:
        """Up to ``n`` rows."""
        found: list[Event] = []
        recent: dict[int, dict[str, Any]] = {}
        for fields in self._rows:
            self._row += 1
            recent[self._row] = fields
            found.append(Event(self._row, fields, where=f"row {self._row}"))
            if len(found) == n:
                break
        self._recent = recent or self._recent
        return found

    def seek(self, position: Any) -> None:
        """Go on after so many rows."""
        self._row = int(position or 0)
        self._rows = self._rows_from(self._row)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class FrameSource(_RowSource):
    """The rows of a frame, what is missing as None; the position is the number of rows read.

    Parameters
    ----------
    frame : DataFrame
        The frame; columns are fields.
    """

    _kind = "frame"
    name = "the frame"

    def __init__(self, frame: pd.DataFrame) -> None:
        super().__init__()
        if not isinstance(frame, pd.DataFrame):
            raise DataError(f"frame must be a pandas DataFrame, got {type(frame).__name__}")
        names = [str(name) for name in frame.columns]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DataError(f"frame has the column {twice[0]!r} twice")
        self.frame = frame
        self.columns = names

    @property
    def _columns(self) -> list[str]:
        return self.columns

    def _count(self) -> int:
        return len(self.frame)

    def _rows_from(self, start: int) -> Iterator[dict[str, Any]]:
        yield from self._slice(start, start + 1)

    def _slice(self, start: int, end: int) -> list[dict[str, Any]]:
        rows = self.frame.iloc[start:end]
        part = rows.astype(object).where(rows.notna(), None).to_dict("records")
        return [{str(name): value for name, value in row.items()} for row in part]

    def read(self, n: int) -> list[Event]:
        """Up to ``n`` rows."""
        part = self._slice(self._row, self._row + n)
        first = self._row + 1
        self._row += len(part)
        self._recent = {first + i: row for i, row in enumerate(part)} or self._recent
        return [Event(first + i, row, where=f"row {first + i}") for i, row in enumerate(part)]

    def seek(self, position: Any) -> None:
        """Go on after so many rows."""
        self._row = int(position or 0)

    def close(self) -> None:
        """Nothing to close."""
