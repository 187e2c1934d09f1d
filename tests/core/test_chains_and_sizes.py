"""Chains of experts, experts of different sizes, and the mutual-information loss: against their formulas."""

import copy
import pickle
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from moeapps.core import ExpertMLP, HeterogeneousExperts, MoE, TopKRouter
from moeapps.core.errors import ConfigError
from moeapps.core.expert_sizes import hidden_sizes
from moeapps.core.surgery import compress_experts, measure_use, merge_experts, prune_experts
from moeapps.vision.widenet import SharedMoE, ViTMoE, WideNet

IMAGES = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 8, "depth": 3, "num_heads": 2, "num_classes": 3}


def one_expert(experts, e, x):
    """Output of expert e of an ExpertMLP."""
    hidden = F.gelu(x @ experts.weight1[e] + experts.bias1[e], approximate="none")
    return hidden @ experts.weight2[e] + experts.bias2[e]


def chain(layer, x):
    """h_t = h_(t-1) + sum of the k best experts of h_(t-1), their weights made to sum to 1; token by token."""
    rows = []
    for token in x:
        h = token
        for router in layer.routers:
            p = (router.weight @ h).softmax(0)
            weight, best = p.topk(2)
            added = sum(
                w / weight.sum() * one_expert(layer.experts, int(e), h) for w, e in zip(weight, best, strict=True)
            )
            h = h + added
        rows.append(h - token)
    return torch.stack(rows)


@pytest.mark.parametrize("backend", ["loop", "bmm"])
@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_a_chain_applies_the_experts_in_turn_with_a_router_for_each_iteration(iterations, backend):
    torch.manual_seed(0)
    layer = MoE(8, 4, 2, 6, iterations=iterations, backend=backend).double()
    x = torch.randn(7, 8, dtype=torch.float64)
    torch.testing.assert_close(layer(x), chain(layer, x))
    weights = [router.weight for router in layer.routers]
    assert len(weights) == len({id(w) for w in weights}) == len(layer.routings) == iterations
    assert all(not torch.equal(a, b) for a, b in pairwise(weights))


def test_one_iteration_is_the_layer_without_the_argument():
    torch.manual_seed(0)
    plain = MoE(8, 4)
    torch.manual_seed(0)
    same = MoE(8, 4, iterations=1)
    assert list(plain.state_dict()) == list(same.state_dict())
    x = torch.randn(5, 8)
    assert torch.equal(plain(x), same(x))


def test_losses_of_a_chain_are_the_mean_over_its_iterations_and_reach_every_router():
    torch.manual_seed(0)
    layer = MoE(8, 4, iterations=3, balance_weight=0.5, z_weight=0.2)
    layer(torch.randn(9, 8))
    losses = layer.auxiliary_losses()
    each = [router.losses(routing) for router, routing in zip(layer.routers, layer.routings, strict=True)]
    torch.testing.assert_close(losses["balance"], 0.5 * sum(found["balance"] for found in each) / 3)
    torch.testing.assert_close(losses["z"], 0.2 * sum(found["z"] for found in each) / 3)
    sum(losses.values()).backward()
    assert all(router.weight.grad.abs().sum() > 0 for router in layer.routers)


def test_every_router_of_a_chain_is_updated_by_its_own_routing():
    layer = MoE(8, 6, 2, router="shared", iterations=2)
    layer.train()
    layer(torch.randn(20, 8))
    layer.update(0.5)
    for router, routing in zip(layer.routers, layer.routings, strict=True):
        counts = routing.valid_counts()[router.num_shared :]
        torch.testing.assert_close(router.balance_bias.sign(), torch.sign(counts.mean() - counts))


def test_a_chain_survives_copies_and_pickles_and_pruning_and_merging_reach_all_its_routers():
    torch.manual_seed(0)
    layer = MoE(8, 4, iterations=2).eval()
    x = torch.randn(6, 8)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))
    use = measure_use(layer, [x])
    assert float(use[""].weight.sum()) == pytest.approx(1.0)
    pruned, report = prune_experts(layer, 3, use)
    kept = [group[0] for group in report[""].groups]
    for old, new in zip(layer.routers, pruned.routers, strict=True):
        assert torch.equal(new.weight, old.weight[kept])
    merged, report = merge_experts(layer, 2, use)
    torch.testing.assert_close(merged.routers[1].router.weight, layer.routers[1].weight)
    assert merged(x).shape == x.shape
    whole, _ = merge_experts(layer, 4, use)
    torch.testing.assert_close(whole(x), layer(x))
    assert compress_experts(layer, 2)[0](x).shape == x.shape


@pytest.mark.parametrize("kind", [WideNet, ViTMoE])
def test_vision_networks_chain_their_experts(kind):
    torch.manual_seed(0)
    model = kind(**IMAGES, num_experts=3, iterations=2, balance_loss="mutual_information").train()
    model(torch.randn(2, 1, 8, 8))
    layers = [module for module in model.modules() if isinstance(module, MoE)]
    assert all(len(layer.routers) == 2 for layer in layers)
    if kind is WideNet:
        assert len(model.moe.routings) == 2 * 3  # two for each of three blocks
        each = [
            router.losses(routing)["z"]
            for router, routing in zip(3 * model.moe.routers, model.moe.routings, strict=True)
        ]
        model.moe.z_weight = 1.0
        torch.testing.assert_close(model.moe.auxiliary_losses()["z"], torch.stack(each).mean())
    loss = sum(sum(layer.auxiliary_losses().values()) for layer in layers)
    loss.backward()
    assert all(router.weight.grad.abs().sum() > 0 for layer in layers for router in layer.routers)


def test_a_chain_needs_experts_that_give_what_they_take():
    with pytest.raises(ConfigError, match="apply the experts to their own outputs"):
        MoE(8, 2, experts=ExpertMLP(8, 4, 2, out_dim=3), iterations=2)
    with pytest.raises(ConfigError, match="iterations must be a whole number"):
        MoE(8, 2, iterations=0)


def test_a_routers_arguments_are_those_of_the_later_routers():
    layer = MoE(8, 4, router=TopKRouter(8, 4, 3, jitter=0.25, renormalize=False), iterations=2)
    first, second = layer.routers
    assert first.arguments() == second.arguments()
    assert (second.top_k, second.jitter, second.renormalize) == (3, 0.25, False)


# ---------------------------------------------------------------- mutual information


def test_the_loss_is_minus_the_mutual_information_of_the_released_gate():
    """-(sum_e p_e log p_e of each token, on average, + entropy of the mean p), the router's factor in front."""
    torch.manual_seed(0)
    layer = MoE(8, 4, balance_weight=0.3, balance_loss="mutual_information").double()
    x = torch.randn(11, 8, dtype=torch.float64)
    layer(x)
    p = (x @ layer.router.weight.t()).softmax(1)
    mean = p.mean(0)
    h_e = -(mean * mean.log()).sum()
    neg_h_e_given_x = (p * p.log()).sum() / len(p)
    torch.testing.assert_close(layer.auxiliary_losses()["balance"], -0.3 * (neg_h_e_given_x + h_e))


def test_training_on_it_alone_makes_tokens_sure_and_experts_used():
    torch.manual_seed(0)
    layer = MoE(4, 4, 1, balance_weight=1.0, z_weight=0.0, balance_loss="mutual_information")
    x = torch.randn(256, 4)
    optimizer = torch.optim.Adam(layer.router.parameters(), lr=0.1)
    for _ in range(100):
        layer(x)
        optimizer.zero_grad()
        layer.auxiliary_losses()["balance"].backward()
        optimizer.step()
    layer(x)
    assert layer.auxiliary_losses()["balance"] < -1.0  # log 4 = 1.39
    assert (layer.last_routing.counts > 25).all()


@pytest.mark.parametrize("router", ["shared", "hash", "soft"])
def test_a_router_without_a_balance_loss_has_none_to_replace(router):
    layer = MoE(8, 4, router=router, balance_loss="mutual_information")
    layer(torch.randn(2, 5, 8), **({"ids": torch.zeros(2, 5, dtype=torch.int64)} if router == "hash" else {}))
    with pytest.raises(ConfigError, match="has none: leave it 'load'"):
        layer.auxiliary_losses()
    with pytest.raises(ConfigError, match="balance_loss must be"):
        MoE(8, 4, balance_loss="mi")


# ---------------------------------------------------------------- sizes


def test_sizes_by_name_share_out_the_units_of_experts_of_one_size():
    assert hidden_sizes("arithmetic", 16, 8) == (9, 11, 13, 15, 17, 19, 21, 23)
    assert hidden_sizes("geometric", 255, 8) == (8, 16, 32, 64, 128, 256, 512, 1024)
    for name in ("arithmetic", "geometric"):
        for dim, experts in ((3, 5), (128, 8), (100, 3), (7, 1), (1, 6)):
            sizes = hidden_sizes(name, dim, experts)
            assert sum(sizes) == dim * experts
            assert list(sizes) == sorted(sizes)
            assert min(sizes) >= 1


def test_a_layer_with_sizes_has_such_experts_and_their_penalty():
    torch.manual_seed(0)
    layer = MoE(8, 4, 2, 16, expert_sizes="geometric", penalty_weight=0.5).double()
    assert isinstance(layer.experts, HeterogeneousExperts)
    assert layer.experts.sizes == (4, 9, 17, 34)
    x = torch.randn(12, 8, dtype=torch.float64)
    layer(x)
    routing = layer.last_routing
    share = routing.counts.double() / routing.counts.sum()
    size = torch.tensor([4.0, 9.0, 17.0, 34.0], dtype=torch.float64)
    expected = 4 * (size / size.mean() * share * routing.probabilities.mean(0)).sum()
    torch.testing.assert_close(layer.auxiliary_losses()["penalty"], 0.5 * expected)
    explicit = MoE(8, 3, expert_sizes=[5, 1, 7])
    assert [expert.hidden_dim for expert in explicit.experts.experts] == [5, 1, 7]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"expert_sizes": "hybrid"}, "expert_sizes must be one of arithmetic, geometric"),
        ({"expert_sizes": [4, 4]}, "a width for each of the 4 experts, got 2"),
        ({"expert_sizes": [4, 4, 0, 4]}, "expert_sizes must be a whole number"),
        ({"expert_sizes": "geometric", "experts": ExpertMLP(8, 4, 4)}, "those that were given have their own"),
        ({"expert_sizes": "geometric", "router": "autonomy"}, "whose experts are of one size"),
    ],
)
def test_impossible_sizes_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        MoE(8, 4, **arguments)


def test_surgery_on_experts_of_different_sizes_is_refused_by_name():
    layer = MoE(8, 4, expert_sizes="arithmetic")
    x = torch.randn(6, 8)
    use = measure_use(layer, [x])
    for operation in (lambda: prune_experts(layer, 2, use), lambda: merge_experts(layer, 2, use)):
        with pytest.raises(ConfigError, match="stacked weights .ExpertMLP., got HeterogeneousExperts"):
            operation()
    with pytest.raises(ConfigError, match="needs experts of type ExpertMLP, got HeterogeneousExperts"):
        compress_experts(layer, 2)


@pytest.mark.parametrize("kind", [WideNet, ViTMoE])
def test_vision_networks_take_sizes_and_initialise_them_as_timm_does(kind):
    torch.manual_seed(0)
    model = kind(**IMAGES, num_experts=3, expert_sizes="arithmetic", mlp_ratio=4.0)
    layer = next(module for module in model.modules() if isinstance(module, MoE))
    assert isinstance(layer, SharedMoE) == (kind is WideNet)
    assert layer.experts.sizes == hidden_sizes("arithmetic", 32, 3)
    for expert in layer.experts.experts:
        assert isinstance(expert.first, nn.Linear)
        assert not expert.first.bias.any()
        assert expert.first.weight.std() < 0.03
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 3)
