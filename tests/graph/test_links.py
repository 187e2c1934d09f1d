"""Link prediction: what is held out, what is drawn, what is refused, and that the mixture keeps its promises."""

import copy
import pickle
from dataclasses import replace

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from torch import nn
from torch_geometric.data import Data
from torch_geometric.nn import SAGEConv
from torch_geometric.transforms import RandomLinkSplit

import moeapps
from moeapps.core.callbacks import seed_everything
from moeapps.core.errors import ConfigError, DataError
from moeapps.graph import LinkData, LinkModule, MowstLinkPredictor
from moeapps.graph.link_module import DECODERS, LinkExpert, link_scores
from moeapps.graph.links import draw_negatives, hold_out_links
from tests.graph.helpers import circles, trainer

QUICK = {"hidden_channels": 8, "max_epochs": 3, "random_state": 0, "accelerator": "cpu"}
PLAIN = {**QUICK, "gate": "mean"}  # where the gate does not matter: fitting one takes longer than the training


@pytest.fixture(scope="module")
def fitted():
    return MowstLinkPredictor(["gcn", "sage"], **{**QUICK, "max_epochs": 8}).fit(circles())


@pytest.fixture(scope="module")
def parts():
    seed_everything(1)  # PyG draws pairs without a link from Python's and NumPy's generators, too
    return RandomLinkSplit(0.1, 0.2, is_undirected=True, add_negative_train_samples=False)(circles())


def undirected(index: torch.Tensor) -> set[tuple[int, int]]:
    return {(min(a, b), max(a, b)) for a, b in index.T.tolist()}


# ---------------------------------------------------------------------- what is held out and drawn


@pytest.mark.parametrize("directed", [False, True])
def test_no_copy_of_a_held_out_link_stays_in_the_graph(directed):
    graph = circles(directed=directed)
    graph.edge_index = torch.cat([graph.edge_index, graph.edge_index[:, :40]], dim=1)  # duplicates
    graph.edge_weight = torch.arange(graph.edge_index.shape[1]).float()
    rest, pairs, y = hold_out_links(graph, 0.3, 0, directed, graph.edge_index, "val_fraction")
    read = (lambda index: set(map(tuple, index.T.tolist()))) if directed else undirected
    held, left, every = read(pairs[:, y == 1]), read(rest.edge_index), read(graph.edge_index)
    assert held
    assert not held & left
    assert held | left == every
    assert not read(pairs[:, y == 0]) & every
    assert torch.equal(rest.edge_index, graph.edge_index[:, rest.edge_weight.long()])  # each has its own weight


def test_experts_never_see_a_held_out_link(monkeypatch):
    seen = []
    forward = LinkExpert.forward

    def watched(self, batch):
        seen.append((undirected(batch.pairs[:, batch.y == 1]), undirected(batch.edges.index), self.training))
        return forward(self, batch)

    monkeypatch.setattr(LinkExpert, "forward", watched)
    data = LinkData(circles(), test_fraction=0.2)
    module = LinkModule("gcn", hidden_channels=8)
    run = trainer_without_files(3)
    run.fit(module, data)
    run.test(module, data, verbose=False)
    test = undirected(data.part("test").pairs[:, data.part("test").y == 1])
    val = undirected(data.part("val").pairs[:, data.part("val").y == 1])
    assert {training for *_, training in seen} == {True, False}
    for linked, messages, training in seen:
        assert not linked & messages
        assert not messages & test
        assert linked == test or not messages & val
        if training:
            assert not linked & (val | test)
    assert len(val) == round(0.1 * (len(val) + len(undirected(data.part("val").edges.index))))


def test_every_step_draws_other_pairs_without_a_link_and_never_a_link():
    data = LinkData(circles())
    data.setup()
    module, batch = LinkModule("gcn"), data.part("train")
    every = undirected(circles().edge_index)
    drawn = []
    for _ in range(3):
        step = module.draw(batch)
        negative = undirected(step.pairs[:, step.y == 0])
        assert not negative & every
        assert all(a != b for a, b in negative)
        assert int((step.y == 1).sum()) == round(0.5 * batch.pairs.shape[1])
        assert undirected(step.pairs[:, step.y == 1]) | undirected(step.edges.index) == undirected(batch.pairs)
        drawn.append(negative)
    assert drawn[0] != drawn[1] != drawn[2]
    whole = LinkModule("gcn", disjoint_train_ratio=0.0).draw(batch)
    assert undirected(whole.pairs[:, whole.y == 1]) == undirected(whole.edges.index)


def test_links_that_pygs_split_takes_out_of_the_graph_are_not_drawn_as_pairs_without_one():
    seed_everything(1)
    dense = circles(30)
    split = RandomLinkSplit(0.1, 0.0, is_undirected=True, disjoint_train_ratio=0.7, add_negative_train_samples=False)
    train, val, _ = split(dense)
    data = LinkData(train, val=val, test_fraction=0.0)
    data.setup()
    links = undirected(data.part("train").pairs)
    assert links - undirected(train.edge_index)
    for _ in range(20):
        step = LinkModule("gcn", disjoint_train_ratio=0.0).draw(data.part("train"))
        assert not undirected(step.pairs[:, step.y == 0]) & links


# ---------------------------------------------------------------------- training and mixture


class Mean(nn.Module):
    """A graph network of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = SAGEConv(6, 8)

    def forward(self, x, edge_index):
        return self.conv(x, edge_index)


def trainer_without_files(epochs: int):
    return L.Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, enable_checkpointing=False,
    )  # fmt: skip


def test_an_expert_beside_others_learns_what_it_learns_alone(tmp_path):
    network = Mean()
    settings = {"weak": None, "structure": False, "dropout": 0.0, "hidden_channels": 8, "patience": 100}
    weights = []
    for strong in ([network], [network, "gin"]):
        torch.manual_seed(0)
        module = LinkModule(copy.deepcopy(strong), **settings)
        trainer(tmp_path / str(len(strong)), epochs=4).fit(module, LinkData(circles()))
        weights.append(module.experts[0].state_dict())
    assert not torch.equal(weights[0]["network.conv.lin_l.weight"], network.conv.lin_l.weight)
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


def test_an_expert_rests_after_its_patience_and_keeps_its_best_weights():
    module, data = LinkModule("gcn", hidden_channels=8, patience=2), LinkData(circles())
    run = trainer_without_files(200)
    run.fit(module, data)
    assert run.current_epoch < 200
    assert module.plan.finished
    assert max(module.plan.epochs.values()) == run.current_epoch
    part = module.predict_part([data.part("val")])
    for i, name in enumerate(module.names):
        scores = link_scores(torch.from_numpy(part.predictions[:, i]), torch.from_numpy(part.target))
        best = module.plan.best_scores[name][0]
        assert scores["auc"] - 1e-4 * scores["loss"] == pytest.approx(best, abs=1e-6)


def test_no_expert_alone_is_better_than_the_mixture_beyond_noise_on_rows_that_its_gate_has_not_seen():
    seed_everything(0)
    module, data = LinkModule(["gcn", "gin"], hidden_channels=8), LinkData(circles())
    trainer_without_files(25).fit(module, data)
    table = module.mixture.candidates.set_index("candidate")
    chosen = table[table["chosen"]].iloc[0]
    noise = 0.5 * chosen["difference_error"] + 1e-12  # a simpler candidate that is as good is preferred
    assert {f"expert:{name}" for name in module.names} < set(table.index)
    assert {"mean", "constant", "confidence", "linear", "mlp"} < set(table.index)
    for name in module.names:
        assert chosen["loss"] <= table.loc[f"expert:{name}", "loss"] + noise


def test_links_are_learned(parts):
    train, val, test = parts
    model = MowstLinkPredictor(random_state=0, max_epochs=60, accelerator="cpu").fit(train, val_data=val)
    found = model.compare(test)
    assert list(found.index) == ["mixture", "structure", "mlp", "gcn", "sage", "gin"]
    assert model.score(test) == pytest.approx(found.loc["mixture", "auc"])
    assert model.score(test) > 0.7
    assert model.evaluate(test)["average_precision"] > 0.6
    assert model.champion_ in set(model.candidates_["candidate"])


@pytest.mark.parametrize("decoder", DECODERS)
def test_the_order_of_an_undirected_pair_does_not_matter(decoder):
    model = MowstLinkPredictor("gcn", decoder=decoder, **PLAIN).fit(circles())
    pairs = np.random.default_rng(0).permutation(80).reshape(-1, 2)
    np.testing.assert_allclose(model.predict_proba(pairs), model.predict_proba(pairs[:, ::-1]), atol=1e-6)


def test_the_order_of_a_directed_pair_matters_to_the_mlp_decoder():
    graph = circles(directed=True)
    model = MowstLinkPredictor("gcn", decoder="mlp", weak=None, structure=False, **PLAIN).fit(graph)
    assert model.directed_
    pairs = np.random.default_rng(0).permutation(80).reshape(-1, 2)
    assert not np.allclose(model.predict_proba(pairs), model.predict_proba(pairs[:, ::-1]), atol=1e-4)
    with pytest.warns(UserWarning, match="decoder='hadamard' gives both directions of a pair the same probability"):
        MowstLinkPredictor("gcn", **PLAIN).fit(graph)


# ---------------------------------------------------------------------- prediction


@pytest.mark.parametrize("network", ["gcn", "sage_skip", "gat", "gin_jk"])
def test_a_network_on_the_neighbourhood_of_some_pairs_says_what_it_says_on_the_whole_graph(network):
    model = MowstLinkPredictor(network, **PLAIN).fit(circles())
    pairs = np.random.default_rng(0).permutation(80).reshape(-1, 2)
    batch = model._read(pairs, None, None, None)
    rows = np.array([3, 0, 21])
    for expert in model.model_:
        np.testing.assert_allclose(model._ask(expert, batch, rows), model._ask(expert, batch, None)[rows], atol=1e-5)


def test_the_cascade_asks_graph_networks_for_the_pairs_that_need_them(fitted):
    pairs = np.random.default_rng(0).permutation(80).reshape(-1, 2)
    model = copy.copy(fitted)
    everything = model.predict_proba(pairs)
    model.inference = "cascade"
    table = model.predict_table(pairs)
    asked = table[[f"asked_{name}" for name in model.expert_names_]].to_numpy()
    assert asked[:, model.cascade_.order[0]].all()
    assert (table.filter(like="weight_").to_numpy()[~asked] == 0).all()
    model.cascade_ = replace(fitted.cascade_, threshold=float(np.finfo(float).min))
    np.testing.assert_allclose(model.predict_proba(pairs), everything, atol=1e-6)


def test_a_budget_bounds_the_cost_of_the_cascade(parts):
    train, val, test = parts
    model = MowstLinkPredictor(["gcn", "sage"], budget=0.5, inference="cascade", **QUICK).fit(train, val_data=val)
    val_cost = model.cost_curve(val)
    chosen = val_cost[np.isclose(val_cost["threshold"], model.cascade_.threshold)]
    assert (chosen["cost"] <= 0.5 + 0.15).all()  # the threshold is chosen on folds of the same pairs
    assert set(model.cost_curve(test).columns) == {"threshold", "cost", "loss", "accuracy"}


def test_mini_batches_train_and_predict_as_the_whole_graph_does(fitted):
    model = MowstLinkPredictor("sage", batch_size=64, num_neighbors=[5, 5], **PLAIN).fit(circles())
    pairs = np.random.default_rng(0).permutation(80).reshape(-1, 2)
    in_pieces = model.predict_proba(pairs)
    model.set_params(batch_size=None)
    np.testing.assert_allclose(model.predict_proba(pairs), in_pieces, atol=1e-5)


def test_pairs_go_by_the_names_of_the_nodes(fitted):
    graph = circles()
    names = [f"n{i}" for i in range(80)]
    x = pd.DataFrame(graph.x.numpy(), index=names, columns=list("abcdef"))
    edges = pd.DataFrame(np.array(names)[graph.edge_index.T.numpy()], columns=["source", "target"])
    model = MowstLinkPredictor(["gcn", "sage"], **{**QUICK, "max_epochs": 8}).fit(x, edges)
    pairs = np.array([[0, 1], [7, 3]])
    expected = fitted.predict_proba(pairs)
    np.testing.assert_allclose(model.predict_proba(pd.DataFrame(np.array(names)[pairs])), expected, atol=1e-6)
    np.testing.assert_allclose(model.predict_proba(pairs, x, edges), expected, atol=1e-6)
    assert list(model.feature_names_in_) == list("abcdef")
    with pytest.raises(DataError, match="pairs names the node 'n99', which is not in the index of x"):
        model.predict(pd.DataFrame([["n0", "n99"]]))


# ---------------------------------------------------------------------- house rules


@pytest.mark.parametrize(
    "model",
    [
        MowstLinkPredictor(["gcn", "gat_skip"], weak=None, **QUICK),
        MowstLinkPredictor("gin", decoder="mlp", structure=False, gate="mean", inference="cascade", **QUICK),
        MowstLinkPredictor([], decoder="dot", **QUICK),
        MowstLinkPredictor(Mean(), norm=None, **QUICK),
    ],
    ids=["two", "cascade", "no network", "own module"],
)
def test_saved_and_pickled_models_predict_the_same_bits(model, tmp_path):
    graph = circles()
    model = clone(model).fit(graph)
    pairs = np.random.default_rng(0).permutation(80).reshape(-1, 2)
    model.save(tmp_path / "model")
    own = {"strong": Mean()} if isinstance(model.strong, nn.Module) else {}
    for twin in (moeapps.load(tmp_path / "model", **own), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(twin.predict_proba(pairs, graph), model.predict_proba(pairs, graph))
        assert twin.champion_ == model.champion_
        assert twin.n_iter_ == model.n_iter_
        assert {k: v for k, v in twin.get_params().items() if k != "strong"} == {
            k: v for k, v in model.get_params().items() if k != "strong"
        }


def test_a_loaded_model_needs_its_graph_and_a_list_of_modules_is_not_saved(fitted, tmp_path):
    fitted.save(tmp_path / "model")
    with pytest.raises(DataError, match="a loaded model does not hold its training graph"):
        moeapps.load(tmp_path / "model").predict([[0, 1]])
    own = MowstLinkPredictor([Mean()], **PLAIN).fit(circles())
    with pytest.raises(ConfigError, match="strong is a list with modules of your own"):
        own.save(tmp_path / "own")


def test_a_failed_fit_keeps_the_last_one(fitted):
    again = copy.deepcopy(fitted)
    pairs = np.array([[0, 1], [7, 3]])
    with pytest.raises(DataError):
        again.fit(Data(x=torch.ones(4, 6), edge_index=torch.zeros(2, 0, dtype=torch.int64)))
    np.testing.assert_array_equal(again.predict_proba(pairs), fitted.predict_proba(pairs))


def test_weights_of_edges_reach_the_networks_that_use_them():
    graph = circles()
    graph.edge_weight = torch.rand(graph.edge_index.shape[1]) + 0.1
    model = MowstLinkPredictor(**PLAIN).fit(graph)
    assert model.expert_names_ == ["structure", "mlp", "gcn"]
    with pytest.raises(DataError, match="does not use edge weights"):
        MowstLinkPredictor("gin", **PLAIN).fit(graph)


def test_a_resumed_training_and_a_checkpoint_without_its_mixture_end_the_same(tmp_path):
    def module():
        torch.manual_seed(0)
        return LinkModule("gcn", hidden_channels=8)

    whole = module()
    trainer(tmp_path / "whole", epochs=6).fit(whole, LinkData(circles()))
    trainer(tmp_path / "part", epochs=3).fit(module(), LinkData(circles()))
    resumed = module()
    trainer(tmp_path / "part2", epochs=6).fit(resumed, LinkData(circles()), ckpt_path=tmp_path / "part" / "last.ckpt")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert resumed.mixture.candidates.equals(whole.mixture.candidates)
    run = trainer_without_files(1)
    data = LinkData(circles())
    tested = run.test(whole, data, verbose=False)[0]
    later = run.test(module(), data, ckpt_path=tmp_path / "whole" / "last.ckpt", verbose=False)[0]
    assert later == pytest.approx(tested)
    predicted = run.predict(whole, data)[0]
    assert set(predicted) == {"source", "target", "probability"}
    with pytest.raises(ConfigError, match="the experts are not trained"):
        run.test(module(), data, verbose=False)


# ---------------------------------------------------------------------- refusals

BAD_PAIRS = {
    "another shape": (np.zeros((3, 3), dtype=int), r"pairs must have shape \(B, 2\).* got \(3, 3\)"),
    "PyG's form": (np.array([[0, 1, 2], [3, 4, 5]]), "pairs.T turns PyG's"),
    "out of range": ([[0, 1], [5, 80]], r"pair 1 is \[5, 80\], but the graph has the nodes 0 to 79"),
    "negative": ([[-1, 1]], r"pair 0 is \[-1, 1\]"),
    "itself": ([[0, 1], [4, 4]], "pair 1 is node 4 with itself"),
    "no integers": ([[0.5, 1.0]], "pairs must hold whole node numbers, got float64"),
    "text": ([["a", "b"]], "pairs must hold whole node numbers"),
    "missing": ([[np.nan, 1.0]], "pairs must hold whole node numbers"),
    "names without names": (pd.DataFrame([["a", "b"]]), "the nodes have none"),
}


@pytest.mark.parametrize("name", BAD_PAIRS)
def test_bad_pairs_are_refused(name, fitted):
    pairs, message = BAD_PAIRS[name]
    with pytest.raises(DataError, match=message):
        fitted.predict_proba(pairs)


def changed(**changes) -> Data:
    graph = circles()
    for name, value in changes.items():
        graph[name] = value
    return graph


def everything_linked() -> Data:
    index = torch.cartesian_prod(torch.arange(6), torch.arange(6)).T
    return Data(x=torch.ones(6, 6), edge_index=index[:, index[0] != index[1]])


BAD_GRAPHS = {
    "no features": (Data(edge_index=torch.tensor([[0, 1], [1, 0]])), "no node features"),
    "NaN features": (changed(x=torch.full((80, 6), float("nan"))), "NaN or infinite features"),
    "edge out of range": (changed(edge_index=torch.tensor([[0, 80], [80, 0]])), "80"),
    "no edges": (changed(edge_index=torch.zeros(2, 0, dtype=torch.int64)), "no edge between two different nodes"),
    "loops only": (changed(edge_index=torch.tensor([[1, 2], [1, 2]])), "no edge between two different nodes"),
    "one link": (changed(edge_index=torch.tensor([[0, 1], [1, 0]])), r"the graph has 1 link\(s\): with val_fraction"),
    "everything linked": (everything_linked(), "every pair of nodes is linked"),
    "pairs without labels": (changed(edge_label_index=torch.tensor([[0], [1]])), "edge_label_index, but no edge_label"),
    "labels of other kinds": (
        changed(edge_label_index=torch.tensor([[0], [1]]), edge_label=torch.tensor([2.0])),
        "edge_label must be 1 .linked. or 0, got 2.0 for pair 0",
    ),
    "a loop to learn": (
        changed(edge_label_index=torch.tensor([[3], [3]]), edge_label=torch.tensor([1.0])),
        "edge_label_index pairs 1 nodes with themselves, the first is node 3",
    ),
    "several graphs": ([circles()], "give one Data"),
}


@pytest.mark.parametrize("name", BAD_GRAPHS)
def test_bad_graphs_are_refused(name):
    graph, message = BAD_GRAPHS[name]
    with pytest.raises(DataError, match=message):
        MowstLinkPredictor("gcn", **QUICK).fit(graph)


def test_validation_links_that_are_edges_of_the_graph_are_refused(parts):
    train, val, _ = parts
    with pytest.raises(DataError, match="linked pairs of val_data are edges of the training graph"):
        MowstLinkPredictor("gcn", **QUICK).fit(circles(), val_data=val)
    with pytest.raises(DataError, match="val_data has no edge_label_index"):
        MowstLinkPredictor("gcn", **QUICK).fit(train, val_data=circles())


BAD_ARGUMENTS = {
    "unknown network": ({"strong": "gnc"}, "did you mean 'gin'"),
    "no list": ({"strong": 3}, "strong must be 'auto'"),
    "no expert": ({"strong": [], "weak": None, "structure": False}, "there is no expert"),
    "decoder": ({"decoder": "cosine"}, "decoder must be one of dot, hadamard, mlp"),
    "gate": ({"gate": "stack"}, "gate must be one of"),
    "inference": ({"inference": "threshold"}, "inference must be one of mix, cascade"),
    "both limits": ({"budget": 0.5, "tolerance": 0.1}, "give one of them"),
    "monitor": ({"monitor": "accuracy"}, "monitor must be one of auc"),
    "val_fraction": ({"val_fraction": 0.0}, "val_fraction must be above 0"),
    "ratio": ({"disjoint_train_ratio": 1.0}, "disjoint_train_ratio must be below 1"),
    "width of a module": ({"strong": Mean(), "hidden_channels": 16}, "Mean has 8 outputs per node, the decoder takes"),
    "neighbours": ({"num_neighbors": [5, 5]}, "num_neighbors is for mini-batches"),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_arguments_are_refused(name):
    arguments, message = BAD_ARGUMENTS[name]
    with pytest.raises(ConfigError, match=message):
        MowstLinkPredictor(**{**QUICK, **arguments}).fit(circles())


def test_what_cannot_be_scored_is_refused(fitted):
    with pytest.raises(DataError, match="the labels y are needed"):
        fitted.score([[0, 1]])
    with pytest.raises(DataError, match="y must have one label per pair"):
        fitted.score([[0, 1]], [1, 0])
    with pytest.raises(DataError, match=r"y must be 1 \(linked\) or 0, got nan for pair 1"):
        fitted.score([[0, 1], [0, 2]], [1, float("nan")])
    with pytest.raises(DataError, match="X is a graph that was read already"):
        fitted.predict([[0, 1]], fitted.read_graph(circles()), circles().edge_index)
    with pytest.raises(DataError, match="without edge_label_index"):
        fitted.predict(circles())
    with pytest.raises(DataError, match="fitted with 6"):
        fitted.predict([[0, 1]], torch.ones(4, 2))
    with pytest.raises(DataError, match="edge_index was given without X"):
        fitted.predict([[0, 1]], edge_index=circles().edge_index)


def test_negatives_of_a_full_graph_are_refused():
    with pytest.raises(DataError, match="every pair of nodes is linked"):
        draw_negatives(everything_linked().edge_index, 6, 3)
