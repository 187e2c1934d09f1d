"""Every graph model: saved and loaded, pickled, on a sparse graph, and under surgery.

There is no export of graph models to other formats. Surgery works on MoE layers: the graph models by name have none, a
user's module inside them can.
"""

import pickle

import numpy as np
import pytest
import torch
import torch_geometric.transforms as T
from torch import nn
from torch_geometric.nn import SAGEConv

import moeapps
from moeapps.core import MoE
from moeapps.core.errors import ConfigError
from moeapps.core.surgery import compress_experts, measure_use, merge_experts, prune_experts
from moeapps.graph import GNNClassifier, GraphDataModule, MowstClassifier
from moeapps.graph.networks import GNNS, NETWORKS
from tests.graph.helpers import small_graph

QUICK = {"hidden_channels": 8, "max_epochs": 1, "random_state": 0, "accelerator": "cpu", "norm": "batch_norm"}
CONFIDENCES = ("learned", "learned+x", "hyper", "given")
MODELS = {
    **{f"one {name}": GNNClassifier(name, **QUICK) for name in NETWORKS},
    **{f"{name}": MowstClassifier(name, **QUICK) for name in GNNS},
    **{f"{name}": MowstClassifier("gcn", confidence=name, variant="mowst", **QUICK) for name in CONFIDENCES},
    "skip, jk": MowstClassifier("gcn_skip", medium=["sage_jk", "gin_skip"], inference="cascade", **QUICK),
    "sample": MowstClassifier("gcn", medium="gat", inference="sample", dispersion="entropy", **QUICK),
    "threshold": MowstClassifier("gcn", inference="threshold", threshold="auto", batch_size=16, monotone=True, **QUICK),
    "no norm": MowstClassifier(
        "gcn", num_layers=3, detach_confidence=True, class_weight="balanced", **{**QUICK, "norm": None}
    ),
}
OPERATIONS = {
    "prune": lambda model, use: prune_experts(model, 2, use),
    "merge": lambda model, use: merge_experts(model, 2, use),
    "compress": lambda model, use: compress_experts(model, 2),
}


@pytest.mark.parametrize("name", list(MODELS))
def test_every_model_saved_or_pickled_predicts_the_same_bits_on_every_form_of_the_graph(name, tmp_path):
    data = small_graph()
    data.edge_index = data.edge_index.unique(dim=1)
    model = MODELS[name].fit(data)
    model.save(tmp_path / "model")
    loaded = moeapps.load(tmp_path / "model")
    expected = model.predict_proba(data)
    for twin in (loaded, pickle.loads(pickle.dumps(model))):
        assert np.array_equal(twin.predict_proba(data), expected)
        assert twin.get_params() == model.get_params()
        assert twin.evaluate(data) == model.evaluate(data)
    assert np.array_equal(loaded.predict_proba(T.ToSparseTensor()(data.clone())), expected)


@pytest.mark.parametrize("operation", [*OPERATIONS, "measure"])
@pytest.mark.parametrize("name", ["one mlp", "one gcn", "one gat_skip", "gcn", "skip, jk"])
def test_surgery_says_that_a_graph_model_has_no_moe_layer(name, operation):
    data = small_graph()
    network = MODELS[name].fit(data).model_
    operate = {**OPERATIONS, "measure": measure_use}[operation]
    with pytest.raises(ConfigError, match=f"there is no MoE layer in this {type(network).__name__}"):
        operate(network, [(data.x, data.edge_index)] if operation == "measure" else {})


class Routed(nn.Module):
    """A graph network of a user's own with an MoE layer."""

    def __init__(self, num_experts: int = 4) -> None:
        super().__init__()
        self.conv, self.moe, self.out = SAGEConv(5, 8), MoE(8, num_experts), nn.Linear(8, 3)

    def forward(self, x, edge_index):
        return self.out(self.moe(self.conv(x, edge_index)))


@pytest.mark.parametrize("operation", list(OPERATIONS))
@pytest.mark.parametrize("kind", [GNNClassifier, MowstClassifier])
def test_surgery_on_a_moe_layer_inside_a_graph_model(kind, operation, tmp_path):
    data = small_graph()
    name = "network" if kind is GNNClassifier else "strong"
    model = kind(**{name: Routed()}, **QUICK).fit(data)
    before = model.predict_proba(data)
    use = measure_use(model.model_, [(data.x, data.edge_index)])
    smaller, report = OPERATIONS[operation](model.model_, use)
    assert len(report) == 1
    assert np.array_equal(model.predict_proba(data), before)  # the patient is as it was
    model.model_ = smaller
    after = model.predict_proba(data)
    assert np.isfinite(after).all()
    assert np.allclose(after.sum(1), 1, atol=1e-5)
    if operation != "compress":  # with two experts it is the same module with other sizes
        inside = smaller if kind is GNNClassifier else smaller.experts["strong"]
        assert inside.moe.num_experts == 2


@pytest.mark.parametrize("kind", [GNNClassifier, MowstClassifier])
def test_a_module_of_the_users_own_comes_back_with_its_weights(kind, tmp_path):
    data, name = small_graph(), "network" if kind is GNNClassifier else "strong"
    model = kind(**{name: Routed()}, **QUICK).fit(data)
    model.save(tmp_path / "model")
    loaded = moeapps.load(tmp_path / "model", **{name: Routed()})
    assert np.array_equal(loaded.predict_proba(data), model.predict_proba(data))


def test_a_data_module_of_a_sparse_graph_gives_the_same_batches():
    data = small_graph()
    data.edge_index = data.edge_index.unique(dim=1)
    one, other = GraphDataModule(data), GraphDataModule(T.ToSparseTensor()(data.clone()))
    one.setup()
    other.setup()
    (a,), (b,) = one.train_dataloader(), other.train_dataloader()
    for form in ("plain", "looped", "normalized"):
        assert torch.equal(a.edges.form(form)[0].as_tensor(), b.edges.form(form)[0].as_tensor())
