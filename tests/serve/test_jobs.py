"""The queue: what goes together, and how a large request is cut, given up and put together again."""

import asyncio

import pytest

from moeapps.serve.batching import Limits, ModelServer
from moeapps.serve.jobs import Job, JobQueue
from moeapps.serve.refusal import Refusal
from tests.serve.scenarios import run_scenario

from .test_batching import FakeWorker, made, refusal, until  # noqa: F401


class RowWorker(FakeWorker):
    """Doubles the rows of each request; -1 is refused with its place, 0 takes a second."""

    def call(self, operation, contents, timeout):
        if operation != "predict":
            return super().call(operation, contents, timeout)
        self.gate.wait(timeout)
        self.calls.append([list(content["rows"]) for content in contents])
        self.gate.clear() if self.fate == "step" else None
        answers = []
        for content in contents:
            rows = content["rows"]
            bad = rows.index(-1) if -1 in rows else None
            answers.append([2 * x for x in rows] if bad is None else Refusal(422, "invalid_data", f"rows.{bad} is bad"))
        return answers


def serve(scenario, **options):
    run_scenario(scenario, RowWorker, **options)


def rows(*values) -> dict:
    return {"rows": list(values)}


def test_a_large_request_is_cut_and_its_answer_is_whole(made):  # noqa: F811
    async def scenario(server):
        assert await server.submit("predict", rows(*range(1, 23)), 22) == [2 * x for x in range(1, 23)]
        sizes = [[len(part) for part in call] for call in made[0].calls]
        assert max(sum(call) for call in sizes) <= 8
        assert sum(sum(call) for call in sizes) == 22

    serve(scenario, limits=Limits(batch_rows=8))


def test_small_requests_take_turns_with_a_large_one(made):  # noqa: F811
    async def scenario(server):
        made[0].gate.clear()
        large = asyncio.create_task(server.submit("predict", rows(*[1] * 100), 100))
        await asyncio.sleep(0.05)
        small = [asyncio.create_task(server.submit("predict", rows(7), 1)) for _ in range(2)]
        await asyncio.sleep(0.05)
        made[0].gate.set()
        assert await asyncio.gather(*small) == [[14], [14]]
        assert not large.done()
        await large
        assert [7] in made[0].calls[1]  # not behind the other 96 rows

    serve(scenario, limits=Limits(batch_rows=8))


def test_only_the_slow_request_ends_and_the_worker_stays(made):  # noqa: F811
    async def scenario(server):
        made[0].fate = "step"  # one call per opening of the gate

        async def slowly():
            while True:
                await asyncio.sleep(0.05)
                made[0].gate.set()

        ticking = asyncio.create_task(slowly())
        slow = asyncio.create_task(server.submit("predict", rows(*[1] * 100), 100))
        await asyncio.sleep(0.1)
        done = 0
        while not slow.done():
            assert await server.submit("predict", rows(7), 1) == [14]
            done += 1
        with refusal("timeout"):
            await slow
        ticking.cancel()
        made[0].gate.set()
        made[0].fate = ""
        assert done > 2
        calls = len(made[0].calls)
        assert await server.submit("predict", rows(7), 1) == [14]
        assert len(made[0].calls) == calls + 1  # of what was given up nothing is computed any more
        assert (server.restarts, len(made)) == (0, 1)

    serve(scenario, limits=Limits(batch_rows=2, timeout=0.8))


def test_a_refused_piece_refuses_the_request_with_the_place_in_the_whole(made):  # noqa: F811
    async def scenario(server):
        with pytest.raises(Refusal, match="rows.13 is bad") as caught:
            await server.submit("predict", rows(*[1] * 13, -1, *[1] * 20), 34)
        assert caught.value.message == "rows.13 is bad"

    serve(scenario, limits=Limits(batch_rows=8))


def test_a_request_cut_between_two_models_is_computed_anew_by_the_second(made):  # noqa: F811
    async def scenario(server):
        made[0].gate.clear()
        task = asyncio.create_task(server.submit("predict", rows(*range(1, 21)), 20))
        await asyncio.sleep(0.05)
        server._queue.begin_anew()  # what a reload does
        made[0].gate.set()
        assert await task == [2 * x for x in range(1, 21)]
        assert sum(len(part) for call in made[0].calls for part in call) > 20

    serve(scenario, limits=Limits(batch_rows=8))


def test_learning_is_never_cut_and_nothing_is_predicted_across_it():
    async def scenario():
        queue = JobQueue(Limits(batch_rows=4))
        for operation, count in (("predict", 10), ("learn", 9), ("learn", 1), ("predict", 1)):
            queue.put(Job(operation, rows(*range(count)), count))
        batches = []
        while batch := queue.next_batch():
            batches.append((batch[0].job.operation, [piece.rows for piece in batch]))
        assert batches == [
            ("predict", [2]), ("predict", [2]), ("predict", [2]), ("predict", [4]),
            ("learn", [9]), ("learn", [1]), ("predict", [1]),
        ]  # fmt: skip

    asyncio.run(scenario())


def test_pieces_become_smaller_when_the_model_is_slow_and_larger_when_it_is_fast():
    queue = JobQueue(Limits(batch_rows=64))
    queue.adapt(64, 2.0)
    assert queue.piece_rows == 8
    queue.adapt(1, 5.0)  # one slow row says little
    assert queue.piece_rows == 4
    queue.adapt(4, 9.0)
    assert queue.piece_rows == 1
    for _ in range(9):
        queue.adapt(queue.piece_rows, 0.01)
    assert queue.piece_rows == 64


def test_waiting_bytes_are_bounded():
    async def scenario():
        queue = JobQueue(Limits(queue_bytes=1000))
        queue.put(Job("predict", rows(1), 1, size=5000))  # one alone may always wait
        with refusal("queue_full"):
            queue.put(Job("predict", rows(1), 1, size=1))

    asyncio.run(scenario())


def test_a_server_that_is_closed_just_when_something_comes_ends(made):  # noqa: F811
    async def scenario():
        for _ in range(20):
            server = ModelServer("model", make_worker=RowWorker)
            server.start()
            await server.run()
            await asyncio.sleep(0.01)
            server._something.set()  # and the task is cancelled before it has seen it
            await asyncio.wait_for(server.close(), 10)

    asyncio.run(scenario())


def test_readiness_is_lost_when_the_worker_is_silent_and_comes_back(made, monkeypatch):  # noqa: F811
    monkeypatch.setattr("moeapps.serve.batching.SILENT", 0.2)
    monkeypatch.setattr("moeapps.serve.batching.PING", 0.05)

    async def scenario(server):
        await asyncio.sleep(0.2)
        assert server.ready
        made[0].gate.clear()  # nobody asks anything: the server itself notices
        await until(lambda: not server.ready)
        assert server.why_not_ready == "the model has not answered for 0 s"
        assert server.live
        made[0].gate.set()
        await until(lambda: server.ready)
        assert server.restarts == 0
        made[0].gate.clear()
        await until(lambda: server.restarts == 1 and server.ready)

    serve(scenario, limits=Limits(hang=2.0))
