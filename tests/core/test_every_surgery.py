"""Every router, every surgery, every model: it works and keeps what was set, or is refused by name."""

import copy
import io
import pickle
import re

import numpy as np
import pytest
import torch
from torch import nn

import moeapps
from moeapps import MoEClassifier
from moeapps.core import MoE, make_router
from moeapps.core.errors import ConfigError
from moeapps.core.experts import LowRankExpertMLP
from moeapps.core.surgery import compress_experts, measure_use, merge_experts, prune_experts, regroup
from moeapps.tables import TabularMoE
from moeapps.vision.widenet import ViTMoE, WideNet
from tests.core.dense import ROUTERS, make

IMAGES = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 8, "depth": 2, "num_heads": 2, "num_classes": 3}
TABLE = ([0.0, 1.0], [1.0, 2.0], [[0.0, 1.0, 2.0], [-1.0, 0.0, 1.0]], [3, 4], 3)


def family(name, router, experts):
    """A small model of this kind, and inputs."""
    if name == "layer":
        return make(router, experts=experts), (torch.randn(12, 8),)
    if name == "tables":
        network = TabularMoE(*TABLE, dim=8, num_blocks=2, num_experts=experts, router=router)
        return network, (torch.randn(12, 2, dtype=torch.float64), torch.randint(0, 3, (12, 2)))
    kind = WideNet if name == "widenet" else ViTMoE
    return kind(**IMAGES, num_experts=experts, router=router), (torch.randn(5, 1, 8, 8),)


FAMILIES = [
    pytest.param(name, marks=pytest.mark.slow if name in ("tables", "vit_moe") else ())
    for name in ("layer", "tables", "widenet", "vit_moe")
]
OPERATIONS = {
    "prune": lambda model, use, experts: prune_experts(model, experts, use)[0],
    "merge": lambda model, use, experts: merge_experts(model, experts, use)[0],
    "compress": lambda model, use, experts: compress_experts(model, 4)[0],
}
REFUSED = "cannot be taken out|cannot be merged|needs experts of type ExpertMLP, got GatedFactoredExpertMLP"


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("router", ROUTERS)
def test_every_router_in_every_model_works_after_surgery_or_is_refused_by_name(router, operation, name):
    torch.manual_seed(0)
    model, inputs = family(name, router, 6)
    model.eval()
    for parameter in list(model.parameters())[::2]:
        parameter.requires_grad_(False)
    use = measure_use(model, [inputs])
    try:
        changed = OPERATIONS[operation](model, use, 3)
    except ConfigError as error:
        assert re.search(REFUSED, str(error))  # noqa: PT017 - the next test says which these are
        return
    assert not any(module.training for module in changed.modules())
    if operation != "compress":  # with every expert kept it is the same function
        same = OPERATIONS[operation](model, use, 6)
        torch.testing.assert_close(same(*inputs), model(*inputs), atol=1e-5, rtol=1e-5)
    frozen = {name.replace("router.router.", "router."): not p.requires_grad for name, p in changed.named_parameters()}
    for parameter, p in model.named_parameters():
        assert frozen.get(parameter, not p.requires_grad) != p.requires_grad
    changed.train()
    layers = [module for module in changed.modules() if isinstance(module, MoE)]
    loss = changed(*inputs).sum() + sum(sum(layer.auxiliary_losses().values()) for layer in layers)
    loss.backward()
    for layer in layers:
        layer.update(0.7)
    expected = changed.eval()(*inputs)
    file = io.BytesIO()
    torch.save(changed, file)
    file.seek(0)
    loaded = copy.deepcopy(changed)
    for parameter in loaded.parameters():
        nn.init.zeros_(parameter)
    loaded.load_state_dict(changed.state_dict())
    for twin in (
        copy.deepcopy(changed),
        pickle.loads(pickle.dumps(changed)),
        torch.load(file, weights_only=False),
        loaded,
    ):
        assert torch.equal(twin(*inputs), expected)


def test_which_routers_take_surgery_is_as_they_say():
    refused = {"prune": set(), "merge": set(), "compress": set()}
    for router in ROUTERS:
        layer = make(router, experts=6).eval()
        use = measure_use(layer, [torch.randn(12, 8)])
        for name, operate in OPERATIONS.items():
            try:
                operate(layer, use, 3)
            except ConfigError as error:
                assert type(layer.router).__name__ in str(error) or name == "compress"  # noqa: PT017
                refused[name].add(router)
    assert refused == {
        "prune": {"bilevel"},
        "merge": {router for router in ROUTERS if not make_router(router, 8, 6).mergeable},
        "compress": {"autonomy"},
    }


def test_a_merged_router_goes_on_learning_as_the_old_one_did():
    """Its losses and its updates see the old experts; nothing is added that the old router did not have."""
    expected = {
        "topk": {"balance", "z"}, "topp": {"balance", "z", "entropy"}, "shared": {"z"}, "hash": set(),
        "null_experts": {"balance", "z"}, "smoe_dropout": set(), "thor": set(),
    }  # fmt: skip
    for router, names in expected.items():
        layer = make(router, experts=6, capacity_factor=1.0)
        merged = regroup(layer, [[0, 1], [2, 3], [4, 5]]).train()
        x = torch.randn(40, 8)
        merged(x)
        assert set(merged.auxiliary_losses()) == names
        assert merged.router.draws_per_step == layer.router.draws_per_step
        layer(x)
        for each in (layer, merged):
            each.update(1.0)
        if router == "shared":
            assert torch.equal(merged.router.router.balance_bias, layer.router.balance_bias)
            assert merged.router.router.balance_bias.any()
        if router == "smoe_dropout":
            assert merged.router.router.top_k == layer.router.top_k == 6


def test_ids_of_a_pruned_hash_router_keep_the_experts_that_are_left():
    layer, ids = MoE(8, 6, router="hash").eval(), torch.arange(500)
    x = torch.randn(500, 8)
    layer(x, ids=ids)
    before = layer.last_routing.choices[:, 0]
    router = layer.router.restricted([4, 1, 2])
    twice = router.restricted([0, 2])  # 4 and 2
    for restricted, kept in ((router, [4, 1, 2]), (twice, [4, 2]), (pickle.loads(pickle.dumps(twice)), [4, 2])):
        after = restricted(x, ids=ids).choices[:, 0]
        for new, old in enumerate(kept):
            assert (after[before == old] == new).all()
        others = after[~torch.isin(before, torch.tensor(kept))]
        assert set(others.tolist()) == set(range(len(kept)))  # the rest are spread


def test_factored_experts_are_not_averaged():
    layer = MoE(8, 4).eval()
    use = measure_use(layer, [torch.randn(12, 8)])
    compressed, _ = compress_experts(layer, 3)
    with pytest.raises(ConfigError, match="merge experts before they are compressed"):
        merge_experts(compressed, 2, use)
    pruned, _ = prune_experts(compressed, 2, use)
    assert isinstance(pruned.experts, LowRankExpertMLP)
    with pytest.raises(ConfigError, match="at least one expert each"):
        regroup(layer, [[0, 1, 2, 3], []])


def test_an_estimator_whose_network_was_operated_on_by_hand_is_not_saved_as_a_file_that_cannot_be_loaded(tmp_path):
    X = np.random.default_rng(0).normal(size=(40, 3))
    model = MoEClassifier(num_experts=4, dim=8, num_blocks=1, max_epochs=1, random_state=0).fit(X, X[:, 0] > 0)
    numbers, codes = (torch.from_numpy(part) for part in model.encoder_.transform(X))
    use = measure_use(model.model_, [(numbers, codes)])
    by_hand = copy.copy(model)
    for change in (lambda m: prune_experts(m, 2, use)[0], lambda m: merge_experts(m, 2, use)[0],
                   lambda m: compress_experts(m, 3)[0]):  # fmt: skip
        by_hand.model_ = change(model.model_)
        with pytest.raises(ConfigError, match="do not describe its network any more"):
            by_hand.save(tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())
    for own in (model.prune(2, X), model.merge(2, X)):
        own.save(tmp_path / "model.safetensors")
        np.testing.assert_array_equal(moeapps.load(tmp_path / "model.safetensors").predict(X), own.predict(X))
