"""A checkpoint of each module becomes an estimator that predicts what the module predicts."""

import os
import warnings

import lightning as L
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier
from torch_geometric.data import Data
from torch_geometric.utils import to_undirected

import moeapps
from moeapps.cli.main import main
from moeapps.core.callbacks import LastCheckpoint
from moeapps.core.checkpoint import AtomicCheckpointIO
from moeapps.core.errors import DataError, FileFormatError
from moeapps.graph import (
    EgoNetData,
    GNNModule,
    GraphDataModule,
    GraphExpertsModule,
    LinkData,
    LinkModule,
    MowstModule,
    ego_nets,
    load_cora,
)  # fmt: skip
from moeapps.serve.services import open_service
from moeapps.tables import MixtureModule, TableData
from moeapps.vision import DiffusionModule, ImageModule, PublicImageData


def train(module, data, folder, epochs=2):
    """Train a little and return the last checkpoint."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = L.Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            callbacks=[LastCheckpoint(str(folder))], plugins=[AtomicCheckpointIO()], num_sanity_val_steps=0,
            default_root_dir=str(folder), limit_train_batches=2, limit_val_batches=2,
        )  # fmt: skip
        trainer.fit(module, datamodule=data)
    return folder / "last.ckpt"


def graph(weighted=False):
    """60 nodes in two groups, whose labels are text."""
    rng = np.random.default_rng(0)
    y = np.repeat(["cat", "dog"], 30)
    x = torch.from_numpy(rng.normal(size=(60, 4)) + (y == "dog")[:, None]).float()
    edges = to_undirected(torch.from_numpy(rng.integers(0, 60, size=(2, 150))))
    made = Data(x=x, edge_index=edges)
    made.y = y
    if weighted:
        made.edge_weight = torch.ones(edges.shape[1]) * 2
    return made


def saved_again(path, folder):
    """The estimator of a checkpoint, and the same after export."""
    target = folder / "model.safetensors"
    assert main(["export", str(path), str(target)]) == 0
    return moeapps.load(path), moeapps.load(target)


NODES = {
    "mixture": lambda: MowstModule(strong=["gcn", "sage"], norm=None, hidden_channels=8, patience=2, gate="constant"),
    "mowst_star": lambda: MowstModule(strong="gcn", hidden_channels=8, patience=1, variant="mowst_star"),
    "best": lambda: MowstModule(strong=["gcn", "sage"], norm=None, hidden_channels=8, variant="best"),
    "gnn": lambda: GNNModule("sage", hidden_channels=8),
}


@pytest.mark.parametrize("kind", NODES)
def test_a_node_classifier_predicts_as_its_module(kind, tmp_path):
    data = GraphDataModule(graph())
    module = NODES[kind]()
    path = train(module, data, tmp_path, epochs=4)
    with torch.no_grad():
        (batch,) = list(data.predict_dataloader())
        wanted = module.eval().log_probs(batch).exp().numpy()
    loaded, exported = saved_again(path, tmp_path)
    assert loaded.classes_.tolist() == ["cat", "dog"]
    np.testing.assert_allclose(loaded.predict_proba(graph()), wanted, atol=1e-6)
    np.testing.assert_array_equal(exported.predict_proba(graph()), loaded.predict_proba(graph()))
    assert open_service(path).kind == "graph"


@pytest.mark.parametrize("weighted", [False, True])
def test_a_link_predictor_predicts_as_its_module(weighted, tmp_path):
    data = LinkData(graph(weighted), test_fraction=0.2)
    module = LinkModule("gcn", hidden_channels=8, gate="constant")
    path = train(module, data, tmp_path)
    part = data.part("test")
    found = module.eval().predict_step(part, 0)
    loaded, exported = saved_again(path, tmp_path)
    seen = Data(x=part.x, edge_index=part.edges.index, edge_weight=part.edges.weight)
    pairs = np.stack([found["source"], found["target"]], axis=1)
    np.testing.assert_allclose(loaded.predict_proba(pairs, seen)[:, 1], found["probability"], atol=1e-6)
    np.testing.assert_array_equal(exported.predict_proba(pairs, seen), loaded.predict_proba(pairs, seen))


def test_a_graph_classifier_predicts_as_its_module(tmp_path):
    data = EgoNetData(graph(), most=40)
    module = GraphExpertsModule("gcn", hidden_channels=8, gate="constant")
    path = train(module, data, tmp_path)
    batch = next(iter(data.val_dataloader()))
    found = module.eval().predict_step(batch, 0)
    loaded, exported = saved_again(path, tmp_path)
    graphs = data.parts["val"][: len(found["prediction"])]
    probabilities = loaded.predict_proba(graphs)
    np.testing.assert_allclose(probabilities[:, 0], found[f"probability_{loaded.classes_[0]}"], atol=1e-6)
    np.testing.assert_array_equal(exported.predict_proba(graphs), loaded.predict_proba(graphs))


def test_features_that_the_data_normalised_are_given_to_the_estimator_as_they_are(tmp_path):
    data = GraphDataModule(graph(), normalize_features=True)
    module = GNNModule("sage", hidden_channels=8)
    path = train(module, data, tmp_path)
    with torch.no_grad():
        (batch,) = list(data.predict_dataloader())
        wanted = module.eval().log_probs(batch).exp().numpy()
    loaded, exported = saved_again(path, tmp_path)
    np.testing.assert_allclose(loaded.predict_proba(graph()), wanted, atol=1e-5)
    np.testing.assert_allclose(loaded.predict_proba(data.prepared()), wanted, atol=1e-5)  # normalised already
    np.testing.assert_array_equal(exported.predict_proba(graph()), loaded.predict_proba(graph()))
    assert not loaded.fit(graph()).normalized_
    other = GNNModule.load_from_checkpoint(path, weights_only=True)
    with pytest.raises(DataError, match="give the data normalize_features=True"):
        train(other, GraphDataModule(graph()), tmp_path / "other")


def test_links_and_neighbourhoods_of_normalised_features_are_predicted_from_raw_ones(tmp_path):
    data = LinkData(graph(), test_fraction=0.2, normalize_features=True)
    module = LinkModule("gcn", hidden_channels=8, gate="constant")
    loaded, exported = saved_again(train(module, data, tmp_path), tmp_path)
    part = data.part("test")
    seen, pairs = Data(x=graph().x, edge_index=part.edges.index), part.pairs.T
    wanted = module.eval().predict_step(part, 0)["probability"]
    np.testing.assert_allclose(loaded.predict_proba(pairs, seen)[:, 1], wanted, atol=1e-5)
    np.testing.assert_array_equal(exported.predict_proba(pairs, seen), loaded.predict_proba(pairs, seen))
    data = EgoNetData("Cora", most=30)  # a public graph whose features are usually normalised
    module = GraphExpertsModule("gcn", hidden_channels=8, gate="constant")
    loaded, _ = saved_again(train(module, data, tmp_path / "graphs"), tmp_path)
    raw = loaded.predict_proba(ego_nets(load_cora(), most=30))
    np.testing.assert_allclose(raw, loaded.predict_proba(data.parts["all"]), atol=1e-5)


@pytest.mark.parametrize(
    ("model", "options"),
    [("widenet", {"embed_dim": 16, "depth": 2}), ("vit", {"embed_dim": 16, "depth": 1, "num_heads": 2})],
)
def test_an_image_classifier_predicts_as_its_module(model, options, tmp_path):
    data = PublicImageData("digits", batch_size=32)
    module = ImageModule(model=model, options={"num_heads": 2, **options})
    path = train(module, data, tmp_path, epochs=1)
    images = next(iter(data.val_dataloader()))[0][:8]
    with torch.no_grad():
        wanted = module.eval()(images).double().softmax(1).numpy()
    loaded, exported = saved_again(path, tmp_path)
    np.testing.assert_allclose(loaded.predict_proba(images.numpy()), wanted, atol=1e-6)
    np.testing.assert_array_equal(exported.predict_proba(images.numpy()), loaded.predict_proba(images.numpy()))
    assert open_service(path).kind == "images"


@pytest.mark.parametrize("model", ["switch_dit", "dit"])
def test_a_generator_samples_as_its_module(model, tmp_path):
    data = PublicImageData("digits", batch_size=32)
    module = DiffusionModule(model=model, options={"dim": 16, "depth": 1, "num_heads": 2}, timesteps=20)
    path = train(module, data, tmp_path, epochs=1)
    kept = DiffusionModule.load_from_checkpoint(path, weights_only=True)
    wanted = kept.sample(torch.tensor([3, 3]), steps=3, seed=1)[:, 0].numpy()
    loaded, exported = saved_again(path, tmp_path)
    np.testing.assert_allclose(loaded.sample(2, "3", steps=3, seed=1), wanted, atol=1e-6)
    np.testing.assert_array_equal(exported.sample(2, "3", steps=3, seed=1), loaded.sample(2, "3", steps=3, seed=1))
    assert open_service(path).kind == "generator"


def test_a_mixture_of_estimators_predicts_as_its_module(tmp_path):
    data = TableData(name="iris", batch_size=64)
    experts = {"linear": LogisticRegression(max_iter=200), "tree": DecisionTreeClassifier(max_depth=2)}
    module = MixtureModule(experts=experts, cv=2)
    path = train(module, data, tmp_path)
    rows = data.part("val").frame
    loaded, exported = saved_again(path, tmp_path)
    np.testing.assert_allclose(loaded.predict_proba(rows), module.to_estimator(data).predict_proba(rows))
    np.testing.assert_array_equal(exported.predict_proba(rows), loaded.predict_proba(rows))
    assert open_service(path).kind == "table"


class Mean(torch.nn.Module):
    """A network of the user: each node's own features."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 2)

    def forward(self, x, edge_index):
        return self.linear(x)


def test_a_module_of_ones_own_is_asked_for_by_name(tmp_path):
    data = GraphDataModule(graph())
    module = GNNModule(Mean())
    path = train(module, data, tmp_path)
    with pytest.raises(FileFormatError, match=r"a module of your own as network.*network=\.\.\."):
        moeapps.load(path)
    with torch.no_grad():
        wanted = module.eval().log_probs(next(iter(data.predict_dataloader()))).exp()
    np.testing.assert_allclose(moeapps.load(path, network=Mean()).predict_proba(graph()), wanted, atol=1e-6)


class Derived(GNNModule):
    """A module of the user."""


def test_a_module_that_moeapps_does_not_know_is_named(tmp_path):
    path = train(Derived("gcn"), GraphDataModule(graph()), tmp_path)
    with pytest.raises(FileFormatError, match="test_trained.Derived, for which moeapps has no estimator"):
        moeapps.load(path)


def test_a_mixture_that_was_stopped_early_is_not_exported(tmp_path, capsys):
    path = train(LinkModule("gcn", hidden_channels=8, gate="mean"), LinkData(graph()), tmp_path)
    content = AtomicCheckpointIO().load_checkpoint(path)
    del content["mixture"]
    AtomicCheckpointIO().save_checkpoint(content, path)
    assert main(["export", str(path), str(tmp_path / "model.safetensors")]) == 2
    assert "not trained to the end" in capsys.readouterr().err
    assert not (tmp_path / "model.safetensors").exists()


def test_a_checkpoint_of_something_else_is_not_called_damaged(tmp_path):
    AtomicCheckpointIO().save_checkpoint({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(FileFormatError, match="is a checkpoint, but not one of a training of moeapps"):
        open_service(tmp_path / "other.ckpt")


def test_a_folder_of_several_runs_is_refused_with_the_newest_one(tmp_path, capsys):
    for number in range(2):
        (tmp_path / f"version_{number}" / "checkpoints").mkdir(parents=True)
        (tmp_path / f"version_{number}" / "checkpoints" / "last.ckpt").touch()
        os.utime(tmp_path / f"version_{number}", (number, number))
    assert main(["export", str(tmp_path), str(tmp_path / "a.safetensors")]) == 2
    assert f"holds several runs: name one, such as {tmp_path / 'version_1'}, the newest" in capsys.readouterr().err


def test_what_cannot_be_exported_is_refused(tmp_path, capsys):
    (tmp_path / "note.txt").write_text("no model at all")
    assert main(["export", str(tmp_path / "note.txt"), str(tmp_path / "a.safetensors")]) == 2
    assert "is not a checkpoint of moeapps fit" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "note.txt"), str(tmp_path / "a.onnx")]) == 2
    assert "must end in .safetensors" in capsys.readouterr().err
