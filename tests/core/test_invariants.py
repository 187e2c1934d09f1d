"""Every router with every backend: what must hold for all of them (cases C1-C13 of the fault catalogue)."""

import copy
import io
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moeapps.core import HeterogeneousExperts, MoE, make_router
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.experts import FactoredExpertMLP, LowRankExpertMLP
from tests.core.dense import BACKENDS, ROUTERS, make, mixture

PAIRS = [(router, backend) for router in ROUTERS for backend in BACKENDS if backend != "auto" or router == "topk"]
everything = pytest.mark.parametrize(("router", "backend"), PAIRS)
# every router with one backend and every backend with one router; the other pairs under -m slow, since what a backend
# computes depends on the router through the sorted rows alone, which the first test compares for every pair
most = pytest.mark.parametrize(
    ("router", "backend"),
    [
        pytest.param(
            *(router, backend),
            marks=() if router == "topk" or BACKENDS[ROUTERS.index(router) % 4] == backend else pytest.mark.slow,
        )
        for router, backend in PAIRS
    ],
)
every_router = pytest.mark.parametrize("router", ROUTERS)
token_choice = pytest.mark.parametrize("router", [r for r in ROUTERS if make_router(r, 8, 4).token_choice])


def gradients(out: torch.Tensor, sources: list[torch.Tensor]) -> list[torch.Tensor]:
    """Gradients of a fixed random projection, zeros where there is no dependence."""
    probe = torch.randn(out.shape, generator=torch.Generator().manual_seed(5), dtype=out.dtype)
    found = torch.autograd.grad((out * probe).sum(), sources, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(s) if g is None else g for s, g in zip(sources, found, strict=True)]


@most
@given(
    tokens=st.integers(0, 40),
    dim=st.sampled_from([4, 7, 8]),
    experts=st.integers(1, 9),
    k=st.integers(1, 9),
    training=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_output_and_gradients_equal_the_dense_mixture(router, backend, tokens, dim, experts, k, training, seed):
    torch.manual_seed(seed)
    layer = make(router, backend, dim, experts, min(k, experts)).train(training)
    x = torch.randn(tokens, dim, requires_grad=True)
    out = layer(x)
    reference = mixture(layer, x)
    torch.testing.assert_close(out, reference, atol=1e-5, rtol=1e-5)
    sources = [x, *layer.parameters()]
    for ours, theirs in zip(gradients(out, sources), gradients(reference, sources), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


@most
def test_gradcheck_in_float64(router, backend):
    layer = make(router, backend).double().eval()
    x = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))


@most
def test_a_bad_token_harms_only_itself(router, backend):
    layer = make(router, backend).eval()
    x = torch.randn(6, 8)
    clean = layer(x)
    counted = layer.last_routing.used()[torch.arange(6) != 2].sum(0)
    for bad in (torch.nan, torch.inf, -torch.inf):
        dirty = x.clone()
        dirty[2, 3] = bad
        y = layer(dirty)
        keep = torch.arange(6) != 2
        torch.testing.assert_close(y[keep], clean[keep])
        assert y[2].isnan().all()
        assert torch.equal(layer.last_routing.valid_counts(), counted.float())
        assert all(value.isfinite() for value in layer.auxiliary_losses().values())


@most
@pytest.mark.parametrize("training", [True, False])
def test_an_empty_batch_has_an_empty_output_and_zero_losses_and_gradients(router, backend, training):
    layer = make(router, backend).train(training)
    y = layer(torch.zeros(0, 8))
    assert y.shape == (0, 8)
    losses = layer.auxiliary_losses()
    assert all(float(value.detach()) == 0.0 for value in losses.values())
    (y.sum() + sum(losses.values())).backward()
    assert all(p.grad is not None and not p.grad.any() for p in layer.experts.parameters())
    assert all(p.grad is None or not p.grad.any() for p in layer.router.parameters())


@most
def test_an_expert_without_tokens_gets_zero_gradients(router, backend):
    layer = make(router, backend, experts=8)
    loss = layer(torch.randn(1, 8)).square().sum() + sum(layer.auxiliary_losses().values())
    assert loss.isfinite()
    loss.backward()
    idle = layer.last_routing.counts == 0
    if router not in ("expert_choice", "soft"):  # there every expert takes something of every batch
        assert idle.any()
    used = ("weight2", "bias2")  # of the self-scoring experts the first layer also answers to the scores
    for name in used:
        if getattr(layer.experts, name) is None:  # gated experts have no biases
            continue
        gradient = getattr(layer.experts, name).grad
        assert gradient is not None
        assert not gradient[idle].any()


@most
def test_all_tokens_to_the_same_experts(router, backend):
    layer = make(router, backend).eval()
    x = torch.randn(1, 8).expand(50, 8)
    torch.testing.assert_close(layer(x), mixture(layer, x), atol=1e-5, rtol=1e-5)
    assert all(value.isfinite() for value in layer.auxiliary_losses().values())
    assert layer(x).std(dim=0).max() < 1e-5


def test_the_balance_loss_of_a_collapsed_router_is_the_number_of_experts():
    layer = MoE(8, 4, top_k=1).eval()
    with torch.no_grad():
        layer.router.weight.zero_()
        layer.router.weight[1] = 1e4
    layer(torch.rand(20, 8) + 1.0)
    assert layer.last_routing.counts.tolist() == [0, 20, 0, 0]
    balance = layer.auxiliary_losses()["balance"] / layer.balance_weight
    torch.testing.assert_close(balance, torch.tensor(4.0))


@every_router
@pytest.mark.parametrize("sizes", [{"num_experts": 0}, {"dim": 0}, {"num_experts": -1}, {"num_experts": 2.0}])
def test_impossible_sizes_are_refused_at_construction(router, sizes):
    with pytest.raises(ConfigError, match="num_experts|dim"):
        make_router(router, **{"dim": 8, "num_experts": 4, **sizes})


@every_router
@pytest.mark.parametrize("top_k", [0, -1, 99, True, 1.5])
def test_impossible_top_k_is_refused(router, top_k):
    if "top_k" not in type(make_router(router, 8, 4)).__init__.__code__.co_varnames:
        pytest.skip(f"{router} has no top_k")
    with pytest.raises(ConfigError, match="top_k"):
        make_router(router, 8, 4, top_k)


@most
def test_one_expert_is_the_plain_expert(router, backend):
    layer = make(router, backend, experts=1, k=1).eval()
    x = torch.randn(7, 8)
    y = layer(x)
    torch.testing.assert_close(y, mixture(layer, x), atol=1e-6, rtol=1e-5)
    if router != "null_experts":  # whose single expert competes with nothing at all
        torch.testing.assert_close(layer.last_routing.weight, torch.ones(7), atol=1e-6, rtol=0)
    assert all(value.isfinite() for value in layer.auxiliary_losses().values())


@token_choice
@pytest.mark.parametrize("overflow", ["drop", "next_best"])
@given(tokens=st.integers(0, 30), factor=st.sampled_from([1e-9, 0.3, 1.0, 1.25, 4.0]), seed=st.integers(0, 999))
def test_capacity_is_never_exceeded_and_every_assignment_is_accounted_for(router, overflow, tokens, factor, seed):
    torch.manual_seed(seed)
    free = make(router)
    limited = MoE(8, 4, router=free.router, experts=free.experts, capacity_factor=factor, overflow=overflow)
    x = torch.randn(tokens, 8)
    torch.manual_seed(seed)
    free(x)
    torch.manual_seed(seed)
    y = limited(x)
    wanted, got = free.last_routing, limited.last_routing
    k = wanted.position.shape[1]
    capacity = max(1, -int(-factor * tokens * k // 4))
    assert int(got.counts.max()) <= capacity
    assert int(got.counts.sum() + got.dropped) == int(wanted.counts.sum())
    torch.testing.assert_close(y, mixture(limited, x), atol=1e-5, rtol=1e-5)
    if overflow == "next_best" and k == 1 and factor >= 1:
        assert int(got.dropped) == 0  # there is room for everybody somewhere
    if factor == 4.0:
        assert torch.equal(got.counts, wanted.counts)


@most
def test_memory_layout_does_not_matter(router, backend):
    layer = make(router, backend).eval()
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


@every_router
@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.bool])
def test_another_dtype_is_refused_with_the_cure(router, dtype):
    with pytest.raises(DataError, match=r"torch.float32.*\.to\("):
        make(router)(torch.ones(3, 8).to(dtype))


@most
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_finite_close_and_routes_in_float32(router, backend, dtype):
    layer = make(router, backend).eval()
    x = torch.randn(20, 8)
    full = layer(x)
    with torch.autocast("cpu", dtype=dtype):
        y = layer(x)
    assert y.dtype == dtype
    assert layer.last_routing.logits.dtype == torch.float32
    assert layer.last_routing.weight.dtype == torch.float32
    torch.testing.assert_close(y.float(), full, atol=2e-2, rtol=2e-2)
    y.float().square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())


@most
@pytest.mark.parametrize("capacity_factor", [None, 0.25])
def test_batch_mates_do_not_matter(router, backend, capacity_factor):
    if capacity_factor is not None and not make_router(router, 8, 4).token_choice:
        pytest.skip("has no capacity")
    layer = make(router, backend, capacity_factor=capacity_factor).eval()
    victim = torch.randn(1, 8)
    alone = layer(victim)
    mates = torch.randn(31, 8)
    crowd = victim + 0.01 * torch.randn(31, 8)
    for others in (mates, crowd):
        for batch, row in ((torch.cat([victim, others]), 0), (torch.cat([others, victim]), -1)):
            torch.testing.assert_close(layer(batch)[row], alone[0], atol=1e-5, rtol=1e-5)


@most
def test_permuting_tokens_permutes_the_output(router, backend):
    layer = make(router, backend).eval()
    x = torch.randn(30, 8)
    order = torch.randperm(30)
    torch.testing.assert_close(layer(x[order]), layer(x)[order], atol=1e-6, rtol=1e-5)
    twins = layer(x[[4, 4]])
    torch.testing.assert_close(twins[0], twins[1])


@every_router
def test_leading_dimensions_are_kept_and_wrong_shapes_refused(router):
    layer = make(router).eval()
    x = torch.randn(2, 3, 8)
    if router == "soft":
        torch.testing.assert_close(layer(x)[1], layer(x[1:])[0])  # samples never mix
    else:
        torch.testing.assert_close(layer(x), layer(x.view(6, 8)).view(2, 3, 8))
    for wrong in (torch.randn(8), torch.randn(2, 9), torch.tensor(1.0)):
        with pytest.raises(DataError, match=r"\(\.\.\., 8\)"):
            layer(wrong)


@every_router
def test_copies_pickles_and_state_dicts_answer_the_same(router):
    layer = make(router)
    x = torch.randn(5, 8)
    layer(x)
    layer.update(progress=0.7)  # what is not learned by gradient travels too
    layer.eval()
    expected = layer(x)  # leaves a routing behind, which copies must not carry
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    fresh = make(router).eval()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), fresh):
        assert twin.last_routing is None
        assert torch.equal(twin(x), expected)


@every_router
def test_evaluation_is_deterministic(router):
    layer = make(router).eval()
    x = torch.randn(20, 8)
    state = torch.random.get_rng_state()
    assert torch.equal(layer(x), layer(x))
    assert torch.equal(torch.random.get_rng_state(), state)  # and draws no random number


@every_router
def test_torch_compile_gives_the_same_output(router):
    torch.compiler.reset()
    layer = make(router, dim=16, experts=8).eval()
    x = torch.randn(10, 16)
    torch.testing.assert_close(torch.compile(layer, backend="eager", fullgraph=True)(x), layer(x))


@pytest.mark.parametrize(  # the slow ones choose as topk does; all of them are compiled in the test above
    "router",
    [pytest.param(r, marks=pytest.mark.slow if r in ("noisy_topk", "smoe_dropout", "avg_k") else ()) for r in ROUTERS],
)
def test_torch_export_gives_the_same_output_at_another_batch_size(router):
    layer = make(router, dim=16, experts=8).eval()
    batch = torch.export.Dim("batch", min=2, max=512)
    exported = torch.export.export(layer, (torch.randn(10, 16),), dynamic_shapes=({0: batch},)).module()
    x = torch.randn(37, 16)
    torch.testing.assert_close(exported(x), layer(x))


@pytest.mark.parametrize(  # a width of 15 changes what grouped products do, and what auto chooses
    ("backend", "dim"), [("loop", 16), ("bmm", 16), ("masked", 16), ("grouped", 16), ("grouped", 15), ("auto", 15)]
)
def test_every_backend_and_width_can_be_traced(backend, dim):
    layer = make("topk", backend, dim=dim, experts=8).eval()
    batch = torch.export.Dim("batch", min=2, max=512)
    exported = torch.export.export(layer, (torch.randn(10, dim),), dynamic_shapes=({0: batch},)).module()
    x = torch.randn(37, dim)
    torch.testing.assert_close(exported(x), layer(x))


@most
def test_gradients_of_gradients(router, backend):
    layer = make(router, backend).double().eval()
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    second = []
    for out in (layer(x), mixture(layer, x)):
        first = torch.autograd.grad(out.square().sum(), x, create_graph=True)[0]
        second.append(torch.autograd.grad(first.square().sum(), x, retain_graph=True)[0])
    torch.testing.assert_close(*second)


@every_router
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(0, 8), (0, 3, 8), (3, 0, 8), (0, 0, 8), (2, 0, 3, 8)])
def test_empty_batches_of_every_shape_go_forward_and_backward(router, training, shape):
    for options in ({}, {"capacity_factor": 1.0, "overflow": "next_best"}, {"eval_capacity_factor": 1.0}):
        if options and not make_router(router, 8, 4).token_choice:
            continue
        layer, x = make(router, **options).train(training), torch.zeros(shape, requires_grad=True)
        y = layer(x)
        assert y.shape == shape
        (y.sum() + sum(layer.auxiliary_losses().values())).backward()
        layer.update(0.5)
        assert x.grad is not None
        assert all(p.grad is not None and not p.grad.any() for p in layer.experts.parameters())


@pytest.mark.parametrize(
    "experts", [FactoredExpertMLP(8, 16, 4, 3), LowRankExpertMLP(8, 16, 4, 3), HeterogeneousExperts(8, [4, 5, 6, 7])]
)
@pytest.mark.parametrize("frozen", [True, False])
def test_an_empty_batch_reaches_every_kind_of_experts_frozen_or_not(experts, frozen):
    layer = MoE(8, 4, router="thor", experts=experts.requires_grad_(not frozen))
    x = torch.zeros(0, 8, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.shape == (0, 8)
    assert frozen or all(p.grad is not None and not p.grad.any() for p in experts.parameters())


@every_router
def test_a_whole_layer_saved_by_torch_answers_the_same(router):
    layer, x = make(router), torch.randn(5, 8)
    layer(x)
    layer.update(progress=0.7)
    layer.eval()
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), layer(x))


@every_router
@pytest.mark.parametrize("training", [True, False])
def test_one_token_and_every_expert_at_once_train(router, training):
    layer = make(router, k=4).train(training)
    loss = layer(torch.randn(1, 8)).square().sum() + sum(layer.auxiliary_losses().values())
    loss.backward()
    layer.update(1.0)
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())


@every_router
def test_frozen_parameters_get_no_gradient_and_the_others_theirs(router):
    layer, x = make(router), torch.randn(9, 8, requires_grad=True)
    expected = torch.autograd.grad(layer.eval()(x).square().sum(), x)[0]
    layer.experts.weight1.requires_grad_(False)
    layer(x).square().sum().backward()
    assert layer.experts.weight1.grad is None
    assert layer.experts.weight2.grad is not None
    torch.testing.assert_close(x.grad, expected)
