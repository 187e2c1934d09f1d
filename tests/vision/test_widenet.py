"""WideNet: what is shared, what it equals, and timm's whole interface."""

import copy
import pickle

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

import moeapps.vision  # noqa: F401 - registers the models
from moeapps.core.errors import ConfigError
from moeapps.core.statistics import routed_layers
from moeapps.core.surgery import merge_to_dense
from moeapps.vision import SharedMoE, ViTMoE, WideNet

SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 10}


def by_hand(dim: int, depth: int, experts: int = 4, patch: int = 16, tokens: int = 197, classes: int = 1000) -> int:
    """Embedding, class token and positions; one attention; router and experts; norms; head."""
    embedding = 3 * patch**2 * dim + dim + dim + tokens * dim
    attention = 3 * dim**2 + 3 * dim + dim**2 + dim
    moe = experts * dim + experts * (8 * dim**2 + 5 * dim)
    return embedding + attention + moe + depth * 4 * dim + 2 * dim + dim * classes + classes


@pytest.mark.parametrize(("size", "millions"), [("tiny", None), ("base", 23), ("large", 40), ("huge", 63)])
def test_the_parameters_are_those_of_one_block_and_all_norms(size, millions):
    with torch.device("meta"):
        model = timm.create_model(f"widenet_{size}_patch16_224")
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == by_hand(model.embed_dim, len(model.blocks))
    assert len(model.state_dict()) == len(list(model.parameters()))  # every shared tensor once
    if millions is not None:
        assert count / 1e6 == pytest.approx(millions, rel=0.03)  # the paper's figures


def test_experts_start_as_mlps_of_timm_and_attention_as_linear_layers_of_torch():
    torch.manual_seed(0)
    model = WideNet(**SMALL)
    linear = 32**-0.5 / 3**0.5  # of torch's uniform distribution for 32 inputs
    for weight, bias, std in (
        (model.moe.experts.weight1, model.moe.experts.bias1, 0.02),
        (model.moe.experts.weight2, model.moe.experts.bias2, 0.02),
        (model.shared.attn.qkv.weight, model.shared.attn.qkv.bias, linear),
        (model.head.weight, model.head.bias, linear),
    ):
        assert weight.std().item() == pytest.approx(std, rel=0.1)
        assert bool(bias.any()) == (std == linear)


def test_weight_init_moco_initialises_attention_and_experts_of_all_transformers_alike():
    for kind in (WideNet, ViTMoE):
        model = kind(weight_init="moco", **SMALL)
        attention = model.shared.attn if kind is WideNet else model.blocks[1].attn
        experts = next(iter(routed_layers(model).values())).experts
        xavier = (2 / (32 + 32)) ** 0.5
        assert attention.proj.weight.std().item() == pytest.approx(xavier, rel=0.1)
        hidden = experts.weight1.shape[2]
        assert experts.weight1.std().item() == pytest.approx((2 / (32 + hidden)) ** 0.5, rel=0.1)
        assert not attention.proj.bias.any()
        assert not experts.bias1.any()


def test_one_expert_equals_a_transformer_with_shared_weights():
    wide, plain = WideNet(num_experts=1, top_k=1, **SMALL).eval(), VisionTransformer(**SMALL).eval()
    for name in ("patch_embed", "norm", "head"):
        getattr(plain, name).load_state_dict(getattr(wide, name).state_dict())
    with torch.no_grad():
        plain.cls_token.copy_(wide.cls_token)
        plain.pos_embed.copy_(wide.pos_embed)
        experts = wide.moe.experts
        for block, own in zip(plain.blocks, wide.blocks, strict=True):
            block.attn.load_state_dict(wide.shared["attn"].state_dict())
            block.norm1.load_state_dict(own.norm1.state_dict())
            block.norm2.load_state_dict(own.norm2.state_dict())
            block.mlp.fc1.weight.copy_(experts.weight1[0].T)
            block.mlp.fc1.bias.copy_(experts.bias1[0])
            block.mlp.fc2.weight.copy_(experts.weight2[0].T)
            block.mlp.fc2.bias.copy_(experts.bias2[0])
    x = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(wide(x), plain(x), atol=1e-5, rtol=1e-5)


def test_the_gradient_of_what_is_shared_is_the_sum_over_the_blocks():
    wide = WideNet(num_experts=1, top_k=1, **SMALL).eval()
    x = torch.randn(2, 3, 16, 16)
    wide(x).square().sum().backward()
    shared = wide.shared["attn"].proj.weight.grad.clone()
    total = torch.zeros_like(shared)
    for i in range(3):  # only block i learns: the others use a copy
        frozen = copy.deepcopy(wide.shared)
        for parameter in frozen.parameters():
            parameter.requires_grad_(False)
        wide.zero_grad()
        for j, block in enumerate(wide.blocks):
            block._shared = (wide.shared if j == i else frozen,)
        wide(x).square().sum().backward()
        total += wide.shared["attn"].proj.weight.grad
    torch.testing.assert_close(total, shared, atol=1e-4, rtol=1e-4)


def test_the_balance_loss_is_the_mean_over_the_blocks_and_reaches_the_router():
    model = WideNet(**SMALL).train()
    model(torch.randn(2, 3, 16, 16))
    assert list(routed_layers(model)) == ["shared.moe"]
    moe = model.moe
    assert isinstance(moe, SharedMoE)
    assert len(moe.routings) == 3
    losses = moe.auxiliary_losses()
    singles = [moe.router.losses(routing)["balance"] for routing in moe.routings]
    torch.testing.assert_close(losses["balance"], 0.01 * torch.stack(singles).mean())
    losses["balance"].backward()
    assert moe.router.weight.grad.abs().sum() > 0
    model(torch.randn(2, 3, 16, 16))
    assert len(moe.routings) == 3  # of the last pass only


def test_norms_can_be_shared_too():
    own, shared = WideNet(**SMALL), WideNet(individual_norms=False, **SMALL)
    difference = sum(p.numel() for p in own.parameters()) - sum(p.numel() for p in shared.parameters())
    assert difference == 2 * 4 * 32  # two of the three blocks' pairs of norms
    assert shared(torch.randn(2, 3, 16, 16)).shape == (2, 10)


@pytest.mark.parametrize("router", ["topk", "topp", "expert_choice", "soft", "hash", "null_experts"])
def test_any_router_routes_patches(router):
    model = WideNet(router=router, **SMALL)
    x = torch.randn(4, 3, 16, 16)
    model(x).sum().backward()
    model.eval()
    torch.testing.assert_close(model(x)[:1], model(x[:1]), atol=1e-5, rtol=1e-5)  # whatever else is in the batch


@pytest.mark.parametrize("name", ["widenet_tiny_patch16_224", "vit_moe_tiny_patch16_224"])
def test_timms_interface_works(name):
    assert name in timm.list_models(name.split("_tiny")[0] + "*")
    sizes = {"img_size": 32, "patch_size": 8, "depth": 4, "embed_dim": 32, "num_heads": 4}
    model = timm.create_model(name, num_classes=7, in_chans=1, drop_path_rate=0.1, **sizes).eval()
    x = torch.randn(2, 1, 32, 32)
    assert model(x).shape == (2, 7)
    assert model.forward_features(x).shape == (2, 17, 32)
    assert model.forward_head(model.forward_features(x), pre_logits=True).shape == (2, 32)
    torch.testing.assert_close(copy.deepcopy(model)(x), model(x))
    final, features = model.forward_intermediates(x, indices=[1, 3])
    assert final.shape == (2, 17, 32)
    assert [feature.shape for feature in features] == [(2, 32, 4, 4)] * 2
    assert len(model.get_intermediate_layers(x, n=2)) == 2
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    model.reset_classifier(0)
    assert model(x).shape == (2, 32)
    pyramid = timm.create_model(name, features_only=True, **sizes)
    assert [feature.shape[1] for feature in pyramid(torch.randn(2, 3, 32, 32))] == [32] * 3
    assert timm.data.resolve_model_data_config(model)["input_size"] == (3, 224, 224)
    with pytest.raises(RuntimeError, match="No pretrained weights exist"):
        timm.create_model(name, pretrained=True)


def test_gradient_checkpointing_changes_nothing():
    torch.manual_seed(0)
    model = WideNet(router="topp", **SMALL).train()
    x = torch.randn(4, 3, 16, 16)
    found = []
    for on in (False, True):
        model.set_grad_checkpointing(on)
        model.zero_grad()
        loss = model(x).square().sum() + sum(model.moe.auxiliary_losses().values())
        loss.backward()
        found.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    for mine, its in zip(*found, strict=True):
        torch.testing.assert_close(mine, its, atol=1e-5, rtol=1e-4)


def test_every_other_block_of_a_vit_moe_has_experts():
    model = ViTMoE(moe_every=2, **{**SMALL, "depth": 5})
    assert list(routed_layers(model)) == [f"blocks.{i}.mlp" for i in (0, 2, 4)]
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    assert all(layer.balance_weight == pytest.approx(0.01 / 3) for layer in routed_layers(model).values())


def test_a_loop_over_the_blocks_of_ones_own_keeps_the_routings_of_one_pass_only():
    model = WideNet(**{**SMALL, "depth": 5})
    tokens = torch.randn(3, 17, 32)
    model(torch.randn(3, 3, 16, 16))
    for blocks in (model.blocks, model.blocks[2:], model.blocks[::2], model.blocks[1:2]):
        for _ in range(7):
            x = tokens
            for block in blocks:
                x = block(x)
            assert len(model.moe.routings) == len(blocks)
    x = tokens
    for block in model.blocks:
        x = block(x)
    sum(model.moe.auxiliary_losses().values()).backward()  # of this pass: the graphs of the others are not asked for
    for _ in range(20):
        model.moe(tokens)
    assert len(model.moe.routings) <= 5
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert list(twin.moe.routings) == []
        assert twin.moe.most_calls == 5


def test_a_shared_layer_of_ones_own_model_keeps_the_calls_since_start_within_bounds():
    layer, x = SharedMoE(8, 4), torch.randn(2, 3, 8)
    layer.start()
    for _ in range(3):
        layer(x)
    assert len(layer.routings) == 3
    layer.most_calls = 4
    for _ in range(9):
        layer(x)
    assert len(layer.routings) == 4


@pytest.mark.parametrize("model", [WideNet, ViTMoE])
def test_timms_gradient_checkpointing_changes_neither_losses_nor_gradients(model):
    results = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        network = model(**SMALL).train()
        network.set_grad_checkpointing(checkpointing)
        images = torch.randn(4, 3, 16, 16)
        torch.manual_seed(1)
        out = network(images)
        layers = list(routed_layers(network).values())
        kept = [list(layer.routings) for layer in layers]
        losses = [sum(layer.auxiliary_losses().values()) for layer in layers]
        (out.square().sum() + sum(losses)).backward()
        for layer, routings in zip(layers, kept, strict=True):  # the second pass of checkpointing is not counted
            assert len(layer.routings) == len(routings)
            assert all(after is before for after, before in zip(layer.routings, routings, strict=True))
        results.append([out, *losses, *(p.grad for p in network.parameters() if p.grad is not None)])
    for plain, again in zip(*results, strict=True):
        torch.testing.assert_close(again, plain)


def test_a_widenet_without_its_mixture_says_so():
    model = WideNet(**SMALL).eval()
    model.shared["moe"] = merge_to_dense(model.moe)[0]
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 10)
    with pytest.raises(ConfigError, match="surgery has replaced the experts of this WideNet"):
        model.moe  # noqa: B018
