"""Every router under torch.func's transforms and under activation checkpointing: the same answers, or a refusal."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from moeapps.core import HeterogeneousExperts, MoE, make_router
from moeapps.core.errors import ConfigError
from moeapps.core.experts import FactoredExpertMLP, LowRankExpertMLP
from tests.core.dense import ROUTERS, make

every_router = pytest.mark.parametrize("router", ROUTERS)
WITHOUT_LOSSES = ("hash", "thor", "smoe_dropout", "soft")


def loss_of(layer):
    """Loss as a function of parameters and tokens, auxiliary losses included."""
    buffers = dict(layer.named_buffers())

    def loss(parameters, x):
        out = torch.func.functional_call(layer, {**parameters, **buffers}, (x,))
        return out.square().sum() + sum(layer.auxiliary_losses().values())

    return loss


def assert_per_sample_gradients(layer, xs):
    parameters, loss = dict(layer.named_parameters()), loss_of(layer)
    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, xs)
    for i, x in enumerate(xs):
        expected = torch.autograd.grad(loss(parameters, x), list(parameters.values()), allow_unused=True)
        for (name, p), gradient in zip(parameters.items(), expected, strict=True):
            torch.testing.assert_close(
                found[name][i], torch.zeros_like(p) if gradient is None else gradient, atol=1e-5, rtol=1e-4
            )


@every_router
def test_gradients_per_sample_by_vmap_are_those_of_a_loop(router):
    assert_per_sample_gradients(make(router).eval(), torch.randn(3, 2, 5, 8))


@pytest.mark.parametrize(
    "options", [{"capacity_factor": 1.0}, {"eval_capacity_factor": 0.5}, {"experts": FactoredExpertMLP(8, 16, 4, 3)},
                {"experts": LowRankExpertMLP(8, 16, 4, 3)},
                {"experts": HeterogeneousExperts(8, [4, 5, 6, 7])}]
)  # fmt: skip
def test_gradients_per_sample_hold_with_a_capacity_and_other_experts(options):
    assert_per_sample_gradients(MoE(8, 4, **options).train("capacity_factor" in options), torch.randn(3, 2, 5, 8))


@every_router
@pytest.mark.parametrize("training", [True, False])
def test_gradients_and_directional_derivatives_of_torch_func_are_autograds(router, training):
    layer = make(router).train(training)
    parameters, loss, x = dict(layer.named_parameters()), loss_of(layer), torch.randn(6, 8)
    torch.manual_seed(1)
    found = torch.func.grad(loss)(parameters, x)
    torch.manual_seed(1)
    expected = torch.autograd.grad(loss(parameters, x), list(parameters.values()), allow_unused=True)
    for name, gradient in zip(parameters, expected, strict=True):
        wanted = torch.zeros_like(parameters[name]) if gradient is None else gradient
        torch.testing.assert_close(found[name], wanted, atol=1e-5, rtol=1e-4)
    layer.update(0.5)  # what a training loop does next
    layer.eval()
    direction = torch.randn(6, 8)
    slope = torch.func.jvp(layer, (x,), (direction,))[1]
    jacobian = torch.autograd.functional.jacobian(layer, x)
    torch.testing.assert_close(slope, torch.einsum("ndme,me->nd", jacobian, direction), atol=1e-5, rtol=1e-4)
    with forward_ad.dual_level():
        dual = layer(forward_ad.make_dual(x, direction))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, slope)


def test_what_vmap_cannot_run_is_named():
    layer = MoE(8, 4, capacity_factor=0.5, overflow="next_best")
    with pytest.raises(ConfigError, match="overflow='next_best' cannot run under torch.func.vmap"):
        torch.func.vmap(layer)(torch.randn(3, 6, 8))
    torch.func.grad(lambda x: layer(x).sum())(torch.randn(6, 8))  # one at a time it runs


def trained(router, reentrant, capacity_factor=None):
    """Output, losses and gradients of one step, checkpointed unless ``reentrant`` is None."""
    torch.manual_seed(3)
    layer, x = make(router, capacity_factor=capacity_factor), torch.randn(6, 5, 8, requires_grad=True)
    torch.manual_seed(1)
    out = layer(x) if reentrant is None else checkpoint(layer, x, use_reentrant=reentrant)
    kept = layer.last_routing
    losses = layer.auxiliary_losses()
    (out.square().sum() + sum(losses.values())).backward()
    assert layer.last_routing is kept  # not the one of the second pass
    return [out, *losses.values(), x.grad, *(p.grad for p in layer.parameters() if p.grad is not None)]


@every_router
@pytest.mark.parametrize("capacity_factor", [None, 1.0])
def test_checkpointing_changes_neither_losses_nor_gradients(router, capacity_factor):
    if capacity_factor is not None and not make_router(router, 8, 4).token_choice:
        pytest.skip("has no capacity")
    plain, again = trained(router, None, capacity_factor), trained(router, False, capacity_factor)
    assert len(plain) == len(again)
    for ours, theirs in zip(again, plain, strict=True):
        torch.testing.assert_close(ours, theirs)


@every_router
def test_reentrant_checkpointing_is_exact_or_refused_where_losses_would_train_nothing(router):
    if router in WITHOUT_LOSSES:
        for ours, theirs in zip(trained(router, True), trained(router, None), strict=True):
            torch.testing.assert_close(ours, theirs)
    else:
        with pytest.raises(ConfigError, match="use_reentrant=False"):
            trained(router, True)


def test_losses_of_a_pass_without_gradients_can_be_read_where_nothing_would_be_trained_by_them():
    layer, x = MoE(8, 4), torch.randn(5, 8)
    with torch.no_grad():
        layer(x)
        assert layer.auxiliary_losses()["balance"] > 0
    layer.eval()
    assert layer.auxiliary_losses()["balance"] > 0
    layer.train().requires_grad_(False)
    assert layer.auxiliary_losses()["balance"] > 0
    layer.requires_grad_(True).balance_weight = layer.z_weight = 0.0
    assert layer.auxiliary_losses()["balance"] == 0


def test_an_export_leaves_the_routing_of_the_last_pass_as_it_was():
    layer, x = MoE(8, 4).eval(), torch.randn(5, 8)
    layer(x)
    kept, losses = layer.last_routing, layer.auxiliary_losses()
    torch.export.export(layer, (x,))
    assert layer.last_routing is kept
    assert layer.auxiliary_losses() == losses
