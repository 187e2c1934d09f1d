"""Mini-batches: what is drawn, and that training in them works, resumes, and fits the whole graph's checkpoint."""

import lightning as L
import pytest
import torch

from moeapps.core.errors import ConfigError, DataError
from moeapps.graph import GNNClassifier, GNNModule, GraphDataModule, MowstClassifier, MowstModule, load_cora
from moeapps.graph.edges import Edges
from moeapps.graph.experts import node_expert
from moeapps.graph.networks import make_network
from moeapps.graph.sampling import COMPILED, sample_neighborhood
from tests.graph.helpers import small_graph, trainer

SAMPLERS = [
    pytest.param(False, id="plain torch"),
    pytest.param(
        True,
        id="compiled",
        marks=pytest.mark.skipif(not COMPILED, reason="PyG's compiled sampler (pyg-lib or torch-sparse) is not there"),
    ),
]


def star(leaves=100):
    """Node 0 hears from all others, each of which hears from node 1."""
    others = torch.arange(1, leaves + 1)
    index = torch.cat([torch.stack([others, 0 * others]), torch.stack([0 * others + 1, others])], dim=1)
    return Edges(index, None, leaves + 1)


@pytest.mark.parametrize("compiled", SAMPLERS)
def test_no_more_neighbours_are_drawn_than_asked_for_and_none_twice(compiled):
    edges, seeds = star(), torch.tensor([0, 5])
    drawn = sample_neighborhood(edges, seeds, [10, 2], compiled=compiled)
    assert drawn.nodes[:2].tolist() == [0, 5]
    assert drawn.nodes_per_hop[0] == 2
    assert sum(drawn.nodes_per_hop) == len(drawn.nodes) == len(drawn.nodes.unique())
    source, target = drawn.nodes[drawn.edge_index]
    into_center = source[target == 0]
    assert len(into_center) == len(into_center.unique()) == 10
    assert (source[target == 5] == 1).all()
    assert bool((drawn.edge_index[1].diff() >= 0).all())
    original = set(map(tuple, edges.index.T.tolist()))
    assert set(zip(source.tolist(), target.tolist(), strict=True)) <= original


@pytest.mark.parametrize("compiled", SAMPLERS)
def test_every_neighbour_has_the_same_chance_and_the_seed_decides(compiled):
    edges = star(20)
    counts = torch.zeros(21)
    torch.manual_seed(0)
    for _ in range(400):
        drawn = sample_neighborhood(edges, torch.tensor([0]), [5], compiled=compiled)
        counts[drawn.nodes[1:]] += 1
    expected = 400 * 5 / 20
    assert float((counts[1:] - expected).abs().max()) < 5 * expected**0.5
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(sample_neighborhood(edges, torch.tensor([0]), [5], compiled=compiled).nodes)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("compiled", SAMPLERS)
def test_a_weighted_sum_over_drawn_neighbours_has_the_right_mean(compiled):
    edges = Edges(star(20).index, torch.rand(40) + 0.5, 21)
    x = torch.randn(21, 3)
    network = make_network("gcn", 3, 2, num_layers=1).eval()
    whole = node_expert(network).run(x, edges)[0].detach()
    torch.manual_seed(0)
    sums = []
    for _ in range(400):
        drawn = sample_neighborhood(edges, torch.tensor([0]), [5], node_expert(network).edge_form, compiled=compiled)
        sums.append(node_expert(network).run(x[drawn.nodes], drawn)[0].detach())
    found = torch.stack(sums)
    error = (found.mean(0) - whole).abs() / (found.std(0) / 400**0.5)
    assert float(error.max()) < 4


@pytest.mark.parametrize("compiled", SAMPLERS)
@pytest.mark.parametrize("name", ["gcn", "sage", "gat", "gin", "gcn_jk"])
def test_drawing_all_neighbours_gives_the_whole_graph(name, compiled):
    edges = Edges(torch.randint(0, 40, (2, 150)), None, 40)
    x, seeds = torch.randn(40, 6), torch.randperm(40)[:9]
    network = make_network(name, 6, 3, hidden_channels=8).eval()
    drawn = sample_neighborhood(edges, seeds, [1000, 1000], node_expert(network).edge_form, compiled=compiled)
    expected = node_expert(network).run(x, edges)[seeds]
    torch.testing.assert_close(node_expert(network).run(x[drawn.nodes], drawn), expected, atol=1e-5, rtol=1e-5)


def small() -> GraphDataModule:
    return GraphDataModule(small_graph(), batch_size=6, num_neighbors=[2, 2], seed=1)


def mowst(**kwargs):
    return MowstModule(
        **{"strong": "gcn", "hidden_channels": 8, "patience": 2, "round_patience": 1, "norm": None, **kwargs}
    )


@pytest.mark.parametrize("make", [GNNModule, mowst], ids=["one network", "mowst"])
def test_a_training_in_mini_batches_that_was_killed_resumes_to_the_same_bits(tmp_path, make):
    whole = make()
    torch.manual_seed(0)
    trainer(tmp_path / "whole", epochs=12).fit(whole, small())

    class Kill(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.current_epoch == 6 and batch_idx == 2:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")
                raise KeyError("killed")

    torch.manual_seed(0)
    with pytest.raises(KeyError):
        trainer(tmp_path / "cut", Kill(), epochs=12).fit(make(), small())
    torch.manual_seed(99)
    rest = make()
    trainer(tmp_path / "rest", epochs=12).fit(rest, small(), ckpt_path=tmp_path / "middle.ckpt")
    for (name, ours), reference in zip(rest.state_dict().items(), whole.state_dict().values(), strict=True):
        assert torch.equal(ours.nan_to_num(), reference.nan_to_num()), name


def test_one_checkpoint_fits_mini_batches_and_the_whole_graph(tmp_path):
    learned = mowst()
    trainer(tmp_path, epochs=6).fit(learned, small())
    results = []
    for data in (small(), GraphDataModule(small_graph())):
        found = trainer(tmp_path / "test", epochs=1).test(
            mowst(), data, ckpt_path=tmp_path / "last.ckpt", verbose=False
        )
        results.append(found[0])
    assert results[0]["test/accuracy"] == pytest.approx(results[1]["test/accuracy"])
    assert results[0]["test/loss"] == pytest.approx(results[1]["test/loss"], rel=1e-4)
    assert {"test/macro_f1", "test/auc"} <= set(results[0])


@pytest.mark.parametrize("kind", [GNNClassifier, MowstClassifier])
def test_mini_batches_learn_cora(kind):
    cora = load_cora()
    quick = {"norm": None, "max_epochs": 15, "patience": 5, "random_state": 0}
    model = kind("gcn", batch_size=70, num_neighbors=[5, 5], **quick).fit(cora)
    assert model.score(cora) > 0.7
    whole = model.predict_proba(cora)
    model.batch_size = None
    torch.testing.assert_close(torch.tensor(model.predict_proba(cora)), torch.tensor(whole), atol=1e-5, rtol=1e-4)


def test_wrong_settings_of_mini_batches_are_named(tmp_path):
    cora = load_cora()
    with pytest.raises(ConfigError, match="batch_size must be"):
        GraphDataModule(cora, batch_size=0)
    with pytest.raises(ConfigError, match="num_neighbors is for mini-batches"):
        GraphDataModule(cora, num_neighbors=[5, 5])
    for wrong in ([5], [5, 0], [5, 2.5]):
        with pytest.raises(ConfigError, match="num_neighbors must be one whole number per layer"):
            trainer(tmp_path, epochs=1).fit(GNNModule(), GraphDataModule(cora, batch_size=64, num_neighbors=wrong))
    del cora.test_mask
    with pytest.raises(DataError, match="nothing to test on"):
        trainer(tmp_path, epochs=1).test(GNNModule(), GraphDataModule(cora, batch_size=64), verbose=False)
