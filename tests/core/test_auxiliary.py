"""Auxiliary losses in a loop of one's own, and in LightningModules that know nothing of experts."""

import copy

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from moeapps.core import MoE, MoELosses, MoEModule, collect_losses, moeify, update_routers
from moeapps.core.auxiliary import auxiliary_losses
from moeapps.core.errors import ConfigError

X, Y = torch.randn(24, 4, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3


def network(**options):
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    return moeify(dense, num_experts=4, every=1, **options)[0]


class Plain(L.LightningModule):
    """Anybody's module."""

    def __init__(self, net, returns="loss"):
        super().__init__()
        self.net, self.returns = net, returns

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)
        if self.returns == "nothing" and batch_idx % 2:
            return None
        return {"loss": loss, "other": 1} if self.returns == "dict" else loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module, callback=None, epochs=2, batch=6, **options):
    trainer = L.Trainer(
        max_epochs=epochs, callbacks=[] if callback is None else [callback], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, accelerator="cpu", **options,
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(X, Y), batch_size=batch))
    return trainer


def by_hand(net, accumulate=1, weight=1.0, epochs=2, batch=6):
    """The same training in a loop of one's own."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    batches = list(zip(X.split(batch), Y.split(batch), strict=True))
    for epoch in range(epochs):
        for i, (x, y) in enumerate(batches):
            loss = F.cross_entropy(net(x), y) + weight * collect_losses(net)
            (loss / accumulate).backward()
            if (i + 1) % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
                update_routers(net, (epoch + (i + 1) / len(batches)) / epochs)
    return net


def test_collected_losses_are_those_of_the_layers():
    net = network()
    layer = next(module for module in net.modules() if isinstance(module, MoE))
    net(X)
    expected = sum(layer.auxiliary_losses().values())
    torch.testing.assert_close(collect_losses(net), expected)
    assert set(auxiliary_losses(net)) == {"0/balance", "0/z"}
    weight = (torch.arange(24) < 12).float()
    assert not torch.allclose(collect_losses(net, weight), expected)
    without = nn.Sequential(MoE(4, 4, router="hash"))  # nothing to learn, nothing to lose
    without(X)
    assert collect_losses(without).item() == 0.0


def test_what_has_no_losses_is_refused():
    with pytest.raises(ConfigError, match="there is no MoE layer in this Linear"):
        collect_losses(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="no MoE layer has run"):
        collect_losses(network())


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("router", ["topk", "shared", "smoe_dropout"])
def test_the_callback_trains_as_a_loop_of_ones_own(router, accumulate):
    start = network(router=router, init="noise")
    module, callback = Plain(copy.deepcopy(start)), MoELosses(weight=3.0)
    trainer = fit(module, callback, accumulate_grad_batches=accumulate)
    expected = by_hand(copy.deepcopy(start).train(), accumulate, weight=3.0)
    for (name, p), (_, q) in zip(module.net.state_dict().items(), expected.state_dict().items(), strict=True):
        torch.testing.assert_close(p, q, msg=name)
    assert "training_step" not in vars(module)
    if router != "smoe_dropout":
        assert "moe/z" in trainer.callback_metrics
    without = Plain(copy.deepcopy(start))
    fit(without, accumulate_grad_batches=accumulate)
    assert (
        any(not torch.allclose(p, q) for p, q in zip(without.net.parameters(), module.net.parameters(), strict=True))
        or router == "smoe_dropout"
    )


def test_the_balancing_bias_moves_once_per_step_of_the_optimiser():
    for accumulate, steps in ((1, 8), (2, 4), (4, 2)):
        net = network(router="shared", init="noise", router_args={"bias_rate": 1.0})
        fit(Plain(net), MoELosses(), accumulate_grad_batches=accumulate)
        bias = next(module for module in net.modules() if isinstance(module, MoE)).router.balance_bias
        assert 0 < float(bias.abs().max()) <= steps
        assert bool((bias % 1 == 0).all())


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
@pytest.mark.parametrize("returns", ["dict", "nothing"])
def test_a_step_may_return_a_dictionary_or_nothing(returns):
    start = network(init="noise")
    module = Plain(copy.deepcopy(start), returns)
    fit(module, MoELosses(log=False), epochs=1)
    assert any(not torch.equal(p, q) for p, q in zip(start.parameters(), module.net.parameters(), strict=True))


class ByHand(Plain):
    def __init__(self, net):
        super().__init__(net)
        self.automatic_optimization = False


class Own(MoEModule):
    def __init__(self, net):
        super().__init__()
        self.net = net

    configure_optimizers = Plain.configure_optimizers
    training_step = Plain.training_step


def test_modules_that_the_losses_cannot_be_added_to_are_refused():
    for module, message in (
        (Own(network()), "Own adds its auxiliary losses itself"),
        (ByHand(network()), "optimises by hand: add collect_losses"),
        (Plain(nn.Linear(4, 3)), "there is no MoE layer in this Plain"),
        (Plain(network(router="thor")), "compares two passes"),
    ):
        with pytest.raises(ConfigError, match=message):
            fit(module, MoELosses())
    with pytest.raises(ConfigError, match="weight must be"):
        MoELosses(weight=-1)


def test_a_failed_training_gives_the_module_its_step_back():
    module = Plain(network())
    module.net[0].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit(module, MoELosses())
    assert "training_step" not in vars(module)
