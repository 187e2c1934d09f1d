"""The page of a model of links, on pairs with labels."""

import numpy as np
import pandas as pd
import pytest

from moeapps.cli.main import main
from moeapps.core.errors import DataError
from moeapps.graph import MowstLinkPredictor
from moeapps.report.subjects import judge
from tests.graph.test_link_tables import tables


@pytest.fixture(scope="module")
def model():
    people, calls = tables()
    model = MowstLinkPredictor("gcn", hidden_channels=8, max_epochs=2, gate="constant", random_state=0)
    return model.fit(people, edges=calls, id="person", edge_source="caller", edge_target="called")


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """The tables, pairs with labels of which one is unknown and ten are edges, and the model."""
    folder = tmp_path_factory.mktemp("links")
    people, calls = tables()
    people.to_csv(folder / "people.csv", index=False)
    calls.to_csv(folder / "calls.csv", index=False)
    known = {frozenset(pair) for pair in calls.to_numpy().tolist()}
    linked = calls[calls.caller != calls.called].iloc[:10]
    rng = np.random.default_rng(1)
    others = pd.DataFrame(rng.choice(people.person, (60, 2)), columns=["caller", "called"])
    others = others[[len(pair) == 2 and pair not in known for pair in map(frozenset, others.to_numpy().tolist())]]
    labels = [1] * 10 + [0] * (len(others) - 1) + [None]
    pairs = pd.concat([linked, others], ignore_index=True).assign(linked=pd.array(labels, dtype="Int64"))
    pairs.to_csv(folder / "pairs.csv", index=False)
    model.save(folder / "links.safetensors")
    return folder


GRAPH = ("--nodes", "people.csv", "--edges", "calls.csv")


def report(*options):
    return main(["report", "links.safetensors", "--data", "pairs.csv", *options])


def test_pairs_with_labels_are_judged_under_their_ids(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert report(*GRAPH, "--target", "linked", "--output", "page.html") == 0
    page, pairs = (folder / "page.html").read_text(), pd.read_csv("pairs.csv")
    explained = page.split("One pair explained: ")[1].split("<")[0]
    assert explained in set(pairs.caller + " - " + pairs.called)
    assert "10 of the" in page
    assert "pairs are edges of the graph that is given" in page


def test_a_page_has_what_the_model_predicts(folder, model):
    pairs = pd.read_csv(folder / "pairs.csv")
    tables = (str(folder / "people.csv"), str(folder / "calls.csv"))
    judged = judge(model, (pairs[["called", "caller"]], *tables), pairs["linked"])
    known = pairs[pairs.linked.notna()]
    expected = model.predict_proba(known[["caller", "called"]], *tables)
    np.testing.assert_allclose(judged.first.predicted, expected, atol=1e-6)
    assert judged.first.truth.tolist() == known.linked.tolist()
    assert list(judged.opinions) == model.expert_names_
    np.testing.assert_allclose(judged.weights.sum(axis=1), 1, atol=1e-6)
    held = judge(model, (known[["caller", "called"]].to_numpy(), model.read_graph(*tables)), known["linked"])
    np.testing.assert_allclose(held.first.predicted, expected, atol=1e-6)


def test_columns_of_the_nodes_and_connections_are_shuffled_over_the_whole_graph(folder, model):
    pairs = pd.read_csv(folder / "pairs.csv").dropna()
    tables = (str(folder / "people.csv"), str(folder / "calls.csv"))
    judged = judge(model, (pairs[["caller", "called"]], *tables), pairs["linked"])
    own = judged.shuffled
    assert list(own) == [*model.node_table_.features_of_columns(), "connections"]
    np.testing.assert_allclose(judged.predict(own)[0], judged.first.predicted, atol=1e-6)
    people = pd.read_csv(folder / "people.csv")
    for name in own:
        turned = judged.predict(own.assign(**{name: np.roll(own[name], 1)}))[0][:, 1]
        if name == "connections":
            assert not np.allclose(turned, judged.first.predicted[:, 1])
        else:  # as if the column had been so in the table
            moved = people.assign(**{name: np.roll(people[name], 1)})
            expected = model.predict_proba(pairs[["caller", "called"]], moved, tables[1])[:, 1]
            np.testing.assert_allclose(turned, expected, atol=1e-5)


def test_the_page_of_a_model_of_links_says_which_columns_matter(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert report(*GRAPH, "--target", "linked", "--output", "columns.html") == 0
    page = (folder / "columns.html").read_text()
    assert "Which columns matter" in page
    assert "connections, when nodes exchange neighbours" in page


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (GRAPH[:2], "--edges is missing"),
        (GRAPH[2:], "--nodes is missing"),
        ((*GRAPH, "--target", "linkd"), "got 'linkd'; did you mean 'linked'?"),
        ((*GRAPH, "--target", "caller"), "got 'caller'"),
    ],
)
def test_what_a_page_of_pairs_needs_is_named(folder, monkeypatch, capsys, options, message):
    monkeypatch.chdir(folder)
    assert report(*options) == 2
    assert message in capsys.readouterr().err


def test_pairs_without_a_graph_are_refused(model):
    with pytest.raises(DataError, match=r"X must be \(pairs, nodes, edges\)"):
        judge(model, [["P00", "P01"]], [1])
