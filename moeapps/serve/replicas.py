"""Several servers of one model behind one port: the kernel gives each connection to one of them (SO_REUSEPORT).

1. A process per worker loads the model and listens.
2. Only when all are ready does the command say so.
3. A process that ends is started again; meanwhile connections go to the others.
4. SIGTERM and SIGINT end all of them, when they have answered.
5. SIGHUP lets all of them load the file anew. A client's request for this reaches one of them, the others follow.
"""

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from moeapps.core.errors import MoEAppsError

__all__ = ["Replicas", "end_with_parent"]

log = logging.getLogger("moeapps.serve")

LOAD = 180.0
"""Seconds that a process may take until it is ready."""

PAUSE = 2.0
"""Seconds before a process is started again that could not load the model."""

Work = Callable[[int, Connection], None]
"""What a process does; picklable. It sends ``{"ready": description}`` or ``{"failed": text}`` once, and ``{"reloaded":
path}`` when it was asked to load the file anew, and has done so."""


class Replicas:
    """Processes that serve, started again when they end.

    Parameters
    ----------
    count : int
        Number of processes.
    work : callable
        What each does, given its number and a pipe.

    Attributes
    ----------
    restarts : int
        How many ended unasked.
    """

    def __init__(self, count: int, work: Work) -> None:
        self._work, self.restarts = work, 0
        self._context = multiprocessing.get_context("spawn")
        self._processes: list[SpawnProcess] = []
        self._pipes: list[Connection] = []
        self._again: dict[int, float] = {}
        self._ended = False
        for number in range(count):
            process, pipe = self._launch(number)
            self._processes.append(process)
            self._pipes.append(pipe)

    def _launch(self, number: int) -> tuple[SpawnProcess, Connection]:
        pipe, child = self._context.Pipe()
        process = self._context.Process(target=self._work, args=(number, child))
        process.start()
        child.close()  # only the process has it now: when it ends, the pipe says so
        return process, pipe

    def wait_ready(self) -> dict[str, Any]:
        """Wait until all serve; what the last one says of its model.

        Raises
        ------
        MoEAppsError
            Why one cannot; then all are ended.
        """
        end = time.monotonic() + LOAD
        description: dict[str, Any] = {}
        try:
            for pipe in self._pipes:
                if not pipe.poll(max(0.0, end - time.monotonic())):
                    raise MoEAppsError(f"the model was not loaded within {LOAD:.0f} s")
                try:
                    first = pipe.recv()
                except EOFError:
                    raise MoEAppsError("a process ended while it loaded the model (out of memory?)") from None
                if "failed" in first:
                    raise MoEAppsError(first["failed"])
                description = first["ready"]
        except BaseException:
            self.end()
            raise
        return description

    def run(self) -> None:
        """Keep all of them running until SIGTERM or SIGINT."""
        stop = threading.Event()
        before = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, lambda *_: stop.set())
        signal.signal(signal.SIGHUP, lambda *_: self._tell(signal.SIGHUP))
        try:
            while not stop.is_set():
                alive = [number for number, process in enumerate(self._processes) if process.is_alive()]
                wait([*(self._processes[n].sentinel for n in alive), *(self._pipes[n] for n in alive)], 0.2)
                for number, process in enumerate(self._processes):
                    if process.is_alive():
                        self._hear(number)
                    elif not stop.is_set():
                        self._start_again(number)
        finally:
            self.end()
            for name, handler in before.items():
                signal.signal(name, handler)

    def _start_again(self, number: int) -> None:
        """Start a process that has ended; one that could not load the model waits a little."""
        now = time.monotonic()
        if number not in self._again:
            self.restarts += 1
            log.error("worker %d ended (exit status %s): it is started again", number, self._processes[number].exitcode)
            self._again[number] = now + (PAUSE if self._hear(number) else 0.0)
        if now >= self._again[number]:
            del self._again[number]
            self._pipes[number].close()
            self._processes[number], self._pipes[number] = self._launch(number)

    def _hear(self, number: int) -> bool:
        """Do what a process has sent; whether it tells of a failure, which is logged."""
        failed = False
        try:
            while self._pipes[number].poll():
                told = self._pipes[number].recv()
                if "failed" in told:
                    log.error("worker %d: %s", number, told["failed"])
                    failed = True
                elif "reloaded" in told:
                    self._tell(signal.SIGHUP, but=number)
        except (EOFError, OSError):  # it has ended
            pass
        return failed

    def _tell(self, what: int, but: int | None = None) -> None:
        for number, process in enumerate(self._processes):
            if number != but and process.is_alive() and process.pid is not None:
                os.kill(process.pid, what)

    def end(self) -> None:
        """Let all answer what they have, and end."""
        if self._ended:
            return
        self._ended = True
        self._tell(signal.SIGTERM)
        for process, pipe in zip(self._processes, self._pipes, strict=True):
            process.join(60)
            if process.is_alive():
                process.kill()
                process.join()
            pipe.close()


def end_with_parent(pipe: Connection) -> None:
    """In a process of :class:`Replicas`: end as by SIGTERM when the one that started it is gone."""

    def watch() -> None:
        try:
            pipe.recv()
        except (EOFError, OSError):
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
