"""A small MoE model and data set with mini-batches, dropout, router noise and a scheduler, for tests of training."""

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset

from moeapps.core import MoE, MoEModule, TopKRouter
from moeapps.core.loading import ResumableLoader, make_loader
from moeapps.core.parallel import ExpertParallel


class ToyModule(MoEModule):
    """Two-class MLP with one MoE layer."""

    def __init__(
        self,
        num_experts: int = 4,
        nan_at_step: int = -1,
        slow: float = 0.0,
        width: int = 16,
        router: str | None = None,
        noise: bool = True,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        noisy = TopKRouter(8, num_experts, 2, noise_std=0.25 if noise else 0.0)
        self.moe = MoE(8, num_experts, hidden_dim=width, router=noisy if router is None else router)
        self.head = nn.Sequential(nn.Dropout(0.2 if noise else 0.0), nn.Linear(8, 2))
        self.nan_at_step, self.slow = nan_at_step, slow
        self.seen: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        import time

        x, y, row = batch
        self.seen += row.tolist()
        if self.trainer.global_step == self.nan_at_step:
            x = x.clone()
            x[0] = torch.nan
        time.sleep(self.slow)
        return self.total_loss({"task": F.cross_entropy(self.head(self.moe(x)), y)}, batch_size=len(x))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y, _ = batch
        self.log("val/loss", F.cross_entropy(self.head(self.moe(x)), y), batch_size=len(x))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        x, y, _ = batch
        self.log("test/loss", F.cross_entropy(self.head(self.moe(x)), y), batch_size=len(x))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        return {
            "optimizer": optimizer,
            "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5),
        }


class ParallelToyModule(ToyModule):
    """The same with its experts divided among the processes."""

    def __init__(self) -> None:
        super().__init__(num_experts=8, noise=False)

    def configure_model(self) -> None:
        if not isinstance(self.moe.experts, ExpertParallel):
            self.moe.experts = ExpertParallel(self.moe.experts)


class ToyData(L.LightningDataModule):
    """Random points, two classes split by the sign of the first feature."""

    def __init__(self, rows: int = 64, batch_size: int = 8, num_workers: int = 0, seed: int = 3) -> None:
        super().__init__()
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(rows, 8, generator=generator)
        self.dataset: Dataset = TensorDataset(x, (x[:, 0] > 0).long(), torch.arange(rows))
        make_loader(self.dataset, batch_size)  # refuses a wrong batch_size at once

    def train_dataloader(self) -> ResumableLoader:
        return make_loader(self.dataset, self.batch_size, shuffle=True, seed=self.seed, num_workers=self.num_workers)

    def val_dataloader(self) -> ResumableLoader:
        return make_loader(self.dataset, 32)

    def test_dataloader(self) -> ResumableLoader:
        return self.val_dataloader()
