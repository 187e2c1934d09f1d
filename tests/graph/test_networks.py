"""Networks by name against PyG's own, whole and cut out around some nodes."""

import copy

import pytest
import torch
from torch import nn
from torch_geometric.nn import GAT, GCN, GIN, GCNConv, GraphSAGE

from moeapps.core.errors import ConfigError
from moeapps.graph.edges import Edges
from moeapps.graph.experts import node_expert
from moeapps.graph.networks import NETWORKS, make_network

PYG = {"gcn": GCN, "sage": GraphSAGE, "gat": GAT, "gatv2": GAT, "gin": GIN}
OPTIONS = {"gat": {"act": "elu"}, "gatv2": {"act": "elu", "v2": True}}


def untidy_graph(nodes=60, features=20):
    """Random edges with self-loops, duplicates, and isolated nodes."""
    edges = torch.randint(0, nodes - 3, (2, 150))
    edges = torch.cat([edges, edges[:, :5], torch.tensor([[3, 3, 5], [3, 3, 5]])], dim=1)
    return torch.randn(nodes, features), edges


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("name", PYG)
def test_a_network_by_name_computes_what_pyg_computes(name, layers):
    x, edge_index = untidy_graph()
    ours = make_network(name, 20, 5, hidden_channels=16, num_layers=layers, dropout=0.0)
    theirs = PYG[name](20, 16, layers, 5, norm="batch_norm", **OPTIONS.get(name, {}))
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x, edge_index), theirs(x, edge_index), atol=1e-5, rtol=1e-5)
    for network in (ours, theirs):
        network.zero_grad()
        network(x, edge_index).square().sum().backward()
    for parameter, reference in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, reference.grad, atol=1e-3, rtol=1e-4)


def test_edge_weights_mean_what_they_mean_to_pyg():
    x, edge_index = untidy_graph()
    weight = torch.rand(edge_index.shape[1])
    ours, theirs = make_network("gcn", 20, 5).eval(), GCN(20, 64, 2, 5, norm="batch_norm").eval()
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x, edge_index, weight), theirs(x, edge_index, weight))


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("name", NETWORKS[1:])
def test_a_piece_gives_what_the_whole_graph_gives(name, layers):
    x, edge_index = untidy_graph()
    network, edges = make_network(name, 20, 5, hidden_channels=8, num_layers=layers).eval(), Edges(edge_index, None, 60)
    whole = node_expert(network).run(x, edges)
    for nodes in (torch.tensor([59]), torch.tensor([7, 3]), torch.randperm(60)[:20], torch.arange(60)):
        piece = edges.neighborhood(nodes, [-1] * layers, node_expert(network).edge_form)
        torch.testing.assert_close(node_expert(network).run(x[piece.nodes], piece), whole[nodes], atol=1e-5, rtol=1e-5)
    nothing = edges.neighborhood(torch.zeros(0, dtype=torch.long), [-1] * layers, node_expert(network).edge_form)
    assert node_expert(network).run(x[nothing.nodes], nothing).shape == (0, 5)


def test_fewer_nodes_touch_fewer_edges():
    _, edge_index = untidy_graph()
    edges = Edges(edge_index, None, 60)
    touched = [edges.neighborhood(torch.arange(n), [-1, -1]).edges_touched for n in (0, 1, 5, 20, 60)]
    assert touched == sorted(touched)
    assert touched[0] == 0
    assert touched[1] < touched[-1] == 2 * edge_index.shape[1]
    assert edges.neighborhood(torch.arange(20), [-1, -1], max_edges=touched[3] - 1) is None
    assert edges.neighborhood(torch.arange(20), [-1, -1], max_edges=touched[3]).edges_touched == touched[3]


@pytest.mark.parametrize("form", ["plain", "looped", "normalized"])
def test_edges_of_a_form_are_counted_without_preparing_it(form):
    edges = Edges(untidy_graph()[1], None, 60)
    count = edges.count(form)
    assert count == edges.form(form)[0].shape[1]


class Mine(nn.Module):
    """A user's network, which normalises inside."""

    def __init__(self):
        super().__init__()
        self.first, self.second = GCNConv(20, 8), GCNConv(8, 5)

    def forward(self, x, edge_index):
        return self.second(self.first(x, edge_index).relu(), edge_index)


def test_a_module_of_the_users_is_cut_far_enough_to_be_exact():
    x, edge_index = untidy_graph()
    network, edges = Mine().eval(), Edges(edge_index, None, 60)
    nodes = torch.tensor([2, 40, 11])
    whole = network(x, edge_index)
    assert node_expert(network).hops == 3  # two layers, and the degrees of the outermost neighbours
    torch.testing.assert_close(node_expert(network).on_nodes(x, edges, nodes, batch_size=2), whole[nodes])
    linear = nn.Linear(20, 5)
    with pytest.raises(ConfigError, match="has no torch_geometric"):
        node_expert(linear).known_hops()


def test_a_network_can_be_copied_after_use_and_used_on_another_graph():
    x, edge_index = untidy_graph()
    network = make_network("gcn", 20, 5).eval()
    first = network(x, edge_index)
    other = copy.deepcopy(network)
    assert other(x[:10], edge_index[:, :0]).shape == (10, 5)
    torch.testing.assert_close(other(x, edge_index), first)


def test_a_linear_skip_makes_a_network_see_its_own_node_without_edges():
    x = torch.randn(6, 20)
    none = torch.zeros(2, 0, dtype=torch.long)
    network = make_network("sage_skip", 20, 5, num_layers=1).eval()
    layer = network.convs[0]
    torch.testing.assert_close(network(x, none), layer.own(x) + layer.conv.lin_r(x) + layer.conv.lin_l.bias)


def test_sizes_that_no_machine_has_are_refused():
    with pytest.raises(ConfigError, match=r"num_layers must be at most 1,000, got 100000000000"):
        make_network("mlp", 3, 2, num_layers=10**11)
    with pytest.raises(ConfigError, match=r"hidden_channels must be below 2\*\*63, got a number of 65 bits"):
        make_network("gcn", 3, 2, hidden_channels=2**64)
