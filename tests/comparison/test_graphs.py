"""Comparisons on graphs: masks of the graph, random splits, seeds, and graphs from two tables."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch_geometric.data import Data

import moeapps
from moeapps.comparison.graphs import graph_task
from moeapps.core.errors import ConfigError, DataError
from moeapps.graph import GNNClassifier, load_cora


def two_circles(n=60):
    """Two classes that features tell apart a little; edges stay within a class."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 2
    x = torch.randn(n, 4, generator=generator) + y[:, None]
    edges = torch.stack([torch.arange(n - 2), torch.arange(2, n)])
    return Data(x=x, y=y, edge_index=torch.cat([edges, edges.flip(0)], 1))


def with_masks(graph, columns=None):
    place = torch.arange(graph.num_nodes) % 4
    for number, name in enumerate(("train_mask", "val_mask", "test_mask")):
        mask = (place == number) | ((place == 3) & (number == 0))
        graph[name] = mask if columns is None else torch.stack([mask.roll(i) for i in range(columns)], 1)
    return graph


@pytest.fixture(scope="module")
def tables():
    graph = two_circles()
    names = [f"node {i}" for i in range(graph.num_nodes)]
    nodes = pd.DataFrame(graph.x.numpy(), columns=list("abcd")).assign(node=names)
    nodes["side"] = np.where(graph.y.numpy() == 0, "left", "right")
    nodes["colour"] = np.where(np.arange(len(nodes)) % 3 == 0, "red", "blue")
    source, target = graph.edge_index.numpy()
    edges = pd.DataFrame({"from": np.array(names)[source], "to": np.array(names)[target]})
    return nodes, edges


def quick(name="gcn"):
    return (f"quick {name}", GNNClassifier(name, norm=None, max_epochs=4))


def test_seeds_on_the_split_of_the_graph_are_not_taken_for_splits():
    task = graph_task(load_cora(), splits=3)
    assert (task.split_name, task.overlap, task.splits) == ("seed", 0.0, 3)
    assert "140 nodes to train on, 500 to validate on, 1,000 to test on" in task.told[1]
    assert task.graph(0) is task.graph(2)


def test_the_splits_of_the_graph_are_used():
    task = graph_task(with_masks(two_circles(), columns=3), splits=5)
    assert (task.split_name, task.splits) == ("split", 3)
    assert not torch.equal(task.graph(0).test_mask, task.graph(1).test_mask)


@pytest.mark.parametrize("graph", [two_circles(), with_masks(two_circles())], ids=["no masks", "resplit"])
def test_random_splits_differ_and_correct_for_shared_nodes(graph):
    task = graph_task(graph, resplit=True, splits=2)
    assert task.overlap == pytest.approx(15 / 45)
    first = task.graph(0)
    masks = torch.stack([first.train_mask, first.val_mask, first.test_mask])
    assert (masks.sum(0) == 1).all()
    assert not torch.equal(first.test_mask, task.graph(1).test_mask)


def test_a_graph_of_two_files_is_compared(tables, tmp_path, short_trainings):
    nodes, edges = tables
    nodes.to_csv(tmp_path / "nodes.csv", index=False)
    edges.to_csv(tmp_path / "edges.csv", index=False)
    found = moeapps.compare(
        str(tmp_path / "nodes.csv"), "side", edges=str(tmp_path / "edges.csv"), id="node", splits=2, progress=False,
        models=["MLP (no edges)", quick()],
    )  # fmt: skip
    assert found.data == "nodes.csv"
    assert found.kind == "classification of nodes"
    assert found.compared == 2
    assert found.told[0] == "60 nodes, 6 features, 116 edges (directed), 2 classes."


def test_text_columns_of_nodes_become_features(tables):
    nodes, edges = tables
    whole = graph_task(nodes, "side", edges=edges, id="node")
    without = graph_task(nodes, "side", edges=edges, id="node", ignore=["colour"])
    assert whole.graph(0).x.shape[1] == without.graph(0).x.shape[1] + 2


@pytest.mark.filterwarnings("ignore:edges. 1 of 59 edges name a node", "ignore:the graph is directed")
def test_two_tables_are_the_graph_that_fit_makes_of_them(tables):
    nodes, edges = tables
    once = pd.concat([edges[edges["from"] < edges["to"]], pd.DataFrame({"from": ["node 1"], "to": ["gone"]})])
    once["amount"] = np.arange(len(once)) + 1.0
    given = {"edges": once, "missing_nodes": "ignore"}
    compared = graph_task(nodes, "side", **given).graph(0)
    model = GNNClassifier("gcn", norm=None, max_epochs=1).fit(nodes, target="side", **given)
    assert torch.equal(compared.x.to_dense(), model.node_ids_.graph.x)
    assert torch.equal(compared.edge_index, model.node_ids_.graph.edge_index)
    assert compared.edge_weight is None, "a column that is not called weight holds none"
    assert graph_task(nodes, "side", undirected=False, **given).graph(0).edge_index.shape[1] == len(once) - 1


def test_nodes_without_ids_are_named_by_their_rows_and_other_ids_by_the_column_that_has_them(tables):
    nodes, edges = tables
    rows = edges.apply(lambda ends: ends.str.removeprefix("node ").astype(int))
    assert graph_task(nodes.drop(columns="node"), "side", edges=rows).graph(0).num_nodes == 60
    with pytest.raises(ConfigError, match="nodes like 'node 0', not numbers of rows; --id account names the column"):
        graph_task(nodes.rename(columns={"node": "account"}), "side", edges=edges)


def test_nodes_without_label_are_not_scored(tables):
    nodes, edges = tables
    gaps = nodes.assign(side=nodes["side"].where(nodes.index > 19))
    task = graph_task(gaps, "side", edges=edges, id="node", models=[quick()], splits=1)
    assert task.measure(task.candidates[-1], 0).rows == 10


def test_the_same_seed_gives_the_same_numbers():
    runs = [graph_task(with_masks(two_circles()), models=[quick()], splits=1) for _ in range(2)]
    scores = [task.measure(task.candidates[-1], 0).scores for task in runs]
    assert scores[0] == scores[1]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"target": "sied"}, DataError, "did you mean 'side'"),
        ({"target": "side", "id": "nod"}, DataError, "nodes has no column 'nod', which id names.*did you mean 'node'"),
        ({}, ConfigError, "target must be the name of the nodes' column"),
    ],
)
def test_what_is_wrong_with_tables_is_named(tables, arguments, error, message):
    nodes, edges = tables
    with pytest.raises(error, match=message):
        graph_task(nodes, edges=edges, **{"id": "node", **arguments})


def test_a_target_without_edges_is_refused():
    with pytest.raises(ConfigError, match="target belong to a table of nodes"):
        graph_task(two_circles(), "y")


def test_a_graph_without_test_nodes_is_refused():
    graph = with_masks(two_circles())
    graph.test_mask[:] = False
    with pytest.raises(DataError, match="test_mask has no labeled node"):
        graph_task(graph)
