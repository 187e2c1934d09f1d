"""Weights by uncertainty, gradient surgery."""

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch

from moeapps.core.errors import ConfigError
from moeapps.recsys import PLE, MultiTaskRanker, RankingData, RankingModule
from moeapps.recsys.task_balance import UncertaintyWeights, gradient_matrix, surgery_term, surgery_weighting

QUICK = {"max_epochs": 3, "batch_size": 128, "lr": 1e-2, "random_state": 0, "accelerator": "cpu"}
KINDS = ["binary", "regression", "count"]


def trainer(**options) -> L.Trainer:
    return L.Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    n = 1000
    frame = pd.DataFrame({"city": rng.choice(["Ulm", "Bonn"], n), "age": rng.normal(40, 9, n)})
    frame["click"] = (frame["age"] > 40).astype(int)
    frame["leave"] = np.where(rng.random(n) < 0.5, np.nan, (frame["age"] < 38).astype(float))
    frame["stay"] = frame["age"] * 2 + rng.normal(size=n)
    frame["views"] = rng.poisson(np.where(frame["age"] > 40, 30.0, 10.0))
    return frame


def test_uncertainty_weighs_each_kind_as_the_paper_says():
    weights = UncertaintyWeights(KINDS)
    with torch.no_grad():
        weights.scaled.copy_(torch.tensor([0.05, -0.1, 0.02]))
    s = weights.log_variance
    labels = torch.tensor([[1.0, 0.3, 4.0], [0.0, -0.2, 2.0]])
    losses = torch.tensor([0.6, 0.9, 3.0])
    perfect = float(np.mean([4 - 4 * np.log(4), 2 - 2 * np.log(2)]))
    expected = [
        (-s[0]).exp() * 0.6 + s[0] / 2,
        (-s[1]).exp() * 0.9 / 2 + s[1] / 2,
        (-s[2]).exp() * (3.0 - perfect) + s[2] / 2,
    ]
    torch.testing.assert_close(weights(losses, labels), torch.stack(expected))


def test_uncertainty_settles_where_twice_the_loss_is_the_variance():
    weights = UncertaintyWeights(["binary"])
    optimizer = torch.optim.Adam(weights.parameters(), lr=0.01)
    for _ in range(300):
        optimizer.zero_grad()
        weights(torch.tensor([0.1]), torch.zeros(4, 1)).sum().backward()
        optimizer.step()
    assert weights.log_variance.exp().item() == pytest.approx(0.2, rel=0.05)


def test_a_task_without_labels_does_not_move_its_uncertainty():
    weights = UncertaintyWeights(KINDS)
    labels = torch.tensor([[1.0, float("nan"), 2.0]])
    weights(torch.tensor([0.7, 0.0, 1.0]), labels).sum().backward()
    assert weights.scaled.grad[1] == 0
    assert (weights.scaled.grad[[0, 2]] != 0).all()


def test_a_ranker_learns_with_uncertainty_and_says_the_weights(frame):
    ranker = MultiTaskRanker("mmoe", task_weighting="uncertainty", **QUICK)
    ranker.fit(frame, ["click", "leave", "stay", "views"], kinds={"views": "count"})
    weights = ranker.history_.filter(like="train/weight/").iloc[-1]
    assert len(weights) == 4
    assert (weights > 0).all()
    assert ranker.evaluate(frame)["auc"].min() > 0.9


def reference_pcgrad(gradients: np.ndarray) -> np.ndarray:
    """Algorithm 1 of Yu et al. for two tasks, in which the order does not matter."""
    result = gradients.copy()
    for i, j in ((0, 1), (1, 0)):
        product = gradients[i] @ gradients[j]
        if product < 0:
            result[i] = gradients[i] - product / (gradients[j] @ gradients[j]) * gradients[j]
    return result.sum(0)


@pytest.mark.parametrize("sign", [1, -1])
def test_pcgrad_changes_what_tasks_share_and_leaves_the_rest(sign):
    pytest.importorskip("torchjd")
    shared, own = torch.nn.Parameter(torch.randn(3)), torch.nn.Parameter(torch.randn(2, 3))
    a, b = torch.tensor([1.0, 0.5, 0.2]), sign * torch.tensor([0.8, 0.9, -0.1])
    losses = [(shared * a).sum() + (own[0] * shared.detach()).sum(), (shared * b).sum() + own[1].square().sum()]
    term, conflicts = surgery_term(losses, [shared, own], surgery_weighting("pcgrad"))
    assert float(term.detach()) == 0
    assert float(conflicts) == (sign < 0)
    (sum(losses) + term).backward()
    expected = reference_pcgrad(torch.stack([a, b]).numpy())
    np.testing.assert_allclose(shared.grad, expected, rtol=1e-5)
    torch.testing.assert_close(own.grad, torch.stack([shared.detach(), 2 * own[1].detach()]))


def test_what_one_task_has_to_itself_is_not_shared():
    model = PLE(6, 2, num_levels=1)
    losses = list(model(torch.randn(32, 6)).square().mean(0))
    parameters = dict(model.named_parameters())
    matrix = gradient_matrix(losses, list(parameters.values()))
    parts = dict(zip(parameters, matrix.split([p.numel() for p in parameters.values()], dim=1), strict=True))
    assert all((part == 0).all() for name, part in parts.items() if name.startswith("towers"))
    experts = parts["experts.0.weights.0"].unflatten(1, (8, -1)).abs().sum((0, 2))  # 3 + 3 own, 2 shared
    assert ((experts > 0) == torch.tensor([False] * 6 + [True] * 2)).all()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_surgery_works_with_accumulated_batches_and_bfloat16(frame, precision):
    pytest.importorskip("torchjd")
    data = RankingData(frame, targets=["click", "leave"], batch_size=64)
    module = RankingModule("mmoe", gradient_surgery="pcgrad")
    runner = trainer(accumulate_grad_batches=4, precision=precision)
    runner.fit(module, data)
    assert runner.callback_metrics["train/conflicts"] > 0  # clicks and leaves ask for opposite things
    assert all(p.isfinite().all() for p in module.parameters())


def test_a_ranker_learns_with_surgery(frame):
    pytest.importorskip("torchjd")
    for name in ("pcgrad", "aligned_mtl"):
        ranker = MultiTaskRanker("mmoe", gradient_surgery=name, **QUICK).fit(frame, ["click", "leave"])
        assert ranker.evaluate(frame)["auc"].min() > 0.9


def test_surgery_says_what_it_cannot_do(frame):
    pytest.importorskip("torchjd")
    with pytest.raises(ConfigError, match="gradient_surgery must be one of pcgrad, aligned_mtl"):
        RankingModule(gradient_surgery="nash")
    with pytest.raises(ConfigError, match="needs dense gradients"):
        RankingModule(gradient_surgery="pcgrad", sparse_gradients=True)
    with pytest.raises(ConfigError, match="is for several targets, got model='din'"):
        RankingModule("din", gradient_surgery="pcgrad")
    module = RankingModule("mmoe", gradient_surgery="pcgrad")
    runner = trainer()
    runner.strategy.precision_plugin.precision = "16-mixed"
    with pytest.raises(ConfigError, match="precision='16-mixed'"):
        runner.fit(module, RankingData(frame, targets=["click", "leave"]))


def test_surgery_without_torchjd_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchjd", None)
    with pytest.raises(ConfigError, match=r"needs torchjd: pip install 'moeapps\[tasks\]'"):
        RankingModule(gradient_surgery="pcgrad")


def test_uncertainty_is_in_checkpoints_and_goes_on(frame, tmp_path):
    data = RankingData(frame, targets=["click", "stay"], batch_size=128)
    module = RankingModule("mmoe", task_weighting="uncertainty", lr=0.01)
    runner = trainer()
    runner.fit(module, data)
    runner.save_checkpoint(tmp_path / "a.ckpt")
    loaded = RankingModule.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert torch.equal(loaded.uncertainty.log_variance, module.uncertainty.log_variance)
    assert (loaded.uncertainty.log_variance != 0).all()
