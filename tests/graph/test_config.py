"""A setting of a graph model is declared once, in a config: estimators offer every field of it."""

import inspect

import numpy as np
import pytest
from torch import nn

import moeapps
from moeapps.core.config import field_names
from moeapps.graph import (
    GNNClassifier,
    GNNModule,
    Mowst,
    MowstClassifier,
    MowstGraphClassifier,
    MowstLinkPredictor,
    MowstModule,
)
from moeapps.graph.graph_module import GraphConfig
from moeapps.graph.link_module import LinkConfig
from moeapps.graph.node_module import GNNConfig
from moeapps.graph.settings import MowstExperts, MowstTraining

CONFIGS = [
    (MowstClassifier, MowstExperts),
    (MowstClassifier, MowstTraining),
    (GNNClassifier, GNNConfig),
    (MowstLinkPredictor, LinkConfig),
    (MowstGraphClassifier, GraphConfig),
]
LEFT_OUT: dict[str, str] = {}
OTHER_DEFAULT: dict[str, str] = {
    "network": "a module is one network; an estimator tries several",
    "GNNConfig.norm": "as network",
}


@pytest.mark.parametrize(("estimator", "config"), CONFIGS, ids=lambda kind: kind.__name__)
def test_every_field_is_an_argument_of_its_estimator_with_the_same_default(estimator, config):
    arguments, defaults = inspect.signature(estimator).parameters, config()
    for name in set(field_names(config)) - set(LEFT_OUT):
        assert name in arguments, name
        if not {name, f"{config.__name__}.{name}"} & set(OTHER_DEFAULT):
            assert arguments[name].default == getattr(defaults, name), name


@pytest.mark.parametrize(
    ("kind", "first"),
    [
        (Mowst, ["in_channels", "out_channels", "hidden_channels", "num_layers", "dropout", "norm", "weak", "medium"]),
        (MowstModule, ["variant", "strong", "weak", "medium", "hidden_channels", "num_layers", "dropout", "norm"]),
        (GNNModule, ["network", "hidden_channels", "num_layers", "dropout", "norm", "lr", "weight_decay"]),
        (MowstClassifier, ["strong", "weak", "medium", "variant", "hidden_channels", "num_layers", "dropout", "norm"]),
    ],
    ids=lambda kind: getattr(kind, "__name__", ""),
)
def test_positional_arguments_keep_their_order(kind, first):
    assert list(inspect.signature(kind).parameters)[: len(first)] == first


def test_settings_of_the_gate_reach_the_model_and_its_file(tmp_path):
    x = np.random.default_rng(0).random((40, 3))
    gate = {"gate_channels": 5, "monotone": True, "detach_confidence": True}
    fitted = MowstClassifier("gcn", **gate, max_epochs=3, random_state=0).fit(x, (x[:, 0] > 0.5).astype(int))
    assert fitted.model_.gates["weak"].net[0].out_features == 5
    assert fitted.model_.detach_confidence
    assert type(fitted.model_.gates["weak"].net[0]).__name__ == "_MonotoneLinear"
    fitted.save(tmp_path / "mowst")
    loaded = moeapps.load(tmp_path / "mowst")
    assert {name: loaded.get_params()[name] for name in gate} == gate
    np.testing.assert_array_equal(loaded.predict_proba(x), fitted.predict_proba(x))
    given = MowstClassifier("gcn", confidence="given", alpha=2.5, max_epochs=3, random_state=0).fit(x, x[:, 0] > 0.5)
    assert given.model_.gates["weak"].alpha == 2.5


def test_the_learning_rate_finder_changes_the_rate_of_a_network_alone():
    module = GNNModule(in_channels=3, out_channels=2, lr=0.1)
    module.configure_model()
    module.lr = 0.5  # what Lightning's finder does
    assert module.configure_optimizers().param_groups[0]["lr"] == 0.5


def test_a_module_of_the_user_has_the_names_of_0_1_in_a_checkpoint():
    module = GNNModule(network=nn.Linear(3, 2), in_channels=3, out_channels=2)
    module.configure_model()
    assert set(module.state_dict()) == {"network.weight", "network.bias", "model.weight", "model.bias"}
    assert len(list(module.parameters())) == 2
