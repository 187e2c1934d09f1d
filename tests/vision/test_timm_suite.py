"""Whatever passes for timm's ViT passes for WideNet and ViT-MoE, but for a list of exceptions with their reasons."""

from pathlib import Path

import pytest
import timm
import timm.optim
import torch
from timm.layers import GluMlp, SwiGLU
from torch import nn

from moeapps.core import ExpertMLP, MoE
from moeapps.core.errors import ConfigError
from moeapps.vision import ViTMoE, WideNet
from tests.vision.timm_checks import CHECKS, FAMILIES, KNOWN, SIZES, images, maker

pytestmark = pytest.mark.filterwarnings("ignore")  # torch calls torch.jit deprecated; timm's tests run it all the same


@pytest.mark.slow  # whether the checks are right; the fast tests run each of them on our two families
@pytest.mark.parametrize("title", CHECKS)
def test_timms_own_vit_passes(title):
    CHECKS[title](maker("ViT"))


@pytest.mark.parametrize("family", ["WideNet", "ViT-MoE"])
@pytest.mark.parametrize("title", CHECKS)
def test_what_passes_for_timms_vit_passes_for_ours_or_is_refused_by_name(title, family):
    if (title, family) not in KNOWN:
        CHECKS[title](maker(family))
        return
    with pytest.raises(ConfigError, match=title.split("=")[0]):
        CHECKS[title](maker(family))


def test_the_exceptions_are_of_checks_and_families_that_exist():
    assert {title for title, _ in KNOWN} <= set(CHECKS)
    assert {family for _, family in KNOWN} <= set(FAMILIES)


def test_the_page_lists_every_check_and_every_exception():
    page = (Path(__file__).parents[2] / "docs" / "vision.md").read_text()
    for title in CHECKS:
        (line,) = [line for line in page.splitlines() if line.startswith(f"| {title} |")]
        cells = [f"no: {KNOWN[title, family]}" if (title, family) in KNOWN else "passed" for family in FAMILIES]
        assert line == f"| {title} | {' | '.join(cells)} |"


@pytest.mark.parametrize("cls", [WideNet, ViTMoE])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"act_layer": "gelu_tanh"}, "act_layer='gelu_tanh': experts have 'gelu', 'relu' or 'silu'"),
        ({"act_layer": "no_such"}, "act_layer="),
        ({"mlp_layer": GluMlp}, "mlp_layer=GluMlp: experts are"),
        ({"mlp_layer": SwiGLU}, "set act_layer='silu' with it"),
        ({"proj_bias": False, "expert_sizes": "geometric"}, "proj_bias cannot be set with expert_sizes"),
        ({"proj_drop_rate": 0.1, "router": "autonomy"}, "proj_drop_rate cannot be set with AutonomyRouter"),
        ({"act_layer": "relu", "router": "autonomy"}, "act_layer and mlp_layer cannot be set with AutonomyRouter"),
    ],
)
def test_what_experts_cannot_be_is_refused_by_name(cls, arguments, message):
    with pytest.raises(ConfigError, match=message):
        cls(**SIZES, **arguments)


def test_an_attention_that_depends_on_the_block_cannot_be_shared():
    from timm.models.vision_transformer import DiffAttention

    with pytest.raises(ConfigError, match="attn_layer=DiffAttention depends"):
        WideNet(**SIZES, attn_layer=DiffAttention)


def test_dropout_of_experts_is_that_of_a_plain_network():
    """One expert against the same layers of torch, with the same random numbers."""
    experts = ExpertMLP(8, 16, 1, dropout=0.5).train()
    x, offsets = torch.randn(6, 8), torch.tensor([0, 6], dtype=torch.int32)
    torch.manual_seed(0)
    found = experts(x, offsets)
    torch.manual_seed(0)
    hidden = nn.functional.dropout(nn.functional.gelu(x @ experts.weight1[0] + experts.bias1[0]), 0.5)
    expected = nn.functional.dropout(hidden @ experts.weight2[0] + experts.bias2[0], 0.5)
    torch.testing.assert_close(found, expected)
    plain = ExpertMLP(8, 16, 1).eval()
    plain.load_state_dict(experts.state_dict())
    torch.testing.assert_close(experts.eval()(x, offsets), plain(x, offsets), rtol=0, atol=0)
    with pytest.raises(ConfigError, match=r"dropout must be at least 0 and below 1, got 1\.5"):
        ExpertMLP(8, 16, 1, dropout=1.5)


@pytest.mark.parametrize("activation", ["gelu", "relu", "silu", "swiglu"])
@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.filterwarnings("ignore")
def test_a_scripted_layer_gives_the_layers_outputs(activation, top_k):
    layer = MoE(8, 4, top_k, experts=ExpertMLP(8, 16, 4, activation=activation, bias=top_k == 1)).eval()
    x = torch.randn(3, 5, 8)
    script = torch.jit.script(nn.Sequential(layer))
    torch.testing.assert_close(script(x), layer(x))
    x[1, 2, 3] = torch.nan
    torch.testing.assert_close(script(x), layer(x), equal_nan=True)
    assert script(x[:0]).shape == (0, 5, 8)


def test_a_scripted_layer_does_not_train():
    script = torch.jit.script(nn.Sequential(MoE(8, 4))).train()
    with pytest.raises(torch.jit.Error, match="a scripted mixture is for evaluation"):
        script(torch.randn(3, 8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"router": "topp"}, "router=TopPRouter"),
        ({"iterations": 2}, "iterations=2"),
        ({"eval_capacity_factor": 0.5}, r"eval_capacity_factor=0\.5"),
        ({"expert_sizes": "geometric"}, "experts=HeterogeneousExperts"),
    ],
)
def test_a_layer_that_cannot_be_a_script_says_why(arguments, message):
    with pytest.raises(ConfigError, match=message):
        torch.jit.script(MoE(8, 4, hidden_dim=16, **arguments))


def test_one_learning_rate_of_what_is_shared_is_the_geometric_mean_of_its_blocks_rates():
    model = maker("WideNet")()
    groups = timm.optim.param_groups_layer_decay(model, layer_decay=0.5)
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    blocks = [scales[id(block.norm1.weight)] for block in model.blocks]
    mean = torch.tensor(blocks).log().mean().exp().item()
    assert {round(scales[id(p)], 6) for p in model.shared.parameters()} == {round(mean, 6)}


def test_balance_losses_work_in_a_traced_model():
    from tests.vision.timm_checks import traced

    model = maker("WideNet")().train()
    graph = traced(model)
    (logits,) = graph(images()).values()
    (logits.mean() + sum(model.moe.auxiliary_losses().values())).backward()
    assert len(model.moe.routings) == len(model.blocks)
    assert model.moe.router.weight.grad.abs().sum() > 0
