"""Pruning, merging, compressing, growing: on small layers exactly, and on a classifier trained on real digits."""

import inspect

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import moeapps
from moeapps import MoEClassifier
from moeapps.core import ExpertList, ExpertMLP, FeedForward, MoE, TopKRouter, make_router
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.experts import LowRankExpertMLP
from moeapps.core.surgery import (
    compress_experts,
    measure_use,
    merge_experts,
    merge_to_dense,
    prune_experts,
    regroup,
    upcycle,
)
from moeapps.vision.widenet import SharedMoE, WideNet
from tests.core.dense import make


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return train_test_split(X, y, random_state=0, stratify=y)


@pytest.fixture(scope="module")
def trained(digits):
    X, _, y, _ = digits
    return MoEClassifier(num_experts=16, dim=32, max_epochs=8, lr=0.004, random_state=0).fit(X, y)


def test_pruning_to_half_and_merging_to_a_quarter_keep_a_trained_classifier_useful(digits, trained, tmp_path):
    X, X_test, _, y_test = digits
    full = trained.score(X_test, y_test)
    pruned, merged = trained.prune(8, X), trained.merge(4, X)
    assert full > 0.93
    assert pruned.score(X_test, y_test) > full - 0.1
    assert merged.score(X_test, y_test) > full - 0.2
    sizes = [sum(p.numel() for p in model.model_.parameters()) for model in (trained, pruned, merged)]
    assert sizes[0] > 1.5 * sizes[1] > 1.5 * sizes[2]
    assert trained.score(X_test, y_test) == full  # the patient is as it was
    for model in (pruned, merged):
        model.save(tmp_path / "model.safetensors")
        twin = moeapps.load(tmp_path / "model.safetensors")
        np.testing.assert_array_equal(twin.predict_proba(X_test), model.predict_proba(X_test))


def test_training_goes_on_after_surgery(digits, trained):
    X, X_test, y, y_test = digits
    merged = trained.merge(1, X)
    before = merged.score(X_test, y_test)
    for _ in range(3):
        merged.partial_fit(X, y)
    assert merged.score(X_test, y_test) > max(before, 0.9)


def test_pruning_for_a_task_keeps_what_the_task_uses(digits, trained):
    X, _, y, _ = digits
    layer = trained.model_.blocks[0]
    numbers, codes = (torch.from_numpy(part) for part in trained.encoder_.transform(X[y < 3]))
    use = measure_use(trained.model_, [(numbers, codes)])
    for name, found in use.items():
        assert found.weight.shape == (16,)
        assert float(found.weight.sum()) == pytest.approx(1.0)
        pruned, report = prune_experts(trained.model_, 5, use)
        kept = [group[0] for group in report[name].groups]
        assert set(kept) == set(found.weight.topk(5).indices.tolist())
    assert layer.num_experts == 16
    assert pruned.blocks[0].num_experts == 5


@pytest.mark.parametrize(
    "router",
    ["topk", "noisy_topk", "topp", "expert_choice", "hash", "thor", "smoe_dropout", "null_experts", "shared", "avg_k",
     "autonomy", "soft"],
)  # fmt: skip
def test_dropping_unused_experts_changes_nothing(router):
    torch.manual_seed(1)
    layer = make(router, experts=8).eval()
    x = torch.randn(3, 8)
    expected = layer(x)
    use = measure_use(layer, [x])
    used = int((use[""].weight > 0).sum())
    keep = max(used, 3)
    if router in ("topk", "hash"):
        assert used < 8
    pruned, report = prune_experts(layer, keep, use)
    y = pruned(x)
    assert report[""].experts_after == keep
    if router in ("hash", "topk", "avg_k", "shared"):  # whose weights do not count the experts not chosen
        torch.testing.assert_close(y, expected)
    assert y.shape == expected.shape


ARGUMENTS = {
    "backend": "loop", "capacity_factor": 1.5, "overflow": "next_best", "eval_capacity_factor": 1.25,
    "balance_weight": 0.02, "z_weight": 0.003, "penalty_weight": 0.4, "balance_loss": "mutual_information",
    "iterations": 2,
}  # fmt: skip


@pytest.mark.parametrize("cls", [MoE, SharedMoE])
@pytest.mark.parametrize("operation", ["prune", "merge", "regroup", "compress"])
def test_surgery_keeps_every_argument_and_the_class_of_a_layer(cls, operation):
    """A later argument of the constructor is compared too: nothing here names them."""
    layer = cls(8, 4, 2, 12, **ARGUMENTS).eval()
    x = torch.randn(2, 5, 8)
    use = measure_use(layer, [x])
    new = {
        "prune": lambda: prune_experts(layer, 3, use)[0],
        "merge": lambda: merge_experts(layer, 3, use)[0],
        "regroup": lambda: regroup(layer, [[0, 1], [2], [3]]),
        "compress": lambda: compress_experts(layer, 2)[0],
    }[operation]()
    assert type(new) is cls
    parts = {"num_experts", "top_k", "hidden_dim", "router", "experts", "expert_sizes"}  # of the router and the experts
    kept = set(inspect.signature(MoE).parameters) - parts
    assert {name: getattr(new, name) for name in kept} == {name: getattr(layer, name) for name in kept}
    assert {name: getattr(new, name) for name in ARGUMENTS} == ARGUMENTS
    assert new.num_experts == new.router.num_experts == new.experts.num_experts == (4 if operation == "compress" else 3)
    assert not new.training
    assert new(x).shape == x.shape
    assert len(new.routings) == 2
    assert {id(p) for p in new.parameters()}.isdisjoint(id(p) for p in layer.parameters())


def test_a_wide_net_runs_after_surgery():
    torch.manual_seed(0)
    model = WideNet(img_size=8, patch_size=4, in_chans=1, embed_dim=8, depth=3, num_heads=2, num_classes=3).eval()
    images = torch.randn(4, 1, 8, 8)
    use = measure_use(model, [images])
    for smaller, report in (prune_experts(model, 3, use), merge_experts(model, 2, use), compress_experts(model, 4)):
        assert smaller(images).shape == (4, 3)
        assert len(smaller.moe.routings) == 3  # one per block
        assert set(report) == {"shared.moe"}
        assert smaller.moe.num_experts == report["shared.moe"].experts_after


def test_a_layer_that_two_parents_share_is_replaced_in_both_and_a_shared_router_stays_one():
    layer, router = MoE(8, 4), make_router("topk", 8, 4)
    twice = nn.Sequential(nn.Sequential(layer), nn.Sequential(layer))
    compressed, _ = compress_experts(twice, 2)
    assert compressed[0][0] is compressed[1][0]
    assert isinstance(compressed[0][0].experts, LowRankExpertMLP)
    omni = nn.Sequential(MoE(8, 4, router=router), MoE(8, 4, router=router))
    compressed, _ = compress_experts(omni, 2)
    assert compressed[0].router is compressed[1].router


def test_a_layer_is_rebuilt_with_parts_that_fit_only():
    layer = MoE(8, 4, capacity_factor=1.0)
    router = make_router("topp", 8, 4)
    assert layer.rebuilt(router=router).router is router
    assert layer.rebuilt(experts=layer.experts).router is not layer.router
    with pytest.raises(ConfigError, match="router is built for dim=8, num_experts=3"):
        layer.rebuilt(router=make_router("topk", 8, 3))
    with pytest.raises(ConfigError, match="capacity_factor has no meaning with ExpertChoiceRouter"):
        layer.rebuilt(router=make_router("expert_choice", 8, 4))


@pytest.mark.parametrize(
    ("router", "args"), [("null_experts", None), ("topp", {"max_experts": 6}), ("smoe_dropout", {"end_k": 6})]
)
def test_a_pruned_estimator_loads_again_where_arguments_of_its_router_depend_on_the_experts(router, args, tmp_path):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 3))
    model = MoEClassifier(router=router, router_args=args, dim=8, num_blocks=1, max_epochs=1, random_state=0)
    pruned = model.fit(X, X[:, 0] > 0).prune(4, X)
    pruned.save(tmp_path / "model.safetensors")
    twin = moeapps.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(twin.predict_proba(X), pruned.predict_proba(X))
    assert model.router_args == args


def test_bilevel_experts_are_not_pruned():
    layer = make("bilevel")
    with pytest.raises(ConfigError, match="cannot be taken out of BilevelRouter"):
        prune_experts(layer, 2, measure_use(layer, [torch.randn(5, 8)]))


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_merging_permuted_twins_is_exact(activation):
    """Experts that differ only in the order of their hidden units are found out and merged without any loss."""
    experts = ExpertMLP(8, 12, 4, activation=activation)
    with torch.no_grad():
        for twin, original in ((2, 0), (3, 1)):
            order = torch.randperm(12)
            first = torch.cat([order, order + 12]) if activation == "swiglu" else order
            experts.weight1[twin] = experts.weight1[original][:, first]
            experts.bias1[twin] = experts.bias1[original][first]
            experts.weight2[twin] = experts.weight2[original][order]
            experts.bias2[twin] = experts.bias2[original]
    layer = MoE(8, 4, experts=experts).eval()
    with torch.no_grad():
        layer.router.weight[2:] = layer.router.weight[:2] + 0.01 * torch.randn(2, 8)
    x = torch.randn(200, 8)
    use = measure_use(layer, [x])
    use[""].frequency[:] = torch.tensor([4.0, 3.0, 2.0, 1.0])
    merged, report = merge_experts(layer, 2, use)
    assert report[""].groups == ((0, 2), (1, 3))
    assert report[""].parameters_after < report[""].parameters_before
    torch.testing.assert_close(merged(x), layer(x), atol=1e-5, rtol=1e-5)
    assert int(merged.last_routing.counts.sum()) == 400
    assert set(merged.auxiliary_losses()) == {"balance", "z"}


def test_full_rank_compression_would_be_exact_and_low_rank_says_its_error():
    experts = ExpertMLP(8, 12, 3)
    with torch.no_grad():  # rank 2 by construction
        experts.weight1.copy_(torch.randn(3, 8, 2) @ torch.randn(3, 2, 12))
        experts.weight2.copy_(torch.randn(3, 12, 2) @ torch.randn(3, 2, 8))
    layer = MoE(8, 3, experts=experts).eval()
    x = torch.randn(20, 8)
    for backend in ("loop", "bmm", "grouped", "masked"):
        compressed, report = compress_experts(layer, rank=4)
        compressed.backend = backend
        torch.testing.assert_close(compressed(x), layer(x), atol=1e-4, rtol=1e-4)
    assert report[""].error < 1e-6
    _, report = compress_experts(make(dim=8), rank=1)
    assert 0.1 < report[""].error < 1
    assert report[""].parameters_after < report[""].parameters_before
    with pytest.raises(ConfigError, match="rank must be below 8"):
        compress_experts(layer, rank=8)


def test_merging_to_dense_averages_aligned_experts():
    layer = MoE(8, 3, experts=ExpertMLP(8, 12, 3)).eval()
    with torch.no_grad():
        for e in (1, 2):
            order = torch.randperm(12)
            layer.experts.weight1[e] = layer.experts.weight1[0][:, order]
            layer.experts.bias1[e] = layer.experts.bias1[0][order]
            layer.experts.weight2[e] = layer.experts.weight2[0][order]
            layer.experts.bias2[e] = layer.experts.bias2[0]
    x = torch.randn(20, 8)
    dense, report = merge_to_dense(layer)
    assert isinstance(dense, FeedForward)
    assert report.experts_after == 1
    torch.testing.assert_close(dense(x), layer(x), atol=1e-5, rtol=1e-5)
    with pytest.raises(ConfigError, match="has no gate"):
        merge_to_dense(MoE(8, 3, experts=ExpertMLP(8, 12, 3, activation="swiglu")))


def test_upcycled_copies_answer_what_the_dense_layer_answered():
    dense = FeedForward(8, 12, 6, activation="relu")
    x = torch.randn(20, 8)
    layer, report = upcycle(dense, num_experts=4, top_k=2)
    torch.testing.assert_close(layer(x), dense(x))
    assert (report.experts_before, report.experts_after) == (1, 4)
    noisy, _ = upcycle(dense, num_experts=4, top_k=2, noise_std=0.1)
    assert not torch.allclose(noisy.experts.weight1[0], noisy.experts.weight1[1])


def test_a_split_layer_is_the_dense_one_when_all_experts_count_alike():
    dense = FeedForward(8, 12)
    layer, report = upcycle(dense, num_experts=4, top_k=4, split=True)
    with torch.no_grad():
        layer.router.weight.zero_()
    x = torch.randn(20, 8)
    torch.testing.assert_close(layer(x), dense(x))
    assert report.parameters_after - report.parameters_before == 4 * 8 + 3 * 8  # the router, and a bias per expert
    with pytest.raises(ConfigError, match="12 hidden units divide among 5 experts"):
        upcycle(dense, num_experts=5, split=True)


def test_several_dense_networks_become_experts_in_turn():
    sources = [FeedForward(8, 12) for _ in range(2)]
    layer, report = upcycle(sources, num_experts=4, top_k=1)
    assert report.groups == ((0,), (1,), (0,), (1,))
    torch.testing.assert_close(layer.experts.weight1[3], sources[1].first.weight.t())
    with pytest.raises(ConfigError, match="same shape"):
        upcycle([FeedForward(8, 12), FeedForward(8, 10)], num_experts=2)


def test_what_cannot_be_operated_on_is_refused(trained, digits):
    layer = make(experts=4)
    x = torch.randn(5, 8)
    use = measure_use(layer, [x])
    for wrong in (0, 5):
        with pytest.raises(ConfigError, match="num_experts must be between 1 and num_experts=4"):
            prune_experts(layer, wrong, use)
    with pytest.raises(ConfigError, match="no MoE layer"):
        prune_experts(nn.Linear(3, 3), 1, use)
    with pytest.raises(ConfigError, match="use has no entry for layer ''"):
        merge_experts(layer, 2, {"other": use[""]})
    with pytest.raises(DataError, match="saw no valid token"):
        measure_use(layer, [])
    asking = make("avg_k")
    use_of_asking = measure_use(asking, [x])
    with pytest.raises(ConfigError, match="does not choose by scores of its own"):
        merge_experts(asking, 2, use_of_asking)
    modules = MoE(8, 2, experts=ExpertList([nn.Linear(8, 8), nn.Linear(8, 8)], dim=8))
    their_use = measure_use(modules, [x])
    with pytest.raises(ConfigError, match="ExpertList"):
        prune_experts(modules, 1, their_use)
    merged = trained.merge(4, digits[0])
    with pytest.raises(ConfigError, match="merged already"):
        merged.merge(4, digits[0])
    with pytest.raises(ConfigError, match="the shared experts"):
        make_router("shared", 8, 4).restricted([2, 3])


def test_a_router_written_for_0_1_restricts_itself_by_its_subset():
    class Old(TopKRouter):
        def subset(self, experts):
            copied = super().subset(experts)
            copied.restricted_by = "subset"
            return copied

    with pytest.warns(DeprecationWarning, match=r"Old\.subset is called restricted now"):
        restricted = Old(8, 4, 2).restricted([3, 1])
    assert restricted.restricted_by == "subset"
    assert restricted(torch.randn(5, 8)).num_experts == 2
