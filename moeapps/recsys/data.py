"""Batches of encoded rows with their labels."""

from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moeapps.core.errors import DataError
from moeapps.core.loading import ResumableLoader, make_loader
from moeapps.core.tabular.data import EncodedTable
from moeapps.recsys.encoder import Rows

__all__ = ["RowsDataModule"]


def _as_rows(batch: Any) -> tuple[Rows, Tensor]:
    sparse, dense, labels, *sequences = batch
    return Rows(sparse, dense, tuple(sequences)), labels


class RowsDataModule(L.LightningDataModule):
    """Training and validation batches ``(Rows, labels)``.

    Args:
        train: Rows and labels ``(n, T)`` to learn from.
        val: The same to validate on; None for no validation.
        batch_size: Rows per batch. An incomplete last batch is left out of training.
        seed: Seed of the order.
    """

    def __init__(
        self,
        train: tuple[Rows, NDArray[np.float32]],
        val: tuple[Rows, NDArray[np.float32]] | None = None,
        batch_size: int = 1024,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.train, self.val = _table(*train), None if val is None else _table(*val)
        self.batch_size, self.seed = batch_size, seed

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled batches."""
        full = len(self.train) >= self.batch_size
        return make_loader(
            self.train, self.batch_size, shuffle=True, seed=self.seed, drop_last=full, collate_fn=_as_rows
        )

    def val_dataloader(self) -> ResumableLoader:
        """Batches in order."""
        assert self.val is not None
        return make_loader(self.val, max(self.batch_size, 4096), collate_fn=_as_rows)


def _table(rows: Rows, labels: NDArray[np.float32]) -> EncodedTable:
    if len(rows) != len(labels):
        raise DataError(f"{len(rows)} rows and {len(labels)} labels")
    columns: list[Any] = [rows.sparse, rows.dense, torch.from_numpy(np.ascontiguousarray(labels)), *rows.sequences]
    return EncodedTable(*columns)
