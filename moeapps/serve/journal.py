"""Requests that were learned and answered, on disk until the saved model has them too.

The journal stands beside the model, ``<model>.journal``. A learned request is written to it, and synced to disk, before
it is answered 200. Each line is a checksum and a JSON record:

- ``{"base": sha256, "keys": [[key, fingerprint, answer], ...]}``, the first line: the model file that it continues;
- ``{"learn": content, "answer": ..., "key": ..., "fingerprint": ...}``: a learned request;
- ``{"saved": sha256}``: a model file that has everything up to here; written before that file is moved into place.

Whatever moment a process ends at, the model file is that of ``base`` or of a ``saved`` line, and what comes after the
line has to be learned again, once.
"""

import hashlib
import json
import os
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from moeapps.core.errors import ConfigError, FileFormatError
from moeapps.core.files import atomic_write

__all__ = ["Journal", "fingerprint", "sha256_of"]


def fingerprint(content: Any) -> str:
    """Digest of a request's content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Journal:
    """The journal of a model that learns while it serves. Only the holder of the model's lock may open it.

    Parameters
    ----------
    path : Path
        Its file.
    keys : int, default 10000
        Idempotency keys that are remembered.

    Attributes
    ----------
    keys : OrderedDict
        Idempotency key to fingerprint and answer, the oldest first.
    pending : int
        Requests that the saved model does not have.
    state : JSON value
        What the worker knew besides the model when it was saved; None if that was nothing.
    """

    def __init__(self, path: Path, keys: int = 10_000) -> None:
        self.path = path
        self.keys: OrderedDict[str, tuple[str, Any]] = OrderedDict()
        self.pending = 0
        self.state: Any = None
        self._max_keys = keys
        self._file = -1
        self._start = self._end = 0

    @property
    def pending_bytes(self) -> int:
        """Bytes of the pending requests."""
        return self._end - self._start

    def open(self, base: str) -> None:
        """Go on from the model file with the SHA-256 ``base``.

        Raises
        ------
        ConfigError
            If requests wait that were learned on another file.
        FileFormatError
            If it is damaged before its end. An end that is cut short belongs to a request that was never answered.
        OSError
            If it cannot be read or written.
        """
        if not self.path.exists():
            self._begin(base)
            return
        start, learned, after = None, 0, 0
        for end, record in self._records(0):
            self._end = end
            if base in (record.get("base"), record.get("saved")):
                start, after, self.state = end, 0, record.get("state")
            for key, digest, answer in record.get("keys", ()):
                self._remember(key, digest, answer)
            if "learn" in record:
                learned, after = learned + 1, after + 1
                self._remember(record["key"], record["fingerprint"], record["answer"])
            elif "saved" in record:
                learned = 0
        if start is None:
            if learned:
                raise ConfigError(
                    f"{self.path} holds {learned} learned requests that belong to another model file than the one "
                    "that is served: put that file back, or remove the journal to give them up"
                )
            self.keys.clear()
            self.state = None
            self._begin(base)
            return
        self._start, self.pending = start, after
        self._file = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        os.ftruncate(self._file, self._end)

    def reserve(self, contents: Sequence[Any]) -> None:
        """Take the room that these requests need on the disk, before they are learned.

        Raises
        ------
        OSError
            If there is none.
        """
        size = sum(len(json.dumps(content)) + 1024 for content in contents)
        if hasattr(os, "posix_fallocate"):  # not on macOS, where a full disk is found out by `append`
            os.posix_fallocate(self._file, self._end, size)

    def append(self, records: Sequence[dict[str, Any]]) -> None:
        """Write learned requests (``learn``, ``answer``, ``key``, ``fingerprint``), and sync them to disk.

        What was reserved and is not needed is given back.

        Raises
        ------
        OSError
            If the disk refuses; none of them is in the journal then.
        """
        self._write(records)
        for record in records:
            self.pending += 1
            self._remember(record["key"], record["fingerprint"], record["answer"])

    def mark_saved(self, digest: str, state: Any = None) -> None:
        """Write that the model file with this SHA-256, which is not in place yet, has everything up to here.

        ``state`` is what belongs to that file and is not in it.
        """
        self._write([{"saved": digest, **({} if state is None else {"state": state})}])
        self.state = state

    def restart(self, digest: str) -> None:
        """Begin anew behind the model file with this SHA-256, which is in place.

        Raises
        ------
        OSError
            If the disk refuses; the old journal, which goes on after its ``saved`` line, does as well.
        """
        self._start, self.pending = self._end, 0
        self._begin(digest)

    def replay(self) -> Iterator[Any]:
        """The contents of the pending requests, in their order."""
        for end, record in self._records(self._start):
            if "learn" in record:
                yield record["learn"]
            if end >= self._end:
                break

    def close(self) -> None:
        """Close it; without pending requests, keys and a state the file is removed."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            if not self.pending and not self.keys and self.state is None:
                with suppress(OSError):
                    self.path.unlink()

    def _begin(self, base: str) -> None:
        keys = [[key, digest, answer] for key, (digest, answer) in self.keys.items()]
        line = _line({"base": base, "keys": keys, **({} if self.state is None else {"state": self.state})})
        with atomic_write(self.path) as file:
            file.write(line)
        if self._file >= 0:
            os.close(self._file)
        self._file = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        self._start = self._end = len(line)

    def _write(self, records: Sequence[dict[str, Any]]) -> None:
        lines = b"".join(_line(record) for record in records)
        try:
            done = 0
            while done < len(lines):
                done += os.pwrite(self._file, lines[done:], self._end + done)
            os.ftruncate(self._file, self._end + len(lines))
            if lines:
                os.fsync(self._file)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._file, self._end)
            raise
        self._end += len(lines)

    def _remember(self, key: str | None, digest: str | None, answer: Any) -> None:
        if key is None or digest is None:
            return
        self.keys[key] = digest, answer
        self.keys.move_to_end(key)
        while len(self.keys) > self._max_keys:
            self.keys.popitem(last=False)

    def _records(self, start: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """End of the line and record, from an offset on."""
        with open(self.path, "rb") as file:
            file.seek(start)
            end = start
            for line in file:
                record = _record(line)
                if record is None:
                    if any(_record(later) is not None for later in file):
                        raise FileFormatError(f"{self.path} is damaged at byte {end}: its checksum does not match")
                    return
                end += len(line)
                yield end, record


def _line(record: dict[str, Any]) -> bytes:
    text = json.dumps(record, allow_nan=False).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _record(line: bytes) -> dict[str, Any] | None:
    """The record of a line; None if the line is damaged or cut short."""
    checksum, _, text = line.partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text[:-1]):
        return None
    record: dict[str, Any] = json.loads(text)
    return record
