"""Public graphs by name: from the package, from a folder, and what is said when there is neither."""

import shutil
import socket

import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.datasets import Planetoid

from moeapps.core.errors import ConfigError, DataError
from moeapps.graph import PublicGraphData, load_cora
from moeapps.graph.datasets import split_randomly


def test_a_graph_that_is_neither_embedded_nor_in_the_folder_is_named(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="name must be one of Cora.*did you mean 'Cora'"):
        PublicGraphData("Kora")
    with pytest.raises(ConfigError, match="CiteSeer is not embedded: give root"):
        PublicGraphData("CiteSeer")

    def no_network(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("torch_geometric.datasets.planetoid.fs.cp", no_network)
    with pytest.raises(DataError, match="PubMed is neither in .* nor can it be downloaded"):
        PublicGraphData("PubMed", root=str(tmp_path)).setup()


def test_the_embedded_cora_is_the_original(data_folder, tmp_path):
    shutil.copytree(data_folder / "graph" / "Cora", tmp_path / "Cora")
    original, embedded = Planetoid(str(tmp_path), "Cora")[0], load_cora()
    for name in ("x", "edge_index", "y", "train_mask", "val_mask", "test_mask"):
        assert torch.equal(original[name], embedded[name]), name


def test_random_splits_are_of_the_labeled_nodes_and_belong_to_their_seed():
    graph = Data(x=torch.randn(100, 2), y=torch.tensor([0, 1, -1, 1] * 25))
    split_randomly(graph, seed=3)
    masks = torch.stack([graph.train_mask, graph.val_mask, graph.test_mask])
    assert masks.sum(1).tolist() == [38, 18, 19]
    assert torch.equal(masks.sum(0), (graph.y >= 0).long())
    other, same = graph.clone(), graph.clone()
    split_randomly(other, seed=4)
    split_randomly(same, seed=3)
    assert torch.equal(same.train_mask, graph.train_mask)
    assert not torch.equal(other.train_mask, graph.train_mask)


LOCAL = {
    "Cora": (2708, 10556, 7), "CiteSeer": (3327, 9104, 6), "tolokers": (11758, 1038000, 2),
    "minesweeper": (10000, 78804, 2), "chameleon_filtered": (890, 17708, 5), "amherst41": (2235, 181908, 2),
    "johnshopkins55": (5180, 373172, 2),
}  # fmt: skip


@pytest.mark.parametrize("name", LOCAL)
def test_public_graphs_are_read_from_a_folder(name, tmp_path, data_folder):
    (tmp_path / name).mkdir()
    (tmp_path / name / "raw").symlink_to(data_folder / "graph" / name / "raw")
    data = PublicGraphData(name, str(tmp_path))
    graph = data.prepared()
    assert (graph.num_nodes, graph.num_edges, data.out_channels) == LOCAL[name]
    assert all(bool(graph[mask].any()) for mask in ("train_mask", "val_mask", "test_mask"))
    assert bool((graph.y[graph.train_mask] >= 0).all())


@pytest.mark.parametrize("name", ["Penn94", "Flickr", "roman-empire"])
def test_a_graph_that_cannot_be_downloaded_says_so(name, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(DataError, match=f"{name} is neither in"):
        PublicGraphData(name, str(tmp_path)).setup()


def test_graphs_without_a_loader_say_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match="in neither PyG nor OGB"):
        PublicGraphData("pokec", str(tmp_path)).setup()
    with pytest.raises(ConfigError, match=r"needs ogb.*pip install 'moeapps\[ogb\]'"):
        PublicGraphData("ogbn-arxiv", str(tmp_path)).setup()
    with pytest.raises(ConfigError, match="did you mean 'tolokers'"):
        PublicGraphData("tolkers", str(tmp_path))
