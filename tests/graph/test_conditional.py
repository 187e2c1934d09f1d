"""Experts that run only where they are asked give what they give everywhere, with less work."""

import pytest
import torch
from torch import nn
from torch_geometric.nn import GCNConv

from moeapps.core.errors import ConfigError
from moeapps.graph import Edges, Mowst, MowstModule, choose_threshold, predict_nodes
from moeapps.graph.measures import measure
from moeapps.graph.networks import GAT


def untrained(strong="gcn", **kwargs) -> Mowst:
    model = Mowst(10, 4, strong=strong, hidden_channels=8, **{"confidence": "given", **kwargs}).eval()
    nn.init.normal_(model.experts["weak"].lins[-1].weight, std=2.0)  # opinions of all strengths
    return model


def sparse_graph(nodes=400):
    return torch.randn(nodes, 10), torch.randint(0, nodes - 10, (2, 500))  # the last ten are isolated


@pytest.fixture(params=[None, 7], ids=["at once", "in batches"])
def batch_size(request):
    return request.param


@pytest.mark.parametrize("mode", ["mix", "cascade", "threshold", "sample"])
@pytest.mark.parametrize("strong", ["gcn", "sage", "gat", "gin", "gcn_skip", "sage_jk"])
def test_conditional_prediction_equals_the_dense_one(strong, mode, batch_size):
    model = untrained(strong)
    x, edge_index = sparse_graph()
    edges = Edges(edge_index, None, 400)
    with torch.no_grad():
        dense = model(x, edges, mode=mode, threshold=0.3, generator=torch.Generator().manual_seed(1))
    found, activation = predict_nodes(
        model, x, edges, mode=mode, threshold=0.3, generator=torch.Generator().manual_seed(1), batch_size=batch_size
    )
    torch.testing.assert_close(found.log_probs, dense.log_probs, atol=1e-5, rtol=1e-5)
    assert torch.equal(found.last, dense.last)
    assert activation.strong == pytest.approx(float(dense.used_strong.float().mean()))
    if mode != "mix":
        assert 0.05 < activation.strong < 0.95


@pytest.mark.parametrize("medium", [None, "sage", ["sage", "gin"]])
def test_some_nodes_of_a_chain(medium, batch_size):
    model = untrained("gat", medium=medium)
    x, edge_index = sparse_graph()
    edges, nodes = Edges(edge_index, None, 400), torch.randperm(400)[:50]
    with torch.no_grad():
        dense = model(x, edges, mode="cascade", threshold=0.3)
    found, activation = predict_nodes(model, x, edges, nodes, mode="cascade", threshold=0.3, batch_size=batch_size)
    torch.testing.assert_close(found.log_probs, dense.log_probs[nodes], atol=1e-5, rtol=1e-5)
    shares = [activation.share[name] for name in model.names]
    assert shares[0] == 1
    assert shares == sorted(shares, reverse=True)


def test_who_is_sure_of_everything_costs_no_edges_and_who_is_sure_of_nothing_all():
    model = untrained()
    x, edge_index = sparse_graph()
    edges = Edges(edge_index, None, 400)
    calls = []
    model.experts["strong"].register_forward_pre_hook(lambda *_: calls.append(1))
    _, none = predict_nodes(model, x, edges, mode="threshold", threshold=0.0)
    assert (none.strong, none.edges, calls) == (0.0, 0, [])
    _, every = predict_nodes(model, x, edges, mode="threshold", threshold=2.0)
    assert (every.strong, every.edges) == (1.0, every.edges_alone)
    assert every.multiply_adds > every.multiply_adds_alone > none.multiply_adds > 0


def test_work_grows_with_the_threshold(monkeypatch):
    monkeypatch.setattr(GAT, "cut_share", 1.0)
    model = untrained("gat", num_layers=1)
    x, edge_index = sparse_graph()
    edges = Edges(edge_index, None, 400)
    work = [predict_nodes(model, x, edges, mode="threshold", threshold=t)[1] for t in (0.0, 0.1, 0.2, 0.4, 2.0)]
    for name in ("strong", "edges", "multiply_adds"):
        values = [getattr(found, name) for found in work]
        assert values == sorted(values), name
    assert 0 < work[2].edges < work[4].edges


def test_a_large_piece_is_not_cut_out(monkeypatch):
    model = untrained()
    x, edge_index = sparse_graph()
    edges = Edges(edge_index, None, 400)
    cuts = []
    cut = Edges.neighborhood
    monkeypatch.setattr(Edges, "neighborhood", lambda *a, **k: cuts.append(cut(*a, **k)) or cuts[-1])
    _, found = predict_nodes(model, x, edges, mode="threshold", threshold=2.0)
    assert cuts == [None]
    assert found.edges == found.edges_alone


@pytest.mark.parametrize(("champion", "silent"), [("strong", "weak"), ("weak", "strong")])
def test_an_expert_that_has_no_say_does_not_run(champion, silent):
    model = untrained()
    model.gates["weak"].forced.fill_(1.0 if champion == "weak" else 0.0)
    x, edge_index = sparse_graph()
    edges = Edges(edge_index, None, 400)
    with torch.no_grad():
        expected = model.run_expert(champion, x, edges).log_softmax(-1)
    model.experts[silent].register_forward_pre_hook(lambda *_: pytest.fail("it ran"))
    found, activation = predict_nodes(model, x, edges)
    torch.testing.assert_close(found.log_probs, expected)
    assert activation.share == {champion: 1.0, silent: 0.0}


@pytest.mark.parametrize("mode", ["cascade", "threshold", "sample", "mix"])
@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("forced", [0.0, 1.0])
def test_a_fixed_confidence_is_cut_short_only_where_that_changes_nothing(forced, threshold, mode):
    model = untrained(medium="sage")
    model.gates["weak"].forced.fill_(forced)
    x, edge_index = sparse_graph()
    edges = Edges(edge_index, None, 400)
    with torch.no_grad():
        dense = model(x, edges, mode=mode, threshold=threshold, generator=torch.Generator().manual_seed(1))
    found, _ = predict_nodes(
        model, x, edges, mode=mode, threshold=threshold, generator=torch.Generator().manual_seed(1)
    )
    torch.testing.assert_close(found.log_probs, dense.log_probs, atol=1e-5, rtol=1e-5)


class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = GCNConv(10, 4)

    def forward(self, x, edge_index):
        return self.layer(x, edge_index)


def test_modules_of_the_users_take_part(batch_size):
    x, edge_index = sparse_graph()
    edges = Edges(edge_index, None, 400)
    model = Mowst(10, 4, strong=Mine(), weak=nn.Linear(10, 4), confidence="given").eval()
    with torch.no_grad():
        dense = model(x, edges, mode="threshold", threshold=0.2)
    found, _ = predict_nodes(model, x, edges, mode="threshold", threshold=0.2, batch_size=batch_size)
    torch.testing.assert_close(found.log_probs, dense.log_probs, atol=1e-5, rtol=1e-5)
    blind = Mowst(10, 4, strong=Blind(), weak=nn.Linear(10, 4), confidence="given").eval()
    predict_nodes(blind, x, edges, torch.arange(5))  # how far it sees is unknown: the whole graph is computed
    with pytest.raises(ConfigError, match="cannot be run on a part"):
        predict_nodes(blind, x, edges, batch_size=7)


class Blind(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(10, 4)

    def forward(self, x, edge_index):
        return self.layer(x).index_add(0, edge_index[1], self.layer(x)[edge_index[0]])


@pytest.fixture
def held_out():
    """A module with validation nodes of which the sure half are right by the weak expert, all by the strong one."""
    module = MowstModule(strong="gcn", confidence="given", in_channels=3, out_channels=2)
    module.configure_model()
    y = torch.randint(0, 2, (200,))
    truth = nn.functional.one_hot(y, 2) * 2.0 - 1.0
    sure = torch.arange(200) < 100
    weak = torch.where(
        sure[:, None], truth * torch.linspace(3, 5, 200)[:, None], -truth * torch.linspace(0.1, 0.5, 200)[:, None]
    )
    module.held_out.values = {"y": y, "weak": weak, "strong": truth * 10}
    return module


def test_a_threshold_is_as_cheap_as_the_score_and_the_budget_allow(held_out):
    def quality(threshold, mode="threshold"):
        output = held_out.predict_held_out(mode, threshold)
        return measure(output.log_probs, held_out.held_out.values["y"])["accuracy"], float(
            output.used_strong.float().mean()
        )

    best = choose_threshold(held_out, "threshold")
    assert quality(best) == (1.0, 0.5)  # all right, and nobody passed on in vain
    cheap = choose_threshold(held_out, "threshold", tolerance=0.1)
    accuracy, passed = quality(cheap)
    assert accuracy >= 0.9
    assert passed < 0.5
    assert quality(choose_threshold(held_out, "threshold", budget=0.3))[1] <= 0.3 + 1e-6
    held_out.model.gates["weak"].forced.fill_(0.0)
    with pytest.warns(UserWarning, match="the weak expert predicts every node"):
        assert choose_threshold(held_out, "threshold", budget=0.3) == 0.0
    with pytest.raises(ConfigError, match="budget must be"):
        choose_threshold(held_out, budget=1.5)
    with pytest.raises(ConfigError, match="tolerance must be"):
        choose_threshold(held_out, tolerance=-1)
