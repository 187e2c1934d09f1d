"""New processes that need not import torch: they are forked from one that has done so, once per worker of pytest.

A test of signals, of death or of several processes needs a process of its own, not the five seconds of its imports.
Where the start itself is in question, as for `python -m moeapps`, a test runs `sys.executable`.
"""

import atexit
import multiprocessing
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from torch.multiprocessing import start_processes

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "moeapps.cli.main", "moeapps.cli.training", "moeapps.cli.stream_job", "moeapps.serve.app", "moeapps.tables",
        "moeapps.graph", "moeapps.recsys", "moeapps.vision", "moeapps.stream.group", "confluent_kafka",
    ]
)  # fmt: skip


def run_two(worker: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Run ``worker(rank, *arguments)`` in two processes to the end of both."""
    start_processes(worker, arguments, nprocs=2, start_method="forkserver")


def end_loaders(error: BaseException | None) -> None:
    """End the workers of loaders that an error came from. The collector of garbage would wait five seconds for each."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _become(
    code: str | None, words: list[str], cwd: str, environment: dict[str, str], pipes: tuple[Connection, Connection]
) -> None:
    """Be `moeapps WORDS`, or `python -c CODE WORDS`."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for number, pipe in enumerate(pipes, start=1):
        os.dup2(pipe.fileno(), number)
    for pipe in set(pipes):
        pipe.close()
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    sys.argv = ["moeapps" if code is None else "-c", *words]
    if code is None:
        from moeapps.cli.main import main

        raise SystemExit(main())
    sys.path.insert(0, "")
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})


class Command:
    """`moeapps ARGUMENTS` in a process of its own, with the names of `subprocess.Popen`.

    Parameters
    ----------
    arguments : sequence
        What follows `moeapps` on the command line.
    cwd : path, default "."
        The folder to run in.
    code : str, optional
        Run this Python program with the arguments, instead of `moeapps`.
    merged : bool, default False
        Whether what is written to stderr comes with stdout.
    **environment : str
        Variables besides those of this process.
    """

    def __init__(
        self, arguments: Sequence[object], cwd: Path | str = ".", code: str | None = None, merged: bool = False,
        **environment: str,
    ) -> None:  # fmt: skip
        words = [str(argument) for argument in arguments]
        (out, write_out), (error, write_error) = (CONTEXT.Pipe(duplex=False) for _ in range(2))
        pipes = (write_out, write_out if merged else write_error)
        given = (code, words, os.path.abspath(cwd), {**os.environ, **environment}, pipes)
        self.process = CONTEXT.Process(target=_become, args=given)
        self.process.start()
        atexit.register(self.kill)  # before multiprocessing waits for it
        for pipe in (write_out, write_error):
            pipe.close()
        self.stdout, self.stderr = (os.fdopen(os.dup(pipe.fileno())) for pipe in (out, error))
        for pipe in (out, error):
            pipe.close()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("moeapps", timeout or 0.0)
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        if self.process.exitcode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.process.kill()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Everything that it has still to say, once it has ended."""
        with self.stdout, self.stderr, ThreadPoolExecutor(2) as pool:
            texts = [pool.submit(pipe.read) for pipe in (self.stdout, self.stderr)]
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()  # the threads read to the end of the pipes
                raise
            return texts[0].result(), texts[1].result()

    def __del__(self) -> None:
        for pipe in (getattr(self, "stdout", None), getattr(self, "stderr", None)):
            if pipe is not None:
                pipe.close()
