"""``moeify``: every kind of block becomes experts, the network computes what it did, and the rest is named."""

import copy
import pickle

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch_geometric.nn import MLP, GINConv

from moeapps.core import MoE, collect_losses, moeify, update_routers
from moeapps.core.errors import ConfigError
from moeapps.core.experts import FeedForward
from moeapps.core.growth.layer import BlockExperts, MoEBlock
from moeapps.core.surgery import merge_to_dense, upcycle
from tests.core.dense import ROUTERS


class Residual(nn.Module):
    """A block of a network of one's own."""

    def __init__(self, inner):
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(8), inner

    def forward(self, x):
        return x + self.inner(self.norm(x))


class Functional(nn.Module):
    """Its activation is called, not a module; its one dropout is used twice, as in Swin's released code."""

    def __init__(self, act=F.relu, p=0.0):
        super().__init__()
        self.up, self.down, self.drop, self.act_function = nn.Linear(8, 12), nn.Linear(12, 8), nn.Dropout(p), act

    def forward(self, x):
        return self.drop(self.down(self.drop(self.act_function(self.up(x)))))


class Gated(nn.Module):
    """As in language models: three layers, the value before the gate."""

    def __init__(self):
        super().__init__()
        self.up, self.gate, self.down = (nn.Linear(8, 12, bias=False), nn.Linear(8, 12, bias=False), nn.Linear(12, 8))

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Halves(nn.Module):
    """As in DINOv2: one layer with both halves."""

    def __init__(self):
        super().__init__()
        self.w12, self.w3 = nn.Linear(8, 24), nn.Linear(12, 8)

    def forward(self, x):
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


def timm_vit(**options):
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=4, num_heads=2, num_classes=3, **options)


def torch_encoder(**options):
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, **options), 2, enable_nested_tensor=False)


def glu(kind, **options):
    return nn.Sequential(Residual(kind(8, 24, **options)), Residual(kind(8, 24, **options)))


IMAGE, TOKENS, ROWS = (2, 3, 8, 8), (3, 5, 8), (6, 8)
KINDS = {
    "timm Mlp": (timm_vit, IMAGE),
    "timm Mlp with dropout": (lambda: timm_vit(proj_drop_rate=0.2), IMAGE),
    "timm GluMlp": (lambda: glu(timm.layers.GluMlp), TOKENS),
    "timm SwiGLUPacked": (lambda: glu(timm.layers.SwiGLUPacked), TOKENS),
    "timm SwiGLU": (lambda: glu(timm.layers.SwiGLU), TOKENS),
    "timm Mlp, QuickGELU, one bias": (
        lambda: glu(timm.layers.Mlp, act_layer=timm.layers.QuickGELU, bias=(True, False)), TOKENS,
    ),
    "timm Mlp of ConvNeXt": (lambda: timm.create_model("test_convnext", num_classes=3), (1, 3, 32, 32)),
    "torchvision MLPBlock": (
        lambda: torchvision.models.VisionTransformer(8, 4, 2, 2, 8, 16, dropout=0.1, num_classes=3), IMAGE,
    ),
    "torchvision MLP": (lambda: nn.Sequential(Residual(torchvision.ops.MLP(8, [16, 8]))), ROWS),
    "Sequential": (lambda: nn.Sequential(Residual(nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 8)))), ROWS),
    "part of a Sequential": (
        lambda: nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 12), nn.GELU(), nn.Dropout(0.1), nn.Linear(12, 3)), ROWS,
    ),
    "encoder": (lambda: torch_encoder(batch_first=True), TOKENS),
    "encoder, gelu, norm first, no bias": (
        lambda: torch_encoder(batch_first=True, activation="gelu", norm_first=True, bias=False), TOKENS,
    ),
    "encoder, tokens first": (torch_encoder, TOKENS),
    "PyG MLP": (lambda: nn.Sequential(Residual(MLP([8, 16, 8], norm=None, dropout=0.1))), ROWS),
    "FeedForward": (lambda: nn.Sequential(Residual(FeedForward(8, 16))), ROWS),
    "own, functional activation": (lambda: nn.Sequential(Residual(Functional())), ROWS),
    "own, three layers": (lambda: nn.Sequential(Residual(Gated())), ROWS),
    "own, two halves": (lambda: nn.Sequential(Residual(Halves())), TOKENS),
}  # fmt: skip


def outputs(network, shape):
    with torch.no_grad():
        return network.eval()(torch.randn(shape, generator=torch.Generator().manual_seed(1)))


def redrawn(network):
    """Weights that are not those of an initialisation: biases, and last layers that start at zero."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return network


@pytest.mark.parametrize("init", ["copy", "split", "noise"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_network_computes_what_it_did(kind, init):
    torch.manual_seed(0)
    make, shape = KINDS[kind]
    network = redrawn(make())
    before, state = outputs(network, shape), copy.deepcopy(network.state_dict())
    grown, report = moeify(network, num_experts=4, init=init, noise_std=0.05)
    found = outputs(grown, shape)
    if init == "noise":
        assert 1e-6 < float((found - before).abs().max()) < 0.5 * float(before.abs().max())
    else:
        torch.testing.assert_close(found, before, atol=1e-5, rtol=1e-5)
        assert report.difference < 1e-5
    layers = [module for module in grown.modules() if isinstance(module, MoEBlock)]
    assert len(layers) == len(report.replaced) > 0
    assert all(layer.num_experts == 4 for layer in layers)
    # the patient is as it was
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert not any(isinstance(module, MoE) for module in network.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_training_reaches_every_expert_and_the_router(kind):
    torch.manual_seed(0)
    make, shape = KINDS[kind]
    grown, _ = moeify(redrawn(make()), num_experts=2, top_k=2, every=1, init="noise")
    grown.train()
    out = grown(torch.randn(shape))
    (out.square().mean() + collect_losses(grown)).backward()
    update_routers(grown, 0.5)
    for layer in (module for module in grown.modules() if isinstance(module, MoEBlock)):
        for name, p in layer.named_parameters():
            assert p.grad is not None, name
            assert bool((p.grad.flatten(1) != 0).any(dim=1).all()), name


@pytest.mark.parametrize("router", ROUTERS)
def test_every_router_keeps_the_function_or_is_refused(router):
    torch.manual_seed(0)
    network = redrawn(timm_vit())
    before = outputs(network, IMAGE)
    if router in ("soft", "null_experts", "autonomy"):
        with pytest.raises(ConfigError, match=f"router='{router}' (does not keep|needs experts of its own)"):
            moeify(network, num_experts=4, router=router)
        return
    for top_k in (1, 2):
        grown, _ = moeify(network, num_experts=4, top_k=top_k, router=router)
        torch.testing.assert_close(outputs(grown, IMAGE), before, atol=1e-5, rtol=1e-5)


def test_a_router_with_one_expert_per_token_learns():
    torch.manual_seed(0)
    grown, _ = moeify(redrawn(timm_vit()), num_experts=4, top_k=1, init="noise", balance_weight=0.0, z_weight=0.0)
    grown.train()(torch.randn(IMAGE)).square().mean().backward()
    for layer in (module for module in grown.modules() if isinstance(module, MoEBlock)):
        assert float(layer.router.weight.grad.norm()) > 1e-6


def test_a_split_costs_what_the_block_did_and_adds_no_parameter_with_all_experts():
    network = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8))
    grown, report = moeify(network, num_experts=4, top_k=4, init="split")
    experts = grown[0].experts
    assert experts.hidden_dim == 3
    assert sum(p.numel() for p in experts.parameters()) == 3 * 4 * (8 + 1 + 8) + 4 * 8  # and a bias for each expert
    assert report.replaced[0].hidden_dim == 3
    grown, _ = moeify(network, num_experts=4, top_k=2, init="split")
    assert grown[0].experts.hidden_dim * 2 == 12  # two of them are the block
    torch.testing.assert_close(grown[0].experts.weight1[0], grown[0].experts.weight1[2])
    with pytest.raises(ConfigError, match="12 hidden units do not divide among 5 experts"):
        moeify(network, num_experts=5, top_k=5, init="split")
    with pytest.raises(ConfigError, match="4 / 3 is no whole number"):
        moeify(network, num_experts=4, top_k=3, init="split")
    with pytest.raises(ConfigError, match="init='split' needs router='topk' or 'noisy_topk'"):
        moeify(network, num_experts=4, router="topp", init="split")


def test_dropout_falls_where_it_fell():
    torch.manual_seed(0)
    for p_hidden, p_out, make in (
        (0.5, 0.0, lambda: nn.Sequential(nn.Linear(8, 400), nn.ReLU(), nn.Dropout(0.5), nn.Linear(400, 8))),
        (0.0, 0.5, lambda: nn.Sequential(Residual(timm.layers.Mlp(8, 400, drop=(0.0, 0.5))))),
        (0.25, 0.25, lambda: nn.Sequential(Residual(Functional(p=0.25)))),
        (0.1, 0.0, lambda: torch_encoder(batch_first=True)),  # the second is the encoder layer's own, which stays
    ):
        grown, _ = moeify(make(), num_experts=2, every=1)
        layer = next(module for module in grown.modules() if isinstance(module, MoEBlock))
        hidden = layer.experts.dropout if isinstance(layer.experts, BlockExperts) else 0.0
        out = 0.0 if layer.out_dropout is None else layer.out_dropout.p
        assert (hidden, out) == (p_hidden, p_out)
        x = torch.randn(4, 8)
        assert not torch.equal(layer.train()(x), layer(x))  # it draws
        assert torch.equal(layer.eval()(x), layer(x))


def test_hidden_dropout_has_the_distribution_of_the_block():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 8))
    grown, _ = moeify(network, num_experts=4)
    x = torch.randn(1, 8).expand(20_000, 8)
    with torch.no_grad():
        old, new = network.train()(x), grown.train()(x)
    torch.testing.assert_close(new.mean(0), old.mean(0), atol=0.02, rtol=0)
    # each of two experts drops units of its own, so that the mean of both varies less
    assert bool((new.std(0) < old.std(0)).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_mode_and_what_is_frozen_are_kept(dtype):
    network = timm_vit().to(dtype).eval()
    for p in network.blocks[1].mlp.parameters():
        p.requires_grad_(False)
    grown, _ = moeify(network, num_experts=4, every=1)
    assert {p.dtype for p in grown.parameters()} == {dtype}
    assert not any(module.training for module in grown.modules())
    assert not any(p.requires_grad for p in grown.blocks[1].mlp.experts.parameters())
    assert all(p.requires_grad for p in grown.blocks[1].mlp.router.parameters())
    assert all(p.requires_grad for p in grown.blocks[0].mlp.parameters())
    assert grown(torch.randn(IMAGE, dtype=dtype)).dtype == dtype
    grown, _ = moeify(network.train(), num_experts=4)
    assert all(module.training for module in grown.modules())


def test_a_network_on_the_meta_device_is_planned_without_memory():
    with torch.device("meta"):
        network = timm_vit()
    grown, report = moeify(network, num_experts=4)
    real, same = moeify(timm_vit(), num_experts=4)
    assert all(p.is_meta for p in grown.parameters())
    assert {n: p.shape for n, p in grown.named_parameters()} == {n: p.shape for n, p in real.named_parameters()}
    assert report.difference is None
    assert [r.name for r in report.replaced] == [r.name for r in same.replaced]


class Twice(nn.Module):
    """One block in two places, and called twice in one of them."""

    def __init__(self):
        super().__init__()
        shared = timm.layers.Mlp(8, 16)
        self.first, self.second = Residual(shared), Residual(shared)

    def forward(self, x):
        return self.second(self.first(self.first(x)))


def test_a_block_that_is_used_several_times_becomes_one_layer():
    torch.manual_seed(0)
    network = Twice()
    before = outputs(network, TOKENS)
    grown, report = moeify(network, num_experts=4)
    torch.testing.assert_close(outputs(grown, TOKENS), before, atol=1e-5, rtol=1e-5)
    assert grown.first.inner is grown.second.inner
    assert len(report.replaced) == 1
    grown.train()
    for _ in range(2):  # a pass keeps its own three calls only
        out = grown(torch.randn(TOKENS))
        assert len(grown.first.inner.routings) == 3
        (out.mean() + collect_losses(grown)).backward()
    calls = [grown.first.inner.router.losses(routing)["balance"] for routing in grown.first.inner.routings]
    losses = grown.first.inner.auxiliary_losses()
    torch.testing.assert_close(losses["balance"], 0.01 * torch.stack(calls).mean())
    twin = pickle.loads(pickle.dumps(copy.deepcopy(grown)))
    assert twin.first.inner is twin.second.inner
    assert len(twin.first.inner.routings) == 0
    twin(torch.randn(TOKENS))
    assert len(twin.first.inner.routings) == 3


class Recurrent(nn.Module):
    """One block in one place, called three times."""

    def __init__(self):
        super().__init__()
        self.block = Residual(timm.layers.Mlp(8, 16))

    def forward(self, x):
        return self.block(self.block(self.block(x)))


@pytest.mark.parametrize("make", [Recurrent, lambda: nn.Sequential(*[Residual(timm.layers.Mlp(8, 16))] * 3)])
def test_every_call_of_a_pass_counts_in_the_losses(make):
    torch.manual_seed(0)
    network = make()
    before = outputs(network, TOKENS)
    grown, _ = moeify(network, num_experts=4)
    torch.testing.assert_close(outputs(grown, TOKENS), before, atol=1e-5, rtol=1e-5)
    (layer,) = [module for module in grown.modules() if isinstance(module, MoEBlock)]
    grown.train()
    for _ in range(2):
        (grown(torch.randn(TOKENS)).mean() + collect_losses(grown)).backward()
        assert len(layer.routings) == 3
    layer(torch.randn(TOKENS))  # alone, nobody counts
    assert len(layer.routings) == layer.calls_kept


def test_auto_takes_every_second_block_and_the_report_says_what_stays():
    network = timm_vit()
    grown, report = moeify(network)
    assert [r.name for r in report.replaced] == ["blocks.1.mlp", "blocks.3.mlp"]
    assert [(s.name, s.reason) for s in report.skipped] == [
        ("blocks.0.mlp", "every=2 takes others"), ("blocks.2.mlp", "every=2 takes others"),
    ]  # fmt: skip
    assert report.replaced[0].parameters_after > 7 * report.replaced[0].parameters_before
    frame = report.frame()
    assert list(frame["name"]) == ["blocks.1.mlp", "blocks.3.mlp", "blocks.0.mlp", "blocks.2.mlp"]
    assert "blocks.1.mlp: timm Mlp, 8 experts of 32 units" in str(report)
    assert [r.name for r in moeify(network, every=3)[1].replaced] == ["blocks.2.mlp"]
    assert [r.name for r in moeify(network, every=9)[1].replaced] == ["blocks.3.mlp"]
    again, _ = moeify(network, **report.arguments)
    assert again.state_dict().keys() == grown.state_dict().keys()


def test_auto_leaves_blocks_that_change_the_width_where_others_do_not():
    """The small networks of Swin V2 that map coordinates to biases."""
    network = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 8), Residual(Functional()))
    _, report = moeify(network, every=1)
    assert [r.name for r in report.replaced] == ["3.inner"]
    assert report.skipped[0].reason == "maps 2 numbers to 8: name it in layers to replace it"
    assert [r.name for r in moeify(network, layers="0")[1].replaced] == ["0"]


def test_layers_are_named_by_names_patterns_and_functions():
    network = timm_vit()
    for layers, expected in (
        ("blocks.2.mlp", [2]),
        (["blocks.0.mlp", "blocks.3.mlp"], [0, 3]),
        ("blocks.[12].mlp", [1, 2]),
        ("*", [0, 1, 2, 3]),
        (lambda name, module: name.endswith("0.mlp") and isinstance(module, timm.layers.Mlp), [0]),
    ):
        _, report = moeify(network, layers=layers)
        assert [r.name for r in report.replaced] == [f"blocks.{i}.mlp" for i in expected]
    with pytest.raises(ConfigError, match="names 'blocks.9.mlp', which is no block.*did you mean 'blocks"):
        moeify(network, layers="blocks.9.mlp")
    with pytest.raises(ConfigError, match="layers takes none of the blocks 'blocks.0.mlp'"):
        moeify(network, layers=lambda name, module: False)
    with pytest.raises(ConfigError, match="layers must be 'auto', names"):
        moeify(network, layers=[])


class Strange(nn.Module):
    """Two Linear layers that do something else."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.a(x) + self.b(x)


class Random(Functional):
    def forward(self, x):
        return super().forward(F.dropout(x, 0.5, self.training))


def hooked(module=None, name="fc1"):
    module = timm.layers.Mlp(8, 12) if module is None else module
    module.get_submodule(name).register_forward_hook(lambda *_: None)
    return module


def in_line():
    return nn.Sequential(nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8)), nn.LayerNorm(8))


def normed():
    module = timm.layers.Mlp(8, 12)
    nn.utils.parametrizations.weight_norm(module.fc1)
    return module


def tied():
    module = nn.Sequential(Residual(timm.layers.Mlp(8, 12)), nn.Linear(8, 12))
    module[1].weight = module[0].inner.fc1.weight
    return module


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()), "made of 1 Conv2d, 1 BatchNorm2d, 1"),
        (lambda: timm.layers.ConvMlp(8, 12), "its layers are convolutions: only Linear layers become experts"),
        (lambda: timm.layers.Mlp(8, 12, use_conv=True), "its layers are convolutions"),
        (lambda: timm.layers.Mlp(8, 12, norm_layer=nn.LayerNorm), "has a LayerNorm between its layers"),
        (
            lambda: timm.layers.Mlp(8, 12, act_layer=nn.PReLU),
            "is PReLU, which has parameters of its own; put",
        ),
        (lambda: timm.layers.Mlp(8, 12, act_layer=lambda: nn.Softmax(-1)), "is Softmax, which is not elementwise"),
        (hooked, "has hooks, which would be lost"),
        (lambda: hooked(in_line(), "0"), "has hooks, which would be lost"),
        (lambda: hooked(in_line(), "0.1"), "has hooks, which would be lost"),
        (lambda: hooked(in_line()[0], "1"), "has hooks, which would be lost"),
        (lambda: hooked(FeedForward(8, 12), ""), "has hooks, which would be lost"),
        (
            lambda: hooked(nn.TransformerEncoderLayer(8, 2, 12, activation=nn.GELU()), "activation"),
            "has hooks, which would be lost",
        ),
        (normed, "Linear.*|parametrized"),
        (tied, "'0.inner': shares weights with '1'|0.inner: shares weights with '1'"),
        (Strange, "its forward computes something else"),
        (Random, "its forward does something else in training"),
        (lambda: Functional(lambda x: x.cumsum(-1)), "its forward computes something else"),
        (lambda: MLP([8, 12, 8]), "has norms"),
        (lambda: MLP([8, 12, 12, 8], norm=None), "has 3 Linear layers"),
        (lambda: MLP([-1, 12, 8], norm=None), "not initialised yet"),
    ],
)
def test_what_cannot_be_replaced_is_refused_with_the_reason(make, reason):
    with pytest.raises(ConfigError, match=reason):
        moeify(make())


def test_impossible_arguments_are_refused():
    network = timm_vit()
    for arguments, message in (
        ({"num_experts": 0}, "num_experts must be"),
        ({"top_k": 9}, "top_k must be between 1 and num_experts=8"),
        ({"init": "clone"}, "init must be one of copy, split, noise"),
        ({"num_expert": 3}, "has no argument 'num_expert'; did you mean 'num_experts'"),
        ({"router": nn.Linear(2, 2)}, "router must be the name of a router"),
        ({"router": "topq"}, "did you mean 'topk'|did you mean 'topp'"),
        ({"router_args": {"slots": 3}}, "TopKRouter has no argument 'slots'"),
        ({"noise_std": -1.0}, "noise_std must be"),
    ):
        with pytest.raises(ConfigError, match=message):
            moeify(network, **arguments)
    grown, _ = moeify(network, router_args={"jitter": 0.1}, capacity_factor=1.5, balance_weight=0.5)
    layer = grown.blocks[1].mlp
    assert (layer.router.jitter, layer.capacity_factor, layer.balance_weight) == (0.1, 1.5, 0.5)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_torch_encoders_leave_their_fast_path():
    """In evaluation torch computes a layer, or with a mask all of them, from the weights of two Linear layers."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    network = nn.TransformerEncoder(layer, 3).eval()
    x, mask = torch.randn(4, 6, 8), torch.arange(6).expand(4, 6) >= torch.tensor([6, 5, 4, 3])[:, None]
    for every in (1, 2, 3):
        grown, _ = moeify(network, num_experts=4, every=every)
        with torch.no_grad():
            expected, found = network(x, src_key_padding_mask=mask), grown(x, src_key_padding_mask=mask)
        torch.testing.assert_close(found[~mask], expected[~mask], atol=1e-5, rtol=1e-5)
        assert any(module.last_routing is not None for module in grown.modules() if isinstance(module, MoEBlock))
    grown, _ = moeify(nn.Transformer(8, 2, 1, 1, 16, batch_first=True), num_experts=4, every=1)
    assert grown(x, x).shape == x.shape
    assert len([module for module in grown.modules() if isinstance(module, MoEBlock)]) == 2


def test_samples_are_what_the_network_means_by_them():
    """Per sample an expert takes a limited number of tokens: they must be those of one sequence, or of one image."""
    torch.manual_seed(0)
    x = torch.randn(5, 3, 8)  # five tokens of three samples
    grown, _ = moeify(torch_encoder(), num_experts=4, eval_capacity_factor=0.5, init="noise")
    grown.eval()
    one = torch.cat([grown(x[:, i : i + 1]) for i in range(3)], dim=1)
    torch.testing.assert_close(grown(x), one, atol=1e-5, rtol=1e-5)
    layer = moeify(nn.Sequential(Residual(Functional())), num_experts=4, eval_capacity_factor=0.5)[0].eval()
    images = torch.randn(2, 3, 4, 8)
    torch.testing.assert_close(layer(images), layer(images.flatten(1, 2)).view_as(images))
    assert layer(images[0, 0, 0]).shape == (8,)
    assert layer(images[:0]).shape == (0, 3, 4, 8)


def test_a_graph_network_takes_experts():
    torch.manual_seed(0)
    conv = GINConv(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)))
    x, edges = torch.randn(5, 8), torch.tensor([[0, 1, 2], [1, 2, 3]])
    grown, report = moeify(conv, num_experts=4)
    torch.testing.assert_close(grown(x, edges), conv(x, edges), atol=1e-5, rtol=1e-5)
    assert report.replaced[0].name == "nn"
    mlp, _ = moeify(MLP([8, 16, 8], norm=None), num_experts=4)
    mlp.reset_parameters()
    assert not torch.equal(mlp(x), moeify(MLP([8, 16, 8], norm=None), num_experts=4)[0](x))


def test_foreign_networks_become_experts_of_one_layer():
    torch.manual_seed(0)
    blocks = [redrawn(timm.layers.Mlp(8, 12)) for _ in range(3)]
    blocks[1].fc1.weight.data.mul_(2)
    layer, report = upcycle(blocks, 3, top_k=1)
    x = torch.randn(30, 8)
    out, routing = layer.eval()(x), layer.last_routing
    for row in range(30):
        expected = blocks[int(routing.choices[row, 0])](x[row])
        torch.testing.assert_close(out[row], expected * routing.weight[routing.position[row, 0]], atol=1e-5, rtol=1e-5)
    assert report.experts_before == 3
    dense, _ = merge_to_dense(upcycle([blocks[0]] * 2, 2)[0])
    torch.testing.assert_close(dense(x), blocks[0](x), atol=1e-5, rtol=1e-5)
    sequential = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))
    mixed, _ = upcycle([blocks[0], sequential], 2)
    torch.testing.assert_close(mixed.experts.weight1[1], sequential[0].weight.t())
    with pytest.raises(ConfigError, match="the same shape, activation and dropout: activation differs"):
        upcycle([blocks[0], timm.layers.Mlp(8, 12, act_layer=nn.ReLU)], 2)
    with pytest.raises(ConfigError, match="dense must be Linear - activation - Linear, got a Linear"):
        upcycle(nn.Linear(3, 3), 2)
