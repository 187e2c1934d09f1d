"""What is learned while the server runs: one writer, a journal before every answer, and the saved model."""

import shutil
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from moeapps.core.errors import ConfigError
from moeapps.core.files import atomic_write, locked
from moeapps.serve.jobs import Job
from moeapps.serve.journal import Journal, sha256_of
from moeapps.serve.limits import Limits
from moeapps.serve.refusal import Refusal, not_saved
from moeapps.serve.worker import WorkerDied

__all__ = ["Learned"]


class Learned:
    """The file of ``--learn`` and its journal.

    What was answered 200 is in the journal or in the file; what was not is in neither, except for a request whose
    answer was written to the journal but did not reach the client, which an idempotency key tells apart.

    Parameters
    ----------
    path : str
        The file.
    limits : Limits
        How many keys and bytes the journal may have.

    Attributes
    ----------
    saved_at : float or None
        When the file was written last, in seconds since 1970.
    """

    def __init__(self, path: str, limits: Limits) -> None:
        self.path, self.limits = path, limits
        self.saved_at: float | None = None
        self._journal = Journal(Path(f"{path}.journal"), limits.keys)
        self._held = ExitStack()

    def lock(self) -> None:
        """Become the one who writes the file.

        Raises
        ------
        ConfigError
            If another process does, or the file cannot be written.
        """
        if Path(self.path).is_dir():
            raise ConfigError(f"--learn: {self.path} is a folder, expected a file")
        try:
            self._held.enter_context(locked(self.path))
        except ConfigError as error:
            raise ConfigError(f"--learn: {error}") from None
        except OSError as error:
            raise ConfigError(f"--learn: {self.path} cannot be written: {error}") from None

    def open(self, base: str) -> None:
        """Open the journal behind the model file with this SHA-256.

        Raises
        ------
        MoEAppsError
            If it belongs to another file, is damaged, or cannot be written.
        """
        try:
            self._journal.open(base)
        except OSError as error:
            raise ConfigError(f"--learn: {self._journal.path} cannot be written: {error}") from None

    def close(self) -> None:
        """Close the journal, and let others write the file."""
        self._journal.close()
        self._held.close()

    def exists(self) -> bool:
        """Whether the file is there."""
        return Path(self.path).exists()

    @property
    def keys(self) -> OrderedDict[str, tuple[str, Any]]:
        """Idempotency keys that were learned, with the fingerprint of the content and the answer."""
        return self._journal.keys

    @property
    def unsaved(self) -> int:
        """Requests that are in the journal and not in the file."""
        return self._journal.pending

    @property
    def is_large(self) -> bool:
        """Whether the model should be saved now."""
        return self._journal.pending_bytes > self.limits.journal_bytes / 4

    @property
    def is_full(self) -> bool:
        """Whether nothing more may be learned before the model was saved."""
        return self._journal.pending_bytes > self.limits.journal_bytes

    def pending(self) -> Iterator[Any]:
        """Contents that are in the journal and not in the file."""
        return self._journal.replay()

    def learn(self, jobs: Sequence[Job], call: Callable[[], list[Any]]) -> list[Any]:
        """Let the worker learn requests, and write those that it learned to the journal.

        Raises
        ------
        WorkerDied
            If they cannot be written although room was reserved: the worker knows what it must not know.
        """
        try:
            self._journal.reserve([job.content for job in jobs])
        except OSError as error:
            return [not_saved(error) for _ in jobs]
        answers = call()
        records = [
            {"learn": job.content, "answer": answer, "key": job.key, "fingerprint": job.fingerprint}
            for job, answer in zip(jobs, answers, strict=True)
            if not isinstance(answer, Refusal)
        ]
        try:
            self._journal.append(records)
        except OSError as error:
            raise WorkerDied(f"{self._journal.path}: {error}") from error
        return answers

    @property
    def state(self) -> Any:
        """What belongs to the file and is not in it, None if nothing does: scores, and events without a label."""
        return self._journal.state

    def publish(self, saved: str, state: Any = None) -> None:
        """Put the model that the worker has saved in place of the file, and begin a new journal with its state.

        Raises
        ------
        OSError
            If the disk refuses; the old file and the journal then go on together.
        """
        digest = sha256_of(saved)
        self._journal.mark_saved(digest, state)
        with open(saved, "rb") as source, atomic_write(self.path) as target:
            shutil.copyfileobj(source, target, 1 << 20)
        self.saved_at = time.time()
        with suppress(OSError):  # the old journal goes on behind its line of the file that is in place now
            self._journal.restart(digest)

    def left_behind(self) -> str:
        """What to say where the file lacks requests that were answered."""
        return (
            f"{self.unsaved} learned requests are not in {self.path}, only in {self._journal.path}: "
            f"start again with --learn {self.path} to have them in the model"
        )
