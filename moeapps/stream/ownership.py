"""Which worker of a group may write the folder of a partition: one at a time, also where a stalled one wakes up.

1. The owner holds a lock on the folder (:func:`moeapps.core.files.locked`). The system takes it back when the process
   ends, however it ends. A worker that Kafka has given up and that is only stalled still holds it, so that its
   successor waits until it has noticed or has ended.
2. The owner's number stands in ``owner.json``, and each owner's number is larger than the last one's. It is compared
   before every checkpoint, which keeps a worker from writing that has lost its lock without noticing, as a network disk
   does it to a machine that it cannot reach.

Locks need a file system whose locks hold between machines: NFS 4, CephFS, Lustre and GPFS mounted with ``flock``; any
local disk if all workers are on one machine. Object stores have none, nor have mounts that keep locks to one machine
(``nolock``, ``localflock``).
"""

import json
import os
import socket
from contextlib import ExitStack
from pathlib import Path

from moeapps.core.errors import ConfigError, FileFormatError, MoEAppsError
from moeapps.core.files import atomic_write, locked

__all__ = ["OWNER", "Ownership", "TakenOver"]

OWNER = "owner.json"
"""Name of the file with the owner's number."""


class TakenOver(MoEAppsError):
    """The folder belongs to another worker by now; nothing may be written to it."""


class Ownership:
    """The right to write a folder.

    Parameters
    ----------
    folder : Path
        Folder of a partition.

    Attributes
    ----------
    number : int
        Number of this owner; 0 before it was one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.number = folder, 0
        self._lock = ExitStack()

    def take(self) -> str | None:
        """Become the owner.

        Returns
        -------
        str or None
            Why that has to wait, with the process that holds the lock; None if it is the owner now.

        Raises
        ------
        FileFormatError
            If the file with the number is damaged.
        OSError
            If the folder cannot be written.
        """
        try:
            self._lock.enter_context(locked(self.folder / OWNER))
        except ConfigError as error:
            return str(error)
        try:
            self.number = _number(self.folder / OWNER) + 1
            owner = {"number": self.number, "process": os.getpid(), "host": socket.gethostname()}
            with atomic_write(self.folder / OWNER) as file:
                file.write(json.dumps(owner).encode() + b"\n")
        except BaseException:
            self._lock.close()
            raise
        return None

    def check(self) -> None:
        """Raise if there is a later owner.

        Raises
        ------
        TakenOver
            If there is one.
        """
        if (now := _number(self.folder / OWNER)) != self.number:
            raise TakenOver(f"{self.folder} was taken over by owner {now}; this is owner {self.number}")

    def release(self) -> None:
        """Let another worker become the owner."""
        self._lock.close()


def _number(path: Path) -> int:
    if not path.exists():
        return 0
    try:
        return int(json.loads(path.read_bytes())["number"])
    except (ValueError, KeyError, TypeError) as error:
        raise FileFormatError(f"{path} is damaged ({error}): stop all workers and remove it") from None
