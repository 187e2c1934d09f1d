"""The cosine schedule over steps, and over time where training is limited by it."""

from datetime import timedelta

import lightning as L
import pytest
import torch

from moeapps.core.callbacks import time_used
from tests.toy import ToyData, ToyModule

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
         "limit_val_batches": 0, "accelerator": "cpu"}  # fmt: skip


class Scheduled(ToyModule):
    def configure_optimizers(self):
        return self.with_cosine_schedule(torch.optim.SGD(self.parameters(), lr=1.0), warmup=0.25, end=0.1)

    def on_train_batch_end(self, *_):
        self.rates = [*getattr(self, "rates", []), self.trainer.optimizers[0].param_groups[0]["lr"]]


def test_the_rate_rises_and_falls_over_the_steps():
    module = Scheduled()
    L.Trainer(max_epochs=5, **QUIET).fit(module, ToyData())  # 40 steps
    assert module.rates.index(max(module.rates)) == 8  # the last step before a quarter of them
    assert module.rates[-1] == pytest.approx(0.1)
    assert time_used(module.trainer) == 0.0


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_the_schedule_ends_with_the_time():
    module = Scheduled(slow=0.01)
    L.Trainer(max_epochs=10_000, max_time=timedelta(seconds=1.5), **QUIET).fit(module, ToyData())
    assert len(module.rates) < 400
    assert module.rates[-1] == pytest.approx(0.1, abs=0.02)  # of 80,000 steps it would be at the beginning of its rise
    assert max(module.rates) > 0.7
    assert time_used(module.trainer) == 1.0
