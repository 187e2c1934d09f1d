"""Dispersion and confidence against golden values and their algebra."""

import pytest
import torch

from moeapps.core.errors import ConfigError
from moeapps.graph import Confidence, entropy_dispersion, variance_dispersion


def softmax(*logits: float) -> torch.Tensor:
    return torch.tensor(logits, dtype=torch.float64).softmax(-1)


@pytest.mark.parametrize(
    ("p", "variance", "entropy"),
    [
        (softmax(0, 0, 0), 0.0, 0.0),
        (softmax(2, 0, 0), 0.463052, 0.394170),
        (softmax(5, 0, 0), 0.960508, 0.927300),
        (softmax(1, 1, -1), 0.163970, 0.194091),
        (torch.tensor([0.8, 0.2], dtype=torch.float64), 0.36, 0.278072),
        (torch.tensor([0.0, 1.0], dtype=torch.float64), 1.0, 1.0),
        (torch.eye(7, dtype=torch.float64)[3], 1.0, 1.0),
    ],
)
def test_dispersions_have_their_golden_values(p, variance, entropy):
    assert float(variance_dispersion(p)) == pytest.approx(variance, abs=1e-5)
    assert float(entropy_dispersion(p)) == pytest.approx(entropy, abs=1e-5)


@pytest.mark.parametrize("dispersion", [variance_dispersion, entropy_dispersion])
def test_dispersion_grows_from_uniform_to_one_hot_and_ignores_the_order_of_classes(dispersion):
    t = torch.linspace(0, 1, 50, dtype=torch.float64)[:, None]
    path = (1 - t) * torch.full((4,), 0.25, dtype=torch.float64) + t * torch.eye(4, dtype=torch.float64)[2]
    assert (dispersion(path).diff() > 0).all()
    p = torch.rand(10, 4, dtype=torch.float64).softmax(-1)
    assert torch.allclose(dispersion(p), dispersion(p[:, torch.randperm(4)]))
    q = torch.rand(10, 4, dtype=torch.float64).softmax(-1)
    assert (dispersion((p + q) / 2) <= (dispersion(p) + dispersion(q)) / 2 + 1e-12).all()


@pytest.mark.parametrize("dispersion", [variance_dispersion, entropy_dispersion])
def test_the_gradient_at_one_hot_is_finite_and_one_class_is_refused(dispersion):
    logits = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    dispersion(logits.softmax(-1)).sum().backward()
    assert logits.grad.isfinite().all()
    with pytest.raises(ConfigError, match="at least 2 classes"):
        dispersion(torch.ones(3, 1))


@pytest.mark.parametrize("mode", ["learned", "given"])
@pytest.mark.parametrize("monotone", [False, True])
def test_confidence_is_in_the_unit_interval_and_ignores_a_constant_in_the_logits(mode, monotone):
    gate = Confidence(mode, monotone=monotone)
    logits = torch.randn(100, 5) * 10
    c, g = gate(logits)
    assert ((c >= 0) & (c <= 1)).all()
    assert g.isfinite().all()
    torch.testing.assert_close(gate(logits + 3.0).confidence, c, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(g.sigmoid(), c, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("monotone", [False, True])
def test_the_learned_gate_begins_as_the_strong_expert(monotone):
    c, _ = Confidence("learned", monotone=monotone)(torch.randn(200, 4))
    assert 0.02 < float(c.mean().detach()) < 0.15


def test_a_monotone_gate_never_falls_with_the_dispersion():
    gate = Confidence("learned", monotone=True)
    torch.nn.init.normal_(gate.net[0].weight, std=3)
    torch.nn.init.normal_(gate.net[2].weight, std=3)
    logits = torch.linspace(0, 10, 60)[:, None] * torch.tensor([[1.0, 0.0, 0.0]])
    assert (gate(logits).confidence.diff() >= 0).all()


def test_given_confidence_is_a_power_of_one_dispersion():
    logits = torch.randn(20, 3)
    d = entropy_dispersion(logits.softmax(-1))
    c, _ = Confidence("given", dispersion="entropy", alpha=0.5)(logits)
    torch.testing.assert_close(c, d.sqrt())


@pytest.mark.parametrize(("forced", "logit"), [(0.0, -torch.inf), (1.0, torch.inf)])
def test_forced_confidence_is_exact(forced, logit):
    gate = Confidence()
    gate.forced.fill_(forced)
    c, g = gate(torch.randn(5, 3))
    assert (c == forced).all()
    assert (g == logit).all()


@pytest.mark.parametrize(
    "arguments", [{"mode": "guess"}, {"dispersion": "std"}, {"alpha": 0}, {"hidden_channels": 0}], ids=str
)
def test_impossible_arguments_are_named(arguments):
    with pytest.raises(ConfigError, match=next(iter(arguments)).replace("mode", "confidence")):
        Confidence(**arguments)
