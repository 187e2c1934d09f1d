"""Networks with MoE layers in the place of their blocks: saved, loaded, cut down, exported."""

import json
import os

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch_geometric.nn import MLP

import moeapps
from moeapps.core import MoE, freeze_except, load_moeified, lora_experts, merge_lora, moeify, save_moeified
from moeapps.core.errors import ConfigError, FileFormatError
from moeapps.core.growth.layer import MoEBlock
from moeapps.core.programs import export_network
from moeapps.core.surgery import compress_experts, measure_use, merge_experts, prune_experts
from tests.core.test_moeify import KINDS, Twice, outputs, redrawn, timm_vit

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
OPERATIONS = {
    "as it is": lambda network, use: network,
    "pruned": lambda network, use: prune_experts(network, 3, use)[0],
    "merged": lambda network, use: merge_experts(network, 2, use)[0],
    "compressed": lambda network, use: compress_experts(network, 3)[0],
    "pruned and merged": lambda network, use: merge_experts(prune_experts(network, 3, use)[0], 2, use)[0],
}


NETWORKS = {
    "copies": lambda: moeify(timm_vit(), num_experts=4)[0],
    "split, with dropout": lambda: moeify(timm_vit(proj_drop_rate=0.1), num_experts=4, init="split")[0],
    "low rank": lambda: lora_experts(timm_vit(), rank=2, layers="blocks.0.*")[0],
}


def trained(network):
    """Weights of experts and routers that are no copies any more."""
    torch.manual_seed(5)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return network.eval()


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("router", ["topk", "shared", "topp"])
def test_a_saved_network_answers_the_same_after_any_surgery(router, operation, tmp_path):
    if operation == "pruned and merged":
        grown = trained(moeify(timm_vit(), num_experts=4, router=router, every=1)[0])
        pruned, _ = prune_experts(grown, 3, measure_use(grown, [X]))
        changed, _ = merge_experts(pruned, 2, measure_use(pruned, [X]))
    else:
        grown = trained(moeify(timm_vit(), num_experts=4, router=router, every=1)[0])
        changed = OPERATIONS[operation](grown, measure_use(grown, [X]))
    save_moeified(changed, tmp_path / "a.safetensors")
    torch.manual_seed(9)
    expected_draw = torch.rand(1)
    torch.manual_seed(9)
    fresh = timm_vit()
    torch.manual_seed(9)
    loaded = load_moeified(tmp_path / "a.safetensors", fresh)
    assert torch.equal(torch.rand(1), expected_draw)  # loading draws nothing of the user's generator
    with torch.no_grad():
        assert torch.equal(loaded(X), changed(X))
    assert not any(isinstance(module, MoE) for module in fresh.modules())
    assert loaded.state_dict().keys() == changed.state_dict().keys()


@pytest.mark.parametrize("kind", KINDS)
def test_networks_of_every_kind_load(kind, tmp_path):
    torch.manual_seed(0)
    make, shape = KINDS[kind]
    grown = trained(moeify(make(), num_experts=4, every=1, init="split")[0])
    save_moeified(grown, tmp_path / "a.safetensors")
    loaded = load_moeified(tmp_path / "a.safetensors", make())
    assert torch.equal(outputs(loaded, shape), outputs(grown, shape))
    same = moeapps.load(tmp_path / "a.safetensors", model=make())
    assert torch.equal(outputs(same, shape), outputs(grown, shape))


def test_settings_frozen_parts_and_shared_layers_survive(tmp_path):
    network = Twice()
    for p in network.first.inner.parameters():
        p.requires_grad_(False)
    grown, _ = moeify(network, num_experts=4, balance_weight=0.3, capacity_factor=1.5, router_args={"jitter": 0.1})
    save_moeified(grown, tmp_path / "a.safetensors")
    loaded = load_moeified(tmp_path / "a.safetensors", Twice())
    layer = loaded.first.inner
    assert layer is loaded.second.inner
    assert (layer.balance_weight, layer.capacity_factor, layer.router.jitter) == (0.3, 1.5, 0.1)
    assert [p.requires_grad for p in layer.experts.parameters()] == [False] * 4
    assert layer.router.weight.requires_grad
    loaded(torch.randn(2, 5, 8))
    assert len(layer.routings) == 3
    assert not loaded.training


def test_a_file_that_does_not_fit_is_refused_by_name(tmp_path):
    path = tmp_path / "a.safetensors"
    grown, _ = moeify(timm_vit(), num_experts=4)
    save_moeified(grown, path)
    with pytest.raises(FileFormatError, match="VisionTransformer of your own as model: give the module"):
        moeapps.load(path)
    with pytest.raises(FileFormatError, match="an MoE layer for 'blocks.1.mlp', and this Sequential has no such block"):
        load_moeified(path, nn.Sequential(nn.Linear(3, 3)))
    wider = timm.models.vision_transformer.VisionTransformer(
        img_size=8, patch_size=4, embed_dim=16, depth=4, num_heads=2, num_classes=3
    )
    with pytest.raises(FileFormatError, match="in the file and"):
        load_moeified(path, wider)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match="SHA-256"):
        load_moeified(path, timm_vit())
    with pytest.raises(ConfigError, match="this VisionTransformer has no layers made by moeify or lora_experts"):
        save_moeified(timm_vit(), path)
    freezing = freeze_except(grown, {"blocks.1.mlp": [0]})
    with pytest.raises(ConfigError, match=r"are frozen: call undo\(\)"):
        save_moeified(grown, path)
    freezing.undo()
    save_moeified(grown, path)


def test_a_file_cannot_ask_for_memory(tmp_path):
    """A layer of a billion experts is refused before it is made."""
    path = tmp_path / "a.safetensors"
    grown, _ = moeify(timm_vit(), num_experts=4)
    from moeapps.core import saved_file
    from moeapps.core.growth.saved import MoEified, describe_layers

    layers = describe_layers(grown)
    for entry in layers:
        entry["num_experts"] = entry["router"]["num_experts"] = 10**9
    cls = type("MoEified", (MoEified,), {})
    document = {
        "format": 1, "defaults": 2, "class": "moeapps.core.growth.saved.MoEified",
        "arguments": {"model": {"$module": "VisionTransformer"}, "trained_only": False},
        "state": {"layers": layers, "frozen": []}, "versions": {},
    }  # fmt: skip
    assert cls is not MoEified
    saved_file.write_document(path, json.loads(json.dumps(document)), grown.state_dict())
    with pytest.raises(FileFormatError, match="ask for a tensor of"):
        load_moeified(path, timm_vit())


def test_low_rank_experts_are_saved_alone_or_with_the_network(tmp_path):
    base = redrawn(timm_vit())
    tuned = lora_experts(base, rank=2, layers="blocks.*", also="head")[0]
    with torch.no_grad():
        for p in tuned.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))
    tuned.eval()
    small, whole = tmp_path / "small.safetensors", tmp_path / "whole.safetensors"
    save_moeified(tuned, small, trained_only=True)
    save_moeified(tuned, whole)
    with torch.no_grad():
        assert torch.equal(load_moeified(small, base)(X), tuned(X))
        assert torch.equal(load_moeified(whole, timm_vit())(X), tuned(X))
        assert not torch.equal(load_moeified(small, timm_vit())(X), tuned(X))  # other frozen weights
    assert os.path.getsize(small) < os.path.getsize(whole)
    loaded = load_moeified(small, base)
    trains = {name for name, p in tuned.named_parameters() if p.requires_grad}
    assert {name for name, p in loaded.named_parameters() if p.requires_grad} == trains
    pruned, _ = prune_experts(tuned, 3, measure_use(tuned, [X]))
    save_moeified(pruned, small, trained_only=True)
    with torch.no_grad():
        assert torch.equal(load_moeified(small, base)(X), pruned(X))
    both = lora_experts(moeify(base, num_experts=4)[0], rank=2, layers="*")[0].eval()
    save_moeified(both, whole)
    with torch.no_grad():
        assert torch.equal(load_moeified(whole, timm_vit())(X), both(X))


def test_one_low_rank_expert_merges_into_its_layer(tmp_path):
    base = redrawn(timm_vit()).eval()
    tuned, _ = lora_experts(base, rank=2, num_experts=1, layers="blocks.*", alpha=3.0)
    with torch.no_grad():
        for p in tuned.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))
    merged = merge_lora(tuned)
    with torch.no_grad():
        torch.testing.assert_close(merged(X), tuned(X), atol=1e-5, rtol=1e-5)
        assert not torch.allclose(merged(X), base(X), atol=1e-3)
    assert merged.state_dict().keys() == base.state_dict().keys()
    with pytest.raises(ConfigError, match="has 4 low-rank experts: what they add depends on the token"):
        merge_lora(lora_experts(base, rank=2)[0])
    with pytest.raises(ConfigError, match="there are no low-rank experts"):
        merge_lora(base)
    with pytest.raises(ConfigError, match="weighs its expert by the token"):
        merge_lora(lora_experts(base, rank=2, num_experts=1, top_k=1, router="shared", router_args={
            "num_shared": 0, "renormalize": False})[0])  # fmt: skip


@pytest.mark.parametrize("form", ["torch", "onnx"])
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind == "PyG" else pytest.mark.slow) for kind in ("PyG", *NETWORKS)]
)
def test_exported_programs_agree_for_any_batch(kind, form, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(3, 3, 8, 8)
    if kind == "PyG":
        network, x = moeify(MLP([6, 12, 4], norm=None, act="tanh"), num_experts=4)[0], torch.randn(3, 6)
    else:
        network = NETWORKS[kind]()
    network = trained(network)
    path = export_network(network, x, tmp_path / "program", form)
    for count in (1, 3):
        with torch.no_grad():
            expected = network(x[:count])
        if form == "torch":
            found = torch.export.load(path).module()(x[:count])
        else:
            runtime = pytest.importorskip("onnxruntime")
            session = runtime.InferenceSession(path.read_bytes())
            found = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x[:count].numpy()})[0])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ConfigError, match="form must be one of onnx, torch"):
        export_network(network, x, tmp_path / "program", "pb")


def test_surgery_keeps_the_layer_and_training_goes_on():
    torch.manual_seed(0)
    grown = trained(moeify(timm_vit(proj_drop_rate=0.1), num_experts=6, top_k=1)[0])
    before = grown(X)
    use = measure_use(grown, [X])
    assert set(use) == {"blocks.1.mlp", "blocks.3.mlp"}
    for changed in (prune_experts(grown, 3, use)[0], merge_experts(grown, 3, use)[0]):
        layer = changed.blocks[1].mlp
        assert isinstance(layer, MoEBlock)
        assert (layer.num_experts, layer.experts.dropout, layer.out_dropout.p) == (3, 0.1, 0.1)
        out = changed.train()(X)
        (
            out.mean() + sum(sum(m.auxiliary_losses().values()) for m in changed.modules() if isinstance(m, MoE))
        ).backward()
        assert np.isfinite(float(out.detach().sum()))
    assert torch.equal(grown(X), before)
