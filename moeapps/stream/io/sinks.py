"""Where predictions, metrics and rejects go: files that can be cut back to the size that a checkpoint remembers."""

import csv
import io
import json
import os
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from moeapps.core.errors import ConfigError
from moeapps.stream.io.kafka import KafkaSink

__all__ = ["CSVSink", "LinesSink", "Sink", "open_sink"]


class Sink(Protocol):
    """What a stream run needs of a sink."""

    def write(self, record: dict[str, Any]) -> None:
        """Write a record; it may stay in memory until :meth:`flush`."""

    def flush(self) -> int | None:
        """Make everything durable; returns the size for :meth:`resume`, where there is one."""

    def resume(self, size: int | None) -> None:
        """Drop what was written after a checkpoint; None drops everything."""

    def close(self) -> None:
        """Close files and connections."""


class _FileSink:
    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._opened: BinaryIO | None = None

    @property
    def _file(self) -> BinaryIO:
        """The file, opened at the first record, so that a run that fails before leaves no empty file."""
        if self._opened is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._opened = open(self.path, "ab")  # noqa: SIM115 - closed by close()
        return self._opened

    def flush(self) -> int:
        """Write to disk; the size of the file."""
        if self._opened is None:
            return self.path.stat().st_size if self.path.exists() else 0
        self._opened.flush()
        os.fsync(self._opened.fileno())
        return self._opened.tell()

    def resume(self, size: int | None) -> None:
        """Cut the file back to this size, so that no record is in it twice."""
        self.close()
        if self.path.exists():
            os.truncate(self.path, min(size or 0, self.path.stat().st_size))

    def close(self) -> None:
        """Close the file."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None


class LinesSink(_FileSink):
    """One JSON object a line.

    Parameters
    ----------
    path
        The file; records are appended.
    """

    def write(self, record: dict[str, Any]) -> None:
        """Append a record."""
        self._file.write(json.dumps(record, default=str).encode() + b"\n")


class CSVSink(_FileSink):
    """A CSV file whose header is the names of the first record; names that come later are left out.

    Parameters
    ----------
    path : str or Path
        The file; records are appended.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._names: list[str] | None = None

    def write(self, record: dict[str, Any]) -> None:
        """Append a record."""
        if self._names is None:
            self._names = self._header() or self._begin(list(record))
        self._file.write(_csv_line([record.get(name, "") for name in self._names]))

    def _header(self) -> list[str] | None:
        if not self.path.exists():
            return None
        with open(self.path, newline="", encoding="utf-8") as file:
            return next(csv.reader(file), None)

    def _begin(self, names: list[str]) -> list[str]:
        self._file.write(_csv_line(names))
        return names

    def resume(self, size: int | None) -> None:
        """Cut the file back to this size."""
        super().resume(size)
        self._names = None


def _csv_line(cells: list[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def open_sink(sink: str, option: str) -> Sink:
    """Sink by what a user writes: ``file.csv``, ``file.ndjson``, ``kafka://host:port/topic``.

    Raises
    ------
    ConfigError
        If the kind is unknown.
    """
    if sink.startswith("kafka://"):
        return KafkaSink(sink)
    kinds: dict[str, type[CSVSink | LinesSink]] = {".csv": CSVSink, ".ndjson": LinesSink, ".jsonl": LinesSink}
    kind = kinds.get(Path(sink).suffix.lower())
    if kind is None:
        raise ConfigError(f"{option} {sink}: expected a .csv, .ndjson or .jsonl file, or kafka://host:port/topic")
    return kind(sink)
