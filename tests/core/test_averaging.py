"""The moving average of the weights: its formula, and that it is what is validated and kept."""

import copy

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.utils.data import DataLoader, TensorDataset

from moeapps import MoEClassifier
from moeapps.core.averaging import RisingAverage
from moeapps.core.callbacks import BestWeights
from moeapps.core.errors import ConfigError


class Line(L.LightningModule):
    """Linear regression that notes its weight after each step, and the weight that each validation saw."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(1, 1)
        self.register_buffer("steps", torch.zeros(()))
        self.taken, self.validated = [], []

    def training_step(self, batch, batch_idx):
        x, y = batch
        return (self.layer(x) - y).square().mean()

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.taken.append(self.layer.weight.item())

    def on_before_zero_grad(self, optimizer):
        self.steps += 1

    def validation_step(self, batch, batch_idx):
        self.validated.append(self.layer.weight.item())
        x, y = batch
        self.log("val/loss", (self.layer(x) - y).square().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.3)


def trained(*callbacks, epochs=6):
    x = torch.linspace(-1, 1, 24)[:, None]
    rows = TensorDataset(x, 3 * x + torch.linspace(0, 1, 24)[:, None].sin())
    module = Line()
    trainer = L.Trainer(
        max_epochs=epochs,
        callbacks=list(callbacks),
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, DataLoader(rows, batch_size=6), DataLoader(rows, batch_size=24))
    return module


def averages(weights, decay):
    found = [weights[0]]
    for n, weight in enumerate(weights[1:], start=1):
        d = min(decay, (1 + n) / (10 + n))
        found.append(d * found[-1] + (1 - d) * weight)
    return found


@pytest.mark.parametrize("decay", [0.3, 0.98])
def test_the_average_follows_the_formula_and_is_what_is_validated_and_kept(decay):
    module = trained(RisingAverage(decay))
    expected = averages(module.taken, decay)
    np.testing.assert_allclose(module.validated, expected[3::4], rtol=1e-5)  # after each epoch of four steps
    assert module.layer.weight.item() == pytest.approx(expected[-1], rel=1e-5)
    assert module.steps > 20  # a buffer is copied


@pytest.mark.parametrize("average", [lambda: RisingAverage(0.9), lambda: EMAWeightAveraging(decay=0.9)])
def test_the_best_weights_are_those_of_the_average(average):
    best = BestWeights("val/loss")
    module = trained(average(), best)
    assert best.best_epoch is not None
    assert module.layer.weight.item() == pytest.approx(module.validated[best.best_epoch], rel=1e-6)
    plain = BestWeights("val/loss")
    module = trained(plain)
    assert module.layer.weight.item() == pytest.approx(module.taken[4 * plain.best_epoch + 3], rel=1e-6)


@pytest.mark.parametrize("decay", [1.0, -0.1, "much"])
def test_an_impossible_decay_is_refused(decay):
    with pytest.raises(ConfigError, match="ema_decay must be"):
        MoEClassifier(ema_decay=decay).fit([[0.0], [1.0]], [0, 1])


def test_a_classifier_averages_in_fit_and_goes_on_without():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3))
    y = (x[:, 0] + 0.5 * rng.normal(size=400) > 0).astype(int)
    models = [
        MoEClassifier(dim=16, num_experts=2, max_epochs=3, ema_decay=decay, random_state=0).fit(x, y)
        for decay in (0.0, 0.98)
    ]
    losses = [model.history_["val/loss"].min() for model in models]
    assert losses[0] != losses[1]
    twins = [copy.deepcopy(models[1]).set_params(ema_decay=decay).partial_fit(x[:50], y[:50]) for decay in (0.0, 0.98)]
    assert (twins[0].predict_proba(x) == twins[1].predict_proba(x)).all()
    assert (twins[0].predict_proba(x) != models[1].predict_proba(x)).any()
