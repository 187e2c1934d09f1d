"""Graphs from what users have, and everything that is refused (G1-G6, D3)."""

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from torch_geometric.data import Data

from moeapps.core.errors import ConfigError, DataError
from moeapps.graph import GNNClassifier, GraphDataModule, load_cora
from moeapps.graph.inputs import as_graph
from tests.graph.helpers import small_graph

X = np.arange(12, dtype=np.float64).reshape(4, 3)
EDGES = np.array([[0, 1, 2], [1, 0, 3]])
Y = np.array([0, 1, 0, 1])


def data(**changes) -> Data:
    parts = {
        "x": torch.randn(8, 3), "edge_index": torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]]), "y": torch.tensor([0, 1] * 4),
        "train_mask": torch.arange(8) < 4, "val_mask": (torch.arange(8) >= 4) & (torch.arange(8) < 6),
        "test_mask": torch.arange(8) >= 6,
    }  # fmt: skip
    return Data(**{**parts, **changes})


def setup(graph: Data) -> GraphDataModule:
    module = GraphDataModule(graph)
    module.setup()
    return module


def test_arrays_frames_tensors_and_sparse_matrices_make_the_same_graph():
    adjacency = sparse.coo_matrix((np.ones(3), EDGES), shape=(4, 4))
    graphs = [
        as_graph(X, Y, EDGES),
        as_graph(X.astype(np.float32), Y, EDGES.astype(np.int32)),
        as_graph(pd.DataFrame(X), pd.Series(Y), EDGES.tolist()),
        as_graph(sparse.csr_matrix(X), Y, adjacency),
        as_graph(torch.from_numpy(X), torch.from_numpy(Y), torch.from_numpy(EDGES)),
    ]
    for graph in graphs:
        assert graph.x.dtype == torch.float32
        assert torch.equal(graph.x, graphs[0].x)
        assert torch.equal(graph.edge_index, graphs[0].edge_index)
        assert graph.edge_weight is None
        assert graph.y.tolist() == Y.tolist()
    weighted = as_graph(X, Y, sparse.coo_matrix((np.array([1.0, 2, 3]), EDGES), shape=(4, 4)))
    assert weighted.edge_weight.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ([[0, 4], [1, 0]], r"1 edges with a node outside 0\.\.3, the first is edge 1: 4 -> 0"),
        ([[0, 1], [1, -1]], r"edge 1: 1 -> -1"),
        ([[0.0, 1.0], [1.0, 0.0]], "must hold integers"),
        ([[0, 1], [1, 0], [2, 3]], r"shape \(2, E\), got \(3, 2\); transpose it"),
        ([[0, 1, 1], [1, 0, 0], [2, 3, 3]], r"shape \(2, E\), got \(3, 3\)"),
        ([0, 1], r"shape \(2, E\)"),
    ],
)
def test_wrong_edges_are_named(edges, message):
    with pytest.raises(DataError, match=message):
        as_graph(X, Y, np.array(edges))


def test_isolated_nodes_and_no_edges_predict():
    for edges in (None, np.array([[0, 1], [1, 0]])):
        model = GNNClassifier("gcn", max_epochs=2, random_state=0).fit(X, Y, edges)
        assert np.isfinite(model.predict_proba(X, edges)).all()
        assert model.predict(X[:1]).shape == (1,)


def test_a_directed_graph_is_used_as_it_is_with_a_warning():
    with pytest.warns(UserWarning, match="the graph is directed"):
        setup(data(edge_index=torch.tensor([[0, 1], [1, 2]])))


def test_self_loops_and_duplicates_are_kept_and_logged_once(caplog):
    caplog.set_level("INFO")
    edges = torch.tensor([[0, 1, 0, 1, 2], [1, 0, 1, 0, 2]])
    module = setup(data(edge_index=edges))
    assert torch.equal(module.graph.edge_index, edges)
    module.setup("fit")
    assert sum("1 self-loops and 2 duplicate edges" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train_mask": torch.ones(7, dtype=torch.bool)},
            r"train_mask must have one entry per node \(8\), got 7",
        ),
        ({"train_mask": torch.zeros(8, dtype=torch.bool)}, "train_mask has no labeled node"),
        ({"val_mask": torch.zeros(8, dtype=torch.bool)}, "val_mask has no labeled node"),
        (
            {"val_mask": torch.arange(8) >= 3},
            "train_mask and val_mask overlap in 1 nodes, the first is node 3",
        ),
        ({"train_mask": torch.tensor([0, 9])}, r"node numbers outside 0\.\.7"),
        ({"train_mask": torch.linspace(0, 1, 8)}, "bool per node or a list of node numbers"),
        ({"y": None}, "no labels"),
        ({"y": torch.zeros(8)}, "1 class"),
        ({"y": torch.zeros(7)}, r"y must have shape \(8,\)"),
        ({"y": torch.linspace(0, 1, 8)}, "continuous"),
        ({"y": torch.tensor([0.0, 1, torch.inf, 1, 0, 1, 0, 1])}, "y is infinite at node 2"),
        ({"edge_weight": torch.ones(3)}, r"edge_weight must have shape \(4,\)"),
        ({"edge_weight": torch.full((4,), torch.nan)}, "edge_weight has NaN"),
        ({"x": None}, "no node features"),
    ],
    ids=str,
)
def test_masks_labels_and_weights_that_do_not_fit_are_named(changes, message):
    with pytest.raises(DataError, match=message):
        setup(data(**changes))


def test_unlabeled_nodes_enter_no_mask_and_a_missing_class_is_a_warning():
    y = torch.tensor([0, 1, -1, 1, 0, 2, 1, -1])
    with pytest.warns(UserWarning, match="1 of the classes never occur in train_mask"):
        module = setup(data(y=y))
    assert module.graph.train_mask.tolist() == [True, True, False, True] + [False] * 4
    assert not module.graph.test_mask[7]
    nan = setup(data(y=torch.tensor([0, 1, torch.nan, 1, 0, 1, 1, torch.nan])))
    assert torch.equal(nan.graph.y, torch.tensor([0, 1, -1, 1, 0, 1, 1, -1]))


def test_nan_features_are_counted_and_the_first_nodes_named():
    x = torch.randn(8, 3)
    x[2, 1], x[5] = torch.nan, torch.inf
    with pytest.raises(DataError, match=r"NaN or infinite features in 2 of 8 nodes, the first are \[2, 5\]"):
        setup(data(x=x))


def test_a_model_predicts_on_another_graph_of_the_same_width():
    model = GNNClassifier("gcn", max_epochs=2, random_state=0).fit(X, Y, EDGES[:, :2])
    assert model.predict(np.random.default_rng(0).random((9, 3)), np.array([[0, 8], [8, 0]])).shape == (9,)
    with pytest.raises(ValueError, match="2 features.*expecting 3"):
        model.predict(X[:, :2])
    with pytest.raises(DataError, match="2 features.*fitted with 3"):
        model.predict(Data(x=torch.randn(4, 2), edge_index=torch.zeros(2, 0, dtype=torch.long)))


def test_edges_without_their_nodes_are_refused_and_weights_that_come_or_go_are_told():
    data = small_graph()
    weight = torch.arange(data.num_edges) % 3 + 1.0
    model = GNNClassifier("gcn", max_epochs=2, random_state=0).fit(data)
    for edges in ({"edge_index": data.edge_index[:, :5]}, {"edge_weight": weight}, {"edges": data.edge_index}):
        with pytest.raises(DataError, match="edges were given without nodes"):
            model.predict_proba(**edges)
    with pytest.raises(ConfigError, match="edges and edge_index are the same argument"):
        model.score(data.x, data.y, data.edge_index, edges=data.edge_index)
    with pytest.warns(UserWarning, match="had no weights, those to predict have some"):
        model.predict(data, edge_weight=weight)
    weighted = GNNClassifier("gcn", max_epochs=2, random_state=0).fit(data, edge_weight=weight)
    weighted.predict(data, edge_weight=weight)
    with pytest.warns(UserWarning, match="have none: each counts as 1"):
        weighted.predict(data)


def test_several_splits_are_columns_and_the_labels_keep_their_names():
    masks = torch.stack([torch.arange(8) < 4, torch.arange(8) < 5], dim=1)
    first = as_graph(data(train_mask=masks), split=0)
    second = as_graph(data(train_mask=masks), split=1)
    assert (int(first.train_mask.sum()), int(second.train_mask.sum())) == (4, 5)
    with pytest.raises(DataError, match="split=2 is outside the 2 splits of train_mask"):
        as_graph(data(train_mask=masks), split=2)
    module = setup(data(y=np.array(["b", "a"] * 4)))
    assert module.classes.tolist() == ["a", "b"]
    assert module.graph.y.tolist() == [1, 0] * 4


def test_without_a_validation_mask_a_fifth_of_the_training_nodes_is_set_aside():
    graph = Data(x=torch.randn(50, 3), edge_index=torch.zeros(2, 0, dtype=torch.long), y=torch.arange(50) % 2)
    module = setup(graph)
    assert int(module.graph.val_mask.sum()) == 10
    assert int(module.graph.y[module.graph.val_mask].sum()) == 5
    assert not (module.graph.val_mask & module.graph.train_mask).any()


def test_without_a_training_mask_the_rest_is_trained_on():
    graph = data(train_mask=None)
    del graph.train_mask
    module = setup(graph)
    assert module.graph.train_mask.tolist() == [True] * 4 + [False] * 4


def test_too_few_labeled_nodes_are_refused():
    y = torch.tensor([0, 1] + [-1] * 6)
    graph = data(y=y, train_mask=torch.arange(8) < 1)
    del graph.val_mask
    with pytest.raises(DataError, match="1 labeled nodes: at least 2"):
        setup(graph)


def npz(path, **changes):
    arrays = {
        "node_features": np.random.default_rng(0).random((8, 3)), "node_labels": np.array([0, 1] * 4),
        "edges": np.array([[0, 1], [2, 3], [4, 5]]), "train_masks": np.arange(8)[None] < 4,
        "val_masks": (np.arange(8)[None] >= 4) & (np.arange(8)[None] < 6), "test_masks": np.arange(8)[None] >= 6,
    }  # fmt: skip
    np.savez(path, **{name: value for name, value in {**arrays, **changes}.items() if value is not None})
    return str(path)


def test_an_npz_file_is_read_and_made_undirected(tmp_path):
    module = GraphDataModule(npz(tmp_path / "g.npz"))
    module.setup()
    assert module.graph.edge_index.shape == (2, 6)
    assert (module.in_channels, module.out_channels) == (3, 2)
    assert int(module.graph.test_mask.sum()) == 2


def test_an_npz_file_that_cannot_be_used_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nope\.npz does not exist"):
        GraphDataModule(str(tmp_path / "nope.npz")).setup()
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(DataError, match=r"text\.npz is not a readable \.npz file"):
        GraphDataModule(str(tmp_path / "text.npz")).setup()
    with pytest.raises(DataError, match="no array 'edges'"):
        GraphDataModule(npz(tmp_path / "e.npz", edges=None)).setup()
    with pytest.raises(DataError, match="not a readable"):
        GraphDataModule(npz(tmp_path / "o.npz", node_labels=np.array([{}] * 8, dtype=object))).setup()
    with pytest.raises(DataError, match=r"edge 2: 4 -> 8"):
        GraphDataModule(npz(tmp_path / "r.npz", edges=np.array([[0, 1], [2, 3], [4, 8]]))).setup()


def test_an_npz_benchmark_graph_loads(data_folder):
    module = GraphDataModule(str(data_folder / "graph/chameleon_filtered/raw/chameleon_filtered.npz"), split=3)
    module.setup()
    assert (module.graph.num_nodes, module.graph.edge_index.shape[1], module.out_channels) == (890, 17708, 5)


NAMES = ["ann", "bob", "cid", "dan"]


def test_a_frame_of_edges_names_nodes_as_the_features_do():
    x = pd.DataFrame(np.eye(4), index=NAMES)
    edges = pd.DataFrame({"from": ["ann", "dan"], "to": ["bob", "ann"], "w": [0.5, 2.0]})
    graph = as_graph(x, None, edges)
    assert graph.edge_index.tolist() == [[0, 3], [1, 0]]
    assert graph.edge_weight.tolist() == [0.5, 2.0]
    by_position = as_graph(np.eye(4), None, pd.DataFrame({"source": [0, 3], "target": [1, 0]}))
    assert torch.equal(by_position.edge_index, graph.edge_index)
    assert by_position.edge_weight is None


def test_a_networkx_graph_brings_its_edges_and_weights():
    x = pd.DataFrame(np.eye(4), index=NAMES)
    drawn = nx.Graph([("ann", "bob", {"weight": 0.5}), ("dan", "ann", {"weight": 2.0})])
    graph = as_graph(x, None, drawn)
    pairs = dict(zip(map(tuple, graph.edge_index.T.tolist()), graph.edge_weight.tolist(), strict=True))
    assert pairs == {(0, 1): 0.5, (1, 0): 0.5, (3, 0): 2.0, (0, 3): 2.0}
    directed = as_graph(np.eye(4), None, nx.DiGraph([(0, 1), (3, 0)]))
    assert sorted(map(tuple, directed.edge_index.T.tolist())) == [(0, 1), (3, 0)]
    assert directed.edge_weight is None
    assert as_graph(np.eye(4), None, nx.empty_graph(4)).edge_index.shape == (2, 0)


@pytest.mark.parametrize(
    ("x", "edges", "culprit"),
    [
        (pd.DataFrame(np.eye(4), index=NAMES), pd.DataFrame({"a": ["ann"], "b": ["eve"]}), "names the node 'eve'"),
        (np.eye(4), pd.DataFrame({"a": ["ann"], "b": ["bob"]}), "the nodes have none"),
        (pd.DataFrame(np.eye(2), index=["a", "a"]), pd.DataFrame({"a": ["a"], "b": ["a"]}), "stands there twice"),
        (np.eye(4), pd.DataFrame({"a": [0]}), "columns source, target and perhaps weight"),
        (np.eye(4), nx.path_graph(5), "has 5 nodes, x has 4 rows"),
        (np.eye(4), nx.Graph([("ann", "bob")]), "the nodes have none"),
        (np.eye(4), pd.DataFrame({"a": [0], "b": [9]}), "0 -> 9"),
    ],
)
def test_edges_that_name_no_node_are_refused(x, edges, culprit):
    with pytest.raises(DataError, match=culprit):
        as_graph(x, None, edges)


@pytest.mark.parametrize("form", ["frame", "networkx", "scipy", "array"])
def test_a_classifier_takes_edges_in_every_form(form):
    cora = load_cora()
    source, target = cora.edge_index.numpy()
    edges = {
        "frame": pd.DataFrame({"source": source, "target": target}),
        "networkx": nx.from_edgelist(zip(source.tolist(), target.tolist(), strict=True)),
        "scipy": sparse.coo_array((np.ones(len(source)), (source, target)), shape=(2708, 2708)),
        "array": cora.edge_index.numpy(),
    }[form]
    model = GNNClassifier("gcn", norm=None, max_epochs=8, random_state=0)
    model.fit(cora.x.numpy(), cora.y.numpy(), edges, train_mask=cora.train_mask, val_mask=cora.val_mask)
    assert model.score(y=cora.y.numpy(), nodes=cora.test_mask) > 0.5
