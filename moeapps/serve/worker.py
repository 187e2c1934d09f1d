"""The process that holds the model, and the server's end of the pipe to it. The pipe carries JSON, never pickle."""

import json
import logging
import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from moeapps.core.errors import MoEAppsError
from moeapps.core.warnings import silence_warnings
from moeapps.serve.log import log_to_stderr
from moeapps.serve.refusal import Refusal, model_failed

__all__ = ["Worker", "WorkerDied", "WorkerHung", "answer_all"]

log = logging.getLogger("moeapps.serve")


class WorkerDied(Exception):
    """The process has ended; the requests it had are unanswered."""


class WorkerHung(Exception):
    """No answer in time."""


class Worker:
    """A process with a model.

    Parameters
    ----------
    path : str
        File of the model.
    start_timeout : float, default 120
        Seconds that loading may take.
    tables : tuple of str, optional
        Paths of the nodes and the edges of a graph that all requests are about.

    Attributes
    ----------
    description : dict
        What :meth:`moeapps.serve.services.Service.describe` says of the model.

    Raises
    ------
    MoEAppsError
        Why the model cannot be loaded.
    WorkerDied
        If the process ended while it loaded.
    WorkerHung
        If loading takes too long.
    """

    def __init__(self, path: str, start_timeout: float = 120.0, tables: tuple[str, str] | None = None) -> None:
        self._calling = threading.Lock()
        context = multiprocessing.get_context("spawn")
        self._pipe, child = context.Pipe()
        self.process: SpawnProcess = context.Process(target=_work, args=(child, path, tables), daemon=True)
        self.process.start()
        child.close()  # only the worker has it now: when it dies, the pipe says so
        try:
            first = self._receive(start_timeout)
        except (WorkerDied, WorkerHung):
            self.kill()
            raise
        if "failed" in first:
            self.kill()
            raise MoEAppsError(first["failed"])
        self.description: dict[str, Any] = first["ready"]

    @property
    def sentinel(self) -> int:
        """File descriptor that becomes readable when the process ends."""
        return self.process.sentinel

    def call(self, operation: str, contents: list[Any], timeout: float) -> list[Any]:
        """Send requests and wait for their answers.

        Parameters
        ----------
        operation : {"predict", "sample", "learn", "save", "info", "ping"}
            Method of the service.
        contents : list
            Requests, or the paths to save to, or None.
        timeout : float
            Seconds to wait.

        Returns
        -------
        list
            For each request a value or a :class:`~moeapps.serve.refusal.Refusal`.

        Raises
        ------
        WorkerDied
            If the process ends before it answers.
        WorkerHung
            If it does not answer in time. Kill it: a late answer would be taken for that of the next request.
        """
        with self._calling:
            try:
                self._pipe.send_bytes(json.dumps([operation, contents], allow_nan=False).encode())
            except OSError:
                raise WorkerDied from None
            answers = self._receive(timeout)["answers"]
        return [Refusal(**answer["refusal"]) if "refusal" in answer else answer["ok"] for answer in answers]

    def _receive(self, timeout: float) -> Any:
        try:
            if not self._pipe.poll(timeout):
                raise WorkerHung
            return json.loads(self._pipe.recv_bytes())
        except (EOFError, OSError):
            raise WorkerDied from None

    def kill(self) -> None:
        """End the process at once."""
        self.process.kill()
        self.process.join(5)
        # A call in another thread sees the end of the pipe and returns. Closed under its hands, the pipe's descriptor
        # could belong to the next worker's pipe by the time it is read.
        with self._calling:
            self._pipe.close()

    def stop(self, timeout: float = 5.0) -> None:
        """Let the process end."""
        if self._calling.acquire(timeout=timeout):
            self._pipe.close()
            self._calling.release()
            self.process.join(timeout)
        if self.process.is_alive():
            self.kill()


def _work(pipe: Connection, path: str, tables: tuple[str, str] | None) -> None:
    """Answer until the pipe is closed."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the server says when to stop
        signal.signal(number, signal.SIG_IGN)
    from moeapps.serve.services import open_service

    silence_warnings()
    log_to_stderr()
    try:
        service = open_service(path, tables)
    except (MoEAppsError, OSError) as error:
        _send(pipe, json.dumps({"failed": str(error)}).encode())
        return
    _send(pipe, json.dumps({"ready": service.describe()}).encode())
    while True:
        try:
            operation, contents = json.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            os._exit(0)
        _send(pipe, _to_json(answer_all(service, operation, contents)))


def _send(pipe: Connection, message: bytes) -> None:
    """Send a message; where the server has ended meanwhile, end, too."""
    try:
        pipe.send_bytes(message)
    except OSError:
        os._exit(0)


def _to_json(answers: list[dict[str, Any]]) -> bytes:
    """The answers as JSON; one that has no JSON form becomes a refusal."""
    try:
        return json.dumps({"answers": answers}, allow_nan=False).encode()
    except (TypeError, ValueError):
        log.exception("an answer has no JSON form")
        failed = {"refusal": model_failed().to_json()}
        return json.dumps({"answers": [answer if _is_json(answer) else failed for answer in answers]}).encode()


def _is_json(answer: Any) -> bool:
    try:
        json.dumps(answer, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def answer_all(service: Any, operation: str, contents: list[Any]) -> list[dict[str, Any]]:
    """For each request ``{"ok": value}`` or ``{"refusal": ...}``."""
    try:
        answers = getattr(service, operation)(contents)
    except Exception:  # a bug: the worker lives on, the log has the traceback
        log.exception("%s failed", operation)
        if operation == "predict" and len(contents) > 1:  # whose request it is, is found out one by one
            return [answer_all(service, operation, [content])[0] for content in contents]
        answers = [model_failed() for _ in contents]
    return [{"refusal": a.to_json()} if isinstance(a, Refusal) else {"ok": a} for a in answers]
