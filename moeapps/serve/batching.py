"""From requests to batches and back: who waits, what goes to the worker together, who is told what."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from moeapps.serve.jobs import Job, JobQueue, Piece
from moeapps.serve.journal import fingerprint
from moeapps.serve.learning import Learned
from moeapps.serve.limits import Limits
from moeapps.serve.refusal import HALF_LEARNED, Refusal, key_reused, model_failed, no_worker, not_saved, timed_out
from moeapps.serve.supervisor import Supervisor
from moeapps.serve.worker import Worker, WorkerDied, WorkerHung

__all__ = ["Limits", "ModelServer"]

log = logging.getLogger("moeapps.serve")

SILENT = 3.0
"""Seconds without an answer of the worker after which the server is not ready."""

PING = 1.0
"""Seconds after which a worker that has nothing to do is asked whether it lives."""

LAST_WORKER = 120.0
"""Seconds that :meth:`ModelServer.close` waits for a worker that has to save what was learned."""


class ModelServer:
    """The queue, the worker, and what happens when the worker dies.

    1. :meth:`submit` puts a request into the queue, if there is a worker and room, and waits for its answer.
    2. A task takes the first request and those after it that are of the same operation, up to ``batch_rows``, and hands
       them to the worker; what arrives meanwhile is the next batch. Large requests to predict go in pieces.
    3. Each request gets its own answer: a value or a :class:`~moeapps.serve.refusal.Refusal`.
    4. A learned request is in the journal on disk before it is answered (:class:`~moeapps.serve.learning.Learned`).
    5. If the worker dies or hangs, the requests it had and those in the queue are refused, and another one is started
       from a private copy of the model. It learns again what is in the journal, so that no confirmed request is lost
       (:class:`~moeapps.serve.supervisor.Supervisor`). A request that is only slow is given up by itself, and the
       worker stays.

    Parameters
    ----------
    path : str
        File of the model.
    learn_to : str, optional
        File that what is learned is saved to; None, the default, where nothing may be learned. It has one server at a
        time.
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
        self._learned = None if learn_to is None else Learned(learn_to, self.limits)
        self._supervisor = Supervisor(path, self._learned, make_worker, self._worker_changed)
        self._queue = JobQueue(self.limits)
        self._something = asyncio.Event()
        self._learning: dict[str, Job] = {}  # by idempotency key
        self._tasks: list[asyncio.Task[None]] = []
        self._asked_at: float | None = None
        self._draining = False

    def start(self) -> dict[str, Any]:
        """Start the first worker, before there is a loop, and return its description of the model.

        Raises
        ------
        MoEAppsError
            Why the model cannot be loaded or does not learn, or why what it learns cannot be saved.
        WorkerDied
            If the worker ended while it loaded.
        WorkerHung
            If it takes too long.
        """
        self._supervisor.start()
        if self._supervisor.description.get("kind") in ("images", "generator"):
            self._queue.piece_rows = 1  # nobody knows how long one takes, until it was tried
        return self._supervisor.description

    # --- what others see

    @property
    def source(self) -> str:
        """What is served: what was learned, once it was saved."""
        return self._supervisor.source

    @property
    def description(self) -> dict[str, Any]:
        """The description of the model that is served."""
        return self._supervisor.description

    @property
    def why_not_ready(self) -> str | None:
        """Why requests are not answered now; None if they are."""
        if self._draining:
            return "the server ends"
        if self._supervisor.worker is None:
            return "the model is being started"
        if self._asked_at is not None and time.monotonic() - self._asked_at > SILENT:
            return f"the model has not answered for {time.monotonic() - self._asked_at:.0f} s"
        return None

    @property
    def ready(self) -> bool:
        """Whether requests are answered now."""
        return self.why_not_ready is None

    @property
    def live(self) -> bool:
        """Whether the server's own tasks run; if not, only a restart of the server helps."""
        return self._draining or not any(task.done() for task in self._tasks)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    @property
    def restarts(self) -> int:
        """Workers that died or hung."""
        return self._supervisor.restarts

    @property
    def unsaved(self) -> int:
        """Requests to learn that were answered and are in the journal, but not in the saved model yet."""
        return 0 if self._learned is None else self._learned.unsaved

    @property
    def saved_at(self) -> float | None:
        """When the model was saved last, in seconds since 1970."""
        return None if self._learned is None else self._learned.saved_at

    @property
    def learning(self) -> dict[str, Any] | None:
        """Scores, alarms and classes of a model that learns; None for another one."""
        return None if self._learned is None else self._supervisor.description.get("learning")

    async def described(self) -> dict[str, Any]:
        """The description of the model as it is now, which has learned since it was loaded."""
        if self._learned is not None and self.ready:
            with suppress(Refusal):
                self._supervisor.description = await self.submit("info", None, 0)
        return self._supervisor.description

    # --- requests

    async def run(self) -> None:
        """Begin to answer."""
        self._supervisor.watch()
        self._tasks = [asyncio.create_task(self._serve())]
        if self._learned is not None:
            self._tasks.append(asyncio.create_task(self._save_regularly()))

    async def submit(self, operation: str, content: Any, rows: int, size: int = 0) -> Any:
        """Queue a request and wait for its answer.

        Parameters
        ----------
        operation : {"predict", "recommend", "sample", "learn", "info"}
            Method of the service.
        content
            The body, checked.
        rows : int
            Number of rows in it.
        size : int, default 0
            Bytes of the body.

        Raises
        ------
        Refusal
            If the queue is full, there is no worker, the answer does not come in time, or the model refuses. Nothing of
            it was learned then, or ever will be.
        """
        job = Job(operation, content, rows, size)
        self._put(job)
        return await self._answer_to(job)

    async def learn(self, content: Any, rows: int, key: str | None = None, size: int = 0) -> tuple[Any, bool]:
        """Learn a request, at most once per idempotency key.

        Parameters
        ----------
        content, rows, size
            As for :meth:`submit`.
        key : str, optional
            Idempotency key.

        Returns
        -------
        answer
            As of :meth:`submit`.
        repeated : bool
            Whether it is the answer to an earlier request with this key.

        Raises
        ------
        Refusal
            As :meth:`submit`, or if the key came with other content before.
        """
        assert self._learned is not None
        if key is None:
            return await self.submit("learn", content, rows, size), False
        digest = fingerprint(content)
        known, running = self._learned.keys.get(key), self._learning.get(key)
        if running is not None and running.answer.done():
            running = None
        before = known[0] if known else running.fingerprint if running else digest
        if before != digest:
            raise key_reused(key)
        if known:
            return known[1], True
        if running is not None:
            return await self._answer_to(running, mine=False), True
        job = Job("learn", content, rows, size, key, digest)
        self._put(job)
        self._learning[key] = job
        job.answer.add_done_callback(lambda _: self._learning.pop(key) if self._learning.get(key) is job else None)
        return await self._answer_to(job), False

    def _put(self, job: Job) -> None:
        if self._supervisor.worker is None or self._draining:
            raise no_worker()
        if job.operation == "learn" and self._learned is not None and self._learned.is_full:
            raise not_saved("too much waits for a disk that refuses the model")
        self._queue.put(job)
        self._something.set()

    async def _answer_to(self, job: Job, mine: bool = True) -> Any:
        """Wait for an answer; where it does not come in time, the request is given up.

        A request that the worker learns right now cannot be given up any more: its answer comes late.
        """
        try:
            await asyncio.wait([job.answer], timeout=self.limits.timeout)
            if not job.answer.done():
                if job.operation == "learn" and job.started:
                    await asyncio.wait([job.answer])
                elif mine:
                    job.finish(timed_out())
                else:
                    raise timed_out()
            return job.answer.result()
        except asyncio.CancelledError:  # the client went away
            if mine and not (job.operation == "learn" and job.started):
                job.finish(timed_out())
            raise
        finally:
            if mine and job.answer.done():
                self._queue.discard(job)

    # --- saving, and the end

    async def save(self) -> None:
        """Save what was learned, after everything in the queue.

        Raises
        ------
        Refusal
            If the disk refuses, or the worker dies.
        """
        if self._learned is None or not self.unsaved:
            return
        if self._supervisor.worker is None:
            raise no_worker()
        job = Job("save", self._supervisor.snapshot.new_path("learned.safetensors"), 0)
        self._queue.push(job)
        self._something.set()
        await job.answer

    async def _save_regularly(self) -> None:
        assert self._learned is not None
        saved = time.monotonic()
        while True:
            await asyncio.sleep(min(self.limits.save_every, 1.0))
            if time.monotonic() - saved >= self.limits.save_every or self._learned.is_large:
                saved = time.monotonic()
                with suppress(Refusal):
                    await self.save()

    async def reload(self) -> dict[str, Any]:
        """Serve what is in the model's file now, without a pause, and return its description.

        Raises
        ------
        Refusal
            If the server learns, the file cannot be loaded, or its model takes other requests; then the model that was
            loaded before is served on.
        """
        await self._supervisor.reload(self.limits.hang_after)
        return self._supervisor.description

    async def close(self) -> None:
        """Save what was learned and end the worker. While another worker is being started, it is waited for.

        What could not be saved stays in the journal, and :attr:`unsaved` says so.
        """
        if self._draining:
            return
        self._draining = True
        end = time.monotonic() + LAST_WORKER
        while self.unsaved and time.monotonic() < end:
            if self._supervisor.restarting is not None:
                log.warning("waiting for a worker that saves what was learned")
                await asyncio.wait([self._supervisor.restarting], timeout=end - time.monotonic())
            try:
                await self.save()
            except Refusal as refusal:
                if refusal.code != no_worker().code:
                    break
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._refuse_all()
        if self._learned is not None and self.unsaved:
            log.error("%s", self._learned.left_behind())
        await self._supervisor.close()

    # --- the loop

    async def _serve(self) -> None:
        while True:
            batch = [] if self._supervisor.worker is None else self._queue.next_batch()
            if not batch:
                self._something.clear()
                try:
                    async with asyncio.timeout(PING):  # wait_for of Python 3.11 loses a cancellation that comes with it
                        await self._something.wait()
                    continue
                except TimeoutError:
                    if self._supervisor.worker is None or len(self._queue):
                        continue
                    batch = [Job("ping", None, 0).take(0)]
            try:
                await self._answer(batch)
            except Exception:  # a bug: without this the task would end, and every later request would time out
                log.exception("a batch could not be answered")
                for piece in batch:
                    piece.job.finish(model_failed())

    async def _answer(self, batch: list[Piece]) -> None:
        operation, worker = batch[0].job.operation, self._supervisor.worker
        assert worker is not None
        start = self._asked_at = time.monotonic()
        try:
            answers = await asyncio.to_thread(self._call, worker, operation, batch)
        except (WorkerDied, WorkerHung) as error:
            for piece in batch:
                piece.job.finish(timed_out() if isinstance(error, WorkerHung) else no_worker())
            self._supervisor.replace(worker, str(error))
            return
        finally:
            self._asked_at = None
        rows, seconds = sum(piece.rows for piece in batch), time.monotonic() - start
        if operation in ("predict", "recommend", "sample", "learn"):
            self.observe("batch_rows", rows)
            self.observe("batch_seconds", seconds)
        if operation in ("predict", "recommend", "sample"):
            self._queue.adapt(rows, seconds, operation)
        for piece, answer in zip(batch, answers, strict=True):
            if isinstance(answer, Refusal) and operation == "save":
                log.error("%s", answer)
            if operation == "learn" and isinstance(answer, dict):
                self._supervisor.description["learned"] = answer["total"]
            piece.finish(answer)
        if any(isinstance(answer, Refusal) and answer.code == HALF_LEARNED for answer in answers):
            self._supervisor.replace(worker, "it failed while it learned")

    def _call(self, worker: Worker, operation: str, batch: list[Piece]) -> list[Any]:
        """Hand a batch to the worker, and what it learned to the disk; in a thread."""
        contents = [piece.content for piece in batch]

        def call() -> list[Any]:
            answers = worker.call(operation, contents, self.limits.hang_after)
            for answer in answers if operation == "learn" else ():
                self._supervisor.note(answer)
            return answers

        if self._learned is None or operation not in ("learn", "save"):
            return call()
        with self._supervisor.busy:
            if operation == "learn":
                return self._learned.learn([piece.job for piece in batch], call)
            answers, copy = call(), contents[0]
            try:
                if not isinstance(answers[0], Refusal):
                    self._learned.publish(copy, answers[0])
                    self._supervisor.snapshot.use(copy)
            except OSError as error:
                answers = [not_saved(error)]
            if isinstance(answers[0], Refusal):
                Path(copy).unlink(missing_ok=True)
            return answers

    def _worker_changed(self) -> None:
        """Without a worker nobody waits; with another one, what was begun is done anew, by one model as a whole."""
        if self._supervisor.worker is None:
            self._refuse_all()
        self._queue.begin_anew()
        self._something.set()

    def _refuse_all(self) -> None:
        for job in self._queue.clear():
            job.finish(no_worker())
