"""Chains of experts, mutual information and sizes in the tabular estimators: they train, are saved, and loaded."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_iris

import moeapps
from moeapps import MoEClassifier, MoERegressor
from moeapps.core import HeterogeneousExperts
from moeapps.core.errors import ConfigError

SMALL = {"dim": 16, "num_experts": 4, "num_blocks": 2, "max_epochs": 12, "lr": 0.01, "random_state": 0}
OPTIONS = {
    "chain": {"iterations": 2},
    "shared chain": {"iterations": 3, "share_router": True},
    "mutual information": {"balance_loss": "mutual_information", "balance_weight": 0.1},
    "sizes by name": {"expert_sizes": "geometric", "penalty_weight": 0.02},
    "sizes": {"expert_sizes": (4, 8, 8, 16), "iterations": 2},
}


@pytest.fixture(scope="module", params=OPTIONS, ids=lambda name: name.replace(" ", "_"))
def fitted(request):
    X, y = load_iris(return_X_y=True)
    return request.param, MoEClassifier(**SMALL, **OPTIONS[request.param]).fit(X, y)


def test_a_classifier_learns_with_it_and_comes_back_the_same(fitted, tmp_path):
    _, model = fitted
    X, y = load_iris(return_X_y=True)
    assert model.score(X, y) > 0.85
    model.save(tmp_path / "model.safetensors")
    twin = moeapps.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(twin.predict_proba(X), model.predict_proba(X))
    continued = clone(model).set_params(max_epochs=1).fit(X, y).partial_fit(X, y)
    assert np.isfinite(continued.predict_proba(X)).all()


def test_it_reaches_every_block(fitted):
    name, model = fitted
    blocks = model.model_.blocks
    given = OPTIONS[name]
    for block in blocks:
        assert len(block.routers) == given.get("iterations", 1)
        assert block.balance_loss == given.get("balance_loss", "load")
        if "expert_sizes" in given:
            assert isinstance(block.experts, HeterogeneousExperts)
            assert sum(block.experts.sizes) == (36 if name == "sizes" else 4 * model.hidden_dim)
        if "penalty_weight" in given:
            assert block.penalty_weight == given["penalty_weight"]
    X, y = load_iris(return_X_y=True)
    np.testing.assert_allclose(model.expert_load(X, y).sum(axis=1), 1.0)
    shared = all(a is b for a, b in zip(blocks[0].routers, blocks[1].routers, strict=True))
    assert shared == given.get("share_router", False)


def test_chains_are_pruned_and_merged_and_sizes_are_refused(fitted, tmp_path):
    name, model = fitted
    X, _ = load_iris(return_X_y=True)
    if "expert_sizes" in OPTIONS[name]:
        with pytest.raises(ConfigError, match="got HeterogeneousExperts"):
            model.prune(2, X)
        return
    if model.share_router:
        with pytest.raises(ConfigError, match="share a router"):
            model.merge(2, X)
        return
    for smaller in (model.prune(3, X), model.merge(2, X)):
        smaller.save(tmp_path / "model.safetensors")
        twin = moeapps.load(tmp_path / "model.safetensors")
        np.testing.assert_array_equal(twin.predict_proba(X), smaller.predict_proba(X))
        assert all(len(block.routers) == model.iterations for block in smaller.model_.blocks)


def test_merging_globally_keeps_the_mean_number_and_is_saved(tmp_path):
    X, y = load_iris(return_X_y=True)
    model = MoEClassifier(**{**SMALL, "num_experts": 6}).fit(X, y)
    with torch.no_grad():
        model.model_.blocks[1].router.weight[0] *= 30
    merged = model.merge(3, X, globally=True)
    sizes = [len(groups) for groups in merged.merged_]
    assert sum(sizes) <= 6
    assert sizes == [block.num_experts for block in merged.model_.blocks]
    merged.save(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(moeapps.load(tmp_path / "model.safetensors").predict(X), merged.predict(X))


def test_a_regressor_takes_them_together():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(120, 3))
    y = np.sin(X[:, 0]) + X[:, 1]
    options = {"iterations": 2, "balance_loss": "mutual_information", "expert_sizes": "arithmetic"}
    model = MoERegressor(**{**SMALL, "max_epochs": 40}, **options).fit(X, y)
    assert model.score(X, y) > 0.7
    logged = {column.rpartition("/")[2] for column in model.history_.columns}
    assert {"balance", "penalty"} <= logged


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": 0}, "iterations must be a whole number"),
        ({"balance_loss": "mi"}, "balance_loss must be"),
        ({"expert_sizes": "big"}, "expert_sizes must be one of arithmetic, geometric"),
        ({"expert_sizes": [3, 3]}, "a width for each of the 4 experts, got 2"),
        ({"penalty_weight": -1.0}, "penalty_weight must be"),
        ({"balance_loss": "mutual_information", "router": "shared"}, "has none: leave it 'load'"),
    ],
)
def test_impossible_options_are_refused_by_name(options, message):
    X, y = load_iris(return_X_y=True)
    with pytest.raises(ConfigError, match=message):
        MoEClassifier(**{**SMALL, "max_epochs": 1}, **options).fit(X, y)
