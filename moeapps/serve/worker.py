"""The process that holds the model, and the server's end of the pipe to it. What goes through is JSON, never pickle."""

import json
import multiprocessing
import os
import signal
import traceback
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from moeapps.core.errors import DataError, MoEAppsError
from moeapps.core.warnings import silence_warnings

__all__ = ["Worker", "WorkerDied", "WorkerHung"]


class WorkerDied(Exception):
    """The process is gone; what it was asked is unanswered."""


class WorkerHung(Exception):
    """No answer within the time that was given."""


class Worker:
    """A process with a model.

    Args:
        path: File of the model.
        start_timeout: Seconds that loading may take.

    Attributes:
        description: What the service says of itself.

    Raises:
        MoEAppsError: Why the model cannot be loaded.
        WorkerDied: If the process ended while it loaded.
        WorkerHung: If loading takes too long.
    """

    def __init__(self, path: str, start_timeout: float = 120.0) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, child = context.Pipe()
        self.process: SpawnProcess = context.Process(target=_work, args=(child, path), daemon=True)
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

    def ask(self, operation: str, content: Any, timeout: float) -> Any:
        """Send a request and wait for the answer.

        Raises:
            WorkerDied: If the process ends before it answers.
            WorkerHung: If it does not answer in time. What it answers later would be taken for another answer: kill it.
        """
        try:
            self._pipe.send_bytes(json.dumps([operation, content], allow_nan=False).encode())
        except OSError:
            raise WorkerDied from None
        return self._receive(timeout)["answer"]

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
        self._pipe.close()

    def stop(self, timeout: float = 5.0) -> None:
        """Let the process end."""
        self._pipe.close()
        self.process.join(timeout)
        if self.process.is_alive():
            self.kill()


def _work(pipe: Connection, path: str) -> None:
    """Answer until the pipe is closed."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the server says when to stop
        signal.signal(number, signal.SIG_IGN)
    from moeapps.serve.services import open_service

    silence_warnings()
    try:
        service = open_service(path)
    except (MoEAppsError, OSError) as error:
        pipe.send_bytes(json.dumps({"failed": str(error)}).encode())
        return
    pipe.send_bytes(json.dumps({"ready": service.describe()}).encode())
    while True:
        try:
            operation, content = json.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            os._exit(0)
        pipe.send_bytes(json.dumps({"answer": _answer(service, operation, content)}, allow_nan=False).encode())


def _answer(service: Any, operation: str, content: Any) -> Any:
    """A list with an answer per request, ``{"ok": ...}``, ``{"refused": why}`` or ``{"failed": why}``."""
    if operation == "save":
        try:
            service.save(content)
        except OSError as error:
            return {"failed": str(error)}
        return {"ok": None}
    try:
        found = getattr(service, operation)(content)
    except Exception as error:  # a fault of ours: the worker lives on, the requests and the log are told
        traceback.print_exc()
        return [{"failed": f"{type(error).__name__}: {error}"} for _ in content]
    return [{"refused": str(f)} if isinstance(f, DataError) else {"ok": f} for f in found]
