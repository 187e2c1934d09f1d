"""Multi-gate models: what equals what, and where gradient may not go."""

import copy

import pytest
import torch
from torch import nn

from moeapps.core.dense_experts import DenseExperts
from moeapps.core.errors import ConfigError, DataError
from moeapps.recsys import DIN, PLE, AdaTT, AWMoE, HoME, MMoE, SharedBottom, contrastive_loss
from moeapps.recsys.attention import drop_behaviour
from moeapps.recsys.encoder import Rows
from moeapps.recsys.features import FeatureEmbedding
from moeapps.recsys.home import FeatureGate
from moeapps.recsys.targets import task_losses

GROUPS = {"watch": [0, 2], "interact": [1]}
MODELS = {
    "shared_bottom": lambda: SharedBottom(12, 3),
    "mmoe": lambda: MMoE(12, 3, num_experts=4),
    "cgc": lambda: PLE(12, 3, num_levels=1),
    "ple": lambda: PLE(12, 3, num_levels=2),
    "ple of three levels": lambda: PLE(12, 3, num_levels=3, expert=(16, 8)),
    "adatt": lambda: AdaTT(12, 3),
    "home": lambda: HoME(12, 3, GROUPS),
}


def looped(experts: DenseExperts, x: torch.Tensor) -> torch.Tensor:
    """The same expert by expert, layer by layer."""
    outputs = []
    for e in range(experts.num_experts):
        y = x if x.ndim == 2 else x[:, e]
        for i, (weight, bias) in enumerate(zip(experts.weights, experts.biases, strict=True)):
            y = y @ weight[e] + bias[e]
            if i == len(experts.weights) - 1 and experts.last_linear:
                break
            if len(experts.norms):
                norm, width = experts.norms[i], bias.shape[1]
                part = slice(e * width, (e + 1) * width)
                y = (y - norm.running_mean[part]) / (norm.running_var[part] + norm.eps).sqrt()
            y = experts.act(y)
        outputs.append(y)
    return torch.stack(outputs, dim=1)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("last_linear", [False, True])
@pytest.mark.parametrize("shape", [(7, 6), (7, 3, 6)])
def test_batched_experts_equal_looped_ones(norm, last_linear, shape):
    experts = DenseExperts(6, [10, 4], 3, "silu", norm=norm, last_linear=last_linear)
    experts.train()
    experts(torch.randn(50, 6))  # moves the running statistics
    experts.eval()
    x = torch.randn(shape)
    torch.testing.assert_close(experts(x), looped(experts, x), atol=1e-6, rtol=1e-5)


def test_experts_say_what_they_cannot_take():
    with pytest.raises(ConfigError, match="widths is empty"):
        DenseExperts(4, [], 2)
    with pytest.raises(ConfigError, match=r"widths\[1\] must be a whole number"):
        DenseExperts(4, [3, 0], 2)
    with pytest.raises(ConfigError, match="activation must be one of relu, silu, gelu"):
        DenseExperts(4, [3], 2, "tanh")
    with pytest.raises(DataError, match=r"expected \(N, 4\) or \(N, 2, 4\), got \(5, 3, 4\)"):
        DenseExperts(4, [3], 2)(torch.randn(5, 3, 4))


@pytest.mark.parametrize("name", MODELS)
def test_a_row_does_not_depend_on_the_others_and_everything_gets_gradient(name):
    model = MODELS[name]()
    x = torch.randn(20, 12)
    model(x).square().sum().backward()
    assert model(x).shape == (20, 3)
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    model.eval()
    torch.testing.assert_close(model(x)[3:5], model(x[3:5]), atol=1e-6, rtol=1e-5)
    assert torch.equal(model(x), copy.deepcopy(model)(x))


def test_mmoe_with_one_expert_equals_shared_bottom():
    mmoe, shared = MMoE(12, 3, num_experts=1), SharedBottom(12, 3)
    state = {k: v for k, v in mmoe.state_dict().items() if not k.startswith("gate")}
    shared.load_state_dict(state)
    x = torch.randn(9, 12)
    torch.testing.assert_close(mmoe(x), shared(x))


def test_ple_with_one_level_equals_cgc():
    """CGC written out: a task's softmax over its own and the shared experts only."""
    model = PLE(12, 3, num_specific=2, num_shared=1, num_levels=1)
    x = torch.randn(9, 12)
    outputs, weight = model.experts[0](x), model.gates[0].weight
    expected = []
    for task in range(3):
        used = [2 * task, 2 * task + 1, 6]
        gate = (x @ weight[task, used].t()).softmax(-1)
        expected.append((gate[..., None] * outputs[:, used]).sum(1))
    found = model.towers(torch.stack(expected, dim=1))[..., 0]
    torch.testing.assert_close(model(x), found)


def gradient_of(model: nn.Module, task: int, parameter: nn.Parameter) -> torch.Tensor:
    model.zero_grad()
    model(torch.randn(16, 12, generator=torch.Generator().manual_seed(0)))[:, task].sum().backward()
    assert parameter.grad is not None
    return parameter.grad.abs().flatten(1).sum(1)


def test_home_leaves_no_path_to_another_groups_private_experts():
    model = HoME(12, 3, GROUPS, num_shared=2, num_group=2, num_specific=1)
    for task in range(3):
        grad = gradient_of(model, task, model.task_experts.weights[0])
        group = "watch" if task in GROUPS["watch"] else "interact"
        for name, value in zip(model.task_names, grad, strict=True):
            may = name.startswith(("global", f"group {group}", f"task {task}:"))
            assert (value > 0) == may, (task, name)


def test_home_with_every_gate_on_its_own_path_trains_each_task_alone():
    model = HoME(12, 3, {"a": [0], "b": [1], "c": [2]}, num_feature_gates=0)
    with torch.no_grad():  # only own experts are allowed, on both levels
        model.meta_gate.allowed = model.meta_self.own
        model.task_gate.allowed = model.task_self.own
    for task in range(3):
        for experts, names in ((model.meta_experts, model.meta_names), (model.task_experts, model.task_names)):
            grad = gradient_of(model, task, experts.weights[0])
            for name, value in zip(names, grad, strict=True):
                # the shared path is read by the task's gate, so its own (shared) experts do learn
                own = name.startswith(("group " + "abc"[task], "shared", f"task {task}:"))
                assert (value > 0) == (own and not (experts is model.task_experts and name.startswith("group"))), name


def test_home_self_gates_reach_experts_that_the_mixing_gate_ignores():
    def ignored(self_gate: bool) -> float:
        torch.manual_seed(0)
        model = HoME(12, 2, {"a": [0], "b": [1]}, self_gate=self_gate)
        place = model.task_names.index("task 1: 0")
        with torch.no_grad():
            model.task_gate.allowed[1, place] = False
        return float(gradient_of(model, 1, model.task_experts.weights[0])[place])

    assert ignored(self_gate=False) == 0
    assert ignored(self_gate=True) > 0


def test_feature_gates_begin_as_the_input_and_give_every_expert_a_view():
    gate = FeatureGate(6, num_experts=3)
    x = torch.randn(5, 6)
    torch.testing.assert_close(gate(x), x[:, None].expand(5, 3, 6))
    nn.init.normal_(gate.wide)
    assert not torch.allclose(gate(x)[:, 0], gate(x)[:, 1])
    assert bool((gate(x) / x[:, None] <= 2).all())


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"a": [0, 1]}, "task 2 is named 0 times"),
        ({"a": [0, 1], "b": [1, 2]}, "task 1 is named 2 times"),
        ({"a": [0, 1, 2], "b": []}, "'b' has no task"),
        ({"a": [0, 1, 2, 7]}, r"groups name \[7\]"),
    ],
)
def test_groups_must_have_every_task_once(groups, message):
    with pytest.raises(ConfigError, match=message):
        HoME(12, 3, groups)


def test_a_task_without_a_label_gets_no_loss_and_no_gradient():
    model = MMoE(12, 3)
    labels = torch.tensor([[0.0, float("nan"), 2.0], [1.0, float("nan"), float("nan")]])
    losses = task_losses(model(torch.randn(2, 12)), labels, ["binary", "binary", "regression"])
    losses.sum().backward()
    assert losses[1] == 0
    assert all(float(weight.grad[1].abs().sum()) == 0 for weight in [*model.towers.weights, *model.towers.biases])
    assert float(model.towers.weights[0].grad[0].abs().sum()) > 0


def test_losses_are_those_of_torch():
    outputs, labels = torch.randn(50, 3), torch.stack([torch.arange(50) % 2, torch.randn(50), torch.arange(50) % 4], 1)
    found = task_losses(outputs, labels, ["binary", "regression", "count"], torch.tensor([3.0, 1.0, 1.0]))
    functional = nn.functional
    expected = [
        functional.binary_cross_entropy_with_logits(outputs[:, 0], labels[:, 0], pos_weight=torch.tensor(3.0)),
        functional.mse_loss(outputs[:, 1], labels[:, 1]),
        functional.poisson_nll_loss(outputs[:, 2], labels[:, 2]),
    ]
    torch.testing.assert_close(found, torch.stack(expected))


def behaviour(n: int = 6, length: int = 5, dim: int = 4) -> tuple[torch.Tensor, ...]:
    entries, target, profile = torch.randn(n, length, dim), torch.randn(n, dim), torch.randn(n, 7)
    there = torch.arange(length) >= torch.arange(n)[:, None] % (length + 1)
    return entries, target, there, profile


@pytest.mark.parametrize("model", [DIN(4, 7), AWMoE(4, 7), AWMoE(4, 7, softmax=True)])
def test_padding_changes_nothing(model):
    entries, target, there, profile = behaviour()
    longer = torch.cat([torch.randn(6, 10, 4), entries], dim=1)
    more = torch.cat([torch.zeros(6, 10, dtype=torch.bool), there], dim=1)
    expected = model(entries, target, there, profile)
    torch.testing.assert_close(model(longer, target, more, profile), expected, atol=1e-6, rtol=1e-5)


def test_an_empty_history_has_the_gate_of_the_bias():
    model = AWMoE(4, 7, num_experts=3)
    entries, target, there, profile = behaviour()
    none = torch.zeros_like(there)
    torch.testing.assert_close(model.gates(entries, target, none)[0], model.bias.expand(6, 3))
    assert model(entries, target, none, profile).isfinite().all()


def test_the_gate_is_the_attention_weighted_activation():
    model = AWMoE(4, 7, num_experts=3)
    entries, target, there, _ = behaviour()
    expected = model.bias.repeat(6, 1)
    for n in range(6):
        for j in range(5):
            if there[n, j]:
                one, candidate = entries[n : n + 1, j : j + 1], target[n : n + 1]
                expected[n] = (
                    expected[n] + (model.gate_activation(one, candidate) * model.gate_unit(one, candidate))[0, 0]
                )
    torch.testing.assert_close(model.gates(entries, target, there)[0], expected, atol=1e-6, rtol=1e-5)


def test_the_contrastive_loss_prefers_the_same_user():
    gate = torch.randn(8, 5)
    assert contrastive_loss(gate, gate + 0.01) < contrastive_loss(gate, gate.roll(1, 0))
    there = torch.ones(200, 50, dtype=torch.bool)
    assert 0.75 < drop_behaviour(there, 0.2).float().mean() < 0.85
    assert drop_behaviour(there, 0.0).all()


@pytest.mark.parametrize("reads", [[0, 1, 2], [2, 0, 0, 1, 1], [1, 1, 0], [0, 2, 0, 1], [0, 0, 1, 1, 2]])
def test_experts_that_read_paths_equal_experts_with_a_row_each(reads):
    experts = DenseExperts(6, [5, 4], len(reads), norm=True, reads=reads)
    plain = DenseExperts(6, [5, 4], len(reads), norm=True)
    plain.load_state_dict(experts.state_dict())
    x = torch.randn(9, max(reads) + 1, 6, requires_grad=True)
    gradients = []
    for outputs in (experts(x), plain(x.index_select(1, torch.tensor(reads)))):
        gradients.append(torch.autograd.grad(outputs.square().sum(), x)[0])
        last = outputs
    torch.testing.assert_close(experts(x), last)
    torch.testing.assert_close(*gradients)


def test_experts_refuse_paths_that_do_not_fit():
    with pytest.raises(ConfigError, match="reads must have 3 numbers, one per expert, got 2"):
        DenseExperts(4, [3], 3, reads=[0, 1])
    with pytest.raises(DataError, match=r"expected \(N, 4\) or \(N, 2, 4\), got \(5, 3, 4\)"):
        DenseExperts(4, [3], 3, reads=[0, 1, 1])(torch.randn(5, 3, 4))


# those that read paths
@pytest.mark.parametrize("name", ["ple", "home", pytest.param("adatt", marks=pytest.mark.slow)])
def test_gradients_are_the_same_to_the_bit_with_several_threads(name):
    model = MODELS[name]()
    x = torch.randn(500, 12)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # index_put_ adds up in the order in which threads come
    try:
        gradients = []
        for _ in range(6):
            model.zero_grad()
            model(x).square().sum().backward()
            gradients.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    finally:
        torch.set_num_threads(threads)
    for other in gradients[1:]:
        assert all(torch.equal(mine, its) for mine, its in zip(gradients[0], other, strict=True))


def test_gradients_of_embeddings_are_the_same_to_the_bit_with_several_threads():
    embedding = FeatureEmbedding([40, 9], 2, 0, dim=4)
    rows = Rows(torch.stack([torch.randint(0, 40, (9000,)), torch.randint(0, 9, (9000,))], dim=1), torch.empty(9000, 0))
    weight = torch.randn(9000, 8)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        gradients = []
        for _ in range(6):
            embedding.zero_grad()
            (embedding(rows) * weight).sum().backward()
            gradients.append(embedding.table.weight.grad.clone())
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(gradients[0], other) for other in gradients[1:])
    codes = rows.sparse + embedding.starts
    expected = torch.zeros(49, 4, dtype=torch.float64).index_add_(0, codes.flatten(), weight.double().view(-1, 4))
    torch.testing.assert_close(gradients[0].double(), expected, rtol=1e-5, atol=1e-5)
