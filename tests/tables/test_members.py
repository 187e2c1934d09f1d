"""Members that share the blocks, waves of numbers, robust scaling, and what "auto" becomes."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch

import moeapps
from moeapps import MoEClassifier, MoERegressor
from moeapps.core.errors import ConfigError
from moeapps.core.tabledata.columns import ColumnEncoder
from moeapps.tables.defaults import automatic
from moeapps.tables.network import TabularMoE
from moeapps.tables.numbers import NumericEmbedding, PeriodicEmbedding

SMALL = {"dim": 8, "hidden_dim": 8, "num_experts": 2, "num_blocks": 1, "max_epochs": 3, "accelerator": "cpu"}


def table(n=120):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=n), "b": rng.exponential(size=n), "c": rng.choice(["x", "y"], n)})
    return frame, (frame.a + (frame.c == "x") > 0.5).to_numpy().astype(int)


def test_the_output_is_the_mean_of_members_that_differ():
    torch.manual_seed(0)
    network = TabularMoE([0.0], [1.0], [[]], [3], 2, dim=8, num_members=3, numeric_embedding="periodic").eval()
    numbers, codes = torch.randn(5, 1, dtype=torch.float64), torch.randint(3, (5, 1))
    members = network.member_outputs(numbers, codes)
    assert members.shape == (5, 3, 2)
    assert members.std(dim=1).min() > 1e-4
    torch.testing.assert_close(network(numbers, codes), members.mean(dim=1))


def test_a_copy_keeps_the_order_of_the_parameters():  # the optimiser's state of partial_fit goes by it
    network = TabularMoE([0.0], [1.0], [[]], [3], 2, dim=8, num_members=3, numeric_embedding="both")
    assert [name for name, _ in copy.deepcopy(network).named_parameters()] == [n for n, _ in network.named_parameters()]


def test_waves_are_what_the_formula_says():
    waves = PeriodicEmbedding(2, dim=3, num_frequencies=4)
    z = torch.randn(5, 2)
    with torch.no_grad():
        found = waves(z).reshape(5, 2, 3)
        for column in range(2):
            turns = 2 * np.pi * z[:, column, None] * waves.frequency[column] + waves.phase[column]
            expected = torch.relu(torch.cos(turns) @ waves.weight[column] + waves.bias[column])
            torch.testing.assert_close(found[:, column], expected)


def test_robust_scaling_is_bounded_and_ignores_outliers():
    values = np.append(np.arange(99.0), 1e9)[:, None]
    encoder = ColumnEncoder().fit(values, np.ones(100), scaling="robust")
    assert (encoder.mean, encoder.scale) == ([49.0], [50.0])
    embed = NumericEmbedding(encoder.mean, encoder.scale, encoder.edges, bins=False, scaling="robust")
    z = embed(torch.from_numpy(values))[:, 0]
    assert z[-1] == pytest.approx(3.0)
    assert z[49] == 0
    assert z[74] == pytest.approx(0.5 / np.sqrt(1 + 0.25 / 9))


def test_robust_scaling_of_a_weight_of_two_is_that_of_the_row_twice():
    values = np.random.default_rng(0).normal(size=(21, 1))
    weight = np.arange(21) % 3 + 1.0
    once = ColumnEncoder().fit(values, weight, scaling="robust")
    twice = ColumnEncoder().fit(
        np.repeat(values, weight.astype(int), axis=0), np.ones(int(weight.sum())), scaling="robust"
    )
    assert (once.mean, once.scale) == (twice.mean, twice.scale)


def test_robust_scaling_of_a_column_that_is_mostly_one_value():
    encoder = ColumnEncoder().fit(np.array([[0.0]] * 9 + [[8.0]]), np.ones(10), scaling="robust")
    assert (encoder.mean, encoder.scale) == ([0.0], [4.0])


@pytest.mark.parametrize("kind", ["piecewise", "periodic", "both", "linear"])
@pytest.mark.parametrize("estimator", [MoEClassifier, MoERegressor])
def test_saved_and_trained_on_with_every_embedding(estimator, kind, tmp_path):
    X, y = table()
    model = estimator(**SMALL, numeric_embedding=kind, num_members=2, random_state=0).fit(X, y)
    model.save(tmp_path / "model.safetensors")
    loaded = moeapps.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))
    before = loaded.model_.members.scale.clone()
    loaded.partial_fit(X, y)
    assert not torch.equal(loaded.model_.members.scale, before)


def test_auto_is_settled_at_fit_and_saved(tmp_path):
    X, y = table()
    model = MoEClassifier(**{**SMALL, "max_epochs": "auto"}, random_state=0).fit(X, y)
    assert model.auto_ == automatic(len(X))
    assert model.n_iter_ == model.auto_["max_epochs"]
    assert model.model_.num_members == model.auto_["num_members"]
    model.save(tmp_path / "model.safetensors")
    assert moeapps.load(tmp_path / "model.safetensors").auto_ == model.auto_


def test_auto_takes_fewer_members_and_epochs_for_more_rows_and_no_dropout_in_one_batch():
    small, middle, large = automatic(100), automatic(5_000), automatic(1_000_000)
    assert small["dropout"] == 0
    assert middle["num_members"] > large["num_members"] == 1
    assert middle["max_epochs"] > large["max_epochs"]


def test_expert_load_counts_every_member():
    X, y = table()
    model = MoEClassifier(**SMALL, num_members=3, random_state=0).fit(X, y)
    np.testing.assert_allclose(model.expert_load(X, y).sum(axis=1), 1.0, atol=1e-6)


def test_label_smoothing_keeps_probabilities_from_the_ends():
    X, y = table()
    settings = {**SMALL, "max_epochs": 60, "lr": 0.02}
    sharp, smooth = (MoEClassifier(**settings, label_smoothing=s, random_state=0).fit(X, y) for s in (0.0, 0.3))
    assert smooth.predict_proba(X).max() < sharp.predict_proba(X).max()


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("num_members", 0),
        ("dropout", "none"),
        ("max_epochs", 0),
        ("numeric_embedding", "plr"),
        ("scaling", "minmax"),
        ("label_smoothing", 1.0),
        ("warmup", 1.5),
    ],
)
def test_an_impossible_argument_is_refused_by_name(argument, value):
    with pytest.raises(ConfigError, match=argument):
        MoEClassifier(**{**SMALL, argument: value}).fit(*table())
