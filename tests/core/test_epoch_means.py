"""Terms are averaged over the epoch as Lightning's own logging averages them, without calling it in every step."""

import random
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from moeapps.core.callbacks import HistoryRecorder, StepSeeding, seed_everything
from moeapps.core.epoch_means import EvaluationMeans
from tests.toy import ToyData, ToyModule


class Both(ToyModule):
    """Logs every term a second time through Lightning; ``calls`` counts what it is asked to log."""

    steps_in_last_batch = 1
    changing = False
    calls = 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y, _ = batch
        for _ in range(self.steps_in_last_batch if self.trainer.is_last_batch else 1):
            terms = {"task": F.cross_entropy(self.head(self.moe(x)), y)}
            if self.changing and batch_idx % 2:
                terms["sometimes"] = terms["task"].square()
            loss = self.total_loss(terms, batch_size=len(x))
            logged = {f"lightning/{name}": term.detach() for name, term in {**terms, "loss": loss}.items()}
            self.log_dict(logged, on_step=False, on_epoch=True, batch_size=len(x))
        return loss

    def log(self, name: str, *args: Any, **kwargs: Any) -> None:
        self.calls += name.startswith("train/")
        super().log(name, *args, **kwargs)


def history(module: Both, rows: int = 60, **trainer: Any) -> list[dict[str, float]]:
    recorder = HistoryRecorder()
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    run = L.Trainer(accelerator="cpu", callbacks=[recorder], **quiet, **trainer)
    run.fit(module, ToyData(rows))
    last = {name: float(value) for name, value in run.callback_metrics.items()}
    return [*recorder.rows.values(), last]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_means_are_those_of_lightning_to_the_bit(dtype):
    module = Both().to(dtype)
    rows = history(module, max_epochs=3, precision="64-true" if dtype == torch.float64 else "32-true")
    for row in rows:  # batches of 8, the last one of 4
        for name in ("task", "loss"):
            assert row[f"train/{name}"] == row[f"lightning/{name}"]


@pytest.mark.filterwarnings("ignore")
def test_lightning_is_asked_once_per_term_and_epoch():
    module = Both()
    history(module, max_epochs=2)
    assert module.calls == 2 * 4  # task, balance, z, loss


@pytest.mark.filterwarnings("ignore")
def test_a_term_of_some_steps_is_averaged_over_these():
    module = Both()
    module.changing = True
    row = history(module, max_epochs=1)[0]
    for name in ("task", "sometimes", "loss"):
        assert row[f"train/{name}"] == pytest.approx(row[f"lightning/{name}"], rel=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_an_epoch_that_ends_early_is_logged():
    last = history(Both(), max_steps=11)[-1]
    assert last["train/task"] == last["lightning/task"]


@pytest.mark.filterwarnings("ignore")
def test_several_steps_in_the_last_batch_count_by_their_rows():
    module = Both()
    module.steps_in_last_batch = 3
    row = history(module, max_epochs=1)[0]
    assert row["train/loss"] == pytest.approx(row["lightning/loss"], rel=1e-6)


def first_step() -> Any:
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=0))
    return SimpleNamespace(fit_loop=loop, global_rank=0)


def test_a_step_draws_as_after_seeding_everything():
    StepSeeding(7).on_train_batch_start(first_step(), ToyModule(), None, 0)
    drawn = (torch.rand(3), np.random.rand(), random.random())  # noqa: NPY002
    seed_everything(int(np.random.SeedSequence([7, 0, 0]).generate_state(1, np.uint64)[0] >> np.uint64(1)))
    again = (torch.rand(3), np.random.rand(), random.random())  # noqa: NPY002
    assert torch.equal(drawn[0], again[0])
    assert drawn[1:] == again[1:]


def test_seeding_steps_leaves_nothing_behind_for_a_device_that_is_not_used():
    waiting = torch.cuda._queued_calls
    before = len(waiting)
    for _ in range(3):
        StepSeeding(7).on_train_batch_start(first_step(), ToyModule(), None, 0)
    assert len(waiting) == before


class Evaluated(ToyModule):
    """Logs its validation by the means over all rows, as moeapps' own modules do."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y, _ = batch
        self.log_evaluation({"val/loss": F.cross_entropy(self.head(self.moe(x)), y)}, len(x), batch_idx)


def test_a_callback_reads_the_metrics_of_a_validation_when_it_has_ended():
    seen: list[float] = []

    class Reporter(L.Callback):
        def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            seen.append(float(trainer.callback_metrics["val/loss"]))

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options = {"max_epochs": 2, "num_sanity_val_steps": 0, "enable_model_summary": False}
    trainer = L.Trainer(accelerator="cpu", callbacks=[Reporter()], **quiet, **options)
    module = Evaluated()
    trainer.fit(module, ToyData(60))
    assert len(seen) == 2
    assert seen[1] == pytest.approx(float(trainer.validate(module, ToyData(60), verbose=False)[0]["val/loss"]))


def test_means_of_an_evaluation_count_by_their_weights():
    means = EvaluationMeans()
    means.add({"loss": torch.tensor(1.0), "few": torch.tensor(5.0)}, {"loss": torch.tensor(3), "few": torch.tensor(1)})
    means.add({"loss": torch.tensor(2.0), "few": torch.tensor(1.0)}, {"loss": torch.tensor(1), "few": torch.tensor(3)})
    assert means.take() == {"loss": torch.tensor(1.25), "few": torch.tensor(2.0)}
    assert means.take() == {}


def test_a_mean_over_no_rows_does_not_count():
    means = EvaluationMeans()
    means.add({"loss": torch.tensor(float("nan"))}, 0)
    means.add({"loss": torch.tensor(2.0)}, 4)
    assert means.take() == {"loss": torch.tensor(2.0)}


def test_the_root_is_that_of_the_mean_of_all_squares():
    means = EvaluationMeans()
    for square in (0.0, 8.0):
        means.add({"rmse": torch.tensor(square)}, 10, roots=["rmse"])
    assert means.take() == {"rmse": torch.tensor(2.0)}
