"""Where events come from: files, standard input, frames. Every source can go back to a position.

A source is anything with ``read(n)`` and ``seek(position)``, a :class:`~moeapps.stream.io.events.Source`. A position is
a JSON value that stands in the checkpoint beside the model, so that a run that was killed goes on with the first event
that the model has not learned. Sources of this package also have ``mark(position)`` and ``resume_at(mark)``: a mark
holds a fingerprint of what was read, so that a run never goes on in another file at the old position.
"""

import hashlib
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from moeapps.core.errors import ConfigError, DataError
from moeapps.core.files import existing_file
from moeapps.stream.io.csv_source import CSVSource
from moeapps.stream.io.events import Event, Source, parse_object
from moeapps.stream.io.follow import FollowSource
from moeapps.stream.io.kafka import KafkaSource, OnGap
from moeapps.stream.io.lines import MOMENT, LineReader, OfLines
from moeapps.stream.io.rows import FrameSource, ParquetSource

__all__ = [
    "OPENERS",
    "CSVSource",
    "Event",
    "FollowSource",
    "FrameSource",
    "LinesSource",
    "ParquetSource",
    "Source",
    "open_source",
]


_SKIPPED = 10_000
"""Lines of a pipe that are skipped before the caller may look for signals."""


class LinesSource(OfLines):
    """One JSON object a line (NDJSON), from a file, a pipe or standard input; the position is the number of lines read.

    A line of a pipe is an event as soon as its newline has come. A file is known again by its content. A pipe cannot
    go back: a resumed run goes on with what comes, unless it is told that the same lines are sent again, from the first
    on (``replayed``); then those that were read before are skipped. The last line of a file may be half written:
    without a newline it is read only if it is a whole JSON object, or if ``complete`` says that the file is.

    Parameters
    ----------
    source : str or Path or BinaryIO
        A file name, or an open binary stream.
    name : str, optional
        What it is called in messages.
    complete : bool, default False
        Whether the last line counts without a newline, whatever it is.
    """

    def __init__(self, source: str | Path | BinaryIO, name: str | None = None, complete: bool = False) -> None:
        self.name = name or str(source)
        self.complete = complete
        self._lines = LineReader(source, self.name)
        self.replayable = self._lines.is_file or (not self._lines.is_live and _can_seek(source))
        self._count = 0
        self._skip = 0
        self._at_end = False
        self._open = False  # whether the last event was read without its newline
        self.notes: list[str] = []
        """What was noticed and does not stop the run."""
        self._expected: str | None = None
        self._chain = b""
        self._recent: dict[int, tuple[int, bytes]] = {0: (self._lines.offset, b"")}

    @property
    def unfinished(self) -> str | None:
        """What stands at the end and is not read, since its end has not come yet; None if there is nothing."""
        rest = self._lines.rest if self._at_end else b""
        return rest.decode("utf-8", errors="replace") if rest.strip() else None

    def read(self, n: int) -> list[Event]:
        """Up to ``n`` lines; none where none has come for a moment."""
        found: list[Event] = []
        recent: dict[int, tuple[int, bytes]] = {}
        skipped = 0
        while len(found) < n and not (self.endless and skipped >= _SKIPPED):
            line = self._lines.line(0.0 if found else MOMENT)
            if line is None:
                line = self._last_line()
            self._at_end = line is None and not self.endless
            if line is None:
                break
            if self._open:
                self._open = not line.endswith(b"\n")
                if not line.strip():
                    continue
            self._open = not line.endswith(b"\n")
            self._count += 1
            if self._lines.is_live:
                self._chain = hashlib.sha256(self._chain + line).digest()
            if self._count <= self._skip:
                skipped += 1
                if self._count == self._skip:
                    self._check_replayed()
                    recent[self._count] = self._lines.offset, self._chain
            elif line.strip():
                found.append(parse_object(line, self._count, f"line {self._count}"))
                if self._count == 1 and found[-1].fields is None:
                    self._tell_first_line(line)
                recent[self._count] = self._lines.offset, self._chain
        self._recent = recent or self._recent
        return found

    def _tell_first_line(self, line: bytes) -> None:
        """One broken line is rejected; a first one that is broken is a hint that none of them is JSON."""
        start = line[:60].decode("utf-8", errors="replace").strip()
        self.notes.append(
            f"{self.name}: the first line is no JSON object: {start!r}. A line is expected to be one, as in "
            '{"a": 1.5, "label": "up"}; CSV is read from a file or a named pipe whose name ends with .csv'
        )

    def _last_line(self) -> bytes | None:
        """What stands after the last newline, if it is a whole line."""
        rest = self._lines.rest
        if not rest.strip() or self.endless:
            return None
        if self._lines.is_file and not self.complete and parse_object(rest, None, "").fields is None:
            return None  # a piece of a JSON object never is one
        return self._lines.take_rest()

    def _check_replayed(self) -> None:
        if self._expected not in (None, self._chain.hex()):
            raise DataError(
                f"{self.name} does not begin with the {self._skip} lines that were read before: without --replayed "
                "the run goes on with what comes"
            )

    def mark(self, position: Any) -> dict[str, Any]:
        """What a checkpoint stores, to go on after ``position`` in this file and no other."""
        count = int(position or 0)
        mark: dict[str, Any] = {"kind": self._kind, "lines": count}
        if count in self._recent:
            offset, chain = self._recent[count]
            if self._lines.is_file:
                return {**mark, "file": self._lines.fingerprint(offset)}
            mark["chain"] = chain.hex()
        return mark

    @property
    def _kind(self) -> str:
        return "lines" if self._lines.is_file else "pipe" if self._lines.is_live else "stream"

    def resume_at(self, mark: dict[str, Any], replayed: bool = False) -> None:
        """Go on where :meth:`mark` was taken; a pipe only skips lines if they are replayed.

        Raises
        ------
        DataError
            If this is another file, or it was cut.
        """
        if mark["kind"] != self._kind:
            raise DataError(f"{self.name} is not the source that was read before")
        if "file" in mark:
            self._lines.check(mark["file"])
            self._lines.seek(mark["file"]["bytes"])
            self._count = mark["lines"]
            self._open = self._lines.ends_open
            self._recent = {self._count: (self._lines.offset, self._chain)}
            return
        # what the checkpoint has stays valid until a line has been read
        self._recent = {mark["lines"]: (self._lines.offset, bytes.fromhex(mark.get("chain") or ""))}
        if replayed or self.replayable:
            self._skip, self._expected = mark["lines"], mark.get("chain") or None

    def seek(self, position: Any) -> None:
        """Skip so many lines, those that were read before."""
        self._skip = 0 if position is None else int(position)

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


def _can_seek(source: Any) -> bool:
    return bool(getattr(source, "seekable", lambda: False)())


OPENERS: dict[str, Callable[..., Source]] = {
    ".csv": CSVSource,
    ".parquet": ParquetSource,
    ".ndjson": LinesSource,
    ".jsonl": LinesSource,
}
"""Source of a file, by the ending of its name."""


def open_source(
    source: str,
    *,
    complete: bool = False,
    settings: Mapping[str, Any] | None = None,
    on_gap: OnGap = "error",
    follow: bool = False,
) -> Source:
    """Source by what a user writes: ``file.csv``, ``file.parquet``, ``file.ndjson``, ``-``, ``kafka://host:port/topic``.

    Parameters
    ----------
    source : str
        File name or address.
    complete : bool, default False
        Whether the last line of a file counts without a newline.
    settings : mapping of str to Any, optional
        Further settings of librdkafka, for Kafka only.
    on_gap : {"error", "earliest", "latest"}, default "error"
        What to do where Kafka no longer has the events that come next, see :class:`KafkaSource`.
    follow : bool, default False
        Whether to wait at the end of a CSV or NDJSON file for what is added to it, see :class:`FollowSource`.

    Raises
    ------
    ConfigError
        If the kind is unknown.
    FileNotFoundError
        If there is no such file.
    """
    if follow and (
        source == "-" or "://" in source or Path(source).suffix.lower() not in (".csv", ".ndjson", ".jsonl")
    ):
        raise ConfigError(f"--follow: {source} cannot be followed, a .csv, .ndjson or .jsonl file can")
    if follow and complete:
        raise ConfigError("--follow and --complete exclude each other: a file that is whole does not grow")
    if source == "-":
        if sys.stdin is None:
            raise ConfigError("--source -: standard input is closed")
        lines = LinesSource(sys.stdin.buffer, "standard input", complete)
        lines.replayable = lines.replayable and lines.status is not None
        return lines
    if source.startswith("kafka://"):
        return KafkaSource(source, dict(settings or {}), on_gap)
    ending = Path(source).suffix.lower()
    if re.match(r"^[a-z][a-z0-9+.-]*://", source) or ending not in OPENERS:
        raise ConfigError(
            f"--source {source}: expected a .csv, .parquet, .ndjson or .jsonl file, - for NDJSON on standard input, or "
            "kafka://host:port/topic"
        )
    path = existing_file(source, "a source of events")
    if follow:
        return FollowSource(path, OPENERS[ending])
    return ParquetSource(path) if ending == ".parquet" else OPENERS[ending](path, complete=complete)
