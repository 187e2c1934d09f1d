"""The requests that wait: a bounded queue, from which the worker is given pieces that take a fraction of a second.

A large request to predict is cut, and its pieces take turns with the other requests. So a request that is given up
because it takes too long costs at most the piece that is being computed, and small requests do not wait for it.
"""

import asyncio
import re
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from moeapps.serve.limits import Limits
from moeapps.serve.refusal import Refusal, queue_full

__all__ = ["Job", "JobQueue", "Piece"]

SLOW, FAST = 0.5, 0.1
"""Seconds that a call to the model may take before smaller pieces are cut; seconds below which they grow again."""

_CUT = ("rows", "images")
"""Fields of a body whose entries do not depend on each other."""

_PIECES = {"predict": "piece_rows", "sample": "piece_rows", "recommend": "piece_users"}
"""Operations whose requests may be cut, since what is answered to a part does not depend on the rest, and by what."""

_PLACE = re.compile(r"""(?<![\w"'])(rows\.|row |images\.)(\d+)""")


@dataclass(eq=False)
class Job:
    """A request.

    Parameters
    ----------
    operation : str
        Method of the service.
    content
        The body, checked.
    rows : int
        Number of rows in it.
    size : int, default 0
        Bytes of the body.
    key, fingerprint : str, optional
        Idempotency key, and the digest of the content that came with it.

    Attributes
    ----------
    answer : asyncio.Future
        Its answer, or a :class:`~moeapps.serve.refusal.Refusal`.
    started : bool
        Whether it, or a piece of it, was given to the worker.
    """

    operation: str
    content: Any
    rows: int
    size: int = 0
    key: str | None = None
    fingerprint: str | None = None
    started: bool = False
    taken: int = 0
    attempt: int = 0
    parts: list[Any] = field(default_factory=list)
    answer: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def cut(self) -> str | None:
        """Name of the field that may be cut; None for a request that has to go as a whole."""
        if self.operation == "sample":
            return "blocks"
        if self.operation not in ("predict", "recommend") or not isinstance(self.content, dict):
            return None
        return next((name for name in _CUT if name in self.content), None)

    def take(self, rows: int) -> "Piece":
        """The next ``rows`` rows of it."""
        start, self.taken, self.started = self.taken, min(self.taken + rows, self.rows), True
        name = self.cut
        if name is None or (start, self.taken) == (0, self.rows):
            return Piece(self, self.content, 0, self.rows, self.attempt)
        if name == "blocks":
            content = {**self.content, "first_block": start, "blocks": self.taken - start}
        else:
            content = {**self.content, name: self.content[name][start : self.taken]}
        return Piece(self, content, start, self.taken - start, self.attempt)

    def begin_anew(self) -> None:
        """Forget the pieces that were computed."""
        self.taken, self.parts, self.attempt = 0, [], self.attempt + 1

    def finish(self, result: Any) -> None:
        """Answer it, unless it was answered or given up before."""
        if self.answer.done():
            return
        if isinstance(result, Exception):
            self.answer.set_exception(result)
            self.answer.exception()  # it counts as read, also where nobody waits any more
        else:
            self.answer.set_result(result)


@dataclass(eq=False)
class Piece:
    """Rows of a job from ``start`` on, that go to the worker together."""

    job: Job
    content: Any
    start: int
    rows: int
    attempt: int

    def finish(self, result: Any) -> None:
        """Note the answer to the piece; with the last one the job is answered, with a refusal at once."""
        job = self.job
        if self.attempt != job.attempt:
            return
        if isinstance(result, Refusal):
            job.finish(_shifted(result, self.start))
        elif self.rows == job.rows:
            job.finish(result)
        else:
            job.parts += result
            if len(job.parts) >= job.rows:
                job.finish(job.parts)


def _shifted(refusal: Refusal, start: int) -> Refusal:
    """The refusal with the numbers of rows and images that they have in the whole request."""
    if not start:
        return refusal
    message = _PLACE.sub(lambda place: f"{place[1]}{int(place[2]) + start}", refusal.message)
    return Refusal(refusal.status, refusal.code, message, refusal.headers, refusal.faults)


class JobQueue:
    """What waits for the worker.

    Parameters
    ----------
    limits : Limits
        How many requests, and how many bytes of them, may wait, and how many rows go to the model at once.

    Attributes
    ----------
    piece_rows : int
        Rows that go to the model at once to predict or sample; adapted to the time that it takes.
    piece_users : int
        Users that items are recommended to at once, adapted likewise: a user is hundreds of rows.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.piece_rows = limits.batch_rows
        self.piece_users = min(16, limits.batch_rows)
        self._jobs: deque[Job] = deque()

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, job: Job) -> None:
        """Add a request.

        Raises
        ------
        Refusal
            If as many wait as may.
        """
        if len(self._jobs) >= self.limits.queue or (
            self._jobs and job.size and sum(other.size for other in self._jobs) + job.size > self.limits.queue_bytes
        ):
            raise queue_full()
        self.push(job)

    def push(self, job: Job) -> None:
        """Add a request of the server's own, for which there is always room."""
        self._jobs.append(job)

    def discard(self, job: Job) -> None:
        """Take a request out, if it is still in."""
        if job in self._jobs:
            self._jobs.remove(job)

    def clear(self) -> list[Job]:
        """Take all requests out."""
        jobs = list(self._jobs)
        self._jobs.clear()
        return jobs

    def begin_anew(self) -> None:
        """Forget the pieces that were computed, since another model serves now."""
        for job in self._jobs:
            if job.taken:
                job.begin_anew()

    def next_batch(self) -> list[Piece]:
        """The first request and those behind it that can go with it; they are of one operation.

        1. Learning is never cut nor reordered: whole requests, up to ``batch_rows``.
        2. Of requests to predict, those that fit go whole and in order; one that has more rows than a piece gives some
           of them, and goes behind the other requests to predict that wait before the next one that learns.
        """
        while self._jobs and self._jobs[0].answer.done():  # given up while it waited
            self._jobs.popleft()
        if not self._jobs:
            return []
        operation = self._jobs[0].operation
        room = limit = getattr(self, _PIECES[operation]) if operation in _PIECES else self.limits.batch_rows
        batch: list[Piece] = []
        unfinished: list[Job] = []
        while self._jobs and self._jobs[0].operation == operation and room > 0:
            job = self._jobs[0]
            rows = job.rows - job.taken
            large = rows > limit and job.cut is not None
            if batch and rows > room and not large:
                break
            self._jobs.popleft()
            if job.answer.done():
                continue
            batch.append(job.take(min(room, max(1, limit // 2)) if large else rows))
            room -= batch[-1].rows
            if job.taken < job.rows:
                unfinished.append(job)
            if operation not in ("predict", "learn"):
                break
        if unfinished:
            after: list[Job] = []
            while self._jobs and self._jobs[0].operation == operation:
                after.append(self._jobs.popleft())
            self._jobs.extendleft(reversed([*after, *unfinished]))
        return batch

    def adapt(self, rows: int, seconds: float, operation: str = "predict") -> None:
        """Cut smaller pieces if a call to the model took long, larger ones if it was fast."""
        name = _PIECES[operation]
        size = getattr(self, name)
        if seconds > SLOW:
            # a call with few rows says little of many: something else may have kept the machine busy
            found = size // 2 if 4 * rows < size else int(rows * SLOW / 2 / seconds)
            setattr(self, name, max(1, found))
        elif seconds < FAST and 2 * rows >= size:
            setattr(self, name, min(2 * size, self.limits.batch_rows))
