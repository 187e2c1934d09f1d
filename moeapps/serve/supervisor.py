"""The one worker that serves, from the file as it was loaded: started, replaced when it dies, exchanged on reload."""

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

from moeapps.core.errors import MoEAppsError
from moeapps.serve.learning import Learned
from moeapps.serve.refusal import Refusal, not_reloaded
from moeapps.serve.source import Snapshot, difference
from moeapps.serve.worker import Worker, WorkerDied, WorkerHung

__all__ = ["Supervisor"]

log = logging.getLogger("moeapps.serve")

_RELEARN = 600.0
"""Seconds that a new worker may take for one request that it learns again."""


class Supervisor:
    """Keeps a worker.

    Parameters
    ----------
    path : str
        File of the model.
    learned : Learned or None
        What is learned, if anything is. Its file is served if it exists, and its journal is learned by every worker
        that is started.
    make_worker : callable
        What starts a worker, given a file.
    on_change : callable
        Called when a worker is gone and when another one serves.

    Attributes
    ----------
    worker : Worker or None
        The one that serves; None while another one is started.
    description : dict
        What it says of the model.
    restarts : int
        How many died or hung.
    restarting : asyncio.Task or None
        Starts another one.
    busy : threading.Lock
        Held by a thread while what the worker learned goes to the disk. Another worker may load the model and the
        journal only before or after that.
    """

    def __init__(
        self,
        path: str,
        learned: Learned | None,
        make_worker: Callable[[str], Worker],
        on_change: Callable[[], None],
    ) -> None:
        self.path, self.learned = path, learned
        self.worker: Worker | None = None
        self.description: dict[str, Any] = {}
        self.restarts = 0
        self.restarting: asyncio.Task[None] | None = None
        self.busy = threading.Lock()
        self._make_worker, self._on_change = make_worker, on_change
        self._snapshot: Snapshot | None = None
        self._reload = asyncio.Lock()
        self._ended = False

    @property
    def source(self) -> str:
        """The file that is served: what was learned, once it was saved."""
        return self.learned.path if self.learned is not None and self.learned.exists() else self.path

    @property
    def snapshot(self) -> Snapshot:
        """The copy of the file that is served."""
        assert self._snapshot is not None
        return self._snapshot

    def start(self) -> None:
        """Start the first worker; the errors are those of :meth:`~moeapps.serve.batching.ModelServer.start`."""
        try:
            if self.learned is not None:
                self.learned.lock()
            self._snapshot = Snapshot()
            copy, self.worker = self._load(self.source)
            self.snapshot.use(copy)
            self.description = dict(self.worker.description)
            if self.learned is not None:
                if not self.description["learns"]:
                    model = self.description["model"]
                    raise MoEAppsError(f"--learn: a {model} does not learn while it serves; models of streams do")
                self.learned.open(self.snapshot.digest)
                self._relearn(self.worker)
        except BaseException:
            if self.worker is not None:
                self.worker.stop()
            self._close_files()
            raise

    def _load(self, path: str) -> tuple[str, Worker]:
        """Copy a file, and start a worker with the copy."""
        try:
            copy = self.snapshot.copy(path)
        except FileNotFoundError as error:  # it names the file, and one that may be meant
            raise MoEAppsError(str(error)) from None
        except OSError as error:
            raise MoEAppsError(f"{path} cannot be read: {error}") from None
        try:
            return copy, self._make_worker(copy)
        except MoEAppsError as error:
            raise MoEAppsError(str(error).replace(copy, path)) from None

    def _relearn(self, worker: Worker) -> None:
        """Let a worker that was just started learn what the journal has."""
        assert self.learned is not None
        if self.learned.state is not None:
            (self.description["learning"],) = worker.call("restore", [self.learned.state], _RELEARN)
        for content in self.learned.pending():
            (answer,) = worker.call("learn", [content], _RELEARN)
            if isinstance(answer, Refusal):
                log.error("a request that had been learned is refused now: %s", answer)
            elif isinstance(answer, dict):
                self.description["learned"] = answer["total"]
                self.note(answer)

    def note(self, answer: Any) -> None:
        """Take what the worker says of its learning out of an answer."""
        if isinstance(answer, dict) and "learning" in answer:
            self.description["learning"] = answer.pop("learning")

    # --- the death of a worker

    def watch(self) -> None:
        """Notice when the worker dies, also while it has nothing to do."""
        assert self.worker is not None
        asyncio.get_running_loop().add_reader(self.worker.sentinel, self.replace, self.worker)

    def _unwatch(self) -> None:
        if self.worker is not None:
            asyncio.get_running_loop().remove_reader(self.worker.sentinel)

    def replace(self, worker: Worker, why: str = "") -> None:
        """Begin to start another worker, if this one is still the one that serves."""
        if worker is not self.worker or self._ended:
            return
        self._unwatch()
        self.worker = None
        self.restarts += 1
        log.error("the worker died or hung%s; starting another one", f" ({why})" if why else "")
        self._on_change()
        self.restarting = asyncio.create_task(self._restart(worker))

    async def _restart(self, worker: Worker) -> None:
        """Start another worker from the copy of the model, and let it learn what is in the journal.

        A start that fails is tried again after a pause, which doubles from 1 s up to 30 s.
        """
        await asyncio.to_thread(worker.kill)
        pause = 1.0
        while True:
            try:
                fresh = await asyncio.to_thread(self._another)
                break
            except (WorkerDied, WorkerHung, MoEAppsError, OSError) as error:
                log.error("no worker: %s: %s; trying again in %.0f s", type(error).__name__, error, pause)
                await asyncio.sleep(pause)
                pause = min(2 * pause, 30.0)
        self.worker, self.restarting = fresh, None
        self.watch()
        log.warning("a new worker serves")
        self._on_change()

    def _another(self) -> Worker:
        """Another worker with what the last one had learned; in a thread."""
        with self.busy:
            worker = self._make_worker(self.snapshot.path)
            try:
                if self.learned is not None:
                    self._relearn(worker)
            except BaseException:
                worker.kill()
                raise
        return worker

    # --- another model, and the end

    async def reload(self, grace: float) -> None:
        """Serve what is in the file now. The old worker goes on until the new one is ready.

        Parameters
        ----------
        grace : float
            Seconds that the old worker has to answer what it was given.

        Raises
        ------
        Refusal
            If the server learns, the file cannot be loaded, or its model takes other requests; then the model that was
            loaded before is served on.
        """
        if self.learned is not None:
            raise not_reloaded("a server that learns is the one that writes its file: stop it to serve another one")
        async with self._reload:  # one after the other; the last one finds what is in the file last
            if self.restarting is not None:
                await asyncio.wait([self.restarting])
            try:
                copy, fresh = await asyncio.to_thread(self._load, self.path)
            except (MoEAppsError, OSError, WorkerDied, WorkerHung) as error:
                raise not_reloaded(str(error) or f"{self.path} could not be loaded: {type(error).__name__}") from None
            differs = difference(fresh.description, self.description)
            if differs or self.worker is None or self._ended:
                await asyncio.to_thread(fresh.stop)
                raise not_reloaded(
                    f"{self.path} takes other requests than the model that is served ({differs})"
                    if differs
                    else "the worker died meanwhile"
                )
            self._unwatch()
            before, self.worker, self.description = self.worker, fresh, dict(fresh.description)
            self.snapshot.use(copy)
            self.watch()
            log.warning("reloaded %s", self.path)
            self._on_change()
            await asyncio.to_thread(before.stop, grace)

    async def close(self) -> None:
        """End the worker, and leave the files to others."""
        self._ended = True
        if self.restarting is not None:
            self.restarting.cancel()
            await asyncio.gather(self.restarting, return_exceptions=True)
        self._unwatch()
        if self.worker is not None:
            await asyncio.to_thread(self.worker.stop)
            self.worker = None
        self._close_files()

    def _close_files(self) -> None:
        if self.learned is not None:
            self.learned.close()
        if self._snapshot is not None:
            self._snapshot.close()
