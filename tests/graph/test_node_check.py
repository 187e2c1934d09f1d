"""``check`` of a model that was fitted on tables: columns, edges per node, predicted classes."""

import numpy as np
import pandas as pd
import pytest

import moeapps
from moeapps.cli.main import main
from moeapps.core.errors import DataError
from moeapps.graph import GNNClassifier

pytestmark = pytest.mark.filterwarnings("ignore:.*not among the 2 categories.*")
EVERY = ["age", "city", "(edges per node)", "(predicted class)"]


def tables(n: int, age: float = 40, edges: int = 3, cities=("Ulm", "Bonn"), seed: int = 0):
    rng = np.random.default_rng(seed)
    nodes = pd.DataFrame({"node": [f"n{i}" for i in range(n)], "age": rng.normal(age, 9, n)})
    nodes["city"] = rng.choice(cities, n)
    return nodes, pd.DataFrame(
        {"source": rng.choice(nodes["node"], edges * n), "target": rng.choice(nodes["node"], edges * n)}
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    nodes, edges = tables(300)
    nodes["label"] = np.where(nodes["age"] > 40, "old", "young")
    fitted = GNNClassifier("mlp", max_epochs=20, lr=0.05, random_state=0, accelerator="cpu")
    fitted.fit(nodes, edges=edges, id="node", target="label")
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    fitted.save(path)
    return moeapps.load(path)


def test_a_graph_of_the_same_kind_has_not_changed(model):
    check = model.check(*tables(200, seed=1))
    assert check.table.index.tolist() == EVERY
    assert check.verdict == "ok"
    assert (check.rows_training, check.rows) == (300, 200)


def test_columns_edges_and_predictions_that_changed_are_named(model):
    check = model.check(*tables(200, age=60, edges=12, cities=("Ulm", "Kiel"), seed=1))
    assert check.named("drift") == EVERY
    assert check.table.loc["city", "unseen"] == pytest.approx(0.5, abs=0.1)
    only_edges = model.check(*tables(200, edges=12, seed=1))
    assert only_edges.named("drift", "shift") == ["(edges per node)"]


def test_without_edges_the_columns_alone_are_compared_and_the_target_is_no_new_column(model):
    nodes, _ = tables(200, seed=1)
    check = model.check(nodes.assign(label="old"))
    assert check.table.index.tolist() == EVERY[:2]
    assert check.extra == ()


def test_tables_that_make_no_graph_are_unreadable_and_the_columns_compared_all_the_same(model):
    nodes, edges = tables(200, seed=1)
    check = model.check(nodes, edges.assign(source="stranger"))
    assert check.named("unreadable") == EVERY[2:]
    assert "name a node that nodes lacks, the first is 'stranger'" in check.table.loc["(edges per node)", "why"]
    assert model.check(nodes.drop(columns="city"), edges).named("absent") == ["city"]


def test_a_file_of_an_older_version_says_nothing_of_its_graph(model):
    state = model.node_table_.state()
    del state["degrees"], state["predicted"]
    older = type(model.node_table_).from_state(state)
    now, model.node_table_ = model.node_table_, older
    try:
        check = model.check(*tables(200, edges=12, seed=1))
    finally:
        model.node_table_ = now
    assert check.table["verdict"].to_dict() == {"age": "ok", "city": "ok", "(edges per node)": "unknown"}


def test_a_model_of_numbers_has_no_tables_to_compare():
    fitted = GNNClassifier("mlp", max_epochs=1, accelerator="cpu").fit(np.eye(6), [0, 1] * 3)
    with pytest.raises(DataError, match=r"was not fitted on tables: fit\(nodes, edges=..., id=...\)"):
        fitted.check(np.eye(6))


def test_the_command_takes_edges_and_refuses_them_for_other_models(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model.save("graph.safetensors")
    nodes, edges = tables(200, edges=12, seed=1)
    nodes.to_csv("nodes.csv", index=False)
    edges.to_csv("edges.csv", index=False)
    assert main(["check", "graph.safetensors", "nodes.csv", "--edges", "edges.csv", "--fail-on", "drift"]) == 3
    assert "1 of 4 columns have changed: (edges per node)" in capsys.readouterr().out
    assert main(["check", "graph.safetensors", "nodes.csv", "--fail-on", "drift"]) == 0
    table = moeapps.MoEClassifier(dim=4, num_experts=2, num_blocks=1, max_epochs=1, accelerator="cpu")
    table.fit(nodes[["age"]], nodes["city"]).save("table.safetensors")
    assert main(["check", "table.safetensors", "nodes.csv", "--edges", "edges.csv"]) == 2
    assert "--edges is for models of graphs, and table.safetensors holds a MoEClassifier" in capsys.readouterr().err
