"""What a training or a prediction refuses: negative weights, NaN, scores that cannot be computed."""

import numpy as np
import pytest
import torch
from torch import nn
from torch_geometric.nn import GCNConv, GraphConv

from moeapps.core.errors import DataError, NonFiniteError
from moeapps.graph import GNNClassifier, MowstClassifier
from tests.graph.helpers import graph_with as graph

QUICK = {"max_epochs": 2, "random_state": 0, "accelerator": "cpu", "norm": "batch_norm"}


class OwnGCN(nn.Module):
    """A user's module with PyG's layer."""

    def __init__(self, layer=GCNConv):
        super().__init__()
        self.layer = layer(5, 3)

    def forward(self, x, edge_index, edge_weight=None):
        return self.layer(x, edge_index, edge_weight)


@pytest.mark.parametrize("value", [-1.0, -0.01], ids=str)
@pytest.mark.parametrize(
    "model",
    [
        GNNClassifier("gcn", **QUICK),
        GNNClassifier("gcn_jk", batch_size=8, **QUICK),
        MowstClassifier("gcn", **QUICK),
        MowstClassifier(strong="gcn_skip", variant="mowst", pretrain="none", **QUICK),
        MowstClassifier(strong=OwnGCN(GraphConv), medium="gcn", **QUICK),
        MowstClassifier("gcn", batch_size=8, confidence="given", **QUICK),
    ],
    ids=str,
)
def test_negative_weights_of_a_gcn_are_refused_before_the_first_step(model, value):
    weight = torch.ones(graph().num_edges)
    weight[3] = value
    with pytest.raises(DataError, match=r"edge_weight is below 0 at 1 edges, the first is edge 3"):
        model.fit(graph(edge_weight=weight))


def test_negative_weights_are_refused_in_prediction_too():
    weight = torch.full((graph().num_edges,), -0.5)
    model = GNNClassifier("gcn", **QUICK).fit(graph(edge_weight=-weight))
    for attempt in (model.predict, model.score, model.evaluate, model.predict_proba):
        with pytest.raises(DataError, match="below 0"):
            attempt(graph(edge_weight=weight))


@pytest.mark.parametrize("pretrain", ["both", "none"])
def test_a_network_that_gives_nan_stops_training_before_it_is_selected_by_nothing(pretrain):
    data = graph(edge_weight=-torch.ones(graph().num_edges))
    with pytest.raises(NonFiniteError, match="the strong expert predicts NaN for .* of the 21 nodes"):
        MowstClassifier(strong=OwnGCN(), pretrain=pretrain, **QUICK).fit(data)
    with pytest.raises(NonFiniteError, match="not finite"):
        GNNClassifier(OwnGCN(), **QUICK).fit(data)
    for model in (MowstClassifier(strong=OwnGCN(GraphConv), **QUICK), GNNClassifier(OwnGCN(GraphConv), **QUICK)):
        assert np.isfinite(model.fit(data).predict_proba(data)).all()


def test_a_prediction_of_nan_is_an_error():
    model = GNNClassifier("gcn", **{**QUICK, "norm": None}).fit(graph())
    for attempt in (model.predict, model.predict_proba, model.score, model.evaluate):
        with pytest.raises(NonFiniteError, match="predicts NaN"):
            attempt(graph(x=torch.randn(60, 5).sign() * 3e38))


@pytest.mark.parametrize("kind", [GNNClassifier, MowstClassifier])
def test_a_monitored_score_that_does_not_exist_is_refused(kind):
    data = graph()
    data.val_mask = data.val_mask & (data.y != 2)
    with pytest.raises(DataError, match="monitor='auc' cannot be computed.*every class"):
        kind(monitor="auc", **QUICK).fit(data)
    data.val_mask = data.val_mask & (data.y == 1)
    with pytest.raises(DataError, match="no validation node is of a class with a class_weight above 0"):
        kind(class_weight={1: 0.0}, **QUICK).fit(data)


def test_a_module_without_weights_refuses_them():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(5, 3)

        def forward(self, x, edge_index):
            return self.linear(x)

    with pytest.raises(DataError, match="Plain does not use edge weights"):
        GNNClassifier(Plain(), **QUICK).fit(graph(edge_weight=torch.rand(graph().num_edges)))
