"""What timm's own tests ask of every model, and what its users do besides, for our families beside timm's ViT.

Each check takes a function that makes a small model and raises where the model does not do what is asked. The list is
that of timm's ``tests/test_models.py`` (release 1.0), and of the arguments that ``create_model`` passes to a ViT.

    python -m tests.vision.timm_checks   # the table of docs/vision.md
"""

import itertools
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
import timm.optim
import torch
from timm.layers import SwiGLU, SwiGLUPacked, set_scriptable
from timm.models import FeatureInfo
from timm.models.vision_transformer import Attention, ParallelScalingBlock
from torch import Tensor, nn

import moeapps.vision  # noqa: F401 - registers the models

FAMILIES = {
    "ViT": "vit_tiny_patch16_224",
    "WideNet": "widenet_tiny_patch16_224",
    "ViT-MoE": "vit_moe_tiny_patch16_224",
}
SIZES: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4}
SWITCHED = {"act_layer": "silu", "norm_layer": "rmsnorm", "init_values": 0.1, "qk_norm": True, "reg_tokens": 2}
"""Arguments that change every part of a block."""

Make = Callable[..., Any]
Check = Callable[[Make], None]
CHECKS: dict[str, Check] = {}

KNOWN: dict[tuple[str, str], str] = {
    ("fix_init", "WideNet"): "it scales the weights of a block by the block's number; the blocks share theirs",
    ("attn_layer='diff'", "WideNet"): "this attention depends on the block's number; the blocks share one",
    ("scale_mlp_norm", "WideNet"): "experts have no norm between their layers",
    ("scale_mlp_norm", "ViT-MoE"): "experts have no norm between their layers",
    ("block_fn", "WideNet"): "WideNet has its own blocks",
    ("block_fn", "ViT-MoE"): "such a block may have no MLP that experts could replace",
}
"""What passes for timm's ViT and not for ours, with the reason; the error is a ConfigError that names the argument."""


def check(title: str) -> Callable[[Check], Check]:
    def add(function: Check) -> Check:
        CHECKS[title] = function
        return function

    return add


def maker(family: str) -> Make:
    """A function that makes models of a family, of small sizes unless it is told otherwise."""

    def make(**arguments: Any) -> nn.Module:
        torch.manual_seed(0)
        return timm.create_model(FAMILIES[family], **{**SIZES, "num_classes": 10, **arguments})

    return make


def images(count: int = 2, side: int = 32, channels: int = 3) -> Tensor:
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(1))


def refused(make: Make, **arguments: Any) -> bool:
    try:
        make(**arguments)
    except Exception:
        return True
    return False


def works(model: nn.Module, x: Tensor | None = None) -> Tensor:
    """Logits in evaluation, finite, and gradients of all parameters in training."""
    x = images() if x is None else x
    model.train()(x).float().square().mean().backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing, f"no gradient for {missing}"
    with torch.no_grad():
        logits: Tensor = model.eval()(x)
    assert logits.isfinite().all()
    return logits


def differs(make: Make, **arguments: Any) -> nn.Module:
    """A model with these arguments works, and answers otherwise than one without, so that they were not ignored."""
    model: nn.Module = make(**arguments)
    for p in model.parameters():  # away from zeros of the initialisation, the same for both
        p.data.normal_(std=0.3, generator=torch.Generator().manual_seed(p.numel()))
    plain = make()
    for p in plain.parameters():
        p.data.normal_(std=0.3, generator=torch.Generator().manual_seed(p.numel()))
    assert not torch.allclose(works(model), works(plain), atol=1e-6), f"{arguments} changed nothing"
    return model


# ------------------------------------------------------------------------------------- timm's tests/test_models.py


@check("forward")
def forward(make: Make) -> None:
    for count in (1, 3):
        logits = make().eval()(images(count))
        assert logits.shape == (count, 10)
        assert logits.isfinite().all()


@check("backward: every parameter has a gradient")
def backward(make: Make) -> None:
    model = make(num_classes=42).train()
    logits = model(images())
    logits.mean().backward()
    assert logits.shape == (2, 42)
    missing = [name for name, p in model.named_parameters() if p.grad is None or p.grad.shape != p.shape]
    assert not missing, missing


@check("default configuration names classifier and first layer")
def default_cfg(make: Make) -> None:
    model = make()
    state, cfg = model.state_dict(), model.default_cfg
    assert model.num_classes == 10
    assert model.num_features == model.head_hidden_size == 32
    assert cfg["input_size"] == (3, 224, 224)
    assert cfg["classifier"] + ".weight" in state
    assert cfg["first_conv"] + ".weight" in state
    assert model.get_classifier() is model.head


@check("forward_features, forward_head, reset_classifier, num_classes=0")
def heads(make: Make) -> None:
    model = make().eval()
    features = model.forward_features(images())
    assert features.shape == (2, 17, 32)
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, 32)
    torch.testing.assert_close(model.forward_head(features), model(images()))
    model.reset_classifier(0)
    assert model.num_classes == 0
    torch.testing.assert_close(model(images()), pooled)
    model.reset_classifier(0, "")
    assert model(images()).shape == features.shape
    model.reset_classifier(7, "avg")
    assert model(images()).shape == (2, 7)
    assert make(num_classes=0).eval()(images()).shape == (2, 32)


@check("pretrained weights from a file, other in_chans and num_classes")
def pretrained(make: Make) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        model = make(num_classes=1000)
        torch.save(model.state_dict(), path)
        overlay = {"file": str(path)}
        loaded = make(pretrained=True, pretrained_cfg_overlay=overlay, num_classes=5, in_chans=1)
        assert loaded(images(channels=1)).shape == (2, 5)
        same = make(pretrained=True, pretrained_cfg_overlay=overlay, num_classes=1000).eval()
        torch.testing.assert_close(same(images()), model.eval()(images()), rtol=0, atol=0)
        extractor = make(pretrained=True, pretrained_cfg_overlay=overlay, features_only=True).eval()
        expected = model.forward_intermediates(images(), indices=3, intermediates_only=True)
        torch.testing.assert_close(extractor(images()), expected, rtol=0, atol=0)


@check("torch.jit.script")
def torchscript(make: Make) -> None:
    with set_scriptable(True):
        model = make(**SWITCHED).eval()
        expected = model(images())
        script = torch.jit.script(model)
    with TemporaryDirectory() as folder:
        torch.jit.save(script, f"{folder}/model.pt")
        loaded = torch.jit.load(f"{folder}/model.pt")
    for program in (script, loaded):
        torch.testing.assert_close(program(images()), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(images()), expected, rtol=0, atol=0)  # the model itself is as before


@check("features_only")
def features_only(make: Make) -> None:
    for arguments in ({}, {"feature_cls": "getter"}):
        model = make(features_only=True, **arguments).eval()
        maps = model(images())
        assert [m.shape for m in maps] == [(2, 32, 4, 4)] * len(model.feature_info.channels())
        assert len(maps) >= 3
        assert all(m.isfinite().all() for m in maps)
    assert len(make(features_only=True, out_indices=(0, 2)).eval()(images())) == 2


@check("forward_intermediates, also with gradient checkpointing")
def intermediates(make: Make) -> None:
    model = make().eval()
    info = FeatureInfo(model.feature_info, len(model.feature_info))
    last, maps = model.forward_intermediates(images())
    assert [m.shape[1] for m in maps] == info.channels()
    assert [m.shape[2] for m in maps] == [32 // reduction for reduction in info.reduction()]
    torch.testing.assert_close(last, model.forward_features(images()))
    model.set_grad_checkpointing()
    torch.testing.assert_close(model.forward_intermediates(images())[0], last, rtol=1e-4, atol=1e-5)
    with_prefix = model.forward_intermediates(images(), indices=1, return_prefix_tokens=True, intermediates_only=True)
    assert with_prefix[0][1].shape == (2, 1, 32)
    assert model.forward_intermediates(images(), output_fmt="NLC", norm=True)[1][0].shape == (2, 16, 32)


def traced(model: nn.Module) -> nn.Module:
    """The whole model by timm's and torchvision's feature extraction."""
    from timm.models import get_notrace_functions, get_notrace_modules
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    settings = {
        "leaf_modules": get_notrace_modules(),
        "autowrap_functions": get_notrace_functions(),
        "param_shapes_constant": True,
    }
    train, evaluation = get_graph_node_names(model, tracer_kwargs=settings)
    return create_feature_extractor(
        model,
        train_return_nodes=[train[-1]],
        eval_return_nodes=[evaluation[-1]],
        tracer_kwargs=settings,
    )


@check("torch.fx: forward")
def fx_forward(make: Make) -> None:
    model = make(**SWITCHED).eval()
    with torch.inference_mode():
        (found,) = traced(model)(images()).values()
        torch.testing.assert_close(found, model(images()), rtol=0, atol=0)


@check("torch.fx: backward")
def fx_backward(make: Make) -> None:
    model = make(num_classes=42).train()
    graph = traced(model)
    (found,) = graph(images()).values()
    found.mean().backward()
    assert found.shape == (2, 42)
    missing = [name for name, p in graph.named_parameters() if p.grad is None]
    assert not missing, missing
    assert sum(p.numel() for p in graph.parameters()) == sum(p.numel() for p in model.parameters())


@check("torch.fx, then torch.jit.script")
def fx_script(make: Make) -> None:
    with set_scriptable(True):
        model = make().eval()
        expected = model(images())
        program = torch.jit.script(traced(model))
    with torch.inference_mode():
        (found,) = program(images()).values()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------- what a model is asked at its construction


@check("in_chans=1")
def in_chans(make: Make) -> None:
    works(make(in_chans=1), images(channels=1))


@check("another img_size, dynamic_img_size, dynamic_img_pad")
def image_sizes(make: Make) -> None:
    works(make(img_size=(48, 32)), torch.randn(2, 3, 48, 32))
    assert refused(lambda: make()(images(side=48)))
    model = make(dynamic_img_size=True)
    works(model)
    works(model, images(side=48))
    works(make(dynamic_img_size=True, dynamic_img_pad=True), images(side=36))


@check("set_input_size")
def set_input_size(make: Make) -> None:
    model = make()
    model.set_input_size(img_size=(48, 48))
    assert model.pos_embed.shape == (1, 37, 32)
    works(model, images(side=48))
    model.set_input_size(img_size=(32, 32), patch_size=(4, 4))
    works(model)


@check("dtype= and device= reach every parameter")
def dtype_and_device(make: Make) -> None:
    model = make(dtype=torch.bfloat16, device="meta", **SWITCHED)
    assert {(p.dtype, p.device.type) for p in model.parameters()} == {(torch.bfloat16, "meta")}
    model = make(dtype=torch.bfloat16, device="cpu")
    assert works(model, images().bfloat16()).dtype == torch.bfloat16
    assert works(make(dtype=torch.float64), images().double()).dtype == torch.float64


@check("bfloat16 after construction, and autocast")
def bfloat16(make: Make) -> None:
    model = make()
    expected = model.eval()(images())
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(images()).float(), expected, rtol=0.1, atol=0.1)
    assert works(model.bfloat16(), images().bfloat16()).dtype == torch.bfloat16


@check("gradient checkpointing: the same gradients")
def checkpointing(make: Make) -> None:
    gradients = []
    for checkpointed in (False, True):
        model = make()
        model.set_grad_checkpointing(checkpointed)
        torch.manual_seed(0)
        model.eval()(images()).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@check("weights of another image or patch size: pos_embed and patches are resized")
def resized(make: Make) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        torch.save(make().state_dict(), path)
        overlay = {"file": str(path), "num_classes": 10}
        model = make(img_size=64, pretrained=True, pretrained_cfg_overlay=overlay)
        assert model.pos_embed.shape == (1, 65, 32)
        prefix = make().pos_embed[:, :1]
        torch.testing.assert_close(model.pos_embed[:, :1], prefix, rtol=0, atol=0)
        model.set_input_size(img_size=(32, 32))
        assert (model.pos_embed - make().pos_embed).abs().mean() < 0.01
        works(make(patch_size=4, pretrained=True, pretrained_cfg_overlay=overlay))


@check("no weight decay for biases, norms and embeddings")
def weight_decay(make: Make) -> None:
    model = make(init_values=0.1)
    optimizer = timm.optim.create_optimizer_v2(model, "adamw", lr=0.1, weight_decay=0.5)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, p in model.named_parameters():
        last = name.rpartition(".")[2]
        free = p.ndim < 2 or last.startswith("bias") or name in ("cls_token", "pos_embed")
        assert decays[id(p)] == (0 if free else 0.5), name


@check("layer decay: the rate grows from the first layers to the head")
def layer_decay(make: Make) -> None:
    model = make()
    groups = timm.optim.param_groups_layer_decay(
        model, 0.5, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.5
    )
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    named = {name: scales[id(p)] for name, p in model.named_parameters()}
    by_block = [named[f"blocks.{i}.norm1.weight"] for i in range(3)]
    assert named["patch_embed.proj.weight"] == named["pos_embed"] < by_block[0]
    assert [b / a for a, b in itertools.pairwise(by_block)] == [2, 2]
    assert named["norm.weight"] == by_block[2]
    assert named["head.weight"] == 1
    assert max(scale for name, scale in named.items() if not name.startswith("head")) < 1, named
    assert min(named.values()) == named["pos_embed"]
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert not any(id(p) in decayed for name, p in model.named_parameters() if "bias" in name)


@check("global_pool, class_token, reg_tokens, no_embed_class, pos_embed, pre_norm, fc_norm")
def tokens(make: Make) -> None:
    for pool in ("avg", "avgmax", "max", "map"):
        works(make(global_pool=pool))
    works(make(class_token=False, global_pool="avg"))
    works(make(reg_tokens=2, no_embed_class=True))
    works(make(pos_embed="none", pre_norm=True, fc_norm=True))


@check("attention masks")
def masks(make: Make) -> None:
    model = make().eval()
    whole = model.forward_features(images(), attn_mask=torch.ones(17, 17, dtype=torch.bool))
    torch.testing.assert_close(whole, model.forward_features(images()), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model.forward_features(images(), is_causal=True), whole)


@check("prune_intermediate_layers, get_intermediate_layers")
def pruned(make: Make) -> None:
    model = make().eval()
    expected = model.forward_intermediates(images(), indices=[0], intermediates_only=True)
    model.prune_intermediate_layers([0])
    assert len(model.blocks) == 1
    found = model.forward_intermediates(images(), indices=[0], intermediates_only=True)
    torch.testing.assert_close(found, expected)
    assert len(make().eval().get_intermediate_layers(images(), n=2)) == 2


@check("drop_rate, pos_drop_rate, patch_drop_rate, attn_drop_rate, drop_path_rate")
def dropouts(make: Make) -> None:
    for name in ("drop_rate", "pos_drop_rate", "patch_drop_rate", "attn_drop_rate", "drop_path_rate"):
        model = make(**{name: 0.4})
        plain = make()
        for each in (model, plain):
            for p in each.parameters():
                p.data.normal_(std=0.3, generator=torch.Generator().manual_seed(p.numel()))
        torch.testing.assert_close(model.eval()(images()), plain.eval()(images()))
        torch.manual_seed(0)
        assert not torch.allclose(model.train()(images()), model(images())), name


@check("proj_drop_rate reaches attention and MLPs or experts")
def proj_drop(make: Make) -> None:
    model = make(proj_drop_rate=0.4)
    block = model.blocks[-1]
    parts = [block.shared["attn"], block.shared["moe"]] if hasattr(block, "shared") else [block.attn, block.mlp]
    x = torch.randn(2, 17, 32)
    for part in parts:
        for module in part.modules():
            if hasattr(module, "noise_std"):  # a router's noise would change the output, too
                module.noise_std = 0.0
        assert not torch.allclose(part.train()(x), part(x)), f"no dropout in {type(part).__name__}"
        torch.testing.assert_close(part.eval()(x), part(x), rtol=0, atol=0)
    works(model)


@check("act_layer")
def act_layer(make: Make) -> None:
    differs(make, act_layer="relu")
    silu = differs(make, act_layer=nn.SiLU)
    same = make(act_layer="swish")
    same.load_state_dict(silu.state_dict())
    torch.testing.assert_close(same.eval()(images()), silu.eval()(images()))


@check("mlp_layer: SwiGLU, SwiGLUPacked")
def mlp_layer(make: Make) -> None:
    wide = differs(make, mlp_layer=SwiGLU, act_layer="silu")
    packed = differs(make, mlp_layer=SwiGLUPacked, act_layer="silu")
    assert sum(p.numel() for p in packed.parameters()) < sum(p.numel() for p in wide.parameters())


@check("proj_bias, qkv_bias")
def biases(make: Make) -> None:
    count = sum(p.numel() for p in make().parameters())
    for name in ("proj_bias", "qkv_bias"):
        model = make(**{name: False})
        works(model)
        assert sum(p.numel() for p in model.parameters()) < count
    without = make(proj_bias=False)
    biases = [name for name, _ in without.named_parameters() if ("mlp" in name or "moe" in name) and "bias" in name]
    assert not biases, biases


@check("init_values (layer scale)")
def init_values(make: Make) -> None:
    model = differs(make, init_values=0.1)
    scales = [name for name, _ in model.named_parameters() if name.endswith("gamma")]
    assert len(scales) == 2 * len(model.blocks)
    assert torch.equal(make(init_values=0.1).blocks[0].ls1.gamma, torch.full((32,), 0.1))


@check("norm_layer, qk_norm, scale_attn_norm")
def norms(make: Make) -> None:
    differs(make, norm_layer="rmsnorm")
    differs(make, norm_layer=partial(nn.LayerNorm, eps=0.5))
    differs(make, qk_norm=True)
    differs(make, scale_attn_norm=True)


@check("attn_layer as a class")
def attn_layer(make: Make) -> None:
    class Doubled(Attention):
        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            return 2 * super().forward(*args, **kwargs)

    differs(make, attn_layer=Doubled)


@check("weight_init: jax, jax_nlhb, moco, reset, skip; init_weights")
def weight_init(make: Make) -> None:
    plain = dict(make().named_parameters())
    second = [name for name in plain if name.endswith(("fc2.weight", "weight2"))][-1]
    assert 0.01 < plain[second].std() < 0.03
    for mode in ("jax", "jax_nlhb", "moco", "reset"):
        model = make(weight_init=mode)
        assert dict(model.named_parameters())[second].std() > 0.05, mode
        works(model)
    make(weight_init="skip")
    model = make()
    model.init_weights("jax")
    assert dict(model.named_parameters())[second].std() > 0.05
    model = make()
    model.init_weights("")
    assert dict(model.named_parameters())[second].std() < 0.03


# --------------------------------------------------------------------------------- what not every family can have


@check("scale_mlp_norm")
def scale_mlp_norm(make: Make) -> None:
    differs(make, scale_mlp_norm=True)


@check("fix_init")
def fix_init(make: Make) -> None:
    model, plain = (dict(make(fix_init=fix).named_parameters()) for fix in (True, False))
    last = next(name for name in plain if name.startswith("blocks.2") and name.endswith(("fc2.weight", "weight2")))
    torch.testing.assert_close(model[last] * 6**0.5, plain[last])
    torch.testing.assert_close(model["blocks.1.attn.proj.weight"] * 2, plain["blocks.1.attn.proj.weight"])


@check("attn_layer='diff'")
def diff_attention(make: Make) -> None:
    differs(make, attn_layer="diff")


@check("block_fn")
def block_fn(make: Make) -> None:
    works(make(block_fn=ParallelScalingBlock))


def outcome(title: str, family: str) -> str:
    """``passed``, or the error in a few words."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            CHECKS[title](maker(family))
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:90]}"
    return "passed"


def table() -> str:
    """Markdown: a row per check, a column per family; exceptions with their reasons."""
    rows = [f"| check | {' | '.join(FAMILIES)} |", f"| --- |{' --- |' * len(FAMILIES)}"]
    for title in CHECKS:
        cells = []
        for family in FAMILIES:
            found = outcome(title, family)
            known = KNOWN.get((title, family))
            cells.append(f"no: {known}" if known and found.startswith("ConfigError") else found)
        rows.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
