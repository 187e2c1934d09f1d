"""Layer by layer over the whole graph, and on pieces: the results of the plain pass."""

import pytest
import torch

from moeapps.core.errors import DataError
from moeapps.graph import Edges, Mowst, make_network, predict_nodes
from moeapps.graph.experts import Work, node_expert
from moeapps.graph.layerwise import edges_needed, layerwise, nodes_needed, works_by_layers
from moeapps.graph.networks import NETWORKS
from tests.graph.test_folders import compressed, random_edges

GNNS = [name for name in NETWORKS if name != "mlp"]


@pytest.fixture
def in_small_blocks(monkeypatch):
    monkeypatch.setattr("moeapps.graph.layerwise.EDGES", 37)
    monkeypatch.setattr("moeapps.graph.layerwise.ROWS", 7)


def network_of(name, norm, layers=3):
    torch.manual_seed(0)
    network = make_network(name, 6, 3, hidden_channels=8, num_layers=layers, norm=norm)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return network.eval()


@pytest.mark.usefixtures("in_small_blocks")
@pytest.mark.parametrize("norm", [None, "batch_norm", "layer_norm"])
@pytest.mark.parametrize("name", GNNS)
def test_layer_by_layer_equals_the_whole_graph(name, norm):
    network, x = network_of(name, norm), torch.randn(50, 6)
    assert works_by_layers(network)
    for weighted in (False, True) if name.startswith(("gcn", "gat")) else (False,):
        edges = random_edges(weighted)
        with torch.no_grad():
            whole = node_expert(network).run(x, edges)
        for kind in (edges, compressed(edges)):
            for nodes in (None, torch.randperm(50)[:9], torch.tensor([3])):
                found = layerwise(network, x, kind, nodes).logits
                torch.testing.assert_close(found, whole if nodes is None else whole[nodes], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", GNNS)
def test_a_piece_equals_the_whole_graph_in_value_and_gradient(name):
    network, x, edges = network_of(name, "batch_norm", layers=2), torch.randn(50, 6), random_edges(False)
    nodes = torch.tensor([4, 11, 30])
    expert, gradients = node_expert(network), []
    piece = edges.neighborhood(nodes, [-1, -1], expert.edge_form)
    for logits in (expert.run(x, edges)[nodes], expert.run(x[piece.nodes], piece)):
        network.zero_grad()
        logits.square().sum().backward()
        gradients.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    for whole, part in zip(*gradients, strict=True):
        torch.testing.assert_close(part, whole, atol=1e-4, rtol=1e-4)


def test_rows_that_no_later_layer_uses_do_not_count_in_a_batch_norm():
    """Only the seed and its neighbours are in the first layer's statistics, not the nodes two hops away."""
    edges = Edges(torch.tensor([[1, 2, 2, 3], [0, 0, 1, 2]]), None, 4)
    network = make_network("sage", 2, 3, hidden_channels=4, num_layers=2, norm="batch_norm", dropout=0.0).train()
    x = torch.randn(4, 2)
    piece = edges.neighborhood(torch.tensor([0]), [-1, -1])
    assert piece.nodes.tolist() == [0, 1, 2, 3]
    first = network.convs[0](x, edges.form("plain")[0])[:3]
    with torch.no_grad():
        node_expert(network).run(x, piece)
    expected = 0.1 * first.mean(0)
    torch.testing.assert_close(network.norms[0].module.running_mean, expected.detach())


def test_training_mode_and_networks_of_the_user_do_not_run_by_layers():
    network = make_network("gcn", 3, 2)
    assert not works_by_layers(network)
    assert works_by_layers(network.eval())
    assert not works_by_layers(make_network("gcn", 3, 2, norm="instance_norm").eval())
    assert not works_by_layers(torch.nn.Linear(3, 2))


def test_many_nodes_run_by_layers_and_few_on_a_piece(monkeypatch):
    calls = []

    def counted(*args):
        calls.append(args)
        return layerwise(*args)

    monkeypatch.setattr("moeapps.graph.experts.layerwise", counted)
    network, x, edges = network_of("sage", "batch_norm"), torch.randn(50, 6), random_edges(False)
    expert = node_expert(network)
    with torch.no_grad():
        whole = expert.run(x, edges)
        nodes = torch.tensor([5, 5, 2, 40, 17, 5])
        for size, ran in ((None, 0), (10, 0), (3, 1)):
            calls.clear()
            found = expert.on_nodes(x, edges, nodes, batch_size=size)
            torch.testing.assert_close(found, whole[nodes], atol=1e-5, rtol=1e-4)
            assert len(calls) == ran
        assert torch.allclose(expert.on_nodes(x, edges, None, batch_size=3), whole, atol=1e-5)


def test_the_work_by_layers_is_that_of_the_rows_and_edges_that_are_used():
    edges = Edges(torch.tensor([[1, 2, 3, 4], [0, 1, 2, 3]]), None, 6)
    network, x = network_of("sage", None, layers=2), torch.randn(6, 6)
    assert [rows.tolist() for rows in nodes_needed(edges, "plain", torch.tensor([0]), 2)] == [[0, 1, 2], [0, 1], [0]]
    assert edges_needed(edges, "plain", nodes_needed(edges, "plain", torch.tensor([0]), 2)[1:]) == [2, 1]
    work = Work()
    node_expert(network).on_nodes(x, edges, torch.tensor([0, 1]), batch_size=1, work=work)
    assert work.edges == 3 + 2
    whole = Work()
    node_expert(network).on_nodes(x, edges, None, batch_size=1, work=whole)
    assert whole.edges == 2 * 4


def test_conditional_inference_by_layers_equals_the_dense_one():
    torch.manual_seed(0)
    edges, x = random_edges(False), torch.randn(50, 6)
    model = Mowst(6, 3, strong="sage", hidden_channels=8).eval()
    with torch.no_grad():
        threshold = float(model(x, edges).confidence.median())
        dense = model(x, edges, mode="cascade", threshold=threshold)
        for kind in (edges, compressed(edges)):
            found, cost = predict_nodes(model, x, kind, mode="cascade", threshold=threshold, batch_size=4)
            torch.testing.assert_close(found.log_probs, dense.log_probs, atol=1e-5, rtol=1e-4)
            assert 0 < cost.strong < 1
            assert cost.edges <= cost.edges_alone


def test_weights_that_a_network_does_not_use_are_refused_by_layers_too():
    with pytest.raises(DataError, match="does not use edge weights"):
        node_expert(network_of("gin", None)).on_nodes(torch.randn(50, 6), random_edges(True), None, batch_size=5)


@pytest.mark.parametrize("name", ["gcn", "sage", "gat", "gatv2", "sage_skip", "gat_jk"])
def test_layers_use_the_weights_of_edges_as_the_whole_graph_does(name):
    x, edges, expert = torch.randn(50, 6), random_edges(True), node_expert(network_of(name, None).eval())
    with torch.no_grad():
        whole = expert.on_nodes(x, edges, None)
        torch.testing.assert_close(expert.on_nodes(x, edges, None, batch_size=5), whole, atol=1e-5, rtol=1e-4)
        nodes = torch.tensor([3, 17, 40])
        torch.testing.assert_close(expert.on_nodes(x, edges, nodes), whole[nodes], atol=1e-5, rtol=1e-4)
