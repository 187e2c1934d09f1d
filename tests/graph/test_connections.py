"""Edges and weights from what users have: adj_t, sparse matrices, edge_attr, frames, networkx."""

from functools import partial

import networkx as nx
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
import torch_geometric.transforms as T
from scipy import sparse
from torch_geometric.data import Data

from moeapps.core.errors import DataError
from moeapps.graph import Edges, GNNClassifier, GraphDataModule, Mowst, MowstClassifier, load_cora, predict_nodes
from moeapps.graph.inputs import as_graph, bare_graph
from tests.graph.helpers import graph_with as graph
from tests.graph.helpers import small_graph

QUICK = {"max_epochs": 2, "random_state": 0, "accelerator": "cpu", "norm": "batch_norm"}
MIXTURE = partial(MowstClassifier, ["gcn", "sage"], gate="mean")  # choosing a gate takes longer than the training
X = np.eye(4)
DIRECTED = torch.tensor([[0, 1, 2, 3, 3], [1, 0, 1, 0, 2]])  # sorted by target after a stable sort, all distinct
WEIGHT = torch.tensor([0.5, 2.0, 1.5, 3.0, 0.25])


class SparseTensor:
    """As much of torch_sparse.SparseTensor as moeapps uses; the package is not installed here."""

    def __init__(self, row, col, value, size):
        self.parts, self.size = (row, col, value), size

    def coo(self):
        return self.parts

    def sparse_sizes(self):
        return self.size


def as_pairs(data: Data) -> dict[tuple[int, int], float]:
    weight = torch.ones(data.num_edges) if data.edge_weight is None else data.edge_weight
    return dict(zip(map(tuple, data.edge_index.T.tolist()), weight.tolist(), strict=True))


def adj_t_in_every_form(weight):
    """Of the directed edges; adj_t[i, j] is the edge from j to i."""
    row, col = DIRECTED.flip(0)
    value = torch.ones(5) if weight is None else weight
    coo = torch.sparse_coo_tensor(torch.stack([row, col]), value, (4, 4))
    matrix = sparse.coo_matrix((value.numpy(), (row.numpy(), col.numpy())), shape=(4, 4))
    return {
        "coo": coo, "csr": coo.to_sparse_csr(), "csc": coo.to_sparse_csc(),
        "SparseTensor": SparseTensor(row, col, weight, (4, 4)),
        "scipy csr": matrix.tocsr(), "scipy array": sparse.csc_array(matrix),
        "hybrid": torch.sparse_coo_tensor(torch.stack([row, col]), value[:, None], (4, 4, 1)),
    }  # fmt: skip


@pytest.mark.parametrize("form", list(adj_t_in_every_form(None)))
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["no weights", "weights"])
def test_adj_t_is_read_as_the_edges_from_column_to_row_with_its_values_as_weights(form, weight):
    found = as_graph(Data(x=torch.eye(4), adj_t=adj_t_in_every_form(weight)[form]))
    expected = Data(edge_index=DIRECTED, edge_weight=weight)
    assert as_pairs(found) == as_pairs(expected)
    assert (found.edge_weight is None) == (weight is None)


@pytest.mark.parametrize(("layout", "weighted"), [(None, False), (torch.sparse_coo, True)], ids=str)
@pytest.mark.parametrize("kind", [GNNClassifier, MIXTURE], ids=["one", "mixture"])
def test_a_graph_after_to_sparse_tensor_gives_the_same_model_bit_for_bit(kind, layout, weighted):
    data = graph()
    data.edge_index = data.edge_index[:, ::2]  # directed
    if weighted:
        data.edge_weight = torch.rand(data.num_edges) + 0.1
    sparse_data = T.ToSparseTensor(layout=layout)(data.clone())
    assert "edge_index" not in sparse_data
    with pytest.warns(UserWarning, match="directed"):
        plain, other = kind(**QUICK).fit(data), kind(**QUICK).fit(sparse_data)
    assert np.array_equal(plain.predict_proba(data), other.predict_proba(sparse_data))
    assert plain.evaluate(data) == other.evaluate(sparse_data)
    assert np.array_equal(other.predict_proba(), other.predict_proba(data))


def test_cora_after_to_sparse_tensor_is_scored_as_before():
    cora = load_cora()
    model = GNNClassifier("gcn", norm=None, max_epochs=10, random_state=0).fit(cora)
    after = T.ToSparseTensor()(cora.clone())
    assert model.score(after) == model.score(cora) > 0.5
    module = GraphDataModule(after)
    module.setup()
    assert module.graph.num_edges == cora.num_edges


def test_edge_index_and_adj_t_must_be_the_same_edges():
    both = T.ToSparseTensor(remove_edge_index=False)(graph())
    assert torch.equal(as_graph(both).edge_index, both.edge_index)
    weighted = T.ToSparseTensor(remove_edge_index=False)(graph(edge_weight=torch.rand(graph().num_edges)))
    assert torch.equal(as_graph(weighted).edge_weight, weighted.edge_weight)
    for changes in ({"edge_index": both.edge_index[:, 1:]}, {"edge_weight": torch.full((both.num_edges,), 2.0)}):
        with pytest.raises(DataError, match="edge_index and adj_t are not the same edges"):
            as_graph(Data(**{**both.to_dict(), **changes}))
    directed = Data(x=torch.eye(4), edge_index=DIRECTED, adj_t=adj_t_in_every_form(None)["coo"].t())
    with pytest.raises(DataError, match=r"adj_t\[i, j\] is the edge from j to i"):
        as_graph(directed)


def test_adjacency_in_other_attributes_or_shapes_is_refused_with_what_reads_it():
    with pytest.raises(DataError, match="dense_to_sparse"):
        as_graph(T.ToDense()(graph()))
    with pytest.raises(DataError, match="adj_t must be a sparse matrix or tensor, got Tensor"):
        as_graph(Data(x=torch.eye(4), adj_t=torch.eye(4)))
    with pytest.raises(DataError, match=r"adj_t must have shape \(4, 4\), got \(3, 3\)"):
        as_graph(Data(x=torch.eye(4), adj_t=torch.eye(3).to_sparse()))
    with pytest.raises(DataError, match=r"scipy\.sparse\.coo_array"):
        as_graph(X, None, np.ones((4, 4)))
    with pytest.raises(DataError, match=r"the values of adj_t must have shape \(4,\)"):
        as_graph(Data(x=torch.eye(4), adj_t=torch.sparse_coo_tensor(torch.arange(4).repeat(2, 1), torch.ones(4, 3))))


def test_a_sparse_tensor_as_edge_index_must_have_one_meaning():
    symmetric = torch.tensor([[0.0, 2, 0, 0], [2, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
    for matrix in (symmetric.to_sparse(), symmetric.to_sparse_csr()):
        assert as_pairs(as_graph(X, None, matrix)) == {(0, 1): 2, (1, 0): 2, (1, 2): 1, (2, 1): 1}
    with pytest.raises(DataError, match=r"not symmetric.*Data\(x=x, adj_t=A\)"):
        as_graph(X, None, adj_t_in_every_form(None)["csr"])


def test_a_zero_stored_in_an_adjacency_matrix_is_no_edge():
    matrix = sparse.csr_matrix((np.ones(5), DIRECTED.numpy()), shape=(4, 4))
    matrix.setdiag(0)  # stores four zeros
    assert matrix.nnz == 9
    assert as_graph(X, None, matrix).num_edges == 5
    assert as_graph(X, None, matrix).edge_weight is None
    assert as_pairs(as_graph(X, None, matrix)) == as_pairs(Data(edge_index=DIRECTED))


def test_networks_take_adj_t_where_pyg_takes_it():
    data = graph()
    adj_t = T.ToSparseTensor()(data.clone()).adj_t
    model = Mowst(5, 3).eval()
    assert torch.equal(model(data.x, adj_t).log_probs, model(data.x, data.edge_index).log_probs)
    with pytest.raises(DataError, match="beside adj_t"):
        model(data.x, adj_t, torch.ones(3))
    with pytest.raises(DataError, match="got ndarray"):
        model(data.x, data.edge_index.numpy())


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)], ids=["(E,)", "(E, 1)"])
def test_edge_attr_of_one_number_per_edge_is_the_weight(shape):
    data = graph()
    weight = torch.rand(data.num_edges) + 0.1
    one, other = graph(edge_weight=weight), graph(edge_attr=weight.reshape(shape))
    a, b = GNNClassifier("gcn", **QUICK).fit(one), GNNClassifier("gcn", **QUICK).fit(other)
    assert np.array_equal(a.predict_proba(one), b.predict_proba(other))
    with pytest.warns(UserWarning, match="fitted on had weights, those to predict have none"):
        assert not np.array_equal(a.predict_proba(one), a.predict_proba(data))
    assert torch.equal(as_graph(graph(edge_attr=weight.double(), edge_weight=weight)).edge_weight, weight)


def test_gdc_gives_its_weights():
    diffused = T.GDC()(graph())
    assert torch.equal(as_graph(diffused).edge_weight, diffused.edge_attr)
    with pytest.raises(DataError, match="edge_attr.*GIN does not use edge weights"):
        MowstClassifier(strong="gin", **QUICK).fit(diffused)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"edge_attr": torch.rand(144, 3)}, r"edge_attr has shape \(144, 3\)"),
        ({"edge_attr": np.array(["a"] * 144)}, r"edge_attr must be numbers, got 'a' \(text\) in edge 0"),
        (
            {"edge_attr": torch.rand(144), "edge_weight": torch.ones(144)},
            "edge_weight and edge_attr .* differ",
        ),
        ({"edge_attr": torch.rand(144, 3), "edge_weight": torch.ones(144)}, r"edge_attr has shape \(144, 3\)"),
        ({"edge_attr": torch.rand(7)}, r"edge_attr has shape \(7,\)"),
        ({"edge_attr": torch.full((144, 1), torch.nan)}, "edge_attr has NaN or infinite entries in 144 of 144 edges"),
    ],
    ids=["wide", "text", "two that differ", "wide beside weights", "too few", "nan"],
)
def test_edge_attributes_that_are_no_weight_are_refused_by_name_in_fit_and_predict(attributes, message):
    data = small_graph()
    model = GNNClassifier("gcn", **QUICK).fit(data)
    for name, value in attributes.items():
        data[name] = value
    for attempt in (model.fit, model.predict, model.score, MowstClassifier("gcn", **QUICK).fit):
        with pytest.raises(DataError, match=message):
            attempt(data)


def test_an_edge_weight_argument_is_used_whatever_the_data_have():
    data = graph(edge_attr=torch.rand(graph().num_edges, 3))
    weight = torch.rand(data.num_edges)
    assert torch.equal(as_graph(data, edge_weight=weight).edge_weight, weight)
    other = as_graph(graph(edge_weight=weight), None, DIRECTED)  # weights of other edges
    assert (other.num_edges, other.edge_weight) == (5, None)
    assert as_graph(graph(edge_attr=torch.ones(data.num_edges, 1))).edge_weight is None
    assert as_graph(Data(x=torch.eye(4), edge_attr=torch.zeros(0, 3))).num_edges == 0


def test_edge_types_are_named_when_they_are_not_used():
    types = torch.arange(graph().num_edges) % 2
    with pytest.warns(UserWarning, match="edge_type is not used"):
        as_graph(graph(edge_type=types))


BIG = [2**62 + 1, 2**62 + 2, 2**62 + 3, 2**62 + 4]  # one float for all


@pytest.mark.parametrize("dtype", ["int64", "uint64", "Int64", "object", "int64[pyarrow]"])
@pytest.mark.parametrize("index_dtype", ["int64", "uint64", "object"])
def test_ids_of_19_digits_stay_apart(dtype, index_dtype):
    x = pd.DataFrame(X, index=pd.Index(BIG, dtype=index_dtype))
    edges = pd.DataFrame({"from": [BIG[0], BIG[3]], "to": [BIG[1], BIG[2]]}).astype(dtype)
    assert as_graph(x, None, edges).edge_index.tolist() == [[0, 3], [1, 2]]


def test_edges_come_as_polars_and_arrow_frames():
    x, columns = pd.DataFrame(X, index=BIG), {"from": [BIG[0], BIG[3]], "to": [BIG[1], BIG[2]], "w": [0.5, 2.0]}
    for frame in (pl.DataFrame(columns), pa.table(columns)):
        found = as_graph(x, None, frame)
        assert (found.edge_index.tolist(), found.edge_weight.tolist()) == ([[0, 3], [1, 2]], [0.5, 2.0])


def test_whole_floats_are_the_ids_that_they_are():
    edges = pd.DataFrame({"from": [0.0, 3.0, np.nan], "to": [1.0, 0.0, 2.0]}).dropna()
    assert as_graph(X, None, edges).edge_index.tolist() == [[0, 3], [1, 0]]
    assert as_graph(X, None, nx.Graph([(0.0, 1.0)])).num_edges == 2
    named = pd.DataFrame(X, index=[10.0, 20.0, 30.0, 40.0])
    assert as_graph(named, None, pd.DataFrame({"a": [10], "b": [30]})).edge_index.tolist() == [[0], [2]]
    for form in ("category", "string", "object"):
        frame = pd.DataFrame({"a": ["ann"], "b": ["cid"]}).astype(form)
        assert as_graph(pd.DataFrame(X, index=["ann", "bob", "cid", "dan"]), None, frame).edge_index.tolist() == [
            [0],
            [2],
        ]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": [0.0, np.nan], "b": [1.0, 0.0]}, "column 'a' of the frame of edges has no node id in row 1"),
        ({"a": pd.array([0, None], dtype="Int64"), "b": [1, 0]}, "column 'a' .* no node id in row 1"),
        ({"a": [0, 1], "b": [1.0, 0.5]}, "column 'b' .* has the float 0.5 as node id in row 1"),
        ({"a": [float(BIG[0]), 1.0], "b": [0, 1]}, "column 'a' .*floats hold 15 digits"),
        ({"a": [True], "b": [False]}, "bool as node ids"),
        ({"a": [0, -1], "b": [1, 0]}, "edge 1: -1 -> 0"),
        ({"a": [0, 4], "b": [1, 0]}, "edge 1: 4 -> 0"),
        (
            {"a": [0], "b": [1], "relation": ["friend"]},
            "column 'relation' .* got 'friend' .* in row 0: the third column",
        ),
        (
            {"a": [0], "b": [1], "since": pd.to_datetime(["2020-01-01"])},
            "column 'since' .* the third column holds weights",
        ),
        ({"a": [0, 1], "b": [1, 0], "w": [0.5, "?"]}, r"got '\?' \(mixed\) in row 1"),
        ({"a": [0, 1], "b": [1, 0], "w": [0.5, None]}, "NaN or infinite entries in 1 of 2 edges, the first is edge 1"),
        ({"target": [0], "source": [1]}, r"in this order; got \['target', 'source'\]"),
        ({"weight": [1], "source": [1], "target": [0]}, "in this order"),
    ],
    ids=str,
)
def test_a_frame_of_edges_that_cannot_be_used_names_column_and_row(columns, message):
    with pytest.raises(DataError, match=message):
        as_graph(X, None, pd.DataFrame(columns))


def test_ids_of_another_type_than_the_index_say_so():
    with pytest.raises(
        DataError, match="names the node '7', which is not in the index of x .integers like 7; .*one type"
    ):
        as_graph(pd.DataFrame(X, index=[7, 8, 9, 10]), None, pd.DataFrame({"a": ["7"], "b": ["8"]}))
    twice = pd.DataFrame(X, index=["a", "a", "b", "c"])
    assert as_graph(twice, None, [[0], [1]]).num_edges == 1  # an array counts rows, names do not matter
    with pytest.raises(DataError, match="'a' stands there twice"):
        as_graph(twice, None, pd.DataFrame({"a": ["a"], "b": ["b"]}))
    with pytest.raises(DataError, match="the index of x has no node id in row 1"):
        as_graph(pd.DataFrame(X, index=["a", None, "b", "c"]), None, pd.DataFrame({"a": ["a"], "b": ["b"]}))


@pytest.mark.parametrize(
    "edges",
    [
        None,
        [],
        np.zeros((0, 2)),
        torch.empty(2, 0),
        pd.DataFrame({"a": [], "b": []}),
        nx.Graph(),
        sparse.csr_array((4, 4)),
    ],
    ids=["None", "list", "(0, 2)", "(2, 0)", "frame", "networkx", "scipy"],
)
def test_no_edges_are_no_edges_in_every_form(edges):
    assert as_graph(X, None, edges).edge_index.shape == (2, 0)


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ([["0"], ["1"]], "must hold integers"),
        ([[0, 1], [1]], r"must have shape \(2, E\)"),
        ("edges.csv", r"must have shape \(2, E\)"),
        (np.array([[0, 2**64 - 1], [1, 0]], dtype=np.uint64), "edge 1: 18446744073709551615 -> 0"),
        (np.array([[0j], [1]]), "must hold integers"),
        (nx.Graph([(0, 1, {"weight": 2}), (1, 2)]), "2 of the 4 edges of the networkx graph have no weight"),
        (nx.Graph([(0, 1, {"weight": "a"})]), "the weight of the networkx graph must be numbers, got 'a'"),
        (sparse.eye(4) * np.nan, "the values of the adjacency matrix has NaN"),
    ],
    ids=str,
)
def test_edges_of_a_kind_that_cannot_be_read_are_refused(edges, message):
    with pytest.raises(DataError, match=message):
        as_graph(X, None, edges)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (["a", "b"], "edge_weight must be numbers, got 'a'"),
        ([1, 1e39], "the first is edge 1: 1 -> 0"),  # infinite as float32
        (pd.array([1, None], dtype="Int64"), "the first is edge 1: 1 -> 0"),
        ([1j, 1], "edge_weight must be numbers"),
        (1.0, r"must have shape \(2,\)"),
    ],
    ids=str,
)
def test_weights_that_are_no_numbers_name_the_edge(weight, message):
    with pytest.raises(DataError, match=message):
        as_graph(X, None, [[0, 1], [1, 0]], edge_weight=weight)


def test_two_weights_for_one_edge_are_refused():
    frame = pd.DataFrame({"a": [0], "b": [1], "w": [0.5]})
    with pytest.raises(DataError, match="edge_weight and the weights of column 'w'.*differ: give one"):
        as_graph(X, None, frame, edge_weight=[0.7])
    assert as_graph(X, None, frame, edge_weight=[0.5]).edge_weight.tolist() == [0.5]
    assert bare_graph(X, [[0], [1]], edge_weight=[[0.5]]).edge_weight.tolist() == [0.5]


def test_an_npz_file_brings_weights_and_one_mask(tmp_path):
    arrays = {
        "node_features": np.eye(8), "node_labels": np.array(["a", "b"] * 4), "edges": np.array([[0, 1], [2, 3]]),
        "edge_weight": np.array([0.5, 2.0]), "train_mask": np.arange(8) < 4, "val_mask": np.arange(8) >= 4,
    }  # fmt: skip
    np.savez(tmp_path / "g.npz", **arrays)
    module = GraphDataModule(str(tmp_path / "g.npz"))
    module.setup()
    assert as_pairs(module.graph) == {(0, 1): 0.5, (1, 0): 0.5, (2, 3): 2.0, (3, 2): 2.0}
    assert module.graph.train_mask.tolist() == (np.arange(8) < 4).tolist()
    assert module.classes.tolist() == ["a", "b"]
    twice = {**arrays, "edges": np.array([[0, 1], [1, 0]])}
    np.savez(tmp_path / "t.npz", **twice)
    with pytest.raises(DataError, match="several weights for the edge between 0 and 1"):
        GraphDataModule(str(tmp_path / "t.npz")).setup()
    np.savez(tmp_path / "o.npz", **arrays, edge_attr=np.ones(2))
    with pytest.warns(UserWarning, match="arrays that are not used: edge_attr"):
        GraphDataModule(str(tmp_path / "o.npz")).setup()


def test_edges_that_are_read_only_are_read():
    edges = np.array([[0, 1], [1, 0]])
    edges.setflags(write=False)  # as pandas gives them
    assert as_graph(X, None, edges).num_edges == 2


def doors(source, target, weight, nodes: int) -> dict[str, Data]:
    """One graph, sorted and each edge once, as users have it."""
    index, x = np.stack([source, target]), np.eye(nodes)
    names = pd.Index(2**62 + np.random.default_rng(0).permutation(nodes))
    frame = pd.DataFrame({"source": names[source], "target": names[target], "weight": weight})
    drawn = nx.DiGraph()
    drawn.add_nodes_from(range(nodes))
    drawn.add_weighted_edges_from(zip(source.tolist(), target.tolist(), weight.tolist(), strict=True))
    matrix = sparse.coo_array((weight, index), shape=(nodes, nodes))
    data = Data(x=torch.eye(nodes), edge_index=torch.tensor(index), edge_weight=torch.tensor(weight))
    named = pd.DataFrame(x, index=names)
    return {
        "Data": as_graph(data), "arrays": as_graph(x, None, index, edge_weight=weight),
        "lists": as_graph(x.tolist(), None, index.tolist(), edge_weight=weight.tolist()),
        "edge_attr": as_graph(Data(x=data.x, edge_index=data.edge_index, edge_attr=data.edge_weight[:, None])),
        "adj_t": as_graph(T.ToSparseTensor()(data.clone())), "frame": as_graph(named, None, frame),
        "polars": as_graph(named, None, pl.from_pandas(frame)),
        "arrow": as_graph(named, None, pa.Table.from_pandas(frame)), "networkx": as_graph(x, None, drawn),
        "scipy": as_graph(x, None, matrix), "csr": as_graph(x, None, matrix.tocsr()),
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_one_graph_through_every_door_is_the_same_bit_for_bit(seed):
    rng = np.random.default_rng(seed)
    nodes = int(rng.integers(2, 30))
    source, target = np.unique(rng.integers(0, nodes, (2, 3 * nodes)), axis=1)
    weight = rng.uniform(0.1, 2, len(source))
    forms: dict[str, list[torch.Tensor]] = {}
    for door, found in doors(source, target, weight, nodes).items():
        for form in ("plain", "looped", "normalized"):
            edges, weights = Edges(found.edge_index, found.edge_weight, nodes).form(form)
            expected = forms.setdefault(form, [edges.as_tensor(), weights])
            assert torch.equal(edges.as_tensor(), expected[0]), (door, form)
            assert torch.equal(weights, expected[1]), (door, form)


def test_nodes_to_predict_are_checked_in_the_function_too():
    data = graph()
    model, edges = Mowst(5, 3).eval(), Edges(data.edge_index, None, 60)
    whole = predict_nodes(model, data.x, edges)[0].log_probs
    for nodes in ([7, 7, 3], torch.tensor([7, 7, 3])):
        assert torch.allclose(predict_nodes(model, data.x, edges, nodes)[0].log_probs, whole[[7, 7, 3]], atol=1e-6)
    mask = data.test_mask
    assert torch.allclose(predict_nodes(model, data.x, edges, mask)[0].log_probs, whole[mask], atol=1e-6)
    with pytest.raises(DataError, match=r"node numbers outside 0\.\.59, got -1"):
        predict_nodes(model, data.x, edges, torch.tensor([-1]))


def test_weights_that_edge_index_brings_itself_are_used():
    matrix = sparse.coo_array((WEIGHT.numpy(), DIRECTED.numpy()), shape=(4, 4))
    frame = pd.DataFrame({"from": DIRECTED[0], "to": DIRECTED[1], "w": WEIGHT})
    expected = as_pairs(Data(edge_index=DIRECTED, edge_weight=WEIGHT))
    for edges in (matrix, frame):
        assert as_pairs(as_graph(Data(x=torch.eye(4), edge_index=edges))) == expected
        with pytest.raises(
            DataError, match="the values of edge_index and the weights in edge_weight or edge_attr differ"
        ):
            as_graph(Data(x=torch.eye(4), edge_index=edges, edge_attr=torch.ones(5) * 2))
    adj_t = adj_t_in_every_form(WEIGHT)["csr"]
    with pytest.raises(DataError, match="the values of adj_t and the weights in edge_weight or edge_attr differ"):
        as_graph(Data(x=torch.eye(4), adj_t=adj_t, edge_weight=torch.ones(5) * 2))


def test_weights_with_an_infinite_sum_are_refused():
    data = graph()
    with pytest.raises(DataError, match="the edge weights of node 1 have an infinite sum"):
        GNNClassifier("gcn", **QUICK).fit(graph(edge_weight=torch.full((data.num_edges,), 3e38)))
