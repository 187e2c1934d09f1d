"""Write files so that a crash, a full disk or a signal leaves either the old file or the new one, never half of one.

:func:`locked` gives a file one writer.
"""

import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from moeapps.core.errors import ConfigError, FileFormatError
from moeapps.registry import nearest

__all__ = [
    "HashingWriter",
    "atomic_write",
    "existing_file",
    "is_checkpoint",
    "locked",
    "ordinary_file",
    "remove_stale",
    "similar",
]

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
        If writing fails, with the path and the free space in its message; also if there is a folder, a pipe or a
        device at ``path``, which a file would take the place of.
    """
    target = Path(path).absolute()
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, f"could not write {target}: it is a folder")
    if target.exists() and not target.is_file():  # root could replace /dev/null
        raise OSError(errno.EINVAL, f"could not write {target}: it is a pipe, a socket or a device, not a file")
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


@contextmanager
def locked(path: str | os.PathLike[str], wait: float = 0.0) -> Iterator[None]:
    """Hold the right to write ``path`` while the block runs; everyone else who asks for it is refused.

    The lock is an ``flock`` on the hidden file ``.<name>.lock`` beside ``path``; ``path`` itself need not exist. The
    system releases it when the process ends, by ``kill -9`` too, so no lock has to be removed by hand. It is not
    inherited by child processes. It holds between processes of one machine (local disks), and between two holders in
    one process. For a folder, lock a file in it: ``locked(folder / "stream.safetensors")``.

    Parameters
    ----------
    path : str or path
        The file that shall have one writer. Missing parent folders are made.
    wait : float, default=0
        Seconds to wait for the present holder before it is refused.

    Raises
    ------
    ConfigError
        If another process holds the lock; the message names its process id.
    OSError
        If the lock file cannot be written, for example in a folder without write permission.
    """
    # The last part of the path is not resolved: atomic_write replaces a symbolic link itself, not what it points to.
    target = Path(path).absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = target.parent.resolve() / f".{target.name}.lock"
    end = time.monotonic() + wait
    while (descriptor := _try_lock(lock)) is None:
        if time.monotonic() >= end:
            holder = _holder(lock)
            raise ConfigError(
                f"{target} is being written by another process ({holder}): stop it first, or choose another file"
            )
        time.sleep(0.05)
    _HELD.add(descriptor)
    try:
        yield
    finally:
        _HELD.discard(descriptor)
        with suppress(OSError):
            lock.unlink()  # before it is released; whoever waits for the old file notices in _try_lock
        os.close(descriptor)


_HELD: set[int] = set()
"""Descriptors of the locks of this process. A forked child closes them: its copy would keep the lock after our end."""


def _close_in_child() -> None:
    for descriptor in _HELD:
        with suppress(OSError):
            os.close(descriptor)
    _HELD.clear()


os.register_at_fork(after_in_child=_close_in_child)


def _try_lock(lock: Path) -> int | None:
    """The descriptor of the locked file; None where another holder has it."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # the holder before us may have removed the file between our opening it and our locking it
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), lock.stat()):
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
                    return descriptor
            os.close(descriptor)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:
            os.close(descriptor)
            raise


def _holder(lock: Path) -> str:
    with suppress(OSError, ValueError):
        pid, host = lock.read_text().split()
        return f"process {int(pid)}" if host == socket.gethostname() else f"process {int(pid)} on {host}"
    return "its process id is unknown"


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
        last = found / "checkpoints" / "last.ckpt"
        of_run = f"; the checkpoint of this run is {last}" if last.is_file() else ""
        raise FileFormatError(f"{path} is a folder, expected {what}{of_run}")
    if not found.exists():
        raise FileNotFoundError(f"{path} does not exist{similar(found)}, expected {what}")
    return found


def similar(path: str | os.PathLike[str]) -> str:
    """The end of an error about a missing file: the one beside it that was probably meant, if there is one."""
    path = Path(path)
    try:
        beside = sorted(os.listdir(path.parent))
    except OSError:
        return ""
    # only what is very alike: "train.csv" for "test.csv" would mislead
    near = nearest(path.name, beside, likeness=0.8)
    return "" if near is None else f" (did you mean {str(path.with_name(near))!r}?)"


def ordinary_file(path: str | os.PathLike[str], what: str) -> Path:
    """:func:`existing_file` that also refuses pipes and devices, from which reading might never end."""
    found = existing_file(path, what)
    if not found.is_file():
        raise FileFormatError(f"{path} is a pipe, a socket or a device, expected {what} in an ordinary file")
    return found


def is_checkpoint(file: Path) -> bool:
    """Whether a file is what ``torch.save`` writes, a zip archive."""
    with open(file, "rb") as stream:
        return stream.read(4) == b"PK\x03\x04"
