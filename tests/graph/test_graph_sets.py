"""Classes of whole graphs: reading, neighbourhoods, the mixture's promises, and what is refused."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from torch import nn
from torch_geometric.data import Batch, Data, HeteroData, InMemoryDataset
from torch_geometric.nn import SAGEConv
from torch_geometric.utils import k_hop_subgraph

import moeapps
from moeapps.core.callbacks import seed_everything
from moeapps.core.errors import ConfigError, DataError
from moeapps.graph import EgoNetData, GraphExpertsModule, GraphSetData, MowstGraphClassifier, ego_nets
from moeapps.graph.graph_sets import GraphBatch, read_graphs
from tests.graph.helpers import small_graph, trainer

QUICK = {"hidden_channels": 8, "max_epochs": 2, "random_state": 0, "accelerator": "cpu", "norm": None}


def shapes(count: int = 60, informed: bool = False) -> list[Data]:
    """Rings (0) and stars (1) of 5 to 8 nodes; features are noise, or tell the class where ``informed``."""
    rng = np.random.default_rng(0)
    graphs = []
    for number in range(count):
        label, nodes = number % 2, int(rng.integers(5, 9))
        rest = np.arange(1, nodes)
        ends = (np.zeros(nodes - 1, dtype=int), rest) if label else (np.arange(nodes), (np.arange(nodes) + 1) % nodes)
        index = torch.from_numpy(np.stack([np.concatenate(ends), np.concatenate(ends[::-1])]))
        x = torch.from_numpy(0.1 * rng.normal(size=(nodes, 3))).float()
        x[:, 0] = (label - 0.5) * 2 if informed else 1.0
        graphs.append(Data(x=x, edge_index=index, y=torch.tensor([label])))
    return graphs


@pytest.fixture(scope="module")
def fitted():
    return MowstGraphClassifier(["gcn", "gin"], batch_size=16, **{**QUICK, "max_epochs": 30}).fit(shapes())


def test_a_batch_size_that_was_changed_since_the_fit_is_checked(fitted):
    model = pickle.loads(pickle.dumps(fitted)).set_params(batch_size=-1)
    with pytest.raises(ConfigError, match="batch_size must be a whole number of at least 1, got -1"):
        model.predict(shapes())


class Mean(nn.Module):
    """A graph network of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = SAGEConv(3, 8)

    def forward(self, x, edge_index):
        return self.conv(x, edge_index)


# ---------------------------------------------------------------------- neighbourhoods


@pytest.mark.parametrize("hops", [1, 2])
def test_an_ego_net_is_pygs_k_hop_subgraph_with_its_centre_hidden(hops):
    graph = small_graph()
    graph.y = graph.y.clone()
    graph.y[7] = -1
    nets = ego_nets(graph, hops)
    centers = [node for node in range(60) if node != 7]
    assert [int(net.y) for net in nets] == graph.y[centers].tolist()
    for center, net in zip(centers, nets, strict=True):
        nodes, edges, *_ = k_hop_subgraph(center, hops, graph.edge_index, num_nodes=60)
        assert len(nodes) == net.num_nodes
        assert (net.x[0, :-1] == 0).all()
        assert net.x[:, -1].tolist() == [1.0] + [0.0] * (len(nodes) - 1)
        others = sorted(net.x[1:, :-1].tolist())
        assert others == sorted(graph.x[[n for n in nodes.tolist() if n != center]].tolist())
        # as many edges, between nodes of the same features
        x = graph.x.clone()
        x[center] = 0.0
        theirs = {(*x[a].tolist(), *x[b].tolist()) for a, b in edges.T.tolist()}
        ours = {(*net.x[a, :-1].tolist(), *net.x[b, :-1].tolist()) for a, b in net.edge_index.T.tolist()}
        assert ours == theirs


def test_ego_nets_keep_the_weights_of_edges():
    x, weight = torch.arange(4.0)[:, None] + 1, torch.tensor([0.5, 0.25, 2.0, 3.0])
    edges = torch.tensor([[0, 1, 2, 3], [1, 0, 1, 2]])
    net = ego_nets(Data(x=x, edge_index=edges, edge_weight=weight, y=torch.arange(4) % 2))[1]  # of 0, 1 and 2
    found = {
        (net.x[a, 0].item(), net.x[b, 0].item()): w.item()
        for a, b, w in zip(*net.edge_index, net.edge_weight, strict=True)
    }
    assert found == {(1.0, 0.0): 0.5, (0.0, 1.0): 0.25, (3.0, 0.0): 2.0}


def test_some_ego_nets_are_chosen_by_a_seed():
    first, again, other = (ego_nets(small_graph(), most=20, seed=seed) for seed in (0, 0, 1))
    assert len(first) == 20
    assert all(torch.equal(a.x, b.x) for a, b in zip(first, again, strict=True))
    assert not all(a.x.shape == b.x.shape and torch.equal(a.x, b.x) for a, b in zip(first, other, strict=True))
    with pytest.raises(DataError, match="the graph has no labels y"):
        ego_nets(Data(x=torch.ones(2, 1), edge_index=torch.zeros(2, 0, dtype=torch.int64)))


# ---------------------------------------------------------------------- training and mixture


def test_graph_networks_tell_shapes_apart_that_the_weak_expert_cannot(fitted):
    test = shapes(90)[60:]
    found = fitted.compare(test)
    assert list(found.index) == ["mixture", "mlp", "gcn", "gin"]
    assert found.loc["mlp", "accuracy"] < 0.8
    assert fitted.score(test) == found.loc["mixture", "accuracy"] > 0.9
    assert set(fitted.evaluate(test)) == {"accuracy", "loss", "macro_f1", "auc"}


def test_no_expert_alone_is_better_than_the_mixture_beyond_noise_on_rows_that_its_gate_has_not_seen():
    seed_everything(0)
    module, data = GraphExpertsModule(["gcn", "gin"], hidden_channels=8, norm=None), GraphSetData(shapes(80))
    quick_trainer(8).fit(module, data)
    table = module.mixture.candidates.set_index("candidate")
    chosen = table[table["chosen"]].iloc[0]
    noise = 0.5 * chosen["difference_error"] + 1e-12  # a simpler candidate that is as good is preferred
    assert {f"expert:{name}" for name in module.names} < set(table.index)
    assert {"mean", "constant", "confidence", "linear", "mlp"} < set(table.index)
    for name in module.names:
        assert chosen["loss"] <= table.loc[f"expert:{name}", "loss"] + noise


def quick_trainer(epochs: int):
    import lightning as L

    return L.Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, enable_checkpointing=False,
    )  # fmt: skip


def test_the_cascade_starts_with_the_weak_expert_and_stops_where_it_is_enough():
    model = MowstGraphClassifier(
        "gin", inference="cascade", tolerance=0.1, batch_size=16, **{**QUICK, "max_epochs": 20}
    )
    model.fit(shapes(informed=True))
    table = model.predict_table(shapes(informed=True))
    assert model.cascade_.order[0] == model.expert_names_.index("mlp")
    assert table["asked_mlp"].all()
    assert table["asked_gin"].mean() < 0.5  # the features tell the class
    assert (table["prediction"].to_numpy() == np.arange(60) % 2).mean() > 0.9
    curve = model.cost_curve(shapes(informed=True))
    assert set(curve.columns) == {"threshold", "cost", "loss", "accuracy"}


def test_an_expert_says_of_some_graphs_what_it_says_of_them_among_all(fitted):
    graphs = fitted._read(shapes())
    rows = np.array([5, 0, 33])
    for expert in fitted.model_:
        np.testing.assert_allclose(
            fitted._ask(expert, graphs, rows), fitted._ask(expert, graphs, None)[rows], atol=1e-5
        )


def test_predictions_depend_neither_on_the_batch_nor_on_the_order_of_nodes(fitted):
    graphs = shapes()
    expected = fitted.predict_proba(graphs)
    one_by_one = np.concatenate([fitted.predict_proba([graph]) for graph in graphs[:5]])
    np.testing.assert_allclose(one_by_one, expected[:5], atol=1e-5)
    turned = []
    for graph in graphs:
        order = torch.randperm(graph.num_nodes)
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order))
        turned.append(Data(x=graph.x[order], edge_index=place[graph.edge_index]))
    np.testing.assert_allclose(fitted.predict_proba(turned), expected, atol=1e-5)
    np.testing.assert_allclose(fitted.predict_proba(Batch.from_data_list(graphs)), expected, atol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "sum", "max"])
def test_a_pool_is_what_its_name_says(pooling):
    graphs = shapes(4)
    batch = GraphBatch.of(graphs)
    model = MowstGraphClassifier("gcn", pooling=pooling, **QUICK).fit(shapes(20))
    expert = model.model_[0]
    with torch.no_grad():
        rows = [
            getattr(torch, {"max": "amax"}.get(pooling, pooling))(expert.network(g.x).relu(), dim=0) for g in graphs
        ]
        torch.testing.assert_close(expert(batch), expert.head(torch.stack(rows)))


# ---------------------------------------------------------------------- house rules


@pytest.mark.parametrize(
    "model",
    [
        MowstGraphClassifier(["gat", "sage_jk"], inference="cascade", **QUICK),
        MowstGraphClassifier([], pooling="max", **QUICK),
        MowstGraphClassifier(Mean(), weak=None, **QUICK),
    ],
    ids=["cascade", "weak alone", "own module"],
)
def test_saved_and_pickled_models_predict_the_same_bits(model, tmp_path):
    graphs = shapes(40)
    model = clone(model).fit(graphs, np.array(["ring", "star"])[np.arange(40) % 2])
    model.save(tmp_path / "model")
    own = {"strong": Mean()} if isinstance(model.strong, nn.Module) else {}
    for twin in (moeapps.load(tmp_path / "model", **own), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(twin.predict_proba(graphs), model.predict_proba(graphs))
        assert twin.classes_.tolist() == ["ring", "star"]
        assert twin.champion_ == model.champion_


def test_scikit_learns_searches_take_a_list_of_graphs():
    graphs, y = shapes(30), np.arange(30) % 2
    search = GridSearchCV(MowstGraphClassifier("gcn", **QUICK), {"pooling": ["mean", "sum"]}, cv=2).fit(graphs, y)
    assert search.best_params_["pooling"] in ("mean", "sum")
    assert len(cross_val_score(MowstGraphClassifier("gcn", **QUICK), graphs, y, cv=2)) == 2


def test_a_dataset_of_pyg_is_read_as_a_list_is(tmp_path, fitted):
    class Shapes(InMemoryDataset):
        def __init__(self) -> None:
            super().__init__(None)
            self.data, self.slices = self.collate(shapes())

    np.testing.assert_array_equal(fitted.predict_proba(Shapes()), fitted.predict_proba(shapes()))
    again = clone(fitted).fit(Shapes())
    np.testing.assert_array_equal(again.predict_proba(shapes()), fitted.predict_proba(shapes()))


def test_a_failed_fit_keeps_the_last_model(fitted):
    expected = fitted.predict_proba(shapes())
    with pytest.raises(DataError):
        fitted.fit([])
    np.testing.assert_array_equal(fitted.predict_proba(shapes()), expected)


def test_a_resumed_training_ends_as_a_whole_one_and_predicts_every_graph(tmp_path):
    def module():
        torch.manual_seed(0)
        return GraphExpertsModule("gcn", hidden_channels=8)

    whole, resumed = module(), module()
    trainer(tmp_path / "whole", epochs=4).fit(whole, GraphSetData(shapes(), batch_size=16))
    trainer(tmp_path / "part", epochs=2).fit(module(), GraphSetData(shapes(), batch_size=16))
    path = tmp_path / "part" / "last.ckpt"
    trainer(tmp_path / "part2", epochs=4).fit(resumed, GraphSetData(shapes(), batch_size=16), ckpt_path=path)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    data = GraphSetData(shapes(), batch_size=16)
    predicted = quick_trainer(1).predict(whole, data)
    assert np.concatenate([part["graph"] for part in predicted]).tolist() == list(range(60))
    assert set(predicted[0]) == {"graph", "prediction", "probability_0", "probability_1"}
    with pytest.raises(DataError, match="trained on the classes"):
        quick_trainer(1).test(whole, GraphSetData(shapes(), y=["a", "b"] * 30), verbose=False)


def test_weights_of_edges_reach_the_networks_that_use_them():
    graphs = shapes(20)
    graphs[0].edge_weight = torch.rand(graphs[0].edge_index.shape[1])
    assert MowstGraphClassifier(**QUICK).fit(graphs).expert_names_ == ["mlp", "gcn"]
    with pytest.raises(DataError, match="does not use edge weights"):
        MowstGraphClassifier("gin", **QUICK).fit(graphs)
    weights = [graph.edge_weight for graph in read_graphs(graphs)]
    assert torch.equal(weights[0], graphs[0].edge_weight)
    assert (weights[1] == 1).all()


def test_attributes_of_several_columns_are_left_out_with_a_warning():
    graphs = shapes(20)
    for graph in graphs:
        graph.edge_attr = torch.ones(graph.edge_index.shape[1], 4)
    with pytest.warns(UserWarning, match="edge_attr has 4 columns and is not used"):
        assert read_graphs(graphs)[0].edge_weight is None
    assert graphs[0].edge_attr.shape[1] == 4


def test_the_parts_of_a_set_have_no_graph_in_common_and_the_neighbourhoods_of_cora_are_one():
    data = GraphSetData(shapes())
    data.setup()
    parts = [{id(graph) for graph in data.parts[name]} for name in ("train", "val", "test")]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 60
    cora = EgoNetData(most=30)
    cora.setup()
    assert (cora.in_channels, len(cora.parts["all"])) == (1434, 30)


# ---------------------------------------------------------------------- refusals


def with_graph(number: int, **changes) -> list[Data]:
    graphs = shapes(10)
    for name, value in changes.items():
        graphs[number][name] = value
    return graphs


BAD_SETS = {
    "empty": ([], "there are 0 graphs"),
    "one graph": (shapes(1)[0], "one graph was given"),
    "no list": (7, "graphs must be a list of torch_geometric.data.Data"),
    "text": ("MUTAG", "X must be a list of graphs or a Dataset"),
    "another thing": ([*shapes(3), np.ones(3)], "graph 3 is a ndarray"),
    "another kind": ([*shapes(2), HeteroData()], "graph 2 is a HeteroData"),
    "no nodes": (with_graph(4, x=torch.ones(0, 3)), "graph 4 has no nodes"),
    "no features": (with_graph(4, x=None), "graph 4 has no node features x; torch_geometric.transforms.OneHotDegree"),
    "another width": (with_graph(2, x=torch.ones(9, 4)), "graph 2 has 4 features per node, graph 0 has 3"),
    "NaN features": (with_graph(3, x=torch.full((9, 3), float("nan"))), "graph 3: x has NaN or infinite features"),
    "edge out of range": (with_graph(1, edge_index=torch.tensor([[0], [99]])), "graph 1: .*99"),
    "no label": (with_graph(5, y=None), "graph 5 has no label y"),
    "labels of nodes": (with_graph(5, y=torch.zeros(6)), "graph 5 has 6 labels, expected one for the graph"),
    "missing label": (with_graph(5, y=torch.tensor([-1])), "graph 5 has no label .missing, or below 0."),
    "one class": ([graph for graph in shapes(10) if int(graph.y) == 0], "y has 1 class: at least two are needed"),
    "numbers": (with_graph(5, y=torch.tensor([0.5])), "y is continuous"),
}


@pytest.mark.parametrize("name", BAD_SETS)
def test_bad_sets_of_graphs_are_refused(name):
    graphs, message = BAD_SETS[name]
    with pytest.raises(DataError, match=message):
        MowstGraphClassifier("gcn", **QUICK).fit(graphs)


BAD_ARGUMENTS = {
    "pooling": ({"pooling": "median"}, "pooling must be one of mean, sum, max"),
    "monitor": ({"monitor": "rmse"}, "monitor must be one of accuracy"),
    "batch_size": ({"batch_size": 0}, "batch_size must be a whole number of at least 1"),
    "val_fraction": ({"val_fraction": 0.0}, "val_fraction must be above 0"),
    "budget": ({"budget": 2.0}, "budget must be a number above 0 and at most 1"),
    "width of a module": ({"strong": Mean(), "hidden_channels": 16}, "Mean has 8 outputs per node, the head takes 16"),
    "no expert": ({"strong": None, "weak": None}, "there is no expert"),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_arguments_are_refused(name):
    arguments, message = BAD_ARGUMENTS[name]
    with pytest.raises(ConfigError, match=message):
        MowstGraphClassifier(**{"strong": "gcn", **QUICK, **arguments}).fit(shapes(20))


def test_what_cannot_be_predicted_or_scored_is_refused(fitted):
    with pytest.raises(DataError, match="graph 0 has 4 features per node, the model was fitted with 3"):
        fitted.predict([Data(x=torch.ones(3, 4), edge_index=torch.zeros(2, 0, dtype=torch.int64))])
    with pytest.raises(DataError, match="y must have one label per graph, 60"):
        fitted.score(shapes(), [0, 1])
    with pytest.raises(DataError, match="labels that MowstGraphClassifier was not fitted with"):
        fitted.evaluate(shapes(2), [0, 5])
    with pytest.raises(ConfigError, match="source='MUTAG' is not embedded: give root.*own are given in Python"):
        GraphSetData("MUTAG").setup()
