"""Mowst's losses, gradients and inference, against golden values and the experts themselves."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from moeapps.core.errors import ConfigError, DataError
from moeapps.graph import Edges, Mowst, joint_loss, separate_loss, variance_dispersion
from moeapps.graph.inference import INFERENCES
from moeapps.graph.mixing import chain_log_weights, chain_weights
from moeapps.graph.networks import make_network

P = torch.tensor([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25], [0.1, 0.1, 0.8]], dtype=torch.float64)
Q = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.2, 0.3, 0.5]], dtype=torch.float64)
Y = torch.tensor([0, 1, 0])


def graph(nodes=12, edges=30, features=6):
    return torch.randn(nodes, features), torch.randint(0, nodes, (2, edges))


def mowst(**kwargs) -> Mowst:
    return Mowst(**{"in_channels": 6, "out_channels": 3, "hidden_channels": 8, **kwargs})


def separate(weak, strong, c, y):
    return separate_loss([weak, strong], chain_weights([c]), y)


def joint(weak, strong, g, y):
    return joint_loss([weak, strong], chain_log_weights([g]), y)


def test_losses_have_their_golden_values():
    c = variance_dispersion(P)
    assert c.tolist() == pytest.approx([0.31, 0.0175, 0.49])
    each = [float(separate(P[i : i + 1].log(), Q[i : i + 1].log(), c[i : i + 1], Y[i : i + 1])) for i in range(3)]
    assert each == pytest.approx([0.463039, 0.237610, 1.949080], abs=1e-5)
    assert float(separate(P.log(), Q.log(), c, Y)) == pytest.approx(0.883243, abs=1e-5)
    assert float(joint(P.log(), Q.log(), c.logit(), Y)) == pytest.approx(0.861320, abs=1e-5)


def test_class_weights_are_those_of_a_weighted_mean():
    c, weight = variance_dispersion(P), torch.tensor([3.0, 0.5, 1.0], dtype=torch.float64)
    each = torch.stack([separate(P[i : i + 1].log(), Q[i : i + 1].log(), c[i : i + 1], Y[i : i + 1]) for i in range(3)])
    expected = (each * weight[Y]).sum() / weight[Y].sum()
    torch.testing.assert_close(separate_loss([P.log(), Q.log()], chain_weights([c]), Y, weight), expected)


def test_weights_of_a_chain_are_what_each_expert_leaves_to_the_next():
    c = torch.rand(2, 50)
    weights = chain_weights(list(c))
    torch.testing.assert_close(weights, torch.stack([c[0], (1 - c[0]) * c[1], (1 - c[0]) * (1 - c[1])], dim=1))
    torch.testing.assert_close(chain_log_weights(list(c.logit())).exp(), weights)


@pytest.mark.parametrize(
    ("detach", "expected"),
    [(False, (0.479183, -0.346897, -0.132286)), (True, (0.127138, -0.155506, 0.028368))],
)
def test_the_gradient_through_the_confidence_has_its_golden_value(detach, expected):
    model = mowst(variant="mowst", confidence="given", detach_confidence=detach).double()
    z = torch.tensor([[1.0, 0.0, -0.5]], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([0.0, -0.3, 0.0], dtype=torch.float64).exp()
    strong = torch.stack([(1 - q[1]) / 2, q[1], (1 - q[1]) / 2]).log()[None]  # cross-entropy 0.3 at class 1
    loss = model.loss([z, strong], torch.tensor([1]))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.535526, abs=1e-5)
    assert z.grad[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_the_joint_loss_is_never_above_the_separate_one():
    weak, strong, g = torch.randn(200, 5), torch.randn(200, 5), torch.randn(200) * 3
    y = torch.randint(0, 5, (200,))
    for i in range(200):
        row = slice(i, i + 1)
        assert (
            joint(weak[row], strong[row], g[row], y[row])
            <= separate(weak[row], strong[row], g[row].sigmoid(), y[row]) + 1e-6
        )
    torch.testing.assert_close(joint(weak, weak, g, y), separate(weak, weak, g.sigmoid(), y))


def test_losses_are_finite_for_confident_gates_and_experts_and_zero_for_no_nodes():
    for g in (-200.0, 200.0):
        logits = torch.tensor([[100.0, -100.0]], requires_grad=True)
        loss = joint(logits, -logits, torch.tensor([g]), torch.tensor([0]))
        loss.backward()
        assert loss.isfinite()
        assert logits.grad.isfinite().all()
    empty = torch.zeros(0, 3)
    assert float(joint(empty, empty, torch.zeros(0), torch.zeros(0, dtype=torch.long))) == 0


def golden_minimum(mu: float) -> tuple[float, float, float]:
    """Weak turn's optimum for ten nodes with the same features, seven of class 0, and a strong loss of mu on each."""
    model = mowst(out_channels=2, variant="mowst", confidence="given").double()
    y = torch.tensor([0] * 7 + [1] * 3)
    right = torch.tensor(-mu, dtype=torch.float64)
    strong = torch.where(torch.eye(2, dtype=torch.bool)[y], right, torch.log1p(-right.exp()))  # (10, 2)

    def lowest(candidates):
        weak = [torch.stack([p, 1 - p]).log().expand(10, 2) for p in candidates]
        losses = torch.stack([model.loss([z, strong], y) for z in weak])
        best = int(losses.argmin())
        return float(candidates[best]), float(model.confidence_of("weak", weak[best])[0][0]), float(losses[best])

    near, _, _ = lowest(torch.arange(0.5, 0.99, 5e-3, dtype=torch.float64))
    return lowest(torch.arange(max(near - 5e-3, 0.5), near + 5e-3, 2e-4, dtype=torch.float64))


@pytest.mark.parametrize(
    ("mu", "p", "c", "f"),
    [
        (0.20, 0.5000, 0.0, 0.2000),
        (0.6309, 0.7303, 0.2122, 0.6271),
        (0.70, 0.7837, 0.3220, 0.6774),
        (1.00, 0.8721, 0.5539, 0.8409),
        (2.00, 0.9464, 0.7970, 1.1363),
    ],
)
def test_the_weak_turn_has_the_optimum_of_the_theory(mu, p, c, f):
    assert golden_minimum(mu) == pytest.approx((p, c, f), abs=4e-4)


@pytest.mark.parametrize("variant", ["mowst", "mowst_star"])
@pytest.mark.parametrize(("forced", "expert", "other"), [(1.0, "weak", "strong"), (0.0, "strong", "weak")])
def test_a_forced_confidence_reproduces_one_expert_exactly(variant, forced, expert, other):
    model = mowst(variant=variant).eval()
    model.gates["weak"].forced.fill_(forced)
    x, edge_index = graph()
    y = torch.randint(0, 3, (12,))
    output = model(x, edge_index)
    logits = output.weak_logits if expert == "weak" else output.strong_logits
    torch.testing.assert_close(output.log_probs, logits.log_softmax(-1))
    loss = model.loss([output.weak_logits, output.strong_logits], y)
    torch.testing.assert_close(loss, F.cross_entropy(logits, y))
    ours = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, retain_graph=True)
    alone = torch.autograd.grad(F.cross_entropy(logits, y), list(model.parameters()), allow_unused=True)
    for (name, _), gradient, reference in zip(model.named_parameters(), ours, alone, strict=True):
        if name.startswith(f"experts.{expert}"):
            torch.testing.assert_close(gradient, reference)
        if name.startswith(f"experts.{other}") and gradient is not None:
            assert not gradient.any()


@pytest.mark.parametrize(("strong", "norm"), [(s, n) for s in ("gcn", "sage") for n in (None, "batch_norm")])
def test_permuting_the_nodes_permutes_the_prediction(strong, norm):
    model = mowst(strong=strong, norm=norm).eval()
    x, edge_index = graph()
    order = torch.randperm(12)
    rank = order.argsort()
    before, after = model(x, edge_index).log_probs, model(x[order], rank[edge_index]).log_probs
    torch.testing.assert_close(after, before[order], atol=1e-5, rtol=1e-5)


class Counting(nn.Module):
    """A strong expert that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.network = make_network("gcn", 6, 3, hidden_channels=8)
        self.calls = 0

    def forward(self, x, edge_index):
        self.calls += 1
        return self.network(x, edge_index)


def test_thresholds_decide_who_predicts_and_whether_the_strong_expert_runs():
    model = mowst(strong=Counting(), confidence="given").eval()
    x, edge_index = graph()
    weak_only = model(x, edge_index, mode="threshold", threshold=0.0)
    assert model.experts["strong"].calls == 0
    assert weak_only.strong_logits is None
    assert not weak_only.used_strong.any()
    strong_only = model(x, edge_index, mode="threshold", threshold=1.1)
    assert model.experts["strong"].calls == 1
    assert strong_only.used_strong.all()
    torch.testing.assert_close(strong_only.log_probs, strong_only.strong_logits.log_softmax(-1))
    middle = float(strong_only.confidence.median().detach())
    some = model(x, edge_index, mode="threshold", threshold=middle)
    used = some.used_strong
    assert 0 < int(used.sum()) < 12
    torch.testing.assert_close(some.log_probs[used], strong_only.log_probs[used])
    torch.testing.assert_close(some.log_probs[~used], weak_only.log_probs[~used])
    assert some.routing.expert.sum() == used.sum()


def test_sampled_routing_repeats_with_its_seed_and_averages_to_the_closed_form():
    model = mowst(confidence="given").eval()
    x, edge_index = graph(nodes=200, edges=600)
    y = torch.randint(0, 3, (200,))
    full = model(x, edge_index)
    weak_right = full.weak_logits.argmax(-1) == y
    strong_right = full.strong_logits.argmax(-1) == y
    expected = (full.confidence * weak_right + (1 - full.confidence) * strong_right).mean()

    def sample(seed):
        return model(x, edge_index, mode="sample", generator=torch.Generator().manual_seed(seed))

    assert torch.equal(sample(5).used_strong, sample(5).used_strong)
    draws = torch.stack([(sample(seed).log_probs.argmax(-1) == y).float().mean() for seed in range(100)])
    assert float(draws.mean()) == pytest.approx(float(expected.detach()), abs=4 * 0.5 / (100 * 200) ** 0.5)


def test_isolated_nodes_no_edges_and_a_single_node_are_finite():
    model = mowst().eval()
    none = torch.zeros(2, 0, dtype=torch.long)
    for nodes, edges in ((5, torch.tensor([[0, 1], [1, 0]])), (5, none), (1, none)):
        assert model(torch.randn(nodes, 6), edges).log_probs.isfinite().all()


def test_the_mixture_stays_exact_under_bfloat16_autocast():
    model = mowst().eval()
    x, edge_index = graph()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(x, edge_index)
    assert output.confidence.dtype == torch.float32
    assert output.log_probs.isfinite().all()
    torch.testing.assert_close(output.log_probs.float(), model(x, edge_index).log_probs, atol=5e-2, rtol=5e-2)


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        ({"out_channels": 1}, "out_channels"),
        ({"variant": "star"}, "variant"),
        ({"strong": "gcnn"}, "did you mean 'gcn'"),
        ({"weak": "gcn"}, "weak must be 'mlp'"),
        ({"dropout": 1.0}, "dropout"),
        ({"num_layers": 0}, "num_layers"),
        ({"hidden_channels": -1}, "hidden_channels"),
        ({"medium": ["sage", "gatt"]}, "did you mean 'gat'"),
        ({"confidence": "hyper", "monotone": True}, "monotone"),
    ],
)
def test_impossible_arguments_are_named(arguments, culprit):
    with pytest.raises(ConfigError, match=culprit):
        mowst(**arguments)


def test_wrong_calls_are_named():
    model = mowst()
    x, edge_index = graph()
    with pytest.raises(DataError, match=r"\(N, 6\), got \(12, 5\)"):
        model(x[:, :5], edge_index)
    with pytest.raises(ConfigError, match="inference must be one of"):
        model(x, edge_index, mode="guess")
    with pytest.raises(DataError, match="GIN does not use edge weights"):
        mowst(strong="gin")(x, edge_index, torch.ones(30))


@pytest.mark.parametrize("confidence", ["learned", "learned+x", "hyper", "given"])
@pytest.mark.parametrize("medium", [None, "sage", ["gin", "gat_skip"]])
def test_a_chain_gives_distributions_in_every_inference(medium, confidence):
    model = mowst(medium=medium, confidence=confidence).eval()
    for gate in model.gates.values():
        for last in [m for m in gate.modules() if isinstance(m, nn.Linear)][-1:]:
            nn.init.zeros_(last.bias)  # about half of the nodes stop at each expert
    x, edge_index = graph(nodes=60, edges=200)
    names = ("weak", "strong") if medium is None else ("weak", "medium", "strong")
    assert model.names == (names if medium != ["gin", "gat_skip"] else ("weak", "medium_1", "medium_2", "strong"))
    for mode in INFERENCES:
        output = model(x, edge_index, mode=mode, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(output.log_probs.exp().sum(1), torch.ones(60))
        torch.testing.assert_close(output.weights.sum(1), torch.ones(60))
        assert output.last.max() < len(model.names)
    logits = [model.run_expert(name, x, prepared(edge_index, 60)) for name in model.names]
    loss = model.loss(logits, torch.randint(0, 3, (60,)), x)
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_a_cascade_is_the_mixture_of_those_that_were_asked():
    model = mowst(medium="sage", confidence="given").eval()
    x, edge_index = graph(nodes=60, edges=200)
    full = model(x, edge_index)
    torch.testing.assert_close(model(x, edge_index, mode="cascade", threshold=2.0).log_probs, full.log_probs)
    output = model(x, edge_index, mode="cascade", threshold=float(full.confidence.median().detach()))
    assert len(output.last.unique()) > 1
    probs = torch.stack([full.logits[name].softmax(-1) for name in model.names], dim=1)  # (N, 3, K)
    torch.testing.assert_close(output.log_probs.exp(), (output.weights[..., None] * probs).sum(1))
    asked = torch.arange(3) <= output.last[:, None]
    assert not output.weights[~asked].any()
    torch.testing.assert_close(output.weights[:, 0][output.last > 0], full.weights[:, 0][output.last > 0])


def prepared(edge_index, nodes):
    return Edges(edge_index, None, nodes)
