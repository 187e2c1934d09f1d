"""Merging of experts against the formulas of M-SMoE (Li et al. 2024) and of its released code."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from moeapps.core import ExpertMLP, MoE, SharedExpertsRouter, TopKRouter
from moeapps.core.errors import ConfigError
from moeapps.core.merging import global_budgets
from moeapps.core.surgery import ExpertUse, measure_use, merge_experts, prune_experts


def layer_with(weight, top_k=1, router=TopKRouter, **arguments):
    """A layer whose router has these rows of scores."""
    made = router(weight.shape[1], len(weight) + arguments.get("num_shared", 0), top_k, **arguments)
    with torch.no_grad():
        made.weight.copy_(weight)
    return MoE(made.dim, made.num_experts, router=made, experts=ExpertMLP(made.dim, 4, made.num_experts)).eval()


def test_similarity_is_the_cosine_of_logits_and_frequency_counts_choices():
    torch.manual_seed(0)
    layer = layer_with(torch.randn(5, 6), top_k=2)
    batches = [torch.randn(40, 6) + 0.5, torch.randn(7, 6)]
    x = torch.cat(batches)
    use = measure_use(layer, batches)[""]
    logits = (x @ layer.router.weight.detach().t()).double()
    for i in range(5):
        for j in range(5):
            expected = F.cosine_similarity(logits[:, i], logits[:, j], dim=0)
            assert float(use.similarity[i, j]) == pytest.approx(float(expected), abs=1e-6)
    chosen = logits.topk(2, dim=1).indices
    counts = torch.bincount(chosen.flatten(), minlength=5)
    torch.testing.assert_close(use.frequency, counts / counts.sum(), check_dtype=False)
    assert not torch.allclose(use.frequency, use.weight)


def test_heads_are_the_experts_chosen_most_often_and_not_those_with_the_largest_weights():
    """Expert 0 is taken rarely but surely, expert 1 often but barely: by frequency 1 is the head."""
    use = ExpertUse(
        weight=torch.tensor([0.6, 0.3, 0.1]), similarity=torch.eye(3), frequency=torch.tensor([0.2, 0.7, 0.1])
    )
    layer = MoE(4, 3)
    _, report = merge_experts(layer, 1, {"": use})
    assert report[""].groups[0][0] == 1
    _, report = merge_experts(layer, 1, {"": ExpertUse(use.weight, use.similarity)})  # as measured by 0.1
    assert report[""].groups[0][0] == 0


def test_merged_weights_are_weighted_by_frequency():
    layer = MoE(4, 2, 1, 3)
    with torch.no_grad():  # hidden units in the same order, so that the alignment changes nothing
        for expert in range(2):
            layer.experts.weight1[expert] = 0.1 * torch.randn(4, 3) + torch.eye(4, 3) * 10
    use = ExpertUse(torch.tensor([0.5, 0.5]), torch.ones(2, 2), torch.tensor([0.75, 0.25]))
    merged, _ = merge_experts(layer, 1, {"": use})
    for name in ("weight1", "bias1", "weight2", "bias2"):
        old = layer.experts.get_parameter(name)
        torch.testing.assert_close(merged.experts.get_parameter(name)[0], 0.75 * old[0] + 0.25 * old[1])


def test_similar_logits_decide_whom_an_expert_joins():
    """Cosine of logits, not their correlation: expert 2 is a tenth of expert 1, but correlates with 0 too."""
    torch.manual_seed(1)
    a, b = torch.randn(6), torch.randn(6)
    layer = layer_with(torch.stack([a, b, 0.1 * b + 0.01 * a]))
    x = torch.randn(200, 6) + 1.0
    _, report = merge_experts(layer, 2, measure_use(layer, [x]))
    assert {frozenset(group) for group in report[""].groups} == {frozenset({0}), frozenset({1, 2})}


@pytest.mark.parametrize("shared", [1, 2])
def test_shared_experts_are_never_merged(shared):
    torch.manual_seed(0)
    layer = layer_with(torch.randn(6, 8), 2, SharedExpertsRouter, num_shared=shared)
    x = torch.randn(50, 8)
    use = measure_use(layer, [x])
    assert (use[""].similarity[:shared, shared:] == 0).all()
    merged, report = merge_experts(layer, shared + 2, use)
    groups = report[""].groups
    assert groups[:shared] == tuple((e,) for e in range(shared))
    assert sorted(e for group in groups[shared:] for e in group) == list(range(shared, shared + 6))
    routed = use[""].frequency[shared:]
    assert {group[0] - shared for group in groups[shared:]} == set(routed.topk(2).indices.tolist())
    for e in range(shared):
        assert torch.equal(merged.experts.weight1[e], layer.experts.weight1[e])
    assert merged.router.always_on == shared
    again, report = merge_experts(merged, shared + 1, measure_use(merged, [x]))  # nor the second time
    assert report[""].groups[:shared] == tuple((e,) for e in range(shared))
    assert again(x).shape == x.shape
    with pytest.raises(ConfigError, match=f"it must be at least {shared + 1}, got {shared}"):
        merge_experts(layer, shared, use)


def released_budgets(frequencies, average):
    """The most used expert of each layer counts as 1; what exceeds the number at place average * L is a group."""
    raised = [list(layer) for layer in frequencies]
    for layer in raised:
        layer[layer.index(max(layer))] = 1.0
    threshold = sorted((value for layer in raised for value in layer), reverse=True)[average * len(raised)]
    return [sum(value > threshold for value in layer) for layer in raised]


def test_global_budgets_are_those_of_the_released_code():
    torch.manual_seed(0)
    spread, peaked = torch.full((8,), 0.125) + 0.01 * torch.rand(8), torch.tensor([0.9] + 7 * [0.1 / 7])
    random = torch.rand(8)
    layers = {"a": spread.double(), "b": peaked.double() + 0.001 * torch.rand(8), "c": (random / random.sum()).double()}
    for average in (1, 2, 3, 5, 7):
        found = global_budgets(layers, 3 * average)
        assert list(found.values()) == released_budgets([v.tolist() for v in layers.values()], average) or average == 1
        assert sum(found.values()) == 3 * average
    assert global_budgets(layers, 9)["a"] > global_budgets(layers, 9)["b"]
    assert global_budgets(layers, 24) == {"a": 8, "b": 8, "c": 8}
    with pytest.raises(ConfigError, match="each needs one"):
        global_budgets(layers, 2)


def test_layers_keep_experts_by_their_share_of_all_choices():
    torch.manual_seed(0)
    first, second = layer_with(torch.randn(6, 8)), layer_with(torch.randn(6, 8))
    with torch.no_grad():
        second.router.weight[0] *= 20  # takes half of all tokens
    model = nn.Sequential(first, second)
    x = torch.randn(300, 8)
    use = measure_use(model, [x])
    smaller, report = merge_experts(model, 3, use, globally=True)
    sizes = [report[name].experts_after for name in ("0", "1")]
    assert sum(sizes) == 6
    assert sizes == released_budgets([use[name].frequency.tolist() for name in ("0", "1")], 3)
    assert smaller(x).shape == x.shape
    assert [len(groups.groups) for groups in merge_experts(model, 3, use)[1].values()] == [3, 3]


def test_pruning_still_goes_by_the_sum_of_weights():
    use = ExpertUse(torch.tensor([0.6, 0.3, 0.1]), torch.eye(3), torch.tensor([0.1, 0.2, 0.7]))
    _, report = prune_experts(MoE(4, 3), 2, {"": use})
    assert report[""].groups == ((0,), (1,))
