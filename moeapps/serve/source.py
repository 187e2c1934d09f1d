"""The model file as it was loaded: a private copy, so that a new worker serves what the first one did.

Whoever replaces the file while it is served changes nothing until the server is asked to reload it.
"""

import os
import re
import shutil
import socket
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

from moeapps.core.errors import ConfigError, FileFormatError
from moeapps.core.files import existing_file
from moeapps.core.tabledata.source import listed
from moeapps.serve.journal import sha256_of

__all__ = ["Snapshot", "difference", "model_file"]

_VARIES = ("model", "features", "nodes", "learned", "learning")
"""What may differ between two models that take the same requests."""


def model_file(path: str | os.PathLike[str]) -> Path:
    """The file of a model: ``path``, or in the folder of a stream run its checkpoint.

    Raises
    ------
    FileNotFoundError, FileFormatError
        If there is none.
    """
    file = Path(path)
    if file.is_dir() and (file / "stream.safetensors").exists():
        file = file / "stream.safetensors"
    file = existing_file(file, "a model saved by moeapps")
    if not file.is_file():  # a fifo or a device has no end
        raise FileFormatError(f"{file} is not a regular file, expected a model saved by moeapps")
    return file


def difference(new: dict[str, Any], old: dict[str, Any]) -> str:
    """Where the descriptions of two models do not take the same requests, in words; empty if they do."""
    parts = []
    for name in sorted({*new, *old} - {*_VARIES}):
        now, before = new.get(name), old.get(name)
        if isinstance(now, dict) and isinstance(before, dict):
            changed = [
                f"{key!r} is {now[key]}, not {before[key]}" for key in now if before.get(key, now[key]) != now[key]
            ]
            keys = {
                "missing": [key for key in before if key not in now],
                "new": [key for key in now if key not in before],
            }
            found = [f"{what} {listed(some, 5)}" for what, some in keys.items() if some]
            parts += [f"{name}: {', '.join([*found, *changed[:5]])}"] if found or changed else []
        elif now != before:
            parts.append(f"{name}: {str(now)[:80]}, not {str(before)[:80]}")
    return "; ".join(parts)


class Snapshot:
    """A folder with the copy of the file that is served. It goes when the process ends, or when the next one starts.

    Attributes
    ----------
    path : str
        The copy.
    digest : str
        Its SHA-256.
    """

    def __init__(self) -> None:
        _remove_stale()
        prefix = f"moeapps-serve.{socket.gethostname()}.{os.getpid()}."
        try:
            self._folder = Path(tempfile.mkdtemp(prefix=prefix))
        except OSError as error:
            raise ConfigError(
                f"no folder for temporary files: {error}; set TMPDIR to one that can be written"
            ) from None
        self._remove = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._number = 0
        self.path = self.digest = ""

    def new_path(self, name: str) -> str:
        """A path in the folder that is not taken."""
        self._number += 1
        return str(self._folder / f"{self._number}.{name}")

    def copy(self, path: str | os.PathLike[str]) -> str:
        """Copy a model's file into the folder, and return the path of the copy.

        Raises
        ------
        OSError, FileFormatError
            If it cannot be read, or there is no room.
        """
        file = model_file(path)
        copy = self.new_path(file.name)
        shutil.copyfile(file, copy)
        return copy

    def use(self, copy: str) -> None:
        """From now on this is what new workers load; the copy before it is removed."""
        before, self.path, self.digest = self.path, copy, sha256_of(copy)
        if before:
            with suppress(OSError):
                os.unlink(before)

    def close(self) -> None:
        """Remove the folder."""
        self._remove()


def _remove_stale() -> None:
    """Remove the folders of servers of this machine that were killed."""
    pattern = re.compile(rf"^moeapps-serve\.{re.escape(socket.gethostname())}\.(\d+)\.")
    for folder in Path(tempfile.gettempdir()).glob("moeapps-serve.*"):
        found = pattern.match(folder.name)
        if found:
            try:
                os.kill(int(found[1]), 0)
            except ProcessLookupError:
                shutil.rmtree(folder, ignore_errors=True)
            except OSError:
                pass
