"""Routers against the formulas of their papers' released code, computed here from the same weights."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

import moeapps
from moeapps import GNNClassifier, MoEClassifier, MoERegressor
from moeapps.core import (
    AutonomyRouter,
    BilevelRouter,
    GatedFactoredExpertMLP,
    MoE,
    MoEModule,
    SharedExpertsRouter,
    SMoEDropoutRouter,
    ThorRouter,
    TopKRouter,
    consistency_loss,
    make_router,
)
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.older import arguments_of_0_1
from moeapps.core.older_networks import as_in_0_1
from moeapps.core.statistics import GroupCounts, RoutingMonitor
from moeapps.core.surgery import regroup
from moeapps.vision import WideNetClassifier
from moeapps.vision.widenet import ViTMoE, WideNet
from tests.core.dense import ROUTERS, every_expert

IMAGES = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 8, "depth": 3, "num_heads": 2, "num_classes": 3}


# ------------------------------------------------------------------ shared experts (DeepSeek-V3)


@pytest.mark.parametrize("score", ["sigmoid", "softmax"])
@pytest.mark.parametrize(("top_k", "scale"), [(1, 1.0), (3, 1.0), (3, 2.5)])
def test_routed_weights_are_those_of_deepseeks_gate(score, top_k, scale):
    """Sigmoids are divided by their sum over the chosen, a softmax is not; then everything is times route_scale."""
    router = SharedExpertsRouter(8, 6, top_k, score=score, route_scale=scale)
    router.balance_bias.copy_(torch.tensor([0.3, 0.0, -0.2, 0.1, 0.0]))
    x = torch.randn(40, 8)
    scores = x @ router.weight.T
    scores = scores.sigmoid() if score == "sigmoid" else scores.softmax(-1)
    chosen = (scores + router.balance_bias).topk(top_k).indices
    expected = scores.gather(1, chosen)
    if score == "sigmoid" and top_k > 1:  # at k = 1 it would be 1 for every token
        expected = expected / expected.sum(1, keepdim=True)
    routing = router(x)
    assert torch.equal(routing.choices[:, 1:], chosen + 1)
    torch.testing.assert_close(routing.weight[routing.position][:, 1:], expected * scale)


def test_a_router_of_one_routed_expert_per_token_learns():
    torch.manual_seed(0)
    for renormalize, learns in ((None, True), (True, False)):
        layer = MoE(8, 5, router=SharedExpertsRouter(8, 5, 1, renormalize=renormalize))
        layer(torch.randn(30, 8)).square().sum().backward()
        assert (float(layer.router.weight.grad.abs().max()) > 1e-3) == learns
    with pytest.raises(ConfigError, match="route_scale must be a number above 0"):
        SharedExpertsRouter(8, 5, route_scale=0.0)


@pytest.mark.parametrize("merged", [False, True])
def test_the_bias_learns_from_the_calls_of_all_blocks_together(merged):
    model = WideNet(**IMAGES, num_experts=4, top_k=1, router="shared", router_args={"bias_rate": 0.5})
    if merged:
        model.shared["moe"] = regroup(model.moe, [[0], [1, 3], [2]])
    model(torch.randn(6, 1, 8, 8))
    router = model.moe.router.router if merged else model.moe.router
    calls = [routing.before if merged else routing for routing in model.moe.routings]
    assert len(calls) == 3
    counts = sum(torch.bincount(routing.choices[:, 1] - 1, minlength=3) for routing in calls).float()
    model.moe.update(0.5)
    torch.testing.assert_close(router.balance_bias, 0.5 * torch.sign(counts.mean() - counts))


def test_statistics_of_a_shared_layer_are_those_of_all_its_calls():
    model = WideNet(**IMAGES, num_experts=4)
    images = torch.randn(6, 1, 8, 8)
    model(images)
    counts = sum(routing.counts for routing in model.moe.routings)
    seen = GroupCounts(["a", "b"])
    seen.update(model, torch.tensor([0, 1, 0, 1, 1, 0]))
    assert torch.equal(seen.counts["shared.moe"].sum(0), counts.double())

    class Holder(torch.nn.Module):
        device = torch.device("cpu")

        def __init__(self):
            super().__init__()
            self.network = model

    monitor = RoutingMonitor()
    monitor._update(Holder(), "")
    (metric,) = monitor._statistics.values()
    assert torch.equal(metric.assigned, counts.double())


# ------------------------------------------------------------------ THOR


class Drawn(MoEModule):
    def __init__(self, weight):
        super().__init__()
        self.layer = MoE(4, 6, router=ThorRouter(4, 6, consistency_weight=weight))
        self.outputs = []

    def run(self, x, y):
        logits = self.layer(x)
        self.outputs.append(logits)
        return logits, {"task": F.cross_entropy(logits, y)}


def test_thors_step_is_half_the_released_objective():
    """Released: loss1 + loss2 + 5 * sum over tokens of 1/2 sum (p - q)(log p - log q), by the number of tokens."""
    torch.manual_seed(3)
    module = Drawn(weight=ThorRouter(4, 6).consistency_weight)
    x, y = torch.randn(20, 4), torch.randint(0, 4, (20,))
    terms = module.by_draws(lambda: module.run(x, y), consistency_loss)
    first, second = module.outputs
    assert not torch.equal(first, second)  # two draws
    p, q = first.softmax(-1), second.softmax(-1)
    apart = 0.5 * ((p - q) * (p.log() - q.log())).sum() / 20
    released = F.cross_entropy(first, y) + F.cross_entropy(second, y) + 5.0 * apart
    torch.testing.assert_close(sum(terms.values()), released / 2)
    assert set(terms) == {"task", "consistency"}
    one = Drawn(weight=0.0)
    assert set(one.by_draws(lambda: one.run(x, y), consistency_loss)) == {"task"}
    assert len(one.outputs) == 1


def test_thor_compares_two_draws_in_tables_images_and_graphs():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 3))
    small = {"router": "thor", "dim": 8, "num_blocks": 1, "num_experts": 3, "max_epochs": 1, "random_state": 0}
    assert "train/consistency" in MoEClassifier(**small).fit(X, X[:, 0] > 0).history_
    assert "train/consistency" in MoERegressor(**small).fit(X, X[:, 0]).history_

    images = rng.integers(0, 256, (12, 8, 8), dtype=np.uint8)
    sizes = {"embed_dim": 8, "depth": 2, "num_heads": 2, "max_epochs": 1, "validation_fraction": 0, "random_state": 0}
    history = WideNetClassifier(router="thor", **sizes).fit(images, np.arange(12) % 2).history_
    assert history["train/consistency"].iloc[0] > 0
    assert "train/consistency" not in WideNetClassifier(**sizes).fit(images, np.arange(12) % 2).history_

    class Network(torch.nn.Module):
        """A network of one's own, with experts."""

        def __init__(self):
            super().__init__()
            self.experts = MoE(3, 4, router="thor")

        def forward(self, x, edge_index):
            return self.experts(x)[:, :2]

    path = np.arange(30)
    edges = np.array([[*path[:-1], *path[1:]], [*path[1:], *path[:-1]]])
    masks = path % 3
    found = GNNClassifier(Network(), max_epochs=2, random_state=0).fit(
        X[:30], (X[:30, 0] > 0).astype(int), edges, train_mask=masks == 0, val_mask=masks == 1
    )
    assert "train/consistency" in found.history_


# ------------------------------------------------------------------ autonomy of experts


def test_autonomous_experts_are_the_released_ones():
    """Scores |x Wd|, weights softmax over all experts and no more, experts (silu(x Wd Wu) * (x V)) W2."""
    layer = MoE(8, 4, hidden_dim=6, router=AutonomyRouter(8, 4, top_k=2, rank=3))
    e = layer.experts
    assert type(e) is GatedFactoredExpertMLP
    x = torch.randn(20, 8)
    y = layer(x)
    narrow = torch.einsum("nd,edr->ner", x, e.down)
    weight, chosen = narrow.norm(dim=-1).softmax(-1).topk(2)
    out = torch.stack([(F.silu(narrow[:, i] @ e.weight1[i]) * (x @ e.value[i])) @ e.weight2[i] for i in range(4)], 1)
    expected = (weight[..., None] * out.gather(1, chosen[..., None].expand(-1, -1, 8))).sum(1)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(every_expert(e, x), out)


@pytest.mark.parametrize("backend", ["loop", "bmm", "grouped", "masked"])
def test_autonomous_experts_are_the_same_on_every_backend(backend):
    experts = GatedFactoredExpertMLP(8, 16, 3, rank=4, bias=True)
    rows, offsets = torch.randn(9, 8), torch.tensor([0, 5, 5, 8], dtype=torch.int32)
    expected = torch.zeros(9, 8)
    for e, (first, last) in enumerate([(0, 5), (5, 5), (5, 8)]):
        part = rows[first:last]
        hidden = F.silu(part @ experts.down[e] @ experts.weight1[e] + experts.bias1[e]) * (part @ experts.value[e])
        expected[first:last] = hidden @ experts.weight2[e] + experts.bias2[e]
    torch.testing.assert_close(experts(rows, offsets, backend), expected)


def test_the_narrow_form_is_that_of_0_1():
    layer = MoE(8, 4, router=AutonomyRouter(8, 4, form="narrow"))
    x = torch.randn(20, 8)
    layer(x)
    routing = layer.last_routing
    torch.testing.assert_close(routing.weight[routing.position].sum(1), torch.ones(20))
    with pytest.raises(ConfigError, match="form must be one of gated, narrow"):
        AutonomyRouter(8, 4, form="wide")


# ------------------------------------------------------------------ SMILE, SMoE-Dropout, GW-MoE


def test_smiles_loss_is_one_between_groups_plus_one_inside_them():
    """G sum f P over the groups, and M sum f P inside each from the tokens that it got, averaged over groups."""
    torch.manual_seed(1)
    router = BilevelRouter(8, 12, num_groups=3, top_groups=1, top_k=2)
    x = torch.randn(50, 8)
    outer = (x @ router.group_weight.T).softmax(-1)
    inner = (x @ router.weight.T).view(50, 3, 4).softmax(-1)
    group = outer.argmax(-1)
    f = torch.bincount(group, minlength=3) / 50
    expected = 3 * (f * outer.mean(0)).sum()
    for g in range(3):
        here = inner[group == g, g]
        taken = torch.zeros_like(here).scatter(1, here.topk(2).indices, 1.0)
        expected = expected + 4 * (taken.sum(0) / taken.sum() * here.mean(0)).sum() / 3
    routing = router(x)
    torch.testing.assert_close(router.losses(routing)["balance"], expected)
    with torch.no_grad():
        router.weight.zero_()
        router.group_weight.zero_()
    even = router.losses(router(x))  # all tokens to one group, with uniform probabilities
    torch.testing.assert_close(even["balance"], torch.tensor(1.0 + 1 / 3))
    torch.testing.assert_close(even["z"], torch.tensor(math.log(3) ** 2 + math.log(4) ** 2))
    flat = BilevelRouter(8, 12, num_groups=3, balance="flat")
    assert float(flat.losses(flat(x))["z"].detach()) == pytest.approx(0.0, abs=1e-6)


def test_weights_of_tokens_and_invalid_tokens_count_in_smiles_loss_as_they_should():
    torch.manual_seed(1)
    router = BilevelRouter(8, 12, num_groups=3, top_groups=2, top_k=3)
    x = torch.randn(20, 8)
    some = router.losses(router(x[:12]))
    weight = (torch.arange(20) < 12).float()
    for name, value in router.losses(router(x), weight).items():
        torch.testing.assert_close(value, some[name])
    x[12:] = torch.nan
    for name, value in router.losses(router(x)).items():
        torch.testing.assert_close(value, some[name])


def test_smoe_dropout_starts_at_half_of_the_experts():
    """Released scripts: 16 experts, k from 8 to 16, linearly."""
    router = SMoEDropoutRouter(8, 16)
    ks = []
    for progress in (0.0, 0.25, 0.5, 1.0):
        router.update(None, progress)
        ks.append(router.top_k)
    assert ks == [8, 10, 12, 16]
    assert SMoEDropoutRouter(8, 1).top_k == 1
    assert SMoEDropoutRouter(8, 16, end_k=3).start_k == 3


@pytest.mark.parametrize("top_k", [1, 2])
def test_uncertain_tokens_go_to_all_experts_in_training_only(top_k):
    """GW-MoE: H(p) >= threshold broadcasts with weights p; the others keep top-k."""
    torch.manual_seed(0)
    layer = MoE(8, 4, router=TopKRouter(8, 4, top_k, broadcast_above=1.1))
    x = torch.cat([0.3 * torch.randn(20, 8), 4 * torch.randn(20, 8)])
    p = (x @ layer.router.weight.T).softmax(-1)
    unsure = -(p * p.log()).sum(-1) >= 1.1
    assert 5 < int(unsure.sum()) < 35
    y = layer(x)
    routing = layer.last_routing
    assert torch.equal(routing.used().sum(1), torch.where(unsure, 4, top_k))
    best = torch.zeros_like(p).scatter(1, p.topk(top_k).indices, p.topk(top_k).values)
    best = best / best.sum(1, keepdim=True) if top_k > 1 else best
    weight = torch.where(unsure[:, None], p, best)
    torch.testing.assert_close(y, torch.einsum("ne,ned->nd", weight, every_expert(layer.experts, x)))
    plain = MoE(8, 4, router=TopKRouter(8, 4, top_k), experts=layer.experts).eval()
    plain.router.load_state_dict(layer.router.state_dict())
    torch.testing.assert_close(layer.eval()(x), plain(x))
    with pytest.raises(ConfigError, match="no meaning with gradient='sparsemixer'"):
        TopKRouter(8, 4, 1, gradient="sparsemixer", broadcast_above=1.0)


# ------------------------------------------------------------------ balanced hash


def test_balanced_hash_gives_each_id_in_order_of_frequency_to_the_emptiest_expert():
    counts = np.random.default_rng(0).zipf(1.6, 60).clip(max=500)
    counts[::7] = 0
    router = make_router("hash", 8, 4, vocabulary=60)
    plain = router.table.clone()
    router.balance(counts)
    load, expected = np.zeros(4), plain.numpy().copy()
    for i in np.argsort(-counts, kind="stable"):
        if counts[i] > 0:
            expected[i] = load.argmin()
            load[load.argmin()] += counts[i]
    assert router.table.tolist() == expected.tolist()
    ids = torch.from_numpy(np.repeat(np.arange(60), counts))
    routing = router(torch.randn(len(ids), 8), ids=ids)
    assert routing.counts.tolist() == load.tolist()
    assert routing.counts.max() <= max(counts.max(), 1.05 * len(ids) / 4)
    twin = make_router("hash", 8, 4, vocabulary=60)
    twin.load_state_dict(router.state_dict())
    others = torch.tensor([-1, 60, 10**9])
    expected = make_router("hash", 8, 4)(torch.randn(3, 8), ids=others).choices
    assert torch.equal(twin(torch.randn(3, 8), ids=others).choices, expected)  # without an entry: hashed
    pruned = twin.restricted([3, 1])
    after = pruned(torch.randn(60, 8), ids=torch.arange(60)).choices[:, 0]
    for new, old in enumerate([3, 1]):
        assert (after[router.table == old] == new).all()
    assert set(after.tolist()) == {0, 1}


def test_a_balanced_hash_refuses_what_it_cannot_use():
    router = make_router("hash", 8, 4, vocabulary=5)
    for counts in ([1, 2], [1, 2, 3, 4, -1], [1, 2, 3, 4, np.nan]):
        with pytest.raises(DataError, match="counts must be 5 numbers of at least 0"):
            router.balance(counts)
    with pytest.raises(ConfigError, match="give it a vocabulary"):
        make_router("hash", 8, 4).balance([1])
    router.table[2] = 4
    assert router.check_buffers() == "its table has experts outside of 0..3"


def test_a_table_is_routed_by_a_column_with_a_balanced_hash(tmp_path):
    rng = np.random.default_rng(0)
    city = rng.choice(["a", "b", "c", "d", "e", "f"], 200, p=[0.3, 0.25, 0.15, 0.1, 0.1, 0.1])
    X = pd.DataFrame({"x": rng.normal(size=200), "kind": rng.choice(["u", "v"], 200), "city": city})
    y = (X["x"] > 0) ^ (X["city"] < "c")
    small = {"dim": 8, "num_blocks": 1, "num_experts": 3, "max_epochs": 2, "random_state": 0}
    model = MoEClassifier("hash", route_by="city", **small).fit(X, y)
    load = model.expert_load(X, groups=X["city"])
    assert (load.max(axis=1) == 1).all()  # each city has its expert
    rows = load.mul(X["city"].value_counts(), axis=0).sum()
    assert rows.max() <= 1.2 * 200 / 3
    model.save(tmp_path / "model.safetensors")
    loaded = moeapps.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(loaded.predict_proba(X), model.predict_proba(X))
    assert loaded.get_params()["route_by"] == "city"
    for smaller in (model.prune(2, X), model.merge(2, X)):
        smaller.save(tmp_path / "smaller.safetensors")
        again = moeapps.load(tmp_path / "smaller.safetensors")
        np.testing.assert_array_equal(again.predict_proba(X), smaller.predict_proba(X))
    table = model.model_.blocks[0].router.table.clone()
    model.partial_fit(X.iloc[:50], y.iloc[:50])
    assert torch.equal(model.model_.blocks[0].router.table, table)
    with pytest.raises(ConfigError, match="one of the categorical columns kind, city, got 'x'"):
        MoEClassifier("hash", route_by="x", **small).fit(X, y)
    with pytest.raises(ConfigError, match="route_by is for router='hash'"):
        MoEClassifier("topk", route_by="city", **small).fit(X, y)


# ------------------------------------------------------------------ options by name, merged routers, 0.1


def test_slots_and_other_arguments_reach_the_routers_of_images():
    args = {"num_experts": 4, "router": "soft", "router_args": {"slots": 3}}
    assert WideNet(**IMAGES, **args).moe.router.slots == 3
    routers = [m for m in ViTMoE(**IMAGES, **args).modules() if type(m).__name__ == "SoftRouter"]
    assert [router.slots for router in routers] == [3, 3]
    noisy = WideNet(**IMAGES, num_experts=4, router_args={"jitter": 0.1}).moe.router
    assert (noisy.jitter, noisy.noise_std) == (0.1, 0.25)
    with pytest.raises(ConfigError, match="router_args are for a router that is given by name"):
        WideNet(**IMAGES, num_experts=4, router=make_router("soft", 8, 4), router_args={"slots": 3})


def test_a_merged_estimator_goes_on_learning_its_routers_way():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 3))
    small = {"dim": 8, "num_blocks": 1, "num_experts": 4, "max_epochs": 1, "random_state": 0}
    topp = MoEClassifier("topp", **small).fit(X, X[:, 0] > 0).merge(2, X).partial_fit(X, X[:, 0] > 0)
    assert topp.history_["train/model.blocks.0/entropy"].iloc[-1] > 0
    dropout = MoEClassifier("smoe_dropout", **small).fit(X, X[:, 0] > 0).merge(2, X)
    dropout.model_.blocks[0].router.router.top_k = 2
    dropout.partial_fit(X, X[:, 0] > 0)
    assert dropout.model_.blocks[0].router.router.top_k == 4
    shared = MoEClassifier("shared", **small).fit(X, X[:, 0] > 0).merge(3, X)
    before = shared.model_.blocks[0].router.router.balance_bias.clone()
    shared.partial_fit(X, X[:, 0] > 0)
    assert not torch.equal(shared.model_.blocks[0].router.router.balance_bias, before)


@pytest.mark.parametrize("router", ["bilevel", "null_experts"])
def test_balance_of_a_routers_own_kind_survives_merging(router):
    layer = MoE(8, 6, router=make_router(router, 8, 6))
    merged = regroup(layer, [[0, 1], [2, 3], [4, 5]])
    x = torch.randn(40, 8)
    layer(x)
    merged(x)
    torch.testing.assert_close(merged.auxiliary_losses()["balance"], layer.auxiliary_losses()["balance"])


def test_what_0_1_saved_gets_its_routers_defaults_of_then():
    named = arguments_of_0_1({"router": "thor", "router_args": {"top_k": 2}, "dim": 8})
    assert named == {"router": "thor", "router_args": {"consistency_weight": 1.0, "top_k": 2}, "dim": 8}
    assert arguments_of_0_1({"router": "topk", "router_args": None}) == {"router": "topk", "router_args": None}
    assert arguments_of_0_1({"options": {"router": "shared"}})["options"]["router_args"] == {"renormalize": True}
    for name in ("nonsense", 3):  # refused where the network is built
        assert arguments_of_0_1({"router": name}) == {"router": name}
    for router, expected in (("shared", ("renormalize", True)), ("autonomy", ("form", "narrow")),
                             ("smoe_dropout", ("start_k", 1)), ("bilevel", ("balance", "flat"))):  # fmt: skip
        layer = MoE(8, 4, router=make_router(router, 8, 4, top_k=1))
        as_in_0_1(layer)
        assert getattr(layer.router, expected[0]) == expected[1]
    narrow = MoE(8, 4, router="autonomy")
    as_in_0_1(narrow)
    assert {name: tuple(p.shape) for name, p in narrow.named_parameters()} == {
        "experts.weight1": (4, 2, 32), "experts.weight2": (4, 32, 8), "experts.bias1": (4, 32),
        "experts.bias2": (4, 8), "experts.down": (4, 8, 2),
    }  # fmt: skip


def test_a_checkpoint_says_whose_defaults_its_routers_have():
    module, checkpoint = Drawn(weight=2.5), {"state_dict": Drawn(weight=2.5).state_dict(), "optimizer_states": []}
    module.on_load_checkpoint(checkpoint)  # of 0.1: it says nothing
    assert module.consistency_weight == 1.0
    for before, expected in ((module, 1.0), (Drawn(weight=2.5), 2.5)):
        written = {"state_dict": before.state_dict(), "optimizer_states": []}
        before.on_save_checkpoint(written)
        again = Drawn(weight=2.5)
        again.on_load_checkpoint(written)
        assert again.consistency_weight == expected


@pytest.mark.parametrize("router", ROUTERS)
def test_every_router_trains_an_estimator(router):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(150, 4))
    y = X[:, 0] + X[:, 1] > 0
    small = {"num_experts": 4, "top_k": 1, "dim": 16, "num_blocks": 1, "batch_size": 30, "max_epochs": 6, "lr": 0.02}
    assert MoEClassifier(router, **small, random_state=0).fit(X, y).score(X, y) > 0.85
