"""Surgery on fitted image models: they predict afterwards, with fewer experts, smaller ones, or a dense layer."""

import copy

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from moeapps.core.statistics import routed_layers
from moeapps.core.surgery import compress_experts, measure_use, merge_experts, merge_to_dense, prune_experts, regroup
from moeapps.vision import WideNetClassifier


@pytest.fixture(params=["wide", "vit_moe"])
def fitted(request) -> WideNetClassifier:
    model = copy.deepcopy(request.getfixturevalue(request.param))
    for layer in routed_layers(model.model_).values():
        layer.eval_capacity_factor = 1.5
    return model


def images() -> torch.Tensor:
    return torch.from_numpy(load_digits().images[:32, None]).float()


def regrouped(network, use):
    network = copy.deepcopy(network)
    for name, layer in routed_layers(network).items():
        parent, _, last = name.rpartition(".")
        setattr(network.get_submodule(parent), last, regroup(layer, [[0, 2], [1, 3]], use[name].weight))
    return network


def dense(network, use):
    network = copy.deepcopy(network)
    for name, layer in routed_layers(network).items():
        parent, _, last = name.rpartition(".")
        setattr(network.get_submodule(parent), last, merge_to_dense(layer, use[name])[0])
    return network


SURGERY = {
    "prune": (lambda network, use: prune_experts(network, 2, use)[0], 2),
    "merge": (lambda network, use: merge_experts(network, 3, use)[0], 3),
    "compress": (lambda network, use: compress_experts(network, 4)[0], 4),
    "regroup": (regrouped, 2),
    "dense": (dense, None),
}


@pytest.mark.parametrize("operation", SURGERY)
def test_a_model_predicts_after_surgery(fitted, operation):
    operate, experts = SURGERY[operation]
    model, module = fitted, fitted.model_
    use = measure_use(module.network, [module.prepare(images())])
    before = sum(parameter.numel() for parameter in module.network.parameters())
    module.network = operate(module.network, use)
    probabilities = model.predict_proba(images())
    assert probabilities.shape == (32, 10)
    assert np.isfinite(probabilities).all()
    assert sum(parameter.numel() for parameter in module.network.parameters()) < before
    layers = routed_layers(module)
    assert [layer.num_experts for layer in layers.values()] == [experts] * (0 if experts is None else len(use))
    for layer in layers.values():
        assert layer.eval_capacity_factor == 1.5
    if experts is not None:
        assert model.patch_experts(images()).max() < experts
        assert len(model.expert_load(images(), layer=0).columns) == experts


def test_the_use_of_shared_experts_is_measured_over_all_blocks(wide):
    module = copy.deepcopy(wide.model_)
    use = measure_use(module.network, [module.prepare(images())])["shared.moe"]
    module(images())
    routings = module.network.moe.routings
    expected = sum(
        torch.zeros(4, dtype=torch.float64).index_add(0, r.expert, r.weight.detach().double()) / len(r.valid)
        for r in routings
    )
    torch.testing.assert_close(use.weight, expected / len(routings))
