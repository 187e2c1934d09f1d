"""What was answered 200 is learned once and for good; what was not answered 200 is never learned."""

import asyncio
import json
import os
from pathlib import Path

import pytest

from moeapps.core.errors import ConfigError, FileFormatError, MoEAppsError
from moeapps.core.files import locked
from moeapps.serve import journal as journal_module
from moeapps.serve.batching import Limits, ModelServer
from moeapps.serve.journal import Journal
from moeapps.serve.limits import MAX_CELLS
from moeapps.serve.refusal import Refusal
from moeapps.serve.services import open_service
from moeapps.stream import DriftMoEClassifier

from .conftest import events, local
from .test_batching import FakeWorker, busy, made, refusal, run, until  # noqa: F401


def instances(part) -> dict:
    return {"rows": [{"x": x, "y": y} for x, y in part]}


def record(content, key=None) -> dict:
    return {"learn": content, "answer": {"n": content}, "key": key, "fingerprint": key and f"print of {key}"}


# --- the journal


def test_a_journal_gives_back_what_the_model_file_lacks_wherever_the_process_ended(tmp_path):
    path = tmp_path / "m.journal"
    first = Journal(path)
    first.open("A")
    first.append([record(1, "k"), record(2)])
    first.mark_saved("B")  # the server was killed before, or after, it moved the file B into place
    first.append([record(3)])
    for base, expected in (("A", [1, 2, 3]), ("B", [3])):
        again = Journal(path)
        again.open(base)
        assert list(again.replay()) == expected
        assert again.pending == len(expected)
        assert again.keys == {"k": ("print of k", {"n": 1})}
    with pytest.raises(ConfigError, match="holds 1 learned requests that belong to another model file"):
        Journal(path).open("C")
    again.restart("D")
    last = Journal(path)
    last.open("D")
    assert (list(last.replay()), list(last.keys)) == ([], ["k"])
    other = Journal(path)  # nothing waits in it: another model may begin
    other.open("E")
    assert not other.keys
    other.close()
    assert not path.exists()


@pytest.mark.parametrize("tail", [b"\0" * 4096, b"0badbad0 {", b"x\n", b""])
def test_a_journal_that_was_cut_short_loses_only_what_was_never_answered(tmp_path, tail):
    path = tmp_path / "m.journal"
    first = Journal(path)
    first.open("A")
    first.append([record(1)])
    with open(path, "ab") as file:
        file.write(tail)
    again = Journal(path)
    again.open("A")
    again.append([record(2)])
    last = Journal(path)
    last.open("A")
    assert list(last.replay()) == [1, 2]


def test_a_journal_that_is_damaged_in_its_middle_is_refused(tmp_path):
    path = tmp_path / "m.journal"
    first = Journal(path)
    first.open("A")
    first.append([record(1), record(2)])
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"learn": 1', b'"learn": 7'))
    with pytest.raises(FileFormatError, match="damaged at byte"):
        Journal(path).open("A")


def test_a_journal_remembers_a_bounded_number_of_keys(tmp_path):
    journal = Journal(tmp_path / "m.journal", keys=3)
    journal.open("A")
    for i in range(10):
        journal.append([record(i, f"k{i}")])
    journal.restart("B")
    again = Journal(tmp_path / "m.journal", keys=3)
    again.open("B")
    assert list(again.keys) == ["k7", "k8", "k9"]


# --- deaths, disks and time


def test_what_cannot_be_written_is_not_learned(made, monkeypatch):  # noqa: F811
    async def scenario(server):
        await server.submit("learn", 1, 1)

        def full(*arguments):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch, refusal("not_saved"):
            patch.setattr(journal_module.os, "posix_fallocate", full, raising=False)
            await server.submit("learn", 2, 1)
        assert made[0].learned == [1]  # it was refused before
        with monkeypatch.context() as patch, refusal("no_worker"):  # the model has it already, so it is thrown away
            patch.setattr(journal_module.os, "pwrite", full)
            await server.submit("learn", 3, 1)
        await until(lambda: server.ready)
        assert made[1].learned == [1]

    run(scenario, learn_to="learned")


def test_a_request_answered_504_is_not_learned_and_one_that_is_being_learned_is_answered_late(made):  # noqa: F811
    async def scenario(server):
        worker = made[0]
        worker.gate.clear()
        late = asyncio.create_task(server.submit("learn", 1, 1))
        await asyncio.sleep(0.05)
        with refusal("timeout"):
            await server.submit("learn", 2, 1)  # it waited in the queue
        assert not late.done()
        worker.gate.set()
        assert await late == 2
        await server.submit("predict", 3, 1)
        assert worker.learned == [1]

    run(scenario, learn_to="learned", limits=Limits(timeout=0.2, hang=10))


def test_a_request_that_is_being_learned_when_the_worker_hangs_is_answered_504_and_not_learned(made):  # noqa: F811
    async def scenario(server):
        made[0].gate.clear()
        with refusal("timeout"):
            await server.submit("learn", 1, 1)
        await until(lambda: server.ready)
        assert (len(made), made[1].learned, server.unsaved) == (2, [], 0)

    run(scenario, learn_to="learned", limits=Limits(timeout=0.1, hang=0.4))


def test_a_server_that_ends_while_its_worker_is_replaced_waits_and_saves(made):  # noqa: F811
    async def scenario(server):
        await server.submit("learn", 1, 1)
        FakeWorker.plan.append("fail start")
        made[0].die()
        await until(lambda: not server.ready)

    run(scenario, learn_to="learned")
    assert json.loads(Path("learned").read_text()) == [1]
    assert not Path("learned.journal").exists()


def test_what_could_not_be_saved_at_the_end_is_told_and_is_in_the_journal(made, caplog):  # noqa: F811
    servers = []

    async def scenario(server):
        servers.append(server)
        await server.submit("learn", 1, 1)
        made[0].fate = "full"

    run(scenario, learn_to="learned")
    assert servers[0].unsaved == 1  # upon which the command exits with 1
    assert "1 learned requests are not in learned, only in learned.journal" in caplog.text

    async def again(server):
        assert made[1].learned == [1]

    run(again, learn_to="learned")
    assert json.loads(Path("learned").read_text()) == [1]


def test_a_worker_that_dies_after_a_save_learns_only_what_came_after_it(made):  # noqa: F811
    async def scenario(server):
        await server.submit("learn", 1, 1)
        await server.save()
        await server.submit("learn", 2, 1)
        Path("learned").write_text("[666]")  # somebody else's hand; the server goes on with its own
        made[0].die()
        await until(lambda: len(made) == 2 and server.ready)
        assert made[1].learned == [1, 2]

    run(scenario, learn_to="learned")
    assert json.loads(Path("learned").read_text()) == [1, 2]


def test_too_much_for_a_disk_that_refuses_the_model_is_refused(made):  # noqa: F811
    async def scenario(server):
        made[0].fate = "full"
        await server.submit("learn", "x" * 2000, 1)
        with refusal("not_saved"):
            await server.submit("learn", 2, 1)
        assert await server.submit("predict", 2, 1) == 4
        made[0].fate = ""
        await until(lambda: server.unsaved == 0)  # it saves early, since there is much
        await server.submit("learn", 2, 1)

    run(scenario, learn_to="learned", limits=Limits(journal_bytes=1000, save_every=100))


# --- idempotency keys


def test_a_key_teaches_once_also_after_a_death_a_save_and_a_restart(made):  # noqa: F811
    async def scenario(server):
        assert await server.learn(1, 1, "a") == (2, False)
        assert await server.learn(1, 1, "a") == (2, True)
        with refusal("key_reused"):
            await server.learn(2, 1, "a")
        with refusal("invalid_data"):
            await server.learn("odd", 1, "b")
        with refusal("invalid_data"):  # refused is refused: nothing is remembered
            await server.learn("odd", 1, "b")
        worker, first = await busy(made, server)
        both = [asyncio.create_task(server.learn(5, 1, "c")) for _ in range(2)]
        await asyncio.sleep(0.05)
        worker.gate.set()
        assert await asyncio.gather(*both) == [(10, False), (10, True)]
        await first
        made[0].die()
        await until(lambda: len(made) == 2 and server.ready)
        assert made[1].learned == [1, 5]
        assert await server.learn(1, 1, "a") == (2, True)
        await server.save()
        assert await server.learn(5, 1, "c") == (10, True)

    run(scenario, learn_to="learned")

    async def again(server):
        assert await server.learn(1, 1, "a") == (2, True)
        assert await server.learn(7, 1, "d") == (14, False)
        assert made[2].learned == [1, 5, 7]

    run(again, learn_to="learned")


def test_a_key_whose_request_was_given_up_is_free_again(made):  # noqa: F811
    async def scenario(server):
        worker, first = await busy(made, server)
        with refusal("timeout"):
            await server.learn(1, 1, "a")
        await asyncio.gather(first, return_exceptions=True)
        worker.gate.set()
        assert await server.learn(1, 1, "a") == (2, False)
        assert worker.learned == [1]

    run(scenario, learn_to="learned", limits=Limits(timeout=0.2, hang=10))


def test_the_header_idempotency_key_is_read_and_what_is_none_is_refused(stream, tmp_path):
    with local(stream, tmp_path / "learned.safetensors") as client:
        body, key = instances(events(3)), {"Idempotency-Key": "order 7"}
        first = client.post("/learn", json=body, headers=key)
        again = client.post("/learn", json=body, headers=key)
        assert first.json() == again.json()
        assert {name: first.json()[name] for name in ("learned", "total")} == {"learned": 3, "total": 53}
        assert "Idempotency-Replayed" not in first.headers
        assert again.headers["Idempotency-Replayed"] == "true"
        other = client.post("/learn", json=instances(events(2)), headers=key)
        assert (other.status_code, other.json()["code"]) == (422, "key_reused")
        for bad in ("", "x" * 256, "\x01", [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]):
            headers = bad if isinstance(bad, list) else {"Idempotency-Key": bad}
            assert client.post("/learn", json=body, headers=headers).json()["code"] == "invalid_key"
        assert client.get("/info").json()["learned"] == 53


# --- one writer, and what /info says


def test_a_second_server_for_the_same_file_is_refused_and_so_is_a_file_that_cannot_be_written(made, tmp_path):  # noqa: F811
    with locked(tmp_path / "learned"), pytest.raises(MoEAppsError, match=f"--learn.*process {os.getpid()}"):
        ModelServer("model", "learned", make_worker=FakeWorker).start()
    Path("folder").mkdir()
    with pytest.raises(MoEAppsError, match="--learn: folder is a folder"):
        ModelServer("model", "folder", make_worker=FakeWorker).start()
    Path("file").touch()
    with pytest.raises(MoEAppsError, match="--learn: file/learned cannot be written"):
        ModelServer("model", "file/learned", make_worker=FakeWorker).start()
    assert made == []
    server = ModelServer("model", "learned", make_worker=FakeWorker)  # the lock of a refused start is not kept
    server.start()
    with pytest.raises(MoEAppsError, match="is being written by another process"):
        ModelServer("model", "learned", make_worker=FakeWorker).start()
    asyncio.run(server.close())


def test_info_tells_what_was_learned_since_the_start(stream, tmp_path):
    with local(stream, tmp_path / "learned.safetensors") as client:
        assert client.get("/info").json()["learned"] == 50
        client.post("/learn", json={"rows": [{"x": {"a": 1.0, "new": 2.0}, "y": True}]})
        info = client.get("/info").json()
        assert (info["learned"], info["unsaved_requests"]) == (51, 1)
        assert "new" in info["features"]


# --- the model itself


def test_rows_times_new_features_are_bounded_before_a_table_is_made(stream):
    service = open_service(stream)
    rows = [{"x": {f"new {i}": 1.0}, "y": True} for i in range(1100)]
    good = instances(events(2))
    first, wide, last = service.learn([good, {"rows": rows}, good])
    assert isinstance(wide, Refusal)
    assert f"1100 rows with 1100 different features make a table of 1210000 cells, at most {MAX_CELLS}" in str(wide)
    assert (first["total"], last["total"]) == (52, 54)


class Broken(DriftMoEClassifier):
    """Fails at a feature, before or after it has learned."""

    def learn_many(self, X, y):
        if "early" in X:
            raise RuntimeError("early")
        super().learn_many(X, y)
        if "late" in X:
            raise RuntimeError("late")


def test_an_error_of_the_model_costs_only_the_request_and_a_half_learned_model_is_thrown_away(stream):
    service = open_service(stream)
    service.model.__class__ = Broken
    good, early, late = ({"rows": [{"x": {name: 1.0}, "y": True}]} for name in ("a", "early", "late"))
    one, failed, two = service.learn([good, early, good])
    assert (one["total"], failed.code, two["total"]) == (51, "model_failed", 52)
    three, broken, after = service.learn([good, late, good])
    assert (three["total"], broken.code, after.code) == (53, "half_learned", "no_worker")


def test_after_a_half_learned_request_the_server_goes_on_as_if_it_had_never_come(made):  # noqa: F811
    async def scenario(server):
        await server.submit("learn", 1, 1)
        made[0].fate = "half"
        with refusal("half_learned"):
            await server.submit("learn", 2, 1)
        await until(lambda: len(made) == 2 and server.ready)
        assert made[1].learned == [1]

    run(scenario, learn_to="learned")
