"""Scores before learning, late labels by id, and what is left of them after a death, a save and a restart."""

import asyncio
import json
from pathlib import Path

import pandas as pd
import pytest

from moeapps.core.errors import DataError
from moeapps.serve.batching import ModelServer
from moeapps.serve.prequential import Prequential
from moeapps.serve.refusal import Refusal
from moeapps.serve.services import open_service
from moeapps.stream import DriftMoEClassifier, StreamRun
from moeapps.stream.io.rows import FrameSource

from .conftest import LocalWorker, events, local


def instances(part, ids=()) -> dict:
    rows = [{"x": x, "y": y} for x, y in part]
    return {"rows": [{**row, "id": key} for row, key in zip(rows, ids, strict=True)] if ids else rows}


def served(path, learn_to, scenario):
    """Run a coroutine with a server whose worker is in this process."""

    async def run():
        server = ModelServer(str(path), str(learn_to), make_worker=LocalWorker)
        server.start()
        await server.run()
        try:
            return await scenario(server)
        finally:
            await server.close()

    return asyncio.run(run())


def test_rows_are_scored_before_they_are_learned_as_a_stream_run_scores_them(tmp_path):
    part = events(300)
    frame = pd.DataFrame([{**x, "y": str(y)} for x, y in part])
    job = StreamRun(DriftMoEClassifier(n_experts=3, seed=1), FrameSource(frame), "y")
    job.run()
    mine = Prequential(DriftMoEClassifier(n_experts=3, seed=1))
    for start in range(0, 300, 50):
        answer = mine.learn(instances([(x, str(y)) for x, y in part[start : start + 50]]))
    assert mine.scores.state() == job.scores.state()
    assert answer["scores"]["accuracy"] == job.scores.total
    assert answer["learned"] == 50


def test_a_late_label_is_learned_with_the_features_of_its_id(stream, tmp_path):
    (x, y), (other, _) = events(2)
    with local(stream, tmp_path / "m.safetensors") as client:
        predicted = client.post("/predict", json={"rows": [x, other], "ids": ["e1", 7]}).json()["predictions"]
        assert predicted == client.post("/predict", json={"rows": [x, other]}).json()["predictions"]
        answer = client.post("/learn", json={"id": "e1", "y": y}).json()
        assert (answer["learned"], answer["total"], answer["repeated"]) == (1, 51, 0)
        again = client.post("/learn", json={"rows": [{"id": "e1", "y": y}]}).json()
        assert (again["learned"], again["total"], again["repeated"]) == (0, 51, 1)
        assert client.post("/learn", json={"rows": [{"id": "7", "y": True}]}).json()["learned"] == 1
        assert client.get("/info").json()["learning"]["waiting"] == 0
        page = client.get("/metrics").text
    for line in (
        "moeapps_events_scored_total 2.0",
        'moeapps_score{metric="accuracy",over="all"}',
        "moeapps_classes 2.0",
    ):
        assert line in page
    assert "moeapps_drift_alarms_total 0.0" in page


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"id": "nobody", "y": True}, "id 'nobody': no event with this id waits for a label"),
        ({"y": True}, "neither x, the features, nor the id"),
        ({"rows": [{"x": {"a": 1}, "y": True}, {"id": "e", "y": True}]}, "rows.1 has no x"),
    ],
)
def test_a_label_without_its_event_is_refused(body, message, stream, tmp_path):
    with local(stream, tmp_path / "m.safetensors") as client:
        found = client.post("/learn", json=body)
    assert found.status_code == 422
    assert message in found.json()["error"]


def test_ids_need_a_server_that_learns_and_one_for_each_row(stream, tmp_path):
    with local(stream) as client:
        found = client.post("/predict", json={"rows": [{"a": 1}], "ids": ["e"]})
        assert (found.status_code, "--learn FILE" in found.json()["error"]) == (422, True)
    with local(stream, tmp_path / "m.safetensors") as client:
        found = client.post("/predict", json={"rows": [{"a": 1}], "ids": ["e", "f"]})
    assert "2 ids for 1 rows" in found.json()["error"]


def test_an_id_that_was_learned_is_not_learned_again(stream):
    service = open_service(stream)
    part = events(3)
    first, second = service.learn([instances(part, ["a", "b", "a"]), instances(part[:1], ["b"])])
    assert (first["learned"], first["repeated"], second["learned"], second["repeated"]) == (2, 1, 0, 1)


def test_a_refused_late_label_teaches_nothing_of_its_request(stream):
    service = open_service(stream)
    (x, y), (other, _) = events(2)
    service.learn([{"rows": [x, other], "ids": ["a", "b"]}])
    (found,) = service.learn([{"rows": [{"id": "a", "y": y}, {"id": "c", "y": y}]}])
    assert isinstance(found, Refusal)
    assert service.model.n_seen_ == 50
    assert len(service.prequential.waiting) == 2


def test_events_that_wait_are_bounded(stream, monkeypatch):
    monkeypatch.setattr("moeapps.serve.prequential.PENDING", 2)
    service = open_service(stream)
    service.learn([{"rows": [x for x, _ in events(3)], "ids": ["a", "b", "c"]}])
    assert [key in service.prequential.waiting for key in ("a", "b", "c")] == [False, True, True]


@pytest.mark.parametrize("save", [False, True])
@pytest.mark.parametrize("again", ["worker", "server"])
def test_scores_and_waiting_events_are_there_after_a_death_and_a_restart(again, save, stream, tmp_path):
    (x, y), *part = events(20)
    target = tmp_path / "m.safetensors"

    async def before(server):
        await server.learn(instances(part), len(part))
        await server.learn({"rows": [x], "ids": ["late"]}, 1)
        if save:
            await server.save()
        if again == "worker":
            return server._supervisor._another().service, dict(server.learning)
        return None, dict(server.learning)

    async def after(server):
        return server._supervisor.worker.service, dict(server.learning)

    service, learning = served(stream, target, before)
    if again == "server":
        service, told = served(stream, target, after)
        assert told == learning
    assert (learning["scored"], learning["waiting"]) == (19, 1)
    (answer,) = service.learn([{"rows": [{"id": "late", "y": y}]}])
    reference = open_service(stream)
    reference.learn([instances(part), {"rows": [x], "ids": ["late"]}])
    (expected,) = reference.learn([{"rows": [{"id": "late", "y": y}]}])
    assert answer == expected
    assert answer["scores"]["scored"] == 20


def test_the_journal_holds_rows_without_ids_as_before_there_were_ids(stream, tmp_path):
    target, part = tmp_path / "m.safetensors", events(3)
    with local(stream, target) as client:
        client.post("/learn", json=instances(part))
        line = Path(f"{target}.journal").read_text().splitlines()[1]
    assert json.loads(line.partition(" ")[2])["learn"] == instances(part)


def test_features_that_were_never_learned_are_named_beside_their_prediction(stream):
    service = open_service(stream)
    known, misspelled, new = service.answer({"rows": [{"a": 1.0}, {"colr": "red", "a": 1.0}, {"b": 1, "c": 2}]})
    assert "unseen_features" not in known
    assert misspelled == {**known, "unseen_features": ["colr"]}
    assert new["unseen_features"] == ["b", "c"]


def test_before_anything_was_learned_no_feature_is_called_unseen(tmp_path):
    DriftMoEClassifier(n_experts=3, seed=1).save(tmp_path / "new.safetensors")
    assert "unseen_features" not in open_service(tmp_path / "new.safetensors").answer({"rows": [{"a": 1.0}]})[0]


def test_rows_that_are_skipped_are_neither_scored_nor_counted_as_learned():
    part = events(40)
    names = list(part[0][0])
    bad = {**part[0][0], names[0]: "text"}
    mine, other = (Prequential(DriftMoEClassifier(n_experts=2, seed=1, on_bad="skip")) for _ in range(2))
    other.learn(instances(part))
    mine.learn(instances(part[:20]))
    answer = mine.learn(instances([(bad, part[0][1]), *part[20:]], [f"e{i}" for i in range(21)]))
    assert (answer["learned"], answer["repeated"], answer["scores"]["scored"]) == (20, 0, 40)
    assert mine.scores.state() == other.scores.state()
    mine.remember({"ids": ["late"], "rows": [bad]})
    answer = mine.learn({"rows": [{"id": "late", "y": part[0][1]}]})
    assert (answer["learned"], answer["total"], len(mine.waiting)) == (0, 40, 0)
    assert mine.learn(instances(part[:1], ["e0"]))["learned"] == 1  # corrected


@pytest.mark.parametrize(("text", "missing_values"), [("", []), ("", "auto"), ("NA", "auto"), ("-", ["-"])])
def test_a_text_that_means_missing_is_no_label(text, missing_values):
    (x, y), (other, _) = events(2)
    model = DriftMoEClassifier(n_experts=3, seed=1, missing_values=missing_values)
    mine = Prequential(model)
    with pytest.raises(DataError, match=r"rows\[1\]: y is '.*', which means missing"):
        mine.learn({"rows": [{"x": x, "y": str(y)}, {"x": other, "y": text}]})
    assert model.n_seen_ == 0
    mine.remember({"rows": [x], "ids": ["e1"]})
    with pytest.raises(DataError, match=r"rows\[0\]: y is '.*', which means missing"):
        mine.learn({"rows": [{"id": "e1", "y": text}]})
    mine.learn({"rows": [{"id": "e1", "y": str(y)}]})
    assert model.n_seen_ == 1


def test_a_text_that_the_model_does_not_take_for_missing_is_a_label():
    ((x, _),) = events(1)
    model = DriftMoEClassifier(n_experts=3, seed=1, missing_values=[])
    Prequential(model).learn({"rows": [{"x": x, "y": "NA"}]})
    assert list(model.classes_) == ["NA"]
