"""The server's end of the pipe, without a process at the other end."""

import multiprocessing
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from moeapps.serve.worker import Worker, WorkerDied, _send


def test_a_pipe_is_not_closed_during_a_call():
    worker = Worker.__new__(Worker)
    worker._calling = threading.Lock()
    worker._pipe, child = multiprocessing.Pipe()
    worker.process = SimpleNamespace(kill=child.close, join=lambda timeout: None)
    waits, goes_on = threading.Event(), threading.Event()

    def receive(timeout):
        waits.set()
        goes_on.wait(5)
        assert not worker._pipe.closed
        return Worker._receive(worker, timeout)

    worker._receive = receive
    with ThreadPoolExecutor(2) as pool:
        call = pool.submit(worker.call, "predict", [1], 5.0)
        assert waits.wait(5)
        killing = pool.submit(worker.kill)
        time.sleep(0.05)
        goes_on.set()
        with pytest.raises(WorkerDied):
            call.result()
        killing.result()
    assert worker._pipe.closed


def test_a_worker_whose_server_has_ended_meanwhile_ends_quietly(monkeypatch):
    def end(status):
        raise SystemExit(status)

    server, worker = multiprocessing.Pipe()
    server.close()
    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(SystemExit, match="0"):
        _send(worker, b"{}")
