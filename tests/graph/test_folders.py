"""Graphs in folders of memory-mapped files: the same results as in memory, nothing copied, bad files refused."""

import warnings

import numpy as np
import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.utils import sort_edge_index

from moeapps.core.errors import ConfigError, DataError
from moeapps.graph import (
    Edges,
    GNNClassifier,
    GNNModule,
    GraphDataModule,
    MowstClassifier,
    load_cora,
    open_graph,
    write_edges,
    write_graph,
)
from moeapps.graph.compressed import CompressedEdges, scratch_tensor
from moeapps.graph.folders import is_folder
from tests.graph.helpers import small_graph, trainer


def saved(folder, graph, **more):
    masks = {name: graph[name].numpy() for name in ("train_mask", "val_mask", "test_mask")}
    return write_graph(folder, graph.x.numpy(), graph.edge_index.numpy(), graph.y.numpy(), **masks, **more)


@pytest.fixture
def folder(tmp_path):
    return saved(tmp_path / "graph", small_graph())


def compressed(edges: Edges) -> CompressedEdges:
    pointer, source = edges.incoming("plain")
    return CompressedEdges(pointer, source.int(), edges.form("plain")[1])


def random_edges(weighted: bool, nodes: int = 50) -> Edges:
    generator = torch.Generator().manual_seed(1)
    index = torch.randint(0, nodes, (2, 220), generator=generator)
    index[:, :5] = 7  # a self-loop, several times
    weight = torch.rand(220, generator=generator) + 0.1 if weighted else None
    return Edges(index, weight, nodes)


def test_a_folder_holds_what_was_written(folder):
    graph, given = open_graph(folder), small_graph()
    assert torch.equal(graph.x, given.x)
    assert np.array_equal(graph.y, given.y)
    assert np.array_equal(graph.val_mask, given.val_mask)
    assert graph.edges.source.dtype == torch.int32
    found = sort_edge_index(graph.edges.index, sort_by_row=False)
    assert torch.equal(found, sort_edge_index(given.edge_index, sort_by_row=False))


def test_the_features_and_edges_stay_in_the_files(folder):
    graph = open_graph(folder)
    files = {name: np.load(folder / f"{name}.npy", mmap_mode="r+") for name in ("node_features", "edge_source")}
    files["node_features"][3] = 17.0
    first = int(graph.edges.source[0])
    files["edge_source"][0] = first + 1
    assert (graph.x[3] == 17).all()
    assert int(graph.edges.source[0]) == first + 1
    files["edge_source"][0] = first
    data = GraphDataModule(graph)
    data.setup()
    assert data.graph.x.data_ptr() == graph.x.data_ptr()
    assert data.edges is graph.edges


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("form", ["plain", "looped", "normalized"])
def test_compressed_edges_give_the_same_neighbourhoods_to_the_bit(weighted, form):
    edges = random_edges(weighted)
    files, seeds = compressed(edges), torch.tensor([3, 7, 40])
    assert files.count(form) == edges.count(form)
    for limits in ([-1, -1], [2, 3]):
        found = []
        for kind in (edges, files):
            torch.manual_seed(4)
            found.append(kind.neighborhood(seeds, limits, form))
        first, second = found
        assert torch.equal(first.nodes, second.nodes)
        assert torch.equal(first.edge_index, second.edge_index)
        assert (first.edge_weight is None) == (second.edge_weight is None)
        if first.edge_weight is not None:
            assert torch.equal(first.edge_weight, second.edge_weight)


def test_edges_in_pieces_are_those_of_one_array(tmp_path, monkeypatch):
    index = random_edges(False).index.numpy()
    for name in ("whole", "pieces"):
        (tmp_path / name).mkdir()
    write_edges(tmp_path / "whole", index, 50)
    write_edges(tmp_path / "pieces", lambda: np.array_split(index, 7, axis=1), 50)
    for name in ("edge_pointer", "edge_source"):
        first, second = (np.load(tmp_path / folder / f"{name}.npy") for folder in ("whole", "pieces"))
        assert np.array_equal(first, second), name
    pointer, source = Edges(torch.from_numpy(index), None, 50).incoming("plain")
    assert np.array_equal(first, source)
    assert np.array_equal(np.load(tmp_path / "whole/edge_pointer.npy"), pointer)


def test_undirected_edges_are_stored_both_ways_with_their_weights(tmp_path):
    index, weight = random_edges(False).index, torch.arange(220.0)
    folder = write_graph(tmp_path / "g", np.ones((50, 2)), index, edge_weight=weight, undirected=True)
    edges = open_graph(folder).edges
    assert not edges.is_directed()
    stored = set(zip(*edges.index.tolist(), edges.weight.tolist(), strict=True))
    assert stored == {(*pair, w) for pair, w in zip(index.T.tolist(), weight.tolist(), strict=True)} | {
        (*pair[::-1], w) for pair, w in zip(index.T.tolist(), weight.tolist(), strict=True)
    }


def test_a_directed_graph_in_files_gives_a_warning(tmp_path):
    graph = small_graph()
    graph.edge_index = graph.edge_index[:, : graph.num_edges // 2]
    folder = saved(tmp_path / "g", graph)
    assert open_graph(folder).edges.is_directed()
    with pytest.warns(UserWarning, match="the graph is directed"):
        GNNClassifier("gcn", norm=None, max_epochs=1).fit(folder)


@pytest.mark.parametrize("network", ["gcn", "sage", "gat"])
@pytest.mark.parametrize("batch_size", [None, 8])
def test_training_and_prediction_from_files_equal_those_in_memory_to_the_bit(folder, network, batch_size):
    neighbours = None if batch_size is None else [3, 3]
    settings = {"norm": "batch_norm", "batch_size": batch_size, "num_neighbors": neighbours, "max_epochs": 4}
    graph = small_graph()
    models = [GNNClassifier(network, random_state=0, **settings).fit(source) for source in (graph, folder)]
    assert np.array_equal(models[0].predict_proba(graph), models[1].predict_proba(folder))
    for (name, first), second in zip(
        models[0].model_.state_dict().items(), models[1].model_.state_dict().values(), strict=True
    ):
        assert torch.equal(first, second), name
    assert models[0].score(graph) == models[1].score(folder)


def test_mowst_trains_and_predicts_conditionally_from_files(folder):
    settings = {"strong": "sage", "norm": "batch_norm", "max_epochs": 30, "patience": 4, "random_state": 0}
    graph = small_graph()
    found = [
        MowstClassifier(batch_size=8, num_neighbors=[3, 3], inference="cascade", **settings).fit(source)
        for source in (graph, folder)
    ]
    assert np.array_equal(found[0].predict(graph), found[1].predict(folder))
    assert found[0].cost(graph) == found[1].cost(folder)
    curve = found[1].cost_curve(folder)
    assert curve["score"].equals(found[0].cost_curve(graph)["score"])
    assert len(found[1].predict_confidence(folder, nodes=[3, 5])) == 2


def test_a_data_module_of_a_folder_trains_by_the_trainer(folder, tmp_path):
    data = GraphDataModule(str(folder), batch_size=10, num_neighbors=[2, 2])
    module, runner = GNNModule("sage"), trainer(tmp_path / "run", epochs=2)
    runner.fit(module, data)
    found = runner.test(module, data, verbose=False)[0]
    assert 0 <= found["test/accuracy"] <= 1
    columns = runner.predict(module, data)
    assert len(columns) == 1
    assert columns[0]["node"].tolist() == list(range(60))


def test_labels_as_text_and_node_numbers_as_masks(tmp_path):
    graph = small_graph()
    names = np.array(["a", "b", "c"])[graph.y.numpy()]
    numbers = {name: graph[name].nonzero().flatten().numpy() for name in ("train_mask", "val_mask")}
    folder = write_graph(tmp_path / "g", graph.x, graph.edge_index, names, **numbers)
    model = GNNClassifier("gcn", norm=None, max_epochs=3).fit(folder)
    assert model.classes_.tolist() == ["a", "b", "c"]
    assert set(model.predict(folder, nodes=[0, 1])) <= {"a", "b", "c"}


def test_only_a_path_without_an_ending_is_a_folder(tmp_path):
    assert is_folder(tmp_path)
    assert is_folder("somewhere/graph")
    assert not is_folder("graph.npz")
    assert not is_folder(load_cora())


def test_scratch_space_that_is_large_is_a_file(monkeypatch):
    monkeypatch.setattr("moeapps.graph.compressed.IN_MEMORY", 100)
    room = scratch_tensor((20, 3), torch.float32)
    room[:] = 2.0
    assert float(room.sum()) == 120
    assert scratch_tensor((2, 3), torch.int32).shape == (2, 3)


def overwrite(folder, name, array):
    np.save(folder / f"{name}.npy", array)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("node_features", lambda a: a.astype(np.float64), r"node_features.npy has the type float64, expected float32"),
        ("node_features", lambda a: a[:, 0], r"has the shape \(60,\), expected 2 axes"),
        ("node_features", np.asfortranarray, "stored column by column"),
        ("node_features", lambda a: np.where(np.arange(60)[:, None] == 4, np.float32("nan"), a), "feature in row 4"),
        ("node_features", lambda a: a[:-1], "has 61 entries, expected one more than the 59 nodes"),
        ("node_features", lambda a: a[:0], "is empty"),
        ("edge_pointer", lambda a: a.astype(np.int32), "edge_pointer.npy has the type int32, expected int64"),
        ("edge_pointer", lambda a: np.r_[a[:-1], a[-1] + 1], "must rise from 0 to the number of edges"),
        ("edge_pointer", lambda a: np.r_[0, a[-1], a[2:]], "must rise from 0"),
        ("edge_source", lambda a: np.r_[a[:-1], 60].astype(np.int32), "has 60 at edge .*node numbers are 0 to 59"),
        ("edge_source", lambda a: np.r_[-1, a[1:]].astype(np.int32), "has -1 at edge 0"),
        ("edge_source", lambda a: a.astype(np.float32), "has the type float32, expected int32 or int64"),
        ("node_labels", lambda a: a[:-1], "node_labels.npy has 59 rows, node_features.npy has 60"),
        ("train_mask", lambda a: a[:-1], "train_mask.npy has 59 rows"),
        ("node_labels", lambda a: a.astype(object), "a plain array: it holds Python objects; save"),
    ],
)  # fmt: skip
def test_a_bad_file_is_refused_by_its_name(folder, name, change, message):
    array = change(np.load(folder / f"{name}.npy"))
    np.save(folder / f"{name}.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match=message):
        open_graph(folder)


def test_weights_of_another_number_and_weights_that_are_not_finite_are_refused(folder):
    edges = len(np.load(folder / "edge_source.npy"))
    overwrite(folder, "edge_weight", np.ones(edges - 1, dtype=np.float32))
    with pytest.raises(DataError, match=f"has {edges - 1} weights for {edges} edges"):
        open_graph(folder)
    overwrite(folder, "edge_weight", np.full(edges, np.inf, dtype=np.float32))
    with pytest.raises(DataError, match="NaN or infinite"):
        open_graph(folder)
    overwrite(folder, "edge_weight", np.full(edges, -1, dtype=np.float32))
    with pytest.raises(DataError, match="edge_weight is below 0"):
        GNNClassifier("gcn", norm=None, max_epochs=1, batch_size=9).fit(folder)


@pytest.mark.parametrize("name", ["node_features", "edge_pointer", "edge_source"])
def test_a_missing_file_is_named(folder, name):
    (folder / f"{name}.npy").unlink()
    with pytest.raises(DataError, match=rf"has no {name}.npy"):
        open_graph(folder)


def test_a_file_that_is_cut_off_and_a_missing_folder_are_refused(folder, tmp_path):
    file = folder / "node_features.npy"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(DataError, match="not a readable .npy file"):
        open_graph(folder)
    with pytest.raises(DataError, match="is no folder"):
        GNNClassifier().fit(tmp_path / "nothing")


def test_what_cannot_be_written_is_refused(tmp_path):
    x = np.ones((3, 2))
    for edges, message in (
        ([[0, 1], [1, 3]], "edge 1 has the target 3: node numbers are 0 to 2"),
        ([[0, -1], [1, 2]], "edge 1 has the source -1"),
        ([[0.0, 1.0], [1.0, 2.0]], "edges must be integers"),
        (np.zeros((4, 3), dtype=int), r"edges must have shape \(2, E\)"),
    ):
        with pytest.raises(DataError, match=message):
            write_graph(tmp_path / "g", x, np.array(edges))
    with pytest.raises(DataError, match="edge_weight must have one number per edge"):
        write_graph(tmp_path / "g", x, np.array([[0, 1], [1, 2]]), edge_weight=[1.0])
    with pytest.raises(DataError, match="node_features must have shape"):
        write_graph(tmp_path / "g", x[0], np.array([[0], [1]]))
    with pytest.raises(DataError, match=r"node_labels must have shape \(\d+,\), one per node, got \(1,\)"):
        write_graph(tmp_path / "g", x, np.array([[0], [1]]), [1])
    write_graph(tmp_path / "g", x, np.array([[0], [1]]))
    with pytest.raises(ConfigError, match="holds a graph already"):
        write_graph(tmp_path / "g", x, np.array([[0], [1]]))


def test_a_graph_in_files_brings_its_own_edges_and_is_not_normalised(folder):
    graph = open_graph(folder)
    with pytest.raises(DataError, match="has its own edges"):
        GNNClassifier().fit(graph, None, small_graph().edge_index)
    with pytest.raises(ConfigError, match="normalize_features would copy"):
        GraphDataModule(folder, normalize_features=True).setup()
    graph.x = graph.x.double()
    with pytest.raises(DataError, match="must stay a float32 matrix of 60 rows"):
        GNNClassifier().fit(graph)


def test_a_graph_without_edges_can_be_written_and_opened(tmp_path):
    graph = small_graph()
    graph.edge_index = graph.edge_index[:, :0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model = GNNClassifier("sage", norm=None, max_epochs=2, batch_size=20).fit(saved(tmp_path / "g", graph))
    assert model.n_edges_ == 0
    assert isinstance(model.graph_, Data)
