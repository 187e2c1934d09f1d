"""POST /predict?keep=: fields of a row next to its prediction."""

import json

import pytest

from .conftest import ROW, local

JSON = {"Content-Type": "application/json"}


def test_a_field_that_the_model_does_not_read_is_kept(client):
    rows = [{**ROW, "customer": "0017"}, {**ROW, "customer": None, "visits": 4}]
    answer = client.post("/predict?keep=customer", json={"rows": rows})
    assert answer.status_code == 200, answer.text
    plain = client.post("/predict", json={"rows": [ROW, {**ROW, "visits": 4}]}).json()["predictions"]
    kept = [{"customer": "0017", **plain[0]}, {"customer": None, **plain[1]}]
    assert answer.json()["predictions"] == kept
    assert next(iter(answer.json()["predictions"][0])) == "customer"


def test_letters_stand_in_answers_as_the_client_sent_them(client):
    text = client.post("/predict?keep=straße", json={"rows": [{**ROW, "straße": "Łódźka 5"}]}).text
    assert '"straße":"Łódźka 5"' in text
    refusal = client.post("/predict", json={"rows": [{**ROW, "straße": "x"}]}).text
    assert "rows.0.straße" in refusal
    half = client.post("/predict?keep=x", content=json.dumps({"rows": [{**ROW, "x": "\ud800"}]}), headers=JSON)
    assert half.status_code == 422


@pytest.mark.parametrize("query", ["keep=city,visits", "keep=city&keep=visits"])
def test_a_column_of_the_model_is_kept_and_read(client, query):
    plain = client.post("/predict", json={"rows": [ROW]}).json()["predictions"][0]
    kept = client.post(f"/predict?{query}", json={"rows": [ROW]}).json()["predictions"][0]
    assert kept == {"city": ROW["city"], "visits": ROW["visits"], **plain}


def test_a_kept_field_called_prediction_leaves_the_prediction_readable(client):
    plain = client.post("/predict", json={"rows": [ROW]}).json()["predictions"][0]
    kept = client.post("/predict?keep=prediction", json={"rows": [{**ROW, "prediction": 7}]}).json()["predictions"][0]
    assert (kept["prediction"], kept["prediction_prediction"]) == (7, plain["prediction"])


@pytest.mark.parametrize(
    ("query", "more", "field", "fault"),
    [
        ("", {"customer": 1}, "rows.0.customer", "?keep=NAME"),
        ("", {"vists": 1}, "rows.0.vists", "did you mean 'visits'?"),
        ("?keep=customer", {}, "rows.0.customer", "no such field"),
        ("?keep=costumer", {"customer": 1}, "rows.0.costumer", "did you mean 'customer'?"),
        ("?keep=customer", {"customer": 1, "other": 2}, "rows.0.other", "no such column"),
        ("?keep=customer", {"customer": [1]}, "rows.0.customer", "must be a number"),
    ],
)
def test_a_field_that_is_neither_read_nor_kept_is_named(client, query, more, field, fault):
    answer = client.post(f"/predict{query}", json={"rows": [{**ROW, **more}]})
    assert answer.status_code == 422
    assert answer.json()["faults"][0]["field"] == field
    assert fault in answer.json()["faults"][0]["fault"]


def test_what_is_kept_of_an_event_is_not_read(stream):
    with local(stream) as client:
        event = {"a": 0.3, "colour": "red"}
        plain = client.post("/predict", json={"rows": [event]}).json()["predictions"][0]
        kept = client.post("/predict?keep=id", json={"rows": [{**event, "id": "e1"}]}).json()["predictions"][0]
        assert kept == {"id": "e1", **plain}
