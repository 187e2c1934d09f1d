"""The queue with a worker that does as it is told: full, slow, hung, dead, unable to save."""

import asyncio
import json
import os
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from moeapps.core.errors import MoEAppsError
from moeapps.serve.batching import Limits
from moeapps.serve.refusal import Refusal, model_failed
from moeapps.serve.worker import WorkerDied, WorkerHung
from tests.serve.scenarios import run_scenario


class FakeWorker:
    """Doubles numbers; ``gate`` holds it back, ``fate`` says what becomes of it."""

    made: list["FakeWorker"]

    def __init__(self, path: str) -> None:
        if self.made and "fail start" in self.plan:
            self.plan.remove("fail start")
            raise MoEAppsError("no file")
        self.description = {"model": "Fake", "kind": "fake", "learns": True}
        self.sentinel, self._end = os.pipe()
        self.calls, self.fate, self.killed = [], "", False
        self.gate = threading.Event()
        self.gate.set()
        self.learned: list = json.loads(Path(path).read_text())
        self.made.append(self)

    def call(self, operation, content, timeout):
        if not self.gate.wait(timeout):
            raise WorkerHung
        if operation != "ping":
            self.calls.append((operation, content))
        if self.fate == "die":
            raise WorkerDied
        if self.fate == "bug":
            raise TypeError("no one expects it")
        if operation == "save":
            if self.fate == "full":
                return [Refusal(503, "not_saved", "disk full")]
            Path(content[0]).write_text(json.dumps(self.learned))
            return [None]
        if operation == "ping":
            return [None]
        if operation == "learn":
            self.learned += [x for x in content if x not in ("odd", "bug")]
            if self.fate == "half":
                return [Refusal(500, "half_learned", "") for _ in content]
        return [
            Refusal(422, "invalid_data", x) if x == "odd" else model_failed() if x == "bug" else 2 * x for x in content
        ]

    def die(self) -> None:
        os.close(self._end)

    def kill(self) -> None:
        self.killed = True

    def stop(self, timeout: float = 5.0) -> None:
        self.killed = True


@pytest.fixture
def made(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("model").write_text("[]")
    monkeypatch.setattr(FakeWorker, "made", [], raising=False)
    monkeypatch.setattr(FakeWorker, "plan", [], raising=False)
    return FakeWorker.made


def run(scenario, **options):
    run_scenario(scenario, FakeWorker, **options)


@contextmanager
def refusal(code):
    with pytest.raises(Refusal) as caught:
        yield
    assert caught.value.code == code


async def until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


async def busy(made, server):
    """The worker, held back, with a request that it has taken."""
    made[0].gate.clear()
    first = asyncio.create_task(server.submit("predict", 1, 1))
    await asyncio.sleep(0.05)
    return made[0], first


def test_what_waits_together_goes_together_in_order_and_within_the_limit(made):
    async def scenario(server):
        worker, first = await busy(made, server)
        asked = [("predict", 2, 1), ("predict", 3, 2), ("predict", 4, 2), ("learn", 5, 1), ("predict", 6, 1)]
        rest = [asyncio.create_task(server.submit(*job)) for job in asked]
        await asyncio.sleep(0.05)
        assert server.waiting == 5
        worker.gate.set()
        assert await asyncio.gather(first, *rest) == [2, 4, 6, 8, 10, 12]
        assert worker.calls == [
            ("predict", [1]),
            ("predict", [2, 3]),
            ("predict", [4]),
            ("learn", [5]),
            ("predict", [6]),
        ]

    run(scenario, limits=Limits(batch_rows=3))


def test_one_too_large_goes_alone(made):
    async def scenario(server):
        assert await server.submit("predict", 7, 500) == 14

    run(scenario, limits=Limits(batch_rows=3))


def test_a_full_queue_refuses_at_once_and_answers_the_others(made):
    async def scenario(server):
        worker, first = await busy(made, server)
        tasks = [asyncio.create_task(server.submit("predict", i, 1)) for i in range(1, 4)]
        await asyncio.sleep(0.05)
        start = time.monotonic()
        with refusal("queue_full"):
            await server.submit("predict", 9, 1)
        assert time.monotonic() - start < 1
        worker.gate.set()
        assert await asyncio.gather(first, *tasks) == [2, 2, 4, 6]

    run(scenario, limits=Limits(queue=3))


def test_a_request_cancelled_in_the_queue_is_never_done(made):
    async def scenario(server):
        worker, first = await busy(made, server)
        second = asyncio.create_task(server.submit("learn", 2, 1))
        await asyncio.sleep(0.05)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        worker.gate.set()
        assert await first == 2
        assert await server.submit("predict", 3, 1) == 6
        assert worker.learned == []

    run(scenario)


def test_a_worker_that_hangs_is_replaced(made):
    async def scenario(server):
        made[0].gate.clear()
        with refusal("timeout"):
            await server.submit("predict", 1, 1)
        await until(lambda: len(made) == 2 and server.ready)
        assert made[0].killed
        assert await server.submit("predict", 1, 1) == 2

    run(scenario, limits=Limits(timeout=0.3, hang=0.6))


def test_requests_of_a_dead_worker_are_refused_and_what_it_learned_is_learned_again(made):
    async def scenario(server):
        worker = made[0]
        assert await server.submit("learn", 1, 1) == 2
        with refusal("invalid_data"):
            await server.submit("learn", "odd", 1)
        with refusal("model_failed"):
            await server.submit("learn", "bug", 1)
        FakeWorker.plan.append("fail start")
        worker.fate = "die"
        worker.gate.clear()
        tasks = [asyncio.create_task(server.submit("learn", i, 1)) for i in (5, 6)]
        await asyncio.sleep(0.05)
        worker.gate.set()
        assert [e.code for e in await asyncio.gather(*tasks, return_exceptions=True)] == ["no_worker"] * 2
        assert not server.ready
        with refusal("no_worker"):
            await server.submit("predict", 1, 1)
        await until(lambda: server.ready)
        assert made[1].learned == [1]  # neither what was refused nor what nobody was told of
        assert server.restarts == 1
        made[1].die()  # while it is idle
        await until(lambda: len(made) == 3 and server.ready)
        assert made[2].learned == [1]

    run(scenario, learn_to="learned")


def test_what_was_learned_is_saved_in_order_and_at_the_end(made):
    async def scenario(server):
        await server.submit("learn", 1, 1)
        assert server.unsaved == 1
        await server.save()
        assert (server.unsaved, server.saved_at is not None) == (0, True)
        await server.save()  # nothing new: nothing to do
        await server.submit("learn", 2, 1)

    run(scenario, learn_to="learned")
    assert [call[0] for call in made[0].calls] == ["learn", "save", "learn", "save"]


def test_a_disk_that_is_full_is_told_and_nothing_is_forgotten(made, caplog):
    async def scenario(server):
        await server.submit("learn", 1, 1)
        made[0].fate = "full"
        with refusal("not_saved"):
            await server.save()
        assert server.unsaved == 1
        assert "disk full" in caplog.text
        made[0].fate = ""
        await server.save()
        assert server.unsaved == 0

    run(scenario, learn_to="learned")


def test_an_unexpected_error_fails_its_batch_and_not_the_server(made, caplog):
    async def scenario(server):
        made[0].fate = "bug"
        with refusal("model_failed"):
            await server.submit("predict", 1, 1)
        assert "no one expects it" in caplog.text
        made[0].fate = ""
        assert await server.submit("predict", 1, 1) == 2

    run(scenario)
