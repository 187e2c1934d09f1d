"""Low-rank experts: other numbers in other layers (MoLA), and groups of them for groups of samples (LoRAMoE)."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from moeapps.core import MoELosses, collect_losses, load_moeified, localized_balance_loss, lora_experts, save_moeified
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.module import MoEModule
from moeapps.core.routing import Routing
from moeapps.core.surgery import measure_use, prune_experts

X = torch.randn(6, 5, 6, generator=torch.Generator().manual_seed(0))  # 6 samples of 5 tokens
KINDS = torch.tensor([0, 1, 1, 0, 1, 0])


def dense(depth=4):
    torch.manual_seed(0)
    return nn.Sequential(*[part for _ in range(depth) for part in (nn.Linear(6, 6), nn.GELU())])


def grouped(**options):
    return lora_experts(dense(2), rank=2, layers="*", **{"num_experts": 4, "top_k": 4, "expert_groups": 2, **options})[
        0
    ]


def numbers(network):
    return [module.num_experts for module in network if hasattr(module, "num_experts")]


def test_numbers_of_experts_are_those_of_the_parts_of_a_network(tmp_path):
    for given, expected in (((2, 6), (2, 2, 6, 6)), ([1, 2, 3, 4], (1, 2, 3, 4)), (3, (3,) * 4), ((3,), (3,) * 4)):
        tuned, report = lora_experts(dense(), rank=2, num_experts=given, layers="*")
        assert report.num_experts == expected
        assert numbers(tuned) == list(expected)
        assert torch.equal(tuned(X), dense()(X))
        with torch.no_grad():
            for p in tuned.parameters():
                p.add_(0.1 * torch.randn_like(p))
        save_moeified(tuned, tmp_path / "a.safetensors")
        assert torch.equal(load_moeified(tmp_path / "a.safetensors", dense())(X), tuned.eval()(X))


def test_numbers_that_do_not_fit_are_refused():
    for arguments, message in (
        ({"num_experts": (2, 3, 4)}, "has 3 numbers, and 4 Linear layers .* equal parts: give 1, 2 or 4 of them"),
        ({"num_experts": ()}, "num_experts is empty"),
        ({"num_experts": (2, 0)}, r"num_experts\[1\] must be a whole number of at least 1, got 0"),
        ({"num_experts": "24"}, r"num_experts\[0\] must be a whole number of at least 1, got '2'"),
        ({"num_experts": (4, 2), "top_k": 3}, "top_k must be between 1 and num_experts=2, got 3"),
        ({"num_experts": (4, 3), "expert_groups": 2}, r"num_experts\[1\]=3 does not divide into expert_groups=2"),
        ({"num_experts": 4, "expert_groups": 0}, "expert_groups must be a whole number"),
        ({"delta": 1.0}, "delta must be below 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            lora_experts(dense(), layers="*", **arguments)


def test_the_localized_loss_is_the_variation_of_the_importances():
    probabilities = torch.randn(30, 4, generator=torch.Generator().manual_seed(1)).softmax(1)
    index = torch.arange(4).expand(30, 4)
    routing = Routing.from_topk(index, probabilities, logits=probabilities.log(), probabilities=probabilities)
    found = localized_balance_loss(routing, KINDS, (0, 0, 1, 1), delta=0.3)
    importance = probabilities.view(6, 5, 4).sum(1)
    for sample, kind in enumerate(KINDS.tolist()):
        for expert, group in enumerate((0, 0, 1, 1)):
            importance[sample, expert] *= 0.7 if group == kind else 1.3
    torch.testing.assert_close(found, importance.var(correction=0) / importance.mean() ** 2)
    # padding: of a sample with one token the mean is that token, and one without any does not count
    weight = torch.ones(30)
    weight[1:5] = weight[5:10] = 0
    found = localized_balance_loss(routing, KINDS, (0, 0, 1, 1), 0.3, weight)
    importance = torch.cat([probabilities[:1], probabilities.view(6, 5, 4)[2:].mean(1)])
    own = torch.tensor([0, 0, 1, 1]) == KINDS[[0, 2, 3, 4, 5], None]
    importance = importance * torch.where(own, 0.7, 1.3)
    torch.testing.assert_close(found, importance.var(correction=0) / importance.mean() ** 2)
    assert float(localized_balance_loss(routing, KINDS, (0, 0, 1, 1), 0.3, torch.zeros(30))) == 0


def test_the_loss_brings_samples_to_the_experts_of_their_group():
    network = grouped(delta=0.5, balance_weight=1.0, z_weight=0.0)
    x = X + 2.0 * KINDS[:, None, None]  # the router can see the kind
    optimizer = torch.optim.Adam([p for name, p in network.named_parameters() if "router" in name], 0.05)
    for _ in range(120):
        optimizer.zero_grad()
        network(x)
        collect_losses(network, sample_groups=KINDS).backward()
        optimizer.step()
    routing = network[0].last_routing
    own = torch.tensor([0, 0, 1, 1]) == KINDS.repeat_interleave(5)[:, None]
    share = float((routing.probabilities.detach() * own).sum(1).mean())
    assert share == pytest.approx(0.75, abs=0.05)  # (1 + delta) / 2


def test_groups_are_asked_for_and_checked():
    network = grouped()
    network(X)
    with pytest.raises(ConfigError, match=r"needs the group of each sample: collect_losses\(network, sample_groups="):
        collect_losses(network)
    for kinds, message in (
        ([0, 1, 2, 0, 1, 0], r"has the group 2; the experts have \[0, 1\]"),
        ([0, 1, 1, 0], "has 4 samples for 30 tokens"),
        (torch.zeros(6), r"must be whole numbers \(S,\), one per sample, got torch.float32"),
        (torch.zeros(6, 1, dtype=torch.long), r"one per sample, got torch.int64 \(6, 1\)"),
    ):
        with pytest.raises(DataError, match=message):
            collect_losses(network, sample_groups=kinds)
    plain = lora_experts(dense(), layers="*")[0]
    plain(X)
    with pytest.raises(ConfigError, match="no experts of this network are in groups"):
        collect_losses(plain, sample_groups=KINDS)
    with pytest.raises(ConfigError, match="sample_groups must be a function of the batch, got list"):
        MoELosses(sample_groups=[0, 1])


def test_groups_survive_pruning_and_saving(tmp_path):
    network = grouped(delta=0.2).eval()
    pruned, _ = prune_experts(network, 3, measure_use(network, [X]))
    save_moeified(pruned, tmp_path / "a.safetensors", trained_only=True)
    loaded = load_moeified(tmp_path / "a.safetensors", dense(2))
    for before, after in zip(pruned, loaded, strict=True):
        if hasattr(before, "experts"):
            assert before.experts.groups in ((0, 0, 1), (0, 1, 1))
            assert (after.experts.groups, after.delta) == (before.experts.groups, 0.2)
    pruned(X), loaded(X)
    assert torch.equal(collect_losses(loaded, sample_groups=KINDS), collect_losses(pruned, sample_groups=KINDS))


class Plain(L.LightningModule):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def training_step(self, batch, batch_idx):
        x, y, _ = batch
        return F.cross_entropy(self.network(x).mean(1), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_lightning_takes_the_groups_from_the_batch():
    module = Plain(grouped(balance_weight=1.0))
    loader = DataLoader(TensorDataset(X, KINDS, KINDS), batch_size=3)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[MoELosses(sample_groups=lambda batch: batch[2])],
    )  # fmt: skip
    trainer.fit(module, loader)
    assert float(trainer.callback_metrics["moe/balance"]) > 0


class Ours(MoEModule):
    def __init__(self, network, with_groups):
        super().__init__()
        self.network, self.with_groups = network, with_groups

    def training_step(self, batch, batch_idx):
        x, y, kinds = batch
        terms = {"task": F.cross_entropy(self.network(x).mean(1), y)}
        return self.total_loss(terms, len(x), sample_groups=kinds if self.with_groups else None)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def trained(module):
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(X, KINDS, KINDS), batch_size=3))
    return trainer.callback_metrics


def test_a_module_of_ours_is_told_the_groups_or_says_how():
    found = trained(Ours(grouped(balance_weight=1.0), True))
    assert any(name.endswith("balance") and float(value) > 0 for name, value in found.items())
    with pytest.raises(ConfigError, match=r"in a MoEModule of your own total_loss\(..., sample_groups=...\)"):
        trained(Ours(grouped(balance_weight=1.0), False))
