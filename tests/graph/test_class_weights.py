"""Weights of classes: what they mean for whole graphs, what is refused, and what a checkpoint keeps."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch_geometric.data import Data

import moeapps
from moeapps.core.errors import ConfigError, DataError, NonFiniteError
from moeapps.graph import GNNModule, GraphDataModule, GraphExpertsModule, GraphSetData, MowstGraphClassifier
from moeapps.graph.class_weights import weighted_cross_entropy
from tests.graph.helpers import small_graph, trainer

QUICK = {
    "strong": [], "hidden_channels": 8, "norm": None, "dropout": 0.0, "lr": 0.05, "max_epochs": 12, "batch_size": 200,
    "monitor": "loss", "accelerator": "cpu", "random_state": 0,
}  # fmt: skip


def rare_graphs(count: int = 160) -> list[Data]:
    """Pairs of nodes, one in ten of a rare class whose features are a little larger."""
    rng = np.random.default_rng(0)
    graphs = []
    for number in range(count):
        label = int(number % 10 == 0)
        x = torch.from_numpy(rng.normal(size=(2, 2)) + 0.7 * label).float()
        graphs.append(Data(x=x, edge_index=torch.tensor([[0, 1], [1, 0]]), y=torch.tensor([label])))
    return graphs


NAMES = np.where(np.arange(160) % 10 == 0, "rare", "common")


@pytest.fixture(scope="module")
def balanced():
    return MowstGraphClassifier(class_weight="balanced", **QUICK).fit(rare_graphs(), NAMES)


def test_balanced_weights_find_a_rare_class_of_graphs(balanced):
    plain = MowstGraphClassifier(**QUICK).fit(rare_graphs(), NAMES)
    assert (plain.predict(rare_graphs()) == "rare").sum() == 0
    assert (balanced.predict(rare_graphs()) == "rare")[NAMES == "rare"].mean() > 0.5


def test_weights_by_label_and_in_the_order_of_the_classes_are_the_same():
    by_label, in_order = (
        MowstGraphClassifier(class_weight=weight, **{**QUICK, "max_epochs": 2}).fit(rare_graphs(), NAMES)
        for weight in ({"rare": 9.0}, [1.0, 9.0])
    )
    np.testing.assert_array_equal(by_label.predict_proba(rare_graphs()), in_order.predict_proba(rare_graphs()))


def test_a_saved_model_keeps_its_class_weights(balanced, tmp_path):
    balanced.save(tmp_path / "model")
    loaded = moeapps.load(tmp_path / "model")
    assert loaded.class_weight == "balanced"
    np.testing.assert_array_equal(loaded.predict_proba(rare_graphs()), balanced.predict_proba(rare_graphs()))


@pytest.mark.parametrize(
    ("weight", "error", "message"),
    [
        (
            "even",
            ConfigError,
            "class_weight must be 'balanced' or one number >= 0 for each of the 2 classes, got 'even'",
        ),
        (2.0, ConfigError, "class_weight must be 'balanced' or one number .* got 2.0"),
        ([1.0, -1.0], ConfigError, "class_weight must be .* got .1.0, -1.0"),
        ([1.0, 2.0, 3.0], ConfigError, "class_weight must be .* for each of the 2 classes"),
        ({"rare": "much"}, ConfigError, "class_weight must be .* got .1.0, 'much'"),
        ({"rar": 2.0}, DataError, r"class_weight names classes that y does not have: \['rar'\]"),
        ({"rare": 0.0, "common": 0.0}, NonFiniteError, "one with a class_weight above 0"),
    ],
    ids=str,
)
def test_impossible_class_weights_are_refused(weight, error, message):
    with pytest.raises(error, match=message):
        MowstGraphClassifier(class_weight=weight, **{**QUICK, "max_epochs": 1}).fit(rare_graphs(), NAMES)


@pytest.mark.parametrize(
    ("module", "data"),
    [
        (lambda: GNNModule("gcn", hidden_channels=4, class_weight="balanced"), lambda: GraphDataModule(small_graph())),
        (
            lambda: GraphExpertsModule([], hidden_channels=4, class_weight="balanced"),
            lambda: GraphSetData(rare_graphs()),
        ),
    ],
    ids=["nodes", "graphs"],
)
def test_a_checkpoint_of_balanced_classes_becomes_an_estimator_without_its_data(module, data, tmp_path):
    trainer(tmp_path, epochs=1).fit(module(), data())
    assert moeapps.load(tmp_path / "last.ckpt").class_weight == "balanced"


def test_balanced_classes_need_the_data_module_in_training(tmp_path):
    data, module = (
        GraphSetData(rare_graphs()),
        GraphExpertsModule([], in_channels=2, out_channels=2, class_weight="balanced"),
    )
    data.setup()
    with pytest.raises(ConfigError, match="class_weight='balanced' needs a data module"):
        trainer(tmp_path, epochs=1).fit(module, data.train_dataloader(), data.val_dataloader())


def test_the_loss_is_pytorchs_weighted_mean_and_0_where_no_row_has_a_weight():
    logits, y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2])
    weight = torch.tensor([0.0, 1.0, 3.0])
    torch.testing.assert_close(weighted_cross_entropy(logits, y, weight), F.cross_entropy(logits, y, weight=weight))
    torch.testing.assert_close(weighted_cross_entropy(logits, y, None), F.cross_entropy(logits, y))
    assert weighted_cross_entropy(logits[:1], y[:1], weight) == 0
