"""Graph networks on a CUDA device."""

import copy

import pytest
import torch

from moeapps.graph import Mowst
from moeapps.graph.networks import GNNS, make_network

pytestmark = pytest.mark.gpu


@pytest.fixture
def graph() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(50, 16), torch.randint(50, (2, 300))


@pytest.mark.parametrize("name", sorted(GNNS))
@pytest.mark.parametrize("precision", ["float32", "autocast"])
def test_a_network_computes_what_it_computes_on_the_cpu(name, precision, graph):
    x, edges = graph
    network = make_network(name, 16, 4, hidden_channels=16, num_layers=2, dropout=0.5, norm="batch_norm").eval()
    expected = network(x, edges)
    moved = copy.deepcopy(network).cuda()
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "autocast"):
        actual = moved(x.cuda(), edges.cuda())
    actual.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in moved.parameters())
    torch.testing.assert_close(
        actual.float().cpu(),
        expected,
        rtol=0,
        atol=1e-4 if precision == "float32" else 0.05 * float(expected.detach().abs().max()),
    )


@pytest.mark.parametrize("mode", ["mix", "threshold", "cascade"])
def test_mowst_predicts_what_it_predicts_on_the_cpu(mode, graph):
    x, edges = graph
    model = Mowst(16, 4).eval()
    expected = model(x, edges, mode=mode).log_probs
    actual = model.cuda()(x.cuda(), edges.cuda(), mode=mode).log_probs
    torch.testing.assert_close(actual.cpu(), expected, atol=1e-4, rtol=1e-4)
