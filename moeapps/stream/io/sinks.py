"""Where predictions, metrics and rejects go: files that can be cut back to the size that a checkpoint remembers."""

import csv
import hashlib
import io
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from moeapps.core.errors import ConfigError, DataError
from moeapps.core.json_text import json_bytes
from moeapps.stream.io.kafka import KafkaSink
from moeapps.stream.io.values import finite_json

__all__ = ["CSVSink", "LinesSink", "Sink", "check_distinct", "open_sink"]

_PRINT = 4096
"""Bytes before the end of what a run wrote, by which the file is known again."""


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
    _BEGINS: tuple[bytes, ...]
    """With what the files of a stream run begin, by which those of 0.1 are known, whose names it did not store."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._opened: BinaryIO | None = None

    @property
    def real_path(self) -> str:
        """The file itself: absolute, symbolic links followed."""
        return os.path.realpath(self.path)

    @property
    def _file(self) -> BinaryIO:
        """The file, opened at the first record, so that a run that fails before leaves no empty file."""
        if self._opened is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._opened = open(self.path, "ab")  # noqa: SIM115 - closed by close()
        return self._opened

    def check_kind(self) -> None:
        """Refuse what is there and is no regular file.

        Raises
        ------
        ConfigError
            If it is a folder, a pipe or a device.
        """
        if self.path.exists() and not stat.S_ISREG(self.path.stat().st_mode):
            what = "a folder" if self.path.is_dir() else "not a regular file"
            raise ConfigError(f"{self.path} is {what}: name a file")

    @property
    def size(self) -> int:
        """Bytes of the file, 0 if there is none."""
        return self.path.stat().st_size if self.path.exists() else 0

    def push(self) -> None:
        """Hand records to the operating system, so that others see them; they are not durable yet."""
        if self._opened is not None:
            self._opened.flush()

    def flush(self) -> int:
        """Write to disk; the size of the file."""
        if self._opened is None:
            return self.size
        self._opened.flush()
        os.fsync(self._opened.fileno())
        return self._opened.tell()

    def mark(self) -> dict[str, Any]:
        """What a checkpoint stores of the file after :meth:`flush`: its name, its size, and its last bytes."""
        size = self.size
        return {"path": self.real_path, "size": size, "end": self._end(size)}

    def check(self, mark: Mapping[str, Any]) -> None:
        """Refuse to cut back a file that is not the one that a run wrote.

        Raises
        ------
        DataError
            If it is gone, shorter, or has another content.
        """
        size, wanted = self.size, int(mark["size"])
        advice = "move it away and --allow-change begins a new one"
        if size < wanted:
            now = f"has {size} bytes" if self.path.exists() else "is gone"
            raise DataError(
                f"{self.path} {now}, but the run had written {wanted} bytes to it: put it back, or {advice}"
            )
        if mark["end"] is not None and self._end(wanted) != mark["end"]:
            raise DataError(f"{self.path} is not what the run had written, it was changed since: {advice}")
        if mark["end"] is None and size and not self._is_of_a_run(wanted):
            raise DataError(f"{self.path} exists, and is not a file of this run: name another file, or {advice}")

    def _end(self, size: int) -> str:
        if size == 0:
            return ""
        with open(self.path, "rb") as file:
            file.seek(max(0, size - _PRINT))
            return hashlib.sha256(file.read(min(size, _PRINT))).hexdigest()

    def _is_of_a_run(self, size: int) -> bool:
        with open(self.path, "rb") as file:
            if not file.read(64).startswith(self._BEGINS):
                return False
            file.seek(max(0, size - 1))
            return size == 0 or file.read(1) == b"\n"

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
    """One JSON object a line; a number that is not finite is null.

    Parameters
    ----------
    path
        The file; records are appended.
    """

    _BEGINS = (b'{"event": ', b'{"instance": ', b'{"number": ')

    def write(self, record: dict[str, Any]) -> None:
        """Append a record."""
        self._file.write(json_bytes(finite_json(record), allow_nan=False) + b"\n")


class CSVSink(_FileSink):
    """A CSV file whose header is the names of the first record; names that come later are left out.

    A number that is not finite, and a missing value, is an empty cell.

    Parameters
    ----------
    path : str or Path
        The file; records are appended.
    """

    _BEGINS = (b"event,", b"instance,", b"number,")

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
    csv.writer(text, lineterminator="\n").writerow(
        ["" if isinstance(cell, float) and not math.isfinite(cell) else cell for cell in cells]
    )
    return text.getvalue().encode("utf-8", "backslashreplace")


def check_distinct(source: Any, sinks: Mapping[str, Sink], others: Mapping[str, Path]) -> None:
    """Refuse two files of a run that are one, also by way of links.

    Parameters
    ----------
    source : Source
        Where the events come from.
    sinks : mapping of str to Sink
        Where output goes, by name.
    others : mapping of str to Path
        Further files that are written, by what they are.

    Raises
    ------
    ConfigError
        Naming both.
    """
    seen: dict[Any, str] = {}
    status = getattr(source, "status", None)
    path = getattr(source, "path", None)
    if status is not None:
        seen[status.st_dev, status.st_ino] = "the source"
    elif path is not None:
        seen |= dict.fromkeys(_identities(Path(path)), "the source")
    seen |= dict.fromkeys(getattr(source, "addresses", ()), "the source")
    for what, other in others.items():
        seen |= dict.fromkeys(_identities(other), what)
    for name, sink in sinks.items():
        file = getattr(sink, "path", None)
        mine = _identities(file) if file is not None else list(getattr(sink, "addresses", ()))
        for identity in mine:
            if identity in seen:
                raise ConfigError(f"--{name} {file or identity[-1]} is also {seen[identity]}: name another one")
        seen |= dict.fromkeys(mine, f"--{name}")


def _identities(path: Path) -> list[Any]:
    """What two names of one file have in common: the resolved name, and its place on disk if it is there."""
    found: list[Any] = [os.path.realpath(path)]
    try:
        status = os.stat(path)
    except OSError:
        return found
    return [*found, (status.st_dev, status.st_ino)]


def open_sink(sink: str, option: str, settings: Mapping[str, Any] | None = None) -> Sink:
    """Sink by what a user writes: ``file.csv``, ``file.ndjson``, ``kafka://host:port/topic``.

    Parameters
    ----------
    sink : str
        File name or address.
    option : str
        Where the user wrote it, for messages.
    settings : mapping of str to Any, optional
        Further settings of librdkafka, for Kafka only.

    Raises
    ------
    ConfigError
        If the kind is unknown, or it is a folder or a pipe.
    """
    if sink.startswith("kafka://"):
        return KafkaSink(sink, dict(settings or {}))
    kinds: dict[str, type[CSVSink | LinesSink]] = {".csv": CSVSink, ".ndjson": LinesSink, ".jsonl": LinesSink}
    kind = kinds.get(Path(sink).suffix.lower())
    if kind is None:
        raise ConfigError(f"{option} {sink}: expected a .csv, .ndjson or .jsonl file, or kafka://host:port/topic")
    opened = kind(sink)
    opened.check_kind()
    return opened
