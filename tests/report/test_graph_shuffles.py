"""What matters in a graph: columns shuffled over all nodes, and who is connected."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch_geometric.data import Data

from moeapps.core.tabledata.onehot import one_hot_names
from moeapps.graph.graph_tables import GraphTables
from moeapps.graph.node_table import NodeTable
from moeapps.report.graph_shuffles import COLUMNS, GraphShuffles
from moeapps.report.importance import importance
from moeapps.report.subjects import judge
from tests.graph.test_node_table import small, tables


class ByHand:
    """Says "b" with probability 0.9 where a node's first neighbour has a positive number in the column asked for."""

    def __init__(self, column):
        self.column = column

    def __call__(self, x, edge_index):
        first = dict(zip(edge_index[1].tolist(), edge_index[0].tolist(), strict=True))
        positive = [bool(x[first[node], self.column] > 0) for node in range(10, 20)]
        return np.where(np.array(positive)[:, None], [[0.1, 0.9]], [[0.9, 0.1]])


@pytest.fixture
def graph():
    """A ring of 40 nodes that are positive by turns in column 2, and others in the other columns."""
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    x[:, 2] = torch.tensor([1.0, -1.0] * 20)
    return Data(x=x, edge_index=torch.stack([torch.arange(40), torch.arange(40).roll(-1)]))


def shuffles(graph, **columns):
    return GraphShuffles(ByHand(2), graph.x, graph.edge_index, columns or {"a": [0, 1], "b": [2, 3]})


def test_without_a_shuffle_the_prediction_is_that_of_the_graph(graph):
    found = shuffles(graph)
    assert list(found.frame) == ["a", "b", "connections"]
    expected = ByHand(2)(graph.x, graph.edge_index)
    np.testing.assert_array_equal(found.predict(found.frame)[0], expected)


def test_a_column_moves_with_all_its_features_and_at_neighbours_outside_the_chosen_nodes(graph):
    found, before = shuffles(graph), graph.x.clone()
    expected = found.predict(found.frame)[0]
    shifted = np.roll(np.arange(40), 1)
    np.testing.assert_array_equal(found.predict(found.frame.assign(a=shifted))[0], expected)
    np.testing.assert_array_equal(found.predict(found.frame.assign(b=shifted))[0], expected[:, ::-1])
    np.testing.assert_array_equal(graph.x, before)


def test_connections_move_between_nodes(graph):
    found = shuffles(graph)
    swapped = np.arange(40)
    swapped[[0, 1]] = [1, 0]
    found.ask = lambda x, edge_index: edge_index[:, :3].T.numpy()
    assert found.predict(found.frame.assign(connections=swapped))[0].tolist() == [[1, 0], [0, 2], [2, 3]]


def test_many_features_are_one_and_a_column_called_connections_keeps_its_name(graph):
    many = {f"word {i}": [i % 4] for i in range(COLUMNS + 1)}
    assert list(shuffles(graph, **many).frame) == ["all features", "connections"]
    assert list(shuffles(graph, connections=[0]).frame) == ["connections", "connections between nodes"]


def test_sparse_features_are_shuffled_too(graph):
    expected = shuffles(graph)
    sparse = shuffles(Data(x=graph.x.to_sparse_csr(), edge_index=graph.edge_index))
    moved = expected.frame.assign(b=np.roll(np.arange(40), 1))
    np.testing.assert_array_equal(sparse.predict(moved)[0], expected.predict(moved)[0])


def test_each_feature_of_a_table_belongs_to_its_column():
    nodes, edges = tables()
    nodes["opened"] = pd.date_range("2026-01-01", periods=len(nodes), freq="37h")
    table, _ = NodeTable.learn(nodes, edges, GraphTables(id="account", target="label"))
    features, names = table.features_of_columns(), one_hot_names(table.encoder, table.kept)
    assert sorted(place for places in features.values() for place in places) == list(range(len(names)))
    assert all(names[feature].startswith(column) for column, places in features.items() for feature in places)
    assert {names[f] for f in features["age"]} == {"age", "age is missing"}
    assert len(features["country"]) == 2
    assert len(features["opened"]) > 2


def test_the_page_names_what_the_labels_come_from():
    nodes, edges = tables()
    nodes["balance"] = np.where(np.arange(60) >= 30, 3.0, -3.0) + nodes["balance"] / 10
    model = small().fit(nodes, edges=edges, id="account", target="label")
    judged = judge(model, (nodes, edges))
    (section,) = importance(judged, model, 20.0, 0)
    assert section.pictures[0].title.startswith("balance matters most")
    assert "all nodes of the graph" in section.text[0]
    (section,) = importance(judged, model, 1e-9, 0)
    assert section.text[0].startswith("Not computed")
