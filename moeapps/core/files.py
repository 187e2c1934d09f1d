"""Write files so that a crash, a full disk or a signal leaves either the old file or the new one, never half of one."""

import hashlib
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from moeapps.core.errors import FileFormatError

__all__ = ["HashingWriter", "atomic_write", "existing_file", "remove_stale"]

_MARK = "moeapps-tmp"


def remove_stale(folder: Path) -> None:
    """Remove temporary files in ``folder`` that a process of this machine left behind when it was killed."""
    pattern = re.compile(rf"^\..+\.{re.escape(socket.gethostname())}\.(\d+)\.{_MARK}$")
    for path in folder.glob(f".*.{_MARK}"):
        found = pattern.match(path.name)
        if found and not _is_running(int(found.group(1))):
            with suppress(OSError):
                path.unlink()


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path``; when the block ends well, sync it to disk and move it into place.

    The temporary file is in the target's own folder, because a move between file systems is a copy and can be cut
    short. If anything fails, the temporary file is removed and what stood at ``path`` stays as it was.

    Parameters
    ----------
    path : str or path
        Where the file shall be. Missing parent folders are made.

    Yields
    ------
    BinaryIO
        The open binary file.

    Raises
    ------
    OSError
        If writing fails, with the path and the free space in its message.
    """
    target = Path(path).absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(target.parent)
    token = secrets.token_hex(4)  # two threads may write the same file
    temporary = target.parent / f".{target.name}.{token}.{socket.gethostname()}.{os.getpid()}.{_MARK}"
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            free = shutil.disk_usage(target.parent).free
            raise OSError(
                error.errno, f"could not write {target} ({error.strerror or error}; {free} bytes free)"
            ) from error
        raise
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class HashingWriter:
    """A file to write to that keeps the SHA-256 of what went through, and the first error of the disk."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        """Write and hash; a disk error is kept, since some callers turn it into an error of their own."""
        try:
            written = self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        self._hash.update(data)
        return written

    def flush(self) -> None:
        """Flush the file below."""
        self._file.flush()

    def digest(self) -> bytes:
        """SHA-256 of everything written so far."""
        return self._hash.digest()


def existing_file(path: str | os.PathLike[str], what: str) -> Path:
    """Return ``path`` as a Path if it is a local file, or say what is wrong with it.

    Parameters
    ----------
    path : str or path
        What the user gave.
    what : str
        What it should be, for the message (``"a saved model"``).

    Raises
    ------
    FileNotFoundError
        If there is nothing.
    FileFormatError
        If it is a URL or a folder.
    """
    if re.match(r"^[a-zA-Z][a-zA-Z0-9+.-]+://", str(path)):
        raise FileFormatError(f"{path} is a URL: download the file first, {what} is only read from a local path")
    found = Path(path)
    if found.is_dir():
        raise FileFormatError(f"{path} is a folder, expected {what}")
    if not found.exists():
        raise FileNotFoundError(f"{path} does not exist, expected {what}")
    return found
