"""Auxiliary losses, routing statistics, and the module and callback that collect them."""

import math

import lightning as L
import pytest
import torch

from moeapps.core import (
    MoE,
    Routing,
    RoutingMonitor,
    RoutingStatistics,
    TopKRouter,
    consistency_loss,
    entropy_loss,
    importance_loss,
    load_balance_loss,
    router_z_loss,
)
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.statistics import load_by_group
from tests.toy import ToyData, ToyModule


def routing(probabilities, expert) -> Routing:
    p = torch.as_tensor(probabilities, dtype=torch.float32)
    index = torch.as_tensor(expert)[:, None]
    return Routing.from_topk(index, p.gather(1, index), logits=p.log(), probabilities=p)


def test_balance_loss_is_one_at_uniform_routing():
    uniform = routing(torch.full((8, 4), 0.25), [0, 1, 2, 3] * 2)
    assert float(load_balance_loss(uniform)) == pytest.approx(1.0)


def test_balance_loss_is_the_number_of_experts_when_one_takes_all():
    assert float(load_balance_loss(routing([[1.0, 0, 0, 0]] * 8, [0] * 8))) == pytest.approx(4.0)


def test_balance_loss_moves_the_router_towards_idle_experts():
    router = TopKRouter(2, 2, top_k=1)
    with torch.no_grad():
        router.weight.copy_(torch.tensor([[1.0, 0], [0, 0]]))
    load_balance_loss(router(torch.ones(5, 2))).backward()
    assert (router.weight.grad[0] > 0).all()  # descent lowers the score of the expert that takes all
    assert (router.weight.grad[1] < 0).all()


def test_z_loss_is_the_mean_squared_logsumexp():
    p = torch.tensor([[0.5, 0.5], [0.9, 0.1]])
    r = Routing.from_topk(
        torch.zeros(2, 1, dtype=torch.long),
        p[:, :1],
        logits=torch.tensor([[1.0, 2], [0, 0]]),
        probabilities=p,
    )
    expected = (math.log(math.e + math.e**2) ** 2 + math.log(2) ** 2) / 2
    assert float(router_z_loss(r)) == pytest.approx(expected, rel=1e-6)


def test_weights_sum_to_what_the_router_promises():
    x = torch.randn(50, 8)
    for k, renormalize, total in ((2, None, 1.0), (3, True, 1.0)):
        r = TopKRouter(8, 4, k, renormalize=renormalize)(x)
        assert torch.allclose(r.weight[r.position].sum(1), torch.full((50,), total))
    r = TopKRouter(8, 4, 2, renormalize=False)(x)
    assert torch.allclose(r.weight[r.position].sum(1), r.probabilities.topk(2).values.sum(1))


def test_the_routing_is_sorted_and_its_offsets_bound_the_experts():
    r = TopKRouter(8, 5, 2)(torch.randn(30, 8))
    assert r.expert.diff().min() >= 0
    assert r.counts.tolist() == torch.bincount(r.expert, minlength=5).tolist()
    assert int(r.offsets[-1]) == len(r.token) == 60
    assert torch.equal(r.token[r.position], torch.arange(30)[:, None].expand(30, 2))


def test_router_refuses_what_it_cannot_use():
    with pytest.raises(ConfigError, match="noise_std.*got -1"):
        TopKRouter(8, 4, noise_std=-1)
    with pytest.raises(DataError, match=r"\(N, 8\), got \(2, 3\)"):
        TopKRouter(8, 4)(torch.randn(2, 3))


def test_statistics_count_over_batches():
    statistics = RoutingStatistics(num_experts=3)
    statistics.update(routing([[0.5, 0.5, 0.0]] * 4, [0, 0, 0, 1]))
    statistics.update(routing([[1.0, 0.0, 0.0]] * 4, [0, 0, 0, 0]))
    result = statistics.compute()
    assert result["load"].tolist() == pytest.approx([7 / 8, 1 / 8, 0])
    assert result["importance"].tolist() == pytest.approx([0.75, 0.25, 0])
    assert float(result["entropy"]) == pytest.approx(math.log(2) / 2)
    assert float(result["max_load"]) == pytest.approx(21 / 8)
    assert float(result["dead_experts"]) == 1
    assert float(result["dropped"]) == 0


def test_coactivation_counts_pairs_of_experts():
    statistics = RoutingStatistics(num_experts=3)
    expert = torch.tensor([[0, 1], [0, 1], [1, 2], [2, 0]])
    p = torch.full((4, 3), 1 / 3)
    statistics.update(Routing.from_topk(expert, torch.full((4, 2), 0.5), logits=p.log(), probabilities=p))
    assert statistics.compute()["coactivation"].tolist() == [[0.75, 0.5, 0.25], [0.5, 0.75, 0.25], [0.25, 0.25, 0.5]]


def test_load_by_group_is_a_share_of_each_group():
    expert = torch.tensor([[0], [1], [1], [2]])
    p = torch.full((4, 3), 1 / 3)
    r = Routing.from_topk(expert, torch.ones(4, 1), logits=p.log(), probabilities=p)
    load = load_by_group(r, torch.tensor([0, 0, 2, 2]), 3)
    assert load.tolist() == [[0.5, 0.5, 0], [0, 0, 0], [0, 0.5, 0.5]]


def test_importance_loss_is_the_squared_variation_of_summed_weights():
    r = routing([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]], [0, 0, 1])
    importance = torch.zeros(2).index_add(0, r.expert, r.weight)
    expected = float(importance.var(correction=0) / importance.mean() ** 2)
    assert float(importance_loss(r)) == pytest.approx(expected)
    assert float(importance_loss(TopKRouter(8, 1, 1)(torch.randn(5, 8))).detach()) == 0


def test_entropy_loss_is_the_mean_entropy():
    r = routing([[0.5, 0.5], [1.0, 0.0]], [0, 0])
    assert float(entropy_loss(r)) == pytest.approx(math.log(2) / 2)


def test_consistency_is_the_symmetric_divergence():
    a, b = torch.randn(6, 3), torch.randn(6, 3)
    p, q = a.softmax(-1), b.softmax(-1)
    expected = 0.5 * ((p * (p / q).log()).sum(-1) + (q * (q / p).log()).sum(-1)).mean()
    torch.testing.assert_close(consistency_loss(a, b), expected)
    assert float(consistency_loss(a, a)) == 0


def test_token_weights_count_like_repeated_tokens():
    router = TopKRouter(8, 4, 2)
    x, times = torch.randn(10, 8), torch.arange(10) % 3 + 1
    weighted, repeated = router(x), router(x.repeat_interleave(times, dim=0))
    for loss in (load_balance_loss, router_z_loss, importance_loss, entropy_loss):
        torch.testing.assert_close(loss(weighted, times), loss(repeated), msg=loss.__name__)


@pytest.mark.parametrize("router", ["smoe_dropout", "shared"])
def test_training_updates_what_routers_do_not_learn_by_gradient(router, tmp_path):
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    module = ToyModule(router=router)
    trainer.fit(module, ToyData())
    if router == "smoe_dropout":
        assert module.moe.router.top_k == 4
    else:
        assert module.moe.router.balance_bias.any()
        assert module.moe.router.balance_bias.abs().max() <= 0.001 * trainer.global_step + 1e-9


def test_statistics_of_nothing_are_finite():
    with pytest.warns(UserWarning, match="before the ``update``"):
        result = RoutingStatistics(num_experts=3).compute()
    assert all(value.isfinite().all() for value in result.values())
    with pytest.raises(ValueError, match="num_experts is 3, got a routing over 2"):
        RoutingStatistics(3).update(routing([[1.0, 0.0]], [0]))


def test_total_loss_adds_the_losses_of_every_layer():
    module = ToyModule()
    module.log_dict = lambda *args, **kwargs: None
    module.moe(torch.randn(6, 8))
    auxiliary = module.moe.auxiliary_losses()
    total = module.total_loss({"task": torch.tensor(2.0)})
    assert float(total.detach()) == pytest.approx(2.0 + sum(float(v.detach()) for v in auxiliary.values()), rel=1e-6)
    assert set(module.auxiliary_losses()) == {"moe/balance", "moe/z"}


def test_the_monitor_logs_every_layer_in_training_and_validation(tmp_path):
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, callbacks=[RoutingMonitor()], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    module = ToyModule()
    trainer.fit(module, ToyData())
    logged = trainer.callback_metrics
    assert {"train/task", "train/moe/balance", "train/moe/z", "train/loss"} <= set(logged)
    for stage in ("", "val/"):
        load = [float(logged[f"{stage}moe/moe/load/{e}"]) for e in range(4)]
        assert sum(load) == pytest.approx(1.0, abs=1e-5)
        assert 0 <= float(logged[f"{stage}moe/moe/entropy"]) <= math.log(4)


def test_a_layer_says_nothing_before_its_first_pass():
    assert MoE(8, 4).auxiliary_losses() == {}
