"""The queue with a worker that does as it is told: full, slow, hung, dead, unable to save."""

import asyncio
import os
import threading
import time

import pytest

from moeapps.core.errors import MoEAppsError
from moeapps.serve.batching import Backend, Busy, Limits, Refused, TooSlow, Unavailable, WorkFailed
from moeapps.serve.worker import WorkerDied, WorkerHung


class FakeWorker:
    """Doubles numbers; ``gate`` holds it back, ``fate`` says what becomes of it."""

    made: list["FakeWorker"]

    def __init__(self, path: str) -> None:
        if self.made and "fail start" in self.plan:
            self.plan.remove("fail start")
            raise MoEAppsError("no file")
        self.description = {"model": "Fake", "learns": True}
        self.sentinel, self._end = os.pipe()
        self.path, self.calls, self.fate, self.killed = path, [], "", False
        self.gate = threading.Event()
        self.gate.set()
        self.learned: list = []
        self.made.append(self)

    def ask(self, operation, content, timeout):
        if not self.gate.wait(timeout):
            raise WorkerHung
        self.calls.append((operation, content))
        if self.fate == "die":
            raise WorkerDied
        if operation == "save":
            return {"failed": "disk full"} if self.fate == "full" else {"ok": None}
        if operation == "learn":
            self.learned += content
        return [
            {"refused": "odd"} if x == "odd" else {"failed": "bug"} if x == "bug" else {"ok": 2 * x} for x in content
        ]

    def die(self) -> None:
        os.close(self._end)

    def kill(self) -> None:
        self.killed = True

    stop = kill


@pytest.fixture
def made(monkeypatch):
    monkeypatch.setattr(FakeWorker, "made", [], raising=False)
    monkeypatch.setattr(FakeWorker, "plan", [], raising=False)
    return FakeWorker.made


def run(scenario, **options):
    async def whole():
        backend = Backend("model", make_worker=FakeWorker, **options)
        backend.start()
        await backend.run()
        try:
            await asyncio.wait_for(scenario(backend), 20)
        finally:
            await backend.close()

    asyncio.run(whole())


async def until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


def test_what_waits_together_goes_together_in_order_and_within_the_limit(made):
    async def scenario(backend):
        worker = made[0]
        worker.gate.clear()
        first = asyncio.create_task(backend.ask("predict", 1, 1))
        await asyncio.sleep(0.05)
        asked = [("predict", 2, 1), ("predict", 3, 2), ("predict", 4, 2), ("learn", 5, 1), ("predict", 6, 1)]
        rest = [asyncio.create_task(backend.ask(*job)) for job in asked]
        await asyncio.sleep(0.05)
        assert backend.waiting == 5
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
    async def scenario(backend):
        assert await backend.ask("predict", 7, 500) == 14

    run(scenario, limits=Limits(batch_rows=3))


def test_a_full_queue_refuses_at_once_and_answers_the_others(made):
    async def scenario(backend):
        worker = made[0]
        worker.gate.clear()
        tasks = [asyncio.create_task(backend.ask("predict", i, 1)) for i in range(1)]
        await asyncio.sleep(0.05)
        tasks += [asyncio.create_task(backend.ask("predict", i, 1)) for i in range(1, 4)]
        await asyncio.sleep(0.05)
        start = time.monotonic()
        with pytest.raises(Busy):
            await backend.ask("predict", 9, 1)
        assert time.monotonic() - start < 1
        worker.gate.set()
        assert await asyncio.gather(*tasks) == [0, 2, 4, 6]

    run(scenario, limits=Limits(queue=3))


def test_what_is_given_up_while_it_waits_is_never_done(made):
    async def scenario(backend):
        worker = made[0]
        worker.gate.clear()
        first = asyncio.create_task(backend.ask("predict", 1, 1))
        await asyncio.sleep(0.05)
        second = asyncio.create_task(backend.ask("learn", 2, 1))
        await asyncio.sleep(0.05)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        worker.gate.set()
        assert await first == 2
        assert await backend.ask("predict", 3, 1) == 6
        assert worker.learned == []

    run(scenario)


def test_a_worker_that_hangs_is_replaced(made):
    async def scenario(backend):
        made[0].gate.clear()
        with pytest.raises(TooSlow):
            await backend.ask("predict", 1, 1)
        await until(lambda: len(made) == 2 and backend.ready)
        assert made[0].killed
        assert await backend.ask("predict", 1, 1) == 2

    run(scenario, limits=Limits(timeout=0.3))


def test_a_dead_worker_fails_who_waits_and_what_was_learned_is_taught_again(made):
    async def scenario(backend):
        worker = made[0]
        assert await backend.ask("learn", 1, 1) == 2
        with pytest.raises(Refused):
            await backend.ask("learn", "odd", 1)
        with pytest.raises(WorkFailed):
            await backend.ask("learn", "bug", 1)
        FakeWorker.plan.append("fail start")
        worker.fate = "die"
        worker.gate.clear()
        tasks = [asyncio.create_task(backend.ask("learn", i, 1)) for i in (5, 6)]
        await asyncio.sleep(0.05)
        worker.gate.set()
        assert all(isinstance(e, Unavailable) for e in await asyncio.gather(*tasks, return_exceptions=True))
        assert not backend.ready
        with pytest.raises(Unavailable):
            await backend.ask("predict", 1, 1)
        await until(lambda: backend.ready)
        assert made[1].learned == [1]  # neither what was refused nor what nobody was told of
        assert backend.restarts == 1
        made[1].die()  # while it is idle
        await until(lambda: len(made) == 3 and backend.ready)
        assert made[2].learned == [1]

    run(scenario, learn_to="learned")


def test_what_was_learned_is_saved_in_order_and_at_the_end(made):
    async def scenario(backend):
        await backend.ask("learn", 1, 1)
        assert backend.unsaved == 1
        await backend.save()
        assert (backend.unsaved, backend.saved_at is not None) == (0, True)
        await backend.save()  # nothing new: nothing to do
        await backend.ask("learn", 2, 1)

    run(scenario, learn_to="learned")
    assert [call[0] for call in made[0].calls] == ["learn", "save", "learn", "save"]


def test_a_disk_that_is_full_is_told_and_nothing_is_forgotten(made, caplog):
    async def scenario(backend):
        await backend.ask("learn", 1, 1)
        made[0].fate = "full"
        with pytest.raises(WorkFailed, match="disk full"):
            await backend.save()
        assert backend.unsaved == 1
        assert "disk full" in caplog.text
        made[0].fate = ""
        await backend.save()
        assert backend.unsaved == 0

    run(scenario, learn_to="learned")
