"""Lines as they come: from files, pipes and standard input, never waiting for more than a moment.

A read of a pipe that waits for a full buffer holds back events, and cannot be ended by a signal. Here the operating
system is asked for what is there (``select``), and a line is handed on as soon as its newline has come.
"""

import hashlib
import os
import select
import stat
from collections import deque
from pathlib import Path
from typing import Any, BinaryIO

from moeapps.core.errors import DataError

__all__ = ["MOMENT", "LineReader", "OfLines"]

MOMENT = 0.2
"""Seconds that a read waits at most for the next line of a pipe."""

_CHUNK = 1 << 16
_LONGEST = 1 << 28
_PRINT = 4096
"""Bytes at the beginning of a file, and before the position, by which it is known again."""


class LineReader:
    """Complete lines of a file, a pipe, or an open binary stream.

    Parameters
    ----------
    source : str or Path or BinaryIO
        A file name, or an open binary stream.
    name : str
        What it is called in messages.

    Attributes
    ----------
    offset : int
        Bytes of the lines that were handed out, from where the reading began.
    is_file : bool
        Whether it is a regular file, which can be read again from any offset.
    is_live : bool
        Whether lines come from outside as time goes by: a pipe, a terminal, a socket.
    ended : bool
        Whether nothing more can come: a file may grow, a pipe ends when its last writer closes it.
    """

    def __init__(self, source: str | Path | BinaryIO, name: str) -> None:
        self.name = name
        self._stream: BinaryIO | None = None
        self._owned = isinstance(source, str | Path)
        if isinstance(source, str | Path):
            # a named pipe that nobody writes to would block in open()
            self._descriptor: int | None = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        else:
            self._stream = source
            try:
                self._descriptor = source.fileno()
            except (OSError, AttributeError):  # io.BytesIO, or an object of the user's own
                self._descriptor = None
        self.is_file = False
        self.start = 0
        if self._descriptor is not None:
            self.is_file = stat.S_ISREG(os.fstat(self._descriptor).st_mode)
            if self.is_file:
                self.start = 0 if self._owned else source.tell()  # type: ignore[union-attr]
                os.lseek(self._descriptor, self.start, os.SEEK_SET)
        self.is_live = self._descriptor is not None and not self.is_file
        self.offset = self.start
        self._reached = self.start
        self._ready: deque[bytes] = deque()  # complete lines that were read and not handed out
        self._tail = bytearray()  # what has come after them
        self.ended = False

    @property
    def status(self) -> os.stat_result | None:
        """What the system says of the open file; None if it is none."""
        return None if self._descriptor is None else os.fstat(self._descriptor)

    def line(self, wait: float = MOMENT) -> bytes | None:
        """The next complete line with its newline; None if there is none within ``wait`` seconds.

        Raises
        ------
        DataError
            If the file has become shorter than what was read of it.
        """
        while not self._ready:
            if self.ended or not self._fill(wait):
                return None
        line = self._ready.popleft()
        self.offset += len(line)
        return line

    @property
    def rest(self) -> bytes:
        """What has come and was not handed out."""
        return b"".join(self._ready) + self._tail

    def take_rest(self) -> bytes:
        """Hand out what has come and was not handed out, as a line."""
        rest = self.rest
        self._ready.clear()
        self._tail.clear()
        self.offset += len(rest)
        return rest

    def put_back(self, content: bytes) -> None:
        """Undo handing out these bytes, the last ones that were handed out."""
        self.offset -= len(content)
        *lines, tail = content.split(b"\n")
        if tail:
            self._tail[:0] = tail  # then nothing was left behind it
        self._ready.extendleft(line + b"\n" for line in reversed(lines))

    def _fill(self, wait: float) -> bool:
        """Read what is there; False if nothing has come."""
        if self._descriptor is None:
            assert self._stream is not None
            content = self._stream.readline()
            if not content:
                self.ended = True
        else:
            if not self.is_file and not select.select([self._descriptor], [], [], wait)[0]:
                return False
            try:
                content = os.read(self._descriptor, _CHUNK)
            except BlockingIOError:
                return False
            if not content and self.is_file:
                size = os.fstat(self._descriptor).st_size
                if size < self._reached:
                    raise DataError(
                        f"{self.name} was cut to {size} bytes while it was read; {self.offset} bytes had been read"
                    )
            elif not content:
                self.ended = True
        self._reached += len(content)
        first, *lines = content.split(b"\n")
        self._tail += first
        if len(self._tail) > _LONGEST:
            raise DataError(f"{self.name} has a line of more than {_LONGEST >> 20} MiB: not lines of events")
        if lines:
            tail = lines.pop()
            self._ready.append(bytes(self._tail) + b"\n")
            self._ready.extend(line + b"\n" for line in lines)
            self._tail = bytearray(tail)
        return bool(content)

    def seek(self, offset: int) -> None:
        """Go on at this byte of a file."""
        assert self._descriptor is not None
        os.lseek(self._descriptor, offset, os.SEEK_SET)
        self.offset = self._reached = offset
        self._ready.clear()
        self._tail.clear()

    @property
    def ends_open(self) -> bool:
        """Whether the byte before the offset of a file is no newline."""
        assert self._descriptor is not None
        return self.offset > 0 and os.pread(self._descriptor, 1, self.offset - 1) != b"\n"

    @property
    def read_to(self) -> int:
        """Bytes of a file that were read, handed out or not."""
        return self._reached

    def first_bytes(self, n: int) -> bytes:
        """The first bytes of a file, as they are now, of those that were read."""
        assert self._descriptor is not None
        return os.pread(self._descriptor, min(n, self._reached), 0)

    @property
    def lag(self) -> int:
        """Bytes of a file that were not handed out yet; 0 for a pipe, which does not say."""
        return max(0, os.fstat(self._descriptor).st_size - self.offset) if self._descriptor and self.is_file else 0

    def fingerprint(self, offset: int) -> dict[str, Any]:
        """By what the part of a file before ``offset`` is known again."""
        assert self._descriptor is not None
        begin = os.pread(self._descriptor, min(_PRINT, offset), 0)
        first = max(0, offset - _PRINT)
        end = os.pread(self._descriptor, offset - first, first)
        return {"bytes": offset, "begin": _digest(begin), "end": _digest(end)}

    def check(self, known: dict[str, Any]) -> None:
        """Refuse a file that is not the one of which a fingerprint was taken, or that lost what was read.

        Raises
        ------
        DataError
            Saying in what it differs.
        """
        assert self._descriptor is not None
        offset = int(known["bytes"])
        size = os.fstat(self._descriptor).st_size
        if size < offset:
            raise DataError(
                f"{self.name} has {size} bytes, but {offset} bytes of it were read before: it was replaced or cut"
            )
        if self.fingerprint(offset) != known:
            raise DataError(
                f"{self.name} is not the file that was read before, its content differs up to byte {offset}: it was "
                "replaced or rewritten"
            )

    def close(self) -> None:
        """Close the file or stream."""
        if self._owned and self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        elif self._stream is not None:
            self._stream.close()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class OfLines:
    """What a source of lines says of the file or pipe that it reads."""

    _lines: LineReader

    @property
    def endless(self) -> bool:
        """Whether more may come: of a pipe that has not ended."""
        return self._lines.is_live and not self._lines.ended

    @property
    def status(self) -> Any:
        """What the system says of the open file."""
        return self._lines.status

    @property
    def read_to(self) -> int:
        """Bytes of a file that were read."""
        return self._lines.read_to

    def first_bytes(self, n: int) -> bytes:
        """The first bytes of a file, as they are now, of those that were read."""
        return self._lines.first_bytes(n)

    @property
    def lag(self) -> int:
        """Bytes of a file that have not been read."""
        return self._lines.lag
