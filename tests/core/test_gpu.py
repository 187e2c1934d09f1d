"""The core on a CUDA device: what the CPU computes, without waiting for the host.

``benchmarks/gpu/run.py`` runs these on a machine with a GPU; elsewhere they are skipped.
"""

import copy

import pytest
import torch

from moeapps import registry
from moeapps.core import MoE, make_router

pytestmark = pytest.mark.gpu

DIM, EXPERTS = 32, 4
ROUTERS = [entry.alias for entry in registry.entries("router")]
BACKENDS = ["loop", "bmm", "grouped", "masked"]
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 8e-3}  # relative to the largest output
WAITS_NOT = [name for name in ROUTERS if name not in ("soft",)]


def layers(router: str, backend: str, dtype: torch.dtype) -> tuple[MoE, MoE, torch.Tensor]:
    """Layer on the CPU in float32, its copy on the GPU in ``dtype``, tokens; numbers that ``dtype`` can hold."""
    torch.manual_seed(0)
    reference = MoE(DIM, EXPERTS, router=make_router(router, DIM, EXPERTS, 2), backend=backend)
    reference = reference.to(dtype).float().eval()
    return reference, copy.deepcopy(reference).to("cuda", dtype), torch.randn(8, 16, DIM).to(dtype).float()


def assert_close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    scale = expected.abs().max().clamp(min=1e-3)
    torch.testing.assert_close(actual.float().cpu() / scale, expected / scale, atol=TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("router", ROUTERS)
def test_outputs_and_gradients_are_those_of_the_cpu(router, backend, dtype):
    reference, layer, x = layers(router, backend, dtype)
    ours, theirs = x.clone().requires_grad_(), x.to("cuda", dtype).requires_grad_()
    expected, actual = reference(ours), layer(theirs)
    assert_close(actual, expected, dtype)
    direction = torch.randn_like(expected).to(dtype)
    (expected * direction.float()).sum().backward()
    (actual * direction.cuda()).sum().backward()
    assert_close(theirs.grad, ours.grad, dtype)
    for (name, parameter), moved in zip(reference.named_parameters(), layer.parameters(), strict=True):
        if parameter.grad is not None and parameter.grad.abs().max() > 1e-3:
            assert moved.grad is not None, name
            assert_close(moved.grad, parameter.grad, dtype)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("router", WAITS_NOT)
def test_a_dropless_training_step_never_waits_for_the_host(router):
    layer = MoE(DIM, EXPERTS, router=make_router(router, DIM, EXPERTS, 2), backend="grouped")
    layer = layer.to("cuda", torch.bfloat16)
    x = torch.randn(64, DIM, device="cuda", dtype=torch.bfloat16, requires_grad=True)

    def step() -> None:
        loss = layer(x).square().mean() + sum(layer.auxiliary_losses().values())
        loss.backward()

    step()
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # torch.compile's own look at autograd functions
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")
@pytest.mark.filterwarnings("ignore:(?s).*Online softmax is disabled")
@pytest.mark.parametrize("router", ["topk", "topp", "shared", "null_experts"])
def test_a_compiled_layer_gives_what_the_eager_one_gives(router):
    _, layer, x = layers(router, "grouped", torch.bfloat16)
    x = x.to("cuda", torch.bfloat16)
    expected = layer(x)
    assert_close(torch.compile(layer, fullgraph=True)(x), expected.float().cpu(), torch.bfloat16)


def test_autocast_computes_experts_in_bfloat16_and_the_router_in_float32():
    reference, layer, x = layers("topk", "grouped", torch.float32)
    with torch.autocast("cuda", torch.bfloat16):
        actual = layer(x.cuda())
    assert layer.last_routing.logits.dtype == torch.float32
    assert_close(actual, reference(x), torch.bfloat16)


@pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream")  # the first backward pass ran on another one
def test_a_captured_graph_replays_forward_and_backward():
    layer = MoE(DIM, EXPERTS, 2, backend="grouped").to("cuda", torch.bfloat16)
    static = torch.randn(64, DIM, device="cuda", dtype=torch.bfloat16)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            layer(static).square().mean().backward()
            layer.zero_grad(set_to_none=True)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = layer(static)
        out.square().mean().backward()
    fresh = torch.randn_like(static)
    static.copy_(fresh)
    graph.replay()
    torch.cuda.synchronize()
    captured = [parameter.grad.clone() for parameter in layer.parameters()]
    layer.zero_grad(set_to_none=True)
    expected = layer(fresh)
    expected.square().mean().backward()
    torch.testing.assert_close(out, expected)
    for before, parameter in zip(captured, layer.parameters(), strict=True):
        torch.testing.assert_close(before, parameter.grad)


def test_gradients_are_the_same_bits_every_time():
    layer = MoE(DIM, EXPERTS, 2, backend="grouped").to("cuda", torch.bfloat16)
    x = torch.randn(512, DIM, device="cuda", dtype=torch.bfloat16)

    def gradients() -> list[torch.Tensor]:
        layer.zero_grad(set_to_none=True)
        layer(x).square().mean().backward()
        return [parameter.grad.clone() for parameter in layer.parameters()]

    first = gradients()
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(first, gradients(), strict=True))
