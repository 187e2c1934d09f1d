"""Names of 0.1 still work, and warn with the new name."""

from importlib import import_module

import numpy as np
import pytest
import torch

from moeapps.graph import Edges, Mowst, MowstClassifier, MowstModule, PredictionCost, load_cora, make_network
from moeapps.graph.experts import node_expert


@pytest.mark.parametrize(
    ("module", "name", "new"),
    [
        ("moeapps.graph", "Activation", PredictionCost),
        ("moeapps.graph.conditional", "Activation", PredictionCost),
        ("moeapps.graph.data", "load_cora", load_cora),
    ],
)
def test_an_old_name_is_the_new_thing(module, name, new):
    with pytest.warns(DeprecationWarning, match=f"{module}.{name} is deprecated: use .*{new.__name__}"):
        assert getattr(import_module(module), name) is new
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = import_module(module).nothing


def test_old_functions_of_networks_do_what_experts_do():
    networks, conditional = import_module("moeapps.graph.networks"), import_module("moeapps.graph.conditional")
    network, edges, x = (
        make_network("gcn", 3, 2).eval(),
        Edges(torch.tensor([[0, 1], [1, 2]]), None, 4),
        torch.ones(4, 3),
    )
    expert = node_expert(network)
    for module, name, arguments, expected in (
        (networks, "run_network", (network, x, edges), expert.run(x, edges)),
        (conditional, "run_on_nodes", (network, x, edges, torch.tensor([2])), expert.run(x, edges)[2:3]),
        (networks, "edge_form", (network,), "normalized"),
        (networks, "num_hops", (network,), 2),
        (networks, "count_multiply_adds", (network, [4, 4], [2, 2]), expert.multiply_adds([4, 4], [2, 2])),
    ):
        with pytest.warns(DeprecationWarning, match=f"{name} is deprecated: use moeapps.graph.experts"):
            old = getattr(module, name)
        found = old(*arguments)
        if isinstance(expected, torch.Tensor):
            torch.testing.assert_close(found, expected)
        else:
            assert found == expected


def test_old_methods_are_the_new_ones():
    x = np.random.default_rng(0).random((30, 3))
    fitted = MowstClassifier("gcn", max_epochs=2, random_state=0).fit(x, x[:, 0] > 0.5)
    with pytest.warns(DeprecationWarning, match="activation_ is now called cost_"):
        assert fitted.activation_ == fitted.cost_
    with pytest.warns(DeprecationWarning, match="activation is now called cost"):
        assert fitted.activation(x) == fitted.cost(x)
    with pytest.warns(DeprecationWarning, match="asked is now called share"):
        assert fitted.cost_.asked == fitted.cost_.share
    model = Mowst(3, 2).eval()
    logits = {name: torch.randn(5, 2) for name in model.names}
    with pytest.warns(DeprecationWarning, match=r"Mowst.cascade is now called Mowst\.infer"):
        old = model.cascade(lambda name, rows: logits[name], torch.zeros(5, 3))
    torch.testing.assert_close(old.log_probs, model.infer(lambda name, rows: logits[name], torch.zeros(5, 3)).log_probs)


def test_labels_of_the_scored_nodes():
    module = MowstModule(strong="gcn", in_channels=3, out_channels=2)
    module.held_out.values = {"y": torch.tensor([0, 1, 1])}
    module.model = Mowst(3, 2)
    with pytest.warns(DeprecationWarning, match="held_out.scored") as caught:
        assert module.scored_labels.tolist() == [0, 1, 1]
    assert caught[0].filename == __file__
