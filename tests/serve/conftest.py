"""Saved models, a client of an application in this process, and a server in a process of its own."""

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import psutil
import pytest
from starlette.testclient import TestClient

from moeapps import DriftMoEClassifier, MoEClassifier
from moeapps.serve.app import make_app
from moeapps.serve.batching import Limits, ModelServer
from moeapps.serve.refusal import Refusal
from moeapps.serve.services import open_service
from moeapps.serve.worker import answer_all
from tests.processes import Command

ROW = {"age of": 30, "city": "Rome", "visits": 2}
"""A row that the table's model takes."""


def people(n: int = 200) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    cities = rng.choice(["Rome", "Oslo"], n)
    return pd.DataFrame({"age of": rng.normal(40, 9, n), "city": cities, "visits": rng.integers(0, 5, n)})


def events(n: int, seed: int = 0) -> list[tuple[dict, bool]]:
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        x = {"a": float(rng.normal()), "colour": str(rng.choice(["red", "blue"]))}
        found.append((x, bool((x["a"] > 0) ^ (x["colour"] == "red"))))
    return found


@pytest.fixture(scope="session")
def table(tmp_path_factory) -> Path:
    frame = people()
    labels = np.where((frame["age of"] > 40) ^ (frame["city"] == "Rome"), "yes", "no")
    path = tmp_path_factory.mktemp("models") / "table.safetensors"
    MoEClassifier(num_experts=4, max_epochs=5, random_state=0).fit(frame, labels).save(path)
    return path


@pytest.fixture(scope="session")
def stream(tmp_path_factory) -> Path:
    model = DriftMoEClassifier(n_experts=3, seed=1)
    for x, y in events(50, seed=9):
        model.learn_one(x, y)
    path = tmp_path_factory.mktemp("models") / "stream.safetensors"
    model.save(path)
    return path


class LocalWorker:
    """Does in this process what a worker does in its own, JSON included."""

    def __init__(self, path: str) -> None:
        self.service = open_service(path)
        self.description = json.loads(json.dumps(self.service.describe()))
        self.sentinel, self._end = os.pipe()

    def call(self, operation: str, contents: list, timeout: float) -> list:
        content = json.loads(json.dumps(contents, allow_nan=False))
        answers = json.loads(json.dumps(answer_all(self.service, operation, content), allow_nan=False))
        return [Refusal(**a["refusal"]) if "refusal" in a else a["ok"] for a in answers]

    def stop(self, timeout: float = 5.0) -> None:
        os.close(self._end)
        os.close(self.sentinel)


@contextmanager
def local(path: object, learn_to: object = None, save_every: float = 30.0, **options: object) -> Iterator[TestClient]:
    """A client of an application in this process; the model answers in this process too."""
    target = None if learn_to is None else str(learn_to)
    server = ModelServer(str(path), target, Limits(save_every=save_every), make_worker=LocalWorker)
    with TestClient(make_app(server, server.start(), **options), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def client(table):
    """A client of the table's model, with a limit of 20,000 bytes."""
    with local(table, max_body=20000) as found:
        yield found


class Server:
    """`moeapps serve` in a process of its own."""

    def __init__(self, *arguments: object, **environment: str) -> None:
        self.process = Command(["serve", *arguments, "--port", "0"], **environment)
        self.line = self.process.stdout.readline()
        found = re.search(r"http://\S+:\d+", self.line)
        assert found, self.process.stderr.read()
        self.http = httpx.Client(base_url=found.group(), timeout=60)

    def worker(self) -> int:
        """Process id of the worker."""
        children = psutil.Process(self.process.pid).children()
        return next(child.pid for child in children if "spawn_main" in " ".join(child.cmdline()))

    def kill_worker(self) -> None:
        os.kill(self.worker(), signal.SIGKILL)

    def wait_ready(self, seconds: float = 60.0, status: int = 200) -> None:
        """Wait until ``/health`` answers 200, or 503 where that is asked for."""
        end = time.monotonic() + seconds
        while (found := self.http.get("/health").status_code) != status:
            assert time.monotonic() < end, f"/health still answers {found}"
            time.sleep(0.02)

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *error: object) -> None:
        self.http.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdout, self.process.stderr):
            pipe.close()


@pytest.fixture(scope="module")
def server(table):
    with Server(table) as running:
        yield running
