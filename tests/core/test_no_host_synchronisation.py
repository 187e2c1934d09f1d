"""A dropless training step does not wait for the device, shown without one: fake tensors on a fake CUDA device.

A value that the host would have to read (``.item()``, ``.tolist()``, a shape that depends on data) raises, since a fake
tensor has none; a copy between host and device is refused by :class:`Watch`. ``tests/core/test_gpu.py`` shows the same
on a real device.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from moeapps import registry
from moeapps.core import MoE, TopKRouter, make_router

DIM, EXPERTS, TOKENS = 32, 4, 64
ROUTERS = [entry.alias for entry in registry.entries("router")]


class HostCopy(Exception):
    """A copy between host and device."""


class Watch(TorchDispatchMode):
    """Refuse copies between host and device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        out = func(*args, **(kwargs or {}))
        devices = {t.device.type for t in tree_leaves((args, out)) if isinstance(t, Tensor)}
        if "copy" in func.name() and len(devices) > 1:
            raise HostCopy(func.name())
        return out


@contextmanager
def fake_gpu() -> Iterator[None]:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # Module.to cannot convert fake parameters
    try:
        with FakeTensorMode(), torch.device("cuda"):
            yield
    finally:
        torch.set_default_dtype(default)


def backward(out: Tensor) -> None:
    """What ``out.backward()`` does, without torch's engine, which wants a real device."""
    waiting: dict[Any, int] = {}
    nodes, seen = [out.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        for following, _ in node.next_functions:
            if following is not None:
                waiting[following] = waiting.get(following, 0) + 1
                nodes.append(following)
    grads: dict[Any, dict[int, Tensor]] = {out.grad_fn: {0: torch.ones_like(out)}}
    ready = [out.grad_fn]
    while ready:
        node = ready.pop()
        given = grads.pop(node, {})
        if hasattr(node, "variable"):  # a parameter
            node.variable.grad = given.get(0)
            continue
        inputs = [given.get(i) for i in range(max(given, default=0) + 1)]
        results = node(*inputs) if callable(node) else node.apply(*inputs)  # a node of torch's, or of a Function
        results = results if isinstance(results, tuple) else (results,)
        for (following, number), grad in zip(node.next_functions, results, strict=True):
            if following is None:
                continue
            if grad is not None:
                mine = grads.setdefault(following, {})
                grad = grad.sum_to_size(following._input_metadata[number].shape)  # of what was broadcast
                mine[number] = mine[number] + grad if number in mine else grad
            waiting[following] -= 1
            if not waiting[following]:
                ready.append(following)


def step(layer: MoE) -> None:
    x = torch.randn(TOKENS, DIM, requires_grad=True)
    with Watch(), torch.enable_grad():
        backward(layer(x).float().square().mean() + sum(layer.auxiliary_losses().values()))
        layer.update(0.5)
    assert all(p.grad is not None and p.grad.shape == p.shape for p in (x, *layer.parameters()) if p.requires_grad)


@pytest.mark.parametrize("backend", ["grouped", "masked"])
@pytest.mark.parametrize("router", ROUTERS)
def test_a_dropless_training_step_never_waits_for_the_device(router, backend):
    with fake_gpu():
        step(MoE(DIM, EXPERTS, router=make_router(router, DIM, EXPERTS, 2), backend=backend))


@pytest.mark.parametrize("options", [{"backend": "auto"}, {"backend": "grouped", "capacity_factor": 1.0}], ids=str)
def test_nor_does_one_with_the_default_backend_or_a_capacity(options):
    with fake_gpu():
        step(MoE(DIM, EXPERTS, 2, **options))


@pytest.mark.parametrize(
    "options", [{"backend": "loop"}, {"backend": "bmm"}, {"capacity_factor": 1.0, "overflow": "next_best"}], ids=str
)
def test_settings_that_read_numbers_of_rows_are_caught(options):
    with fake_gpu(), pytest.raises(DataDependentOutputException):
        step(MoE(DIM, EXPERTS, 2, **options))


WAITS: dict[str, Callable[[Tensor], Any]] = {
    "a number": lambda x: x.sum().item(),
    "a decision": lambda x: bool(x.isfinite().all()),
    "a shape": lambda x: x[x > 0],
    "a copy to the host": lambda x: x.detach().cpu(),
    "a copy to the device": lambda x: x + torch.tensor([1.0, 2.0], device="cpu").to(x.device)[0],
}


@pytest.mark.parametrize("wait", WAITS)
def test_each_kind_of_waiting_is_caught(wait, monkeypatch):
    route = TopKRouter.choose
    monkeypatch.setattr(TopKRouter, "choose", lambda router, x, valid: (WAITS[wait](x), route(router, x, valid))[1])
    with fake_gpu(), pytest.raises((DataDependentOutputException, DynamicOutputShapeException, HostCopy)):
        step(MoE(DIM, EXPERTS, 2, backend="grouped"))
