"""`moeapps serve` in a process of its own: many clients, signals, deaths; and what is learned is never lost."""

import json
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

import moeapps
from moeapps.cli import serve as serving
from moeapps.cli.main import main
from moeapps.core.tabledata.scoring import predict_frame

from .conftest import ROW, LocalWorker, Server, events, local, people


def test_eight_threads_get_the_answers_of_offline_predict(server, table):
    frame = people(400).assign(visits=lambda f: f["visits"].astype(float))
    expected = predict_frame(moeapps.load(table), frame)["probability_yes"].to_numpy()
    asked = frame.to_dict("records")
    stop = time.monotonic() + 60

    def client(seed: int) -> int:
        rng = np.random.default_rng(seed)
        done = 0
        with httpx.Client(base_url=server.http.base_url, timeout=30) as http:
            while done < 60 and time.monotonic() < stop:
                chosen = rng.integers(0, len(asked), rng.integers(1, 4))
                answer = http.post("/predict", json={"rows": [asked[i] for i in chosen]})
                assert answer.status_code == 200, answer.text
                found = [record["probability_yes"] for record in answer.json()["predictions"]]
                np.testing.assert_allclose(found, expected[chosen], atol=1e-5)
                done += 1
        return done

    with ThreadPoolExecutor(8) as pool:
        assert min(pool.map(client, range(8))) == 60
    rows = server.http.get("/metrics").text
    values = dict(line.split() for line in rows.splitlines() if line.startswith("moeapps_batch_rows_"))
    batches, asked_rows = float(values["moeapps_batch_rows_count"]), float(values["moeapps_batch_rows_sum"])
    assert asked_rows > 1.2 * batches  # requests did share batches


def test_a_killed_worker_is_replaced_and_its_requests_get_503(server):
    assert server.http.get("/health").json() == {"ready": True}
    answers: list[tuple[int, float]] = []
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=server.http.base_url, timeout=60) as http:
            while not stop.is_set():
                start = time.monotonic()
                answer = http.post("/predict", json={"rows": [ROW] * 100})
                answers.append((answer.status_code, time.monotonic() - start))
                if answer.status_code == 503:
                    expected = {"no_worker": "5", "queue_full": "1"}[answer.json()["code"]]
                    assert answer.headers["Retry-After"] == expected
                time.sleep(0.02)

    def wait_for(status: int) -> None:
        end = time.monotonic() + 60
        while status not in [code for code, _ in answers]:
            assert time.monotonic() < end, answers
            time.sleep(0.01)

    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(ask) for _ in range(4)]
        try:
            wait_for(200)
            server.kill_worker()
            wait_for(503)
        finally:
            stop.set()
        for client in clients:
            client.result()
    assert {status for status, _ in answers} == {200, 503}
    assert max(seconds for status, seconds in answers if status == 503) < 5
    server.wait_ready()
    assert server.http.post("/predict", json={"rows": [ROW]}).status_code == 200
    assert server.http.get("/info").json()["restarts"] == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_finishes_running_requests_and_exits_with_0(server, table, number):
    # the last test of the module's server ends it: the worker of another would import everything anew
    with server if server.process.poll() is None else Server(table) as server:
        assert "http://127.0.0.1:" in server.line
        host, port = server.http.base_url.host, server.http.base_url.port
        body = json.dumps({"rows": [ROW] * 5}).encode()
        with socket.create_connection((host, port)) as slow:  # a request that is half sent when the signal comes
            slow.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
            slow.sendall(b"Content-Length: %d\r\n\r\n" % len(body) + body[:20])
            time.sleep(0.3)
            server.process.send_signal(number)
            time.sleep(0.5)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((host, port), timeout=1)
            slow.sendall(body[20:])
            slow.settimeout(20)
            assert slow.recv(1000).startswith(b"HTTP/1.1 200")
        assert server.process.wait(30) == 0


def learn(http: httpx.Client, part: list) -> dict:
    answer = http.post("/learn", json={"rows": [{"x": x, "y": y} for x, y in part]})
    assert answer.status_code == 200, answer.text
    return answer.json()


def same_as_offline(found, model, asked) -> None:
    for answer, x in zip(found, asked, strict=True):
        expected = model.predict_proba_one(x)
        assert answer["prediction"] == model.predict_one(x)
        assert [answer[f"probability_{label}"] for label in (False, True)] == [expected[False], expected[True]]


def test_learning_equals_learning_offline_and_survives_the_death_of_the_worker_and_the_end_of_the_server(
    stream, tmp_path
):
    offline, told, target = moeapps.load(stream), events(300), tmp_path / "learned.safetensors"
    asked = [x for x, _ in events(40, seed=5)]
    with Server(stream, "--learn", target, "--save-every", 3600) as server:
        first = learn(server.http, told[:1])
        assert (first["learned"], first["total"], first["scores"]["scored"]) == (1, 51, 1)
        learn(server.http, told[1:100])
        bad = server.http.post("/learn", json={"rows": [{"x": {"a": 1.0}, "y": True}, {"x": {"a": "red"}, "y": True}]})
        assert (bad.status_code, bad.json()["code"]) == (422, "invalid_data")
        assert "a" in bad.json()["error"]
        assert server.http.get("/info").json()["unsaved_requests"] == 2
        server.kill_worker()
        server.wait_ready(status=503)  # its death is noticed
        server.wait_ready()
        assert learn(server.http, told[100:200])["total"] == 250
        assert server.stop()[0] == 0
    with local(target, target, save_every=0.2) as client:  # as the next server would go on
        for x, y in told[:200]:
            offline.learn_one(x, y)
        same_as_offline(client.post("/predict", json={"rows": asked}).json()["predictions"], offline, asked)
        assert learn(client, told[200:])["total"] == 350
        end = time.monotonic() + 20
        while client.get("/info").json()["unsaved_requests"]:
            assert time.monotonic() < end
            time.sleep(0.05)
        for x, y in told[200:]:
            offline.learn_one(x, y)
        again = moeapps.load(target)
        assert again.n_seen_ == 350
        assert [again.predict_proba_one(x) for x in asked] == [offline.predict_proba_one(x) for x in asked]


def test_predicting_while_learning_is_safe(stream, tmp_path):
    with local(stream, tmp_path / "learned.safetensors") as client:
        stop = threading.Event()
        failures: list[str] = []

        def ask() -> None:
            while not stop.is_set():
                answer = client.post("/predict", json={"rows": [{"a": 0.5, "colour": "red"}]})
                if answer.status_code != 200 or answer.json()["predictions"][0]["prediction"] not in (True, False):
                    failures.append(answer.text)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        told = events(200, seed=3)
        totals = [learn(client, told[i : i + 10])["total"] for i in range(0, 200, 10)]
        stop.set()
        for thread in threads:
            thread.join()
        assert failures == []
        assert totals == list(range(60, 251, 10))
        refused = client.post("/learn", json={"rows": [{"x": {"a": 1.0}}]})
        assert refused.status_code == 422
        assert "rows.0.y" in refused.json()["error"]


def test_of_two_servers_that_take_a_port_at_the_same_time_the_later_one_says_so_and_ends(table, capsys, monkeypatch):
    rivals = []

    def raced(host, port, shared=False):
        listener = listen(host, port)
        rivals.append(listen(host, listener.getsockname()[1]))  # allowed, as long as neither listens
        rivals[0].listen()
        return listener

    listen = serving._listen
    monkeypatch.setattr(serving, "_listen", raced)
    monkeypatch.setattr("moeapps.serve.worker.Worker", lambda path, tables: LocalWorker(path))
    assert main(["serve", str(table), "--port", "0"]) == 2
    rivals[0].close()
    assert "Address already in use: choose another --port" in capsys.readouterr().err


def test_the_command_names_what_is_wrong(table, tmp_path, capsys):
    def said(*arguments) -> str:
        status = main(["serve", *map(str, arguments)])
        assert status in (1, 2)
        return capsys.readouterr().err

    (tmp_path / "bad.safetensors").write_bytes(b"x" * 100)
    assert "bad.safetensors" in said(tmp_path / "bad.safetensors")  # the worker says so, in its own process
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        error = said(table, "--port", taken.getsockname()[1])
        assert "cannot listen on 127.0.0.1" in error
        assert "choose another --port" in error
    assert "--port must be 0 to 65535, got 70000" in said(table, "--port", 70000)
    assert "--timeout must be above 0, got 0.0" in said(table, "--timeout", 0)
    assert "queue" in said(table, "--queue", 0)
    assert "--token-file" in said(table, "--token-file", tmp_path / "none")
