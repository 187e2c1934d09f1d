"""Requests to an application in this process: what is malformed, refused, too large, or without a token."""

import json

import pandas as pd
import pytest

import moeapps
from moeapps.core.tabledata.scoring import predict_frame
from moeapps.core.tabledata.vocabulary import ImputedValues
from moeapps.serve import services
from moeapps.serve.faults import form_of

from .conftest import ROW, local

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
    (rows(city={"a": 1}), 422, "rows.1.city"),
    (rows(city=["Rome"]), 422, "rows.1.city"),
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


FORM = '{"rows": [{"column": value, ...}, ...]}'
IN_WORDS = [
    (b"", "body: it is empty; expected JSON of the form " + FORM),
    (b"[1]", "body: must be an object of the form " + FORM),
    (b'{"rows": [{"city": ', "body: not JSON: Expecting value, at character 19"),
    ({"row": [ROW]}, "rows: missing; is 'row' a misspelled 'rows'?"),
    (ROW, "rows: missing; expected " + FORM),
    ({"rows": [ROW], "zzz": 1}, "zzz: there is no such field"),
    ({"rows": [ROW], "rovs": 1}, "rovs: there is no such field; did you mean 'rows'?"),
    ({"rows": [without("visits")]}, "rows.0.visits: missing (null where there is no value)"),
    ({"rows": [{**without("visits"), "vists": 2}]}, "rows.0.visits: missing; is 'vists' a misspelled 'visits'?"),
    (rows(visits="old"), 'rows.1.visits: must be a valid number, got "old"'),
]


@pytest.mark.parametrize(("body", "message"), IN_WORDS, ids=range(len(IN_WORDS)))
def test_a_refusal_says_in_words_what_would_work(client, body, message):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    assert client.post("/predict", content=content, headers=JSON).json()["error"] == message


def test_the_form_of_a_graph_is_that_of_arrays_or_of_tables():
    assert form_of("/predict", {"kind": "graph", "columns": {}}).startswith('{"x": ')
    assert form_of("/predict", {"kind": "graph", "columns": {"age": "number"}}).startswith('{"nodes": ')


def test_a_body_that_is_not_sent_as_json_is_told_the_header(client):
    answer = client.post("/predict", content=json.dumps({"rows": [ROW]}), headers={"Content-Type": "text/csv"})
    assert answer.json()["error"] == (
        "body: the header Content-Type is 'text/csv'; send JSON with 'Content-Type: application/json'"
    )


def test_wrong_paths_methods_and_content_types(client):
    answer = client.post("/prdict", json={"rows": [ROW]})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert "there are /health, /health/live, /health/ready, /info, /metrics, /predict" in answer.json()["error"]
    assert client.post("/learn", json={}).status_code == 404
    answer = client.get("/predict")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")
    assert answer.json() == {"error": "/predict takes POST, not GET", "code": "method_not_allowed"}
    answer = client.post("/predict", content=b"rows=1", headers={"Content-Type": "application/x-www-form-urlencoded"})
    assert answer.status_code == 422


def test_a_misspelled_query_parameter_is_refused_and_those_of_pages_are_not(client):
    answer = client.post("/predict?kepp=city", json={"rows": [ROW]})
    assert answer.status_code == 422
    assert answer.json()["error"] == "?kepp=: /predict has no such query parameter; did you mean 'keep'?"
    assert client.post("/predict?keep=city", json={"rows": [ROW]}).status_code == 200
    assert client.post("/reload?now=1").status_code == 422
    assert client.get("/metrics?name[]=up").status_code == 200


def test_answers_are_those_of_predict_missing_values_and_new_categories_included(client, table):
    asked = [ROW, {"age of": None, "city": None, "visits": 0}, {"age of": 1, "city": "Bern", "visits": 9}]
    answer = client.post("/predict", json={"rows": asked}).json()
    assert list(answer) == ["predictions"]
    frame = pd.DataFrame(asked).astype({"age of": float, "visits": float})
    with pytest.warns(ImputedValues, match="1 of 'city' by"):
        expected = predict_frame(moeapps.load(table), frame)
    pd.testing.assert_frame_equal(
        pd.DataFrame(answer["predictions"]), expected.reset_index(drop=True), check_dtype=False
    )


def test_info_metrics_and_the_openapi_page(client):
    info = client.get("/info").json()
    assert info["columns"] == {"age of": "number", "city": "category", "visits": "number"}
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


def test_a_model_that_fails_is_a_500_and_a_model_that_refuses_a_422(client, monkeypatch, caplog):
    answer = client.post("/predict", json=rows(**{"age of": 1e300}))
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_data")
    assert "age of" in answer.json()["error"]

    def fail(*arguments):
        raise RuntimeError("secret")

    monkeypatch.setattr(services, "predict_frame", fail)
    answer = client.post("/predict", json={"rows": [ROW]})
    assert (answer.status_code, answer.json()["code"]) == (500, "model_failed")
    assert "secret" not in answer.text
    assert "secret" in caplog.text


def test_a_token_is_required_everywhere_but_at_health(table):
    with local(table, token="secret-ü") as client:
        for path in ("/info", "/metrics", "/openapi.json", "/docs"):
            answer = client.get(path)
            assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
            assert answer.json()["code"] == "no_token"
        for given in ("Bearer wrong", "secret-ü", "Basic secret-ü", "Bearer"):
            answer = client.post("/predict", json={"rows": [ROW]}, headers={"Authorization": given.encode()})
            assert answer.status_code == 401
            assert ("this is not the server's token" in answer.text) == given.startswith("Bearer ")
        right = {"Authorization": "Bearer secret-ü".encode()}
        assert client.post("/predict", json={"rows": [ROW]}, headers=right).status_code == 200
        assert client.get("/health").status_code == 200


def test_a_body_without_a_length_is_counted_as_it_arrives(client):
    def parts():
        for _ in range(30):
            yield b" " * 1000

    answer = client.post("/predict", content=parts(), headers=JSON)
    assert answer.status_code == 413
