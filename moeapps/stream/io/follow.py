"""A file that is followed as it grows, as ``tail -F`` does: partial lines wait, rotated files are read to their end.

1. The file that was opened is read to its end, and then looked at again every 0.2 seconds. A last line without a
   newline waits for it.
2. The file was rotated once another one has its name: after one more second in which the old one has not grown it is
   finished, its last line counts without a newline, and the next file is read from its beginning.
3. A file that is shorter than what was read, or begins with something else, was emptied (logrotate's copytruncate): it
   is read from its beginning.
4. A run that was stopped meanwhile looks for its file among those that were rotated, ``NAME.1`` or ``NAME-20260101``,
   and knows it by its content.
"""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moeapps.core.errors import ConfigError, DataError, FileFormatError
from moeapps.stream.io.csv_source import CSVSource
from moeapps.stream.io.events import Event
from moeapps.stream.io.lines import MOMENT

__all__ = ["FollowSource"]

GRACE = 1.0
"""Seconds without growth after which a rotated file is finished: its writer may not know yet."""

_FIRST = 256
"""Bytes by which the beginning of the open file is known."""


class FollowSource:
    """One file after the other under one name; the position is the number of the file and the position in it.

    Parameters
    ----------
    path : str or Path
        The file; it has to exist.
    opener : callable
        What reads one file: :class:`CSVSource` or :class:`LinesSource`.

    Attributes
    ----------
    notes : list of str
        What was noticed: rotations, lost bytes.

    Raises
    ------
    ConfigError
        If it is no regular file.
    """

    follows = True
    endless = True
    replayable = True
    unfinished = None

    def __init__(self, path: str | Path, opener: Callable[..., Any]) -> None:
        self.path = Path(path)
        self.notes: list[str] = []
        self._opener = opener
        if not self.path.is_file():
            raise ConfigError(f"--follow {path}: expected a file; a pipe is followed anyway")
        self._number = 0  # of the file
        self._begin: Any = None  # position in it where this run began to read it
        self._declared: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._quiet: tuple[int, float] | None = None  # size of a rotated file, and since when it has it
        self._open(self._opener(self.path))

    def _open(self, source: Any) -> None:
        self._source = source
        self._quiet = None
        self._first = self._beginning()

    @property
    def _status(self) -> os.stat_result:
        status: os.stat_result = self._source.status
        return status

    def _beginning(self) -> bytes:
        return self._source.first_bytes(_FIRST)

    # --- what a run asks of a source

    @property
    def status(self) -> os.stat_result:
        """What the system says of the open file."""
        return self._status

    @property
    def kinds(self) -> Any:
        """Kinds of the columns of a CSV file."""
        return getattr(self._source, "kinds", None)

    def __getattr__(self, name: str) -> Any:
        """``columns`` and ``declare`` of a CSV file, which other files do not have."""
        if name == "columns" and "_source" in self.__dict__:
            return getattr(self._source, name)
        if name == "declare" and "_source" in self.__dict__ and hasattr(self._source, "declare"):
            return self._declare
        raise AttributeError(name)

    def _declare(self, *args: Any, **more: Any) -> None:
        self._declared = (args, more)
        self._source.declare(*args, **more)

    @property
    def lag(self) -> int:
        """Bytes of the open file that have not been read."""
        return int(self._source.lag)

    def read(self, n: int) -> list[Event]:
        """Up to ``n`` events of one file; none where none has come for a moment."""
        if self._was_emptied():
            self._restart()
            return []
        events = self._tagged(self._source.read(n))
        if events:
            self._quiet = None
            return events
        if self._was_replaced():
            size = self._status.st_size
            if self._quiet is None or self._quiet[0] != size:
                self._quiet = (size, time.monotonic())
            if time.monotonic() - self._quiet[1] >= GRACE:
                return self._finish(n)
        time.sleep(MOMENT)
        return []

    def _tagged(self, events: list[Event]) -> list[Event]:
        for event in events:
            event.position = {"file": self._number, "at": event.position}
        return events

    def _was_emptied(self) -> bool:
        if self._status.st_size < self._source.read_to:
            return True
        now = self._beginning()
        same = now[: len(self._first)] == self._first
        self._first = now if same else self._first
        return not same

    def _was_replaced(self) -> bool:
        try:
            return not os.path.samestat(os.stat(self.path), self._status)
        except FileNotFoundError:
            return False  # between the renaming of the old one and the making of the new one

    def _restart(self) -> None:
        try:
            source = self._opener(self.path)
        except (DataError, FileFormatError, OSError):  # no header yet
            time.sleep(MOMENT)
            return
        self.notes.append(f"{self.path} was emptied: it is read from its beginning")
        self._continue(source)

    def _finish(self, n: int) -> list[Event]:
        """The last line of a rotated file, and go on with the next file, if it has begun."""
        self._source.complete = True
        if rest := self._tagged(self._source.read(n)):
            return rest
        for path in [*self._newer(), self.path]:
            try:
                source = self._opener(path)
            except FileNotFoundError:
                continue
            except FileFormatError:  # no header yet
                break
            self.notes.append(f"{self.path} was rotated: {path.name} is read from its beginning")
            self._continue(source)
            break
        else:
            time.sleep(MOMENT)
        return []

    def _continue(self, source: Any) -> None:
        """Read another file, whose columns have to be the same, and keep their kinds."""
        before = getattr(self._source, "columns", None)
        if before is not None and source.columns != before:
            source.close()
            raise DataError(
                f"{source.path} has the columns {', '.join(source.columns)}, but {', '.join(before)} were read before"
            )
        if before is not None:
            source.kinds = self._source.kinds
        self._source.close()
        self._number += 1
        self._begin = None
        self._open(source)

    # --- files that were rotated

    def _rotated(self) -> list[Path]:
        """Files that have had this name, the oldest first."""
        pattern = re.compile(re.escape(self.path.name) + r"[.-][0-9][0-9T:_.-]*")
        found = [path for path in self.path.parent.iterdir() if pattern.fullmatch(path.name) and path.is_file()]
        return sorted(found, key=lambda path: path.stat().st_mtime_ns)

    def _newer(self) -> list[Path]:
        """Rotated files behind the open one, the oldest first."""
        files = self._rotated()
        for place, path in enumerate(files):
            if os.path.samestat(path.stat(), self._status):
                return files[place + 1 :]
        return []

    # --- positions

    def mark(self, position: Any) -> dict[str, Any]:
        """What a checkpoint stores, to go on after ``position``."""
        here = isinstance(position, dict) and position["file"] == self._number
        return {**self._source.mark(position["at"] if here else self._begin), "number": self._number}

    def resume_at(self, mark: dict[str, Any], replayed: bool = False) -> None:
        """Go on where :meth:`mark` was taken, in this file or in one that was rotated since.

        Raises
        ------
        DataError
            If none of them is the one that was read before.
        """
        try:
            self._source.resume_at(mark)
        except DataError as error:
            if not self._resume_in_rotated(mark):
                raise DataError(f"{error}; none of the rotated files {self.path.name}.* is it either") from None
        self._number = int(mark.get("number", 0))
        self._begin = mark["file"]["bytes"] if isinstance(self._source, CSVSource) else mark["lines"]
        self._first = self._beginning()

    def _resume_in_rotated(self, mark: dict[str, Any]) -> bool:
        for path in reversed(self._rotated()):
            try:
                source = self._opener(path)
            except (DataError, FileFormatError, OSError):
                continue
            try:
                if self._declared is not None:
                    source.declare(*self._declared[0], **self._declared[1])
                source.resume_at(mark)
            except DataError:
                source.close()
                continue
            self.notes.append(
                f"{self.path} was rotated while the run stood still: {path.name} is read to its end first"
            )
            self._source.close()
            self._source = source
            return True
        return False

    def seek(self, position: Any) -> None:
        """Go on in the open file after this position; None for its beginning."""
        self._source.seek(position["at"] if isinstance(position, dict) else position)

    def close(self) -> None:
        """Close the file."""
        self._source.close()
