"""Serving as a client sees it: faults that clients and workers cause, and what is learned is never lost."""

import base64
import io
import json
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import moeapps
from moeapps import DriftMoEClassifier, GNNClassifier, MoERegressor, MowstClassifier, registry
from moeapps.cli.main import main
from moeapps.core.errors import ConfigError, MoEAppsError
from moeapps.core.tabledata.scoring import predict_frame
from moeapps.recsys import MultiTaskRanker
from moeapps.serve import services
from moeapps.serve.batching import ModelServer
from moeapps.serve.services import open_service
from moeapps.stream import StreamCheckpoint
from moeapps.vision import SwitchDiTGenerator, WideNetClassifier

from .conftest import LocalWorker, Server, events, local, people

ROW = {"age of": 30, "city": "Rome", "visits": 2}
JSON = {"Content-Type": "application/json"}


def without(name: str) -> dict:
    return {key: value for key, value in ROW.items() if key != name}


def rows(**change) -> dict:
    return {"rows": [ROW, {**ROW, **change}]}


MALFORMED = [
    # body, status, what the error names
    (b"", 422, "body"),
    (b"nonsense", 400, "JSON"),
    (b"{", 400, "JSON"),
    (b'{"rows": [', 400, "JSON"),
    (b"\xff\xfe\x00", 400, ""),
    (b'{"rows": NaN}', 422, "rows"),
    (b"[" * 9000, 400, ""),
    (b"null", 422, "body"),
    (b"true", 422, "body"),
    (b"3", 422, "body"),
    (b'"rows"', 422, "body"),
    (b"[]", 422, "body"),
    (b"{}", 422, "rows"),
    (b'{"rows": null}', 422, "rows"),
    (b'{"rows": 3}', 422, "rows"),
    (b'{"rows": {}}', 422, "rows"),
    (b'{"rows": []}', 422, "rows"),
    (b'{"rows": [null]}', 422, "rows.0"),
    (b'{"rows": [3]}', 422, "rows.0"),
    (b'{"rows": [[]]}', 422, "rows.0"),
    (b'{"rows": [{}]}', 422, "rows.0.age of"),
    ({"rows": [ROW], "more": 1}, 422, "more"),
    ({"Rows": [ROW]}, 422, "rows"),
    ({"rows": [without("age of")]}, 422, "rows.0.age of"),
    ({"rows": [without("city")]}, 422, "rows.0.city"),
    (rows(height=1.8), 422, "rows.1.height"),
    (rows(City="Rome"), 422, "rows.1.City"),
    (rows(**{"age of": "old"}), 422, "rows.1.age of"),
    (rows(**{"age of": "30"}), 422, "rows.1.age of"),
    (rows(**{"age of": True}), 422, "rows.1.age of"),
    (rows(**{"age of": [30]}), 422, "rows.1.age of"),
    (rows(**{"age of": {"a": 1}}), 422, "rows.1.age of"),
    (rows(city=3), 422, "rows.1.city"),
    (rows(city=["Rome"]), 422, "rows.1.city"),
    (rows(city=False), 422, "rows.1.city"),
    (rows(visits="2"), 422, "rows.1.visits"),
    (b'{"rows": [{"age of": NaN, "city": "Rome", "visits": 2}]}', 422, "rows.0.age of"),
    (b'{"rows": [{"age of": Infinity, "city": "Rome", "visits": 2}]}', 422, "rows.0.age of"),
    (b'{"rows": [{"age of": -Infinity, "city": "Rome", "visits": 2}]}', 422, "rows.0.age of"),
    (b'{"rows": [{"age of": 1e999, "city": "Rome", "visits": 2}]}', 422, "rows.0.age of"),
    (rows(**{"age of": 1e300}), 422, "age of"),
    (b'{"rows": [{"age of": ' + b"9" * 5000 + b', "city": "Rome", "visits": 2}]}', 400, ""),
    (b" " * 20001, 413, "20000 bytes"),
    ({"rows": [ROW] * 1000}, 413, "20000 bytes"),
]


@pytest.mark.parametrize(("body", "status", "named"), MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_requests_get_a_4xx_that_names_the_fault(client, body, status, named):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post("/predict", content=content, headers=JSON)
    assert answer.status_code == status, answer.text
    assert named in answer.json()["error"] or named in str(answer.json().get("faults"))
    assert answer.json()["code"] in ("invalid_json", "invalid_request", "invalid_data", "too_large")
    assert "Traceback" not in answer.text
    assert client.post("/predict", json={"rows": [ROW]}).status_code == 200  # and lives on


def test_wrong_paths_methods_and_content_types(client):
    answer = client.post("/prdict", json={"rows": [ROW]})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert "there are /health, /info, /metrics, /predict" in answer.json()["error"]
    assert client.post("/learn", json={}).status_code == 404
    answer = client.get("/predict")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")
    assert answer.json() == {"error": "/predict does not take GET", "code": "method_not_allowed"}
    answer = client.post("/predict", content=b"rows=1", headers={"Content-Type": "application/x-www-form-urlencoded"})
    assert answer.status_code == 422


def test_answers_are_those_of_predict_missing_values_and_new_categories_included(client, table):
    asked = [ROW, {"age of": None, "city": None, "visits": 0}, {"age of": 1, "city": "Bern", "visits": 9}]
    answer = client.post("/predict", json={"rows": asked}).json()
    assert list(answer) == ["predictions"]
    frame = pd.DataFrame(asked).astype({"age of": float, "visits": float})
    expected = predict_frame(moeapps.load(table), frame)
    pd.testing.assert_frame_equal(
        pd.DataFrame(answer["predictions"]), expected.reset_index(drop=True), check_dtype=False
    )


def test_info_metrics_and_the_openapi_page(client):
    info = client.get("/info").json()
    assert info["columns"] == {"age of": "number", "city": "text", "visits": "number"}
    assert info["model"] == "MoEClassifier"
    assert info["learns"] is False
    row = client.get("/openapi.json").json()["components"]["schemas"]["Row"]
    assert set(row["properties"]) == set(ROW)
    assert client.get("/docs").status_code == 200
    client.get("/no/such/path")
    text = client.get("/metrics").text
    assert 'moeapps_requests_total{path="/info",status="200"}' in text
    assert 'path="other",status="404"' in text
    assert "/no/such/path" not in text
    assert "moeapps_ready 1.0" in text


def test_a_model_that_fails_is_a_500_and_a_model_that_refuses_a_422(client, monkeypatch, capsys):
    answer = client.post("/predict", json=rows(**{"age of": 1e300}))
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_data")
    assert "age of" in answer.json()["error"]

    def fail(*arguments):
        raise RuntimeError("secret")

    monkeypatch.setattr(services, "predict_frame", fail)
    answer = client.post("/predict", json={"rows": [ROW]})
    assert (answer.status_code, answer.json()["code"]) == (500, "model_failed")
    assert "secret" not in answer.text
    assert "secret" in capsys.readouterr().err


def test_a_token_is_required_everywhere_but_at_health(table):
    with local(table, token="secret-ü") as client:
        for path in ("/info", "/metrics", "/openapi.json", "/docs"):
            answer = client.get(path)
            assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
            assert answer.json()["code"] == "no_token"
        for given in ("Bearer wrong", "secret-ü", "Basic secret-ü", "Bearer"):
            answer = client.post("/predict", json={"rows": [ROW]}, headers={"Authorization": given.encode()})
            assert answer.status_code == 401
        right = {"Authorization": "Bearer secret-ü".encode()}
        assert client.post("/predict", json={"rows": [ROW]}, headers=right).status_code == 200
        assert client.get("/health").status_code == 200


def test_a_body_without_a_length_is_counted_as_it_arrives(client):
    def parts():
        for _ in range(30):
            yield b" " * 1000

    answer = client.post("/predict", content=parts(), headers=JSON)
    assert answer.status_code == 413


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


def test_a_killed_worker_is_told_and_replaced(server):
    assert server.http.get("/health").json() == {"ready": True}
    statuses: list[tuple[int, float]] = []

    def ask() -> None:
        with httpx.Client(base_url=server.http.base_url, timeout=30) as http:
            end = time.monotonic() + 2
            while time.monotonic() < end:
                start = time.monotonic()
                answer = http.post("/predict", json={"rows": [ROW] * 100})
                statuses.append((answer.status_code, time.monotonic() - start))
                if answer.status_code == 503:
                    assert answer.headers["Retry-After"] == {"no_worker": "5", "queue_full": "1"}[answer.json()["code"]]
                time.sleep(0.02)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    server.kill_worker()
    for thread in threads:
        thread.join()
    assert {status for status, _ in statuses} == {200, 503}
    assert max(seconds for status, seconds in statuses if status == 503) < 5
    server.wait_ready()
    assert server.http.post("/predict", json={"rows": [ROW]}).status_code == 200
    assert server.http.get("/info").json()["restarts"] == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_finishes_running_requests_and_exits_with_0(table, number):
    with Server(table) as server:
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
        assert learn(server.http, told[:1]) == {"learned": 1, "total": 51}
        learn(server.http, told[1:100])
        bad = server.http.post("/learn", json={"rows": [{"x": {"a": 1.0}, "y": True}, {"x": {"a": "red"}, "y": True}]})
        assert (bad.status_code, bad.json()["code"]) == (422, "invalid_data")
        assert "a" in bad.json()["error"]
        assert server.http.get("/info").json()["unsaved_requests"] == 2
        server.kill_worker()
        time.sleep(0.3)
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


def offline(model, path):
    model.save(path)
    return open_service(path)


def test_rows_without_names_and_numbers_to_predict(tmp_path):
    X = np.random.default_rng(0).normal(size=(60, 3))
    service = offline(
        MoERegressor(num_experts=2, max_epochs=2, random_state=0).fit(X, X[:, 0]), tmp_path / "m.safetensors"
    )
    assert service.describe()["width"] == 3
    found = service.predict([{"rows": X[:2].tolist()}, {"rows": X[2:5].tolist()}])
    expected = moeapps.load(tmp_path / "m.safetensors").predict(X[:5])
    np.testing.assert_allclose([r["prediction"] for part in found for r in part], expected, atol=1e-9)


def test_one_refused_request_does_not_spoil_its_batch(table):
    service = open_service(table)
    good, bad = {"rows": [ROW]}, {"rows": [{**ROW, "age of": 1e300}]}
    first, refused, last = service.predict([good, bad, good])
    assert first == last
    assert "age of" in str(refused)


def test_rankers_answer_with_a_column_per_target(tmp_path):
    frame = people(300).assign(click=lambda f: (f["visits"] > 2).astype(int), stay=lambda f: f["age of"] / 10)
    frame["seen"] = [[1, 2], [3]] * 150
    model = MultiTaskRanker("mmoe", max_epochs=1, random_state=0).fit(frame, ["click", "stay"])
    service = offline(model, tmp_path / "r.safetensors")
    asked = frame.drop(columns=["click", "stay"])[:3]
    (found,) = service.predict([{"rows": asked.to_dict("records")}])
    np.testing.assert_allclose(pd.DataFrame(found), model.predict_proba(asked), atol=1e-6)


def test_images_come_as_files_and_what_is_none_is_named(tmp_path):
    images = (np.random.default_rng(0).random((20, 8, 8)) * 255).astype(np.uint8)
    model = WideNetClassifier(embed_dim=16, depth=1, num_heads=2, patch_size=4, max_epochs=1, random_state=0)
    model.fit(images, np.arange(20) % 2)
    service = offline(model, tmp_path / "i.safetensors")
    files = []
    for image in images[:3]:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        files.append(base64.b64encode(buffer.getvalue()).decode())
    (found,) = service.predict([{"images": files}])
    np.testing.assert_allclose([r["probability_1"] for r in found], model.predict_proba(images[:3])[:, 1], atol=1e-6)
    (wrong,) = service.predict([{"images": [files[0], "***"]}])
    assert "images.1 is not base64" in str(wrong)
    (wrong,) = service.predict([{"images": [base64.b64encode(b"no image").decode()]}])
    assert "images.0 cannot be read as an image" in str(wrong)


def test_a_graph_is_a_request(tmp_path):
    rng = np.random.default_rng(0)
    X, y, edges = rng.normal(size=(40, 4)).astype(np.float32), np.arange(40) % 2, rng.integers(0, 40, (2, 80))
    edges = np.hstack([edges, edges[::-1]])
    train = np.arange(40) < 20
    model = MowstClassifier(hidden_channels=8, max_epochs=4, random_state=0)
    model.fit(X, y, edges, train_mask=train, val_mask=~train)
    service = offline(model, tmp_path / "g.safetensors")
    (found,) = service.predict([{"x": X.tolist(), "edges": edges.T.tolist(), "nodes": [3, 5]}])
    np.testing.assert_allclose(
        [r["probability_1"] for r in found], model.predict_proba(X, edges, nodes=[3, 5])[:, 1], atol=1e-6
    )
    (wrong,) = service.predict([{"x": X.tolist(), "edges": [[0, 99]]}])
    assert "99" in str(wrong)


def test_what_cannot_be_served_is_refused_at_once(table, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_service(tmp_path / "nothing.safetensors")
    with pytest.raises(MoEAppsError, match="--learn: a MoEClassifier does not learn"):
        ModelServer(str(table), str(tmp_path / "x.safetensors"), make_worker=LocalWorker).start()
    images = np.zeros((20, 8, 8), dtype=np.uint8)
    model = SwitchDiTGenerator(dim=16, depth=1, num_heads=2, timesteps=10, max_epochs=1).fit(images)
    with pytest.raises(ConfigError, match="holds a SwitchDiTGenerator, which does not answer requests"):
        offline(model, tmp_path / "d.safetensors")


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
        assert "cannot listen on 127.0.0.1" in said(table, "--port", taken.getsockname()[1])
    assert "--port must be 0 to 65535, got 70000" in said(table, "--port", 70000)
    assert "--timeout must be above 0, got 0.0" in said(table, "--timeout", 0)
    assert "queue" in said(table, "--queue", 0)
    assert "--token-file" in said(table, "--token-file", tmp_path / "none")


def test_a_stream_that_has_seen_nothing_answers_too(tmp_path):
    service = offline(DriftMoEClassifier(seed=1), tmp_path / "s.safetensors")
    assert service.predict([{"rows": [{"a": 1.0}]}]) == [[{"prediction": None}]]


class OtherTable(MoERegressor):
    """A user's own class."""


class OtherGraph(GNNClassifier):
    """One that hides its arguments."""

    def predict_proba(self, *args, **kwargs):
        return super().predict_proba(*args, **kwargs)


class OtherStream(DriftMoEClassifier):
    """A user's own class."""


class OtherImages(WideNetClassifier):
    """A user's own class."""


class OtherRanker(MultiTaskRanker):
    """A user's own class."""


def test_a_subclass_that_a_user_has_registered_is_served(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "ENTRIES", dict(registry.ENTRIES))
    for kind in (OtherTable, OtherGraph, OtherStream, OtherImages, OtherRanker):
        registry.register("model", f"{__name__}.{kind.__name__}", "one of my own")
    rng = np.random.default_rng(0)
    X, y, edges = rng.normal(size=(40, 4)), np.arange(40) % 2, rng.integers(0, 40, (2, 80))
    edges = np.hstack([edges, edges[::-1]])
    images = (rng.random((20, 8, 8)) * 255).astype(np.uint8)
    frame = pd.DataFrame(X, columns=list("abcd")).assign(click=y)
    stream = OtherStream(seed=1)
    stream.learn_one({"a": 1.0}, True)
    models = {
        "table": OtherTable(num_experts=2, max_epochs=1).fit(X, X[:, 0]),
        "graph": OtherGraph("mlp", hidden_channels=8, max_epochs=1).fit(X, y, edges),
        "stream": stream,
        "images": OtherImages(embed_dim=16, depth=1, num_heads=2, patch_size=4, max_epochs=1).fit(images, y[:20]),
        "ranker": OtherRanker("mmoe", max_epochs=1).fit(frame, ["click"]),
    }
    for name, model in models.items():
        service = offline(model, tmp_path / f"{name}.safetensors")
        assert type(service.model) is type(model)
        assert service.kind == ("table" if name == "ranker" else name)
    (tmp_path / "run").mkdir()
    StreamCheckpoint(stream, {}).save(tmp_path / "run/stream.safetensors")
    assert type(open_service(tmp_path / "run").model) is OtherStream
