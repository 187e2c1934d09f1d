"""The MoE layer against a dense reference, and its behaviour on awkward input (cases C1-C13)."""

import copy
import dataclasses
import io
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from moeapps.core import ExpertList, ExpertMLP, MoE, TopKRouter, load_balance_loss, router_z_loss
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.kernels import choose_backend, grouped_is_possible

BACKENDS = ("loop", "bmm", "grouped", "auto")


def dense_reference(layer: MoE, x: torch.Tensor) -> torch.Tensor:
    """Sum over all experts of weight times output: every expert on every token, no dispatch."""
    router, experts = layer.router, layer.experts
    probabilities = (x @ router.weight.T).softmax(-1)
    top, index = probabilities.topk(router.top_k, dim=-1)
    if router.renormalize:
        top = top / top.sum(-1, keepdim=True)
    weight = torch.zeros_like(probabilities).scatter(1, index, top)  # (N, E)
    hidden = F.gelu(torch.einsum("nd,edh->neh", x, experts.weight1) + experts.bias1)
    output = torch.einsum("neh,eho->neo", hidden, experts.weight2) + experts.bias2
    return (weight[:, :, None] * output).sum(1)


def make(backend="auto", dim=8, experts=4, k=2, **kwargs) -> MoE:
    return MoE(dim, experts, hidden_dim=16, router=TopKRouter(dim, experts, k, **kwargs), backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(0, 40),
    dim=st.sampled_from([4, 7, 8]),
    experts=st.integers(1, 9),
    k=st.integers(1, 9),
    seed=st.integers(0, 2**16),
)
def test_output_and_gradients_equal_the_dense_reference(backend, tokens, dim, experts, k, seed):
    torch.manual_seed(seed)
    layer = make(backend, dim, experts, min(k, experts))
    x = torch.randn(tokens, dim, requires_grad=True)
    sources = [x, *layer.parameters()]
    probe = torch.randn(tokens, dim)
    outputs = (layer(x), dense_reference(layer, x))
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-5)
    gradients = [torch.autograd.grad((out * probe).sum(), sources, allow_unused=True) for out in outputs]
    for ours, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(
            ours, torch.zeros_like(ours) if reference is None else reference, atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck_in_float64(backend):
    layer = make(backend).double()
    x = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))


@pytest.mark.parametrize("backend", BACKENDS)
def test_c1_a_bad_token_harms_only_itself(backend):
    layer = make(backend).eval()
    x = torch.randn(6, 8)
    clean = layer(x)
    for bad in (torch.nan, torch.inf, -torch.inf):
        dirty = x.clone()
        dirty[2] = bad
        y = layer(dirty)
        keep = torch.arange(6) != 2
        torch.testing.assert_close(y[keep], clean[keep])
        assert y[2].isnan().all()
        assert int(layer.last_routing.valid_counts().sum()) == 10
        assert load_balance_loss(layer.last_routing).isfinite()
        assert router_z_loss(layer.last_routing).isfinite()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("training", [True, False])
def test_c2_an_empty_batch_has_an_empty_output_and_zero_losses_and_gradients(backend, training):
    layer = make(backend).train(training)
    y = layer(torch.zeros(0, 8))
    assert y.shape == (0, 8)
    losses = layer.auxiliary_losses()
    assert all(float(value.detach()) == 0.0 for value in losses.values())
    (y.sum() + sum(losses.values())).backward()
    assert all(p.grad is not None and not p.grad.any() for p in layer.experts.parameters())


def _only_first(layer: MoE, experts: int) -> None:
    """Bias the router so that only the first ``experts`` are ever chosen."""
    with torch.no_grad():
        layer.router.weight[experts:] = 0
        layer.router.weight[experts:, 0] = -1e4


@pytest.mark.parametrize("backend", BACKENDS)
def test_c3_an_expert_without_tokens_gets_zero_gradients(backend):
    layer = make(backend)
    _only_first(layer, 3)
    x = torch.rand(20, 8) + 0.1
    loss = layer(x).square().sum() + sum(layer.auxiliary_losses().values())
    assert loss.isfinite()
    loss.backward()
    assert int(layer.last_routing.counts[3]) == 0
    for parameter in layer.experts.parameters():
        assert parameter.grad is not None
        assert not parameter.grad[3].any()


def test_c3_an_idle_module_expert_gets_zero_gradients():
    layer = MoE(8, 4, router=TopKRouter(8, 4, 2), experts=ExpertList([nn.Linear(8, 8) for _ in range(4)], dim=8))
    _only_first(layer, 3)
    layer(torch.rand(20, 8) + 0.1).sum().backward()
    assert not layer.experts.experts[3].weight.grad.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_c4_all_tokens_to_one_expert(backend):
    layer = make(backend, k=1)
    with torch.no_grad():
        layer.router.weight.zero_()
        layer.router.weight[1, 0] = 1e4
    x = torch.rand(50, 8) + 0.1
    e = layer.experts
    expected = F.gelu(x @ e.weight1[1] + e.bias1[1]) @ e.weight2[1] + e.bias2[1]
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)
    assert float(load_balance_loss(layer.last_routing).detach()) == pytest.approx(4.0)


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_experts": 4, "top_k": 5},
        {"num_experts": 4, "top_k": 0},
        {"num_experts": 4, "top_k": -1},
        {"num_experts": 0},
        {"num_experts": 4, "dim": 0},
        {"num_experts": 4, "top_k": True},
        {"num_experts": 4, "backend": "fast"},
    ],
)
def test_c5_impossible_sizes_are_refused_at_construction(arguments):
    with pytest.raises(ConfigError, match="top_k|num_experts|dim|backend"):
        MoE(**{"dim": 8, **arguments})


@pytest.mark.parametrize("backend", BACKENDS)
def test_c6_one_expert_is_the_plain_expert(backend):
    layer = make(backend, experts=1, k=1)
    x = torch.randn(7, 8)
    e = layer.experts
    torch.testing.assert_close(
        layer(x), F.gelu(x @ e.weight1[0] + e.bias1[0]) @ e.weight2[0] + e.bias2[0], atol=1e-6, rtol=1e-5
    )
    assert all(value.isfinite() for value in layer.auxiliary_losses().values())


@pytest.mark.parametrize("backend", BACKENDS)
def test_c6_all_experts_are_the_dense_mixture(backend):
    layer = make(backend, k=4)
    x = torch.randn(7, 8)
    torch.testing.assert_close(layer(x), dense_reference(layer, x), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_c8_memory_layout_does_not_matter(backend):
    layer = make(backend).eval()
    base = torch.randn(12, 16)
    views = [
        base[:, :8],
        base[::2, 8:],
        base[:, :8].t().contiguous().t(),
        base[:1, :8].expand(5, 8),
        base[:, :8].flip(1),
    ]
    for view in views:
        before = view.clone()
        torch.testing.assert_close(layer(view), layer(view.contiguous()), atol=1e-6, rtol=1e-6)
        assert torch.equal(view, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.bool])
def test_c9_another_dtype_is_refused_with_the_cure(dtype):
    with pytest.raises(DataError, match=r"torch.float32.*\.to\("):
        make()(torch.ones(3, 8).to(dtype))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_c9_autocast_is_finite_close_and_routes_in_float32(backend, dtype):
    layer = make(backend)
    x = torch.randn(20, 8)
    full = layer(x)
    with torch.autocast("cpu", dtype=dtype):
        y = layer(x)
    assert y.dtype == dtype
    assert layer.last_routing.logits.dtype == torch.float32
    torch.testing.assert_close(y.float(), full, atol=2e-2, rtol=2e-2)
    y.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("backend", BACKENDS)
def test_c10_batch_mates_do_not_matter(backend):
    layer = make(backend, noise_std=1.0).eval()
    victim = torch.randn(1, 8)
    alone = layer(victim)
    mates = torch.randn(31, 8)
    crowd = victim + 0.01 * torch.randn(31, 8)
    for others in (mates, crowd):
        for batch, row in ((torch.cat([victim, others]), 0), (torch.cat([others, victim]), -1)):
            torch.testing.assert_close(layer(batch)[row], alone[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_c11_permuting_tokens_permutes_the_output(backend):
    layer = make(backend).eval()
    x = torch.randn(30, 8)
    order = torch.randperm(30)
    torch.testing.assert_close(layer(x[order]), layer(x)[order], atol=1e-6, rtol=1e-5)
    twins = layer(x[[4, 4]])
    torch.testing.assert_close(twins[0], twins[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_permuting_experts_with_their_router_rows_changes_nothing(backend):
    layer = make(backend).eval()
    x = torch.randn(30, 8)
    before = layer(x)
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(parameter[order].clone())
    torch.testing.assert_close(layer(x), before, atol=1e-6, rtol=1e-5)


def test_c12_leading_dimensions_are_kept_and_wrong_shapes_refused():
    layer = make().eval()
    x = torch.randn(2, 3, 8)
    torch.testing.assert_close(layer(x), layer(x.view(6, 8)).view(2, 3, 8))
    for wrong in (torch.randn(8), torch.randn(2, 9), torch.tensor(1.0)):
        with pytest.raises(DataError, match=r"\(\.\.\., 8\)"):
            layer(wrong)


def test_c13_copies_pickles_and_state_dicts_answer_the_same():
    layer = make()
    x = torch.randn(5, 8)
    expected = layer(x)  # leaves a routing behind, which copies must not carry
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    fresh = make()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), fresh):
        assert twin.last_routing is None
        assert torch.equal(twin(x), expected)


def test_tokens_may_have_different_numbers_of_experts():
    """Assignments in any number, as top-p, capacity or expert choice make them: the list alone, no positions."""
    full = TopKRouter(8, 4, 3)(torch.randn(9, 8))
    keep = torch.rand(27) < 0.6
    keep[full.token == 4] = False  # one token without any expert
    expert = full.expert[keep]
    routing = dataclasses.replace(
        full, token=full.token[keep], expert=expert, weight=full.weight[keep], position=None,
        offsets=torch.searchsorted(expert, torch.arange(5), out_int32=True),
    )  # fmt: skip
    experts, x = ExpertMLP(8, 16, 4), torch.randn(9, 8, requires_grad=True)
    y = routing.combine(experts(routing.dispatch(x), routing.offsets))
    every = experts(x.repeat(4, 1), torch.arange(0, 37, 9, dtype=torch.int32)).view(4, 9, 8)
    weight = torch.zeros(4, 9).index_put((routing.expert, routing.token), routing.weight)
    reference = (weight[:, :, None] * every).sum(0)
    torch.testing.assert_close(y, reference, atol=1e-6, rtol=1e-5)
    assert not y[4].any()
    gradients = [torch.autograd.grad(out.square().sum(), x, retain_graph=True)[0] for out in (y, reference)]
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-5)


def test_arbitrary_modules_as_experts_equal_their_dense_mixture():
    modules = [nn.Linear(8, 3), nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))]
    layer = MoE(8, 2, router=TopKRouter(8, 2, 2), experts=ExpertList(modules, dim=8, out_dim=3))
    x = torch.randn(6, 8)
    p = (x @ layer.router.weight.T).softmax(-1)
    torch.testing.assert_close(layer(x), sum(p[:, e, None] * modules[e](x) for e in range(2)))


def test_an_expert_with_a_wrong_output_is_named():
    layer = MoE(8, 2, experts=ExpertList([nn.Linear(8, 8), nn.Linear(8, 4)], dim=8))
    with pytest.raises(ConfigError, match=r"expert 1 \(Linear\)"):
        layer(torch.randn(20, 8))


def test_router_and_experts_of_other_sizes_are_refused():
    with pytest.raises(ConfigError, match="router is built for dim=8, num_experts=3"):
        MoE(8, 4, router=TopKRouter(8, 3))
    with pytest.raises(ConfigError, match="experts is built for dim=4"):
        MoE(8, 4, experts=ExpertMLP(4, 16, 4))


def test_torch_compile_gives_the_same_output():
    layer = make("grouped").eval()
    x = torch.randn(10, 8)
    torch.testing.assert_close(torch.compile(layer, backend="eager")(x), layer(x))


def test_torch_export_gives_the_same_output():
    layer = make("grouped").eval()
    x = torch.randn(10, 8)
    exported = torch.export.export(layer, (x,)).module()
    torch.testing.assert_close(exported(x), layer(x))


def test_grouped_products_fall_back_where_they_cannot_be_computed():
    assert not grouped_is_possible(torch.float64, 8)
    assert not grouped_is_possible(torch.float32, 7)
    assert grouped_is_possible(torch.float32, 8, 16)
    cpu = {"device": torch.device("cpu"), "counts": torch.tensor([4, 3, 3, 0])}
    assert choose_backend("grouped", dtype=torch.float64, widths=(8,), **cpu) == "bmm"
    assert choose_backend("grouped", dtype=torch.float32, widths=(8,), **cpu) == "grouped"


@pytest.mark.gpu
def test_dropless_grouped_dispatch_does_not_wait_for_the_host():
    layer = make("grouped", dim=16).cuda()
    x = torch.randn(64, 16, device="cuda")
    layer(x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer(x).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
