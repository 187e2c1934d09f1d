"""Each routing method against its own formula and its own promises."""

import pytest
import torch
from torch.nn import functional as F

from moeapps.core import (
    AutonomyRouter,
    AvgKRouter,
    BilevelRouter,
    ExpertChoiceRouter,
    ExpertMLP,
    FactoredExpertMLP,
    MoE,
    NoisyTopKRouter,
    NullExpertsRouter,
    Router,
    SharedExpertsRouter,
    SMoEDropoutRouter,
    SoftRouter,
    ThorRouter,
    TopKRouter,
    TopPRouter,
    load_balance_loss,
    make_router,
    mutual_information,
)
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.routers.topk import sparsemixer
from moeapps.core.routing import Routing
from tests.core.dense import ROUTERS


def per_token(routing: Routing) -> torch.Tensor:
    """Sum of each token's weights."""
    return routing.weight[routing.position].sum(-1)


@pytest.mark.parametrize(
    ("router", "total"),
    [
        (TopKRouter(8, 6, 3), 1.0),
        (TopKRouter(8, 6, 6, renormalize=False), 1.0),
        (NoisyTopKRouter(8, 6, 2), 1.0),
        (TopPRouter(8, 6, p=0.7, renormalize=True), 1.0),
        (TopPRouter(8, 6, p=1.0), 1.0),
        (ThorRouter(8, 6, top_k=3), 1.0),
        (SMoEDropoutRouter(8, 6, start_k=2), 1.0),
        (SharedExpertsRouter(8, 6, top_k=2, num_shared=2), 3.0),
        (BilevelRouter(8, 6, num_groups=2, top_groups=2, top_k=6), 1.0),
        (make_router("hash", 8, 6), 1.0),
    ],
)
def test_weights_of_a_token_sum_to_what_the_router_promises(router, total):
    torch.testing.assert_close(per_token(router(torch.randn(50, 8))), torch.full((50,), total))


def test_switch_weight_is_the_probability():
    router = TopKRouter(8, 4, 1)
    x = torch.randn(9, 8)
    p = (x @ router.weight.T).softmax(-1)
    routing = router(x)
    torch.testing.assert_close(routing.weight[routing.position][:, 0], p.max(-1).values)
    assert torch.equal(routing.choices[:, 0], p.argmax(-1))


@pytest.mark.parametrize("noise", [{"noise_std": 1.0}, {"jitter": 0.3}])
def test_noise_is_for_training_only(noise):
    router = TopKRouter(8, 4, 2, **noise)
    x = torch.randn(9, 8)
    assert not torch.equal(router(x).logits, router(x).logits)
    router.eval()
    torch.testing.assert_close(router(x).logits, x @ router.weight.T)


def test_sparsemixer_gradient_is_heuns_estimate():
    """For one scalar per expert: the mean over many draws against the rule written out."""
    torch.manual_seed(0)
    values = torch.tensor([1.0, -0.7, 0.4])
    logits = torch.tensor([0.1, 0.0, -0.05], requires_grad=True)

    def loss(y):
        return y**3 + 0.5 * y**2 - y

    def slope_of_loss(y):
        return 3 * y**2 + y - 1

    rows = 400_000
    weight, expert = sparsemixer(logits.expand(rows, 3), 1, tolerance=10.0, training=True)
    (estimate,) = torch.autograd.grad(loss(weight * values[expert]).mean(), logits)
    p = logits.softmax(-1)
    slope = []
    for e, value in enumerate(values):  # the best expert at its full weight, the others at it and at a third of it
        points = [(1.0, 1.0)] if e == 0 else [(0.25, 1.0), (0.75, 1 / 3)]
        slope.append(sum(share * value * slope_of_loss(scale * p[e].detach() * value) for share, scale in points))
    (expected,) = torch.autograd.grad((p.detach() * torch.stack(slope) * p).sum(), logits)
    torch.testing.assert_close(estimate, expected, atol=3e-3, rtol=0.02)


def test_sparsemixer_trains_by_drawing_and_evaluates_by_the_best():
    router = TopKRouter(8, 4, 2, gradient="sparsemixer", jitter=0.5)
    x = torch.randn(200, 8)
    drawn = router(x).choices
    assert (drawn[:, 0] != drawn[:, 1]).all()
    best = router.eval()(x).choices
    assert not torch.equal(drawn, best)
    assert torch.equal(best[:, 0], router(x).logits.argmax(-1))
    with pytest.raises(ConfigError, match="top_k 1 or 2"):
        TopKRouter(8, 4, 3, gradient="sparsemixer")


def test_noisy_topk_smooth_load_counts_what_other_draws_would_have_chosen():
    router = NoisyTopKRouter(8, 4, 2)
    x = torch.randn(2000, 8)
    expected = torch.stack([router(x).counts.double() for _ in range(30)]).mean(0)
    smooth = router._smooth_load(router(x), None)
    torch.testing.assert_close(smooth.double(), expected, rtol=0.05, atol=5)
    losses = router.losses(router(x))
    assert losses["balance"] >= 0
    losses["balance"].backward()
    assert router.noise_weight.grad.any()


def test_topp_takes_the_smallest_set_that_reaches_p():
    router = TopPRouter(8, 6, p=0.6)
    x = 2 * torch.randn(200, 8)
    p = (x @ router.weight.T).softmax(-1)
    used = router(x).used()
    for row in range(200):
        ordered = p[row].sort(descending=True).values
        needed = int((ordered.cumsum(0) < 0.6).sum()) + 1
        assert int(used[row].sum()) == needed
        assert torch.equal(used[row].nonzero()[:, 0], p[row].topk(needed).indices.sort().values)
    assert (TopPRouter(8, 6, p=0.99, max_experts=2)(x).used().sum(1) <= 2).all()
    # confident tokens use fewer experts, which is what the entropy loss asks for
    assert router(10 * x).counts.sum() < router(0.1 * x).counts.sum()


def test_expert_choice_balances_perfectly_in_training_and_falls_back_in_evaluation():
    router = ExpertChoiceRouter(8, 4, capacity_factor=2.0)
    x = torch.randn(40, 8)
    training = router(x)
    assert training.counts.tolist() == [20] * 4
    p = (x @ router.weight.T).softmax(-1)
    for e in range(4):
        mine = training.token[training.expert == e]
        assert torch.equal(mine.sort().values, p[:, e].topk(20).indices.sort().values)
    evaluation = router.eval()(x)
    assert torch.equal(evaluation.choices, p.topk(2).indices)
    assert router.mixes_tokens


def test_thor_draws_the_same_experts_for_a_batch_and_averages_all_in_evaluation():
    router = ThorRouter(8, 6, top_k=2)
    drawn = set()
    for _ in range(60):
        choices = router(torch.randn(7, 8)).choices
        assert (choices == choices[0]).all()
        drawn |= set(choices[0].tolist())
    assert drawn == set(range(6))
    assert router.eval()(torch.randn(7, 8)).counts.tolist() == [7] * 6


def test_smoe_dropout_grows_k_and_keeps_it_in_its_state():
    router = SMoEDropoutRouter(8, 8, start_k=2, end_k=8)
    assert not list(router.parameters())
    x = torch.randn(5, 8)
    seen = []
    for progress in (0.0, 0.5, 1.0):
        router.update(router(x), progress)
        seen.append(router.top_k)
    assert seen == [2, 5, 8]
    twin = SMoEDropoutRouter(8, 8, start_k=2)
    twin.load_state_dict(router.state_dict())
    assert twin.top_k == 8
    router.top_k = 3  # slimmer at inference
    assert router(x).choices.shape == (5, 3)
    with pytest.raises(ConfigError, match="top_k"):
        router.top_k = 9


def test_null_experts_are_not_computed_and_pooled_in_the_balance_loss():
    router = NullExpertsRouter(8, 4, num_null=4, top_k=4)
    x = torch.randn(400, 8)
    routing = router(x)
    every = (x @ router.weight.T).softmax(-1)
    chosen = every.topk(4).indices
    assert int(routing.counts.sum()) == int((chosen < 4).sum()) < 1600
    some = routing.used().any(1)
    torch.testing.assert_close(per_token(routing)[some], torch.ones(int(some.sum())))
    assert not per_token(routing)[~some].any()
    with torch.no_grad():
        router.weight.zero_()
    uniform = router.losses(router(x))["balance"]
    assert float(uniform.detach()) == pytest.approx(1.0, abs=0.3)
    count = torch.stack([(chosen == e).float().mean() for e in range(8)])
    count[4:] = count[4:].mean()
    torch.testing.assert_close(router.losses(routing)["balance"], 8 * (count * every.mean(0)).sum())


def test_a_token_that_chose_null_experts_only_gets_zero():
    layer = MoE(8, 2, router=NullExpertsRouter(8, 2, num_null=2, top_k=1))
    with torch.no_grad():
        layer.router.weight.zero_()
        layer.router.weight[3, 0] = 9
        layer.router.weight[0, 0] = -9
    x = torch.tensor([[1.0, *[0.0] * 7], [-1.0, *[0.0] * 7]])
    y = layer(x)
    assert not y[0].any()
    assert y[1].any()


@pytest.mark.parametrize("score", ["sigmoid", "softmax"])
def test_shared_experts_take_every_token_and_the_bias_balances_the_others(score):
    torch.manual_seed(0)
    router = SharedExpertsRouter(8, 9, top_k=2, num_shared=1, score=score, bias_rate=0.01)
    with torch.no_grad():
        router.weight[0] += 1.0
    x = torch.randn(2000, 8) + 0.5
    before = router(x)
    assert int(before.counts[0]) == 2000
    assert int(before.counts[1:].sum()) == 4000
    affinity = x @ router.weight.T
    affinity = affinity.sigmoid() if score == "sigmoid" else affinity.softmax(-1)
    top = affinity.topk(2).values
    total = top.sum(-1, keepdim=True) if score == "sigmoid" else 1  # DeepSeek-V3's gate scales sigmoids only
    torch.testing.assert_close(before.weight[before.position][:, 1:], top / total)
    for _ in range(150):
        router.update(router(x), 0.0)
    after = router(x)

    def skew(r):
        return float(r.counts[1:].max() / r.counts[1:].float().mean())

    assert skew(after) < 1.3 < skew(before)
    # the bias chooses but does not weigh
    own = affinity.gather(1, after.choices[:, 1:] - 1)
    total = own.sum(-1, keepdim=True) if score == "sigmoid" else 1
    torch.testing.assert_close(after.weight[after.position][:, 1:], own / total)


def test_bilevel_probability_is_a_product_and_stays_in_the_chosen_group():
    router = BilevelRouter(8, 12, num_groups=3, top_groups=1, top_k=2)
    x = torch.randn(50, 8)
    group = (x @ router.group_weight.T).softmax(-1)
    inside = (x @ router.weight.T).view(50, 3, 4).softmax(-1)
    routing = router(x)
    torch.testing.assert_close(routing.probabilities, (group[..., None] * inside).flatten(1))
    assert torch.equal(routing.choices // 4, group.argmax(-1, keepdim=True).expand(50, 2))
    assert BilevelRouter(8, 12).num_groups == 3
    with pytest.raises(ConfigError, match="divide num_experts=12"):
        BilevelRouter(8, 12, num_groups=5)
    with pytest.raises(ConfigError, match="at most the 4 experts"):
        BilevelRouter(8, 12, num_groups=3, top_k=5)


def test_average_keys_score_by_the_experts_first_layer():
    experts = ExpertMLP(8, 16, 4)
    router = AvgKRouter(8, 4)
    assert not list(router.parameters())
    x = torch.randn(9, 8)
    keys = torch.stack([experts.weight1[e].mean(1) for e in range(4)])
    torch.testing.assert_close(router(x, experts=experts).logits, x @ keys.T)
    with pytest.raises(ConfigError, match=r"mean_keys\(\)"):
        router(x)


def test_autonomous_experts_are_compared_by_the_norm_of_their_narrow_activation():
    layer = MoE(8, 4, router=AutonomyRouter(8, 4, rank=4))
    assert isinstance(layer.experts, FactoredExpertMLP)
    x = torch.randn(9, 8)
    layer(x)
    norms = torch.stack([(x @ layer.experts.down[e]).norm(dim=1) for e in range(4)], dim=1)
    torch.testing.assert_close(layer.last_routing.logits, norms)
    with pytest.raises(ConfigError, match=r"inner_squares\(\), which ExpertMLP does not offer"):
        MoE(8, 4, router="autonomy", experts=ExpertMLP(8, 16, 4))(x)


def test_soft_slots_mix_the_tokens_of_a_sample_only():
    layer = MoE(8, 3, router=SoftRouter(8, 3, slots=2)).eval()
    x = torch.randn(4, 5, 8)
    y = layer(x)
    router = layer.router
    scores = F.normalize(x, dim=-1) @ (F.normalize(router.weight, dim=-1) * router.scale).T  # (4, 5, 6)
    slots = scores.softmax(1).transpose(1, 2) @ x  # (4, 6, 8)
    e = layer.experts
    out = torch.stack([
        F.gelu(slots[:, s] @ e.weight1[s // 2] + e.bias1[s // 2]) @ e.weight2[s // 2] + e.bias2[s // 2]
        for s in range(6)
    ], dim=1)  # fmt: skip
    torch.testing.assert_close(y, scores.softmax(-1) @ out, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layer(x[2:3])[0], y[2])
    with pytest.raises(DataError, match="do not divide into samples"):
        router(torch.randn(7, 8), sample_size=5)


def test_a_bad_token_in_a_soft_sample_harms_only_itself():
    layer = MoE(8, 3, router="soft").eval()
    x = torch.randn(2, 4, 8)
    shorter = layer(x[:, [0, 1, 3]])
    x[0, 2] = torch.nan
    x[1, 2] = torch.inf
    y = layer(x)
    torch.testing.assert_close(y[:, [0, 1, 3]], shorter)
    assert y[:, 2].isnan().all()
    assert layer(torch.full((1, 4, 8), torch.nan)).isnan().all()


def test_one_router_may_serve_several_layers():
    router = TopKRouter(8, 4, 2)
    first, second = MoE(8, 4, router=router), MoE(8, 4, router=router)
    stack = torch.nn.Sequential(first, second)
    x = torch.randn(6, 8)
    stack(x).sum().backward()
    assert sum(p is router.weight for p in stack.parameters()) == 1
    assert router.weight.grad.any()
    assert not torch.equal(first.last_routing.logits, second.last_routing.logits)


def test_a_router_of_ones_own_needs_two_methods():
    class Nearest(Router):
        """The expert whose corner of the plane the token is in."""

        def scores(self, x, experts, ids):
            return x[:, : self.num_experts]

        def choose(self, logits, valid):
            best = logits.max(-1, keepdim=True)
            return Routing.from_topk(
                best.indices, best.values, logits=logits, probabilities=logits.softmax(-1), valid=valid
            )

    layer = MoE(8, 4, router=Nearest(8, 4))
    x = torch.randn(6, 8)
    x[1] = torch.nan
    assert layer(x)[1].isnan().all()
    assert set(layer.auxiliary_losses()) == {"balance", "z"}


def test_unknown_arguments_of_a_router_are_named():
    with pytest.raises(ConfigError, match="TopPRouter has no argument 'max_expert'; did you mean 'max_experts'"):
        make_router("topp", 8, 4, max_expert=2)
    with pytest.raises(ConfigError, match="did you mean 'thor'"):
        make_router("thr", 8, 4)


def test_losses_see_the_structure_of_the_routing():
    one_sided = TopKRouter(8, 4, 1)
    with torch.no_grad():
        one_sided.weight.zero_()
        one_sided.weight[1, 0] = 1e3
    x = torch.rand(50, 8) + 0.1
    assert float(load_balance_loss(one_sided(x)).detach()) == pytest.approx(4.0)
    sharp = TopKRouter(4, 4, 1)
    with torch.no_grad():
        sharp.weight.copy_(50 * torch.eye(4))
    assert float(mutual_information(sharp(torch.eye(4))).detach()) == pytest.approx(torch.tensor(4.0).log().item())
    assert float(mutual_information(one_sided(x)).detach()) == pytest.approx(0.0, abs=1e-6)


def test_routers_answer_what_their_callers_need():
    routers = {name: make_router(name, 8, 4) for name in ROUTERS}
    unmergeable = {name for name, router in routers.items() if not router.mergeable}
    assert unmergeable == {"avg_k", "autonomy", "expert_choice", "soft"}
    assert {name: router.always_on for name, router in routers.items() if router.always_on} == {"shared": 1}
    assert {name for name, router in routers.items() if router.draws_per_step != 1} == {"thor"}
    assert make_router("thor", 8, 4, consistency_weight=0.0).draws_per_step == 1
    for name, router in routers.items():
        again = make_router(name, 8, 4, **router.arguments())
        assert again.arguments() == router.arguments()


def test_subset_is_a_deprecated_name_of_restricted():
    router = make_router("topk", 8, 4)
    with pytest.warns(DeprecationWarning, match=r"use Router\.restricted"):
        old = router.subset([2, 0])
    torch.testing.assert_close(old.weight, router.restricted([2, 0]).weight)
