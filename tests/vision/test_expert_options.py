"""Chains of experts, mutual information and sizes in the classifier of images: they train, are saved, and loaded."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

import moeapps
from moeapps.core import HeterogeneousExperts
from moeapps.core.errors import ConfigError
from moeapps.vision import WideNetClassifier

OPTIONS = {
    "chain": {"iterations": 2},
    "mutual_information": {"balance_loss": "mutual_information", "router": "topp"},
    "sizes": {"expert_sizes": "geometric", "options": {"penalty_weight": 0.02}},
    "all_in_vit_moe": {
        "model": "vit_moe", "iterations": 2, "balance_loss": "mutual_information", "expert_sizes": (8, 8, 16, 32),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_a_classifier_trains_with_it_and_comes_back_the_same(name, tmp_path):
    X, y = load_digits().images[:96], load_digits().target[:96]
    model = WideNetClassifier(
        embed_dim=16, depth=2, num_heads=2, patch_size=4, max_epochs=1, validation_fraction=0, random_state=0,
        **OPTIONS[name],
    ).fit(X, y)  # fmt: skip
    logged = {column.rpartition("/")[2] for column in model.history_.columns}
    assert ("penalty" in logged) == ("expert_sizes" in OPTIONS[name])
    if "balance_loss" in OPTIONS[name]:
        (balance,) = [column for column in model.history_.columns if column.endswith("balance")]
        assert model.history_[balance].iloc[-1] < 0
    blocks = [layer for layer in model.model_.network.modules() if hasattr(layer, "routers")]
    assert all(len(layer.routers) == model.iterations for layer in blocks)
    if model.expert_sizes is not None:
        assert all(isinstance(layer.experts, HeterogeneousExperts) for layer in blocks)
    model.save(tmp_path / "model.safetensors")
    twin = moeapps.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(twin.predict_proba(X), model.predict_proba(X))
    calls = 2 if model.model == "widenet" else 1  # blocks with experts
    for layer in range(calls):
        load = model.expert_load(X, y, layer=layer)
        np.testing.assert_allclose(load.sum(axis=1), 1.0)
        assert model.patch_experts(X, layer=layer).shape == (96, 2, 2)
    with pytest.raises(ConfigError, match=f"layer must be below the {calls} blocks"):
        model.expert_load(X, y, layer=calls)
