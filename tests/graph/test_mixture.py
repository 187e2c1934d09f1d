"""Several networks trained alone and mixed: which compete, which are kept, what the gate and a cascade make of them."""

import shutil

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch

import moeapps
from moeapps.core.errors import ConfigError, DataError, FileFormatError
from moeapps.graph import GNNClassifier, GraphDataModule, MowstClassifier, MowstModule
from moeapps.graph.mixture import GraphMixture
from moeapps.graph.networks import NetworkConfig
from moeapps.graph.portfolio import PORTFOLIO, named_experts, neighbors_of, portfolio_of
from moeapps.graph.search import SearchPlan, halvings
from tests.graph.helpers import graph_with, small_graph, trainer

QUICK = {"hidden_channels": 8, "max_epochs": 6, "patience": 3, "random_state": 0, "accelerator": "cpu"}
PLAIN = {**QUICK, "gate": "mean"}  # where the gate does not matter: choosing one takes longer than the training
TWO = ["gcn", {"network": "sage", "num_layers": 3}]


@pytest.fixture(scope="module")
def fitted():
    return MowstClassifier(**QUICK).fit(small_graph())


def expert_proba(model, name, data):
    model.model_.eval()
    with torch.no_grad():
        logits = model.model_.expert(name).on_nodes(data.x, model.graph_.edges, None)
    return logits.double().softmax(-1).numpy()


# ---- which networks compete ------------------------------------------------------------------------------------------


def test_the_portfolio_is_trained_by_default_and_its_selection_is_told(fitted):
    table = fitted.selection_
    assert table["name"].tolist() == ["weak", *named_experts(PORTFOLIO, NetworkConfig())]
    assert table["kept"].sum() == 6  # five graph networks and the weak expert
    assert table["epochs"].between(1, 6).all()
    assert table["weight"].sum() == pytest.approx(1, abs=1e-5)
    assert isinstance(fitted.model_, GraphMixture)
    assert fitted.candidates_["chosen"].sum() == 1


def test_only_the_better_networks_are_trained_to_the_end():
    model = MowstClassifier(strong=["gcn", "sage", "gin"], norm=None, kept=1, **PLAIN).fit(small_graph())
    table = model.selection_.set_index("name")
    assert table["kept"].sum() == 2  # and the weak one
    assert table.loc["weak", "kept"]
    assert set(model.model_.experts) == set(table.index[table["kept"]])
    kept = table[table["kept"]].drop("weak")
    assert kept["score"].min() >= table.drop("weak")["score"].max()


@pytest.mark.parametrize(
    ("count", "kept", "expected"),
    [(7, 5, {20: 5}), (8, 1, {20: 4, 40: 2, 80: 1}), (3, 5, {}), (5, 2, {20: 3, 40: 2})],
)
def test_halves_are_left_behind_after_twenty_forty_and_eighty_epochs(count, kept, expected):
    assert halvings(count, kept) == expected


def test_a_search_ends_with_the_best_weights_of_every_network():
    model = GraphMixture(2, 2, {"a": {"network": "mlp"}, "b": {"network": "mlp"}})
    plan = SearchPlan(("a", "b"), 2, patience=2)
    plan.start({"a": (0.1,), "b": (0.5,)}, model)
    states = []
    for score in (None, 0.2, 0.3, 0.3, 0.3):
        if score is not None:
            for parameter in model.parameters():
                parameter.data += 1
            ended = plan.update({"a": (score,), "b": (0.4,)}, model)
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    assert ended
    assert plan.finished
    assert plan.champion == "b"
    assert plan.epochs == {"a": 4, "b": 2}
    for name, epoch in (("a", 2), ("b", 0)):  # where each was best
        for key, tensor in model.experts[name].state_dict().items():
            assert torch.equal(tensor, states[epoch][f"experts.{name}.{key}"])


def test_the_cost_of_a_search_is_counted_in_trainings_of_the_costliest():
    plan = SearchPlan(("weak", "a", "b", "c", "d"), 2, patience=40, always=("weak",))
    work = {"weak": 1, "a": 10, "b": 10, "c": 10, "d": 10}
    assert plan.cost(work) == pytest.approx((20 * 40 + 40 * 20 + 60 * 1) / (60 * 10))


def test_a_norm_by_name_is_that_of_all_and_auto_tries_three():
    config = NetworkConfig(norm="auto")
    assert [spec["norm"] for spec in portfolio_of("gcn", config)] == ["batch_norm", "layer_norm", None]
    assert portfolio_of({"network": "gcn", "norm": None}, config) == portfolio_of("gcn", NetworkConfig(norm=None))
    fixed = portfolio_of("auto", NetworkConfig(norm="batch_norm"))
    assert {spec["norm"] for spec in fixed} == {"batch_norm"}
    assert len(fixed) == len({str(spec) for spec in fixed})  # each once
    assert len(portfolio_of("auto", config)) == len(PORTFOLIO)


def test_networks_of_other_depth_draw_neighbours_at_every_hop():
    assert neighbors_of(None, 4) == [10, 10, 2, 2]
    assert neighbors_of([5, 3], 4) == [5, 3, 3, 3]
    assert neighbors_of([5, 3], 1) == [5]
    model = MowstClassifier(batch_size=16, num_neighbors=[4, 4], **PLAIN).fit(small_graph())
    whole = model.predict_proba()
    model.batch_size = None
    np.testing.assert_allclose(model.predict_proba(), whole, atol=1e-5)


# ---- the mixture -----------------------------------------------------------------------------------------------------


def test_the_mixture_is_what_gate_and_networks_say(fitted):
    data, model = small_graph(), fitted.model_
    predictions = np.stack([np.log(expert_proba(fitted, name, data)) for name in model.names], axis=1)
    expected = model.fitted.mix(np.zeros((60, 0)), predictions)
    np.testing.assert_allclose(fitted.predict_proba(data), expected, atol=1e-5)
    np.testing.assert_allclose(fitted.predict_proba(data).sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("gate", ["mean", "constant", "stacked", "confidence", "linear", "mlp", "best"])
def test_every_gate_of_the_core_can_be_asked_for(gate, tmp_path):
    model = MowstClassifier(strong=TWO, norm=None, gate=gate, **QUICK).fit(small_graph())
    name = model.model_.fitted.name
    assert name.startswith("expert:") if gate == "best" else name == gate
    assert (model.champion_ == "mix") == (gate != "best")
    expected = model.predict_proba()
    model.save(tmp_path / "model")
    loaded = moeapps.load(tmp_path / "model")
    data = small_graph()
    assert np.array_equal(loaded.predict_proba(data), expected)
    assert loaded.champion_ == model.champion_
    pd.testing.assert_frame_equal(loaded.selection_, model.selection_)
    np.testing.assert_allclose(loaded.candidates_["loss"], model.candidates_["loss"])


def with_frequent_class(nodes=60):
    """Training nodes are balanced, and of the others two thirds are of class 0."""
    data = small_graph(nodes)
    dropped = (data.y > 0) & ~data.train_mask & (torch.arange(nodes) % 4 > 0)
    data.val_mask, data.test_mask = data.val_mask & ~dropped, data.test_mask & ~dropped
    return data


def test_a_mixture_learns_the_class_shares_of_validation_nodes_and_the_best_network_does_not(tmp_path):
    data = with_frequent_class(240)
    plain = MowstClassifier(strong=TWO, norm=None, gate="best", **QUICK).fit(data)
    assert plain.model_.fitted.line is None
    model = MowstClassifier(strong=TWO, norm=None, **QUICK).fit(data)
    assert model.model_.fitted.line.intercept.argmax() == 0
    expected = model.predict_proba()
    truth = (data.y[data.test_mask] == 0).double().mean().item()
    gap, gap_of_the_network = (abs(p[data.test_mask, 0].mean() - truth) for p in (expected, plain.predict_proba()))
    assert gap < gap_of_the_network / 2
    model.save(tmp_path / "model")
    assert np.array_equal(moeapps.load(tmp_path / "model").predict_proba(data), expected)


def test_a_cascade_asks_the_weak_expert_first_and_all_where_no_node_stops(fitted):
    data = small_graph()
    curve = fitted.cost_curve(data)
    assert curve["strong"].iloc[0] == 0
    assert curve["strong"].iloc[-1] == 1
    assert curve["strong"].is_monotonic_increasing
    assert curve["multiply_adds"].iloc[0] == curve["multiply_adds"].min()
    all_asked = fitted._output(fitted.graph_, None, "cascade", 2.0)[0]
    np.testing.assert_allclose(all_asked.log_probs.exp().numpy(), fitted.predict_proba(data), atol=1e-5)


def test_a_cascade_on_pieces_of_the_graph_is_that_on_the_whole():
    data = small_graph()
    model = MowstClassifier(strong=TWO, inference="cascade", threshold=0.6, **QUICK).fit(data)
    expected = model.predict_proba(data)
    nodes = np.array([3, 17, 17, 40])
    np.testing.assert_allclose(model.predict_proba(data, nodes=nodes), expected[nodes], atol=1e-5)
    model.batch_size = 7
    np.testing.assert_allclose(model.predict_proba(data), expected, atol=1e-5)
    asked = model.route(data)
    assert asked.dtype == bool
    assert model.cost(data).strong <= asked.mean() + 1e-9


def test_a_budget_bounds_what_is_asked():
    data = small_graph()
    cheap = MowstClassifier(strong=TWO, inference="cascade", threshold="auto", budget=0.2, **QUICK).fit(data)
    dear = MowstClassifier(strong=TWO, inference="cascade", threshold="auto", tolerance=0.0, **QUICK).fit(data)
    assert cheap.cost_.multiply_adds <= dear.cost_.multiply_adds


def test_confidence_is_the_weight_of_the_weak_expert(fitted):
    data, model = small_graph(), fitted.model_
    predictions = np.stack([np.log(expert_proba(fitted, name, data)) for name in model.names], axis=1)
    weights = model.fitted.weights(np.zeros((60, 0)), predictions)
    np.testing.assert_allclose(fitted.predict_confidence(), weights[:, model.names.index("weak")], atol=1e-5)
    rows = fitted.selection_.set_index("name")
    val = data.val_mask.numpy()
    for name, share in zip(model.names, weights[val].mean(0), strict=True):
        assert rows.loc[name, "weight"] == pytest.approx(share, abs=1e-5)


# ---- the same seed, the same model; interruption; files --------------------------------------------------------------


def test_the_same_seed_gives_the_same_bits_and_another_does_not(fitted):
    again = MowstClassifier(**QUICK).fit(small_graph()).predict_proba()
    other = MowstClassifier(**{**QUICK, "random_state": 1}).fit(small_graph()).predict_proba()
    assert np.array_equal(fitted.predict_proba(), again)
    assert not np.array_equal(again, other)


CUTS = (7, 23)


def searching():
    return MowstModule(strong=["gcn", "sage", "gin"], norm=None, kept=1, hidden_channels=4, patience=25)


@pytest.fixture(scope="module")
def uncut(tmp_path_factory):
    """A search that ran to its end, and the folder of the checkpoints that it would have left if killed in an epoch."""
    folder = tmp_path_factory.mktemp("search")

    class Keep(L.Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.current_epoch in CUTS:
                shutil.copy(folder / "last.ckpt", folder / f"{trainer.current_epoch}.ckpt")

    torch.manual_seed(0)
    whole = searching()
    trainer(folder, Keep(), epochs=30).fit(whole, GraphDataModule(small_graph()))
    return whole, folder


@pytest.mark.parametrize("cut", CUTS)
def test_a_search_that_is_killed_resumes_to_the_same_bits(uncut, tmp_path, cut):
    whole, folder = uncut
    torch.manual_seed(99)
    rest = searching()
    trainer(tmp_path / "rest", epochs=30).fit(rest, GraphDataModule(small_graph()), ckpt_path=folder / f"{cut}.ckpt")
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, rest.model.state_dict()[name]), name
    assert whole.model.state()[0] == rest.model.state()[0]
    assert whole.plan.epochs == rest.plan.epochs
    assert len(whole.model.names) == 2
    loaded = MowstModule.load_from_checkpoint(tmp_path / "rest" / "last.ckpt")
    assert loaded.model.state()[0] == rest.model.state()[0]
    found = trainer(tmp_path / "test", epochs=1).test(loaded, GraphDataModule(small_graph()), verbose=False)
    assert 0 <= found[0]["test/accuracy"] <= 1


def test_a_finished_search_that_is_resumed_stays_as_it_is(tmp_path):
    def module():
        return MowstModule(strong=["gcn", "sage"], norm=None, kept=1, hidden_channels=4, patience=2)

    first, again = module(), module()
    trainer(tmp_path, epochs=40).fit(first, GraphDataModule(small_graph()))
    assert first.plan.finished
    trainer(tmp_path / "again", epochs=60).fit(again, GraphDataModule(small_graph()), ckpt_path=tmp_path / "last.ckpt")
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
    assert first.model.state()[0] == again.model.state()[0]


def test_a_search_needs_no_data_module():
    data = GraphDataModule(small_graph())
    data.setup("fit")
    module = MowstModule(strong=["gcn", "sage"], norm=None, in_channels=5, out_channels=3, patience=2)
    run = L.Trainer(
        accelerator="cpu", max_epochs=4, logger=False, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False,
    )  # fmt: skip
    run.fit(module, train_dataloaders=data.train_dataloader(), val_dataloaders=data.val_dataloader())
    assert module.model.fitted is not None


def test_a_file_with_a_gate_for_other_networks_is_refused(fitted):
    arguments, state, tensors = fitted.saved_arguments(), fitted.saved_state(), fitted.saved_tensors()
    broken = {**state, "mixture": {**state["mixture"], "names": ["weak", "nobody"]}}
    for wrong in (broken, {**state, "mixture": None}, {k: v for k, v in state.items() if k != "networks_"}):
        with pytest.raises(FileFormatError):
            MowstClassifier.from_saved(arguments, wrong, tensors, "file")
    missing = {key: value for key, value in tensors.items() if key != "mixture.costs"}
    with pytest.raises(FileFormatError, match="costs"):
        MowstClassifier.from_saved(arguments, state, missing, "file")


# ---- one network, and the paper's training ---------------------------------------------------------------------------


def test_a_network_alone_is_the_one_that_validates_best(tmp_path):
    data = small_graph()
    model = GNNClassifier(**QUICK).fit(data)
    table = model.selection_
    assert table["kept"].sum() == 1
    best = table[table["kept"]].iloc[0]
    assert best["score"] == table["score"].max()
    assert model.network_["network"] == best["network"]
    model.save(tmp_path / "gnn")
    assert np.array_equal(moeapps.load(tmp_path / "gnn").predict_proba(data), model.predict_proba(data))
    named = GNNClassifier("gcn", **QUICK).fit(data)
    assert named.selection_["norm"].tolist() == ["batch_norm", "layer_norm", None]
    assert set(named.selection_["network"]) == {"gcn"}


def test_the_papers_training_takes_the_strong_expert_that_validates_best(tmp_path):
    data = small_graph()
    model = MowstClassifier(strong=["gcn", "sage"], norm=None, variant="mowst_star", **QUICK).fit(data)
    assert type(model.model_).__name__ == "Mowst"
    assert model.network_["network"] in ("gcn", "sage")
    assert model.champion_ in ("mix", "strong", "weak")
    model.save(tmp_path / "model")
    assert np.array_equal(moeapps.load(tmp_path / "model").predict_proba(data), model.predict_proba(data))
    with pytest.raises(AttributeError, match="candidates_ are those of a mixture"):
        _ = model.candidates_
    again = model.set_params(strong="gcn").fit(data)
    with pytest.raises(AttributeError, match="only one network was trained"):
        _ = again.selection_


def test_layer_norm_is_that_of_each_nodes_row():
    data = small_graph()
    model = GNNClassifier("gcn", norm="layer_norm", **QUICK).fit(data)
    nodes = [1, 5]
    model.batch_size = 1  # pieces around one node: a norm over the whole graph would see other nodes
    np.testing.assert_allclose(model.predict_proba(data, nodes=nodes), model.predict_proba(data)[nodes], atol=1e-6)


# ---- edge weights ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["gcn", "sage", "gat", "gatv2", "sage_skip", "gat_jk"])
def test_an_edge_of_weight_two_counts_as_two_edges(network):
    torch.manual_seed(0)
    net = moeapps.graph.make_network(network, 5, 3).eval()
    x, index = torch.randn(5, 5), torch.tensor([[0, 1, 3, 4], [2, 2, 2, 0]])
    twice = torch.cat([index, index[:, 1:2]], dim=1)
    weight = torch.tensor([1.0, 2.0, 1.0, 1.0])
    torch.testing.assert_close(net(x, index, weight), net(x, twice), atol=1e-5, rtol=1e-5)


def test_the_portfolio_takes_edge_weights_and_refuses_negative_ones():
    data = graph_with(edge_weight=torch.rand(graph_with().num_edges) + 0.1)
    plain = MowstClassifier(**PLAIN).fit(graph_with()).predict_proba()
    assert not np.array_equal(MowstClassifier(**PLAIN).fit(data).predict_proba(), plain)
    negative = graph_with(edge_weight=torch.full((graph_with().num_edges,), -1.0))
    with pytest.raises(DataError, match="below 0|takes weights from 0 on"):
        MowstClassifier(strong=["sage", "gat"], **QUICK).fit(negative)


# ---- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strong": []}, "list of names"),
        ({"strong": ["gcn", 3]}, "list of names"),
        ({"strong": ["gcnn"]}, "did you mean 'gcn'"),
        ({"strong": [{"num_layers": 2}]}, "needs its name"),
        ({"strong": [{"network": "gcn", "depth": 2}]}, "no 'depth'"),
        ({"strong": [{"network": "gcn", "heads": 2}]}, "heads are those of gat"),
        ({"strong": [{"network": "gat", "heads": 3}]}, "cannot be divided by heads=3"),
        ({"strong": [{"network": "gcn", "input_dropout": 1.0}]}, "input_dropout must be"),
        ({"variant": "star"}, "variant must be"),
        ({"gate": "stack"}, "gate must be one of"),
        ({"kept": 0}, "kept must be"),
        ({"medium": "gcn"}, "medium='gcn' is for variant"),
        ({"confidence": "given"}, "confidence='given' is for variant"),
        ({"inference": "sample"}, "inference='sample' needs the confidence"),
        ({"inference": "threshold"}, "inference='threshold' needs the confidence"),
        ({"strong": "gcn", "gate": "mean", "norm": None}, "gate='mean' is for variant='mixture'"),
    ],
)
def test_settings_that_a_mixture_has_no_use_for_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        MowstClassifier(**{**QUICK, **arguments}).fit(small_graph())


def test_the_module_of_the_command_line_names_what_the_papers_training_needs():
    with pytest.raises(ConfigError, match="trains one strong expert: name it"):
        MowstModule(strong=["gcn", "sage"], variant="mowst_star")
    module = MowstModule(variant="mowst")  # a YAML file of 0.1
    assert (module.config.strong, module.config.norm, module.names) == ("gcn", "batch_norm", ("weak", "strong"))
