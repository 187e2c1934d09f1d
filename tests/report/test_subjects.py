"""Pages of rankers, images, nodes and streams: each kind of model is read, from Python and from files."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from torch_geometric.data import Data

from moeapps import DriftMoEClassifier, MowstClassifier, MultiTaskRanker
from moeapps.cli.main import main
from moeapps.core.errors import ConfigError, DataError
from moeapps.report import render_model
from moeapps.report.row_files import read_rows
from moeapps.report.subjects import judge
from moeapps.vision import WideNetClassifier


def shown(html: str) -> str:
    return " ".join(re.sub(r"<style>.*?</style>|<[^>]+>", " ", html, flags=re.DOTALL).replace("\xa0", " ").split())


def clicks(n: int) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"age": rng.integers(18, 80, n), "city": rng.choice(["Ulm", "Bonn"], n)})
    frame["click"] = (frame["age"] + rng.normal(0, 5, n) > 50).astype(int)
    frame["spend"] = frame["age"] * 0.3 + rng.normal(size=n)
    return frame


@pytest.fixture(scope="module")
def ranker():
    return MultiTaskRanker(max_epochs=2, random_state=0).fit(clicks(300), targets=["click", "spend"])


def test_every_target_of_a_ranker_is_scored_and_its_gates_are_shown(ranker):
    text = shown(render_model(ranker, clicks(120), seconds=1))
    for part in ("targets click, spend", "ROC AUC ↑", "R2 ↑", "Right and wrong predictions: spend",
                 "mean weight of experts by gate", "Which columns matter: click", "click: "):  # fmt: skip
        assert part in text, part
    assert judge(ranker, clicks(50), target="spend").first.name == "spend"


def test_a_ranker_with_scenarios_has_its_auc_in_each_of_them():
    model = MultiTaskRanker("mmoe", scenario="city", max_epochs=1, random_state=0).fit(clicks(300), ["click"])
    rows = clicks(120).assign(city="Ulm")
    text = shown(render_model(model, rows, seconds=1))
    assert "Each scenario AUC by task and city" in text
    assert "Ulm (120 rows)" in text
    assert "Bonn (0 rows)" not in text
    assert float(model.scenario_scores(rows).auc.loc["click", "Ulm"]) == pytest.approx(
        float(model.evaluate(rows).query("slice == 'all'")["auc"].iloc[0])
    )


def test_numbers_of_a_ranker_are_compared_in_their_own_unit(ranker):
    frame = clicks(50)
    spend = judge(ranker, frame, target="spend").first
    np.testing.assert_allclose(spend.truth, frame["spend"], rtol=1e-5)
    np.testing.assert_allclose(spend.predicted, ranker.predict(frame)["spend"])


def test_a_file_of_a_ranker_needs_no_target(ranker, tmp_path):
    clicks(40).to_csv(tmp_path / "test.csv", index=False)
    X, y = read_rows(ranker, str(tmp_path / "test.csv"))
    assert y is None
    assert len(judge(ranker, X)) == 40
    with pytest.raises(ConfigError, match="target must be one of click, spend, got 'clik'; did you mean 'click'"):
        judge(ranker, X, target="clik")


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    pixels = rng.random((60, 8, 8)) * 0.3 + 0.6 * labels[:, None, None] * (np.arange(8) > 3)
    model = WideNetClassifier(max_epochs=2, depth=2, embed_dim=16, num_heads=2, random_state=0)
    return model.fit(pixels, labels), pixels, labels


def test_wrong_images_are_shown_with_their_captions(images):
    model, pixels, labels = images
    page = render_model(model, pixels, 1 - labels, seconds=1)
    assert "of the images are predicted right" in shown(page)
    assert page.count("data:image/png;base64") == min(24, int((model.predict(pixels) == labels).sum()))
    assert "the share of an image" in shown(page)
    assert len(page.encode()) < 200_000


@pytest.fixture(scope="module")
def nodes():
    rng = np.random.default_rng(0)
    y = np.arange(80) % 2
    x = torch.tensor(rng.normal(size=(80, 4)) + 2 * y[:, None], dtype=torch.float32)
    ring = torch.tensor([(i, (i + 2) % 80) for i in range(80)]).T
    edges = torch.cat([ring, ring.flip(0)], dim=1)
    graph = Data(x=x, edge_index=edges, y=torch.tensor(y))
    graph.test_mask = torch.arange(80) >= 40
    graph.train_mask = torch.arange(80) < 30
    graph.val_mask = ~(graph.train_mask | graph.test_mask)
    model = MowstClassifier(strong="gcn", norm=None, variant="mowst_star", hidden_channels=8, max_epochs=12, patience=3,
                            random_state=0)  # fmt: skip
    return model.fit(graph), graph


def test_nodes_of_the_test_mask_are_judged_with_what_each_expert_says(nodes):
    model, graph = nodes
    found = judge(model, graph)
    assert len(found) == 40
    assert list(found.weights) == list(found.opinions) == ["weak", "strong"]
    assert (found.first.best == found.first.truth).mean() == pytest.approx(model.score(graph))
    assert next(iter(found.frame)) == "number of neighbours"
    assert "One node explained" in shown(render_model(model, graph))


def test_weights_of_nodes_sum_to_one_and_mix_the_predictions(nodes):
    model, graph = nodes
    weights, alone = model.expert_weights(graph, nodes=[3, 50]), model.expert_predictions(graph, nodes=[3, 50])
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    mixed = sum(weights[name].to_numpy()[:, None] * alone[name] for name in weights)
    if model.champion_ == "mix":
        np.testing.assert_allclose(mixed, model.predict_proba(graph, nodes=[3, 50]), atol=1e-5)


@pytest.fixture(scope="module")
def stream():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(600, 3)), columns=list("abc"))
    frame["way"] = np.where(frame["a"] + rng.normal(size=600) > 0, "up", "down")
    model = DriftMoEClassifier(n_experts=3, experts=None, seed=0)
    model.learn_many(frame[list("abc")][:400], frame["way"][:400])
    return model, frame[400:].reset_index(drop=True)


def test_a_stream_of_two_truth_values_is_judged(stream):
    frame = stream[1].assign(way=stream[1]["way"] == "up")
    model = DriftMoEClassifier(n_experts=3, experts=None, seed=0)
    model.learn_many(frame[list("abc")][:100], frame["way"][:100])
    found = judge(model, frame[list("abc")], frame["way"])
    assert found.first.classes == ["False", "True"]
    assert (found.first.best == found.first.truth).mean() > 0.5


def test_a_stream_is_shown_over_time(stream):
    model, frame = stream
    text = shown(render_model(model, frame[list("abc")], frame["way"], seconds=1))
    for part in ("Over time", "Share of each class that is predicted right", "target way"):
        assert part in text, part


def test_events_of_a_file_are_read_as_a_run_reads_them(stream, tmp_path, capsys):
    model, frame = stream
    model.save(tmp_path / "model.safetensors")
    frame.to_csv(tmp_path / "new.csv", index=False)
    arguments = ["report", str(tmp_path / "model.safetensors"), "--data", str(tmp_path / "new.csv"), "--seconds", "1"]
    out = ["--output", str(tmp_path / "page.html")]
    assert main([*arguments, *out, "--target", "way"]) == 0
    assert "rows of this report 200" in shown((tmp_path / "page.html").read_text())
    assert main([*arguments, *out, "--target", "wey"]) == 2
    assert "did you mean 'way'?" in capsys.readouterr().err


def test_what_predicts_nothing_is_refused(stream):
    model, frame = stream
    with pytest.raises(DataError, match="way has the label 'sideways' in 1 rows"):
        judge(model, frame[list("abc")], frame["way"].mask(frame.index == 0, "sideways"), "way")
    with pytest.raises(ConfigError, match="makes no predictions to report on"):
        judge(object(), frame)


def test_a_model_of_whole_graphs_has_no_page_on_rows_and_names_what_scores_it():
    class Graphs:
        predict_proba = predict = compare = None

    with pytest.raises(ConfigError, match=r"no page of a Graphs on rows: print\(model.compare\(data\)\)"):
        judge(Graphs(), [[0, 1]])
