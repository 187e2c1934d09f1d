"""A bounded queue of requests and the worker that answers them, batch by batch."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moeapps.core.errors import MoEAppsError
from moeapps.serve.refusal import Refusal, model_failed, no_worker, queue_full, timed_out
from moeapps.serve.worker import Worker, WorkerDied, WorkerHung

__all__ = ["Limits", "ModelServer"]

log = logging.getLogger("moeapps.serve")


@dataclass(frozen=True)
class Limits:
    """How much the server takes on.

    Parameters
    ----------
    queue : int, default 256
        Requests that may wait.
    batch_rows : int, default 1024
        Rows that go to the model at once (a larger request goes alone).
    timeout : float, default 30
        Seconds until a request is cancelled.
    save_every : float, default 30
        Seconds between two savings of what was learned.
    """

    queue: int = 256
    batch_rows: int = 1024
    timeout: float = 30.0
    save_every: float = 30.0


@dataclass(eq=False)
class _Job:
    operation: str
    content: Any
    rows: int
    answer: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class ModelServer:
    """The queue, the worker, and what happens when the worker dies.

    1. :meth:`submit` puts a request into the queue, if there is a worker and room, and waits for its answer.
    2. A task takes the first request and those after it that are of the same operation, up to ``batch_rows``, and hands
       them to the worker; what arrives meanwhile is the next batch.
    3. Each request gets its own answer: a value or a :class:`~moeapps.serve.refusal.Refusal`.
    4. If the worker dies or hangs, the requests it had and those in the queue are refused, and another one is started.
       Requests learned since the model was last saved are kept here and learned again by the new worker, so that
       no confirmed request is lost.

    Parameters
    ----------
    path : str
        File of the model.
    learn_to : str, optional
        File that what is learned is saved to; None, the default, where nothing may be learned.
    limits : Limits, optional
        How much is taken on.
    make_worker : callable, default Worker
        What starts a worker, given a file.

    Attributes
    ----------
    observe : callable
        Called with a name and a value when something is to be counted.
    """

    def __init__(
        self,
        path: str,
        learn_to: str | None = None,
        limits: Limits | None = None,
        make_worker: Callable[[str], Worker] = Worker,
    ) -> None:
        self.path, self.learn_to, self.limits = path, learn_to, limits or Limits()
        self.observe: Callable[[str, float], None] = lambda name, value: None
        self._make_worker = make_worker
        self._jobs: deque[_Job] = deque()
        self._something = asyncio.Event()
        self._learned: list[Any] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._worker: Worker | None = None
        self._closing = False
        self.restarts = 0
        self.saved_at: float | None = None

    def start(self) -> dict[str, Any]:
        """Start the first worker, before there is a loop, and return its description of the model.

        Raises
        ------
        MoEAppsError
            Why the model cannot be loaded or does not learn.
        WorkerDied
            If the worker ended while it loaded.
        WorkerHung
            If it takes too long.
        """
        self._worker = self._make_worker(self.source)
        description = self._worker.description
        if self.learn_to is not None and not description["learns"]:
            model = description["model"]
            self._worker.stop()
            raise MoEAppsError(f"--learn: a {model} does not learn while it serves; models of streams do")
        return description

    @property
    def source(self) -> str:
        """What a new worker loads: what was learned, once it was saved."""
        return self.learn_to if self.learn_to is not None and Path(self.learn_to).exists() else self.path

    @property
    def ready(self) -> bool:
        """Whether there is a worker that answers."""
        return self._worker is not None and not self._closing

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._jobs)

    @property
    def unsaved(self) -> int:
        """Requests to learn that were answered but are not on disk yet."""
        return len(self._learned)

    async def run(self) -> None:
        """Begin to answer."""
        self._watch()
        self._tasks = [asyncio.create_task(self._serve())]
        if self.learn_to is not None:
            self._tasks.append(asyncio.create_task(self._save_regularly()))

    async def submit(self, operation: str, content: Any, rows: int) -> Any:
        """Queue a request and wait for its answer.

        Parameters
        ----------
        operation : {"predict", "learn"}
            Method of the service.
        content
            The body, checked.
        rows : int
            Number of rows in it.

        Raises
        ------
        Refusal
            If the queue is full, there is no worker, the answer does not come in time, or the model refuses.
        """
        if not self.ready:
            raise no_worker()
        if len(self._jobs) >= self.limits.queue:
            raise queue_full()
        job = self._enqueue(operation, content, rows)
        try:
            return await asyncio.wait_for(job.answer, self.limits.timeout)
        except BaseException as error:  # too slow, or the client went away: what waits no longer takes no room
            if job in self._jobs:
                self._jobs.remove(job)
            if isinstance(error, TimeoutError):
                raise timed_out() from None
            raise

    def _enqueue(self, operation: str, content: Any, rows: int) -> _Job:
        job = _Job(operation, content, rows)
        self._jobs.append(job)
        self._something.set()
        return job

    async def close(self) -> None:
        """Save what was learned and end the worker."""
        if self._closing:
            return
        if self.learn_to is not None and self._learned and self._worker is not None:
            with suppress(Refusal):
                await self.save()
        self._closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._refuse_all()
        self._unwatch()
        if self._worker is not None:
            await asyncio.to_thread(self._worker.stop)

    async def save(self) -> None:
        """Save what was learned, after everything in the queue.

        Raises
        ------
        Refusal
            If the disk refuses, or the worker dies.
        """
        if self.learn_to is None or not self._learned:
            return
        await self._enqueue("save", self.learn_to, 0).answer

    # --- the loop

    async def _serve(self) -> None:
        while True:
            await self._something.wait()
            batch = self._next_batch()
            if not batch:
                self._something.clear()
                continue
            try:
                await self._answer(batch)
            except Exception:  # a bug: without this the task would end, and every later request would time out
                log.exception("a batch could not be answered")
                for job in batch:
                    _set(job, model_failed())

    def _next_batch(self) -> list[_Job]:
        """The first request and those behind it that can go with it, in their order."""
        batch: list[_Job] = []
        rows = 0
        while self._jobs and self._worker is not None:
            job = self._jobs[0]
            if batch and (
                job.operation != batch[0].operation
                or job.operation == "save"
                or rows + job.rows > self.limits.batch_rows
            ):
                break
            self._jobs.popleft()
            if not job.answer.done():  # cancelled while it waited
                batch.append(job)
                rows += job.rows
        return batch

    async def _answer(self, batch: list[_Job]) -> None:
        operation, worker = batch[0].operation, self._worker
        assert worker is not None
        start = time.perf_counter()
        try:
            answers = await asyncio.to_thread(
                worker.call, operation, [job.content for job in batch], self.limits.timeout
            )
        except (WorkerDied, WorkerHung) as error:
            for job in batch:
                _set(job, timed_out() if isinstance(error, WorkerHung) else no_worker())
            await self._replace(worker)
            return
        if operation != "save":
            self.observe("batch_rows", sum(job.rows for job in batch))
            self.observe("batch_seconds", time.perf_counter() - start)
        for job, answer in zip(batch, answers, strict=True):
            if isinstance(answer, Refusal):
                if operation == "save":
                    log.error("%s", answer)
            else:
                self._note(job)
            _set(job, answer)

    def _note(self, job: _Job) -> None:
        """Keep what the worker has learned until it is on disk."""
        if job.operation == "learn":
            self._learned.append(job.content)
        if job.operation == "save":
            self._learned.clear()
            self.saved_at = time.time()

    async def _save_regularly(self) -> None:
        while True:
            await asyncio.sleep(self.limits.save_every)
            with suppress(Refusal):
                await self.save()

    # --- the death of a worker

    def _watch(self) -> None:
        worker = self._worker
        assert worker is not None
        loop = asyncio.get_running_loop()
        loop.add_reader(worker.sentinel, lambda: asyncio.ensure_future(self._replace(worker)))

    def _unwatch(self) -> None:
        if self._worker is not None:
            asyncio.get_running_loop().remove_reader(self._worker.sentinel)

    async def _replace(self, worker: Worker) -> None:
        """Refuse all requests in the queue, start another worker, and let it learn what is not on disk.

        A start that fails is tried again after a pause, which doubles from 1 s up to 30 s.
        """
        if worker is not self._worker or self._closing:
            return
        self._unwatch()
        self._worker = None
        self.restarts += 1
        log.error("the worker died or hung; starting another one")
        self._refuse_all()
        await asyncio.to_thread(worker.kill)
        pause = 1.0
        while not self._closing:
            fresh: Worker | None = None
            try:
                fresh = await asyncio.to_thread(self._make_worker, self.source)
                if self._learned:
                    await asyncio.to_thread(fresh.call, "learn", list(self._learned), 600.0)
                break
            except (WorkerDied, WorkerHung, MoEAppsError, OSError) as error:
                log.error("no worker: %s: %s; trying again in %.0f s", type(error).__name__, error, pause)
                if fresh is not None:
                    await asyncio.to_thread(fresh.kill)
                await asyncio.sleep(pause)
                pause = min(2 * pause, 30.0)
        else:
            return
        self._worker = fresh
        self._watch()
        self._something.set()
        log.warning("a new worker serves")

    def _refuse_all(self) -> None:
        while self._jobs:
            _set(self._jobs.popleft(), no_worker())


def _set(job: _Job, result: Any) -> None:
    if job.answer.done():
        return
    if isinstance(result, Exception):
        job.answer.set_exception(result)
    else:
        job.answer.set_result(result)
