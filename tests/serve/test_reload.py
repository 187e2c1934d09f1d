"""The model is served as it was loaded until it is reloaded; health, metrics and log; requests that poison."""

import asyncio
import json
import logging
import os
import shutil
from pathlib import Path

import pytest

import moeapps
from moeapps import MoEClassifier
from moeapps.core.errors import MoEAppsError
from moeapps.serve.batching import ModelServer
from moeapps.serve.log import Bounded
from moeapps.serve.services import TableService, open_service
from moeapps.serve.worker import _to_json, answer_all

from .conftest import ROW, LocalWorker, local, people
from .test_batching import FakeWorker, made, refusal, run, until  # noqa: F401

TOKEN = {"Authorization": "Bearer t"}
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def others(tmp_path_factory) -> dict[str, Path]:
    """A model with the columns of the table's, and one with others."""
    folder, frame = tmp_path_factory.mktemp("others"), people(60)
    found = {}
    for name, columns in (("same", list(frame.columns)), ("narrow", ["age of"])):
        model = MoEClassifier(num_experts=2, max_epochs=1, random_state=3).fit(frame[columns], ["no", "yes"] * 30)
        model.save(folder / name)
        found[name] = folder / name
    return found


def ask(client) -> dict:
    answer = client.post("/predict", json={"rows": [ROW]}, headers=TOKEN)
    assert answer.status_code == 200
    return answer.json()["predictions"][0]


def test_a_reload_serves_the_new_file_and_one_with_other_columns_is_refused(table, others, tmp_path):
    path = tmp_path / "model.safetensors"
    shutil.copy(table, path)
    told: list[bool] = []
    with local(path, token="t", reloaded=lambda: told.append(True)) as client:
        assert client.post("/reload").status_code == 401
        before = ask(client)
        shutil.copy(others["narrow"], path)
        assert ask(client) == before
        answer = client.post("/reload", headers=TOKEN)
        assert (answer.status_code, answer.json()["code"]) == (409, "not_reloaded")
        assert "model.safetensors takes other requests than the model that is served (columns: missing " in answer.text
        path.write_bytes(b"x" * 100)
        answer = client.post("/reload", headers=TOKEN)
        assert answer.status_code == 409
        assert str(path) in answer.text  # and not the name of a copy
        path.unlink()
        assert client.post("/reload", headers=TOKEN).status_code == 409
        assert ask(client) == before
        assert not told, "other servers do not follow"
        shutil.copy(others["same"], path)
        answer = client.post("/reload", headers=TOKEN)
        assert (answer.status_code, answer.json()["columns"]) == (
            200,
            client.get("/info", headers=TOKEN).json()["columns"],
        )
        assert told == [True]
        after = ask(client)
        assert after != before
        expected = moeapps.load(path).predict_proba(people(1).assign(**{k: [v] for k, v in ROW.items()}))[0, 1]
        assert after["probability_yes"] == pytest.approx(expected, abs=1e-6)


def test_without_a_token_nobody_reloads_and_a_server_that_learns_does_not(table, stream, tmp_path):
    with local(table) as client:
        answer = client.post("/reload")
        assert (answer.status_code, answer.json()["code"]) == (403, "reload_needs_token")
    with local(stream, tmp_path / "learned", token="t") as client:
        answer = client.post("/reload", headers=TOKEN)
        assert (answer.status_code, answer.json()["code"]) == (409, "not_reloaded")


def test_a_new_worker_serves_what_was_loaded_not_what_is_in_the_file_now(made):  # noqa: F811
    async def scenario(server):
        Path("model").write_text("[1]")
        made[0].die()
        await until(lambda: len(made) == 2 and server.ready)
        assert made[1].learned == []  # the fake's content of the file
        await server.reload()
        assert (made[2].learned, made[1].killed) == ([1], True)
        Path("model").unlink()
        made[2].die()
        await until(lambda: len(made) == 4 and server.ready)
        assert made[3].learned == [1]

    run(scenario)


def test_requests_are_answered_while_a_reload_runs(made):  # noqa: F811
    async def scenario(server):
        reloads = [asyncio.create_task(server.reload()) for _ in range(3)]
        while not all(task.done() for task in reloads):
            assert await server.submit("predict", 1, 1) == 2
        await asyncio.gather(*reloads)
        assert len(made) == 4

    run(scenario)


@pytest.mark.parametrize("kind", ["fifo", "device", "folder"])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(kind, tmp_path):
    path = {"fifo": tmp_path / "fifo", "device": Path("/dev/zero"), "folder": tmp_path}[kind]
    if kind == "fifo":
        os.mkfifo(path)
    with pytest.raises(MoEAppsError, match="expected a model saved by moeapps"):
        ModelServer(str(path), make_worker=LocalWorker).start()


# --- health, HEAD, metrics, the log


def test_live_and_ready_are_told_apart_and_head_works(table):
    with local(table, token="t") as client:
        for path, expected in (("/health/live", "live"), ("/health/ready", "ready"), ("/health", "ready")):
            assert client.get(path).json() == {expected: True}
            assert (client.head(path).status_code, client.head(path).content) == (200, b"")
        for path in ("/info", "/metrics", "/docs", "/openapi.json"):
            assert client.head(path).status_code == 401
            answer = client.head(path, headers=TOKEN)
            assert (answer.status_code, answer.content) == (200, b"")
            assert answer.headers["content-type"] == client.get(path, headers=TOKEN).headers["content-type"]
        assert client.head("/predict", headers=TOKEN).status_code == 405


def test_without_a_worker_the_server_is_live_and_not_ready(made):  # noqa: F811
    async def scenario(server):
        FakeWorker.plan.append("fail start")
        made[0].die()
        await until(lambda: server.restarts == 1)
        assert (server.live, server.ready, server.why_not_ready) == (True, False, "the model is being started")
        await until(lambda: server.ready)

    run(scenario)


def test_metrics_have_a_label_per_route_whatever_clients_ask_for(table):
    with local(table, token="t") as client:
        for i in range(50):  # without the token, the path is never looked at
            client.get(f"/a{i}")
            client.request("DELETE", f"/b{i}", headers=TOKEN)
            client.post(f"/c{i}", content=b"x" * 2_000_000, headers=TOKEN)
            client.get(f"/predict/{i}", headers=TOKEN)
        client.post("/predict", json={}, headers=TOKEN)
        page = client.get("/metrics", headers=TOKEN).text
        paths = {line.split('path="')[1].split('"')[0] for line in page.splitlines() if 'path="' in line}
        assert paths == {"other", "/predict"}
        assert 'moeapps_requests_total{path="other",status="401"} 50.0' in page


def test_the_log_is_bounded_in_lines_of_a_kind_and_in_their_length(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("moeapps.serve.log.time.monotonic", lambda: now[0])
    bounded, lines = Bounded(count=3, length=100), []

    def say(text: str, line: int) -> None:
        record = logging.LogRecord("x", logging.ERROR, "file", line, "%s", (text,), None)
        if bounded.filter(record):
            lines.append(record.getMessage())

    for i in range(10):
        say(f"a{i}", 1)
    say("b", 2)
    now[0] = 61.0
    say("c" * 1000, 1)
    assert lines[:4] == ["a0", "a1", "a2", "b"]
    assert lines[4].startswith("(7 like this were left out) ccc")
    assert len(lines[4]) < 150


# --- poison


@pytest.mark.parametrize("poison", [ValueError, OverflowError, UnicodeError, RecursionError, MemoryError, KeyError])
def test_a_request_that_breaks_its_batch_is_found_and_costs_only_itself(table, monkeypatch, poison):
    service, answer = open_service(table), TableService.answer

    def broken(self, request):
        if any(row["city"] == "poison" for row in request["rows"]):
            raise poison("of its own")
        return answer(self, request)

    monkeypatch.setattr(TableService, "answer", broken)
    good, bad = {"rows": [ROW]}, {"rows": [{**ROW, "city": "poison"}]}
    found = answer_all(service, "predict", [good, bad, good])
    assert "ok" in found[0]
    assert found[0] == found[2]
    status = 422 if poison in (OverflowError, UnicodeError) else 500
    assert found[1]["refusal"]["status"] == status


def test_an_answer_without_a_json_form_costs_only_itself():
    answers = json.loads(_to_json([{"ok": 1}, {"ok": float("nan")}, {"ok": b""}]))["answers"]
    assert answers[0] == {"ok": 1}
    assert [answer["refusal"]["code"] for answer in answers[1:]] == ["model_failed"] * 2


POISONED = ['"\\ud800"', "1" + "0" * 400, "-1" + "0" * 25, "1e400", "NaN", "-Infinity", "{}", "[1]", '["\\udfff"]']


@pytest.mark.parametrize("value", POISONED)
def test_a_value_that_nothing_can_hold_is_refused_with_its_place_and_nothing_is_learned(stream, tmp_path, value):
    with local(stream, tmp_path / "learned") as client:
        good = '{"x": {"a": 1.0}, "y": true}'
        for bad, place in (
            (f'{{"x": {{"a": {value}}}, "y": true}}', "rows.1.x.a"),
            (f'{{"x": {{"a": 1.0}}, "y": {value}}}', "rows.1.y"),
        ):
            answer = client.post("/learn", content=f'{{"rows": [{good}, {bad}, {good}]}}', headers=JSON)
            assert answer.status_code == 422
            assert answer.json()["error"].startswith(f"{place}: ")
        name = json.dumps({"rows": [{"\ud800": 1}]})
        answer = client.post("/predict", content=name, headers=JSON)
        assert (answer.status_code, answer.json()["faults"][0]["field"]) == (422, "rows.0.\\ud800")
        assert client.get("/info").json()["learned"] == 50


@pytest.mark.parametrize(
    "body",
    [
        {"rows": [{}] * 10_000},
        {"rows": [ROW], **{f"k{i}": 1 for i in range(20_000)}},
        {"rows": [{**ROW, **{f"k{i}": 1 for i in range(20_000)}}]},
        {"rows": [1] * 9000},
    ],
    ids=["empty rows", "more fields", "more columns", "no rows"],
)
def test_a_body_of_many_faults_is_refused_at_its_first_ones(table, body):
    with local(table) as client:
        answer = client.post("/predict", json=body)
        assert answer.status_code == 422
        assert len(answer.json()["faults"]) <= len(ROW)
        assert len(answer.text) < 2000
