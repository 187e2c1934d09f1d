"""The layer and its experts: what is not the same for every router (that is in test_invariants.py)."""

import pytest
import torch
from torch import nn

from moeapps.core import (
    ExpertChoiceRouter,
    ExpertList,
    ExpertMLP,
    HeterogeneousExperts,
    MoE,
    SoftRouter,
    TopKRouter,
    parameter_penalty_loss,
)
from moeapps.core.activations import ACTIVATIONS
from moeapps.core.backends import choose_backend, grouped_is_possible
from moeapps.core.errors import ConfigError, DataError
from tests.core.dense import BACKENDS, make, mixture


def test_permuting_experts_with_their_router_rows_changes_nothing():
    layer = make().eval()
    x = torch.randn(30, 8)
    before = layer(x)
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(parameter[order].clone())
    torch.testing.assert_close(layer(x), before, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_every_activation_equals_the_dense_mixture_forward_and_backward(backend, activation, bias):
    experts = ExpertMLP(8, 16, 4, out_dim=12, activation=activation, bias=bias)
    layer = MoE(8, 4, experts=experts, backend=backend)
    x = torch.randn(20, 8, requires_grad=True)
    out = layer(x)
    if not bias:
        experts.bias1 = experts.bias2 = 0.0  # what the reference adds
    reference = mixture(layer, x)
    torch.testing.assert_close(out, reference, atol=1e-5, rtol=1e-5)
    sources = [x, *layer.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad(out.square().sum(), sources, retain_graph=True),
        torch.autograd.grad(reference.square().sum(), sources),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_swiglu_multiplies_two_halves_of_the_first_layer():
    experts = ExpertMLP(4, 6, 1, activation="swiglu", bias=False)
    assert experts.weight1.shape == (1, 4, 12)
    x = torch.randn(5, 4)
    gate, value = x @ experts.weight1[0, :, :6], x @ experts.weight1[0, :, 6:]
    expected = (nn.functional.silu(gate) * value) @ experts.weight2[0]
    torch.testing.assert_close(experts(x, torch.tensor([0, 5], dtype=torch.int32)), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_nobody_are_zero_and_get_no_gradient(backend):
    experts = ExpertMLP(8, 16, 3)
    rows = torch.randn(10, 8, requires_grad=True)
    out = experts(rows, torch.tensor([0, 4, 4, 7], dtype=torch.int32), backend)
    out.square().sum().backward()
    assert not out[7:].any()
    assert not rows.grad[7:].any()
    assert rows.grad[:7].all(dim=1).any()


def test_arbitrary_modules_as_experts_equal_their_dense_mixture():
    modules = [nn.Linear(8, 3), nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))]
    layer = MoE(8, 2, router=TopKRouter(8, 2, 2), experts=ExpertList(modules, dim=8, out_dim=3))
    x = torch.randn(6, 8)
    p = (x @ layer.router.weight.T).softmax(-1)
    torch.testing.assert_close(layer(x), sum(p[:, e, None] * modules[e](x) for e in range(2)))


def test_an_idle_module_expert_gets_zero_gradients():
    layer = MoE(8, 4, experts=ExpertList([nn.Linear(8, 8) for _ in range(4)], dim=8))
    layer(torch.randn(1, 8)).sum().backward()
    idle = (layer.last_routing.counts == 0).nonzero()[:, 0].tolist()
    assert len(idle) == 2
    assert all(not layer.experts.experts[e].weight.grad.any() for e in idle)


def test_experts_of_different_sizes_are_mixed_and_penalised_by_size():
    layer = MoE(8, 3, experts=HeterogeneousExperts(8, hidden_dims=[4, 8, 24]), penalty_weight=1.0, balance_weight=0.0)
    x = torch.randn(40, 8)
    y = layer(x)
    routing = layer.last_routing
    weight = torch.zeros(40, 3).index_put((routing.token, routing.expert), routing.weight)
    torch.testing.assert_close(y, sum(weight[:, e, None] * layer.experts.experts[e](x) for e in range(3)))
    f, p = routing.counts / routing.counts.sum(), routing.probabilities.mean(0)
    expected = 3 * (torch.tensor([4.0, 8.0, 24.0]) / 12 * f * p).sum()
    torch.testing.assert_close(parameter_penalty_loss(routing, (4, 8, 24)), expected)
    torch.testing.assert_close(layer.auxiliary_losses()["penalty"], expected)


def test_an_expert_with_a_wrong_output_is_named():
    layer = MoE(8, 2, experts=ExpertList([nn.Linear(8, 8), nn.Linear(8, 4)], dim=8))
    with pytest.raises(ConfigError, match=r"expert 1 \(Linear\)"):
        layer(torch.randn(20, 8))


def test_router_and_experts_of_other_sizes_are_refused():
    with pytest.raises(ConfigError, match="router is built for dim=8, num_experts=3"):
        MoE(8, 4, router=TopKRouter(8, 3))
    with pytest.raises(ConfigError, match="experts is built for dim=4"):
        MoE(8, 4, experts=ExpertMLP(4, 16, 4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "fast"}, "backend must be one of auto, loop, bmm, grouped, masked, got 'fast'"),
        ({"router": "topq"}, "did you mean 'topp'|did you mean 'topk'"),
        ({"router": "moeapps.core.MoE"}, "router must be one of"),
        ({"balance_weight": -1}, "balance_weight"),
        ({"hidden_dim": 0}, "hidden_dim"),
        ({"overflow": "explode"}, "overflow must be one of drop, next_best"),
        ({"experts": ExpertMLP(8, 4, 2, activation="gelu"), "num_experts": 4}, "experts is built for"),
    ],
)
def test_impossible_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(ConfigError, match=message):
        MoE(**{"dim": 8, "num_experts": 4, **arguments})


@pytest.mark.parametrize("factor", [0, -1, float("nan"), float("inf")])
def test_an_impossible_capacity_is_refused(factor):
    with pytest.raises(ConfigError, match="capacity_factor"):
        MoE(8, 4, capacity_factor=factor)


@pytest.mark.parametrize("router", [ExpertChoiceRouter(8, 4), SoftRouter(8, 4)])
def test_capacity_is_refused_where_tokens_do_not_choose(router):
    with pytest.raises(ConfigError, match="has no meaning"):
        MoE(8, 4, router=router, capacity_factor=1.0)


def test_a_dropped_token_gets_zero_and_the_next_best_expert_if_asked():
    router = TopKRouter(8, 4, 1)
    with torch.no_grad():
        router.weight.zero_()
        router.weight[:, 0] = torch.tensor([3.0, 2.0, 1.0, 0.0])  # every token prefers 0, then 1, 2, 3
    x = torch.rand(8, 8) + 0.5
    drop = MoE(8, 4, router=router, capacity_factor=1.0)
    y = drop(x)
    assert drop.last_routing.counts.tolist() == [2, 0, 0, 0]
    assert int(drop.last_routing.dropped) == 6
    assert y[:2].any(dim=1).all()
    assert not y[2:].any()
    best = MoE(8, 4, router=router, experts=drop.experts, capacity_factor=1.0, overflow="next_best")
    best(x)
    assert best.last_routing.counts.tolist() == [2, 2, 2, 2]
    assert best.last_routing.choices[:, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    torch.testing.assert_close(
        best.last_routing.weight[best.last_routing.position][:, 0],
        best.last_routing.probabilities.gather(1, best.last_routing.choices)[:, 0],
    )


def test_first_choices_come_before_second_choices():
    router = TopKRouter(2, 2, 2)
    with torch.no_grad():
        router.weight.copy_(torch.eye(2))
    layer = MoE(2, 2, router=router, capacity_factor=0.5)  # room for 2 of 4 assignments each
    layer(torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 2.0], [2.0, 0.0]]))
    used = layer.last_routing.used()
    assert used.tolist() == [[True, False], [False, True], [False, True], [True, False]]


def test_token_ids_choose_the_expert_of_a_hash_router():
    layer = make("hash", experts=8)
    ids = torch.arange(4000)
    layer(torch.randn(4000, 8), ids=ids)
    first = layer.last_routing.choices[:, 0]
    layer(torch.randn(4000, 8), ids=ids)
    assert torch.equal(layer.last_routing.choices[:, 0], first)
    load = layer.last_routing.counts / 4000
    assert load.min() > 0.1
    assert load.max() < 0.15
    with pytest.raises(DataError, match="ids must be whole numbers of shape"):
        layer(torch.randn(5, 8), ids=torch.rand(5))


def test_grouped_products_fall_back_where_they_cannot_be_computed():
    assert not grouped_is_possible(torch.float64, 8)
    assert not grouped_is_possible(torch.float32, 7)
    assert grouped_is_possible(torch.float32, 8, 16)
    cpu = {"device": torch.device("cpu"), "counts": torch.tensor([4, 3, 3, 0])}
    assert choose_backend("grouped", dtype=torch.float64, widths=(8, 8), **cpu) == "bmm"
    assert choose_backend("grouped", dtype=torch.float32, widths=(8, 8), **cpu) == "grouped"


def test_auto_looks_at_the_load():
    cpu = {"device": torch.device("cpu"), "dtype": torch.float32}
    sizes = {"widths": (128, 512, 128), **cpu}
    assert choose_backend("auto", counts=torch.full((8,), 1024), **sizes) == "loop"  # long products
    assert choose_backend("auto", counts=torch.full((8,), 32), **sizes) == "bmm"  # many short ones
    assert choose_backend("auto", counts=torch.tensor([249, 1, 1, 1, 1, 1, 1, 1]), **sizes) == "loop"  # mostly padding


def test_capacity_in_evaluation_keeps_the_most_certain_tokens_of_each_sample():
    layer = MoE(8, 4, 2, eval_capacity_factor=0.5).eval()
    x = torch.randn(5, 16, 8)
    y = layer(x)
    kept = layer.last_routing.used().view(5, 16, 4)
    layer.eval_capacity_factor = None
    whole = layer(x)
    routing = layer.last_routing
    first = routing.weight[routing.position][:, 0].view(5, 16)
    wanted = routing.used().view(5, 16, 4)
    best = routing.choices[:, 0].view(5, 16)
    assert torch.equal(kept.sum(1), wanted.sum(1).clamp(max=4))  # 0.5 * 16 * 2 / 4 of each sample and expert
    for sample in range(5):
        for expert in range(4):
            mine = (best[sample] == expert).nonzero()[:, 0]
            ranked = mine[first[sample][mine].argsort(descending=True)]
            assert kept[sample, ranked[:4], expert].all()  # first choices, most certain first
    everything = (kept == wanted).all(dim=2)
    torch.testing.assert_close(y[everything], whole[everything])
    layer.eval_capacity_factor = 0.5
    for sample in range(5):  # batch mates do not matter
        torch.testing.assert_close(layer(x[sample : sample + 1])[0], y[sample], atol=1e-6, rtol=1e-6)
    layer.train()
    torch.testing.assert_close(layer(x), whole)  # training is not limited by it
    layer.eval_capacity_factor = 2.0  # an expert takes every token of a sample
    torch.testing.assert_close(layer.eval()(x), whole, atol=0, rtol=0)


def test_an_impossible_capacity_in_evaluation_is_refused():
    with pytest.raises(ConfigError, match="eval_capacity_factor must be a number above 0"):
        MoE(8, 4, eval_capacity_factor=0.0)
    with pytest.raises(ConfigError, match="eval_capacity_factor has no meaning with SoftRouter"):
        MoE(8, 4, router="soft", eval_capacity_factor=1.0)
