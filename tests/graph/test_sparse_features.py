"""Features without their zeros: the same numbers as the dense ones, through every network, and kept sparse."""

import copy
import pickle

import numpy as np
import pytest
import torch
from scipy import sparse
from torch.nn import functional as F

from moeapps.core.errors import DataError
from moeapps.graph import Edges, GNNClassifier, GraphDataModule, MowstClassifier, load_cora, make_network
from moeapps.graph.experts import node_expert
from moeapps.graph.features import as_features
from moeapps.graph.networks import NETWORKS
from moeapps.graph.sparse_features import SparseFeatures, sparse_where_it_pays


@pytest.fixture(scope="module")
def dense():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 30, generator=generator) * (torch.rand(40, 30, generator=generator) < 0.1)
    x[3] = 0.0
    return x


def test_it_behaves_like_the_dense_tensor(dense):
    x = SparseFeatures.of(dense)
    assert (x.shape, x.dtype, len(x), x.ndim, x.device.type) == (dense.shape, dense.dtype, 40, 2, "cpu")
    assert torch.equal(x.to_dense(), dense)
    assert torch.equal(x + 1, dense + 1)
    assert torch.equal(torch.cat([x, dense]), torch.cat([dense, dense]))
    assert np.array_equal(np.asarray(x), dense.numpy())
    assert torch.equal(x[2], dense[2])
    assert torch.equal(x[:, 4], dense[:, 4])
    assert torch.equal(x.double(), dense.double())
    assert x.to("cpu") is x
    assert torch.equal(pickle.loads(pickle.dumps(x)), dense)
    assert torch.equal(copy.deepcopy(x), dense)


@pytest.mark.parametrize(
    "index",
    [torch.tensor([3, 0, -1, 3]), slice(5, 12), slice(None), torch.arange(40) % 3 == 0, torch.tensor([], dtype=int)],
    ids=["numbers", "slice", "all", "mask", "none"],
)
def test_rows_are_chosen_without_making_it_dense(dense, index):
    found = SparseFeatures.of(dense)[index]
    assert isinstance(found, SparseFeatures)
    assert torch.equal(found.to_dense(), dense[index])


def test_a_change_in_place_is_refused(dense):
    x = SparseFeatures.of(dense)
    with pytest.raises(TypeError, match="cannot be changed in place"):
        x.mul_(2)
    with pytest.raises(TypeError, match="cannot be changed in place"):
        x[0] = 1.0


def test_dropout_drops_entries_as_it_would_drop_numbers(dense):
    x = SparseFeatures.of(torch.ones(300, 50) * (torch.arange(50) % 5 == 0))
    torch.manual_seed(0)
    found = F.dropout(x, 0.3, training=True)
    assert isinstance(found, SparseFeatures)
    values = found.value
    assert values.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert float(values.mean()) == pytest.approx(1, abs=0.05)
    assert F.dropout(x, 0.3, training=False).value.equal(x.value)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_gives_the_same_logits_and_gradients(dense, name):
    torch.manual_seed(0)
    edges = Edges(torch.randint(0, 40, (2, 150)), None, 40)
    network = make_network(name, 30, 3, hidden_channels=8).eval()
    results = []
    for x in (dense, SparseFeatures.of(dense)):
        network.zero_grad()
        logits = node_expert(network).run(x, edges)
        logits.square().sum().backward()
        piece = node_expert(network).on_nodes(x, edges, torch.tensor([1, 5, 3]))
        layers = node_expert(network).on_nodes(x, edges, None, batch_size=7)
        results.append([logits, piece, layers, *(p.grad.clone() for p in network.parameters())])
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(second, first, atol=1e-5, rtol=1e-4)


def test_only_large_matrices_of_mostly_zeros_become_sparse():
    large = torch.zeros(600, 600)
    large[:, :20] = 1.0
    assert isinstance(sparse_where_it_pays(large), SparseFeatures)
    assert sparse_where_it_pays(large[:100]) is not None
    assert not isinstance(sparse_where_it_pays(large[:100]), SparseFeatures)
    assert not isinstance(sparse_where_it_pays(torch.ones(600, 600)), SparseFeatures)


@pytest.mark.parametrize("form", ["scipy", "csr", "coo"])
def test_a_large_sparse_matrix_is_never_made_dense(form):
    """Its dense form would have 40 GB."""
    rows, columns, entries = 100_000, 100_000, 300_000
    generator = np.random.default_rng(0)
    row, column = generator.integers(0, rows, entries), generator.integers(0, columns, entries)
    matrix = sparse.coo_array((np.ones(entries), (row, column)), shape=(rows, columns))
    x = matrix
    if form != "scipy":
        x = torch.sparse_coo_tensor(torch.tensor(np.stack([row, column])), torch.ones(entries), (rows, columns))
        x = x.coalesce() if form == "coo" else x.to_sparse_csr()
    found = as_features(x)
    assert isinstance(found, SparseFeatures)
    assert float(found.value.sum()) == entries  # entries that are there twice are added up
    assert len(found.value) == sparse.csr_array(matrix).nnz
    y = np.arange(rows) % 2
    model = GNNClassifier("sage", hidden_channels=4, norm=None, max_epochs=1, batch_size=50, num_neighbors=[2, 2])
    edges = np.stack([np.arange(rows), np.roll(np.arange(rows), 1)])
    train = np.arange(200)
    model.fit(x, y, np.concatenate([edges, edges[::-1]], axis=1), train_mask=train, val_mask=train + 200)
    assert model.predict_proba(x, np.concatenate([edges, edges[::-1]], axis=1), nodes=[0, 9]).shape == (2, 2)


def test_a_sparse_matrix_with_nan_names_its_place():
    matrix = sparse.lil_array((600, 600))
    matrix[7, 11] = np.nan
    with pytest.raises(DataError, match="the first in row 7, column 11"):
        as_features(matrix.tocsr())


def test_cora_trains_without_its_zeros_and_users_see_it_dense():
    cora = load_cora()
    data = GraphDataModule(cora)
    assert not isinstance(data.prepared().x, SparseFeatures)
    assert isinstance(data.graph.x, SparseFeatures)
    assert torch.equal(data.graph.x, cora.x)
    normalised = GraphDataModule(cora, normalize_features=True)
    expected = cora.x / cora.x.sum(1, keepdim=True)
    assert torch.allclose(normalised.prepared().x, expected)
    given = GraphDataModule(cora.clone().update({"x": sparse.csr_array(cora.x.numpy())}), normalize_features=True)
    assert torch.allclose(given.prepared().x.to_dense(), expected)


def test_training_gives_the_same_model_as_with_dense_features(monkeypatch):
    cora = load_cora()
    settings = {"strong": "gcn", "norm": None, "max_epochs": 8, "random_state": 0}
    found = MowstClassifier(**settings).fit(cora).predict_proba(cora)
    monkeypatch.setattr("moeapps.graph.data.sparse_where_it_pays", lambda x: x)
    expected = MowstClassifier(**settings).fit(cora).predict_proba(cora)
    np.testing.assert_allclose(found, expected, atol=1e-4)
