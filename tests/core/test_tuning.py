"""Training a part of a network: the experts of a task, or low-rank ones. Nothing else moves."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from moeapps.core import MoE, collect_losses, freeze_except, lora_experts, moeify, relevant_experts
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.experts import HeterogeneousExperts
from moeapps.core.surgery import measure_use, merge_experts, prune_experts
from moeapps.core.tuning.low_rank import RoutedLinear

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(64) % 3


class Net(nn.Module):
    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Linear(6, 8), nn.LayerNorm(8)
        self.first, self.second = MoE(8, 4, hidden_dim=12, **options), MoE(8, 4, hidden_dim=12, **options)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.norm(self.stem(x))
        x = x + self.first(x)
        return self.head(x + self.second(x))


def train(network, optimizer, steps=5):
    network.train()
    for _ in range(steps):
        optimizer.zero_grad()
        (F.cross_entropy(network(X), Y) + collect_losses(network)).backward()
        optimizer.step()


OPTIMIZERS = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.5),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.5, fused=True),
    "SGD with momentum and decay": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=0.5),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_neither_decay_nor_momentum_moves_a_frozen_expert(optimizer):
    network = Net()
    make = OPTIMIZERS[optimizer]
    train(network, make(network.parameters()))  # the experts have been trained before
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    freezing = freeze_except(network, {"first": [1, 3], "second": [0]}, also="head")
    # all parameters: a user need not sort out which of them are trained
    train(network, make(network.parameters()))
    freezing.undo()
    after = dict(network.named_parameters())
    assert after.keys() == before.keys()
    for name, old in before.items():
        layer = name.partition(".")[0]
        if ".experts." in name:
            moved = (after[name] != old).flatten(1).any(dim=1).nonzero()[:, 0].tolist()
            assert moved == {"first": [1, 3], "second": [0]}[layer], name
            untouched = [e for e in range(4) if e not in moved]
            assert torch.equal(after[name][untouched], old[untouched])
        else:
            assert torch.equal(after[name], old) == (layer != "head"), name
    assert all(p.requires_grad for p in network.parameters())
    train(network, make(network.parameters()), steps=1)
    assert not torch.equal(network.first.experts.weight1[0], before["first.experts.weight1"][0])


def test_the_optimiser_keeps_no_state_for_what_is_frozen():
    network = Net()
    freezing = freeze_except(network, {"first": [2]})
    optimizer = torch.optim.AdamW(network.parameters())
    train(network, optimizer)
    kept = sum(entry["exp_avg"].numel() for entry in optimizer.state.values())
    assert kept == freezing.trained == 8 * 12 + 12 + 12 * 8 + 8
    assert freezing.total == sum(p.numel() for p in Net().parameters())
    assert freezing.share == pytest.approx(freezing.trained / freezing.total)
    assert repr(freezing).startswith("Freezing(trained=212 of")


def test_gradients_of_before_do_not_stay():
    network = Net()
    network(X).sum().backward()
    with freeze_except(network, {"first": [1]}):
        network(X).sum().backward()
        assert network.first.experts.parametrizations.weight1.original.grad.shape == (1, 8, 12)
    assert network.first.experts.weight1.grad is None
    network(X).sum().backward()


def test_freezing_changes_nothing_of_what_the_network_computes():
    network = Net().eval()
    expected = network(X)
    with freeze_except(network, {"first": [0, 2]}, routers=True) as freezing:
        torch.testing.assert_close(network(X), expected)
        assert network.first.router.weight.requires_grad
        assert not network.second.router.weight.requires_grad
        assert not network.head.weight.requires_grad
        assert freezing.experts == {"first": (0, 2)}
        with pytest.raises(ConfigError, match="some experts of 'first' are frozen already"):
            freeze_except(network, {"first": [1]})
        use = measure_use(network, [X])
        for operation in (prune_experts, merge_experts):
            with pytest.raises(ConfigError, match=r"are frozen: call undo\(\)"):
                operation(network, 2, use)
        torch.testing.assert_close(copy.deepcopy(network)(X), expected)
    torch.testing.assert_close(network(X), expected)
    assert type(network.first.experts).__name__ == "ExpertMLP"
    assert network.state_dict().keys() == Net().state_dict().keys()
    prune_experts(network, 2, measure_use(network, [X]))


def test_all_or_none_of_a_layers_experts_and_experts_of_other_kinds():
    network = Net()
    freezing = freeze_except(network, {"first": range(4), "second": []})
    assert all(p.requires_grad for p in network.first.experts.parameters())
    assert not any(p.requires_grad for p in network.second.parameters())
    freezing.undo()
    sizes = nn.Sequential(MoE(6, 3, experts=HeterogeneousExperts(6, [4, 8, 12])))
    before = copy.deepcopy(sizes.state_dict())
    with freeze_except(sizes, {"0": [1]}) as freezing:
        assert freezing.trained == 6 * 8 + 8 + 8 * 6 + 6
        optimizer = torch.optim.AdamW(sizes.parameters(), weight_decay=0.5)
        sizes(X).square().mean().backward()
        optimizer.step()
    moved = {name for name, tensor in sizes.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.split(".")[3] for name in moved} == {"1"}
    frozen = Net()
    frozen.stem.requires_grad_(False)
    freeze_except(frozen, also=["stem", "head"]).undo()
    assert not frozen.stem.weight.requires_grad  # it was frozen before


def test_what_names_nothing_is_refused_and_changes_nothing():
    network = Net()
    for arguments, message in (
        ({"experts": {"third": [0]}}, "experts names the layer 'third'; there are 'first', 'second'"),
        ({"experts": {"first": [4]}}, "experts of 'first' are 0 to 3, got 4"),
        ({"experts": {"first": [True]}}, "experts of 'first' are 0 to 3"),
        ({"experts": [0, 1]}, "experts must map names of layers"),
        ({"experts": {}}, "nothing would be trained"),
        ({"experts": {"first": []}}, "nothing would be trained"),
        ({"also": "tail*"}, r"also='tail\*' matches no parameter"),
    ):
        with pytest.raises(ConfigError, match=message):
            freeze_except(network, **arguments)
    assert all(p.requires_grad for p in network.parameters())
    with pytest.raises(ConfigError, match="no MoE layer"):
        freeze_except(nn.Linear(2, 2), {"": [0]})


def test_relevant_experts_are_the_fewest_that_carry_the_share():
    network = Net().eval()
    use = measure_use(network, [X])
    for score in ("gate", "token"):
        for share in (0.1, 0.3, 0.6, 1.0):
            found = relevant_experts(network, X, share, score=score)
            assert list(found) == ["first", "second"]
            for name, experts in found.items():
                load = use[name].weight if score == "gate" else use[name].frequency
                load = load / load.sum()
                order = load.argsort(descending=True).tolist()
                assert set(experts) == set(order[: len(experts)])
                assert float(load[list(experts)].sum()) >= share - 1e-6
                assert float(load[order[: len(experts) - 1]].sum()) < share
                assert list(experts) == sorted(experts)


def test_relevant_experts_differ_between_tasks_and_take_any_form_of_data():
    torch.manual_seed(0)
    network = nn.Sequential(MoE(6, 8, top_k=1))
    network[0].router.weight.data.copy_(torch.eye(8, 6) * 9)
    tasks = [torch.eye(6)[[task] * 30] + 0.1 * torch.randn(30, 6) for task in (2, 4)]
    assert [relevant_experts(network, task) for task in tasks] == [{"0": (2,)}, {"0": (4,)}]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(tasks[0], Y[:30]), batch_size=7)
    assert relevant_experts(network, loader, inputs=lambda batch: batch[0]) == {"0": (2,)}
    assert relevant_experts(network, [(task,) for task in tasks], 0.9) == {"0": (2, 4)}
    with pytest.raises(DataError, match="saw no valid token"):
        relevant_experts(network, [])
    with pytest.raises(ConfigError, match="share must be"):
        relevant_experts(network, X, 0.0)
    with pytest.raises(ConfigError, match="score must be one of gate, token"):
        relevant_experts(network, X, score="loss")
    with pytest.raises(ConfigError, match="no MoE layer"):
        relevant_experts(nn.Linear(6, 2), X)


def test_shared_experts_are_not_counted():
    network = Net(router="shared").eval()
    found = relevant_experts(network, X, 1.0)
    assert all(0 not in experts for experts in found.values())
    use = measure_use(network, [X])["first"].weight[1:]
    one = relevant_experts(network, X, 0.2)["first"]
    assert one[0] == 1 + int(use.argmax())


def test_low_rank_experts_start_at_nothing_and_train_alone():
    network = Net()
    dense = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 6), nn.Linear(6, 3))
    before = copy.deepcopy(dense.state_dict())
    tuned, report = lora_experts(dense, rank=2, num_experts=3, also="3")
    assert report.layers == ("0", "2")
    assert torch.equal(tuned(X), dense(X))
    own = 2 * (3 * 2 * (6 + 16)) + 3 * 6 + 3 * 16
    assert report.trained == own + 3 * 6 + 3
    assert report.total == report.trained + 6 * 16 + 16 + 16 * 6 + 6
    train(tuned, torch.optim.AdamW(tuned.parameters(), lr=0.01, weight_decay=0.5), steps=3)
    for name, tensor in before.items():
        found = tuned.state_dict().get(name, tuned.state_dict().get(name.replace(".", ".base.")))
        assert torch.equal(found, tensor) == (not name.startswith("3")), name
    assert not torch.equal(tuned(X), dense(X))
    layer = tuned[0]
    assert (layer.in_features, layer.out_features) == (6, 16)
    tuned.eval()(X)
    routing = layer.last_routing
    weight = torch.zeros(64, 3).index_put((routing.token, routing.expert), routing.weight, accumulate=True)
    every = torch.einsum("nd,edr,ero->neo", X, layer.experts.down, layer.experts.up)
    expected = layer.base(X) + 2.0 * torch.einsum("ne,neo->no", weight, every)
    torch.testing.assert_close(layer(X), expected, atol=1e-5, rtol=1e-5)
    assert len(lora_experts(network, layers="*")[1].layers) == 2  # not inside of MoE layers


def test_low_rank_experts_beside_layers_by_name_and_what_cannot_have_them():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    x = torch.randn(3, 5, 8)
    tuned, report = lora_experts(encoder, layers="*")
    assert {entry.name for entry in report.skipped} == {f"layers.{i}.self_attn.out_proj" for i in (0, 1)}
    assert "torch's attention reads its weights" in report.skipped[0].reason
    with torch.no_grad():
        torch.testing.assert_close(tuned.eval()(x), encoder.eval()(x), atol=1e-5, rtol=1e-5)
        for layer in (module for module in tuned.modules() if isinstance(module, RoutedLinear)):
            layer.experts.up.add_(1.0)
        assert not torch.allclose(tuned(x), encoder(x), atol=0.1)  # no fast path around the experts
    for layers, message in (
        ("blocks.*", "is no Linear layer of this TransformerEncoder"),
        ("*.out_proj", "has no Linear layer for low-rank experts among those.*reads its weights"),
        (lambda name, module: False, "has no Linear layer for low-rank experts"),
    ):
        with pytest.raises(ConfigError, match=message):
            lora_experts(encoder, layers=layers)
    for arguments, message in (
        ({"rank": 0}, "rank must be"),
        ({"top_k": 5}, "top_k must be between 1 and num_experts=4"),
        ({"router": "soft"}, "router='soft' cannot route to low-rank experts"),
        ({"ranks": 3}, "has no argument 'ranks'"),
        ({"also": "tail"}, "also='tail' matches no parameter"),
    ):
        with pytest.raises(ConfigError, match=message):
            lora_experts(encoder, **arguments)


def test_relevant_experts_of_a_grown_network_train_to_a_lower_loss():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.Linear(8, 3))
    grown, _ = moeify(dense, num_experts=4, init="noise", every=1)
    chosen = relevant_experts(grown, X, 0.5)
    assert set(chosen) == {"1"}
    start = float(F.cross_entropy(grown(X), Y).detach())
    with freeze_except(grown, chosen) as freezing:
        assert freezing.share < 0.8
        train(grown, torch.optim.AdamW(grown.parameters(), lr=0.02), steps=60)
    assert float(F.cross_entropy(grown(X), Y).detach()) < 0.9 * start
