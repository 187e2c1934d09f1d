"""Every kind of model behind requests: its answers are those of predict, and a subclass is served like its base."""

import base64
import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import moeapps
from moeapps import DriftMoEClassifier, GNNClassifier, MoERegressor, MowstClassifier, registry
from moeapps.core.errors import ConfigError, MoEAppsError
from moeapps.graph import MowstLinkPredictor
from moeapps.recsys import MultiTaskRanker
from moeapps.serve import services
from moeapps.serve.batching import ModelServer
from moeapps.serve.schema import predict_model
from moeapps.serve.services import open_service
from moeapps.stream import StreamCheckpoint
from moeapps.vision import WideNetClassifier

from .conftest import ROW, LocalWorker, local, people


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


@pytest.fixture(scope="module")
def scenario_file(tmp_path_factory):
    """A ranker of people by city, saved."""
    frame = people(300).assign(click=lambda f: (f["visits"] > 2).astype(int))
    path = tmp_path_factory.mktemp("scenario") / "r.safetensors"
    MultiTaskRanker("mmoe", scenario="city", max_epochs=1, random_state=0).fit(frame, ["click"]).save(path)
    return str(path)


def test_metrics_count_the_rows_of_each_scenario_and_what_is_unseen_or_missing_as_other(scenario_file):
    with local(scenario_file) as client:
        cities = client.get("/info").json()["scenario"]["values"]
        rows = [{**ROW, "city": city} for city in (cities[0], cities[0], cities[1], "nowhere", None)]
        assert client.post("/predict", json={"rows": rows}).status_code == 200
        client.post("/predict", json={"rows": [{**ROW, "city": cities[1], "visits": "many"}]})  # refused: not counted
        text = client.get("/metrics").text
    for name, number in ((cities[0], 2), (cities[1], 1), ("other", 2)):
        assert f'moeapps_scenario_rows_total{{column="city",scenario="{name}"}} {number}.0' in text
    assert "nowhere" not in text


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
    model = MowstClassifier("gcn", hidden_channels=8, max_epochs=4, random_state=0)
    model.fit(X, y, edges, train_mask=train, val_mask=~train)
    service = offline(model, tmp_path / "g.safetensors")
    (found,) = service.predict([{"x": X.tolist(), "edges": edges.T.tolist(), "nodes": [3, 5]}])
    np.testing.assert_allclose(
        [r["probability_1"] for r in found], model.predict_proba(X, edges, nodes=[3, 5])[:, 1], atol=1e-6
    )
    # each node asked for gets its answer, also if the numbers are all 0 and 1 as in a mask
    (found,) = service.predict([{"x": X[:3].tolist(), "edges": [[0, 1]], "nodes": [1, 0, 1]}])
    expected = model.predict_proba(X[:3], [[0], [1]])[[1, 0, 1], 1]
    np.testing.assert_allclose([r["probability_1"] for r in found], expected, atol=1e-6)
    (wrong,) = service.predict([{"x": X.tolist(), "edges": [[0, 99]]}])
    assert "99" in str(wrong)


def test_weights_of_edges_are_part_of_the_request(tmp_path):
    rng = np.random.default_rng(0)
    x, edges, weight = rng.normal(size=(12, 3)), rng.integers(0, 12, (2, 40)), rng.uniform(0.1, 2, 40)
    edges, weight = np.hstack([edges, edges[::-1]]), np.tile(weight, 2)
    rows = [[*edge, part] for edge, part in zip(edges.T.tolist(), weight.tolist(), strict=True)]
    nodes = GNNClassifier("gcn", max_epochs=2, random_state=0)
    nodes.fit(x, np.arange(12) % 2, edges, edge_weight=weight)
    service = offline(nodes, tmp_path / "nodes.safetensors")
    body = predict_model(service.describe())(x=x.tolist(), edges=rows).model_dump()
    (found,) = service.predict([body])
    wanted = nodes.predict_proba(x, edges, edge_weight=weight)
    np.testing.assert_allclose([r["probability_1"] for r in found], wanted[:, 1], atol=1e-6)
    with pytest.raises(ValueError, match="at least 3 items"):
        predict_model(service.describe())(x=x.tolist(), edges=edges.T.tolist())
    (refusal,) = service.predict([{**body, "edges": [[0.5, 1, 1.0]]}])
    assert "0.5 is not the number of a node" in str(refusal)
    links = MowstLinkPredictor("gcn", weak=None, structure=False, max_epochs=2, random_state=0, gate="mean")
    links.fit(x, edges, edge_weight=weight)
    service = offline(links, tmp_path / "links.safetensors")
    (found,) = service.predict([{"x": x.tolist(), "edges": rows, "pairs": [[0, 5], [3, 4]]}])
    wanted = links.predict_proba([[0, 5], [3, 4]], x, edges, edge_weight=weight)
    np.testing.assert_allclose([r["probability"] for r in found], wanted[:, 1], atol=1e-6)


def test_what_cannot_be_served_is_refused_at_once(table, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_service(tmp_path / "nothing.safetensors")
    with pytest.raises(MoEAppsError, match="--learn: a MoEClassifier does not learn"):
        ModelServer(str(table), str(tmp_path / "x.safetensors"), make_worker=LocalWorker).start()
    monkeypatch.setattr(services, "SERVICES", (services.GraphService, services.SampleService))
    with pytest.raises(ConfigError, match="holds a MoEClassifier, which does not answer requests"):
        open_service(table)


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
        "ranker": OtherRanker("mmoe", max_epochs=1, random_state=0).fit(frame, ["click"]),
    }
    for name, model in models.items():
        service = offline(model, tmp_path / f"{name}.safetensors")
        assert type(service.model) is type(model)
        assert service.kind == ("table" if name == "ranker" else name)
    (tmp_path / "run").mkdir()
    StreamCheckpoint(stream, {}).save(tmp_path / "run/stream.safetensors")
    assert type(open_service(tmp_path / "run").model) is OtherStream
