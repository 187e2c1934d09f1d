"""The memory of large gradients is used again, but never while something looks at it."""

import copy
import gc

import pytest
import torch

from moeapps.core import MoE, buffers
from moeapps.core.buffers import gradient_buffer, kept_bytes


@pytest.fixture(autouse=True)
def every_gradient_is_large(monkeypatch):
    monkeypatch.setattr(buffers, "LARGE", 1)


def trained(backend: str = "loop") -> tuple[MoE, torch.Tensor]:
    torch.manual_seed(0)
    return MoE(8, 4, 2, 16, backend=backend), torch.randn(12, 8)


def step(layer: MoE, x: torch.Tensor) -> torch.Tensor:
    layer(x).square().sum().backward()
    return layer.experts.weight1.grad


@pytest.mark.parametrize("backend", ["loop", "bmm"])
def test_the_next_step_gets_the_same_memory(backend):
    layer, x = trained(backend)
    places = set()
    for _ in range(3):
        layer.zero_grad()
        places.add(step(layer, x).data_ptr())
    assert len(places) == 1


@pytest.mark.parametrize("backend", ["loop", "bmm"])
def test_gradients_in_kept_memory_are_those_in_new_memory(backend, monkeypatch):
    layer, x = trained(backend)
    step(layer, x)
    layer.zero_grad()
    kept = step(layer, x).clone()
    monkeypatch.setattr(buffers, "LARGE", 2**40)
    layer.zero_grad()
    assert torch.equal(step(layer, x), kept)


@pytest.mark.parametrize("look", [torch.Tensor.detach, lambda grad: grad[1:, 2], lambda grad: grad.numpy()])
def test_what_still_looks_at_a_gradient_keeps_its_values(look):
    layer, x = trained()
    seen = look(step(layer, x))
    before = copy.deepcopy(seen)
    layer.zero_grad()
    step(layer, 2 * x)
    assert (torch.as_tensor(seen) == torch.as_tensor(before)).all()


def test_gradients_accumulate():
    layer, x = trained()
    once = step(layer, x).clone()
    torch.testing.assert_close(step(layer, x), 2 * once)
    torch.testing.assert_close(step(layer, x), 3 * once)


def test_two_calls_of_a_layer_in_one_pass_add_their_gradients():
    layer, x = trained()
    once = step(layer, x).clone()
    layer.zero_grad()
    (layer(x).square().sum() + layer(x).square().sum()).backward()
    torch.testing.assert_close(layer.experts.weight1.grad, 2 * once)


def test_a_graph_that_is_kept_gives_the_same_gradient_again():
    layer, x = trained()
    loss = layer(x).square().sum()
    first, again = (torch.autograd.grad(loss, layer.experts.weight1, retain_graph=True)[0] for _ in range(2))
    assert first.data_ptr() != again.data_ptr()
    assert torch.equal(first, again)


def test_memory_is_released_with_the_layer():
    layer, x = trained()
    step(layer, x)
    weights = [layer.experts.weight1, layer.experts.weight2]
    assert kept_bytes(layer.parameters()) == sum(weight.nbytes for weight in weights)
    before = len(buffers._BLOCKS)
    del layer, weights
    gc.collect()
    assert len(buffers._BLOCKS) <= before - 2


def test_gradients_outlive_their_layer():
    layer, x = trained()
    grad = step(layer, x)
    before = grad.clone()
    del layer
    gc.collect()
    assert torch.equal(grad, before)


def test_a_parameter_that_became_larger_gets_larger_memory():
    weight = torch.nn.Parameter(torch.zeros(2, 3))
    gradient_buffer(weight)
    weight.data = torch.zeros(4, 3)
    assert gradient_buffer(weight).shape == (4, 3)


def test_a_weight_that_is_computed_has_no_memory_of_its_own():
    weight = torch.nn.Parameter(torch.zeros(2, 3)) * 1
    gradient_buffer(weight)
    assert kept_bytes([weight]) == 0


def test_a_copied_layer_has_gradients_of_its_own():
    layer, x = trained()
    grad = step(layer, x)
    before = grad.clone()
    other = copy.deepcopy(layer)
    assert step(other, 2 * x).data_ptr() != grad.data_ptr()
    assert torch.equal(grad, before)
